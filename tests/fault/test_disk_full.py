"""A disk that runs full at every write of a backup and a prune: a real filesystem of a few megabytes.

The space left is varied page by page, so that each write of the verb is once the one that does not fit. Nothing that
was acknowledged is lost, the verb says StoreFull and not success, a prune frees space on a disk without any, and with
more room the verb runs to its end.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_store import Fault, FaultStore, copy_of
from fault_world import BACKUPS, MONITOR, World, base, create, reopen, restored, run_backup
from reliability import report

from strongroom.base.errors import StoreFull
from strongroom.engine import Repository
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.posix import TEMPORARY_PREFIX, PosixStore
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
DISK_BYTES = 4 << 20
PAGE_BYTES = 4096
PIECE = bytes(PAGE_BYTES)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted tmpfs of DISK_BYTES."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={DISK_BYTES},mode=0700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small filesystem cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, free_bytes: int) -> Path:
    """Use up the disk except for `free_bytes`."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(PIECE):
                pass
        except OSError:
            pass
        file.truncate(max(file.tell() // PAGE_BYTES * PAGE_BYTES - free_bytes, 0))
    return path


def copied(disk: Path, number: int) -> tuple[PosixStore, Path]:
    """The world's objects in a new store on the disk; those of the run before are removed."""
    _, original = base()
    subprocess.run(["rm", "-rf", disk / f"store-{number - 1}", disk / "filler"], check=True)
    folder = disk / f"store-{number}"
    store = PosixStore(str(folder))
    for info in original.list(""):
        store.put(info.name, [original.read(info.name)])
    return store, folder


def problems(world: World, store: PosixStore | MemoryStore) -> list[str]:
    repository = reopen(store)
    found = world.problems(repository)
    return found + [str(finding) for finding in verify(repository, None, deep=True, monitor=MONITOR).findings]


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{TEMPORARY_PREFIX}*"))


class FullStore(FaultStore):
    """From its N-th write on there is no room: what is written fails, what is read or deleted does not."""

    def __init__(self, disk: MemoryStore, at: int) -> None:
        super().__init__(disk, Fault(at=1 << 60))  # never: it decides itself
        self._room = at - 1
        self.refused = 0

    def _enter(self, kind: str, name: str) -> bool:
        super()._enter(kind, name)
        if kind not in ("put", "writer", "write_at", "commit"):
            return False
        self._room -= 1
        self.refused += self._room < 0
        return self._room < 0

    def _fail(self, name: str) -> None:
        raise StoreFull(name=name)


def run_prune(world: World, repository: Repository) -> None:
    """Two restore points go, so that there is more to free than the prune needs."""
    for name in ("tree.1", "disk.1"):
        world.kept.pop(name, None)
    world.prune(repository)


VERBS: dict[str, Callable[[World, Repository], None]] = {
    **{name: backup.run for name, backup in BACKUPS.items()},
    "prune": run_prune,
}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_write_of_a_verb_is_once_the_first_without_room(verb: str) -> None:
    """From each write on: a backup says StoreFull or is whole, a prune frees what it can; with room each completes."""
    at = refused = 0
    while True:
        at += 1
        kept, disk = base()
        world, store = kept.copy(), FullStore(copy_of(disk), at)
        try:
            VERBS[verb](world, reopen(store))
        except StoreFull:
            refused += 1
        assert store.open_writers == 0
        assert problems(world, store.inner) == [], (verb, at)
        VERBS[verb](world, reopen(store.inner))
        world.prune(reopen(store.inner))
        assert world.prune(reopen(store.inner)).packs_deleted == 0
        assert problems(world, store.inner) == [], (verb, at)
        if not store.refused:
            break
    print(f"{verb}: {at - 1} writes, {refused} of them failed the verb")
    assert at > 4
    report("disk full", count=at - 1, seed=SEED, failed=refused)


def test_a_backup_on_a_disk_that_runs_full(small_disk: Path) -> None:
    """At every page: StoreFull, nothing acknowledged is lost, no leftovers; with room it completes."""
    refused = 0
    for number in range(1000):
        kept, _ = base()
        world = kept.copy()
        store, folder = copied(small_disk, number)
        filler = fill(small_disk, number * PAGE_BYTES)
        try:
            run_backup(world, reopen(store))
        except StoreFull:
            refused += 1
        else:
            assert "new.1" in world.kept
            break
        assert "new.1" not in world.kept
        assert problems(world, store) == [], number
        assert leftovers(folder) == []
        filler.unlink()
        run_backup(world, reopen(store))
        assert problems(world, store) == [], number
    print(f"{refused} sizes of free space were too small")
    assert refused > 10
    report("disk full, real", count=refused, seed=SEED)


def test_a_prune_on_a_disk_that_is_full(small_disk: Path) -> None:
    """With no page free, or few, it still frees what is dead."""
    for number in range(60):
        kept, _ = base()
        world = kept.copy()
        store, _ = copied(small_disk, number)
        doomed = ("tree.1", "disk.1")
        for name in doomed:
            world.kept.pop(name)
        filler = fill(small_disk, number * PAGE_BYTES)
        done = world.prune(reopen(store))
        assert done.roots_removed == len(doomed)
        assert done.packs_deleted > 0
        assert done.bytes_freed > 250_000
        assert problems(world, store) == [], number
        filler.unlink()
        world.prune(reopen(store))
        assert world.prune(reopen(store)).packs_deleted == 0
        assert problems(world, store) == [], number


def test_moving_waits_for_room(small_disk: Path) -> None:
    """A half dead pack whose live part does not fit stays, the report says why, and the next prune moves it."""
    store, world = PosixStore(str(small_disk / "store")), World()
    repository = create(store)
    kept = os.urandom(40_000)
    world.backup(repository, "half.1", {(b"kept",): kept, (b"big",): os.urandom(130_000)})
    world.backup(repository, "rest.1", {(b"kept",): kept}, parent="half.1")
    world.kept.pop("half.1")
    filler = fill(small_disk, 0)
    done = world.prune(reopen(store))
    assert "no room" in done.postponed
    assert (done.roots_removed, done.packs_rewritten) == (1, 0)
    assert problems(world, store) == []
    assert leftovers(small_disk) == []
    filler.unlink()
    done = world.prune(reopen(store))
    assert (done.packs_rewritten, done.postponed) == (1, "")
    assert done.bytes_freed > 130_000
    assert problems(world, store) == []


def test_prune_makes_room_for_the_backup_that_was_refused(small_disk: Path) -> None:
    """The way out of a full disk, as an operator takes it: delete a restore point, prune, back up again."""
    kept, _ = base()
    world = kept.copy()
    store, _ = copied(small_disk, 0)
    fill(small_disk, 0)
    with pytest.raises(StoreFull):
        run_backup(world, reopen(store))
    world.delete(reopen(store), "disk.1")
    assert world.prune(reopen(store)).bytes_freed > 100_000
    run_backup(world, reopen(store))
    assert problems(world, store) == []
    assert restored(reopen(store), "new.1") == world.kept["new.1"]
    assert os.statvfs(small_disk).f_bavail >= 0
