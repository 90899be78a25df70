"""Whole disks among the protected paths: a block device below /dev is one file of the tree, as long as the disk.

    backup    of a logical volume a snapshot is read, of another device what it holds, from its first byte to its last
    in place  onto the device: blocks that differ, holes as zeros, all of it read back; never while it is in use
    aside     an image file

A disk has no times that prove anything, so every backup reads all of it, and only chunks that are new travel.
"""

import contextlib
import hashlib
import os
import stat
import threading
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import replace

from strongroom.agent.policy import DEVICES, is_at_or_below
from strongroom.base.errors import SourceError, TargetDenied
from strongroom.base.streams import NO_ATTRIBUTES, Attributes, Entry, Extent, ExtentKind, Path
from strongroom.sources.base import RestorePlan, RestoreWanted, SourceRef, TargetReport
from strongroom.sources.device import DeviceDriver, DeviceTarget, open_device, size_of
from strongroom.sources.disk import flush_quietly
from strongroom.sources.files import OpenFile, OpenFolder
from strongroom.sources.inodes import OPEN_FOLDER, pread_full
from strongroom.sources.oserrors import shown, source_error
from strongroom.sources.pace import Pace
from strongroom.sources.snapshots.base import Hold
from strongroom.sources.snapshots.choose import choose_for_device

RANGES_MAX = 4096  # of a restored disk, before those that touch are joined


def is_disk(path: bytes) -> bool:
    """Whether a protected path names a block device. Its last part may be a link, as those of /dev/disk/by-id and of
    logical volumes are: /dev is root's, and no other part may."""
    folder = os.path.dirname(path)
    try:
        return is_below_devices(path) and os.path.realpath(folder) == folder and stat.S_ISBLK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_below_devices(path: bytes) -> bool:
    return path != DEVICES and is_at_or_below(path, DEVICES)


class OpenDisk:
    """A disk to be read. `entry`: the file that it is in the tree. `reason`: what is read of it, for people."""

    def __init__(self, path: bytes, taken_at_ns: int, pace: Pace) -> None:
        self._path = path
        self._pace = pace
        self._hold: Hold | None = None
        self._closing = contextlib.ExitStack()
        try:
            fd = open_device(path, os.O_RDONLY)
            self._closing.callback(os.close, fd)
            flush_quietly(fd)
            provider, self.reason = choose_for_device(path)
            if provider is not None:
                name = f"disk{hashlib.blake2b(path, digest_size=16).hexdigest()}"
                self._hold = Hold(provider, path, name, taken_at_ns, None)
                self._closing.callback(self._hold.abort)  # nobody asks it for changes: it goes with the backup
                fd = open_device(self._hold.snapshot.path, os.O_RDONLY)
                self._closing.callback(os.close, fd)
            self._fd, size = fd, size_of(fd)
        except OSError as err:
            self.close()
            raise source_error(err, path, "read") from err
        except BaseException:
            self.close()
            raise
        mode, now = stat.S_IFREG | 0o600, taken_at_ns
        self.entry = Entry(os.path.basename(path), mode, 0, 0, now, size, now, 0, 0, 1, 0, False)

    def close(self) -> None:
        """Idempotent."""
        self._closing.close()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._pace.take(len(buffer))
        try:
            return pread_full(self._fd, buffer, offset)
        except OSError as err:
            raise source_error(err, self._path, "read") from err

    def verify(self) -> None:
        """What was read is of one moment, where a snapshot promised that. Raises SourceError."""
        if self._hold is not None:
            self._hold.verify()


class _DiskData(OpenFile):
    """FileData of a disk, which stays open: its descriptor is that of the OpenDisk."""

    def __init__(self, disk: OpenDisk) -> None:
        self._disk = disk
        self.entry = disk.entry

    def __exit__(self, *exc_info: object) -> None:
        return None

    def extents(self) -> Sequence[Extent]:
        return [Extent(0, self.entry.size, ExtentKind.DATA)] if self.entry.size else []

    def read_into(self, offset: int, buffer: memoryview) -> int:
        return self._disk.read_into(offset, buffer)

    def attributes(self) -> Attributes:
        return NO_ATTRIBUTES

    def changed(self) -> bool:
        self._disk.verify()
        return False


class DiskFolder(OpenFolder):
    """A folder some of whose files are disks."""

    def __init__(
        self, path: Path, fd: int, pace: Pace, entries: Sequence[Entry], disks: Mapping[bytes, OpenDisk]
    ) -> None:
        super().__init__(b"/", path, fd, pace, entries, ())
        self._disks = disks

    def keep(self) -> "DiskFolder":
        fd = os.open(b".", OPEN_FOLDER, dir_fd=self._fd)
        return DiskFolder(self.path, fd, self._pace, (), self._disks)

    def attributes(self, entry: Entry) -> Attributes:
        return NO_ATTRIBUTES if entry.name in self._disks else super().attributes(entry)

    def open(self, entry: Entry) -> OpenFile:
        disk = self._disks.get(entry.name)
        return super().open(entry) if disk is None else _DiskData(disk)


class DiskPlace:
    """A disk of this host that gets what a restore point has of it. Close it in any case."""

    def __init__(self, path: bytes, task_id: str) -> None:
        """Raises TargetDenied for what is no disk now."""
        if not is_disk(path):
            raise TargetDenied(
                reason=f"{shown(path)} is no disk of this host now. Restore aside, into a folder: it becomes an image."
            )
        self._path = path
        self._driver = DeviceDriver()
        # Never by force: on a disk that is in use the agent's own files may lie, which no restore may change.
        self._wanted = RestoreWanted(
            task_id=task_id,
            target=SourceRef(resource_id="host", type="OS::Cinder::Volume", path=path),
            same_resource=True,
            kind="block",
            size_bytes=0,
        )
        self._target: DeviceTarget | None = None

    def plan(self) -> RestorePlan:
        return self._driver.plan_restore(self._wanted)

    def begin(self, entry: Entry) -> "DiskFile":
        """Open it for what is as long as the entry says. Raises SourceError when it is too small, or in use."""
        if self._target is not None:
            raise SourceError(reason="The server sent a disk twice.")
        wanted = replace(self._wanted, size_bytes=entry.size)
        self._target = self._driver.open_target(self._driver.plan_restore(wanted))
        return DiskFile(self._target, entry.size)

    def finish(self) -> TargetReport:
        if self._target is None:
            raise SourceError(reason=f"The restore point holds no disk {shown(self._path)}.")
        return self._target.finish()

    def close(self) -> None:
        """Idempotent."""
        if self._target is not None:
            self._target.__exit__()


class DiskFile:
    """The file of the tree that a disk is; FileTarget. What nobody writes of it is zeros."""

    def __init__(self, target: DeviceTarget, size: int) -> None:
        self._target = target
        self._size = size
        self._lock = threading.Lock()
        self._written: list[tuple[int, int]] = []  # [start, end), sorted by start

    def write(self, offset: int, data: memoryview) -> None:
        self._target.stream.write(offset, data)
        with self._lock:
            insort(self._written, (offset, offset + len(data)))
            if len(self._written) > RANGES_MAX:
                self._written = _joined(self._written)

    def close(self) -> None:
        at = 0
        for start, end in [*_joined(self._written), (self._size, self._size)]:
            if start > at:
                self._target.stream.zero(at, start - at)
            at = max(at, end)


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
