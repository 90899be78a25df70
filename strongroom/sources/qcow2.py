"""The driver of qcow2 images (OS::Cinder::Volume): what is protected is the disk inside, not the file that holds it.

Point: read through `qemu-nbd`, by allocation. Where the file system shares blocks, from a copy of one moment, so a
machine may start meanwhile; elsewhere the image stays locked while it is read. A persistent bitmap in the image, made
at each point, tells the next one what changed: QEMU keeps it while a machine runs. It is believed only when it is
there, enabled and was closed cleanly; else everything is read, and the reason says so.

    open    add bitmap N; copy; read what bitmap P says      died here: the next point removes N
    commit  remove P                                         abort  remove N, P goes on

An image that a machine has open: a copy of it is what a power cut would leave, so it is read whole, without bitmaps;
where no copy can be made it is refused: such a machine is to be registered as a machine.
Restore: a qcow2 image of the same size is made beside the old one and renamed over it, see `qcow2_target.py`.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceDenied, SourceError, SourceGone
from strongroom.base.streams import Extent, ExtentKind
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
from strongroom.sources.disk import open_image
from strongroom.sources.image_target import look_at_target, recover_beside
from strongroom.sources.inodes import OPEN_READ
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.mounts import file_system
from strongroom.sources.oserrors import shown, source_error
from strongroom.sources.pace import Pace
from strongroom.sources.qcow2_header import Qcow2Header, load_header
from strongroom.sources.qcow2_target import Qcow2Target
from strongroom.sources.qemu_tools import image_info, is_written, qcow2_of, served
from strongroom.sources.snapshots.base import Hold, own_prefix, snapshot_name
from strongroom.sources.snapshots.choose import choose_for_image
from strongroom.sources.swap import Trace, no_trace
from strongroom.sources.tokens import Values, dump_token, load_token, nanoseconds
from strongroom.sources.tools import run_tool, tool

GRANULARITY = 64 << 10  # of bitmaps: the engine's block of disks, and 2 MiB of bitmap a TiB
IN_USE = "A machine has the image open: its lists of changed blocks are not in the file until it closes it."
OWN_BITMAPS_MAX = 64  # removed at one point; more of ours than that is not what crashes leave


class Qcow2Stream:
    """BlockStream of the disk inside. same: the parent's bytes are proven where the bitmap is clean."""

    def __init__(self, client: NbdClient, pace: Pace) -> None:
        self.size = client.size
        self.changed_bytes = 0
        self._client = client
        self._pace = pace

    def extents(self) -> Iterator[Extent]:
        for extent in self._client.extents():
            if extent.kind != ExtentKind.SAME:
                self.changed_bytes += extent.length
            yield extent

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._pace.take(len(buffer))
        return self._client.read_into(offset, buffer)


class Qcow2Point:
    """The disk inside an image, served to this process alone; Point."""

    kind: Final[Kind] = "block"
    consistency: Final = "crash_consistent"

    def __init__(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        self._files = contextlib.ExitStack()
        self._serving = contextlib.ExitStack()
        self._ref = ref
        self._bitmap: str | None = None  # ours of this point, in the live image
        self._hold: Hold | None = None
        self._open_still = True
        self._parent = load_token("qcow2", wanted.parent_token)
        try:
            self._live_fd = open_image(ref.path)
            self._files.callback(os.close, self._live_fd)
            self.taken_at_ns = nanoseconds(clock.now())
            self._open(ref, wanted)
        except OSError as err:
            self.abort()
            raise source_error(err, ref.path, "read") from err
        except BaseException:
            self.abort()
            raise

    def _open(self, ref: SourceRef, wanted: PointWanted) -> None:
        header = load_header(self._live_fd, ref.path)
        in_use = is_written(self._live_fd)
        provider, self._snapshot_reason = choose_for_image(ref.path)
        if in_use and provider is None:
            raise SourceDenied(
                reason=f"A machine has {shown(ref.path)} open, and the file system cannot copy it in one moment. "
                "Register the machine, or stop it for the backup."
            )
        self._no_bitmap = IN_USE if in_use else self._mark(header)
        fd = self._live_fd
        if provider is not None:
            self._hold = Hold(provider, ref.path, ref.resource_id, self.taken_at_ns, None)
            fd = os.open(self._hold.snapshot.path, OPEN_READ)
            self._serving.callback(os.close, fd)
            header = load_header(fd, ref.path)
        sound = _sound_bitmaps(image_info(fd))
        own: Values = {"size": header.size_bytes}
        if self._bitmap in sound:
            own["bitmap"] = str(self._bitmap)
        self.token = dump_token("qcow2", own)
        self.full_reason = _full_reason(header, self._parent, wanted)
        self._read_whole = self.full_reason or _read_whole(self._parent, sound, self._no_bitmap)
        bitmap = str((self._parent or {})["bitmap"]) if self._read_whole is None else None
        client = self._serving.enter_context(served(qcow2_of(fd), [fd], bitmap=bitmap)).client
        load_header(fd, ref.path)  # the tool has opened it by now: it is still an image that names no other file
        if client.size != header.size_bytes:
            raise SourceError(reason=f"{shown(ref.path)} changed its size while it was opened. Run the task again.")
        self._allocated = os.fstat(fd).st_blocks * 512
        self.stream = Qcow2Stream(client, Pace(ref.options.read_limit_bytes_s))

    def _mark(self, header: Qcow2Header) -> str | None:
        """Begin to note what changes from now on. None when it worked, else why there is no bitmap."""
        if not header.bitmaps:
            return "The image is of version 2 of its format, which keeps no list of changed blocks."
        name = snapshot_name(self._ref.resource_id, self.taken_at_ns)
        kept = (self._parent or {}).get("bitmap")
        try:
            found = _bitmaps(image_info(self._live_fd))
            left = [other for other in found if other.startswith(own_prefix(self._ref.resource_id)) and other != kept]
            for other in left[:OWN_BITMAPS_MAX]:
                self._run_bitmap("--remove", other)
            self._run_bitmap("--add", name)
        except SourceError as err:
            return f"No list of changed blocks could be kept in the image: {err.message}"
        self._bitmap = name
        return None

    def _run_bitmap(self, action: str, name: str) -> None:
        options = ["-g", str(GRANULARITY)] if action == "--add" else []
        run_tool(["qemu-img", "bitmap", action, *options, qcow2_of(self._live_fd), name], [self._live_fd])

    def __enter__(self) -> "Qcow2Point":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {
            "format": "qcow2",
            "size_bytes": self.stream.size,
            "allocated_bytes": self._allocated,
            "read_whole": self._read_whole,
            "changed_bytes": self.stream.changed_bytes if self._read_whole is None else None,
            "changed_while_read": False,
            "snapshot": self._hold.name if self._hold is not None else None,
            "snapshot_reason": self._snapshot_reason,
        }

    def commit(self) -> None:
        old = (self._parent or {}).get("bitmap")
        self._end(str(old) if old is not None and old != self._bitmap else None)

    def abort(self) -> None:
        self._end(self._bitmap)

    def _end(self, bitmap: str | None) -> None:
        if not self._open_still:
            return
        self._open_still = False
        with self._files:
            self._serving.close()  # and the tool's lock on the image, so that its bitmaps can be changed
            if self._hold is not None:
                self._hold.abort()  # the next point needs the bitmap, not the copy
            if bitmap is not None and bitmap.startswith(own_prefix(self._ref.resource_id)):
                with contextlib.suppress(SourceError):  # in use by now: the next point removes it
                    self._run_bitmap("--remove", bitmap)


class Qcow2Driver:
    """Driver of qcow2 images. `trace` is for tests that die at every step."""

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
            header = load_header(fd, ref.path)
            tool("qemu-nbd")
            detail: Mapping[str, Detail] = {
                "file_system": file_system(fd),
                "format": "qcow2",
                "allocated_bytes": os.fstat(fd).st_blocks * 512,
                "in_use": is_written(fd),
            }
            return Inspection(exists=True, readable=True, size_bytes=header.size_bytes, detail=detail)
        except SourceError as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        except OSError as err:
            return Inspection(exists=True, readable=False, reason=source_error(err, ref.path, "read").message)
        finally:
            os.close(fd)

    def open_point(self, ref: SourceRef, wanted: PointWanted) -> Qcow2Point:
        return Qcow2Point(ref, wanted, self._clock)

    def plan_restore(self, wanted: RestoreWanted) -> RestorePlan:
        plan, warnings, conflicts = look_at_target(wanted, disk_size)
        return replace(plan, warnings=tuple(warnings), conflicts=tuple(conflict.message for conflict in conflicts))

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> Qcow2Target:
        now, _, conflicts = look_at_target(plan.wanted, disk_size)  # what the plan saw may be long ago
        if conflicts:
            raise conflicts[0]
        return Qcow2Target(now, self._trace)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        return recover_beside(ref, finished_tasks)


def disk_size(fd: int) -> int | None:
    """Of the disk inside an image; None for one that is to be replaced although it cannot be read as a disk."""
    try:
        return load_header(fd, b"").size_bytes
    except SourceError:
        return None


def _bitmaps(info: Mapping[str, Any]) -> dict[str, list[str]]:
    """Flags by name, of an image."""
    data = info.get("format-specific", {}).get("data", {})
    return {str(item["name"]): list(item["flags"]) for item in data.get("bitmaps", ())}


def _sound_bitmaps(info: Mapping[str, Any]) -> set[str]:
    """Those that are enabled and were closed cleanly: nothing was written without their knowing."""
    return {name for name, flags in _bitmaps(info).items() if flags == ["auto"]}


def _full_reason(header: Qcow2Header, parent: Values | None, wanted: PointWanted) -> str | None:
    if wanted.full:
        return "A full backup was asked for."
    if parent is None:
        return "It is the first backup of this disk in the vault."
    if parent.get("size") != header.size_bytes:
        return "The disk had another size at the last backup."
    return None


def _read_whole(parent: Values | None, sound: set[str], no_bitmap: str | None) -> str | None:
    """Why everything is read; None: the parent's bitmap tells what changed."""
    name = (parent or {}).get("bitmap")
    if name is None:
        return "The last backup left no list of changed blocks in the image."
    if name not in sound:
        return no_bitmap or "The list of changed blocks is gone or was not closed cleanly, so all of the disk is read."
    return None
