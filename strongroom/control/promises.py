"""Locked vaults: what is promised to a restore point, and the clock that the promise runs by (RULINGS 22).

A restore point of a locked vault that was made by a policy, or by anybody where the vault keeps manual ones too, stays
until its time is over; one without a time stays until its policy's count lets it go, and no request ends it. The time
is counted by a clock of its own, a row that only goes forward, no faster than the steady clock of a running worker. A
machine whose clock is set forward ends no promise early, one whose clock is set back freezes none; what the service was
not there for is not counted, so a promise can only end late.

The database keeps this too, by triggers: rows that are promised are neither deleted nor marked for it, the lock does
not open, and the clock is not set.
"""

from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from strongroom.base.clock import Clock
from strongroom.control.db import Database
from strongroom.control.subjects import VaultRef

# What a locked vault keeps without a time (until its policy's count lets it go, or for ever) is asked of the store for
# this long, again and again: what leaves the vault takes room there no longer than that.
ENDLESS_S = 30 * 86400.0
TICK_S_MAX = 3600.0  # of one tick: what the database takes in one step


class PromiseTicker:
    """Advances the clock of promises by what this process lived through; one a worker, on one task."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._last_s = clock.monotonic_s()

    async def tick(self) -> None:
        """Count the time since the last tick, of whichever worker: two of them do not make it run twice as fast."""
        now_s = self._clock.monotonic_s()
        lived_s = min(TICK_S_MAX, max(0.0, now_s - self._last_s))
        async with self._database.transaction() as conn:
            await conn.execute(
                "UPDATE promise_clock SET ticked_at = now(), at = at + least(make_interval(secs => %s), "
                "greatest(now() - ticked_at, interval '0'))",
                [lived_s],
            )
        self._last_s = now_s


async def promise_time(conn: AsyncConnection[Any]) -> datetime:
    """What the clock of promises shows."""
    found = await conn.execute("SELECT at FROM promise_clock")
    row = await found.fetchone()
    assert row is not None, "made by the migration, and never deleted"
    at: datetime = row[0]
    return at


async def show_promise_time(database: Database) -> datetime:
    """As promise_time, for who has no transaction."""
    async with database.read() as conn:
        return await promise_time(conn)


async def promise(conn: AsyncConnection[Any], vault: VaultRef, now: datetime) -> None:
    """Promise their time to the backups of a vault that it keeps, where that has not been done. Lock MUST be held.

    Counted from now by the clock of promises: a time that is over by the machine's clock is not promised again.
    """
    await conn.execute(
        "UPDATE backups b SET promised_until = c.at + (b.expired_at - %(now)s) FROM promise_clock c, vaults v "
        "WHERE b.project_id = %(project)s AND b.vault_id = %(vault)s AND v.project_id = b.project_id "
        "AND v.id = b.vault_id AND v.locked AND (b.auto_trigger OR v.keep_manual) AND b.promised_until IS NULL "
        "AND b.expired_at > %(now)s AND b.status NOT IN ('error', 'waiting_delete', 'deleting')",
        {"now": now, "project": vault.project_id, "vault": vault.id},
    )


async def untold_promises(
    database: Database, project_id: str, vault_id: str, domain_id: str | None
) -> list[tuple[str, datetime]]:
    """(root, time) of backups in the domain whose labels in the store do not say what is promised to them."""
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT root, promised_until FROM backups WHERE project_id = %s AND vault_id = %s AND root IS NOT NULL "
            "AND domain_id IS NOT DISTINCT FROM %s AND promised_until IS NOT NULL "
            "AND promise_told IS DISTINCT FROM promised_until ORDER BY created_at, id",
            [project_id, vault_id, domain_id],
        )
        return await found.fetchall()


async def time_left(
    database: Database, project_id: str, vault_id: str, domain_id: str | None
) -> list[tuple[str, float]]:
    """(root, seconds) of the backups of the domain that a locked vault keeps; ENDLESS_S for those without a time."""
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT b.root, CASE WHEN b.promised_until IS NULL THEN %s "
            "ELSE extract(epoch FROM b.promised_until - c.at) END::float8 FROM backups b CROSS JOIN promise_clock c "
            "JOIN vaults v ON v.project_id = b.project_id AND v.id = b.vault_id AND v.locked "
            "WHERE b.project_id = %s AND b.vault_id = %s AND b.root IS NOT NULL "
            "AND b.domain_id IS NOT DISTINCT FROM %s AND (b.promised_until > c.at OR (b.promised_until IS NULL "
            "AND b.expired_at IS NULL AND (b.auto_trigger OR v.keep_manual) "
            "AND b.status NOT IN ('error', 'waiting_delete', 'deleting'))) ORDER BY b.created_at, b.id",
            [ENDLESS_S, project_id, vault_id, domain_id],
        )
        return await found.fetchall()


async def note_told(database: Database, project_id: str, root: str, until: datetime) -> None:
    """The labels of this root say so now."""
    async with database.transaction() as conn:
        await conn.execute(
            "UPDATE backups SET promise_told = %s WHERE project_id = %s AND root = %s", [until, project_id, root]
        )
