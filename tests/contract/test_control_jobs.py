"""The job side of rows: each function once, twice, from an old generation, and beside another.

A worker that was declared dead changes nothing; what a crash leaves between two functions is finished by the next
attempt; a task ends together with its sessions.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from points_world import DISK, World

from strongroom.base.errors import (
    BackupNotFound,
    Canceled,
    Conflict,
    Fenced,
    ResourceNotFound,
    SourceGone,
    StrongroomError,
    VaultNotFound,
)
from strongroom.base.ids import new_id
from strongroom.base.units import GIB
from strongroom.control import backups, deletions, restores, sessions, tasks, vault_keys, verifying
from strongroom.control.backups import CommittedBackup
from strongroom.control.checkpoint_views import show_checkpoint
from strongroom.control.subjects import lock_vault
from strongroom.control.tasks import NewTask, Task
from strongroom.operations.monitor import JobMonitor

GONE = SourceGone(reason="The folder is not there.")
COMMITTED = CommittedBackup(root="r.1", resource_size_bytes=10, stored_bytes=7)


async def lapse(world: World, task: Task) -> None:
    """The task's worker has not renewed for too long."""
    await world.execute(
        "UPDATE operation_logs SET lease_until = now() - interval '1 second' WHERE id = %s AND status = 'running'",
        task.id,
    )


async def snapshot(world: World) -> list[object]:
    """Everything that jobs may change, to compare."""
    tables = (
        "vaults",
        "vault_resources",
        "checkpoints",
        "checkpoint_resources",
        "backups",
        "operation_logs",
        "sessions",
    )
    return [await world.execute(f"SELECT t::text FROM {table} t ORDER BY 1") for table in tables]


async def queue(world: World, operation_type: str, vault: str, **members: object) -> None:
    """A task as the vaults' own requests write it."""
    async with world.database.transaction() as conn:
        new = NewTask(
            project_id=world.project,
            operation_type=operation_type,
            request_id=new_id(),
            vault_id=vault,
            **members,  # type: ignore[arg-type]
        )
        await tasks.insert(conn, [new], world.clock.now())


async def prepared(world: World, operation_type: str) -> Task:
    """A claimed task of that type in a vault with two restorable backups of two resources."""
    a, b = await world.add_resource(name="a"), await world.add_resource(name="b")
    vault = await world.add_vault([a, b])
    _, found = await world.backed_up(vault, resource_ids=(a, b))
    match operation_type:
        case "backup":
            await world.run(vault, resource_ids=(a,))
        case "restore":
            return await world.restored(found[0])
        case "delete":
            await deletions.request_delete_backup(
                world.database, world.project, found[0], request_id=new_id(), clock=world.clock
            )
        case "remove_resource":
            await world.execute("UPDATE vault_resources SET protect_status = 'removing' WHERE resource_id = %s", a)
            await queue(world, "remove_resource", vault, parameters={"resources": [a]})
        case "vault_delete":
            await world.execute("UPDATE vaults SET status = 'deleting' WHERE id = %s", vault)
            await queue(world, "vault_delete", vault)
        case "prune" | "verify":
            await queue(world, operation_type, vault, listed=False)
    return await world.claim(operation_type)


Step = Callable[[World, Task], Awaitable[object]]
STARTS: dict[str, Step] = {
    "backup": lambda w, t: backups.start_backup(w.database, t),
    "restore": lambda w, t: restores.start_restore(w.database, t),
    "delete": lambda w, t: deletions.start_delete(w.database, t),
    "remove_resource": lambda w, t: deletions.start_delete(w.database, t),
    "vault_delete": lambda w, t: deletions.start_delete(w.database, t),
    "prune": lambda w, t: deletions.start_prune(w.database, t),
    "verify": lambda w, t: verifying.start_verify(w.database, t),
}


def _finish_delete(world: World, task: Task) -> Awaitable[object]:
    return deletions.finish_delete(world.database, task, used_bytes=None, outcome={}, clock=world.clock)


FINISHES: dict[str, Step] = {
    "backup": lambda w, t: backups.commit_backup(w.database, t, COMMITTED, w.clock),
    "restore": lambda w, t: restores.commit_restore(w.database, t, {"bytes": 1}, w.clock),
    "delete": _finish_delete,
    "remove_resource": _finish_delete,
    "vault_delete": _finish_delete,
    "prune": lambda w, t: deletions.finish_prune(w.database, t, {}, w.clock),
    "verify": lambda w, t: verifying.finish_verify(w.database, t, verifying.Verified(), w.clock),
}
FAILS: dict[str, Step] = {
    "backup": lambda w, t: backups.fail_backup(w.database, t, GONE, w.clock),
    "restore": lambda w, t: restores.fail_restore(w.database, t, GONE, w.clock),
    "delete": lambda w, t: deletions.fail_delete(w.database, t, GONE, w.clock),
    "remove_resource": lambda w, t: deletions.fail_delete(w.database, t, GONE, w.clock),
    "vault_delete": lambda w, t: deletions.fail_delete(w.database, t, GONE, w.clock),
    "prune": lambda w, t: sessions.fail_alone(w.database, t, GONE, w.clock),
    "verify": lambda w, t: sessions.fail_alone(w.database, t, GONE, w.clock),
}
TYPES = tuple(STARTS)


# --- fencing, repetition, crashes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("operation_type", TYPES)
async def test_old_generation_changes_nothing(world: World, operation_type: str) -> None:
    """After another worker took the task over, start, finish and fail of the first raise Fenced and change no row."""
    first = await prepared(world, operation_type)
    await STARTS[operation_type](world, first)
    await lapse(world, first)
    second = await world.claim(operation_type)
    assert (second.id, second.generation) == (first.id, first.generation + 1)
    before = await snapshot(world)
    for step in (STARTS, FINISHES, FAILS):
        with pytest.raises(Fenced):
            await step[operation_type](world, first)
        assert await snapshot(world) == before
    with pytest.raises(Fenced):
        await tasks.save_state(world.database, first, {"done": []})
    with pytest.raises(Fenced):
        await tasks.put_back(world.database, first, 0, count=False)
    await tasks.note_progress(world.database, first, JobMonitor(bytes_done=1, bytes_total=1).progress(0.0))
    assert await snapshot(world) == before
    await STARTS[operation_type](world, second)
    await FINISHES[operation_type](world, second)


@pytest.mark.parametrize("operation_type", TYPES)
@pytest.mark.parametrize("end", ["finish", "fail"])
async def test_everything_twice(world: World, operation_type: str, end: str) -> None:
    """Start may run again with the same answer; an end that is repeated raises Fenced and changes nothing."""
    task = await prepared(world, operation_type)
    first = await STARTS[operation_type](world, task)
    assert await STARTS[operation_type](world, task) == first
    steps = FINISHES if end == "finish" else FAILS
    await steps[operation_type](world, task)
    before = await snapshot(world)
    for again in (STARTS, FINISHES, FAILS):
        with pytest.raises(Fenced):
            await again[operation_type](world, task)
    assert await snapshot(world) == before
    expected = "success" if end == "finish" else "failed"
    assert await world.one("SELECT status FROM operation_logs WHERE id = %s", task.id) == expected


@pytest.mark.parametrize("operation_type", TYPES)
async def test_two_finishes_at_once(world: World, operation_type: str) -> None:
    """Of two calls at the same moment one ends the task and the other is fenced."""
    task = await prepared(world, operation_type)
    await STARTS[operation_type](world, task)
    answers = await asyncio.gather(
        *(step[operation_type](world, task) for step in (FINISHES, FAILS, FINISHES)), return_exceptions=True
    )
    assert sorted(type(a).__name__ for a in answers) == ["Fenced", "Fenced", "NoneType"]


@pytest.mark.parametrize("operation_type", TYPES)
async def test_failing_before_the_start(world: World, operation_type: str) -> None:
    """A task that never began can be ended: attempts that died, or a start that was refused."""
    task = await prepared(world, operation_type)
    await FAILS[operation_type](world, task)
    row = await world.execute(
        "SELECT status, error_code, error_message, lease_until, ended_at IS NULL FROM operation_logs WHERE id = %s",
        task.id,
    )
    assert row == [("failed", "BackupService.6215", "The folder is not there.", None, False)]
    assert await world.one("SELECT count(*) FROM backups WHERE status NOT IN ('available', 'error')") == 0


@pytest.mark.parametrize("operation_type", TYPES)
@pytest.mark.parametrize("end", ["finish", "fail"])
async def test_sessions_end_with_the_task(world: World, operation_type: str, end: str) -> None:
    """Sessions survive an attempt that died, and close in the transaction that makes the task final."""
    task = await prepared(world, operation_type)
    vault = task.vault_id or ""
    for number in (9, 4):
        await sessions.open_session(
            world.database,
            project_id=world.project,
            vault_id=vault,
            task_id=task.id,
            kind="backup",
            index_number=number,
        )
    await lapse(world, task)
    task = await world.claim(operation_type)
    assert await sessions.oldest_pinned(world.database, world.project, vault) == 4
    await STARTS[operation_type](world, task)
    await (FINISHES if end == "finish" else FAILS)[operation_type](world, task)
    assert await sessions.oldest_pinned(world.database, world.project, vault) is None


@pytest.mark.parametrize("operation_type", TYPES)
async def test_an_attempt_that_wakes_up_after_the_end_pins_nothing(world: World, operation_type: str) -> None:
    """A frozen worker, whose task another one has ended meanwhile: what it pinned would be given back by nobody, and
    no prune would free anything of that vault any more. An attempt that ends while it pins is waited for."""
    first = await prepared(world, operation_type)
    vault = first.vault_id or ""
    where = {"project_id": world.project, "vault_id": vault, "task_id": first.id, "kind": "restore", "index_number": 7}
    await lapse(world, first)
    second = await world.claim(operation_type)
    async with world.database.transaction() as conn:
        await tasks.still_mine(conn, second)
        pinning = asyncio.create_task(sessions.open_session(world.database, **where))  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            while not await world.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                pass
        await sessions.close_sessions_of(conn, second)
        await tasks.finish(conn, second, world.clock)
    with pytest.raises(Fenced):
        await pinning
    with pytest.raises(Fenced):
        await sessions.open_session(world.database, **where)  # type: ignore[arg-type]
    assert await world.one("SELECT count(*) FROM sessions") == 0

    await world.execute(
        "INSERT INTO sessions (id, project_id, vault_id, task_id, kind, index_number, opened_at) "
        "VALUES ('left', %s, %s, %s, 'restore', 3, now())",
        *(world.project, vault, first.id),
    )
    assert await sessions.oldest_pinned(world.database, world.project, vault) is None, "one that an older program left"


@pytest.mark.parametrize("operation_type", TYPES)
async def test_vault_gone(world: World, operation_type: str) -> None:
    """A task whose vault has vanished says so at the start, and can still be ended."""
    task = await prepared(world, operation_type)
    await world.execute("DELETE FROM vaults")
    with pytest.raises(VaultNotFound):
        await STARTS[operation_type](world, task)
    await FAILS[operation_type](world, task)
    assert await world.one("SELECT status FROM operation_logs WHERE id = %s", task.id) == "failed"


# --- backup ---------------------------------------------------------------------------------------------------------


async def test_backup_job(world: World) -> None:
    """start_backup hands over vault, resource, names and parent; rows show protecting; commit reports everything."""
    resource = await world.add_resource(name="files")
    vault = await world.add_vault([resource], size_gb=7)
    checkpoint = await world.run(vault, name="n1", retention_days=3)
    task = await world.claim("backup")
    job = await backups.start_backup(world.database, task)
    assert (job.vault.id, job.vault.project_id, job.vault.size_bytes, job.vault.used_bytes) == (
        vault,
        world.project,
        7 * GIB,
        0,
    )
    assert (job.resource.id, job.resource.path, job.resource.options) == (
        resource,
        f"/srv/{resource}".encode(),
        {"exclude": ["*.tmp"]},
    )
    assert (job.backup_id, job.backup_name, job.checkpoint_id) == (task.backup_id, "n1", checkpoint.id)
    assert (job.incremental, job.auto_trigger, job.parent) == (True, False, None)
    assert job.expired_at is not None and (job.expired_at - job.created_at).days == 3
    assert await world.one("SELECT status FROM backups") == "protecting"
    assert await world.one("SELECT protect_status FROM vault_resources") == "protecting"
    root = await world.commit(task, stored_bytes=70)
    assert await world.execute("SELECT status, root, stored_bytes, resource_size_bytes FROM backups") == [
        ("available", root, 70, 4 * GIB)
    ]
    assert await world.execute("SELECT used_bytes FROM vaults") == [(70,)]
    assert await world.execute("SELECT protect_status, size_bytes FROM vault_resources") == [("available", 4 * GIB)]
    assert await world.execute("SELECT status, progress, error_code FROM operation_logs") == [("success", 100, "")]


async def test_parent_is_the_newest_restorable(world: World) -> None:
    """The parent is the newest backup of this resource in this vault that has a root and is not going away."""
    resource, other = await world.add_resource(), await world.add_resource()
    vault = await world.add_vault([resource, other])
    await world.backed_up(vault, resource_ids=(other,))
    _, first = await world.backed_up(vault, resource_ids=(resource,))
    _, second = await world.backed_up(vault, resource_ids=(resource,))
    await world.run(vault, resource_ids=(resource,))
    task = await world.claim("backup")
    await backups.start_backup(world.database, task)
    await backups.fail_backup(world.database, task, GONE, world.clock)
    for chosen in (second[0], first[0], None):
        await world.run(vault, resource_ids=(resource,))
        task = await world.claim("backup")
        job = await backups.start_backup(world.database, task)
        assert (job.parent.backup_id if job.parent else None) == chosen
        if job.parent is not None:
            assert job.parent.point_token == b"token of " + job.parent.root.encode()
        await backups.fail_backup(world.database, task, GONE, world.clock)
        if chosen:
            await world.execute("UPDATE backups SET status = 'deleting' WHERE id = %s", chosen)


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ("UPDATE vaults SET used_bytes = size_gb * (1::bigint << 30)", Conflict, "BackupService.6114"),
        ("UPDATE vaults SET status = 'deleting'", Conflict, "BackupService.6113"),
        ("DELETE FROM vault_resources", ResourceNotFound, "BackupService.6302"),
        ("UPDATE protectables SET removed_at = now()", ResourceNotFound, "BackupService.6302"),
        ("UPDATE backups SET status = 'error'", BackupNotFound, "BackupService.6200"),
    ],
)
async def test_start_backup_refuses(world: World, change: str, error: type[StrongroomError], code: str) -> None:
    """What changed between request and start is said with its code, and fail_backup settles it."""
    vault = await world.add_vault([await world.add_resource()])
    checkpoint = await world.run(vault)
    task = await world.claim("backup")
    await world.execute(change)
    with pytest.raises(error) as caught:
        await backups.start_backup(world.database, task)
    assert caught.value.published_code == code
    await backups.fail_backup(world.database, task, caught.value, world.clock, status="skipped")
    shown = await show_checkpoint(world.database, world.project, checkpoint.id)
    assert shown.status == "error"
    assert [s.code for s in shown.skipped_resources] == [code]
    assert await world.one("SELECT status FROM operation_logs WHERE id = %s", task.id) == "skipped"


async def test_commits_of_one_vault_add_up(world: World) -> None:
    """Backups that commit at the same moment are all counted in the vault's usage and settle their point."""
    resources = [await world.add_resource(name=f"r{i}") for i in range(4)]
    vault = await world.add_vault(resources)
    checkpoint = await world.run(vault)
    claimed = [await world.claim("backup") for _ in resources]
    await asyncio.gather(*(world.commit(task, stored_bytes=10 + i) for i, task in enumerate(claimed)))
    assert await world.one("SELECT used_bytes FROM vaults") == 10 + 11 + 12 + 13
    shown = await show_checkpoint(world.database, world.project, checkpoint.id)
    assert shown.status == "available"


async def test_measured_usage_wins(world: World) -> None:
    """A commit that measured the vault sets its usage."""
    vault = await world.add_vault([await world.add_resource()], used_bytes=999)
    await world.run(vault)
    task = await world.claim("backup")
    await backups.start_backup(world.database, task)
    measured = CommittedBackup(root="r", resource_size_bytes=1, stored_bytes=5, used_bytes=444)
    await backups.commit_backup(world.database, task, measured, world.clock)
    assert await world.one("SELECT used_bytes FROM vaults") == 444


# --- restore --------------------------------------------------------------------------------------------------------


async def test_restore_job(world: World) -> None:
    """start_restore hands over root, target and what was asked; backup and target show restoring until the end."""
    source, target = await world.add_resource(name="s"), await world.add_resource(name="t")
    vault = await world.add_vault([source])
    await world.add_vault([target], name="second")
    _, found = await world.backed_up(vault)
    task = await world.restored(found[0], resource_id=target, path=b"a/\xff", target_path=b"b", force=True)
    for _ in range(2):
        job = await restores.start_restore(world.database, task)
        assert (job.backup_id, job.root, job.kind) == (found[0], f"{found[0]}.1", "tree")
        assert (job.resource_id, job.target.id, job.same_resource) == (source, target, False)
        assert (job.path, job.target_path, job.force) == (b"a/\xff", b"b", True)
        place, in_place = await restores.start_settling(world.database, task)
        assert (place, in_place) == (job.target, False)
        assert (job.vault.id, job.resource_size_bytes) == (vault, 4 * GIB)
    statuses = "SELECT protect_status FROM vault_resources WHERE resource_id = %s"
    assert await world.one("SELECT status FROM backups") == "restoring"
    assert await world.one(statuses, target) == "restoring"
    assert await world.one(statuses, source) == "available"
    await restores.commit_restore(world.database, task, {"bytes": 5}, world.clock)
    assert await world.one("SELECT status FROM backups") == "available"
    assert await world.one(statuses, target) == "available"
    assert await world.one("SELECT outcome ->> 'bytes' FROM operation_logs WHERE id = %s", task.id) == "5"


async def test_half_restored(world: World) -> None:
    """A device that was left half written is in error with the reason, through a retry that fails early, until a whole
    restore has run; part of a restore does not mend it."""
    disk = await world.add_resource(DISK)
    _, found = await world.backed_up(await world.add_vault([disk], kind=DISK))
    task = await world.restored(found[0])
    await tasks.save_state(world.database, task, {"done": [[0, 10]]})
    job = await restores.start_restore(world.database, task)
    assert job.same_resource
    assert await restores.start_settling(world.database, task) == (job.target, True)
    state = "SELECT protect_status, status_reason FROM vault_resources"
    await restores.fail_restore(world.database, task, GONE, world.clock, half_restored=True)
    half = [("error", "Half restored: run the restore again.")]
    assert await world.execute(state) == half
    again = await world.restored(found[0])
    await restores.fail_restore(world.database, again, Canceled(), world.clock)
    assert await world.execute(state) == half
    assert await world.one("SELECT status FROM backups") == "available"
    last = await world.restored(found[0])
    await restores.start_restore(world.database, last)
    await restores.commit_restore(world.database, last, {}, world.clock)
    assert await world.execute(state) == [("available", None)]


async def test_part_does_not_mend(world: World) -> None:
    """A restore of one path leaves an older half-restored reason standing."""
    folder = await world.add_resource()
    _, found = await world.backed_up(await world.add_vault([folder]))
    await world.execute("UPDATE vault_resources SET protect_status = 'error', status_reason = 'Half.'")
    task = await world.restored(found[0], path=b"a")
    await restores.commit_restore(world.database, task, {}, world.clock)
    assert await world.execute("SELECT protect_status, status_reason FROM vault_resources") == [("error", "Half.")]


async def test_start_restore_refuses_what_changed(world: World) -> None:
    """A target that was unregistered, or a backup that went, is said at the start."""
    resource = await world.add_resource()
    _, found = await world.backed_up(await world.add_vault([resource]))
    task = await world.restored(found[0])
    await world.execute("UPDATE protectables SET removed_at = now()")
    with pytest.raises(ResourceNotFound):
        await restores.start_restore(world.database, task)
    assert await world.one("SELECT status FROM backups") == "waiting_restore"  # a start that fails changes nothing
    await world.execute("UPDATE backups SET status = 'error'")
    with pytest.raises(BackupNotFound):
        await restores.start_restore(world.database, task)


# --- deletions ------------------------------------------------------------------------------------------------------


async def test_delete_job(world: World) -> None:
    """A delete lists its backup with root, keeps the others, and takes rows, usage and an empty point away."""
    vault = await world.add_vault([await world.add_resource()])
    first, one = await world.backed_up(vault)
    _, two = await world.backed_up(vault)
    await deletions.request_delete_backup(world.database, world.project, one[0], request_id=new_id(), clock=world.clock)
    assert await world.one("SELECT status FROM checkpoints WHERE id = %s", first.id) == "deleting"
    task = await world.claim("delete")
    job = await deletions.start_delete(world.database, task)
    assert job.backups == ((one[0], f"{one[0]}.1"),)
    assert job.keep == {f"{two[0]}.1"}
    await deletions.finish_delete(world.database, task, used_bytes=6_000_000, outcome={"x": 1}, clock=world.clock)
    assert await world.execute("SELECT id FROM backups") == [(two[0],)]
    assert await world.one("SELECT count(*) FROM checkpoints WHERE id = %s", first.id) == 0
    assert await world.one("SELECT used_bytes FROM vaults") == 6_000_000
    prune = await world.execute("SELECT status, listed FROM operation_logs WHERE operation_type = 'prune'")
    assert prune == [("waiting", False)]


async def test_one_prune_a_vault(world: World) -> None:
    """Many deletions queue one prune; one that ends while a prune runs brings the next."""
    vault = await world.add_vault([await world.add_resource()])
    found = [(await world.backed_up(vault))[1][0] for _ in range(4)]
    await world.deleted(found[0])
    await world.execute("UPDATE operation_logs SET not_before = now() + interval '1 hour' WHERE status = 'waiting'")
    await world.deleted(found[1])
    prunes = "SELECT count(*) FROM operation_logs WHERE operation_type = 'prune'"
    assert await world.one(prunes) == 1
    await world.execute("UPDATE operation_logs SET not_before = NULL")
    running = await world.claim("prune")
    await deletions.start_prune(world.database, running)
    world.clock.at = await world.one("SELECT now()")  # ends of tasks are the service's time, begins the database's
    await world.deleted(found[2])
    assert await world.one(prunes) == 1
    await deletions.finish_prune(world.database, running, {}, world.clock)
    assert await world.one(prunes) == 2
    last = await world.claim("prune")
    job = await deletions.start_prune(world.database, last)
    assert job.keep == {f"{found[3]}.1"}
    await deletions.finish_prune(world.database, last, {}, world.clock)


async def test_a_prune_without_room_comes_again(world: World) -> None:
    """A prune that had to leave something for lack of room is tried again later, at once when a delete makes some."""
    vault = await world.add_vault([await world.add_resource()])
    await queue(world, "prune", vault, listed=False)
    running = await world.claim("prune")
    await deletions.start_prune(world.database, running)
    await deletions.finish_prune(world.database, running, {"postponed": "no room"}, world.clock)
    waiting = "SELECT not_before > created_at FROM operation_logs WHERE operation_type = 'prune' AND status = 'waiting'"
    assert await world.execute(waiting) == [(True,)]
    async with world.database.transaction() as conn:
        ref = await lock_vault(conn, world.project, vault)
        await deletions.queue_prune(conn, ref, request_id="r", clock=world.clock)
    assert await world.execute(waiting) == [(None,)]


async def test_usage_counts_what_was_committed_meanwhile(world: World) -> None:
    """A measurement begun before another backup committed does not swallow that backup's bytes."""
    a, b = await world.add_resource(), await world.add_resource()
    vault = await world.add_vault([a, b])
    _, found = await world.backed_up(vault, resource_ids=(a,))
    await deletions.request_delete_backup(
        world.database, world.project, found[0], request_id=new_id(), clock=world.clock
    )
    task = await world.claim("delete")
    await deletions.start_delete(world.database, task)
    await world.run(vault, resource_ids=(b,))
    await world.commit(await world.claim("backup"), stored_bytes=123)
    await deletions.finish_delete(world.database, task, used_bytes=0, outcome={}, clock=world.clock)
    assert await world.one("SELECT used_bytes FROM vaults") == 123


async def test_failed_delete_can_be_repeated(world: World) -> None:
    """A delete that failed leaves the backup in error, and it can be deleted again."""
    vault = await world.add_vault([await world.add_resource()])
    point, found = await world.backed_up(vault)
    await deletions.request_delete_backup(
        world.database, world.project, found[0], request_id=new_id(), clock=world.clock
    )
    task = await world.claim("delete")
    await deletions.start_delete(world.database, task)
    await deletions.fail_delete(world.database, task, GONE, world.clock)
    assert await world.one("SELECT status FROM backups") == "error"
    assert await world.one("SELECT status FROM checkpoints WHERE id = %s", point.id) == "error-deleting"
    await world.deleted(found[0])
    assert await world.one("SELECT count(*) FROM checkpoints") == 0


async def test_remove_resource(world: World) -> None:
    """Removing a resource takes all its backups and its row, keeps the others, and counts resources."""
    task = await prepared(world, "remove_resource")
    removed = task.parameters["resources"][0]
    job = await deletions.start_delete(world.database, task)
    assert len(job.backups) == 1 and len(job.keep) == 1
    await deletions.finish_delete(world.database, task, used_bytes=1, outcome={"total_count": 9}, clock=world.clock)
    assert await world.one("SELECT count(*) FROM backups WHERE resource_id = %s", removed) == 0
    assert await world.one("SELECT count(*) FROM vault_resources") == 1
    assert await world.one("SELECT count(*) FROM checkpoints") == 1
    outcome = await world.one("SELECT outcome FROM operation_logs WHERE id = %s", task.id)
    assert outcome == {"total_count": 1, "fail_count": 0, "deleted_backups": 1}


async def test_failed_removal(world: World) -> None:
    """A removal that failed leaves the resource in error with the reason, so that it can be removed again."""
    task = await prepared(world, "remove_resource")
    await deletions.start_delete(world.database, task)
    await deletions.fail_delete(world.database, task, GONE, world.clock)
    row = await world.execute("SELECT protect_status FROM vault_resources WHERE status_reason IS NOT NULL")
    assert row == [("error",)]


async def test_vault_delete(world: World) -> None:
    """Deleting a vault takes everything but the logs; a failure leaves the vault in error to be deleted again."""
    task = await prepared(world, "vault_delete")
    job = await deletions.start_delete(world.database, task)
    assert len(job.backups) == 2 and job.keep == frozenset()
    await deletions.fail_delete(world.database, task, GONE, world.clock)
    assert await world.one("SELECT status FROM vaults") == "error"
    await world.execute("UPDATE vaults SET status = 'deleting'")
    await queue(world, "vault_delete", job.vault.id)
    task = await world.claim("vault_delete")
    await deletions.start_delete(world.database, task)
    await deletions.finish_delete(world.database, task, used_bytes=None, outcome={}, clock=world.clock)
    for table in ("vaults", "vault_resources", "checkpoints", "backups", "vault_keys"):
        assert await world.one(f"SELECT count(*) FROM {table}") == 0
    outcome = await world.one("SELECT outcome FROM operation_logs WHERE id = %s", task.id)
    assert outcome == {"total_count": 2, "fail_count": 0}
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'prune'") == 0


async def test_vault_delete_beside_commits(world: World) -> None:
    """A vault is deleted while its backups write their ends: neither waits for the other for good."""
    for _ in range(5):
        vault = await world.add_vault([await world.add_resource(name=f"r{i}") for i in range(3)])
        await world.run(vault)
        claimed = [await world.claim("backup") for _ in range(3)]
        answers = await asyncio.gather(
            *(world.commit(task) for task in claimed),
            world.client.delete(world.v3(f"vaults/{vault}")),
            return_exceptions=True,
        )
        assert answers.pop().status_code == 204
        for answer in answers:
            assert isinstance(answer, str) or (isinstance(answer, Conflict) and answer.conflict_code == "6113"), answer
        await world.execute("DELETE FROM operation_logs")


async def test_prune_keeps_rows_and_open_tasks(world: World) -> None:
    """A prune keeps the roots that rows name and every root of a backup whose task is open."""
    vault = await world.add_vault([await world.add_resource()])
    _, found = await world.backed_up(vault)
    await world.run(vault)
    open_backup = await world.one("SELECT id FROM backups WHERE root IS NULL")
    await queue(world, "prune", vault, listed=False)
    await world.claim("backup")
    task = await world.claim("prune")
    job = await deletions.start_prune(world.database, task)
    assert (job.keep, job.open_backups) == ({f"{found[0]}.1"}, {open_backup})


# --- sessions and keys ----------------------------------------------------------------------------------------------


async def test_download_sessions(world: World) -> None:
    """A session without a task pins until it is closed, or until it is a day old; vaults do not see each other's."""
    vault, other = await world.add_vault(), await world.add_vault()
    opened = await sessions.open_session(
        world.database, project_id=world.project, vault_id=vault, task_id=None, kind="mount", index_number=3
    )
    assert await sessions.oldest_pinned(world.database, world.project, vault) == 3
    assert await sessions.oldest_pinned(world.database, world.project, other) is None
    await world.execute("UPDATE sessions SET opened_at = now() - interval '25 hours'")
    assert await sessions.oldest_pinned(world.database, world.project, vault) is None
    for _ in range(2):
        await sessions.close_session(world.database, world.project, opened)
    assert await world.one("SELECT count(*) FROM sessions") == 0


async def test_the_first_keys_stay(world: World) -> None:
    """The database's copy of a vault's keys is written once and belongs to its project alone."""
    vault = await world.add_vault()
    assert await vault_keys.find_vault_keys(world.database, world.project, vault) is None
    await asyncio.gather(
        *(vault_keys.save_vault_keys(world.database, world.project, vault, b"wrapped") for _ in range(5))
    )
    await vault_keys.save_vault_keys(world.database, world.project, vault, b"other")
    assert await vault_keys.find_vault_keys(world.database, world.project, vault) == b"wrapped"
    other, _ = await world.add_project()
    assert await vault_keys.find_vault_keys(world.database, other, vault) is None
