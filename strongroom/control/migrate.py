"""Bring a database to the schema of this version, or say why it is not there.

A revision is a small Python file and the plain SQL file beside it. All missing revisions are applied in one transaction
under an advisory lock: two servers that start at once do the work once, and a failed upgrade changes nothing. There is
no downgrade: restore the database that `upgrade` found. Synchronous; called by commands and before a server starts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import psycopg
import sqlalchemy
from alembic import command, op
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.pool import NullPool

from strongroom.base.errors import ConfigError, Unavailable

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x5374726F6E67  # "Strong": one number for every installation, taken per database
_LOCK_S_MAX = 120  # longer than any revision runs on the largest database we promise


def apply_sql_beside(revision_file: str) -> None:
    """For revisions: execute the .sql file of the same name, many statements, in the running transaction."""
    text = Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8")
    connection = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    connection.execute(text.encode())  # without parameters: percent signs and colons are the file's own


def head() -> str:
    """The revision that this version of the program works with."""
    revision = ScriptDirectory.from_config(_alembic()).get_current_head()
    assert revision is not None
    return revision


def upgrade(url: str) -> None:
    """Apply what is missing, all or nothing; does nothing on a current schema. Refuses a newer one (ConfigError)."""
    with _connection(url) as connection:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_S_MAX}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
        current = _current(connection)
        if current == head():
            return
        _refuse_unknown(current)
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check(url: str) -> None:
    """Return if the schema is this version's; else raise ConfigError with the sentence that says what to do."""
    with _connection(url) as connection:
        current = _current(connection)
    if current == head():
        return
    _refuse_unknown(current)
    raise ConfigError(
        reason="The database has no schema yet. Run `strongroom migrate`."
        if current is None
        else f"The database's schema is {current}, this version of Strongroom needs {head()}. Run `strongroom migrate`."
    )


def _refuse_unknown(current: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}
    if current is not None and current not in known:
        raise ConfigError(
            reason=f"The database's schema {current} is newer than this version of Strongroom, which knows {head()}. "
            "Install the version that made it."
        )


def _current(connection: sqlalchemy.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


@contextmanager
def _connection(url: str) -> Iterator[sqlalchemy.Connection]:
    """One transaction on a connection of its own, committed at the end of the block."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url, application_name="strongroom migrate"),
        poolclass=NullPool,
    )
    try:
        with engine.begin() as connection:
            yield connection
    except (sqlalchemy.exc.OperationalError, psycopg.OperationalError) as err:
        raise Unavailable(
            reason="The database does not answer, or another upgrade holds it. Check STRONGROOM_DATABASE_URL.",
            detail=str(err).strip(),
        ) from err
    except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error) as err:
        raise ConfigError(
            reason="The database refused the schema of this version; nothing was changed. "
            "It has to be empty, or one that Strongroom made.",
            detail=str(err).strip(),
        ) from err
    finally:
        engine.dispose()
