"""Rebuild: the index comes back from packs whatever was lost of it and whatever happens on the way."""

import itertools
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import reliability
from fault_store import Fault, FaultStore, copy_of
from fault_world import MONITOR, PREFIX, World, base, create, reopen, small_files

from strongroom.base.errors import Corrupt, IndexIncomplete, StoreError
from strongroom.engine import rebuild as rebuild_module
from strongroom.engine.catalogue import find_domains, list_points
from strongroom.engine.rebuild import rebuild
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.overlay import OverlayStore
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))


def damaged(*damages: Callable[[MemoryStore], None]) -> tuple[World, MemoryStore]:
    world, disk = base()
    store = copy_of(disk)
    for damage in damages:
        damage(store)
    return world.copy(), store


def index_names(store: MemoryStore) -> tuple[list[str], list[str]]:
    """(lists, objects), ascending."""
    names = [info.name for info in store.list("") if "/index/" in info.name]
    return [name for name in names if "." not in name], [name for name in names if "." in name]


def flip(store: MemoryStore, name: str) -> None:
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 1
    store.delete(name)
    store.put(name, [bytes(data)])


def lose_everything(store: MemoryStore) -> None:
    for name in itertools.chain(*index_names(store)):
        store.delete(name)


def lose_lists(store: MemoryStore) -> None:
    for name in index_names(store)[0]:
        store.delete(name)


def flip_list(store: MemoryStore) -> None:
    flip(store, index_names(store)[0][-1])


def flip_object(store: MemoryStore) -> None:
    flip(store, index_names(store)[1][0])


def flip_all_objects(store: MemoryStore) -> None:
    for name in index_names(store)[1]:
        flip(store, name)


def lose_object(store: MemoryStore) -> None:
    store.delete(index_names(store)[1][-1])


def lose_listed_object(store: MemoryStore) -> None:
    repository = reopen(store)
    before = repository.load_index_list()
    names = tuple(repository.index_object_names(before))
    repository.put_index_list(replace(before, number=before.number + 1, objects=names))
    lose_object(store)


DAMAGES: dict[str, Callable[[MemoryStore], None]] = {
    function.__name__: function
    for function in (
        lose_everything,
        lose_lists,
        flip_list,
        flip_object,
        flip_all_objects,
        lose_object,
        lose_listed_object,
    )
}


def problems(world: World, store: MemoryStore) -> list[str]:
    """After a rebuild: all comes back, verify agrees, and backup and prune go on."""
    repository = reopen(store)
    found = world.problems(repository)
    found += [str(finding) for finding in verify(repository, None, deep=True, monitor=MONITOR).findings]
    report = world.backup(repository, "after.1", small_files(1))
    if report.bytes_new:
        found.append(f"a backup of known files stored {report.bytes_new} bytes: the index does not know them")
    for _ in range(2):
        world.prune(repository)
    return found + world.problems(reopen(store))


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_was_lost_of_the_index_comes_back(damage: str) -> None:
    """Objects and lists, flipped or gone, one or all: every restore point is readable again and writers go on."""
    world, store = damaged(DAMAGES[damage])
    packs = [info for info in store.list("") if "/packs/" in info.name]
    report = rebuild(reopen(store))
    assert report.was_sound == (damage == "lose_object")  # an object no list names yet leaves no trace but its packs
    assert report.packs_damaged == ()
    assert [info for info in store.list("") if "/packs/" in info.name] == packs
    assert report.packs_kept + report.packs_read == len(packs)
    assert problems(world, store) == []
    assert rebuild(reopen(store)).was_sound


def test_a_sound_index_stays_as_it_is() -> None:
    """Nothing is written where nothing is wrong."""
    world, store = damaged()
    before = list(store.list(""))
    report = rebuild(reopen(store))
    assert report.was_sound
    assert report.packs_read == 0
    assert list(store.list("")) == before
    assert problems(world, store) == []


def test_small_index_objects_are_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the footers of one index object: many packs become many objects."""
    monkeypatch.setattr(rebuild_module, "OBJECT_CHUNKS_MAX", 1)
    world, store = damaged(lose_everything)
    report = rebuild(reopen(store))
    assert report.objects_written == report.packs_read > 3
    assert problems(world, store) == []


@pytest.mark.parametrize("damage", ["lose_everything", "flip_list", "flip_all_objects"])
def test_every_fault_and_crash_on_the_way(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The N-th operation fails, all from the N-th on fail, or the machine dies there: the next run completes."""
    monkeypatch.setattr(rebuild_module, "OBJECT_CHUNKS_MAX", 2)  # so that there is something to resume
    counting = FaultStore(damaged(DAMAGES[damage])[1])
    rebuild(reopen(counting))
    operations = len(counting.operations)
    trials = resumed = 0
    for at in range(1, operations + 1):
        for fault in (
            Fault(at=at),
            Fault(at=at, late=True),
            Fault(at=at, onwards=True),
            Fault(at=at, crash=True, seed=SEED + at),
        ):
            world, disk = damaged(DAMAGES[damage])
            store = FaultStore(disk, fault)
            try:
                rebuild(reopen(store))
            except (StoreError, Corrupt):
                pass
            else:
                assert not (fault.crash and store.reached), fault
            report = rebuild(reopen(store.survivors()))
            resumed += report.packs_kept > 0
            assert report.packs_damaged == ()
            assert world.problems(reopen(store.survivors())) == [], fault
            trials += 1
    print(f"rebuild after {damage}: {trials} faults, {resumed} runs went on from an earlier one, seed {SEED}")
    assert resumed > trials // 10
    reliability.report("faults rebuild", count=trials, seed=SEED, calls=operations, resumed=resumed)


def test_an_overlay_rebuilds_without_writing() -> None:
    """`recover` works on a store it must not change."""
    world, store = damaged(lose_everything)
    before = {info: store.read(info.name) for info in store.list("")}
    overlay = OverlayStore(store)
    with pytest.raises(IndexIncomplete):
        world.problems(reopen(overlay))
    rebuild(reopen(overlay))
    assert world.problems(reopen(overlay)) == []
    assert {info: store.read(info.name) for info in store.list("")} == before


# --- the catalogue ---


def test_the_catalogue_knows_every_root() -> None:
    """Domains are found by their objects; every root is complete and counts when nothing is wrong."""
    world, store = damaged()
    (place,) = find_domains(store)
    repository = reopen(store)
    assert (place.prefix, place.id) == (PREFIX, repository.domain.id)
    points = list_points(repository, check=True)
    assert {point.name for point in points} == world.kept.keys()
    assert {(point.state, point.counts, point.reason) for point in points} == {("complete", True, "")}


def test_the_highest_complete_generation_is_the_backup() -> None:
    """RULINGS 7: a higher generation whose chunks are lost does not count; the reason is told."""
    store, world = MemoryStore(), World()
    repository = create(store)
    world.backup(repository, "one.1", {(b"a",): b"first" * 100})
    world.backup(repository, "one.2", {(b"a",): b"second" * 100})
    before = {info.name for info in store.list("") if "/packs/" in info.name}
    world.backup(repository, "one.3", {(b"a",): os.urandom(5000)})
    new = sorted({info.name for info in store.list("") if "/packs/" in info.name} - before)
    sound = {point.name: point for point in list_points(repository, check=True)}
    assert sound["one.3"].counts
    assert sound["one.2"].reason == "generation 3 took its place"
    for name in new:
        store.delete(name)
    points = {point.name: point for point in list_points(reopen(store), check=True)}
    assert points["one.3"].state == "incomplete"
    assert points["one.3"].reason
    assert points["one.2"].counts
    assert not points["one.1"].counts


def test_each_lost_pack_is_told_by_the_roots_it_hits() -> None:
    """A restore point is called complete exactly when it comes back, for the loss of each pack."""
    _, store = damaged()
    for lost in [info.name for info in store.list("") if "/packs/" in info.name]:
        disk = copy_of(store)
        disk.delete(lost)
        world = base()[0].copy()
        repository = reopen(disk)
        for point in list_points(repository, check=True):
            alone = replace(world, kept={point.name: world.kept[point.name]})
            try:
                whole = alone.problems(_Only(repository, point.name)) == []  # type: ignore[arg-type]
            except (Corrupt, StoreError):
                whole = False
            assert (point.state == "complete") == whole, (lost, point)


class _Only:
    """A repository with one root."""

    def __init__(self, repository: object, name: str) -> None:
        self._repository = repository
        self.root_names = lambda: [name]

    def __getattr__(self, name: str) -> object:
        return getattr(self._repository, name)


def test_a_root_that_does_not_open_is_listed() -> None:
    """Damage is shown, never hidden, and the other restore points stay."""
    world, store = damaged()
    name = next(info.name for info in store.list("") if "/roots/tree.1" in info.name)
    flip(store, name)
    points = {point.name: point for point in list_points(reopen(store), check=True)}
    assert points.keys() == world.kept.keys()
    assert points["tree.1"].state == "unreadable"
    assert "authenticate" in points["tree.1"].reason
    assert points["disk.1"].counts
