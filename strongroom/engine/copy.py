"""The copy verb: restore points go to another vault, with the domain they belong to (RULINGS 11).

    keys      the domain's keys, wrapped by the receiver's master key; then its index list 0     once a receiver
    sessions  on both sides: the source keeps what is read, the receiver what is relied on
    marks     ids of all chunks of the roots; those that no sound pack of the receiver holds are missing
    packs     segments of missing chunks, from the source's packs to new packs of the receiver
    index     index objects for packs that are durable
    fence()   then each root, put if absent; then labels that are newer than the receiver's

The receiver sees a writer like any backup, the source a reader like any restore, so what holds for these holds here: a
crash leaves packs that no root needs, or known chunks for the next attempt; prune of either side waits for the session.
Ids of chunks stay valid, because the domain brings its keys along.

A segment moves as it was compressed: opened, which proves it, and sealed again, because an object id is never used
twice and a prune that was held up may still delete by id what it condemned (docs/decisions/0005). Of a segment that is
mostly not missing only the chunks move, each compared with its whole id. Memory: the columns of the missing ids, 17
bytes a chunk, and what a pool of threads has in work.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from strongroom.base.errors import (
    ChunkCorrupt,
    Conflict,
    Corrupt,
    FormatUnknown,
    IndexIncomplete,
    KeyWrong,
    ObjectExists,
    ObjectMissing,
    PackCorrupt,
    ShortRead,
)
from strongroom.base.streams import Monitor
from strongroom.engine.chunker import ID_BYTES, KEY_BYTES
from strongroom.engine.index import IndexList
from strongroom.engine.intake import Intake
from strongroom.engine.keys import Domain, MasterKey
from strongroom.engine.mark import Keys, Marks, Reader
from strongroom.engine.model import Labels, Root, Sessions
from strongroom.engine.near import NearReader
from strongroom.engine.open import load_wraps, put_wrap
from strongroom.engine.pack import METADATA, Namer, Pack, Segment, SegmentPlace, load_pack, require_chunks
from strongroom.engine.repository import Repository, Session
from strongroom.engine.store.base import Store
from strongroom.engine.usage import Usage

FOOTERS_AHEAD = 4  # footers read at once: a store far away answers slowly, and a footer is a few small reads
SEGMENTS_EXPECTED = 16  # that a slow store is told of in advance: 64 MiB at most
SEGMENTS_AHEAD_PER_THREAD = 2  # enough to keep a thread busy, little enough to stop soon
RECEIVE_ATTEMPTS_MAX = 8  # races of two first copies over the wrapped keys


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What a copy did. Bytes are sealed bytes in the receiver's store.

    roots_copied   names put by this run, oldest first     roots_present  names that were there already
    chunks_copied  missing chunks that came                bytes_copied   of packs and index objects written
    """

    roots_copied: tuple[str, ...] = ()
    roots_present: tuple[str, ...] = ()
    chunks_copied: int = 0
    bytes_copied: int = 0


def copy(
    source: Repository,
    store: Store,
    prefix: str,
    master: MasterKey,
    roots: Collection[str] | None,
    monitor: Monitor,
    fence: Callable[[], None],
    *,
    sessions: Sessions | None = None,
    cache: str | None = None,
    far: bool = False,
    rename: Callable[[Root, Labels], Root] | None = None,
) -> CopyReport:
    """Bring these roots of `source`, or all there are, to the vault at `prefix` of `store`; durable on return.

    sessions  of the receiver's copy of the domain         cache  folder for copies of its index, as of Repository
    far       the source is behind a network and somebody else's: metadata that has arrived is read here, and each chunk
              is compared with its whole id before it counts, also when its segment moves as it is
    rename    the root as the receiver shall have it, from the source's and its labels of now; None: as they are

    May run again, also after a crash: what has arrived stays. Raises ObjectMissing for a root that is not there;
    Corrupt classes when the source lacks or cannot read what a root needs; Conflict when the receiver has another root
    of the same name; KeyWrong when another master key owns the receiver; StoreError; what `fence` and `monitor` raise.
    Roots that were put before an error stay: each has all its chunks.
    """
    receiver = receive_domain(store, prefix, master, source, sessions, cache)
    with source.session("copy") as reading, receiver.session("copy") as writing:
        return _Copy(reading, writing, monitor, fence, far=far).run(roots, rename)


def mend(source: Repository, receiver: Repository, roots: Collection[str], monitor: Monitor) -> CopyReport:
    """Bring the chunks of these roots that the receiver lacks, or has only in packs that it knows to be damaged.

    Roots stay as they are. What the source cannot give either stays lost: the rest comes. Raises StoreError and what
    `monitor` raises.
    """
    with source.session("copy") as reading, receiver.session("copy") as writing:
        return _Copy(reading, writing, monitor, lambda: None).mend(roots)


def receive_domain(
    store: Store,
    prefix: str,
    master: MasterKey,
    source: Repository,
    sessions: Sessions | None = None,
    cache: str | None = None,
) -> Repository:
    """The domain of `source` below `prefix`, made when it is not there: its keys, then its first list. Idempotent."""
    domain = source.domain
    prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    below = f"{prefix}domains/{domain.id.hex()}/"
    _put_keys(store, below, master, domain)
    receiver = Repository(store, below, domain, pool=source.pool, sessions=sessions, clock=source.clock, cache=cache)
    if next(iter(store.list(f"{below}index/")), None) is None:
        with suppress(ObjectExists):  # another first copy was faster
            receiver.put_index_list(IndexList(number=0))
    return receiver


def _put_keys(store: Store, below: str, master: MasterKey, domain: Domain) -> None:
    """A wrap that the receiver's master key opens is there on return. Raises KeyWrong, FormatUnknown, Corrupt."""
    for _ in range(RECEIVE_ATTEMPTS_MAX):
        try:
            wraps = load_wraps(store, below)
        except ObjectMissing:
            with suppress(ObjectExists):
                put_wrap(store, below, 0, master.wrap(domain))
            continue  # what was put is read back, as what was there
        failure: KeyWrong | FormatUnknown | Corrupt | None = None
        for _, data in wraps:
            try:
                if master.unwrap(data) == domain:
                    return
                failure = Corrupt(reason="its keys are those of another domain", detail=below)
            except (KeyWrong, FormatUnknown, Corrupt) as err:
                failure = failure or err
        assert failure is not None
        raise failure
    raise ObjectMissing(name=f"{below}keys/0")


class _Wanted:
    """Keys that the receiver lacks, and which of them are on their way. For one thread, but for `lost`."""

    def __init__(self, keys: Keys) -> None:
        order = np.lexsort((keys.second, keys.first))
        self._first, self._second = keys.first[order], keys.second[order]
        self._sent = np.zeros(len(order), dtype=bool)

    def left(self) -> Keys:
        return Keys(self._first[~self._sent], self._second[~self._sent])

    @property
    def sent(self) -> int:
        return int(self._sent.sum())

    def take(self, ids: list[bytes]) -> npt.NDArray[np.int64]:
        """For each id the row of its key, now on its way; -1 for one that is not missing, or on its way already."""
        halves = np.frombuffer(b"".join(ids), "<u8").reshape(-1, ID_BYTES // 8)
        begin = np.searchsorted(self._first, halves[:, 0], "left")
        end = np.searchsorted(self._first, halves[:, 0], "right")
        rows = np.full(len(ids), -1, dtype=np.int64)
        for at in np.flatnonzero(end > begin):
            for row in range(begin[at], end[at]):  # nearly always one
                if self._second[row] == halves[at, 1] and not self._sent[row]:
                    self._sent[row] = True
                    rows[at] = row
        return rows

    def lost(self, rows: npt.NDArray[np.int64]) -> None:
        """They did not arrive. From any thread: no two have the same rows."""
        self._sent[rows[rows >= 0]] = False


class _Item(NamedTuple):
    """One segment with missing chunks. rows: as `_Wanted.take` gave them."""

    pack: Pack
    segment: Segment
    rows: npt.NDArray[np.int64]

    @property
    def place(self) -> SegmentPlace:
        segment = self.segment
        return SegmentPlace(self.pack.id, segment.offset, segment.stored, segment.raw, segment.codec)

    @property
    def is_whole(self) -> bool:
        """Whether at least half of it is missing: then the rest costs less than compressing again."""
        taken = sum(length for length, row in zip(self.segment.lengths, self.rows, strict=True) if row >= 0)
        return taken * 2 >= self.segment.raw


class _Copy:
    """One run."""

    def __init__(
        self, reading: Session, writing: Session, monitor: Monitor, fence: Callable[[], None], *, far: bool = False
    ) -> None:
        self._reading, self._writing = reading, writing
        self._marked: Reader = NearReader(reading, writing) if far else reading
        self._far = far
        self._source, self._receiver = reading.repository, writing.repository
        self._monitor = monitor
        self._fence = fence
        self._lock = threading.Lock()  # guards the next, which threads of the pool write
        self._failed: dict[bytes, Corrupt] = {}
        self._done = self._total = self._packs = 0

    def run(self, names: Collection[str] | None, rename: Callable[[Root, Labels], Root] | None = None) -> CopyReport:
        roots = self._load(names)
        if rename is not None:
            roots = [rename(root, self._source.load_labels(root)) for root in roots]
        present = self._find_present(roots)
        absent = [root for root in roots if root.name not in present]
        marks = Marks()
        # What is there has all its chunks, unless the receiver knows of damage: then this is the way to mend it.
        for root in roots if self._is_damaged() else absent:
            marks.add(self._marked, root, self._monitor)
        wanted = _Wanted(_missing(self._writing, marks.keys(self._reading.index)))
        intake = Intake(self._writing, self._monitor.check)
        try:
            self._move(wanted, intake)
            intake.finish()
        finally:
            intake.close()
        for root in absent:
            self._monitor.check()
            self._fence()
            self._put_root(root)
        if rename is None:
            self._copy_labels(roots)
        return CopyReport(
            roots_copied=tuple(root.name for root in absent),
            roots_present=tuple(root.name for root in roots if root.name in present),
            chunks_copied=wanted.sent,
            bytes_copied=intake.bytes_stored,
        )

    def mend(self, names: Collection[str]) -> CopyReport:
        marks = Marks()
        for name in sorted(names):
            with suppress(Corrupt, ObjectMissing):  # the source's own damage: what can be read of it is marked
                marks.add(self._reading, self._source.load_root(name), self._monitor)
        missing = _missing(self._writing, marks.keys(self._reading.index))
        lost = _usage(self._reading, missing).unknown.as_bytes()
        wanted = _Wanted(_without(missing, lost))
        intake = Intake(self._writing, self._monitor.check)
        try:
            self._move(wanted, intake, mending=True)
            intake.finish()
        finally:
            intake.close()
        return CopyReport(chunks_copied=wanted.sent, bytes_copied=intake.bytes_stored)

    # --- roots ---

    def _load(self, names: Collection[str] | None) -> list[Root]:
        """Oldest first. Of all there are, one that is deleted meanwhile is no error."""
        roots = []
        for name in sorted(set(self._source.root_names() if names is None else names)):
            try:
                roots.append(self._source.load_root(name))
            except ObjectMissing:
                if names is not None:
                    raise
        return sorted(roots, key=lambda root: (root.created_at, root.name))

    def _find_present(self, roots: list[Root]) -> set[str]:
        there = set(self._receiver.root_names())
        return {root.name for root in roots if root.name in there and self._is_present(root)}

    def _is_present(self, root: Root) -> bool:
        try:
            other = self._receiver.load_root(root.name)
        except ObjectMissing:
            return False  # deleted since the listing
        if other != root:
            reason = f"The receiver has another restore point with the name {root.name}. Delete one of the two."
            raise Conflict(reason=reason, conflict_code="9900")
        return True

    def _put_root(self, root: Root) -> None:
        try:
            self._receiver.put_root(root)
        except ObjectExists:
            if not self._is_present(root):
                raise

    def _copy_labels(self, roots: list[Root]) -> None:
        here, there = self._source.label_numbers(), self._receiver.label_numbers()
        for root in roots:
            number = here.get(root.backup_id, 0)
            if number > there.get(root.backup_id, 0):
                with suppress(ObjectExists):  # another copy was faster
                    self._receiver.put_labels(root.backup_id, self._source.load_labels(root), number)

    def _is_damaged(self) -> bool:
        fossils = {pack for pack, _ in self._receiver.load_index_list().fossils}
        return bool(self._writing.index.bad - fossils)

    # --- chunks ---

    def _move(self, wanted: _Wanted, intake: Intake, *, mending: bool = False) -> None:
        """Everything wanted is with the intake on return. A pack that fails is passed over while others will do.

        mending: and when no other will do, what it holds is left out.
        """
        while True:
            left = wanted.left()
            if not len(left.first):
                return
            self._reading.index.bad |= self._failed.keys()
            usage = _usage(self._reading, left)
            if len(usage.unknown.first):
                reason = "the source lacks chunks that restore points need; run verify there"
                raise IndexIncomplete(reason=reason, detail=f"{len(usage.unknown.first)} chunks")
            packs = [pack for pack in usage.packs if usage.of(pack)[1]]
            for pack in packs:
                if pack in self._failed and not mending:
                    raise self._failed[pack]
            packs = [pack for pack in packs if pack not in self._failed]
            if not packs:
                return
            self._total = self._done + sum(usage.of(pack)[1] for pack in packs)
            self._run(self._items(packs, wanted), wanted, intake)

    def _run(self, items: Iterator[_Item], wanted: _Wanted, intake: Intake) -> None:
        """Whole segments on the pool's threads, single chunks on this one; the store hears of them in advance."""
        waiting: deque[_Item] = deque()
        running: deque[Future[None]] = deque()
        try:
            for item in items:
                self._source.segments.expect(item.place)
                waiting.append(item)
                if len(waiting) >= SEGMENTS_EXPECTED:
                    self._begin(waiting.popleft(), wanted, intake, running)
            while waiting:
                self._begin(waiting.popleft(), wanted, intake, running)
            while running:
                running.popleft().result()
        finally:
            while running:  # nobody writes to the intake after this returned
                running.popleft().exception()

    def _begin(self, item: _Item, wanted: _Wanted, intake: Intake, running: "deque[Future[None]]") -> None:
        self._monitor.check()
        intake.raise_failed()
        self._done += item.segment.stored
        self._monitor.advance(min(self._done, self._total), self._total, self._packs)
        if not item.is_whole:
            self._guard(self._copy_chunks, item, wanted, intake)
            return
        pool = self._source.pool
        if len(running) >= pool.threads * SEGMENTS_AHEAD_PER_THREAD:
            running.popleft().result()
        running.append(pool.compute(partial(self._guard, self._copy_segment, item, wanted, intake)))

    def _guard(self, work: Callable[[_Item, Intake], None], item: _Item, wanted: _Wanted, intake: Intake) -> None:
        """What cannot be read is wanted again, from another pack."""
        try:
            work(item, intake)
        except (PackCorrupt, ChunkCorrupt, ObjectMissing) as err:
            wanted.lost(item.rows)
            self._reading.fail(item.place, wrong=isinstance(err, ChunkCorrupt))
            self._fail(item.pack.id, err)

    def _copy_segment(self, item: _Item, intake: Intake) -> None:
        payload = self._source.segments.read_payload(item.place)
        if self._far:
            require_chunks(item.place, payload, item.segment.ids, item.segment.lengths, self._namer(item))
        intake.copy_segment(item.pack.kind, item.segment, payload)

    def _copy_chunks(self, item: _Item, intake: Intake) -> None:
        plain = memoryview(bytearray(item.segment.raw))
        self._source.segments.read_into(item.place, plain)
        name = self._namer(item)
        start = 0
        for chunk_id, length, row in zip(item.segment.ids, item.segment.lengths, item.rows, strict=True):
            chunk = plain[start : start + length]
            start += length
            if row < 0:
                continue
            if name(chunk) != chunk_id:
                raise ChunkCorrupt(reason=f"chunk {chunk_id.hex()} has other bytes", detail=item.pack.id.hex())
            intake.copy_chunk(item.pack.kind, chunk_id, chunk)

    def _namer(self, item: _Item) -> Namer:
        chunker = self._reading.chunker
        return chunker.metadata_id if item.pack.kind == METADATA else chunker.data_id

    def _fail(self, pack: bytes, err: Corrupt | ObjectMissing | ShortRead) -> None:
        if not isinstance(err, Corrupt):
            err = PackCorrupt(reason=f"pack {pack.hex()} of the source cannot be read", detail=str(err))
        with self._lock:
            self._failed[pack] = err

    def _items(self, packs: list[bytes], wanted: _Wanted) -> Iterator[_Item]:
        """The segments of these packs that have missing chunks, in the order they lie."""
        for pack in self._footers(packs):
            self._packs += 1
            for segment in pack.segments:
                rows = wanted.take(segment.ids)
                if (rows >= 0).any():
                    yield _Item(pack, segment, rows)

    def _footers(self, packs: list[bytes]) -> Iterator[Pack]:
        """What these packs say of themselves, some read ahead; those that do not open are noted as failed."""
        source = self._source
        running: deque[tuple[bytes, Future[None]]] = deque()
        loaded: dict[bytes, Pack] = {}

        def load(pack: bytes) -> None:
            loaded[pack] = load_pack(source.store, source.prefix, source.domain, pack)

        try:
            for pack in [*packs, *[None] * FOOTERS_AHEAD]:
                if pack is not None:
                    running.append((pack, source.pool.compute(partial(load, pack))))
                if not running or (pack is not None and len(running) <= FOOTERS_AHEAD):
                    continue
                first, future = running.popleft()
                try:
                    future.result()
                except (Corrupt, ObjectMissing, ShortRead) as err:
                    self._fail(first, err)
                    continue
                yield loaded.pop(first)
        finally:
            while running:
                running.popleft()[1].exception()


def _usage(session: Session, keys: Keys) -> Usage:
    """Where in the session's index these keys lie."""
    marks = Marks(slots=1)
    marks.add_keys(session.index, keys)
    return Usage(session.index, marks)


def _missing(session: Session, keys: Keys) -> Keys:
    """Those of the keys that no sound pack of the session's index holds."""
    usage = _usage(session, keys)
    doubtful = [pack for pack in usage.packs if pack in session.index.bad and usage.of(pack)[1]]
    if not doubtful:
        return usage.unknown
    found = usage.unknown.as_bytes().union(*map(usage.needed_keys, doubtful))
    halves = np.frombuffer(b"".join(found), "<u8").reshape(-1, KEY_BYTES // 8)
    return Keys(halves[:, 0], halves[:, 1])


def _without(keys: Keys, lost: set[bytes]) -> Keys:
    if not lost:
        return keys
    kept = [key for key in keys.as_bytes() if key not in lost]
    halves = np.frombuffer(b"".join(kept), "<u8").reshape(-1, KEY_BYTES // 8)
    return Keys(halves[:, 0], halves[:, 1])
