"""The folder that all programs back up, brought from one generation to the next in place.

Unchanged files keep inode, times and bytes, as on a real host. A copy made anew would miss every program's cache, and
the comparison would be a lie.
"""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path


def put(data: Path, which: str, generation: int, folder: Path) -> None:
    """Make `folder` the given generation of the data set `which` ("tree", "image" or "random")."""
    folder.mkdir(parents=True, exist_ok=True)
    if which == "tree":
        make_equal(os.fsencode(data / f"tree.{generation}"), os.fsencode(folder))
    elif which == "random":
        _write_over(data / f"random.{generation}", folder / "random.bin")
    else:
        _write_changed_blocks(data, data / f"image.{generation}", folder / "image.raw")


def make_equal(wanted: bytes, folder: bytes) -> None:
    """Make `folder` equal to `wanted`, touching only what differs in kind, size or time of change."""
    kept: set[bytes] = set()
    for top, folders, names in os.walk(wanted):
        here = os.path.normpath(os.path.join(folder, os.path.relpath(top, wanted)))
        os.makedirs(here, exist_ok=True)
        kept.add(here)
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        for name in (*names, *links):
            kept.add(os.path.join(here, name))
            _copy_if_other(os.path.join(top, name), os.path.join(here, name))
    for top, folders, names in os.walk(folder, topdown=False):
        for name in (*names, *folders):
            path = os.path.join(top, name)
            if path not in kept:
                (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)


def _copy_if_other(wanted: bytes, path: bytes) -> None:
    new = os.lstat(wanted)
    is_link = stat.S_ISLNK(new.st_mode)
    try:
        old = os.lstat(path)
    except FileNotFoundError:
        pass
    else:
        both_links = is_link and stat.S_ISLNK(old.st_mode)
        if os.readlink(wanted) == os.readlink(path) if both_links else _signature(old) == _signature(new):
            return
        if is_link or stat.S_ISLNK(old.st_mode):
            os.unlink(path)
    if is_link:
        os.symlink(os.readlink(wanted), path)
    else:
        shutil.copyfile(wanted, path)  # writes into the file that is there: its inode stays
        shutil.copystat(wanted, path)


def _signature(status: os.stat_result) -> tuple[int, int, int]:
    return stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns


def _write_over(wanted: Path, path: Path) -> None:
    shutil.copyfile(wanted, path)
    os.utime(path)


def _write_changed_blocks(data: Path, wanted: Path, path: Path) -> None:
    """Copy the image when there is none; else write only the blocks in which the generations differ."""
    if not path.exists():
        subprocess.run(["cp", "--sparse=always", wanted, path], check=True)
        return
    extents = json.loads((data / "image.cbt.json").read_text())["extents"]
    with wanted.open("rb", buffering=0) as new, path.open("r+b", buffering=0) as file:
        for offset, length in extents:
            while length:
                done = os.pwrite(file.fileno(), os.pread(new.fileno(), min(length, 1 << 20), offset), offset)
                offset, length = offset + done, length - done
