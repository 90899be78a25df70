"""A server of Nova as its project sees it: its disks, what of it is no volume, and what may be done with it.

Raw requests, of one version of the API: what the fields mean is then known. 2.89 (2023.1) tells the attachments of
volumes by the ids that Cinder has for them. https://docs.openstack.org/api-ref/compute/
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from strongroom.base.errors import SourceError, SourceGone
from strongroom.base.units import GIB, MIB
from strongroom.sources.machines.base import Disk, Power
from strongroom.sources.openstack.cloud import checked, errors
from strongroom.sources.openstack.copies import READABLE

MICROVERSION = "2.89"
LOCK = "strongroom.restore"  # begins the reason of a lock of ours; the task follows
_ADDRESS = re.compile(r"nova:([A-Za-z0-9_.-]{1,64})/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(\?local=leave-out)?")
_POWER: Mapping[int, Power] = {1: "running", 3: "paused", 7: "paused"}  # nova/objects/fields.py, else it is off
_NO_DISKS = ("BUILD", "DELETED", "SOFT_DELETED")


class ServerAddress(NamedTuple):
    """nova:CLOUD/SERVER-ID[?local=leave-out]: an entry of clouds.yaml, a server there, and whether it is known that
    disks which are no volumes are not backed up."""

    cloud: str
    server_id: str
    leave_out_local: bool

    @classmethod
    def parse(cls, path: bytes) -> "ServerAddress":
        """Raises SourceError."""
        found = _ADDRESS.fullmatch(path.decode("utf-8", "replace"))
        if found is None:
            raise SourceError(
                reason="A server of an OpenStack is written nova:CLOUD/SERVER-ID, the id as Nova has it, and "
                "?local=leave-out behind it where disks that are no volumes may be left out."
            )
        return cls(found[1], found[2], found[3] is not None)


@dataclass(frozen=True, kw_only=True)
class ServerDisk:
    """An attached volume: as Cinder has it, and as Nova does ("device", "attachment_id", "delete_on_termination")."""

    disk: Disk
    volume: Any
    attached: Mapping[str, Any]

    @property
    def others(self) -> bool:
        """Whether another server has it too."""
        return any(held.get("server_id") != self.attached["serverId"] for held in self.volume.attachments)


@dataclass(frozen=True, kw_only=True)
class Server:
    """facts: what GET servers/{id} says. local: disks on the compute host's own storage, which no API reads."""

    id: str
    facts: Mapping[str, Any]
    disks: tuple[ServerDisk, ...]
    local: tuple[Disk, ...]

    @property
    def status(self) -> str:
        return str(self.facts["status"])

    @property
    def power(self) -> Power:
        return _POWER.get(int(self.facts.get("OS-EXT-STS:power_state") or 0), "off")

    @property
    def task(self) -> str | None:
        """What Nova is doing with it just now."""
        return self.facts.get("OS-EXT-STS:task_state")

    @property
    def lock(self) -> str | None:
        """Why it is locked, "" without a reason; None: it is not."""
        return str(self.facts.get("locked_reason") or "") if self.facts.get("locked") else None

    @property
    def locked_by_us(self) -> bool:
        return (self.lock or "").startswith(LOCK)


def load_server(cloud: Any, server_id: str) -> Server:
    """Raises SourceGone, SourceError. What another project has is not there, whatever the account may see."""
    what = f"server {server_id}"
    facts = call(cloud, "GET", server_id, what=what)["server"]
    with errors(what):
        if facts.get("tenant_id") not in (None, cloud.current_project_id):
            raise SourceGone(reason=f"OpenStack has no {what} that its project sees.")
        held = checked(cloud.compute.get(f"/servers/{server_id}/os-volume_attachments", microversion=MICROVERSION))
        pairs = [(one, cloud.block_storage.get_volume(one["volumeId"])) for one in held["volumeAttachments"]]
    pairs.sort(key=lambda pair: (len(pair[0].get("device") or "~" * 64), pair[0].get("device") or "", pair[1].id))
    boot = _boot_volume(facts, pairs)
    disks = tuple(
        ServerDisk(disk=_disk(number, one, volume, is_boot=volume.id == boot), volume=volume, attached=one)
        for number, (one, volume) in enumerate(pairs)
    )
    return Server(id=server_id, facts=facts, disks=disks, local=local_disks(server_id, facts))


def call(cloud: Any, method: str, path: str, body: object = None, *, what: str) -> dict[str, Any]:
    """One request below `servers/`. Raises SourceError."""
    with errors(what):
        words = {} if body is None else {"json": body}
        return checked(
            cloud.compute.request(f"/servers/{path}".rstrip("/"), method, microversion=MICROVERSION, **words)
        )


def find_nics(cloud: Any, server_id: str) -> list[dict[str, Any]] | None:
    """Networks of a server: `net_id`, `mac_addr`, `fixed_ips`; None when Nova cannot tell them."""
    try:
        found = call(cloud, "GET", f"{server_id}/os-interface", what=f"the networks of server {server_id}")
    except SourceError:
        return None
    wanted = ("net_id", "port_id", "mac_addr", "fixed_ips")
    return [{name: nic.get(name) for name in wanted} for nic in found["interfaceAttachments"]]


def obstacle(server: Server, *, leave_out_local: bool) -> str | None:
    """Why no backup can be made of it; None: one can."""
    if server.status in _NO_DISKS:
        return f"The server is {server.status}: its disks cannot be backed up now."
    lost = [disk for disk in server.local if disk.is_boot]
    if lost and not leave_out_local:
        return (
            "The root disk of the server is on its compute host and no volume, so OpenStack lets nobody read it, and a "
            "backup without it would not bring the server back. Boot the server from a volume; or register it with "
            "?local=leave-out behind its address to back up its volumes alone."
        )
    if not server.disks:
        return "The server has no volumes. What is on its compute host's own disk cannot be read through OpenStack."
    for disk in server.disks:
        if disk.volume.status not in READABLE:
            return f"Disk {disk.disk.name} of the server is {disk.volume.status}: volume {disk.disk.id}."
    return None


def not_covered(server: Server) -> str | None:
    """The sentence on disks that no backup has; None when there are none."""
    if not server.local:
        return None
    names = ", ".join(f"{disk.name} ({disk.size_bytes // GIB or 1} GiB)" for disk in server.local)
    return f"Not in the backup, because they are on the compute host and no volumes: {names}."


def _disk(number: int, attached: Mapping[str, Any], volume: Any, *, is_boot: bool) -> Disk:
    name = str(attached.get("device") or "").rpartition("/")[2] or f"disk{number}"
    size = volume.size * GIB
    return Disk(id=volume.id, name=name, size_bytes=size, is_boot=is_boot, place=f"cinder volume {volume.id}")


def _boot_volume(facts: Mapping[str, Any], pairs: list[tuple[dict[str, Any], Any]]) -> str | None:
    """Nova tells the boot order to nobody, and the root device to administrators: else it is the first that boots."""
    if facts.get("image"):
        return None
    root = facts.get("OS-EXT-SRV-ATTR:root_device_name")
    named = [volume.id for one, volume in pairs if root and one.get("device") == root]
    return next(iter([*named, *(volume.id for _, volume in pairs if volume.is_bootable)]), None)


def local_disks(server_id: str, facts: Mapping[str, Any]) -> tuple[Disk, ...]:
    """Disks that the flavor and the image give beside volumes, on the compute host's storage."""
    flavor = facts.get("flavor") or {}
    sizes = {
        "local-root": int(flavor.get("disk") or 0) * GIB if facts.get("image") else None,
        "local-ephemeral": int(flavor.get("ephemeral") or 0) * GIB or None,
        "local-swap": int(flavor.get("swap") or 0) * MIB or None,
    }
    return tuple(
        Disk(
            id=str(uuid.uuid5(uuid.UUID(server_id), name)),
            name=name,
            size_bytes=size,
            is_boot=name == "local-root",
            place="the compute host",
        )
        for name, size in sizes.items()
        if size is not None
    )
