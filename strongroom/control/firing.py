"""Policies fire: a run that is due becomes rows, exactly once.

One transaction a vault: its lock, if nobody holds it; the policy, which cannot change meanwhile; the row of
policy_vaults that says when; then the run, as a request would make it, and the time of the next one. Two tickers cannot
both find it due, and one that dies before the commit has done nothing: the next tick finds it due as before.

After a time without a ticker a vault runs once, not once for each run it missed, and goes on by its schedule. A run
that is refused (vault full, quota used up, every resource busy) is told in the operation log of each resource and over.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, QuotaExceeded
from strongroom.base.ids import new_id
from strongroom.control.auto_binding import bind_matching
from strongroom.control.checkpoints import KEEP_FOR_EVER, NewCheckpoint, begin_checkpoint
from strongroom.control.db import Database
from strongroom.control.policies import destination_of, lock_policy_of
from strongroom.control.policy_rules import Policy, next_run_at, sent_rules
from strongroom.control.replications import Destination, NewReplication, begin_missing
from strongroom.control.retention import full_due
from strongroom.control.subjects import VaultRef, lock_vault_if_free

DUE_AT_ONCE_MAX = 100  # vaults of one tick; the next tick, two seconds later, takes the next ones
NOTHING = "BackupService.0001"  # of the published codes: every resource is busy, or there is none


@dataclass(frozen=True, kw_only=True)
class Due:
    """A vault whose policy of this kind is due."""

    project_id: str
    vault_id: str
    operation_type: str = "backup"


@dataclass(frozen=True, kw_only=True)
class Fired:
    """What came of one due run. checkpoint_id None: refused, with the reason in `refusal`, or a replication.

    replicas  how many began
    """

    vault_id: str
    policy_id: str
    checkpoint_id: str | None
    refusal: str = ""
    replicas: int = 0


async def due_runs(database: Database, clock: Clock) -> list[Due]:
    """What is due now, longest overdue first. Raises Unavailable."""
    async with database.read(class_row(Due)) as conn:
        found = await conn.execute(
            "SELECT project_id, vault_id, operation_type FROM policy_vaults WHERE next_fire_at <= %s "
            "ORDER BY next_fire_at LIMIT %s",
            [clock.now(), DUE_AT_ONCE_MAX],
        )
        return await found.fetchall()


async def fire(database: Database, due: Due, clock: Clock, *, region: str = "") -> Fired | None:
    """Fire the vault's policy if it is due. None: it is not any more, or the vault is locked just now.

    region: the name of this one, which replicas carry.
    """
    async with database.transaction() as conn:
        vault = await lock_vault_if_free(conn, due.project_id, due.vault_id)
        applied = await lock_policy_of(conn, vault, due.operation_type) if vault is not None else None
        if vault is None or applied is None:
            return None
        policy, _ = applied
        found = await conn.execute(
            "SELECT next_fire_at FROM policy_vaults WHERE project_id = %s AND vault_id = %s AND policy_id = %s "
            "AND next_fire_at <= %s FOR UPDATE",
            [vault.project_id, vault.id, policy.id, clock.now()],
        )
        row = await found.fetchone()
        if row is None:
            return None
        # A ticker whose clock is behind that of the one before it must not find an instant that has been fired.
        now = max(clock.now(), row[0])
        checkpoint_id, refusal, replicas = None, "", 0
        if due.operation_type == "replication":
            replicas = await _replicate(conn, vault, policy, region, now)
        else:
            checkpoint_id, refusal = await _run(conn, vault, policy, now)
        await conn.execute(
            "UPDATE policy_vaults SET next_fire_at = %s WHERE project_id = %s AND vault_id = %s AND policy_id = %s",
            [next_run_at(policy, vault.id, now), vault.project_id, vault.id, policy.id],
        )
    return Fired(
        vault_id=vault.id, policy_id=policy.id, checkpoint_id=checkpoint_id, refusal=refusal, replicas=replicas
    )


async def _replicate(conn: AsyncConnection[Any], vault: VaultRef, policy: Policy, region: str, now: datetime) -> int:
    """Begin to copy what the policy's region lacks. What it says against it stands in each operation log."""
    found = await conn.execute(
        "SELECT destination_vault_id FROM policy_vaults WHERE project_id = %s AND vault_id = %s AND policy_id = %s",
        [vault.project_id, vault.id, policy.id],
    )
    row = await found.fetchone()
    if row is None or row[0] is None or vault.status not in ("available", "lock"):
        return 0
    region_there, project_there = destination_of(policy)
    new = NewReplication(
        destination=Destination(region=region_there, project_id=project_there, vault_id=row[0]),
        source_region=region,
        auto_trigger=True,
        policy_id=policy.id,
        retention=sent_rules(policy),
    )
    return len(await begin_missing(conn, vault, new, request_id=new_id(), now=now))


async def _run(conn: AsyncConnection[Any], vault: VaultRef, policy: Policy, now: datetime) -> tuple[str | None, str]:
    """Begin the run. Returns (checkpoint id, "") or (None, why not)."""
    await bind_matching(conn, vault, now)
    covered, full = await _covered(conn, vault, policy, now)
    if not covered:
        return None, "The vault holds no resource that is protected by schedule."
    days = policy.definition.retention_duration_days
    new = NewCheckpoint(
        vault_id=vault.id,
        auto_trigger=True,
        resource_ids=tuple(covered),
        policy_id=policy.id,
        retention_days=KEEP_FOR_EVER if days is None else days,
        full_resource_ids=frozenset(full),
    )
    request_id = new_id()
    try:
        async with conn.transaction():  # a refusal must not take back what else this transaction does
            checkpoint = await begin_checkpoint(conn, vault, new, request_id=request_id, now=now)
    except (Conflict, QuotaExceeded) as refused:
        await _tell(conn, vault, policy, covered, refused, request_id, now)
        return None, refused.message
    return checkpoint.id, ""


async def _covered(
    conn: AsyncConnection[Any], vault: VaultRef, policy: Policy, now: datetime
) -> tuple[list[str], list[str]]:
    """Resources of the vault that are not suspended, and those of them whose turn for a full backup it is."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT resource_id, incrementals, last_full_at FROM vault_resources WHERE project_id = %s "
            "AND vault_id = %s AND auto_protect ORDER BY created_at, resource_id",
            [vault.project_id, vault.id],
        )
        rows = await cursor.fetchall()
    interval = policy.definition.full_backup_interval
    full = [row["resource_id"] for row in rows if full_due(interval, row["incrementals"], row["last_full_at"], now)]
    return [row["resource_id"] for row in rows], full


async def _tell(
    conn: AsyncConnection[Any],
    vault: VaultRef,
    policy: Policy,
    resource_ids: list[str],
    refused: Conflict | QuotaExceeded,
    request_id: str,
    now: datetime,
) -> None:
    """One ended log a resource: skipped when all were busy, else failed with the code a request would have got."""
    await conn.execute(
        "INSERT INTO operation_logs (project_id, operation_type, status, vault_id, vault_name, provider_id, policy_id, "
        "request_id, parameters, error_code, error_message, created_at, started_at, ended_at, updated_at, id, "
        "resource_id, resource_type, resource_name) "
        "SELECT project_id, 'backup', %s, vault_id, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, "
        "gen_random_uuid()::text, resource_id, type, name FROM vault_resources "
        "WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s)",
        [
            *("skipped" if refused.published_code == NOTHING else "failed", vault.name, vault.provider_id, policy.id),
            *(request_id, Jsonb({"incremental": True}), refused.published_code, refused.message),
            *(now, now, now, now, vault.project_id, vault.id, resource_ids),
        ],
    )
