"""The restore verbs: a tree or a disk, or one path of a tree, from a root into a target.

The manifest is read in windows, so memory does not grow with the tree. Folders are made before what is in them, files
are written by several threads in the order of the store, links follow when their first name is complete, and `finish`
or `flush` makes it durable. Every byte is checked: a chunk is compared with its whole id before it is written.
"""

import stat
import threading
from collections.abc import Collection, Iterator
from typing import NamedTuple

from strongroom.base.errors import Corrupt, EntryNotFound, ManifestCorrupt, ObjectMissing, TargetTooSmall
from strongroom.base.streams import (
    Attributes,
    BlockTarget,
    Entry,
    FileTarget,
    Monitor,
    Path,
    SilentMonitor,
    Skipped,
    TreeTarget,
)
from strongroom.engine.chunker import HOLE, ID_BYTES, KEY_BYTES
from strongroom.engine.content import Content, is_one_chunk, iter_ids, iter_rows, parse_content, top_pages
from strongroom.engine.gather import Gatherer
from strongroom.engine.manifest import Item, Stream, open_stream, parse_attributes, parse_entry
from strongroom.engine.model import REPORT_PATHS_MAX, RestoreReport, Root
from strongroom.engine.repository import Repository, Session

LINKS_WAITING_MAX = 4096  # links of a window; they are made when it is written
FIRSTS_MAX = 1 << 18  # inodes with names still to come, 500 bytes each; names outside the backup never come
# Files of several chunks in a window: each may be open at once, by two descriptors, and so may those of the window
# before; a process may have 1024.
OPEN_FILES_MAX = 128


class _File:
    """One regular file on its way. It is opened by its first piece and closed by its last."""

    __slots__ = ("_left", "_lock", "_open", "attributes", "entry", "path", "target")

    def __init__(self, target: TreeTarget, path: Path, entry: Entry, attributes: Attributes) -> None:
        self.target = target
        self.path = path
        self.entry = entry
        self.attributes = attributes
        self._left = 1  # the announcement itself, until `complete`
        self._lock = threading.Lock()
        self._open: FileTarget | None = None

    def expect(self) -> None:
        """One more piece is coming."""
        with self._lock:
            self._left += 1

    def complete(self) -> None:
        """No more pieces will be announced."""
        self.wrote(1)

    def write(self, offset: int, data: memoryview) -> None:
        self._file().write(offset, data)

    def wrote(self, pieces: int) -> None:
        with self._lock:
            self._left -= pieces
            last = self._left == 0
        if last:
            self._file().close()
            self._open = None

    def _file(self) -> FileTarget:
        with self._lock:
            if self._open is None:
                self._open = self.target.file(self.path, self.entry, self.attributes)
            return self._open


class _Small(NamedTuple):
    """A regular file of one chunk: made, written and closed at once, by the thread that has the chunk."""

    target: TreeTarget
    path: Path
    entry: Entry
    attributes: Attributes

    def write(self, offset: int, data: memoryview) -> None:
        file = self.target.file(self.path, self.entry, self.attributes)
        file.write(offset, data)
        file.close()

    def wrote(self, pieces: int) -> None:
        return None


class _First(NamedTuple):
    """The first name of an inode, and how many more names it has."""

    path: Path
    size: int
    mtime_ns: int
    content: Content
    names_left: int


class _Lost:
    """What is left out because the store has lost its content. keys: of the chunks that no sound pack holds.

    A pack that is not sound may still give some of them: each is tried before it is given up.
    """

    def __init__(self, keys: Collection[bytes], session: Session) -> None:
        self._keys = keys
        self._session = session
        self._tried: dict[bytes, bool] = {}
        self.count = 0
        self.named: list[Skipped] = []

    def hits(self, content: Content) -> bool:
        """Whether any of it is lost."""
        for is_metadata, ids in iter_ids(content, self._session.metadata, lambda _: False) if self._keys else ():
            if not is_metadata and any(self.has(ids[at : at + ID_BYTES]) for at in range(0, len(ids), ID_BYTES)):
                return True
        return False

    def has(self, chunk_id: bytes) -> bool:
        key = chunk_id[:KEY_BYTES]
        if key not in self._keys:
            return False
        if key not in self._tried:
            try:
                self._session.data(chunk_id)
                self._tried[key] = False
            except (Corrupt, ObjectMissing):
                self._tried[key] = True
        return self._tried[key]

    def add(self, path: Path, reason: str) -> None:
        self.count += 1
        if len(self.named) < REPORT_PATHS_MAX:
            self.named.append(Skipped(path, reason))


_Link = tuple[Path, Item, Content, Path]  # what it is called, what it is, and the first name


class _TreeRestore:
    """One tree, or a part of it, into one target."""

    def __init__(self, session: Session, target: TreeTarget, gatherer: Gatherer, lost: _Lost) -> None:
        self._session = session
        self._lost = lost
        self._target = target
        self._gatherer = gatherer
        self._large = 0  # files of several chunks in this window
        self.firsts_forgotten = 0
        self._firsts: dict[tuple[int, int], _First] = {}
        self._links: list[_Link] = []  # of the window that is collected
        self._links_due: list[_Link] = []  # of those before it

    def item(self, path: Path, item: Item) -> None:
        """Make one entry; the content of files follows with the window."""
        entry = item.entry
        if item.content is not None and self._lost.hits(item.content):
            self._lost.add(path, "its content is lost in the store")
            return
        self._gatherer.entries += 1
        if stat.S_ISDIR(entry.mode):
            self._target.folder(path, entry, item.attributes)
        elif item.content is None:
            self._target.node(path, entry, item.attributes)
        elif entry.nlink > 1:
            self._linked(path, item, item.content)
        else:
            self._file(path, item, item.content)
        if self._gatherer.is_full or len(self._links) >= LINKS_WAITING_MAX:
            self._deliver()

    def finish(self) -> None:
        while self._links or self._links_due:
            self._deliver()
        self._gatherer.deliver()  # links that had to become files
        self._gatherer.settle()
        self._target.finish()

    def _linked(self, path: Path, item: Item, content: Content) -> None:
        """The first name of an inode is a file, the others are links to it, once it is complete.

        An inode number may have been given to another file during the walk: what differs is no link.
        """
        entry = item.entry
        key = (entry.dev, entry.ino)
        first = self._firsts.pop(key, None)
        if first is None:
            self._file(path, item, content)
            left = _First(path, entry.size, entry.mtime_ns, content, entry.nlink - 1)
        elif (entry.size, entry.mtime_ns, content) == first[1:4]:
            self._links.append((path, item, content, first.path))
            left = first._replace(names_left=first.names_left - 1)
        else:
            self._file(path, item, content)
            left = first
        if left.names_left > 0:
            self._firsts[key] = left
        if len(self._firsts) > FIRSTS_MAX:
            del self._firsts[next(iter(self._firsts))]
            self.firsts_forgotten += 1

    def _file(self, path: Path, item: Item, content: Content) -> None:
        if is_one_chunk(content, item.entry.size):
            if self._gatherer.is_full:
                self._gatherer.deliver()
                self._large = 0
            small = _Small(self._target, path, item.entry, item.attributes)
            self._gatherer.add(content.rows[:ID_BYTES], item.entry.size, small, 0)
            return
        file = _File(self._target, path, item.entry, item.attributes)
        end = pieces = 0
        for chunk_id, length, offset in iter_rows(content, self._session.metadata):
            end = offset + length
            if end > item.entry.size:
                break  # what is beyond may be endless
            if chunk_id == HOLE:
                continue
            pieces += 1
            if pieces == 2:
                self._large += 1
            if self._gatherer.is_full or self._large > OPEN_FILES_MAX:
                self._gatherer.deliver()
                self._large = 1
            file.expect()
            self._gatherer.add(chunk_id, length, file, offset)
        if end != item.entry.size:
            raise ManifestCorrupt(reason="a file has another size than its content", detail=f"{item.entry.size}, {end}")
        file.complete()

    def _deliver(self) -> None:
        """Between two entries: every file begun before is complete when the next window begins, so it can be linked."""
        self._gatherer.deliver()
        self._large = 0
        due, self._links_due, self._links = self._links_due, self._links, []
        for path, item, content, first in due:
            if not self._target.link(path, first, item.entry, item.attributes):
                self._file(path, item, content)


def restore_tree(
    repository: Repository,
    root: str,
    target: TreeTarget,
    *,
    path: Path = (),
    monitor: Monitor | None = None,
    lost: Collection[bytes] = (),
) -> RestoreReport:
    """Restore a tree, or the entry at `path` with all below it and the folders above it, into `target`.

    lost: keys of chunks (verify.find_lost); files that need one are left out and reported, whole ones are restored.

    Durable on return. Raises EntryNotFound, Corrupt classes, SourceError of the target; the target is left half made
    then, which is the caller's to remove.
    """
    monitor = monitor or SilentMonitor()
    with repository.session("restore", root) as session:
        found = session.load_root(root)
        stream = open_stream(found, session.metadata, session.expect)
        entry, attributes = _root_folder(found)
        target.folder((), entry, attributes)
        without = _Lost(lost, session)
        with Gatherer(session, monitor, 0 if path else found.size) as gatherer:
            work = _TreeRestore(session, target, gatherer, without)
            for at, item in _selected(stream, path):
                work.item(at, item)
            work.finish()
    monitor.advance(gatherer.bytes_written, gatherer.bytes_written, gatherer.entries)
    warnings: tuple[str, ...] = ()
    if work.firsts_forgotten:
        count = work.firsts_forgotten
        warnings = (f"Hard links to {count} files may have become files of their own: too many have other names.",)
    return RestoreReport(
        bytes=gatherer.bytes_written,
        entries=gatherer.entries,
        warnings=warnings,
        lost=tuple(without.named),
        lost_count=without.count,
    )


def _root_folder(root: Root) -> tuple[Entry, Attributes]:
    folder = root.body.folder
    if folder is None or len(folder) != 2:
        raise ManifestCorrupt(reason=f"root {root.name} does not describe its top folder")
    return parse_entry(folder[0], is_root=True), parse_attributes(folder[1])


def _selected(stream: Stream, path: Path) -> Iterator[tuple[Path, Item]]:
    """Every entry to restore with its path, folders before what is in them."""
    is_folder = True
    for depth in range(1, len(path) + 1):
        item = stream.find(path[:depth]) if is_folder else None
        if item is None:
            raise EntryNotFound(id=b"/".join(path).decode(errors="replace"))
        yield path[:depth], item
        is_folder = stat.S_ISDIR(item.entry.mode)
    if not is_folder:
        return
    for record, _ in stream.records((path, b"") if path else None):
        if record.path[: len(path)] != path:
            if record.path > path:
                return
            continue
        for item in record.items():
            yield (*record.path, item.entry.name), item


class _BlockSink:
    """Pieces of a disk."""

    def __init__(self, target: BlockTarget) -> None:
        self._target = target

    def write(self, offset: int, data: memoryview) -> None:
        self._target.write(offset, data)

    def wrote(self, pieces: int) -> None:
        return None


def restore_block(
    repository: Repository,
    root: str,
    target: BlockTarget,
    monitor: Monitor | None = None,
    lost: Collection[bytes] = (),
) -> RestoreReport:
    """Restore a disk: every byte of [0, size) of the backup is written or zeroed; beyond it nothing is touched.

    lost: keys of chunks (verify.find_lost), in whose places zeros are written, and reported.

    Durable on return. Raises TargetTooSmall before anything is written.
    """
    monitor = monitor or SilentMonitor()
    with repository.session("restore", root) as session:
        found = session.load_root(root)
        if found.kind != "block":
            raise ManifestCorrupt(reason=f"root {found.name} holds no disk")
        if target.size < found.size:
            raise TargetTooSmall(reason=f"The target has {target.size} bytes, the backup needs {found.size}.")
        without = _Lost(lost, session)
        with Gatherer(session, monitor, found.size) as gatherer:
            gatherer.entries = 1
            _blocks(found, session, target, gatherer, without)
            gatherer.settle()
        target.flush()
    monitor.advance(found.size, found.size, 1)
    return RestoreReport(bytes=gatherer.bytes_written, entries=1, lost=tuple(without.named), lost_count=without.count)


def _blocks(root: Root, session: Session, target: BlockTarget, gatherer: Gatherer, lost: _Lost) -> None:
    sink = _BlockSink(target)
    content = parse_content(root.body.stream)
    session.expect(top_pages(content))
    end = hole = 0
    for chunk_id, length, offset in iter_rows(content, session.metadata):
        end = offset + length
        if chunk_id != HOLE and lost.has(chunk_id):
            lost.add((), f"bytes {offset} to {end} are lost in the store; zeros stand there")
            chunk_id = HOLE
        if chunk_id == HOLE:
            hole += length
            continue
        if hole:
            target.zero(offset - hole, hole)
            hole = 0
        if gatherer.is_full:
            gatherer.deliver()
        gatherer.add(chunk_id, length, sink, offset)
    if end != root.size:
        raise ManifestCorrupt(reason=f"root {root.name} describes another size than its own")
    if hole:
        target.zero(end - hole, hole)
    gatherer.deliver()
