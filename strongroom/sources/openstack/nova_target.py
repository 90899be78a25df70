"""Restoring disks of a server onto its own volumes, in place, while it is shut off.

    1 plan    which disk goes onto which volume, and what stands against it; nothing is touched
    2 stop    a server that runs, when the restore is forced
    3 lock    Nova starts, moves or deletes nothing of it now; the reason names the task, and is our mark
    4 attach  its volumes here too, beside the server that does not run
    5 write   blocks that differ
    6 give    volumes detached from here, the server unlocked, and started when that was asked for

The server keeps its volumes all the time: Nova lets nobody detach a root volume, and a server without its disks is what
a death between a detach and an attach would leave. Dies something, `settle` gives the server back, by the lock's
reason: the same restore run again goes on with the ranges that are not done. Decision 12 has what was not chosen.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.base.errors import SourceError, SourceGone, TargetBusy, TargetDenied, TargetTooSmall
from strongroom.base.streams import BlockTarget
from strongroom.base.units import human_bytes
from strongroom.sources.base import Check, DoneCallback, TargetReport
from strongroom.sources.device_target import DeviceWriter, OpenDevice
from strongroom.sources.machines.base import DiskWanted, MachineRestorePlan, MachineRestoreWanted
from strongroom.sources.openstack.attachment import Attachment, attachments_of, delete_attachment
from strongroom.sources.openstack.cloud import connect
from strongroom.sources.openstack.copies import open_attached
from strongroom.sources.openstack.servers import LOCK, Server, ServerAddress, ServerDisk, call, load_server
from strongroom.sources.openstack.waiting import GONE_S_MAX, wait

IN_PLACE = "The volumes are written in place: until the restore has ended they are neither old nor new."


@dataclass(frozen=True, kw_only=True)
class _Place:
    wanted: DiskWanted
    found: ServerDisk


def plan(wanted: MachineRestoreWanted) -> MachineRestorePlan:
    address = ServerAddress.parse(wanted.target.path)
    places, conflicts = _look(wanted, load_server(connect(address.cloud), address.server_id))
    return MachineRestorePlan(
        wanted=wanted,
        needed_bytes=sum(disk.size_bytes for disk in wanted.disks),
        free_bytes=sum(place.found.disk.size_bytes for place in places),
        warnings=(IN_PLACE,),
        conflicts=tuple(conflict.message for conflict in conflicts),
    )


class ServerTarget:
    """MachineTarget of a server that exists."""

    def __init__(self, wanted: MachineRestoreWanted, on_done: Mapping[str, DoneCallback]) -> None:
        address = ServerAddress.parse(wanted.target.path)
        self._wanted = wanted
        self._id = address.server_id
        self._cloud = connect(address.cloud)
        settle(self._cloud, load_server(self._cloud, self._id))
        server = load_server(self._cloud, self._id)
        places, conflicts = _look(wanted, server)  # what the plan saw may be long ago
        if conflicts:
            raise conflicts[0]
        self._closing = contextlib.ExitStack()
        self._writers: dict[str, DeviceWriter] = {}
        try:
            self._hold(server)
            for place in places:
                self._open(place, on_done.get(place.wanted.source_id))
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> "ServerTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.close()

    @property
    def disks(self) -> Mapping[str, BlockTarget]:
        return dict(self._writers)

    def finish(self) -> TargetReport:
        for writer in self._writers.values():
            writer.flush()
        self._closing.close()
        settle(self._cloud, load_server(self._cloud, self._id))  # what was not given back: now it is, or this fails
        warnings = [
            f"Disk {disk.name} is {human_bytes(rest)} larger than the backup; that rest was not touched."
            for disk in self._wanted.disks
            if (rest := self._writers[disk.source_id].size - disk.size_bytes)
        ]
        if self._wanted.power_on:
            warnings += start(self._cloud, self._id, self._wanted.check)
        written = sum(writer.written_bytes for writer in self._writers.values())
        return TargetReport(written_bytes=written, warnings=tuple(warnings))

    def _hold(self, server: Server) -> None:
        """Shut off and locked on return."""
        what = f"server {self._id}"
        if server.status != "SHUTOFF":
            call(self._cloud, "POST", f"{self._id}/action", {"os-stop": None}, what=what)
            await_status(self._cloud, self._id, "SHUTOFF", self._wanted.check)
        reason = {"lock": {"locked_reason": f"{LOCK} {self._wanted.task_id}"}}
        self._closing.callback(_unlock, self._cloud, self._id)
        call(self._cloud, "POST", f"{self._id}/action", reason, what=what)
        held = load_server(self._cloud, self._id)
        if held.status != "SHUTOFF" or held.task is not None or not held.locked_by_us:
            raise TargetBusy(reason="Somebody else is at work on the server. Try again when it is shut off.")

    def _open(self, place: _Place, on_done: DoneCallback | None) -> None:
        storage, id_ = self._cloud.block_storage, place.found.disk.id
        attachment = Attachment(storage, id_, writable=True, beside=self._id)
        self._closing.callback(attachment.detach)
        fd = open_attached(attachment.path, os.O_RDWR)
        self._closing.callback(os.close, fd)
        size = os.lseek(fd, 0, os.SEEK_END)
        self._writers[place.wanted.source_id] = DeviceWriter(
            OpenDevice(fd), os.fsencode(attachment.path), size, place.wanted.done_ranges, on_done
        )


def settle(cloud: Any, server: Server) -> bool:
    """Give back a server that a restore held: whether there was something to give. Raises SourceError."""
    if not server.locked_by_us:
        return False
    for disk in server.disks:
        own = disk.attached.get("attachment_id")
        for held in attachments_of(cloud.block_storage, disk.disk.id):
            if held.get("instance") == server.id and own is not None and held["id"] != own:
                delete_attachment(cloud.block_storage, held["id"])
    call(cloud, "POST", f"{server.id}/action", {"unlock": None}, what=f"server {server.id}")
    return True


def start(cloud: Any, server_id: str, check: Check) -> list[str]:
    """Why it could not be started, for the tenant; [] when it runs. Raises what check raises."""
    try:
        call(cloud, "POST", f"{server_id}/action", {"os-start": None}, what=f"server {server_id}")
        await_status(cloud, server_id, "ACTIVE", check)
    except SourceError as err:
        return [f"The server is restored, but Nova could not start it: {err.message}"]
    return []


def await_status(cloud: Any, server_id: str, status: str, check: Check) -> None:
    """Raises SourceError when Nova gives it up or time is up, and what check raises."""
    wait(lambda id_: load_server(cloud, id_), server_id, status, GONE_S_MAX, check)


def _unlock(cloud: Any, server_id: str) -> None:
    """Where that fails `settle` does it."""
    with contextlib.suppress(SourceError):
        settle(cloud, load_server(cloud, server_id))


def _look(wanted: MachineRestoreWanted, server: Server) -> tuple[list[_Place], list[SourceError]]:
    conflicts: list[SourceError] = []
    stops = wanted.force and server.status == "ACTIVE"
    if server.status != "SHUTOFF" and not stops:
        conflicts.append(
            TargetBusy(
                reason=f"The server is {server.status}. Shut it off, then restore again; a restore that is forced "
                "stops a server that runs."
            )
        )
    elif server.task is not None:
        conflicts.append(TargetBusy(reason=f"Nova is at work on the server ({server.task}). Try again later."))
    elif server.lock is not None and not server.locked_by_us:
        conflicts.append(TargetBusy(reason="The server is locked. Unlock it, then restore again."))
    by_id = {disk.disk.id: disk for disk in server.disks}
    places = []
    for disk in wanted.disks:
        found = by_id.get(disk.target_id or "")
        if found is None:
            conflicts.append(SourceGone(reason=f"The server has no volume any more for {disk.name}. Choose another."))
            continue
        if reason := _against(disk, found):
            conflicts.append(reason)
        places.append(_Place(wanted=disk, found=found))
    return places, conflicts


def _against(disk: DiskWanted, found: ServerDisk) -> SourceError | None:
    """What stands against writing a disk of the backup onto a volume."""
    if found.disk.size_bytes < disk.size_bytes:
        return TargetTooSmall(
            reason=f"The backup of {disk.name} has {human_bytes(disk.size_bytes)}, the volume of {found.disk.name} "
            f"{human_bytes(found.disk.size_bytes)}. Choose a larger one."
        )
    if found.others:
        return TargetBusy(reason=f"Another server has the volume of {found.disk.name} too. Detach it there first.")
    if found.volume.is_encrypted and found.disk.id != disk.source_id:
        return TargetDenied(
            reason=f"The volume of {found.disk.name} is encrypted with a key of its own: restore onto the old volume."
        )
    return None
