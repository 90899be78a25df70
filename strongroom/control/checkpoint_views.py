"""What tenants read of a checkpoint (restore point): one statement, whatever it holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from strongroom.base.errors import CheckpointNotFound
from strongroom.control.db import Database

# What a resource's protect_status says in a checkpoint, from the status of its backup there.
PROTECT_STATUS = {
    "waiting_protect": "protecting",
    "protecting": "protecting",
    "available": "available",
    "waiting_restore": "restoring",
    "restoring": "restoring",
    "waiting_delete": "removing",
    "deleting": "removing",
    "error": "error",
}

# One row a resource, in the order of the request, each with the checkpoint's columns in front; one row with nothing
# behind them when it has none. The count is of what RULINGS 18 calls restorable, as vault_resources.COUNTED_STATUSES.
POINT: LiteralString = """
    SELECT c.id, c.project_id, c.status, c.created_at, c.vault_id, c.vault_name, c.provider_id, c.name, c.description,
           c.retention_days, r.resource_id, r.type, r.name, r.size_bytes, r.extra_info, r.skipped_code,
           r.skipped_reason, b.status, b.stored_bytes,
           CASE WHEN b.status IS NOT NULL THEN (
               SELECT count(*) FROM backups n WHERE n.project_id = c.project_id AND n.vault_id = c.vault_id
               AND n.resource_id = r.resource_id AND n.status IN ('available', 'restoring', 'waiting_restore')) END
    FROM checkpoints c
    LEFT JOIN checkpoint_resources r ON r.project_id = c.project_id AND r.checkpoint_id = c.id
    LEFT JOIN backups b ON b.project_id = c.project_id AND b.checkpoint_id = c.id AND b.resource_id = r.resource_id
    WHERE c.project_id = %s AND c.id = %s ORDER BY r.position
"""


@dataclass(frozen=True, kw_only=True)
class CheckpointResource:
    """A resource with a backup in this checkpoint. stored_bytes: of that backup; backup_count: in the whole vault."""

    id: str
    type: str
    name: str
    size_bytes: int
    extra_info: str | None
    protect_status: str
    stored_bytes: int
    backup_count: int


@dataclass(frozen=True, kw_only=True)
class SkippedResource:
    """A resource that was busy at the start or failed in the run. code: `BackupService.nnnn`."""

    id: str
    type: str
    name: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One restore point, resources in the order of the request."""

    id: str
    project_id: str
    status: str
    created_at: datetime
    vault_id: str
    vault_name: str
    provider_id: str
    name: str
    description: str | None
    retention_days: int
    resources: tuple[CheckpointResource, ...] = ()
    skipped_resources: tuple[SkippedResource, ...] = ()


async def show_checkpoint(database: Database, project_id: str, checkpoint_id: str) -> Checkpoint:
    """Raises CheckpointNotFound, also after its last backup was deleted."""
    return checkpoint_of(await database.fetch(POINT, [project_id, checkpoint_id]), checkpoint_id)


def checkpoint_of(rows: Sequence[tuple[Any, ...]], checkpoint_id: str) -> Checkpoint:
    """From rows of POINT. A backup that was deleted leaves its resource without one: neither listed nor skipped.
    Raises CheckpointNotFound."""
    if not rows:
        raise CheckpointNotFound(id=checkpoint_id)
    resources, skipped = [], []
    for _, _, _, _, _, _, _, _, _, _, id_, type_, name, size, extra, code, reason, status, stored, count in rows:
        if code is not None:
            skipped.append(SkippedResource(id=id_, type=type_, name=name, code=code, reason=reason))
        elif status is not None:
            resources.append(
                CheckpointResource(
                    id=id_,
                    type=type_,
                    name=name,
                    size_bytes=size,
                    extra_info=extra,
                    protect_status=PROTECT_STATUS[status],
                    stored_bytes=stored,
                    backup_count=count,
                )
            )
    id_, project_id, status, created_at, vault_id, vault_name, provider_id, name, description, days = rows[0][:10]
    return Checkpoint(
        id=id_,
        project_id=project_id,
        status=status,
        created_at=created_at,
        vault_id=vault_id,
        vault_name=vault_name,
        provider_id=provider_id,
        name=name,
        description=description,
        retention_days=days,
        resources=tuple(resources),
        skipped_resources=tuple(skipped),
    )
