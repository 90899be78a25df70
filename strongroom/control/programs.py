"""The processes of an installation, as rows: which programs are at work, and which schema each of them knows.

Old and new programs work side by side while an upgrade rolls. The database says how old a program may be
(`schema_window`, written by the migration), the rows here say how old they are: a migration that one of them could not
work with is refused, and a program that came too late to be asked ends by itself at its next sign of life.
"""

import os
import socket
from dataclasses import dataclass, field

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from strongroom import __version__
from strongroom.base.errors import ConfigError
from strongroom.base.ids import new_id
from strongroom.control import migrate
from strongroom.control.db import Database

BEAT_S = 5.0
_KEPT_DAYS = 1  # rows of the dead, for who looks what there was


@dataclass(frozen=True, kw_only=True)
class Program:
    """This process. kind: serve, api or worker. worker_group None: it runs no tasks."""

    kind: str
    worker_group: str | None
    id: str = field(default_factory=new_id)
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    version: str = __version__
    schema: str = field(default_factory=migrate.head)


async def beat(database: Database, program: Program) -> None:
    """Say that it lives. Raises ConfigError when it is too old, or too new, for the schema that the database has."""
    async with database.transaction() as conn:
        # A migration waits, or has ended and is seen: none begins that does not know of this program.
        await conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", [migrate.LOCK_KEY])
        migrate.require_served(program.schema, *await _window(conn))
        await conn.execute(
            "INSERT INTO programs (id, kind, host, process, version, schema, worker_group, started_at, seen_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, now(), now()) ON CONFLICT (id) DO UPDATE SET seen_at = now()",
            [
                *(program.id, program.kind, program.host, program.process, program.version),
                *(program.schema, program.worker_group),
            ],
        )
        await conn.execute("DELETE FROM programs WHERE seen_at < now() - make_interval(days => %s)", [_KEPT_DAYS])


async def workers(database: Database, group: str) -> int:
    """How many processes give signs of life that run the tasks of this group."""
    found = await database.fetch(
        "SELECT count(*) FROM programs WHERE worker_group = %s AND seen_at > now() - make_interval(secs => %s)",
        [group, migrate.SILENT_S],
    )
    return int(found[0][0])


async def require_none(database: Database) -> None:
    """For work on an installation that is stopped. Raises ConfigError while a program of it gives signs of life."""
    found = await database.fetch(
        "SELECT kind, process, host FROM programs WHERE seen_at > now() - make_interval(secs => %s) "
        "ORDER BY host, process LIMIT 1",
        [migrate.SILENT_S],
    )
    if found:
        kind, process, host = found[0]
        raise ConfigError(
            reason=f"A program of this installation is at work: {kind} {process} on {host}. Stop all of them first; "
            f"one that was killed counts for {migrate.SILENT_S} seconds."
        )


async def leave(database: Database, program: Program) -> None:
    """It ends in order."""
    async with database.transaction() as conn:
        await conn.execute("DELETE FROM programs WHERE id = %s", [program.id])


async def _window(conn: AsyncConnection[TupleRow]) -> tuple[str | None, str | None]:
    """(revision, oldest program that works with it)."""
    found = await conn.execute(
        "SELECT (SELECT version_num FROM alembic_version), (SELECT oldest_program FROM schema_window)"
    )
    row = await found.fetchone()
    return (row[0], row[1]) if row is not None else (None, None)
