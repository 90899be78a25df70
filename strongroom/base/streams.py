"""What flows between a source and the engine: two kinds of streams, and the targets they are written back to.

Sources implement these protocols, the engine uses them; neither knows the other. Names are bytes, a path is a tuple
of names below the root of the stream, `()` being the root itself. Folders come in pre-order with siblings sorted by
name, which is exactly the order of their path tuples: two walks of a tree can be merged without memory.
"""

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Path = tuple[bytes, ...]

FOLDER_PART_ENTRIES_MAX = 4096  # a folder of a million entries is handed over in parts of this many


class ExtentKind(enum.IntEnum):
    """DATA must be read, ZERO reads as zeros, SAME is proven equal to the parent's bytes."""

    DATA = 0
    ZERO = 1
    SAME = 2


class Extent(NamedTuple):
    """A half-open range of a file or device, in bytes: [offset, offset + length)."""

    offset: int
    length: int
    kind: ExtentKind


class Entry(NamedTuple):
    """One name as `lstat` saw it. A tuple, not a dataclass: a walk makes hundreds of thousands a second.

    name      bytes; b"" for the root        size    bytes of a regular file, else 0
    mode      st_mode with the type bits     sparse  fewer blocks allocated than size needs
    *_ns      nanoseconds since 1970, may be negative
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    ctime_ns: int
    ino: int
    dev: int
    nlink: int
    rdev: int
    sparse: bool


class Attributes(NamedTuple):
    """What costs calls of its own, so it is asked only for entries that are new or changed.

    xattrs  sorted (name, value); ACLs are the system.posix_acl_* among them
    flags   inode flags of FS_IOC_GETFLAGS, masked to immutable 0x10, append 0x20, nodump 0x40
    target  of a symbolic link, else b""
    """

    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    flags: int = 0
    target: bytes = b""


NO_ATTRIBUTES = Attributes()


class Skipped(NamedTuple):
    """An entry that is left out on purpose, with the reason for the report (sockets, for one)."""

    path: Path
    reason: str


class FileData(AbstractContextManager["FileData"], Protocol):
    """One open regular file."""

    entry: Entry  # as fstat saw it at open

    def extents(self) -> Sequence[Extent]:
        """DATA and ZERO ranges in order, without gaps, covering [0, entry.size)."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; MUST return len(buffer) except at the end of the file. Raises SourceError."""
        ...

    def attributes(self) -> Attributes:
        """As Folder.attributes, of this very file, whatever its name leads to by now. Raises SourceError."""
        ...

    def changed(self) -> bool:
        """True when size, mtime or ctime are not those of `entry` any more: read it again."""
        ...


class Folder(Protocol):
    """One folder, or one part of a very large one. Valid until the next one is taken from the iterator.

    The parts of one folder follow each other, names ascending across parts; its sub-folders come after the last part.
    """

    path: Path
    skipped: Sequence[Skipped]

    @property
    def entries(self) -> Sequence[Entry]:
        """Sorted by name, sockets and excluded names left out."""
        ...

    def attributes(self, entry: Entry) -> Attributes:
        """Read xattrs, flags and link target. Raises SourceGone when the name vanished, else SourceError."""
        ...

    def open(self, entry: Entry) -> FileData:
        """Open a regular file without following links. Raises SourceGone when the name vanished, else SourceError."""
        ...


class TreeStream(Protocol):
    """A folder tree.

    unchanged_before_ns: an entry whose ctime is not below this may have changed after it was read, so the next run
    must not take it as unchanged on the strength of its times (RULINGS 15: start of the walk minus 2 s, after syncfs).
    """

    unchanged_before_ns: int

    def root(self) -> tuple[Entry, Attributes]:
        """The root folder itself, name b""."""
        ...

    def folders(self) -> Iterator[Folder]:
        """Walk once, pre-order. A folder that vanished is left out; one that cannot be read raises SourceError."""
        ...


class Cutting(NamedTuple):
    """What a source far away needs to cut and name chunks by itself, so that only new ones travel.

    key    32 bytes that name chunks           seed  of the chunker
    knows  whether the chunk of an id of 32 bytes is stored already; from one thread
    """

    key: bytes
    seed: int
    knows: Callable[[bytes], bool]


class Piece(NamedTuple):
    """One chunk of a file, or a hole (an id of zeros). data: None for a chunk that `Cutting.knows`."""

    id: bytes
    length: int
    data: memoryview | None


class CutFile(FileData, Protocol):
    """A file that its source has cut. `attributes`, `changed` and `whole` may be asked when the pieces were taken."""

    def pieces(self) -> Iterator[Piece]:
        """Once, in order, covering [0, entry.size); disk images in blocks, as `engine/files.py` has them."""
        ...

    @property
    def whole(self) -> bool:
        """False when the file ended before entry.size; what was missing came as holes."""
        ...


class CutFolder(Folder, Protocol):
    """A folder whose files are CutFiles. `entries` may cost much: it is not asked for where `listing` says enough.

    listing: msgpack of `entries`, a list of tuples, of which there is one spelling only.
    """

    listing: bytes

    def expect(self, entries: Sequence[tuple[Entry, bool]]) -> None:
        """What will be asked for, in this order: True `open`, False `attributes`. A hint that saves waiting."""
        ...


class CutTree(TreeStream, Protocol):
    """A tree whose folders are CutFolders."""

    def cut_by(self, cutting: Cutting) -> None:
        """Called once, before `root`."""
        ...


class BlockStream(Protocol):
    """A disk, volume or image: `size` bytes at fixed places."""

    size: int

    def extents(self) -> Iterator[Extent]:
        """Ranges in order, without gaps, covering [0, size). SAME only with a proven parent."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the whole buffer from `offset`. MUST return len(buffer) or raise SourceShort. Calls may overlap."""
        ...


class FileTarget(Protocol):
    """One regular file being restored. Writes may come in any order and from several threads."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises SourceError (disk full included)."""
        ...

    def close(self) -> None:
        """Set the size (holes stay holes), then owner, mode, xattrs, times, flags, in the order that keeps them."""
        ...


class TreeTarget(Protocol):
    """A tree being restored into a staging folder. No call ever follows a link or leaves the folder.

    `file`, `node` and `link` may be called from several threads, after the `folder` call of their parent.
    """

    def folder(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        """Make a folder (the root is path ()). Its own metadata is set by `finish`, after its content."""
        ...

    def file(self, path: Path, entry: Entry, attributes: Attributes) -> FileTarget:
        """Begin a regular file."""
        ...

    def node(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        """Make a symbolic link, fifo or device node."""
        ...

    def link(self, path: Path, first: Path, entry: Entry, attributes: Attributes) -> bool:
        """Make `path` a hard link to `first`. False when `first` was not restored: the caller then writes a file."""
        ...

    def finish(self) -> None:
        """All content is there: set folder metadata, deepest first, and make everything durable."""
        ...


class BlockTarget(Protocol):
    """A disk being restored. Concurrent calls on different ranges allowed."""

    size: int

    def write(self, offset: int, data: memoryview) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...

    def flush(self) -> None:
        """Everything written is durable on return."""
        ...


class Monitor(Protocol):
    """How long work tells where it is and learns that it should stop. Called between segments, never per chunk."""

    def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
        """Totals so far, not increments; bytes_total 0 when not known yet."""
        ...

    def check(self) -> None:
        """Raises Canceled or Fenced when the work must stop."""
        ...


@dataclass(frozen=True, kw_only=True)
class SilentMonitor:
    """For work nobody watches."""

    def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
        return None

    def check(self) -> None:
        return None
