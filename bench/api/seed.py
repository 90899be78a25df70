"""A project with as many restore points as wanted: valid rows, made by the database itself, in batches.

A vault holds two resources and is backed up again and again, so a restore point has two backups, one a resource. The
rows keep every rule of the schema; ids begin with the time of their row, as real ones do (PostgreSQL 18). Nothing of it
lies in a store: reads of the API never look there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg.types.json import Jsonb

from strongroom.control.vault_kinds import VAULT_KINDS

RESOURCES = 2  # of a vault, and so backups of a restore point
POINTS_PER_VAULT = 400  # a daily backup kept for a year, and some more
VAULTS_MAX = 5000  # a project may hold 10 000
BATCH = 25_000  # restore points of one transaction
WIDE_RESOURCES = 256  # the most that a vault may hold
SAMPLES = 20_000
_FILLED = ["checkpoints", "checkpoint_resources", "backups", "operation_logs"]

_VAULTS = """
    INSERT INTO vaults (id, project_id, user_id, name, provider_id, object_type, protect_type, consistent_level,
        size_gb, created_at)
    SELECT uuidv7(shift)::text, %(project)s, %(user)s, %(prefix)s || '-' || n, %(provider)s, 'disk', 'backup',
        'crash_consistent', 10000, now() + shift
    FROM generate_series(1, %(vaults)s) AS n
    CROSS JOIN LATERAL (SELECT n * interval '1 second' - interval '2 years') AS its(shift)
"""
_PROTECTABLES = """
    INSERT INTO protectables (id, project_id, type, resource_type, name, path, worker_group, size_bytes, created_at)
    SELECT uuidv7(v.created_at - now())::text, %(project)s, 'disk', 'OS::Cinder::Volume', v.name || '-disk-' || n,
        convert_to('/bench/' || v.name || '/' || n, 'UTF8'), 'bench', 42949672960, v.created_at
    FROM vaults v, generate_series(1, %(resources)s) AS n
    WHERE v.project_id = %(project)s AND v.name LIKE %(prefix)s || '-%%'
"""
_BOUND = """
    INSERT INTO vault_resources (project_id, vault_id, resource_id, protect_type, type, name, size_bytes, created_at)
    SELECT %(project)s, v.id, p.id, 'backup', p.resource_type, p.name, p.size_bytes, p.created_at
    FROM protectables p JOIN vaults v
        ON v.project_id = p.project_id AND v.name = split_part(p.name, '-disk-', 1)
    WHERE p.project_id = %(project)s AND v.name LIKE %(prefix)s || '-%%'
"""
_NUMBERED = """
    CREATE TEMP TABLE numbered AS SELECT row_number() OVER (ORDER BY created_at, id) - 1 AS n, id, name, provider_id
    FROM vaults WHERE project_id = %(project)s AND name LIKE %(prefix)s || '-%%'
"""
_POINTS = """
    CREATE TEMP TABLE points ON COMMIT DROP AS
    SELECT uuidv7(shift)::text AS id, v.id AS vault_id, v.name AS vault_name, v.provider_id,
        'autobk_' || to_hex(number %% 65536) AS name, now() + shift AS created_at
    FROM generate_series(%(begin)s::bigint, %(end)s::bigint - 1) AS number
    CROSS JOIN LATERAL (SELECT number * (interval '2 years' / %(points)s) - interval '2 years') AS its(shift)
    JOIN numbered v ON v.n = number %% %(vaults)s
"""
_CHECKPOINTS = """
    INSERT INTO checkpoints (id, project_id, vault_id, vault_name, provider_id, status, name, auto_trigger, created_at)
    SELECT id, %(project)s, vault_id, vault_name, provider_id, 'available', name, true, created_at FROM points
"""
_RESOURCES = """
    INSERT INTO checkpoint_resources (project_id, checkpoint_id, resource_id, position, type, name, size_bytes)
    SELECT %(project)s, p.id, r.resource_id, row_number() OVER (PARTITION BY p.id ORDER BY r.resource_id) - 1, r.type,
        r.name, r.size_bytes
    FROM points p JOIN vault_resources r ON r.vault_id = p.vault_id
"""
_MADE = """
    CREATE TEMP TABLE made ON COMMIT DROP AS
    SELECT uuidv7(p.created_at - now())::text AS id, p.id AS point_id, p.vault_id, p.vault_name, p.name, p.provider_id,
        p.created_at, r.resource_id, r.type, r.name AS resource_name, r.size_bytes
    FROM points p JOIN vault_resources r ON r.vault_id = p.vault_id
"""
_BACKUPS = """
    INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, resource_name,
        resource_size_bytes, name, provider_id, status, incremental, auto_trigger, stored_bytes, root, created_at,
        protected_at, updated_at, report, point_token)
    SELECT id, %(project)s, vault_id, point_id, resource_id, type, resource_name, size_bytes, name, provider_id,
        'available', true, true, 3 << 20, 'roots/' || id || '.1', created_at, created_at + interval '1 minute',
        created_at + interval '1 minute', %(report)s, %(token)s
    FROM made
"""
_LOGS = """
    INSERT INTO operation_logs (id, project_id, operation_type, status, vault_id, vault_name, provider_id,
        checkpoint_id, backup_id, backup_name, resource_id, resource_type, resource_name, request_id, parameters,
        outcome, created_at, started_at, ended_at, updated_at, generation, attempts, worker, progress, bytes_done,
        bytes_total, entries_done)
    SELECT uuidv7(created_at - now())::text, %(project)s, 'backup', 'success', vault_id, vault_name, provider_id,
        point_id, id, name, resource_id, type, resource_name, point_id, '{"incremental": true}',
        '{"stored_bytes": 3145728}', created_at, created_at, created_at + interval '1 minute',
        created_at + interval '1 minute', 1, 1, '4e8c3fdf4efd468196da16004d01bf15/machine:5095:97621e4e', 100, 3 << 20,
        3 << 20, 1
    FROM made
"""

# As long as those of a real backup of a small folder.
_REPORT = {
    "kind": "tree", "entries": 1, "folders": 1, "seconds": 0.37, "skipped": [], "vanished": 0, "bytes_new": 262144,
    "source": {"snapshot": None, "consistency": "crash_consistent", "file_system": "ext4", "exclude_patterns": 0,
               "snapshot_reason": "It is read while it is in use: It does not lie on a logical volume."},
    "bytes_read": 262144, "bytes_total": 262144, "consistency": "crash_consistent", "bytes_stored": 262894,
    "full_reason": "A full backup was asked for.", "skipped_count": 0, "changed_while_read": [],
    "changed_while_read_count": 0,
}  # fmt: skip
_TOKEN = b'{"dev": 65024, "ino": 2401905, "kind": "folder"}'


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """What was made. ids: restore points drawn at random, for clients to ask for."""

    points: int
    backups: int
    ids: list[str]


def seed(
    url: str, project_id: str, user_id: str, points: int, *, vaults: int | None = None, whole: bool = False
) -> Seeded:
    """Make the vaults and restore points, then what autovacuum would do within the day: faster inside `unindexed`.

    whole: with all that a finished run leaves: reports, tokens of sources, an operation log a backup
    """
    vaults = vaults or min(max(points // POINTS_PER_VAULT, 1), VAULTS_MAX)
    values = {"project": project_id, "user": user_id, "points": points, "vaults": vaults}
    values |= {"report": Jsonb(_REPORT if whole else {}), "token": _TOKEN if whole else None}
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        _make_vaults(conn, values, "bench", vaults, RESOURCES)
        conn.execute(_NUMBERED, {**values, "prefix": "bench"})
        for begin in range(0, points, BATCH):
            with conn.transaction():
                conn.execute(_POINTS, {**values, "begin": begin, "end": min(begin + BATCH, points)})
                for statement in (_CHECKPOINTS, _RESOURCES, _MADE, _BACKUPS, *([_LOGS] if whole else [])):
                    conn.execute(statement, values)
        conn.execute("VACUUM (ANALYZE)")
        ids = conn.execute(
            "SELECT id FROM checkpoints WHERE project_id = %s ORDER BY right(id, 12) LIMIT %s", [project_id, SAMPLES]
        ).fetchall()  # the ends of ids are random
        counted = conn.execute(
            "SELECT count(*) FROM backups WHERE project_id = %s AND auto_trigger", [project_id]
        ).fetchone()
    assert counted is not None and counted[0] == points * RESOURCES
    return Seeded(points=points, backups=counted[0], ids=[row[0] for row in ids])


@contextmanager
def unindexed(url: str) -> Iterator[None]:
    """Without foreign keys and the indexes of no constraint until the block ends, which makes them for all rows at
    once: in less than half of the time."""
    with psycopg.connect(url, autocommit=True) as conn:
        keys = conn.execute(
            "SELECT conrelid::regclass, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE contype = 'f' AND conrelid = ANY(%s::regclass[])",
            [_FILLED],
        ).fetchall()
        indexes = conn.execute(
            "SELECT i.indexrelid::regclass, pg_get_indexdef(i.indexrelid) FROM pg_index i WHERE i.indrelid = "
            "ANY(%s::regclass[]) AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)",
            [_FILLED],
        ).fetchall()
        for table, key, _ in keys:
            conn.execute(f"ALTER TABLE {table} DROP CONSTRAINT {key}".encode())
        for name, _ in indexes:
            conn.execute(f"DROP INDEX {name}".encode())
        yield
        conn.execute("SET maintenance_work_mem = '1GB'")
        for _, definition in indexes:
            conn.execute(str(definition).encode())
        for table, key, definition in keys:
            conn.execute(f"ALTER TABLE {table} ADD CONSTRAINT {key} {definition}".encode())
        conn.execute(f"VACUUM (ANALYZE) {', '.join(_FILLED)}".encode())


def seed_wide_vaults(url: str, project_id: str, user_id: str, vaults: int) -> list[str]:
    """Ids of vaults that hold as many resources as a vault may, none backed up yet. No worker serves their group."""
    values = {"project": project_id, "user": user_id, "vaults": vaults}
    with psycopg.connect(url, autocommit=True) as conn:
        _make_vaults(conn, values, "wide", vaults, WIDE_RESOURCES)
        conn.execute("VACUUM (ANALYZE) vaults, protectables, vault_resources")
        found = conn.execute(
            "SELECT id FROM vaults WHERE project_id = %s AND name LIKE 'wide-%%' ORDER BY created_at, id", [project_id]
        ).fetchall()
    assert len(found) == vaults
    return [row[0] for row in found]


def _make_vaults(
    conn: psycopg.Connection[tuple[object, ...]], values: dict[str, object], prefix: str, vaults: int, resources: int
) -> None:
    provider = VAULT_KINDS["disk"].provider_id
    filled = {**values, "prefix": prefix, "vaults": vaults, "resources": resources, "provider": provider}
    for statement in (_VAULTS, _PROTECTABLES, _BOUND):
        conn.execute(statement, filled)


def reset_wide_vaults(url: str, project_id: str, vaults: list[str]) -> None:
    """Forget what an earlier run asked of them; nothing of it was ever begun."""
    with psycopg.connect(url) as conn:
        conn.execute("DELETE FROM operation_logs WHERE project_id = %s AND vault_id = ANY(%s)", [project_id, vaults])
        conn.execute("DELETE FROM checkpoints WHERE project_id = %s AND vault_id = ANY(%s)", [project_id, vaults])
        conn.execute(
            "UPDATE vault_resources SET protect_status = 'available' "
            "WHERE project_id = %s AND vault_id = ANY(%s) AND protect_status <> 'available'",
            [project_id, vaults],
        )
