"""Every table of a database as bytes, and back: what a move to another database and a copy in the store are made of.

    snapshot   one REPEATABLE READ transaction: all tables as of one moment, while the service works on
    load       one transaction: all tables of an empty database, or none

Tables are found in the database itself, so a new one is never forgotten. The bytes are PostgreSQL's own text format of
COPY, which every version reads. Rows and a checksum are counted by the database on both sides: the sum over rows of 8
bytes of their SHA-256, in no order. Synchronous, on connections of its own, without the limits of requests.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import psycopg
from psycopg import Connection, sql

from strongroom.base.errors import ConfigError, Corrupt, Unavailable

MARK = "strongroom_move"  # of a database that is being moved into (control/relocation.py)
_NOT_OURS = frozenset({"alembic_version", MARK})  # the former: the schema's own number, made by control/migrate.py

# Text of a value must not depend on who asks. No statement here is short.
_SESSION = {
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "client_encoding": "UTF8",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": "60s",
}

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table and its columns, in the order of the database."""

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What is in a table: rows, and their checksum in decimal."""

    rows: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Loading:
    """One table to be loaded: what must be in it afterwards, and its bytes."""

    table: Table
    counted: Counted
    rows: Iterable[Buffer]


class Snapshot:
    """The tables as of one moment. blanked: columns by table whose values are left out, as empty ones."""

    def __init__(self, conn: Connection[Any], blanked: Mapping[str, str]) -> None:
        self._conn = conn
        self._blanked = blanked
        self.revision = _revision(conn)

    def alone(self, number: int) -> bool:
        """Whether no other transaction of this database holds the number; this one does then, to its end."""
        return bool(_one(self._conn, "SELECT pg_try_advisory_xact_lock(%s)", [number]))

    def tables(self, without: frozenset[str] = frozenset()) -> list[Table]:
        """In an order in which they can be loaded: what others refer to comes first."""
        return [table for table in _tables(self._conn) if table.name not in without]

    def count(self, table: Table) -> Counted:
        return _counted(self._conn, self._rows_of(table))

    def rows(self, table: Table) -> Iterator[Buffer]:
        """The bytes of one table. Ends before another one is asked for."""
        statement = sql.SQL("COPY ({}) TO STDOUT").format(self._rows_of(table))
        with _translated(), self._conn.cursor() as cursor, cursor.copy(statement) as copy:
            yield from copy

    def _rows_of(self, table: Table) -> sql.Composed:
        blank = self._blanked.get(table.name)
        columns = [
            sql.SQL("''::bytea AS {}").format(sql.Identifier(name)) if name == blank else sql.Identifier(name)
            for name in table.columns
        ]
        return sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(columns), sql.Identifier(table.name))


@contextmanager
def snapshot(url: str, *, blanked: Mapping[str, str] | None = None) -> Iterator[Snapshot]:
    """All tables as of now, for as long as the block lasts. Raises Unavailable; ConfigError for another's database."""
    with connect(url) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield Snapshot(conn, blanked or {})


def holds_nobody(url: str) -> bool:
    """Whether nothing was ever put into it: no table, or our tables without a user and a project."""
    with connect(url) as conn:
        names = {table.name for table in _tables(conn)}
        if not names:
            return True
        if not {"users", "projects"} <= names:
            return False  # somebody else's
        return not _one(conn, "SELECT EXISTS (SELECT 1 FROM users) OR EXISTS (SELECT 1 FROM projects)")


def load(url: str, tables: Sequence[Loading], *, after: Callable[[Connection[Any]], None] | None = None) -> None:
    """Replace all rows of all tables by these, in one transaction; the schema is that of the copy.

    after: its last step; it sees the rows when they have been compared, and changes them without our triggers. Raises
    Corrupt when a table does not hold what it should, ConfigError when its columns are others, Unavailable.
    """
    with connect(url) as conn:
        there = {table.name: table for table in _tables(conn)}
        names = [sql.Identifier(name) for name in there]
        # What rows do by themselves (counts, positions, promises) was done where they came from.
        for name in names:
            conn.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(name))
        conn.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))
        for each in tables:
            _load_table(conn, there, each)
        for table in there.values():
            _continue_numbers(conn, table)
        if after is not None:
            after(conn)
        conn.execute("SET CONSTRAINTS ALL IMMEDIATE")  # what was put off is looked at now: nobody changes such a table
        for name in names:
            conn.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(name))


def _load_table(conn: Connection[Any], there: Mapping[str, Table], each: Loading) -> None:
    table = each.table
    known = there.get(table.name)
    if known is None or set(known.columns) != set(table.columns):
        raise ConfigError(reason=f"The table {table.name} of the copy is not that of this schema; nothing was loaded.")
    columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
    with conn.cursor() as cursor, cursor.copy(into) as copy:
        for piece in each.rows:
            copy.write(piece)
    found = _counted(conn, sql.SQL("SELECT {} FROM {}").format(columns, sql.Identifier(table.name)))
    if found != each.counted:
        raise Corrupt(
            reason=f"the table {table.name} holds {found.rows} rows where there should be {each.counted.rows}, "
            "or rows that differ; nothing was loaded"
        )


def _continue_numbers(conn: Connection[Any], table: Table) -> None:
    """Numbers that the database gives go on after the highest."""
    for column in table.columns:
        name = _one(conn, "SELECT pg_get_serial_sequence(%s, %s)", [table.name, column])
        if name is not None:
            highest = sql.SQL("SELECT setval(%s, coalesce(max({}), 0) + 1, false) FROM {}")
            conn.execute(highest.format(sql.Identifier(column), sql.Identifier(table.name)), [name])


def _counted(conn: Connection[Any], rows: sql.Composed) -> Counted:
    found = conn.execute(
        sql.SQL(
            "SELECT count(*), coalesce(sum(('x' || encode(substr(sha256(convert_to(t::text, 'UTF8')), 1, 8), 'hex'))"
            "::bit(64)::bigint::numeric), 0)::text FROM ({}) t"
        ).format(rows)
    ).fetchone()
    assert found is not None
    return Counted(rows=found[0], checksum=found[1])


def _tables(conn: Connection[Any]) -> list[Table]:
    """Ours, what others refer to first; those that do not refer to each other by name."""
    found = conn.execute(
        "SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' "
        "WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition "
        "GROUP BY c.relname ORDER BY c.relname"
    ).fetchall()
    tables = {name: Table(name=name, columns=tuple(columns)) for name, columns in found if name not in _NOT_OURS}
    graph: dict[str, set[str]] = {name: set() for name in tables}
    references = conn.execute(
        "SELECT r.relname, t.relname FROM pg_constraint k JOIN pg_class r ON r.oid = k.conrelid "
        "JOIN pg_class t ON t.oid = k.confrelid WHERE k.contype = 'f' AND r.relname <> t.relname "
        "AND k.connamespace = current_schema()::regnamespace ORDER BY 1, 2"
    )
    for name, target in references.fetchall():
        if name in graph:
            graph[name].add(target)
    return [tables[name] for name in TopologicalSorter(graph).static_order() if name in tables]


def _revision(conn: Connection[Any]) -> str:
    if not _one(conn, "SELECT to_regclass('alembic_version') IS NOT NULL"):
        raise ConfigError(reason="The database has no schema of Strongroom.")
    return str(_one(conn, "SELECT version_num FROM alembic_version"))


def _one(conn: Connection[Any], statement: str, values: Sequence[Any] = ()) -> Any:
    row = conn.execute(statement.encode(), values).fetchone()
    return row[0] if row is not None else None


@contextmanager
def connect(url: str) -> Iterator[Connection[Any]]:
    """One transaction on a connection of its own, committed when the block ends. Raises Unavailable, ConfigError."""
    with _translated(), _connect(url) as conn:
        yield conn


@contextmanager
def _connect(url: str) -> Iterator[Connection[Any]]:
    """One transaction: committed when the block ends, rolled back when it raises."""
    with psycopg.connect(url, application_name="strongroom tables", autocommit=True) as conn:
        for name, value in _SESSION.items():
            conn.execute("SELECT set_config(%s, %s, false)", [name, value])
        with conn.transaction():
            yield conn


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as err:
        raise Unavailable(reason="The database does not answer, or it refuses this user.", detail=str(err)) from err
    except psycopg.Error as err:
        raise ConfigError(
            reason="The database refused to read or to load its tables; nothing was changed. "
            "Its user has to own the database.",
            detail=f"{type(err).__name__}: {err}".strip(),
        ) from err
