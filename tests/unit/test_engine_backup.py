"""Backup and restore: what goes in comes out, whatever changed between, and in which order it becomes durable."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from engine_streams import FAR_NS, NOW_NS, MemoryDisk, MemoryTarget, MemoryTree, Node, Tree, plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom.base.errors import (
    Canceled,
    ChunkCorrupt,
    Corrupt,
    EntryNotFound,
    Fenced,
    IndexIncomplete,
    InvalidRequest,
    KeyWrong,
    ManifestCorrupt,
    ObjectExists,
    ObjectMissing,
    PackCorrupt,
    SourceChanged,
    SourceShort,
    StoreError,
    StoreFull,
    TargetTooSmall,
)
from strongroom.base.streams import Extent, ExtentKind, Path, SilentMonitor
from strongroom.engine import (
    BackupReport,
    BackupRequest,
    ChangedBlocks,
    DomainSettings,
    MasterKey,
    Pool,
    Repository,
    backup,
    create_repository,
    open_repository,
    restore_block,
    restore_tree,
)
from strongroom.engine.files import aligned_runs, changed_extents, pages_of
from strongroom.engine.model import BLOCK_BYTES, CHUNK_BYTES_MAX
from strongroom.engine.pack import DATA, load_pack
from strongroom.engine.store.base import Buffer
from strongroom.engine.store.memory import MemoryStore, MemoryWriter
from strongroom.engine.verify import verify

KIB, MIB = 1 << 10, 1 << 20
MASTER = MasterKey(bytes(range(32)))


class RecordingStore(MemoryStore):
    """Notes what becomes visible, in order; may fail on the way there."""

    def __init__(self) -> None:
        super().__init__()
        self.visible: list[str] = []
        self.fail_on = ""

    def put(self, name: str, data: "list[Buffer]") -> None:  # type: ignore[override]
        if self.fail_on and f"/{self.fail_on}/" in name:
            raise StoreFull(name=name)
        super().put(name, data)
        self.visible.append(name.split("/")[-2])

    def writer(self, name: str) -> MemoryWriter:
        return super().writer(name)


@pytest.fixture
def store() -> RecordingStore:
    return RecordingStore()


@pytest.fixture
def repository(store: RecordingStore, pool: Pool) -> Repository:
    return create_repository(store, "vault", MASTER, DomainSettings(), pool=pool)


def run(
    repository: Repository, stream: MemoryTree | MemoryDisk, number: int, parent: int | None = None, **more: object
) -> BackupReport:
    """Back up as `b<number>.1`, compared with `b<parent>.1`."""
    named = None if parent is None else f"b{parent}.1"
    request = BackupRequest(backup_id=f"b{number}", generation=1, parent=named, **more)  # type: ignore[arg-type]
    return backup(repository, stream, request, SilentMonitor(), lambda: None)


def restored(repository: Repository, number: int, **more: object) -> MemoryTarget:
    target = MemoryTarget()
    restore_tree(repository, f"b{number}.1", target, **more)  # type: ignore[arg-type]
    assert target.finished
    return target


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed * 1_000_003 + size).randbytes(size)


def assorted() -> Tree:
    """A tree with everything: empty, small, border-sized and large files, links, attributes, odd names, depth."""
    tree: Tree = {
        (b"empty",): Node(data=b""),
        (b"one",): Node(data=b"1"),
        (b"zeros",): Node(data=bytes(50_000)),
        (b"large zeros",): Node(data=bytes(3 * MIB + 17)),
        (b"small max",): Node(data=noise(128 * KIB)),
        (b"small max + 1",): Node(data=noise(128 * KIB + 1)),
        (b"segment",): Node(data=noise(4 * MIB)),
        (b"large",): Node(data=noise(9 * MIB + 3) + bytes(2 * MIB) + noise(MIB, 2)),
        (b"link",): Node(target=b"../outside"),
        (b"with xattrs",): Node(data=b"x", xattrs=((b"user.a", b"\0\xff"), (b"user.b", b""))),
        (b"empty folder",): Node(mode=0o700),
        (b"d", b"\xff\xfe name\n"): Node(data=b"odd name"),
        (b"d", b"d", b"d", b"d", b"deep"): Node(data=noise(1000)),
        (b"d-", b"x"): Node(data=b"sorts between d and d/d as text"),
        (b"sparse",): Node(data=noise(MIB) + bytes(5 * MIB) + noise(100), sparse=True, holes=((MIB, 6 * MIB),)),
        (b"all hole",): Node(data=bytes(MIB), sparse=True, holes=((0, MIB),)),
        (b"disk.raw",): Node(data=noise(MIB) + bytes(64 * MIB) + noise(70_001, 3), mode=0o600),
    }
    return {path: replace(node, ino=100 + i) for i, (path, node) in enumerate(sorted(tree.items()))}


def test_a_tree_comes_back_whole(repository: Repository) -> None:
    """Every file, link, folder, attribute and name is restored as it was read."""
    tree = assorted()
    report = run(repository, MemoryTree(tree), 1, labels={"a": 1})
    assert report.bytes_total == sum(len(node.data or b"") for node in tree.values())
    assert report.entries == len(plain(tree)) - 1
    # Noise does not compress; a chunk of a hole's border may be half zeros, by where this domain's seed cuts.
    assert report.bytes_new - 2 * CHUNK_BYTES_MAX < report.bytes_stored < report.bytes_new + 50_000
    assert report.bytes_new < report.bytes_read <= report.bytes_total
    assert restored(repository, 1).tree == plain(tree)


def test_a_reopened_repository_knows_everything(store: RecordingStore, repository: Repository, pool: Pool) -> None:
    """Only the store and the master key are needed; another key is refused."""
    tree = assorted()
    report = run(repository, MemoryTree(tree), 1, labels={"a": [1, "b"]})
    again = open_repository(store, "vault", MASTER, pool=pool)
    assert restored(again, 1).tree == plain(tree)
    root = again.load_root("b1.1")
    assert (root.labels, root.kind, root.report, root.parent) == ({"a": [1, "b"]}, "tree", report, None)
    assert again.root_names() == ["b1.1"]
    with pytest.raises(KeyWrong):
        open_repository(store, "vault", MasterKey(bytes(32)))
    with pytest.raises(ObjectMissing):
        open_repository(store, "none", MASTER)
    with pytest.raises(ObjectExists):
        create_repository(store, "vault", MASTER, DomainSettings())


def test_nothing_changed_costs_nothing(repository: Repository) -> None:
    """A backup of an unchanged tree opens no file, asks for no attributes and stores only a root."""
    tree = assorted()
    first = run(repository, MemoryTree(tree), 1)
    stream = MemoryTree(tree)
    second = run(repository, stream, 2, 1)
    assert (stream.reads, stream.asked) == ([], [])
    assert (second.bytes_read, second.bytes_new, second.bytes_stored) == (0, 0, 0)
    assert (second.bytes_total, second.entries, second.folders) == (first.bytes_total, first.entries, first.folders)
    assert restored(repository, 2).tree == plain(tree)


def test_a_full_backup_trusts_no_parent(repository: Repository) -> None:
    """`full` reads everything, stores nothing twice that was verified, and says why."""
    tree = assorted()
    run(repository, MemoryTree(tree), 1)
    verify(repository, None, deep=True, monitor=SilentMonitor())
    report = run(repository, MemoryTree(tree), 2, 1, full=True)
    assert report.bytes_read > report.bytes_total // 3
    assert report.bytes_new == 0
    assert report.full_reason == "a full backup was asked for"


CHANGES = {
    "content": lambda node: replace(node, data=noise(500, 9), ctime_ns=NOW_NS + 1),
    "size": lambda node: replace(node, data=(node.data or b"") + b"x"),
    "mtime": lambda node: replace(node, mtime_ns=NOW_NS + 5),
    "mode": lambda node: replace(node, mode=0o755),
    "owner": lambda node: replace(node, uid=0),
    "group": lambda node: replace(node, gid=0),
    "inode": lambda node: replace(node, ino=99_999),
    "attributes": lambda node: replace(node, xattrs=((b"user.new", b"1"),), ctime_ns=NOW_NS + 1),
    "becomes a link": lambda node: replace(node, data=None, target=b"t"),
    "becomes a folder": lambda node: replace(node, data=None, mode=0o755),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_kind_of_change_is_seen(repository: Repository, change: str) -> None:
    """Whatever field changed, the entry is read again and restored as it is now; its neighbours are not touched."""
    tree: Tree = {(b"d", b"f%d" % i): Node(data=noise(500, i), ino=i) for i in range(5)}
    run(repository, MemoryTree(tree), 1)
    path = (b"d", b"f2")
    tree[path] = CHANGES[change](tree[path])
    stream = MemoryTree(tree)
    run(repository, stream, 2, 1)
    assert set(stream.asked) == {path}
    assert set(stream.reads) <= {path}
    assert restored(repository, 2).tree == plain(tree)


def test_what_might_have_changed_unseen_is_read_again(repository: Repository) -> None:
    """An entry whose ctime is not older than the walk's limit is not believed next time, then it is."""
    tree: Tree = {(b"old",): Node(data=b"o", ino=1), (b"new",): Node(data=b"n", ctime_ns=NOW_NS + 100, ino=2)}
    run(repository, MemoryTree(tree, unchanged_before_ns=NOW_NS + 50), 1)
    second = MemoryTree(tree, unchanged_before_ns=FAR_NS)
    run(repository, second, 2, 1)
    assert second.reads == [(b"new",)]
    third = MemoryTree(tree, unchanged_before_ns=FAR_NS)
    run(repository, third, 3, 2)
    assert third.reads == []


def test_a_file_that_changes_while_read_is_read_again(repository: Repository) -> None:
    """Up to three readings; after that it is marked, named in the report, and read again next time."""
    tree: Tree = {(b"calm",): Node(data=b"c", ino=1), (b"busy",): Node(data=b"b" * 300_000, ino=2)}
    stream = MemoryTree(tree, changing={(b"busy",): 2})
    assert run(repository, stream, 1).changed_while_read == ()
    stream = MemoryTree(tree, changing={(b"busy",): 99})
    report = run(repository, stream, 2)
    assert report.changed_while_read == ((b"busy",),)
    assert report.changed_while_read_count == 1
    again = MemoryTree(tree)
    run(repository, again, 3, 2)
    assert set(again.reads) == {(b"busy",)}


@pytest.mark.parametrize("size", [100, 300_000, 65 * MIB])
def test_a_file_that_shrank_is_filled_with_zeros(repository: Repository, size: int) -> None:
    """What could not be read is a hole, the file is marked, and the content has the size of its entry."""
    tree: Tree = {(b"f.raw",): Node(data=noise(size))}
    short = noise(size)[: size // 3]
    report = run(repository, MemoryTree(tree, truncated={(b"f.raw",): short}), 1)
    assert report.changed_while_read == ((b"f.raw",),)
    assert restored(repository, 1).tree[(b"f.raw",)].data == short + bytes(size - len(short))


def test_a_vanished_file_is_left_out(repository: Repository) -> None:
    """A name that is gone when it is opened is counted and not restored."""
    tree: Tree = {(b"a",): Node(data=b"a"), (b"b",): Node(data=b"b")}
    report = run(repository, MemoryTree(tree, vanished=frozenset([(b"a",)])), 1)
    assert (report.vanished, report.entries) == (1, 1)
    assert set(restored(repository, 1).tree) == {(), (b"b",)}


def test_hard_links_are_read_once_and_linked(repository: Repository) -> None:
    """Several names of one inode are one file again after a restore, also when the target must copy."""
    node = Node(data=noise(300_000), ino=5, nlink=3)
    tree: Tree = {(b"a",): node, (b"d", b"b"): node, (b"z",): node, (b"y",): Node(data=b"y", ino=6)}
    stream = MemoryTree(tree)
    report = run(repository, stream, 1)
    assert {path for path in stream.reads if path != (b"y",)} == {(b"a",)}
    assert report.bytes_new == 300_001
    target = restored(repository, 1)
    assert target.linked == {(b"d", b"b"): (b"a",), (b"z",): (b"a",)}
    assert target.tree == plain(tree)
    copying = MemoryTarget(links=False)
    restore_tree(repository, "b1.1", copying)
    assert copying.tree == plain(tree)
    assert copying.linked == {}


def test_an_inode_that_was_reused_is_no_link(repository: Repository) -> None:
    """Two different files that had one inode number at different moments of the walk stay two files."""
    tree: Tree = {
        (b"a",): Node(data=b"first", ino=5, nlink=2),
        (b"b",): Node(data=b"other", ino=5, nlink=2, mtime_ns=NOW_NS + 1),
        (b"c",): Node(data=b"first", ino=5, nlink=2),
    }
    run(repository, MemoryTree(tree), 1)
    target = restored(repository, 1)
    assert target.tree == plain(tree)
    assert target.linked == {(b"c",): (b"a",)}


# --- the merge of two walks ---

NAMES = st.sampled_from([b"a", b"b", b"c", b"a-", b"a.", b"aa", b"\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
NODES = st.builds(
    Node,
    data=st.one_of(st.none(), st.binary(max_size=20), st.just(b"s" * 200_000)),
    mtime_ns=st.sampled_from([NOW_NS, NOW_NS + 1]),
    ino=st.integers(1, 4),
    mode=st.sampled_from([0o644, 0o600]),
)
TREES = st.dictionaries(PATHS, NODES, max_size=14)


def _legal(tree: Tree) -> Tree:
    """Nothing lies below what is no folder."""
    return {
        path: node
        for path, node in tree.items()
        if all((parent := tree.get(path[:depth])) is None or parent.data is None for depth in range(1, len(path)))
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees=st.lists(TREES, min_size=2, max_size=3), part=st.sampled_from([1, 2, 3, 4096]), seed=st.integers(0, 9))
def test_any_history_restores_exactly(pool: Pool, trees: list[Tree], part: int, seed: int) -> None:
    """Whatever a tree became, its backup against any older one restores what was there, part sizes included."""
    repository = create_repository(MemoryStore(), "", MASTER, DomainSettings(level=1), pool=pool)
    for number, tree in enumerate(trees):
        tree = {  # equal stats mean equal content: what an honest filesystem promises
            path: replace(node, ctime_ns=NOW_NS + hash((node.data, node.mode)) % 1000)
            for path, node in _legal(tree).items()
        }
        parent = random.Random(seed + number).randrange(number) if number else None
        run(repository, MemoryTree(tree, part=part), number, parent)
        assert restored(repository, number).tree == plain(tree)


def test_parts_of_a_large_folder_are_matched_by_name(repository: Repository) -> None:
    """A name that comes first shifts every part of a folder, and still only it is read."""
    tree: Tree = {(b"d", b"f%04d" % i): Node(data=b"%d" % i, ino=i) for i in range(500)}
    tree[(b"e", b"after")] = Node(data=b"e", ino=1000)
    run(repository, MemoryTree(tree, part=7), 1)
    tree[(b"d", b"a")] = Node(data=b"first", ino=2000)
    del tree[(b"d", b"f0250")]
    stream = MemoryTree(tree, part=7)
    run(repository, stream, 2, 1)
    assert stream.reads == [(b"d", b"a")]
    assert restored(repository, 2).tree == plain(tree)
    again = MemoryTree(tree, part=11)
    run(repository, again, 3, 2)
    assert again.reads == []
    assert restored(repository, 3).tree == plain(tree)


def test_folders_come_and_go(repository: Repository) -> None:
    """Folders removed, added, swapped with files and moved up or down keep the two walks in step."""

    def files(*paths: Path) -> Tree:
        return {path: Node(data=b"/".join(path), ino=hash(path) % 1000) for path in paths}

    histories = [
        files((b"a", b"x"), (b"b", b"x"), (b"b", b"c", b"x"), (b"d", b"x")),
        files((b"a", b"x"), (b"d", b"x")),
        files((b"a",), (b"b", b"c"), (b"d", b"x", b"y")),
        files((b"0", b"x"), (b"a", b"x"), (b"b", b"c", b"x"), (b"z", b"x")),
        files(),
        files((b"z",)),
    ]
    for number, tree in enumerate(histories):
        for parent in range(number):
            run(repository, MemoryTree(tree), 100 * (parent + 1) + number, parent)
            assert restored(repository, 100 * (parent + 1) + number).tree == plain(tree)
        run(repository, MemoryTree(tree), number, number - 1 if number else None)


def test_an_increment_stores_little(repository: Repository) -> None:
    """One changed file in many costs about itself, not the manifest."""
    tree: Tree = {(b"%02d" % (i % 50), b"f%04d" % i): Node(data=noise(50, i), ino=i) for i in range(5000)}
    first = run(repository, MemoryTree(tree), 1)
    tree[(b"25", b"f0025")] = Node(data=b"changed", ino=9999)
    second = run(repository, MemoryTree(tree), 2, 1)
    assert second.bytes_new == 7
    assert second.bytes_stored < first.bytes_stored / 5


def test_an_insert_into_a_large_file_stores_little(repository: Repository) -> None:
    """Bytes put into the middle of a file cost a few chunks."""
    data = noise(20 * MIB)
    run(repository, MemoryTree({(b"f",): Node(data=data)}), 1)
    changed = data[: 7 * MIB] + b"inserted" + data[7 * MIB :]
    report = run(repository, MemoryTree({(b"f",): Node(data=changed)}), 2, 1)
    assert report.bytes_new < 2 * MIB
    assert restored(repository, 2).tree[(b"f",)].data == changed


def test_one_path_brings_its_folders_along(repository: Repository) -> None:
    """A selected file or folder is restored with the folders above it and nothing beside it."""
    tree = assorted()
    run(repository, MemoryTree(tree), 1)
    deep = (b"d", b"d", b"d", b"d", b"deep")
    assert restored(repository, 1, path=deep).tree == {p: n for p, n in plain(tree).items() if p == deep[: len(p)]}
    below = restored(repository, 1, path=(b"d",)).tree
    assert below == {path: node for path, node in plain(tree).items() if not path or path[0] == b"d"}
    for missing in ((b"none",), (b"one", b"x"), (b"d", b"none"), (b"d", b"d", b"d", b"d", b"deep", b"x")):
        with pytest.raises(EntryNotFound):
            restored(repository, 1, path=missing)


def test_a_link_whose_first_name_was_not_selected_is_a_file(repository: Repository) -> None:
    """The second name of an inode alone is restored with its content."""
    node = Node(data=b"shared", ino=5, nlink=2)
    run(repository, MemoryTree({(b"a",): node, (b"b",): node}), 1)
    assert restored(repository, 1, path=(b"b",)).tree[(b"b",)].data == b"shared"


# --- disks ---


def disk_of(repository: Repository, number: int, size: int) -> bytes:
    target = MemoryDisk(b"\xaa" * size)
    restore_block(repository, f"b{number}.1", target)
    assert target.flushed
    return bytes(target.data)


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * MIB + 512])
def test_a_disk_comes_back_whole(repository: Repository, size: int) -> None:
    """Every byte of a disk of any size is restored, zeros included."""
    data = bytearray(noise(size))
    data[MIB : 3 * MIB] = bytes(len(data[MIB : 3 * MIB]))
    run(repository, MemoryDisk(data), 1)
    assert disk_of(repository, 1, size) == data


def test_a_disk_of_many_pages(repository: Repository) -> None:
    """Holes of gigabytes cost nothing; pages of blocks are found on both sides of their border."""
    size = 40 << 30

    class Vast(MemoryDisk):
        def __init__(self) -> None:
            super().__init__(b"")
            self.size = size
            self.written: dict[int, bytes] = {}
            self.zeroed = 0

        def extents(self) -> Iterator[Extent]:
            at = 0
            for start in (512 * MIB - BLOCK_BYTES, 39 << 30):
                yield Extent(at, start - at, ExtentKind.ZERO)
                yield Extent(start, 2 * BLOCK_BYTES, ExtentKind.DATA)
                at = start + 2 * BLOCK_BYTES
            yield Extent(at, size - at, ExtentKind.ZERO)

        def read_into(self, offset: int, buffer: memoryview) -> int:
            for at in range(0, len(buffer), BLOCK_BYTES):
                buffer[at : at + BLOCK_BYTES] = (offset + at).to_bytes(8, "little") * (BLOCK_BYTES // 8)
            return len(buffer)

        def write(self, offset: int, data: memoryview) -> None:
            self.written[offset] = bytes(data)

        def zero(self, offset: int, length: int) -> None:
            self.zeroed += length

    report = run(repository, Vast(), 1)
    assert report.bytes_new == 4 * BLOCK_BYTES
    assert report.bytes_stored < 100_000
    target = Vast()
    restore_block(repository, "b1.1", target)
    assert target.zeroed + sum(map(len, target.written.values())) == size
    for offset, data in target.written.items():
        assert all(data[at : at + 8] == (offset + at).to_bytes(8, "little") for at in range(0, len(data), BLOCK_BYTES))


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_blocks_restore_exactly(pool: Pool, data: st.DataObject) -> None:
    """A disk backed up by any list that covers its changes restores as it is, reading only what the list names."""
    repository = create_repository(MemoryStore(), "", MASTER, DomainSettings(level=1), pool=pool)
    size = data.draw(st.integers(1, 12)) * BLOCK_BYTES + data.draw(st.sampled_from([0, 1, 512]))
    disk = bytearray(noise(size))
    run(repository, MemoryDisk(disk), 0)
    for number in range(1, 4):
        ranges = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 3 * BLOCK_BYTES)), max_size=4))
        for start, length in ranges:
            end = min(size, start + length)
            disk[start:end] = bytes(end - start) if length % 2 else noise(end - start, number)
        stream = MemoryDisk(disk, list(changed_extents(ranges, size)))
        run(repository, stream, number, number - 1)
        assert stream.bytes_read <= sum(length + 2 * BLOCK_BYTES for _, length in ranges)
        assert disk_of(repository, number, size) == disk


def test_same_extents_without_a_usable_parent_are_read(repository: Repository) -> None:
    """SAME is believed only with a parent of the same size; else the range is read and the reason told."""
    disk = MemoryDisk(noise(MIB), [Extent(0, MIB, ExtentKind.SAME)])
    run(repository, disk, 1)
    assert disk.bytes_read == MIB
    grown = MemoryDisk(noise(MIB) + b"x" * BLOCK_BYTES, [Extent(0, MIB + BLOCK_BYTES, ExtentKind.SAME)])
    report = run(repository, grown, 2, 1)
    assert report.full_reason == "the disk has another size than in the parent"
    assert disk_of(repository, 2, grown.size) == grown.data


def test_an_image_in_a_tree_uses_a_changed_block_list(repository: Repository) -> None:
    """Only with the right base, size and place is a list used; the reason is told when it is not."""
    size = 66 * MIB
    image = bytearray(noise(size))

    def node(ino: int) -> Node:
        return Node(data=bytes(image), ino=1, mtime_ns=NOW_NS + ino)

    run(repository, MemoryTree({(b"image.raw",): node(0)}), 1)
    image[5 * MIB : 5 * MIB + 100] = b"y" * 100
    changed = ((5 * MIB, 100),)
    cases = [
        (ChangedBlocks(base="b1.1", size=size, extents=changed), None),
        (ChangedBlocks(base=None, size=None, extents=changed), None),
        (ChangedBlocks(base="other.1", size=size, extents=changed), "counts from other.1"),
        (ChangedBlocks(base="b1.1", size=size + 1, extents=changed), "another size"),
    ]
    for number, (blocks, reason) in enumerate(cases, 2):
        stream = MemoryTree({(b"image.raw",): node(number)})
        report = run(repository, stream, number, 1, changed_blocks=blocks)
        assert report.bytes_new == (BLOCK_BYTES if number == 2 else 0)
        assert stream.bytes_read == (size if reason else BLOCK_BYTES)
        assert (reason in report.full_reason) if reason and report.full_reason else reason is report.full_reason
        assert restored(repository, number).tree[(b"image.raw",)].data == image
    report = run(repository, MemoryTree({(b"image.raw",): node(9)}), 9, changed_blocks=cases[0][0])
    assert report.full_reason == "there is no parent for the changed-block list"


EXTENT_KINDS = st.sampled_from(list(ExtentKind))


@given(lengths=st.lists(st.tuples(st.integers(1, 200_000), EXTENT_KINDS), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_runs_lie_on_block_borders_and_lose_nothing(lengths: list[tuple[int, ExtentKind]]) -> None:
    """Aligned runs cover the disk in order; a block is not DATA only if every byte of it agrees."""
    extents, at, kinds = [], 0, []
    for length, kind in lengths:
        extents.append(Extent(at, length, kind))
        at += length
    size = at
    of_block: dict[int, set[ExtentKind]] = {}
    for offset, length, kind in extents:
        for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)):
            of_block.setdefault(block, set()).add(kind)
    at = 0
    for page_start, page_end, runs in pages_of(aligned_runs(extents, size), size):
        assert page_start == at
        for start, end, kind in runs:
            assert start == at
            assert start % BLOCK_BYTES == 0
            assert end % BLOCK_BYTES == 0 or end == size
            for block in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                kinds.append(kind)
                assert kind == ExtentKind.DATA or of_block[block] == {kind}
                assert of_block[block] != {kind} or kind in of_block[block]
            at = end
        assert page_end == at
    assert at == size
    assert len(kinds) == len(of_block)


@pytest.mark.parametrize(
    "extents", [[], [(0, 10)], [(5, 95)], [(0, 60), (50, 50)], [(0, 50), (60, 40)], [(0, 101)], [(0, 0), (0, 100)]]
)
def test_a_source_that_lies_about_its_extents_fails(extents: list[tuple[int, int]]) -> None:
    """Gaps, overlaps and ends beyond the disk are SourceChanged, never silently zeros."""
    with pytest.raises(SourceChanged):
        list(aligned_runs([Extent(offset, length, ExtentKind.DATA) for offset, length in extents], 100))


def test_a_target_that_is_too_small_is_not_touched(repository: Repository) -> None:
    """The size is compared before the first byte is written."""
    run(repository, MemoryDisk(noise(MIB)), 1)
    target = MemoryDisk(b"t" * (MIB - 1))
    with pytest.raises(TargetTooSmall):
        restore_block(repository, "b1.1", target)
    assert set(target.data) == {ord("t")}
    with pytest.raises(ManifestCorrupt):
        restored(repository, 1)


# --- order, failure, damage ---


def test_packs_before_index_before_root(store: RecordingStore, repository: Repository) -> None:
    """What a root needs is visible before it, packs first, then their index objects."""
    store.visible.clear()
    run(repository, MemoryTree(assorted()), 1)
    order = [kind for kind in store.visible if kind != "digests"]
    assert store.visible[-2:] == ["roots", "digests"]
    assert order.count("roots") == 1
    last_pack = max(i for i, kind in enumerate(order) if kind == "packs")
    assert last_pack < order.index("index") < order.index("roots")


def test_the_fence_is_the_last_step_before_the_root(store: RecordingStore, repository: Repository) -> None:
    """A fenced attempt leaves no root, and has made everything else durable before it asked."""
    store.visible.clear()

    def fence() -> None:
        assert store.visible[-2:] == ["index", "digests"]
        raise Fenced(reason="generation 2 exists")

    with pytest.raises(Fenced):
        backup(
            repository,
            MemoryTree(assorted()),
            BackupRequest(backup_id="b1", generation=1),
            SilentMonitor(),
            fence,
        )
    assert "roots" not in store.visible
    report = run(repository, MemoryTree(assorted()), 1)
    assert report.bytes_new == 0  # what the fenced attempt stored is known


def test_a_generation_commits_once(repository: Repository) -> None:
    """The same attempt cannot commit twice; the next generation can."""
    tree = MemoryTree({(b"a",): Node(data=b"a")})
    run(repository, tree, 1)
    with pytest.raises(ObjectExists):
        run(repository, MemoryTree({}), 1)
    again = BackupRequest(backup_id="b1", generation=2)
    backup(repository, MemoryTree({}), again, SilentMonitor(), lambda: None)
    assert sorted(repository.root_names()) == ["b1.1", "b1.2"]


@pytest.mark.parametrize("kind", ["packs", "index", "roots"])
def test_a_store_that_fails_leaves_no_root(store: RecordingStore, repository: Repository, kind: str) -> None:
    """Whatever object cannot be stored, the error is the caller's, no root appears, and the next run succeeds."""
    tree = assorted()
    store.fail_on = kind
    with pytest.raises(StoreFull):
        run(repository, MemoryTree(tree), 1)
    assert repository.root_names() == []
    store.fail_on = ""
    run(repository, MemoryTree(tree), 1)
    assert restored(repository, 1).tree == plain(tree)


def test_an_error_in_a_thread_reaches_the_caller(store: RecordingStore, repository: Repository, pool: Pool) -> None:
    """A write that fails on a compressor's thread stops a long backup early, and frees its buffers."""

    class BrokenWriter(MemoryWriter):
        def write_at(self, offset: int, data: Buffer) -> None:
            raise StoreError(name="pack", detail="broken on purpose")

    store.writer = lambda name: BrokenWriter(store, name)  # type: ignore[method-assign]
    stream = MemoryTree({(b"f%03d" % i,): Node(data=noise(4 * MIB, i), ino=i) for i in range(60)})
    with pytest.raises(StoreError, match="broken on purpose"):
        run(repository, stream, 1)
    assert stream.bytes_read < 200 * MIB
    del store.writer  # type: ignore[method-assign]
    for number in range(3):
        run(repository, MemoryTree(assorted()), 10 + number)


def test_a_canceled_backup_leaves_no_root(repository: Repository) -> None:
    """The monitor's word stops the work between segments."""

    class Stop(SilentMonitor):
        def check(self) -> None:
            raise Canceled

    request = BackupRequest(backup_id="b1", generation=1)
    with pytest.raises(Canceled):
        backup(repository, MemoryTree(assorted()), request, Stop(), lambda: None)
    assert repository.root_names() == []


def test_a_source_error_fails_the_backup(repository: Repository) -> None:
    """A disk that gives fewer bytes than it has is no backup."""

    class Short(MemoryDisk):
        def read_into(self, offset: int, buffer: memoryview) -> int:
            raise SourceShort(reason="The disk ended early.")

    with pytest.raises(SourceShort):
        run(repository, Short(noise(MIB)), 1)
    assert repository.root_names() == []


def _packs(store: MemoryStore) -> list[str]:
    return [info.name for info in store.list("") if "/packs/" in info.name]


def test_a_lost_pack_is_repaired_by_the_next_backup(store: RecordingStore, repository: Repository) -> None:
    """Chunks of a missing pack are unknown, so content that is still at the source is stored again (RULINGS 14)."""
    tree = assorted()
    run(repository, MemoryTree(tree), 1)
    for name in _packs(store):
        store.delete(name)
    with pytest.raises(Corrupt):
        restored(repository, 1)
    report = run(repository, MemoryTree(tree), 2, 1)
    assert report.bytes_new > 0
    assert restored(repository, 2).tree == plain(tree)
    assert restored(repository, 1).tree == plain(tree)


def test_one_lost_data_pack_is_repaired(store: RecordingStore, repository: Repository) -> None:
    """With the manifest intact, only what the lost pack held is read again."""
    tree: Tree = {(b"f%03d" % i,): Node(data=noise(MIB, i), ino=i) for i in range(70)}
    run(repository, MemoryTree(tree), 1)
    packs = sorted(_packs(store), key=store.size)
    store.delete(packs[-1])
    stream = MemoryTree(tree)
    report = run(repository, stream, 2, 1)
    assert 0 < len(set(stream.reads)) < 70
    assert 0 < report.bytes_new < 70 * MIB
    assert restored(repository, 1).tree == plain(tree)


def test_a_pack_that_vanishes_meanwhile_fails_the_backup(store: RecordingStore, repository: Repository) -> None:
    """Before the root, every pack relied on is there; else there is no root."""
    tree = assorted()
    run(repository, MemoryTree(tree), 1)

    class Saboteur(MemoryTree):
        def folders(self):  # type: ignore[no-untyped-def]
            for name in _packs(store):
                store.delete(name)
            yield from super().folders()

    with pytest.raises(PackCorrupt, match="vanished"):
        run(repository, Saboteur(tree), 2, 1)
    assert repository.root_names() == ["b1.1"]


def _damage(store: MemoryStore, name: str, at: int) -> None:
    whole = bytearray(store.read(name))
    whole[at] ^= 1
    store.delete(name)
    MemoryStore.put(store, name, [whole])


def test_damage_is_told_and_never_restored(store: RecordingStore, repository: Repository) -> None:
    """A flipped bit in any pack, index object or root fails the restore; no wrong byte reaches the target."""
    tree: Tree = {(b"f%d" % i,): Node(data=noise(3000, i), ino=i) for i in range(4)}
    run(repository, MemoryTree(tree), 1)
    rng = random.Random(7)
    for info in list(store.list("")):
        if not any(f"/{kind}/" in info.name for kind in ("packs", "index", "roots")):
            continue
        before = store.read(info.name)
        for _ in range(6):
            _damage(store, info.name, rng.randrange(len(before)))
            target = MemoryTarget()
            try:
                restore_tree(repository, "b1.1", target)
            except Corrupt:
                pass  # what is promised
            else:
                assert target.tree == plain(tree)  # only where nobody reads: a footer
            store.delete(info.name)
            MemoryStore.put(store, info.name, [before])


def test_a_chunk_under_a_wrong_id_is_not_restored(store: RecordingStore, repository: Repository) -> None:
    """Every chunk is compared with its whole id: an index that points to another chunk of the same length is caught."""
    run(repository, MemoryTree({(b"a",): Node(data=b"first content"), (b"b",): Node(data=b"other content", ino=1)}), 1)
    packs = []
    for name in _packs(store):
        pack = load_pack(store, repository.prefix, repository.domain, bytes.fromhex(name.rpartition("/")[2]))
        if pack.kind == DATA:
            segment = pack.segments[0]
            pack = replace(pack, segments=[segment._replace(ids=segment.ids[::-1])])
        packs.append(pack)
    for info in list(store.list("")):
        if "/index/" in info.name and "." in info.name.rpartition("/")[2]:
            store.delete(info.name)
    repository.put_index_object(packs, 0)
    with pytest.raises(ChunkCorrupt):
        restored(repository, 1)


def test_a_root_cannot_be_renamed(store: RecordingStore, repository: Repository) -> None:
    """A root copied to another name, or to another generation, does not open."""
    run(repository, MemoryTree({}), 1)
    name = next(info.name for info in store.list("") if "/roots/" in info.name)
    for other in ("b1.2", "b2.1"):
        store.put(name.replace("b1.1", other), [store.read(name)])
        with pytest.raises(ManifestCorrupt):
            repository.load_root(other)


def test_an_index_without_its_objects_is_told(store: RecordingStore, repository: Repository) -> None:
    """A chunk nobody knows, and a list that is gone, are IndexIncomplete."""
    run(repository, MemoryTree({(b"a",): Node(data=b"a")}), 1)
    for info in list(store.list("")):
        if "/index/" in info.name and "." in info.name.rpartition("/")[2]:
            store.delete(info.name)
    with pytest.raises(IndexIncomplete):
        restored(repository, 1)
    for info in list(store.list("")):
        if "/index/" in info.name:
            store.delete(info.name)
    with pytest.raises(IndexIncomplete):
        restored(repository, 1)


def test_a_damaged_parent_is_no_reason_to_fail(store: RecordingStore, repository: Repository) -> None:
    """With a parent that cannot be read the backup reads everything and says why."""
    tree = assorted()
    run(repository, MemoryTree(tree), 1)
    name = next(info.name for info in store.list("") if "/roots/" in info.name)
    _damage(store, name, 40)
    report = run(repository, MemoryTree(tree), 2, 1)
    assert report.full_reason is not None
    assert "cannot be read" in report.full_reason
    gone = run(repository, MemoryTree(tree), 3, 77)
    assert gone.full_reason == "the parent does not exist any more"
    other = run(repository, MemoryDisk(b"x"), 4, 2)
    assert other.full_reason == "the parent is of another kind"
    assert restored(repository, 2).tree == plain(tree)


def test_an_earlier_attempt_is_found(store: RecordingStore, repository: Repository) -> None:
    """The root of an attempt is adopted with its report, the highest generation first, and only if it is complete."""
    assert repository.find_root("b1") is None
    first = run(repository, MemoryTree(assorted()), 1)
    assert (found := repository.find_root("b1")) is not None
    assert found.report == first
    assert repository.find_root("b1", 2) is None
    assert repository.find_root("b2") is None
    request = BackupRequest(backup_id="b1", generation=7)
    backup(repository, MemoryTree({}), request, SilentMonitor(), lambda: None)
    assert (found := repository.find_root("b1")) is not None
    assert found.generation == 7
    assert repository.find_root("b1", 1) is not None
    repository.delete_root("b1.7")
    repository.delete_root("b1.7")
    assert (found := repository.find_root("b1")) is not None
    assert found.generation == 1
    store.delete(_packs(store)[0])
    assert repository.find_root("b1") is None


def test_labels_are_bounded_and_replaceable(repository: Repository) -> None:
    """Labels come back unread, at most 16 KiB; the newest put later wins."""
    run(repository, MemoryTree({}), 1, labels={"name": "x", "n": 5, "bytes": b"\0"})
    root = repository.load_root("b1.1")
    assert repository.load_labels(root) == {"name": "x", "n": 5, "bytes": b"\0"}
    repository.put_labels("b1", {"name": "y"})
    repository.put_labels("b1", {"name": "z"})
    assert repository.load_labels(root) == {"name": "z"}
    with pytest.raises(InvalidRequest):
        run(repository, MemoryTree({}), 2, labels={"big": "x" * 20_000})
    with pytest.raises(InvalidRequest):
        run(repository, MemoryTree({}), 2, labels={"odd": object()})
    for backup_id in ("", "a/b", "a.b", "x" * 65, ".."):
        with pytest.raises(InvalidRequest):
            request = BackupRequest(backup_id=backup_id, generation=1)
            backup(repository, MemoryTree({}), request, SilentMonitor(), lambda: None)


def test_jobs_share_a_small_pool() -> None:
    """Backups that need more buffers than there are wait for each other, and all finish."""
    import threading

    pool = Pool(budget_bytes=64 * MIB, threads=1)
    store = MemoryStore()
    repository = create_repository(store, "", MASTER, DomainSettings(level=1), pool=pool)
    trees = [{(b"f%d" % i,): Node(data=noise(3 * MIB, 10 * n + i), ino=i) for i in range(5)} for n in range(6)]
    failures: list[BaseException] = []

    def job(number: int) -> None:
        try:
            run(repository, MemoryTree(trees[number]), number)
        except BaseException as err:
            failures.append(err)
            raise

    threads = [threading.Thread(target=job, args=(number,)) for number in range(len(trees))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    for number, tree in enumerate(trees):
        assert restored(repository, number).tree == plain(tree)
    pool.close()
