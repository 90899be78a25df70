"""Bring a database to the schema of this version, or say why it is not there.

A revision is a small Python file and the plain SQL file beside it. All missing revisions are applied in one transaction
under an advisory lock: two servers that start at once do the work once, and a failed upgrade changes nothing. There is
no downgrade: restore the database that `upgrade` found. Synchronous; called by commands and before a server starts.

Alembic and SQLAlchemy are imported by what changes a schema only: a server that finds its own starts a quarter of a
second of CPU earlier, and holds 20 MB less.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psycopg

from strongroom.base.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    import sqlalchemy

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x5374726F6E67  # "Strong": one number for every installation, taken per database
_LOCK_S_MAX = 120  # longer than any revision runs on the largest database we promise


def apply_sql_beside(revision_file: str) -> None:
    """For revisions: execute the .sql file of the same name, many statements, in the running transaction."""
    from alembic import op

    text = Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8")
    connection = cast("psycopg.Connection", op.get_bind().connection.dbapi_connection)
    connection.execute(text.encode())  # without parameters: percent signs and colons are the file's own


def head() -> str:
    """The revision that this version of the program works with."""
    return max(_revisions())


def upgrade(url: str, to: str | None = None) -> None:
    """Apply what is missing, all or nothing; does nothing on a current schema. Refuses a newer one (ConfigError).

    to: an earlier revision than the newest, for rows that were written under it; refused when the schema is another.
    """
    wanted = to or head()
    if _current(url) == wanted:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

    with _transaction(url) as connection:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_S_MAX}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
        current = MigrationContext.configure(connection).get_current_revision()
        if current == wanted:  # another server was faster
            return
        _refuse_unknown(current)
        _refuse_unknown(to)
        if to is not None and current is not None:
            raise ConfigError(
                reason=f"The database's schema is {current}, and what is to be loaded was written under {to}. "
                "Give an empty database."
            )
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, wanted)


def check(url: str) -> None:
    """Return if the schema is this version's; else raise ConfigError with the sentence that says what to do."""
    current = _current(url)
    if current == head():
        return
    _refuse_unknown(current)
    raise ConfigError(
        reason="The database has no schema yet. Run `strongroom migrate`."
        if current is None
        else f"The database's schema is {current}, this version of Strongroom needs {head()}. Run `strongroom migrate`."
    )


def _revisions() -> set[str]:
    """Every revision there is: the number that its file's name begins with. They are one line (a test keeps that)."""
    return {path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9][0-9][0-9][0-9]_*.py")}


def _refuse_unknown(current: str | None) -> None:
    if current is not None and current not in _revisions():
        raise ConfigError(
            reason=f"The database's schema {current} is newer than this version of Strongroom, which knows {head()}. "
            "Install the version that made it."
        )


def _current(url: str) -> str | None:
    """The revision a database is at; None without a schema. Raises Unavailable."""
    try:
        with psycopg.connect(url, application_name="strongroom migrate") as connection:
            found = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
            if found is None or found[0] is None:
                return None
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except psycopg.OperationalError as err:
        raise _unavailable(err) from err
    except psycopg.Error as err:
        raise _refused(err) from err
    return row[0] if row is not None else None


def _unavailable(err: Exception) -> Unavailable:
    return Unavailable(
        reason="The database does not answer, or another upgrade holds it. Check STRONGROOM_DATABASE_URL.",
        detail=str(err).strip(),
    )


def _refused(err: Exception) -> ConfigError:
    return ConfigError(
        reason="The database refused the schema of this version; nothing was changed. "
        "It has to be empty, or one that Strongroom made.",
        detail=str(err).strip(),
    )


@contextmanager
def _transaction(url: str) -> Iterator["sqlalchemy.Connection"]:
    """One transaction on a connection of its own, committed at the end of the block."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url, application_name="strongroom migrate"),
        poolclass=NullPool,
    )
    try:
        with engine.begin() as connection:
            yield connection
    except (sqlalchemy.exc.OperationalError, psycopg.OperationalError) as err:
        raise _unavailable(err) from err
    except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error) as err:
        raise _refused(err) from err
    finally:
        engine.dispose()
