"""Objects as files below one folder of a POSIX filesystem.

The durable put, in order; nothing of it can be switched off:

    temp name in the same folder -> write -> length checked -> fsync -> link(temp, name) -> unlink(temp) -> fsync folder

`link` is the put-if-absent: it fails when the name is taken, where `rename` would replace it silently (RULINGS 8).
Folders are made on the way, and each new one is made durable in its parent before anything is put into it. A writer
holds a flock on its temporary file, so that a sweep tells a dead writer's leftovers from a live writer's work.

Descriptors are not cached: an open costs about ten microseconds beside the milliseconds of a segment, and a cached
descriptor of a deleted pack would keep its space from the disk that prune was called to empty.
"""

import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.direct import DIRECT_BYTES_MIN, DirectWriter
from strongroom.base.errors import (
    ObjectExists,
    ObjectMissing,
    ShortRead,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreTimeout,
)
from strongroom.engine.store.base import Buffer, ObjectInfo, is_part, require_name, require_prefix

FOLDER_MODE = 0o700
FILE_MODE = 0o600
TEMPORARY_PREFIX = ".tmp-"
TEMPORARY_ATTEMPTS_MAX = 8  # each lost attempt needs a sweep to hit the microsecond between create and lock
READ_PIECE_BYTES = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one call
ROOM_BYTES = 40 << 20  # a pack, and what may come beyond it: one step for most
FOLDERS_KNOWN_MAX = 65536  # names of folders remembered as durable; forgetting them costs fsyncs only

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo in the way must not block us
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP})
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


def _translated(err: OSError, name: str, *, writing: bool) -> StoreError:
    code = err.errno or 0
    detail = f"{errno.errorcode.get(code, code)}: {err.strerror}"
    if code in _FULL:
        return StoreFull(name=name, detail=detail)
    if code in _DENIED:
        return StoreDenied(name=name, detail=detail)
    if code == errno.ETIMEDOUT:
        return StoreTimeout(name=name, detail=detail)
    if code in _MISSING and not writing:
        return ObjectMissing(name=name, detail=detail)
    return StoreError(name=name, detail=detail)


@contextlib.contextmanager
def _errors(name: str, *, writing: bool) -> Iterator[None]:
    """The one place where an OSError becomes a StoreError. While writing, a missing file is not a missing object."""
    try:
        yield
    except OSError as err:
        raise _translated(err, name, writing=writing) from err


class PosixStore:
    """A store in the folder `root` (absolute), which is made with mode 0700 when it is absent."""

    def __init__(self, root: str, *, clock: Clock | None = None) -> None:
        self._root = root
        self._clock = clock or SystemClock()
        self._durable: set[tuple[str, ...]] = set()  # folders whose entry in the parent was synced by this process
        with _errors(root, writing=True):
            _make_durable_folders(root)

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        writer = self.writer(name)
        try:
            offset = 0
            for piece in data:
                writer.write_at(offset, piece)
                offset += memoryview(piece).nbytes
            writer.commit()
        finally:
            writer.discard()

    def writer(self, name: str) -> "PosixWriter":
        *folders, last = require_name(name)
        with _errors(name, writing=True):
            return PosixWriter(name, last, self._open_folder(tuple(folders), create=True))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with _errors(name, writing=False), self._reading(name) as file:
            available = max(os.fstat(file).st_size - offset, 0)
            wanted = available if length is None else length
            if wanted > available:  # before the buffer is made: a damaged length must not cost memory
                raise ShortRead(name=name, wanted=wanted, got=available)
            pieces = []
            got = 0
            while got < wanted:
                piece = os.pread(file, min(wanted - got, READ_PIECE_BYTES), offset + got)
                if not piece:
                    raise ShortRead(name=name, wanted=wanted, got=got)
                pieces.append(piece)
                got += len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        with _errors(name, writing=False), self._reading(name) as file:
            got = 0
            while got < buffer.nbytes:
                count = os.preadv(file, [buffer[got : got + READ_PIECE_BYTES]], offset + got)
                if not count:
                    raise ShortRead(name=name, wanted=buffer.nbytes, got=got)
                got += count

    def expect(self, name: str, offset: int, length: int) -> None:
        """The kernel begins to read: by itself it would begin anew with every range, since each opens its file."""
        with contextlib.suppress(OSError), self._reading(name) as file:
            os.posix_fadvise(file, offset, length, os.POSIX_FADV_WILLNEED)

    def size(self, name: str) -> int:
        with _errors(name, writing=False):
            found = os.stat(self._path(require_name(name)), follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise ObjectMissing(name=name, detail="not a regular file")
        return found.st_size

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._list(require_prefix(prefix))

    def delete(self, name: str) -> None:
        *folders, last = require_name(name)
        with _errors(name, writing=True):
            try:
                folder = self._open_folder(tuple(folders), create=False)
            except FileNotFoundError:
                return
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(last, dir_fd=folder)
                os.fsync(folder)  # also when it was absent: an earlier unlink may not be durable yet
            finally:
                os.close(folder)

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        written_before_s = self._clock.now().timestamp() - older_than_s
        return self._sweep(require_prefix(prefix), written_before_s)

    def check(self) -> None:
        with _errors("check", writing=True):
            writer = PosixWriter(
                "check", f"{TEMPORARY_PREFIX}{os.urandom(16).hex()}", self._open_folder((), create=False)
            )
            try:
                writer.write_at(0, b"check")
                writer.prove_link()
            finally:
                writer.discard()

    # --- folders ---

    def _path(self, parts: tuple[str, ...]) -> str:
        return "/".join((self._root, *parts))

    def _open_folder(self, parts: tuple[str, ...], *, create: bool) -> int:
        if create and parts not in self._durable:
            self._make_folders(parts)
        return os.open(self._path(parts), _FOLDER_FLAGS)

    def _make_folders(self, parts: tuple[str, ...]) -> None:
        """Make each folder on the way and sync its parent, even if another process made it: that one may have died."""
        for depth in range(1, len(parts) + 1):
            here = parts[:depth]
            if here in self._durable:
                continue
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._path(here), FOLDER_MODE)
            _sync_folder(self._path(here[:-1]))
            if len(self._durable) >= FOLDERS_KNOWN_MAX:
                self._durable.clear()
            self._durable.add(here)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[int]:
        file = os.open(self._path(require_name(name)), _READ_FLAGS)
        try:
            yield file
        finally:
            os.close(file)

    def _list(self, parts: tuple[str, ...]) -> Iterator[ObjectInfo]:
        path, above = self._path(parts), "".join(f"{part}/" for part in parts)
        objects, folders, _ = _scan(path, "/".join(parts))
        # "a.b" < "a/b" < "a0": a folder sorts as its name with the slash that its objects will have.
        for name in sorted([*objects, *(f"{folder}/" for folder in folders)]):
            if name.endswith("/"):
                yield from self._list((*parts, name[:-1]))
                continue
            # Not `size`: its look at the name, which the scan has had, costs a third more, of 400 000 packs a second.
            try:
                found = os.stat(f"{path}/{name}", follow_symlinks=False)
            except OSError as err:
                failure = _translated(err, above + name, writing=False)
                if isinstance(failure, ObjectMissing):
                    continue  # deleted since the scan
                raise failure from err
            if stat.S_ISREG(found.st_mode):
                yield ObjectInfo(above + name, found.st_size)

    def _sweep(self, parts: tuple[str, ...], written_before_s: float) -> int:
        _, folders, temporary = _scan(self._path(parts), "/".join(parts))
        freed = 0
        with _errors("/".join(parts), writing=True):
            for name in temporary:
                freed += _sweep_one(self._path((*parts, name)), written_before_s)
            if temporary:
                _sync_folder(self._path(parts))
        for folder in folders:
            freed += self._sweep((*parts, folder), written_before_s)
        return freed


class _Scan(NamedTuple):
    """What one folder holds, unsorted."""

    objects: list[str]
    folders: list[str]
    temporary: list[str]


def _scan(path: str, name: str) -> _Scan:
    """Look into one folder; one that is not there is empty. What has no legal name (`lost+found`) is not ours."""
    found = _Scan([], [], [])
    with _errors(name, writing=False):
        try:
            entries = os.scandir(path)
        except FileNotFoundError:
            return found
        with entries:
            for entry in entries:
                if entry.name.startswith(TEMPORARY_PREFIX):
                    found.temporary.append(entry.name)
                elif not is_part(entry.name):
                    continue
                elif entry.is_dir(follow_symlinks=False):
                    found.folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    found.objects.append(entry.name)
    return found


class PosixWriter:
    """One temporary file. It owns `folder` (a descriptor) and closes it.

    What is large goes past the page cache: the pages of a pack would push out what the host works with, and making room
    for them costs up to ten times the copy (docs/benchmarks/tried.md).
    """

    def __init__(self, name: str, last: str, folder: int) -> None:
        self._name = name
        self._last = last
        self._folder = folder
        self._lock = threading.Lock()  # guards the five below
        self._written = 0
        self._begun_to = 0  # where the furthest write that was begun ends
        self._end = 0
        self._room = 0  # length given to the file, so that no direct write has to extend it
        self._failure: StoreError | None = None  # the first one
        self._closed = False
        try:
            self._file, self._temporary = _create_temporary(folder)
        except OSError:
            os.close(folder)
            raise
        self._direct = DirectWriter(self._file, None)

    def write_at(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        with self._step():
            self._make_room(offset + view.nbytes, large=view.nbytes >= DIRECT_BYTES_MIN)
            self._direct.write(offset, view)
        with self._lock:
            self._written += view.nbytes
            self._end = max(self._end, offset + view.nbytes)

    def commit(self) -> None:
        with self._step():
            if self._room:
                os.ftruncate(self._file, self._end)
            self._require_whole()
            os.fsync(self._file)
            try:
                self._link(self._last)
            except FileExistsError as err:
                # Who meets the name relies on what is there, so it has to be durable even if its writer died early.
                _sync_existing(self._last, self._folder)
                raise ObjectExists(name=self._name) from err
            os.unlink(self._temporary, dir_fd=self._folder)
            os.fsync(self._folder)
        self._close()

    def discard(self) -> None:
        if self._closed:
            return
        # Nothing depends on it: what cannot be removed now is removed by the next sweep.
        with contextlib.suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._folder)
        self._close()

    def prove_link(self) -> None:
        """Hard links work here, without which there is no put-if-absent. Leaves nothing behind."""
        with self._step():
            self._link(self._last)
            os.unlink(self._last, dir_fd=self._folder)

    def _link(self, last: str) -> None:
        os.link(self._temporary, last, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)

    def _make_room(self, end: int, *, large: bool) -> None:
        """Never shorter than what any write that was begun needs, so nothing written is cut off."""
        with self._lock:
            self._begun_to = max(self._begun_to, end)
            if large and self._begun_to > self._room:
                room = self._begun_to + ROOM_BYTES
                os.ftruncate(self._file, room)
                self._room = room

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """After an error nothing more is tried: the kernel reports a failed write-back to one fsync only.

        Every later step fails as the first did, so that the writers of one object all tell the same: that the store is
        full, not that somebody else met something.
        """
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StoreError(name=self._name, detail="the writer is closed")
        try:
            with _errors(self._name, writing=True):
                yield
        except StoreError as err:
            self._failed(err)
            raise

    def _failed(self, err: StoreError) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = err

    def _require_whole(self) -> None:
        size = os.fstat(self._file).st_size
        if not self._written == self._end == size:
            detail = f"{self._written} bytes written up to {self._end}, the file has {size}"
            raise StoreError(name=self._name, detail=detail)

    def _close(self) -> None:
        self._closed = True
        self._direct.close()
        os.close(self._file)  # after the unlink: the flock on it keeps a sweep away until then
        os.close(self._folder)


def _create_temporary(folder: int) -> tuple[int, str]:
    """A new locked temporary file: (descriptor, name)."""
    for _ in range(TEMPORARY_ATTEMPTS_MAX):
        name = f"{TEMPORARY_PREFIX}{os.urandom(16).hex()}"
        file = os.open(name, _CREATE_FLAGS, FILE_MODE, dir_fd=folder)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                return file, name
        except OSError:
            os.close(file)
            raise
        os.close(file)  # a sweep took it for a leftover before it was locked
    raise OSError(errno.EAGAIN, "every temporary file was swept before it was locked")


def _sweep_one(path: str, written_before_s: float) -> int:
    """Remove one temporary file unless its writer lives. Bytes freed; none when it was a second name of an object."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(file)
        if found.st_mtime > written_before_s or not found.st_nlink:
            return 0
        os.unlink(path)
        return found.st_size if found.st_nlink == 1 else 0
    except BlockingIOError:
        return 0
    finally:
        os.close(file)


def _sync_existing(name: str, folder: int) -> None:
    file = os.open(name, _READ_FLAGS, dir_fd=folder)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    os.fsync(folder)


def _sync_folder(path: str) -> None:
    folder = os.open(path, _FOLDER_FLAGS)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _make_durable_folders(path: str) -> None:
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_durable_folders(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, FOLDER_MODE)
    folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
