"""Shredding and erasing a vault: whatever crashes on the way, nothing opens once anything else than keys is gone."""

import os

import pytest
from fault_store import Fault, FaultStore, copy_of
from fault_world import MASTER, MONITOR, POOL, World, create, no_fence, small_files
from test_copy import OTHER, THERE, received

from strongroom.base.errors import KeyWrong, ObjectMissing, StoreError
from strongroom.engine import open_repository
from strongroom.engine.catalogue import find_domains
from strongroom.engine.copy import copy
from strongroom.engine.rotate import find_closed, rewrap
from strongroom.engine.shred import erase, shred
from strongroom.engine.store.memory import MemoryStore

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))


def two_vaults() -> tuple[World, MemoryStore]:
    """One store, two vaults: the second holds a replica of the first's domain beside nothing of its own."""
    world, store = World(), MemoryStore()
    source = create(store)
    world.backup(source, "tree.1", small_files(1))
    copy(source, store, THERE, OTHER, None, MONITOR, no_fence)
    return world, store


def opens(store: MemoryStore, prefix: str, domain: bytes) -> bool:
    try:
        open_repository(store, prefix, MASTER, domain_id=domain)
    except (ObjectMissing, KeyWrong):
        return False
    return True


def test_a_shred_leaves_nothing_that_opens_and_the_replica_whole() -> None:
    """Every object but the keys is still there and useless; the other vault's copy is read as before."""
    world, store = two_vaults()
    place = next(place for place in find_domains(store) if place.prefix == "vaults/v/")
    before = len([*store.list("vaults/v/")])
    assert shred(store, "vaults/v/", MONITOR) == 1
    assert shred(store, "vaults/v/", MONITOR) == 0
    assert len([*store.list("vaults/v/")]) == before - 2, "the wrap and its digest"
    assert not opens(store, "vaults/v/", place.id)
    there = open_repository(store, THERE, OTHER, domain_id=place.id, pool=POOL)
    assert world.problems(there) == []


def test_a_shredded_vault_holds_no_rotation_up() -> None:
    """There is nothing to rotate in it; the others are rotated."""
    _, store = two_vaults()
    shred(store, THERE, MONITOR)
    assert find_closed(store, MASTER) == []
    report = rewrap(store, MASTER, OTHER, MONITOR)
    assert (report.added, report.failed) == (1, ())


@pytest.mark.parametrize("verb", [shred, erase])
def test_every_fault_of_a_shred(verb: object) -> None:
    """At each store call: keys go first, success is never reported wrongly, the next attempt ends it."""
    world, original = two_vaults()
    place = next(place for place in find_domains(original) if place.prefix == "vaults/v/")
    names = {info.name for info in original.list("vaults/v/")}
    counting = FaultStore(copy_of(original))
    verb(counting, "vaults/v/", MONITOR)  # type: ignore[operator]
    trials = 0
    for at in range(1, len(counting.operations) + 1):
        for fault in (Fault(at=at), Fault(at=at, late=True), Fault(at=at, onwards=True), Fault(at=at, crash=True)):
            store = FaultStore(copy_of(original), fault)
            with pytest.raises(StoreError):
                verb(store, "vaults/v/", MONITOR)  # type: ignore[operator]
            disk = store.survivors()
            gone = names - {info.name for info in disk.list("vaults/v/")}
            if any("/keys/" not in name and "/digests/keys." not in name for name in gone):
                assert not opens(disk, "vaults/v/", place.id), fault
            verb(disk, "vaults/v/", MONITOR)  # type: ignore[operator]
            assert not opens(disk, "vaults/v/", place.id)
            if verb is erase:
                assert [*disk.list("vaults/v/")] == []
            replica = open_repository(disk, THERE, OTHER, domain_id=place.id, pool=POOL)
            assert world.problems(replica) == [], fault
            trials += 1
    print(f"{trials} faults in {len(counting.operations)} calls, seed {SEED}")


def test_a_replica_brings_a_shredded_vault_back() -> None:
    """Copied back from where it was replicated, everything opens again: shred every replica to be rid of it."""
    world, store = two_vaults()
    place = next(place for place in find_domains(store) if place.prefix == "vaults/v/")
    erase(store, "vaults/v/", MONITOR)
    replica = open_repository(store, THERE, OTHER, domain_id=place.id, pool=POOL)
    report = copy(replica, store, "vaults/v/", MASTER, None, MONITOR, no_fence)
    assert report.roots_copied == ("tree.1",)
    back = open_repository(store, "vaults/v/", MASTER, domain_id=place.id, pool=POOL)
    assert world.problems(back) == []
    assert received(store, back).root_names() == ["tree.1"]
