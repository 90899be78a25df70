"""Restoring a disk image: into `.strongroom-<task>` beside it, then renamed over it.

Before the rename the old image stands, after it the new one; what lies beside it is removed by whoever comes next.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from strongroom.base.direct import DirectWriter, pwrite_full
from strongroom.base.errors import AttemptAlive, SourceError, SourceGone, TargetBusy, TargetDenied, TargetTooSmall
from strongroom.base.units import human_bytes
from strongroom.sources.base import Kind, Recovered, RestorePlan, RestoreWanted, SourceRef, TargetReport
from strongroom.sources.disk import open_image
from strongroom.sources.inodes import OPEN_FOLDER, OPEN_READ, punch_hole, read_xattrs
from strongroom.sources.openers import find_openers
from strongroom.sources.oserrors import shown, source_error, target_error
from strongroom.sources.stage import lock_file, stage_name
from strongroom.sources.swap import Trace

_ZEROS = bytes(1 << 20)


_NO_OLD = "There was no old image: the new one belongs to the service and nobody else may read it."
_ALIVE = "Another process is restoring this image for the same task. Wait for it to end."


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
        self._moved = self._kept = self._sealed = False
        self._warnings: list[str] = []
        self._fds = contextlib.ExitStack()
        try:
            self._folder_fd = os.open(os.path.dirname(path) or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fds.callback(os.close, self._folder_fd)
            self._fd = make_staged(self._folder_fd, self._name)
            self._fds.callback(os.close, self._fd)
            self._begin()
        except OSError as err:
            self._fds.close()
            raise target_error(err, path, "write a new image beside") from err
        except SourceError:
            self._fds.close()
            raise

    def _begin(self) -> None:
        """Make the empty file ready to be written."""
        os.ftruncate(self._fd, self.size)
        self._writer = DirectWriter(self._fd, self.size)
        self._fds.callback(self._writer.close)

    @property
    def stream(self) -> "ImageTarget":
        return self

    def __enter__(self) -> "ImageTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if not self._moved and not self._kept:
                self._trace("roll back")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name, dir_fd=self._folder_fd)
        except OSError as err:
            raise target_error(err, self._path, "clean up beside") from err
        finally:
            self._fds.close()

    def write(self, offset: int, data: memoryview) -> None:
        require_inside(offset, len(data), self.size)
        try:
            self._writer.write(offset, data)
        except OSError as err:
            raise target_error(err, self._path, "write") from err
        self._written += len(data)

    def zero(self, offset: int, length: int) -> None:
        require_inside(offset, length, self.size)
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
        self.seal()
        try:
            self._trace("rename")
            os.rename(self._name, self._base, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
            self._moved = True
            self._trace("sync folder")
            os.fsync(self._folder_fd)
        except OSError as err:
            raise target_error(err, self._path, "replace") from err
        return TargetReport(written_bytes=self._written, warnings=tuple(self._warnings))

    def seal(self) -> None:
        """All of `finish` but the rename: whole, durable, with the old one's owner. Idempotent."""
        if self._sealed:
            return
        self.flush()
        try:
            old_fd = open_image(self._path)
        except SourceGone:
            self._warnings.append(_NO_OLD)
        else:
            with contextlib.ExitStack() as closing:
                closing.callback(os.close, old_fd)
                if not self._plan.wanted.force:
                    _require_unused(old_fd, self._path)
                self._take_over(old_fd)
        try:
            os.fsync(self._fd)
        except OSError as err:
            raise target_error(err, self._path, "write") from err
        self._sealed = True

    def keep(self) -> tuple[str, str]:
        """It stays beside its place from now on, whatever happens: (staged, place), for who moves it then."""
        self._kept = True
        return os.fsdecode(os.path.join(os.path.dirname(self._path), self._name)), os.fsdecode(self._path)

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


def make_staged(folder_fd: int, name: bytes) -> int:
    """A new and locked file; what an earlier attempt left is removed. Raises AttemptAlive when another attempt has one
    or makes one at this moment, TargetDenied, OSError."""
    remove_leftover(folder_fd, name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o600, dir_fd=folder_fd)
    except FileExistsError as err:
        raise AttemptAlive(reason=_ALIVE) from err
    if not lock_file(fd):  # another attempt found it before it was locked, and removes it
        os.close(fd)
        raise AttemptAlive(reason=_ALIVE)
    return fd


def remove_leftover(folder_fd: int, name: bytes) -> bool:
    """Remove what an earlier attempt of the same task left. Raises AttemptAlive when that is alive, TargetDenied."""
    try:
        fd = os.open(name, OPEN_READ, dir_fd=folder_fd)
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # its owner may be the old image's already, so it is no sign
            raise TargetDenied(reason=f"{shown(name)} beside the image is not a file of the service. Move it away.")
        if not lock_file(fd):
            raise AttemptAlive(reason=_ALIVE)
        os.unlink(name, dir_fd=folder_fd)
        return True
    finally:
        os.close(fd)


def removed(folder_fd: int, name: bytes) -> bool:
    """The same, but what is alive or not ours stays."""
    try:
        return remove_leftover(folder_fd, name)
    except (TargetBusy, TargetDenied):
        return False


def recover_beside(ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
    """The rename is the commit: whatever lies beside the image was not finished."""
    try:
        folder_fd = os.open(os.path.dirname(ref.path) or b".", OPEN_FOLDER)
    except OSError:
        return ()  # without the folder there are no leftovers in it
    try:
        names = {task_id: stage_name(task_id) for task_id in sorted(finished_tasks)}
        gone = [task_id for task_id, name in names.items() if removed(folder_fd, name)]
    except OSError as err:
        raise target_error(err, ref.path, "clean up beside") from err
    finally:
        os.close(folder_fd)
    return tuple(Recovered(task_id=task_id, outcome="back") for task_id in gone)


def file_size(fd: int) -> int | None:
    return os.fstat(fd).st_size


def look_at_target(
    wanted: RestoreWanted, size_of: Callable[[int], int | None] = file_size
) -> tuple[RestorePlan, list[str], list[SourceError]]:
    """The plan without its sentences, the warnings, and the conflicts as errors. size_of: the disk in an open file."""
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
            size = size_of(fd)
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


def require_inside(offset: int, length: int, size: int) -> None:
    if offset < 0 or offset + length > size:
        raise TargetTooSmall(reason=f"The backup goes beyond the {human_bytes(size)} of the target.")
