"""Checks of a vault: asked for, begun, ended. What a check finds decides whether a backup is reported available.

A backup that is hit becomes `error` and carries what was found; a deep check that finds it whole makes it available
again. The order of a check's end is one transaction: backups, their checkpoints, the task.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock, api_timestamp
from strongroom.base.errors import Conflict, Corrupt
from strongroom.control import checkpoints, tasks
from strongroom.control.db import Database
from strongroom.control.names import require_id
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import VaultRef, lock_vault, lock_vaults
from strongroom.control.tasks import NewTask, Task


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """roots: by domain in the vault (None: its own), the backup of each root that a row names.

    machines  of the disks among these backups: disk's backup -> machine's backup
    """

    vault: VaultRef
    roots: Mapping[str | None, Mapping[str, str]]
    machines: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What a check found wrong with one backup. files: how many it hits; paths: the first of them, as text."""

    reason: str
    files: int = 0
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verified:
    """The result of a check: damage by backup, backups that a deep check of everything found whole, the report."""

    damaged: Mapping[str, Damage] = field(default_factory=dict)
    whole: Collection[str] = ()
    outcome: Mapping[str, Any] = field(default_factory=dict)


# --- request side ---------------------------------------------------------------------------------------------------


async def request_verify(
    database: Database,
    project_id: str,
    vault_id: str,
    *,
    deep: bool,
    sample_percent: float | None,
    request_id: str,
    clock: Clock,
) -> str:
    """Queue a check of the vault; its task's id. Raises VaultNotFound; Conflict when one is open, or it is deleted."""
    require_id(vault_id, "vault id")
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        if vault.status == "deleting":
            raise Conflict(conflict_code="6112", reason=f"Vault {vault.name} is being deleted.")
        found = await conn.execute(
            "SELECT id FROM operation_logs WHERE project_id = %s AND vault_id = %s AND operation_type = 'verify' "
            "AND status IN ('waiting', 'running')",
            [project_id, vault.id],
        )
        row = await found.fetchone()
        if row is not None:
            reason = f"Vault {vault.name} is being verified by task {row[0]}. Wait for it, or cancel it."
            raise Conflict(conflict_code="6112", reason=reason)
        task = NewTask(
            project_id=project_id,
            operation_type="verify",
            request_id=request_id,
            vault_id=vault.id,
            vault_name=vault.name,
            provider_id=vault.provider_id,
            parameters={"deep": deep, "sample_percent": sample_percent},
            listed=False,
        )
        await tasks.insert(conn, [task], clock.now())
    return task.id


# --- job side -------------------------------------------------------------------------------------------------------


async def start_verify(database: Database, task: Task) -> VerifyJob:
    """Which roots should be whole. Raises Fenced, VaultNotFound (deleted meanwhile)."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        await close_sessions_of(conn, task)
        found = await conn.execute(
            "SELECT domain_id, root, id, parent_id FROM backups WHERE project_id = %s AND vault_id = %s "
            "AND root IS NOT NULL AND status IN ('available', 'error', 'waiting_restore', 'restoring')",
            [task.project_id, vault.id],
        )
        roots: dict[str | None, dict[str, str]] = {}
        machines: dict[str, str] = {}
        for domain_id, root, backup_id, parent_id in await found.fetchall():
            roots.setdefault(domain_id, {})[root] = backup_id
            if parent_id is not None:
                machines[backup_id] = parent_id
    return VerifyJob(vault=vault, roots=roots, machines=machines)


async def finish_verify(database: Database, task: Task, result: Verified, clock: Clock) -> None:
    """End a check: the rows of backups it hit, and of those it found whole again, their checkpoints, the task.

    A backup that is being restored keeps its status until that ends; one that is being deleted is not touched.
    The task has failed when a backup is hit. Raises Fenced.
    """
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await lock_vaults(conn, task.project_id, task.vault_id)
        changed: list[str] = []
        for backup_id, damage in result.damaged.items():
            changed += await _mark(conn, task, backup_id, damage, now)
        error = Corrupt(reason=f"{len(changed)} backups of the vault are damaged") if changed else None
        again = await conn.execute(
            "UPDATE backups SET status = CASE WHEN status = 'error' THEN 'available' ELSE status END, damage = NULL, "
            "updated_at = %s WHERE project_id = %s AND vault_id = %s AND damage IS NOT NULL AND id = ANY(%s) "
            "RETURNING checkpoint_id",
            [now, task.project_id, task.vault_id, list(result.whole)],
        )
        changed += [row[0] for row in await again.fetchall()]
        await checkpoints.settle(conn, task.project_id, changed, now)
        await close_sessions_of(conn, task)
        await tasks.finish(
            conn, task, clock, status="failed" if error else "success", error=error, outcome=dict(result.outcome)
        )


async def _mark(conn: AsyncConnection[Any], task: Task, backup_id: str, damage: Damage, now: datetime) -> list[str]:
    """The checkpoint of a backup that was marked, unless it is being deleted, or is one disk of a machine's backup."""
    values = {
        "reason": damage.reason,
        "files": damage.files,
        "paths": list(damage.paths),
        "task": task.id,
        "found_at": api_timestamp(now),
    }
    found = await conn.execute(
        "UPDATE backups SET status = CASE WHEN status = 'available' THEN 'error' ELSE status END, damage = %s, "
        "updated_at = %s WHERE project_id = %s AND vault_id = %s AND id = %s "  # one that moved away was not lost
        "AND status IN ('available', 'error', 'waiting_restore', 'restoring') RETURNING checkpoint_id, parent_id",
        [Jsonb(values), now, task.project_id, task.vault_id, backup_id],
    )
    return [checkpoint_id for checkpoint_id, parent_id in await found.fetchall() if parent_id is None]
