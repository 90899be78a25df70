"""Calls on files and folders that Python's `os` lacks or spreads out: inode flags, xattrs, extents, syncfs, renames.

Everything works on descriptors or on (folder descriptor, name); nothing follows a symbolic link. Errors are OSError:
the callers know which path to name. Linux only.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct

from strongroom.base.streams import Attributes, Entry, Extent, ExtentKind

FLAG_IMMUTABLE, FLAG_APPEND, FLAG_NODUMP = 0x10, 0x20, 0x40
FLAGS_KEPT = FLAG_IMMUTABLE | FLAG_APPEND | FLAG_NODUMP  # the others belong to the file system, not to the user
FLAGS_PINNING = FLAG_IMMUTABLE | FLAG_APPEND  # they forbid renaming and unlinking

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_*: declared with a long, filled with an int by the kernel
_RENAME_NOREPLACE = 1
_PUNCH_HOLE, _KEEP_SIZE = 2, 1

NO_FLAGS = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # a file system without inode flags or xattrs

OPEN_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
OPEN_FOLDER = OPEN_READ | os.O_DIRECTORY
OPEN_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.syncfs.argtypes = [ctypes.c_int]


def _raise_errno(name: bytes = b"") -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), name)


def syncfs(fd: int) -> None:
    """Write out everything dirty on the file system of `fd`; durable on return."""
    if _libc.syncfs(fd) != 0:
        _raise_errno()


def rename_new(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    """Rename, but never over something: FileExistsError when `target` is there.

    File systems without RENAME_NOREPLACE (EINVAL) get a check before a plain rename.
    """
    if _libc.renameat2(source_fd, source, target_fd, target, _RENAME_NOREPLACE) == 0:
        return
    if ctypes.get_errno() != errno.EINVAL:
        _raise_errno(target)
    if exists(target_fd, target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)


def exists(folder_fd: int, name: bytes) -> bool:
    """True for anything of that name, a dangling link included."""
    try:
        os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def list_names(folder_fd: int) -> list[bytes]:
    """All names in an open folder, sorted; by a fresh descriptor, as btrfs lists what was there when it was opened."""
    fd = os.open(b".", OPEN_FOLDER, dir_fd=folder_fd)
    try:
        return sorted(os.fsencode(name) for name in os.listdir(fd))
    finally:
        os.close(fd)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Make a range read as zeros and free it; False when the file system cannot."""
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return True
    if ctypes.get_errno() in NO_FLAGS:
        return False
    _raise_errno()
    return False


def open_quietly(name: bytes, flags: int, folder_fd: int | None) -> int:
    """Open without touching the access time where the kernel lets us (owner or root)."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=folder_fd)
    except PermissionError as err:
        if err.errno != errno.EPERM:
            raise
        return os.open(name, flags, dir_fd=folder_fd)


def get_flags(fd: int) -> int:
    """All inode flags; 0 where there are none."""
    try:
        raw = fcntl.ioctl(fd, _GETFLAGS, b"\0" * 8)
    except OSError as err:
        if err.errno in NO_FLAGS:
            return 0
        raise
    return int(struct.unpack("l", raw)[0]) & 0xFFFFFFFF


def change_flags(fd: int, *, add: int = 0, drop: int = 0) -> None:
    """Set and clear flags, keeping the others: ext4 answers EOPNOTSUPP when its own ones go missing."""
    old = get_flags(fd)
    new = (old | add) & ~drop
    if new != old:
        fcntl.ioctl(fd, _SETFLAGS, struct.pack("l", new))


def entry_of(name: bytes, info: os.stat_result) -> Entry:
    """The stream's Entry of an lstat result. On the walk's hot path: a plain tuple, filled by position."""
    mode, ino, dev, nlink, uid, gid, size = info[:7]
    if mode & 0o170000 != stat.S_IFREG:
        size = 0
    blocks = info.st_blocks * 512
    fields = (
        name,
        mode,
        uid,
        gid,
        info.st_mtime_ns,
        size,
        info.st_ctime_ns,
        ino,
        dev,
        nlink,
        info.st_rdev,
        blocks < size,
    )
    return tuple.__new__(Entry, fields)


def link_path(folder_fd: int, name: bytes) -> bytes:
    """A short path to a name in an open folder, for the calls that have no *at form (xattrs)."""
    return b"/proc/self/fd/%d/%s" % (folder_fd, name)


def read_xattrs(target: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Sorted (name, value) of a descriptor, or of a path whose last part is not followed; () where there are none."""
    follow = isinstance(target, int)
    found = []
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as err:
        if err.errno in NO_FLAGS:
            return ()
        raise
    for text in names:
        try:
            found.append((os.fsencode(text), os.getxattr(target, text, follow_symlinks=follow)))
        except OSError as err:
            if err.errno not in (errno.ENODATA, *NO_FLAGS):  # gone meanwhile, or listed but unreadable by design
                raise
    found.sort()
    return tuple(found)


def read_attributes(folder_fd: int, entry: Entry) -> Attributes:
    """xattrs, flags and link target of one entry. Only regular files and folders are opened, devices never."""
    if stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode):
        fd = open_quietly(entry.name, OPEN_READ, folder_fd)
        try:
            return fd_attributes(fd)
        finally:
            os.close(fd)
    target = os.readlink(entry.name, dir_fd=folder_fd) if stat.S_ISLNK(entry.mode) else b""
    return Attributes(read_xattrs(link_path(folder_fd, entry.name)), 0, target)


def fd_attributes(fd: int) -> Attributes:
    """xattrs and flags of an open file or folder."""
    return Attributes(read_xattrs(fd), get_flags(fd) & FLAGS_KEPT, b"")


def data_extents(fd: int, size: int) -> list[Extent]:
    """DATA and ZERO ranges covering [0, size), by SEEK_DATA and SEEK_HOLE; one DATA range where these are unknown.

    size         |=====DATA=====|......ZERO......|==DATA==|..ZERO..|
    SEEK_DATA(0) ^  SEEK_HOLE   ^     SEEK_DATA  ^  ...   ENXIO: no data up to the end
    """
    extents: list[Extent] = []
    at = 0
    while at < size:
        try:
            start = min(os.lseek(fd, at, os.SEEK_DATA), size)
            stop = min(os.lseek(fd, start, os.SEEK_HOLE), size) if start < size else size
        except OSError as err:
            if err.errno in NO_FLAGS:
                return [Extent(0, size, ExtentKind.DATA)]
            if err.errno != errno.ENXIO:
                raise
            start = stop = size
        if start > at:
            extents.append(Extent(at, start - at, ExtentKind.ZERO))
        if stop > start:
            extents.append(Extent(start, stop - start, ExtentKind.DATA))
        at = stop
    return extents


def pread_full(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; fewer bytes only at the end of the file."""
    done = os.preadv(fd, [buffer], offset)
    while 0 < done < len(buffer):
        got = os.preadv(fd, [buffer[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done
