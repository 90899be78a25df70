"""Which provider serves a volume, found by looking at it, with a sentence that says why."""

import os

from strongroom.base.errors import SourceError
from strongroom.sources.files import open_root
from strongroom.sources.mounts import file_system
from strongroom.sources.oserrors import source_error
from strongroom.sources.snapshots import btrfs, lvm, lvm_folder, zfs
from strongroom.sources.snapshots.base import Chosen, SnapshotProvider
from strongroom.sources.snapshots.reflink import Reflink, can_share


def choose_for_image(path: bytes) -> Chosen:
    """For an image file. Nothing is left behind."""
    obstacle = can_share(path)
    if obstacle is not None:
        return Chosen(None, obstacle)
    return Chosen(Reflink(), "The file system makes copies that share blocks, so one moment of the image is read.")


def choose_for_folder(path: bytes, *, one_file_system: bool = False) -> Chosen:
    """For a folder. one_file_system: what is mounted below it is left out anyway. Raises SourceError."""
    whole = not one_file_system
    root_fd = open_root(path)
    try:
        kind = file_system(root_fd)
        if kind in zfs.KINDS:
            return _told(*zfs.choose(root_fd, whole=whole))
        if kind != "btrfs":
            return _told(*lvm_folder.choose(root_fd, whole=whole))
        obstacle = btrfs.why_not(root_fd, whole=whole)
    except OSError as err:
        raise source_error(err, path, "look at") from err
    finally:
        os.close(root_fd)
    if obstacle is not None:
        return Chosen(None, f"It is read while it is in use: {obstacle}")
    reason = "A snapshot of its btrfs subvolume is read, so all of it is of one moment."
    return Chosen(btrfs.Btrfs(whole=whole), reason)


def choose_for_device(path: bytes) -> Chosen:
    """For a block device. Raises nothing: what gives no answer is read live, and the reason says so."""
    try:
        provider, reason = lvm.choose(path)
    except SourceError as err:
        provider, reason = None, err.message
    return _told(provider, reason)


def _told(provider: SnapshotProvider | None, reason: str) -> Chosen:
    return Chosen(provider, reason) if provider else Chosen(None, f"It is read while it is in use: {reason}")
