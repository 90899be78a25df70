"""A repository on any store, what was acknowledged by it, and the question whether all of that still comes back."""

import random
from dataclasses import dataclass, field
from functools import cache

from fault_streams import Files, MemoryDisk, MemoryTree, MemoryTreeTarget, random_files

from strongroom.base.streams import Path, SilentMonitor
from strongroom.engine import (
    BackupReport,
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    ProcessSessions,
    Repository,
    backup,
    create_repository,
    open_repository,
    restore_block,
    restore_tree,
)
from strongroom.engine.prune import PruneReport, prune
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore

MASTER = MasterKey(bytes(range(32)))
MONITOR = SilentMonitor()
PREFIX = "vaults/v/"
POOL = Pool(threads=2)  # one for all tests of a process, as a worker has one

Content = Files | bytes


def drain_pool() -> None:
    """Wait until the threads have done all that was given to them."""
    tasks = [give(lambda: None) for give in (POOL.compute, POOL.sync) for _ in range(8)]
    for task in tasks:
        task.result()


def no_fence() -> None:
    return None


@dataclass
class World:
    """What should be there: content by name of root. Survives the store it was written to."""

    kept: dict[str, Content] = field(default_factory=dict)
    times: dict[str, dict[Path, int]] = field(default_factory=dict)

    def copy(self) -> "World":
        return World(dict(self.kept), dict(self.times))

    def backup(
        self,
        repository: Repository,
        name: str,
        content: Content,
        *,
        parent: str | None = None,
        full: bool = False,
        changed_blocks: tuple[tuple[int, int], ...] | None = None,
    ) -> BackupReport:
        """Back up and remember it as acknowledged. changed_blocks: (offset, length) of a disk, all else is SAME."""
        backup_id, _, generation = name.partition(".")
        request = BackupRequest(backup_id=backup_id, generation=int(generation), parent=parent, full=full)
        if isinstance(content, bytes):
            stream: MemoryDisk | MemoryTree = MemoryDisk(content, changed_blocks)
        else:
            stream = MemoryTree(content, self.times.get(name))
        report = backup(repository, stream, request, MONITOR, no_fence)
        self.kept[name] = content
        return report

    def delete(self, repository: Repository, name: str) -> None:
        """The acknowledgement ends before the work begins."""
        self.kept.pop(name, None)
        repository.delete_root(name)

    def prune(self, repository: Repository) -> PruneReport:
        """Everything that was not acknowledged is dead."""
        dead = [name for name in repository.root_names() if name not in self.kept]
        return prune(repository, dead=dead, monitor=MONITOR)

    def problems(self, repository: Repository) -> list[str]:
        """What was acknowledged and does not come back byte for byte. Raises nothing of a kept root away."""
        names = set(repository.root_names())
        found = [f"root {name} is lost" for name in self.kept if name not in names]
        for name in sorted(names):
            content = restored(repository, name)
            if name in self.kept and content != self.kept[name]:
                found.append(f"root {name} came back different")
        return found


def restored(repository: Repository, name: str) -> Content:
    """The whole content of a root, through the restore verb."""
    root = repository.load_root(name)
    if root.kind == "block":
        disk = MemoryDisk(bytes(root.size))
        restore_block(repository, name, disk, MONITOR)
        return bytes(disk.data)
    target = MemoryTreeTarget()
    restore_tree(repository, name, target, monitor=MONITOR)
    assert target.finished
    return target.files


def create(store: Store, sessions: ProcessSessions | None = None) -> Repository:
    return create_repository(store, PREFIX, MASTER, DomainSettings(), pool=POOL, sessions=sessions)


def reopen(store: Store, sessions: ProcessSessions | None = None) -> Repository:
    """As a new process would."""
    return open_repository(store, PREFIX, MASTER, pool=POOL, sessions=sessions)


# --- a small world to break ---


def small_files(seed: int) -> dict[Path, bytes]:
    return random_files(seed, count=8, bytes_max=40_000)


NEW = {**small_files(1), (b"folder-2", b"deep", b"new"): random.Random(9).randbytes(50_000)}


@cache
def base() -> tuple[World, MemoryStore]:
    """Three backups that count; packs that are dead, and one under half live."""
    store, world = MemoryStore(), World()
    repository = create(store)
    kept = random.Random(5).randbytes(20_000)
    world.backup(repository, "half.1", {(b"kept",): kept, (b"big",): random.Random(6).randbytes(90_000)})
    world.backup(repository, "dead.1", random.Random(7).randbytes(128 * 1024))
    world.backup(repository, "tree.1", small_files(1))
    world.backup(repository, "rest.1", {(b"kept",): kept}, parent="half.1")
    world.backup(repository, "disk.1", small_disk())
    world.delete(repository, "half.1")
    world.delete(repository, "dead.1")
    return world, store


@dataclass(frozen=True, kw_only=True)
class NewBackup:
    """A backup with the id `new` to be made in the small world. changed: what a tracker says."""

    content: Content
    parent: str | None = None
    full: bool = False
    changed: tuple[tuple[int, int], ...] | None = None

    def run(self, world: World, repository: Repository) -> None:
        """As the job does: adopt what an earlier attempt left, else a new generation."""
        left = repository.find_root("new")
        if left is not None:
            world.kept[left.name] = self.content
            return
        generations = [int(name.partition(".")[2]) for name in repository.root_names() if name.startswith("new.")]
        name = f"new.{max(generations, default=0) + 1}"
        world.backup(repository, name, self.content, parent=self.parent, full=self.full, changed_blocks=self.changed)


def small_disk() -> bytes:
    """What disk.1 holds."""
    return random.Random(8).randbytes(128 * 1024) + bytes(256 * 1024)


def changed_disk() -> bytes:
    """The same with its second and its last block changed."""
    disk = bytearray(small_disk())
    disk[70_000:70_010] = b"ten bytes!"
    disk[-5:] = b"tail."
    return bytes(disk)


CHANGED_BLOCKS = ((65_536, 65_536), (5 * 65_536, 65_536))
BACKUPS = {
    "first tree": NewBackup(content=small_files(11)),
    "first disk": NewBackup(content=random.Random(12).randbytes(150_000) + bytes(100_000)),
    "incremental tree": NewBackup(content=NEW, parent="tree.1"),
    "incremental disk": NewBackup(content=changed_disk(), parent="disk.1", changed=CHANGED_BLOCKS),
    "full tree": NewBackup(content=NEW, parent="tree.1", full=True),
    "full disk": NewBackup(content=changed_disk(), parent="disk.1", full=True, changed=CHANGED_BLOCKS),
}


def run_backup(world: World, repository: Repository) -> None:
    """The one that most tests take."""
    BACKUPS["incremental tree"].run(world, repository)
