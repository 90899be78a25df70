"""What becomes a message, in the transaction that makes it true, and what becomes of messages."""

from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from strongroom.base.clock import SystemClock
from strongroom.base.errors import InvalidRequest
from strongroom.control import notifications
from strongroom.control.db import Database
from strongroom.control.figures import Protected
from strongroom.control.notifications import EVENTS

PROJECT, OTHER = "0" * 32, "1" * 32
GB = 1 << 30


@pytest.fixture
def conn(postgres_url: str) -> Iterator[psycopg.Connection]:
    """Two projects, one vault; each project has a receiver for every event."""
    with psycopg.connect(postgres_url, autocommit=True) as opened:
        opened.execute("INSERT INTO domains VALUES ('default', 'default', now())")
        for project in (PROJECT, OTHER):
            opened.execute("INSERT INTO projects VALUES (%s, 'default', %s, '', true, now())", [project, project])
            opened.execute(
                "INSERT INTO notifications (id, project_id, name, kind, target, events, created_at) "
                "VALUES (%s, %s, 'n', 'mail', 'a@b.org', %s, now())",
                [f"n{project[0]}", project, list(EVENTS)],
            )
        opened.execute(
            "INSERT INTO vaults (id, project_id, user_id, name, provider_id, object_type, protect_type, "
            "consistent_level, size_gb, created_at) VALUES ('v', %s, '', 'v', 'x', 'turbo', 'backup', "
            "'crash_consistent', 10, now())",
            [PROJECT],
        )
        yield opened


def told(conn: psycopg.Connection) -> list[tuple[str, str]]:
    return conn.execute("SELECT notification_id, event FROM notification_outbox ORDER BY created_at, id").fetchall()


def test_a_vault_that_passes_its_threshold_is_told_once(conn: psycopg.Connection) -> None:
    """At 80 %, not again above it, and again after it was below."""
    for used, count in ((7, 0), (8, 1), (9, 1), (5, 1), (9, 2)):
        conn.execute("UPDATE vaults SET used_bytes = %s WHERE id = 'v'", [used * GB])
        assert told(conn) == [("n0", "nearly_full")] * count


def test_a_check_that_found_damage_is_not_just_a_failure(conn: psycopg.Connection) -> None:
    """By what it found; what does not commit is not told."""
    for outcome in ('{"damaged_backups": ["b"]}', "{}"):
        conn.execute(
            "INSERT INTO operation_logs (id, project_id, operation_type, status, request_id, created_at, updated_at) "
            "VALUES (%s, %s, 'verify', 'waiting', '', now(), now())",
            [outcome, PROJECT],
        )
        change = "UPDATE operation_logs SET status = 'failed', ended_at = now(), outcome = %s WHERE id = %s"
        with conn.transaction(force_rollback=True):
            conn.execute(change, [outcome, outcome])
            assert told(conn)[-1][0] == "n0"
        conn.execute(change, [outcome, outcome])
    assert told(conn) == [("n0", "damage"), ("n0", "failed")]


def test_a_restore_point_without_some_resources_is_partly(conn: psycopg.Connection) -> None:
    """When it becomes available and a resource was skipped."""
    for name, code in (("whole", None), ("partly", "6102")):
        conn.execute(
            "INSERT INTO checkpoints (id, project_id, vault_id, vault_name, provider_id, status, name, created_at) "
            "VALUES (%s, %s, 'v', 'v', 'x', 'protecting', '', now())",
            [name, PROJECT],
        )
        conn.execute(
            "INSERT INTO checkpoint_resources (project_id, checkpoint_id, resource_id, position, type, name, "
            "skipped_code, skipped_reason) VALUES (%s, %s, 'r', 0, 't', 'n', %s, %s)",
            [PROJECT, name, code, code],
        )
        conn.execute("UPDATE checkpoints SET status = 'available' WHERE id = %s", [name])
    assert told(conn) == [("n0", "partly")]


async def test_a_run_that_did_not_happen_is_told_once(conn: psycopg.Connection, database: Database) -> None:
    """For each newest restore point: a later silence is another one. Of the project alone."""
    now = SystemClock().now()

    def late(days: int) -> Protected:
        return Protected(
            project_id=PROJECT,
            vault_id="v",
            resource_id="r",
            type="t",
            since=now,
            succeeded_at=now - timedelta(days=days),
            interval=timedelta(days=1),
        )

    for days in (5, 5, 3):
        await notifications.tell_overdue(database, [late(days)])
    assert told(conn) == [("n0", "did_not_run")] * 2


async def test_a_message_is_tried_until_it_arrives(conn: psycopg.Connection, database: Database) -> None:
    """Taken by one worker at a time; after a failure later, each time twice as late; given up in the end."""
    await notifications.send_test(database, PROJECT, "n0")
    (mine,) = await notifications.claim_due(database)
    assert await notifications.claim_due(database) == []
    waits = []
    for attempt in range(1, notifications.ATTEMPTS_MAX + 1):
        await notifications.note_delivery(database, mine, "no")
        row = conn.execute(
            "SELECT status, extract(epoch FROM next_at - now())::float FROM notification_outbox"
        ).fetchone()
        assert row is not None
        assert row[0] == ("failed" if attempt == notifications.ATTEMPTS_MAX else "waiting")
        waits.append(row[1])
        conn.execute("UPDATE notification_outbox SET next_at = now()")
        if row[0] == "waiting":
            (mine,) = await notifications.claim_due(database)
            assert mine.attempts == attempt + 1
    assert waits[1] > 1.5 * waits[0] and max(waits) <= notifications.RETRY_S_MAX
    conn.execute("UPDATE notification_outbox SET ended_at = now() - interval '8 days'")
    await notifications.purge_deliveries(database)
    assert told(conn) == []


async def test_limits(conn: psycopg.Connection, database: Database) -> None:
    """So many of a project, and only events that there are."""
    values = {"name": "n", "kind": "mail", "target": "a@b.org", "secret_sealed": None, "clock": SystemClock()}
    with pytest.raises(InvalidRequest, match="Invalid events"):
        await notifications.add_notification(database, PROJECT, events=["unknown"], **values)
    for _ in range(notifications.PER_PROJECT_MAX - 1):
        await notifications.add_notification(database, PROJECT, events=["failed"], **values)
    with pytest.raises(InvalidRequest, match="at most"):
        await notifications.add_notification(database, PROJECT, events=["failed"], **values)
