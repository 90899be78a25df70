"""Task rows: claim, lapse, renewal, fairness, limits, retries and the end of attempts, on a real database."""

import asyncio
import random

import pytest
from points_world import World
from psycopg.errors import UniqueViolation

from strongroom.base.errors import Fenced, SourceGone
from strongroom.base.ids import new_id
from strongroom.control import claiming, tasks
from strongroom.control.claiming import RunningLimits
from strongroom.control.tasks import ATTEMPTS_MAX, LEASE_S, NewTask, Task


async def add(world: World, vault: str | None = None, **members: object) -> str:
    """A waiting task; of an own vault each, unless one is given, so that no vault's limit stands in the way."""
    project = str(members.pop("project_id", world.project))
    new = NewTask(
        project_id=project,
        operation_type=str(members.pop("operation_type", "backup")),
        request_id=new_id(),
        vault_id=vault or await world.add_vault(project=project),
        **members,  # type: ignore[arg-type]
    )
    async with world.database.transaction() as conn:
        await tasks.insert(conn, [new], world.clock.now())
    return new.id


async def claimed(world: World, worker: str = "w1", group: str = "default") -> Task | None:
    return await claiming.claim(world.database, worker, group)


async def end(world: World, task: Task, **members: object) -> None:
    async with world.database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await tasks.finish(conn, task, world.clock, **members)  # type: ignore[arg-type]


async def lapse(world: World) -> None:
    await world.execute("UPDATE operation_logs SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL")


async def test_new_tasks_name_the_group_that_runs_them(world: World) -> None:
    """Who cannot run them is not woken; tasks of several groups, or of any, are told to everybody."""
    vault = await world.add_vault()

    async def told(*groups: str) -> list[str]:
        new = [
            NewTask(
                project_id=world.project,
                operation_type="backup",
                request_id=new_id(),
                vault_id=vault,
                resource_id=new_id(),
                worker_group=group,
            )
            for group in groups
        ]
        async with world.database.listen(tasks.CHANNEL) as listener:
            async with world.database.transaction() as conn:
                await tasks.insert(conn, new, world.clock.now())
            return [notify.payload for notify in await listener.wait(20)]

    assert await told("here", "here") == ["here"]
    assert await told("here", "there") == [tasks.ANY_GROUP]
    assert await told(tasks.ANY_GROUP) == [tasks.ANY_GROUP]


async def test_claim_makes_it_mine(world: World) -> None:
    """A claimed task is running, leased, of generation and attempt one, and nobody else gets it."""
    task_id = await add(world, resource_id=new_id(), parameters={"incremental": True})
    task = await claimed(world)
    assert task is not None
    assert (task.id, task.generation, task.attempts, task.parameters) == (task_id, 1, 1, {"incremental": True})
    row = await world.execute(
        "SELECT status, worker, started_at IS NOT NULL, lease_until - now() BETWEEN interval '8 s' AND interval '10 s' "
        "FROM operation_logs"
    )
    assert row == [("running", "w1", True, True)]
    assert await claimed(world, "w2") is None
    assert LEASE_S == 10


async def test_many_workers_share(world: World) -> None:
    """Workers that claim at the same moment each get a task of their own, and every task is claimed once."""
    wanted = {await add(world) for _ in range(12)}
    found: list[str] = []

    async def work(worker: str) -> None:
        while (task := await claimed(world, worker)) is not None:
            found.append(task.id)

    await asyncio.gather(*(work(f"w{i}") for i in range(6)))
    # A worker that met another's locked row may have left early; what it left is there for the next look.
    await work("last")
    assert sorted(found) == sorted(wanted)


async def test_lapsed_lease(world: World) -> None:
    """A task whose worker stopped renewing goes to another, one generation up; the first cannot end it any more."""
    await add(world)
    first = await claimed(world)
    assert first is not None and await claimed(world, "w2") is None
    await lapse(world)
    second = await claimed(world, "w2")
    assert second is not None
    assert (second.id, second.generation, second.attempts) == (first.id, 2, 2)
    with pytest.raises(Fenced):
        await end(world, first)
    await end(world, second)
    assert await world.execute("SELECT status, lease_until FROM operation_logs") == [("success", None)]
    with pytest.raises(Fenced):
        await end(world, second)


async def test_late_worker_may_still_end(world: World) -> None:
    """A lapsed lease that nobody took over is no reason to throw the work away."""
    await add(world)
    task = await claimed(world)
    assert task is not None
    await lapse(world)
    await end(world, task)
    assert await world.one("SELECT status FROM operation_logs") == "success"


async def test_renewal(world: World) -> None:
    """Renewal extends what is still this worker's at this generation, and tells which of it is to be canceled."""
    a, b, c = [await add(world) for _ in range(3)]
    for _ in range(3):
        await claimed(world)
    await world.execute("UPDATE operation_logs SET lease_until = now() + interval '1 s'")
    async with world.database.transaction() as conn:
        assert await tasks.request_cancel(conn, world.project, b)
        assert not await tasks.request_cancel(conn, world.project, new_id())
    await world.execute("UPDATE operation_logs SET generation = 2 WHERE id = %s", c)
    mine = {a: 1, b: 1, c: 1, new_id(): 1}
    assert await tasks.renew(world.database, "w1", mine) == ({a, b}, {b})
    assert await tasks.renew(world.database, "w2", mine) == (set(), set())
    assert await tasks.renew(world.database, "w1", {}) == (set(), set())
    extended = await world.execute("SELECT id FROM operation_logs WHERE lease_until > now() + interval '5 s'")
    assert {row[0] for row in extended} == {a, b}


async def test_oldest_first_within_a_tenant(world: World) -> None:
    """Tasks of one project are claimed in the order they were asked for."""
    order = [await add(world) for _ in range(5)]
    assert [(await claimed(world)).id for _ in order] == order  # type: ignore[union-attr]


async def test_fair_to_tenants(world: World) -> None:
    """A tenant with many waiting tasks does not hold up another's one: fewest running first, turn by turn."""
    flood = [await add(world) for _ in range(20)]
    other, _ = await world.add_project()
    late = [await add(world, project_id=other) for _ in range(3)]
    got = [(await claimed(world)).id for _ in range(6)]  # type: ignore[union-attr]
    assert [{got[0], got[1]}, {got[2], got[3]}, {got[4], got[5]}] == [
        set(turn) for turn in zip(flood, late, strict=False)
    ]


async def test_limit_of_a_vault(world: World) -> None:
    """A vault has a few tasks running at once, whoever claims; the rest waits, other vaults do not."""
    vault, limit = await world.add_vault(), RunningLimits().vault
    waiting = [await add(world, vault) for _ in range(limit * 2)]
    got = [task for task in await asyncio.gather(*(claimed(world, f"w{i}") for i in range(12))) if task]
    while (task := await claimed(world)) is not None:
        got.append(task)
    assert len(got) == limit
    free = await add(world)
    assert (await claimed(world)).id == free  # type: ignore[union-attr]
    await end(world, got[0])
    assert (await claimed(world)).id in waiting  # type: ignore[union-attr]
    assert await claimed(world) is None


async def test_groups(world: World) -> None:
    """A worker gets tasks of its own group only."""
    task_id = await add(world, worker_group="rack-7")
    assert await claimed(world) is None
    assert (await claimed(world, group="rack-7")).id == task_id  # type: ignore[union-attr]


async def test_put_back(world: World) -> None:
    """A retryable failure waits and counts; a draining worker's task neither waits nor counts."""
    await add(world)
    task = await claimed(world)
    assert task is not None
    await tasks.put_back(world.database, task, 0, count=False)
    again = await claimed(world)
    assert again is not None and (again.generation, again.attempts) == (2, 1)
    await tasks.put_back(world.database, again, 3600, count=True)
    assert await claimed(world) is None
    assert await world.execute("SELECT status, worker, attempts FROM operation_logs") == [("waiting", None, 1)]
    await world.execute("UPDATE operation_logs SET not_before = now()")
    last = await claimed(world)
    assert last is not None and (last.generation, last.attempts) == (3, 2)
    with pytest.raises(Fenced):
        await tasks.put_back(world.database, again, 0, count=True)


async def test_state_survives_attempts(world: World) -> None:
    """What an attempt saved is handed to the next one."""
    await add(world)
    task = await claimed(world)
    assert task is not None and task.state == {}
    await tasks.save_state(world.database, task, {"done": [[0, 4096]]})
    await lapse(world)
    again = await claimed(world)
    assert again is not None and again.state == {"done": [[0, 4096]]}


async def test_exhausted(world: World) -> None:
    """A task that outlived its attempts is claimed by no worker, and handed to one sweeper at a time to be ended."""
    await add(world, worker_group="default")
    for attempt in range(ATTEMPTS_MAX):
        task = await claimed(world)
        assert task is not None and task.attempts == attempt + 1
        assert await tasks.exhausted(world.database, "s", "default") == []
        await lapse(world)
    assert await claimed(world) is None
    assert await tasks.exhausted(world.database, "s", "elsewhere") == []
    swept = await asyncio.gather(*(tasks.exhausted(world.database, f"s{i}", "default") for i in range(4)))
    (given,) = [task for found in swept for task in found]
    assert given.generation == ATTEMPTS_MAX + 1
    assert await tasks.exhausted(world.database, "s", "default") == []
    ours, _ = await tasks.renew(
        world.database, f"s{next(i for i, found in enumerate(swept) if found)}", {given.id: given.generation}
    )
    assert ours == {given.id}
    await lapse(world)
    (once_more,) = await tasks.exhausted(world.database, "s", "default")
    with pytest.raises(Fenced):
        await end(world, given, status="failed", error=SourceGone(reason="Late."))
    await end(world, once_more, status="failed", error=SourceGone(reason="Ended.", detail="five workers died"))
    assert await world.execute("SELECT status, error_message, error_detail FROM operation_logs") == [
        ("failed", "Ended.", "five workers died")
    ]


async def test_end_leases(world: World) -> None:
    """Who holds a state folder frees what earlier workers of that folder left, at once; who is alone, everything."""
    mine, other, third = [await add(world) for _ in range(3)]
    for folder in ("aa", "ab", "a"):
        assert await claimed(world, f"{folder}/host:1:x") is not None
    assert await tasks.end_leases(world.database, "aa") == 1
    assert (await claimed(world, "aa/host:2:x")).id == mine  # type: ignore[union-attr]
    assert await claimed(world, "aa/host:2:x") is None
    assert await tasks.end_leases(world.database, None) == 3
    assert {(await claimed(world, "w")).id for _ in range(3)} == {mine, other, third}  # type: ignore[union-attr]


async def test_deletion_waits_for_older_tasks(world: World) -> None:
    """vault_delete waits for every older task of its vault, a removal for those of its resource; not for younger."""
    vault, mine, other = await world.add_vault(), new_id(), new_id()
    older = await add(world, vault, resource_id=mine)
    removal = await add(world, vault, operation_type="remove_resource", resource_id=mine)
    unrelated = await add(world, vault, operation_type="remove_resource", resource_id=other)
    whole = await add(world, vault, operation_type="vault_delete")
    younger = await add(world, vault, resource_id=other)
    first = [await claimed(world) for _ in range(3)]
    assert [t.id for t in first if t] == [older, unrelated, younger]
    assert await claimed(world) is None
    await end(world, first[0])  # type: ignore[arg-type]
    second = await claimed(world)
    assert second is not None and second.id == removal
    assert await claimed(world) is None
    await end(world, second)
    await end(world, first[1])  # type: ignore[arg-type]
    assert (await claimed(world)).id == whole  # type: ignore[union-attr]


async def test_one_open_task_of_a_kind(world: World) -> None:
    """The database itself refuses a second open backup of a resource, restore of a target, delete and prune."""
    vault, one = await world.add_vault(), new_id()
    for members in (
        {"operation_type": "backup", "resource_id": one},
        {"operation_type": "restore", "target_resource_id": one},
        {"operation_type": "delete", "backup_id": one},
        {"operation_type": "prune"},
    ):
        await add(world, vault, **members)
        with pytest.raises(UniqueViolation):
            await add(world, vault, **members)
        task = await claimed(world)
        assert task is not None
        with pytest.raises(UniqueViolation):
            await add(world, vault, **members)
        await end(world, task)
        await add(world, vault, **members)
        await world.execute("DELETE FROM operation_logs")


async def test_claim_beside_a_request(world: World) -> None:
    """A claim waits for a request that holds the vault, and neither blocks the other for good."""
    vault = await world.add_vault()
    await add(world, vault)
    async with world.database.transaction() as conn:
        await conn.execute("SELECT 1 FROM vaults WHERE id = %s FOR UPDATE", [vault])
        waiting = asyncio.create_task(claimed(world))
        new = NewTask(project_id=world.project, operation_type="restore", request_id=new_id(), vault_id=vault)
        await tasks.insert(conn, [new], world.clock.now())
    assert await waiting is not None


async def test_any_order_of_events_ends_each_task_once(world: World) -> None:
    """Random claims, lapses, retries and ends by several workers: every task ends once, within its attempts."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    vaults = [await world.add_vault() for _ in range(3)]
    everything = {await add(world, chance.choice(vaults)) for _ in range(10)}
    held: list[Task] = []
    ended: list[str] = []

    async def finish(task: Task) -> None:
        try:
            await end(world, task)
        except Fenced:
            return
        ended.append(task.id)

    for _ in range(400):
        match chance.randrange(6):
            case 0 | 1:
                task = await claimed(world, f"w{chance.randrange(3)}")
                held += [task] if task else []
            case 2:
                await lapse(world)
            case 3 if held:
                await finish(chance.choice(held))
            case 4 if held:
                try:
                    await tasks.put_back(world.database, chance.choice(held), 0, count=chance.random() < 0.5)
                except Fenced:
                    continue
            case 5:
                held += await tasks.exhausted(world.database, "s", "default")
        if len(ended) == len(everything):
            break
    await lapse(world)
    while (task := await claimed(world)) is not None:
        await finish(task)
    for task in await tasks.exhausted(world.database, "s", "default"):
        await finish(task)
    assert sorted(ended) == sorted(everything)
    assert await world.one("SELECT max(attempts) FROM operation_logs") <= ATTEMPTS_MAX  # type: ignore[operator]


async def test_old_logs_go_but_for_those_that_something_still_needs(world: World) -> None:
    """Open ones, the last good check of a vault, what a session names; and the last word on a backup that is gone,
    until a prune has looked whether its root is: without it the prune would take that root for one it never knew."""
    await world.execute("ALTER TABLE promise_clock DISABLE TRIGGER promise_clock_runs")
    vault = await world.add_vault()

    async def ended(operation: str, **members: object) -> str:
        made = await add(world, vault, operation_type=operation, **members)
        task = await claimed(world)
        assert task is not None and task.id == made
        await end(world, task)
        return made

    async def left() -> set[str]:
        rows = await world.execute("SELECT id FROM operation_logs")
        counted = await world.client.get(world.v3("operation-logs"))
        listed = await world.one("SELECT count(*) FROM operation_logs WHERE listed AND operation_type <> 'prune'")
        assert counted.json()["count"] == listed
        return {row[0] for row in rows}

    async def pass_days(days: int) -> None:
        await world.execute(f"UPDATE promise_clock SET at = now() + interval '{days} days'")

    checks = [await ended("verify") for _ in range(2)]
    gone = await ended("backup", resource_id=new_id(), backup_id=new_id())
    named = await ended("restore", target_resource_id=new_id())
    await ended("restore", target_resource_id=new_id())
    await world.execute(
        f"INSERT INTO sessions (id, project_id, vault_id, task_id, kind, index_number, opened_at) "
        f"VALUES ('s', '{world.project}', '{vault}', '{named}', 'restore', 1, now())"
    )
    waiting = await add(world, worker_group="elsewhere")
    everything = await left()

    await pass_days(364)
    assert await tasks.forget(world.database, 365) == 0
    assert await left() == everything
    await pass_days(400)
    assert await tasks.forget(world.database, 365) == 2
    assert await left() == {checks[1], gone, named, waiting}

    await ended("prune", listed=False)
    assert await tasks.forget(world.database, 365) == 2
    assert await left() == {checks[1], named, waiting}
    await world.execute("DELETE FROM sessions")
    assert await tasks.forget(world.database, 365) == 1
    assert await left() == {checks[1], waiting}


async def test_as_many_old_logs_as_there_are_go_in_small_transactions(world: World) -> None:
    """More than one transaction takes, behind some that stay."""
    await world.execute("ALTER TABLE promise_clock DISABLE TRIGGER promise_clock_runs")
    vault = await world.add_vault()
    async with world.database.transaction() as conn:
        every = [
            NewTask(project_id=world.project, operation_type="restore", request_id="r", vault_id=vault)
            for _ in range(2 * tasks.FORGET_ROWS_MAX + 5)
        ]
        await tasks.insert(conn, every, world.clock.now())
    await world.execute(
        "UPDATE operation_logs SET status = 'success', ended_at = now() "
        f"WHERE id NOT IN (SELECT id FROM operation_logs ORDER BY id LIMIT {tasks.FORGET_ROWS_MAX})"
    )
    await world.execute("UPDATE promise_clock SET at = now() + interval '400 days'")
    assert await tasks.forget(world.database, 365) == tasks.FORGET_ROWS_MAX + 5
    assert await world.one("SELECT count(*) FROM operation_logs") == tasks.FORGET_ROWS_MAX
