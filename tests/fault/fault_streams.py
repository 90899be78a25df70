"""Trees and disks in memory, as small real sources and targets of the engine: fast enough for thousands of runs."""

import random
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from strongroom.base.streams import NO_ATTRIBUTES, Attributes, Entry, Extent, ExtentKind, FileTarget, Path, Skipped
from strongroom.base.units import KIB
from strongroom.engine.files import changed_extents

Files = Mapping[Path, bytes]
LONG_AGO_NS = 1_600_000_000_000_000_000


def entry_of(name: bytes, data: bytes | None, number: int, changed_ns: int = LONG_AGO_NS) -> Entry:
    """A regular file for bytes, a folder for None."""
    mode = stat.S_IFDIR | 0o755 if data is None else stat.S_IFREG | 0o644
    return Entry(name, mode, 0, 0, changed_ns, len(data or b""), changed_ns, number, 1, 1, 0, False)


@dataclass(frozen=True)
class MemoryFile:
    """One open file of a MemoryTree."""

    entry: Entry
    data: bytes

    def __enter__(self) -> "MemoryFile":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def extents(self) -> Sequence[Extent]:
        return [Extent(0, len(self.data), ExtentKind.DATA)] if self.data else []

    def read_into(self, offset: int, buffer: memoryview) -> int:
        piece = self.data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def attributes(self) -> Attributes:
        return NO_ATTRIBUTES

    def changed(self) -> bool:
        return False


@dataclass(frozen=True)
class MemoryFolder:
    """One folder of a MemoryTree."""

    path: Path
    entries: Sequence[Entry]
    files: Files
    skipped: Sequence[Skipped] = ()

    def attributes(self, entry: Entry) -> Attributes:
        return NO_ATTRIBUTES

    def open(self, entry: Entry) -> MemoryFile:
        return MemoryFile(entry, self.files[(*self.path, entry.name)])


class MemoryTree:
    """A tree stream of `files`; `changed_ns` tells when files of equal name and size differ between two trees."""

    def __init__(self, files: Files, changed_ns: Mapping[Path, int] | None = None) -> None:
        self.files = dict(files)
        self.unchanged_before_ns = LONG_AGO_NS + (1 << 60)
        times = changed_ns or {}
        folders: dict[Path, dict[bytes, Entry]] = {(): {}}
        for number, path in enumerate(sorted(self.files)):
            for depth in range(1, len(path)):
                folders.setdefault(path[:depth], {})
                folders[path[: depth - 1]].setdefault(path[depth - 1], entry_of(path[depth - 1], None, 1000 + depth))
            entry = entry_of(path[-1], self.files[path], number + 5000, times.get(path, LONG_AGO_NS))
            folders[path[:-1]][path[-1]] = entry
        self._folders = folders

    def root(self) -> tuple[Entry, Attributes]:
        return entry_of(b"", None, 2), NO_ATTRIBUTES

    def folders(self) -> Iterator[MemoryFolder]:
        for path in sorted(self._folders):
            yield MemoryFolder(path, [entry for _, entry in sorted(self._folders[path].items())], self.files)


class MemoryTreeTarget:
    """What a restore writes: `files` after `finish`."""

    def __init__(self) -> None:
        self.files: dict[Path, bytes] = {}
        self.finished = False

    def folder(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        return None

    def file(self, path: Path, entry: Entry, attributes: Attributes) -> FileTarget:
        return MemoryFileTarget(self, path, entry.size)

    def node(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        return None

    def link(self, path: Path, first: Path, entry: Entry, attributes: Attributes) -> bool:
        return False

    def finish(self) -> None:
        self.finished = True


class MemoryFileTarget:
    """One file of a MemoryTreeTarget; it is there when it was closed."""

    def __init__(self, tree: MemoryTreeTarget, path: Path, size: int) -> None:
        self._tree = tree
        self._path = path
        self._data = bytearray(size)

    def write(self, offset: int, data: memoryview) -> None:
        assert offset + len(data) <= len(self._data)
        self._data[offset : offset + len(data)] = data

    def close(self) -> None:
        self._tree.files[self._path] = bytes(self._data)


class MemoryDisk:
    """A block stream and target of fixed size. changed: what differs from the parent, None if nobody knows."""

    def __init__(self, data: bytes, changed: Sequence[tuple[int, int]] | None = None) -> None:
        self.data = bytearray(data)
        self.size = len(data)
        self._changed = changed

    def extents(self) -> Iterator[Extent]:
        if self._changed is None:
            yield Extent(0, self.size, ExtentKind.DATA)
        else:
            yield from changed_extents(self._changed, self.size)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self.data[offset : offset + len(buffer)]
        return len(buffer)

    def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        return None


def random_files(seed: int, *, count: int = 12, bytes_max: int = 200 * KIB) -> dict[Path, bytes]:
    """A small tree: empty, small and cut files, some equal, in a few folders; not compressible, so sizes are known."""
    chance = random.Random(seed)
    files: dict[Path, bytes] = {}
    for number in range(count):
        folder = (b"folder-%d" % (number % 3), b"deep")[: number % 3]
        size = (0, 10, 3000, bytes_max)[number % 4]
        files[(*folder, b"file-%d" % number)] = chance.randbytes(size)
    files[(b"copy",)] = files.get((b"folder-1", b"file-7"), b"copy")
    return files
