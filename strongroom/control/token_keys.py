"""The keys of tokens, as rows: made once, changed while the service runs, the same in every process.

    a new key   is a row; every process knows it within `REFRESH_S`, and seals with it from `SETTLED` on
    an old key  opens what it sealed until the last of those tokens has expired; then its row goes with the next change

So a change logs nobody out. A change that forgets the old keys logs everybody out: for when one was stolen.
"""

import secrets
from datetime import datetime, timedelta

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict
from strongroom.base.ids import new_hex_id
from strongroom.control.db import Database
from strongroom.control.tokens import TOKEN_KEY_BYTES, Ring, TokenRing

TOKEN_LIFE_MAX = timedelta(days=7)  # of config.SETTINGS["token_ttl_s"], whatever it was when a token was issued
REFRESH_S = 3.0
SETTLED = timedelta(seconds=10)  # more than REFRESH_S, with a clock that is a few seconds off
KEYS_MAX = 16  # each is tried for every token that comes
_FIRST = "0" * 32  # of every process that starts first: one row
_LOCK = 0x546F6B656E73


class TokenKeys:
    """One per process. All methods may be called by many tasks at once."""

    def __init__(self, *, database: Database, ring: Ring, clock: Clock) -> None:
        self._database = database
        self._ring = ring
        self._clock = clock
        self._known: tuple[float, TokenRing] | None = None

    async def current(self) -> TokenRing:
        """The keys of now, at most REFRESH_S old."""
        now_s = self._clock.monotonic_s()
        if self._known is None or now_s - self._known[0] >= REFRESH_S:
            rows = await self._load()
            if not rows:
                await self._make_first()
                rows = await self._load()
            self._known = (now_s, TokenRing(_in_order(rows, self._clock.now())))
        return self._known[1]

    async def change(self, *, forget_old: bool) -> int:
        """Make a new key; gives how many open tokens now. forget_old: only the new one, everybody logs in again.

        Raises Conflict when KEYS_MAX keys are in use.
        """
        now = self._clock.now()
        async with self._database.transaction() as conn:
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            if forget_old:
                await conn.execute("DELETE FROM token_keys")
            else:
                await conn.execute(
                    "DELETE FROM token_keys WHERE created_at < "
                    "(SELECT max(created_at) FROM token_keys WHERE created_at < %s)",
                    (now - SETTLED - TOKEN_LIFE_MAX,),
                )
            row = await (await conn.execute("SELECT count(*) FROM token_keys")).fetchone()
            count = int(row[0]) if row is not None else 0
            if count >= KEYS_MAX:
                raise Conflict(
                    conflict_code="9900",
                    reason=f"The keys of tokens were changed {KEYS_MAX} times within {TOKEN_LIFE_MAX.days} days, and "
                    "each is still in use. Wait, or log everybody out.",
                )
            await self._insert(conn, new_hex_id(), secrets.token_bytes(TOKEN_KEY_BYTES), now)
        self._known = None
        return count + 1

    async def _load(self) -> list[tuple[bytes, datetime]]:
        """Keys with their times, newest first."""
        async with self._database.read() as conn:
            cursor = await conn.execute("SELECT sealed, created_at FROM token_keys ORDER BY created_at DESC, id DESC")
            rows = await cursor.fetchall()
        return [(bytes.fromhex(self._ring.open_secret(bytes(sealed))), at) for sealed, at in rows]

    async def _make_first(self) -> None:
        async with self._database.transaction() as conn:
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            if await (await conn.execute("SELECT 1 FROM token_keys LIMIT 1")).fetchone() is None:
                await self._insert(conn, _FIRST, self._ring.first_token_key, self._clock.now())

    async def _insert(self, conn: AsyncConnection[TupleRow], key_id: str, key: bytes, now: datetime) -> None:
        await conn.execute(
            "INSERT INTO token_keys (id, sealed, created_at) VALUES (%s, %s, %s)",
            (key_id, self._ring.seal_secret(key.hex()), now),
        )


def _in_order(rows: list[tuple[bytes, datetime]], now: datetime) -> list[bytes]:
    """The key that seals first: the newest that every process knows by now, else the oldest there is."""
    settled = [key for key, at in rows if at <= now - SETTLED]
    sealing = settled[0] if settled else rows[-1][0]
    return [sealing, *(key for key, _ in rows if key != sealing)]
