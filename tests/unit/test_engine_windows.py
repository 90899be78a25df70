"""A restore in many windows: the next is collected while one is delivered, and nobody writes after its end."""

import random
import threading

import pytest
from engine_streams import MemoryTarget, MemoryTargetFile, MemoryTree, Node, Tree, with_parents

from strongroom.base.errors import ManifestCorrupt, TargetDenied
from strongroom.base.streams import Attributes, Entry, Path, SilentMonitor
from strongroom.base.units import KIB
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    Repository,
    backup,
    create_repository,
    gather,
    restore,
)
from strongroom.engine.restore import restore_tree
from strongroom.engine.store.memory import MemoryStore

MASTER = MasterKey(bytes(range(32)))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore, pool: Pool) -> Repository:
    return create_repository(store, "vault", MASTER, DomainSettings(), pool=pool)


def _tree(seed: int) -> Tree:
    """Small and large files, and names of one inode far from each other and near."""
    rng = random.Random(seed)
    tree: Tree = {}
    for number in range(60):
        size = rng.choice([1, 700, 130 * KIB, 900 * KIB])
        tree[(b"d%d" % rng.randrange(6), b"f%03d" % number)] = Node(data=rng.randbytes(size), ino=1000 + number)
    names = sorted(tree)
    for number in range(8):
        first = rng.choice(names)
        inode = tree[first]
        tree[(b"e", b"l%d" % number)] = tree[first] = Node(data=inode.data, ino=inode.ino, nlink=9)
        for name in [name for name, node in tree.items() if node.ino == inode.ino]:
            tree[name] = tree[first]
    return with_parents(tree)


def _run(repository: Repository, tree: Tree) -> None:
    backup(repository, MemoryTree(tree), BackupRequest(backup_id="b", generation=1), SilentMonitor(), lambda: None)


@pytest.mark.parametrize(("pieces", "links", "files"), [(1, 1, 1), (3, 2, 1), (7, 4096, 2), (16384, 3, 128)])
def test_any_windows_restore_the_same(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, pieces: int, links: int, files: int
) -> None:
    """However little a window holds, every byte and every link is there, and a link never comes before its file."""
    monkeypatch.setattr(gather, "WINDOW_PIECES", pieces)
    monkeypatch.setattr(gather, "PIECES_BETWEEN_LOOKS", 1 + pieces % 3)
    monkeypatch.setattr(restore, "LINKS_WAITING_MAX", links)
    monkeypatch.setattr(restore, "OPEN_FILES_MAX", files)
    tree = _tree(pieces)
    _run(repository, tree)
    target = MemoryTarget()  # it copies what the first name of a link holds, which has to be complete then
    report = restore_tree(repository, "b.1", target)
    assert {path: node.data for path, node in target.tree.items()} == {path: node.data for path, node in tree.items()}
    assert target.linked
    assert report.entries == len(tree) - 1


class _FullTarget(MemoryTarget):
    """Full after some files; remembers who still writes then."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.ended = False
        self.late = 0
        self._room = room
        self._lock = threading.Lock()

    def file(self, path: Path, entry: Entry, attributes: Attributes) -> MemoryTargetFile:
        with self._lock:
            self.late += self.ended
            self._room -= 1
            if self._room < 0:
                raise TargetDenied(reason="There is no room left.")
            return super().file(path, entry, attributes)


@pytest.mark.parametrize("room", [0, 1, 5, 30])
def test_nobody_writes_after_a_restore_failed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """A target that fails in a worker ends the restore with its error, and nothing is written after that."""
    monkeypatch.setattr(gather, "WINDOW_PIECES", 4)
    _run(repository, _tree(1))
    target = _FullTarget(room)
    with pytest.raises(TargetDenied):
        restore_tree(repository, "b.1", target)
    target.ended = True
    repository.pool.compute(lambda: None).result()  # whatever was queued before has run now
    assert target.late == 0


def test_nobody_writes_after_the_manifest_failed(
    store: MemoryStore, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that is met while a window is collected waits for those who write the one before."""
    monkeypatch.setattr(gather, "WINDOW_PIECES", 4)
    _run(repository, _tree(2))
    adds = 0
    add = gather.Gatherer.add

    def fails(self: gather.Gatherer, *args: object) -> None:
        nonlocal adds
        adds += 1
        if adds == 20:
            raise ManifestCorrupt(reason="it is damaged")
        add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(gather.Gatherer, "add", fails)
    target = _FullTarget(1000)
    with pytest.raises(ManifestCorrupt):
        restore_tree(repository, "b.1", target)
    target.ended = True
    repository.pool.compute(lambda: None).result()
    assert target.late == 0
