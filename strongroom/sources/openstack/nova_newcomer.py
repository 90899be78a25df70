"""Restoring into a new server: new volumes, and a server that Nova makes of them where it can.

    1 plan    nothing is touched      2 make    volumes of the old types, marked MAKING with the task
    3 write   attached here           4 seal    detached, bootable and described as the old ones were, marked MADE
    5 server  flavor, networks and security groups as the old one had, addresses of its own

Where 5 cannot be done (a network or flavor is gone, or nobody could tell them) the volumes stand, and a warning has the
reason and the command that makes the server. What a dead worker left, the next attempt of its task deletes, or
`recover` of a task that did not succeed: the server, then its volumes, MADE or MAKING. Nobody was told of them yet. A
cancel before the end takes back all of it.
"""

import contextlib
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from strongroom.base.errors import SourceError, TargetDenied
from strongroom.base.streams import BlockTarget
from strongroom.base.units import GIB
from strongroom.sources.base import DoneCallback, TargetReport
from strongroom.sources.device_target import DeviceWriter, OpenDevice
from strongroom.sources.machines.base import DiskWanted, MachineRestorePlan, MachineRestoreWanted
from strongroom.sources.openstack.attachment import Attachment, delete_attachment
from strongroom.sources.openstack.cloud import checked, connect, errors
from strongroom.sources.openstack.copies import open_attached
from strongroom.sources.openstack.nova_point import load_definition
from strongroom.sources.openstack.nova_target import await_status
from strongroom.sources.openstack.servers import ServerAddress, call
from strongroom.sources.openstack.waiting import MADE_S_MAX, delete, wait

MAKING, MADE = "strongroom.making", "strongroom.made"  # in the metadata of volumes, MADE in that of servers: the task
NEW_ADDRESSES = "The new server gets network addresses of its own."
_ABOUT_STORAGE = ("signature_verified", "image_id", "image_name", "checksum", "container_format", "disk_format",
                  "min_disk", "min_ram", "size")  # fmt: skip


def plan(wanted: MachineRestoreWanted) -> MachineRestorePlan:
    conflicts = _conflicts(wanted)
    needed = sum(_gib(disk) for disk in wanted.disks) * GIB
    return MachineRestorePlan(
        wanted=wanted,
        needed_bytes=needed,
        free_bytes=needed,  # Cinder tells its free room to administrators; a quota that is used up refuses the volumes
        in_place=False,
        warnings=(NEW_ADDRESSES,),
        conflicts=tuple(conflict.message for conflict in conflicts),
    )


class NewServer:
    """MachineTarget of a server that does not exist yet."""

    def __init__(self, wanted: MachineRestoreWanted, on_done: Mapping[str, DoneCallback]) -> None:
        if conflicts := _conflicts(wanted):
            raise conflicts[0]
        self._wanted = wanted
        self._definition = load_definition(wanted.definition)
        self._cloud = connect(ServerAddress.parse(wanted.target.path).cloud)
        with errors("the cloud"):
            self._storage = self._cloud.block_storage
        recover(self._cloud, {wanted.task_id})
        self._made: dict[str, str] = {}  # volumes by source id
        self._writers: dict[str, DeviceWriter] = {}
        self._finished = False
        self._attached = contextlib.ExitStack()
        try:
            self._make_volumes()
            for disk in wanted.disks:
                self._open(disk, on_done.get(disk.source_id))
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "NewServer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    @property
    def disks(self) -> Mapping[str, BlockTarget]:
        return dict(self._writers)

    def finish(self) -> TargetReport:
        for writer in self._writers.values():
            writer.flush()
        self._attached.close()
        for disk in self._wanted.disks:
            self._seal(disk)
        told = self._make_server()
        self._finished = True
        written = sum(writer.written_bytes for writer in self._writers.values())
        return TargetReport(written_bytes=written, warnings=tuple(told))

    def _make_volumes(self) -> None:
        for disk in self._wanted.disks:
            old = _known(self._definition, disk)["volume"]
            words = {
                "size": _gib(disk),
                "name": f"{self._wanted.new_name}-{disk.name}",
                "volume_type": old["volume_type"],
                "availability_zone": old["availability_zone"],
                "metadata": {MAKING: self._wanted.task_id},
            }
            with errors(f"a volume for disk {disk.name}"):
                self._made[disk.source_id] = self._storage.create_volume(**words).id
        for id_ in self._made.values():
            with errors(f"volume {id_}"):
                wait(self._storage.get_volume, id_, "available", MADE_S_MAX, self._wanted.check)

    def _open(self, disk: DiskWanted, on_done: DoneCallback | None) -> None:
        attachment = Attachment(self._storage, self._made[disk.source_id], writable=True)
        self._attached.callback(attachment.detach)
        fd = open_attached(attachment.path, os.O_RDWR)
        self._attached.callback(os.close, fd)
        size, path = os.lseek(fd, 0, os.SEEK_END), os.fsencode(attachment.path)
        self._writers[disk.source_id] = DeviceWriter(OpenDevice(fd), path, size, (), on_done)

    def _seal(self, disk: DiskWanted) -> None:
        """The volume is what the old one was. Raises SourceError."""
        id_, old = self._made[disk.source_id], _known(self._definition, disk)["volume"]
        described = {k: v for k, v in (old["volume_image_metadata"] or {}).items() if k not in _ABOUT_STORAGE}
        with errors(f"volume {id_}"):
            wait(self._storage.get_volume, id_, "available", MADE_S_MAX, self._wanted.check)
            if old["is_bootable"]:
                self._act(id_, {"os-set_bootable": {"bootable": True}})
            if described:
                self._act(id_, {"os-set_image_metadata": {"metadata": described}})
            self._storage.set_volume_metadata(id_, **{MADE: self._wanted.task_id})
            self._storage.delete_volume_metadata(id_, [MAKING])

    def _act(self, volume_id: str, body: dict[str, Any]) -> None:
        checked(self._storage.post(f"/volumes/{volume_id}/action", json=body))

    def _make_server(self) -> list[str]:
        """Why there is none, and how to make it; or what there is to know of it."""
        try:
            words = _server_words(self._cloud, self._wanted, self._definition, self._made)
            what = f"server {self._wanted.new_name}"
            made = str(call(self._cloud, "POST", "", {"server": words}, what=what)["server"]["id"])
        except SourceError as err:
            why = f"{err.message} {err.detail}".strip()
            return [
                f"The volumes are restored, but Nova could not make the server: {why} Make it with: "
                f"{_command(self._wanted, self._definition, self._made)}"
            ]
        told = f"The new server is {made}."
        try:
            await_status(self._cloud, made, "ACTIVE", self._wanted.check)
            if not self._wanted.power_on:
                call(self._cloud, "POST", f"{made}/action", {"os-stop": None}, what=what)
                told += " Nova starts what it makes: it was stopped at once."
        except SourceError as err:
            return [f"The new server {made} is there, but it does not run: {err.message}"]
        except BaseException:  # a cancel: nobody is told of this server, so it goes, and then its volumes
            with contextlib.suppress(SourceError):
                _delete_server(self._cloud, made)
            raise
        return [told]

    def _close(self) -> None:
        """Detach; and what was not finished goes."""
        self._attached.close()
        if not self._finished:
            for id_ in self._made.values():
                with contextlib.suppress(SourceError):
                    delete(self._storage.get_volume, self._storage.delete_volume, id_)


def recover(cloud: Any, finished_tasks: Collection[str]) -> list[str]:
    """Delete what restores into new servers made that did not succeed, of these tasks, whatever state it is in; the
    tasks. Raises SourceError."""
    found: set[str] = set()
    with errors("what an earlier attempt made"):
        for server in cloud.compute.servers(details=True):
            task = str((server.metadata or {}).get(MADE))
            if task in finished_tasks:
                _delete_server(cloud, server.id)
                found.add(task)
    for task, volume in (*_marked(cloud, MADE), *_marked(cloud, MAKING)):
        if task in finished_tasks and _drop(cloud, volume):
            found.add(task)
    return sorted(found)


def _delete_server(cloud: Any, server_id: str) -> None:
    """Gone on return: it has its volumes until then. Raises SourceError."""
    what = f"server {server_id}"

    def get(_: str) -> SimpleNamespace:
        return SimpleNamespace(status=call(cloud, "GET", server_id, what=what)["server"]["status"])

    delete(get, lambda _: call(cloud, "DELETE", server_id, what=what), server_id)


def _marked(cloud: Any, mark: str) -> list[tuple[str, Any]]:
    with errors("the volumes of the project"):
        every = [
            (str((volume.metadata or {}).get(mark)), volume) for volume in cloud.block_storage.volumes(details=True)
        ]
    return [(task, volume) for task, volume in every if task != "None"]


def _drop(cloud: Any, volume: Any) -> bool:
    """Delete a volume that no server has: whether it was one. Raises SourceError."""
    storage = cloud.block_storage
    if any(held.get("server_id") for held in volume.attachments):
        return False
    for held in volume.attachments:
        if held.get("attachment_id"):
            delete_attachment(storage, held["attachment_id"])
    delete(storage.get_volume, storage.delete_volume, volume.id)
    return True


def _conflicts(wanted: MachineRestoreWanted) -> list[SourceError]:
    try:
        definition = load_definition(wanted.definition)
        for disk in wanted.disks:
            if _known(definition, disk)["volume"]["is_encrypted"]:
                raise TargetDenied(
                    reason=f"The volume of {disk.name} is encrypted, and a new one would have another key: restore "
                    "onto the old server."
                )
    except SourceError as err:
        return [err]
    return [] if wanted.disks else [TargetDenied(reason="A new server needs at least one disk.")]


def _known(definition: Mapping[str, Any], disk: DiskWanted) -> Mapping[str, Any]:
    for each in definition["disks"]:
        if each["id"] == disk.source_id:
            return dict(each)
    raise TargetDenied(reason=f"The restore point does not say what disk {disk.name} was. Restore it by itself.")


def _gib(disk: DiskWanted) -> int:
    return -(-disk.size_bytes // GIB)


def _server_words(
    cloud: Any, wanted: MachineRestoreWanted, definition: Mapping[str, Any], made: Mapping[str, str]
) -> dict[str, Any]:
    """What POST servers is given. Raises SourceError when the restore point or the cloud does not tell enough."""
    old, nics = definition["server"], definition["nics"]
    disks = [(disk, _known(definition, disk)) for disk in wanted.disks]
    if not any(known["is_boot"] for _, known in disks):
        raise SourceError(reason="No disk of the backup boots.")
    if nics is None:
        raise SourceError(reason="The networks of the old server are not known.")
    words = {
        "name": wanted.new_name,
        "flavorRef": _flavor(cloud, str((old["flavor"] or {}).get("original_name"))),
        "networks": [{"uuid": nic["net_id"]} for nic in nics] or "none",
        "metadata": (old["metadata"] or {}) | {MADE: wanted.task_id},
        "config_drive": bool(old["config_drive"]),
        "block_device_mapping_v2": [
            {
                "uuid": made[disk.source_id],
                "source_type": "volume",
                "destination_type": "volume",
                "boot_index": 0 if known["is_boot"] else -1,
                "delete_on_termination": known["delete_on_termination"],
            }
            | ({"tag": known["tag"]} if known["tag"] else {})
            for disk, known in disks
        ],
    }
    groups = [{"name": name} for name in dict.fromkeys(group["name"] for group in old["security_groups"] or ())]
    optional = {
        "security_groups": groups if nics else [],
        "availability_zone": old["OS-EXT-AZ:availability_zone"],
        "description": old["description"],
    }
    return words | {name: value for name, value in optional.items() if value}


def _flavor(cloud: Any, name: str) -> str:
    """The id of a flavor by its name: a server tells no more. Raises SourceError."""
    with errors("the flavors"):
        for found in cloud.compute.flavors(details=False):
            if found.name == name:
                return str(found.id)
    raise SourceError(reason=f"The cloud has no flavor {name} any more.")


def _command(wanted: MachineRestoreWanted, definition: Mapping[str, Any], made: Mapping[str, str]) -> str:
    """What makes the server by hand, with the volumes that are there."""
    boots = {each["id"] for each in definition["disks"] if each["is_boot"]}
    order: Sequence[str] = sorted(made, key=lambda id_: id_ not in boots)
    flavor = (definition["server"]["flavor"] or {}).get("original_name") or "FLAVOR"
    words = ["openstack", "server", "create", "--flavor", str(flavor), "--volume", made[order[0]]]
    for id_ in order[1:]:
        words += ["--block-device", f"uuid={made[id_]},source_type=volume,destination_type=volume"]
    networks = [str(nic["net_id"]) for nic in definition["nics"] or ()] or ["NETWORK"]
    for network in networks:
        words += ["--network", network]
    return shlex.join([*words, str(wanted.new_name)])
