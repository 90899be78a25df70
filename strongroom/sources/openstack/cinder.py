"""The driver of Cinder volumes (OS::Cinder::Volume at `cinder:CLOUD/VOLUME`).

Point:   a snapshot of the volume, forced, so that a server may go on writing -> a volume of it, attached here -> read.
         Crash-consistent. Cinder's API keeps no list of changed blocks: all is read, only what is new is stored.
Restore: the volume itself, detached from every server, attached here and written in place, only blocks that differ.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Final

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceError, SourceGone, TargetBusy
from strongroom.base.units import GIB, human_bytes
from strongroom.sources.base import (
    Check,
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
    go_on,
)
from strongroom.sources.device_target import DeviceWriter, OpenDevice, look_in_place
from strongroom.sources.openstack.attachment import MARK, Attachment, attachments_of, delete_attachment
from strongroom.sources.openstack.cloud import Address, connect_storage, errors
from strongroom.sources.openstack.copies import (
    READ_WHOLE,
    READABLE,
    Copy,
    Undo,
    await_snapshot,
    begin_snapshot,
    delete_snapshot,
    open_attached,
    remove_leftovers,
    why_whole,
)
from strongroom.sources.openstack.waiting import GONE_S_MAX, wait
from strongroom.sources.pace import Pace
from strongroom.sources.tokens import Values, dump_token, nanoseconds


class CinderPoint:
    """A volume made of a fresh snapshot, attached to be read; Point."""

    kind: Final[Kind] = "block"
    consistency: Final = "crash_consistent"

    def __init__(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        address = Address.parse(ref.path)
        self._undo = Undo()
        storage = connect_storage(address.cloud)
        try:
            remove_leftovers(storage, ref)
            with errors(f"volume {address.volume_id}"):
                volume = storage.get_volume(address.volume_id)
            self._status, self._volume_type = volume.status, volume.volume_type
            if volume.status not in READABLE:
                raise SourceError(
                    reason=f"The volume is {volume.status}; it can be backed up when available or in-use."
                )
            snapshot_id = begin_snapshot(storage, ref, volume.id)
            self._undo.add(lambda: delete_snapshot(storage, snapshot_id))
            await_snapshot(storage, snapshot_id, wanted.check)
            self.taken_at_ns = nanoseconds(clock.now())
            pace = Pace(ref.options.read_limit_bytes_s)
            copy = Copy(storage, ref, volume, snapshot_id, pace, wanted.check)
            self._undo.add(copy.close)
            self.stream = copy.stream
            own: Values = {"size": self.stream.size}
            self.token = dump_token("cinder", own)
            self.full_reason = why_whole(own, wanted.parent_token, full=wanted.full)
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
        self._undo.run()


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
            self._fd = open_attached(self._attachment.path, os.O_RDWR)
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
            storage = connect_storage(address.cloud)
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
        return _look(connect_storage(address.cloud), address, wanted)[0]

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> CinderTarget:
        address = Address.parse(plan.wanted.target.path)
        storage = connect_storage(address.cloud)
        _release(storage, address, plan.wanted.check)
        _, conflicts = _look(storage, address, plan.wanted)  # what the plan saw may be long ago
        if conflicts:
            raise conflicts[0]
        return CinderTarget(storage, address, plan, on_done)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        address = Address.parse(ref.path)
        storage = connect_storage(address.cloud)
        _release(storage, address, go_on)
        remove_leftovers(storage, ref)
        return ()  # a half restored volume needs the same restore again


def _release(storage: Any, address: Address, check: Check) -> None:
    """Detach what a restore that died has attached here, or on another worker."""
    with errors(f"volume {address.volume_id}"):
        volume = storage.get_volume(address.volume_id)
        if MARK not in (volume.metadata or {}):
            return
        for held in attachments_of(storage, address.volume_id):
            if not held.get("instance"):  # the volume was free when it was marked: a server's came later, and stays
                delete_attachment(storage, held["id"])
        storage.delete_volume_metadata(address.volume_id, [MARK])
        wait(storage.get_volume, address.volume_id, "available", GONE_S_MAX, check)


def _look(storage: Any, address: Address, wanted: RestoreWanted) -> tuple[RestorePlan, list[SourceError]]:
    with errors(f"volume {address.volume_id}"):
        volume = storage.get_volume(address.volume_id)
    in_use: SourceError | None = None
    ours = MARK in (volume.metadata or {})
    if volume.status != "available" and not ours:
        in_use = TargetBusy(reason=f"The volume is {volume.status}. Detach it from its server, then restore again.")
    return look_in_place(wanted, "volume", volume.size * GIB, in_use)
