"""Which provider serves a volume, found by looking at it, with a sentence that says why."""

import os

from strongroom.sources.files import open_root
from strongroom.sources.mounts import file_system
from strongroom.sources.snapshots import btrfs
from strongroom.sources.snapshots.base import Chosen
from strongroom.sources.snapshots.reflink import Reflink, can_share


def choose_for_image(path: bytes) -> Chosen:
    """For an image file. Nothing is left behind."""
    obstacle = can_share(path)
    if obstacle is not None:
        return Chosen(None, obstacle)
    return Chosen(Reflink(), "The file system makes copies that share blocks, so one moment of the image is read.")


def choose_for_folder(path: bytes, *, one_file_system: bool = False) -> Chosen:
    """For a folder. one_file_system: what is mounted below it is left out anyway. Raises SourceError."""
    root_fd = open_root(path)
    try:
        kind = file_system(root_fd)
        if kind != "btrfs":
            return Chosen(None, f"It is read while it is in use: {kind} makes no snapshots of folders.")
        obstacle = btrfs.why_not(root_fd, whole=not one_file_system)
    finally:
        os.close(root_fd)
    if obstacle is not None:
        return Chosen(None, f"It is read while it is in use: {obstacle}")
    return Chosen(
        btrfs.Btrfs(whole=not one_file_system),
        "A snapshot of its btrfs subvolume is read, so all of it is of one moment.",
    )
