"""Reading a disk ahead of who reads it: while the engine hashes one piece, the next ones are under way.

What will be read is known: DATA of the extents that were handed out, in order. Who reads elsewhere is served directly.

    extents   |--DATA--|-SAME-|------DATA------|...
    pieces    |  1 |2  |      |  3  |  4  |  5          1 is being copied out, 2 to 4 are in flight, 5 waits for room
"""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from strongroom.base.streams import Extent, ExtentKind
from strongroom.base.units import KIB, MIB
from strongroom.sources.machines.nbd import NbdClient, Reading

PIECE_BYTES = 2 * MIB
PIECES_MAX = 4  # in flight: 8 MiB a disk hide 10 ms of latency at 800 MB/s
BLOCK_BYTES = 64 * KIB  # the engine reads disks in whole blocks, also where an extent begins within one
RANGES_MAX = 1 << 16  # handed out and not read yet: what is beyond is read without being fetched before


@dataclass(kw_only=True)
class _Piece:
    offset: int
    view: memoryview
    reading: Reading

    @property
    def end(self) -> int:
        return self.offset + len(self.view)


class ReadAhead:
    """Over one NBD connection. read_bytes: what was asked of the server so far."""

    def __init__(self, client: NbdClient) -> None:
        self.read_bytes = 0
        self._client = client
        self._lock = threading.Lock()  # of all below
        self._ranges: deque[tuple[int, int]] = deque()  # (begin, end) of DATA that is not asked for yet, in order
        self._pieces: deque[_Piece] = deque()
        self._spare: list[bytearray] = []

    def extents(self) -> Iterator[Extent]:
        for extent in self._client.extents():
            if extent.kind == ExtentKind.DATA:
                self._note(extent)
            yield extent

    def read_into(self, offset: int, buffer: memoryview) -> int:
        with self._lock:
            at, end = offset, offset + len(buffer)
            while at < end:
                self._drop_before(at)
                self._fetch(at)
                head = self._pieces[0] if self._pieces else None
                if head is not None and head.offset <= at:
                    self._client.finish_read(head.reading)
                    stop = min(end, head.end)
                    buffer[at - offset : stop - offset] = head.view[at - head.offset : stop - head.offset]
                else:
                    stop = end if head is None else min(end, head.offset)
                    self.read_bytes += stop - at
                    self._client.read_into(at, buffer[at - offset : stop - offset])
                at = stop
            self._drop_before(at)
            self._fetch(at)
        return len(buffer)

    def close(self) -> None:
        """Nothing is fetched any more. What is in flight keeps its memory until the connection is closed."""
        with self._lock:
            self._ranges.clear()
            self._pieces.clear()

    def _note(self, extent: Extent) -> None:
        """Widened to whole blocks, as it will be read."""
        begin = extent.offset - extent.offset % BLOCK_BYTES
        end = min(-(-(extent.offset + extent.length) // BLOCK_BYTES) * BLOCK_BYTES, self._client.size)
        with self._lock:
            if self._ranges and begin <= self._ranges[-1][1]:
                begin = self._ranges.pop()[0]
            if len(self._ranges) < RANGES_MAX:
                self._ranges.append((begin, end))

    def _drop_before(self, at: int) -> None:
        """Pieces and ranges that nobody will read."""
        while self._pieces and self._pieces[0].end <= at:
            piece = self._pieces.popleft()
            if self._client.is_read(piece.reading):  # else the receiver may still write into it
                self._spare.append(piece.view.obj)  # type: ignore[arg-type]
        while self._ranges and self._ranges[0][0] < at:
            _, end = self._ranges.popleft()
            if end > at:
                self._ranges.appendleft((at, end))
                break

    def _fetch(self, at: int) -> None:
        """Ask for the next pieces, unless the reader is far from them."""
        while self._ranges and len(self._pieces) < PIECES_MAX:
            begin, end = self._ranges.popleft()
            stop = min(end, begin + PIECE_BYTES)
            if stop < end:
                self._ranges.appendleft((stop, end))
            memory = self._spare.pop() if self._spare else bytearray(PIECE_BYTES)
            view = memoryview(memory)[: stop - begin]
            self.read_bytes += len(view)
            self._pieces.append(_Piece(offset=begin, view=view, reading=self._client.begin_read(begin, view)))
