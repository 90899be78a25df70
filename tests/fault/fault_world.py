"""A repository on any store, what was acknowledged by it, and the question whether all of that still comes back."""

from dataclasses import dataclass, field

from fault_streams import Files, MemoryDisk, MemoryTree, MemoryTreeTarget

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

MASTER = MasterKey(bytes(range(32)))
MONITOR = SilentMonitor()
PREFIX = "vaults/v/"
POOL = Pool(threads=2)  # one for all tests of a process, as a worker has one

Content = Files | bytes


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
        self, repository: Repository, name: str, content: Content, *, parent: str | None = None, full: bool = False
    ) -> BackupReport:
        """Back up and remember it as acknowledged."""
        backup_id, _, generation = name.partition(".")
        request = BackupRequest(backup_id=backup_id, generation=int(generation), parent=parent, full=full)
        if isinstance(content, bytes):
            stream: MemoryDisk | MemoryTree = MemoryDisk(content)
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
