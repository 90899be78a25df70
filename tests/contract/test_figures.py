"""The catalogue in numbers: what is overdue, how full, how long a queue is."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from strongroom.base.clock import SystemClock
from strongroom.control.db import Database
from strongroom.control.figures import longest_gap, read_figures

PROJECT = "0" * 32
DAILY = ("FREQ=DAILY;BYHOUR=3;BYMINUTE=0",)


@pytest.mark.parametrize(
    ("patterns", "hours"),
    [
        (DAILY, 24),
        (("FREQ=DAILY;BYHOUR=2,14;BYMINUTE=0",), 12),
        (("FREQ=DAILY;INTERVAL=3;BYHOUR=2;BYMINUTE=0",), 72),
        (("FREQ=WEEKLY;BYDAY=MO,TU;BYHOUR=2;BYMINUTE=30",), 6 * 24),
    ],
)
def test_the_longest_gap_of_a_schedule(patterns: tuple[str, ...], hours: int) -> None:
    """What may lie between two runs when nothing is wrong."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert longest_gap(patterns, None, start, start) == timedelta(hours=hours)


async def test_what_did_not_run_is_overdue(database: Database, postgres_url: str) -> None:
    """By the newest success, else by when it was protected; without an enabled policy nothing is expected."""
    with psycopg.connect(postgres_url) as conn:
        conn.execute("INSERT INTO domains VALUES ('default', 'default', now())")
        conn.execute("INSERT INTO projects VALUES (%s, 'default', 'p', '', true, now())", [PROJECT])
        conn.execute(
            "INSERT INTO policies (id, project_id, name, operation_type, enabled, trigger_id, patterns, start_at, "
            "definition, retention_changed_at, created_at) VALUES ('p', %s, 'p', 'backup', true, 't', %s, now(), '{}', "
            "now(), now())",
            [PROJECT, list(DAILY)],
        )
        cases = (("new", 1, None), ("late", 99, 3), ("never", 3, None), ("fine", 99, 1), ("free", 99, 30))
        for name, protected_days, success_days in cases:
            conn.execute(
                "INSERT INTO vaults (id, project_id, user_id, name, provider_id, object_type, protect_type, "
                "consistent_level, size_gb, created_at, used_bytes) VALUES (%s, %s, '', %s, 'x', 'turbo', 'backup', "
                "'crash_consistent', 1, now(), %s)",
                [name, PROJECT, name, 1 << 30 if name == "late" else 0],
            )
            conn.execute(
                "INSERT INTO protectables (id, project_id, type, resource_type, name, path, created_at) "
                "VALUES (%s, %s, 'turbo', 'OS::Sfs::Turbo', %s, %s, now())",
                [name, PROJECT, name, name.encode()],
            )
            conn.execute(
                "INSERT INTO vault_resources (project_id, vault_id, resource_id, protect_type, type, name, created_at) "
                "VALUES (%s, %s, %s, 'backup', 'OS::Sfs::Turbo', %s, now() - make_interval(days => %s))",
                [PROJECT, name, name, name, protected_days],
            )
            if name != "free":
                conn.execute(
                    "INSERT INTO policy_vaults (project_id, vault_id, operation_type, policy_id, created_at) "
                    "VALUES (%s, %s, 'backup', 'p', now() - interval '99 days')",
                    [PROJECT, name],
                )
            if success_days is not None:
                conn.execute(
                    "INSERT INTO checkpoints (id, project_id, vault_id, vault_name, provider_id, status, name, "
                    "created_at) VALUES (%s, %s, %s, '', 'x', 'available', '', now())",
                    [name, PROJECT, name],
                )
                conn.execute(
                    "INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, "
                    "resource_name, name, provider_id, status, incremental, root, created_at) VALUES (%s, %s, %s, %s, "
                    "%s, 'OS::Sfs::Turbo', '', 'b', 'x', 'available', true, 'r', now() - make_interval(days => %s))",
                    [name, PROJECT, name, name, name, success_days],
                )
        conn.execute(
            "INSERT INTO operation_logs (id, project_id, operation_type, status, request_id, created_at, updated_at, "
            "lease_until) VALUES ('t', %s, 'backup', 'running', '', now() - interval '1 hour', now(), "
            "now() - interval '1 minute')",
            [PROJECT],
        )
    found = await read_figures(database, SystemClock())
    assert {each.resource_id for each in found.resources if each.overdue(found.at)} == {"late", "never"}
    assert found.resources[0].succeeded_at is None and len(found.resources) == 5
    (backlog,) = found.backlog
    assert (backlog.operation, backlog.status, backlog.count, backlog.lapsed) == ("backup", "running", 1, 1)
    assert 3500 < backlog.oldest_s < 3900
    assert found.vaults[0].vault_id == "late" and found.damaged == 0 and found.copied_at is None
