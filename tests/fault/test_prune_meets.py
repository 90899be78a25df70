"""Prune meets a backup, a restore or another prune, at every point of its own work (RULINGS 9).

The other one is held at a gate inside its own store calls and let through when prune makes its N-th call: every order
of the two that matters, without luck.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from fault_store import copy_of
from fault_world import MONITOR, World, create, reopen, restored

from strongroom.engine import ProcessSessions, Repository
from strongroom.engine.prune import PruneReport, prune
from strongroom.engine.store.base import Buffer, ObjectInfo
from strongroom.engine.store.memory import MemoryStore, MemoryWriter
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
WAIT_S = 20  # bound of every wait; nothing here takes a second
DEAD = random.Random(7).randbytes(192 * 1024)  # what only a deleted restore point needs, until it is backed up again


@dataclass
class Gate:
    """Somebody waits here until it is opened."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(WAIT_S)


class View(MemoryStore):
    """Another process's view of one disk; `before` is called with (kind, name) ahead of every call."""

    def __init__(self, disk: MemoryStore, before: Callable[[str, str], None]) -> None:
        self._lock = disk._lock
        self._objects = disk._objects
        self._before = before

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self._before("put", name)
        super().put(name, data)

    def writer(self, name: str) -> MemoryWriter:
        self._before("writer", name)
        return super().writer(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._before("read", name)
        return super().read(name, offset, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._before("list", prefix)
        return super().list(prefix)

    def delete(self, name: str) -> None:
        self._before("delete", name)
        super().delete(name)


class WatchedSessions(ProcessSessions):
    """Sessions of one process; looking at the pins is a call too, between which and the next something may happen."""

    def __init__(self, sessions: ProcessSessions, before: Callable[[str, str], None]) -> None:
        self._lock = sessions._lock
        self._pinned = sessions._pinned
        self._before = before

    def oldest_pinned(self) -> int | None:
        self._before("pins", "")
        return super().oldest_pinned()


def watched(disk: MemoryStore, sessions: ProcessSessions, before: Callable[[str, str], None]) -> Repository:
    """The repository as the process sees it whose calls are counted."""
    return reopen(View(disk, before), WatchedSessions(sessions, before))


def base() -> tuple[World, MemoryStore]:
    """A restore point that counts, one that was deleted, and a half dead pack."""
    store, world = MemoryStore(), World()
    repository = create(store)
    kept = random.Random(5).randbytes(20_000)
    world.backup(repository, "half.1", {(b"kept",): kept, (b"big",): random.Random(6).randbytes(90_000)})
    world.backup(repository, "dead.1", DEAD)
    world.backup(repository, "rest.1", {(b"kept",): kept}, parent="half.1")
    world.delete(repository, "half.1")
    return world, store


def held(work: Callable[[], None], gate: Gate) -> tuple[threading.Thread, list[BaseException]]:
    """Start `work` in a thread and wait until it stands at its gate."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as err:  # noqa: BLE001 - shown by the test's own thread
            failures.append(err)
            gate.reached.set()

    thread = threading.Thread(target=body)
    thread.start()
    assert gate.reached.wait(WAIT_S)
    return thread, failures


def gate_at(gate: Gate, kind: str, part: str) -> Callable[[str, str], None]:
    """Hold the first call of this kind whose name has this part."""
    used = threading.Event()

    def before(what: str, name: str) -> None:
        if what == kind and part in name and not used.is_set():
            used.set()
            gate.wait()

    return before


def counted(at: int, action: Callable[[], None]) -> tuple[Callable[[str, str], None], list[int]]:
    """Do `action` ahead of the at-th call."""
    calls = [0]

    def before(_kind: str, _name: str) -> None:
        calls[0] += 1
        if calls[0] == at:
            action()

    return before, calls


def meetings(trial: Callable[[int], int]) -> int:
    """How many trials there were. `trial(at)` lets something happen ahead of the at-th call and returns how many calls
    it counted: it is made for at = 1, 2, ... until there is no at-th call any more."""
    at = 1
    while trial(at) >= at:
        at += 1
    return at


def settle(world: World, disk: MemoryStore, sessions: ProcessSessions) -> None:
    """Everything acknowledged is there, and one more prune leaves nothing to wait for."""
    repository = reopen(disk, sessions)
    assert world.problems(repository) == []
    assert verify(repository, list(world.kept), deep=True, monitor=MONITOR).findings == ()
    assert sessions.oldest_pinned() is None
    world.prune(repository)
    assert world.problems(repository) == []
    report = world.prune(repository)
    assert (report.packs_deleted, report.packs_waiting, report.packs_missing) == (0, 0, 0)


GATES = {
    "index read": ("writer", "packs/"),
    "packs written": ("put", "index/"),
    "index written": ("put", "roots/"),
}


@pytest.mark.parametrize("stage", sorted(GATES))
def test_a_backup_commits_while_prune_runs(stage: str) -> None:
    """A backup that relies on packs prune finds dead commits at any point of the prune: it comes back whole."""
    original_world, original = base()
    dead = ["dead.1"]
    original_world.delete(reopen(original), "dead.1")

    def trial(at: int) -> int:
        world, disk, sessions, gate = original_world.copy(), copy_of(original), ProcessSessions(), Gate()
        writer = reopen(View(disk, gate_at(gate, *GATES[stage])), sessions)
        thread, failures = held(lambda: world.backup(writer, "late.1", DEAD + b"x" * 65536), gate)

        def let_through() -> None:
            gate.opened.set()
            thread.join(WAIT_S)

        before, calls = counted(at, let_through)
        prune(watched(disk, sessions, before), dead=dead, monitor=MONITOR)
        let_through()
        assert not failures, (stage, at, failures)
        assert "late.1" in world.kept
        settle(world, disk, sessions)
        return calls[0]

    assert meetings(trial) > 10


def test_a_restore_goes_on_while_its_root_is_deleted_and_pruned() -> None:
    """A reader that opened its session keeps what it reads, although the root goes and prune runs; then it is freed."""
    world, disk = base()
    sessions, gate = ProcessSessions(), Gate()
    results: list[object] = []
    reader = reopen(View(disk, gate_at(gate, "read", "packs/")), sessions)
    thread, failures = held(lambda: results.append(restored(reader, "dead.1")), gate)
    repository = reopen(disk, sessions)
    world.delete(repository, "dead.1")
    first = world.prune(repository)
    assert first.packs_waiting >= 1
    gate.opened.set()
    thread.join(WAIT_S)
    assert not failures
    assert results == [DEAD]
    second = world.prune(repository)
    assert second.packs_deleted >= first.packs_waiting
    assert second.packs_waiting == 0
    settle(world, disk, sessions)


def test_a_root_of_an_old_session_revives_a_fossil() -> None:
    """Between two prunes a session that pinned an older list commits: readable at once, revived by the next prune."""
    world, disk = base()
    sessions, gate = ProcessSessions(), Gate()
    world.delete(reopen(disk), "dead.1")
    writer = reopen(View(disk, gate_at(gate, "put", "roots/")), sessions)
    thread, failures = held(lambda: world.backup(writer, "late.1", DEAD), gate)
    repository = reopen(disk, sessions)
    waiting = world.prune(repository).packs_waiting
    assert waiting >= 1
    assert len(repository.load_index_list().fossils) >= waiting
    gate.opened.set()
    thread.join(WAIT_S)
    assert not failures
    assert restored(repository, "late.1") == DEAD
    world.prune(repository)
    assert not repository.load_index_list().fossils
    settle(world, disk, sessions)


def test_two_prunes_at_once() -> None:
    """The second begins and ends at any call of the first (a zombie): nothing that counts is lost."""
    original_world, original = base()
    original_world.delete(reopen(original), "dead.1")
    reports: list[PruneReport] = []

    def trial(at: int) -> int:
        world, disk, sessions = original_world.copy(), copy_of(original), ProcessSessions()
        other = reopen(disk, sessions)
        before, calls = counted(at, lambda: reports.append(world.prune(other)))
        world.prune(watched(disk, sessions, before))
        settle(world, disk, sessions)
        return calls[0]

    meetings(trial)
    assert sum(report.packs_deleted for report in reports) > 0


def test_a_backup_that_dies_is_forgotten() -> None:
    """Packs and index of an attempt that never committed go with the next prune, once its session is closed."""
    world, disk = base()
    sessions = ProcessSessions()
    repository = reopen(disk, sessions)

    class Died(BaseException):
        """The worker."""

    def die(kind: str, name: str) -> None:
        if kind == "put" and "roots/" in name:
            raise Died

    pinned = sessions.open("backup", repository.load_index_list().number)
    with pytest.raises(Died):
        world.backup(reopen(View(disk, die), sessions), "lost.1", random.Random(3).randbytes(1 << 18))
    world.prune(repository)
    held_back = world.prune(repository)
    assert held_back.packs_waiting >= 1
    sessions.close(pinned)
    assert world.prune(repository).packs_deleted == held_back.packs_waiting
    settle(world, disk, sessions)


def prune_without_pins(world: World, disk: MemoryStore) -> None:
    """A prune that sees nobody: each process has sessions of its own."""
    world.prune(reopen(disk, ProcessSessions()))


def test_the_pins_are_what_protects() -> None:
    """Without them the meeting loses data: the suite would notice."""
    world, disk = base()
    gate = Gate()
    world.delete(reopen(disk), "dead.1")
    writer = reopen(View(disk, gate_at(gate, "put", "roots/")), ProcessSessions())
    thread, _failures = held(lambda: world.backup(writer, "late.1", DEAD), gate)
    prune_without_pins(world, disk)
    gate.opened.set()
    thread.join(WAIT_S)
    repository: Repository = reopen(disk)
    report = verify(repository, ["late.1"], deep=True, monitor=MONITOR)
    assert report.findings


def test_a_verify_does_not_call_a_delete_damage() -> None:
    """A root is deleted and pruned at any call of a verify of everything: no finding, and the rest is checked."""
    original_world, original = base()

    def trial(at: int) -> int:
        world, disk, sessions = original_world.copy(), copy_of(original), ProcessSessions()

        def delete_and_prune() -> None:
            world.delete(reopen(disk, sessions), "dead.1")
            world.prune(reopen(disk, sessions))

        before, calls = counted(at, delete_and_prune)
        report = verify(watched(disk, sessions, before), None, deep=True, monitor=MONITOR)
        assert report.findings == (), at
        assert report.roots >= 1
        if calls[0] >= at:
            settle(world, disk, sessions)
        return calls[0]

    meetings(trial)
