"""What a disk may hold after a power cut, from the system calls a run has made.

`Recorder` stands between a PosixStore and the kernel: calls go through to a real folder and are written down. A crash
at event k then keeps what an fsync that began after it has covered, and of everything else any subset: each write,
each new name, each removed name on its own, later ones without earlier ones. That is weaker than any filesystem in
use, so what survives here survives there. Marks in between say what was acknowledged when.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.posix import TEMPORARY_PREFIX

ROOT = 0


class Event(NamedTuple):
    """One call that changed something, or a mark.

    write   node, offset, data               gone  node (the folder), name
    name    node (the folder), name, child   sync  node, covers (events written down before the fsync began)
    folder  the same, the child is a folder  mark  mark
    """

    kind: str
    node: int = 0
    name: str = ""
    child: int = 0
    offset: int = 0
    data: bytes = b""
    covers: int = 0
    mark: object = None


class Recorder:
    """Writes down what happens below `root`. Use `recording` round the run."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.events: list[Event] = []
        self._lock = threading.RLock()
        self._nodes: dict[int, int] = {}  # inode number -> node; numbers are used again, so a creation renews them
        self._next = ROOT + 1

    def mark(self, value: object) -> None:
        """From here on, `value` was acknowledged."""
        with self._lock:
            self.events.append(Event("mark", mark=value))

    @contextmanager
    def recording(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Watch the calls of this process, whichever thread makes them."""
        self._nodes[os.stat(self.root).st_ino] = ROOT
        with patch.context() as inner:
            for name in ("open", "mkdir", "pwrite", "link", "unlink", "fsync"):
                inner.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
            yield

    def _node(self, inode: int, *, new: bool = False) -> int:
        if new or inode not in self._nodes:
            self._nodes[inode] = self._next
            self._next += 1
        return self._nodes[inode]

    def _folder(self, path: str, dir_fd: int | None) -> tuple[int, str] | None:
        """(node of the folder, last name) of a path below the root, None for one that is elsewhere."""
        if dir_fd is not None:
            inode = os.fstat(dir_fd).st_ino
            return (self._nodes[inode], path) if inode in self._nodes else None
        if not path.startswith(self.root + "/"):
            return None
        folder, last = path.rsplit("/", 1)
        return self._node(os.stat(folder).st_ino), last

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if not flags & os.O_CREAT:
                return real(path, flags, mode, dir_fd=dir_fd)
            with self._lock:
                file = real(path, flags, mode, dir_fd=dir_fd)
                place = self._folder(os.fsdecode(path), dir_fd)
                if place:
                    assert flags & os.O_EXCL
                    child = self._node(os.fstat(file).st_ino, new=True)
                    self.events.append(Event("name", place[0], place[1], child))
                return file

        return call

    def _mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, mode: int = 0o777) -> None:
            with self._lock:
                real(path, mode)
                place = self._folder(os.fsdecode(path), None)
                if place:
                    child = self._node(os.stat(path).st_ino, new=True)
                    self.events.append(Event("folder", place[0], place[1], child))

        return call

    def _pwrite(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(file: int, data: Any, offset: int) -> int:
            count = real(file, data, offset)
            with self._lock:
                inode = os.fstat(file).st_ino
                if inode in self._nodes:
                    piece = bytes(memoryview(data)[:count])
                    self.events.append(Event("write", self._nodes[inode], offset=offset, data=piece))
            return count

        return call

    def _link(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(source: str, target: str, **keywords: Any) -> None:
            with self._lock:
                real(source, target, **keywords)
                place = self._folder(target, keywords["dst_dir_fd"])
                if place:
                    inode = os.stat(target, dir_fd=keywords["dst_dir_fd"]).st_ino
                    self.events.append(Event("name", place[0], place[1], self._nodes[inode]))

        return call

    def _unlink(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *, dir_fd: int | None = None) -> None:
            with self._lock:
                real(path, dir_fd=dir_fd)
                place = self._folder(os.fsdecode(path), dir_fd)
                if place:
                    self.events.append(Event("gone", *place))

        return call

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(file: int) -> None:
            covers = len(self.events)
            real(file)
            with self._lock:
                inode = os.fstat(file).st_ino
                if inode in self._nodes:
                    self.events.append(Event("sync", self._nodes[inode], covers=covers))

        return call


def acknowledged(events: list[Event]) -> list[object]:
    """The marks among `events`, in order."""
    return [event.mark for event in events if event.kind == "mark"]


def disk_after_crash(events: list[Event], seed: int) -> MemoryStore:
    """The objects on a disk whose power went after `events`. Temporary files are left out: no store shows them."""
    fate = random.Random(seed)
    keep = fate.choice((0.1, 0.5, 0.9))
    synced: dict[int, int] = {}
    for event in events:
        if event.kind == "sync":
            synced[event.node] = max(synced.get(event.node, 0), event.covers)
    data: dict[int, bytearray] = {}
    names: dict[int, dict[str, int]] = {}
    for number, event in enumerate(events):
        if event.kind not in ("write", "name", "folder", "gone"):
            continue
        if number >= synced.get(event.node, 0) and fate.random() >= keep:
            continue
        if event.kind == "write":
            content = data.setdefault(event.node, bytearray())
            content.extend(bytes(max(event.offset + len(event.data) - len(content), 0)))
            content[event.offset : event.offset + len(event.data)] = event.data
        elif event.kind in ("name", "folder"):
            names.setdefault(event.node, {})[event.name] = event.child
        else:
            names.setdefault(event.node, {}).pop(event.name, None)
    folders = {event.child for event in events if event.kind == "folder"}
    disk = MemoryStore()

    def fill(node: int, prefix: str) -> None:
        for name, child in names.get(node, {}).items():
            if child in folders:
                fill(child, f"{prefix}{name}/")
            elif not name.startswith(TEMPORARY_PREFIX):
                disk.put(prefix + name, [data.get(child, b"")])

    fill(ROOT, "")
    return disk
