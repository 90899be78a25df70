"""Setting owner, mode, xattrs, times and flags of restored entries, and the list of what could not be set.

Order on each entry: owner (it clears setuid and capabilities), mode, xattrs (ACLs among them), times. Inode flags come
at the very end of a restore, because they forbid links, renames and times. What may only go back to the resource it
came from (RULINGS 17), and what this process has no right to set, is left out and listed; it never stops a restore.
"""

import errno
import os
import stat
import threading

from strongroom.base.streams import Attributes, Entry, Path, Skipped
from strongroom.sources.inodes import (
    FLAGS_KEPT,
    FLAGS_PINNING,
    NO_FLAGS,
    OPEN_HANDLE,
    OPEN_READ,
    change_flags,
    get_flags,
    link_path,
    read_xattrs,
)

LEFT_OUT_MAX = 10_000  # entries of the report; beyond it a number says how many more
KINDS_MAX = 4096  # of modes and owners remembered; a tree has a dozen
TRUSTED_NAMESPACES = (b"security.", b"trusted.")
_SETID = stat.S_ISUID | stat.S_ISGID
_BROKEN = (errno.EIO, errno.EROFS, errno.ESTALE, errno.EBADF)  # not a matter of rights: the restore must stop


class LeftOut:
    """What was left out, collected by all threads of a restore."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: list[Skipped] = []
        self._more = 0

    def add(self, path: Path, reason: str) -> None:
        with self._lock:
            if len(self._items) < LEFT_OUT_MAX:
                self._items.append(Skipped(path, reason))
            else:
                self._more += 1

    def failed(self, path: Path, what: str, err: OSError) -> None:
        """Note a failed call, or raise it again when the disk is broken."""
        if err.errno in _BROKEN:
            raise err
        self.add(path, f"{what}: {os.strerror(err.errno) if err.errno else err}")

    def items(self) -> tuple[Skipped, ...]:
        """Sorted by path; a last item for the root when there were more than fit."""
        with self._lock:
            found = sorted(self._items)
            if self._more:
                found.append(Skipped((), f"and {self._more} more were left out"))
            return tuple(found)


class MetadataWriter:
    """trusted: devices, setuid, security.* and trusted.* may be set. Raises OSError only of a broken disk."""

    def __init__(self, left_out: LeftOut, *, trusted: bool) -> None:
        self.trusted = trusted
        self.left_out = left_out
        self._born_right: dict[tuple[int, int, int], bool] = {}  # (type and mode, uid, gid) -> is as it was made

    def is_born_right(self, fd: int, entry: Entry) -> bool:
        """Whether a file or folder that was just made with `birth_mode` has owner and mode of `entry` already.

        The first of its kind is looked at, the others are as that one: what is made below one folder that is ours
        inherits the same. `fd` is that of the first, or of any other.
        """
        key = (entry.mode, entry.uid, entry.gid)
        found = self._born_right.get(key)
        if found is None:
            info = os.fstat(fd)
            found = (info.st_mode, info.st_uid, info.st_gid) == key
            if len(self._born_right) < KINDS_MAX:
                self._born_right[key] = found
        return found

    def is_known_right(self, entry: Entry) -> bool:
        """The same, of what need not be opened to be looked at; False when none of its kind was seen."""
        return self._born_right.get((entry.mode, entry.uid, entry.gid), False)

    def set_on_fd(
        self, fd: int, path: Path, entry: Entry, attributes: Attributes, *, times: bool = True, born: bool = False
    ) -> None:
        """An open file or folder, everything but flags. born: it was just made by us with `birth_mode`."""
        if born and self.is_born_right(fd, entry):
            if attributes.xattrs:
                self._set_xattrs(fd, path, attributes)
            if times:
                self.set_times(fd, path, entry)
            return
        owned = True
        try:
            os.fchown(fd, entry.uid, entry.gid)
        except OSError as err:
            owned = False
            self.left_out.failed(path, "owner", err)
        try:
            os.fchmod(fd, self._allowed_mode(path, entry, owned=owned))
        except OSError as err:
            self.left_out.failed(path, "mode", err)
        if attributes.xattrs:
            self._set_xattrs(fd, path, attributes)
        if times:
            self.set_times(fd, path, entry)

    def set_times(self, fd: int, path: Path, entry: Entry) -> None:
        try:
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))  # no access times: they record reads
        except OSError as err:
            self.left_out.failed(path, "times", err)

    def set_on_name(self, folder_fd: int, path: Path, entry: Entry, attributes: Attributes) -> None:
        """A symbolic link, fifo or device node: by name, never followed, never opened but as a handle."""
        name = path[-1]
        owned = True
        try:
            os.chown(name, entry.uid, entry.gid, dir_fd=folder_fd, follow_symlinks=False)
        except OSError as err:
            owned = False
            self.left_out.failed(path, "owner", err)
        if not stat.S_ISLNK(entry.mode):
            handle = os.open(name, OPEN_HANDLE, dir_fd=folder_fd)
            try:
                os.chmod(b"/proc/self/fd/%d" % handle, self._allowed_mode(path, entry, owned=owned))
            except OSError as err:
                self.left_out.failed(path, "mode", err)
            finally:
                os.close(handle)
        if attributes.xattrs:
            self._set_xattrs(link_path(folder_fd, name), path, attributes)
        self.set_times_on_name(folder_fd, path, entry)

    def set_times_on_name(self, folder_fd: int, path: Path, entry: Entry) -> None:
        try:
            os.utime(path[-1], ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder_fd, follow_symlinks=False)
        except OSError as err:
            self.left_out.failed(path, "times", err)

    def set_flags(self, fd: int, path: Path, flags: int) -> None:
        """Add inode flags to an open file or folder."""
        try:
            change_flags(fd, add=flags & FLAGS_KEPT)
        except OSError as err:
            self.left_out.failed(path, "inode flags", err)

    def drop_others(self, fd: int, path: Path, attributes: Attributes) -> None:
        """Take away xattrs and flags that `attributes` does not have: for a folder that was there before."""
        kept = {name for name, _ in attributes.xattrs}
        for name, _ in read_xattrs(fd):
            if name in kept or name.startswith(TRUSTED_NAMESPACES):
                continue
            try:
                os.removexattr(fd, name)
            except OSError as err:
                self.left_out.failed(path, f"attribute {os.fsdecode(name)!r}", err)
        try:
            change_flags(fd, drop=FLAGS_KEPT & ~attributes.flags)
        except OSError as err:
            self.left_out.failed(path, "inode flags", err)

    def _allowed_mode(self, path: Path, entry: Entry, *, owned: bool) -> int:
        mode = stat.S_IMODE(entry.mode)
        if mode & _SETID and not (self.trusted and owned):
            self.left_out.add(path, "setuid and setgid bits: not to another resource, nor with another owner")
            mode &= ~_SETID
        return mode

    def _set_xattrs(self, target: int | bytes, path: Path, attributes: Attributes) -> None:
        follow = isinstance(target, int)
        for name, value in attributes.xattrs:
            if name.startswith(TRUSTED_NAMESPACES) and not self.trusted:
                self.left_out.add(path, f"attribute {os.fsdecode(name)!r}: not to another resource")
                continue
            try:
                os.setxattr(target, name, value, follow_symlinks=follow)
            except (OSError, ValueError) as err:  # ValueError: a NUL in the name, from a damaged or hostile record
                reason = err if isinstance(err, OSError) else OSError(errno.EINVAL, str(err))
                self.left_out.failed(path, f"attribute {os.fsdecode(name)!r}", reason)


def birth_mode(entry: Entry) -> int:
    """The mode to make a file or folder with; what else it needs comes last."""
    return entry.mode & 0o777


def make_plain(fd: int) -> None:
    """Free a fresh folder of what it inherited: default ACLs and the nodump flag would pass on to everything in it."""
    for name in (b"system.posix_acl_default", b"system.posix_acl_access"):
        try:
            os.removexattr(fd, name)
        except OSError as err:
            if err.errno not in (errno.ENODATA, *NO_FLAGS):
                raise
    os.fchmod(fd, 0o700)
    if get_flags(fd) & FLAGS_KEPT:
        change_flags(fd, drop=FLAGS_KEPT)


def loosen(folder_fd: int, name: bytes) -> None:
    """Make a name movable and removable: clear immutable and append, and give its owner all rights to a folder.

    Only regular files and folders can have what stands in the way; anything else is left as it is.
    """
    handle = os.open(name, OPEN_HANDLE, dir_fd=folder_fd)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
            _clear_flags(folder_fd, name)  # an immutable folder refuses chmod, but root opens any
            os.chmod(b"/proc/self/fd/%d" % handle, stat.S_IMODE(mode) | 0o700)
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            _clear_flags(folder_fd, name)
    finally:
        os.close(handle)


def _clear_flags(folder_fd: int, name: bytes) -> None:
    try:
        fd = os.open(name, OPEN_READ, dir_fd=folder_fd)
    except PermissionError:
        return  # not root, and no right to read: then the flags cannot be ours to clear either
    try:
        if get_flags(fd) & FLAGS_PINNING:
            change_flags(fd, drop=FLAGS_PINNING)
    finally:
        os.close(fd)
