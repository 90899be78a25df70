"""Backups of machines: one for the tenant, a root and a row a disk, of one moment whatever crashes."""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any

import folder_machine
import pytest
from contract_schema import check_answer, check_error
from fault_store import Crashed, Fault, FaultStore
from folder_machine import FolderMachines
from machines_world import MIB, SCHEME, Machines, noise, open_machines
from points_world import SERVER
from stored_world import StoredWorld

from strongroom.base.errors import Unsupported
from strongroom.base.ids import new_id
from strongroom.base.units import megabytes
from strongroom.control import reading
from strongroom.engine import read_file
from strongroom.operations import backup as backup_work
from strongroom.operations.portal import Portal
from strongroom.sources import open as open_drivers


@pytest.fixture
def machines(stored: StoredWorld) -> Iterator[Machines]:
    yield open_machines(stored)
    open_drivers.MACHINE_DRIVERS.pop(SCHEME)
    folder_machine.dead.clear()


async def two_disks(machines: Machines, **columns: object) -> tuple[str, str]:
    """(machine `web` with two disks, its vault)."""
    web = await machines.add("web", {"vda": noise("system"), "vdb": noise("data", 2 * MIB)})
    return web, await machines.stored.world.add_vault([web], kind=SERVER, **columns)


async def test_a_backup_of_a_machine_is_one_with_a_child_for_each_disk(machines: Machines) -> None:
    """As the contract shows it: one entry in lists, the disks below it, each restorable; sums count it once."""
    web, vault = await two_disks(machines, consistent_level="app_consistent")
    machines.driver.consistency, machines.driver.reason = "filesystem_consistent", "It has no hooks for applications."
    world = machines.stored.world
    (backup,) = await machines.stored.back_up(vault, name="nightly")
    shown = await machines.show(backup)
    assert (shown["resource_type"], shown["resource_id"], shown["parent_id"]) == (SERVER, web, None)
    assert (shown["resource_size"], shown["status"], shown["name"]) == (1, "available", "nightly")
    ids = machines.ids("web")
    assert [(c["resource_name"], c["resource_id"], c["name"], c["resource_type"]) for c in shown["children"]] == [
        ("web-vda", ids["vda"], "nightly_vda", "OS::Cinder::Volume"),
        ("web-vdb", ids["vdb"], "nightly_vdb", "OS::Cinder::Volume"),
    ]
    assert {c["parent_id"] for c in shown["children"]} == {backup}
    assert [c["extend_info"]["system_disk"] for c in shown["children"]] == [True, False]
    assert shown["extend_info"]["contain_system_disk"] is True
    assert shown["extend_info"]["app_consistency"] == {
        "app_consistency": "1",
        "app_consistency_status": "0",
        "app_consistency_error_code": "",
        "app_consistency_error_message": "The backup is filesystem consistent. It has no hooks for applications.",
    }
    assert await machines.read(backup) == machines.disks("web")
    listed = check_answer("list_backups", await world.client.get(world.v3("backups")))
    assert (listed["count"], [b["id"] for b in listed["backups"]]) == (1, [backup])
    assert listed["backups"][0]["children"] == shown["children"]
    of_parent = check_answer("list_backups", await world.client.get(world.v3("backups"), params={"parent_id": backup}))
    assert {b["id"] for b in of_parent["backups"]} == {c["id"] for c in shown["children"]}
    child = await machines.show(shown["children"][0]["id"])
    assert child["children"] == [] and child["parent_id"] == backup
    stored = int(str(await world.one("SELECT stored_bytes FROM backups WHERE id = %s", backup)))
    assert stored > 1.5 * MIB  # both disks and the definition
    bound = check_answer("show_vault", await world.client.get(world.v3(f"vaults/{vault}")))["vault"]
    assert bound["billing"]["used"] == bound["resources"][0]["backup_size"] == megabytes(stored)
    assert bound["resources"][0]["backup_count"] == 1
    usage = check_answer("show_storage_usage", await world.client.get(world.v3("storage_usage")))
    assert [(u["resource_id"], u["backup_count"]) for u in usage["storage_usage"]] == [(web, 1)]


async def test_the_definition_and_what_is_known_lie_with_the_restore_point(machines: Machines) -> None:
    """In the machine's own root, for who has the key; the API's metadata of a server tell what tenants may know."""
    _, vault = await two_disks(machines)
    (backup,) = await machines.stored.back_up(vault)
    world = machines.stored.world
    child = (await machines.show(backup))["children"][0]["id"]
    repository = await machines.stored.repository_of(child)
    root = str(await world.one("SELECT root FROM backups WHERE id = %s", backup))
    with pytest.raises(Unsupported, match="disk by disk"):
        await reading.find_readable(world.database, world.project, backup)
    definition = await asyncio.to_thread(lambda: b"".join(read_file(repository, root, (b"definition",))))
    assert definition == b"<folder-machine/>"
    facts = json.loads(await asyncio.to_thread(lambda: b"".join(read_file(repository, root, (b"machine.json",)))))
    assert [disk["name"] for disk in facts["disks"]] == ["vda", "vdb"]
    assert facts["metadata"]["power"] == "running"
    assert facts["disks"][0]["place"].startswith("/")
    told = await world.client.get(world.ext(f"backups/{backup}"))
    shown = await world.client.get(world.v3(f"protectables/server/instances/{facts['machine']['id']}"))
    for text in (told.text, shown.text, (await world.client.get(world.v3(f"backups/{backup}"))).text):
        assert "/sources/web" not in text, "places of the host are not for tenants"
    answer = check_answer("show_metadata", await world.client.get(world.v3(f"backups/{backup}/metadata")))
    assert json.loads(answer["server"])["power"] == "running"
    assert [json.loads(port)["mac"] for port in answer["ports"]] == ["52:54:00:00:00:01"]
    assert [json.loads(volume)["name"] for volume in answer["volumes"]] == ["web-vda", "web-vdb"]


async def test_each_disk_is_incremental_or_full_for_its_own_reason(machines: Machines) -> None:
    """A disk that came later is read whole while the others are read where they changed; every point stays what it
    was."""
    _, vault = await two_disks(machines)
    (first,) = await machines.stored.back_up(vault)
    before = machines.disks("web")
    machines.write("web", "vda", 3 * 65536, b"changed" * 100)
    (machines.folder("web") / "vdc.img").write_bytes(noise("late"))
    known = folder_machine.facts(machines.folder("web"))
    folder_machine._save(machines.folder("web"), known | {"disks": machines.ids("web") | {"vdc": new_id()}})
    (second,) = await machines.stored.back_up(vault)
    assert await machines.read(first) == before
    assert await machines.read(second) == machines.disks("web")
    rows = await machines.stored.world.execute(
        "SELECT report -> 'disk' ->> 'name', report ->> 'full_reason', (report ->> 'bytes_read')::int FROM backups "
        "WHERE parent_id = %s ORDER BY 1",
        second,
    )
    assert rows[0][1:] == (None, 65536)
    assert rows[1][1:] == (None, 0)
    assert rows[2][1] == "It is the first backup of the disk." and rows[2][2] == MIB // 2
    (full,) = await machines.stored.back_up(vault, incremental=False)
    reasons = await machines.stored.world.execute(
        "SELECT report ->> 'full_reason' FROM backups WHERE parent_id = %s", full
    )
    assert {reason for (reason,) in reasons} == {"A full backup was asked for."}
    assert await machines.read(full) == machines.disks("web")


async def test_disks_may_be_left_out_or_taken_alone(machines: Machines) -> None:
    """The resource's list stays in force; a run's own list of disks to take means those and no others."""
    web, vault = await two_disks(machines)
    world, ids = machines.stored.world, machines.ids("web")
    body = {"resources": [{"id": web, "type": SERVER, "extra_info": {"exclude_volumes": [ids["vdb"]]}}]}
    await world.execute(
        "UPDATE vault_resources SET extra_info = %s::jsonb WHERE resource_id = %s",
        json.dumps(body["resources"][0]["extra_info"]),
        web,
    )
    (backup,) = await machines.stored.back_up(vault)
    assert set(await machines.read(backup)) == {"vda"}
    taken = json.dumps({"include_volumes": [{"id": ids["vdb"]}]})
    (backup,) = await machines.stored.back_up(vault, resource_ids=(web,), extra_infos={web: taken})
    assert await machines.read(backup) == {"vdb": machines.disks("web")["vdb"]}
    none = json.dumps({"include_volumes": [{"id": new_id()}]})
    checkpoint = await world.run(vault, resource_ids=(web,), extra_infos={web: none})
    (task,) = await machines.stored.work()
    assert await machines.stored.status(task.id) == ("failed", "BackupService.7108")
    assert await world.one("SELECT status FROM checkpoints WHERE id = %s", checkpoint.id) == "error"


async def test_delete_takes_every_disk_and_a_child_alone_is_refused(machines: Machines) -> None:
    """One delete, no root and no row of it left; its disks go with it and not without it."""
    _, vault = await two_disks(machines)
    (backup,) = await machines.stored.back_up(vault)
    (kept,) = await machines.stored.back_up(vault)
    world = machines.stored.world
    child = (await machines.show(backup))["children"][0]["id"]
    check_error("delete_backup", await world.client.delete(world.v3(f"backups/{child}")), 400, "6201")
    assert (await world.client.delete(world.v3(f"backups/{backup}"))).status_code == 204
    assert {row[0] for row in await world.execute("SELECT status FROM backups WHERE parent_id = %s", backup)} == {
        "deleting"
    }
    task = (await machines.stored.work())[0]
    assert await world.one("SELECT outcome -> 'total_count' FROM operation_logs WHERE id = %s", task.id) == 1
    assert await world.one("SELECT count(*) FROM backups") == 3
    assert len(machines.stored.names(vault, "/roots/")) == 3
    assert await machines.read(kept) == machines.disks("web")
    removal = {"resource_ids": [(await machines.show(kept))["resource_id"]]}
    answer = await world.client.post(world.v3(f"vaults/{vault}/removeresources"), json=removal)
    check_answer("remove_vault_resource", answer)
    await machines.stored.work()
    assert await world.one("SELECT count(*) FROM backups") == 0
    assert machines.stored.names(vault, "/roots/") == []


# --- crashes ----------------------------------------------------------------------------------------------------------


async def _dies(machines: Machines, at: int) -> bool:
    """One attempt whose process is killed at the store's call number `at`; True when it was reached."""
    task = await machines.stored.claim()
    assert task is not None
    fault = FaultStore(machines.stored.store, Fault(at=at, crash=True, seed=at))
    folder = machines.folder("web")
    with machines.stored.on(fault):  # type: ignore[arg-type]
        try:
            fault_job = machines.stored.job(task)
            folder_machine.dead.add(folder)
            await asyncio.to_thread(backup_work.run, fault_job)
        except Crashed:
            assert fault.reached
        finally:
            folder_machine.dead.discard(folder)
    await machines.stored.world.execute(
        "UPDATE operation_logs SET lease_until = now() - interval '1 s' WHERE status = 'running'"
    )
    return fault.reached


@pytest.mark.parametrize("first", range(3))
async def test_a_backup_may_die_at_every_call(machines: Machines, first: int) -> None:
    """Whatever call of the store is the last one: the backup that comes out holds all disks of one moment, of the
    first attempt where that had put everything, else of the second; and nothing of the other is left."""
    _, vault = await two_disks(machines)
    world, stored = machines.stored.world, machines.stored
    await stored.back_up(vault)
    at = 1 + first
    while True:
        for disk in ("vda", "vdb"):
            machines.write("web", disk, 65536, f"before {at}".encode().ljust(80_000, b"b"))
        before = machines.disks("web")
        checkpoint = await world.run(vault)
        reached = await _dies(machines, at)
        for disk in ("vda", "vdb"):
            machines.write("web", disk, 0, f"after {at}".encode().ljust(90_000, b"a"))
        if reached:
            await stored.work()
        backup = str(
            await world.one(
                "SELECT id FROM backups WHERE checkpoint_id = %s AND parent_id IS NULL AND status = 'available'",
                checkpoint.id,
            )
        )
        found = await machines.read(backup)
        assert found in (before, machines.disks("web")), at
        named = {str(row[0]) for row in await world.execute("SELECT root FROM backups WHERE root IS NOT NULL")}
        there = {name.rpartition("/")[2] for name in stored.names(vault, "/roots/")}
        assert named == there, at
        if not reached:
            break
        at += 3
    assert at > 10


class _LastWords:
    """A portal through which the process dies when it is about to report its backup."""

    def __init__(self, inner: Portal) -> None:
        self._inner = inner

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        if work.__qualname__ == "commit_backup":
            work.close()
            raise Crashed(name="the rows")
        return self._inner.call(work)


async def test_what_is_whole_in_the_store_is_taken_over(machines: Machines) -> None:
    """Death between the last root and the rows: the next attempt reads nothing again, and the backup is of then."""
    _, vault = await two_disks(machines)
    world, stored = machines.stored.world, machines.stored
    before, tools = machines.disks("web"), stored.tools
    checkpoint = await world.run(vault)
    task = await stored.claim()
    assert task is not None
    folder_machine.dead.add(machines.folder("web"))
    stored.tools = replace(tools, portal=_LastWords(tools.portal))  # type: ignore[arg-type]
    with pytest.raises(Crashed):
        await asyncio.to_thread(backup_work.run, stored.job(task))
    stored.tools = tools
    folder_machine.dead.clear()
    await world.execute("UPDATE operation_logs SET lease_until = now() - interval '1 s' WHERE status = 'running'")
    machines.write("web", "vda", 0, b"later")
    await stored.work()
    rows = await world.execute(
        "SELECT id, report -> 'adopted', report ->> 'consistency' FROM backups WHERE checkpoint_id = %s "
        "AND parent_id IS NULL",
        checkpoint.id,
    )
    assert rows[0][1:] == (True, "crash_consistent")
    assert await machines.read(str(rows[0][0])) == before
    assert (await machines.show(str(rows[0][0])))["extend_info"]["contain_system_disk"] is True
    (again,) = await stored.back_up(vault)
    assert await machines.read(again) == machines.disks("web")


async def test_a_driver_that_fails_ends_the_backup_with_its_sentence(machines: Machines) -> None:
    """The machine is gone: its row says so, no disk's row counts, the next run is right again."""
    _, vault = await two_disks(machines)
    world = machines.stored.world
    gone = machines.folder("web").rename(machines.folder("away"))
    await world.run(vault)
    tasks = []
    for _ in range(6):
        tasks += await machines.stored.work()
    assert await machines.stored.status(tasks[-1].id) == ("failed", "BackupService.6215")
    gone.rename(machines.folder("web"))
    (backup,) = await machines.stored.back_up(vault)
    assert await machines.read(backup) == machines.disks("web")
    assert isinstance(machines.driver, FolderMachines)
