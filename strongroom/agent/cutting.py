"""Cutting a file into named pieces at the host, as engine/files.py cuts one that lies at the server.

Equal bytes become equal chunks on both sides: a host that was backed up as a mounted folder before sends nothing twice.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from strongroom.base.streams import Extent, ExtentKind, FileData
from strongroom.base.units import MIB
from strongroom.engine.chunker import HOLE, DataChunker, is_zero
from strongroom.engine.files import aligned_runs, is_image
from strongroom.engine.model import BLOCK_BYTES, SMALL_FILE_BYTES

BUFFER_BYTES = 4 * MIB


class Cut(NamedTuple):
    """One piece; data is None for a hole."""

    id: bytes
    length: int
    data: bytes | None


class Cutter:
    """For one thread. After the pieces of a file were taken, `whole` tells whether it was as long as it said."""

    def __init__(self, chunker: DataChunker) -> None:
        self.whole = True
        self._chunker = chunker

    @cached_property
    def _buffer(self) -> bytearray:
        """Made when a file is cut: a rescan in which nothing changed does not pay for it."""
        return bytearray(BUFFER_BYTES)

    def pieces(self, data: FileData) -> Iterator[Cut]:
        """Pieces that cover [0, data.entry.size). Raises SourceError."""
        self.whole = True
        size = data.entry.size
        if size == 0:
            return iter(())
        if is_image(data.entry):
            return self._blocks(data, size)
        if size <= SMALL_FILE_BYTES and not data.entry.sparse:
            return self._small(data, size)
        return self._cut(data, size)

    def _small(self, data: FileData, size: int) -> Iterator[Cut]:
        with memoryview(self._buffer) as view:
            got = data.read_into(0, view[:size])
            if got:
                yield self._named(view[:got])
        if got < size:
            self.whole = False
            yield Cut(HOLE, size - got, None)

    def _cut(self, data: FileData, size: int) -> Iterator[Cut]:
        extents = data.extents() if data.entry.sparse else (Extent(0, size, ExtentKind.DATA),)
        end = 0
        for offset, length, kind in extents:
            end = offset + length
            if kind == ExtentKind.ZERO:
                yield Cut(HOLE, length, None)
            else:
                yield from self._cut_extent(data, offset, end)
        if end < size:
            self.whole = False
            yield Cut(HOLE, size - end, None)

    def _cut_extent(self, data: FileData, offset: int, end: int) -> Iterator[Cut]:
        have = 0
        while True:
            with memoryview(self._buffer) as view:
                wanted = min(BUFFER_BYTES - have, end - offset)
                got = data.read_into(offset, view[have : have + wanted]) if wanted else 0
                have += got
                offset += got
                at_end = got < wanted or offset == end
                done = 0
                for length in self._chunker.cut_data(view[:have], at_end=at_end):
                    if is_zero(self._buffer, done, length):
                        yield Cut(HOLE, length, None)
                    else:
                        yield self._named(view[done : done + length])
                    done += length
                if at_end:
                    break
                have -= done
                view[:have] = view[done : done + have]
        if offset < end:
            self.whole = False
            yield Cut(HOLE, end - offset, None)

    def _blocks(self, data: FileData, size: int) -> Iterator[Cut]:
        """Blocks of a disk image; zeros between them as holes that end where a block begins."""
        hole = 0
        for start, end, kind in aligned_runs(data.extents(), size):
            at = start
            if kind == ExtentKind.ZERO:
                hole += end - start
                continue
            while at < end:
                wanted = min(BUFFER_BYTES, end - at)
                with memoryview(self._buffer) as view:
                    got = data.read_into(at, view[:wanted])
                    if got < wanted:
                        self.whole = False
                        view[got:wanted] = bytes(wanted - got)
                    for begin in range(0, wanted, BLOCK_BYTES):
                        length = min(BLOCK_BYTES, wanted - begin)
                        if is_zero(self._buffer, begin, length):
                            hole += length
                            continue
                        if hole:
                            yield Cut(HOLE, hole, None)
                            hole = 0
                        yield self._named(view[begin : begin + length])
                at += wanted
        if hole:
            yield Cut(HOLE, hole, None)

    def _named(self, chunk: memoryview) -> Cut:
        return Cut(self._chunker.data_id(chunk), len(chunk), bytes(chunk))
