"""Restore points of the store that the database does not know: brought in whole, once, and only what is the vault's."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from points_world import World, reader_of
from stored_world import MASTER, StoredWorld

from strongroom.base.errors import Unavailable
from strongroom.base.ids import new_id
from strongroom.base.streams import SilentMonitor
from strongroom.control.tasks import NewTask
from strongroom.control.tasks import insert as insert_tasks
from strongroom.engine.copy import copy
from strongroom.operations import importing
from strongroom.operations.job import vault_prefix


async def sync(stored: StoredWorld, vault: str) -> dict[str, Any]:
    """A sync of the vault, to its end: the `sync` part of its operation log."""
    world = stored.world
    body = {"sync": {"vault_id": vault, "auto_trigger": False}}
    answer = check_answer("import_checkpoint", await world.client.post(world.v3("checkpoints/sync"), json=body))
    assert answer["sync"]["vault_id"] == vault
    await stored.work()
    path = world.v3(f"operation-logs/{answer['sync']['operation_log_id']}")
    log = check_answer("show_op_log", await world.client.get(path))["operation_log"]
    assert (log["operation_type"], log["status"]) == ("sync", "success"), log
    part: dict[str, Any] = log["extra_info"]["sync"]
    return part


def counts(imported: int, failed: int = 0) -> dict[str, int]:
    return {"sync_backup_num": imported, "delete_backup_num": 0, "err_sync_backup_num": failed}


async def forget(stored: StoredWorld, *backups: str) -> None:
    """The database as an older copy of it: neither rows nor logs of these backups."""
    world = stored.world
    await world.execute("DELETE FROM operation_logs WHERE backup_id = ANY(%s)", list(backups))
    await world.execute("DELETE FROM backups WHERE id = ANY(%s)", list(backups))
    await world.execute(
        "DELETE FROM checkpoints c WHERE NOT EXISTS (SELECT 1 FROM backups b WHERE b.checkpoint_id = c.id)"
    )


ROW = (
    "SELECT id, vault_id, checkpoint_id, resource_id, resource_name, name, status, root, domain_id, stored_bytes, "
    "auto_trigger, created_at, expired_at FROM backups ORDER BY id"
)


async def filled(stored: StoredWorld) -> tuple[str, list[str]]:
    """A vault with two runs over one folder."""
    source = await stored.add_source("files", {"x": b"1" * 5000})
    vault = await stored.world.add_vault([source])
    first = await stored.back_up(vault, name="first")
    stored.fill(source, {"x": b"2" * 5000})
    return vault, [*first, *await stored.back_up(vault, retention_days=30)]


async def test_what_the_database_forgot_comes_back(stored: StoredWorld) -> None:
    """The rows are as they were; a second sync finds nothing; both restore byte for byte."""
    vault, backups = await filled(stored)
    before = await stored.world.execute(ROW)
    used = await stored.world.one("SELECT used_bytes FROM vaults")
    points = await stored.world.execute("SELECT id, vault_id, status FROM checkpoints ORDER BY id")
    await forget(stored, *backups)
    await stored.world.execute("UPDATE vaults SET used_bytes = 0")
    assert await sync(stored, vault) == counts(2)
    assert await stored.world.execute(ROW) == before
    assert await stored.world.execute("SELECT id, vault_id, status FROM checkpoints ORDER BY id") == points
    after = await stored.world.one("SELECT used_bytes FROM vaults")
    assert isinstance(used, int)
    assert isinstance(after, int)
    assert 0 < after <= used
    assert await sync(stored, vault) == counts(0)
    for backup, letter in zip(backups, (b"1", b"2"), strict=True):
        assert await stored.restored(backup) == {"x": letter * 5000}


async def test_a_prune_goes_on_after_a_sync(stored: StoredWorld) -> None:
    """A database that is behind stops prunes with a sentence that says what to do; after it they work again."""
    vault, (first, second) = await filled(stored)
    await forget(stored, first)
    world = stored.world
    assert (await world.client.delete(world.v3(f"backups/{second}"))).status_code == 204
    await stored.work()
    failed = await world.execute("SELECT status, error_message FROM operation_logs WHERE operation_type = 'prune'")
    assert [row[0] for row in failed] == ["failed"]
    assert "`strongroom vault sync`" in str(failed[0][1])
    assert await sync(stored, vault) == counts(1)
    async with world.database.transaction() as conn:
        new = NewTask(
            project_id=world.project, operation_type="prune", request_id=new_id(), vault_id=vault, listed=False
        )
        await insert_tasks(conn, [new], world.clock.now())
    (task,) = await stored.work()
    assert await stored.status(task.id) == ("success", "")
    assert await stored.restored(first) == {"x": b"1" * 5000}


async def test_a_time_that_is_over_is_dropped(stored: StoredWorld) -> None:
    """Who brings a restore point back does not want it deleted a moment later."""
    vault, backups = await filled(stored)
    await forget(stored, *backups)
    stored.world.clock.at = datetime(2027, 1, 1, tzinfo=UTC)
    assert await sync(stored, vault) == counts(2)
    assert await stored.world.execute("SELECT DISTINCT expired_at FROM backups") == [(None,)]


async def test_roots_that_attempts_left_are_nobodys(stored: StoredWorld) -> None:
    """A root whose backup an operation log knows is what was deleted or failed: it does not come back."""
    vault, (first, second) = await filled(stored)
    await stored.world.execute("DELETE FROM backups WHERE id = %s", first)
    assert await sync(stored, vault) == counts(0)
    assert await stored.world.execute("SELECT id FROM backups") == [(second,)]


async def test_damaged_points_come_in_error(stored: StoredWorld) -> None:
    """One that lacks chunks gets a row in `error`, and is counted; so it can be deleted."""
    vault, backups = await filled(stored)
    await forget(stored, *backups)
    for name in stored.names(vault, "/packs/"):
        stored.store.delete(name)
    assert await sync(stored, vault) == counts(0, failed=2)
    assert await stored.world.execute("SELECT DISTINCT status FROM backups") == [("error",)]
    problems = await stored.world.one("SELECT outcome -> 'problems' FROM operation_logs WHERE operation_type = 'sync'")
    assert isinstance(problems, list)
    assert "chunks are in no pack" in problems[0]["reason"] or "does not read" in problems[0]["reason"]


async def copied(stored: StoredWorld, backup: str, vault: str) -> None:
    """What `strongroom engine copy` does: the restore point's domain, below the other vault's place."""
    source = await stored.repository_of(backup)
    root = str(await stored.world.one("SELECT root FROM backups WHERE id = %s", backup))
    prefix = vault_prefix(stored.world.project, vault)
    await asyncio.to_thread(lambda: copy(source, stored.store, prefix, MASTER, [root], SilentMonitor(), lambda: None))


async def test_what_somebody_copied_here_is_taken_over(stored: StoredWorld) -> None:
    """A restore point with labels of a vault that is gone gets those of this one, before its row; prunes keep it."""
    vault, (first, _) = await filled(stored)
    other = await stored.world.add_vault(name="other")
    await copied(stored, first, other)
    assert await sync(stored, other) == counts(0), "the project has it in its first vault"
    await forget(stored, first)
    for name in stored.names(vault):
        stored.store.delete(name)
    await stored.world.execute("DELETE FROM vaults WHERE id = %s", vault)
    assert await sync(stored, other) == counts(1)
    rows = await stored.world.execute("SELECT id, vault_id, domain_id IS NOT NULL FROM backups")
    assert rows == [(first, other, True)]
    assert await sync(stored, other) == counts(0)
    assert await stored.restored(first) == {"x": b"1" * 5000}
    repository = await stored.repository_of(first)
    labels = repository.load_labels(repository.load_root(f"{first}.1"))
    assert (labels["vault"], labels["backup"], labels["name"]) == (other, first, "first")


async def test_a_domain_that_does_not_open_is_told_of(stored: StoredWorld) -> None:
    """It is a problem in the log, in words for tenants; what is only for operators does not stand there."""
    _, (first, _) = await filled(stored)
    other = await stored.world.add_vault(name="other")
    await copied(stored, first, other)
    (keys,) = stored.names(other, "/keys/")
    stored.store.delete(keys)
    stored.store.put(keys, [b"short"])
    await forget(stored, first)
    assert (await sync(stored, other))["err_sync_backup_num"] == 1
    problems = await stored.world.one("SELECT outcome -> 'problems' FROM operation_logs WHERE operation_type = 'sync'")
    assert isinstance(problems, list)
    assert problems[0]["reason"].startswith("Damaged data")
    assert "5 bytes" not in problems[0]["reason"]


async def test_what_comes_from_another_project_gets_a_new_id(stored: StoredWorld) -> None:
    """Its id may be taken there; the next sync knows it by its new one."""
    vault, (first, _) = await filled(stored)
    other = await stored.world.add_vault(name="other")
    await copied(stored, first, other)
    project, _ = await stored.world.add_project()
    domain, place = stored.names(other, "/roots/")[0].split("/domains/")[1][:32], await stored.vault(other)
    there = await asyncio.to_thread(lambda: stored.tools.repository(place, None, domain_id=domain))
    root = there.load_root(f"{first}.1")
    there.put_labels(first, {**root.labels, "project": project})
    await forget(stored, first)
    for _ in range(2):
        await sync(stored, other)
    ((new, in_vault),) = await stored.world.execute("SELECT id, vault_id FROM backups WHERE domain_id IS NOT NULL")
    assert new != first
    assert in_vault == other
    assert await stored.restored(str(new)) == {"x": b"1" * 5000}
    assert vault != other


async def test_a_prune_that_runs_is_waited_for(stored: StoredWorld) -> None:
    """It may have condemned what is wanted: the attempt ends, to be tried again."""
    vault, backups = await filled(stored)
    await forget(stored, *backups)
    world = stored.world
    async with world.database.transaction() as conn:
        new = NewTask(
            project_id=world.project, operation_type="prune", request_id=new_id(), vault_id=vault, listed=False
        )
        await insert_tasks(conn, [new], world.clock.now())
    await world.claim("prune")
    body = {"sync": {"vault_id": vault, "auto_trigger": False}}
    check_answer("import_checkpoint", await world.client.post(world.v3("checkpoints/sync"), json=body))
    task = await world.claim("sync")
    with pytest.raises(Unavailable):
        await asyncio.to_thread(importing.run, stored.job(task))
    assert await world.one("SELECT count(*) FROM backups") == 0


async def test_refusals_of_a_sync(world: World) -> None:
    """Of a kind without restore points here (7300); while another runs (7302); foreign vaults like absent ones."""

    async def ask(vault: Any, **more: Any) -> Any:
        body = {"sync": {"vault_id": vault, "auto_trigger": True}}
        return await world.client.post(world.v3("checkpoints/sync"), json=body, **more)

    vault = await world.add_vault()
    servers = await world.add_vault(object_type="workspace")
    going = await world.add_vault(status="deleting")
    other, _ = await world.add_project()
    foreign = await world.add_vault(project=other)
    check_error("import_checkpoint", await ask(servers), 400, "7300")
    check_error("import_checkpoint", await ask(going), 400, "6112")
    check_error("import_checkpoint", await ask("my-vault"), 400, "9900")
    check_error("import_checkpoint", await ask(vault, headers=reader_of(world)), 403, "8600")
    for asked in (foreign, new_id()):
        body = check_error("import_checkpoint", await ask(asked), 404, "6105")
        assert body["error_msg"] == f"Vault {asked} does not exist."
    check_answer("import_checkpoint", await ask(vault))
    check_error("import_checkpoint", await ask(vault), 400, "7302")


# --- single backups ---------------------------------------------------------------------------------------------------


async def entry(stored: StoredWorld, vault: str, backup: str, **members: Any) -> dict[str, Any]:
    """How somebody who looks into the store names a backup."""
    (name,) = [name for name in stored.names(vault, "/roots/") if f"/{backup}." in name and "digests" not in name]
    resource = await stored.world.one("SELECT id FROM protectables WHERE name = 'files'")
    return {
        "backup_id": backup,
        "backup_name": "imported",
        "bucket_name": vault,
        "image_path": "domains/" + name.split("/domains/")[1],
        "resource_id": resource,
        "resource_name": "files",
        "resource_type": "OS::Sfs::Turbo",
        "created_at": 1767225600,
        **members,
    }


async def test_single_backups_are_brought_in_by_name(stored: StoredWorld) -> None:
    """Only those that are named come, under the name of the request; one that is there already is no error."""
    vault, (first, second) = await filled(stored)
    await forget(stored, first, second)
    world = stored.world
    body = {"sync": [await entry(stored, vault, first)]}
    for imported in (1, 0):
        answer = check_answer("import_backup", await world.client.post(world.v3("backups/sync"), json=body))["sync"]
        assert [row["backup_id"] for row in answer] == [first]
        await stored.work()
        log = check_answer(
            "show_op_log", await world.client.get(world.v3(f"operation-logs/{answer[0]['operation_log_id']}"))
        )["operation_log"]
        assert (log["status"], log["extra_info"]["sync"]) == ("success", counts(imported))
    assert await world.execute("SELECT id, name FROM backups") == [(first, "imported")]
    assert await stored.restored(first) == {"x": b"1" * 5000}


async def test_what_the_store_does_not_hold_fails_with_a_reason(stored: StoredWorld) -> None:
    """Not there: 6200. Of another resource than the request says: 9900. One bad entry hurts no other."""
    vault, (first, second) = await filled(stored)
    absent = new_id()
    entries = [
        await entry(stored, vault, first, resource_id=new_id()),
        await entry(stored, vault, second),
        (await entry(stored, vault, second)) | {"backup_id": absent, "image_path": f"roots/{absent}.1"},
    ]
    await forget(stored, first, second)
    world = stored.world
    answer = check_answer("import_backup", await world.client.post(world.v3("backups/sync"), json={"sync": entries}))
    await stored.work()
    ended = [await stored.status(row["operation_log_id"]) for row in answer["sync"]]
    assert ended == [("failed", "BackupService.9900"), ("success", ""), ("failed", "BackupService.6200")]
    assert await world.execute("SELECT id FROM backups") == [(second,)]


async def test_refusals_of_an_import(stored: StoredWorld) -> None:
    """Wrong forms, unknown buckets and too many entries are refused whole, before any task is written."""
    vault, (first, _) = await filled(stored)
    good = await entry(stored, vault, first)
    world = stored.world

    async def ask(*entries: Any, **more: Any) -> Any:
        return await world.client.post(world.v3("backups/sync"), json={"sync": list(entries)}, **more)

    other, _ = await world.add_project()
    foreign = await world.add_vault(project=other)
    for members in (
        {"backup_id": "first"},
        {"backup_name": "no spaces"},
        {"bucket_name": "my-bucket"},
        {"image_path": "somewhere"},
        {"image_path": f"roots/{new_id()}.1"},
        {"image_path": f"../roots/{first}.1"},
        {"resource_id": "x"},
        {"resource_type": "OS::Nova::Server"},
        {"created_at": "yesterday"},
    ):
        check_error("import_backup", await ask(good, good | members), 400, "9900")
    check_error("import_backup", await ask(), 400, "9900")
    check_error("import_backup", await ask(good, good), 400, "9900")
    check_error("import_backup", await ask(*[good] * 51), 400, "9900")
    check_error("import_backup", await ask(good, headers=reader_of(world)), 403, "8600")
    for bucket in (foreign, new_id()):
        body = check_error("import_backup", await ask(good | {"bucket_name": bucket}), 404, "6105")
        assert re.search(bucket, body["error_msg"])
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'sync'") == 0
    check_answer("import_backup", await ask(good))
    check_error("import_backup", await ask(good), 400, "7302")
