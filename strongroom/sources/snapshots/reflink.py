"""Snapshots of image files by reflinks: a copy that shares all blocks, made in one call (XFS, btrfs, bcachefs).

The copy lies beside the image as `.strongroom-<resource id>.<moment>`. The file system holds writes back while it makes
one, so the copy is the image of one moment, as after a power cut. The copy of the last committed point stays: it pins
its blocks, so comparing where the blocks of two copies lie tells what changed (`fiemap.py`). It costs the room of what
is overwritten until the next backup.
"""

import contextlib
import errno
import fcntl
import os
from typing import Final

from strongroom.sources.base import STAGING_PREFIX
from strongroom.sources.inodes import OPEN_FOLDER, OPEN_READ, list_names
from strongroom.sources.oserrors import shown, source_error
from strongroom.sources.snapshots.base import PREFIX, Changes, Consistency, Parent, Snapshot
from strongroom.sources.snapshots.fiemap import can_map, changed_ranges
from strongroom.sources.stage import lock_file

_FICLONE = 0x40049409
CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.ETXTBSY)


class ReflinkCopy:
    """A copy that this process made and holds locked; Snapshot. `fd` reads it."""

    consistency: Consistency = "crash_consistent"

    def __init__(self, name: str, path: bytes, fd: int) -> None:
        self.name = name
        self.mark = _mark(fd)
        self.path = path
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Reflink:
    """SnapshotProvider of image files."""

    name: Final = "reflink"
    keeps_parent: Final = True

    def create(self, volume: bytes, name: str) -> ReflinkCopy:
        folder_fd = _folder(volume)
        made = file_name(name)
        path = os.path.join(os.path.dirname(volume), made)
        try:
            with contextlib.ExitStack() as fds:
                fds.callback(os.close, folder_fd)
                source_fd = os.open(os.path.basename(volume), OPEN_READ, dir_fd=folder_fd)
                fds.callback(os.close, source_fd)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(made, flags, 0o600, dir_fd=folder_fd)
                try:
                    lock_file(fd)  # nobody else can have it: it was made by this call
                    fcntl.ioctl(fd, _FICLONE, source_fd)
                    os.fchmod(fd, 0o400)  # whoever changes it by mistake would change what the next backup relies on
                    os.fsync(fd)
                    os.fsync(folder_fd)
                except BaseException:
                    os.close(fd)
                    os.unlink(made, dir_fd=folder_fd)
                    raise
        except OSError as err:
            raise source_error(err, volume, "make a copy that shares its blocks beside") from err
        return ReflinkCopy(name, path, fd)

    def changed(self, volume: bytes, parent: Parent, now: Snapshot) -> Changes:
        folder_fd = _folder(volume)
        try:
            old_fd = os.open(file_name(parent.name), OPEN_READ, dir_fd=folder_fd)
        except OSError:
            return Changes(None, "The copy of the last backup is not there any more, so all of the disk is read.")
        finally:
            os.close(folder_fd)
        new_fd = -1
        try:
            if _mark(old_fd) != parent.mark:
                return Changes(None, "Somebody changed the copy of the last backup, so all of the disk is read.")
            new_fd = os.open(now.path, OPEN_READ)
            size = os.fstat(new_fd).st_size
            if os.fstat(old_fd).st_size != size:
                return Changes(None, "The disk had another size at the last backup.")
            ranges = changed_ranges(old_fd, new_fd, size)
        except OSError as err:
            if err.errno in CANNOT:
                return Changes(None, "The file system does not tell where the blocks of a file lie.")
            raise source_error(err, volume, "compare with its last copy") from err
        finally:
            os.close(old_fd)
            if new_fd >= 0:
                os.close(new_fd)
        return Changes(ranges, None if ranges is not None else "The blocks were moved or are too scattered to compare.")

    def verify(self, volume: bytes, now: Snapshot) -> None:
        return None  # a copy is a file: it cannot run out of room while it is read

    def release(self, volume: bytes, name: str) -> None:
        folder_fd = _folder(volume)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file_name(name), dir_fd=folder_fd)
        except OSError as err:
            raise source_error(err, volume, "remove the copy beside") from err
        finally:
            os.close(folder_fd)

    def names(self, volume: bytes, prefix: str) -> list[str]:
        folder_fd = _folder(volume)
        try:
            return names_in(folder_fd, prefix)
        except OSError as err:
            raise source_error(err, volume, "look beside") from err
        finally:
            os.close(folder_fd)


def file_name(name: str) -> bytes:
    """The name beside the volume: one that walkers of folders leave out."""
    return STAGING_PREFIX + os.fsencode(name[len(PREFIX) :])


def can_share(volume: bytes) -> str | None:
    """None when a copy can share the blocks of this image, else why not. Leaves nothing behind."""
    fd = trial = -1
    try:
        fd = os.open(volume, OPEN_READ)
        trial = os.open(os.path.dirname(volume) or b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.ioctl(trial, _FICLONE, fd)
    except OSError as err:
        if err.errno in CANNOT:
            return "The file system cannot make a copy that shares blocks (XFS with reflinks and btrfs can)."
        return f"A copy that shares blocks cannot be made beside {shown(volume)}: {os.strerror(err.errno or 0)}."
    else:
        return None if can_map(fd) else "The file system does not tell where the blocks of a file lie."
    finally:
        for opened in (fd, trial):
            if opened >= 0:
                os.close(opened)


def _folder(volume: bytes) -> int:
    folder = os.path.dirname(volume) or b"."
    try:
        return os.open(folder, OPEN_FOLDER)
    except OSError as err:
        raise source_error(err, folder, "look into") from err


def _mark(fd: int) -> str:
    info = os.fstat(fd)
    return f"{info.st_ino}.{info.st_size}.{info.st_mtime_ns}.{info.st_ctime_ns}"


def names_in(folder_fd: int, prefix: str) -> list[str]:
    """Snapshots in an open folder that are called so, those that a living process has locked left out."""
    wanted = file_name(prefix)
    found = [name for name in list_names(folder_fd) if name.startswith(wanted)]
    return [PREFIX + os.fsdecode(name[len(STAGING_PREFIX) :]) for name in found if _is_free(folder_fd, name)]


def _is_free(folder_fd: int, name: bytes) -> bool:
    """Whether no living process holds it."""
    try:
        fd = os.open(name, OPEN_READ, dir_fd=folder_fd)
    except FileNotFoundError:
        return False
    try:
        return lock_file(fd)
    finally:
        os.close(fd)
