"""Sessions where no service keeps them: of one process, or of all processes of a host that use one POSIX repository.

A session pins an index number while it reads or writes; prune deletes fossils only when nobody pins an older number
(RULINGS 9). With flock a session ends with its process at the latest, so a crash never holds a prune up.
"""

import contextlib
import fcntl
import os
import secrets
import threading
from pathlib import Path

from strongroom.engine.model import SessionKind


class ProcessSessions:
    """Known to this process only: for a store in memory, and for tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pinned: dict[str, int] = {}

    def open(self, kind: SessionKind, index_number: int) -> str:
        token = f"{kind}-{secrets.token_hex(8)}"
        with self._lock:
            self._pinned[token] = index_number
        return token

    def close(self, token: str) -> None:
        with self._lock:
            self._pinned.pop(token, None)

    def oldest_pinned(self) -> int | None:
        with self._lock:
            return min(self._pinned.values(), default=None)


class FlockSessions:
    """One locked file a session in `folder`: `<index number>.<kind>.<random>`. A lock nobody holds is a dead one."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}

    def open(self, kind: SessionKind, index_number: int) -> str:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            token = f"{index_number}.{kind}.{secrets.token_hex(8)}"
            file = os.open(self._folder / token, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                break
            os.close(file)  # taken for a dead one between its creation and its lock
        with self._lock:
            self._files[token] = file
        return token

    def close(self, token: str) -> None:
        with self._lock:
            file = self._files.pop(token, None)
        if file is not None:
            (self._folder / token).unlink(missing_ok=True)
            os.close(file)

    def oldest_pinned(self) -> int | None:
        """Removes the files of dead sessions on the way."""
        if not self._folder.is_dir():
            return None
        numbers = [int(name.split(".")[0]) for name in os.listdir(self._folder) if self._is_alive(name)]
        return min(numbers, default=None)

    def _is_alive(self, name: str) -> bool:
        if not name.partition(".")[0].isdigit():
            return False  # not one of ours
        with self._lock:
            if name in self._files:
                return True
        try:
            file = os.open(self._folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()
            return False
        finally:
            os.close(file)
