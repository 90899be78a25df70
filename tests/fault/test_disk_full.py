"""A disk that runs full at every write of a backup and a prune: a real filesystem of a few megabytes.

The space left is varied page by page, so that each write of the verb is once the one that does not fit. Nothing that
was acknowledged is lost, the verb says StoreFull and not success, a prune frees space on a disk without any, and with
more room the verb runs to its end.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_world import MONITOR, World, base, create, reopen, restored, run_backup

from strongroom.base.errors import StoreFull
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.posix import TEMPORARY_PREFIX, PosixStore
from strongroom.engine.verify import verify

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
        report = world.prune(reopen(store))
        assert report.roots_removed == len(doomed)
        assert report.packs_deleted > 0
        assert report.bytes_freed > 250_000
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
    report = world.prune(reopen(store))
    assert "no room" in report.postponed
    assert (report.roots_removed, report.packs_rewritten) == (1, 0)
    assert problems(world, store) == []
    assert leftovers(small_disk) == []
    filler.unlink()
    report = world.prune(reopen(store))
    assert (report.packs_rewritten, report.postponed) == (1, "")
    assert report.bytes_freed > 130_000
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
