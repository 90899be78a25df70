"""Checks of a vault: what is asked for through /ext, and what becomes of the rows of backups that they hit."""

import pytest
from points_world import World, reader_of
from psycopg.errors import CheckViolation

from strongroom.base.errors import Canceled
from strongroom.base.ids import new_id
from strongroom.control import backups, claiming, deletions, restores, sessions, verifying
from strongroom.control.tasks import Task
from strongroom.control.verifying import Damage, Verified

DAMAGE = Damage(reason="A damaged pack.", files=2, paths=("a/b", "c"))


async def two_backups(world: World) -> tuple[str, list[str]]:
    resources = (await world.add_resource(name="a"), await world.add_resource(name="b"))
    vault = await world.add_vault(resources)
    _, found = await world.backed_up(vault, resource_ids=resources)
    return vault, found


async def asked(world: World, vault: str, **members: object) -> Task:
    answer = await world.client.post(world.ext(f"vaults/{vault}/verify"), json={"verify": members})
    assert answer.status_code == 202, answer.text
    task = await world.claim("verify")
    assert task.id == answer.json()["task_id"]
    return task


async def ended(world: World, vault: str, result: Verified) -> None:
    task = await asked(world, vault, deep=True)
    await verifying.start_verify(world.database, task)
    await verifying.finish_verify(world.database, task, result, world.clock)


async def status(world: World, backup: str) -> str:
    found = (await world.client.get(world.v3(f"backups/{backup}"))).json()["backup"]
    return str(found["status"])


async def test_a_check_is_a_task(world: World) -> None:
    """The request is written with what it asked for; the tenant's log does not show it, the tasks do when asked."""
    vault, found = await two_backups(world)
    task = await asked(world, vault, deep=True, sample=10)
    assert task.parameters == {"deep": True, "sample_percent": 10}
    plan = await verifying.start_verify(world.database, task)
    assert plan.roots == {None: {f"{backup}.1": backup for backup in found}}
    shown = (await world.client.get(world.ext("tasks"), params={"operation_type": "verify"})).json()["tasks"]
    assert [row["id"] for row in shown] == [task.id]
    logs = (await world.client.get(world.v3("operation-logs"))).json()["operation_logs"]
    assert task.id not in [log["id"] for log in logs]
    assert (await world.client.get(world.v3(f"operation-logs/{task.id}"))).status_code == 404
    again = await world.client.post(world.ext(f"vaults/{vault}/verify"), json={"verify": {}})
    assert (again.status_code, again.json()["error_code"]) == (400, "BackupService.6112")
    await verifying.finish_verify(world.database, task, Verified(outcome={"findings": []}), world.clock)
    await asked(world, vault)


@pytest.mark.parametrize("body", [{}, {"verify": {"sample": 5}}, {"verify": {"deep": True, "sample": 0}},
                                  {"verify": {"deep": True, "sample": 101}}, {"verify": {"deep": "yes"}}])  # fmt: skip
async def test_what_cannot_be_asked(world: World, body: object) -> None:
    """A sample is a share of a deep check; everything else has its type."""
    vault, _ = await two_backups(world)
    assert (await world.client.post(world.ext(f"vaults/{vault}/verify"), json=body)).status_code == 400


async def test_who_may_not_ask(world: World) -> None:
    """Another tenant's vault is not found, a reader may not, a vault that is being deleted is refused."""
    vault, _ = await two_backups(world)
    path = world.ext(f"vaults/{vault}/verify")
    assert (await world.client.post(path, json={"verify": {}}, headers=reader_of(world))).status_code == 403
    project, header = await world.add_project()
    other = await world.client.post(f"/ext/v1/{project}/vaults/{vault}/verify", json={"verify": {}}, headers=header)
    assert other.status_code == 404
    await world.execute("UPDATE vaults SET status = 'deleting' WHERE id = %s", vault)
    assert (await world.client.post(path, json={"verify": {}})).status_code == 400


async def test_a_damaged_backup_is_not_available(world: World) -> None:
    """What is hit becomes `error` with its reason and files, its checkpoint follows; found whole, both come back."""
    vault, (one, two) = await two_backups(world)
    checkpoint = str(await world.one("SELECT checkpoint_id FROM backups WHERE id = %s", one))
    await ended(world, vault, Verified(damaged={one: DAMAGE}, whole=(two,), outcome={"findings_count": 1}))
    assert (await status(world, one), await status(world, two)) == ("error", "available")
    report = (await world.client.get(world.ext(f"backups/{one}"))).json()["backup"]
    assert (report["damage"]["reason"], report["damage"]["files"]) == (DAMAGE.reason, 2)
    assert report["damage"]["paths"] == ["a/b", "c"]
    task = (await world.client.get(world.ext(f"tasks/{report['damage']['task']}"))).json()["task"]
    assert (task["status"], task["outcome"]) == ("failed", {"findings_count": 1})
    assert "1 backups of the vault are damaged" in task["error_message"]
    refused = await world.client.post(world.ext(f"backups/{one}/restore"), json={"restore": {}})
    assert refused.status_code == 400
    await ended(world, vault, Verified(damaged={one: DAMAGE, two: DAMAGE}))
    assert await world.one("SELECT status FROM checkpoints WHERE id = %s", checkpoint) == "error"
    await ended(world, vault, Verified(whole=(one, two)))
    assert (await status(world, one), await status(world, two)) == ("available", "available")
    assert await world.one("SELECT status FROM checkpoints WHERE id = %s", checkpoint) == "available"
    assert (await world.client.get(world.ext(f"backups/{one}"))).json()["backup"]["damage"] is None


async def test_a_damaged_backup_is_no_parent(world: World) -> None:
    """The next backup of the resource compares with nothing that a check has found damaged."""
    vault, (one, _) = await two_backups(world)
    await ended(world, vault, Verified(damaged={one: DAMAGE}))
    resource = str(await world.one("SELECT resource_id FROM backups WHERE id = %s", one))
    await world.run(vault, resource_ids=(resource,))
    plan = await backups.start_backup(world.database, await world.claim("backup"))
    assert plan.parent is None


async def test_a_restore_that_runs_keeps_its_backup(world: World) -> None:
    """A backup that is being restored stays so, and is `error` when that has ended."""
    vault, (one, _) = await two_backups(world)
    check = await asked(world, vault, deep=True)
    await verifying.start_verify(world.database, check)
    restore = await world.restored(one)
    await restores.start_restore(world.database, restore)
    await verifying.finish_verify(world.database, check, Verified(damaged={one: DAMAGE}), world.clock)
    assert await status(world, one) == "restoring"
    await restores.commit_restore(world.database, restore, {"bytes": 1}, world.clock)
    assert await status(world, one) == "error"


async def test_what_is_deleted_meanwhile_is_no_damage(world: World) -> None:
    """A backup that is gone when the check ends is not marked, and does not make the check fail."""
    vault, (one, _) = await two_backups(world)
    check = await asked(world, vault, deep=True)
    await verifying.start_verify(world.database, check)
    await world.deleted(one)
    await verifying.finish_verify(world.database, check, Verified(damaged={one: DAMAGE}), world.clock)
    assert await world.one("SELECT status FROM operation_logs WHERE id = %s", check.id) == "success"


async def test_a_delete_of_the_vault_stops_the_check(world: World) -> None:
    """The check is told to stop, and the delete waits for it: nothing is noted in a vault that is being erased."""
    vault, _ = await two_backups(world)
    check = await asked(world, vault, deep=True)
    assert (await world.client.delete(world.v3(f"vaults/{vault}"))).status_code == 204
    assert await world.one("SELECT cancel_requested FROM operation_logs WHERE id = %s", check.id) is True
    assert await claiming.claim(world.database, world.worker, "default") is None
    await sessions.fail_alone(world.database, check, Canceled(), world.clock)
    await world.claim("vault_delete")


async def test_a_damaged_backup_can_be_deleted(world: World) -> None:
    """`error` is no prison."""
    vault, (one, _) = await two_backups(world)
    await ended(world, vault, Verified(damaged={one: DAMAGE}))
    await deletions.request_delete_backup(world.database, world.project, one, request_id=new_id(), clock=world.clock)
    plan = await deletions.start_delete(world.database, await world.claim("delete"))
    assert plan.backups == ((one, f"{one}.1"),)


async def test_the_database_keeps_the_rule(world: World) -> None:
    """No statement makes a damaged backup available."""
    vault, (one, _) = await two_backups(world)
    await ended(world, vault, Verified(damaged={one: DAMAGE}))
    with pytest.raises(CheckViolation):
        await world.execute("UPDATE backups SET status = 'available' WHERE id = %s", one)
