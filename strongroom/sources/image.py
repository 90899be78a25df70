"""The driver of disk images: a regular file that is a disk (OS::Cinder::Volume).

Point: where the file system can share blocks between files, a copy that shares all of them: one moment of the disk, and
what changed since the copy of the last point. Elsewhere the file as it is: a live disk cannot be read again until it
holds still, so a change during the reading is not an error; it is told in the metadata.
Restore: into `.strongroom-<task>` beside the image, fsynced, given the old one's owner, mode and attributes, and then
renamed over it. Refused while another process has the image open, unless forced: it would go on with the old file.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Final

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceError, SourceGone
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
)
from strongroom.sources.disk import DiskStream, flush_quietly, open_image
from strongroom.sources.image_target import ImageTarget, look_at_target, recover_beside
from strongroom.sources.inodes import OPEN_READ
from strongroom.sources.mounts import file_system
from strongroom.sources.oserrors import source_error
from strongroom.sources.pace import Pace
from strongroom.sources.snapshots.base import Hold, snapshot_of, snapshot_values
from strongroom.sources.snapshots.choose import choose_for_image
from strongroom.sources.swap import Trace, no_trace
from strongroom.sources.tokens import Values, dump_token, load_token, nanoseconds, unchanged_before

CHANGED = "The image changed since the last backup, and an image file keeps no list of changed blocks."
QCOW2_MAGIC = b"QFI\xfb"


class ImagePoint:
    """An open image file, or a copy of it that shares its blocks, to read; Point."""

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
        self._fd = fd = open_image(ref.path)
        self._fds.callback(os.close, fd)
        self.taken_at_ns = nanoseconds(clock.now())
        flush_quietly(fd)  # later stores through a mapping then leave a mark on ctime (RULINGS 15)
        self._info = os.fstat(fd)
        self._format = _format(fd)
        own = _token(self._info, unchanged_before(self.taken_at_ns, file_system(fd)))
        parent = load_token("image", wanted.parent_token)
        provider, self._snapshot_reason = choose_for_image(ref.path)
        if provider is not None:
            known = snapshot_of(parent, provider)
            self._hold = hold = Hold(provider, ref.path, ref.resource_id, self.taken_at_ns, known)
            own |= snapshot_values(provider, hold.snapshot)
            self._fd = os.open(hold.snapshot.path, OPEN_READ)
            self._fds.callback(os.close, self._fd)
            own["size"] = os.fstat(self._fd).st_size
        self.token = dump_token("image", own)
        self.full_reason = _full_reason(own, parent, wanted)
        self._read_whole = _read_whole(own, parent, self.full_reason)
        if self._read_whole is None and _stamp(os.fstat(fd)) != _stamp(self._info):
            self._read_whole = CHANGED  # between the look at the times and the snapshot, which may have it or not
        same, changed = self._read_whole is None, None
        if self._hold is not None and not same and self.full_reason is None:
            changed, self._read_whole = self._hold.changes
        self._changed_bytes = None if changed is None else sum(length for _, length in changed)
        pace = Pace(ref.options.read_limit_bytes_s)
        size = os.fstat(self._fd).st_size if self._hold is not None else self._info.st_size
        self.stream = DiskStream(self._fd, ref.path, size, pace, same=same, holes=True, changed=changed)
        self._last = self._info = os.fstat(self._fd) if self._hold is not None else self._info

    def __enter__(self) -> "ImagePoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    @property
    def metadata(self) -> Mapping[str, Detail]:
        if self._fd >= 0:
            self._last = os.fstat(self._fd)
        return {
            "format": self._format,
            "size_bytes": self._info.st_size,
            "allocated_bytes": self._info.st_blocks * 512,
            "read_whole": self._read_whole,
            "changed_bytes": self._changed_bytes,
            "changed_while_read": _stamp(self._last) != _stamp(self._info),
            "snapshot": self._hold.name if self._hold is not None else None,
            "snapshot_reason": self._snapshot_reason,
        }

    def commit(self) -> None:
        if self._hold is not None:
            self._hold.commit()
        self._close()

    def abort(self) -> None:
        if self._hold is not None:
            self._hold.abort()
        self._close()

    def _close(self) -> None:
        self._fd = -1
        self._fds.close()


class ImageDriver:
    """Driver of image files. `trace` is for tests that die at every step."""

    type: Final[ResourceType] = "OS::Cinder::Volume"
    kind: Final[Kind] = "block"

    def __init__(self, clock: Clock | None = None, trace: Trace = no_trace) -> None:
        self._clock = clock or SystemClock()
        self._trace = trace

    def inspect(self, ref: SourceRef, *, measure: bool = False) -> Inspection:
        try:
            fd = open_image(ref.path)
        except SourceGone as err:
            return Inspection(exists=False, readable=False, reason=err.message)
        except SourceError as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        try:
            info = os.fstat(fd)
            detail: Mapping[str, Detail] = {
                "file_system": file_system(fd),
                "format": _format(fd),
                "allocated_bytes": info.st_blocks * 512,
            }
            return Inspection(exists=True, readable=True, size_bytes=info.st_size, detail=detail)
        except OSError as err:
            return Inspection(exists=True, readable=False, reason=source_error(err, ref.path, "read").message)
        finally:
            os.close(fd)

    def open_point(self, ref: SourceRef, wanted: PointWanted) -> ImagePoint:
        return ImagePoint(ref, wanted, self._clock)

    def plan_restore(self, wanted: RestoreWanted) -> RestorePlan:
        plan, warnings, conflicts = look_at_target(wanted)
        return RestorePlan(
            wanted=wanted,
            staging=plan.staging,
            needed_bytes=plan.needed_bytes,
            free_bytes=plan.free_bytes,
            target_size=plan.target_size,
            warnings=tuple(warnings),
            conflicts=tuple(conflict.message for conflict in conflicts),
        )

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> ImageTarget:
        now, _, conflicts = look_at_target(plan.wanted)  # what the plan saw may be long ago
        if conflicts:
            raise conflicts[0]
        return ImageTarget(now, self._trace)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        return recover_beside(ref, finished_tasks)


def _stamp(info: os.stat_result) -> tuple[int, int, int]:
    return (info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _token(info: os.stat_result, before_ns: int) -> Values:
    return {
        "dev": info.st_dev,
        "ino": info.st_ino,
        "size": info.st_size,
        "ctime_ns": info.st_ctime_ns,
        "mtime_ns": info.st_mtime_ns,
        "earned": info.st_ctime_ns < before_ns,
    }


def _full_reason(own: Values, parent: Values | None, wanted: PointWanted) -> str | None:
    if wanted.full:
        return "A full backup was asked for."
    if parent is None:
        return "It is the first backup of this disk in the vault."
    if (parent.get("dev"), parent.get("ino")) != (own["dev"], own["ino"]):
        return "The image is another file than at the last backup."
    if parent.get("size") != own["size"]:
        return "The disk had another size at the last backup."
    return None


def _read_whole(own: Values, parent: Values | None, full_reason: str | None) -> str | None:
    """Why everything is read; None: nothing has to be, it is proven to be as it was."""
    if full_reason or parent is None:
        return full_reason
    if any(parent.get(key) != own[key] for key in ("ctime_ns", "mtime_ns")):
        return CHANGED
    if not parent.get("earned"):
        return "The image was changed shortly before the last backup, so its times prove nothing."
    return None


def _format(fd: int) -> str:
    return "qcow2" if os.pread(fd, len(QCOW2_MAGIC), 0) == QCOW2_MAGIC else "raw"
