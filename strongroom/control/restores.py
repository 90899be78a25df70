"""Restores: what a tenant may ask for, and the job side of doing it.

A restore is one task with a source backup and a target resource. One target is restored once at a time, kept by the
index one_restore_per_target; the sentences here only say it better.
"""

import base64
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.clock import Clock
from strongroom.base.errors import BackupNotFound, StrongroomError
from strongroom.control import tasks
from strongroom.control.db import Database
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import ResourceRef, VaultRef, load_resource, lock_vaults, release_resource
from strongroom.control.tasks import Task

HALF_RESTORED = "Half restored: run the restore again."


@dataclass(frozen=True, kw_only=True)
class RestoreJob:
    """One restore to do.

    root            name of the backup's root object
    kind            what its report calls it: "tree" or "block"; None: the report does not say
    resource_id     the resource it was made of, which may be unregistered by now
    same_resource   the target is that resource
    path            only this file or folder, relative bytes; None: everything
    target_path     where `path` goes inside the target; None: to its old place
    force           write although somebody has the target open
    in_place        an attempt wrote into the target itself: its saved state has `in_place` or `done` ranges
    """

    vault: VaultRef
    backup_id: str
    root: str
    kind: str | None
    resource_size_bytes: int
    resource_id: str
    target: ResourceRef
    same_resource: bool
    path: bytes | None
    target_path: bytes | None
    force: bool
    in_place: bool


async def start_restore(database: Database, task: Task) -> RestoreJob:
    """Everything an attempt needs; backup and target show `restoring` from here on. May run again.

    Raises Fenced, VaultNotFound, BackupNotFound (also without a root) and ResourceNotFound (target unregistered)."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vaults = await lock_vaults(conn, task.project_id, task.vault_id, binding=task.target_resource_id)
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "UPDATE backups SET status = 'restoring', updated_at = now() WHERE project_id = %s AND id = %s "
                "AND root IS NOT NULL AND status IN ('available', 'waiting_restore', 'restoring') "
                "RETURNING id AS backup_id, root, report ->> 'kind' AS kind, resource_size_bytes, resource_id",
                [task.project_id, task.backup_id],
            )
            row = await cursor.fetchone()
        if row is None:
            raise BackupNotFound(id=task.backup_id or "(none)")
        target = await load_resource(conn, task.project_id, task.target_resource_id)
        saved = await conn.execute(
            "SELECT state ?| ARRAY['in_place', 'done'] FROM operation_logs WHERE project_id = %s AND id = %s",
            [task.project_id, task.id],
        )
        state = await saved.fetchone()
        await conn.execute(
            "UPDATE vault_resources SET protect_status = 'restoring' WHERE project_id = %s AND resource_id = %s "
            "AND protect_status IN ('available', 'error')",
            [task.project_id, target.id],
        )
    asked = task.parameters
    return RestoreJob(
        vault=vaults[task.vault_id or ""],
        target=target,
        same_resource=target.id == row["resource_id"],
        path=_bytes(asked.get("path_b64")),
        target_path=_bytes(asked.get("target_path_b64")),
        force=bool(asked.get("force", False)),
        in_place=state is not None and bool(state[0]),
        **row,
    )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


async def commit_restore(database: Database, task: Task, outcome: dict[str, Any], clock: Clock) -> None:
    """The target holds what was asked for: backup and target available again, the task a success. Raises Fenced."""
    async with database.transaction() as conn:
        await _lock(conn, task)
        if "path_b64" not in task.parameters:
            # Everything was written, so an earlier half of a restore is mended.
            await conn.execute(
                "UPDATE vault_resources SET status_reason = NULL WHERE project_id = %s AND resource_id = %s "
                "AND protect_status = 'restoring'",
                [task.project_id, task.target_resource_id],
            )
        await _release(conn, task, clock)
        await tasks.finish(conn, task, clock, outcome=outcome)


async def fail_restore(
    database: Database,
    task: Task,
    error: StrongroomError,
    clock: Clock,
    *,
    half_restored: bool = False,
    status: str = "failed",
) -> None:
    """End a restore that cannot be done. half_restored: the target is partly overwritten and stands in error until the
    restore is run again. Raises Fenced."""
    async with database.transaction() as conn:
        await _lock(conn, task)
        if half_restored:
            await conn.execute(
                "UPDATE vault_resources SET status_reason = %s WHERE project_id = %s AND resource_id = %s",
                [HALF_RESTORED, task.project_id, task.target_resource_id],
            )
        await _release(conn, task, clock)
        await tasks.finish(conn, task, clock, status=status, error=error)


async def _lock(conn: AsyncConnection[Any], task: Task) -> None:
    await tasks.still_mine(conn, task)
    await lock_vaults(conn, task.project_id, task.vault_id, binding=task.target_resource_id)


async def _release(conn: AsyncConnection[Any], task: Task, clock: Clock) -> None:
    await conn.execute(
        "UPDATE backups SET status = 'available', updated_at = %s WHERE project_id = %s AND id = %s "
        "AND status IN ('waiting_restore', 'restoring')",
        [clock.now(), task.project_id, task.backup_id],
    )
    await release_resource(conn, task.project_id, task.target_resource_id, "restoring")
    await close_sessions_of(conn, task)
