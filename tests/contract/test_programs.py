"""Which program may work with which schema: old and new side by side, and the sentences of those that may not."""

import psycopg
import pytest

from strongroom.base.errors import ConfigError
from strongroom.control import migrate, programs
from strongroom.control.db import Database
from strongroom.control.programs import Program


def set_schema(url: str, schema: str, oldest: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE alembic_version SET version_num = %s", [schema])
        conn.execute("UPDATE schema_window SET oldest_program = %s", [oldest])


def test_a_newer_schema_that_takes_this_program_is_served(postgres_url: str):
    """After another program's upgrade that only added: this one starts, and changes nothing."""
    set_schema(postgres_url, "9999", migrate.head())
    migrate.check(postgres_url)
    migrate.upgrade(postgres_url)
    with psycopg.connect(postgres_url) as conn:
        assert conn.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)


def test_a_schema_that_is_too_old_names_the_command(postgres_url: str):
    """A program that is newer than the schema says what to run."""
    set_schema(postgres_url, "0001", "0001")
    with pytest.raises(ConfigError, match=r"schema is 0001.*Run `strongroom migrate`"):
        migrate.check(postgres_url)


def test_the_migration_says_how_old_a_program_may_be(postgres_url: str):
    """What the revisions say stands in the database."""
    with psycopg.connect(postgres_url) as conn:
        assert conn.execute("SELECT oldest_program FROM schema_window").fetchone() == (migrate.oldest_program(),)
    assert migrate.oldest_program() <= migrate.head()


async def test_programs_that_are_too_old_hold_up_the_schema(database: Database, postgres_url: str):
    """While one of them gives signs of life no schema comes that it does not know; one that fell silent is dead."""
    await programs.beat(database, Program(kind="api", worker_group=None))
    with migrate._transaction(postgres_url) as connection:
        migrate._require_no_older(connection)
    async with database.transaction() as conn:
        await conn.execute("UPDATE programs SET schema = '0001', host = 'paris', process = 12")
    with migrate._transaction(postgres_url) as connection:
        with pytest.raises(ConfigError, match=r"api 12 on paris .*Stop them"):
            migrate._require_no_older(connection)
    async with database.transaction() as conn:
        await conn.execute("UPDATE programs SET seen_at = now() - interval '61 seconds'")
    with migrate._transaction(postgres_url) as connection:
        migrate._require_no_older(connection)


async def test_signs_of_life(database: Database, postgres_url: str):
    """One row a program, gone when it ends; a program whose schema is over hears so at its next sign."""
    program = Program(kind="worker", worker_group="paris")
    await programs.beat(database, program)
    await programs.beat(database, program)
    found = await database.fetch("SELECT kind, worker_group, schema FROM programs")
    assert found == [("worker", "paris", migrate.head())]
    set_schema(postgres_url, "9999", "9998")
    with pytest.raises(ConfigError, match="9999 is newer"):
        await programs.beat(database, program)
    await programs.leave(database, program)
    assert await database.fetch("SELECT 1 FROM programs") == []
