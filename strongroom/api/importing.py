"""Restore points of the store that get rows: of a whole vault, or single backups by name (control/importing.py)."""

from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.control import importing
from strongroom.control.importing import ImportEntry


class SyncPart(msgspec.Struct):
    """auto_trigger: whether a schedule asks; it is kept with the task."""

    vault_id: str
    auto_trigger: bool


class SyncBody(msgspec.Struct):
    sync: SyncPart


class BackupPart(msgspec.Struct):
    """resource_name and created_at: the restore point says both of itself, and is believed."""

    backup_id: str
    backup_name: str
    bucket_name: str
    image_path: str
    resource_id: str
    resource_name: str
    resource_type: str
    created_at: int


class BackupSyncBody(msgspec.Struct):
    sync: list[BackupPart]


async def import_checkpoint(call: Call) -> dict[str, Any]:
    asked: SyncPart = call.body.sync
    task_id = await importing.request_sync(
        call.services.database,
        call.project_id,
        asked.vault_id,
        auto_trigger=asked.auto_trigger,
        request_id=call.request_id,
        clock=call.services.clock,
    )
    return {"sync": {"vault_id": asked.vault_id, "operation_log_id": task_id}}


async def import_backup(call: Call) -> dict[str, Any]:
    asked: list[BackupPart] = call.body.sync
    entries = [
        ImportEntry(
            backup_id=part.backup_id,
            backup_name=part.backup_name,
            bucket_name=part.bucket_name,
            image_path=part.image_path,
            resource_id=part.resource_id,
            resource_type=part.resource_type,
        )
        for part in asked
    ]
    ids = await importing.request_imports(
        call.services.database, call.project_id, entries, request_id=call.request_id, clock=call.services.clock
    )
    return {
        "sync": [
            {"backup_id": entry.backup_id, "operation_log_id": task_id}
            for entry, task_id in zip(entries, ids, strict=True)
        ]
    }


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="import_checkpoint",
        method="POST",
        path="/v3/{project_id}/checkpoints/sync",
        action="cbr:vaults:sync",
        handler=import_checkpoint,
        body=SyncBody,
    ),
    Operation(
        name="import_backup",
        method="POST",
        path="/v3/{project_id}/backups/sync",
        action="cbr:backups:sync",
        handler=import_backup,
        body=BackupSyncBody,
    ),
)
