"""What changed in the tasks and restore points of some projects since a position.

A position is a transaction number. Every row carries the number of the transaction that changed it last, and below the
oldest transaction under way nothing can appear any more: so "everything from that number on" misses nothing, whatever
the order of commits. Rows tell how things are now, not how they came about: who missed ten changes of a task sees one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.control.db import Database
from strongroom.control.operation_logs import COLUMNS as TASK_COLUMNS
from strongroom.control.operation_logs import OperationLog


@dataclass(frozen=True, kw_only=True)
class RestorePoint:
    """A restore point as an event tells it. updated_at: None until its first change."""

    id: str
    project_id: str
    vault_id: str
    vault_name: str
    name: str
    status: str
    auto_trigger: bool
    created_at: datetime
    updated_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row as it is now. number: of the transaction that changed it; position: where to go on after it."""

    number: int
    position: int
    row: OperationLog | RestorePoint


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look found.

    changes   in the order of their numbers       more  there were too many: what is listed is not all
    horizon   every later look from here finds what this one could not see yet
    ahead     no transaction has begun with this number or a higher one
    """

    changes: list[Change]
    more: bool
    horizon: int
    ahead: int


_POINT_COLUMNS: LiteralString = (
    "id, project_id, vault_id, vault_name, name, status, auto_trigger, created_at, updated_at"
)


async def look(database: Database, project_ids: Sequence[str], position: int | None, rows_max: int) -> Look:
    """Rows of the projects that changed at `position` or later, at most rows_max of each kind; None: only where we are.

    Raises Unavailable.
    """
    async with database.read() as conn:
        # Before the rows: what is not visible to their statements then has this number or a higher one.
        found = await conn.execute(
            "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() s"
        )
        row = await found.fetchone()
        assert row is not None
        horizon, ahead = row
        if position is None:
            return Look(changes=[], more=False, horizon=horizon, ahead=ahead)
        tasks = await _changed(conn, "operation_logs", TASK_COLUMNS, project_ids, position, rows_max)
        points = await _changed(conn, "checkpoints", _POINT_COLUMNS, project_ids, position, rows_max)
    numbered: list[tuple[int, OperationLog | RestorePoint]] = [
        *((task.pop("change"), OperationLog(**task)) for task in tasks[:rows_max]),
        *((point.pop("change"), RestorePoint(**point)) for point in points[:rows_max]),
    ]
    numbered.sort(key=lambda pair: pair[0])
    return Look(
        changes=[Change(number=number, position=min(number, horizon), row=row) for number, row in numbered],
        more=max(len(tasks), len(points)) > rows_max,
        horizon=horizon,
        ahead=ahead,
    )


async def _changed(
    conn: AsyncConnection[Any],
    table: LiteralString,
    columns: LiteralString,
    project_ids: Sequence[str],
    position: int,
    rows_max: int,
) -> list[dict[str, Any]]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"SELECT {columns}, change FROM {table} "  # noqa: S608 -- names are ours
            "WHERE project_id = ANY(%s) AND change >= %s ORDER BY change LIMIT %s",
            [list(project_ids), position, rows_max + 1],
        )
        return await cursor.fetchall()
