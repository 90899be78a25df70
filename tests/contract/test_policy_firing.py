"""Policies fire: exactly once when due, with the rows of a run, whoever ticks and whoever dies."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from points_world import World
from policies_world import add_policy, change_policy, next_of, run_once, tick, wait_for_next

from strongroom.base.errors import StrongroomError, Unavailable
from strongroom.base.ids import new_id
from strongroom.base.units import GIB
from strongroom.control import firing, policies, subjects, vaults
from strongroom.control.db import Database
from strongroom.control.policy_rules import Trigger


async def runs(world: World, vault: str) -> int:
    return int(str(await world.one("SELECT count(*) FROM checkpoints WHERE vault_id = %s", vault)))


# --- a run ------------------------------------------------------------------------------------------------------------


async def test_a_due_run_is_the_rows_of_an_automatic_checkpoint(world: World) -> None:
    """Checkpoint, backups and logs as a request makes them, marked automatic, with the policy, under the prefix."""
    resources = [await world.add_resource(), await world.add_resource(name="more")]
    vault = await world.add_vault(resources, backup_name_prefix="acme-")
    policy = await add_policy(world, vault, retention_duration_days=30)
    assert await tick(world) == []
    await wait_for_next(world, vault)
    fired = await tick(world)
    assert [(one.vault_id, one.policy_id, one.refusal) for one in fired] == [(vault, policy, "")]
    rows = await world.execute(
        "SELECT name, auto_trigger, status FROM checkpoints WHERE id = %s", fired[0].checkpoint_id
    )
    assert [row[1:] for row in rows] == [(True, "protecting")]
    assert str(rows[0][0]).startswith("acme-autobk_")
    rows = await world.execute(
        "SELECT o.policy_id, o.status, o.checkpoint_id, b.auto_trigger, b.incremental, b.expired_at - b.created_at "
        "FROM operation_logs o JOIN backups b ON b.id = o.backup_id"
    )
    assert rows == [(policy, "waiting", fired[0].checkpoint_id, True, True, timedelta(days=30))] * 2
    assert await tick(world) == []
    at = await next_of(world, vault)
    assert (at.hour, at.minute) == (2, 0)
    assert timedelta(hours=23) < at - world.clock.at < timedelta(hours=24)


async def test_a_vault_of_a_policy_of_many_is_as_soon_looked_up_as_the_only_one(world: World) -> None:
    """Firing and retention of one vault read its own row of the policy, not those of the policy's five hundred."""
    vault = await world.add_vault([await world.add_resource()])
    policy = await add_policy(world, vault)
    for table, column in (("vaults", "id"), ("policy_vaults", "vault_id")):
        await world.execute(
            f"INSERT INTO {table} SELECT (jsonb_populate_record(t, jsonb_build_object('{column}', 'other-' || n))).* "
            f"FROM {table} t, generate_series(1, 500) n WHERE t.{column} = %s",
            vault,
        )
    await world.execute("ANALYZE policy_vaults")
    async with world.database.transaction() as conn:
        locked = await subjects.lock_vault(conn, world.project, vault)
        found = await policies.lock_policy_of(conn, locked)
        read = await conn.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'policy_vaults'"
        )
        row = await read.fetchone()
    assert found is not None
    assert found[0].id == policy
    assert row is not None
    assert row[0] < 10


async def test_after_downtime_a_vault_runs_once_and_goes_on_by_its_schedule(world: World) -> None:
    """Three days without a ticker: one run, not three, and the next one at its usual time."""
    vault = await world.add_vault([await world.add_resource()])
    await add_policy(world, vault, max_backups=3)
    await wait_for_next(world, vault)
    world.clock.at += timedelta(days=3, hours=5)
    assert len(await tick(world)) == 1
    assert await tick(world) == []
    at = await next_of(world, vault)
    assert at == datetime(2026, 5, 15, 2, tzinfo=UTC)
    assert await runs(world, vault) == 1


async def test_a_ticker_whose_clock_is_behind_does_not_fire_again(world: World) -> None:
    """Clocks of two hosts differ: what one fired early, the other does not find at the true time."""
    vault = await world.add_vault([await world.add_resource()])
    await add_policy(world, vault)
    due = await next_of(world, vault)
    world.clock.at = due + timedelta(minutes=5)
    assert len(await tick(world)) == 1
    world.clock.at = due - timedelta(minutes=1)
    for _ in range(30):
        world.clock.at += timedelta(seconds=10)
        assert await tick(world) == []
    assert await next_of(world, vault) == due + timedelta(days=1)


async def test_nothing_fires_for_a_policy_that_is_off_or_gone(world: World) -> None:
    """Disabled, taken away, replaced or deleted: the vault is not backed up by it any more."""
    made = [await world.add_vault([await world.add_resource()], name=f"v{i}") for i in range(4)]
    off, away, other, gone = [await add_policy(world, vault) for vault in made]
    await change_policy(world, off, enabled=False)
    await policies.dissociate_policy(world.database, world.project, made[1], away)
    later = await add_policy(world, made[2], pattern="FREQ=DAILY;BYHOUR=20;BYMINUTE=0")
    await policies.delete_policy(world.database, world.project, gone)
    world.clock.at = datetime(2026, 5, 11, 3, tzinfo=UTC)
    fired = await tick(world)
    assert [(one.vault_id, one.policy_id) for one in fired] == [(made[2], later)]  # its 20:00 of the day before
    assert other != later


async def test_a_policy_that_is_enabled_again_does_not_make_up_for_the_time_it_was_off(world: World) -> None:
    """Off over its time, on again: the next run is the next one."""
    vault = await world.add_vault([await world.add_resource()])
    policy = await add_policy(world, vault)
    due = await next_of(world, vault)
    await change_policy(world, policy, enabled=False)
    world.clock.at = due + timedelta(hours=1)
    await change_policy(world, policy, enabled=True)
    assert await tick(world) == []
    assert await next_of(world, vault) == due + timedelta(days=1)


async def test_the_wall_clock_of_a_place(world: World) -> None:
    """02:30 in Berlin on the night the clocks go forward is 03:30 there, and the run is not lost."""
    vault = await world.add_vault([await world.add_resource()])
    world.clock.at = datetime(2027, 3, 27, 12, tzinfo=UTC)
    await add_policy(world, vault, pattern="FREQ=DAILY;BYHOUR=2;BYMINUTE=30", time_zone="Europe/Berlin")
    assert await next_of(world, vault) == datetime(2027, 3, 28, 1, 30, tzinfo=UTC)
    await run_once(world, vault)
    assert await next_of(world, vault) == datetime(2027, 3, 29, 0, 30, tzinfo=UTC)


# --- refused runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ("UPDATE vaults SET used_bytes = size_gb::bigint << 30", "failed", "BackupService.6114"),
        ("UPDATE vaults SET status = 'error'", "failed", "BackupService.6113"),
        ("UPDATE vault_resources SET status_reason = 'Half restored.', protect_status = 'error'", "skipped",
         "BackupService.0001"),
    ],
)  # fmt: skip
async def test_a_refused_run_is_told_in_a_log_of_each_resource_and_is_over(
    world: World, state: str, status: str, code: str
) -> None:
    """Full, in a wrong status, everything busy: logs with the code a request would have got, and the next run set."""
    resources = [await world.add_resource(), await world.add_resource()]
    vault = await world.add_vault(resources)
    policy = await add_policy(world, vault)
    await world.execute(state)
    await wait_for_next(world, vault)
    due = await next_of(world, vault)
    fired = await tick(world)
    assert fired[0].checkpoint_id is None and fired[0].refusal
    rows = await world.execute(
        "SELECT resource_id, status, error_code, policy_id, checkpoint_id FROM operation_logs ORDER BY resource_id"
    )
    assert rows == [(resource, status, code, policy, None) for resource in sorted(resources)]
    logs = (await world.client.get(world.v3("operation-logs"))).json()["operation_logs"]
    assert {log["error_info"]["code"] for log in logs} == {code}
    assert await next_of(world, vault) == due + timedelta(days=1)
    assert await runs(world, vault) == 0


async def test_a_vault_without_resources_is_not_an_error_every_night(world: World) -> None:
    """No resource, or all suspended: no rows, and the next run is set. A suspended one among others is left out."""
    empty = await world.add_vault()
    resources = [await world.add_resource(), await world.add_resource()]
    vault = await world.add_vault(resources)
    await add_policy(world, empty, vault)
    await world.execute("UPDATE vault_resources SET auto_protect = false WHERE resource_id = %s", resources[0])
    await wait_for_next(world, vault)
    assert {(one.vault_id, one.checkpoint_id is None) for one in await tick(world)} == {(empty, True), (vault, False)}
    assert await world.execute("SELECT resource_id FROM operation_logs") == [(resources[1],)]
    assert await next_of(world, empty) > world.clock.at


async def test_a_busy_resource_is_skipped_and_the_others_run(world: World) -> None:
    """A run that meets one made by hand skips its resources with 6125, as a request would."""
    resources = [await world.add_resource(), await world.add_resource()]
    vault = await world.add_vault(resources)
    await add_policy(world, vault)
    await wait_for_next(world, vault)
    await world.run(vault, resource_ids=(resources[0],))
    fired = await tick(world)
    rows = await world.execute(
        "SELECT resource_id, skipped_code FROM checkpoint_resources WHERE checkpoint_id = %s", fired[0].checkpoint_id
    )
    assert dict(rows) == {resources[0]: "BackupService.6125", resources[1]: None}


# --- full backups and auto_bind ---------------------------------------------------------------------------------------


async def test_every_nth_backup_of_a_resource_is_full(world: World) -> None:
    """Interval 2: first, two incremental, full, two incremental; a resource that joins later has its own count."""
    first = await world.add_resource()
    vault = await world.add_vault([first])
    await add_policy(world, vault, full_backup_interval=2)
    for _ in range(2):
        await run_once(world, vault)
    second = await world.add_resource()
    await world.execute(
        "INSERT INTO vault_resources (project_id, vault_id, resource_id, protect_type, type, name, created_at) "
        "SELECT project_id, %s, id, 'backup', resource_type, name, now() FROM protectables WHERE id = %s",
        *(vault, second),
    )
    for _ in range(5):
        await run_once(world, vault)
    kinds = {
        resource: "".join(
            "i" if row[0] else "F"
            for row in await world.execute(
                "SELECT incremental FROM backups WHERE resource_id = %s ORDER BY created_at", resource
            )
        )
        for resource in (first, second)
    }
    # A first backup is full by itself; the API reports the kind that was asked for, which was incremental.
    assert kinds == {first: "iiiFiiF", second: "iiiFi"}
    wrong = await world.execute(
        "SELECT 1 FROM operation_logs o JOIN backups b ON b.id = o.backup_id "
        "WHERE (o.parameters ->> 'incremental')::boolean <> b.incremental"
    )
    assert wrong == []


async def test_auto_bind_takes_in_at_the_next_run_what_nobody_protects(world: World) -> None:
    """Unprotected resources of the vault's kind, when there is room; not those of others, nor with rules about tags."""
    bound, free, other = await world.add_resource(), await world.add_resource(), await world.add_resource()
    foreign, _ = await world.add_project()
    await world.add_resource(project=foreign)
    await world.add_resource("OS::Cinder::Volume")
    await world.add_resource(size_bytes=200 * GIB)
    await world.add_vault([other], name="other")
    vault = await world.add_vault([bound], size_gb=100, auto_bind=True)
    small = await world.add_vault(size_gb=39, auto_bind=True)
    await add_policy(world, small)
    await add_policy(world, vault, pattern="FREQ=DAILY;BYHOUR=3;BYMINUTE=0")
    await wait_for_next(world, vault)
    assert len(await tick(world)) == 2
    found = await world.execute("SELECT resource_id FROM vault_resources WHERE vault_id = %s", vault)
    assert {row[0] for row in found} == {bound, free}
    assert await world.one("SELECT count(*) FROM backups WHERE resource_id = %s", free) == 1
    assert await world.execute("SELECT 1 FROM vault_resources WHERE vault_id = %s", small) == []


# --- many tickers -----------------------------------------------------------------------------------------------------


async def test_two_tickers_at_once_fire_each_vault_once(world: World, postgres_url: str) -> None:
    """Twenty vaults due, four tickers on pools of their own: one run a vault, none left."""
    made = [await world.add_vault([await world.add_resource()], name=f"v{i}") for i in range(20)]
    await add_policy(world, *made)
    await wait_for_next(world, made[0])
    async with await Database.open(postgres_url, max_size=4) as other:
        due = await firing.due_runs(world.database, world.clock)
        assert len(due) == 20
        pools = [world.database, other, world.database, other]
        found = await asyncio.gather(*(firing.fire(pool, one, world.clock) for one in due for pool in pools))
    fired = [one.vault_id for one in found if one is not None]
    assert len(fired) == len(set(fired))
    fired += [one.vault_id for one in await tick(world)]  # those whose lock all four found held
    assert sorted(fired) == sorted(made)
    assert [await runs(world, vault) for vault in made] == [1] * 20


async def test_a_ticker_that_dies_before_its_commit_has_fired_nothing(world: World, postgres_url: str) -> None:
    """Its connection is cut while it waits inside the firing: no rows, still due, and the next ticker fires it once."""
    vault = await world.add_vault([await world.add_resource()])
    policy = await add_policy(world, vault)
    await wait_for_next(world, vault)
    due = (await firing.due_runs(world.database, world.clock))[0]
    async with await psycopg.AsyncConnection.connect(postgres_url) as holder:
        await holder.execute("SELECT 1 FROM policies WHERE id = %s FOR UPDATE", [policy])
        dying = asyncio.create_task(firing.fire(world.database, due, world.clock))
        waiting = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() "
            "AND query LIKE '%%FOR SHARE OF p%%'"
        )
        while not (found := await world.execute(waiting)):
            assert not dying.done(), await dying
        await world.execute("SELECT pg_terminate_backend(%s)", found[0][0])
        with pytest.raises(Unavailable):
            await dying
    assert await runs(world, vault) == 0
    assert len(await tick(world)) == 1
    assert await tick(world) == []
    assert await runs(world, vault) == 1


TICKER = textwrap.dedent("""
    import asyncio, sys
    from strongroom.base.clock import SystemClock
    from strongroom.control import firing
    from strongroom.control.db import Database

    async def main():
        clock = SystemClock()
        async with await Database.open(sys.argv[1], max_size=2) as database:
            print("ready", flush=True)
            while True:
                for due in await firing.due_runs(database, clock):
                    await firing.fire(database, due, clock)

    asyncio.run(main())
""")


class Ticker:
    """A process that ticks without a pause, until it is killed."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", TICKER, url], stdout=subprocess.PIPE, text=True)

    def ready(self) -> "Ticker":
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


async def until(world: World, count: str, enough: Callable[[int], bool]) -> None:
    """Ask again and again until the count is enough; the test's timeout is the bound."""
    while not enough(int(str(await world.one(count)))):
        await asyncio.sleep(0.005)


async def test_a_storm_of_tickers_that_are_killed_loses_and_doubles_nothing(world: World, postgres_url: str) -> None:
    """Two real processes tick, one is killed in every round while it fires: each vault has one log a round."""
    rounds, count = 3, 40
    made = [await world.add_vault([await world.add_resource()], name=f"v{i}") for i in range(count)]
    await add_policy(world, *made)
    await world.execute("UPDATE policy_vaults SET next_fire_at = now() + interval '1 hour'")
    logs = "SELECT count(*) FROM operation_logs WHERE operation_type = 'backup'"
    left = "SELECT count(*) FROM policy_vaults WHERE next_fire_at <= now()"
    tickers = [Ticker(postgres_url), Ticker(postgres_url)]
    try:
        for ticker in tickers:
            ticker.ready()
        for number in range(rounds):
            await world.execute("UPDATE policy_vaults SET next_fire_at = now() - interval '1 minute'")
            # Some of this round are fired, the others are not.
            await until(world, logs, lambda n, least=number * count + 10: n >= least)
            tickers[number % 2].kill()
            tickers[number % 2] = Ticker(postgres_url)
            await until(world, left, lambda n: n == 0)
            tickers[number % 2].ready()
    finally:
        for ticker in tickers:
            ticker.kill()
    of_vault = await world.execute("SELECT vault_id, count(*) FROM operation_logs GROUP BY vault_id")
    assert dict(of_vault) == dict.fromkeys(made, rounds)
    assert [await runs(world, vault) for vault in made] == [1] * count  # then its resource was busy, and says so


# --- pairs of docs/CONCURRENCY.md -------------------------------------------------------------------------------------


async def test_policy_update_meets_firing(world: World) -> None:
    """Changed while it fires: the run and the next time are of one policy, the old or the new, never of both."""
    made = [await world.add_vault([await world.add_resource()], name=f"v{i}") for i in range(8)]
    policy = await add_policy(world, *made)
    for hour in range(4, 12):
        await world.execute("UPDATE operation_logs SET status = 'failed', ended_at = now() WHERE status = 'waiting'")
        await world.execute("UPDATE policy_vaults SET next_fire_at = %s", world.clock.at - timedelta(minutes=1))
        due = await firing.due_runs(world.database, world.clock)
        change = change_policy(world, policy, trigger=Trigger(patterns=(f"FREQ=DAILY;BYHOUR={hour};BYMINUTE=0",)))
        await asyncio.gather(change, *(firing.fire(world.database, one, world.clock) for one in due))
        next_hours = {(await next_of(world, vault)).hour for vault in made}
        assert next_hours == {hour}


async def test_vault_delete_meets_firing(world: World) -> None:
    """Whoever is first: a deleted vault has no policy and no waiting run that would never end."""
    for i in range(12):
        vault = await world.add_vault([await world.add_resource()], name=f"v{i}")
        await add_policy(world, vault)
        await world.execute("UPDATE policy_vaults SET next_fire_at = %s", world.clock.at)
        due = await firing.due_runs(world.database, world.clock)
        delete = vaults.delete_vault(world.database, world.project, vault, new_id(), world.clock)
        await asyncio.gather(delete, *(firing.fire(world.database, one, world.clock) for one in due))
        assert await world.execute("SELECT 1 FROM policy_vaults") == []
        status = await world.execute("SELECT status FROM vaults WHERE id = %s", vault)
        assert status in ([], [("deleting",)])
        waiting = await world.execute(
            "SELECT 1 FROM operation_logs WHERE vault_id = %s AND operation_type = 'backup' AND status = 'waiting' "
            "AND NOT cancel_requested",
            vault,
        )
        assert waiting == []


async def test_delete_and_apply_of_policies_meet_firing(world: World) -> None:
    """Policies that come and go while vaults fire: no deadlock, no error that is not a refusal, one policy a vault."""
    made = [await world.add_vault([await world.add_resource()], name=f"v{i}") for i in range(4)]

    async def churn() -> None:
        for _ in range(6):
            policy = await add_policy(world, *made)
            await change_policy(world, policy, enabled=False)
            await change_policy(world, policy, enabled=True)
            await policies.delete_policy(world.database, world.project, policy)

    async def fire_all() -> None:
        for _ in range(20):
            for vault in made:  # one by one: a statement over all of them would take their locks in no order
                due = "UPDATE policy_vaults SET next_fire_at = %s WHERE vault_id = %s AND next_fire_at IS NOT NULL"
                await world.execute(due, world.clock.at, vault)
            await tick(world)

    found = await asyncio.gather(churn(), churn(), fire_all(), fire_all(), return_exceptions=True)
    assert [one for one in found if one is not None and not isinstance(one, StrongroomError)] == []
    assert [one for one in found if isinstance(one, Unavailable)] == []
