"""One vault over a dozen steps, with everything that may happen to it; `test_histories.py` has the story."""

import itertools
import random
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fault_store import Fault, FaultStore
from fault_world import MASTER, MONITOR, PREFIX, Content, World, no_fence, restored

from strongroom.base.errors import (
    Corrupt,
    IndexIncomplete,
    ObjectExists,
    ObjectMissing,
    PackCorrupt,
    StoreError,
    StoreFull,
    StoreTimeout,
)
from strongroom.base.streams import Path
from strongroom.engine import (
    DomainSettings,
    Pool,
    ProcessSessions,
    Repository,
    Root,
    Session,
    create_repository,
    open_repository,
)
from strongroom.engine.chunker import HOLE
from strongroom.engine.content import Content as Rows
from strongroom.engine.content import iter_rows, parse_content
from strongroom.engine.copy import copy
from strongroom.engine.manifest import open_stream
from strongroom.engine.prune import PruneReport, prune
from strongroom.engine.rebuild import rebuild
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify

POOLS = Pool(threads=2), Pool(threads=2)  # one for each of two processes: neither waits for a thread of the other
BLOCK = 65536
REPLICA = "vaults/replica/"
CALLS = (8, 30, 120)  # a fault or a meeting comes before this call, or not at all
JUMP_DAYS_MAX = 60
ERRORS = StoreError, StoreFull, StoreTimeout

Verb = Callable[[Repository], None]


class JumpingClock:
    """A wall clock that somebody sets."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at

    def monotonic_s(self) -> float:
        return self.at.timestamp()


class MeetingStore(FaultStore):
    """A FaultStore that lets another process do its work ahead of its N-th call."""

    def __init__(self, disk: MemoryStore, fault: Fault | None, at: int, other: Callable[[], None] | None) -> None:
        super().__init__(disk, fault)
        self._at = at
        self._other = other

    def _enter(self, kind: str, name: str) -> bool:
        if self._other is not None and len(self.operations) + 1 >= self._at:
            other, self._other = self._other, None
            in_another_thread(other)
        return super()._enter(kind, name)


def in_another_thread(work: Callable[[], None]) -> None:
    """Do it there and wait: buffers belong to threads, and another process shares none with this one."""
    with ThreadPoolExecutor(1) as other:
        other.submit(work).result()


@dataclass(kw_only=True)
class Reader:
    """A session that stays open over steps, with the root it opened. fossils: packs no root needed at its list."""

    scope: AbstractContextManager[Session]
    session: Session
    root: Root
    fossils: frozenset[bytes]

    def content(self) -> Content:
        """All of it, through the session that was opened long ago."""
        if self.root.kind == "block":
            return self._bytes(parse_content(self.root.body.stream))
        files: dict[Path, bytes] = {}
        for record, _ in open_stream(self.root, self.session.metadata).records():
            for item in record.items():
                if item.content is not None:
                    files[(*record.path, item.entry.name)] = self._bytes(item.content)
        return files

    def _bytes(self, rows: Rows) -> bytes:
        found = iter_rows(rows, self.session.metadata)
        return b"".join(bytes(length) if key == HOLE else self.session.data(key) for key, length, _ in found)


class History:
    """world: what was acknowledged. ever: every content that was tried, by root. told: the steps, for a failure."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.disk = MemoryStore()
        self.sessions = ProcessSessions()
        self.clock = JumpingClock()
        self.world = World()
        self.ever: dict[str, Content] = {}
        self.busy: set[str] = set()  # roots that a backup under way may put at any moment
        self.told: list[str] = []
        self.counts: Counter[str] = Counter()
        self.readers: list[tuple[str, Reader]] = []
        self._numbers = itertools.count(1)
        self.replica: dict[str, Content] = {}  # what a copy to the other vault has acknowledged
        self.there_sessions = ProcessSessions()
        self._arriving: set[str] = set()
        self._leaving: set[str] = set()
        self._deleted = self._index_lost = self._copied = False
        self._pieces = [chance.randbytes(chance.choice((0, 10, 3000, 30_000))) for _ in range(14)]
        self._blocks = [bytes(BLOCK), *(chance.randbytes(BLOCK) for _ in range(5))]
        self.domain_id = create_repository(self.disk, PREFIX, MASTER, DomainSettings(), pool=POOLS[0]).domain.id

    # --- steps ---

    def step(self) -> None:
        """One thing happens, perhaps with a fault or in company; then everything acknowledged is looked at."""
        if self.chance.random() < 0.2:
            days = self.chance.randint(-JUMP_DAYS_MAX, JUMP_DAYS_MAX)
            self.clock.at += timedelta(days=days)
            self._tell("jump", f"the clock jumps by {days} days")
        if self.chance.random() < 0.25:
            self._reader()
        name, verb = self._draw()
        fault, at = self._draw_fault(), self._draw_call()
        other_name, other = self._draw(company=True) if self.chance.random() < 0.4 else ("", None)
        self._tell(name, f"{name}, fault {fault}" + (f", meets {other_name} ahead of call {at}" if other else ""))
        self._deleted = name == "delete" or other_name == "delete"
        store = MeetingStore(self.disk, fault, at, (lambda: self._company(other_name, other)) if other else None)
        try:
            verb(self._open(store, 0))
        except (StoreError, Corrupt) as err:
            gone = self._deleted and isinstance(err, ObjectMissing) and "/roots/" in err.name
            assert (fault is not None and store.reached) or gone, f"{name} failed without a fault: {err!r}"
            self.counts["crashed" if fault and fault.crash else "failed"] += 1
        else:
            assert not (fault and fault.crash and store.crashed), f"{name} says it succeeded on a machine that died"
        self.busy.clear()
        self._arriving.clear()
        self._leaving.clear()
        self._index_lost = False
        self.check()

    def _company(self, name: str, verb: Verb) -> None:
        """Another process, without faults, at any moment of the first."""
        self.counts["met"] += 1
        try:
            verb(self._open(self.disk, 1))
        except ObjectMissing as err:
            assert self._deleted and "/roots/" in err.name, f"{name} in company failed: {err!r}"
        except IndexIncomplete as err:
            assert self._index_lost, f"{name} in company failed: {err!r}"

    def check(self) -> None:
        """A new process finds all that was acknowledged; what else is visible is what was once tried."""
        repository = self._open(self.disk, 0)
        names = set(repository.root_names())
        for name in self.world.kept:
            assert name in names, f"{name} is lost"
        for name in sorted(names):
            assert restored(repository, name) == self.ever[name], f"{name} came back different"
        if self._copied:
            self._copied = False
            self._check_replica()

    def end(self) -> None:
        """Readers end; then nothing is damaged, nothing is left over, and the index needs no rebuild."""
        for name, reader in self.readers:
            self._finish(name, reader)
        self.readers.clear()
        repository = self._open(self.disk, 0)
        assert self.sessions.oldest_pinned() is None
        self._prune(repository)
        again = self._prune(repository)
        assert (again.packs_deleted, again.packs_waiting, again.packs_missing, again.roots_removed) == (0, 0, 0, 0)
        assert set(repository.root_names()) == self.world.kept.keys()
        assert verify(repository, None, deep=True, monitor=MONITOR).findings == ()
        assert rebuild(repository).was_sound
        self._copied = True
        self.check()
        if self.replica:
            there = self._replica(self.disk, POOLS[0])
            assert self.there_sessions.oldest_pinned() is None
            self._prune_replica(there)
            assert verify(there, None, deep=True, monitor=MONITOR).findings == ()
            self._check_replica()
            self.counts["replicas checked"] += 1

    # --- what may happen ---

    def _draw(self, *, company: bool = False) -> tuple[str, Verb]:
        weights = {"backup": 8, "restore": 3, "delete": 3, "prune": 5, "verify": 1, "rebuild": 0 if company else 1}
        weights |= {"labels": 1, "copy": 2}
        name = self.chance.choices(list(weights), list(weights.values()))[0]
        return name, getattr(self, f"_draw_{name}")()

    def _draw_fault(self) -> Fault | None:
        chance = self.chance
        if chance.random() < 0.45:
            return None
        at, seed = self._draw_call(), chance.getrandbits(32)
        if chance.random() < 0.5:
            return Fault(at=at, crash=True, seed=seed)
        late, onwards = chance.random() < 0.4, chance.random() < 0.4
        return Fault(at=at, late=late, onwards=onwards, error=chance.choice(ERRORS))

    def _draw_call(self) -> int:
        return self.chance.randint(1, self.chance.choice(CALLS))

    def _draw_backup(self) -> Verb:
        name, content = f"b{next(self._numbers)}.1", self._content()
        parents = [
            known for known in sorted(self.ever) if isinstance(self.ever[known], bytes) == isinstance(content, bytes)
        ]
        parent = self.chance.choice(parents) if parents and self.chance.random() < 0.8 else None
        full = self.chance.random() < 0.15
        changed = None
        if isinstance(content, bytes) and parent is not None and parent in self.world.kept:
            changed = difference(self.ever[parent], content)
        self.ever[name] = content
        self.world.times[name] = ctimes(content)

        def run(repository: Repository) -> None:
            self.busy.add(name)
            self.world.backup(repository, name, content, parent=parent, full=full, changed_blocks=changed)
            self.counts["committed"] += 1

        return run

    def _draw_restore(self) -> Verb:
        name = self._known()

        def run(repository: Repository) -> None:
            if name is not None and name in self.world.kept:
                assert restored(repository, name) == self.ever[name], f"{name} came back different"

        return run

    def _draw_delete(self) -> Verb:
        name = self._known()

        def run(repository: Repository) -> None:
            if name is not None:
                self.world.delete(repository, name)

        return run

    def _draw_prune(self) -> Verb:
        def run(repository: Repository) -> None:
            self._prune(repository)

        return run

    def _draw_verify(self) -> Verb:
        deep = self.chance.random() < 0.5

        def run(repository: Repository) -> None:
            names = None if self._deleted else sorted(self.world.kept)
            findings = verify(repository, names, deep=deep, monitor=MONITOR).findings
            # A store that fails while it is checked looks like damage: only a sound store has to look sound.
            sound = not findings or self._index_lost
            assert sound or (isinstance(repository.store, FaultStore) and repository.store.reached), findings
            if findings:
                raise Corrupt(reason="verify found damage", detail=str(findings[0]))

        return run

    def _draw_rebuild(self) -> Verb:
        """Part of the index goes first, in half of the cases; nothing else happens before it is whole again."""
        lost = self.chance.random() < 0.5 and not self.readers
        doomed = self.chance.random()

        def run(repository: Repository) -> None:
            self._index_lost = lost
            if lost:
                for info in [*self.disk.list(f"{repository.prefix}index/")]:
                    if random.Random(info.name + str(doomed)).random() < 0.5:
                        self.disk.delete(info.name)
            try:
                rebuild(repository)
            except (StoreError, Corrupt):
                rebuild(self._open(self.disk, 0))  # as the operator does
                raise

        return run

    def _draw_copy(self) -> Verb:
        """Everything goes to another vault, which may have let go of a restore point before, and pruned."""
        dropped = self.chance.choice(sorted(self.replica)) if self.replica and self.chance.random() < 0.4 else None

        def run(repository: Repository) -> None:
            self._copied = True
            if dropped is not None and dropped not in self._arriving and self.replica.pop(dropped, None) is not None:
                self._leaving.add(dropped)
                there = self._replica(repository.store, repository.pool)
                there.delete_root(dropped)
                self._prune_replica(there)
                self._leaving.discard(dropped)
            # The service lets nobody delete what is being copied, nor copy what is being deleted.
            names = sorted(self.world.kept.keys() - self._leaving)
            self._arriving |= set(names)
            if names:
                copy(
                    repository,
                    repository.store,
                    REPLICA,
                    MASTER,
                    names,
                    MONITOR,
                    no_fence,
                    sessions=self.there_sessions,
                )
                self.replica |= {name: self.ever[name] for name in names}

        return run

    def _replica(self, store: Store, pool: Pool) -> Repository:
        """The other vault's copy of the domain."""
        return open_repository(
            store, REPLICA, MASTER, domain_id=self.domain_id, pool=pool, sessions=self.there_sessions, clock=self.clock
        )

    def _prune_replica(self, there: Repository) -> None:
        known = self.replica.keys() | self._arriving
        prune(there, dead=[name for name in there.root_names() if name not in known], monitor=MONITOR)

    def _check_replica(self) -> None:
        if not self.replica:
            return
        there = self._replica(self.disk, POOLS[0])
        names = set(there.root_names())
        for name in self.replica:
            assert name in names, f"{name} is lost in the replica"
        for name in sorted(names):
            assert restored(there, name) == self.ever[name], f"{name} of the replica came back different"

    def _draw_labels(self) -> Verb:
        name = self._known()

        def run(repository: Repository) -> None:
            if name is not None:
                with suppress(ObjectExists):  # the other process was faster
                    repository.put_labels(name.partition(".")[0], {"told": len(self.told)})

        return run

    def _reader(self) -> None:
        """Somebody begins to read and stays, or one of those who stayed reads on, whatever happened meanwhile."""
        if self.readers and self.chance.random() < 0.5:
            self._finish(*self.readers.pop(self.chance.randrange(len(self.readers))))
            return
        name = self._known()
        if name is None:
            return
        repository = self._open(self.disk, 0)
        scope = repository.session("mount")
        session = scope.__enter__()
        root = repository.load_root(name)
        self.readers.append((name, Reader(scope=scope, session=session, root=root, fossils=session.index.bad)))
        self._tell("reader", f"a reader opens {name}")

    def _finish(self, name: str, reader: Reader) -> None:
        self._tell("read on", f"the reader of {name} reads on")
        try:
            assert reader.content() == self.ever[name], f"the reader of {name} got other bytes"
        except PackCorrupt:
            # Its root leaned on a fossil before a prune had revived it, and was deleted under the reader, which the
            # service refuses: prune sees a fossil that nobody needs and no older session.
            assert name not in self.world.kept and reader.fossils, f"the reader of {name} was cut short"
            self.counts["reader of a deleted root cut short"] += 1
        finally:
            reader.scope.__exit__(None, None, None)

    # --- values ---

    def _open(self, store: MemoryStore | FaultStore, process: int) -> Repository:
        return open_repository(store, PREFIX, MASTER, pool=POOLS[process], sessions=self.sessions, clock=self.clock)

    def _prune(self, repository: Repository) -> PruneReport:
        """Roots that were seen and that no row names are dead; those of a task under way are nobody's yet."""
        dead = [name for name in repository.root_names() if name not in self.world.kept and name not in self.busy]
        return prune(repository, dead=dead, monitor=MONITOR)

    def _known(self) -> str | None:
        return self.chance.choice(sorted(self.world.kept)) if self.world.kept else None

    def _content(self) -> Content:
        chance = self.chance
        if chance.random() < 0.3:
            return b"".join(chance.choices(self._blocks, k=chance.randint(1, 6))) + bytes(chance.randrange(100))
        folders = ((), (b"d",), (b"d", b"e"))
        count = chance.randint(1, 8)
        return {
            (*chance.choice(folders), b"f%d" % chance.randrange(6)): chance.choice(self._pieces) for _ in range(count)
        }

    def _tell(self, what: str, text: str) -> None:
        self.counts[what] += 1
        self.told.append(text)


def ctimes(content: Content) -> dict[Path, int]:
    """Change times as a file system gives them: another content has another."""
    if isinstance(content, bytes):
        return {}
    return {path: 1_500_000_000_000_000_000 + zlib.crc32(data) for path, data in content.items()}


def difference(old: Content, new: bytes) -> tuple[tuple[int, int], ...] | None:
    """A changed-block list that is true, and a little too long; None when the sizes differ."""
    if not isinstance(old, bytes) or len(old) != len(new):
        return None
    blocks = [at for at in range(0, len(new), BLOCK) if old[at : at + BLOCK] != new[at : at + BLOCK]]
    return tuple((at, BLOCK) for at in blocks)
