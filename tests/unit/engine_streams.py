"""Streams and targets in memory, for tests of the engine: real implementations of base/streams, only without a disk."""

import random
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from strongroom.base.errors import SourceGone
from strongroom.base.streams import (
    FOLDER_PART_ENTRIES_MAX,
    Attributes,
    Entry,
    Extent,
    ExtentKind,
    Path,
    Skipped,
)

NOW_NS = 1_700_000_000_000_000_000
FAR_NS = NOW_NS + 10**15


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class Node:
    """One inode. data None: a folder; bytes: a file; target: a symbolic link."""

    data: bytes | None = None
    target: bytes = b""
    mode: int = 0o644
    ctime_ns: int = NOW_NS
    mtime_ns: int = NOW_NS
    ino: int = 0
    nlink: int = 1
    uid: int = 1000
    gid: int = 1000
    dev: int = 7
    sparse: bool = False
    holes: tuple[tuple[int, int], ...] = ()
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    def entry(self, name: bytes) -> Entry:
        if self.target:
            kind, size = stat.S_IFLNK, 0
        elif self.data is None:
            kind, size = stat.S_IFDIR, 0
        else:
            kind, size = stat.S_IFREG, len(self.data)
        return Entry(
            name, kind | self.mode, self.uid, self.gid, self.mtime_ns, size, self.ctime_ns, self.ino, self.dev,
            self.nlink, 0, self.sparse,
        )  # fmt: skip

    def attributes(self) -> Attributes:
        return Attributes(self.xattrs, 0, self.target)


Tree = dict[Path, Node]


def with_parents(tree: Tree) -> Tree:
    """The tree with every folder that its paths imply."""
    whole = dict(tree)
    for path in tree:
        for depth in range(len(path)):
            whole.setdefault(path[:depth], Node(mode=0o755, ino=-1 - depth))
    whole.setdefault((), Node(mode=0o755))
    return whole


class MemoryFile:
    def __init__(self, stream: "MemoryTree", path: Path, node: Node) -> None:
        assert node.data is not None
        self._stream = stream
        self._path = path
        self._data = node.data
        self._node = node
        self.entry = node.entry(path[-1])

    def __enter__(self) -> "MemoryFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def extents(self) -> Sequence[Extent]:
        extents, at = [], 0
        for start, end in self._node.holes:
            if start > at:
                extents.append(Extent(at, start - at, ExtentKind.DATA))
            extents.append(Extent(start, end - start, ExtentKind.ZERO))
            at = end
        if at < len(self._data):
            extents.append(Extent(at, len(self._data) - at, ExtentKind.DATA))
        return extents

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._stream.reads.append(self._path)
        data = self._stream.truncated.get(self._path, self._data)
        piece = data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._stream.bytes_read += len(piece)
        return len(piece)

    def attributes(self) -> Attributes:
        self._stream.asked.append(self._path)
        return self._node.attributes()

    def changed(self) -> bool:
        left = self._stream.changing.get(self._path, 0)
        self._stream.changing[self._path] = left - 1
        return left > 0


class MemoryFolder:
    def __init__(self, stream: "MemoryTree", path: Path, names: list[bytes]) -> None:
        self._stream = stream
        self.path = path
        self.entries = [stream.tree[(*path, name)].entry(name) for name in names]
        self.skipped: list[Skipped] = []

    def attributes(self, entry: Entry) -> Attributes:
        self._stream.asked.append((*self.path, entry.name))
        return self._stream.tree[(*self.path, entry.name)].attributes()

    def open(self, entry: Entry) -> MemoryFile:
        path = (*self.path, entry.name)
        if path in self._stream.vanished:
            raise SourceGone(reason="it vanished")
        return MemoryFile(self._stream, path, self._stream.tree[path])


@dataclass
class MemoryTree:
    """A TreeStream over a dict. What was read and asked for is recorded; files may change or vanish while read."""

    tree: Tree
    unchanged_before_ns: int = FAR_NS
    part: int = FOLDER_PART_ENTRIES_MAX
    changing: dict[Path, int] = field(default_factory=dict)  # times `changed` is still true
    truncated: dict[Path, bytes] = field(default_factory=dict)
    vanished: frozenset[Path] = frozenset()
    reads: list[Path] = field(default_factory=list)
    asked: list[Path] = field(default_factory=list)
    bytes_read: int = 0

    def __post_init__(self) -> None:
        self.tree = with_parents(self.tree)
        self._children: dict[Path, list[bytes]] = {
            path: [] for path, node in self.tree.items() if self._is_folder(node)
        }
        for path in sorted(self.tree):
            if path:
                self._children[path[:-1]].append(path[-1])

    @staticmethod
    def _is_folder(node: Node) -> bool:
        return node.data is None and not node.target

    def root(self) -> tuple[Entry, Attributes]:
        return self.tree[()].entry(b""), self.tree[()].attributes()

    def folders(self) -> Iterator[MemoryFolder]:
        for path in sorted(self._children):
            names = self._children[path]
            for start in range(0, max(len(names), 1), self.part):
                yield MemoryFolder(self, path, names[start : start + self.part])


class MemoryTarget:
    """A TreeTarget that becomes a Tree again."""

    def __init__(self, *, links: bool = True) -> None:
        self.tree: Tree = {}
        self.linked: dict[Path, Path] = {}
        self.finished = False
        self._links = links

    def _put(self, path: Path, entry: Entry, attributes: Attributes, data: bytes | None) -> None:
        assert path not in self.tree, path
        assert not path or path[:-1] in self.tree, path
        self.tree[path] = Node(
            data=data, target=attributes.target, mode=stat.S_IMODE(entry.mode), ctime_ns=entry.ctime_ns,
            mtime_ns=entry.mtime_ns, ino=entry.ino, nlink=entry.nlink, uid=entry.uid, gid=entry.gid, dev=entry.dev,
            sparse=entry.sparse, xattrs=attributes.xattrs,
        )  # fmt: skip

    def folder(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        self._put(path, entry, attributes, None)

    def file(self, path: Path, entry: Entry, attributes: Attributes) -> "MemoryTargetFile":
        self._put(path, entry, attributes, b"")
        return MemoryTargetFile(self, path, entry.size)

    def node(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        self._put(path, entry, attributes, None)

    def link(self, path: Path, first: Path, entry: Entry, attributes: Attributes) -> bool:
        if not self._links or first not in self.tree:
            return False
        self.linked[path] = first
        self._put(path, entry, attributes, self.tree[first].data)
        return True

    def finish(self) -> None:
        self.finished = True


class MemoryTargetFile:
    def __init__(self, target: MemoryTarget, path: Path, size: int) -> None:
        self._target = target
        self._path = path
        self._data = bytearray(size)
        self.closed = False

    def write(self, offset: int, data: memoryview) -> None:
        assert not self.closed
        assert offset + len(data) <= len(self._data)
        self._data[offset : offset + len(data)] = data

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._target.tree[self._path] = replace(self._target.tree[self._path], data=bytes(self._data))


class MemoryDisk:
    """A BlockStream and a BlockTarget over a bytearray."""

    def __init__(self, data: bytes | bytearray, extents: Sequence[Extent] | None = None) -> None:
        self.data = bytearray(data)
        self.size = len(self.data)
        self.bytes_read = 0
        self.flushed = False
        self._extents = extents

    def extents(self) -> Iterator[Extent]:
        if self._extents is not None:
            yield from self._extents
        elif self.size:
            yield Extent(0, self.size, ExtentKind.DATA)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self.data[offset : offset + len(buffer)]
        self.bytes_read += len(buffer)
        return len(buffer)

    def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self.flushed = True


def plain(tree: Tree) -> Tree:
    """What a restore must give back: everything but how the source had its holes laid out."""
    return {path: replace(node, holes=()) for path, node in with_parents(tree).items()}
