"""The driver of disk images: a regular file that is a disk (OS::Cinder::Volume).

Point: the file as it is, crash-consistent at best. A live disk cannot be read again until it holds still, so a change
during the reading is not an error; it is told in the metadata.
Restore: into `.strongroom-<task>` beside the image, fsynced, given the old one's owner, mode and attributes, and then
renamed over it. Refused while another process has the image open, unless forced: it would go on with the old file.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceError, SourceGone, TargetBusy, TargetDenied, TargetTooSmall
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
from strongroom.sources.disk import DiskStream, flush_quietly
from strongroom.sources.inodes import OPEN_FOLDER, OPEN_READ, open_quietly, punch_hole, pwrite_full, read_xattrs
from strongroom.sources.mounts import file_system
from strongroom.sources.openers import find_openers
from strongroom.sources.oserrors import shown, source_error, target_error
from strongroom.sources.pace import Pace
from strongroom.sources.stage import lock_file, stage_name
from strongroom.sources.swap import Trace, no_trace
from strongroom.sources.tokens import Values, dump_token, load_token, nanoseconds, unchanged_before

QCOW2_MAGIC = b"QFI\xfb"
_ZEROS = bytes(1 << 20)


class ImagePoint:
    """An open image file to read; Point."""

    kind: Final[Kind] = "block"
    consistency: Final = "crash_consistent"

    def __init__(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        self._fd = open_image(ref.path)
        try:
            self.taken_at_ns = nanoseconds(clock.now())
            flush_quietly(self._fd)  # later stores through a mapping then leave a mark on ctime (RULINGS 15)
            self._info = self._last = os.fstat(self._fd)
            before_ns = unchanged_before(self.taken_at_ns, file_system(self._fd))
            own = _token(self._info, before_ns)
            parent = load_token("image", wanted.parent_token)
            self.token = dump_token("image", own)
            self.full_reason = _full_reason(own, parent, wanted)
            self._read_whole = _read_whole(own, parent, self.full_reason)
            self.stream = DiskStream(
                self._fd,
                ref.path,
                self._info.st_size,
                Pace(ref.options.read_limit_bytes_s),
                same=self._read_whole is None,
                holes=True,
            )
            self._format = _format(self._fd)
        except OSError as err:
            self.abort()
            raise source_error(err, ref.path, "read") from err

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
            "changed_while_read": _stamp(self._last) != _stamp(self._info),
        }

    def commit(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ImageTarget:
    """A new image beside the old one; Target and BlockTarget. `size` is that of the new file."""

    kind: Final[Kind] = "block"

    def __init__(self, plan: RestorePlan, trace: Trace) -> None:
        path = plan.wanted.target.path
        self.size = _new_size(plan)
        self._plan = plan
        self._trace = trace
        self._path = path
        self._base = os.path.basename(path)
        self._name = stage_name(plan.wanted.task_id)
        self._written = 0
        self._moved = False
        self._fds = contextlib.ExitStack()
        try:
            self._folder_fd = os.open(os.path.dirname(path) or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fds.callback(os.close, self._folder_fd)
            remove_leftover(self._folder_fd, self._name)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._name, flags, 0o600, dir_fd=self._folder_fd)
            self._fds.callback(os.close, self._fd)
            lock_file(self._fd)  # nobody else can have it: it was made by this call
            os.ftruncate(self._fd, self.size)
        except OSError as err:
            self._fds.close()
            raise target_error(err, path, "write a new image beside") from err
        except SourceError:
            self._fds.close()
            raise

    @property
    def stream(self) -> "ImageTarget":
        return self

    def __enter__(self) -> "ImageTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if not self._moved:
                self._trace("roll back")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name, dir_fd=self._folder_fd)
        except OSError as err:
            raise target_error(err, self._path, "clean up beside") from err
        finally:
            self._fds.close()

    def write(self, offset: int, data: memoryview) -> None:
        _require_inside(offset, len(data), self.size)
        try:
            pwrite_full(self._fd, data, offset)
        except OSError as err:
            raise target_error(err, self._path, "write") from err
        self._written += len(data)

    def zero(self, offset: int, length: int) -> None:
        _require_inside(offset, length, self.size)
        try:
            if punch_hole(self._fd, offset, length):
                return
            for at in range(offset, offset + length, len(_ZEROS)):
                pwrite_full(self._fd, memoryview(_ZEROS)[: offset + length - at], at)
        except OSError as err:
            raise target_error(err, self._path, "write") from err

    def flush(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as err:
            raise target_error(err, self._path, "write") from err

    def finish(self) -> TargetReport:
        self.flush()
        warnings = []
        try:
            old_fd = open_image(self._path)
        except SourceGone:
            warnings.append("There was no old image: the new one belongs to the service and nobody else may read it.")
        else:
            with contextlib.ExitStack() as closing:
                closing.callback(os.close, old_fd)
                if not self._plan.wanted.force:
                    _require_unused(old_fd, self._path)
                self._take_over(old_fd)
        try:
            self._trace("rename")
            os.fsync(self._fd)
            os.rename(self._name, self._base, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
            self._moved = True
            self._trace("sync folder")
            os.fsync(self._folder_fd)
        except OSError as err:
            raise target_error(err, self._path, "replace") from err
        return TargetReport(written_bytes=self._written, warnings=tuple(warnings))

    def _take_over(self, old_fd: int) -> None:
        """Owner, mode and attributes of the old image, so that whoever used it can use the new one."""
        try:
            info = os.fstat(old_fd)
            os.fchown(self._fd, info.st_uid, info.st_gid)
            os.fchmod(self._fd, stat.S_IMODE(info.st_mode))
            for name, value in read_xattrs(old_fd):
                os.setxattr(self._fd, name, value)
        except OSError as err:
            raise target_error(err, self._path, "give the old owner and mode to the new") from err


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
        plan, warnings, conflicts = _look(wanted)
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
        now, _, conflicts = _look(plan.wanted)  # what the plan saw may be long ago
        if conflicts:
            raise conflicts[0]
        return ImageTarget(now, self._trace)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        """The rename is the commit: whatever lies beside the image was not finished."""
        try:
            folder_fd = os.open(os.path.dirname(ref.path) or b".", OPEN_FOLDER)
        except OSError:
            return ()  # without the folder there are no leftovers in it
        try:
            names = {task_id: stage_name(task_id) for task_id in sorted(finished_tasks)}
            gone = [task_id for task_id, name in names.items() if _removed(folder_fd, name)]
        except OSError as err:
            raise target_error(err, ref.path, "clean up beside") from err
        finally:
            os.close(folder_fd)
        return tuple(Recovered(task_id=task_id, outcome="back") for task_id in gone)


def open_image(path: bytes) -> int:
    """A descriptor for reading. Raises SourceGone, SourceDenied, SourceError; the last part of the path is no link."""
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            raise SourceError(reason=f"{shown(path)} is a symbolic link. Register the file it leads to.")
        if not stat.S_ISREG(info.st_mode):
            raise SourceError(reason=f"{shown(path)} is not a disk image. Register a file or a block device.")
        return open_quietly(path, OPEN_READ, None)
    except (OSError, ValueError) as err:
        known = err if isinstance(err, OSError) else OSError(str(err))
        raise source_error(known, path, "read") from err


def remove_leftover(folder_fd: int, name: bytes) -> bool:
    """Remove what an earlier attempt of the same task left. Raises TargetBusy when that is alive, TargetDenied."""
    try:
        fd = os.open(name, OPEN_READ, dir_fd=folder_fd)
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # its owner may be the old image's already, so it is no sign
            raise TargetDenied(reason=f"{shown(name)} beside the image is not a file of the service. Move it away.")
        if not lock_file(fd):
            raise TargetBusy(reason="Another process is restoring this image for the same task. Wait for it to end.")
        os.unlink(name, dir_fd=folder_fd)
        return True
    finally:
        os.close(fd)


def _removed(folder_fd: int, name: bytes) -> bool:
    """The same, but what is alive or not ours stays."""
    try:
        return remove_leftover(folder_fd, name)
    except (TargetBusy, TargetDenied):
        return False


def _look(wanted: RestoreWanted) -> tuple[RestorePlan, list[str], list[SourceError]]:
    """The plan without its sentences, the warnings, and the conflicts as errors."""
    path = wanted.target.path
    folder = os.path.dirname(path) or b"."
    warnings: list[str] = []
    conflicts: list[SourceError] = []
    size: int | None = None
    try:
        fd = open_image(path)
    except SourceGone:
        warnings.append("The image is not there any more; a new one is made.")
    else:
        try:
            size = os.fstat(fd).st_size
            conflicts += _busy(fd, path, wanted.force)
        finally:
            os.close(fd)
    try:
        space = os.statvfs(folder)
    except OSError as err:
        raise source_error(err, folder, "look at") from err
    free_bytes = (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize
    if wanted.kind != "block":
        conflicts.append(TargetDenied(reason="A folder cannot be restored into a disk. Choose a folder as the target."))
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        conflicts.append(TargetDenied(reason=f"The service may not write to {shown(folder)}, beside the image."))
    if size and not wanted.same_resource and size < wanted.size_bytes and not wanted.force:
        reason = (
            f"The backup has {human_bytes(wanted.size_bytes)}, the target {human_bytes(size)}. Choose a larger one."
        )
        conflicts.append(TargetTooSmall(reason=reason))
    if wanted.size_bytes > free_bytes:
        warnings.append(
            f"The image has {human_bytes(wanted.size_bytes)}, beside the old one {human_bytes(free_bytes)} are free: "
            "the restore fails if it is not sparse enough."
        )
    plan = RestorePlan(
        wanted=wanted,
        staging=os.path.join(folder, stage_name(wanted.task_id)),
        needed_bytes=wanted.size_bytes,
        free_bytes=free_bytes,
        target_size=size,
    )
    return plan, warnings, conflicts


def _busy(fd: int, path: bytes, force: bool) -> Iterator[SourceError]:
    if not force:
        try:
            _require_unused(fd, path)
        except TargetBusy as err:
            yield err


def _require_unused(fd: int, path: bytes) -> None:
    openers = find_openers(fd)
    if openers.holders:
        raise TargetBusy(
            reason=f"Another process has {shown(path)} open. Stop what uses the disk, or force the restore.",
            detail=", ".join(openers.holders),
        )


def _new_size(plan: RestorePlan) -> int:
    """A larger image of another resource keeps its size, as a larger disk would; else it is what the backup says."""
    if plan.wanted.same_resource:
        return plan.wanted.size_bytes
    return max(plan.wanted.size_bytes, plan.target_size or 0)


def _require_inside(offset: int, length: int, size: int) -> None:
    if offset < 0 or offset + length > size:
        raise TargetTooSmall(reason=f"The backup goes beyond the {human_bytes(size)} of the target.")


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
        return "The image changed since the last backup, and an image file keeps no list of changed blocks."
    if not parent.get("earned"):
        return "The image was changed shortly before the last backup, so its times prove nothing."
    return None


def _format(fd: int) -> str:
    return "qcow2" if os.pread(fd, len(QCOW2_MAGIC), 0) == QCOW2_MAGIC else "raw"
