"""The audit log: who did what from where. Never what was in a request, and no secret.

A change is recorded in the transaction that makes it: neither is there without the other. What changes nothing here but
should be known, a login or the download of protected data, is recorded when it was done; what was refused, when it was,
within limits: a flood of refusals must fill no disk, and whatever it leaves out is counted in the next row.

Rows are only added, by triggers (migration 0015), and go when they are older than the operator's setting.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

import structlog
from prometheus_client import Counter
from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import InvalidRequest, Unavailable
from strongroom.control.db import Database
from strongroom.control.listing import require_time
from strongroom.control.promises import promise_time

log = structlog.get_logger("audit")
LEFT_OUT = Counter("strongroom_audit_left_out", "Refused requests that were too many to be recorded.")

DAYS_MIN = 30  # the triggers keep so many, whatever a setting says
TEXT_CHARS_MAX = 128  # of a claimed name or an id in a path: nobody writes a novel into the log
PURGE_ROWS_MAX = 10_000  # of one statement; it is called again until nothing is left

# Refusals recorded of one source (a user; an address where nobody proved who it is), and of all: at once, and a second.
SOURCE_BURST, SOURCE_PER_S = 30.0, 0.5
ALL_BURST, ALL_PER_S = 300.0, 5.0
SOURCES_MAX = 10_000

_INSERT = """
    INSERT INTO audit_log (at, project_id, user_id, user_name, address, operation, objects, outcome, status, error_code,
        request_id, left_out) SELECT %(at)s, %(project_id)s, %(user_id)s, %(user_name)s, %(address)s, %(operation)s,
        %(objects)s, %(outcome)s, %(status)s, %(error_code)s, %(request_id)s, %(left_out)s
"""
_COLUMNS: LiteralString = (
    "id, at, project_id, user_id, user_name, address, operation, objects, outcome, status, error_code, request_id, "
    "left_out"
)


@dataclass(kw_only=True)
class Note:
    """What one request leaves in the log; who asks is filled in once it is known.

    objects  names and ids in the path        status  of success
    """

    operation: str
    request_id: str
    address: str
    objects: dict[str, str]
    status: int
    clock: Clock
    project_id: str = ""
    user_id: str = ""
    user_name: str = ""
    written: bool = field(default=False, init=False)

    async def write_with(self, conn: AsyncConnection[Any]) -> None:
        """Record the request as done, in a transaction that changes something; of several in the first."""
        if self.written:
            return
        done = await conn.execute(
            _INSERT.encode() + b" WHERE pg_current_xact_id_if_assigned() IS NOT NULL", self.row("done", self.status)
        )
        self.written = done.rowcount == 1

    def row(self, outcome: str, status: int, error_code: str = "", left_out: int = 0) -> dict[str, Any]:
        objects = {name: _bounded(value) for name, value in self.objects.items() if value != self.project_id}
        return {
            "at": self.clock.now(),
            "project_id": self.project_id,
            "user_id": self.user_id,
            "user_name": _bounded(self.user_name),
            "address": self.address,
            "operation": self.operation,
            "objects": Jsonb(objects),
            "outcome": outcome,
            "status": status,
            "error_code": error_code,
            "request_id": self.request_id,
            "left_out": left_out,
        }


class AuditTrail:
    """One a process: records what has no transaction of its own, refusals within their limits."""

    def __init__(self) -> None:
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # source -> (rows, when counted)
        self._left_out = 0

    async def done(self, database: Database, note: Note) -> None:
        """Record what was done and wrote no rows. It is done: a database that is away is told to the operator."""
        await self._write(database, note, note.row("done", note.status))

    async def refused(self, database: Database, note: Note, status: int, error_code: str) -> None:
        """Record a refusal unless there are too many."""
        now_s = note.clock.monotonic_s()
        sources = ((note.user_id or note.address, SOURCE_BURST, SOURCE_PER_S), ("", ALL_BURST, ALL_PER_S))
        if any(self._level(name, now_s, per_s) + 1 > burst for name, burst, per_s in sources):
            self._left_out += 1
            LEFT_OUT.inc()
            return
        for name, _, per_s in sources:
            self._levels[name] = (self._level(name, now_s, per_s) + 1, now_s)
            self._levels.move_to_end(name)
        if len(self._levels) > SOURCES_MAX:
            self._levels.popitem(last=False)
        left_out, self._left_out = self._left_out, 0
        await self._write(database, note, note.row("refused", status, error_code, left_out))

    def _level(self, name: str, now_s: float, per_s: float) -> float:
        rows, counted_at_s = self._levels.get(name, (0.0, now_s))
        return max(0.0, rows - (now_s - counted_at_s) * per_s)

    async def _write(self, database: Database, note: Note, row: dict[str, Any]) -> None:
        try:
            async with database.transaction() as conn:
                await conn.execute(_INSERT.encode(), row)
        except Unavailable as error:
            log.error("not recorded", operation=note.operation, request_id=note.request_id, error=str(error))


# --- read and retention ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of the log."""

    id: int
    at: datetime
    project_id: str
    user_id: str
    user_name: str
    address: str
    operation: str
    objects: dict[str, str]
    outcome: str
    status: int
    error_code: str
    request_id: str
    left_out: int


@dataclass(frozen=True, kw_only=True)
class RecordFilters:
    """Joined by AND; None: not asked for. Times are inclusive. user: id or name."""

    operation: str | None = None
    user: str | None = None
    outcome: str | None = None
    start_time: str | None = None
    end_time: str | None = None


async def list_records(
    database: Database, project_id: str | None, asked: RecordFilters, *, limit: int, marker: str | None
) -> list[Record]:
    """At most `limit` rows, newest first, older than the marker's; project_id None: of all projects.

    Raises InvalidRequest for a time or a marker that is none.
    """
    tests: list[tuple[LiteralString, list[Any]]] = []
    if project_id is not None:
        tests.append(("project_id = %s", [project_id]))
    if marker is not None:
        if not (marker.isascii() and marker.isdigit() and len(marker) <= 18):
            raise InvalidRequest(reason="Invalid marker provided. Give the next_marker of the page before.")
        tests.append(("id < %s", [int(marker)]))
    for text, value in (("operation = %s", asked.operation), ("outcome = %s", asked.outcome)):
        if value is not None:
            tests.append((text, [value]))
    if asked.user is not None:
        tests.append(("(user_id = %s OR user_name = %s)", [asked.user, asked.user]))
    if asked.start_time is not None:
        tests.append(("at >= %s", [require_time(asked.start_time, "start_time")]))
    if asked.end_time is not None:
        tests.append(("at <= %s", [require_time(asked.end_time, "end_time")]))
    where = sql.SQL(" AND ").join([sql.SQL(text) for text, _ in tests] or [sql.SQL("true")])
    query = sql.SQL("SELECT {} FROM audit_log WHERE {} ORDER BY id DESC LIMIT %s").format(sql.SQL(_COLUMNS), where)
    async with database.read() as conn, conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, [*(value for _, values in tests for value in values), limit])
        return [Record(**row) for row in await cursor.fetchall()]


async def purge(database: Database, days: int) -> int:
    """Remove rows older than so many days of service, at most PURGE_ROWS_MAX; how many."""
    async with database.transaction() as conn:
        done = await conn.execute(
            "DELETE FROM audit_log WHERE id IN (SELECT id FROM audit_log "
            "WHERE kept_from < %s - make_interval(days => %s) ORDER BY kept_from LIMIT %s)",
            [await promise_time(conn), max(days, DAYS_MIN), PURGE_ROWS_MAX],
        )
        return done.rowcount


def _bounded(text: str) -> str:
    """Text of a caller as it may stand in the log."""
    return "".join(c if c.isprintable() else "?" for c in text[:TEXT_CHARS_MAX])
