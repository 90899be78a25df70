"""A copy whose N-th call of the source's or of the receiver's store fails, or at which the machine dies.

After each run a new process opens what both disks hold: every root at the receiver has all its chunks and comes back
byte for byte, success is reported only when all have come, the same copy runs again to its end, and a prune of the
receiver leaves nothing behind that no restore point needs. The source is never changed.
"""

import os
from collections.abc import Iterator
from functools import cache

import pytest
from fault_store import Fault, FaultStore, copy_of
from fault_world import MONITOR, POOL, World, base, drain_pool, no_fence, reopen, restored
from reliability import report
from test_copy import OTHER, THERE, received

from strongroom.base.errors import Corrupt, KeyWrong, ObjectMissing, StoreError, StoreFull, StoreTimeout
from strongroom.engine import DomainSettings, Repository, create_repository
from strongroom.engine.copy import CopyReport, copy
from strongroom.engine.prune import prune
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
ERRORS: tuple[type[StoreError], ...] = (StoreError, StoreFull, StoreTimeout)


@cache
def disks() -> tuple[World, MemoryStore, MemoryStore]:
    """What should come over; the source; a receiver with a domain of its own and one restore point that came before."""
    world, disk = base()
    store = MemoryStore()
    own = create_repository(store, THERE, OTHER, DomainSettings(), pool=POOL)
    World().backup(own, "own.1", b"own" * 10_000)
    source = reopen(disk)
    source.put_labels("tree", {"name": "renamed"})
    copy(source, store, THERE, OTHER, ["rest.1"], MONITOR, no_fence)
    return world, disk, store


def run_copy(source: Store, receiver: Store) -> CopyReport:
    return copy(reopen(source), receiver, THERE, OTHER, sorted(disks()[0].kept), MONITOR, no_fence)


def problems(source: Repository, store: MemoryStore, *, complete: bool) -> list[str]:
    """What the receiver promises and does not keep."""
    world = disks()[0]
    try:
        there = received(store, source)
    except (ObjectMissing, KeyWrong) as err:
        return [f"the domain is lost: {err}"]
    names = there.root_names()
    found = [f"{name} came back different" for name in names if restored(there, name) != world.kept[name]]
    found += [f"{name} has not come" for name in world.kept if complete and name not in names]
    found += [f"verify: {finding}" for finding in verify(there, None, deep=True, monitor=MONITOR).findings]
    if complete and there.load_labels(there.load_root("tree.1")) != {"name": "renamed"}:
        found.append("the labels have not come")
    return found


def check(side: str, fault: Fault | None) -> tuple[list[str], int, bool]:
    """(what was promised and not kept, calls of that side's store, whether the copy failed)."""
    _, disk, receiver = disks()
    source, store = FaultStore(copy_of(disk)), FaultStore(copy_of(receiver))
    faulty = source if side == "source" else store
    faulty.fault = fault
    failed = False
    try:
        run_copy(source, store)
    except (StoreError, Corrupt):
        failed = True
        assert fault is not None
    operations = len(faulty.operations)
    assert all(not each.open_writers or each.crashed for each in (source, store))
    drain_pool()
    assert len(faulty.operations) == operations, "a thread went on after the copy had ended"
    here, there = reopen(source.survivors()), store.survivors()
    found = problems(here, there, complete=not failed)
    if [*source.survivors().list("")] != [*disk.list("")]:
        found.append("the source was changed")
    if fault is not None and fault.crash and faulty.reached and not failed:
        found.append("it succeeded on a machine that was off")
    run_copy(source.survivors(), there)
    found += problems(here, there, complete=True)
    if run_copy(source.survivors(), there).bytes_copied:
        found.append("a copy of what is there has moved something")
    prune(received(there, here), dead=(), monitor=MONITOR)
    found += problems(here, there, complete=True)
    again = prune(received(there, here), dead=(), monitor=MONITOR)
    if again.packs_deleted or again.packs_waiting:
        found.append(f"the prune before left something: {again}")
    return found, operations, failed


def faults(operations: int, every: int, seeds: int) -> Iterator[Fault]:
    for at in range(1, operations + 1):
        if (at + SEED) % every:
            continue
        error = ERRORS[at % len(ERRORS)]
        yield Fault(at=at, error=error, late=at // every % 2 == 0)
        yield Fault(at=at, error=error, onwards=True, late=at // every % 2 == 1)
        for seed in range(seeds):
            yield Fault(at=at, crash=True, seed=seed)


def sweep(side: str, *, every: int, seeds: int) -> None:
    found, operations, _ = check(side, None)
    assert found == []
    trials = failures = 0
    for fault in faults(operations, every, seeds):
        found, _, failed = check(side, fault)
        assert not found, (side, fault, found)
        trials += 1
        failures += failed
    print(f"copy, {side}: {trials} faults in {operations} calls, {failures} of them failed it, seed {SEED}")
    assert failures > trials // 2
    if every == 1:
        report(f"faults copy, {side}", count=trials, seed=SEED, calls=operations, failed=failures)


@pytest.mark.parametrize("side", ["source", "receiver"])
def test_every_fault_of_a_copy(side: str) -> None:
    """At calls of either store: never a root without its chunks, never a silent success, and the next run completes."""
    sweep(side, every=2, seeds=1)


@pytest.mark.long
@pytest.mark.parametrize("side", ["source", "receiver"])
def test_every_fault_of_a_copy_many_times(side: str) -> None:
    """The same at every call, with many outcomes of each crash."""
    sweep(side, every=1, seeds=20)
