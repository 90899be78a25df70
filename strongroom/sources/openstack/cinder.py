"""The driver of Cinder volumes (OS::Cinder::Volume at `cinder:CLOUD/VOLUME`).

Point:   a snapshot of the volume, forced, so that a server may go on writing -> a volume of it, attached here -> read.
         Crash-consistent. Cinder's API keeps no list of changed blocks: all is read, only what is new is stored.
Restore: the volume itself, detached from every server, attached here and written in place, only blocks that differ.

What is made there carries a name of ours with the resource's id, and only one job works on a resource at a time: what
is found under that name when a point is opened was left by a dead one, and is removed first.
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceError, SourceGone, TargetBusy
from strongroom.base.units import GIB, human_bytes
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
from strongroom.sources.disk import DiskStream
from strongroom.sources.machines.base import PREFIX
from strongroom.sources.openstack.attachment import MARK, Attachment, attachments_of, delete_attachment
from strongroom.sources.openstack.cloud import Address, connect, errors
from strongroom.sources.oserrors import source_error, target_error
from strongroom.sources.pace import Pace
from strongroom.sources.tokens import Values, dump_token, load_token, nanoseconds

READABLE = ("available", "in-use")
READ_WHOLE = "Cinder keeps no list of changed blocks: all is read, only what is new is stored."
MADE_S_MAX = 7200.0  # a snapshot or a volume of it: a back end may copy everything
GONE_S_MAX = 600.0
POLL_S = 1.0


class CinderPoint:
    """A volume made of a fresh snapshot, attached to be read; Point."""

    kind: Final[Kind] = "block"
    consistency: Final = "crash_consistent"

    def __init__(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        address = Address.parse(ref.path)
        self._undo: list[Callable[[], None]] = []
        self._storage = connect(address.cloud)
        try:
            remove_leftovers(self._storage, ref, address)
            with errors(f"volume {address.volume_id}"):
                volume = self._storage.get_volume(address.volume_id)
            self._status, self._volume_type = volume.status, volume.volume_type
            if volume.status not in READABLE:
                raise SourceError(
                    reason=f"The volume is {volume.status}; it can be backed up when available or in-use."
                )
            copy = self._copied(ref, volume)
            self.taken_at_ns = nanoseconds(clock.now())
            attachment = Attachment(self._storage, copy.id, writable=False)
            self._undo.append(attachment.detach)
            fd = _open(attachment.path, os.O_RDONLY)
            self._undo.append(lambda: os.close(fd))
            size = volume.size * GIB
            if os.lseek(fd, 0, os.SEEK_END) < size:
                raise SourceError(reason="The copy of the volume is smaller than the volume. Tell the operator.")
            own: Values = {"size": size}
            self.token = dump_token("cinder", own)
            self.full_reason = _full_reason(own, wanted)
            self.stream = DiskStream(
                fd,
                os.fsencode(attachment.path),
                size,
                Pace(ref.options.read_limit_bytes_s),
                same=False,
                holes=_is_file(fd),
            )
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> "CinderPoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {
            "format": "raw",
            "provider": "cinder",
            "size_bytes": self.stream.size,
            "status": self._status,
            "volume_type": self._volume_type,
            "read_whole": self.full_reason or READ_WHOLE,
        }

    def commit(self) -> None:
        self.abort()

    def abort(self) -> None:
        """What cannot be removed now is removed when the volume is opened next."""
        while self._undo:
            with contextlib.suppress(SourceError, OSError):
                self._undo.pop()()

    def _copied(self, ref: SourceRef, volume: Any) -> Any:
        """A volume that holds what `volume` holds now."""
        storage, name = self._storage, _name(ref)
        mark = {"strongroom": ref.resource_id}
        with errors(f"a snapshot of volume {volume.id}"):
            snapshot = storage.create_snapshot(volume_id=volume.id, name=name, is_forced=True, metadata=mark)
            self._undo.append(lambda: _delete(storage.get_snapshot, storage.delete_snapshot, snapshot.id))
            _wait(storage.get_snapshot, snapshot.id, "available", MADE_S_MAX)
        with errors(f"a copy of volume {volume.id}"):
            copy = storage.create_volume(size=volume.size, snapshot_id=snapshot.id, name=name, metadata=mark)
            self._undo.append(lambda: _delete(storage.get_volume, storage.delete_volume, copy.id))
            return _wait(storage.get_volume, copy.id, "available", MADE_S_MAX)


class CinderTarget:
    """A volume attached to be written; Target."""

    kind: Final[Kind] = "block"

    def __init__(self, storage: Any, address: Address, plan: RestorePlan, on_done: DoneCallback | None) -> None:
        self._storage = storage
        self._volume_id = address.volume_id
        self._fd = -1
        with errors(f"volume {address.volume_id}"):  # before the attachment: who dies in between leaves no riddle
            storage.set_volume_metadata(address.volume_id, **{MARK: plan.wanted.task_id})
        self._attachment = Attachment(storage, address.volume_id, writable=True)
        try:
            self._fd = _open(self._attachment.path, os.O_RDWR)
            size = os.lseek(self._fd, 0, os.SEEK_END)
            self._rest = size - plan.wanted.size_bytes
            path = os.fsencode(self._attachment.path)
            self.stream = DeviceWriter(OpenDevice(self._fd), path, size, plan.wanted.done_ranges, on_done)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "CinderTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    def finish(self) -> TargetReport:
        self.stream.flush()
        self._close()
        warnings: tuple[str, ...] = ()
        if self._rest:
            warnings = (f"The volume is {human_bytes(self._rest)} larger than the backup; that rest was not touched.",)
        return TargetReport(written_bytes=self.stream.written_bytes, warnings=warnings)

    def _close(self) -> None:
        """Detach; idempotent. What Cinder does not take back now is taken back by whoever opens the volume next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if not self._attachment.id:
            return
        self._attachment.detach()
        with contextlib.suppress(SourceError), errors(f"volume {self._volume_id}"):
            self._storage.delete_volume_metadata(self._volume_id, [MARK])


class CinderDriver:
    """Driver of Cinder volumes."""

    type: Final[ResourceType] = "OS::Cinder::Volume"
    kind: Final[Kind] = "block"

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def inspect(self, ref: SourceRef, *, measure: bool = False) -> Inspection:
        try:
            address = Address.parse(ref.path)
            storage = connect(address.cloud)
            with errors(f"volume {address.volume_id}"):
                volume = storage.get_volume(address.volume_id)
        except SourceGone as err:
            return Inspection(exists=False, readable=False, reason=err.message)
        except SourceError as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        fit = volume.status in READABLE
        return Inspection(
            exists=True,
            readable=fit,
            size_bytes=volume.size * GIB,
            reason=None if fit else f"The volume is {volume.status}.",
            detail={"format": "raw", "provider": "cinder", "status": volume.status, "volume_type": volume.volume_type},
        )

    def open_point(self, ref: SourceRef, wanted: PointWanted) -> CinderPoint:
        return CinderPoint(ref, wanted, self._clock)

    def plan_restore(self, wanted: RestoreWanted) -> RestorePlan:
        address = Address.parse(wanted.target.path)
        return _look(connect(address.cloud), address, wanted)[0]

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> CinderTarget:
        address = Address.parse(plan.wanted.target.path)
        storage = connect(address.cloud)
        _release(storage, address)
        _, conflicts = _look(storage, address, plan.wanted)  # what the plan saw may be long ago
        if conflicts:
            raise conflicts[0]
        return CinderTarget(storage, address, plan, on_done)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        address = Address.parse(ref.path)
        storage = connect(address.cloud)
        _release(storage, address)
        remove_leftovers(storage, ref, address)
        return ()  # a half restored volume needs the same restore again


def remove_leftovers(storage: Any, ref: SourceRef, address: Address) -> None:
    """Volumes and snapshots of ours that a dead job left. Raises SourceError."""
    with errors("what an earlier backup left"):
        copies = [copy for copy in storage.volumes(details=True, name=_name(ref)) if _is_ours(copy, ref)]
        for copy in copies:
            for held in copy.attachments:
                if held.get("attachment_id"):
                    delete_attachment(storage, held["attachment_id"])
            _delete(storage.get_volume, storage.delete_volume, copy.id)
        snapshots = storage.snapshots(details=True, volume_id=address.volume_id)
        for snapshot in [one for one in snapshots if _is_ours(one, ref)]:
            _delete(storage.get_snapshot, storage.delete_snapshot, snapshot.id)


def _is_ours(found: Any, ref: SourceRef) -> bool:
    """Name and mark, so that nothing of a user's is ever removed."""
    return bool(found.name == _name(ref) and (found.metadata or {}).get("strongroom") == ref.resource_id)


def _release(storage: Any, address: Address) -> None:
    """Detach what a restore that died has attached here, or on another worker."""
    with errors(f"volume {address.volume_id}"):
        volume = storage.get_volume(address.volume_id)
        if MARK not in (volume.metadata or {}):
            return
        for held in attachments_of(storage, address.volume_id):
            if not held.get("instance"):  # the volume was free when it was marked: a server's came later, and stays
                delete_attachment(storage, held["id"])
        storage.delete_volume_metadata(address.volume_id, [MARK])
        _wait(storage.get_volume, address.volume_id, "available", GONE_S_MAX)


def _look(storage: Any, address: Address, wanted: RestoreWanted) -> tuple[RestorePlan, list[SourceError]]:
    with errors(f"volume {address.volume_id}"):
        volume = storage.get_volume(address.volume_id)
    in_use: SourceError | None = None
    ours = MARK in (volume.metadata or {})
    if volume.status != "available" and not ours:
        in_use = TargetBusy(reason=f"The volume is {volume.status}. Detach it from its server, then restore again.")
    return look_in_place(wanted, "volume", volume.size * GIB, in_use)


def _name(ref: SourceRef) -> str:
    return f"{PREFIX}{ref.resource_id}"


def _open(path: str, flags: int) -> int:
    translate = target_error if flags & os.O_RDWR else source_error
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as err:
        raise translate(err, os.fsencode(path), "open") from err


def _is_file(fd: int) -> bool:
    """Whether holes can be asked for: a back end that gives files (NFS)."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _wait(get: Callable[[str], Any], object_id: str, status: str, seconds: float) -> Any:
    """The object when it has `status`. Raises SourceError when it gets an error or time is up."""
    deadline_s = time.monotonic() + seconds
    while True:
        found = get(object_id)
        if found.status == status:
            return found
        if found.status.startswith("error") or time.monotonic() > deadline_s:
            raise SourceError(
                reason=f"OpenStack did not make it {status}: it is {found.status}. Tell the operator.", detail=object_id
            )
        time.sleep(POLL_S)


def _delete(get: Callable[[str], Any], delete: Callable[[str], Any], object_id: str) -> None:
    """Gone on return. Raises SourceError when it is not within GONE_S_MAX."""
    with errors("what the backup made"):
        deadline_s = time.monotonic() + GONE_S_MAX
        delete(object_id)
        try:
            with errors("it"):
                while True:
                    found = get(object_id)
                    if found.status.startswith("error") or time.monotonic() > deadline_s:
                        raise SourceError(
                            reason=f"OpenStack does not delete it: it is {found.status}.", detail=object_id
                        )
                    time.sleep(POLL_S)
        except SourceGone:
            return


def _full_reason(own: Values, wanted: PointWanted) -> str | None:
    if wanted.full:
        return "A full backup was asked for."
    parent = load_token("cinder", wanted.parent_token)
    if parent is None:
        return "It is the first backup of this volume in the vault."
    if parent.get("size") != own["size"]:
        return "The volume had another size at the last backup."
    return None
