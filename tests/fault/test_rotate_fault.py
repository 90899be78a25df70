"""Rotating the master key: whatever happens on the way, every domain opens with at least one of the two keys."""

import os
from functools import cache

import pytest
from fault_store import Fault, FaultStore, copy_of
from fault_world import MASTER, MONITOR, POOL, World, restored, small_files
from reliability import report

from strongroom.base.errors import Corrupt, KeyWrong, ObjectMissing, StoreError
from strongroom.engine import DomainSettings, MasterKey, create_repository, open_repository
from strongroom.engine.keys import KEY_BYTES
from strongroom.engine.rotate import drop_wraps, find_closed, rewrap
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
NEW = MasterKey(b"n" * KEY_BYTES)
VAULTS = ("vaults/p/one/", "vaults/p/two/", "vaults/q/three/")


@cache
def _three_vaults() -> MemoryStore:
    store = MemoryStore()
    for prefix in VAULTS:
        repository = create_repository(store, prefix, MASTER, DomainSettings(), pool=POOL)
        World().backup(repository, "tree.1", small_files(1))
    return store


def opens(store: Store, prefix: str, key: MasterKey) -> bool:
    """The key opens the vault, and its restore point comes back."""
    try:
        repository = open_repository(store, prefix, key, pool=POOL)
    except (KeyWrong, ObjectMissing, Corrupt):
        return False
    assert restored(repository, "tree.1") == small_files(1)
    return True


def test_after_a_rotation_both_keys_open_and_then_the_new_one_only() -> None:
    """`rewrap` adds, `drop_wraps` removes; running either again changes nothing."""
    store = copy_of(_three_vaults())
    report = rewrap(store, MASTER, NEW, MONITOR)
    assert (report.added, len(report.wrapped), report.failed) == (3, 3, ())
    assert all(opens(store, prefix, key) for prefix in VAULTS for key in (MASTER, NEW))
    assert rewrap(store, MASTER, NEW, MONITOR).added == 0
    assert drop_wraps(store, NEW, MONITOR).removed == 3
    assert drop_wraps(store, NEW, MONITOR).removed == 0
    assert all(opens(store, prefix, NEW) and not opens(store, prefix, MASTER) for prefix in VAULTS)


def test_a_second_rotation_follows_the_first() -> None:
    """Rotated twice, the three keys open, the newest wrap is that of the last."""
    store, third = copy_of(_three_vaults()), MasterKey(b"3" * KEY_BYTES)
    rewrap(store, MASTER, NEW, MONITOR)
    assert rewrap(store, NEW, third, MONITOR).added == 3
    assert all(opens(store, prefix, key) for prefix in VAULTS for key in (MASTER, NEW, third))


@pytest.mark.parametrize("verb", ["rewrap", "drop"])
def test_every_fault_and_crash_leaves_every_domain_readable(verb: str) -> None:
    """At every N: a failure, a failure from there on, a crash. The next run completes."""

    def run(store: Store) -> None:
        if verb == "rewrap":
            rewrap(store, MASTER, NEW, MONITOR)
        else:
            drop_wraps(store, NEW, MONITOR)

    before = copy_of(_three_vaults())
    if verb == "drop":
        rewrap(before, MASTER, NEW, MONITOR)
    sure = MASTER if verb == "rewrap" else NEW
    counting = FaultStore(copy_of(before))
    run(counting)
    trials = 0
    for at in range(1, len(counting.operations) + 1):
        faults = [Fault(at=at), Fault(at=at, late=True), Fault(at=at, onwards=True)]
        for fault in (*faults, *(Fault(at=at, crash=True, seed=SEED + n) for n in range(3))):
            store = FaultStore(copy_of(before), fault)
            try:
                run(store)
            except StoreError:
                pass
            else:
                assert not (fault.crash and store.reached)
            disk = store.survivors()
            assert all(opens(disk, prefix, sure) for prefix in VAULTS), fault
            run(disk)
            assert all(opens(disk, prefix, NEW) for prefix in VAULTS), fault
            trials += 1
    print(f"{verb}: {trials} faults, seed {SEED}")
    assert trials > 50
    report("faults rotate", count=trials, seed=SEED, calls=len(counting.operations))


def test_a_domain_of_another_key_is_told_before_and_left_alone() -> None:
    """What does not open is named, with the reason; the others are wrapped all the same, and its wrap stays."""
    store = copy_of(_three_vaults())
    create_repository(store, "vaults/p/other/", MasterKey(b"o" * KEY_BYTES), DomainSettings(), pool=POOL)
    ((place, reason),) = find_closed(store, MASTER)
    assert place.prefix == "vaults/p/other/"
    assert "master key" in reason
    report = rewrap(store, MASTER, NEW, MONITOR)
    assert (report.added, [failed.prefix for failed, _ in report.failed]) == (3, ["vaults/p/other/"])
    report = drop_wraps(store, NEW, MONITOR)
    assert (report.removed, [failed.prefix for failed, _ in report.failed]) == (3, ["vaults/p/other/"])
    open_repository(store, "vaults/p/other/", MasterKey(b"o" * KEY_BYTES), pool=POOL)


def test_a_damaged_wrap_does_not_hide_an_older_one() -> None:
    """A flipped bit in the newest wrap: the key that opens the one before goes on, and is wrapped anew."""
    store = copy_of(_three_vaults())
    (name,) = [info.name for info in store.list(VAULTS[0]) if info.name.endswith("/keys/0")]
    data = bytearray(store.read(name))
    data[-1] ^= 1
    store.put(name[:-1] + "1", [bytes(data)])
    assert opens(store, VAULTS[0], MASTER)
    assert rewrap(store, MASTER, NEW, MONITOR).failed == ()
    assert opens(store, VAULTS[0], NEW)
