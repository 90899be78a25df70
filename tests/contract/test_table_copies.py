"""Tables as bytes, and back: every table, every row, at one moment, or nothing."""

import contextlib
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from fault_store import Fault, FaultStore, copy_of
from in_process_api import InProcessApi

from strongroom.base.clock import SystemClock
from strongroom.base.errors import ConfigError, Corrupt, KeyWrong, StoreError
from strongroom.control import migrate, self_rows
from strongroom.control.db import Database
from strongroom.control.table_copies import Counted, Loading, Table, holds_nobody, load, snapshot
from strongroom.engine.keys import MasterKey
from strongroom.engine.self_copies import PARTS, drop_unreadable, list_copies, read_table
from strongroom.engine.store.memory import MemoryStore
from strongroom.operations.self_backup import copy_self, find_copy, load_copy


@pytest.fixture
def master(tmp_path: Path) -> MasterKey:
    return MasterKey.create(tmp_path / "master.key")


def fill(url: str, seed: int) -> None:
    """Rows of every type, with whatever a text can hold, and numbers that the database gives."""
    rng = random.Random(seed)
    odd = "".join(rng.choice("\\\n\t\r'\"\u20ac\U0001f600 NULL\\N\\.") for _ in range(40))
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO domains VALUES ('default', 'default', now())")
        for n in range(20):
            project = f"{n:032x}"
            conn.execute("INSERT INTO projects VALUES (%s, 'default', %s, %s, true, now())", [project, f"p{n}", odd])
            conn.execute(
                "INSERT INTO protectables (id, project_id, type, resource_type, name, path, options, created_at) "
                "VALUES (%s, %s, 'turbo', 'OS::Sfs::Turbo', %s, %s, %s, now())",
                [
                    f"r{n}",
                    project,
                    odd[:20] or "x",
                    rng.randbytes(30),
                    psycopg.types.json.Jsonb({"a": [None, odd, 1.5]}),
                ],
            )
            conn.execute(
                "INSERT INTO audit_log (at, project_id, user_id, user_name, address, operation, objects, outcome, "
                "status, request_id) VALUES (now(), %s, '', '', '', 'x', '{}', 'done', 200, '')",
                [project],
            )


def everything(url: str) -> dict[str, Counted]:
    with snapshot(url) as taken:
        return {table.name: taken.count(table) for table in taken.tables()}


def loadings(url: str) -> Iterator[tuple[list[Loading], str]]:
    with snapshot(url) as taken:
        tables = taken.tables()
        found = [
            Loading(table=table, counted=taken.count(table), rows=[bytes(b) for b in taken.rows(table)])
            for table in tables
        ]
        yield found, taken.revision


def test_every_row_of_every_table_comes_over(postgres_url: str, empty_postgres_url: str) -> None:
    """Counts and checksums of all tables are the same, triggers work again, and given numbers go on."""
    fill(postgres_url, 1)
    before = everything(postgres_url)
    assert before["audit_log"].rows == 20 and before["promise_clock"].rows == 1
    (tables, revision) = next(loadings(postgres_url))
    assert holds_nobody(empty_postgres_url)
    migrate.upgrade(empty_postgres_url, revision)
    load(empty_postgres_url, tables)
    assert everything(empty_postgres_url) == before
    assert not holds_nobody(empty_postgres_url)
    with psycopg.connect(empty_postgres_url) as conn:
        fresh = conn.execute(
            "INSERT INTO audit_log (at, project_id, user_id, user_name, address, operation, objects, outcome, status, "
            "request_id) VALUES (now(), '', '', '', '', 'x', '{}', 'done', 200, '') RETURNING id, kept_from IS NOT NULL"
        ).fetchone()
        assert fresh == (21, True)
        with pytest.raises(psycopg.errors.RaiseException):
            conn.execute("DELETE FROM audit_log")


def test_a_table_that_differs_is_not_loaded(postgres_url: str, empty_postgres_url: str) -> None:
    """One byte that changed on the way: the whole database stays as it was."""
    fill(postgres_url, 2)
    (tables, _) = next(loadings(postgres_url))
    migrate.upgrade(empty_postgres_url)
    at = next(i for i, each in enumerate(tables) if each.table.name == "projects")
    data = b"".join(map(bytes, tables[at].rows)).replace(b"p7", b"q7")
    tables[at] = Loading(table=tables[at].table, counted=tables[at].counted, rows=[data])
    with pytest.raises(Corrupt):
        load(empty_postgres_url, tables)
    assert holds_nobody(empty_postgres_url)
    assert everything(empty_postgres_url)["promise_clock"].rows == 1
    tables[at] = Loading(table=Table(name="projects", columns=("id",)), counted=tables[at].counted, rows=[data])
    with pytest.raises(ConfigError):
        load(empty_postgres_url, tables)


async def test_a_copy_is_sealed_and_comes_back(
    api: InProcessApi, postgres_url: str, empty_postgres_url: str, master: MasterKey, tmp_path: Path
) -> None:
    """No text of the database stands in the store, and another master key opens nothing of it."""
    store = MemoryStore()
    with psycopg.connect(postgres_url) as conn:
        conn.execute("UPDATE projects SET description = 'canary-of-the-copy'")
        kept = conn.execute("SELECT count(*) FROM projects").fetchone()
    copy = copy_self(postgres_url, store, master, keep=2, clock=SystemClock())
    assert copy is not None and copy.number == 1
    stored = b"".join(store.read(info.name) for info in store.list(""))
    assert b"canary" not in stored and b"projects" not in stored
    other = MasterKey.create(tmp_path / "other.key")
    (listed,) = list_copies(store, other)
    assert listed.copy is None and "master key" in listed.reason
    with pytest.raises(KeyWrong):
        list(read_table(store, other, copy, "projects"))
    with pytest.raises(ConfigError):
        find_copy(store, other, None)
    found = find_copy(store, master, None)
    assert found is not None and found.copy == copy
    load_copy(empty_postgres_url, store, master, found.copy)
    with psycopg.connect(empty_postgres_url) as conn:
        assert conn.execute("SELECT count(*) FROM projects").fetchone() == kept
        assert conn.execute("SELECT DISTINCT description FROM projects").fetchall() == [("canary-of-the-copy",)]


async def test_of_copies_the_newest_whole_one_is_taken(
    database: Database, postgres_url: str, master: MasterKey
) -> None:
    """`keep` copies stay; parts of older ones and of runs that died go; a damaged one is passed over and told."""
    store, clock = MemoryStore(), SystemClock()
    for _ in range(4):
        last = copy_self(postgres_url, store, master, keep=3, clock=clock)
    assert [each.number for each in list_copies(store, master)] == [4, 3, 2]
    ids = {each.id.hex() for each in list_copies(store, master)}
    store.put(f"{PARTS}{'0' * 32}/0000000000", [b"of a run that died"])
    copy_self(postgres_url, store, master, keep=3, clock=clock)
    parts = {info.name.split("/")[2] for info in store.list(PARTS)}
    assert parts == {each.id.hex() for each in list_copies(store, master)} and parts != ids
    newest, second, _ = list_copies(store, master)
    assert last is not None and second.number == last.number
    victim = next(iter(store.list(f"{PARTS}{newest.id.hex()}/"))).name
    sealed = bytearray(store.read(victim))
    sealed[-1] ^= 1
    store.delete(victim)
    store.put(victim, [bytes(sealed)])
    found = find_copy(store, master, None)
    assert found is not None and found.copy.number == second.number
    assert [number for number, _ in found.skipped] == [newest.number]
    store.delete(victim)
    found = find_copy(store, master, None)
    assert found is not None and found.skipped[0][1].startswith("1 of its parts")
    with pytest.raises(ConfigError):
        find_copy(store, master, newest.number)
    assert drop_unreadable(store, master) == 1
    assert find_copy(MemoryStore(), master, None) is None


async def test_one_process_copies_at_a_time(postgres_url: str, master: MasterKey) -> None:
    """Who comes second does nothing, and leaves what the first one has written."""
    store = MemoryStore()
    with snapshot(postgres_url) as taken:
        assert taken.alone(self_rows.ALONE)
        assert copy_self(postgres_url, store, master, keep=3, clock=SystemClock()) is None
    assert list(store.list("")) == []


async def test_the_wraps_of_a_vault_are_not_copied(postgres_url: str, master: MasterKey) -> None:
    """A copy that is older than a deletion must not bring back the keys that the deletion shredded."""
    fill(postgres_url, 4)
    with psycopg.connect(postgres_url) as conn:
        conn.execute(
            "INSERT INTO vaults (id, project_id, user_id, name, provider_id, object_type, protect_type, "
            "consistent_level, size_gb, created_at) VALUES ('v', %s, '', 'v', 'x', 'turbo', 'backup', "
            "'crash_consistent', 1, now())",
            ["0" * 32],
        )
        conn.execute("INSERT INTO vault_keys (project_id, vault_id, wrapped) VALUES (%s, 'v', 'WRAP')", ["0" * 32])
    store = MemoryStore()
    copy = copy_self(postgres_url, store, master, keep=1, clock=SystemClock())
    assert copy is not None
    keys = b"".join(read_table(store, master, copy, "vault_keys"))
    assert b"\tv\t" in keys and b"WRAP" not in keys and b"57524150" not in keys.lower()
    assert {"sessions", "seen_signatures"}.isdisjoint(table.name for table in copy.tables)


def test_a_store_that_fails_anywhere_leaves_the_copy_of_before(postgres_url: str, master: MasterKey) -> None:
    """Whichever call fails, crashed or not: the newest copy that is found opens, and the next run ends well."""
    store, clock = MemoryStore(), SystemClock()
    copy_self(postgres_url, store, master, keep=1, clock=clock)
    counting = FaultStore(copy_of(store))
    copy_self(postgres_url, counting, master, keep=1, clock=clock)
    calls = len(counting.operations)
    assert calls > 10
    for at in range(1, calls + 1):
        broken = FaultStore(copy_of(store), Fault(at=at, crash=at % 2 == 0, seed=at))
        with contextlib.suppress(StoreError):
            copy_self(postgres_url, broken, master, keep=1, clock=clock)
        left = broken.survivors()
        found = find_copy(left, master, None)
        assert found is not None and found.skipped == ()
        again = copy_self(postgres_url, left, master, keep=1, clock=clock)
        assert again is not None and [each.number for each in list_copies(left, master)] == [again.number]
        assert {info.name.split("/")[2] for info in left.list(PARTS)} == {again.id.hex()}


def test_an_open_restore_of_the_copy_is_canceled(postgres_url: str, empty_postgres_url: str, master: MasterKey) -> None:
    """People have worked in its target since: it must not run when the copy is put back. A backup goes on."""
    fill(postgres_url, 5)
    with psycopg.connect(postgres_url) as conn:
        for task in ("restore-running", "restore-waiting", "backup-running", "restore-failed"):
            kind, _, status = task.partition("-")
            conn.execute(
                "INSERT INTO operation_logs (id, project_id, operation_type, status, request_id, created_at, "
                "updated_at, lease_until, ended_at, resource_id, target_resource_id) VALUES (%s, %s, %s, %s, '', "
                "now(), now(), CASE %s WHEN 'running' THEN now() + interval '1 hour' END, "
                "CASE %s WHEN 'failed' THEN now() END, %s, %s)",
                [task, "0" * 32, kind, status, status, status, task, task],
            )
    store = MemoryStore()
    copy = copy_self(postgres_url, store, master, keep=1, clock=SystemClock())
    assert copy is not None
    load_copy(empty_postgres_url, store, master, copy)
    with psycopg.connect(empty_postgres_url) as conn:
        rows = conn.execute("SELECT id, cancel_requested, lease_until < now(), change FROM operation_logs ORDER BY id")
        assert rows.fetchall() == [
            ("backup-running", False, True, 0),
            ("restore-failed", False, None, 0),
            ("restore-running", True, True, 0),
            ("restore-waiting", True, None, 0),
        ]


class SetClock(SystemClock):
    """A clock that stands."""

    at = datetime(2026, 3, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


async def test_when_a_copy_is_due(database: Database) -> None:
    """The first after an hour at work, then one each interval; a clock that was set back does not stop them."""
    clock, day = SetClock(), timedelta(days=1)
    assert not await self_rows.is_due(database, day, clock)
    clock.at += timedelta(minutes=59)
    assert not await self_rows.is_due(database, day, clock)
    clock.at += timedelta(minutes=1)
    assert await self_rows.is_due(database, day, clock)
    await self_rows.note_copied(database, clock.at)
    clock.at += timedelta(hours=23)
    assert not await self_rows.is_due(database, day, clock)
    clock.at += timedelta(hours=1)
    assert await self_rows.is_due(database, day, clock)
    clock.at -= timedelta(days=30)
    assert await self_rows.is_due(database, day, clock)
