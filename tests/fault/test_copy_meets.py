"""A copy meets a prune of either side, or another copy into the same vault, at every call of one of them (RULINGS 9).

As in test_prune_meets.py: the other one runs wholly ahead of the N-th call, or is held at a gate inside its own calls
and let through at the N-th: every order of the two that matters, without luck.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import pytest
from fault_store import copy_of
from fault_world import MASTER, MONITOR, POOL, PREFIX, World, create, no_fence
from test_copy import OTHER, THERE
from test_prune_meets import WAIT_S, Gate, View, WatchedSessions, counted, gate_at, held, meetings

from strongroom.base.errors import ObjectMissing
from strongroom.engine import Pool, ProcessSessions, Repository, open_repository
from strongroom.engine.copy import CopyReport, copy
from strongroom.engine.prune import prune
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify

BIG = random.Random(7).randbytes(192 * 1024)  # what only `old.1` and `again.1` need
ROOTS = ["again.1", "rest.1"]
OTHERS_POOL = Pool(threads=2)  # who runs inside a call of a copy is another process, and waits for none of its threads


def nothing(_kind: str, _name: str) -> None:
    return None


@cache
def _disks() -> tuple[World, MemoryStore, MemoryStore]:
    """`old.1` was copied and is deleted on both sides; `again.1` needs the same chunks, `rest.1` some of another."""
    here, there, world = MemoryStore(), MemoryStore(), World()
    source = create(here)
    kept = random.Random(5).randbytes(20_000)
    world.backup(source, "old.1", BIG)
    world.backup(source, "half.1", {(b"kept",): kept, (b"big",): random.Random(6).randbytes(90_000)})
    copy(source, there, THERE, OTHER, None, MONITOR, no_fence)
    world.backup(source, "again.1", BIG + b"x" * 65536)
    world.backup(source, "rest.1", {(b"kept",): kept}, parent="half.1")
    world.delete(source, "old.1")
    world.delete(source, "half.1")
    return world, here, there


def elsewhere(work: Callable[[], object]) -> Callable[[], None]:
    """`work` on a thread of its own, as another process: buffers that belong to a thread are not its."""

    def run() -> None:
        failures: list[BaseException] = []

        def body() -> None:
            try:
                work()
            except BaseException as err:  # noqa: BLE001 - raised below
                failures.append(err)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        if failures:
            raise failures[0]

    return run


@dataclass
class Pair:
    """Two disks, and the sessions that every process of a side sees."""

    world: World = field(default_factory=lambda: World(dict(_disks()[0].kept)))
    here: MemoryStore = field(default_factory=lambda: copy_of(_disks()[1]))
    there: MemoryStore = field(default_factory=lambda: copy_of(_disks()[2]))
    source_sessions: ProcessSessions = field(default_factory=ProcessSessions)
    receiver_sessions: ProcessSessions = field(default_factory=ProcessSessions)

    def source(self, before: Callable[[str, str], None] = nothing, pool: Pool = OTHERS_POOL) -> Repository:
        sessions = WatchedSessions(self.source_sessions, before)
        return open_repository(View(self.here, before), PREFIX, MASTER, pool=pool, sessions=sessions)

    def receiver(self, before: Callable[[str, str], None] = nothing) -> Repository:
        store: Store = View(self.there, before)
        sessions = WatchedSessions(self.receiver_sessions, before)
        domain = self.source().domain.id
        return open_repository(store, THERE, OTHER, domain_id=domain, pool=OTHERS_POOL, sessions=sessions)

    def copy(
        self, here: Callable[[str, str], None] = nothing, there: Callable[[str, str], None] = nothing
    ) -> CopyReport:
        sessions = self.receiver_sessions
        store = View(self.there, there)
        pool = OTHERS_POOL if here is there is nothing else POOL
        return copy(self.source(here, pool), store, THERE, OTHER, ROOTS, MONITOR, no_fence, sessions=sessions)

    def prune_source(self) -> None:
        prune(self.source(), dead=["old.1", "half.1"], monitor=MONITOR)

    def prune_receiver(self, before: Callable[[str, str], None] = nothing) -> None:
        prune(self.receiver(before), dead=["old.1", "half.1"], monitor=MONITOR)

    def settle(self) -> None:
        """What was copied is there, whole, and one more prune leaves nothing to wait for."""
        there = self.receiver()
        assert set(there.root_names()) >= set(ROOTS)
        assert self.source_sessions.oldest_pinned() is None
        assert self.receiver_sessions.oldest_pinned() is None
        for _ in range(2):
            assert verify(there, ROOTS, deep=True, monitor=MONITOR).findings == ()
            assert World({name: self.world.kept[name] for name in ROOTS}).problems(there) == []
            self.prune_receiver()
        report = prune(there, dead=(), monitor=MONITOR)
        assert (report.packs_deleted, report.packs_waiting, report.packs_missing) == (0, 0, 0)


def test_a_prune_of_the_receiver_at_every_call_of_a_copy() -> None:
    """Chunks the copy found known, and packs it has just written, stay until its root needs them."""

    def trial(at: int) -> int:
        pair = Pair()
        before, calls = counted(at, elsewhere(pair.prune_receiver))
        assert pair.copy(there=before).roots_copied == tuple(ROOTS)
        pair.settle()
        return calls[0]

    assert meetings(trial) > 15


def test_a_prune_of_the_source_at_every_call_of_a_copy() -> None:
    """What is read stays readable, also when its restore points are deleted meanwhile."""

    def trial(at: int) -> int:
        pair = Pair()

        def delete_and_prune() -> None:
            prune(pair.source(), dead=[*ROOTS, "old.1", "half.1"], monitor=MONITOR)

        before, calls = counted(at, elsewhere(delete_and_prune))
        try:
            pair.copy(here=before)
        except ObjectMissing as err:  # it had not begun to read the root
            assert "/roots/" in err.name, (at, err)
        else:
            pair.settle()
        return calls[0]

    assert meetings(trial) > 10


GATES = {"index read": ("writer", "packs/"), "packs written": ("put", "index/"), "index written": ("put", "roots/")}


@pytest.mark.parametrize("stage", sorted(GATES))
def test_a_copy_commits_while_the_receiver_is_pruned(stage: str) -> None:
    """Held at a stage and let through at any call of the prune: what it relied on is still there."""

    def trial(at: int) -> int:
        pair, gate = Pair(), Gate()
        hold = gate_at(gate, *GATES[stage])
        thread, failures = held(lambda: pair.copy(there=hold), gate)  # type: ignore[arg-type, return-value]

        def let_through() -> None:
            gate.opened.set()
            thread.join(WAIT_S)

        before, calls = counted(at, let_through)
        pair.prune_receiver(before)
        let_through()
        assert not failures, (stage, at, failures)
        pair.settle()
        return calls[0]

    assert meetings(trial) > 10


def test_two_copies_into_one_vault() -> None:
    """The second begins and ends at any call of the first, the very first copy of a domain included: both succeed."""

    def trial(at: int) -> int:
        pair = Pair()
        if at % 2:
            pair.there = MemoryStore()
        before, calls = counted(at, elsewhere(pair.copy))
        report = pair.copy(there=before)
        assert sorted([*report.roots_copied, *report.roots_present]) == sorted(ROOTS)
        pair.settle()
        return calls[0]

    assert meetings(trial) > 15


def test_the_pins_are_what_protects_a_copy() -> None:
    """With sessions that nobody else sees the meeting loses chunks: the suite would notice."""
    pair, gate = Pair(), Gate()
    hold = gate_at(gate, "put", "roots/")
    thread, _ = held(lambda: pair.copy(there=hold), gate)  # type: ignore[arg-type, return-value]
    pair.receiver_sessions = ProcessSessions()
    pair.prune_receiver()
    gate.opened.set()
    thread.join(WAIT_S)
    assert verify(pair.receiver(), ROOTS, deep=True, monitor=MONITOR).findings
