"""Reading a disk ahead of who reads it: while the engine hashes one piece, the next ones are under way.

What will be read is known: DATA of the extents that were handed out, in order. Who reads elsewhere is served directly.

    extents   |--DATA--|-SAME-|------DATA------|...
    pieces    |  1 |2  |      |  3  |  4  |  5          1 is being copied out, 2 to 4 are in flight, 5 waits for room

Where the image can be read itself (`image_reads.py`), threads do that in larger pieces: they wait for the file, and
for QEMU's word that its bytes are right, while the reader copies out what came before.
"""

import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from strongroom.base.streams import Extent, ExtentKind
from strongroom.base.units import KIB, MIB
from strongroom.sources.machines.image_reads import PointReader
from strongroom.sources.machines.nbd import NbdClient

PIECE_BYTES = 2 * MIB
IMAGE_PIECE_BYTES = 4 * MIB  # each is looked at afterwards, which costs a request to QEMU
IMAGE_PIECE_BYTES_MIN = MIB  # what is shorter is one request to QEMU either way
IMAGE_THREADS = 2
PIECES_MAX = 4  # in flight: 8 MiB a disk hide 10 ms of latency at 800 MB/s
BLOCK_BYTES = 64 * KIB  # the engine reads disks in whole blocks, also where an extent begins within one
RANGES_MAX = 1 << 16  # handed out and not read yet: what is beyond is read without being fetched before


@dataclass(kw_only=True)
class _Piece:
    """finish: wait until it is there, or raise. settled: nobody writes into it any more."""

    offset: int
    view: memoryview
    finish: Callable[[], object]
    settled: Callable[[], bool]
    is_there: bool = False

    @property
    def end(self) -> int:
        return self.offset + len(self.view)

    def wait(self) -> None:
        if not self.is_there:
            self.finish()
            self.is_there = True


class ReadAhead:
    """Over one NBD connection, and the image beside it where there is one. read_bytes: what was asked for so far."""

    def __init__(self, client: NbdClient, reader: PointReader, *, image: bool) -> None:
        self.read_bytes = 0
        self._client = client
        self._reader = reader
        self._image = image
        self._threads = ThreadPoolExecutor(IMAGE_THREADS, thread_name_prefix="image")  # none is started before it works
        self._lock = threading.Lock()  # of all below
        self._ranges: deque[tuple[int, int]] = deque()  # (begin, end) of DATA that is not asked for yet, in order
        self._pieces: deque[_Piece] = deque()
        self._spare: list[mmap.mmap] = []  # aligned to pages, as reading past the page cache needs it
        self._piece_bytes = IMAGE_PIECE_BYTES if image else PIECE_BYTES

    def extents(self) -> Iterator[Extent]:
        for extent in self._reader.extents():
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
                    head.wait()
                    stop = min(end, head.end)
                    buffer[at - offset : stop - offset] = head.view[at - head.offset : stop - head.offset]
                else:
                    stop = end if head is None else min(end, head.offset)
                    self.read_bytes += stop - at
                    self._reader.read_into(at, buffer[at - offset : stop - offset])
                at = stop
            self._drop_before(at)
            self._fetch(at)
        return len(buffer)

    def close(self) -> None:
        """Nothing is fetched any more. What is in flight keeps its memory until the connection is closed."""
        with self._lock:
            self._ranges.clear()
            self._pieces.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def wait_closed(self) -> None:
        """The connection is closed: until nothing reads the image any more."""
        self._threads.shutdown(wait=True)

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
            if piece.settled():  # else somebody may still write into it
                self._spare.append(piece.view.obj)  # type: ignore[arg-type]
        while self._ranges and self._ranges[0][0] < at:
            _, end = self._ranges.popleft()
            if end > at:
                self._ranges.appendleft((at, end))
                break

    def _fetch(self, at: int) -> None:
        """Ask for the next pieces, unless the reader is far from them. None goes beyond what was told: until 9.1, QEMU
        ends at an assertion when it is asked for the bytes of a point and for its extents at one place at one time."""
        told = self._client.told_bytes
        told -= 0 if told == self._client.size else told % BLOCK_BYTES
        while self._ranges and len(self._pieces) < PIECES_MAX:
            begin, end = self._ranges[0]
            end = min(end, told)
            if begin >= end:
                break
            image = self._image and end - begin >= IMAGE_PIECE_BYTES_MIN
            stop = min(end, begin + (IMAGE_PIECE_BYTES if image else PIECE_BYTES))
            _, last = self._ranges.popleft()
            if stop < last:
                self._ranges.appendleft((stop, last))
            memory = self._spare.pop() if self._spare else mmap.mmap(-1, self._piece_bytes)
            view = memoryview(memory)[: stop - begin]
            self.read_bytes += len(view)
            self._pieces.append(self._begin(image, begin, view))
        if not self._ranges and not self._pieces:
            self._spare.clear()

    def _begin(self, image: bool, begin: int, view: memoryview) -> _Piece:
        if image:
            future = self._threads.submit(self._reader.read_image, begin, view)
            return _Piece(offset=begin, view=view, finish=future.result, settled=future.done)
        reading = self._reader.begin_read(begin, view)
        finish = partial(self._reader.finish_read, reading, begin, view)
        return _Piece(offset=begin, view=view, finish=finish, settled=partial(self._client.is_read, reading))
