"""Locked vaults keep what they promise: against requests, clocks, and statements to the database."""

from datetime import datetime, timedelta

import psycopg
import pytest
from points_world import World, reader_of
from policies_world import add_policy, expire, run_once

from strongroom.base.errors import Conflict
from strongroom.base.ids import new_id
from strongroom.control import deletions, locking, promises, vault_resources, vaults


async def delete(world: World, backup: str) -> None:
    await deletions.request_delete_backup(world.database, world.project, backup, request_id=new_id(), clock=world.clock)


async def refused(world: World, backup: str) -> bool:
    try:
        await delete(world, backup)
    except Conflict as error:
        assert error.conflict_code == "6220"
        return True
    return False


async def lock(world: World, vault: str, *, keep_manual: bool) -> None:
    await locking.set_lock(
        world.database, world.project, vault, locked=True, keep_manual=keep_manual, clock=world.clock
    )


async def live_through(world: World, days: float) -> None:
    """The clock of promises as it is after so many days of service."""
    await world.execute("ALTER TABLE promise_clock DISABLE TRIGGER promise_clock_runs")
    await world.execute("UPDATE promise_clock SET at = at + make_interval(secs => %s)", days * 86400)
    await world.execute("ALTER TABLE promise_clock ENABLE TRIGGER promise_clock_runs")


async def test_a_clock_set_forward_ends_no_promise(world: World) -> None:
    """Years later by the machine's clock nothing goes; after the days that were promised it does, and not before."""
    vault = await world.add_vault([await world.add_resource()], locked=True)
    await add_policy(world, vault, retention_duration_days=9)
    await run_once(world, vault)
    world.clock.at += timedelta(days=3650)
    assert await expire(world) == 0
    await live_through(world, 8.9)
    assert await expire(world) == 0
    await live_through(world, 0.2)
    assert await expire(world) == 1


async def test_manual_backups_are_kept_where_the_vault_says_so(world: World) -> None:
    """By default a manual backup may be deleted; with keep_manual it goes by its time only, and without one never."""
    vault = await world.add_vault([await world.add_resource()], locked=True)
    _, [first] = await world.backed_up(vault)
    _, [timed] = await world.backed_up(vault, retention_days=5)
    _, [endless] = await world.backed_up(vault)
    assert not await refused(world, first)
    await lock(world, vault, keep_manual=True)
    assert await refused(world, timed)
    assert await refused(world, endless)
    world.clock.at += timedelta(days=10)
    assert await expire(world) == 0
    await live_through(world, 5)
    assert await refused(world, timed), "a request does not end it even then"
    assert await expire(world) == 1
    assert await refused(world, endless)


async def test_a_lock_that_comes_later_promises_what_is_left(world: World) -> None:
    """Backups that stand when the vault is locked are promised the rest of their time, by either way of locking."""
    for over_v3 in (True, False):
        vault = await world.add_vault([await world.add_resource()])
        await add_policy(world, vault, retention_duration_days=4)
        await run_once(world, vault)
        world.clock.at += timedelta(days=1)
        if over_v3:
            answer = await world.client.put(world.v3(f"vaults/{vault}"), json={"vault": {"locked": True}})
        else:
            answer = await world.client.put(world.ext(f"vaults/{vault}/lock"), json={"lock": {"locked": True}})
        assert answer.status_code == 200, answer.text
        left = await world.one(
            "SELECT promised_until - (SELECT at FROM promise_clock) FROM backups WHERE vault_id = %s", vault
        )
        assert isinstance(left, timedelta)
        assert timedelta(days=2, hours=23) < left < timedelta(days=3, minutes=1)
        await world.execute("UPDATE policy_vaults SET next_fire_at = NULL")
        # The lock queues what tells the store of it; it is not what this test claims next.
        await world.execute("UPDATE operation_logs SET not_before = now() + interval '1 hour' WHERE status = 'waiting'")


async def test_a_lock_does_not_open(world: World) -> None:
    """Neither by /ext nor piecewise; who may only look sees it, who is somebody else does not."""
    vault = await world.add_vault()
    path = world.ext(f"vaults/{vault}/lock")
    assert (await world.client.get(path)).json() == {
        "lock": {"locked": False, "keep_manual": False, "kept_by_store": False}
    }
    for wish, status in (
        ({"locked": False, "keep_manual": True}, 200),
        ({"locked": True, "keep_manual": True}, 200),
        ({"locked": True, "keep_manual": True}, 200),
        ({"locked": True}, 400),
        ({"locked": False, "keep_manual": True}, 400),
        ({}, 400),
        ({"locked": "yes"}, 400),
    ):
        assert (await world.client.put(path, json={"lock": wish})).status_code == status, wish
    shown = await world.client.get(path, headers=reader_of(world))
    assert shown.json() == {"lock": {"locked": True, "keep_manual": True, "kept_by_store": False}}
    assert (await world.client.put(path, json={"lock": wish}, headers=reader_of(world))).status_code == 403
    project, header = await world.add_project()
    foreign = f"/ext/v1/{project}/vaults/{vault}/lock"
    for answer in (
        await world.client.get(foreign, headers=header),
        await world.client.put(foreign, json={"lock": {"locked": True}}, headers=header),
    ):
        assert (answer.status_code, answer.json()["error_code"]) == (404, "BackupService.6105")


async def test_a_removal_that_was_asked_for_before_the_lock_fails(world: World) -> None:
    """A resource or a vault on its way out takes no promised backup along: the task fails, the backups stand."""
    resource = await world.add_resource()
    vault = await world.add_vault([resource])
    await add_policy(world, vault, retention_duration_days=4)
    await run_once(world, vault)
    await vault_resources.remove_resources(world.database, world.project, vault, [resource], new_id(), world.clock)
    await lock(world, vault, keep_manual=False)
    task = await world.claim("remove_resource")
    with pytest.raises(Conflict) as error:
        await deletions.start_delete(world.database, task)
    assert error.value.conflict_code == "6220"
    await deletions.fail_delete(world.database, task, error.value, world.clock)
    await world.execute("UPDATE backups SET status = 'error'")  # as a check that finds damage does
    with pytest.raises(Conflict):
        await vaults.delete_vault(world.database, world.project, vault, new_id(), world.clock)
    assert await world.one("SELECT count(*) FROM backups") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM backups",
        "DELETE FROM checkpoints",
        "DELETE FROM vaults",
        "UPDATE backups SET status = 'deleting'",
        "UPDATE backups SET root = NULL, status = 'error'",
        "UPDATE backups SET promised_until = NULL",
        "UPDATE backups SET promised_until = promised_until - interval '1 second'",
        "UPDATE vaults SET locked = false",
        "UPDATE vaults SET keep_manual = false",
        "DELETE FROM promise_clock",
        "UPDATE promise_clock SET at = at + interval '1 day'",
        "UPDATE promise_clock SET at = at - interval '1 second'",
    ],
)
async def test_the_database_keeps_promises_too(world: World, statement: str) -> None:
    """No statement of an ordinary hand takes a promise back, or the clock that it runs by."""
    vault = await world.add_vault([await world.add_resource()])
    await lock(world, vault, keep_manual=True)
    await world.backed_up(vault, retention_days=5)
    with pytest.raises(psycopg.errors.RaiseException):
        await world.execute(statement)
    assert await world.one("SELECT status FROM backups") == "available"


async def test_two_tickers_do_not_run_twice_as_fast(world: World) -> None:
    """The clock of promises advances by lived time, and by no more than passed in the database between two ticks."""

    async def shown() -> datetime:
        async with world.database.transaction() as conn:
            return await promises.promise_time(conn)

    await world.execute("UPDATE promise_clock SET ticked_at = now()")  # the database may have been made long ago
    before = await shown()
    tickers = [promises.PromiseTicker(world.database, world.clock) for _ in range(2)]
    world.clock.at += timedelta(days=365)
    for ticker in tickers:
        await ticker.tick()
    after = await shown()
    assert before < after < before + timedelta(minutes=5), "the database saw seconds pass, whatever a worker says"
    await world.execute("UPDATE promise_clock SET ticked_at = ticked_at - interval '400 days'")
    for ticker in tickers:
        ticker._last_s = world.clock.at.timestamp()
        await ticker.tick()
    assert await shown() < after + timedelta(minutes=1), "nobody lived through a jump of the database's clock"
