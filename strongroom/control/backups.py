"""Backups: what tenants see and change of them, and the job side of making one.

The job side changes rows only under `tasks.still_mine` and the vault's lock; an attempt whose lease ran out raises
Fenced and leaves everything as it was. A root makes a backup restorable, `commit_backup` makes it reported (RULINGS 7).
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import BackupNotFound, Conflict, ResourceNotFound, StrongroomError
from strongroom.control import checkpoints, tasks
from strongroom.control.db import Database
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import ResourceRef as ResourceRef
from strongroom.control.subjects import VaultRef as VaultRef
from strongroom.control.subjects import load_resource, load_vault, lock_vault, release_resource
from strongroom.control.tasks import Task


@dataclass(frozen=True, kw_only=True)
class ParentRef:
    """The backup a new one is compared with: name of its root object, and the token of its source's point."""

    backup_id: str
    root: str
    point_token: bytes | None


@dataclass(frozen=True, kw_only=True)
class BackupJob:
    """One backup to make.

    incremental  False: trust no parent, read and hash everything
    parent       newest restorable backup of this resource in this vault; None: there is none
    expired_at   None: kept until deleted
    """

    vault: VaultRef
    resource: ResourceRef
    backup_id: str
    backup_name: str
    checkpoint_id: str
    incremental: bool
    auto_trigger: bool
    created_at: datetime
    expired_at: datetime | None
    parent: ParentRef | None


@dataclass(frozen=True, kw_only=True)
class CommittedBackup:
    """What a finished backup reports.

    root          name of its root object, durable in the store
    stored_bytes  sealed bytes this backup added
    used_bytes    live sealed bytes of the whole vault when measured; None: grown by stored_bytes
    point_token   the source's token for the next run
    report        JSON: bytes read and new, entries, changed while read, skipped, full_reason, ...
    """

    root: str
    resource_size_bytes: int
    stored_bytes: int
    used_bytes: int | None = None
    point_token: bytes | None = None
    report: dict[str, Any] = field(default_factory=dict)


async def start_backup(database: Database, task: Task) -> BackupJob:
    """Everything an attempt needs; backup and resource show `protecting` from here on. May run again.

    Raises Fenced, VaultNotFound, BackupNotFound, ResourceNotFound (unbound or unregistered since the request),
    Conflict 6113 (vault status) and 6114 (vault full).
    """
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        if vault.status != "available":
            raise Conflict(
                conflict_code="6113",
                reason=f"Vault {vault.name} is {vault.status}; backups run only in an available vault.",
            )
        if vault.full:
            raise Conflict(conflict_code="6114", reason=vault_full_sentence(vault))
        resource = await load_resource(conn, task.project_id, task.resource_id)
        bound = await conn.execute(
            "UPDATE vault_resources SET protect_status = 'protecting' "
            "WHERE project_id = %s AND vault_id = %s AND resource_id = %s",
            [task.project_id, vault.id, resource.id],
        )
        if bound.rowcount != 1:
            raise ResourceNotFound(id=resource.id, detail="no longer bound to the vault")
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "UPDATE backups SET status = 'protecting', updated_at = now() WHERE project_id = %s AND id = %s "
                "AND status IN ('waiting_protect', 'protecting') "
                "RETURNING name, checkpoint_id, incremental, auto_trigger, created_at, expired_at",
                [task.project_id, task.backup_id],
            )
            row = await cursor.fetchone()
        if row is None or task.backup_id is None:
            raise BackupNotFound(id=task.backup_id or "(none)")
        parent = await _find_parent(conn, task.project_id, vault.id, resource.id)
    return BackupJob(
        vault=vault, resource=resource, backup_id=task.backup_id, backup_name=row.pop("name"), parent=parent, **row
    )


def vault_full_sentence(vault: VaultRef) -> str:
    """The text of 6114."""
    return f"Vault {vault.name} is full. Enlarge it, or delete backups, then back up again."


async def _find_parent(
    conn: AsyncConnection[Any], project_id: str, vault_id: str, resource_id: str
) -> ParentRef | None:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id AS backup_id, root, point_token FROM backups "
            "WHERE project_id = %s AND vault_id = %s AND resource_id = %s AND root IS NOT NULL "
            "AND status IN ('available', 'waiting_restore', 'restoring') ORDER BY created_at DESC, id DESC LIMIT 1",
            [project_id, vault_id, resource_id],
        )
        row = await cursor.fetchone()
    return None if row is None else ParentRef(**row)


async def vault_room(database: Database, task: Task) -> tuple[int, int]:
    """(used bytes, size bytes; 0: no limit) of the task's vault, where a running backup stops. Raises VaultNotFound."""
    async with database.read() as conn:
        vault = await load_vault(conn, task.project_id, task.vault_id)
    return vault.used_bytes, vault.size_bytes


async def commit_backup(database: Database, task: Task, committed: CommittedBackup, clock: Clock) -> None:
    """Report a backup whose root is durable: its row, the vault's usage, the checkpoint, the resource and the task end
    in one transaction. A second call raises Fenced. Raises BackupNotFound when the row is not waiting for this."""
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        done = await conn.execute(
            "UPDATE backups SET status = 'available', root = %s, resource_size_bytes = %s, stored_bytes = %s, "
            "report = %s, point_token = %s, protected_at = %s, updated_at = %s "
            "WHERE project_id = %s AND id = %s AND status IN ('waiting_protect', 'protecting')",
            [
                committed.root,
                committed.resource_size_bytes,
                committed.stored_bytes,
                Jsonb(committed.report),
                committed.point_token,
                now,
                now,
                task.project_id,
                task.backup_id,
            ],
        )
        if done.rowcount != 1:
            raise BackupNotFound(id=task.backup_id or "(none)")
        used = vault.used_bytes + committed.stored_bytes if committed.used_bytes is None else committed.used_bytes
        await conn.execute(
            "UPDATE vaults SET used_bytes = %s WHERE project_id = %s AND id = %s", [used, task.project_id, vault.id]
        )
        await _note_size(conn, task, committed.resource_size_bytes)
        await release_resource(conn, task.project_id, task.resource_id, "protecting")
        await checkpoints.settle(conn, task.project_id, [task.checkpoint_id], now)
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, outcome={"stored_bytes": committed.stored_bytes})


async def _note_size(conn: AsyncConnection[Any], task: Task, size_bytes: int) -> None:
    """The run knows the resource's size better than the last inspection."""
    values = [size_bytes, task.project_id, task.resource_id]
    await conn.execute("UPDATE protectables SET size_bytes = %s WHERE project_id = %s AND id = %s", values)
    await conn.execute("UPDATE vault_resources SET size_bytes = %s WHERE project_id = %s AND resource_id = %s", values)
    await conn.execute(
        "UPDATE checkpoint_resources SET size_bytes = %s WHERE project_id = %s AND resource_id = %s "
        "AND checkpoint_id = %s",
        [*values, task.checkpoint_id],
    )


async def fail_backup(
    database: Database, task: Task, error: StrongroomError, clock: Clock, *, status: str = "failed"
) -> None:
    """End a backup that cannot be made: row `error`, the resource skipped in its checkpoint with code and reason
    (RULINGS 18) and free again, the task ended with `status` (failed, skipped or timeout). Raises Fenced."""
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await conn.execute(
            "SELECT 1 FROM vaults WHERE project_id = %s AND id = %s FOR UPDATE", [task.project_id, task.vault_id]
        )
        await conn.execute(
            "UPDATE backups SET status = 'error', updated_at = %s WHERE project_id = %s AND id = %s "
            "AND status IN ('waiting_protect', 'protecting')",
            [now, task.project_id, task.backup_id],
        )
        await conn.execute(
            "UPDATE checkpoint_resources SET skipped_code = %s, skipped_reason = %s "
            "WHERE project_id = %s AND checkpoint_id = %s AND resource_id = %s",
            [error.published_code, error.message, task.project_id, task.checkpoint_id, task.resource_id],
        )
        await release_resource(conn, task.project_id, task.resource_id, "protecting")
        await checkpoints.settle(conn, task.project_id, [task.checkpoint_id], now)
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, status=status, error=error)
