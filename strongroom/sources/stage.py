"""The staging place of a folder restore: `.strongroom-<task>` in the root of the resource.

    lock      held (flock) by the living process that restores
    journal   how far it is
    new/      the tree being put together
    old/      what was live, until the end, as numbers

Made in this order and removed in the order old, new, lock, journal, so that a place without a journal is one where
nothing live was touched.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat

from strongroom.base.errors import AttemptAlive, InvalidRequest
from strongroom.sources.base import STAGING_PREFIX
from strongroom.sources.inodes import OPEN_FOLDER, list_names
from strongroom.sources.journal import JOURNAL, Journal, is_ours, load_journal, write_journal
from strongroom.sources.metadata import make_plain
from strongroom.sources.removal import remove_tree

NEW, OLD, LOCK = b"new", b"old", b"lock"
_TASK = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_ALIVE = "Another process is restoring this resource for the same task. Wait for it to end."
# What two processes meet that make and remove one staging place at once: made before, taken away, not empty.
_CONTESTED = (errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY)


def stage_name(task_id: str) -> bytes:
    """The name of a task's staging place. Raises InvalidRequest for an id that is no plain word."""
    raw = task_id.encode("ascii", "replace")
    if not _TASK.fullmatch(raw):
        raise InvalidRequest(reason="The task id must be letters, digits and dashes.")
    return STAGING_PREFIX + raw


def lock_file(fd: int) -> bool:
    """Take the lock for this process; False when a living one holds it. Lasts until the descriptor is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Stage:
    """An open and locked staging place. Use `make` or `find`; close it in any case."""

    def __init__(self, root_fd: int, name: bytes, fd: int) -> None:
        self.name = name
        self.fd = fd
        self._root_fd = root_fd
        info = os.fstat(fd)
        self._identity = (info.st_dev, info.st_ino)
        self._fds = contextlib.ExitStack()
        self._fds.callback(os.close, fd)
        self.new_fd = -1
        self.old_fd = -1

    @classmethod
    def make(cls, root_fd: int, name: bytes) -> "Stage":
        """A fresh one, with a journal that says "staging". Raises AttemptAlive when another process makes or removes
        the same at this moment (one that was frozen and woke up), OSError, FileExistsError for what is not ours."""
        try:
            os.mkdir(name, 0o700, dir_fd=root_fd)
            stage = cls(root_fd, name, os.open(name, OPEN_FOLDER, dir_fd=root_fd))
            try:
                make_plain(stage.fd)
                stage._lock(create=True)
                write_journal(stage.fd, Journal(state="staging"))
                os.mkdir(NEW, 0o700, dir_fd=stage.fd)
                os.mkdir(OLD, 0o700, dir_fd=stage.fd)
                os.fsync(root_fd)
                stage._open_sides()
            except OSError:
                stage.close()
                raise
        except OSError as err:
            if _contested(root_fd, name, err):
                raise AttemptAlive(reason=_ALIVE) from err
            raise
        return stage

    @classmethod
    def find(cls, root_fd: int, name: bytes) -> "Stage | None":
        """One that is left over; None when there is none, or none of ours. Raises AttemptAlive when it is in use."""
        try:
            fd = os.open(name, OPEN_FOLDER, dir_fd=root_fd)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        if not is_ours(os.fstat(fd)):
            os.close(fd)
            return None
        stage = cls(root_fd, name, fd)
        stage._lock(create=False)
        stage._open_sides()
        return stage

    def journal(self) -> Journal | None:
        return load_journal(self.fd)

    def is_empty(self) -> bool:
        return not list_names(self.fd)

    def remove(self) -> None:
        """Remove it with all that is in it, and close it. After OSError or TargetDenied it can be tried again; one that
        another process removes at the same time, after the lock went, is gone all the same."""
        for name in (OLD, NEW, LOCK, JOURNAL):
            remove_tree(self.fd, name)
        remove_tree(self.fd, JOURNAL + b".new")
        if self._has_its_name():
            try:
                os.rmdir(self.name, dir_fd=self._root_fd)
            except OSError:
                if self._has_its_name():
                    raise
        os.fsync(self._root_fd)
        self.close()

    def close(self) -> None:
        """Let go of lock and descriptors; idempotent."""
        self._fds.close()
        self.fd = self.new_fd = self.old_fd = -1

    def _has_its_name(self) -> bool:
        """Whether what has the name is this one, not another attempt's."""
        try:
            found = os.stat(self.name, dir_fd=self._root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _lock(self, *, create: bool) -> None:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        try:
            fd = os.open(LOCK, flags, 0o600, dir_fd=self.fd)
        except FileNotFoundError:
            return  # died before it was made, or while the place was removed
        self._fds.callback(os.close, fd)
        if not lock_file(fd):
            self.close()
            raise AttemptAlive(reason=_ALIVE)

    def _open_sides(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.new_fd = self._keep(os.open(NEW, OPEN_FOLDER, dir_fd=self.fd))
        with contextlib.suppress(FileNotFoundError):
            self.old_fd = self._keep(os.open(OLD, OPEN_FOLDER, dir_fd=self.fd))

    def _keep(self, fd: int) -> int:
        self._fds.callback(os.close, fd)
        return fd


def _contested(root_fd: int, name: bytes, err: OSError) -> bool:
    """Whether another process of this service is at the same staging place, and not somebody's thing of that name."""
    if err.errno not in _CONTESTED:
        return False
    try:
        found = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        return os.fstat(root_fd).st_nlink > 0  # the root itself may be what went
    return stat.S_ISDIR(found.st_mode) and is_ours(found)


def find_stages(root_fd: int) -> list[bytes]:
    """Names of all staging places in an open folder, sorted."""
    names = list_names(root_fd)
    return [name for name in names if name.startswith(STAGING_PREFIX) and is_folder(root_fd, name)]


def is_folder(folder_fd: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
