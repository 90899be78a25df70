"""What the catalogue says of the service as numbers: ages, backlogs, room. Read by /metrics, a few statements a look.

Each statement takes an index or stops at a limit, so that a look at a large installation stays cheap; who asks
keeps the answer for a while (api/metrics.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

from psycopg import AsyncConnection
from psycopg.rows import class_row

from strongroom.base.clock import Clock
from strongroom.base.units import GIB
from strongroom.control.db import Database
from strongroom.control.schedule import firings, schedule_of
from strongroom.control.self_rows import COPIED_AT

RESOURCES_MAX = 100_000  # looked at for what is overdue
LATE_FACTOR = 2  # of the interval that a schedule promises: one run may fail
_GAPS = 40  # a week of five runs a day; a longer pattern repeats sooner


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Open tasks of one kind. oldest_s: how long the first of them has waited or run; lapsed: their worker is gone."""

    operation: str
    status: str
    count: int
    oldest_s: float
    lapsed: int


@dataclass(frozen=True, kw_only=True)
class VaultRoom:
    """How full a vault is. size_bytes 0: without a limit."""

    project_id: str
    vault_id: str
    name: str
    used_bytes: int
    size_bytes: int
    verified_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Protected:
    """One resource in a vault. interval: the longest time between two runs of its schedule, None without one."""

    project_id: str
    vault_id: str
    resource_id: str
    type: str
    since: datetime
    succeeded_at: datetime | None
    interval: timedelta | None

    def overdue(self, now: datetime) -> bool:
        """No success for so long that it is not one run that failed."""
        return self.interval is not None and now - (self.succeeded_at or self.since) > LATE_FACTOR * self.interval


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One look. copied_at: when the database was copied into the store last."""

    at: datetime
    backlog: Sequence[Backlog]
    vaults: Sequence[VaultRoom]
    resources: Sequence[Protected]
    damaged: int
    copied_at: datetime | None


async def read_figures(database: Database, clock: Clock) -> Figures:
    """One look at all tenants. Raises Unavailable."""
    now = clock.now()
    async with database.read() as conn:
        damaged = await _number(conn, "SELECT count(*) FROM backups WHERE damage IS NOT NULL")
        found = await conn.execute("SELECT value FROM installation WHERE name = %s", [COPIED_AT])
        copied = await found.fetchone()
    return Figures(
        at=now,
        backlog=await _backlog(database),
        vaults=await _vaults(database),
        resources=await read_resources(database, now),
        damaged=damaged,
        copied_at=datetime.fromisoformat(copied[0]) if copied else None,
    )


async def _backlog(database: Database) -> list[Backlog]:
    async with database.read(class_row(Backlog)) as conn:
        found = await conn.execute(
            "SELECT operation_type AS operation, status, count(*)::int AS count, "
            "extract(epoch FROM now() - min(coalesce(not_before, created_at)))::float AS oldest_s, "
            "count(*) FILTER (WHERE lease_until < now())::int AS lapsed "
            "FROM operation_logs WHERE status IN ('waiting', 'running') GROUP BY 1, 2"
        )
        return await found.fetchall()


async def _vaults(database: Database) -> list[VaultRoom]:
    """The fullest first."""
    async with database.read(class_row(VaultRoom)) as conn:
        found = await conn.execute(
            "SELECT v.project_id, v.id AS vault_id, v.name, v.used_bytes, "
            "CASE WHEN v.demand_billing THEN 0 ELSE v.size_gb * %s::bigint END AS size_bytes, "
            "(SELECT max(l.ended_at) FROM operation_logs l WHERE l.project_id = v.project_id AND l.vault_id = v.id "
            "AND l.operation_type = 'verify' AND l.status = 'success') AS verified_at "
            "FROM vaults v WHERE v.status <> 'deleting' "
            "ORDER BY v.used_bytes::float / v.size_gb DESC, v.id LIMIT %s",
            [GIB, RESOURCES_MAX],
        )
        return await found.fetchall()


async def read_resources(database: Database, now: datetime) -> list[Protected]:
    """What is protected, of all tenants: those without a success first, then by its age."""
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT r.project_id, r.vault_id, r.resource_id, r.type, "
            "greatest(r.created_at, p.created_at) AS since, b.protected_at, o.patterns, o.time_zone, o.start_at "
            "FROM vault_resources r "
            "LEFT JOIN policy_vaults p ON p.project_id = r.project_id AND p.vault_id = r.vault_id "
            "AND p.operation_type = 'backup' AND r.auto_protect "
            "LEFT JOIN policies o ON o.project_id = p.project_id AND o.id = p.policy_id AND o.enabled "
            "LEFT JOIN LATERAL (SELECT coalesce(s.protected_at, s.created_at) AS protected_at FROM backups s "
            "WHERE s.project_id = r.project_id AND s.vault_id = r.vault_id AND s.resource_id = r.resource_id "
            "AND s.status IN ('available', 'waiting_restore', 'restoring') ORDER BY s.created_at DESC LIMIT 1) b "
            "ON true ORDER BY b.protected_at NULLS FIRST, r.resource_id LIMIT %s",
            [RESOURCES_MAX],
        )
        rows = await found.fetchall()
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return [
        Protected(
            project_id=project,
            vault_id=vault,
            resource_id=resource,
            type=kind,
            since=since,
            succeeded_at=succeeded,
            interval=longest_gap(tuple(patterns), zone, start_at, today) if patterns else None,
        )
        for project, vault, resource, kind, since, succeeded, patterns, zone, start_at in rows
    ]


@lru_cache(maxsize=4096)
def longest_gap(patterns: tuple[str, ...], zone: str | None, start_at: datetime, today: datetime) -> timedelta:
    """The longest time between two runs of a schedule, looked at from `today` on."""
    schedule = schedule_of(patterns, anchor_at=start_at, tz=ZoneInfo(zone) if zone else UTC)
    times = list(islice(firings(schedule, today, today + timedelta(days=70)), _GAPS))
    return max((later - earlier for earlier, later in pairwise(times)), default=timedelta(days=1))


async def _number(conn: AsyncConnection[Any], statement: str) -> int:
    row = await (await conn.execute(statement.encode())).fetchone()
    assert row is not None
    return int(row[0])
