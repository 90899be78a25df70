"""Backups whose time is over go by themselves, and nothing else goes: time, count, changed rules, locks, failures."""

from collections.abc import Awaitable
from datetime import timedelta

import pytest
from points_world import World
from policies_world import add_policy, change_policy, expire, next_of, run_once, tick, wait_for_next

from strongroom.base.errors import Conflict, SourceGone
from strongroom.base.ids import new_id
from strongroom.control import backups, deletions, policies
from strongroom.control.policy_rules import Definition


async def standing(world: World, vault: str) -> list[str]:
    """Ids of backups that are not on their way out, oldest first."""
    rows = await world.execute(
        "SELECT id FROM backups WHERE vault_id = %s AND status <> 'deleting' ORDER BY created_at", vault
    )
    return [str(row[0]) for row in rows]


async def finish_deletes(world: World) -> None:
    """Every deletion to its end; the prunes they queue wait for a time that does not come."""
    later = "UPDATE operation_logs SET not_before = now() + interval '1 hour' WHERE operation_type = 'prune'"
    while await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'delete' AND status = 'waiting'"):
        await world.execute(later)
        task = await world.claim("delete")
        await deletions.start_delete(world.database, task)
        await deletions.finish_delete(world.database, task, used_bytes=None, outcome={}, clock=world.clock)
    await world.execute(later)


async def test_the_newest_n_stay_and_what_goes_leaves_a_log_with_the_reason(world: World) -> None:
    """max_backups 2: after the third run the first goes, as a delete whose log names the policy."""
    vault = await world.add_vault([await world.add_resource()])
    policy = await add_policy(world, vault, max_backups=2)
    for _ in range(2):
        await run_once(world, vault)
    assert await expire(world) == 0
    await run_once(world, vault)
    first, *rest = await standing(world, vault)
    assert await expire(world) == 1
    assert await standing(world, vault) == rest
    rows = await world.execute(
        "SELECT backup_id, policy_id, status, parameters ->> 'expiry' FROM operation_logs "
        "WHERE operation_type = 'delete'"
    )
    assert rows == [(first, policy, "waiting", "no rule keeps it")]
    await finish_deletes(world)
    assert await expire(world) == 0
    assert len(await world.execute("SELECT 1 FROM checkpoints")) == 2


async def test_backups_made_by_hand_are_never_a_policys(world: World) -> None:
    """They neither count nor go; the same for other resources and other vaults."""
    resource, other = await world.add_resource(), await world.add_resource()
    vault = await world.add_vault([resource])
    _, by_hand = await world.backed_up(vault)
    await add_policy(world, vault, max_backups=1)
    for _ in range(3):
        await run_once(world, vault)
    neighbour = await world.add_vault([other], name="other")
    _, foreign = await world.backed_up(neighbour, auto_trigger=True)
    assert await expire(world) == 2
    left = await standing(world, vault)
    assert len(left) == 2
    assert by_hand[0] in left
    assert await standing(world, neighbour) == foreign


async def test_time_is_fixed_when_the_backup_is_made(world: World) -> None:
    """30 days: gone after them and not a second before, whatever becomes of the rule, the policy or the binding."""
    vault = await world.add_vault([await world.add_resource()])
    policy = await add_policy(world, vault, retention_duration_days=30)
    await run_once(world, vault)
    made_at = await world.one("SELECT created_at FROM backups")
    await change_policy(world, policy, definition=Definition(retention_duration_days=300))
    await policies.delete_policy(world.database, world.project, policy)
    world.clock.at = made_at + timedelta(days=30, seconds=-20)  # type: ignore[operator]
    assert await expire(world) == 0
    world.clock.at = made_at + timedelta(days=30)  # type: ignore[operator]
    assert await expire(world) == 1
    assert await standing(world, vault) == []


async def test_a_request_with_a_duration_expires_too(world: World) -> None:
    """A checkpoint made by hand with retention_duration_days goes when they are over."""
    vault = await world.add_vault([await world.add_resource()])
    await world.backed_up(vault, retention_days=2)
    world.clock.at += timedelta(days=1)
    assert await expire(world) == 0
    world.clock.at += timedelta(days=1)
    assert await expire(world) == 1


async def test_a_changed_count_waits_for_the_next_backup(world: World) -> None:
    """7 becomes 1: all stay until the next run has ended; the same when a policy takes another one's place."""
    vault = await world.add_vault([await world.add_resource()])
    policy = await add_policy(world, vault, max_backups=7)
    for _ in range(3):
        await run_once(world, vault)
    await change_policy(world, policy, definition=Definition(max_backups=2))
    assert await expire(world) == 0
    world.clock.at += timedelta(hours=9)
    assert await expire(world) == 0
    await run_once(world, vault)
    assert await expire(world) == 2
    await finish_deletes(world)
    later = await add_policy(world, max_backups=1)
    await run_once(world, vault)  # its end is not looked at before the other policy comes
    await policies.associate_policies(world.database, world.project, vault, [later], None, world.clock)
    assert await expire(world) == 0
    assert len(await standing(world, vault)) == 3
    await run_once(world, vault)
    assert await expire(world) == 3
    assert len(await standing(world, vault)) == 1


async def test_count_to_time_leaves_the_old_ones_until_deleted_by_hand(world: World) -> None:
    """Counted backups carry no end; under a time rule only new ones do."""
    vault = await world.add_vault([await world.add_resource()])
    policy = await add_policy(world, vault, max_backups=3)
    for _ in range(3):
        await run_once(world, vault)
    old = await standing(world, vault)
    await change_policy(world, policy, definition=Definition(retention_duration_days=1))
    await run_once(world, vault)
    await change_policy(world, policy, enabled=False)
    world.clock.at += timedelta(days=400)
    assert await expire(world) == 1
    assert await standing(world, vault) == old


async def test_without_a_policy_counted_backups_stay_for_ever(world: World) -> None:
    """Taken away between the end of a backup and the round: nothing goes."""
    vault = await world.add_vault([await world.add_resource()])
    policy = await add_policy(world, vault, max_backups=1)
    await run_once(world, vault)
    await run_once(world, vault)
    await policies.dissociate_policy(world.database, world.project, vault, policy)
    assert await expire(world) == 0
    assert await expire(world) == 0
    assert len(await standing(world, vault)) == 2


async def test_what_is_in_use_goes_later(world: World) -> None:
    """A backup that is being restored is not deleted under the restore; a minute after it ended it goes."""
    vault = await world.add_vault([await world.add_resource()])
    await add_policy(world, vault, max_backups=1)
    await run_once(world, vault)
    (first,) = await standing(world, vault)
    task = await world.restored(first, resource_id=str(await world.one("SELECT resource_id FROM backups")))
    await world.execute("UPDATE operation_logs SET status = 'waiting', lease_until = NULL WHERE id = %s", task.id)
    await world.execute("UPDATE backups SET status = 'restoring' WHERE id = %s", first)
    other = await world.add_resource()
    await world.execute("UPDATE operation_logs SET target_resource_id = %s WHERE id = %s", other, task.id)
    await world.execute(
        "UPDATE operation_logs SET not_before = now() + interval '1 hour' WHERE operation_type = 'restore'"
    )
    await wait_for_next(world, vault)
    assert len(await tick(world)) == 1
    await world.commit(await world.claim("backup"))
    assert await expire(world) == 0
    await world.execute("UPDATE backups SET status = 'available' WHERE id = %s", first)
    assert await expire(world) == 0
    world.clock.at += timedelta(minutes=1)
    assert await expire(world) == 1


async def test_a_locked_vault_lets_time_pass_and_nobody_else(world: World) -> None:
    """6220 for a request, while the rule that was there before takes its course."""
    vault = await world.add_vault([await world.add_resource()], locked=True)
    await add_policy(world, vault, max_backups=1)
    await run_once(world, vault)
    await run_once(world, vault)
    first, last = await standing(world, vault)
    with pytest.raises(Conflict) as refused:
        await deletions.request_delete_backup(
            world.database, world.project, first, request_id=new_id(), clock=world.clock
        )
    assert refused.value.conflict_code == "6220"
    assert await expire(world) == 1
    assert await standing(world, vault) == [last]


async def test_a_locked_vault_lets_nobody_shorten_what_it_keeps(world: World) -> None:
    """Fewer by a PUT, by another policy, or by taking the policy away first: 6110. More, or time for new ones: taken.
    Before the first automatic backup, and in a vault that is not locked, everything is."""
    vault = await world.add_vault([await world.add_resource()], locked=True)
    await policies.associate_policies(
        world.database, world.project, vault, [await add_policy(world, max_backups=1)], None, world.clock
    )
    policy, fewer = await add_policy(world, vault, max_backups=3), await add_policy(world, max_backups=2)
    timed = await add_policy(world, retention_duration_days=9)
    for _ in range(3):
        await run_once(world, vault)

    async def refused(work: Awaitable[object]) -> None:
        with pytest.raises(Conflict) as error:
            await work
        assert error.value.conflict_code == "6110"

    def apply(chosen: str) -> Awaitable[object]:
        return policies.associate_policies(world.database, world.project, vault, [chosen], None, world.clock)

    await refused(change_policy(world, policy, definition=Definition(max_backups=2)))
    await refused(apply(fewer))
    await change_policy(world, policy, definition=Definition(max_backups=4))
    await apply(timed)
    await refused(apply(fewer))
    await policies.dissociate_policy(world.database, world.project, vault, timed)
    await refused(apply(fewer))
    await expire(world)
    assert len(await standing(world, vault)) == 3
    for statement in ("DISABLE TRIGGER vaults_stay_locked", "ENABLE TRIGGER vaults_stay_locked"):
        await world.execute(f"ALTER TABLE vaults {statement}")
        await world.execute("UPDATE vaults SET locked = false WHERE locked AND %s", statement.startswith("DISABLE"))
    await apply(fewer)


async def test_failed_runs_stay_ten_and_a_month(world: World) -> None:
    """Twelve failures: the ten newest are shown, for thirty days, and no restore point goes in their place."""
    vault = await world.add_vault([await world.add_resource()])
    await add_policy(world, vault, max_backups=1)
    await run_once(world, vault)
    (good,) = await standing(world, vault)
    for _ in range(12):
        await wait_for_next(world, vault)
        await tick(world)
        task = await world.claim("backup")
        await backups.fail_backup(world.database, task, SourceGone(reason="Gone."), world.clock)
        await expire(world)
        await finish_deletes(world)
    left = await standing(world, vault)
    assert len(left) == 11
    assert good in left
    await world.execute("UPDATE policy_vaults SET next_fire_at = NULL")
    world.clock.at += timedelta(days=31)
    await expire(world)
    assert await standing(world, vault) == [good]


async def test_a_vault_that_is_being_deleted_is_left_to_that(world: World) -> None:
    """Its backups go with it: expiry begins nothing there."""
    vault = await world.add_vault([await world.add_resource()])
    await add_policy(world, vault, retention_duration_days=1)
    await run_once(world, vault)
    await world.execute("UPDATE vaults SET status = 'deleting'")
    world.clock.at += timedelta(days=2)
    assert await expire(world) == 0
    assert await next_of(world, vault)
