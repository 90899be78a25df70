"""The time of all restore points of a vault, changed at once.

The request decides under the vault's lock and writes the rows, so what it answers holds from then on. What the store's
copies of the labels say follows in a task: a rebuild knows the new time as soon as the operation log says success. Of a
locked vault a time can only be made longer: neither a row nor a promise is ever brought forward.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.clock import Clock, api_timestamp
from strongroom.base.errors import Conflict, InvalidRequest
from strongroom.control import tasks
from strongroom.control.db import Database
from strongroom.control.schedule import fixed_zone
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import VaultRef, lock_vault
from strongroom.control.tasks import NewTask, Task
from strongroom.control.vault_resources import require_available
from strongroom.control.vault_work import refuse_open_work

DAYS_AHEAD_MAX = 36500  # contract, of the time that a request may give a backup
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")

# What has a root and is not on its way out; what is being made has none yet, and keeps the time it was asked for with.
_CHANGEABLE = ["available", "waiting_restore", "restoring", "error"]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The operation log that tells of it, and how many backups have the new time."""

    task_id: str
    affected: int


@dataclass(frozen=True, kw_only=True)
class PointTime:
    """What the labels of one root have to say. None: kept until deleted; nothing is promised."""

    root: str
    expired_at: datetime | None
    promised_until: datetime | None


@dataclass(frozen=True, kw_only=True)
class ExpirationJob:
    """Every restore point of the vault, by the domain it is in (id in hex; None: the vault's own)."""

    vault: VaultRef
    points: Mapping[str | None, Sequence[PointTime]]


# --- request side ---------------------------------------------------------------------------------------------------


async def update_expiration(
    database: Database, project_id: str, vault_id: str, day: str, zone: str, *, request_id: str, clock: Clock
) -> Begun:
    """Let every restore point of the vault end with `day` (YYYY-MM-DD) in `zone` (UTC+08:00).

    Raises InvalidRequest, VaultNotFound; Conflict 6112 (vault status, other work) and 6220 (a time would be shortened
    that a locked vault has promised): nothing is changed then.
    """
    ends_at = _end_of(day, zone, clock.now())
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault, "lock", "error")
        await refuse_open_work(conn, vault, "expiration", "migrate")
        now = clock.now()
        if vault.locked:
            await _refuse_shorter(conn, vault, ends_at)
        done = await conn.execute(
            "UPDATE backups b SET expired_at = %(at)s, updated_at = %(now)s, promised_until = CASE "
            "WHEN b.promised_until IS NOT NULL OR (v.locked AND (b.auto_trigger OR v.keep_manual) "
            "AND b.status <> 'error') THEN greatest(b.promised_until, c.at + (%(at)s - %(now)s)) END "
            "FROM vaults v, promise_clock c WHERE b.project_id = %(project)s AND b.vault_id = %(vault)s "
            "AND v.project_id = b.project_id AND v.id = b.vault_id AND b.root IS NOT NULL "
            "AND b.status = ANY(%(statuses)s) AND b.parent_id IS NULL",  # the disks of a machine follow it
            {"at": ends_at, "now": now, "project": project_id, "vault": vault.id, "statuses": _CHANGEABLE},
        )
        task = NewTask(
            project_id=project_id,
            operation_type="expiration",
            request_id=request_id,
            vault_id=vault.id,
            vault_name=vault.name,
            provider_id=vault.provider_id,
            parameters={"day": day, "time_zone": zone, "affected": done.rowcount},
        )
        await tasks.insert(conn, [task], now)
    return Begun(task_id=task.id, affected=done.rowcount)


def _end_of(day: str, zone: str, now: datetime) -> datetime:
    """The first moment after the day. Raises InvalidRequest."""
    where = "expect_expiration_date"
    tz = fixed_zone(zone, "time_zone")
    try:
        if _DAY.fullmatch(day) is None:
            raise ValueError(day)
        ends_at = datetime.combine(date.fromisoformat(day) + timedelta(days=1), time(), tz)
    except (ValueError, OverflowError) as err:
        raise InvalidRequest(reason=f"Invalid {where}: give a day as 2027-01-31.") from err
    if ends_at <= now:
        raise InvalidRequest(
            reason=f"Invalid {where}: that day is over. Give today or a later day; delete what shall go now."
        )
    if ends_at > now + timedelta(days=DAYS_AHEAD_MAX):
        raise InvalidRequest(reason=f"Invalid {where}: give a day within the next {DAYS_AHEAD_MAX} days.")
    return ends_at


async def _refuse_shorter(conn: AsyncConnection[Any], vault: VaultRef, ends_at: datetime) -> None:
    """Raises Conflict 6220 when a backup that the vault keeps has a later time, or none: then its policy lets it go."""
    found = await conn.execute(
        "SELECT name, expired_at FROM backups WHERE project_id = %(project)s AND vault_id = %(vault)s "
        "AND root IS NOT NULL AND status = ANY(%(statuses)s) AND (promised_until > (SELECT at FROM promise_clock) "
        "OR ((auto_trigger OR %(manual)s) AND status <> 'error')) AND (expired_at IS NULL OR expired_at > %(at)s) "
        "ORDER BY created_at, id LIMIT 1",
        {
            "project": vault.project_id,
            "vault": vault.id,
            "statuses": _CHANGEABLE,
            "manual": vault.keep_manual,
            "at": ends_at,
        },
    )
    row = await found.fetchone()
    if row is not None:
        until = "its policy lets it go" if row[1] is None else f"{api_timestamp(row[1])} UTC"
        raise Conflict(
            conflict_code="6220",
            reason=f"Vault {vault.name} is locked and keeps backup {row[0]} until {until}: a time can only be made "
            "longer. Give a later day.",
        )


# --- job side -------------------------------------------------------------------------------------------------------


async def start_expiration(database: Database, task: Task) -> ExpirationJob:
    """What the labels have to say, as the rows are now. Raises Fenced, VaultNotFound."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT domain_id, root, expired_at, promised_until FROM backups WHERE project_id = %s "
                "AND vault_id = %s AND root IS NOT NULL AND status = ANY(%s) ORDER BY created_at, id",
                [task.project_id, vault.id, _CHANGEABLE],
            )
            rows = await cursor.fetchall()
    points: dict[str | None, list[PointTime]] = {}
    for row in rows:
        points.setdefault(row.pop("domain_id"), []).append(PointTime(**row))
    return ExpirationJob(vault=vault, points=points)


async def finish_expiration(database: Database, task: Task, outcome: dict[str, Any], clock: Clock) -> None:
    """The store's labels say what the rows say. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, outcome=outcome)
