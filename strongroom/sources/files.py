"""Reading a folder tree: the walk and the files in it, as a TreeStream.

The walk lists and lstats, nothing else (5 us an entry); attributes and content cost calls of their own and are asked
for what is new or changed. Left out: sockets (listed), what exclude patterns match and names of our own staging
places (silently). Device nodes are never opened.
"""

import errno
import os
import stat
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter

from strongroom.base.errors import SourceError, SourceGone
from strongroom.base.streams import FOLDER_PART_ENTRIES_MAX, Attributes, Entry, Extent, ExtentKind, Path, Skipped
from strongroom.sources.base import STAGING_PREFIX, SourceOptions
from strongroom.sources.descent import Descent
from strongroom.sources.inodes import (
    OPEN_FOLDER,
    OPEN_READ,
    data_extents,
    entry_of,
    fd_attributes,
    open_quietly,
    pread_full,
    read_attributes,
    syncfs,
)
from strongroom.sources.oserrors import below, shown, source_error
from strongroom.sources.pace import Pace
from strongroom.sources.patterns import Pattern, compile_patterns, is_excluded

_by_name = itemgetter(0)
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # os.fsencode, without its checks
_TYPE = 0o170000  # of a mode
_FOLDER_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)


class OpenFile:
    """One open regular file; FileData of the stream. Reads may come from several threads."""

    def __init__(self, fd: int, name: bytes, path: bytes, pace: Pace) -> None:
        self._fd = fd
        self._path = path
        self._pace = pace
        self.entry = entry_of(name, os.fstat(fd))

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def extents(self) -> Sequence[Extent]:
        if not self.entry.sparse:
            return [Extent(0, self.entry.size, ExtentKind.DATA)] if self.entry.size else []
        try:
            return data_extents(self._fd, self.entry.size)
        except OSError as err:
            raise source_error(err, self._path, "read") from err

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._pace.take(len(buffer))
        try:
            return pread_full(self._fd, buffer, offset)
        except OSError as err:
            raise source_error(err, self._path, "read") from err

    def attributes(self) -> Attributes:
        try:
            return fd_attributes(self._fd)
        except OSError as err:
            raise source_error(err, self._path, "read the attributes of") from err

    def changed(self) -> bool:
        try:
            now, then = os.fstat(self._fd), self.entry
        except OSError as err:  # ESTALE of a network file system: the server lost the file that we hold open
            raise source_error(err, self._path, "look at") from err
        return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (then.size, then.mtime_ns, then.ctime_ns)


class OpenFolder:
    """One folder of the walk, or one part of a very large one; Folder of the stream."""

    def __init__(
        self, root: bytes, path: Path, fd: int, pace: Pace, entries: Sequence[Entry], skipped: Sequence[Skipped]
    ) -> None:
        self.path = path
        self.entries = entries
        self.skipped = skipped
        self._root = root
        self._fd = fd
        self._pace = pace

    def keep(self) -> "OpenFolder":
        """The folder without its entries, valid until `close`: its descriptor is its own."""
        fd = os.open(b".", OPEN_FOLDER, dir_fd=self._fd)
        return OpenFolder(self._root, self.path, fd, self._pace, (), ())

    def close(self) -> None:
        """Of one that was kept. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def attributes(self, entry: Entry) -> Attributes:
        try:
            return read_attributes(self._fd, entry)
        except OSError as err:
            raise source_error(err, self._shown(entry), "read the attributes of") from err

    def open(self, entry: Entry) -> OpenFile:
        path = self._shown(entry)
        try:
            fd = open_quietly(entry.name, OPEN_READ, self._fd)
        except OSError as err:
            raise source_error(err, path, "read") from err
        try:
            data = OpenFile(fd, entry.name, path, self._pace)
        except OSError as err:
            os.close(fd)
            raise source_error(err, path, "look at") from err
        if not stat.S_ISREG(data.entry.mode):
            data.__exit__()
            raise SourceGone(reason=f"{shown(path)} is not the file any more that was listed.")
        return data

    def _shown(self, entry: Entry) -> bytes:
        return below(self._root, (*self.path, entry.name))


class FolderTree:
    """The tree below an open folder; TreeStream. `root_fd` stays the caller's, `unchanged_before_ns` is his promise.

    above: where that folder lies below `root`, when it is a part of a larger tree: paths begin with it.
    """

    def __init__(
        self, root_fd: int, root: bytes, options: SourceOptions, unchanged_before_ns: int, above: Path = ()
    ) -> None:
        self._above = above
        self.unchanged_before_ns = unchanged_before_ns
        self._root_fd = root_fd
        self._root = root
        self._one_file_system = options.one_file_system
        self._patterns: tuple[Pattern, ...] = compile_patterns(options.exclude)
        self._pace = Pace(options.read_limit_bytes_s)
        self._device = os.fstat(root_fd).st_dev
        self._synced = {self._device}  # the driver did that one

    def root(self) -> tuple[Entry, Attributes]:
        try:
            return entry_of(b"", os.fstat(self._root_fd)), fd_attributes(self._root_fd)
        except OSError as err:
            raise source_error(err, self._root, "read the attributes of") from err

    def folders(self) -> Iterator[OpenFolder]:
        descent = Descent(self._root_fd)
        try:
            subfolders: list[bytes] = []
            yield from self._parts(descent, subfolders)
            pending = [subfolders]
            while pending:
                names = pending[-1]
                if not names:
                    pending.pop()
                    if pending and not descent.leave():
                        pending[-1].clear()  # moved away meanwhile, with what was left in it
                elif self._enter(descent, names.pop()):
                    subfolders = []
                    yield from self._parts(descent, subfolders)
                    pending.append(subfolders)
        finally:
            descent.close()

    def _enter(self, descent: Descent, name: bytes) -> bool:
        """False when the name vanished or became something else since it was listed."""
        try:
            descent.enter(name)
            if descent.dev not in self._synced:
                syncfs(descent.fd)
                self._synced.add(descent.dev)
        except OSError as err:
            if err.errno in _FOLDER_GONE:
                return False
            raise source_error(err, below(self._root, (*self._above, *descent.path, name)), "read") from err
        return True

    def _parts(self, descent: Descent, subfolders: list[bytes]) -> Iterator[OpenFolder]:
        """The current folder in parts; fills `subfolders`, last name first."""
        fd, path = descent.fd, descent.path
        try:
            with os.scandir(fd) as listing:
                first = list(islice(listing, FOLDER_PART_ENTRIES_MAX + 1))
                names = []
                if len(first) > FOLDER_PART_ENTRIES_MAX:
                    # Very large: keep names only, they are lstat'ed part by part.
                    names = sorted(os.fsencode(item.name) for item in chain(first, listing))
            if not names:
                yield self._folder(fd, path, _entries_of(first), subfolders)
            for start in range(0, len(names), FOLDER_PART_ENTRIES_MAX):
                part = _lstat_names(fd, names[start : start + FOLDER_PART_ENTRIES_MAX])
                yield self._folder(fd, path, part, subfolders)
        except OSError as err:
            raise source_error(err, below(self._root, (*self._above, *path)), "list") from err
        subfolders.reverse()

    def _folder(self, fd: int, path: Path, entries: list[Entry], subfolders: list[bytes]) -> OpenFolder:
        """Leave out what does not belong into a backup, and note the folders to go into."""
        if self._are_plain(entries):
            subfolders += [entry[0] for entry in entries if entry[1] & _TYPE == stat.S_IFDIR]
            return OpenFolder(self._root, (*self._above, *path), fd, self._pace, entries, ())
        kept: list[Entry] = []
        skipped: list[Skipped] = []
        patterns = self._patterns
        for entry in entries:
            name, kind = entry[0], entry[1] & _TYPE
            if name.startswith(STAGING_PREFIX):
                continue
            if patterns and is_excluded(patterns, path, name, is_folder=kind == stat.S_IFDIR):
                continue
            if kind == stat.S_IFSOCK:
                skipped.append(
                    Skipped((*self._above, *path, name), "a socket lives only with the program that made it")
                )
                continue
            if kind == stat.S_IFDIR:
                if self._one_file_system and entry.dev != self._device:
                    skipped.append(Skipped((*self._above, *path, name), "the content is on another file system"))
                else:
                    subfolders.append(name)
            kept.append(entry)
        return OpenFolder(self._root, (*self._above, *path), fd, self._pace, kept, skipped)

    def _are_plain(self, entries: list[Entry]) -> bool:
        """Whether nothing of them can have to be left out: so it is of nearly every folder. `entries` by name."""
        if self._patterns or self._one_file_system:
            return False
        at = bisect_left(entries, STAGING_PREFIX, key=_by_name)
        if at < len(entries) and entries[at][0].startswith(STAGING_PREFIX):
            return False
        return not [entry for entry in entries if entry[1] & _TYPE == stat.S_IFSOCK]


def open_root(path: bytes) -> int:
    """A descriptor of a registered folder. Raises SourceGone, SourceDenied, SourceError; the last part is no link."""
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            raise SourceError(reason=f"{shown(path)} is a symbolic link. Register the folder it leads to.")
        if not stat.S_ISDIR(info.st_mode):
            raise SourceError(reason=f"{shown(path)} is not a folder. Register a folder.")
        return open_quietly(path, OPEN_FOLDER, None)
    except (OSError, ValueError) as err:
        known = err if isinstance(err, OSError) else OSError(str(err))
        raise source_error(known, path, "read") from err


def _entries_of(listing: list[os.DirEntry[str]]) -> list[Entry]:
    """Entries sorted by name; those that vanished since the listing are left out."""
    entries = []
    for item in listing:
        try:
            info = item.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        entries.append(entry_of(item.name.encode(_ENCODING, _ERRORS), info))
    entries.sort(key=_by_name)
    return entries


def _lstat_names(fd: int, names: list[bytes]) -> list[Entry]:
    """The same for names that are sorted already."""
    entries = []
    for name in names:
        try:
            entries.append(entry_of(name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
        except FileNotFoundError:
            continue
    return entries
