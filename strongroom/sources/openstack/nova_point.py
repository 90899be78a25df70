"""A point of a Nova server: snapshots of all its volumes, read one after another.

1 look       the server, its volumes, what of it is no volume; refused when it could not come back from the backup
2 snapshots  of all volumes, as close together as the cloud can (together.py); nothing tells the guest
3 read       disk by disk: a volume of its snapshot, attached here; the one before it is taken back first, so the
             project's quota has to have room for the snapshots and one copy
4 commit     or abort: the last copy and the snapshots go. Cinder keeps no list of changes, so nothing has to stay
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from strongroom.base.clock import Clock
from strongroom.base.errors import SourceError
from strongroom.base.streams import BlockStream
from strongroom.sources.base import Detail, SourceRef
from strongroom.sources.machines.base import Consistency, Disk, MachineWanted
from strongroom.sources.openstack.cloud import connect, errors
from strongroom.sources.openstack.copies import READ_WHOLE, Copy, remove_leftovers, why_whole
from strongroom.sources.openstack.servers import (
    Server,
    ServerAddress,
    ServerDisk,
    find_nics,
    load_server,
    not_covered,
    obstacle,
)
from strongroom.sources.openstack.together import Snapshots, remove_group_leftovers
from strongroom.sources.pace import Pace
from strongroom.sources.tokens import Values, dump_token, nanoseconds

NO_FREEZE = "OpenStack gives nobody a way to hold the guest still, so its applications were not asked to."
FACTS = ("name", "description", "flavor", "image", "metadata", "tags", "key_name", "security_groups", "config_drive",
         "OS-EXT-AZ:availability_zone", "OS-EXT-STS:vm_state", "addresses", "created")  # fmt: skip
VOLUME_FACTS = ("name", "description", "volume_type", "availability_zone", "is_bootable", "is_encrypted",
                "volume_image_metadata")  # fmt: skip


class NovaDisk:
    """DiskPoint. The stream is opened when it is asked for, and ends when that of another disk is."""

    def __init__(self, point: "NovaPoint", found: ServerDisk, wanted: MachineWanted) -> None:
        own: Values = {"size": found.disk.size_bytes}
        self.disk = found.disk
        self.volume = found.volume
        self.token = dump_token("cinder", own)
        self.full_reason = why_whole(own, wanted.parent_tokens.get(found.disk.id), full=wanted.full)
        self._point = point

    @property
    def stream(self) -> BlockStream:
        return self._point.stream_of(self)

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {
            "format": "raw",
            "provider": "cinder",
            "size_bytes": self.disk.size_bytes,
            "volume_type": self.volume.volume_type,
            "read_whole": self.full_reason or READ_WHOLE,
        }


class NovaPoint:
    """MachinePoint."""

    consistency: Consistency = "crash_consistent"

    def __init__(self, ref: SourceRef, address: ServerAddress, wanted: MachineWanted, clock: Clock) -> None:
        cloud = connect(address.cloud)
        self._ref, self._check = ref, wanted.check
        self._pace = Pace(ref.options.read_limit_bytes_s)
        with errors(f"cloud {address.cloud}"):
            self._storage = cloud.block_storage
        self._copy: tuple[str, Copy] | None = None
        remove_all_leftovers(self._storage, ref)
        server = load_server(cloud, address.server_id)
        if reason := obstacle(server, leave_out_local=address.leave_out_local):
            raise SourceError(reason=reason)
        chosen = [disk for disk in server.disks if _is_wanted(disk.disk, wanted)]
        if not chosen:
            raise SourceError(reason="No disk of the server is left to be backed up. Look at the included disks.")
        self.left_out: Sequence[Disk] = [
            *(disk.disk for disk in server.disks if not _is_wanted(disk.disk, wanted)),
            *server.local,
        ]
        nics = find_nics(cloud, address.server_id)
        self._snapshots = Snapshots(self._storage, ref, [disk.volume for disk in chosen], wanted.check)
        try:
            self.taken_at_ns = nanoseconds(clock.now())
            stood_still = _stood_still(server, load_server(cloud, address.server_id), chosen)
            reasons = [not_covered(server), None if stood_still else self._snapshots.apart]
            reasons.append(NO_FREEZE if wanted.application else None)
            self.consistency_reason = " ".join(reason for reason in reasons if reason) or None
            self.disks: Sequence[NovaDisk] = [NovaDisk(self, disk, wanted) for disk in chosen]
            self.definition = dump_definition(server, nics)
            self.metadata: Mapping[str, object] = _metadata(server, chosen, nics)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> "NovaPoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    def stream_of(self, disk: NovaDisk) -> BlockStream:
        """Raises SourceError, and what the job's check raises."""
        if self._copy is None or self._copy[0] != disk.disk.id:
            self._close_copy()
            snapshot_id = self._snapshots.of[disk.disk.id]
            copy = Copy(self._storage, self._ref, disk.volume, snapshot_id, self._pace, self._check)
            self._copy = (disk.disk.id, copy)
        return self._copy[1].stream

    def commit(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._close_copy()
        self._snapshots.release()

    def _close_copy(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            copy[1].close()


def remove_all_leftovers(storage: Any, ref: SourceRef) -> None:
    """Copies before the snapshots that they are made of. Raises SourceError."""
    remove_leftovers(storage, ref)
    remove_group_leftovers(storage, ref)


def dump_definition(server: Server, nics: Sequence[Mapping[str, Any]] | None) -> bytes:
    """What a new server is made of. nics: None when Nova cannot tell them."""
    disks = [
        {
            "id": disk.disk.id,
            "device": disk.disk.name,
            "size_bytes": disk.disk.size_bytes,
            "is_boot": disk.disk.is_boot,
            "delete_on_termination": bool(disk.attached.get("delete_on_termination")),
            "tag": disk.attached.get("tag"),
            "volume": {name: getattr(disk.volume, name) for name in VOLUME_FACTS},
        }
        for disk in server.disks
    ]
    facts = {name: server.facts.get(name) for name in FACTS}
    return json.dumps({"server": facts, "id": server.id, "disks": disks, "nics": nics}, default=str).encode()


def load_definition(raw: bytes) -> dict[str, Any]:
    """Raises SourceError for what is not of a Nova server."""
    try:
        found = json.loads(raw)
        if isinstance(found, dict) and {"server", "disks", "nics"} <= found.keys():
            return found
    except ValueError:
        pass
    raise SourceError(
        reason="The restore point does not hold the definition of a server of OpenStack. Restore its disks."
    )


def _metadata(server: Server, chosen: Sequence[ServerDisk], nics: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    facts = server.facts
    return {
        "hypervisor": "nova",
        "name": facts.get("name"),
        "uuid": server.id,
        "power": server.power,
        "status": server.status,
        "flavor": facts.get("flavor"),
        "image": (facts.get("image") or {}).get("id"),
        "nics": nics if nics is not None else facts.get("addresses"),
        "not_covered": not_covered(server),
        "disks": [
            {"device": d.disk.name, "size_bytes": d.disk.size_bytes, "volume_type": d.volume.volume_type}
            for d in chosen
        ],
    }


def _stood_still(before: Server, after: Server, chosen: Sequence[ServerDisk]) -> bool:
    """Whether nobody could write while the snapshots were made: all disks are of one moment then."""
    seen = {(one.status, one.task, one.facts.get("updated")) for one in (before, after)}
    return (
        len(seen) == 1
        and before.status == "SHUTOFF"
        and before.task is None
        and not any(disk.others for disk in chosen)
    )


def _is_wanted(disk: Disk, wanted: MachineWanted) -> bool:
    return (wanted.included is None or disk.id in wanted.included) and disk.id not in wanted.excluded
