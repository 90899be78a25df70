"""Policies over the world of points_world: made by control's own functions, fired and expired as the worker does."""

from datetime import datetime
from typing import Any

from points_world import World

from strongroom.control import expiry, firing, policies
from strongroom.control.firing import Fired
from strongroom.control.policy_rules import Definition, NewPolicy, PolicyChange, Trigger

NIGHTLY = "FREQ=DAILY;BYHOUR=2;BYMINUTE=0"


async def add_policy(
    world: World, *vaults: str, pattern: str = NIGHTLY, time_zone: str | None = None, **definition: Any
) -> str:
    """A policy of the world's project, applied to the vaults."""
    made = await policies.create_policy(
        world.database,
        world.project,
        NewPolicy(
            name="nightly",
            operation_type="backup",
            enabled=True,
            trigger=Trigger(patterns=(pattern,), time_zone=time_zone),
            definition=Definition(**definition),
        ),
        region="test",
        clock=world.clock,
    )
    for vault in vaults:
        await policies.associate_policies(world.database, world.project, vault, [made.id], None, world.clock)
    return made.id


async def change_policy(world: World, policy: str, **members: Any) -> None:
    await policies.update_policy(
        world.database, world.project, policy, PolicyChange(**members), region="test", clock=world.clock
    )


async def tick(world: World) -> list[Fired]:
    """One tick of the worker's loop."""
    due = await firing.due_runs(world.database, world.clock)
    fired = [await firing.fire(world.database, one, world.clock) for one in due]
    return [one for one in fired if one is not None]


async def expire(world: World) -> int:
    """One round of expiry; how many deletions began."""
    found = await expiry.overdue(world.database, world.clock)
    return sum([await expiry.expire(world.database, one, world.clock) for one in found])


async def next_of(world: World, vault: str) -> datetime:
    at = await world.one("SELECT next_fire_at FROM policy_vaults WHERE vault_id = %s", vault)
    assert isinstance(at, datetime)
    return at


async def wait_for_next(world: World, vault: str) -> None:
    """The clock jumps to the vault's next run."""
    world.clock.at = await next_of(world, vault)


async def run_once(world: World, vault: str) -> None:
    """The next scheduled run of a vault, to the end of all its backups."""
    await wait_for_next(world, vault)
    assert [one.vault_id for one in await tick(world)] == [vault]
    waiting = "SELECT 1 FROM operation_logs WHERE status = 'waiting' AND operation_type = 'backup'"
    for _ in await world.execute(waiting):
        await world.commit(await world.claim("backup"))
