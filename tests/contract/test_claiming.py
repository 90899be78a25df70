"""Claims of long queues: fair to tenants, within limits whoever claims, and no dearer than those of short ones."""

import asyncio
from collections import Counter

import psycopg
import pytest
from points_world import World

from strongroom.base.ids import new_id
from strongroom.control import checkpoints, claiming, tasks
from strongroom.control.claiming import RunningLimits
from strongroom.control.tasks import ATTEMPTS_MAX, NewTask, Task

FLOOD = 10_000
BLOCKS_IDLE_MAX = 10
PLANNED_ANEW = 6  # times; then PostgreSQL may keep one plan for all values
BLOCKS_MAX = 400  # of 8 KiB, read by one look for a task; the table alone has twice as many


async def add(world: World, vault: str, project: str, count: int = 1, **members: object) -> None:
    """Waiting tasks."""
    new = [
        NewTask(
            project_id=project,
            operation_type="delete",
            request_id=new_id(),
            vault_id=vault,
            backup_id=new_id(),
            **members,  # type: ignore[arg-type]
        )
        for _ in range(count)
    ]
    async with world.database.transaction() as conn:
        await tasks.insert(conn, new, world.clock.now())


async def claim(world: World, worker: str = "w", **members: object) -> Task | None:
    return await claiming.claim(world.database, worker, "default", **members)  # type: ignore[arg-type]


async def end(world: World, task: Task) -> None:
    async with world.database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await tasks.finish(conn, task, world.clock)


async def blocks_read(world: World, statement: str, **values: object) -> int:
    """Blocks of the database that a statement looks at."""
    async with world.database.read() as conn:
        cursor = psycopg.AsyncClientCursor(conn)
        await cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", values)  # type: ignore[arg-type]
        row = await cursor.fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def test_a_flood_of_one_tenant_holds_up_no_other(world: World) -> None:
    """One tenant has ten thousand waiting tasks, five others one each: those five are the next but one at the latest,
    also while only one worker ends tasks; and no look reads more than a few blocks, wherever it begins."""
    flood = await world.add_vault()
    await add(world, flood, world.project, FLOOD)
    small = []
    for _ in range(5):
        project, _ = await world.add_project()
        small.append(project)
        await add(world, await world.add_vault(project=project), project)
    values = {
        "groups": ["default", "*"],
        "attempts": ATTEMPTS_MAX,
        "lot": "8",
        "full_projects": [],
        "full_vaults": [],
        "full_hosts": [],
        "busy": [],
    }
    for after in ("", world.project, *small):
        assert await blocks_read(world, claiming._IDLE, **values, after=after) < BLOCKS_MAX
    busy = values | {"busy": [world.project], "after": ""}
    assert await blocks_read(world, claiming._BUSY, **busy) < BLOCKS_MAX
    assert await blocks_read(world, claiming._BUSY, **busy | {"full_vaults": [flood]}) < BLOCKS_MAX
    served, after = Counter[str](), ""
    for _ in range(7):
        task = await claim(world, after=after)
        assert task is not None
        after = task.project_id
        served[after] += 1
        await end(world, task)
    assert set(served) == {world.project, *small}


async def blocks_of_kept_plan(world: World, statement: str, types: str, values: str) -> int:
    """As blocks_read, of a statement with $1 ... by the plan that PostgreSQL keeps for all values."""
    async with world.database.read() as conn:
        await conn.execute("SET plan_cache_mode = force_generic_plan")
        await conn.execute(f"PREPARE looked ({types}) AS {statement}".encode())
        found = await conn.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE looked ({values})".encode())
        row = await found.fetchone()
        await conn.execute("DEALLOCATE looked")
        await conn.execute("RESET plan_cache_mode")
    assert row is not None
    plan = row[0][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def test_a_worker_without_work_asks_little(world: World) -> None:
    """However many tasks wait for workers of other groups, to find nothing reads a few blocks, also when PostgreSQL
    knows of nothing but those tasks; so does the look for tasks whose attempts are used up."""
    vault = await world.add_vault()
    await add(world, vault, world.project, FLOOD, worker_group="elsewhere")
    assert await claim(world) is None
    assert await blocks_read(world, claiming._ANYTHING, groups=["default", "*"]) < BLOCKS_IDLE_MAX
    await world.execute("ANALYZE operation_logs")
    anything = claiming._ANYTHING.replace("%(groups)s", "$1")
    assert await blocks_of_kept_plan(world, anything, "text[]", "'{default,*}'") < BLOCKS_IDLE_MAX
    exhausted = tasks._EXHAUSTED.decode().replace("%s", "$1", 1).replace("%s", "$2", 1).replace("%s", "$3", 1)
    values = "'w', 10, '{default,*}'"
    assert await blocks_of_kept_plan(world, exhausted, "text, int, text[]", values) < BLOCKS_IDLE_MAX
    await add(world, vault, world.project)
    assert await claim(world) is not None


async def test_backups_that_wait_cost_a_new_run_nothing(world: World) -> None:
    """Which of its resources are busy is looked up for each of them, however many others have an open task."""
    resources = [new_id() for _ in range(FLOOD)]
    waiting = [
        NewTask(project_id=world.project, operation_type="backup", request_id=new_id(), resource_id=id_)
        for id_ in resources
    ]
    async with world.database.transaction() as conn:
        await tasks.insert(conn, waiting, world.clock.now())
    # As autovacuum saw it before they came: PostgreSQL does not know how many wait.
    async with world.database.transaction() as conn:
        for _ in range(PLANNED_ANEW):
            await checkpoints._busy(conn, world.project, [new_id()])
        busy = await checkpoints._busy(conn, world.project, [*resources[:2], *(new_id() for _ in range(254))])
        read = await conn.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'operation_logs'"
        )
        row = await read.fetchone()
    assert busy == dict.fromkeys(resources[:2], "backup")
    assert row is not None
    assert row[0] < 10


async def test_the_turn_goes_round(world: World) -> None:
    """Tenants that all have much waiting are served one after the other, whichever was first."""
    projects = [world.project, *[(await world.add_project())[0] for _ in range(3)]]
    for project in projects:
        await add(world, await world.add_vault(project=project), project, 20)
    order, after = [], ""
    for _ in range(12):
        task = await claim(world, after=after)
        assert task is not None
        after = task.project_id
        order.append(after)
        await end(world, task)
    assert order == sorted(projects) * 3


@pytest.mark.parametrize("limit", ["project", "host", "vault"])
async def test_limits_hold_when_all_claim_at_once(world: World, limit: str) -> None:
    """However many workers claim at the same moment, no more run than the limit says; what ends makes a place."""
    vault = await world.add_vault()
    for _ in range(12):
        place = vault if limit == "vault" else await world.add_vault()
        await add(world, place, world.project, source_host="nas" if limit == "host" else "")
    limits = RunningLimits(**{limit: 3})
    found = await asyncio.gather(*(claim(world, f"w{i}", limits=limits) for i in range(8)))
    got = [task for task in found if task is not None]
    while (task := await claim(world, limits=limits)) is not None:
        got.append(task)
    assert len(got) == 3
    await end(world, got[0])
    assert await claim(world, limits=limits) is not None
    assert await claim(world, limits=limits) is None


async def test_what_has_no_place_hides_nothing(world: World) -> None:
    """A hundred tasks of a vault and of a host that have no place left: the task behind them is found."""
    full = await world.add_vault()
    await add(world, full, world.project, 100)
    limits = RunningLimits(vault=1, host=1)
    assert await claim(world, limits=limits) is not None
    for _ in range(5):
        await add(world, await world.add_vault(), world.project, source_host="nas")
    assert (await claim(world, limits=limits)).vault_id != full  # type: ignore[union-attr]
    assert await claim(world, limits=limits) is None
    behind = await world.add_vault()
    await add(world, behind, world.project)
    assert (await claim(world, limits=limits)).vault_id == behind  # type: ignore[union-attr]


async def test_more_vaults_than_are_looked_at(world: World) -> None:
    """A tenant with tasks in more vaults than one look covers gets all of them done."""
    count = claiming.VAULTS_LOOKED_AT + 30
    for _ in range(count):
        await add(world, await world.add_vault(), world.project)
    done = 0
    while (task := await claim(world)) is not None:
        await end(world, task)
        done += 1
    assert done == count


async def test_a_delayed_task_comes_behind_those_that_had_no_turn(world: World) -> None:
    """What failed and waits for its retry is passed over, and comes when its time has come."""
    vault = await world.add_vault()
    await add(world, vault, world.project, 2)
    first = await claim(world)
    assert first is not None
    await tasks.put_back(world.database, first, 3600, count=True)
    second = await claim(world)
    assert second is not None and second.id != first.id
    assert await claim(world) is None
    await world.execute("UPDATE operation_logs SET not_before = now() WHERE id = %s", first.id)
    assert (await claim(world)).id == first.id  # type: ignore[union-attr]


async def test_tasks_that_need_the_store_only_run_in_any_group(world: World) -> None:
    """A deletion is done by whichever worker there is; a backup by one of the group that reaches its source."""
    vault = await world.add_vault()
    await add(world, vault, world.project)
    await add(world, vault, world.project, worker_group="paris")
    assert (await claiming.claim(world.database, "w", "rome")) is not None
    assert (await claiming.claim(world.database, "w", "rome")) is None
    assert (await claiming.claim(world.database, "w", "paris")) is not None
