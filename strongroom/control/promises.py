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
from strongroom.base.errors import InvalidRequest
from strongroom.control.db import Database
from strongroom.control.subjects import VaultRef, lock_vault
from strongroom.control.vault_resources import require_available

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


async def show_lock(database: Database, project_id: str, vault_id: str) -> tuple[bool, bool]:
    """(locked, keep_manual) of a vault. Raises VaultNotFound."""
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        return vault.locked, vault.keep_manual


async def set_lock(
    database: Database, project_id: str, vault_id: str, *, locked: bool, keep_manual: bool, clock: Clock
) -> None:
    """Lock a vault, and say whether it keeps manual backups too. Neither is taken back while it is locked.

    Raises VaultNotFound, InvalidRequest, Conflict 6112 (vault status).
    """
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault, "lock", "error")
        if vault.locked and not (locked and keep_manual >= vault.keep_manual):
            raise InvalidRequest(
                reason="vault not support to modify locked attribute from true to false. What a locked vault keeps "
                "can only become more."
            )
        await conn.execute(
            "UPDATE vaults SET locked = %s, keep_manual = %s, updated_at = %s WHERE project_id = %s AND id = %s",
            [locked, keep_manual, clock.now(), project_id, vault.id],
        )
        await promise(conn, vault, clock.now())
