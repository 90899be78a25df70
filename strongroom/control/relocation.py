"""The mark of a database that is being moved into: whose move it is, and how far it has come.

    nothing there -> mark (id) -> schema -> rows and `loaded`, one transaction -> schema of today -> mark dropped

While the mark is there no server starts on the database. It is a table of its own, outside of the schema, because it is
there before that. Synchronous, as control/table_copies.py is.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import Connection

from strongroom.base.clock import Clock
from strongroom.base.errors import ConfigError
from strongroom.control import self_rows
from strongroom.control.db import Database
from strongroom.control.deletions import queue_prune
from strongroom.control.subjects import lock_vault
from strongroom.control.table_copies import MARK, Counted, Loading, Snapshot, connect, load


def claim_database(url: str, move_id: str) -> str | None:
    """Mark an empty database as the target of this move, or find our mark. Gives the fingerprint of the rows that were
    loaded; None: nothing was. Raises ConfigError when the database is not empty or another move's; Unavailable."""
    with connect(url) as conn:
        if not _marked(conn):
            found = conn.execute(
                "SELECT c.relname FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace "
                "AND c.relkind IN ('r', 'p', 'v', 'm') LIMIT 1"
            ).fetchone()
            if found is not None:
                raise ConfigError(
                    reason=f"The database to move into is not empty: it has {found[0]!r}. Give an empty one; nothing "
                    "was changed."
                )
            conn.execute("CREATE TABLE strongroom_move (id text PRIMARY KEY, loaded text)")
            conn.execute("INSERT INTO strongroom_move (id) VALUES (%s)", [move_id])
            return None
        row = conn.execute("SELECT id, loaded FROM strongroom_move").fetchone()
    if row is None or row[0] != move_id:
        raise ConfigError(
            reason="The database to move into is that of another move, which has not ended. Give an empty one."
        )
    return str(row[1]) if row[1] is not None else None


def load_moved(url: str, tables: Sequence[Loading], found: str) -> None:
    """All rows in one transaction, which notes `found`, their fingerprint, in the mark."""

    def after(conn: Connection[Any]) -> None:
        self_rows.settle_moved(conn)
        conn.execute("UPDATE strongroom_move SET loaded = %s", [found])

    load(url, tables, after=after)


def fingerprint(counted: Mapping[str, Counted]) -> str:
    """Of all rows of all tables."""
    lines = [f"{name} {each.rows} {each.checksum}" for name, each in sorted(counted.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def count_all(taken: Snapshot) -> dict[str, Counted]:
    """Rows and checksum of every table."""
    return {table.name: taken.count(table) for table in taken.tables()}


def release_database(url: str) -> None:
    """The move has ended: a server may start. Idempotent."""
    with connect(url) as conn:
        conn.execute("DROP TABLE IF EXISTS strongroom_move")


async def require_moved_in(database: Database) -> None:
    """Raises ConfigError while a move into this database has not ended."""
    if await database.fetch("SELECT 1 WHERE to_regclass(%s) IS NOT NULL", [MARK]):
        raise ConfigError(
            reason="A move into this database has not ended. Run `strongroom migrate` again where it began."
        )


async def keep_promises_anew(database: Database, clock: Clock) -> int:
    """Locked vaults get a prune, which has the new store keep what is promised. Gives their number."""
    rows = await database.fetch("SELECT project_id, id FROM vaults WHERE locked AND status <> 'deleting' ORDER BY id")
    for project_id, vault_id in rows:
        async with database.transaction() as conn:
            await queue_prune(conn, await lock_vault(conn, project_id, vault_id), request_id="", clock=clock)
    return len(rows)


def _marked(conn: Connection[Any]) -> bool:
    row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", [MARK]).fetchone()
    return bool(row and row[0])
