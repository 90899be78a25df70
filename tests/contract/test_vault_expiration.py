"""The time of all restore points of a vault: rows at once, labels of the store by a task, promises only longer."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from httpx import Response
from points_world import World, reader_of
from policies_world import add_policy, run_once
from stored_world import StoredWorld

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Canceled, Conflict, Fenced
from strongroom.base.ids import new_id
from strongroom.control import expirations
from strongroom.engine.store.base import Store
from strongroom.operations import expiration


async def ask(world: World, vault: str, day: Any, zone: Any = "UTC+00:00", **more: Any) -> Response:
    body = {"expect_expiration_date": day, "time_zone": zone}
    return await world.client.put(world.v3(f"vaults/{vault}/update-backup-expiration-time"), json=body, **more)


async def times_of(world: World, vault: str) -> list[object]:
    rows = await world.execute("SELECT expired_at FROM backups WHERE vault_id = %s ORDER BY created_at", vault)
    return [row[0] for row in rows]


async def labels_of(stored: StoredWorld, backup: str) -> dict[str, object]:
    repository = await stored.repository_of(backup)
    root = repository.load_root(str(await stored.world.one("SELECT root FROM backups WHERE id = %s", backup)))
    return dict(repository.load_labels(root))


async def test_every_restore_point_gets_the_end_of_the_day(world: World) -> None:
    """What has a root gets the time, whatever it had; what failed, or runs, keeps its own. The day is its zone's."""
    vault = await world.add_vault([await world.add_resource()])
    await world.backed_up(vault)
    await world.backed_up(vault, retention_days=3)
    await world.run(vault)
    answer = check_answer("update_expiration_time", await ask(world, vault, "2026-12-24", "UTC+08:00"))
    assert (answer["affected_backups_count"], answer["new_expiration_day"]) == (2, "2026-12-24")
    assert await times_of(world, vault) == [datetime(2026, 12, 24, 16, tzinfo=UTC)] * 2 + [None]
    path = world.v3(f"operation-logs/{answer['operation_log_id']}")
    log = check_answer("show_op_log", await world.client.get(path))["operation_log"]
    assert (log["status"], log["vault_id"]) == ("waiting", vault)
    part = log["extra_info"]["update_expiration_time"]
    assert part == {"affected_backups_count": 2, "expiration_day": "2026-12-24"}


@pytest.mark.parametrize(
    ("day", "zone"),
    [
        ("2026-05-09", "UTC+00:00"),  # over
        ("2026-05-10", "UTC+14:00"),  # in that zone it was over at ten in the morning UTC
        ("2026-02-30", "UTC+00:00"),
        ("2026-2-3", "UTC+00:00"),
        ("9999-12-31", "UTC+00:00"),
        ("2226-01-01", "UTC+00:00"),
        ("tomorrow", "UTC+00:00"),
        (None, "UTC+00:00"),
        ("2026-12-24", "Europe/Berlin"),
        ("2026-12-24", "UTC+15:00"),
        ("2026-12-24", None),
    ],
)
async def test_a_bad_day_changes_nothing(world: World, day: Any, zone: Any) -> None:
    """What is no day, no zone, over or too far away is refused."""
    vault = await world.add_vault([await world.add_resource()])
    await world.backed_up(vault)
    world.clock.at = datetime(2026, 5, 10, 10, tzinfo=UTC)
    check_error("update_expiration_time", await ask(world, vault, day, zone), 400, "9900")
    assert await times_of(world, vault) == [None]


async def test_refusals_and_foreign_vaults(world: World) -> None:
    """A reader may not; one call at a time; a vault that goes is left alone; foreign vaults are like absent ones."""
    vault = await world.add_vault([await world.add_resource()])
    check_error("update_expiration_time", await ask(world, vault, "2030-01-01", headers=reader_of(world)), 403, "8600")
    assert check_answer("update_expiration_time", await ask(world, vault, "2030-01-01"))["affected_backups_count"] == 0
    check_error("update_expiration_time", await ask(world, vault, "2030-01-01"), 400, "6112")
    going = await world.add_vault(status="deleting")
    check_error("update_expiration_time", await ask(world, going, "2030-01-01"), 400, "6112")
    other, _ = await world.add_project()
    foreign = await world.add_vault(project=other)
    for asked in (foreign, new_id()):
        body = check_error("update_expiration_time", await ask(world, asked, "2030-01-01"), 404, "6105")
        assert body["error_msg"] == f"Vault {asked} does not exist."


async def test_a_locked_vault_lets_times_only_grow(world: World) -> None:
    """A day before what was promised is refused, and nothing changes; a later one moves the promise with the time."""
    vault = await world.add_vault([await world.add_resource()], locked=True)
    await add_policy(world, vault, retention_duration_days=30)
    await run_once(world, vault)
    before = await world.execute("SELECT expired_at, promised_until FROM backups")
    told = before[0][0]
    assert isinstance(told, datetime)
    check_error("update_expiration_time", await ask(world, vault, f"{told - timedelta(days=2):%F}"), 400, "6220")
    assert await world.execute("SELECT expired_at, promised_until FROM backups") == before
    later = told + timedelta(days=9)
    check_answer("update_expiration_time", await ask(world, vault, f"{later:%F}"))
    ((expired_at, promised_until),) = await world.execute("SELECT expired_at, promised_until FROM backups")
    assert isinstance(expired_at, datetime)
    assert expired_at.date() == (later + timedelta(days=1)).date()
    grown = await world.one("SELECT %s - %s > interval '9 days'", promised_until, before[0][1])
    assert grown is True


async def test_what_a_policy_keeps_by_count_gets_no_time_in_a_locked_vault(world: World) -> None:
    """Without a time only its policy lets it go: a time could end it sooner. A manual backup gets one."""
    vault = await world.add_vault([await world.add_resource()], locked=True)
    await world.backed_up(vault)
    check_answer("update_expiration_time", await ask(world, vault, "2030-01-01"))
    await world.execute("UPDATE operation_logs SET status = 'failed', ended_at = now() WHERE status = 'waiting'")
    await add_policy(world, vault, max_backups=3)
    await run_once(world, vault)
    refused = check_error("update_expiration_time", await ask(world, vault, "2031-01-01"), 400, "6220")
    assert "its policy lets it go" in refused["error_msg"]


async def test_the_store_learns_the_time(stored: StoredWorld) -> None:
    """After the task the labels say what the rows say, and all they said before; a second time writes nothing new."""
    vault = await stored.world.add_vault([await stored.add_source("a", {"x": b"1"}), await stored.add_source("b", {})])
    backups = await stored.back_up(vault)
    before = [await labels_of(stored, backup) for backup in backups]
    for written in (2, 0):
        answer = check_answer("update_expiration_time", await ask(stored.world, vault, "2030-01-01"))
        await stored.work("expiration")
        assert await stored.status(answer["operation_log_id"]) == ("success", "")
        outcome = await stored.world.one("SELECT outcome FROM operation_logs WHERE id = %s", answer["operation_log_id"])
        assert outcome == {"labels_written": written, "roots_missing": 0}
    expected = api_timestamp(datetime(2030, 1, 2, tzinfo=UTC))
    assert [await labels_of(stored, backup) for backup in backups] == [
        {**labels, "expires_at": expected} for labels in before
    ]


class Broken:
    """A store that takes no labels."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def put(self, name: str, data: Any) -> None:
        if "/labels/" in name:
            raise Conflict(conflict_code="9900", reason="no labels today")
        self._inner.put(name, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_a_store_that_fails_leaves_the_new_time(stored: StoredWorld) -> None:
    """The rows hold what was answered, the operation log says that the store does not know it; asking again mends."""
    vault = await stored.world.add_vault([await stored.add_source("a", {"x": b"1"})])
    (backup,) = await stored.back_up(vault)
    answer = check_answer("update_expiration_time", await ask(stored.world, vault, "2030-01-01"))
    with stored.on(Broken(stored.store)):  # type: ignore[arg-type]
        await stored.work("expiration")
    assert await stored.status(answer["operation_log_id"]) == ("failed", "BackupService.9900")
    assert await times_of(stored.world, vault) == [datetime(2030, 1, 2, tzinfo=UTC)]
    assert (await labels_of(stored, backup))["expires_at"] is None
    check_answer("update_expiration_time", await ask(stored.world, vault, "2030-01-01"))
    await stored.work("expiration")
    assert (await labels_of(stored, backup))["expires_at"] == api_timestamp(datetime(2030, 1, 2, tzinfo=UTC))


async def test_a_canceled_task_leaves_the_new_time(stored: StoredWorld) -> None:
    """Before it began and while it runs: the rows hold what was answered, the labels what they said."""
    world = stored.world
    vault = await world.add_vault([await stored.add_source("a", {"x": b"1"})])
    (backup,) = await stored.back_up(vault)
    for runs in (False, True):
        answer = check_answer("update_expiration_time", await ask(world, vault, "2030-01-01"))
        task = await world.claim("expiration") if runs else None
        canceled = await world.client.post(world.ext(f"tasks/{answer['operation_log_id']}/cancel"))
        assert canceled.status_code == 202, canceled.text
        if task is not None:
            job = stored.job(task)
            job.monitor.stop = Canceled()
            with pytest.raises(Canceled):
                await asyncio.to_thread(expiration.run, job)
            await asyncio.to_thread(expiration.fail, job, Canceled())
        assert (await stored.status(answer["operation_log_id"]))[0] == "failed"
        assert await times_of(world, vault) == [datetime(2030, 1, 2, tzinfo=UTC)]
        assert (await labels_of(stored, backup))["expires_at"] is None


class Faster:
    """A store in which somebody else puts labels a moment before the first that are put."""

    def __init__(self, inner: Store, ahead: Callable[[], None]) -> None:
        self._inner, self._ahead = inner, ahead

    def put(self, name: str, data: Any) -> None:
        if "/labels/" in name:
            ahead, self._ahead = self._ahead, lambda: None
            ahead()
        self._inner.put(name, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_labels_of_two_writers_lose_nothing(stored: StoredWorld) -> None:
    """A promise that is told between the look and the put stays beside the new time."""
    vault = await stored.world.add_vault([await stored.add_source("a", {"x": b"1"})])
    (backup,) = await stored.back_up(vault)
    repository = await stored.repository_of(backup)
    root = repository.load_root(str(await stored.world.one("SELECT root FROM backups WHERE id = %s", backup)))
    await ask(stored.world, vault, "2030-01-01")
    with stored.on(Faster(stored.store, lambda: repository.put_labels(backup, {**root.labels, "told": 1}))):  # type: ignore[arg-type]
        await stored.work("expiration")
    labels = await labels_of(stored, backup)
    assert (labels["told"], labels["expires_at"]) == (1, api_timestamp(datetime(2030, 1, 2, tzinfo=UTC)))
    assert labels["vault"] == vault


async def test_an_old_attempt_writes_nothing(stored: StoredWorld) -> None:
    """The task's generation guards its start and its end."""
    vault = await stored.world.add_vault([await stored.add_source("a", {"x": b"1"})])
    await stored.back_up(vault)
    await ask(stored.world, vault, "2030-01-01")
    first = await stored.claim()
    assert first is not None
    await stored.world.execute(
        "UPDATE operation_logs SET lease_until = now() - interval '1 s' WHERE status = 'running'"
    )
    second = await stored.claim()
    assert second is not None
    assert second.generation == first.generation + 1
    job = await expirations.start_expiration(stored.world.database, second)
    assert [len(points) for points in job.points.values()] == [1]
    with pytest.raises(Fenced):
        await expirations.finish_expiration(stored.world.database, first, {}, stored.world.clock)
