"""Replicas as the destination makes them: the rows of the job that fetches one.

The job side changes rows only under `tasks.still_mine` and the vault's lock, as that of a backup.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import BackupNotFound, Canceled, Conflict, StrongroomError
from strongroom.control import checkpoints, deletions, quotas, tasks
from strongroom.control.capacity import set_used
from strongroom.control.db import Database
from strongroom.control.machines import ReplicaDisk, insert_replica_disks
from strongroom.control.replica_offers import sent_retention
from strongroom.control.replication_records import ReplicationRecord, record_of_task
from strongroom.control.retention import FAILED_DAYS_MAX, Point, verdicts
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import VaultRef, lock_vault, lock_vaults
from strongroom.control.tasks import Task
from strongroom.control.vault_roots import foreign_roots, own_roots


@dataclass(frozen=True, kw_only=True)
class ReplicaJob:
    """One replica to fetch."""

    vault: VaultRef
    record: ReplicationRecord
    backup_id: str
    backup_name: str
    checkpoint_id: str
    created_at: datetime
    auto_trigger: bool
    expired_at: datetime | None
    promised_until: datetime | None


@dataclass(frozen=True, kw_only=True)
class CommittedReplica:
    """What was fetched. used_bytes: live sealed bytes of the vault when measured; None: grown by stored_bytes.

    disks  of a machine
    """

    root: str
    domain_id: str
    size_bytes: int
    stored_bytes: int
    used_bytes: int | None
    point_token: bytes | None
    report: Mapping[str, Any]
    disks: tuple[ReplicaDisk, ...] = ()


async def start_replica(database: Database, task: Task) -> ReplicaJob:
    """Everything an attempt needs; the backup shows `protecting` from here on. May run again.

    Raises Fenced, Canceled, VaultNotFound, BackupNotFound; Conflict 6118 (vault status), 6129 (vault full).
    """
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        record = await record_of_task(conn, task.project_id, task.id, "destination")
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "UPDATE backups SET status = 'protecting', updated_at = now() WHERE project_id = %s AND id = %s "
                "AND status IN ('waiting_protect', 'protecting') RETURNING id AS backup_id, name AS backup_name, "
                "checkpoint_id, created_at, auto_trigger, expired_at, promised_until, "
                "(SELECT o.cancel_requested FROM operation_logs o WHERE o.id = %s "
                "AND o.project_id = backups.project_id) AS canceled",
                [task.project_id, task.backup_id, task.id],
            )
            row = await cursor.fetchone()
        if record is None or row is None:
            raise BackupNotFound(id=task.backup_id or "(none)")
        if row.pop("canceled"):
            raise Canceled
        if vault.status != "available":
            raise Conflict(
                conflict_code="6118", reason=f"Vault {vault.name} is {vault.status}; it takes no replicas now."
            )
        if vault.full:
            raise Conflict(conflict_code="6129", reason=f"Vault {vault.name} is full. Enlarge it.")
        await conn.execute(
            "UPDATE replication_records SET status = 'replicating' WHERE project_id = %s AND task_id = %s "
            "AND side = 'destination'",
            [task.project_id, task.id],
        )
    return ReplicaJob(vault=vault, record=record, **row)


async def commit_replica(database: Database, task: Task, committed: CommittedReplica, clock: Clock) -> None:
    """Report a replica whose root is durable here: its row, the vault's usage, the restore point, the record and the
    task end in one transaction. A second call raises Fenced."""
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        done = await conn.execute(
            "UPDATE backups SET status = 'available', root = %s, domain_id = %s, resource_size_bytes = %s, "
            "stored_bytes = %s, report = %s, point_token = %s, updated_at = %s "
            "WHERE project_id = %s AND id = %s AND status IN ('waiting_protect', 'protecting')",
            [
                *(committed.root, committed.domain_id, committed.size_bytes, committed.stored_bytes),
                *(Jsonb(dict(committed.report)), committed.point_token, now, task.project_id, task.backup_id),
            ],
        )
        if done.rowcount != 1:
            raise BackupNotFound(id=task.backup_id or "(none)")
        await insert_replica_disks(conn, task.project_id, task.backup_id, committed.disks, now)
        used = vault.used_bytes + committed.stored_bytes if committed.used_bytes is None else committed.used_bytes
        await set_used(conn, vault, used)
        await quotas.require_bytes(conn, task.project_id)
        await _end_record(conn, task, "success", now)
        if not vault.locked:  # a locked vault keeps what it has, whatever rules a region sends
            await _apply_retention(conn, task, now)
        await checkpoints.settle(conn, task.project_id, [task.checkpoint_id], now)
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, outcome={"stored_bytes": committed.stored_bytes})


async def fail_replica(database: Database, task: Task, error: StrongroomError, clock: Clock) -> None:
    """End a replica that cannot be made: its row is `error` and goes after a month, and a prune frees what came of it.
    Works without the vault's row. Raises Fenced."""
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = (await lock_vaults(conn, task.project_id, task.vault_id)).get(task.vault_id or "")
        await conn.execute(
            "UPDATE backups SET status = 'error', updated_at = %s, expired_at = least(expired_at, %s), "
            "promised_until = NULL WHERE project_id = %s AND id = %s AND status IN ('waiting_protect', 'protecting')",
            [now, now + timedelta(days=FAILED_DAYS_MAX), task.project_id, task.backup_id],
        )
        await _end_record(conn, task, "fail", now, error)
        await checkpoints.settle(conn, task.project_id, [task.checkpoint_id], now)
        await close_sessions_of(conn, task)
        if vault is not None and vault.status != "deleting":
            await deletions.queue_prune(conn, vault, request_id=task.request_id, clock=clock)
        await tasks.finish(conn, task, clock, status="failed", error=error)


async def _end_record(
    conn: AsyncConnection[Any], task: Task, status: str, now: datetime, error: StrongroomError | None = None
) -> None:
    await conn.execute(
        "UPDATE replication_records SET status = %s, progress = CASE WHEN %s = 'success' THEN 100 ELSE progress END, "
        "fail_code = %s, fail_reason = %s, ended_at = %s, wrapped = NULL WHERE project_id = %s AND task_id = %s "
        "AND side = 'destination'",
        [
            *(status, status, error.published_code if error else "", error.message if error else "", now),
            *(task.project_id, task.id),
        ],
    )


async def _apply_retention(conn: AsyncConnection[Any], task: Task, now: datetime) -> None:
    """What the policy that sent this replica keeps no longer is over now: expiry deletes it (control/expiry.py)."""
    record = await record_of_task(conn, task.project_id, task.id, "destination")
    if record is None or not record.auto_trigger:
        return
    rules = sent_retention(record.details["retention"])
    if not rules.counting:
        return
    found = await conn.execute(
        "SELECT b.id, r.source_created_at, b.expired_at FROM backups b JOIN replication_records r "
        "ON r.project_id = b.project_id AND r.backup_id = b.id AND r.side = 'destination' WHERE b.project_id = %s "
        "AND b.vault_id = %s AND b.resource_id = %s AND b.auto_trigger AND b.image_type = 'replication' "
        "AND r.source_region = %s AND b.status IN ('available', 'restoring', 'waiting_restore') AND b.root IS NOT NULL",
        [task.project_id, task.vault_id, task.resource_id, record.source_region],
    )
    points = [
        Point(id=id_, created_at=created_at, expires_at=expires_at, automatic=True, restorable=True)
        for id_, created_at, expires_at in await found.fetchall()
    ]
    over = [verdict.point.id for verdict in verdicts(points, rules, now) if not verdict.keep]
    await conn.execute(
        "UPDATE backups SET expired_at = least(expired_at, %s) WHERE project_id = %s AND id = ANY(%s)",
        [now, task.project_id, over],
    )


async def roots_by_domain(database: Database, vault: VaultRef) -> dict[str | None, frozenset[str]]:
    """Roots that count, by the domain they lie in; None: the vault's own."""
    async with database.read(dict_row) as conn:
        found = await conn.execute(
            "SELECT root, domain_id FROM backups WHERE project_id = %s AND vault_id = %s AND root IS NOT NULL "
            "AND status NOT IN ('deleting', 'waiting_delete')",
            [vault.project_id, vault.id],
        )
        rows = await found.fetchall()
    kept: dict[str | None, frozenset[str]] = dict(foreign_roots(rows).items())
    if own := own_roots(rows):
        kept[None] = own
    return kept
