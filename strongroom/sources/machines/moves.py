"""Images that are whole and wait beside their places: a mark says which, so that after a death the rest is moved too.

    all images are durable  ->  mark  ->  one rename after the other  ->  mark removed

Without the mark nothing was moved, and who comes next goes back. With it he goes forward, as often as it takes.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterable

from strongroom.sources.inodes import OPEN_FOLDER, OPEN_READ
from strongroom.sources.oserrors import target_error

MARK_BYTES_MAX = 256 * 1024

Moves = list[tuple[str, str]]  # (staged, place) of each


def write_mark(path: str, moves: Iterable[tuple[str, str]]) -> None:
    """Durable on return. Raises SourceError."""
    temporary = f"{path}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(list(moves)).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
        sync_folder(os.path.dirname(path))
    except OSError as err:
        raise target_error(err, os.fsencode(temporary), "write") from err


def read_mark(path: str) -> Moves | None:
    """None without one of ours. What is damaged was never whole: it is as none."""
    try:
        fd = os.open(path, OPEN_READ)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink != 1:
            return None  # in a folder where anybody may write, anybody may leave one
        found = json.loads(os.read(fd, MARK_BYTES_MAX))
        return [(str(staged), str(place)) for staged, place in found]
    except (ValueError, TypeError, RecursionError):
        return None
    finally:
        os.close(fd)


def remove_mark(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
        sync_folder(os.path.dirname(path))


def move(moves: Iterable[tuple[str, str]]) -> None:
    """Each staged image over its place, durable. One that is not there any more was moved before. Raises OSError."""
    for staged, place in moves:
        with contextlib.suppress(FileNotFoundError):
            os.rename(staged, place)
        sync_folder(os.path.dirname(place))


def sync_folder(folder: str) -> None:
    fd = os.open(folder or ".", OPEN_FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
