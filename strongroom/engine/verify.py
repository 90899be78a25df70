"""The verify verb: is everything there that the restore points need, and is it what was written.

    shallow  every root and its labels open, every manifest reads, every chunk is in the index, and every pack that is
             needed is there with its length and a footer that opens and names those chunks
    deep     also every segment is decrypted and every chunk is compared with its id

What fails is read again once before it is called damage. A needed chunk that also lies in a sound pack is no damage to
a restore point, only to the pack. Findings are collected, with the restore points and paths they hit; what stops the
check itself (denied, timed out, canceled) is raised. Packs that failed become suspect in the next list, so that the
next backup of the same content stores it again (RULINGS 14); suspect packs that pass a deep check are cleared. A deep
check also adds the digests that a scrub without the key lacks.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

from blake3 import blake3

from strongroom.base.errors import (
    Corrupt,
    InvalidRequest,
    ManifestCorrupt,
    ObjectMissing,
    PackCorrupt,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreTimeout,
)
from strongroom.base.streams import Monitor, Path
from strongroom.engine.attest import attest
from strongroom.engine.checks import load_checks, note_checked, trusted_packs
from strongroom.engine.chunker import ID_BYTES, KEY_BYTES
from strongroom.engine.content import iter_ids, parse_content
from strongroom.engine.digests import PackDigests, pack_digests, part_digest
from strongroom.engine.manifest import open_stream
from strongroom.engine.mark import Marks
from strongroom.engine.model import REPORT_PATHS_MAX, Root
from strongroom.engine.pack import METADATA, Pack, Segment, SegmentPlace, load_pack, pack_name, read_footer, scratch
from strongroom.engine.repository import Repository, Session
from strongroom.engine.usage import Usage

PACKS_AHEAD = 2  # packs in work beyond one a thread; each holds one segment of plain bytes

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One damaged thing.

    kind    root: it does not open        labels: those put later do not     manifest: it does not read
            index: it cannot be loaded    chunk: no pack holds it            pack: missing, cut off or of other bytes
    name    of the object, or of the root
    roots   restore points that it hits
    paths   (root, path) of files it hits, at most REPORT_PATHS_MAX; () is a disk. paths_count is exact
    """

    kind: Literal["root", "labels", "manifest", "index", "chunk", "pack"]
    name: str
    reason: str
    roots: tuple[str, ...] = ()
    paths: tuple[tuple[str, Path], ...] = ()
    paths_count: int = 0


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked and what was found.

    objects        packs that were checked          bytes  sealed bytes read of them, deep; 0 for a shallow check
    digests_added  objects that a scrub can prove from now on, deep
    packs          packs that the restore points need      packs_recent  of these, proven in the last 30 days
    """

    findings: tuple[Finding, ...]
    roots: int
    objects: int
    bytes: int
    digests_added: int = 0
    packs: int = 0
    packs_recent: int = 0


def verify(
    repository: Repository,
    roots: Collection[str] | None,
    *,
    deep: bool,
    monitor: Monitor,
    sample: float | None = None,
    seed: int = 0,
) -> VerifyReport:
    """Check these roots, or all there are. Damage is in the report; raises StoreError and what `monitor` raises.

    sample  with deep: share of the needed bytes whose packs are read, above 0 and at most 1; those that were not proven
            for the longest time come first, `seed` decides among equals. Of the others only the size is looked at
    """
    if sample is not None and not (deep and 0 < sample <= 1):
        raise InvalidRequest(reason="A sample is a share of a deep verify, above 0 and at most 100 percent.")
    check = _Check(repository, deep, monitor, None if sample is None else _Sample(share=sample, seed=seed))
    if roots is None:
        check.run(sorted(repository.root_names()), may_go=True)
    else:
        check.run(sorted(set(roots)), may_go=False)
    return check.report()


def find_lost(repository: Repository, root: str, monitor: Monitor) -> frozenset[bytes]:
    """Keys of the chunks that a restore point needs and no sound pack holds: what a restore may have to do without.

    Reads all of it, as a deep check does. Raises ManifestCorrupt when even its names cannot be read, StoreError.
    """
    check = _Check(repository, True, monitor, None)
    check.run([root], may_go=False)
    unreadable = [found for found in check.report().findings if found.kind in ("root", "manifest", "index")]
    if unreadable:
        raise ManifestCorrupt(reason="its list of files cannot be read, so nothing tells what is whole",
                              detail=unreadable[0].reason)  # fmt: skip
    return check.lost


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A share of a deep check. seed: decides among packs that were proven at the same time."""

    share: float
    seed: int


@dataclass(kw_only=True)
class _Damage:
    """A pack that failed. keys: of the chunks it cannot give, None for all of it."""

    reason: str
    keys: set[bytes] | None


@dataclass(kw_only=True)
class _Hits:
    """Where a finding shows."""

    finding: Finding
    roots: dict[str, None] = field(default_factory=dict)
    paths: list[tuple[str, Path]] = field(default_factory=list)
    count: int = 0
    last: tuple[str, Path] | None = None

    def add(self, root: str, path: Path) -> None:
        """Once a path: the pages of one content follow each other."""
        if self.last == (root, path):
            return
        self.last = (root, path)
        self.roots[root] = None
        self.count += 1
        if len(self.paths) < REPORT_PATHS_MAX:
            self.paths.append((root, path))

    def whole(self) -> Finding:
        return replace(self.finding, roots=tuple(self.roots), paths=tuple(self.paths), paths_count=self.count)


class _Check:
    """One run."""

    def __init__(self, repository: Repository, deep: bool, monitor: Monitor, sample: _Sample | None) -> None:
        self._repository = repository
        self._sample = sample
        self.lost: frozenset[bytes] = frozenset()  # keys of needed chunks that no sound pack holds
        self._needed: set[bytes] = set()
        self._recent = 0
        self._deep = deep
        self._monitor = monitor
        self._findings: list[Finding] = []
        self._roots = 0
        self._checked: set[bytes] = set()
        self._lock = threading.Lock()  # guards the three below, which threads of the pool write
        self._bytes = 0
        self._damage: dict[bytes, _Damage] = {}
        self._proven: dict[bytes, PackDigests] = {}
        self._digests_added = 0
        self._unread: dict[str, set[bytes]] = {}  # roots whose manifest did not read: packs that failed on the way
        self._doubt_metadata = False  # a manifest did not read: find the pack

    def report(self) -> VerifyReport:
        findings = tuple(self._findings)
        return VerifyReport(
            findings=findings,
            roots=self._roots,
            objects=len(self._checked),
            bytes=self._bytes,
            digests_added=self._digests_added,
            packs=len(self._needed),
            packs_recent=self._recent,
        )

    def run(self, names: list[str], *, may_go: bool) -> None:
        """Check these roots. Names first, then the index, then the roots: nothing that a root needs is missed or freed.

        may_go: a root that is gone when its turn comes was deleted meanwhile, and is no damage.
        """
        try:
            with self._repository.session("verify") as session:
                loaded = [self._load(name, may_go) for name in names]
                self._run(session, [root for root in loaded if root is not None])
                if self._deep:
                    note_checked(self._repository, self._proven, self._repository.clock.now())
                    self._digests_added = attest(self._repository, self._proven, self._monitor)
                self._recent = len(self._needed & trusted_packs(self._repository) - self._damage.keys())
        except (Corrupt, ObjectMissing) as err:
            self._findings.append(Finding(kind="index", name="index/", reason=str(err), roots=tuple(names)))
            return
        self._mark_suspects()

    def _load(self, name: str, may_go: bool) -> Root | None:
        try:
            root = self._repository.load_root(name)
        except (Corrupt, ObjectMissing) as err:
            if may_go and isinstance(err, ObjectMissing):
                return None
            self._roots += 1
            self._findings.append(Finding(kind="root", name=name, reason=str(err), roots=(name,)))
            return None
        self._roots += 1
        try:
            self._repository.load_labels(root)
        except (Corrupt, ObjectMissing) as err:
            self._findings.append(Finding(kind="labels", name=name, reason=str(err), roots=(name,)))
        return root

    def _run(self, session: Session, roots: list[Root]) -> None:
        marks = Marks()
        readable = []
        for root in roots:
            before = session.failures.take()
            try:
                marks.add(session, root, self._monitor)
                readable.append(root)
            except (Corrupt, ObjectMissing) as err:
                self._doubt_metadata = True
                self._unread[root.name] = session.failures.packs
                self._findings.append(Finding(kind="manifest", name=root.name, reason=str(err), roots=(root.name,)))
            finally:
                session.failures.give(before)
        usage = Usage(session.index, marks)
        self._needed = {pack for pack in usage.packs if usage.of(pack)[1]}
        passed_over = set() if self._sample is None else self._needed - self._due(session, usage, self._sample)
        while self._check_packs(session, usage, passed_over):
            # Chunks of packs that failed may lie elsewhere: those places count now, and are checked in their turn.
            live_before = {pack: usage.of(pack)[1] for pack in passed_over}
            session.index.bad |= self._damage.keys()
            usage = Usage(session.index, marks)
            passed_over = {pack for pack, live in live_before.items() if usage.of(pack)[1] == live}
        self._explain(session, usage, readable)

    # --- packs ---

    def _due(self, session: Session, usage: Usage, sample: _Sample) -> set[bytes]:
        """Whatever is missing or doubtful, and a share of the rest: those first that were not proven the longest."""
        checked = load_checks(self._repository)
        due = self._needed & session.index.bad
        seed = sample.seed.to_bytes(8, "little", signed=True)
        rest = sorted((checked.get(pack, 0), blake3(seed + pack).digest(8), pack) for pack in self._needed - due)
        wanted = sample.share * sum(usage.of(pack)[0] for pack in self._needed)
        for _, _, pack in rest:
            if wanted <= 0:
                break
            due.add(pack)
            wanted -= usage.of(pack)[0]
        return due

    def _check_packs(self, session: Session, usage: Usage, passed_over: set[bytes]) -> bool:
        """Check the packs that are needed and were not checked. True when one of them failed."""
        checked = self._checked | passed_over
        todo = [pack for pack in usage.packs if self._is_wanted(session, usage, pack) and pack not in checked]
        total = sum(usage.of(pack)[0] for pack in todo)
        sizes = {pack.id: pack.size for pack in session.index.packs()}
        before = len(self._damage)
        running: deque[Future[None]] = deque()
        done = 0
        try:
            for pack in todo:
                if len(running) >= self._repository.pool.threads + PACKS_AHEAD:
                    running.popleft().result()
                self._monitor.check()
                self._monitor.advance(done, total, len(self._checked))
                done += usage.of(pack)[0]
                self._checked.add(pack)
                running.append(
                    self._repository.pool.compute(partial(self._check_pack, session, pack, sizes[pack], usage))
                )
            while running:
                running.popleft().result()
        finally:
            wait(running)  # after an error no thread goes on reading
        return len(self._damage) > before

    def _is_wanted(self, session: Session, usage: Usage, pack: bytes) -> bool:
        """Needed; or perhaps needed, by a manifest that does not read: then a deep check leaves out no pack."""
        if usage.of(pack)[1]:
            return True
        return self._deep and bool(self._unread) and self._sample is None and pack not in session.index.bad

    def _check_pack(self, session: Session, pack: bytes, size: int, usage: Usage) -> None:
        """One pack, on a thread of the pool; failures go to `damage`."""
        try:
            found = _twice(lambda: self._open(pack, size, usage))
        except (Corrupt, StoreError) as err:
            _require_damage(err)
            with self._lock:
                self._damage[pack] = _Damage(reason=str(err), keys=None)
            return
        if self._deep or (self._doubt_metadata and found.kind == METADATA):
            self._check_segments(session, found)

    def _open(self, pack: bytes, size: int, usage: Usage) -> Pack:
        repository = self._repository
        found = load_pack(repository.store, repository.prefix, repository.domain, pack)
        if found.size != size:
            raise PackCorrupt(reason=f"pack {pack.hex()} has {found.size} bytes instead of {size}")
        held = usage.needed_among(pack, (chunk_id for segment in found.segments for chunk_id in segment.ids))
        lacking = usage.chunks_of(pack)[1] - len(held)
        if lacking:
            raise PackCorrupt(reason=f"pack {pack.hex()} lacks {lacking} chunks that the index puts there")
        return found

    def _check_segments(self, session: Session, pack: Pack) -> None:
        """Every segment, needed or not: a pack that rots in one place is not trusted in another."""
        lost: set[bytes] = set()
        reasons: list[str] = []
        digests = {0: part_digest(pack.id)}  # by offset
        for segment in pack.segments:
            place = SegmentPlace(pack.id, segment.offset, segment.stored, segment.raw, segment.codec)
            plain = scratch("verify", segment.raw)
            wrong = segment.ids
            try:
                _twice(partial(self._repository.segments.read_into, place, plain))
                digests[segment.offset] = part_digest(scratch("box", segment.stored))  # what was opened just now
                wrong = _wrong_ids(session, pack.kind, segment, plain)
            except (Corrupt, StoreError) as err:
                _require_damage(err)
                reasons.append(str(err))
            if wrong:
                reasons.append(f"{len(wrong)} chunks have other bytes")
                lost.update(chunk_id[:KEY_BYTES] for chunk_id in wrong)
        found = None if reasons else self._digests(pack, digests)
        with self._lock:
            self._bytes += sum(segment.stored for segment in pack.segments)
            if reasons:
                self._damage[pack.id] = _Damage(reason=reasons[0], keys=lost)
            elif found is not None:
                self._proven[pack.id] = found

    def _digests(self, pack: Pack, digests: dict[int, bytes]) -> PackDigests | None:
        """Of a pack whose segments were opened just now; None when its footer does not come again."""
        repository = self._repository
        try:
            end, footer = read_footer(repository.store, repository.prefix, repository.domain, pack)
        except (Corrupt, StoreError):
            return None
        digests[end] = part_digest(footer)
        return pack_digests(replace(pack, digests=b"".join(digest for _, digest in sorted(digests.items()))))

    # --- what it means ---

    def _explain(self, session: Session, usage: Usage, roots: list[Root]) -> None:
        """Turn damage into findings that name the restore points and paths they hit."""
        by_key: dict[bytes, _Hits] = {}
        hits: list[_Hits] = []
        for pack, damage in sorted(self._damage.items()):
            name = pack_name(self._repository.prefix, pack)
            hits.append(_Hits(finding=Finding(kind="pack", name=name, reason=damage.reason)))
            # Nobody knows what a manifest that does not read needs of a pack that no other root needs.
            unclear = not usage.of(pack)[1]
            hits[-1].roots.update((root, None) for root, packs in self._unread.items() if unclear or pack in packs)
            keys = usage.needed_keys(pack)  # those for which no sound pack was found
            by_key.update(dict.fromkeys(keys if damage.keys is None else keys & damage.keys, hits[-1]))
        unknown = usage.unknown.as_bytes()
        if unknown:
            reason = f"{len(unknown)} chunks are in no pack that the index knows"
            hits.append(_Hits(finding=Finding(kind="chunk", name="index/", reason=reason)))
            by_key.update(dict.fromkeys(unknown, hits[-1]))
        self.lost = frozenset(by_key)
        for root in roots if by_key else ():
            for path, ids in _ids_by_path(session, root):
                self._monitor.check()
                keys_here = {ids[at : at + KEY_BYTES] for at in range(0, len(ids), ID_BYTES)}
                for hit in {id(by_key[key]): by_key[key] for key in keys_here & by_key.keys()}.values():
                    hit.add(root.name, path)
        self._findings += [hit.whole() for hit in hits]

    def _mark_suspects(self) -> None:
        """Writers must not rely on what failed, from the next list on; what passed a deep check is trusted again."""
        cleared = self._checked - self._damage.keys() if self._deep else set()
        try:
            self._repository.note_suspects(self._damage.keys(), cleared)
        except (StoreError, Corrupt) as err:
            # The findings matter more than the note about them, so they are not lost for it.
            reason = f"suspect packs could not be noted: {err!s}"
            self._findings.append(Finding(kind="index", name="index/", reason=reason))


def _ids_by_path(session: Session, root: Root) -> Iterator[tuple[Path, bytes]]:
    """(path, ids joined) of everything a root needs; a path comes once for each page of its content."""
    get = session.metadata
    if root.kind == "block":
        for _, ids in iter_ids(parse_content(root.body.stream), get, lambda _: False):
            yield (), ids
        return
    stream = open_stream(root, get)
    yield (), b"".join(chunk_id for _, chunk_id in stream.pages())
    for record, _ in stream.records():
        for item in record.items():
            if item.content is not None:
                ids = b"".join(ids for _, ids in iter_ids(item.content, get, lambda _: False))
                yield (*record.path, item.entry.name), ids


def _wrong_ids(session: Session, kind: int, segment: Segment, plain: memoryview) -> list[bytes]:
    """The ids of the chunks of a segment that are not what they are called."""
    name = session.chunker.metadata_id if kind == METADATA else session.chunker.data_id
    wrong = []
    start = 0
    for chunk_id, length in zip(segment.ids, segment.lengths, strict=True):
        if name(plain[start : start + length]) != chunk_id:
            wrong.append(chunk_id)
        start += length
    return wrong


def _twice(read: Callable[[], T]) -> T:
    """Try again once: a bit that flipped on the way is no damage in the store."""
    try:
        return read()
    except (Corrupt, StoreError) as err:
        _require_damage(err)
        return read()


def _require_damage(err: Corrupt | StoreError) -> None:
    """Raise what says nothing of the object: the store does not serve us now."""
    if isinstance(err, StoreDenied | StoreTimeout | StoreFull):
        raise err
