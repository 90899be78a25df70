"""Snapshots of folders on btrfs: a read-only snapshot of the subvolume that holds the folder.

Made by ioctl, so no tool is needed; root only, because nobody else may remove one again. It lies in the subvolume's own
root as `.strongroom-<resource id>.<moment>` and goes when the point ends: a tree needs no parent snapshot, inode
numbers and change times are the same inside of it as in the live tree.

Subvolumes and mounts below the folder are not part of a snapshot (they are empty folders there). With any of them the
folder is read live, and the reason says so.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from strongroom.base.errors import SourceError
from strongroom.sources.base import STAGING_PREFIX
from strongroom.sources.files import open_root
from strongroom.sources.inodes import OPEN_FOLDER, list_names, syncfs
from strongroom.sources.mounts import mounted_below, real_path
from strongroom.sources.oserrors import shown, source_error
from strongroom.sources.snapshots.base import Changes, Consistency, Parent, Snapshot
from strongroom.sources.snapshots.reflink import file_name, names_in
from strongroom.sources.stage import lock_file

_SNAP_CREATE_V2, _SNAP_DESTROY = 0x50009417, 0x5000940F
_ROOTREF, _LOOKUP_USER = 0xD000943D, 0xD000943E
_READ_ONLY = 2
_SUBVOLUME_ROOT = 256  # inode of each subvolume's root folder
_UP_MAX = 4096  # folders from the registered one up to the subvolume's root
_SUBVOLUMES_MAX = 100_000  # looked at; more nested ones than that are taken for one below the folder


class BtrfsSnapshot:
    """A subvolume snapshot that this process made and holds locked; Snapshot."""

    consistency: Consistency = "filesystem_consistent"

    def __init__(self, name: str, path: bytes, fd: int) -> None:
        self.name = name
        self.mark = str(os.fstat(fd).st_dev)
        self.path = path
        self._fd = fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Btrfs:
    """SnapshotProvider of folders. whole: subvolumes and mounts below the folder belong to it."""

    name: Final = "btrfs"
    keeps_parent: Final = False

    def __init__(self, *, whole: bool = True) -> None:
        self._whole = whole

    def create(self, volume: bytes, name: str) -> BtrfsSnapshot:
        made = file_name(name)
        root_fd = open_root(volume)
        try:
            with _top_of(root_fd) as (top_fd, below):
                syncfs(root_fd)
                with _times_kept(top_fd):
                    head = struct.pack("=qQQ32x", top_fd, 0, _READ_ONLY)
                    fcntl.ioctl(top_fd, _SNAP_CREATE_V2, bytearray(head + made.ljust(4040, b"\0")))
                try:
                    # Looked for after it: what is made from now on is not of this moment.
                    reason = hidden_below(root_fd) if self._whole else None
                    if reason is not None:
                        raise SourceError(reason=reason)
                    path = os.path.join(real_path(top_fd), made, *below)
                    return BtrfsSnapshot(name, path, _locked(top_fd, made))
                except BaseException:
                    _destroy(top_fd, made)
                    raise
        except OSError as err:
            raise source_error(err, volume, "make a btrfs snapshot of") from err
        finally:
            os.close(root_fd)

    def changed(self, volume: bytes, parent: Parent, now: Snapshot) -> Changes:
        return Changes(None)  # a walk compares inodes and change times

    def verify(self, volume: bytes, now: Snapshot) -> None:
        return None  # it shares the live tree's room and cannot break before that does

    def release(self, volume: bytes, name: str) -> None:
        try:
            with _open_top(volume) as top_fd, contextlib.suppress(FileNotFoundError):
                _destroy(top_fd, file_name(name))
        except OSError as err:
            raise source_error(err, volume, "remove the btrfs snapshot of") from err

    def names(self, volume: bytes, prefix: str) -> list[str]:
        try:
            with _open_top(volume) as top_fd:
                return names_in(top_fd, prefix)
        except OSError as err:
            raise source_error(err, volume, "look for snapshots of") from err


def hidden_below(root_fd: int) -> str | None:
    """What lies below an open folder and would be missing in a snapshot of its subvolume; None: nothing."""
    mounted = mounted_below(root_fd)
    if mounted is not None:
        return f"{shown(mounted)} is mounted below the folder and is no part of its subvolume."
    nested = _nested_subvolume(root_fd)
    return None if nested is None else f"The subvolume {shown(nested)} below the folder is no part of its snapshots."


def why_not(root_fd: int, *, whole: bool) -> str | None:
    """None when a snapshot of an open folder on btrfs can be made, else a sentence. whole: see Btrfs."""
    if os.geteuid() != 0:
        return "Only root may remove a btrfs snapshot again, and the service does not run as root."
    try:
        os.close(_subvolume(root_fd)[0])
        return hidden_below(root_fd) if whole else None
    except SourceError as err:
        return err.message
    except OSError as err:
        return f"btrfs does not tell about its subvolumes: {os.strerror(err.errno or 0)}."


def _subvolume(root_fd: int) -> tuple[int, tuple[bytes, ...]]:
    """A descriptor of the subvolume's root, and the path from there to the open folder. Raises OSError, SourceError."""
    below: list[bytes] = []
    fd = os.open(b".", OPEN_FOLDER, dir_fd=root_fd)
    try:
        for _ in range(_UP_MAX):
            info = os.fstat(fd)
            if info.st_ino == _SUBVOLUME_ROOT:
                return fd, tuple(reversed(below))
            up = os.open(b"..", OPEN_FOLDER, dir_fd=fd)
            if os.fstat(up).st_dev != info.st_dev:
                os.close(up)
                break
            below.append(_name_in(up, info))
            os.close(fd)
            fd = up
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise SourceError(reason="Only a part of the subvolume is mounted here, so no snapshot of it can be made.")


def _name_in(folder_fd: int, wanted: os.stat_result) -> bytes:
    for name in list_names(folder_fd):
        info = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        if (info.st_dev, info.st_ino) == (wanted.st_dev, wanted.st_ino):
            return name
    raise FileNotFoundError(errno.ENOENT, "the folder was moved away")


@contextlib.contextmanager
def _top_of(root_fd: int) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    top_fd, below = _subvolume(root_fd)
    try:
        yield top_fd, below
    finally:
        os.close(top_fd)


@contextlib.contextmanager
def _open_top(volume: bytes) -> Iterator[int]:
    root_fd = open_root(volume)
    try:
        with _top_of(root_fd) as (top_fd, _):
            yield top_fd
    finally:
        os.close(root_fd)


def _locked(top_fd: int, name: bytes) -> int:
    """A descriptor whose lock says that this process reads the snapshot."""
    fd = os.open(name, OPEN_FOLDER, dir_fd=top_fd)
    lock_file(fd)  # nobody else can have it: it was made by this process
    return fd


@contextlib.contextmanager
def _times_kept(top_fd: int) -> Iterator[None]:
    """Making or removing a snapshot is nothing the user did to his folder: its modification time stays."""
    before = os.fstat(top_fd)
    yield
    os.utime(top_fd, ns=(before.st_atime_ns, before.st_mtime_ns))


def _destroy(top_fd: int, name: bytes) -> None:
    with _times_kept(top_fd):
        fcntl.ioctl(top_fd, _SNAP_DESTROY, bytearray(struct.pack("=q", 0) + name.ljust(4088, b"\0")))


def _nested_subvolume(root_fd: int) -> bytes | None:
    """The path of a subvolume below an open folder, seen from there; our own snapshots do not count."""
    least, seen = 0, 0
    while True:
        raw = bytearray(struct.pack("=Q", least).ljust(4096, b"\0"))
        more = False
        try:
            fcntl.ioctl(root_fd, _ROOTREF, raw)
        except OSError as err:
            if err.errno != errno.EOVERFLOW:  # more than one answer holds
                raise
            more = True
        count = raw[4088]
        for index in range(count):
            tree_id, folder_id = struct.unpack_from("=QQ", raw, 8 + 16 * index)
            found = _path_below(root_fd, folder_id, tree_id)
            if found is not None and not found.rpartition(b"/")[2].startswith(STAGING_PREFIX):
                return found
        seen += count
        least = struct.unpack_from("=Q", raw)[0]
        if not more:
            return None
        if seen > _SUBVOLUMES_MAX:
            return b"(one of very many)"


def _path_below(root_fd: int, folder_id: int, tree_id: int) -> bytes | None:
    raw = bytearray(struct.pack("=QQ", folder_id, tree_id).ljust(4096, b"\0"))
    try:
        fcntl.ioctl(root_fd, _LOOKUP_USER, raw)
    except OSError as err:
        if err.errno in (errno.EACCES, errno.ENOENT):  # not below this folder, or gone meanwhile
            return None
        raise
    name, path = (bytes(part).split(b"\0", 1)[0] for part in (raw[16:272], raw[272:]))
    return path + name
