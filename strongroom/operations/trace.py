"""Trace points: places where a test may end or freeze the process, counted, never timed (RULINGS 26).

    STRONGROOM_KILL_AT=backup:store:7      kill at the 7th store trace point while a backup runs
    STRONGROOM_KILL_AT=restore:files:3     kill at the 3rd change of a file system (rename, mkdir, link, unlink, ...)
    STRONGROOM_KILL_AT=restore:database:2  kill before or after the n-th call into the database
    STRONGROOM_KILL_AT=prune:store:9:stop  freeze there with SIGSTOP, until somebody sends SIGCONT

Store points are before every call, and after those that change something. Without the setting `point` is a comparison.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from strongroom.base.errors import ConfigError

KINDS = ("store", "database", "files")
FILE_EVENTS = frozenset(
    {
        "os.rename",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "os.setxattr",
    }
)


@dataclass(kw_only=True)
class _Fuse:
    operation: str
    kind: str
    number: int
    sends: signal.Signals = signal.SIGKILL
    count: int = 0
    jobs: int = 0


_fuse: _Fuse | None = None
_lock = threading.Lock()


def arm(text: str) -> None:
    """Parse `operation:kind:n`, or with `:stop` behind it, and wait for that point. Raises ConfigError."""
    global _fuse  # noqa: PLW0603 -- one process dies once
    operation, _, rest = text.partition(":")
    kind, _, rest = rest.partition(":")
    number, _, action = rest.partition(":")
    if kind not in KINDS or not number.isdigit() or action not in ("", "stop"):
        raise ConfigError(reason=f"kill_at must be OPERATION:{'|'.join(KINDS)}:NUMBER[:stop], not {text!r}.")
    _fuse = _Fuse(
        operation=operation, kind=kind, number=int(number), sends=signal.SIGSTOP if action else signal.SIGKILL
    )
    if kind == "files":
        sys.addaudithook(lambda event, _: point("files") if event in FILE_EVENTS else None)


def passed() -> int | None:
    """Points counted so far, None when nothing is armed. Armed out of reach, a run tells how many there are."""
    return _fuse.count if _fuse is not None else None


def point(kind: str) -> None:
    """One place where the process may die: it never returns from the chosen one, or when it is thawed."""
    if _fuse is None or _fuse.kind != kind or not _fuse.jobs:
        return
    with _lock:
        _fuse.count += 1
        if _fuse.count == _fuse.number:
            os.kill(os.getpid(), _fuse.sends)


@contextmanager
def running(operation: str) -> Iterator[None]:
    """Points count only while a job of the chosen operation runs."""
    if _fuse is None or _fuse.operation != operation:
        yield
        return
    with _lock:
        _fuse.jobs += 1
    try:
        yield
    finally:
        with _lock:
            _fuse.jobs -= 1
