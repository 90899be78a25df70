"""Who else has a file or device open: a disk image must not be replaced under a running machine.

Looks through /proc, so without root it sees only the programs of its own user; `unseen` tells how many it could not
look into. The kernel's own users (loop devices) are asked for by name.
"""

import glob
import os
import stat
from dataclasses import dataclass

HOLDERS_MAX = 16  # enough for a sentence to the operator


@dataclass(frozen=True, kw_only=True)
class Openers:
    """holders: such as "process 812 (qemu-system-x86)", at most HOLDERS_MAX. unseen: processes of other users."""

    holders: tuple[str, ...]
    unseen: int


def find_openers(fd: int) -> Openers:
    """Everybody but this process that has the same file or block device open."""
    wanted = _identity(os.fstat(fd))
    holders, unseen = [], 0
    for process in _processes():
        found = _has_open(process, wanted)
        if found is None:
            unseen += 1
        elif found:
            holders.append(f"process {process} ({_name(process)})")
        if len(holders) >= HOLDERS_MAX:
            break
    holders += _loop_devices(os.readlink(f"/proc/self/fd/{fd}"))
    return Openers(holders=tuple(holders), unseen=unseen)


def _identity(info: os.stat_result) -> tuple[int, int, int]:
    """Equal for all names of one file, or of one block device."""
    if stat.S_ISBLK(info.st_mode):
        return (stat.S_IFBLK, info.st_rdev, 0)
    return (stat.S_IFMT(info.st_mode), info.st_dev, info.st_ino)


def _processes() -> list[str]:
    own = str(os.getpid())
    return [name for name in os.listdir("/proc") if name.isdigit() and name != own]


def _has_open(process: str, wanted: tuple[int, int, int]) -> bool | None:
    """None when we may not look; a process that ended meanwhile has nothing open."""
    folder = f"/proc/{process}/fd"
    try:
        names = os.listdir(folder)
    except PermissionError:
        return None
    except OSError:
        return False
    for name in names:
        try:
            if _identity(os.stat(f"{folder}/{name}")) == wanted:
                return True
        except OSError:
            continue  # closed meanwhile
    return False


def _name(process: str) -> str:
    try:
        with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as file:
            return file.read(64).strip()
    except OSError:
        return "ended"


def _loop_devices(path: str) -> list[str]:
    found = []
    for place in glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(place, encoding="utf-8", errors="surrogateescape") as file:
                backing = file.read(8192).rstrip("\n")
        except OSError:
            continue  # detached meanwhile
        if backing == path:
            found.append(f"loop device {place.split('/')[3]}")
    return found
