"""Resources that move to another vault with their backups: refused or whole, and whole whatever crashes."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from fault_store import Crashed, Fault, FaultStore
from httpx import Response
from points_world import DISK, World, reader_of
from stored_world import StoredWorld

from strongroom.base.errors import Conflict, Fenced
from strongroom.base.ids import new_id
from strongroom.base.units import GIB
from strongroom.control import locking, moved, reading
from strongroom.control.deletions import queue_prune
from strongroom.control.rebuilding import LostVault, RowsMade
from strongroom.engine.browse import list_entries, read_file
from strongroom.engine.store.memory import MemoryStore
from strongroom.operations import move, prune
from strongroom.operations.rebuild import rebuild_rows


async def ask(world: World, vault: str, to: str, *resources: str, **more: Any) -> Response:
    body = {"destination_vault_id": to, "resource_ids": list(resources)}
    return await world.client.post(world.v3(f"vaults/{vault}/migrateresources"), json=body, **more)


async def shown(world: World, vault: str) -> dict[str, Any]:
    found: dict[str, Any] = check_answer("show_vault", await world.client.get(world.v3(f"vaults/{vault}")))["vault"]
    return found


def noise(seed: str) -> dict[str, bytes]:
    return {"a": random.Random(seed).randbytes(40_000), "b": seed.encode()}


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_what_may_not_move_stays(world: World) -> None:
    """Every refusal has its code and changes nothing; foreign vaults, on either side, are like absent ones."""
    one, two = [await world.add_resource(name=name) for name in ("one", "two")]
    here, there = await world.add_vault([one, two]), await world.add_vault()
    disks = await world.add_vault(kind=DISK)
    locked = await world.add_vault(locked=True)
    going = await world.add_vault(status="deleting")
    small = await world.add_vault(size_gb=10, used_bytes=10 * GIB - 1)
    other, _ = await world.add_project()
    foreign = await world.add_vault(project=other)
    await world.backed_up(here)
    for to, resources, status, code in (
        (here, [one], 400, "9900"),
        ("my-vault", [one], 400, "9900"),
        (there, [], 400, "9900"),
        (there, ["one"], 400, "9900"),
        (there, [one, one], 400, "6104"),
        (there, [new_id()], 400, "6135"),
        (disks, [one], 400, "6118"),
        (locked, [one], 400, "6112"),
        (going, [one], 400, "6112"),
        (small, [one], 400, "6129"),
        (foreign, [one], 404, "6105"),
        (new_id(), [one], 404, "6105"),
    ):
        check_error("migrate_vault_resource", await ask(world, here, to, *resources), status, code)
    for vault in (foreign, new_id()):
        body = check_error("migrate_vault_resource", await ask(world, vault, there, one), 404, "6105")
        assert body["error_msg"] == f"Vault {vault} does not exist."
    refused = await ask(world, here, there, one, headers=reader_of(world))
    check_error("migrate_vault_resource", refused, 403, "8600")
    statuses = await world.execute("SELECT DISTINCT protect_status FROM vault_resources")
    assert statuses == [("available",)]
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'migrate'") == 0


async def test_a_full_list_of_resources_takes_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of resources counts those that come (6100)."""
    monkeypatch.setattr("strongroom.control.moving.RESOURCES_PER_VAULT_MAX", 2)
    one, two, three = [await world.add_resource(name=name) for name in ("one", "two", "three")]
    here, there = await world.add_vault([one, two]), await world.add_vault([three])
    check_error("migrate_vault_resource", await ask(world, here, there, one, two), 400, "6100")
    check_answer("migrate_vault_resource", await ask(world, here, there, one))


async def test_busy_resources_do_not_move(world: World) -> None:
    """While something works on a resource, or on one of its backups, it stays (6125, 2010, 6112, 6134)."""
    resource, beside = await world.add_resource(), await world.add_resource(name="beside")
    here, there = await world.add_vault([resource, beside]), await world.add_vault()
    await world.backed_up(here)
    backup = str(await world.one("SELECT id FROM backups WHERE resource_id = %s", resource))
    task_of = (
        "UPDATE operation_logs SET status = 'failed', ended_at = now(), lease_until = NULL WHERE status <> 'success'"
    )
    await world.run(here, resource_ids=(resource,))
    check_error("migrate_vault_resource", await ask(world, here, there, resource), 400, "6125")
    await world.execute(task_of)
    await world.execute("DELETE FROM backups WHERE status = 'waiting_protect'")
    await world.execute("UPDATE vault_resources SET protect_status = 'available'")
    await world.restored(backup)
    check_error("migrate_vault_resource", await ask(world, here, there, resource), 400, "2010")
    await world.execute(task_of)
    await world.execute("UPDATE vault_resources SET protect_status = 'available'")
    check_error("migrate_vault_resource", await ask(world, here, there, resource), 400, "6112")  # its backup restores
    await world.execute("UPDATE backups SET status = 'available'")
    await world.execute("""UPDATE backups SET status = 'error', damage = '{"reason": "x"}' WHERE id = %s""", backup)
    refused = check_error("migrate_vault_resource", await ask(world, here, there, resource), 400, "6112")
    assert "damaged" in refused["error_msg"]
    await world.execute("UPDATE backups SET damage = NULL")
    check_answer("migrate_vault_resource", await ask(world, here, there, resource))
    check_error("migrate_vault_resource", await ask(world, here, there, resource), 400, "6134")
    check_error("migrate_vault_resource", await ask(world, here, there, beside), 400, "6112")


async def test_nothing_works_on_what_moves(world: World) -> None:
    """Until it has ended: no backup, restore, delete or removal of what moves, and neither vault is deleted."""
    resource, beside = await world.add_resource(), await world.add_resource(name="beside")
    here, there = await world.add_vault([resource, beside]), await world.add_vault()
    await world.backed_up(here)
    backup = str(await world.one("SELECT id FROM backups WHERE resource_id = %s", resource))
    answer = check_answer("migrate_vault_resource", await ask(world, here, there, resource))
    assert answer["migrated_resources"] == [resource]
    client = world.client
    run = await world.run(here)
    assert [(skipped.id, skipped.code) for skipped in run.skipped_resources] == [(resource, "BackupService.6134")]
    check_error("delete_backup", await client.delete(world.v3(f"backups/{backup}")), 400, "6134")
    restore = {"restore": {"resource_id": beside}}
    check_error("restore_backup", await client.post(world.v3(f"backups/{backup}/restore"), json=restore), 400, "6134")
    removal = {"resource_ids": [resource]}
    path = world.v3(f"vaults/{here}/removeresources")
    check_error("remove_vault_resource", await client.post(path, json=removal), 400, "6134")
    day = {"expect_expiration_date": "2030-01-01", "time_zone": "UTC+00:00"}
    for vault in (here, there):
        check_error("delete_vault", await client.delete(world.v3(f"vaults/{vault}")), 400, "6112")
        path = world.v3(f"vaults/{vault}/update-backup-expiration-time")
        check_error("update_expiration_time", await client.put(path, json=day), 400, "6112")
    logs = check_answer("list_op_logs", await client.get(world.v3("operation-logs?operation_type=copy")))
    assert [(log["operation_type"], log["status"]) for log in logs["operation_logs"]] == [("copy", "waiting")]


# --- moves ------------------------------------------------------------------------------------------------------------


async def two_vaults(stored: StoredWorld) -> tuple[str, str, list[str], dict[str, dict[str, bytes]]]:
    """(old vault, new vault with a backup of its own, two resources, contents by backup id): two runs over both."""
    sources = [await stored.add_source(name, noise(name)) for name in ("one", "two")]
    here = await stored.world.add_vault(sources, name="here")
    content: dict[str, dict[str, bytes]] = {}
    for number in (1, 2):
        for source, name in zip(sources, ("one", "two"), strict=True):
            stored.fill(source, {"b": f"{name} {number}".encode()})
        await stored.back_up(here)
        for backup, name in await stored.world.execute("SELECT id, resource_name FROM backups"):
            content.setdefault(str(backup), {**noise(str(name)), "b": f"{name} {number}".encode()})
    own = await stored.add_source("own", noise("own"))
    there = await stored.world.add_vault([own], name="there")
    (backup,) = await stored.back_up(there)
    content[backup] = noise("own")
    return here, there, sources, content


async def test_backups_move_with_their_resource(stored: StoredWorld) -> None:
    """They keep their ids and come back byte for byte; what is left of a divided run stays, and both vaults' usage
    tells of it; after its prune the old place holds nothing of them, and it may be deleted."""
    here, there, (one, two), content = await two_vaults(stored)
    world = stored.world
    before = {vault: (await shown(world, vault)) for vault in (here, there)}
    checkpoints = {row[0] for row in await world.execute("SELECT id FROM checkpoints")}
    check_answer("migrate_vault_resource", await ask(world, here, there, one))
    assert [task.operation_type for task in await stored.work()] == ["migrate", "prune"]
    moving = [str(row[0]) for row in await world.execute("SELECT id FROM backups WHERE resource_id = %s", one)]
    after = {vault: (await shown(world, vault)) for vault in (here, there)}
    assert [resource["id"] for resource in after[here]["resources"]] == [two]
    (arrived,) = [resource for resource in after[there]["resources"] if resource["id"] == one]
    assert (arrived["backup_count"], arrived["protect_status"]) == (2, "available")
    used = {vault: await world.one("SELECT used_bytes FROM vaults WHERE id = %s", vault) for vault in (here, there)}
    assert used[here] < 60_000 < 80_000 < used[there]  # type: ignore[operator]
    for backup in moving:
        answer = check_answer("show_backup", await world.client.get(world.v3(f"backups/{backup}")))["backup"]
        assert (answer["vault_id"], answer["status"]) == (there, "available")
        assert answer["checkpoint_id"] not in checkpoints
        path = world.v3(f"checkpoints/{answer['checkpoint_id']}")
        point = check_answer("show_checkpoint", await world.client.get(path))["checkpoint"]
        assert (point["vault"]["id"], [r["id"] for r in point["vault"]["resources"]]) == (there, [one])
    assert not [name for name in stored.names(here, "/roots/") if name.rpartition("/")[2][:36] in moving]
    assert before[here]["billing"]["used"] >= after[here]["billing"]["used"]
    for backup, files in content.items():
        assert await stored.restored(backup) == files
    assert (await world.client.delete(world.v3(f"vaults/{here}"))).status_code == 204
    await stored.work()
    for backup in moving:
        assert await stored.restored(backup) == content[backup]


async def test_a_run_that_moves_as_a_whole_keeps_its_restore_point(stored: StoredWorld) -> None:
    """When all resources of it move, the restore point keeps its id. The next backup in the new vault reads all."""
    here, there, sources, content = await two_vaults(stored)
    world = stored.world
    points = "SELECT DISTINCT checkpoint_id FROM backups WHERE resource_id = ANY(%s) ORDER BY 1"
    before = await world.execute(points, sources)
    check_answer("migrate_vault_resource", await ask(world, here, there, *sources))
    await stored.work()
    assert await world.execute(points, sources) == before
    assert await world.one("SELECT count(*) FROM checkpoints WHERE vault_id = %s", here) == 0
    (backup, *_) = await stored.back_up(there, resource_ids=(sources[0],))
    content[backup] = {**noise("one"), "b": b"one 2"}
    assert await world.one("SELECT domain_id FROM backups WHERE id = %s", backup) is None
    assert await world.one("SELECT incrementals FROM vault_resources WHERE resource_id = %s", sources[0]) == 0
    for one, files in content.items():
        assert await stored.restored(one) == files


async def test_there_and_back_again(stored: StoredWorld) -> None:
    """A resource that comes home finds its domain there: no root of its earlier life is relied on."""
    here, there, (one, _), content = await two_vaults(stored)
    world = stored.world
    for a, b in ((here, there), (there, here)):
        check_answer("migrate_vault_resource", await ask(world, a, b, one))
        await stored.work()
        assert await world.one("SELECT count(*) FROM vault_resources WHERE vault_id = %s AND resource_id = %s", b, one)
    assert await world.execute("SELECT DISTINCT domain_id FROM backups") == [(None,)]
    for backup, files in content.items():
        assert await stored.restored(backup) == files


async def test_remains_of_an_earlier_life_are_waited_for(stored: StoredWorld) -> None:
    """A dead root at the destination may be about to be pruned: the move fails with a sentence, and works later."""
    here, there, (one, _), content = await two_vaults(stored)
    world = stored.world
    check_answer("migrate_vault_resource", await ask(world, here, there, one))
    task = await stored.claim()
    assert task is not None
    await asyncio.to_thread(move.run, stored.job(task))
    await world.execute("UPDATE operation_logs SET status = 'failed', ended_at = now() WHERE operation_type = 'prune'")
    check_answer("migrate_vault_resource", await ask(world, there, here, one))
    await stored.work()
    refused = await world.execute("SELECT status, error_message FROM operation_logs WHERE operation_type = 'migrate' "
                                  "ORDER BY created_at DESC LIMIT 1")  # fmt: skip
    assert refused[0][0] == "failed"
    assert "remains" in str(refused[0][1])
    assert await world.one("SELECT vault_id FROM vault_resources WHERE resource_id = %s", one) == there
    async with world.database.transaction() as conn:
        await queue_prune(conn, await stored.vault(here), request_id=new_id(), clock=world.clock)
    await stored.work()
    check_answer("migrate_vault_resource", await ask(world, there, here, one))
    await stored.work()
    assert await world.one("SELECT vault_id FROM vault_resources WHERE resource_id = %s", one) == here
    for backup, files in content.items():
        assert await stored.restored(backup) == files


async def test_a_vault_without_room_gets_nothing(stored: StoredWorld) -> None:
    """What the backups need by themselves is measured before anything is copied (6129)."""
    here, there, (one, _), _ = await two_vaults(stored)
    world = stored.world
    await world.execute("UPDATE backups SET stored_bytes = 1")
    check_answer("migrate_vault_resource", await ask(world, here, there, one))
    await world.execute("UPDATE vaults SET used_bytes = size_gb * 1024::bigint ^ 3 - 20000 WHERE id = %s", there)
    before = stored.names(there)
    (task, *_) = await stored.work()
    assert await stored.status(task.id) == ("failed", "BackupService.6129")
    assert stored.names(there) == before
    assert (await shown(world, here))["resources"][0]["protect_status"] == "available"


async def test_a_lock_that_comes_meanwhile_stops_the_move(stored: StoredWorld) -> None:
    """Either vault may be locked after the request: then nothing moves."""
    here, there, (one, _), content = await two_vaults(stored)
    world = stored.world
    check_answer("migrate_vault_resource", await ask(world, here, there, one))
    await locking.set_lock(world.database, world.project, here, locked=True, keep_manual=True, clock=world.clock)
    (task, *_) = await stored.work()
    assert await stored.status(task.id) == ("failed", "BackupService.6112")
    assert await world.one("SELECT vault_id FROM vault_resources WHERE resource_id = %s", one) == here
    for backup, files in content.items():
        assert await stored.restored(backup) == files


async def test_shares_go_along(stored: StoredWorld) -> None:
    """A backup that another project has accepted is still shared after its resource moved, and read from its new place;
    while the receiver restores it, it does not move (2010)."""
    here, there, (one, _), _ = await two_vaults(stored)
    world = stored.world
    backup = str(await world.one("SELECT max(id) FROM backups WHERE resource_id = %s", one))
    receiver, _ = await world.add_project()
    theirs = await world.add_vault(project=receiver)
    await world.execute(
        "INSERT INTO backup_members (id, project_id, backup_id, dest_project_id, status, vault_id, created_at) "
        "VALUES (%s, %s, %s, %s, 'accepted', %s, now())",
        *(new_id(), world.project, backup, receiver, theirs),
    )
    loan = (
        "INSERT INTO operation_logs (id, project_id, operation_type, status, backup_id, member_id, lender_project_id, "
    )
    # In a group of its own: which of two tenants' tasks is claimed first is nobody's promise.
    loan += "lender_vault_id, request_id, created_at, updated_at, worker_group) VALUES (%s, %s, 'restore', 'waiting', "
    loan += "%s, (SELECT id FROM backup_members), %s, %s, 'r', now(), now(), 'away')"
    await world.execute(loan, new_id(), receiver, backup, world.project, here)
    check_error("migrate_vault_resource", await ask(world, here, there, one), 400, "2010")
    await world.execute("UPDATE operation_logs SET status = 'failed', ended_at = now() WHERE status = 'waiting'")
    check_answer("migrate_vault_resource", await ask(world, here, there, one))
    await world.execute(loan, waits := new_id(), receiver, backup, world.project, here)
    task = await world.claim("migrate")
    await asyncio.to_thread(move.run, stored.job(task))
    assert await world.one("SELECT lender_vault_id FROM operation_logs WHERE id = %s", waits) == there
    found = await reading.find_readable(world.database, receiver, backup)
    assert found.vault.id == there
    path = world.v3(f"vaults/{there}/removeresources")
    answer = await world.client.post(path, json={"resource_ids": [one]})
    check_answer("remove_vault_resource", answer)
    assert await world.one("SELECT count(*) FROM backup_members") == 0, "a removal ends them"


# --- crashes, and who comes by ----------------------------------------------------------------------------------------


async def _crashed_move(stored: StoredWorld, at: int) -> bool:
    """One attempt that dies at the store's call number `at`; True when it was reached."""
    task = await stored.claim()
    assert task is not None
    fault = FaultStore(stored.store, Fault(at=at, crash=True, seed=at))
    with stored.on(fault):  # type: ignore[arg-type]
        try:
            await asyncio.to_thread(move.run, stored.job(task))
        except Crashed:
            assert fault.reached
    await stored.world.execute(
        "UPDATE operation_logs SET lease_until = now() - interval '1 s' WHERE status = 'running'"
    )
    return fault.reached


@pytest.mark.parametrize("first", range(3))
async def test_a_move_may_die_at_every_call(stored: StoredWorld, first: int) -> None:
    """Whatever call of the store is the last one: every backup comes back whole at once, with its id, from where its
    row says; then the next attempt ends it, and the prunes that follow take nothing that counts."""
    here, there, (one, _), content = await two_vaults(stored)
    world = stored.world
    at, places = 1 + first * 7, set[object]()
    for _ in range(7):
        check_answer("migrate_vault_resource", await ask(world, here, there, one))
        reached = await _crashed_move(stored, at)
        places.add(await world.one("SELECT vault_id FROM vault_resources WHERE resource_id = %s", one))
        for backup, files in content.items():
            assert await read(stored, backup) == files, (at, backup)
        await stored.work()
        assert await world.one("SELECT vault_id FROM vault_resources WHERE resource_id = %s", one) == there
        for backup, files in content.items():
            assert await read(stored, backup) == files, (at, backup)
        here, there = there, here  # home again, with the next crash later
        at += 21
        if not reached:
            break
    assert len(places) == 2


async def read(stored: StoredWorld, backup: str) -> dict[str, bytes]:
    """The files of a backup, read where its row says that it is."""
    repository = await stored.repository_of(backup)
    root = str(await stored.world.one("SELECT root FROM backups WHERE id = %s", backup))

    def pour() -> dict[str, bytes]:
        names = [entry.entry.name for entry in list_entries(repository, root, ())]
        return {name.decode(): b"".join(read_file(repository, root, (name,))) for name in names}

    return await asyncio.to_thread(pour)


async def test_a_database_lost_between_the_places(stored: StoredWorld) -> None:
    """Both places hold the backups while the old one was not pruned: a rebuild takes each once, and all of them."""
    here, there, (one, _), content = await two_vaults(stored)
    world = stored.world
    check_answer("migrate_vault_resource", await ask(world, here, there, one))
    task = await stored.claim()
    assert task is not None
    await asyncio.to_thread(move.run, stored.job(task))
    found: list[LostVault] = []

    async def save(vault: LostVault) -> RowsMade:
        found.append(vault)
        return RowsMade()

    await rebuild_rows(stored.store, stored.tools.master, stored.tools.pool, save)
    assert sorted(backup.id for vault in found for backup in vault.backups) == sorted(content)
    assert all(backup.status == "available" for vault in found for backup in vault.backups)
    await stored.work()
    found.clear()
    await rebuild_rows(stored.store, stored.tools.master, stored.tools.pool, save)
    places = {backup.id: vault.id for vault in found for backup in vault.backups}
    rows = await world.execute("SELECT id, vault_id, checkpoint_id FROM backups")
    assert places == {row[0]: row[1] for row in rows}
    points = {backup.id: backup.checkpoint_id for vault in found for backup in vault.backups}
    assert points == {row[0]: row[2] for row in rows}


async def test_a_zombie_moves_nothing(stored: StoredWorld) -> None:
    """An attempt whose lease ran out is refused at its end; the newer one's rows stand."""
    here, there, (one, _), _ = await two_vaults(stored)
    world = stored.world
    check_answer("migrate_vault_resource", await ask(world, here, there, one))
    old = await stored.claim()
    assert old is not None
    await world.execute("UPDATE operation_logs SET lease_until = now() - interval '1 s' WHERE status = 'running'")
    new = await stored.claim()
    assert new is not None
    with pytest.raises(Fenced):
        await asyncio.to_thread(move.run, stored.job(old))
    await asyncio.to_thread(move.run, stored.job(new))
    with pytest.raises(Fenced):
        await moved.fail_move(world.database, old, Conflict(conflict_code="6112", reason="late"), world.clock)
    assert await world.one("SELECT vault_id FROM vault_resources WHERE resource_id = %s", one) == there


class Meeting:
    """A store that lets somebody else work wholly ahead of its call number `at`."""

    def __init__(self, inner: MemoryStore, at: int, work: Any) -> None:
        self._inner, self._at, self._work, self.calls = inner, at, work, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in ("put", "writer", "read", "read_into", "list", "delete", "size"):
            self.calls += 1
            if self.calls == self._at:
                self._work()
        return found


@pytest.mark.parametrize("vault", ["here", "there"])
async def test_a_prune_meets_a_move(stored: StoredWorld, vault: str) -> None:
    """A prune of either vault, ahead of calls all along a move: everything comes back."""
    here, there, (one, _), content = await two_vaults(stored)
    world = stored.world
    loop = asyncio.get_running_loop()
    at = 3
    for _ in range(6):
        pruned = here if vault == "here" else there

        async def claimed(pruned: str = pruned) -> Any:
            async with world.database.transaction() as conn:
                await queue_prune(conn, await stored.vault(pruned), request_id=new_id(), clock=world.clock)
            return await stored.claim()

        def work(claimed: Any = claimed) -> None:
            task = asyncio.run_coroutine_threadsafe(claimed(), loop).result()
            assert task.operation_type == "prune"
            prune.run(stored.job(task))

        check_answer("migrate_vault_resource", await ask(world, here, there, one))
        task = await stored.claim()
        assert task is not None
        meeting = Meeting(stored.store, at, work)
        tools = replace(stored.tools, store=meeting)  # type: ignore[arg-type]
        job = replace(stored.job(task), tools=tools)
        await asyncio.to_thread(move.run, job)
        assert meeting.calls >= at
        for backup, files in content.items():
            assert await read(stored, backup) == files, (at, backup)
        await stored.work()
        for backup, files in content.items():
            assert await read(stored, backup) == files, (at, backup)
        here, there = there, here
        at += 17
