"""Sessions: which index number a reader or writer of a vault's repository still needs (RULINGS 9).

A session of a task lives until the task is final, not until its worker dies; the functions that end a task close them.
A session without a task is a download: its process closes it, and its age ends it if the process died.
"""

from typing import Any

from psycopg import AsyncConnection

from strongroom.base.clock import Clock
from strongroom.base.errors import Fenced, StrongroomError
from strongroom.base.ids import new_id
from strongroom.control import tasks
from strongroom.control.db import Database
from strongroom.control.tasks import Task

DOWNLOAD_HOURS_MAX = 24  # a download that died without closing holds deleted space for at most this long (RULINGS 9)


async def open_session(
    database: Database,
    *,
    project_id: str,
    vault_id: str,
    task_id: str | None,
    kind: str,
    index_number: int,
    domain_id: str | None = None,
    place: str | None = None,
) -> str:
    """Pin an index number of a domain (None: the vault's own); durable on return.

    kind: backup, restore, verify, copy, mount, prune. place: the state folder of the process (close_unowned).
    Raises Fenced when the task is final: what closes its sessions has run, and nothing would close this one.
    """
    session_id = new_id()
    async with database.transaction() as conn:
        if task_id is not None:
            # Shared, so that what makes the task final comes before, and is seen, or after, and closes it.
            found = await conn.execute(
                "SELECT 1 FROM operation_logs WHERE id = %s AND status IN ('waiting', 'running') FOR SHARE", [task_id]
            )
            if await found.fetchone() is None:
                raise Fenced(reason="the task has ended", detail=f"task {task_id} would pin index {index_number}")
        await conn.execute(
            "INSERT INTO sessions (id, project_id, vault_id, domain_id, task_id, kind, index_number, place, opened_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, now())",
            [session_id, project_id, vault_id, domain_id, task_id, kind, index_number, place],
        )
    return session_id


async def close_session(database: Database, project_id: str, session_id: str) -> None:
    """Give the pin up. Idempotent. For downloads: sessions of tasks are closed by what ends the task."""
    async with database.transaction() as conn:
        await conn.execute("DELETE FROM sessions WHERE project_id = %s AND id = %s", [project_id, session_id])


async def close_sessions_of(conn: AsyncConnection[Any], task: Task) -> None:
    """Close every session of a task, in the transaction that makes it final: in vaults of its project, and in that of
    another project whose backup it reads."""
    await conn.execute(
        "DELETE FROM sessions WHERE project_id = ANY(%s) AND task_id = %s",
        [[task.project_id, task.lender_project_id or task.project_id], task.id],
    )


async def fail_alone(database: Database, task: Task, error: StrongroomError, clock: Clock) -> None:
    """End a task that was not done and has changed no row but its own. Works without the vault's. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, status="failed", error=error)


async def oldest_pinned(database: Database, project_id: str, vault_id: str, domain_id: str | None = None) -> int | None:
    """The lowest index number that a session of this domain still needs (None: of the vault's own). Gives None when
    nobody pins anything: domains count for themselves, so the number of another one says nothing."""
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT min(index_number) FROM sessions WHERE project_id = %s AND vault_id = %s "
            "AND domain_id IS NOT DISTINCT FROM %s "
            "AND CASE WHEN task_id IS NULL THEN opened_at > now() - make_interval(hours => %s) ELSE EXISTS (SELECT 1 "
            "FROM operation_logs o WHERE o.id = task_id AND o.status IN ('waiting', 'running')) END",
            [project_id, vault_id, domain_id, DOWNLOAD_HOURS_MAX],
        )
        row = await found.fetchone()
    return None if row is None else row[0]


async def close_unowned(database: Database, place: str | None) -> int:
    """End the sessions that no task owns (downloads, browsing). Only for who knows that every process that opened one
    is dead: those of a state folder, for the holder of its lock (RULINGS 6), or (None) of the whole installation."""
    async with database.transaction() as conn:
        # Not of a project: whole processes were stopped.
        return (
            await conn.execute(
                "DELETE FROM sessions WHERE task_id IS NULL AND (%(place)s::text IS NULL OR place = %(place)s)",
                {"place": place},
            )
        ).rowcount
