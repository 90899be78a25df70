"""Keeping what no restore point can hold: names that the exclude patterns match, inside of folders that were replaced.

Once all new folders are in their places (journal: "swapped"), the old ones are walked beside them, and what the
patterns match moves over, if its folder exists in the new tree and its name is free. Times of the new folders stay.
Idempotent: what was moved is not found again. From here on nothing goes back, or it would be lost with the new tree.
"""

import os
import stat
from collections.abc import Callable

from strongroom.base.streams import Path
from strongroom.sources.descent import Descent
from strongroom.sources.inodes import OPEN_FOLDER, list_names, rename_new
from strongroom.sources.metadata import LeftOut
from strongroom.sources.patterns import Pattern, is_excluded
from strongroom.sources.stage import is_folder


class Carrier:
    """Moves excluded names from an old folder into the new one. Raises OSError of a broken disk."""

    def __init__(self, patterns: tuple[Pattern, ...], left_out: LeftOut, trace: Callable[[str], None]) -> None:
        self._patterns = patterns
        self._left_out = left_out
        self._trace = trace

    def carry(self, old_parent_fd: int, old_name: bytes, live_parent_fd: int, live: Path) -> None:
        """One unit: `live` is its path below the root, its last part its name in `live_parent_fd`."""
        if not (is_folder(old_parent_fd, old_name) and is_folder(live_parent_fd, live[-1])):
            return
        old, new = _descent(old_parent_fd, old_name), _descent(live_parent_fd, live[-1])
        try:
            pending = [self._folder(old, new, live)]
            while pending:
                if pending[-1]:
                    name = pending[-1].pop()
                    old.enter(name)
                    new.enter(name)
                    pending.append(self._folder(old, new, (*live, *old.path)))
                    continue
                pending.pop()
                if pending and not (old.leave() and new.leave()):
                    return  # somebody moved the new folder away: what was in it is his now
        finally:
            old.close()
            new.close()

    def _folder(self, old: Descent, new: Descent, path: Path) -> list[bytes]:
        """Carry what is directly in the folder; returns the sub-folders that both have."""
        before = os.fstat(new.fd)
        shared, moved = [], False
        for name in list_names(old.fd):
            folder = stat.S_ISDIR(os.stat(name, dir_fd=old.fd, follow_symlinks=False).st_mode)
            if is_excluded(self._patterns, path, name, is_folder=folder):
                moved = self._move(old.fd, new.fd, (*path, name)) or moved
            elif folder and is_folder(new.fd, name):
                shared.append(name)
        if moved:
            os.utime(new.fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        return shared

    def _move(self, old_fd: int, new_fd: int, path: Path) -> bool:
        self._trace("carry")
        try:
            rename_new(old_fd, path[-1], new_fd, path[-1])
        except FileExistsError:
            return False  # the restore point has it: it was made before the pattern was
        except PermissionError as err:
            self._left_out.failed(path, "it is excluded and could not be kept", err)
            return False
        return True


def _descent(folder_fd: int, name: bytes) -> Descent:
    fd = os.open(name, OPEN_FOLDER, dir_fd=folder_fd)
    try:
        return Descent(fd)
    finally:
        os.close(fd)
