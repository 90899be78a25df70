"""The scrub verb: is every object in the store what was written, asked by who has no key.

    digests      each is read and checked against itself          -> what should be there
    small ones   lists, index objects, roots, labels, wrapped keys: read whole, compared
    packs        sizes of all; the parts of those in the sample: read, compared
    the rest     without a digest: not proven, needs the key (a keyed deep verify adds what is missing)

It finds what is missing, of another size or of other bytes. It does not know what that means to a restore point, and it
proves nothing against who can write digests: both is what verify is for. What fails is read again once, and what is
missing is looked up again at the end, because a prune may have deleted it by right meanwhile.

A sample goes by the day: a pack is due every 1/share days, whatever was done before, so daily runs read everything.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import (
    Corrupt,
    InvalidRequest,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreTimeout,
)
from strongroom.base.streams import Monitor, SilentMonitor
from strongroom.engine.catalogue import DomainPlace, find_domains
from strongroom.engine.digests import (
    FOLDER,
    PART_DIGEST_BYTES,
    Digest,
    PackDigests,
    digest_name,
    load_digest,
    part_digest,
    whole_digest,
)
from strongroom.engine.pool import Pool
from strongroom.engine.store.base import Store

NAMES_MAX = 1000  # named in a report; the counts are exact
AHEAD_PER_THREAD = 4  # objects on their way: a store far away answers slowly, and each holds at most one part
SHARE_MIN = 1 / 3650  # below, nothing would ever be read

_DAY_S = 86_400
_KINDS = {
    "keys": re.compile(r"0|[1-9][0-9]{0,8}"),
    "packs": re.compile(r"[0-9a-f]{32}"),
    "index": re.compile(r"[0-9]{10}(\.[0-9a-f]{32})?"),
    "roots": re.compile(r"[A-Za-z0-9-]{1,64}\.(0|[1-9][0-9]{0,17})"),
    "labels": re.compile(r"[A-Za-z0-9-]{1,64}\.[0-9]{6}"),
    "checks": re.compile(r"[0-9a-f]{32}"),
}
_DOMAIN_TEXT = re.compile(rb"[0-9a-f]{32}")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ScrubFinding:
    """One object that is not what was written.

    kind    missing   there is a digest of it, and nothing that may have deleted it
            changed   it has another size or other bytes       digest  the digest itself is damaged
    name    of the object in the store
    """

    kind: Literal["missing", "changed", "digest"]
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ScrubReport:
    """What was proven, and what was not.

    objects    read and found to be what was written, packs included       bytes  of them
    packs      that have digests              packs_read  of these, in this run
    unproven   (name, why) of objects without a digest: they need the key
    strays     names of what is no object of a repository
    The two lists name at most NAMES_MAX; the counts are exact.
    """

    findings: tuple[ScrubFinding, ...] = ()
    domains: int = 0
    objects: int = 0
    bytes: int = 0
    packs: int = 0
    packs_read: int = 0
    unproven: tuple[tuple[str, str], ...] = ()
    unproven_count: int = 0
    strays: tuple[str, ...] = ()
    strays_count: int = 0


def scrub(
    store: Store,
    prefix: str = "",
    *,
    monitor: Monitor | None = None,
    sample: float = 1.0,
    clock: Clock | None = None,
    pool: Pool | None = None,
) -> ScrubReport:
    """Prove every domain below `prefix`. sample: share of the packs to read, above 0 and at most 1.

    Damage is in the report; raises StoreError when the store does not serve us, and what `monitor` raises.
    """
    if not SHARE_MIN <= sample <= 1:
        raise InvalidRequest(reason="The share of packs to read is above 0 and at most 100 percent.")
    own = Pool() if pool is None else None
    work = _Scrub(store, monitor or SilentMonitor(), sample, clock or SystemClock(), pool or own)  # type: ignore[arg-type]
    try:
        work.run(find_domains(store, prefix))
    finally:
        if own is not None:
            own.close()
    return work.report()


@dataclass(kw_only=True)
class _Expected:
    """What the digests of one domain promise.

    small     by name from the domain's prefix           packs  by name, those of index objects that are not retired
    excused   names that prune may have deleted          told   whether the newest list has told which those are
    """

    small: dict[str, Digest] = field(default_factory=dict)
    packs: dict[str, PackDigests] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)
    told: bool = False


class _Scrub:
    """One run. What threads find goes through `_note`, in the caller's thread."""

    def __init__(self, store: Store, monitor: Monitor, sample: float, clock: Clock, pool: Pool) -> None:
        self._store = store
        self._monitor = monitor
        self._slots = max(round(1 / sample), 1)
        self._slot = int(clock.now().timestamp() // _DAY_S) % self._slots
        self._pool = pool
        self._findings: dict[str, ScrubFinding] = {}
        self._missing: dict[str, None] = {}
        self._unproven: list[tuple[str, str]] = []
        self._strays: list[str] = []
        self._domains = self._objects = self._bytes = self._packs = self._packs_read = 0
        self._total = 0

    def report(self) -> ScrubReport:
        return ScrubReport(
            findings=tuple(finding for _, finding in sorted(self._findings.items())),
            domains=self._domains,
            objects=self._objects,
            bytes=self._bytes,
            packs=self._packs,
            packs_read=self._packs_read,
            unproven=tuple(self._unproven[:NAMES_MAX]),
            unproven_count=len(self._unproven),
            strays=tuple(self._strays[:NAMES_MAX]),
            strays_count=len(self._strays),
        )

    def run(self, places: list[DomainPlace]) -> None:
        for prefix in dict.fromkeys(place.prefix for place in places):
            self._check_domain_object(prefix, {place.id for place in places if place.prefix == prefix})
        for place in places:
            self._domains += 1
            self._domain(f"{place.prefix}domains/{place.id.hex()}/")

    def _check_domain_object(self, prefix: str, ids: set[bytes]) -> None:
        name = f"{prefix}domain"
        try:
            text = _twice(lambda: self._store.read(name))
        except ObjectMissing:
            self._find("missing", name, "the object that names the own domain is not there")
            return
        if _DOMAIN_TEXT.fullmatch(text) is None or bytes.fromhex(text.decode()) not in ids:
            self._find("changed", name, "it names no domain that is there")
            return
        self._objects += 1

    def _domain(self, below: str) -> None:
        expected = self._expect(below)
        found = {info.name[len(below) :]: info.size for info in self._store.list(below)}
        small, packs = [], []
        for name, size in found.items():
            kind, _, last = name.partition("/")
            if name.startswith(FOLDER):
                continue
            if kind not in _KINDS or _KINDS[kind].fullmatch(last) is None:
                self._strays.append(below + name)
            elif name in expected.packs:
                self._packs += 1
                packs.append((expected.packs[name], size))
            elif name in expected.small:
                small.append((expected.small[name], size))
            elif name not in expected.excused:
                self._unproven.append((below + name, "it has no digest"))
        due = [(pack, size) for pack, size in packs if self._is_due(pack) or pack.size != size]
        self._total = sum(digest.size for digest, _ in small) + sum(pack.size for pack, _ in due) + self._bytes
        self._each(partial(self._check_small, below, digest, size) for digest, size in small)
        before = self._objects
        self._each(partial(self._check_pack, below, pack, size) for pack, size in due)
        self._packs_read += self._objects - before
        gone = (expected.small.keys() | expected.packs.keys()) - found.keys() - expected.excused
        self._explain_missing(below, {*gone, *(name[len(below) :] for name in self._missing)})
        self._missing.clear()

    def _is_due(self, pack: PackDigests) -> bool:
        return int.from_bytes(pack.id[:4], "big") % self._slots == self._slot

    # --- what should be there ---

    def _expect(self, below: str) -> _Expected:
        """Read every digest of a domain. Damaged ones are findings, and promise nothing."""
        expected = _Expected()
        digests = []
        for info in self._store.list(below + FOLDER):
            kind, _, last = info.name[len(below) + len(FOLDER) :].partition(".")
            if kind not in _KINDS or _KINDS[kind].fullmatch(last) is None:
                self._strays.append(info.name)
                continue
            self._monitor.check()
            digest = self._load_digest(below, f"{kind}/{last}")
            if digest is not None:
                digests.append(digest)
        lists = [digest for digest in digests if digest.name.startswith("index/") and "." not in digest.name]
        numbers = [info.name for info in self._store.list(below + "index/") if "." not in info.name[len(below) :]]
        newest = max(lists, key=lambda digest: digest.name, default=None)
        if newest is not None:
            expected.told = below + newest.name >= max(numbers, default="")
            expected.excused = {f"packs/{pack.hex()}" for pack in newest.fossils}
            expected.excused |= {f"index/{name}" for name in newest.retired}
        for digest in digests:
            if digest.name in expected.excused:
                continue  # retired: nobody begins to read it, and prune may delete it at any time
            expected.small[digest.name] = digest
            expected.packs.update((f"packs/{pack.id.hex()}", pack) for pack in digest.packs)
        return expected

    def _load_digest(self, below: str, name: str) -> Digest | None:
        try:
            return _twice(lambda: load_digest(self._store, below, name))
        except ObjectMissing:
            return None  # deleted since the listing, and its object with it
        except (Corrupt, StoreError) as err:
            _require_damage(err)
            self._find("digest", below + digest_name(name), str(err))
            return None

    # --- comparing, on threads ---

    def _check_small(self, below: str, digest: Digest, size: int) -> tuple[str, int, str | None]:
        """(name, bytes read, what is wrong or None)."""
        name = below + digest.name
        if size != digest.size:
            return name, 0, f"it has {size} bytes instead of {digest.size}"

        def compare() -> str | None:
            data = self._store.read(name)
            return None if whole_digest(data) == digest.digest else "its bytes are not those that were written"

        return name, digest.size, self._compared(compare)

    def _check_pack(self, below: str, pack: PackDigests, size: int) -> tuple[str, int, str | None]:
        name = f"{below}packs/{pack.id.hex()}"
        if size != pack.size:
            return name, 0, f"it has {size} bytes instead of {pack.size}"
        start, wrong = 0, []
        for number, length in enumerate(pack.lengths):
            own = pack.digests[number * PART_DIGEST_BYTES : (number + 1) * PART_DIGEST_BYTES]

            def compare(start: int = start, length: int = length, own: bytes = own) -> str | None:
                part = self._store.read(name, start, length)
                return None if part_digest(part) == own else f"[{start}, {start + length})"

            fault = self._compared(compare)
            if fault is not None:
                wrong.append(fault)
            start += length
        return name, pack.size, f"other bytes than were written at {', '.join(wrong[:10])}" if wrong else None

    def _compared(self, compare: Callable[[], str | None]) -> str | None:
        """Twice before it is called wrong: a bit that flipped on the way is no damage in the store."""
        fault = None
        for _ in range(2):
            try:
                fault = compare()
            except ObjectMissing:
                raise
            except StoreError as err:
                _require_damage(err)
                fault = str(err)
            if fault is None:
                return None
        return fault

    def _each(self, tasks: Iterable[Callable[[], tuple[str, int, str | None]]]) -> None:
        """Run them on the pool, a few ahead, and take note of each in order."""
        running: deque[tuple[Future[None], list[tuple[str, int, str | None]]]] = deque()

        def begin(task: Callable[[], tuple[str, int, str | None]]) -> None:
            result: list[tuple[str, int, str | None]] = []

            def run() -> None:
                try:
                    result.append(task())
                except ObjectMissing as err:
                    result.append((err.name, -1, None))

            running.append((self._pool.compute(run), result))

        try:
            for task in tasks:
                if len(running) >= self._pool.threads * AHEAD_PER_THREAD:
                    self._note(*running.popleft())
                begin(task)
            while running:
                self._note(*running.popleft())
        finally:
            wait([future for future, _ in running])  # after an error no thread goes on reading

    def _note(self, future: Future[None], result: list[tuple[str, int, str | None]]) -> None:
        future.result()
        self._monitor.check()
        name, size, fault = result[0]
        if size < 0:
            self._missing[name] = None
        elif fault is not None:
            self._find("changed", name, fault)
        else:
            self._objects += 1
            self._bytes += size
        self._monitor.advance(self._bytes, self._total, self._objects)

    # --- what it means ---

    def _explain_missing(self, below: str, names: set[str]) -> None:
        """Missing is a loss only if the digests still promise it: who deletes by right removes them first."""
        if not names:
            return
        expected = self._expect(below)
        for name in sorted(names):
            if name in expected.excused or not (name in expected.small or name in expected.packs):
                continue
            try:
                self._store.size(below + name)
            except ObjectMissing:
                if name in expected.packs and not expected.told:
                    reason = "it is not there, and the newest list has no digest to tell whether prune deleted it"
                    self._unproven.append((below + name, reason))
                    continue
                self._find("missing", below + name, "it is not there any more")

    def _find(self, kind: Literal["missing", "changed", "digest"], name: str, reason: str) -> None:
        self._findings.setdefault(name, ScrubFinding(kind=kind, name=name, reason=reason))


def _twice(read: Callable[[], T]) -> T:
    try:
        return read()
    except (Corrupt, StoreError) as err:
        if not isinstance(err, ObjectMissing):
            _require_damage(err)
        return read()


def _require_damage(err: Corrupt | StoreError) -> None:
    """Raise what says nothing of the object: the store does not serve us now."""
    if isinstance(err, StoreDenied | StoreTimeout | StoreFull):
        raise err
