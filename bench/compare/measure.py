"""What one process costs, and what lies in a folder.

The kernel counts the peak memory of whoever starts a program into that of the program (execve carries it over), so this
process must stay smaller than anything it measures: it holds no data, and `floor_bytes` says how small it stayed.
"""

import dataclasses
import hashlib
import os
import resource
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one process and the children it waited for.

    wall_s     seconds from start to end
    cpu_s      user and system seconds; system_s is in it
    rss_bytes  largest resident set of any of them
    code       exit code; negative: the signal that ended it
    """

    wall_s: float
    cpu_s: float
    system_s: float
    rss_bytes: int
    code: int


def run(
    argv: Sequence[str],
    *,
    log: IO[bytes] | int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Cost:
    """Run a program to its end; what it prints goes to `log`. `env` is added to this process's environment."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}, cwd=cwd
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)  # it is reaped: subprocess need not wait again
    return Cost(
        wall_s=wall,
        cpu_s=usage.ru_utime + usage.ru_stime,
        system_s=usage.ru_stime,
        rss_bytes=usage.ru_maxrss * 1024,
        code=process.returncode,
    )


def floor_bytes() -> int:
    """The peak of this process: no figure of memory from here can be smaller."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def folder_size(folder: Path) -> tuple[int, int]:
    """(bytes, files) below a folder, as their lengths say."""
    total = count = 0
    for top, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(top, name)).st_size
            count += 1
    return total, count


def regular_files(top: Path) -> list[tuple[Path, int]]:
    """(path, bytes) of the files below, in order of names."""
    found = []
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((path, status.st_size))
    return found


def digest_tree(top: Path) -> str:
    """SHA-256 over names, file contents and link targets, in order of names: equal trees, equal digests."""
    total = hashlib.sha256()
    for folder, folders, names in os.walk(os.fsencode(top)):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*names, *links]):
            path = os.path.join(folder, name)
            total.update(os.path.relpath(path, os.fsencode(top)) + b"\0")
            if stat.S_ISLNK(os.lstat(path).st_mode):
                total.update(b"->" + os.readlink(path))
            else:
                with open(path, "rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def parse_size(text: str) -> int:
    """Bytes of `20M`, `1.5G` or `4096`."""
    number, unit = (text[:-1], UNITS[text[-1].upper()]) if text[-1:].upper() in UNITS else (text, 1)
    return int(float(number) * unit)
