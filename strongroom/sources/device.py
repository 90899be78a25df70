"""The driver of block devices (OS::Cinder::Volume): disks, partitions, logical volumes.

Point: of a logical volume a snapshot, and of a thin one only what changed since the last; else the device as it is,
read whole, because nothing proves which blocks changed. The path may be a symbolic link, as those in /dev/disk and of
logical volumes are.
Restore: in place, see `device_target.py`. Refused while the device is mounted or another process has it open, unless
forced. There is nothing to roll back: until the restore is finished the device is neither old nor new.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from typing import Final

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceError, SourceGone, TargetBusy
from strongroom.base.units import human_bytes
from strongroom.sources.base import (
    Detail,
    DoneCallback,
    Inspection,
    Kind,
    PointWanted,
    Recovered,
    ResourceType,
    RestorePlan,
    RestoreWanted,
    SourceRef,
    TargetReport,
)
from strongroom.sources.device_target import DeviceWriter, OpenDevice, look_in_place
from strongroom.sources.disk import DiskStream, flush_quietly
from strongroom.sources.openers import find_openers
from strongroom.sources.oserrors import shown, source_error, target_error
from strongroom.sources.pace import Pace
from strongroom.sources.snapshots.base import Changes, Hold, snapshot_of, snapshot_values
from strongroom.sources.snapshots.choose import choose_for_device
from strongroom.sources.tokens import Values, dump_token, load_token, nanoseconds

READ_WHOLE = "A block device keeps no list of changed blocks."


class DevicePoint:
    """An open device, or a snapshot of it, to read; Point."""

    kind: Final[Kind] = "block"
    consistency: Final = "crash_consistent"

    def __init__(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        self._fds = contextlib.ExitStack()
        self._hold: Hold | None = None
        try:
            self._open(ref, wanted, clock)
        except OSError as err:
            self.abort()
            raise source_error(err, ref.path, "read") from err
        except BaseException:
            self.abort()
            raise

    def _open(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        fd = open_device(ref.path, os.O_RDONLY)
        self._fds.callback(os.close, fd)
        self.taken_at_ns = nanoseconds(clock.now())
        flush_quietly(fd)
        own: Values = {"rdev": os.fstat(fd).st_rdev}
        parent = load_token("device", wanted.parent_token)
        provider, self._snapshot_reason = choose_for_device(ref.path)
        if provider is not None:
            self._hold = hold = Hold(
                provider, ref.path, ref.resource_id, self.taken_at_ns, snapshot_of(parent, provider)
            )
            own |= snapshot_values(provider, hold.snapshot)
            fd = open_device(hold.snapshot.path, os.O_RDONLY)
            self._fds.callback(os.close, fd)
        self._size = own["size"] = size_of(fd)
        self.token = dump_token("device", own)
        self.full_reason = _full_reason(own, wanted)
        changes = self._hold.changes if self._hold is not None else Changes(None, READ_WHOLE)
        if self.full_reason is not None:
            changes = Changes(None, self.full_reason)
        changed, self._read_whole = changes
        self._changed_bytes = None if changed is None else sum(length for _, length in changed)
        pace = Pace(ref.options.read_limit_bytes_s)
        explain = self._hold.verify if self._hold is not None else None
        self.stream = DiskStream(
            fd, ref.path, self._size, pace, same=False, holes=False, changed=changed, explain=explain
        )

    def __enter__(self) -> "DevicePoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {
            "format": "raw",
            "size_bytes": self._size,
            "read_whole": self._read_whole,
            "changed_bytes": self._changed_bytes,
            "snapshot": self._hold.name if self._hold is not None else None,
            "snapshot_reason": self._snapshot_reason,
        }

    def commit(self) -> None:
        self._fds.close()
        if self._hold is not None:
            self._hold.commit()

    def abort(self) -> None:
        self._fds.close()
        if self._hold is not None:
            self._hold.abort()


class DeviceTarget:
    """An open device to write; Target."""

    kind: Final[Kind] = "block"

    def __init__(self, plan: RestorePlan, on_done: DoneCallback | None) -> None:
        wanted = plan.wanted
        self._path = wanted.target.path
        exclusive = 0 if wanted.force else os.O_EXCL  # on a device: refused while it is mounted or part of an array
        self._fd = open_device(self._path, os.O_RDWR | exclusive)
        try:
            size = size_of(self._fd)
        except OSError as err:
            os.close(self._fd)
            raise target_error(err, self._path, "write") from err
        self._rest = size - wanted.size_bytes
        self.stream = DeviceWriter(OpenDevice(self._fd), self._path, size, wanted.done_ranges, on_done)

    def __enter__(self) -> "DeviceTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def finish(self) -> TargetReport:
        self.stream.flush()
        warnings: tuple[str, ...] = ()
        if self._rest:
            warnings = (f"The device is {human_bytes(self._rest)} larger than the backup; that rest was not touched.",)
        return TargetReport(written_bytes=self.stream.written_bytes, warnings=warnings)


class DeviceDriver:
    """Driver of block devices."""

    type: Final[ResourceType] = "OS::Cinder::Volume"
    kind: Final[Kind] = "block"

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def inspect(self, ref: SourceRef, *, measure: bool = False) -> Inspection:
        try:
            fd = open_device(ref.path, os.O_RDONLY)
        except SourceGone as err:
            return Inspection(exists=False, readable=False, reason=err.message)
        except SourceError as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        try:
            rdev = os.fstat(fd).st_rdev
            detail: Mapping[str, Detail] = {"format": "raw", "device": f"{os.major(rdev)}:{os.minor(rdev)}"}
            return Inspection(exists=True, readable=True, size_bytes=size_of(fd), detail=detail)
        except OSError as err:
            return Inspection(exists=True, readable=False, reason=source_error(err, ref.path, "read").message)
        finally:
            os.close(fd)

    def open_point(self, ref: SourceRef, wanted: PointWanted) -> DevicePoint:
        return DevicePoint(ref, wanted, self._clock)

    def plan_restore(self, wanted: RestoreWanted) -> RestorePlan:
        return _look(wanted)[0]

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> DeviceTarget:
        _, conflicts = _look(plan.wanted)  # what the plan saw may be long ago
        if conflicts:
            raise conflicts[0]
        return DeviceTarget(plan, on_done)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        return ()  # nothing of ours lies at a device; a half restored one needs the same restore again


def open_device(path: bytes, flags: int) -> int:
    """A descriptor of a block device. Raises SourceGone, SourceDenied, TargetBusy (O_EXCL), SourceError."""
    try:
        if not stat.S_ISBLK(os.stat(path).st_mode):
            raise SourceError(reason=f"{shown(path)} is not a block device.")
        fd = os.open(path, flags | os.O_CLOEXEC)
    except (OSError, ValueError) as err:
        known = err if isinstance(err, OSError) else OSError(str(err))
        if known.errno == errno.EBUSY:
            raise _busy(path, "it is mounted or part of another device") from err
        raise source_error(known, path, "write" if flags & os.O_RDWR else "read") from err
    if not stat.S_ISBLK(os.fstat(fd).st_mode):  # replaced between the two calls
        os.close(fd)
        raise SourceError(reason=f"{shown(path)} is not a block device any more.")
    return fd


def size_of(fd: int) -> int:
    """Bytes of an open device."""
    return os.lseek(fd, 0, os.SEEK_END)


def _look(wanted: RestoreWanted) -> tuple[RestorePlan, list[SourceError]]:
    path = wanted.target.path
    in_use: SourceError | None = None
    fd = open_device(path, os.O_RDONLY)
    try:
        size = size_of(fd)
        if not wanted.force:
            holders = find_openers(fd).holders
            if holders:
                in_use = _busy(path, ", ".join(holders))
            else:
                os.close(open_device(path, os.O_RDWR | os.O_EXCL))
    except SourceError as err:
        in_use = err
    except OSError as err:
        raise source_error(err, path, "look at") from err
    finally:
        os.close(fd)
    return look_in_place(wanted, "device", size, in_use)


def _busy(path: bytes, detail: str) -> TargetBusy:
    return TargetBusy(
        reason=f"{shown(path)} is in use. Stop or unmount what uses the disk, or force the restore.", detail=detail
    )


def _full_reason(own: Values, wanted: PointWanted) -> str | None:
    if wanted.full:
        return "A full backup was asked for."
    parent = load_token("device", wanted.parent_token)
    if parent is None:
        return "It is the first backup of this disk in the vault."
    if parent.get("size") != own["size"]:
        return "The disk had another size at the last backup."
    return None
