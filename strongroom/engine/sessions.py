"""Sessions where no service keeps them: of one process, or of all processes of a host that use one POSIX repository.

A session pins an index number while it reads or writes; prune deletes fossils only when nobody pins an older number
(RULINGS 9). With flock a session ends with its process at the latest, so a crash never holds a prune up.
"""

import contextlib
import fcntl
import os
import threading

from strongroom.engine.model import SessionKind


class ProcessSessions:
    """Known to this process only: for a store in memory, and for tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pinned: dict[str, int] = {}

    def open(self, kind: SessionKind, index_number: int) -> str:
        token = f"{kind}-{os.urandom(8).hex()}"
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
        self._folder = os.fspath(folder)
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}

    def open(self, kind: SessionKind, index_number: int) -> str:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        while True:
            token = f"{index_number}.{kind}.{os.urandom(8).hex()}"
            file = os.open(f"{self._folder}/{token}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
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
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._folder}/{token}")
            os.close(file)

    def oldest_pinned(self) -> int | None:
        """Removes the files of dead sessions on the way."""
        if not os.path.isdir(self._folder):
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
            file = os.open(f"{self._folder}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._folder}/{name}")
            return False
        finally:
            os.close(file)
