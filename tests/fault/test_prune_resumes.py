"""A prune that is killed, or that finds no room, at each of its store calls: what was done stays done, nothing is lost.

The world has what makes a prune work: dead packs, packs under half live, and many small ones that become one.
"""

import random
from collections.abc import Sequence
from functools import cache

import pytest
from fault_store import Crashed, Fault, FaultStore, copy_of
from fault_world import MONITOR, World, create, drain_pool, reopen

from strongroom.base.errors import StoreFull
from strongroom.base.streams import SilentMonitor
from strongroom.engine.prune import plan, prune
from strongroom.engine.store.base import Buffer
from strongroom.engine.store.memory import MemoryStore, MemoryWriter
from strongroom.engine.verify import verify

PARTS = 3  # of the kills, so that they run beside each other
INCREMENTS = 8  # each leaves a small pack of data and one of metadata


@cache
def base() -> tuple[World, MemoryStore]:
    store, world = MemoryStore(), World()
    repository = create(store)
    chance = random.Random(1)
    kept, dead = chance.randbytes(30_000), chance.randbytes(128 * 1024)
    world.backup(repository, "half.1", {(b"kept",): kept, (b"big",): chance.randbytes(120_000)})
    world.backup(repository, "dead.1", dead)
    world.backup(repository, "rest.1", {(b"kept",): kept}, parent="half.1")
    for number in range(INCREMENTS):
        world.backup(repository, f"small-{number}.1", {(b"file",): chance.randbytes(5_000 + number)})
    world.delete(repository, "half.1")
    world.delete(repository, "dead.1")
    return world, store


def packs(store: MemoryStore) -> dict[str, int]:
    return {info.name: info.size for info in store.list("") if "/packs/" in info.name}


def sound(world: World, store: MemoryStore) -> None:
    """Every restore point is there, and every byte of it reads and is what it was."""
    repository = reopen(store)
    assert set(repository.root_names()) == set(world.kept)
    assert verify(repository, None, deep=True, monitor=MONITOR).findings == ()


@cache
def undisturbed() -> tuple[dict[str, int], dict[str, int], int]:
    """(packs before, packs after a prune that nobody disturbs, store calls it made)."""
    world, original = base()
    disk = FaultStore(copy_of(original))
    world.copy().prune(reopen(disk))
    return packs(original), packs(disk.inner), len(disk.operations)


def test_a_prune_does_what_its_plan_says() -> None:
    """Exactly the packs of the plan go, the bytes freed are those promised, and a second plan has nothing left."""
    world, original = base()
    store = copy_of(original)
    told = plan(reopen(store), dead=(), monitor=MONITOR)
    assert packs(store) == packs(original)
    actions = {d.action for d in told.decisions}
    assert actions == {"condemn", "move", "merge"}
    before, report = packs(store), world.copy().prune(reopen(store))
    after = packs(store)
    goes = {d.pack.id.hex() for d in told.decisions}
    assert {name.rpartition("/")[2] for name in before.keys() - after.keys()} == goes
    freed = sum(before.values()) - sum(after.values())
    assert abs(freed - told.bytes_freed) < 4096  # footers, and what a new pack compresses otherwise
    assert report.packs_deleted == len(goes)
    assert report.packs_rewritten == sum(d.action in ("move", "merge") for d in told.decisions)
    assert len(after) < len(before) - 2 * INCREMENTS
    again = plan(reopen(store), dead=(), monitor=MONITOR)
    assert (again.decisions, again.bytes_freed, again.bytes_moved) == ((), 0, 0)
    sound(world, store)


@pytest.mark.parametrize("part", range(PARTS))
def test_what_was_moved_is_not_moved_again(part: int) -> None:
    """Killed at each call: packs that were durable stay and are used, and all in all no more is written than once."""
    world, original = base()
    before, after, calls = undisturbed()
    once = sum(size for name, size in after.items() if name not in before)
    adopted = 0
    for at in range(1 + part, calls + 1, PARTS):
        disk = FaultStore(copy_of(original), Fault(at=at, crash=True, seed=at))
        with pytest.raises(Crashed):
            world.copy().prune(reopen(disk))
        drain_pool()
        survivors = disk.survivors()
        moved = packs(survivors).keys() - before.keys()
        report = world.copy().prune(reopen(survivors))
        adopted += report.packs_adopted
        found = packs(survivors)
        assert moved <= found.keys(), at
        assert sum(size for name, size in found.items() if name not in before) <= once + 64, at
        assert not before.keys() & found.keys() - after.keys(), at
        assert plan(reopen(survivors), dead=(), monitor=MONITOR).decisions == ()
        sound(world, survivors)
    assert world.problems(reopen(survivors)) == []
    print(f"{calls} calls, {adopted} packs of this part's kills were taken over that no index object named")
    assert adopted


class Disk(MemoryStore):
    """Its N-th write does not fit, nor any later one if it stays `full`. Deleting always works."""

    def __init__(self, at: int = 0, *, full: bool = False) -> None:
        super().__init__()
        self.at, self.full, self.writes = at, full, 0

    def room(self, name: str) -> None:
        with self._lock:
            self.writes += 1
            fits = self.writes < self.at if self.full else self.writes != self.at
        if self.at and not fits:
            raise StoreFull(name=name)

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self.room(name)
        super().put(name, data)

    def writer(self, name: str) -> MemoryWriter:
        return DiskWriter(self, name)


class DiskWriter(MemoryWriter):
    def __init__(self, disk: Disk, name: str) -> None:
        super().__init__(disk, name)
        self._disk, self._called = disk, name

    def write_at(self, offset: int, data: Buffer) -> None:
        self._disk.room(self._called)
        super().write_at(offset, data)

    def commit(self) -> None:
        self._disk.room(self._called)
        super().commit()


def disk_of(store: MemoryStore) -> Disk:
    disk = Disk()
    for info in store.list(""):
        disk.put(info.name, [store.read(info.name)])
    disk.writes = 0
    return disk


@pytest.mark.parametrize("full", [False, True])
def test_no_room_for_any_of_its_writes(full: bool) -> None:
    """Once, or from there on: nothing is lost; whatever list fits, its dead packs go; with room the next ends it."""
    world, original = base()
    _, after, _ = undisturbed()
    counted = disk_of(original)
    world.copy().prune(reopen(counted))
    freed_dead = 0
    for at in range(1, counted.writes + 1):
        disk = disk_of(original)
        disk.at, disk.full = at, full
        try:
            report = world.copy().prune(reopen(disk))
        except StoreFull:
            assert at == 1 or disk.writes >= at
        else:
            freed_dead += report.packs_deleted > 0
            assert report.postponed or plan(reopen(disk), dead=(), monitor=MONITOR).decisions == ()
        disk.at = 0
        sound(world, disk)
        if at > 1:
            assert len(packs(disk)) < len(packs(original)), at  # the first list is written: the dead packs went
        world.copy().prune(reopen(disk))
        world.copy().prune(reopen(disk))
        assert plan(reopen(disk), dead=(), monitor=MONITOR).decisions == ()
        assert sum(packs(disk).values()) <= sum(after.values()) + 4096, at
        sound(world, disk)
    print(f"{counted.writes} writes, {freed_dead} prunes freed what they could")
    assert freed_dead > 0


def test_progress_is_told() -> None:
    """The monitor hears of bytes that only grow, of a total that is reached, and can stop a prune anywhere."""
    world, original = base()
    heard: list[tuple[int, int, int]] = []

    class Listener(SilentMonitor):
        def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
            heard.append((bytes_done, bytes_total, entries_done))

    prune(reopen(copy_of(original)), dead=(), monitor=Listener())
    done = [row[0] for row in heard]
    assert done == sorted(done)
    assert 0 < done[-1] <= heard[-1][1]
    assert done[-1] * 10 > heard[-1][1] * 8
    assert heard[-1][2] > len(world.kept)
