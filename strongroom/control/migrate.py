"""Bring a database to the schema of this version, or say why it is not there.

A revision is a small Python file and the plain SQL file beside it. All missing revisions are applied in one transaction
under an advisory lock: two servers that start at once do the work once, and a failed upgrade changes nothing. There is
no downgrade: restore the database that `upgrade` found. Synchronous; called by commands and before a server starts.

Programs of two versions work side by side while an upgrade rolls: first the schema, which only grows (expand), then the
programs one by one; what no program uses any more goes with a later version (contract). Each revision says with
`oldest_program = "NNNN"` how old a program may be that works on with it; without that only programs that know it do.

Alembic and SQLAlchemy are imported by what changes a schema only: a server that finds its own starts a quarter of a
second of CPU earlier, and holds 20 MB less.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psycopg

from strongroom.base.errors import ConfigError, Unavailable
from strongroom.control.db import LOOK_S_MAX, refusal

if TYPE_CHECKING:
    import sqlalchemy

_MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_KEY = 0x5374726F6E67  # "Strong": one number for every installation, taken per database
SILENT_S = 60  # without a sign of life a program counts as dead: a dozen beats (control/programs.py)
_OLDEST = re.compile(r'^oldest_program = "(\d{4})"$', re.MULTILINE)
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


def oldest_program(schema: str | None = None) -> str:
    """What the oldest program knows that may work on with a schema (None: that of this version), by its newest
    revision."""
    oldest = []
    for path in _revision_files():
        if schema is None or path.name[:4] <= schema:
            found = _OLDEST.search(path.read_text(encoding="utf-8"))
            oldest.append(found[1] if found is not None else path.name[:4])
    return max(oldest)


def upgrade(url: str, to: str | None = None, *, alone: bool = False) -> None:
    """Apply what is missing, all or nothing; does nothing on a schema that is current, or newer and still served.

    to: an earlier revision than the newest, for rows that were written under it; refused when the schema is another.
    alone: no other program uses this database. Raises ConfigError for a newer schema that is not for this program, and
    while programs are at work that the new schema is not for.
    """
    wanted = to or head()
    current, oldest = _window(url)
    if to is None and current is not None and current > wanted:
        require_served(wanted, current, oldest)
    if current == wanted or (to is None and current is not None and current > wanted):
        return
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

    with _transaction(url) as connection:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_S_MAX}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
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
        if not alone and current is not None:
            _require_no_older(connection)
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, wanted)
        if _has_table(connection, "schema_window"):
            connection.exec_driver_sql("UPDATE schema_window SET oldest_program = %s", (oldest_program(wanted),))


def check(url: str) -> None:
    """Return if this program works with the schema; else raise ConfigError with the sentence that says what to do."""
    require_served(head(), *_window(url))


def require_served(program: str, schema: str | None, oldest: str | None) -> None:
    """Raises ConfigError unless a program that knows revisions up to `program` works with a database at `schema`, which
    takes programs from `oldest` on (None: it does not say, so only those that know it)."""
    if schema is None:
        raise ConfigError(reason="The database has no schema yet. Run `strongroom migrate`.")
    if schema < program:
        raise ConfigError(
            reason=f"The database's schema is {schema}, this version of Strongroom needs {program}. "
            "Run `strongroom migrate`."
        )
    if schema > program and (oldest is None or program < oldest):
        raise ConfigError(
            reason=f"The database's schema {schema} is newer than this version of Strongroom, which knows {program}. "
            "Install the version that made it."
        )


def _refuse_unknown(revision: str | None) -> None:
    if revision is not None and revision not in _revisions():
        raise ConfigError(
            reason=f"The database's schema {revision} is newer than this version of Strongroom, which knows {head()}. "
            "Install the version that made it."
        )


def _require_no_older(connection: "sqlalchemy.Connection") -> None:
    """Raises ConfigError while a program is at work that this version's schema is not for (control/programs.py)."""
    if not _has_table(connection, "programs"):
        return
    rows = connection.exec_driver_sql(
        "SELECT kind, process, host, version FROM programs "
        "WHERE schema < %s AND seen_at > now() - make_interval(secs => %s) ORDER BY host, process LIMIT 6",
        (oldest_program(), SILENT_S),
    ).fetchall()
    if rows:
        named = [f"{row.kind} {row.process} on {row.host} ({row.version})" for row in rows[:5]]
        raise ConfigError(
            reason=f"Programs are at work that do not know the schema of this version: {', '.join(named)}"
            f"{' and others' if len(rows) > len(named) else ''}. Stop them, or upgrade them to a version between "
            f"first. One that was killed counts for {SILENT_S} seconds."
        )


def _has_table(connection: "sqlalchemy.Connection", name: str) -> bool:
    return connection.exec_driver_sql("SELECT to_regclass(%s)", (name,)).scalar() is not None


def _revision_files() -> list[Path]:
    return list((_MIGRATIONS / "versions").glob("[0-9][0-9][0-9][0-9]_*.py"))


def _revisions() -> set[str]:
    """Every revision there is: the number that its file's name begins with. They are one line (a test keeps that)."""
    return {path.name[:4] for path in _revision_files()}


def _window(url: str) -> tuple[str | None, str | None]:
    """The revision a database is at (None without a schema), and the oldest program that works with it (None: it is of
    a time before it said so). Raises Unavailable, and ConfigError when the database lets nobody in by these words."""
    try:
        with psycopg.connect(url, application_name="strongroom migrate", connect_timeout=LOOK_S_MAX) as connection:
            found = connection.execute("SELECT to_regclass('alembic_version'), to_regclass('schema_window')").fetchone()
            if found is None or found[0] is None:
                return None, None
            current = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            oldest = None
            if found[1] is not None:
                oldest = connection.execute("SELECT oldest_program FROM schema_window").fetchone()
    except psycopg.OperationalError as err:
        raise refusal(err) or _unavailable(err) from err
    except psycopg.Error as err:
        raise _refused(err) from err
    return current[0] if current is not None else None, oldest[0] if oldest is not None else None


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
