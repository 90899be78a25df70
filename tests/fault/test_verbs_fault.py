"""Every verb with its N-th store operation failing, with everything failing from the N-th on, and with a crash at it.

After each run a new process opens what the disk holds: every restore point that was acknowledged comes back byte for
byte, whatever else is there can be restored too, a deep verify finds nothing, the verb runs again to its end, and a
prune leaves nothing behind that no restore point needs.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from fault_store import Fault, FaultStore, copy_of
from fault_world import BACKUPS, MONITOR, World, base, create, drain_pool, reopen, restored
from reliability import report

from strongroom.base.errors import Corrupt, StoreError, StoreFull, StoreTimeout
from strongroom.engine import Repository
from strongroom.engine.prune import INDEX_OBJECTS_MAX
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
SEEDS_LONG = 20
ERRORS: tuple[type[StoreError], ...] = (StoreError, StoreFull, StoreTimeout)


def run_restore(world: World, repository: Repository) -> None:
    assert [name for name in sorted(world.kept) if restored(repository, name) != world.kept[name]] == []


def run_prune(world: World, repository: Repository) -> None:
    world.prune(repository)


def run_delete(world: World, repository: Repository) -> None:
    world.delete(repository, "tree.1")


def run_verify(world: World, repository: Repository) -> None:
    report = verify(repository, list(world.kept), deep=True, monitor=MONITOR)
    if report.findings:
        raise Corrupt(reason="verify found damage", detail=str(report.findings))


VERBS: dict[str, Callable[[World, Repository], None]] = {
    **{name: backup.run for name, backup in BACKUPS.items()},
    "restore": run_restore,
    "prune": run_prune,
    "delete": run_delete,
    "verify": run_verify,
}


@dataclass(frozen=True)
class Run:
    """What a verb did under a fault: whether it failed, and the disk after it."""

    world: World
    disk: MemoryStore
    failed: bool
    reached: bool
    operations: int


def run(verb: str, fault: Fault | None) -> Run:
    kept, disk = base()
    world = kept.copy()
    store = FaultStore(copy_of(disk), fault)
    failed = False
    try:
        VERBS[verb](world, reopen(store))
    except (StoreError, Corrupt) as err:
        # An unreadable object may well be called damage. Success is what must never be reported wrongly.
        failed = True
        assert fault is not None, err
    operations = len(store.operations)
    assert store.open_writers == 0 or store.crashed
    drain_pool()
    assert len(store.operations) == operations, "a thread went on after the verb had ended"
    return Run(world, store.survivors(), failed, store.reached, operations)


def changed_objects(disk: MemoryStore) -> list[str]:
    """Objects never change after they are written."""
    before, now = base()[1], {info.name for info in disk.list("")}
    return [
        f"{info.name} was written over"
        for info in before.list("")
        if info.name in now and before.read(info.name) != disk.read(info.name)
    ]


def check(verb: str, done: Run) -> list[str]:
    """Everything this suite promises, for one run."""
    disk, world = done.disk, done.world
    repository = reopen(disk)
    found = world.problems(repository) + changed_objects(disk)
    for name in set(repository.root_names()) - world.kept.keys():
        if name.startswith("new.") and restored(repository, name) != BACKUPS[verb].content:
            found.append(f"{name} was not acknowledged, but is there with other bytes")
    if verb == "restore" and list(disk.list("")) != list(base()[1].list("")):
        found.append("a restore changed the repository")
    if verb != "verify":
        found += [f"verify: {finding}" for finding in verify(repository, None, deep=True, monitor=MONITOR).findings]
    VERBS[verb](world, repository)
    if verb in BACKUPS and not any(content is BACKUPS[verb].content for content in world.kept.values()):
        found.append("the second run did not complete")
    world.prune(repository)
    found += world.problems(repository)
    again = world.prune(repository)
    if again.packs_deleted or again.packs_waiting or again.packs_rewritten or again.roots_removed:
        found.append(f"the prune before left something: {again}")
    return found


def faults(verb: str, every: int, seeds: int) -> Iterator[Fault]:
    """Each N: once (early and late by turns, each class of error), from N on, and crashes."""
    operations = run(verb, None).operations
    for at in range(1, operations + 1):
        if (at + SEED) % every:
            continue
        error = ERRORS[at % len(ERRORS)]
        yield Fault(at=at, error=error)
        yield Fault(at=at, error=error, late=True)
        yield Fault(at=at, error=error, onwards=True, late=at % 2 == 0)
        for seed in range(seeds):
            yield Fault(at=at, crash=True, seed=seed)


def sweep(verb: str, *, every: int = 1, seeds: int) -> None:
    """Each fault, checked. A verb that was cut short by a crash and said that all is well is a silent success."""
    trials = failures = crashes = 0
    for fault in faults(verb, every, seeds):
        done = run(verb, fault)
        trials += 1
        failures += done.failed
        crashes += fault.crash and done.reached
        if fault.crash and done.reached:
            assert done.failed, fault
        found = check(verb, done)
        assert not found, (verb, fault, found)
    calls = run(verb, None).operations
    print(f"{verb}: {trials} faults at {calls} calls, {failures} of them failed the verb, seed {SEED}")
    assert trials
    if every == 1 and seeds >= SEEDS_LONG:
        report(f"faults {verb}", count=trials, seed=SEED, calls=calls, crashes=crashes, failed=failures)


def test_a_clean_run_needs_no_forgiveness() -> None:
    """Without a fault every verb succeeds and every promise holds; prune moves, sweeps and cleans in this data set."""
    for verb in VERBS:
        done = run(verb, None)
        assert not done.failed
        assert check(verb, done) == []
    world, disk = base()
    report = world.copy().prune(reopen(copy_of(disk)))
    assert report.packs_rewritten == 1
    assert report.packs_deleted >= 4
    assert report.lists_written >= 3


def test_many_index_objects_become_one() -> None:
    """Each backup adds one; a prune replaces them when they are many, and every chunk is still found."""
    store, world = MemoryStore(), World()
    repository = create(store)
    for number in range(INDEX_OBJECTS_MAX + 3):
        world.backup(repository, f"tree.{number}", {(b"file",): b"%d" % number * 1000})
    world.delete(repository, "tree.5")
    before = {info.name for info in store.list("") if "/index/" in info.name}
    assert len(before) > INDEX_OBJECTS_MAX
    world.prune(repository)
    after = {info.name for info in store.list("") if "/index/" in info.name}
    assert len(after) <= 4
    assert world.problems(repository) == []
    assert world.problems(reopen(store)) == []


def test_a_tiny_chunk_in_a_dense_segment_was_pruned_away() -> None:
    """A pack of which only some bytes are needed stays, however little its segment takes in the store."""
    store, world = MemoryStore(), World()
    repository = create(store)
    dense = {(b"%d" % number,): b"%d" % number + bytes(100_000) for number in range(40)}
    world.backup(repository, "whole.1", {**dense, (b"tiny",): b"needed"})
    world.backup(repository, "rest.1", {(b"tiny",): b"needed"})
    world.delete(repository, "whole.1")
    assert world.prune(repository).live_bytes > 0
    world.prune(repository)
    assert world.problems(reopen(store)) == []


@pytest.mark.parametrize("verb", ["restore", "delete", "verify"])
def test_every_fault_of_a_reader(verb: str) -> None:
    """Restore and verify change nothing that counts, delete takes its root or not: at every N."""
    sweep(verb, every=2, seeds=1)


@pytest.mark.parametrize("verb", ["incremental tree", "first disk", "prune"])
def test_every_fault_of_a_writer(verb: str) -> None:
    """Backup: at every N; prune, which has the most: at every second."""
    sweep(verb, every=2 if verb == "prune" else 1, seeds=1)


@pytest.mark.parametrize("verb", sorted(BACKUPS.keys() - {"incremental tree", "first disk"}))
def test_faults_of_each_kind_of_backup(verb: str) -> None:
    """First, incremental with a changed-block list, full; of a tree and of a disk: at every third N."""
    sweep(verb, every=3, seeds=1)


def test_a_changed_block_list_is_what_these_backups_use() -> None:
    """The incremental disk reads the blocks that changed, the full one reads all: both paths are under fault."""
    read = {}
    for name in ("incremental disk", "full disk"):
        kept, disk = base()
        repository = reopen(copy_of(disk))
        BACKUPS[name].run(kept.copy(), repository)
        read[name] = repository.load_root("new.1").report.bytes_read
    assert read == {"incremental disk": 131_072, "full disk": 393_216}


@pytest.mark.long
@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_fault_many_times(verb: str) -> None:
    """The same with many outcomes of each crash."""
    sweep(verb, seeds=SEEDS_LONG)
