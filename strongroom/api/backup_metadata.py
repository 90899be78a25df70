"""What a backup was made of, as JSON inside of texts: the published shape is of a machine, of which disks are a part.

A backup of a disk or a folder has no server, flavor or network; what it has of its source is told all the same.
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
DISK = "OS::Cinder::Volume"


async def show_metadata(call: Call) -> dict[str, Any]:
    """Raises BackupNotFound, Conflict 6206 for one that is not made, or on its way out."""
    backup = await backups.show_backup(call.services.database, call.project_id, call.path["backup_id"])
    if backup.status not in READABLE:
        reason = f"The backup is {backup.status}; only an available backup has metadata to read."
        raise Conflict(conflict_code="6206", reason=reason)
    return {
        "backup_id": backup.id,
        "backups": _text(wire_backup(backup)),
        "server": None,
        "flavor": None,
        "interface": None,
        "workspace": None,
        "ports": [],
        "floatingips": [],
        "volumes": [_text(_volume(backup))] if backup.resource_type == DISK else [],
    }


def _volume(backup: Backup) -> dict[str, Any]:
    """size: GB, as the block storage API has it."""
    return {
        "id": backup.resource_id,
        "name": backup.resource_name,
        "size": gigabytes(backup.resource_size_bytes),
    }


def _text(value: dict[str, Any]) -> str:
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
