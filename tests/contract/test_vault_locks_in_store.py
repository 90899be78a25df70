"""What the service tells the store of a lock, so that the store keeps it when the database is not there."""

import asyncio
from datetime import datetime, timedelta

import pytest
from test_vault_domains import Vaults, vaults  # noqa: F401 -- the fixture
from test_vault_locks import live_through

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Conflict
from strongroom.control import deletions, locking, promises
from strongroom.engine.locks import is_locked, told_time
from strongroom.operations import deletion, prune
from strongroom.operations.job import vault_prefix


def prefix(found: Vaults) -> str:
    return f"{vault_prefix(found.here.project_id, found.here.id)}/"


async def lock(found: Vaults, *, days: int) -> None:
    """Lock the vault and keep its manual backups for so many days, through what the API calls."""
    world = found.world
    await world.execute(
        "UPDATE backups SET expired_at = %s WHERE vault_id = %s",
        world.clock.now() + timedelta(days=days),
        found.here.id,
    )
    await locking.set_lock(
        world.database, world.project, found.here.id, locked=True, keep_manual=True, clock=world.clock
    )


async def pruned(found: Vaults) -> None:
    task = await found.world.claim("prune")
    await asyncio.to_thread(prune.run, found.job_of(task))


async def test_a_lock_that_comes_later_is_written_to_the_store(vaults: Vaults) -> None:  # noqa: F811
    """The lock queues the job that tells: lock, time, and the promise in the labels of every domain's roots, once."""
    await lock(vaults, days=9)
    assert not is_locked(vaults.store, prefix(vaults))
    await pruned(vaults)
    assert is_locked(vaults.store, prefix(vaults))
    shown = await vaults.world.one("SELECT at FROM promise_clock")
    assert isinstance(shown, datetime)
    assert timedelta() <= shown - told_time(vaults.store, prefix(vaults)) < timedelta(minutes=1)
    own = await asyncio.to_thread(lambda: vaults.tools.repository(vaults.here, None))
    for repository, backup in ((own, vaults.own), (await vaults.foreign_domain(), vaults.foreign[0])):
        rows = await vaults.world.execute("SELECT root, promised_until FROM backups WHERE id = %s", backup)
        root, until = rows[0]
        assert isinstance(until, datetime)
        labels = repository.load_labels(repository.load_root(str(root)))
        assert labels["lock_until"] == api_timestamp(until)
        with pytest.raises(Conflict):
            repository.delete_root(str(root))
    written = [info for info in vaults.store.list(prefix(vaults)) if "/labels/" in info.name]
    task = await vaults.job("prune", listed=False)
    await asyncio.to_thread(prune.run, vaults.job_of(task))
    assert [info for info in vaults.store.list(prefix(vaults)) if "/labels/" in info.name] == written


async def test_a_locked_vault_is_told_again_each_week(vaults: Vaults) -> None:  # noqa: F811
    """Time that the store keeps runs out, so a week after the last prune there is another; not for vaults without a
    lock. What has no time is kept for a month at a time, what is not promised not at all."""
    world = vaults.world
    week_ago = "UPDATE operation_logs SET created_at = created_at - interval '8 days'"
    await world.execute(week_ago)
    assert await locking.due_again(world.database, world.clock) == []
    await lock(vaults, days=9)
    await pruned(vaults)
    assert await locking.due_again(world.database, world.clock) == []
    await world.execute(week_ago)
    assert await locking.due_again(world.database, world.clock) == [(world.project, vaults.here.id)]
    assert await locking.tell_again(world.database, world.project, vaults.here.id, world.clock)
    assert await locking.due_again(world.database, world.clock) == []
    await pruned(vaults)
    left = promises.time_left(world.database, world.project, vaults.here.id, None)
    ((_, seconds),) = [point for point in await left if str(point[0]).startswith(vaults.own)]
    assert 8.9 * 86400 < seconds <= 9 * 86400
    endless = "UPDATE backups SET promised_until = NULL, expired_at = NULL WHERE id = %s"
    await world.execute("ALTER TABLE backups DISABLE TRIGGER backups_keep_promises")
    await world.execute(endless, vaults.own)
    await world.execute("ALTER TABLE backups ENABLE TRIGGER backups_keep_promises")
    left = promises.time_left(world.database, world.project, vaults.here.id, None)
    assert (promises.ENDLESS_S,) in [point[1:] for point in await left if str(point[0]).startswith(vaults.own)]
    await world.execute("UPDATE backups SET expired_at = created_at - interval '1 day' WHERE id = %s", vaults.own)
    left = promises.time_left(world.database, world.project, vaults.here.id, None)
    assert not [point for point in await left if str(point[0]).startswith(vaults.own)]


async def test_what_has_expired_goes_from_the_store_too(vaults: Vaults) -> None:  # noqa: F811
    """The service tells the time before it deletes: the store lets go what the promise let go, and not before."""
    await lock(vaults, days=9)
    await pruned(vaults)
    own = await asyncio.to_thread(lambda: vaults.tools.repository(vaults.here, None))
    root = str(await vaults.world.one("SELECT root FROM backups WHERE id = %s", vaults.own))
    await live_through(vaults.world, 9.1)
    with pytest.raises(Conflict):
        own.delete_root(root)  # nobody has told the store
    await vaults.world.execute("UPDATE operation_logs SET not_before = now() + interval '1 hour'")
    async with vaults.world.database.transaction() as conn:
        vault = await deletions.lock_vault(conn, vaults.world.project, vaults.here.id)
        await deletions.begin_delete(
            conn,
            vault,
            vaults.own,
            request_id="r",
            now=vaults.world.clock.now(),
            expiry=deletions.Expiry(reason="its time is over"),
        )
    task = await vaults.world.claim("delete")
    await asyncio.to_thread(deletion.run, vaults.job_of(task))
    assert root not in own.root_names()
    assert await vaults.world.one("SELECT status FROM operation_logs WHERE id = %s", task.id) == "success"


async def test_a_locked_vault_whose_rows_were_lost_keeps_its_roots(vaults: Vaults) -> None:  # noqa: F811
    """A deletion of the vault that finds promised roots in the store stops before the keys: all of it is read after."""
    await lock(vaults, days=9)
    await pruned(vaults)
    task = await vaults.job("vault_delete")
    plan = await deletions.start_delete(vaults.world.database, await _emptied(vaults, task))
    with pytest.raises(Conflict) as error:
        await asyncio.to_thread(deletion._erase_vault, vaults.job_of(task), plan)
    assert error.value.conflict_code == "6220"
    names = [info.name for info in vaults.store.list(prefix(vaults))]
    assert any("/keys/" in name for name in names)
    assert len([name for name in names if "/roots/" in name]) == 3


async def _emptied(found: Vaults, task: object) -> object:
    """As a database from which somebody removed the promised rows, with triggers off."""
    world = found.world
    await world.execute("ALTER TABLE backups DISABLE TRIGGER backups_keep_promises")
    await world.execute("DELETE FROM backups WHERE vault_id = %s", found.here.id)
    await world.execute("ALTER TABLE backups ENABLE TRIGGER backups_keep_promises")
    return task
