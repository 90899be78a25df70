"""The database as the control plane uses it: one pool a process, transactions, reads, notifications.

SQL stays visible in the modules that own it; nothing here knows a table. Vendor errors end here: what the database
refuses for the moment (gone, starting, busy, a deadlock, a lost serialization) leaves as Unavailable, which may be
tried again. Broken constraints pass through as psycopg's IntegrityError: only the caller knows the sentence for them.
"""

import re
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar, overload

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.abc import Params, QueryNoTemplate
from psycopg.rows import AsyncRowFactory, TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from strongroom.base.errors import ConfigError, Unavailable

Row = TypeVar("Row")

BeforeCommit = Callable[[AsyncConnection[Any]], Awaitable[None]]

OPEN_S_MAX = 15.0  # until the first connection stands; an embedded PostgreSQL recovers within seconds
CHECKOUT_S_MAX = 10.0  # a request that waited longer for a connection is better refused
_PREPARE_AFTER = 1  # executions of a statement on a connection before it is prepared there
_CONNECTION_AGE_S_MAX = 3600.0
_POOLER_LOOKS = 4  # a pooler may have several connections to give
LOOK_S_MAX = 5  # for the one connection with which a start looks whether the database is there

# What a PostgreSQL, or a PgBouncer before it, says to who will not be let in by waiting. The words are all there is:
# libpq gives no SQLSTATE for a connection that did not come about. In another language a start waits, and shows them.
_REFUSALS = re.compile(
    r'password authentication failed for .*|SASL authentication failed|no password supplied|role ".*" does not exist|'
    r'role ".*" is not permitted to log in|database ".*" does not exist|no such (?:database|user).*|'
    r"no pg_hba.conf entry .*|pg_hba.conf rejects .*|permission denied for database .*"
)

# No statement and no forgotten transaction holds locks for ever. Migrations run on a connection of their own.
_SESSION_SETTINGS = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}


class Database:
    """A pool of connections. Made by `open`; every method may be called by many tasks at once."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection[Any]], url: str, before_commit: BeforeCommit | None = None
    ) -> None:
        self._pool = pool
        self._url = url
        self._before_commit = before_commit

    def with_each_transaction(self, before_commit: BeforeCommit) -> "Database":
        """The same pool; each of its transactions calls this as its last step, and is rolled back when that raises."""
        return Database(self._pool, self._url, before_commit)

    @classmethod
    async def open(cls, url: str, *, min_size: int = 1, max_size: int = 16) -> Self:
        """Connect; `min_size` connections stand when this returns. Raises Unavailable, leaving nothing behind."""
        pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            url,
            kwargs={"autocommit": True, "prepare_threshold": _PREPARE_AFTER, "application_name": "strongroom"},
            min_size=min_size,
            max_size=max_size,
            timeout=CHECKOUT_S_MAX,
            max_lifetime=_CONNECTION_AGE_S_MAX,
            configure=_configure,
            open=False,
        )
        with _translated():
            try:
                await pool.open(wait=True, timeout=OPEN_S_MAX)
            except BaseException:
                await pool.close()
                raise
        return cls(pool, url)

    async def close(self) -> None:
        """Close every connection; what is checked out is closed when it comes back."""
        await self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @overload
    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]: ...
    @overload
    def transaction(self, row_factory: AsyncRowFactory[Row]) -> AbstractAsyncContextManager[AsyncConnection[Row]]: ...
    def transaction(
        self, row_factory: AsyncRowFactory[Any] = tuple_row
    ) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """A connection inside one transaction: committed when the block ends, rolled back when it raises.

        Rows come in the shape of `row_factory`: `transaction(dict_row)`, `transaction(class_row(Vault))`. When the
        commit itself fails with Unavailable, the rows may have been written: only the next read tells.
        """
        return self._connection(row_factory, in_transaction=True)

    @overload
    def read(self) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]: ...
    @overload
    def read(self, row_factory: AsyncRowFactory[Row]) -> AbstractAsyncContextManager[AsyncConnection[Row]]: ...
    def read(self, row_factory: AsyncRowFactory[Any] = tuple_row) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """A connection without a transaction round its statements: one round trip each, each sees its own moment."""
        return self._connection(row_factory, in_transaction=False)

    async def fetch(self, statement: QueryNoTemplate, values: Params | None = None) -> list[TupleRow]:
        """All rows of one statement, seen as by `read`: what most requests are, without the cost of a block."""
        try:
            conn = await self._checkout()
            try:
                conn.row_factory = tuple_row
                cursor = await conn.execute(statement, values)
                return await cursor.fetchall()
            finally:
                await self._pool.putconn(conn)
        except psycopg.OperationalError as err:
            raise _unavailable(err) from err

    @asynccontextmanager
    async def _connection(
        self, row_factory: AsyncRowFactory[Any], *, in_transaction: bool
    ) -> AsyncIterator[AsyncConnection[Any]]:
        with _translated():
            conn = await self._checkout()
            try:
                conn.row_factory = row_factory
                if in_transaction:
                    async with conn.transaction():
                        yield conn
                        if self._before_commit is not None:
                            await self._before_commit(conn)
                else:
                    yield conn
            finally:
                await self._pool.putconn(conn)

    async def _checkout(self) -> AsyncConnection[Any]:
        """A connection whose server is there. Those of before its restart are replaced, at most `max_size` of them.

        The pool's own `check=` waits 1, 2, 4, ... s after each it finds (psycopg_pool 3.3.3).
        """
        while _server_hung_up(conn := await self._pool.getconn()):
            await conn.close()
            await self._pool.putconn(conn)  # the pool sees the state and connects anew
        return conn

    @asynccontextmanager
    async def listen(self, *channels: str) -> AsyncIterator["Listener"]:
        """LISTEN on a connection of its own. Notifications sent while the connection was lost are lost: they are
        hints to look at rows, never the message itself."""
        with _translated():
            async with await AsyncConnection.connect(
                self._url, autocommit=True, application_name="strongroom listen"
            ) as conn:
                for channel in channels:
                    await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                yield Listener(conn)


def require_sessions(url: str) -> None:
    """Raises ConfigError when the URL leads through a pooler that gives each transaction another connection: prepared
    statements, settings of the session and LISTEN would be somebody else's (RULINGS 23). Raises Unavailable, and
    ConfigError when the database lets nobody in by these words."""
    try:
        with _look(url) as one, _look(url) as other:
            mine = _backend(one)
            for _ in range(_POOLER_LOOKS):
                # Between the transactions of one the other takes its connection, if anybody may.
                with other.transaction():
                    if _backend(other) == mine or _backend(one) != mine:
                        raise ConfigError(
                            reason="The database is reached through a pooler in transaction mode. Let PgBouncer use "
                            "pool_mode = session; or, with PgBouncer 1.21 or newer and max_prepared_statements set, "
                            "name the database itself in STRONGROOM_DATABASE_DIRECT_URL."
                        )
    except psycopg.OperationalError as err:
        raise refusal(err) or _unavailable(err) from err


def refusal(err: psycopg.OperationalError) -> ConfigError | None:
    """What to say when the database answers and lets nobody in by these words; None: it may at another time."""
    found = _REFUSALS.search(str(err))
    if found is None:
        return None
    return ConfigError(
        reason=f"PostgreSQL refuses the connection: {found[0].strip()}. Check STRONGROOM_DATABASE_URL, and what that "
        "server knows of this user and this database.",
        detail=str(err).strip(),
    )


def _look(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True, connect_timeout=LOOK_S_MAX)


def _backend(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    assert row is not None
    return int(row[0])


class Listener:
    """One LISTENing connection, for one task."""

    def __init__(self, conn: AsyncConnection[TupleRow]) -> None:
        self._conn = conn

    async def wait(self, timeout_s: float) -> list[psycopg.Notify]:
        """What arrived since the last call, waiting for the first up to `timeout_s`; empty when it stayed quiet.

        Raises Unavailable when the connection is lost; the caller then listens anew and looks at its rows.
        """
        with _translated():
            return [notify async for notify in self._conn.notifies(timeout=timeout_s, stop_after=1)]


async def _configure(conn: AsyncConnection[Any]) -> None:
    for name, value in _SESSION_SETTINGS.items():
        await conn.execute("SELECT set_config(%s, %s, false)", (name, value), prepare=False)


def _server_hung_up(conn: AsyncConnection[Any]) -> bool:
    """Whether the server closed this idle connection. No round trip: an idle one has nothing else to say."""
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as err:
        raise _unavailable(err) from err


def _unavailable(err: psycopg.OperationalError) -> Unavailable:
    return Unavailable(reason=_sentence(err), detail=f"{type(err).__name__}: {err}".strip())


def _sentence(err: psycopg.OperationalError) -> str:
    match err:
        case PoolTimeout():
            return "The service is busy: no database connection came free in time. Try again in a moment."
        case psycopg.errors.QueryCanceled() | psycopg.errors.LockNotAvailable():
            return "The database did not finish in time. Try again in a moment."
        case psycopg.errors.DeadlockDetected() | psycopg.errors.SerializationFailure():
            return "Another request changed the same objects. Try again."
        case psycopg.errors.DiskFull():
            return "The disk of the database is full. The operator has to free space."
        case _:
            return "The database does not answer. Try again in a moment; if it stays so, tell the operator."
