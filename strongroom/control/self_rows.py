"""What the catalogue knows of its own copies in the store, and what becomes of its rows when one of them is put back.

A copy is older than the store. What was made since is found by its labels (control/rebuilding.py); what was under way
or was removed since is settled here: nothing is overwritten by a restore of last week, and a restore point that is gone
is not reported.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection, Connection
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock, api_timestamp
from strongroom.control import checkpoints
from strongroom.control.db import Database

COPIED_AT, BEGAN_AT = "self_copied_at", "self_copies_began_at"
LOADED = "self_copy_loaded"  # its number, from the load until the store was asked for what is newer
ALONE = 0x53656C66  # "Self": the lock of who copies
FIRST_AFTER = timedelta(hours=1)  # a new installation has something to lose by then

# Facts of the moment, or of no use after a loss. Keys are left out so that a vault stays shredded: the store has them.
LEFT_OUT = frozenset({"sessions", "seen_signatures", "login_sources"})
BLANKED = {"vault_keys": "wrapped"}


async def is_due(database: Database, every: timedelta, clock: Clock) -> bool:
    """Whether a copy is to be made now. A database that has never seen this question has `FIRST_AFTER` from now."""
    now = clock.now()
    async with database.transaction() as conn:
        await conn.execute(
            "INSERT INTO installation (name, value) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING",
            [BEGAN_AT, now.isoformat()],
        )
        found = await conn.execute("SELECT name, value FROM installation WHERE name = ANY(%s)", [[COPIED_AT, BEGAN_AT]])
        at = {name: datetime.fromisoformat(value) for name, value in await found.fetchall()}
    if COPIED_AT in at:
        return now >= at[COPIED_AT] + every or at[COPIED_AT] > now
    return now >= at[BEGAN_AT] + min(every, FIRST_AFTER)


async def note_copied(database: Database, at: datetime) -> None:
    """Remember when the newest copy was made: of what moment it is."""
    async with database.transaction() as conn:
        await conn.execute(
            "INSERT INTO installation (name, value) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = %s",
            [COPIED_AT, at.isoformat(), at.isoformat()],
        )


def settle_moved(conn: Connection[Any]) -> None:
    """Last step of loading rows into another database: what belonged to the old one ends.

    Leases are of workers that are gone, programs of the other database. Positions of event streams are transaction
    numbers of the old database: every row counts as unchanged, and a stream that goes on from an old position is told
    what changes from now on.
    """
    conn.execute("DELETE FROM sessions WHERE task_id IS NULL")
    if conn.execute("SELECT 1 WHERE to_regclass('programs') IS NOT NULL").fetchone():  # a copy may be older
        conn.execute("DELETE FROM programs")
    conn.execute("UPDATE operation_logs SET lease_until = now() - interval '1 second' WHERE status = 'running'")
    conn.execute("UPDATE operation_logs SET change = 0 WHERE change <> 0")
    conn.execute("UPDATE checkpoints SET change = 0 WHERE change <> 0")


def settle_loaded(conn: Connection[Any], number: int) -> None:
    """Last step of loading the copy `number` of earlier: what was under way then goes on, but for restores.

    A backup adopts what its attempt left, a delete finds nothing left to delete; a restore may have ended long ago, and
    people have worked in its target since: it is canceled.
    """
    settle_moved(conn)
    conn.execute(
        "UPDATE operation_logs SET cancel_requested = true "
        "WHERE operation_type = 'restore' AND status IN ('waiting', 'running')"
    )
    conn.execute("INSERT INTO installation (name, value) VALUES (%s, %s)", [LOADED, str(number)])


async def is_loaded(database: Database) -> bool:
    """Whether a copy was put back and the store was not asked yet for what is newer."""
    return bool(await database.fetch("SELECT 1 FROM installation WHERE name = %s", [LOADED]))


async def note_settled(database: Database) -> None:
    """The rows agree with the store. Idempotent."""
    async with database.transaction() as conn:
        await conn.execute("DELETE FROM installation WHERE name = %s", [LOADED])


@dataclass(frozen=True, kw_only=True)
class KnownRoot:
    """A root that a row names. domain_id: in hex, None for the vault's own."""

    project_id: str
    vault_id: str
    domain_id: str | None
    backup_id: str
    checkpoint_id: str
    root: str


async def known_roots(database: Database) -> list[KnownRoot]:
    """Every root that a restore point needs, of all projects. What is being deleted needs its own no more."""
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT project_id, vault_id, domain_id, id, checkpoint_id, root FROM backups WHERE root IS NOT NULL "
            "AND status NOT IN ('waiting_delete', 'deleting', 'error')"
        )
        return [
            KnownRoot(project_id=p, vault_id=v, domain_id=d, backup_id=b, checkpoint_id=c, root=r)
            for p, v, d, b, c, r in await found.fetchall()
        ]


async def mark_gone(database: Database, gone: Sequence[KnownRoot], now: datetime) -> None:
    """Backups whose root is not in the store are in error: they were deleted after the copy was made, or are lost."""
    damage = {
        "reason": "its root is not in the store: it was deleted after the copy of the database was made, or lost",
        "files": 0,
        "paths": [],
        "task": "",
        "found_at": api_timestamp(now),
    }
    for project_id in sorted({each.project_id for each in gone}):
        own = [each for each in gone if each.project_id == project_id]
        async with database.transaction() as conn:
            await conn.execute(
                "UPDATE backups SET status = CASE WHEN status = 'available' THEN 'error' ELSE status END, damage = %s, "
                "updated_at = %s WHERE project_id = %s AND id = ANY(%s)",
                [Jsonb(damage), now, project_id, [each.backup_id for each in own]],
            )
            await checkpoints.settle(conn, project_id, sorted({each.checkpoint_id for each in own}), now)


async def forget(database: Database, gone: Collection[KnownRoot]) -> None:
    """Drop rows of backups that were found elsewhere in the store, so that they get new ones there."""
    async with database.transaction() as conn:
        for each in gone:
            await conn.execute(
                "DELETE FROM backups WHERE project_id = %s AND id = %s", [each.project_id, each.backup_id]
            )
            await _drop_empty(conn, each)


async def _drop_empty(conn: AsyncConnection[Any], gone: KnownRoot) -> None:
    await conn.execute(
        "DELETE FROM checkpoints c WHERE c.project_id = %s AND c.id = %s AND NOT EXISTS "
        "(SELECT 1 FROM backups b WHERE b.project_id = c.project_id AND b.checkpoint_id = c.id)",
        [gone.project_id, gone.checkpoint_id],
    )


async def vaults_with_keys(database: Database) -> list[tuple[str, str]]:
    """(project, vault) of every vault that has had keys."""
    async with database.read() as conn:
        found = await conn.execute("SELECT DISTINCT project_id, vault_id FROM vault_keys ORDER BY 1, 2")
        return [(project_id, vault_id) for project_id, vault_id in await found.fetchall()]


async def fill_keys(database: Database, project_id: str, vault_id: str, wrapped: Mapping[str | None, bytes]) -> None:
    """Copies of the wrapped keys as the store has them, by domain (None: its own). Others stay empty: shredded."""
    async with database.transaction() as conn:
        for domain_id, data in wrapped.items():
            await conn.execute(
                "UPDATE vault_keys SET wrapped = %s WHERE project_id = %s AND vault_id = %s "
                "AND domain_id IS NOT DISTINCT FROM %s",
                [data, project_id, vault_id, domain_id],
            )
