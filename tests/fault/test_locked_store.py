"""A store that knows of a lock keeps what it promises against programs without a database."""

from datetime import UTC, datetime, timedelta

import pytest
from fault_store import Fault, FaultStore
from fault_streams import MemoryTree
from fault_world import MONITOR, PREFIX, World, create, no_fence, small_files
from test_copy import THERE
from test_shred import opens, two_vaults

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Conflict, StoreError
from strongroom.engine import BackupRequest, Repository, backup
from strongroom.engine.locks import is_locked, lock, tell_time, told_time
from strongroom.engine.prune import prune
from strongroom.engine.shred import erase, shred
from strongroom.engine.store.memory import MemoryStore

NOON = datetime(2026, 2, 5, 12, 0, 0, tzinfo=UTC)
LATER = NOON + timedelta(days=9)


def promised(until: datetime | None = LATER) -> tuple[World, MemoryStore, Repository]:
    """A locked vault with one backup that is promised until then, by labels put later, and one that is not."""
    world, store = World(), MemoryStore()
    repository = create(store)
    for name in ("kept.1", "free.1"):
        world.backup(repository, name, small_files(3))
    if until is not None:
        repository.put_labels("kept", {"lock_until": api_timestamp(until)})
    lock(store, PREFIX)
    tell_time(store, PREFIX, NOON)
    return world, store, repository


def test_a_promised_root_is_not_deleted() -> None:
    """Neither by name nor by a prune that takes it for dead; what is not promised goes; the bytes stay whole."""
    world, _, repository = promised()
    with pytest.raises(Conflict) as error:
        repository.delete_root("kept.1")
    assert error.value.conflict_code == "6220"
    assert "2026-02-14T12:00:00" in error.value.message
    with pytest.raises(Conflict):
        prune(repository, dead=["kept.1"], monitor=MONITOR)
    world.delete(repository, "free.1")
    prune(repository, dead=[], monitor=MONITOR)
    assert world.problems(repository) == []


def test_it_goes_when_the_clock_in_the_store_has_passed_it() -> None:
    """Not by the machine's clock: only what the service told counts, and that only goes forward."""
    world, store, repository = promised()
    almost = LATER - timedelta(seconds=1)
    for at in (almost, NOON):
        tell_time(store, PREFIX, at)
        with pytest.raises(Conflict):
            repository.delete_root("kept.1")
    assert told_time(store, PREFIX) == almost
    assert len([*store.list(f"{PREFIX}promises/")]) == 1, "what it showed before is removed"
    tell_time(store, PREFIX, LATER)
    world.delete(repository, "kept.1")
    assert repository.root_names() == ["free.1"]


def test_a_lock_whose_clock_is_lost_keeps_everything_with_a_time() -> None:
    """Without the clock nothing is over."""
    _, store, repository = promised(NOON - timedelta(days=99))
    for info in [*store.list(f"{PREFIX}promises/")]:
        store.delete(info.name)
    with pytest.raises(Conflict):
        repository.delete_root("kept.1")
    repository.delete_root("free.1")


def test_without_a_lock_labels_keep_nothing() -> None:
    """A copy of a promised restore point in another vault is that vault's, and goes when it says so."""
    _, store, repository = promised()
    store.delete(f"{PREFIX}lock")
    assert not is_locked(store, PREFIX)
    repository.delete_root("kept.1")


def test_a_damaged_root_can_be_removed() -> None:
    """It restores nothing, and a repair has to put it again."""
    _, store, repository = promised()
    name = f"{repository.prefix}roots/kept.1"
    data = bytearray(store.read(name))
    data[-1] ^= 1
    store.delete(name)
    store.put(name, [data])
    repository.delete_root("kept.1")


def test_damaged_labels_take_no_promise_away() -> None:
    """The root can be restored, and what it was promised when it was made stands in itself."""
    _, store, repository = promised()
    labels = {"lock_until": api_timestamp(LATER)}
    request = BackupRequest(backup_id="early", generation=1, labels=labels)
    backup(repository, MemoryTree(small_files(3)), request, MONITOR, no_fence)
    repository.put_labels("early", {**labels, "name": "renamed"})
    name = f"{repository.prefix}labels/early.000001"
    store.delete(name)
    store.put(name, [b"damaged"])
    with pytest.raises(Conflict):
        repository.delete_root("early.1")


@pytest.mark.parametrize("verb", [shred, erase])
def test_keys_of_a_locked_vault_are_not_shredded(verb: object) -> None:
    """As long as it holds a root, also from above, where the whole store is meant: nothing is dropped there."""
    _, store = two_vaults()
    lock(store, "vaults/v/")
    before = [*store.list("")]
    for prefix in ("vaults/v/", "", "vaults/"):
        with pytest.raises(Conflict) as error:
            verb(store, prefix, MONITOR)  # type: ignore[operator]
        assert error.value.conflict_code == "6111"
    assert [*store.list("")] == before
    assert verb(store, THERE, MONITOR) > 0, "its neighbour is not locked"  # type: ignore[operator]


def test_an_empty_locked_vault_can_be_erased() -> None:
    """When its last root is gone nothing is promised any more, and the lock goes with the rest."""
    _, store, repository = promised(NOON - timedelta(days=1))
    for name in repository.root_names():
        repository.delete_root(name)
    assert erase(store, PREFIX, MONITOR) > 0
    assert [*store.list("")] == []
    assert not opens(store, PREFIX, repository.domain.id)


@pytest.mark.parametrize("crash", [False, True])
def test_time_is_told_whatever_call_fails(crash: bool) -> None:
    """Whichever call of the telling is lost, the clock shows the old or the new time, and telling again mends it."""
    for failing in range(1, 12):
        disk = MemoryStore()
        tell_time(disk, PREFIX, NOON)
        store = FaultStore(disk, Fault(at=failing, crash=crash, seed=failing))
        try:
            tell_time(store, PREFIX, LATER)
        except StoreError:
            assert told_time(disk, PREFIX) in (NOON, LATER)
            tell_time(disk, PREFIX, LATER)
        assert told_time(disk, PREFIX) == LATER
        if not store.reached:
            return
    raise AssertionError("it never came to its end")
