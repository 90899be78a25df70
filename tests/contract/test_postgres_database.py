"""The pool and the migrations against a real PostgreSQL."""

import asyncio
import threading
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.rows import dict_row

from strongroom.base.errors import ConfigError, StrongroomError, Unavailable
from strongroom.control import migrate
from strongroom.control.db import Database
from strongroom.control.embedded_postgres import EmbeddedPostgres


async def count(database: Database) -> int:
    async with database.read() as conn:
        row = await (await conn.execute("SELECT count(*) FROM domains")).fetchone()
    assert row is not None
    return row[0]


INSERT = "INSERT INTO domains (id, name, created_at) VALUES (%s, %s, now())"


async def test_a_transaction_is_all_or_nothing(database: Database):
    """A block that raises leaves no row, one that ends leaves all, and rows come in the asked shape."""
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as conn:
            await conn.execute(INSERT, ("default", "default"))
            raise ZeroDivisionError
    assert await count(database) == 0
    async with database.transaction(dict_row) as conn:
        await conn.execute(INSERT, ("default", "default"))
        row = await (await conn.execute("SELECT id, name FROM domains")).fetchone()
    assert row == {"id": "default", "name": "default"}
    assert await count(database) == 1


async def test_a_broken_constraint_is_the_callers_to_name(database: Database):
    """IntegrityError passes through, and the connection serves on."""
    for _ in range(2):
        with pytest.raises(psycopg.errors.CheckViolation):
            async with database.transaction() as conn:
                await conn.execute(INSERT, ("Not-Hex", "x"))
    assert await count(database) == 0


async def test_statements_are_prepared(database: Database):
    """A statement that ran twice on a connection is a prepared one."""
    async with database.read() as conn:
        for _ in range(3):
            await conn.execute("SELECT name FROM domains WHERE id = %s", ("default",))
        row = await (await conn.execute("SELECT count(*) FROM pg_prepared_statements")).fetchone()
    assert row is not None and row[0] >= 1


async def test_a_busy_pool_refuses_with_a_sentence(postgres_url: str, monkeypatch: pytest.MonkeyPatch):
    """When no connection comes free in time the caller gets Unavailable, not a wait without end."""
    monkeypatch.setattr("strongroom.control.db.CHECKOUT_S_MAX", 0.05)
    async with await Database.open(postgres_url, max_size=1) as small:
        async with small.read():
            with pytest.raises(Unavailable, match="no database connection came free"):
                async with small.read():
                    pass


async def test_a_deadlock_is_unavailable_and_may_be_tried_again(database: Database):
    """One of two transactions that wait for each other is refused as retryable, the other one commits."""
    async with database.transaction() as conn:
        await conn.execute(INSERT, ("a" * 32, "a"))
        await conn.execute(INSERT, ("b" * 32, "b"))
    barrier = asyncio.Barrier(2)

    async def lock_both(first: str, second: str) -> None:
        async with database.transaction() as conn:
            await conn.execute("UPDATE domains SET name = name WHERE name = %s", (first,))
            await barrier.wait()
            await conn.execute("UPDATE domains SET name = name WHERE name = %s", (second,))

    outcomes = await asyncio.gather(lock_both("a", "b"), lock_both("b", "a"), return_exceptions=True)
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 1
    assert isinstance(refused[0], Unavailable) and refused[0].retryable


async def test_notifications_arrive(database: Database):
    """What is notified while listening arrives; a quiet channel returns after the timeout."""
    async with database.listen("tasks") as listener:
        async with database.transaction() as conn:
            await conn.execute("SELECT pg_notify('tasks', '17')")
        assert [notify.payload for notify in await listener.wait(10)] == ["17"]
        assert await listener.wait(0.01) == []


async def test_nobody_at_the_url_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A database that does not answer is a sentence, in bounded time."""
    monkeypatch.setattr("strongroom.control.db.OPEN_S_MAX", 0.3)
    with pytest.raises(Unavailable):
        await Database.open(f"postgresql://x@/x?host={tmp_path}")


async def test_the_pool_lives_through_a_restart_of_the_database(tmp_path: Path):
    """After a restart of PostgreSQL no request meets a dead connection of the time before."""
    postgres = EmbeddedPostgres(tmp_path / "postgres")
    url = await asyncio.to_thread(postgres.start)
    try:
        await asyncio.to_thread(migrate.upgrade, url)
        async with await Database.open(url, min_size=3, max_size=3) as pool:
            assert await count(pool) == 0
            await asyncio.to_thread(postgres.stop)
            await asyncio.to_thread(postgres.start)
            assert [await count(pool) for _ in range(6)] == [0] * 6
    finally:
        await asyncio.to_thread(postgres.stop)


def test_upgrade_then_check(empty_postgres_url: str):
    """check refuses a database without schema and accepts an upgraded one; upgrade twice is upgrade once."""
    with pytest.raises(ConfigError, match="strongroom migrate"):
        migrate.check(empty_postgres_url)
    for _ in range(2):
        migrate.upgrade(empty_postgres_url)
        migrate.check(empty_postgres_url)


def test_the_head_is_the_last_file():
    """Starts read the head off the files' names; Alembic, which reads their content, finds the same line."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [migrate.head()]
    for revision in script.walk_revisions():
        assert Path(revision.path).name.startswith(f"{revision.revision}_")


def test_a_newer_schema_is_refused_and_left_alone(postgres_url: str):
    """A schema from the future is named with both revisions by check and by upgrade."""
    with psycopg.connect(postgres_url) as conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
        conn.execute("UPDATE schema_window SET oldest_program = '9998'")
    for refuse in (migrate.check, migrate.upgrade):
        with pytest.raises(ConfigError, match=rf"9999 is newer.*{migrate.head()}"):
            refuse(postgres_url)


def test_two_starters_at_once_upgrade_once(empty_postgres_url: str):
    """Upgrades that race end all well: one does the work, the others find it done."""
    failures: list[StrongroomError] = []

    def starter() -> None:
        try:
            migrate.upgrade(empty_postgres_url)
        except StrongroomError as err:
            failures.append(err)

    threads = [threading.Thread(target=starter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    migrate.check(empty_postgres_url)


def test_a_failed_upgrade_changes_nothing(empty_postgres_url: str):
    """When a statement in the middle of a revision fails, no table of it stays."""
    with psycopg.connect(empty_postgres_url) as conn:
        conn.execute("CREATE TABLE vaults (n integer)")
    with pytest.raises(ConfigError, match="nothing was changed"):
        migrate.upgrade(empty_postgres_url)
    with psycopg.connect(empty_postgres_url) as conn:
        assert conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == [("vaults",)]
