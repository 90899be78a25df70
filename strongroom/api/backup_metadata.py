"""What a backup was made of, as JSON inside of texts: the published shape is of a machine, of which disks are a part.

Of a server it has what the hypervisor said when it was made. A backup of a disk or a folder has no server, flavor or
network; what it has of its source is told all the same.
"""

from typing import Any

import msgspec

from strongroom.api.backups import wire_backup
from strongroom.api.operation import Call, Operation
from strongroom.base.errors import Conflict
from strongroom.base.units import gigabytes
from strongroom.control import backups
from strongroom.control.backups import Backup

READABLE = frozenset({"available", "waiting_restore", "restoring"})
DISK, SERVER = "OS::Cinder::Volume", "OS::Nova::Server"


async def show_metadata(call: Call) -> dict[str, Any]:
    """Raises BackupNotFound, Conflict 6206 for one that is not made, or on its way out."""
    backup = await backups.show_backup(call.services.database, call.project_id, call.path["backup_id"])
    if backup.status not in READABLE:
        reason = f"The backup is {backup.status}; only an available backup has metadata to read."
        raise Conflict(conflict_code="6206", reason=reason)
    children = await backups.list_children(call.services.database, call.project_id, [backup])
    disks = [backup] if backup.resource_type == DISK else children.get(backup.id, [])
    machine: dict[str, Any] = backup.report.get("machine") or {}
    nics = machine.get("nics")
    nics = nics if isinstance(nics, list) else []
    is_server = backup.resource_type == SERVER
    return {
        "backup_id": backup.id,
        "backups": _text(wire_backup(backup, children=children.get(backup.id, ()))),
        "server": _text(_server(backup, machine)) if is_server else None,
        "flavor": _text(machine["flavor"]) if "flavor" in machine else None,
        "interface": _text({"interfaceAttachments": nics}) if is_server else None,
        "workspace": None,
        "ports": [_text(nic) for nic in nics],
        "floatingips": [],
        "volumes": [_text(_volume(disk)) for disk in disks],
    }


def _server(backup: Backup, machine: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in machine.items() if name not in ("nics", "flavor", "disks")}
    return told | {"id": backup.resource_id, "name": backup.resource_name}


def _volume(backup: Backup) -> dict[str, Any]:
    """size: GB, as the block storage API has it."""
    return {
        "id": backup.resource_id,
        "name": backup.resource_name,
        "size": gigabytes(backup.resource_size_bytes),
    }


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="show_metadata",
        method="GET",
        path="/v3/{project_id}/backups/{backup_id}/metadata",
        action="cbr:backups:getMetadata",
        handler=show_metadata,
    ),
)
