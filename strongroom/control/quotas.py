"""Quotas of a project: how many vaults, bytes and restore points it may have, set by the operator.

Who makes something inserts it first, then takes the project's lock and counts: of two that would pass the limit
together the second sees the first. The lock is the last one taken (task, vaults, rows below them, project), and only
where there is a quota. A limit that is lowered takes nothing away; nothing can be added until there is room again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

from strongroom.base.clock import Clock
from strongroom.base.errors import AccountNotFound, InvalidRequest, QuotaExceeded
from strongroom.base.ids import is_hex_id
from strongroom.base.units import human_bytes
from strongroom.control.db import Database

VAULTS_PER_PROJECT_MAX = 10_000  # contract section 15 knows a quota but no number; a list of all stays ten pages
COUNT_MAX = 2**31 - 1
BYTES_MAX = 2**63 - 1
_MOST = {"vaults": VAULTS_PER_PROJECT_MAX, "bytes": BYTES_MAX, "restore_points": COUNT_MAX}

# Published codes: 6133 vault quota, 6142 all vaults full, 8300 snapshot quota.

_VAULTS: LiteralString = "(SELECT count(*) FROM vaults v WHERE v.project_id = %(project_id)s)"
_BYTES: LiteralString = (
    "(SELECT coalesce(sum(v.used_bytes), 0)::bigint FROM vaults v WHERE v.project_id = %(project_id)s)"
)
_POINTS: LiteralString = (
    "(SELECT count(*) FROM checkpoints c WHERE c.project_id = %(project_id)s AND c.status <> 'error')"
)


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """Numbers of a project; as limits, None: no limit. bytes: live sealed bytes (RULINGS 19)."""

    vaults: int | None
    bytes: int | None
    restore_points: int | None


NO_QUOTAS = Quotas(vaults=None, bytes=None, restore_points=None)


async def show_quotas(database: Database, project_id: str) -> tuple[Quotas, Quotas]:
    """(limits, what is used) of a project. Raises AccountNotFound."""
    if not is_hex_id(project_id):
        raise AccountNotFound(id=project_id[:64])
    async with database.transaction() as conn:
        await _require_project(conn, project_id)
        limits = await _limits(conn, project_id)
        async with conn.cursor(row_factory=class_row(Quotas)) as cursor:
            await cursor.execute(
                f"SELECT {_VAULTS} AS vaults, {_BYTES} AS bytes, {_POINTS} AS restore_points",
                {"project_id": project_id},
            )
            used = await cursor.fetchone()
    assert used is not None
    return limits, used


async def change_quotas(database: Database, project_id: str, change: Mapping[str, int | None], clock: Clock) -> None:
    """Set those limits of a project that `change` names (fields of Quotas); the others stay, whoever sets them now.

    Raises AccountNotFound, InvalidRequest for a number that cannot be.
    """
    for name, most in _MOST.items():
        limit = change.get(name)
        if limit is not None and not 0 <= limit <= most:
            raise InvalidRequest(reason=f"Invalid {name}: give 0 to {most}, or null for no limit.")
    if not is_hex_id(project_id):
        raise AccountNotFound(id=project_id[:64])
    async with database.transaction() as conn:
        if not await _lock_project(conn, project_id):
            raise AccountNotFound(id=project_id)
        limits = replace(await _limits(conn, project_id), **change)
        await conn.execute(
            "INSERT INTO project_quotas (project_id, vaults, bytes, restore_points, updated_at) "
            "VALUES (%(project)s, %(vaults)s, %(bytes)s, %(points)s, %(now)s) ON CONFLICT (project_id) DO UPDATE "
            "SET vaults = %(vaults)s, bytes = %(bytes)s, restore_points = %(points)s, updated_at = %(now)s",
            {
                "project": project_id,
                "vaults": limits.vaults,
                "bytes": limits.bytes,
                "points": limits.restore_points,
                "now": clock.now(),
            },
        )


async def require_vaults(conn: AsyncConnection[Any], project_id: str) -> None:
    """After a vault was inserted: the project may have so many. Raises QuotaExceeded 6133."""
    quota = (await _limits(conn, project_id)).vaults
    limit = VAULTS_PER_PROJECT_MAX if quota is None else quota
    if await _counted(conn, project_id, _VAULTS) > limit:
        raise QuotaExceeded(limit=f"{limit} vaults", quota_code="6133")


async def require_point(conn: AsyncConnection[Any], project_id: str) -> None:
    """After a restore point was inserted: the project may have so many, and has room for bytes of one more.

    Raises QuotaExceeded 8300 and 6142.
    """
    limits = await _limits(conn, project_id)
    if limits.restore_points is not None and await _counted(conn, project_id, _POINTS) > limits.restore_points:
        raise QuotaExceeded(limit=f"{limits.restore_points} restore points", quota_code="8300")
    left = await bytes_left(conn, project_id)
    if left is not None and left <= 0:
        raise bytes_exceeded(limits.bytes)


async def bytes_left(conn: AsyncConnection[Any], project_id: str) -> int | None:
    """What the project may still store; below 0 when it stores more than it may; None: no limit."""
    limit = (await _limits(conn, project_id)).bytes
    return None if limit is None else limit - await _counted(conn, project_id, _BYTES)


async def show_bytes_left(database: Database, project_id: str) -> int | None:
    """As bytes_left, for who has no transaction."""
    async with database.transaction() as conn:
        return await bytes_left(conn, project_id)


async def require_bytes(conn: AsyncConnection[Any], project_id: str) -> None:
    """After a vault's use grew: the project may store so much. Raises QuotaExceeded 6142."""
    limit = (await _limits(conn, project_id)).bytes
    if limit is not None and await _counted(conn, project_id, _BYTES) > limit:
        raise bytes_exceeded(limit)


def bytes_exceeded(limit: int | None) -> QuotaExceeded:
    """The refusal of bytes. limit None: whatever it is."""
    what = f"{human_bytes(limit)} of stored data" if limit is not None else "stored data"
    return QuotaExceeded(limit=what, quota_code="6142")


async def _limits(conn: AsyncConnection[Any], project_id: str) -> Quotas:
    async with conn.cursor(row_factory=class_row(Quotas)) as cursor:
        await cursor.execute(
            "SELECT vaults, bytes, restore_points FROM project_quotas WHERE project_id = %s", [project_id]
        )
        return await cursor.fetchone() or NO_QUOTAS


async def _counted(conn: AsyncConnection[Any], project_id: str, count: LiteralString) -> int:
    """Under the project's lock, in a statement that begins after it was taken: all that others made is seen."""
    await _lock_project(conn, project_id)
    found = await conn.execute(f"SELECT {count}", {"project_id": project_id})
    row = await found.fetchone()
    assert row is not None
    return int(row[0])


async def _lock_project(conn: AsyncConnection[Any], project_id: str) -> bool:
    """False: there is no such project."""
    found = await conn.execute("SELECT 1 FROM projects WHERE id = %s FOR NO KEY UPDATE", [project_id])
    return await found.fetchone() is not None


async def _require_project(conn: AsyncConnection[Any], project_id: str) -> None:
    found = await conn.execute("SELECT 1 FROM projects WHERE id = %s", [project_id])
    if await found.fetchone() is None:
        raise AccountNotFound(id=project_id)
