"""Going down and up a folder tree by descriptors, to any depth, with a bounded number of them open.

Paths are never put together, so PATH_MAX does not matter and nobody can swing a symbolic link under a walk. Of a deep
chain only the root and the newest folders stay open; the others are opened again through `..` on the way back and
recognised by device and inode.
"""

import os
from dataclasses import dataclass

from strongroom.sources.inodes import OPEN_FOLDER, open_quietly

OPEN_MAX = 32  # of one descent; a process may have many, and 1024 descriptors is a common limit


@dataclass(slots=True)
class _Level:
    name: bytes
    fd: int  # -1: closed for the time being
    dev: int
    ino: int


class Descent:
    """A position in a tree. Owns its descriptors, the one of the root (a duplicate of `root_fd`) included."""

    def __init__(self, root_fd: int) -> None:
        info = os.fstat(root_fd)
        fd = os.open(b".", OPEN_FOLDER, dir_fd=root_fd)  # not dup: scandir would share the position with others
        self._levels = [_Level(b"", fd, info.st_dev, info.st_ino)]
        self._oldest_open = 1  # levels 1 .. oldest_open-1 are closed

    @property
    def fd(self) -> int:
        """The current folder's."""
        return self._levels[-1].fd

    @property
    def dev(self) -> int:
        return self._levels[-1].dev

    @property
    def path(self) -> tuple[bytes, ...]:
        return tuple(level.name for level in self._levels[1:])

    def enter(self, name: bytes) -> None:
        """Go into a sub-folder. Raises OSError and stays where it is."""
        fd = open_quietly(name, OPEN_FOLDER, self.fd)
        info = os.fstat(fd)
        self._levels.append(_Level(name, fd, info.st_dev, info.st_ino))
        if len(self._levels) - self._oldest_open > OPEN_MAX:
            oldest = self._levels[self._oldest_open]
            os.close(oldest.fd)
            oldest.fd = -1
            self._oldest_open += 1

    def leave(self) -> bool:
        """Go up. False when that folder was moved away meanwhile: it has no usable descriptor, go up once more."""
        left = self._levels.pop()
        above = self._levels[-1]
        if above.fd < 0:
            above.fd = self._reopen(left.fd, above)
            self._oldest_open = len(self._levels) - 1
        if left.fd >= 0:
            os.close(left.fd)
        return above.fd >= 0

    def close(self) -> None:
        """Close everything; idempotent."""
        for level in self._levels:
            if level.fd >= 0:
                os.close(level.fd)
                level.fd = -1

    def _reopen(self, child_fd: int, wanted: _Level) -> int:
        """By `..` first, which is one call; by name from the root when the child was moved."""
        fd = _open_if_same(b"..", child_fd, wanted) if child_fd >= 0 else -1
        if fd >= 0:
            return fd
        at = os.dup(self._levels[0].fd)
        for level in self._levels[1:]:
            below = _open_if_same(level.name, at, level)
            os.close(at)
            if below < 0:
                return -1
            at = below
        return at


def _open_if_same(name: bytes, folder_fd: int, wanted: _Level) -> int:
    """A descriptor of `name` if it is still the folder we knew, else -1."""
    try:
        fd = open_quietly(name, OPEN_FOLDER, folder_fd)
    except OSError:
        return -1  # moved, removed or closed to us: not the folder we knew any more
    info = os.fstat(fd)
    if (info.st_dev, info.st_ino) == (wanted.dev, wanted.ino):
        return fd
    os.close(fd)
    return -1
