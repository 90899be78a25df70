"""A read that fails is remembered: writers do not rely on what failed, so the next backup repairs it (RULINGS 14)."""

import random

import pytest
from fault_store import copy_of
from fault_streams import random_files
from fault_world import MONITOR, World, create, reopen, restored
from test_damage import DAMAGES, SEED, flip
from test_prune_meets import View

from strongroom.base.errors import Corrupt, PackCorrupt
from strongroom.engine import ProcessSessions
from strongroom.engine.browse import read_file
from strongroom.engine.repository import Repository
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify


def one_tree() -> tuple[World, MemoryStore]:
    store, world = MemoryStore(), World()
    world.backup(create(store), "one.1", random_files(SEED, bytes_max=200_000))
    return world, store


def packs_of(store: MemoryStore) -> list[str]:
    return [info.name for info in store.list("") if "/packs/" in info.name]


def suspects(repository: Repository) -> set[str]:
    return {pack.hex() for pack in repository.load_index_list().suspect}


@pytest.mark.parametrize("full", [False, True])
def test_the_live_source_repairs_what_a_restore_met(full: bool) -> None:
    """Each pack damaged: a restore fails, verify names what is hit, a backup of the source, the OLD point is whole."""
    world, store = one_tree()
    for name in packs_of(store):
        broken = copy_of(store)
        flip(lambda _: 20)(broken, name)  # in the first segment
        repository = reopen(broken)
        with pytest.raises(Corrupt):
            restored(repository, "one.1")
        assert suspects(repository) == {name.rpartition("/")[2]}
        (finding, *_) = [f for f in verify(repository, None, deep=True, monitor=MONITOR).findings if f.kind == "pack"]
        assert (finding.name, finding.roots) == (name, ("one.1",))
        then = world.copy()
        then.backup(repository, "two.1", world.kept["one.1"], parent="one.1", full=full)
        assert then.problems(repository) == []
        assert restored(reopen(broken), "one.1") == world.kept["one.1"]
        assert verify(repository, None, deep=True, monitor=MONITOR).findings == ()
        then.prune(repository)
        assert name not in packs_of(broken)
        assert then.problems(reopen(broken)) == []


def test_a_backup_that_meets_damage_relies_on_none_of_it() -> None:
    """The parent is damaged and nobody knew: the backup comes back whole, or there is none, and the next one does."""
    world, store = one_tree()
    for name in packs_of(store):
        for at in (100, 1000, store.size(name) // 2):
            broken = copy_of(store)
            flip(lambda _, at=at: at)(broken, name)  # type: ignore[misc]
            repository = reopen(broken)
            try:
                restored_as = "two.1"
                World().backup(repository, "two.1", world.kept["one.1"], parent="one.1")
            except PackCorrupt:
                restored_as = "three.1"
                World().backup(repository, "three.1", world.kept["one.1"], parent="one.1")
            if suspects(repository):
                assert restored(reopen(broken), restored_as) == world.kept["one.1"], (name, at)


def test_a_read_that_another_copy_serves_is_remembered_too() -> None:
    """Two packs hold the chunk, one rots: the restore is right, and the rotten pack is suspect afterwards."""
    world, store = one_tree()
    repository = reopen(store)
    data = max(packs_of(store), key=store.size)
    repository.note_suspects([bytes.fromhex(data.rpartition("/")[2])])
    world.backup(repository, "two.1", world.kept["one.1"], full=True)
    repository.note_suspects([], cleared=repository.load_index_list().suspect)
    flip(lambda _: 1000)(store, data)
    assert restored(repository, "one.1") == world.kept["one.1"]
    assert restored(repository, "two.1") == world.kept["one.1"]
    assert suspects(repository) <= {data.rpartition("/")[2]}
    assert verify(repository, None, deep=True, monitor=MONITOR).roots == 2


def test_a_file_read_alone_remembers() -> None:
    """Browsing tells as well as restoring does."""
    world, store = one_tree()
    data = max(packs_of(store), key=store.size)
    broken = copy_of(store)
    DAMAGES["flip first"](broken, data)
    for at in range(16, store.size(data) - 2000, 5000):
        flip(lambda _, at=at: at)(broken, data)  # type: ignore[misc]
    repository = reopen(broken)
    failed = 0
    files = world.kept["one.1"]
    assert not isinstance(files, bytes)
    for path, content in files.items():
        try:
            assert b"".join(read_file(repository, "one.1", path)) == content
        except Corrupt:
            failed += 1
    assert failed
    assert suspects(repository) == {data.rpartition("/")[2]}


class _FlipsOnce(MemoryStore):
    """The first read of a pack's segment comes with a flipped bit; the store itself is whole."""

    def __init__(self, disk: MemoryStore) -> None:
        self._lock, self._objects = disk._lock, disk._objects
        self.flips = 1

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        super().read_into(name, offset, buffer)
        if self.flips and "/packs/" in name:
            self.flips -= 1
            buffer[len(buffer) // 2] ^= 1


def test_a_bit_that_flips_on_the_way_makes_nothing_suspect() -> None:
    """What reads well when it is looked at again is not held against the store."""
    world, store = one_tree()
    flipping = _FlipsOnce(store)
    repository = reopen(flipping)
    assert restored(repository, "one.1") == world.kept["one.1"]
    assert flipping.flips == 0
    assert repository.load_index_list().number == 0


def test_a_prune_at_any_call_of_a_failing_restore_does_no_harm() -> None:
    """A whole prune between any two store calls of a restore that meets damage: what is sound stays, and is noted."""
    calls = 0
    while True:
        world, disk = one_tree()
        sessions = ProcessSessions()
        repository = reopen(disk, sessions)
        world.backup(repository, "other.1", random.Random(SEED).randbytes(50_000))
        world.backup(repository, "gone.1", random.Random(SEED + 1).randbytes(50_000))
        world.delete(repository, "gone.1")
        damaged = max(packs_of(disk), key=disk.size)
        flip(lambda _: 1000)(disk, damaged)
        seen = 0

        def before(kind: str, name: str, world: World = world, own: Repository = repository, at: int = calls) -> None:
            nonlocal seen
            seen += 1
            if seen == at + 1:
                world.prune(own)

        with pytest.raises(Corrupt):
            restored(reopen(View(disk, before), sessions), "one.1")
        assert restored(reopen(disk), "other.1") == world.kept["other.1"]
        assert suspects(reopen(disk)) == {damaged.rpartition("/")[2]}, calls
        if seen <= calls:
            break
        calls += 1
    assert calls > 10
