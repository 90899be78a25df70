"""Replication as the source sees it: what may be copied to another region, and how far it is there.

The destination does the work and this side looks on: a task here waits, asks, and waits again, so that neither side's
death loses anything. While it is open its session keeps what the destination reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import BackupNotFound, Canceled, Conflict, StrongroomError
from strongroom.base.ids import new_id
from strongroom.control import tasks
from strongroom.control.db import Database
from strongroom.control.replication_records import OPEN, ReplicationRecord, insert_records, record_of_task
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import VaultRef, lock_vault
from strongroom.control.tasks import NewTask, Task
from strongroom.control.vault_kinds import RESOURCE_KINDS, VAULT_KINDS

BACKUPS_AT_ONCE_MAX = 1000  # of one call or run; the next one takes the next ones


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where replicas go: `region` as this server's own settings name it. Checked there by whoever names it."""

    region: str
    project_id: str
    vault_id: str


@dataclass(frozen=True, kw_only=True)
class NewReplication:
    """What is asked for. name, description: of the replica; None: as the backup's.

    retention  rules that replicas of a policy are kept by, in the words of `operation_definition`
    """

    destination: Destination
    source_region: str
    name: str | None = None
    description: str | None = None
    auto_trigger: bool = False
    policy_id: str | None = None
    retention: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A replica that is on its way."""

    backup_id: str
    record_id: str


@dataclass(frozen=True, kw_only=True)
class ReplicationJob:
    """What a task offers to the destination. domain_id: where the root is, in hex; None: the vault's own domain.

    disks  roots of a machine's disks
    """

    vault: VaultRef
    record: ReplicationRecord
    root: str
    disks: tuple[str, ...]
    domain_id: str | None
    backup: Mapping[str, Any]
    is_pinned: bool


# --- request side ---------------------------------------------------------------------------------------------------


async def replicate_backup(
    database: Database, project_id: str, backup_id: str, new: NewReplication, *, request_id: str, clock: Clock
) -> tuple[Begun, str]:
    """Begin to copy one backup to another region. Returns what began, and the vault's provider.

    Raises BackupNotFound; Conflict: 6122 (kind of resource), 6128 (a replica itself), 6216 (status), 6130 (on its way
    already), 6118 (there already), 6112 (vault status), 6134 (its resource leaves the vault).
    """
    async with database.transaction() as conn:
        found = await conn.execute(
            "SELECT vault_id FROM backups WHERE project_id = %s AND id = %s", [project_id, backup_id]
        )
        row = await found.fetchone()
        if row is None:
            raise BackupNotFound(id=backup_id)
        vault = await lock_vault(conn, project_id, row[0])
        rows = await _select(conn, vault, "AND b.id = %(backup)s", {"backup": backup_id})
        if not rows:
            raise BackupNotFound(id=backup_id)
        require_replicable_backup(rows[0])
        _require_ready(vault)
        if rows[0]["leaving"]:
            raise Conflict(
                conflict_code="6134",
                reason=f"Resource {rows[0]['resource_name']} is leaving the vault, and its backups with it. Try again "
                "when that has ended.",
            )
        await _refuse_second(conn, vault, backup_id, new.destination)
        begun = await _begin(conn, vault, rows, new, request_id, clock.now())
        return begun[0], vault.provider_id


async def replicate_vault(
    database: Database, project_id: str, vault_id: str, new: NewReplication, *, request_id: str, clock: Clock
) -> tuple[list[Begun], str]:
    """Begin to copy every backup of a vault that is not in that region, nor on its way. As above.

    Raises VaultNotFound; Conflict: 6128 (kind of vault), 6112 (its status), 0001 (nothing to copy).
    """
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        await require_replicable_vault(conn, vault)
        _require_ready(vault)
        begun = await begin_missing(conn, vault, new, request_id=request_id, now=clock.now())
        if not begun:
            raise Conflict(
                conflict_code="0001",
                reason=f"Vault {vault.name} has no available backup that is not in region {new.destination.region}.",
            )
        return begun, vault.provider_id


async def begin_missing(
    conn: AsyncConnection[Any], vault: VaultRef, new: NewReplication, *, request_id: str, now: datetime
) -> list[Begun]:
    """Begin to copy what the region lacks, oldest first, in a transaction that holds the vault's lock."""
    rows = await _select(
        conn,
        vault,
        "AND b.parent_id IS NULL AND b.status = 'available' AND b.image_type = 'backup' "
        "AND NOT EXISTS (SELECT 1 FROM replication_records r "
        "WHERE r.project_id = b.project_id AND r.backup_id = b.id AND r.side = 'source' "
        "AND r.destination_region = %(region)s AND r.status <> 'fail')",
        {"region": new.destination.region},
    )
    rows = [row for row in rows if not row["leaving"]]
    return await _begin(conn, vault, rows, new, request_id, now) if rows else []


async def forget_replica(database: Database, project_id: str, record_id: str) -> None:
    """The replica is gone over there: its record goes too, so that there may be another one."""
    async with database.transaction() as conn:
        await conn.execute(
            "DELETE FROM replication_records WHERE project_id = %s AND id = %s AND side = 'source' "
            "AND status = 'success'",
            [project_id, record_id],
        )


async def require_replicable_vault(conn: AsyncConnection[Any], vault: VaultRef) -> str:
    """The vault's object type. Raises Conflict 6128."""
    found = await conn.execute(
        "SELECT object_type FROM vaults WHERE project_id = %s AND id = %s", [vault.project_id, vault.id]
    )
    row = await found.fetchone()
    assert row is not None, "the caller holds the vault's lock"
    if vault.protect_type != "backup" or not VAULT_KINDS[row[0]].replicable:
        raise Conflict(
            conflict_code="6128",
            reason=f"Vault {vault.name} is a {vault.protect_type} vault of type {row[0]}. Replicas are made of backup "
            "vaults of type server and turbo.",
        )
    return str(row[0])


async def find_object_type(database: Database, project_id: str, vault_id: str) -> str:
    """What a vault holds. Raises VaultNotFound, and Conflict 6128 when it is not replicable."""
    async with database.transaction() as conn:
        return await require_replicable_vault(conn, await lock_vault(conn, project_id, vault_id))


def require_replicable_backup(row: Mapping[str, Any]) -> None:
    """Raises Conflict: 6128 for a replica, 6122 for a kind that has none, 6216 for one that is busy or no good."""
    if row["image_type"] != "backup":
        raise Conflict(conflict_code="6128", reason="The backup is a replica itself, and replicas are not copied on.")
    if not any(k.replicable and row["resource_type"] in k.resource_types for k in VAULT_KINDS.values()):
        named = row["resource_type"] if row["resource_type"] in RESOURCE_KINDS else "this type"
        raise Conflict(
            conflict_code="6122", reason=f"Backups of {named} have no replicas; those of servers and shares do."
        )
    if row["status"] != "available":
        raise Conflict(
            conflict_code="6216", reason=f"The backup is {row['status']}; only an available one can be copied."
        )


def _require_ready(vault: VaultRef) -> None:
    if vault.status not in ("available", "lock"):
        raise Conflict(conflict_code="6112", reason=f"Vault {vault.name} is {vault.status}; nothing is copied from it.")


async def _refuse_second(conn: AsyncConnection[Any], vault: VaultRef, backup_id: str, destination: Destination) -> None:
    found = await conn.execute(
        "SELECT status FROM replication_records WHERE project_id = %s AND backup_id = %s AND side = 'source' "
        "AND destination_region = %s AND status <> 'fail'",
        [vault.project_id, backup_id, destination.region],
    )
    row = await found.fetchone()
    if row is None:
        return
    if row[0] in OPEN:
        raise Conflict(conflict_code="6130", reason=f"The backup is on its way to region {destination.region} already.")
    raise Conflict(
        conflict_code="6118", reason=f"Region {destination.region} has a replica of the backup; one is enough."
    )


async def _select(
    conn: AsyncConnection[Any], vault: VaultRef, condition: str, values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Backups of a vault whose lock is held, oldest first; `condition` is ours."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT b.id, b.checkpoint_id, b.name, b.description, b.status, b.image_type, b.resource_id, "  # noqa: S608
            "b.resource_type, b.resource_name, b.created_at, EXISTS (SELECT 1 FROM vault_resources v WHERE "
            "v.project_id = b.project_id AND v.vault_id = b.vault_id AND v.resource_id = b.resource_id "
            "AND v.protect_status = 'removing') AS leaving FROM backups b WHERE b.project_id = %(project)s "
            f"AND b.vault_id = %(vault)s {condition} ORDER BY b.created_at, b.id LIMIT %(limit)s".encode(),
            {"project": vault.project_id, "vault": vault.id, "limit": BACKUPS_AT_ONCE_MAX, **values},
        )
        return await cursor.fetchall()


async def _begin(
    conn: AsyncConnection[Any],
    vault: VaultRef,
    rows: Sequence[Mapping[str, Any]],
    new: NewReplication,
    request_id: str,
    now: datetime,
) -> list[Begun]:
    """One task and one record a backup, one statement a table."""
    started = [(row, new_id(), _task(vault, row, new, request_id)) for row in rows]
    await tasks.insert(conn, [task for _, _, task in started], now)
    try:
        await insert_records(conn, [_record(vault, row, id_, task, new, now) for row, id_, task in started])
    except UniqueViolation as err:
        raise Conflict(
            conflict_code="6130",
            reason="Another request copies one of the backups just now. Try again.",
            detail=str(err),
        ) from err
    return [Begun(backup_id=row["id"], record_id=id_) for row, id_, _ in started]


def _task(vault: VaultRef, row: Mapping[str, Any], new: NewReplication, request_id: str) -> NewTask:
    return NewTask(
        project_id=vault.project_id,
        operation_type="replication",
        request_id=request_id,
        vault_id=vault.id,
        vault_name=vault.name,
        provider_id=vault.provider_id,
        checkpoint_id=row["checkpoint_id"],
        policy_id=new.policy_id,
        backup_id=row["id"],
        backup_name=row["name"],
        resource_id=row["resource_id"],
        resource_type=row["resource_type"],
        resource_name=row["resource_name"],
        parameters={
            "source_region": new.source_region,
            "source_project_id": vault.project_id,
            "source_checkpoint_id": row["checkpoint_id"],
            "source_backup_id": row["id"],
            "source_backup_name": row["name"],
            "destination_region": new.destination.region,
            "destination_project_id": new.destination.project_id,
        },
    )


def _record(
    vault: VaultRef, row: Mapping[str, Any], record_id: str, task: NewTask, new: NewReplication, now: datetime
) -> dict[str, Any]:
    return {
        "id": record_id,
        "side": "source",
        "project_id": vault.project_id,
        "vault_id": vault.id,
        "backup_id": row["id"],
        "task_id": task.id,
        "status": "waiting_replicate",
        "auto_trigger": new.auto_trigger,
        "source_region": new.source_region,
        "source_project_id": vault.project_id,
        "source_vault_id": vault.id,
        "source_checkpoint_id": row["checkpoint_id"],
        "source_backup_id": row["id"],
        "source_backup_name": row["name"],
        "source_created_at": row["created_at"],
        "destination_region": new.destination.region,
        "destination_project_id": new.destination.project_id,
        "destination_vault_id": new.destination.vault_id,
        "details": Jsonb(
            {
                "name": new.name,
                "description": row["description"] if new.description is None else new.description,
                "retention": dict(new.retention),
                "policy_id": new.policy_id,
            }
        ),
        "created_at": now,
    }


# --- job side -------------------------------------------------------------------------------------------------------


async def start_replication(database: Database, task: Task) -> ReplicationJob:
    """What to offer. May run again. Raises Fenced, Canceled, VaultNotFound, BackupNotFound."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        record = await record_of_task(conn, task.project_id, task.id, "source")
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT b.id, b.name, b.description, b.root, ARRAY(SELECT d.root FROM backups d "
                "WHERE d.project_id = b.project_id AND d.parent_id = b.id AND d.root IS NOT NULL ORDER BY d.root) "
                "AS disks, b.domain_id, b.resource_id, b.resource_type, "
                "b.resource_name, b.resource_size_bytes, b.incremental, b.provider_id, b.created_at, v.object_type, "
                "o.cancel_requested FROM backups b JOIN vaults v ON v.project_id = b.project_id "
                "AND v.id = b.vault_id JOIN operation_logs o ON o.project_id = b.project_id AND o.id = %s "
                "WHERE b.project_id = %s AND b.id = %s AND b.root IS NOT NULL",
                [task.id, task.project_id, task.backup_id],
            )
            row = await cursor.fetchone()
        if record is None or row is None:
            raise BackupNotFound(id=task.backup_id or "(none)")
        if row.pop("cancel_requested"):
            raise Canceled
    return ReplicationJob(
        vault=vault,
        record=record,
        root=row.pop("root"),
        disks=tuple(row.pop("disks")),
        domain_id=row.pop("domain_id"),
        backup=row,
        is_pinned=bool(task.state.get("pinned")),
    )


async def note_replica(database: Database, task: Task, replica: Mapping[str, Any]) -> None:
    """What the destination says of its replica so far. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await _write_replica(conn, task, replica, "replicating")
        await conn.execute(
            "UPDATE operation_logs SET progress = %s, updated_at = now() WHERE project_id = %s AND id = %s",
            [replica["progress"], task.project_id, task.id],
        )


async def commit_replication(database: Database, task: Task, replica: Mapping[str, Any], clock: Clock) -> None:
    """The destination reports its replica available. A second call raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await _write_replica(conn, task, {**replica, "progress": 100}, "success", clock.now())
        await close_sessions_of(conn, task)
        outcome = {
            "destination_backup_id": replica["backup_id"],
            "destination_backup_name": replica["backup_name"],
            "destination_checkpoint_id": replica["checkpoint_id"],
            "stored_bytes": replica["stored_bytes"],
        }
        await tasks.finish(conn, task, clock, outcome=outcome)


async def _write_replica(
    conn: AsyncConnection[Any],
    task: Task,
    replica: Mapping[str, Any],
    status: str,
    ended_at: datetime | None = None,
) -> None:
    await conn.execute(
        "UPDATE replication_records SET status = %s, progress = %s, destination_backup_id = %s, "
        "destination_backup_name = %s, destination_checkpoint_id = %s, ended_at = %s "
        "WHERE project_id = %s AND task_id = %s AND side = 'source'",
        [
            *(status, replica["progress"], replica["backup_id"], replica["backup_name"], replica["checkpoint_id"]),
            *(ended_at, task.project_id, task.id),
        ],
    )


async def fail_replication(
    database: Database, task: Task, error: StrongroomError, clock: Clock
) -> ReplicationRecord | None:
    """End it with the reason; the backup may be copied again. Returns the record, if it is there. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await conn.execute(
            "UPDATE replication_records SET status = 'fail', fail_code = %s, fail_reason = %s, ended_at = %s "
            "WHERE project_id = %s AND task_id = %s AND side = 'source'",
            [error.published_code, error.message, clock.now(), task.project_id, task.id],
        )
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, status="failed", error=error)
        return await record_of_task(conn, task.project_id, task.id, "source")
