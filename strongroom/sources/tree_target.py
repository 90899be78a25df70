"""Writing a folder tree into a staging folder: the TreeTarget of a restore.

Nothing a restore point says can reach outside: every name is one name (`check_name`), every folder is opened from its
parent with O_NOFOLLOW, files are made with O_EXCL, links and nodes by name in an open folder. The staging folder is
0700 and ours, so nobody else meets half a tree.

Small files lie in the page cache until they are written back. The kernel would begin with that after gigabytes, so that
`finish` had to wait for most of them; it is begun every FLUSH_BYTES instead, beside the work.

Cost of a small file: openat, write, utimens, close; fchown and fchmod only where it is not born with owner and mode.
There is no fsync a file: `finish` syncs the file system.
"""

import contextlib
import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import ParamSpec

from strongroom.base.direct import DIRECT_BYTES_MIN, DirectWriter, pwrite_full
from strongroom.base.errors import TargetDenied
from strongroom.base.streams import Attributes, Entry, Path
from strongroom.base.units import MIB
from strongroom.sources.inodes import FLAGS_PINNING, OPEN_FOLDER, OPEN_READ, syncfs
from strongroom.sources.metadata import MetadataWriter, birth_mode
from strongroom.sources.oserrors import below, shown, target_error
from strongroom.sources.selection import Selection, check_name

P = ParamSpec("P")

FOLDERS_OPEN_MAX = 64  # cached descriptors; restores come in order, so a few are enough
FLUSH_BYTES = 256 * MIB
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HOSTILE = (errno.EEXIST, errno.ELOOP, errno.ENOTDIR, errno.ENOENT)  # twice the same name, a path through no folder
_TOO_MUCH = (errno.ENAMETOOLONG, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP)  # this file system or user cannot have it


class _OpenFolder:
    """A descriptor that is closed when the last user lets go of it: the cache, or a thread that is just using it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class StagedFile:
    """One regular file being restored; FileTarget of the stream."""

    def __init__(self, fd: int, path: Path, entry: Entry, attributes: Attributes, tree: "StagedTree") -> None:
        self._fd = fd
        self._path = path
        self._entry = entry
        self._attributes = attributes
        self._tree = tree
        self._end = 0
        self._large = DirectWriter(fd, entry.size) if entry.size >= DIRECT_BYTES_MIN else None

    def write(self, offset: int, data: memoryview) -> None:
        try:
            if self._large is None:
                pwrite_full(self._fd, data, offset)
            else:
                self._large.write(offset, data)
        except OSError as err:
            raise self._tree.error(err, self._path) from err
        self._end = max(
            self._end, offset + len(data)
        )  # two threads may lose one of two: close() then truncates once more

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._large is not None:
                self._large.close()
            if self._end != self._entry.size:
                os.ftruncate(fd, self._entry.size)
            self._tree.metadata.set_on_fd(fd, self._path, self._entry, self._attributes, born=True)
        except OSError as err:
            raise self._tree.error(err, self._path) from err
        finally:
            os.close(fd)
        self._tree.file_done(self._path, self._end, self._attributes.flags)


class StagedTree:
    """TreeTarget. `new_fd` is the empty staging folder and stays the caller's; `shown_root` is for sentences.

    After `finish`: `finals` holds, for units, what must wait until they are in their place: (mode or None, flags);
    `records` the metadata of the root and of folders above the selection.
    """

    def __init__(self, new_fd: int, shown_root: bytes, selection: Selection, metadata: MetadataWriter) -> None:
        self.metadata = metadata
        self.finals: dict[Path, tuple[int | None, int]] = {}
        self.records: dict[Path, tuple[Entry, Attributes]] = {}
        self.written_bytes = 0
        self._finished = False
        self._new_fd = new_fd
        self._shown_root = shown_root
        self._selection = selection
        self._lock = threading.Lock()  # of everything below
        self._open: OrderedDict[Path, _OpenFolder] = OrderedDict()
        self._folders: dict[Path, tuple[Entry, Attributes]] = {}
        self._flagged: list[tuple[Path, int]] = []
        self._nodes: dict[tuple[int, int, int], Path] = {}  # first name of nodes with several
        self._made_above: set[Path] = set()
        self._dirty_bytes = 0
        self._flusher: threading.Thread | None = None

    def folder(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        if not path or self._selection.is_above(path):
            self._keep_record(path, entry, attributes)
            return
        self._check(path)
        self._make_folder(path, birth_mode(entry) | 0o700)
        with self._lock:
            self._folders[path] = (entry, attributes)

    def file(self, path: Path, entry: Entry, attributes: Attributes) -> StagedFile:
        self._check(path)
        parent = self._parent(path)
        try:
            fd = os.open(path[-1], _CREATE, birth_mode(entry), dir_fd=parent.fd)
        except OSError as err:
            raise self.error(err, path) from err
        return StagedFile(fd, path, entry, attributes, self)

    def node(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        self._check(path)
        parent = self._parent(path)
        kind = stat.S_IFMT(entry.mode)
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and not self.metadata.trusted:
            self.metadata.left_out.add(path, "a device node: not to another resource")
            return
        if kind not in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK):
            self.metadata.left_out.add(path, "an entry of this type cannot be restored")
            return
        if entry.nlink > 1 and entry.ino and self._link_node(path, entry, attributes):
            return
        try:
            if kind == stat.S_IFLNK:
                os.symlink(attributes.target, path[-1], dir_fd=parent.fd)
            else:
                os.mknod(path[-1], kind | 0o600, entry.rdev, dir_fd=parent.fd)
        except (OSError, ValueError) as err:
            if isinstance(err, ValueError) or err.errno == errno.ENOENT:
                raise TargetDenied(reason=f"The link {self._shown(path)} has no usable target.") from err
            if err.errno not in _TOO_MUCH:
                raise self.error(err, path) from err
            self.metadata.left_out.add(path, f"it cannot be made here: {os.strerror(err.errno)}")
            return
        self._run(path, self.metadata.set_on_name, parent.fd, path, entry, attributes)

    def _link_node(self, path: Path, entry: Entry, attributes: Attributes) -> bool:
        """Links, fifos and nodes may have several names too; they come as nodes each time, not by `link`."""
        with self._lock:
            first = self._nodes.setdefault((entry.dev, entry.ino, stat.S_IFMT(entry.mode)), path)
        return first != path and self.link(path, first, entry, attributes)

    def link(self, path: Path, first: Path, entry: Entry, attributes: Attributes) -> bool:
        self._check(path)
        for name in first:
            check_name(name)
        if not first or not self._selection.holds(first):
            return False
        parent = self._parent(path)
        try:
            source = self._parent(first)
            os.link(first[-1], path[-1], src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        except TargetDenied:
            return False  # the folder of `first` was never made
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.EMLINK, errno.EXDEV):
                return False
            raise self.error(err, path) from err
        return True

    def finish(self) -> None:
        """Flags of files, then folders from the deepest up, then one sync. What would pin a unit goes to `finals`."""
        if self._finished:
            return  # the engine calls it, and the target that owns this tree
        self._finished = True
        for path, flags in self._flagged:
            self._run(path, self._set_file_flags, path, flags)
        for path in reversed(self._folders):  # parents were made before their children
            self._run(path, self._set_folder, path)
        if self._selection.is_unit(()) and () in self.records:
            self._run((), self._set_folder, ())
        self.release()
        self._end_flushing()
        try:
            syncfs(self._new_fd)
        except OSError as err:
            raise self.error(err, ()) from err

    def release(self) -> None:
        """Close the cached folders; they are opened again when they are needed."""
        with self._lock:
            self._open.clear()

    def _flush(self) -> None:
        """Begin with what `finish` will have to wait for. It has a descriptor of its own, so an error is told again."""
        with contextlib.suppress(OSError):
            fd = os.open(b".", OPEN_FOLDER, dir_fd=self._new_fd)
            try:
                syncfs(fd)
            finally:
                os.close(fd)

    def _end_flushing(self) -> None:
        if self._flusher is not None:
            self._flusher.join()

    def error(self, err: OSError, path: Path) -> Exception:
        """The error to raise for a failed write at `path`."""
        if err.errno in _HOSTILE:
            return TargetDenied(
                reason=f"The restore point is not a proper tree at {self._shown(path)}; nothing was changed.",
                detail=repr(err),
            )
        return target_error(err, below(self._shown_root, path), "write")

    def file_done(self, path: Path, size_bytes: int, flags: int) -> None:
        """A file was closed; called by StagedFile."""
        with self._lock:
            self.written_bytes += size_bytes
            if flags:
                self._flagged.append((path, flags))
            self._dirty_bytes += size_bytes if size_bytes < DIRECT_BYTES_MIN else 0
            if self._dirty_bytes >= FLUSH_BYTES and (self._flusher is None or not self._flusher.is_alive()):
                self._dirty_bytes = 0
                self._flusher = threading.Thread(target=self._flush, name="restore-flush", daemon=True)
                self._flusher.start()

    def _keep_record(self, path: Path, entry: Entry, attributes: Attributes) -> None:
        for name in path:
            check_name(name)
        with self._lock:
            self.records[path] = (entry, attributes)

    def _check(self, path: Path) -> None:
        if not path or not self._selection.holds(path):
            raise TargetDenied(reason=f"{self._shown(path)} was not selected for this restore.")
        check_name(path[-1])  # those above it are checked where they are opened, in _walk

    def _shown(self, path: Path) -> str:
        return shown(below(self._shown_root, path))

    def _run(self, path: Path, work: Callable[P, None], *args: P.args, **named: P.kwargs) -> None:
        try:
            work(*args, **named)
        except OSError as err:
            raise self.error(err, path) from err

    def _make_folder(self, path: Path, mode: int) -> None:
        parent = self._parent(path)
        try:
            os.mkdir(path[-1], mode, dir_fd=parent.fd)
        except OSError as err:
            raise self.error(err, path) from err

    def _parent(self, path: Path) -> _OpenFolder:
        """The folder that `path` is in. Raises TargetDenied when it was not made."""
        return self._folder(path[:-1])

    def _folder(self, path: Path) -> _OpenFolder:
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open.move_to_end(path)
                return found
        self._make_above(path)
        return self._open_folder(path)

    def _make_above(self, path: Path) -> None:
        """Folders that only lead to a selected entry are made when they are needed."""
        for length in range(1, len(path) + 1):
            step = path[:length]
            if not self._selection.is_above(step):
                return
            with self._lock:
                if step in self._made_above:
                    continue
                self._made_above.add(step)
                parent = self._walk(step[:-1])
                try:
                    os.mkdir(step[-1], 0o700, dir_fd=parent.fd)
                except OSError as err:
                    raise self.error(err, step) from err

    def _open_folder(self, path: Path) -> _OpenFolder:
        with self._lock:
            return self._walk(path)

    def _walk(self, path: Path) -> _OpenFolder:
        """Open `path` from its nearest open ancestor, one name at a time. The lock is held."""
        length = len(path)
        while length and path[:length] not in self._open:
            length -= 1
        folder = self._open[path[:length]] if length else self._root_folder()
        for end in range(length + 1, len(path) + 1):
            check_name(path[end - 1])  # `..` is no link: O_NOFOLLOW would let it pass
            try:
                folder = _OpenFolder(os.open(path[end - 1], OPEN_FOLDER, dir_fd=folder.fd))
            except OSError as err:
                raise self.error(err, path[:end]) from err
            if end > len(path) - FOLDERS_OPEN_MAX // 2:  # of a deep chain only the end is worth keeping
                self._remember(path[:end], folder)
        return folder

    def _root_folder(self) -> _OpenFolder:
        folder = self._open.get(())
        if folder is None:
            folder = _OpenFolder(os.open(b".", OPEN_FOLDER, dir_fd=self._new_fd))
            self._remember((), folder)
        return folder

    def _remember(self, path: Path, folder: _OpenFolder) -> None:
        self._open[path] = folder
        self._open.move_to_end(path)
        if len(self._open) > FOLDERS_OPEN_MAX:
            self._open.popitem(last=False)

    def _set_file_flags(self, path: Path, flags: int) -> None:
        now = flags
        if self._selection.is_unit(path):
            now = flags & ~FLAGS_PINNING
            if flags != now:
                self.finals[path] = (None, flags)
        parent = self._parent(path)
        fd = os.open(path[-1], OPEN_READ, dir_fd=parent.fd)
        try:
            self.metadata.set_flags(fd, path, now)
        finally:
            os.close(fd)

    def _set_folder(self, path: Path) -> None:
        entry, attributes = self._folders[path] if path else self.records[()]
        flags = attributes.flags
        plain = not flags and not attributes.xattrs and not self._selection.is_unit(path)
        if plain and self.metadata.is_known_right(entry):
            self.metadata.set_times_on_name(self._parent(path).fd, path, entry)
            return
        folder = self._folder(path)
        self.metadata.set_on_fd(folder.fd, path, entry, attributes, born=bool(path))
        if self._selection.is_unit(path):
            mode = os.fstat(folder.fd).st_mode & 0o7777
            if flags & FLAGS_PINNING or mode & 0o700 != 0o700:
                self.finals[path] = (mode, flags)
                os.fchmod(folder.fd, mode | 0o700)  # without it only root could move it
                flags &= ~FLAGS_PINNING
        if flags:
            self.metadata.set_flags(folder.fd, path, flags)
