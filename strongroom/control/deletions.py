"""Deletions and what frees their space: one backup, the backups of a removed resource, a whole vault, and prune.

Delete runs the other way round than backup (RULINGS 7): row `deleting`, then the root object, then the row. Space is
freed later by one prune a vault, queued in the transaction that ends a deletion.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import BackupNotFound, Conflict, StrongroomError
from strongroom.control import checkpoints, tasks
from strongroom.control.capacity import set_used
from strongroom.control.db import Database
from strongroom.control.received import require_own
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import VaultRef, lock_vault
from strongroom.control.tasks import NewTask, Task
from strongroom.control.vault_keys import shred_vault_keys
from strongroom.control.vault_roots import DeleteJob, PruneJob, foreign_roots, own_roots

REMOVAL_FAILED = "Removing failed half-way: remove the resource again."
POSTPONED_AGAIN = timedelta(minutes=10)  # a prune that found no room to move what is live; somebody may have made some


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """Why a backup is deleted without anybody asking. policy_id: whose rule; None: the time fixed when it was made."""

    reason: str
    policy_id: str | None = None


# --- request side ---------------------------------------------------------------------------------------------------


async def request_delete_backup(
    database: Database, project_id: str, backup_id: str, *, request_id: str, clock: Clock
) -> str:
    """Begin to delete one backup; it shows `deleting` until it is gone. Returns the id of the operation log.

    Raises BackupNotFound; Conflict 6112 (vault), 6134 (resource being removed), 6201 (status), 6216 (in use), 6220
    (automatic backup in a locked vault) and 6711 (another project shares it).
    """
    async with database.transaction() as conn:
        place = await require_own(conn, project_id, backup_id, code="6711", what="delete it. Reject the share instead")
        vault = await lock_vault(conn, project_id, place)
        return await begin_delete(conn, vault, backup_id, request_id=request_id, now=clock.now())


async def begin_delete(
    conn: AsyncConnection[Any],
    vault: VaultRef,
    backup_id: str,
    *,
    request_id: str,
    now: datetime,
    expiry: Expiry | None = None,
) -> str:
    """Begin to delete a backup in a transaction that holds the vault's lock: asked for, or because its time is over,
    which a locked vault lets pass. Raises as above; a refusal has written nothing."""
    row = await _lock_backup(conn, vault, backup_id)
    _refuse_delete(vault, row, expiry)
    await conn.execute(
        "UPDATE backups SET status = 'deleting', updated_at = %s WHERE project_id = %s AND id = %s",
        [now, vault.project_id, backup_id],
    )
    await checkpoints.settle(conn, vault.project_id, [row["checkpoint_id"]], now)
    task = NewTask(
        project_id=vault.project_id,
        operation_type="delete",
        request_id=request_id,
        vault_id=vault.id,
        vault_name=vault.name,
        provider_id=row["provider_id"],
        checkpoint_id=row["checkpoint_id"],
        policy_id=expiry.policy_id if expiry else None,
        backup_id=backup_id,
        backup_name=row["name"],
        resource_id=row["resource_id"],
        resource_type=row["resource_type"],
        resource_name=row["resource_name"],
        parameters={"expiry": expiry.reason} if expiry else {},
    )
    await tasks.insert(conn, [task], now)
    return task.id


async def _lock_backup(conn: AsyncConnection[Any], vault: VaultRef, backup_id: str) -> dict[str, Any]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT b.name, b.status, b.auto_trigger, b.root IS NOT NULL
                   AND b.promised_until > (SELECT at FROM promise_clock) AS promised, b.checkpoint_id, b.provider_id,
                   b.resource_id, b.resource_type, b.resource_name, b.parent_id,
                   EXISTS (SELECT 1 FROM backups d WHERE d.project_id = b.project_id AND d.parent_id = b.id
                           AND d.status IN ('restoring', 'waiting_restore')) AS disk_restoring,
                   EXISTS (SELECT 1 FROM vault_resources r WHERE r.project_id = b.project_id
                           AND r.vault_id = b.vault_id AND r.resource_id = b.resource_id
                           AND r.protect_status = 'removing') AS removing,
                   b.id = (SELECT n.id FROM backups n WHERE n.project_id = b.project_id
                           AND n.vault_id = b.vault_id AND n.resource_id = b.resource_id AND n.status = 'available'
                           AND n.domain_id IS NULL
                           ORDER BY n.created_at DESC, n.id DESC LIMIT 1)
                   AND EXISTS (SELECT 1 FROM operation_logs o WHERE o.project_id = b.project_id
                           AND o.vault_id = b.vault_id AND o.resource_id = b.resource_id
                           AND o.operation_type = 'backup' AND o.status IN ('waiting', 'running')) AS parent_in_use,
                   EXISTS (SELECT 1 FROM replication_records r WHERE r.project_id = b.project_id AND r.backup_id = b.id
                           AND r.side = 'source' AND r.ended_at IS NULL) AS replicating
            FROM backups b WHERE b.project_id = %s AND b.id = %s FOR UPDATE
            """,
            [vault.project_id, backup_id],
        )
        row = await cursor.fetchone()
    if row is None:
        raise BackupNotFound(id=backup_id)
    return row


def _refuse_delete(vault: VaultRef, row: dict[str, Any], expiry: Expiry | None) -> None:
    if vault.status == "deleting":
        raise Conflict(conflict_code="6112", reason=f"Vault {vault.name} is being deleted, and its backups with it.")
    if row["removing"]:
        raise Conflict(
            conflict_code="6134",
            reason=f"Resource {row['resource_name']} is being removed from the vault, and its backups with it.",
        )
    if row["parent_id"] is not None:
        raise Conflict(
            conflict_code="6201",
            reason="The backup is that of one disk of a server. Delete the server's backup: its disks go with it.",
        )
    if row["replicating"] or row["disk_restoring"] or row["status"] in ("restoring", "waiting_restore"):
        busy = "copied to another region" if row["replicating"] else "restored"
        raise Conflict(conflict_code="6216", reason=f"The backup is being {busy}. Delete it when that has ended.")
    if row["status"] not in ("available", "error"):
        raise Conflict(
            conflict_code="6201",
            reason=f"The backup is {row['status']}; only available and error backups can be deleted.",
        )
    if row["parent_in_use"]:
        raise Conflict(
            conflict_code="6216",
            reason="The next backup of the resource is compared with this one. Delete it when that run has ended.",
        )
    if row["promised"] or (vault.keeps(auto_trigger=row["auto_trigger"]) and expiry is None):
        raise Conflict(
            conflict_code="6220",
            reason=f"{'All' if vault.keep_manual else 'Automatic'} backups in a locked vault stay until they expire; "
            "they cannot be deleted.",
        )


# --- job side -------------------------------------------------------------------------------------------------------


async def start_delete(database: Database, task: Task) -> DeleteJob:
    """What a delete, remove_resource or vault_delete task has to remove; its backups show `deleting`. May run again:
    what is gone already is not listed. A vault loses the database's copies of its keys before anything else.
    Raises Fenced, VaultNotFound; Conflict 6111 for a locked vault with restore points, 6220 for a promised one."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT id, parent_id, root, domain_id, status, checkpoint_id, "
                "coalesce(machine_id, resource_id) AS resource_id, root IS NOT NULL "
                "AND promised_until > (SELECT at FROM promise_clock) AS promised FROM backups "
                "WHERE project_id = %s AND vault_id = %s ORDER BY created_at, id FOR UPDATE",
                [task.project_id, vault.id],
            )
            rows = await cursor.fetchall()
        doomed = [row for row in rows if _doomed(task, row)]
        if task.operation_type == "vault_delete":
            if vault.locked and any(row["promised"] or (row["root"] and row["status"] != "error") for row in rows):
                raise Conflict(
                    conflict_code="6111",
                    reason="The vault is locked and holds backups: it can be deleted when the last one has expired.",
                )
            await shred_vault_keys(conn, task.project_id, vault.id)
        if any(row["promised"] for row in doomed):
            raise Conflict(
                conflict_code="6220",
                reason="The vault was locked since the request, and keeps its backups until they expire.",
            )
        ids = [row["id"] for row in doomed]
        await conn.execute(
            "UPDATE backups SET status = 'deleting', updated_at = now() WHERE project_id = %s AND id = ANY(%s)",
            [task.project_id, ids],
        )
        await _settle(conn, task, {row["checkpoint_id"] for row in doomed})
        # What finish_delete measures the freed bytes against: backups may be committed in between.
        await _save_used(conn, task, vault)
    return DeleteJob(
        vault=vault,
        backups=tuple((row["id"], row["root"]) for row in doomed),
        count=sum(row["parent_id"] is None for row in doomed),
        keep=own_roots(kept := [row for row in rows if row["id"] not in set(ids)]),
        foreign=foreign_roots(doomed),
        keep_foreign=foreign_roots(kept),
    )


def _doomed(task: Task, row: dict[str, Any]) -> bool:
    match task.operation_type:
        case "delete":
            return task.backup_id in (row["id"], row["parent_id"])
        case "remove_resource":
            return row["resource_id"] in removed_resources(task.parameters)
        case _:
            return True


def removed_resources(parameters: dict[str, Any]) -> list[str]:
    """Ids of the resources that a remove_resource task removes."""
    return [entry["id"] if isinstance(entry, dict) else entry for entry in parameters.get("resources", [])]


async def finish_delete(
    database: Database, task: Task, *, used_bytes: int | None, outcome: dict[str, Any], clock: Clock
) -> None:
    """The roots are gone: rows of backups, of checkpoints without any, of removed resources, or the vault itself go
    too, usage falls, and a prune is queued unless one waits or the vault is gone. used_bytes: live sealed bytes
    without the deleted backups, measured after start_delete; None: not measured. A second call raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        match task.operation_type:
            case "vault_delete":
                counted = await _delete_vault(conn, task)
            case "remove_resource":
                counted = await _delete_resources(conn, task)
            case _:
                counted = {}
                await _delete_backups(conn, task, "id", [task.backup_id])
        if task.operation_type != "vault_delete":
            await _set_used(conn, task, vault, used_bytes)
            await queue_prune(conn, vault, request_id=task.request_id, clock=clock)
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, outcome={**outcome, **counted})


async def _delete_backups(conn: AsyncConnection[Any], task: Task, column: str, values: Sequence[str | None]) -> int:
    """Backup rows of the vault whose `id` or `resource_id` is listed, and the checkpoints they leave empty."""
    assert column in ("id", "resource_id")
    found = await conn.execute(
        f"DELETE FROM backups WHERE project_id = %s AND vault_id = %s AND {column} = ANY(%s) "  # noqa: S608 -- ours
        "RETURNING checkpoint_id".encode(),
        [task.project_id, task.vault_id, list(values)],
    )
    touched = [row[0] for row in await found.fetchall()]
    await conn.execute(
        "DELETE FROM checkpoints c WHERE c.project_id = %s AND c.id = ANY(%s) AND NOT EXISTS "
        "(SELECT 1 FROM backups b WHERE b.project_id = c.project_id AND b.checkpoint_id = c.id)",
        [task.project_id, touched],
    )
    await _settle(conn, task, set(touched))
    return len(touched)


async def _delete_resources(conn: AsyncConnection[Any], task: Task) -> dict[str, Any]:
    removed = removed_resources(task.parameters)
    deleted = await _delete_backups(conn, task, "resource_id", removed)
    await conn.execute(
        "DELETE FROM vault_resources WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s)",
        [task.project_id, task.vault_id, removed],
    )
    return {"total_count": len(removed), "fail_count": 0, "deleted_backups": deleted}


async def _delete_vault(conn: AsyncConnection[Any], task: Task) -> dict[str, Any]:
    deleted = await conn.execute(
        "DELETE FROM backups WHERE project_id = %s AND vault_id = %s AND parent_id IS NULL",
        [task.project_id, task.vault_id],
    )
    # Downloads and a prune of this vault have nothing left to read.
    await conn.execute("DELETE FROM sessions WHERE project_id = %s AND vault_id = %s", [task.project_id, task.vault_id])
    await conn.execute("DELETE FROM vaults WHERE project_id = %s AND id = %s", [task.project_id, task.vault_id])
    return {"total_count": deleted.rowcount, "fail_count": 0}


async def fail_delete(
    database: Database, task: Task, error: StrongroomError, clock: Clock, *, status: str = "failed"
) -> None:
    """End a deletion that did not work: backups that remain stand in error and can be deleted again, as can the
    resource or the vault. Works without the vault's row. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await _lock_if_there(conn, task)
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT id, parent_id, checkpoint_id, coalesce(machine_id, resource_id) AS resource_id FROM backups "
                "WHERE project_id = %s AND vault_id = %s AND status IN ('waiting_delete', 'deleting')",
                [task.project_id, task.vault_id],
            )
            left = [row for row in await cursor.fetchall() if _doomed(task, row)]
        await conn.execute(
            "UPDATE backups SET status = 'error', updated_at = %s WHERE project_id = %s AND id = ANY(%s)",
            [clock.now(), task.project_id, [row["id"] for row in left]],
        )
        await checkpoints.settle(
            conn, task.project_id, [row["checkpoint_id"] for row in left], clock.now(), without="error-deleting"
        )
        counted: dict[str, Any] = {}
        if task.operation_type == "vault_delete":
            whole = sum(row["parent_id"] is None for row in left)
            counted = {"total_count": whole, "fail_count": whole}
            await conn.execute(
                "UPDATE vaults SET status = 'error', updated_at = %s WHERE project_id = %s AND id = %s",
                [clock.now(), task.project_id, task.vault_id],
            )
        if task.operation_type == "remove_resource":
            removed = removed_resources(task.parameters)
            counted = {"total_count": len(removed), "fail_count": len(removed)}
            await conn.execute(
                "UPDATE vault_resources SET protect_status = 'error', status_reason = %s WHERE project_id = %s "
                "AND vault_id = %s AND resource_id = ANY(%s) AND protect_status = 'removing'",
                [REMOVAL_FAILED, task.project_id, task.vault_id, removed],
            )
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, status=status, error=error, outcome=counted)


# --- prune ----------------------------------------------------------------------------------------------------------


async def queue_prune(
    conn: AsyncConnection[Any], vault: VaultRef, *, request_id: str, clock: Clock, delay: timedelta | None = None
) -> None:
    """One prune of the vault, after `delay`, unless one is open: that one need not wait any longer then.

    The vault's lock MUST be held."""
    found = await conn.execute(
        "SELECT 1 FROM operation_logs WHERE project_id = %s AND vault_id = %s AND operation_type = 'prune' "
        "AND status IN ('waiting', 'running')",
        [vault.project_id, vault.id],
    )
    if await found.fetchone() is not None:
        # SKIP LOCKED: who has the task's row locked may be waiting for the vault's, which is ours.
        await conn.execute(
            "UPDATE operation_logs SET not_before = NULL WHERE id IN (SELECT id FROM operation_logs "
            "WHERE project_id = %s AND vault_id = %s AND operation_type = 'prune' AND status = 'waiting' "
            "AND not_before IS NOT NULL FOR UPDATE SKIP LOCKED)",
            [vault.project_id, vault.id],
        )
    else:
        task = NewTask(
            project_id=vault.project_id,
            operation_type="prune",
            request_id=request_id,
            vault_id=vault.id,
            vault_name=vault.name,
            provider_id=vault.provider_id,
            listed=False,
            not_before=clock.now() + delay if delay is not None else None,
        )
        await tasks.insert(conn, [task], clock.now())


async def start_prune(database: Database, task: Task) -> PruneJob:
    """What a prune has to keep. Raises Fenced, VaultNotFound (deleted meanwhile)."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        # What a killed attempt of this prune pinned protects nothing, and would keep its own fossils waiting.
        await close_sessions_of(conn, task)
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT root, domain_id FROM backups WHERE project_id = %s AND vault_id = %s AND root IS NOT NULL",
                [task.project_id, vault.id],
            )
            rows = await cursor.fetchall()
        # A copy's session ends in the transaction that writes the rows of what it brought.
        copying = await conn.execute(
            "SELECT DISTINCT domain_id FROM sessions WHERE project_id = %s AND vault_id = %s AND kind = 'copy'",
            [task.project_id, vault.id],
        )
        open_copies = frozenset(row[0] for row in await copying.fetchall())
        making = await conn.execute(
            "WITH making AS (SELECT backup_id FROM operation_logs WHERE project_id = %(project)s "
            "AND vault_id = %(vault)s AND operation_type = 'backup' AND backup_id IS NOT NULL "
            "AND status IN ('waiting', 'running')) SELECT backup_id FROM making UNION ALL SELECT d.id FROM backups d "
            "WHERE d.project_id = %(project)s AND d.parent_id IN (SELECT backup_id FROM making)",
            {"project": task.project_id, "vault": vault.id},
        )
        open_backups = frozenset(row[0] for row in await making.fetchall())
        await _save_used(conn, task, vault)
    return PruneJob(
        vault=vault,
        keep=own_roots(rows),
        keep_foreign=foreign_roots(rows),
        open_backups=open_backups,
        copying=open_copies,
    )


async def unknown_backups(database: Database, task: Task, backup_ids: Collection[str]) -> frozenset[str]:
    """Those of these ids that no row tells of, neither a backup nor an operation log of the task's vault.

    A backup's log is written before its root can be, and one stays until a prune has looked (tasks.forget): so this
    database never knew of that backup.
    """
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT u.id FROM unnest(%(ids)s::text[]) AS u(id) "
            "WHERE NOT EXISTS (SELECT 1 FROM backups b WHERE b.project_id = %(project)s AND b.id = u.id) "
            "AND NOT EXISTS (SELECT 1 FROM operation_logs o WHERE o.project_id = %(project)s "
            "AND o.vault_id = %(vault)s AND o.backup_id = u.id)",
            {"ids": sorted(backup_ids), "project": task.project_id, "vault": task.vault_id},
        )
        return frozenset(row[0] for row in await found.fetchall())


async def finish_prune(
    database: Database, task: Task, outcome: dict[str, Any], clock: Clock, *, used_bytes: int | None = None
) -> None:
    """End a prune. used_bytes: live sealed bytes as measured by it. What was deleted while it ran is pruned next."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        await _set_used(conn, task, vault, used_bytes)
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, outcome=outcome)
        later = await conn.execute(
            "SELECT 1 FROM operation_logs d JOIN operation_logs p ON d.ended_at >= p.started_at "
            "WHERE p.project_id = %(project)s AND p.id = %(task)s AND d.project_id = %(project)s "
            "AND d.vault_id = %(vault)s AND d.operation_type IN ('delete', 'remove_resource') AND d.status = 'success' "
            "LIMIT 1",
            {"project": task.project_id, "task": task.id, "vault": vault.id},
        )
        if await later.fetchone() is not None:
            await queue_prune(conn, vault, request_id=task.request_id, clock=clock)
        elif outcome.get("postponed"):
            await queue_prune(conn, vault, request_id=task.request_id, clock=clock, delay=POSTPONED_AGAIN)


# --- shared ---------------------------------------------------------------------------------------------------------


async def _lock_if_there(conn: AsyncConnection[Any], task: Task) -> None:
    await conn.execute(
        "SELECT 1 FROM vaults WHERE project_id = %s AND id = %s FOR UPDATE", [task.project_id, task.vault_id]
    )


async def _settle(conn: AsyncConnection[Any], task: Task, checkpoint_ids: set[str]) -> None:
    found = await conn.execute("SELECT now()")
    row = await found.fetchone()
    assert row is not None
    await checkpoints.settle(conn, task.project_id, sorted(checkpoint_ids), row[0])


async def _save_used(conn: AsyncConnection[Any], task: Task, vault: VaultRef) -> None:
    await conn.execute(
        "UPDATE operation_logs SET state = state || %s WHERE project_id = %s AND id = %s",
        [Jsonb({"used_bytes_at_start": vault.used_bytes}), task.project_id, task.id],
    )


async def _set_used(conn: AsyncConnection[Any], task: Task, vault: VaultRef, measured: int | None) -> None:
    """Apply a measurement as the change since the start, so that backups committed meanwhile stay counted."""
    if measured is None:
        return
    found = await conn.execute(
        "SELECT (state ->> 'used_bytes_at_start')::bigint FROM operation_logs WHERE project_id = %s AND id = %s",
        [task.project_id, task.id],
    )
    row = await found.fetchone()
    before = vault.used_bytes if row is None or row[0] is None else int(row[0])
    await set_used(conn, vault, max(0, vault.used_bytes + measured - before))
