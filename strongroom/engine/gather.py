"""Getting many chunks to their places: grouped by segment, in the order they lie in the store, never file by file.

    pieces (chunk id -> sink, offset)  ->  window  ->  by segment, sorted by pack and offset
    workers: read -> decrypt -> decompress -> check the whole id of every chunk -> write runs of neighbours at once

A window bounds memory; a segment that two windows need is read twice. While one is delivered the next is collected, so
that neither the store nor the workers wait for the manifest. Workers stop at the first error, which is raised in the
caller's thread.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from operator import itemgetter
from typing import NamedTuple, Protocol

from strongroom.base.errors import ChunkCorrupt, IndexIncomplete, ObjectMissing, PackCorrupt
from strongroom.base.streams import Monitor
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.pack import ALIGNMENT_BYTES, SegmentPlace, scratch
from strongroom.engine.repository import Session

WINDOW_PIECES = 16384  # about 1 KB each with their files: 16 MB, and there are two windows
PIECES_BETWEEN_LOOKS = 32  # while a window is collected; then workers that became free get the next segment
EXPECTED = 16  # segments that a slow store is told of in advance: 64 MiB at most, at 100 ms a request 600 MB/s
SEGMENTS_AHEAD_PER_THREAD = 3  # enough to keep a thread busy, little enough to share the pool and to stop soon


_start = itemgetter(0)


class Sink(Protocol):
    """Where pieces go. Called from several threads."""

    def write(self, offset: int, data: memoryview) -> None: ...

    def wrote(self, pieces: int) -> None:
        """So many pieces of those announced are written."""
        ...


class _Piece(NamedTuple):
    start: int
    length: int
    id: bytes
    sink: Sink
    offset: int


class _Run(NamedTuple):
    """Pieces that are neighbours in the segment, [start, end) of its plain bytes, and neighbours in the sink too."""

    start: int
    end: int
    sink: Sink
    offset: int
    pieces: list[_Piece]


class Gatherer:
    """Collects pieces and delivers them window by window. For one thread; `total` is only told to the monitor.

    A context: nobody writes to a sink after it ended, however it ended.
    """

    def __init__(self, session: Session, monitor: Monitor, total: int) -> None:
        self.bytes_written = 0
        self.entries = 0
        self._session = session
        self._monitor = monitor
        self._total = total
        self._by_segment: dict[SegmentPlace, list[_Piece]] = {}
        self._pieces = 0
        self._window: dict[SegmentPlace, list[_Piece]] = {}  # that is being delivered
        self._order: list[SegmentPlace] = []
        self._next = 0  # of the order
        self._futures: deque[Future[None]] = deque()
        self._alone: list[_Piece] = []  # of segments that cannot be read; workers append
        self._failed = threading.Event()
        self._lock = threading.Lock()  # of the count

    def __enter__(self) -> "Gatherer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._failed.set()
        while self._futures:
            self._futures.popleft().exception()

    @property
    def is_full(self) -> bool:
        return self._pieces >= WINDOW_PIECES

    def add(self, chunk_id: bytes, length: int, sink: Sink, offset: int) -> None:
        """The chunk goes to `sink` at `offset`. Raises IndexIncomplete or ChunkCorrupt when it cannot be right."""
        place = self._session.index.place(chunk_id[:KEY_BYTES])
        if place is None and self._session.renew():
            place = self._session.index.place(chunk_id[:KEY_BYTES])
        if place is None:
            raise IndexIncomplete(reason=f"chunk {chunk_id.hex()} is in no pack the index knows")
        if place.length != length:
            raise ChunkCorrupt(reason=f"chunk {chunk_id.hex()} has another length than the manifest says")
        piece = _Piece(place.start, length, chunk_id, sink, offset)
        self._by_segment.setdefault(place.segment, []).append(piece)
        self._pieces += 1
        if not self._pieces % PIECES_BETWEEN_LOOKS:
            self._keep_busy()

    def deliver(self) -> None:
        """Begin to deliver what was added; what was begun by earlier calls is written on return.

        Raises what went wrong in any thread.
        """
        self.settle()
        self._window, self._by_segment, self._pieces = self._by_segment, {}, 0
        self._order, self._next = sorted(self._window), 0
        self._keep_busy()

    def settle(self) -> None:
        """Everything that `deliver` began with is written on return. Raises what went wrong in any thread."""
        self._monitor.check()
        self._keep_busy()
        while self._futures:
            self._end_one()
            self._keep_busy()
        alone, self._alone = self._alone, []
        self._deliver_singly(alone)

    def _keep_busy(self) -> None:
        """Give free workers the next segments. Raises what went wrong in those that are done."""
        pool, segments = self._session.repository.pool, self._session.repository.segments
        while self._futures and self._futures[0].done():
            self._end_one()
        while self._next < len(self._order) and len(self._futures) < pool.threads * SEGMENTS_AHEAD_PER_THREAD:
            at = self._next
            for following in self._order[at + EXPECTED if at else 0 : at + EXPECTED + 1]:
                segments.expect(following)
            self._next += 1
            segment = self._order[at]
            self._futures.append(pool.compute(self._task(segment, self._window.pop(segment))))

    def _end_one(self) -> None:
        """Wait for the oldest task. A stop is heard once a segment."""
        self._futures.popleft().result()
        self._monitor.check()
        self._monitor.advance(self.bytes_written, self._total, self.entries)

    def _task(self, segment: SegmentPlace, pieces: list[_Piece]) -> Callable[[], None]:
        return lambda: None if self._failed.is_set() else self._deliver_segment(segment, pieces)

    def _deliver_segment(self, segment: SegmentPlace, pieces: list[_Piece]) -> None:
        pieces.sort(key=_start)
        runs = _runs(pieces)
        plain = scratch("plain", segment.raw, _phase(runs))
        try:
            self._session.repository.segments.read_into(segment, plain)
        except (PackCorrupt, ObjectMissing) as err:
            if isinstance(err, PackCorrupt):
                self._session.fail(segment)
            self._alone.extend(pieces)
            return
        name = self._session.chunker.data_id
        checked: bytes | None = None
        for run in runs:
            for start, length, chunk_id, _, _ in run.pieces:
                if checked != chunk_id:  # a chunk may go to many places
                    self._require(name(plain[start : start + length]) == chunk_id, chunk_id, segment)
                    checked = chunk_id
            run.sink.write(run.offset, plain[run.start : run.end])
            run.sink.wrote(len(run.pieces))
        self._count(sum(run.end - run.start for run in runs))

    def _deliver_singly(self, pieces: list[_Piece]) -> None:
        """Their segment cannot be read: another pack may hold its chunks, or a newer index know of one."""
        for piece in pieces:
            chunk = self._session.data(piece.id)
            self._require(len(chunk) == piece.length, piece.id)
            piece.sink.write(piece.offset, memoryview(chunk))
            piece.sink.wrote(1)
            self._count(piece.length)

    def _require(self, sound: bool, chunk_id: bytes, segment: SegmentPlace | None = None) -> None:
        if not sound:
            if segment is not None:
                self._session.fail(segment, wrong=True)
            raise ChunkCorrupt(reason=f"chunk {chunk_id.hex()} has other bytes than were backed up")

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_written += size


def _runs(pieces: list[_Piece]) -> list[_Run]:
    """The runs of pieces that are sorted by start."""
    runs: list[_Run] = []
    own: list[_Piece] = []
    for piece in pieces:
        if own:
            last, first = own[-1], own[0]
            end = last.start + last.length
            if piece.sink is last.sink and piece.start == end and piece.offset == last.offset + last.length:
                own.append(piece)
                continue
            runs.append(_Run(first.start, end, first.sink, first.offset, own))
        own = [piece]
    first, last = own[0], own[-1]
    runs.append(_Run(first.start, last.start + last.length, first.sink, first.offset, own))
    return runs


def _phase(runs: list[_Run]) -> int:
    """Where the plain bytes begin in an aligned buffer, so that the longest run lies there as it will in its file.

    Then a target can give it to the disk as it is; others it has to copy.
    """
    longest = max(runs, key=_length)
    return (longest.offset - longest.start) % ALIGNMENT_BYTES


def _length(run: _Run) -> int:
    return run.end - run.start
