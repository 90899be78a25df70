"""Snapshots of folders on ZFS: a snapshot of the dataset, and a read-only clone of it mounted beside the live one.

A clone, not the `.zfs` folder, because zfs-fuse has none. Both are called after the resource: the snapshot
`DATASET@strongroom.<resource id>.<moment>`, the clone `DATASET/strongroom....`. They go when the point ends: a tree
needs no parent snapshot, inode numbers and change times are those of the live tree.
"""

import contextlib
import os
import time
from typing import Final

from strongroom.base.errors import SourceError
from strongroom.sources.files import open_root
from strongroom.sources.inodes import syncfs
from strongroom.sources.mounts import Mount, load_mounts, mounted_below
from strongroom.sources.oserrors import shown, source_error
from strongroom.sources.snapshots.base import PREFIX, Changes, Parent, Snapshot
from strongroom.sources.snapshots.mounted import OURS, MountedSnapshot, are_free, make_place, mount_and_rest
from strongroom.sources.tools import run_tool

BUSY_S_MAX, BUSY_STEP_S = 5.0, 0.05
KINDS = ("zfs", "fuse.zfs")


class Zfs:
    """SnapshotProvider of folders."""

    name: Final = "ZFS"
    keeps_parent: Final = False

    def create(self, volume: bytes, name: str) -> MountedSnapshot:
        root_fd = open_root(volume)
        try:
            syncfs(root_fd)
            mount, below = mount_and_rest(root_fd)
        except OSError as err:
            raise source_error(err, volume, "make a snapshot of") from err
        finally:
            os.close(root_fd)
        dataset = _dataset(mount)
        place = make_place()
        try:
            _zfs("snapshot", f"{dataset}@{name}")
            options = ["-o", "readonly=on", "-o", f"mountpoint={place}"]
            _zfs("clone", *options, f"{dataset}@{name}", f"{dataset}/{name}")
            mark = _zfs("get", "-H", "-p", "-o", "value", "guid", f"{dataset}@{name}").strip()
            return MountedSnapshot(name, mark, place, below)
        except BaseException:
            with contextlib.suppress(SourceError):
                self.release(volume, name)
            with contextlib.suppress(OSError):
                os.rmdir(place)
            raise

    def changed(self, volume: bytes, parent: Parent, now: Snapshot) -> Changes:
        return Changes(None)  # a walk compares inodes and change times

    def verify(self, volume: bytes, now: Snapshot) -> None:
        return None  # it shares the live tree's room and cannot break before that does

    def release(self, volume: bytes, name: str) -> None:
        dataset = _dataset_of(volume)
        points = _mounted_at(f"{dataset}/{name}")
        if _exists("filesystem", f"{dataset}/{name}"):
            _destroy_clone(f"{dataset}/{name}")
        if _exists("snapshot", f"{dataset}@{name}"):
            _zfs("destroy", f"{dataset}@{name}")
        for point in points:
            with contextlib.suppress(OSError):
                os.rmdir(point)

    def names(self, volume: bytes, prefix: str) -> list[str]:
        dataset = _dataset_of(volume)
        told = _zfs("list", "-H", "-t", "snapshot", "-o", "name", "-d", "1", dataset).splitlines()
        names = [name for name in (line.rpartition("@")[2] for line in told) if name.startswith(prefix)]
        return [name for name in names if are_free(_mounted_at(f"{dataset}/{name}"))]


def choose(root_fd: int, *, whole: bool) -> tuple[Zfs | None, str]:
    """For an open folder on ZFS. whole: what is mounted below belongs to it. Raises SourceError, OSError."""
    if os.geteuid() != 0:
        return None, "Only root may make and mount snapshots, and the service does not run as root."
    _dataset(mount_and_rest(root_fd)[0])
    mounted = mounted_below(root_fd)
    if mounted is not None and whole:
        return None, f"{shown(mounted)} is mounted below the folder and is no part of its dataset."
    return Zfs(), "A snapshot of its ZFS dataset is read, so all of it is of one moment."


def _dataset(mount: Mount) -> str:
    name = os.fsdecode(mount.source)
    if not name or name.startswith(("-", "/")) or "@" in name or PREFIX in name:
        raise SourceError(reason=f"{shown(mount.source)} is no ZFS dataset whose snapshot could be made.")
    return name


def _dataset_of(volume: bytes) -> str:
    root_fd = open_root(volume)
    try:
        return _dataset(mount_and_rest(root_fd)[0])
    except OSError as err:
        raise source_error(err, volume, "look at") from err
    finally:
        os.close(root_fd)


def _mounted_at(dataset: str) -> list[bytes]:
    """Where a clone is mounted, by us."""
    wanted = os.fsencode(dataset)
    return [mount.point for mount in load_mounts() if mount.source == wanted and mount.point.startswith(OURS)]


def _destroy_clone(dataset: str) -> None:
    """zfs-fuse learns late that its last file was closed, and says until then that the dataset is busy."""
    give_up_s = time.monotonic() + BUSY_S_MAX
    while True:
        try:
            _zfs("destroy", dataset)
        except SourceError as err:
            if "busy" not in str(err.detail) or time.monotonic() > give_up_s:
                raise
            time.sleep(BUSY_STEP_S)
        else:
            return


def _exists(kind: str, name: str) -> bool:
    try:
        _zfs("list", "-H", "-t", kind, "-o", "name", name)
    except SourceError as err:
        if "does not exist" in str(err.detail):
            return False
        raise
    return True


def _zfs(*arguments: str) -> str:
    return run_tool(["zfs", *arguments])
