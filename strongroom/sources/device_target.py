"""Writing a restore into a block device, in place: there is no room beside it.

Each block is compared first and written only when it differs, so a restore that is run again after a crash is quick and
wears nothing. Every window of work is flushed, dropped from the page cache, read back and compared with what was to be
written; only then are its ranges reported as done.

    write ... write ... | window full: fsync, drop cache, read back, report | write ...
"""

import hashlib
import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from strongroom.base.direct import pwrite_full
from strongroom.base.errors import SourceError, TargetDenied, TargetTooSmall
from strongroom.base.units import KIB, MIB, human_bytes
from strongroom.sources.base import DoneCallback, RestorePlan, RestoreWanted
from strongroom.sources.inodes import pread_full
from strongroom.sources.oserrors import shown, target_error

COMPARE_BYTES = 64 * KIB  # the engine's block of disks: what differs is written in these
WINDOW_BYTES = 256 * MIB  # handled between two read-backs: seconds of work to do again after a crash
WINDOW_RANGES_MAX = 65_536
_ZEROS = bytes(MIB)


class _Handled(NamedTuple):
    """digest None: it was equal and not written."""

    offset: int
    length: int
    digest: bytes | None


class DiskInPlace(Protocol):
    """What a writer needs of a disk. Raises OSError or SourceError."""

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer; fewer bytes only at the end of the disk."""
        ...

    def write(self, offset: int, data: memoryview) -> None: ...

    def sync(self) -> None:
        """Everything written is durable on return."""
        ...

    def forget(self, offset: int, length: int) -> None:
        """What is read next shall come from the disk, not from a cache of this host."""
        ...


class OpenDevice:
    """A block device behind a descriptor, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, offset: int, buffer: memoryview) -> int:
        return pread_full(self._fd, buffer, offset)

    def write(self, offset: int, data: memoryview) -> None:
        pwrite_full(self._fd, data, offset)

    def sync(self) -> None:
        os.fsync(self._fd)

    def forget(self, offset: int, length: int) -> None:
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)


class DeviceWriter:
    """BlockTarget on a disk that is written in place. Thread-safe."""

    def __init__(
        self,
        disk: DiskInPlace,
        path: bytes,
        size: int,
        done_ranges: Sequence[tuple[int, int]],
        on_done: DoneCallback | None,
        *,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.size = size
        self.written_bytes = 0
        self._disk = disk
        self._path = path
        self._done = _merged(done_ranges)
        self._starts = [offset for offset, _ in self._done]
        self._on_done = on_done
        self._window_bytes = window_bytes
        self._lock = threading.Lock()  # of the three below
        self._handled: list[_Handled] = []
        self._handled_bytes = 0
        self._flushing = threading.Lock()  # one window at a time

    def write(self, offset: int, data: memoryview) -> None:
        self._require_inside(offset, len(data))
        if self._is_done(offset, len(data)):
            return
        try:
            written = self._write_differing(offset, data)
        except OSError as err:
            raise target_error(err, self._path, "write") from err
        digest = _digest(data) if written else None
        with self._lock:
            self.written_bytes += written
            self._handled.append(_Handled(offset, len(data), digest))
            self._handled_bytes += len(data)
            full = self._handled_bytes >= self._window_bytes or len(self._handled) >= WINDOW_RANGES_MAX
        if full:
            self.flush()

    def zero(self, offset: int, length: int) -> None:
        zeros = memoryview(_ZEROS)
        for at in range(offset, offset + length, len(_ZEROS)):
            self.write(at, zeros[: offset + length - at])

    def flush(self) -> None:
        """Durable and read back on return. Raises SourceError when the device does not hold what was written."""
        with self._flushing:
            with self._lock:
                handled, self._handled, self._handled_bytes = self._handled, [], 0
            if not handled:
                return
            try:
                self._disk.sync()
                self._read_back(handled)
            except OSError as err:
                raise target_error(err, self._path, "write") from err
        if self._on_done is not None:
            for offset, length in _merged([(item.offset, item.length) for item in handled]):
                self._on_done(offset, length)

    def _write_differing(self, offset: int, data: memoryview) -> int:
        """Returns the bytes written; 0 when the device holds them already."""
        now = memoryview(bytearray(len(data)))
        if self._disk.read(offset, now) == len(data) and now == data:
            return 0
        written = 0
        for at in range(0, len(data), COMPARE_BYTES):
            piece = data[at : at + COMPARE_BYTES]
            if now[at : at + COMPARE_BYTES] != piece:
                self._disk.write(offset + at, piece)
                written += len(piece)
        return written

    def _read_back(self, handled: Sequence[_Handled]) -> None:
        for item in handled:
            if item.digest is None:
                continue
            self._disk.forget(item.offset, item.length)
            found = memoryview(bytearray(item.length))
            if self._disk.read(item.offset, found) != item.length or _digest(found) != item.digest:
                raise SourceError(
                    reason=f"{shown(self._path)} does not hold what was written at byte {item.offset}: "
                    "the device is damaged or somebody else writes to it. Check it, then restore again."
                )

    def _is_done(self, offset: int, length: int) -> bool:
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset + length <= sum(self._done[index])

    def _require_inside(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size:
            raise TargetTooSmall(reason=f"The backup goes beyond the {human_bytes(self.size)} of the target.")


def look_in_place(
    wanted: RestoreWanted, noun: str, size: int, in_use: SourceError | None
) -> tuple[RestorePlan, list[SourceError]]:
    """What would be done to a disk of `size` bytes that is written in place, and what stands against it.

    noun: what the tenant calls the disk. in_use: why it cannot be written now, None when it can.
    """
    conflicts = [in_use] if in_use is not None else []
    if wanted.kind != "block":
        conflicts.append(TargetDenied(reason="A folder cannot be restored into a disk. Choose a folder as the target."))
    elif size < wanted.size_bytes:
        reason = (
            f"The backup has {human_bytes(wanted.size_bytes)}, the target {human_bytes(size)}. Choose a larger one."
        )
        conflicts.append(TargetTooSmall(reason=reason))
    plan = RestorePlan(
        wanted=wanted,
        staging=None,
        needed_bytes=wanted.size_bytes,
        free_bytes=size,
        target_size=size,
        warnings=(f"The {noun} is written in place: until the restore has ended it is neither old nor new.",),
        conflicts=tuple(conflict.message for conflict in conflicts),
    )
    return plan, conflicts


def _digest(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted (offset, length), joined where they touch."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if joined and offset <= sum(joined[-1]):
            start, before = joined[-1]
            joined[-1] = (start, max(before, offset + length - start))
        else:
            joined.append((offset, length))
    return joined
