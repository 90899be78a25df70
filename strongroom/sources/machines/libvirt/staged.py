"""A disk being put together as an image beside its place, written through qemu-nbd so that any format is the same.

.strongroom-<task>.<device>     the new image, locked (flock) by the living process that writes it
.strongroom-<task>.ready        in the folder of the first disk: all are whole; from here on it goes forward
"""

import contextlib
import os
import re
import stat

from strongroom.base.errors import SourceError, TargetBusy, TargetDenied
from strongroom.sources.disk import open_image
from strongroom.sources.image_target import make_staged, removed
from strongroom.sources.inodes import OPEN_FOLDER, read_xattrs
from strongroom.sources.machines.libvirt.serving import image_node, run_tool, served
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.oserrors import target_error
from strongroom.sources.stage import stage_name

READY = "ready"
NEW = "new-"  # before the device, where the image is to be one of a new machine
FORMATS = ("qcow2", "raw")
_DEVICE = re.compile(r"[A-Za-z0-9_-]{1,32}")


class StagedImage:
    """A new image. `client` is what the content is written to; `seal` ends the writing, `discard` takes it back."""

    client: NbdClient

    def __init__(self, folder: str, task_id: str, device: str, image_format: str, size: int) -> None:
        if image_format not in FORMATS:
            raise TargetDenied(reason=f"The disk {device} is of format {image_format}, which no restore writes.")
        self.folder = folder
        self.name = staged_name(task_id, device)
        self.path = os.path.join(folder, self.name)
        self._closing = contextlib.ExitStack()
        self._sealed = False
        self._fd = -1
        try:
            self._folder_fd = os.open(folder, OPEN_FOLDER)
            self._closing.callback(os.close, self._folder_fd)
            self._fd = make_staged(self._folder_fd, os.fsencode(self.name))
            self._closing.callback(os.close, self._fd)
            run_tool(["qemu-img", "create", "-q", "-f", image_format, self.path, str(size)])
            node = image_node(self.path, image_format, share=False)
            self._serving = self._closing.enter_context(served(node, writable=True))
            self.client = self._serving.client
        except OSError as err:
            self.discard()
            raise target_error(err, os.fsencode(folder), "write a new image in") from err
        except BaseException:
            self.discard()
            raise

    def seal(self, like: str | None) -> None:
        """Nothing is written any more and everything is durable; owner, mode and attributes are those of `like`."""
        if self._sealed:
            return
        self._serving.finish()
        try:
            if like is not None:
                self._take_over(like)
            os.fsync(self._fd)
        except OSError as err:
            raise target_error(err, os.fsencode(self.path), "write") from err
        self._sealed = True

    def discard(self) -> None:
        """Remove it, if it still has its staging name. Idempotent."""
        if self._fd >= 0:  # else what has the name is another attempt's
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._closing.close()

    def close(self) -> None:
        """It has been moved into place: free what it holds."""
        self._closing.close()

    def _take_over(self, like: str) -> None:
        try:
            old = open_image(os.fsencode(like))
        except SourceError:
            return  # nothing to be like: it stays the service's
        try:
            info = os.fstat(old)
            os.fchown(self._fd, info.st_uid, info.st_gid)
            os.fchmod(self._fd, stat.S_IMODE(info.st_mode))
            for name, value in read_xattrs(old):
                os.setxattr(self._fd, name, value)
        finally:
            os.close(old)


def staged_name(task_id: str, device: str) -> str:
    """Raises InvalidRequest for an id that is no plain word, TargetDenied for a device whose name is none."""
    if not _DEVICE.fullmatch(device):
        raise TargetDenied(reason=f"The name of the disk {device!r} cannot be part of a file's name.")
    return f"{os.fsdecode(stage_name(task_id))}.{device}"


def staged_prefix(task_id: str, *, new: bool) -> str:
    return f"{os.fsdecode(stage_name(task_id))}.{NEW if new else ''}"


def mark_path(folder: str, task_id: str) -> str:
    return os.path.join(folder, staged_name(task_id, READY))


def remove_staged(folder: str, task_id: str, *, new: bool) -> bool:
    """Images that an earlier attempt left, of a new machine or not, but those that a living process writes. True when
    there were any."""
    prefix, other = staged_prefix(task_id, new=new), staged_prefix(task_id, new=True)
    try:
        fd = os.open(folder, OPEN_FOLDER)
    except OSError:
        return False
    try:
        names = [name for name in os.listdir(fd) if name.startswith(prefix) and (new or not name.startswith(other))]
        gone = [name for name in names if removed(fd, os.fsencode(name))]
        return bool(gone)
    except OSError as err:
        raise target_error(err, os.fsencode(folder), "clean up in") from err
    finally:
        os.close(fd)


def require_unused(openers: tuple[str, ...], place: str) -> None:
    if openers:
        raise TargetBusy(
            reason=f"Another program has {place} open. Stop what uses the disk, or force the restore.",
            detail=", ".join(openers),
        )
