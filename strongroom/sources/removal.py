"""Removing a folder tree of ours: any depth, read-only and immutable entries too, never into another file system."""

import errno
import os
import stat

from strongroom.base.errors import TargetDenied
from strongroom.sources.descent import Descent
from strongroom.sources.inodes import OPEN_FOLDER
from strongroom.sources.metadata import loosen

ROUNDS_MAX = 3  # somebody may still be adding files to a folder he has open; then it stays and is reported


def remove_tree(parent_fd: int, name: bytes) -> None:
    """Remove `name` and everything below it; nothing there is fine. Raises OSError; TargetDenied at a mount."""
    try:
        info = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(info.st_mode):
        _remove(parent_fd, name, is_folder=False)
        return
    for left in reversed(range(ROUNDS_MAX)):
        _empty(parent_fd, name)
        try:
            _remove(parent_fd, name, is_folder=True)
        except OSError as err:
            if err.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not left:
                raise
        else:
            return


def _empty(parent_fd: int, name: bytes) -> None:
    """Remove the content of a folder, deepest first."""
    loosen(parent_fd, name)
    root_fd = os.open(name, OPEN_FOLDER, dir_fd=parent_fd)
    try:
        descent = Descent(root_fd)
    finally:
        os.close(root_fd)
    try:
        pending = [_remove_files(descent)]
        inside: list[bytes] = []
        while pending:
            if pending[-1]:
                inside.append(pending[-1].pop())
                loosen(descent.fd, inside[-1])
                descent.enter(inside[-1])
                pending.append(_remove_files(descent))
            else:
                pending.pop()
                if inside:
                    if not descent.leave():
                        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), inside[-1])
                    _remove(descent.fd, inside.pop(), is_folder=True)
    finally:
        descent.close()


def _remove_files(descent: Descent) -> list[bytes]:
    """Unlink what is not a folder; returns the folders."""
    device, fd = descent.dev, descent.fd
    with os.scandir(fd) as listing:
        found = [(os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in listing]
    folders = []
    for name, is_folder in found:
        if not is_folder:
            _remove(fd, name, is_folder=False)
            continue
        if os.stat(name, dir_fd=fd, follow_symlinks=False).st_dev != device:
            raise TargetDenied(reason="A file system is mounted inside of what is to be removed. Unmount it first.")
        folders.append(name)
    return folders


def _remove(folder_fd: int, name: bytes, *, is_folder: bool) -> None:
    call = os.rmdir if is_folder else os.unlink
    try:
        call(name, dir_fd=folder_fd)
    except FileNotFoundError:
        return
    except PermissionError:
        loosen(folder_fd, name)
        call(name, dir_fd=folder_fd)
