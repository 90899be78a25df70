"""Snapshots that are mounted beside the live file system to be walked: where, by whom, and how they are found again.

Each is mounted in a folder of its own below /run, and the process that walks it holds the lock of that folder.
"""

import os
import tempfile
from collections.abc import Iterable

from strongroom.base.errors import SourceError
from strongroom.sources.inodes import OPEN_FOLDER
from strongroom.sources.mounts import Mount, load_mounts, mount_of, real_path
from strongroom.sources.oserrors import shown
from strongroom.sources.snapshots.base import Consistency
from strongroom.sources.stage import lock_file

PLACE, NAME = "/run", "strongroom-mount-"
OURS = os.fsencode(f"{PLACE}/{NAME}")


class MountedSnapshot:
    """A mounted snapshot that this process holds locked; Snapshot. below: the folder's path in the file system."""

    consistency: Consistency = "filesystem_consistent"

    def __init__(self, name: str, mark: str, place: str, below: bytes) -> None:
        self.name = name
        self.mark = mark
        self.path = os.path.join(os.fsencode(place), below)
        self._fd = os.open(place, OPEN_FOLDER)
        lock_file(self._fd)  # nobody else can have it: it was mounted by this process

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make_place() -> str:
    """A folder to mount one in. Raises OSError."""
    return tempfile.mkdtemp(prefix=NAME, dir=PLACE)


def mount_and_rest(root_fd: int) -> tuple[Mount, bytes]:
    """The mount that an open folder is on, and the folder's path from the root of the file system."""
    path = real_path(root_fd)
    mount = mount_of(path, load_mounts())
    if mount is None:
        raise SourceError(reason=f"Nothing is known of the file system of {shown(path)}. Is /proc mounted?")
    inside = os.path.relpath(path, mount.point)
    return mount, os.path.normpath(os.path.join(mount.root, inside)).lstrip(b"/")


def are_free(points: Iterable[bytes]) -> bool:
    """Whether no living process walks what is mounted there."""
    for point in points:
        fd = os.open(point, OPEN_FOLDER)
        try:
            if not lock_file(fd):
                return False
        finally:
            os.close(fd)
    return True
