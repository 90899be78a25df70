"""The count of a list that nobody filters is kept, not counted: the same number, in every snapshot."""

import asyncio
import random
from pathlib import Path

import psycopg
from points_world import World

from strongroom.base.ids import new_id
from strongroom.control import migrate

# (list, rows) of every project, counted and kept, in one snapshot: what differs is wrong.
DIFFERENT = """
    WITH counted AS (
        SELECT project_id, 'backups' AS list, count(*) AS n FROM backups WHERE parent_id IS NULL GROUP BY 1
        UNION ALL SELECT project_id, 'operation_logs', count(*) FROM operation_logs WHERE listed GROUP BY 1
        UNION ALL SELECT project_id, 'vaults', count(*) FROM vaults GROUP BY 1
        UNION ALL SELECT project_id, 'protectables/' || type, count(*) FROM protectables WHERE removed_at IS NULL
            GROUP BY project_id, type),
    kept AS (SELECT project_id, list, sum(n) AS n FROM list_counts GROUP BY project_id, list)
    SELECT coalesce(c.list, k.list), coalesce(c.n, 0), coalesce(k.n, 0)
    FROM counted c FULL JOIN kept k ON k.project_id = c.project_id AND k.list = c.list
    WHERE coalesce(c.n, 0) <> coalesce(k.n, 0)
"""
WRITERS, TRANSACTIONS = 6, 60


async def count(world: World, path: str, member: str, **query: str) -> int:
    """What a list says, which also is how many it shows here."""
    answer = (await world.client.get(world.v3(path), params=query)).json()
    assert answer["count"] == len(answer[member]), answer
    return int(answer["count"])


async def test_counts_follow_what_requests_and_jobs_do(world: World) -> None:
    """Lists count right after creates, deletes and a deleted vault, filtered or not; another tenant's rows count for
    nobody else."""
    resources = [await world.add_resource(name=f"r{i}") for i in range(3)]
    vault, other = await world.add_vault(resources[:2]), await world.add_vault(resources[2:])
    _, first = await world.backed_up(vault)
    await world.backed_up(other)
    stranger, header = await world.add_project()
    await world.add_vault([await world.add_resource(project=stranger)], project=stranger)

    assert await count(world, "backups", "backups") == 3
    assert await count(world, "backups", "backups", vault_id=vault) == 2
    assert await count(world, "vaults", "vaults") == 2
    assert await count(world, "operation-logs", "operation_logs") == 3
    assert await count(world, "protectables/turbo/instances", "instances") == 3
    await world.deleted(first[0])
    assert await count(world, "backups", "backups") == 2
    await world.execute("DELETE FROM vaults WHERE id = %s", other)  # backups of a vault go with it
    assert await count(world, "backups", "backups") == 1
    assert await count(world, "vaults", "vaults") == 1
    strange = (await world.client.get(f"/v3/{stranger}/backups", headers=header)).json()
    assert (strange["count"], strange["backups"]) == (0, [])
    assert await world.execute(DIFFERENT) == []


async def test_rows_that_enter_or_leave_a_list_by_an_update_are_counted(world: World) -> None:
    """A registration that is withdrawn, a backup that gets a parent, a log that is hidden, a row of another project."""
    resource = await world.add_resource()
    vault = await world.add_vault([resource])
    _, (backup,) = await world.backed_up(vault)
    project, _ = await world.add_project()
    for change in (
        "UPDATE protectables SET removed_at = now()",
        "UPDATE protectables SET removed_at = NULL",
        "UPDATE protectables SET type = 'disk'",
        f"UPDATE backups SET parent_id = '{backup}', machine_id = resource_id",
        "UPDATE backups SET parent_id = NULL, machine_id = NULL",
        "UPDATE operation_logs SET listed = NOT listed",
        f"UPDATE vaults SET project_id = '{project}'",
        f"WITH its AS (UPDATE checkpoints SET project_id = '{project}') UPDATE backups SET project_id = '{project}'",
    ):
        await world.execute(change)
        assert await world.execute(DIFFERENT) == [], change


async def writer(world: World, chance: random.Random, vault: str, checkpoint: str, parent: str) -> None:
    """Transactions that make and end many rows at once, some of which are undone."""
    for _ in range(TRANSACTIONS):
        try:
            async with world.database.transaction() as conn:
                for _ in range(chance.randrange(1, 4)):
                    await conn.execute(
                        "INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, "
                        "resource_name, name, provider_id, status, incremental, created_at, parent_id, machine_id) "
                        "SELECT gen_random_uuid()::text, %s, %s, %s, 'r', 't', 'n', 'n', 'p', 'error', true, now(), "
                        "r.of, r.of FROM (SELECT CASE WHEN random() < 0.2 THEN %s END AS of "
                        "FROM generate_series(1, %s)) AS r",
                        [world.project, vault, checkpoint, parent, chance.randrange(5)],
                    )
                    await conn.execute(
                        "DELETE FROM backups WHERE id IN (SELECT id FROM backups WHERE vault_id = %s "
                        "LIMIT %s FOR UPDATE SKIP LOCKED)",
                        [vault, chance.randrange(4)],
                    )
                if chance.random() < 0.3:
                    raise KeyError
        except KeyError:
            pass


async def test_storm_of_creates_and_deletes(world: World) -> None:
    """Whatever commits and rolls back at once, every snapshot has counts that are right, and nobody waits for long."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    vault = await world.add_vault([await world.add_resource()])
    _, (parent,) = await world.backed_up(await world.add_vault([await world.add_resource()]))
    point = await world.run(vault)
    looks = 0
    async with asyncio.timeout(60):
        async with asyncio.TaskGroup() as group:
            writers = [
                group.create_task(writer(world, random.Random(chance.random()), vault, point.id, parent))
                for _ in range(WRITERS)
            ]
            while not all(task.done() for task in writers):
                assert await world.execute(DIFFERENT) == []
                looks += 1
    assert looks > 10
    assert await world.execute(DIFFERENT) == []
    assert await world.one("SELECT count(*) FROM backups") != 0


async def test_the_rows_of_a_count_stay_few(world: World) -> None:
    """A thousand creates leave some tens of rows to add up: 500 once in ten million runs."""
    await world.execute(
        "DO $$ BEGIN FOR i IN 1..1000 LOOP INSERT INTO protectables (id, project_id, type, resource_type, name, path, "
        f"created_at) VALUES (i::text, '{world.project}', 'disk', 'OS::Cinder::Volume', 'd', convert_to(i::text, "
        "'UTF8'), now()); END LOOP; END $$"
    )
    assert await world.execute(DIFFERENT) == []
    assert 1 <= int(str(await world.one("SELECT count(*) FROM list_counts"))) < 500


def test_rows_of_before_are_counted_by_the_upgrade(empty_postgres_url: str) -> None:
    """What a database held before counts were kept is counted when its schema is brought up."""
    with psycopg.connect(empty_postgres_url, autocommit=True) as conn:
        make_schema_before_counts(conn)
        project = "a" * 32
        conn.execute("INSERT INTO domains VALUES ('default', 'Default', now())")
        conn.execute(
            "INSERT INTO projects (id, domain_id, name, created_at) VALUES (%s, 'default', 'p', now())", [project]
        )
        for kind, resource_type in (("disk", "OS::Cinder::Volume"), ("turbo", "OS::Sfs::Turbo")):
            conn.execute(
                "INSERT INTO protectables (id, project_id, type, resource_type, name, path, created_at) "
                "VALUES (%s, %s, %s, %s, 'd', %s, now())",
                [new_id(), project, kind, resource_type, kind.encode()],
            )
        assert conn.execute("SELECT to_regclass('list_counts')").fetchone() == (None,)
    migrate.upgrade(empty_postgres_url)
    with psycopg.connect(empty_postgres_url, autocommit=True) as conn:
        assert conn.execute("SELECT list, n FROM list_counts ORDER BY list").fetchall() == [
            ("protectables/disk", 1),
            ("protectables/turbo", 1),
        ]
        assert conn.execute(DIFFERENT.encode()).fetchall() == []


def make_schema_before_counts(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """The schema as the revisions before this one's left it."""
    files = sorted((Path(migrate.__file__).parent / "migrations" / "versions").glob("*.sql"))
    before = [path for path in files if path < next(path for path in files if path.stem.endswith("_list_counts"))]
    for path in before:
        conn.execute(path.read_bytes())
    conn.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    conn.execute("INSERT INTO alembic_version VALUES (%s)", [before[-1].stem[:4]])
