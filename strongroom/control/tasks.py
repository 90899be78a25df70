"""Tasks: the operation log's row is the task and decides (RULINGS 1).

    request   INSERT the row with the other rows of the request, NOTIFY, commit, answer
    worker    claim (claiming.py: a short transaction; waiting, or running with a lapsed lease; limits checked under
              locks) -> generation + 1, lease set -> work -> every later write guarded by `generation = mine`
    renewal   a thread of the worker extends the leases of its rows; who cannot renew must stop
    sweeper   in every worker: rows whose attempts are used up end as failed, with the reason

Delivery is this table too: FOR UPDATE SKIP LOCKED finds a row, NOTIFY only shortens the wait. docs/decisions/0001 has
the numbers that made a second job table unnecessary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import Fenced, StrongroomError
from strongroom.base.ids import first_id, new_id
from strongroom.control.db import Database
from strongroom.control.promises import promise_time

CHANNEL = "strongroom_tasks"
LEASE_S = 10  # renewed every 2 s, so four renewals may fail before somebody else takes over (RULINGS 1)
ATTEMPTS_MAX = 5  # a task that killed five workers will kill the sixth
FORGET_ROWS_MAX = 1000  # of one transaction
ANY_GROUP = "*"  # tasks that need the store only: every worker runs them


class NewTask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request writes. Ids are text; None where the operation has none.

    worker_group  whose workers reach what is read or written; by default it is the store only
    source_host   the host whose limit counts for it; "": none
    """

    project_id: str
    operation_type: str
    request_id: str
    vault_id: str | None = None
    vault_name: str | None = None
    provider_id: str | None = None
    checkpoint_id: str | None = None
    policy_id: str | None = None
    backup_id: str | None = None
    backup_name: str | None = None
    resource_id: str | None = None
    resource_type: str | None = None
    resource_name: str | None = None
    target_resource_id: str | None = None
    target_resource_name: str | None = None
    member_id: str | None = None
    lender_project_id: str | None = None
    lender_vault_id: str | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    listed: bool = True
    worker_group: str = ANY_GROUP
    source_host: str = ""
    not_before: datetime | None = None
    id: str = msgspec.field(default_factory=new_id)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A claimed row. `generation` is the fencing number of this attempt, `state` what earlier attempts left for it.

    member_id, lender_project_id   the share through which a restore reads another project's backup, and whose it is
    """

    id: str
    project_id: str
    operation_type: str
    generation: int
    attempts: int
    vault_id: str | None
    vault_name: str | None
    provider_id: str | None
    checkpoint_id: str | None
    backup_id: str | None
    resource_id: str | None
    resource_type: str | None
    resource_name: str | None
    target_resource_id: str | None
    request_id: str
    parameters: dict[str, Any]
    state: dict[str, Any]
    member_id: str | None = None
    lender_project_id: str | None = None
    cancel_requested: bool = False


# The columns of a Task.
CLAIMED = """id, project_id, operation_type, generation, attempts, vault_id, vault_name, provider_id, checkpoint_id,
    backup_id, resource_id, resource_type, resource_name, target_resource_id, request_id, parameters, state,
    member_id, lender_project_id, cancel_requested"""


# As one document: the statement is the same for any number of rows, so it stays prepared. A field that was left at its
# default is not in it: NULL, or what stands here.
_COLUMN_TYPES = {"parameters": "jsonb", "listed": "boolean", "not_before": "timestamptz"}  # the others are text
_NOT_NULL = {"parameters": "'{}'", "listed": "true", "worker_group": f"'{ANY_GROUP}'", "source_host": "''"}
_COLUMNS = NewTask.__struct_fields__
_VALUES = [f"coalesce({name}, {_NOT_NULL[name]})" if name in _NOT_NULL else name for name in _COLUMNS]
_INSERT = f"""
    INSERT INTO operation_logs (status, created_at, updated_at, {", ".join(_COLUMNS)})
    SELECT 'waiting', %s, %s, {", ".join(_VALUES)}
    FROM json_to_recordset(%s) AS t({", ".join(f"{name} {_COLUMN_TYPES.get(name, 'text')}" for name in _COLUMNS)})
""".encode()  # noqa: S608 -- names are ours


async def insert(conn: AsyncConnection[Any], tasks: Sequence[NewTask], now: datetime) -> None:
    """Write the rows of a request and wake the workers when the caller's transaction commits.

    Raises psycopg's UniqueViolation when a resource, target, backup or vault has an open task of that kind already:
    callers that did not check under a lock translate it.
    """
    if not tasks:
        return
    await conn.execute(_INSERT, [now, now, msgspec.json.encode(tasks).decode()])
    groups = {task.worker_group for task in tasks}
    told = groups.pop() if len(groups) == 1 else ANY_GROUP
    await conn.execute("SELECT pg_notify(%s, %s)", [CHANNEL, told])


async def renew(database: Database, worker: str, mine: dict[str, int]) -> tuple[set[str], set[str]]:
    """Extend the leases of this worker's tasks ({id: generation}). Returns (still ours, those that must stop: somebody
    canceled them, or the share they read through has ended)."""
    if not mine:
        return set(), set()
    async with database.transaction() as conn, conn.cursor() as cursor:
        await cursor.execute(
            """
            UPDATE operation_logs t SET lease_until = now() + make_interval(secs => %s)
            FROM unnest(%s::text[], %s::int[]) AS m(id, generation)
            WHERE t.id = m.id AND t.generation = m.generation AND t.status = 'running' AND t.worker = %s
            RETURNING t.id, t.cancel_requested OR (t.member_id IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM backup_members s WHERE s.id = t.member_id AND s.project_id = t.lender_project_id
                AND s.status = 'accepted'))
            """,
            [LEASE_S, list(mine), list(mine.values()), worker],
        )
        rows = await cursor.fetchall()
    return {r[0] for r in rows}, {r[0] for r in rows if r[1]}


async def end_leases(database: Database, place: str | None) -> int:
    """Free what dead workers left: those of a state folder, for who holds its lock and knows that every earlier worker
    of it is dead (RULINGS 6), or (None) of the whole installation, for who knows that it is the only one."""
    async with database.transaction() as conn:
        done = await conn.execute(
            "UPDATE operation_logs SET lease_until = now() - interval '1 second' "
            "WHERE status = 'running' AND (%(place)s::text IS NULL OR starts_with(worker, %(place)s || '/'))",
            {"place": place},
        )
        return done.rowcount


async def still_mine(conn: AsyncConnection[Any], task: Task) -> None:
    """Lock the row of this attempt until the transaction ends. Raises Fenced when it ended or a newer one has it."""
    found = await conn.execute(
        "SELECT 1 FROM operation_logs WHERE id = %s AND generation = %s AND status = 'running' FOR UPDATE",
        [task.id, task.generation],
    )
    if await found.fetchone() is None:
        raise Fenced(reason="its lease ran out", detail=f"task {task.id} generation {task.generation}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a running task is.

    bytes_total   0: nobody knows        total_exact  False: what the resource had at the last look
    percent       0..99: 100 is said by the transaction that ends the task
    rate_bytes_s  of the last seconds; None: too early to tell
    """

    bytes_done: int
    bytes_total: int
    total_exact: bool
    entries_done: int
    percent: int
    rate_bytes_s: int | None


async def note_progress(database: Database, task: Task, progress: Progress) -> None:
    """Written by the worker's renewal; lost progress is only a number on a screen."""
    async with database.transaction() as conn:
        await conn.execute(
            "UPDATE operation_logs SET bytes_done = %s, bytes_total = %s, total_exact = %s, entries_done = %s, "
            "progress = %s, rate_bytes_s = %s, updated_at = now() "
            "WHERE id = %s AND generation = %s AND status = 'running'",
            [
                *(progress.bytes_done, progress.bytes_total, progress.total_exact, progress.entries_done),
                *(progress.percent, progress.rate_bytes_s, task.id, task.generation),
            ],
        )


async def save_state(database: Database, task: Task, state: dict[str, Any]) -> None:
    """What the next attempt needs, durable before the work goes on. Raises Fenced."""
    async with database.transaction() as conn:
        await still_mine(conn, task)
        await conn.execute("UPDATE operation_logs SET state = %s WHERE id = %s", [Jsonb(state), task.id])


async def finish(
    conn: AsyncConnection[Any],
    task: Task,
    clock: Clock,
    *,
    status: str = "success",
    error: StrongroomError | None = None,
    outcome: dict[str, Any] | None = None,
) -> None:
    """End the task, in the transaction of what it changed; `still_mine` MUST have been called in it."""
    now = clock.now()
    await conn.execute(
        "UPDATE operation_logs SET status = %s, ended_at = %s, updated_at = %s, lease_until = NULL, "
        "rate_bytes_s = NULL, error_code = %s, error_message = %s, error_detail = %s, outcome = %s, "
        "progress = CASE WHEN %s = 'success' THEN 100 ELSE progress END WHERE id = %s AND generation = %s",
        [
            status,
            now,
            now,
            error.published_code if error else "",
            error.message if error else "",
            error.detail if error else "",
            Jsonb(outcome or {}),
            status,
            task.id,
            task.generation,
        ],
    )


async def put_back(database: Database, task: Task, delay_s: float, *, count: bool) -> None:
    """Give the task back for a later attempt: a retryable failure, or a worker that drains (count=False)."""
    async with database.transaction() as conn:
        await still_mine(conn, task)
        await conn.execute(
            "UPDATE operation_logs SET status = 'waiting', lease_until = NULL, worker = NULL, rate_bytes_s = NULL, "
            "not_before = now() + make_interval(secs => nullif(%s, 0)), attempts = attempts - %s WHERE id = %s",
            [delay_s, 0 if count else 1, task.id],
        )
        await conn.execute(f"NOTIFY {CHANNEL}".encode())


async def give_back(database: Database, worker: str, mine: dict[str, int]) -> None:
    """As put_back without counting, over the heads of jobs that do not stop ({id: generation}): what they still write
    finds that the task is not theirs any more."""
    async with database.transaction() as conn:
        await conn.execute(
            "UPDATE operation_logs t SET status = 'waiting', lease_until = NULL, worker = NULL, rate_bytes_s = NULL, "
            "attempts = attempts - 1 FROM unnest(%s::text[], %s::int[]) AS m(id, generation) "
            "WHERE t.id = m.id AND t.generation = m.generation AND t.status = 'running' AND t.worker = %s",
            [list(mine), list(mine.values()), worker],
        )
        await conn.execute(f"NOTIFY {CHANNEL}".encode())


# The number is that of the index `operation_logs_exhausted`.
_EXHAUSTED = f"""
    UPDATE operation_logs SET generation = generation + 1, status = 'running', worker = %s,
        lease_until = now() + make_interval(secs => %s)
    WHERE id IN (SELECT id FROM operation_logs WHERE worker_group = ANY(%s) AND attempts >= {ATTEMPTS_MAX}
                 AND status IN ('waiting', 'running') AND (status = 'waiting' OR lease_until < now())
                 ORDER BY created_at LIMIT 100 FOR UPDATE SKIP LOCKED)
    RETURNING {CLAIMED}
""".encode()  # noqa: S608 -- the columns are ours


async def exhausted(database: Database, worker: str, group: str) -> list[Task]:
    """Tasks whose attempts are used up and whose last worker is gone: to be ended by `operations`, with the reason.

    Each is claimed once more (generation raised, lease set), so that two sweepers and a zombie cannot both end it.
    """
    async with database.transaction() as conn, conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_EXHAUSTED, [worker, LEASE_S, [group, ANY_GROUP]])
        return [Task(**row) for row in await cursor.fetchall()]


async def take_waiting(conn: AsyncConnection[Any], project_id: str, task_id: str) -> Task | None:
    """Claim a task that waits and never began, to end it as canceled; None: there is no such task.

    It counts as running under a lease of its own, so that whoever dies before the end leaves it to a worker, which sees
    the same wish.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"""
            UPDATE operation_logs SET status = 'running', generation = generation + 1, worker = 'canceled',
                lease_until = now() + make_interval(secs => %s), cancel_requested = true, updated_at = now()
            WHERE project_id = %s AND id = %s AND status = 'waiting' AND started_at IS NULL RETURNING {CLAIMED}
            """.encode(),  # noqa: S608 -- the columns are ours
            [LEASE_S, project_id, task_id],
        )
        row = await cursor.fetchone()
    return Task(**row) if row is not None else None


# In the order of ids, which is that of time: no index is needed to find what is old, and none has to be kept for it.
_FORGET = """
    WITH looked AS (
        SELECT id, project_id, vault_id, backup_id, operation_type, status, ended_at FROM operation_logs
        WHERE id > %(after)s AND id < %(first_kept)s ORDER BY id LIMIT %(rows)s),
    gone AS (
        DELETE FROM operation_logs o USING looked l WHERE o.id = l.id
            AND o.status NOT IN ('waiting', 'running') AND o.ended_at < %(over)s
            AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.task_id = l.id)
            AND (l.backup_id IS NULL
                 OR EXISTS (SELECT 1 FROM backups b WHERE b.project_id = l.project_id AND b.id = l.backup_id)
                 OR NOT EXISTS (SELECT 1 FROM vaults v WHERE v.project_id = l.project_id AND v.id = l.vault_id)
                 OR EXISTS (SELECT 1 FROM operation_logs p WHERE p.project_id = l.project_id
                            AND p.vault_id = l.vault_id AND p.operation_type = 'prune' AND p.status = 'success'
                            AND p.created_at > l.ended_at))
            AND NOT (l.operation_type = 'verify' AND l.status = 'success'
                     AND EXISTS (SELECT 1 FROM vaults v WHERE v.project_id = l.project_id AND v.id = l.vault_id)
                     AND NOT EXISTS (SELECT 1 FROM operation_logs n WHERE n.project_id = l.project_id
                                     AND n.vault_id = l.vault_id AND n.operation_type = 'verify'
                                     AND n.status = 'success' AND n.ended_at > l.ended_at))
        RETURNING 1)
    SELECT max(id), (SELECT count(*) FROM gone)::int FROM looked
"""


async def forget(database: Database, days: int) -> int:
    """Remove rows of what ended that many days of service ago; how many.

    Kept longer: what is open, what a session still names, the last check of a vault that was good, by which `/metrics`
    tells how long ago that is; and what names a backup that is gone, until a prune of its vault has looked at what the
    store still has: a root that no row tells of is one that this database never knew (deletions.unknown_backups).
    """
    async with database.read() as conn:
        over = await promise_time(conn) - timedelta(days=days)
    after: str | None = ""
    removed = 0
    while after is not None:
        async with database.transaction() as conn:
            found = await conn.execute(
                _FORGET, {"after": after, "first_kept": first_id(over), "over": over, "rows": FORGET_ROWS_MAX}
            )
            row = await found.fetchone()
        assert row is not None
        after, gone = row
        removed += gone
    return removed


async def request_cancel(conn: AsyncConnection[Any], project_id: str, task_id: str) -> bool:
    """Set the flag a running job reads between segments. False: no such open task in this project."""
    done = await conn.execute(
        "UPDATE operation_logs SET cancel_requested = true WHERE project_id = %s AND id = %s "
        "AND status IN ('waiting', 'running')",
        [project_id, task_id],
    )
    return done.rowcount == 1
