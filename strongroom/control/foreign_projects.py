"""Projects that another Keystone owns: the first caller of one brings its row, on which a tenant's rows hang."""

from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from strongroom.control.db import Database
from strongroom.control.organization_copies import give_policies

NAME_CHARS_MAX = 64  # of our own names; longer ones are cut, their callers carry the full ones


async def adopt_project(
    database: Database, *, project_id: str, name: str, domain_id: str, domain_name: str, now: datetime
) -> bool:
    """Make domain and project if they are new; gives whether the project is enabled here. Idempotent.

    A name that another row has already gives way to the id: names here are for operators to read.
    """
    async with database.transaction() as conn:
        row = await _enabled(conn, project_id)
        if row is None:
            await conn.execute(
                "INSERT INTO domains (id, name, created_at) SELECT %(id)s, CASE WHEN EXISTS "
                "(SELECT 1 FROM domains WHERE name = %(name)s) THEN %(id)s ELSE %(name)s END, %(now)s "
                "ON CONFLICT DO NOTHING",
                {"id": domain_id, "name": _short(domain_name, domain_id), "now": now},
            )
            made = await conn.execute(
                "INSERT INTO projects (id, domain_id, name, created_at) SELECT %(id)s, %(domain)s, CASE WHEN EXISTS "
                "(SELECT 1 FROM projects WHERE domain_id = %(domain)s AND name = %(name)s) THEN %(id)s "
                "ELSE %(name)s END, %(now)s ON CONFLICT DO NOTHING",
                {"id": project_id, "domain": domain_id, "name": _short(name, project_id), "now": now},
            )
            if made.rowcount:
                await give_policies(conn, domain_id, project_id, now)
            row = await _enabled(conn, project_id)
        return row is not None and row


def _short(name: str, row_id: str) -> str:
    return name[:NAME_CHARS_MAX] if name and name.isprintable() else row_id


async def _enabled(conn: AsyncConnection[TupleRow], project_id: str) -> bool | None:
    row = await (await conn.execute("SELECT enabled FROM projects WHERE id = %s", (project_id,))).fetchone()
    return bool(row[0]) if row is not None else None
