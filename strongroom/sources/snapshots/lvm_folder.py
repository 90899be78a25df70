"""Snapshots of folders whose file system lies on a logical volume: the volume's snapshot, mounted beside the live one.

LVM holds the file system still while it makes one (the kernel freezes it), so the tree is of one moment and complete.
The snapshot is mounted read-only in a private folder below /run; whoever releases it unmounts it first. A tree needs no
parent snapshot: inode numbers and change times are those of the live tree.
"""

import contextlib
import os
from typing import Final

from strongroom.base.errors import SourceError
from strongroom.sources.files import open_root
from strongroom.sources.inodes import syncfs
from strongroom.sources.mounts import Mount, load_mounts, mounted_below
from strongroom.sources.oserrors import shown, source_error
from strongroom.sources.snapshots import lvm
from strongroom.sources.snapshots.base import Changes, Parent, Snapshot
from strongroom.sources.snapshots.mounted import OURS, MountedSnapshot, are_free, make_place, mount_and_rest
from strongroom.sources.tools import run_tool

KINDS = ("ext2", "ext3", "ext4", "xfs")  # file systems of one device that can be mounted twice


class LvmFolder:
    """SnapshotProvider of folders on logical volumes."""

    keeps_parent: Final = False

    def __init__(self, inner: "lvm.LvmClassic | lvm.LvmThin") -> None:
        self._inner = inner

    @property
    def name(self) -> str:
        return self._inner.name

    def create(self, volume: bytes, name: str) -> MountedSnapshot:
        root_fd = open_root(volume)
        try:
            syncfs(root_fd)
            mount, below = mount_and_rest(root_fd)
            made = self._inner.create(device_of(mount), name, writable=True)
        except OSError as err:
            raise source_error(err, volume, "make a snapshot of") from err
        finally:
            os.close(root_fd)
        place = make_place()
        try:
            options = "ro,nosuid,nodev,noexec" + (",nouuid" if mount.kind == "xfs" else "")
            run_tool(["mount", "-t", mount.kind, "-o", options, os.fsdecode(made.path), place])
            return MountedSnapshot(name, made.mark, place, below)
        except BaseException:
            with contextlib.suppress(SourceError, OSError):
                self.release(volume, name)
                os.rmdir(place)
            raise

    def changed(self, volume: bytes, parent: Parent, now: Snapshot) -> Changes:
        return Changes(None)  # a walk compares inodes and change times

    def verify(self, volume: bytes, now: Snapshot) -> None:
        self._inner.verify(_device(volume), now)

    def release(self, volume: bytes, name: str) -> None:
        device = _device(volume)
        for point in _mounted_at(lvm.node_of(device, name)):
            run_tool(["umount", os.fsdecode(point)])
            with contextlib.suppress(OSError):
                os.rmdir(point)
        self._inner.release(device, name)

    def names(self, volume: bytes, prefix: str) -> list[str]:
        device = _device(volume)
        return [name for name in self._inner.names(device, prefix) if are_free(_mounted_at(lvm.node_of(device, name)))]


def choose(root_fd: int, *, whole: bool) -> tuple[LvmFolder | None, str]:
    """For an open folder. whole: what is mounted below belongs to it. Raises SourceError, OSError."""
    mount, _ = mount_and_rest(root_fd)
    if mount.kind not in KINDS:
        return None, f"{mount.kind} makes no snapshots of folders."
    inner, reason = lvm.choose(device_of(mount))
    if inner is None:
        return None, reason
    if os.geteuid() != 0:
        return None, "Only root may mount a snapshot, and the service does not run as root."
    mounted = mounted_below(root_fd)
    if mounted is not None and whole:
        return None, f"{shown(mounted)} is mounted below the folder and is no part of its volume."
    return LvmFolder(inner), f"A snapshot ({inner.name}) of its volume is read, so all of it is of one moment."


def device_of(mount: Mount) -> bytes:
    """The node of the device that a file system lies on; one that is not there for what lies on no device."""
    try:
        with open(f"/sys/dev/block/{mount.device}/dm/name", encoding="ascii", errors="replace") as file:
            return os.fsencode(f"/dev/mapper/{file.read(256).strip()}")
    except OSError:
        return os.fsencode(f"/dev/block/{mount.device}")


def _device(volume: bytes) -> bytes:
    root_fd = open_root(volume)
    try:
        return device_of(mount_and_rest(root_fd)[0])
    finally:
        os.close(root_fd)


def _mounted_at(node: bytes) -> list[bytes]:
    """Where a device is mounted, by us."""
    try:
        rdev = os.stat(node).st_rdev
    except OSError:
        return []
    number = f"{os.major(rdev)}:{os.minor(rdev)}"
    return [mount.point for mount in load_mounts() if mount.device == number and mount.point.startswith(OURS)]
