"""Many clients and workers at once, in any order: answers stay legal and the rows come to rest consistent."""

import asyncio
import random
from collections import Counter

from points_world import World
from test_list_counts import DIFFERENT

from strongroom.base.errors import Canceled, Fenced, SourceGone, StrongroomError
from strongroom.control import backups, claiming, deletions, restores, sessions, tasks
from strongroom.control.backups import CommittedBackup
from strongroom.control.tasks import Task

CLIENTS, WORKERS, REQUESTS = 4, 3, 60


async def client(world: World, chance: random.Random, vaults: list[str], resources: list[str], seen: Counter) -> None:
    """Random requests; every answer is a success or a refusal with a published code."""
    for _ in range(REQUESTS):
        vault, resource = chance.choice(vaults), chance.choice(resources)
        found = (await world.client.get(world.v3("backups"), params={"limit": 50})).json()["backups"]
        backup = chance.choice(found)["id"] if found else None
        match chance.randrange(9):
            case 0 | 1 | 2:
                body = {"checkpoint": {"vault_id": vault}}
                answer = await world.client.post(world.v3("checkpoints"), json=body)
            case 3 | 4 if backup:
                body = {"restore": {"resource_id": resource}}
                answer = await world.client.post(world.v3(f"backups/{backup}/restore"), json=body)
            case 5 | 6 if backup:
                answer = await world.client.delete(world.v3(f"backups/{backup}"))
            case 7:
                path = world.v3(f"vaults/{vault}/removeresources")
                answer = await world.client.post(path, json={"resource_ids": [resource]})
            case 8 if chance.random() < 0.1:
                answer = await world.client.delete(world.v3(f"vaults/{vault}"))
            case _:
                open_tasks = (await world.client.get(world.ext("tasks"), params={"open": "true"})).json()["tasks"]
                if not open_tasks:
                    continue
                answer = await world.client.post(world.ext(f"tasks/{chance.choice(open_tasks)['id']}/cancel"))
        seen[answer.status_code] += 1
        assert answer.status_code in (200, 202, 204, 400, 404), (answer.request.url, answer.text)


async def perform(world: World, chance: random.Random, task: Task, calm: bool) -> None:
    """A job whose work takes no time: to its end, to a failure, or to the death of its worker."""
    database, clock = world.database, world.clock
    fate = "end" if calm else chance.choice(["end", "end", "end", "fail", "die", "put back"])
    try:
        if fate == "put back":
            await tasks.put_back(database, task, 0, count=False)
        match task.operation_type:
            case "backup":
                job = await backups.start_backup(database, task)
                if fate == "fail":
                    await backups.fail_backup(database, task, SourceGone(reason="Gone."), clock)
                elif fate == "end":
                    root = f"{job.backup_id}.{task.generation}"
                    committed = CommittedBackup(root=root, resource_size_bytes=1, stored_bytes=chance.randrange(100))
                    await backups.commit_backup(database, task, committed, clock)
            case "restore":
                await restores.start_restore(database, task)
                if fate == "fail":
                    await restores.fail_restore(database, task, Canceled(), clock)
                elif fate == "end":
                    await restores.commit_restore(database, task, {}, clock)
            case "prune":
                await deletions.start_prune(database, task)
                if fate == "fail":
                    await sessions.fail_alone(database, task, Canceled(), clock)
                elif fate == "end":
                    await deletions.finish_prune(database, task, {}, clock)
            case _:
                await deletions.start_delete(database, task)
                if fate == "fail":
                    await deletions.fail_delete(database, task, Canceled(), clock)
                elif fate == "end":
                    await deletions.finish_delete(database, task, used_bytes=None, outcome={}, clock=clock)
    except Fenced:
        return
    except StrongroomError as error:
        assert not error.retryable, f"{task.operation_type}: {error}"
        await give_up(world, task, error)


async def give_up(world: World, task: Task, error: StrongroomError) -> None:
    fail = {"backup": backups.fail_backup, "restore": restores.fail_restore, "prune": sessions.fail_alone}
    try:
        await fail.get(task.operation_type, deletions.fail_delete)(world.database, task, error, world.clock)
    except Fenced:
        return


async def worker(world: World, chance: random.Random, name: str, quiet: asyncio.Event) -> None:
    while True:
        calm = quiet.is_set()
        await world.execute(
            "UPDATE operation_logs SET lease_until = now() - interval '1 s' WHERE id IN (SELECT id FROM operation_logs "
            "WHERE status = 'running' AND random() < %s FOR UPDATE SKIP LOCKED)",
            1.0 if calm else 0.1,
        )
        task = await claiming.claim(world.database, name, "default")
        if task is not None:
            await perform(world, chance, task, calm)
        for spent in await tasks.exhausted(world.database, name, "default"):
            await give_up(world, spent, SourceGone(reason="Five attempts ended."))
        if task is None:
            if calm and await world.one("SELECT count(*) FROM operation_logs WHERE ended_at IS NULL") == 0:
                return
            await asyncio.sleep(0)


async def test_storm(world: World) -> None:
    """Requests, jobs, failures and lapsed leases in any order: never a 5xx, and at rest nothing is half done."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    resources = [await world.add_resource(name=f"r{i}") for i in range(6)]
    vaults = [await world.add_vault(resources[i * 3 : i * 3 + 2], name=f"v{i}") for i in range(2)]
    quiet, seen = asyncio.Event(), Counter[int]()
    async with asyncio.timeout(120):
        async with asyncio.TaskGroup() as workers:
            for i in range(WORKERS):
                workers.create_task(worker(world, random.Random(chance.random()), f"w{i}", quiet))
            async with asyncio.TaskGroup() as clients:
                for _ in range(CLIENTS):
                    clients.create_task(client(world, random.Random(chance.random()), vaults, resources, seen))
            quiet.set()
    print(dict(seen), await world.execute("SELECT operation_type, status, count(*) FROM operation_logs GROUP BY 1, 2"))
    assert seen[400] and seen[200]
    assert await world.execute(DIFFERENT) == [], "the counts of lists"
    resting = ["available", "error"]
    for text, expected in (
        ("SELECT count(*) FROM backups WHERE status <> ALL(%s)", 0),
        ("SELECT count(*) FROM vault_resources WHERE protect_status <> ALL(%s)", 0),
        ("SELECT count(*) FROM checkpoints WHERE status <> ALL(%s) AND status <> 'error-deleting'", 0),
        ("SELECT count(*) FROM vaults WHERE status <> ALL(%s)", 0),
    ):
        assert await world.one(text, resting) == expected, text
    for text in (
        "SELECT count(*) FROM sessions",
        "SELECT count(*) FROM checkpoints c WHERE NOT EXISTS (SELECT 1 FROM backups b WHERE b.checkpoint_id = c.id)",
        "SELECT count(*) FROM checkpoints c WHERE status = 'available' AND NOT EXISTS "
        "(SELECT 1 FROM backups b WHERE b.checkpoint_id = c.id AND b.status = 'available')",
        "SELECT count(*) FROM checkpoints c WHERE status <> 'available' AND EXISTS "
        "(SELECT 1 FROM backups b WHERE b.checkpoint_id = c.id AND b.status = 'available')",
        "SELECT count(*) FROM backups WHERE status = 'available' AND root IS NULL",
        "SELECT count(*) FROM operation_logs WHERE ended_at IS NULL",
    ):
        assert await world.one(text) == 0, text
