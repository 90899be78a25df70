"""Restores of machines: every disk to where it was, single disks anywhere, a new server; and what is refused."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import folder_machine
import pytest
from contract_schema import check_answer, check_error
from machines_world import MIB, SCHEME, Machines, noise, open_machines
from points_world import SERVER
from stored_world import StoredWorld

from strongroom.base.ids import new_id
from strongroom.control import rebuilding
from strongroom.engine.store.memory import MemoryStore
from strongroom.operations.rebuild import Rebuilt, rebuild_rows
from strongroom.sources import open as open_drivers


@pytest.fixture
def machines(stored: StoredWorld) -> Iterator[Machines]:
    yield open_machines(stored)
    open_drivers.MACHINE_DRIVERS.pop(SCHEME)


async def backed_up(machines: Machines) -> tuple[str, str, str]:
    """(machine `web`, its vault, a backup of its two disks)."""
    web = await machines.add("web", {"vda": noise("system"), "vdb": noise("data", 2 * MIB)})
    vault = await machines.stored.world.add_vault([web], kind=SERVER)
    (backup,) = await machines.stored.back_up(vault)
    return web, vault, backup


async def ask(machines: Machines, backup: str, **what: Any) -> Any:
    world = machines.stored.world
    return await world.client.post(world.v3(f"backups/{backup}/restore"), json={"restore": what})


async def restored(machines: Machines, backup: str, **what: Any) -> dict[str, Any]:
    """The outcome of a restore that has to succeed."""
    job = check_answer("restore_backup", await ask(machines, backup, **what))["job_id"]
    await machines.stored.work()
    assert await machines.stored.status(job) == ("success", "")
    return await machines.stored.world.one("SELECT outcome FROM operation_logs WHERE id = %s", job)  # type: ignore[return-value]


def damage(machines: Machines, name: str) -> dict[str, bytes]:
    """What the disks held, before all of it was overwritten."""
    before = machines.disks(name)
    for disk in before:
        machines.write(name, disk, 0, b"ransom" * 5000)
    return before


async def statuses(machines: Machines, backup: str) -> set[object]:
    rows = await machines.stored.world.execute(
        "SELECT status FROM backups WHERE id = %s OR parent_id = %s", backup, backup
    )
    return {row[0] for row in rows}


@pytest.mark.parametrize("power_on", [True, False])
async def test_every_disk_goes_back_to_where_it_was(machines: Machines, power_on: bool) -> None:
    """Empty mappings, as one client sends them; the power state is what was asked for; all show it meanwhile."""
    web, _, backup = await backed_up(machines)
    before = damage(machines, "web")
    job = check_answer("restore_backup", await ask(machines, backup, server_id=web, mappings=[], power_on=power_on))
    assert await statuses(machines, backup) == {"waiting_restore"}
    check_error("restore_backup", await ask(machines, backup, server_id=web), 400, "2010")
    world = machines.stored.world
    check_error("delete_backup", await world.client.delete(world.v3(f"backups/{backup}")), 400, "6216")
    await machines.stored.work()
    assert await machines.stored.status(job["job_id"]) == ("success", "")
    assert machines.disks("web") == before
    assert folder_machine.facts(machines.folder("web"))["power"] == ("running" if power_on else "off")
    assert await statuses(machines, backup) == {"available"}


async def test_one_disk_of_a_machine_alone(machines: Machines) -> None:
    """In place by a mapping, the other disk stays as it is; onto an image file as the backup of a disk."""
    web, _, backup = await backed_up(machines)
    before, ids = damage(machines, "web"), machines.ids("web")
    children = {c["resource_name"]: c["id"] for c in (await machines.show(backup))["children"]}
    outcome = await restored(
        machines, backup, server_id=web, mappings=[{"backup_id": children["web-vdb"], "volume_id": ids["vdb"]}]
    )
    assert [disk["name"] for disk in outcome["disks"]] == ["vdb"]
    assert machines.disks("web")["vdb"] == before["vdb"] and machines.disks("web")["vda"] != before["vda"]
    image, path = await machines.add_image("copy", MIB)
    await restored(machines, children["web-vda"], volume_id=image)
    assert path.read_bytes() == before["vda"]
    job = check_answer("restore_backup", await ask(machines, children["web-vda"], volume_id=image))["job_id"]
    assert await statuses(machines, backup) == {"waiting_restore"}, "it is a part of that backup"
    world = machines.stored.world
    check_error("restore_backup", await ask(machines, backup, server_id=web), 400, "2005")
    check_error("delete_backup", await world.client.delete(world.v3(f"backups/{backup}")), 400, "6216")
    await machines.stored.work()
    assert await machines.stored.status(job) == ("success", "")
    assert await statuses(machines, backup) == {"available"}


async def test_another_server_takes_the_disks_that_are_named(machines: Machines) -> None:
    """The disks of the other server are written, crossed over where it is asked for."""
    _, _, backup = await backed_up(machines)
    other = await machines.add("other", {"vda": bytes(MIB), "vdx": bytes(3 * MIB)})
    children = {c["resource_name"]: c["id"] for c in (await machines.show(backup))["children"]}
    ids = machines.ids("other")
    pairs = [
        {"backup_id": children["web-vda"], "volume_id": ids["vda"]},
        {"backup_id": children["web-vdb"], "volume_id": ids["vdx"]},
    ]
    await restored(machines, backup, server_id=other, mappings=pairs, power_on=False)
    there, here = machines.disks("other"), machines.disks("web")
    assert there["vda"] == here["vda"] and there["vdx"][: 2 * MIB] == here["vdb"]


async def test_a_new_server_is_made_of_the_definition(machines: Machines) -> None:
    """Beside the old one, which stays as it is, whatever state it is in."""
    web, _, backup = await backed_up(machines)
    before = damage(machines, "web")
    world = machines.stored.world
    body = {"restore": {"target_resource_id": web, "new_name": "web-2", "power_on": False}}
    answer = await world.client.post(world.ext(f"backups/{backup}/restore"), json=body)
    assert answer.status_code == 202, answer.text
    await machines.stored.work()
    assert await machines.stored.status(answer.json()["job_id"]) == ("success", "")
    assert machines.disks("web-2") == before
    assert machines.disks("web") != before
    for wrong in ("", "a/b", "x" * 65):
        body["restore"]["new_name"] = wrong
        assert (await world.client.post(world.ext(f"backups/{backup}/restore"), json=body)).status_code == 400


async def test_what_cannot_be_restored_is_refused_at_once(machines: Machines) -> None:
    """Each with its code and nothing changed."""
    web, _, backup = await backed_up(machines)
    other = await machines.add("other", {"vda": bytes(MIB), "vdx": bytes(MIB // 2)})
    big = await machines.add("big", {"vda": bytes(4 * MIB)})
    children = {c["resource_name"]: c["id"] for c in (await machines.show(backup))["children"]}
    mine, its = machines.ids("web"), machines.ids("other")
    vda, vdb = children["web-vda"], children["web-vdb"]

    def to(disk: str, volume: str) -> list[dict[str, str]]:
        return [{"backup_id": disk, "volume_id": volume}]

    for status, code, what in (
        (400, "9900", {"server_id": other}),  # nobody says where to
        (400, "9900", {"server_id": web, "mappings": to(backup, mine["vda"])}),
        (400, "9900", {"server_id": web, "mappings": to(vda, "vda")}),
        (400, "9900", {"server_id": web, "mappings": to(vda, mine["vda"]) + to(vda, mine["vdb"])}),
        (400, "9900", {"server_id": web, "mappings": to(vda, mine["vda"]) + to(vdb, mine["vda"])}),
        (404, "7000", {"server_id": web, "mappings": to(vda, new_id())}),
        (404, "7000", {"server_id": other, "mappings": to(vda, mine["vda"])}),
        (404, "7100", {"server_id": new_id()}),
        (400, "9900", {"volume_id": mine["vda"]}),
        (400, "2001", {"server_id": other, "mappings": to(vda, its["vdx"])}),
        (400, "2013", {"server_id": big, "mappings": to(vdb, machines.ids("big")["vda"])}),
    ):
        check_error("restore_backup", await ask(machines, backup, **what), status, code)
        assert await statuses(machines, backup) == {"available"}, what
    check_error("restore_backup", await ask(machines, vda), 400, "9900")
    check_error("restore_backup", await ask(machines, vda, server_id=web), 400, "9900")
    world = machines.stored.world
    body = {"restore": {"path": "etc"}}
    answer = await world.client.post(world.ext(f"backups/{backup}/restore"), json=body)
    assert answer.status_code == 400 and "whole disks" in answer.text


async def test_a_restore_that_cannot_end_says_half_restored(machines: Machines) -> None:
    """The store loses what it needs in the middle: the server is in error until the same restore has run."""
    web, vault, backup = await backed_up(machines)
    before = damage(machines, "web")
    packs = {name: machines.stored.store.read(name) for name in machines.stored.names(vault, "/packs/")}
    check_answer("restore_backup", await ask(machines, backup, server_id=web))
    # The largest holds the disks; the definition lies in another one.
    packs = {name: packs[name] for name in sorted(packs, key=lambda name: len(packs[name]))[-1:]}
    for name in packs:
        machines.stored.store.delete(name)
    world = machines.stored.world
    for _ in range(6):
        await machines.stored.work()
    reason = await world.one("SELECT status_reason FROM vault_resources WHERE resource_id = %s", web)
    assert reason == "Half restored: run the restore again."
    for name, data in packs.items():
        machines.stored.store.put(name, [data])
    await restored(machines, backup, server_id=web)
    assert machines.disks("web") == before
    assert await world.one("SELECT status_reason FROM vault_resources WHERE resource_id = %s", web) is None


# --- what else is done to a backup ------------------------------------------------------------------------------------


async def test_damage_of_one_disk_leaves_the_other_restorable(machines: Machines) -> None:
    """The machine's backup is in error with the reason; its whole disk can be restored, the other not; mended, all
    are available again."""
    _, vault, backup = await backed_up(machines)
    stored = machines.stored
    # A second backup of changed data: its own pack is that of one disk.
    machines.write("web", "vdb", 0, noise("new", 200_000))
    packs = set(stored.names(vault, "/packs/"))
    (second,) = await stored.back_up(vault)
    fresh = [name for name in stored.names(vault, "/packs/") if name not in packs]
    children = {c["resource_name"]: c["id"] for c in (await machines.show(second))["children"]}
    sizes = {name: len(stored.store.read(name)) for name in fresh}
    data_pack = max(sizes, key=lambda name: sizes[name])
    kept = stored.store.read(data_pack)
    stored.store.delete(data_pack)
    await verified(machines, vault)
    shown = await machines.show(second)
    assert shown["status"] == "error"
    assert {c["resource_name"]: c["status"] for c in shown["children"]} == {"web-vda": "available", "web-vdb": "error"}
    assert (await machines.show(backup))["status"] == "available"
    image, path = await machines.add_image("copy", MIB)
    await restored(machines, children["web-vda"], volume_id=image)
    assert path.read_bytes() == machines.disks("web")["vda"]
    check_error("restore_backup", await ask(machines, children["web-vdb"], volume_id=image), 400, "2005")
    stored.store.put(data_pack, [kept])
    await verified(machines, vault)
    assert await statuses(machines, second) == {"available"}


async def verified(machines: Machines, vault: str) -> None:
    world = machines.stored.world
    answer = await world.client.post(world.ext(f"vaults/{vault}/verify"), json={"verify": {"deep": True}})
    assert answer.status_code < 300, answer.text
    await machines.stored.work()


async def test_a_machine_moves_with_its_disks(machines: Machines) -> None:
    """To another vault with all backups; the restore from there brings every disk."""
    web, here, backup = await backed_up(machines)
    world = machines.stored.world
    there = await world.add_vault(kind=SERVER)
    body = {"destination_vault_id": there, "resource_ids": [web]}
    check_answer(
        "migrate_vault_resource", await world.client.post(world.v3(f"vaults/{here}/migrateresources"), json=body)
    )
    (task, *_) = await machines.stored.work()
    assert await machines.stored.status(task.id) == ("success", "")
    assert {row[0] for row in await world.execute("SELECT vault_id FROM backups")} == {there}
    assert await machines.read(backup) == machines.disks("web")
    assert machines.stored.names(here, "/roots/") == []
    before = damage(machines, "web")
    await restored(machines, backup, server_id=web)
    assert machines.disks("web") == before


async def test_what_is_shared_is_the_machine_with_its_disks(machines: Machines) -> None:
    """The receiver sees the children, restores them onto its own, and nothing when the share has ended."""
    _, _, backup = await backed_up(machines)
    world, before = machines.stored.world, machines.disks("web")
    receiver, header = await world.add_project()
    answer = await world.client.post(world.v3(f"backups/{backup}/members"), json={"members": [receiver]})
    check_answer("add_member", answer)
    child = (await machines.show(backup))["children"][0]["id"]
    refused = await world.client.post(world.v3(f"backups/{child}/members"), json={"members": [receiver]})
    check_error("add_member", refused, 400, "6700")
    vault = await world.add_vault(kind=SERVER, project=receiver)
    body = {"status": "accepted", "vault_id": vault}
    base = f"/v3/{receiver}/backups/{backup}"
    answer = await world.client.put(f"{base}/members/{receiver}", json=body, headers=header)
    check_answer("update_member_status", answer)
    shown = check_answer("show_backup", await world.client.get(base, headers=header))["backup"]
    assert [c["resource_name"] for c in shown["children"]] == ["web-vda", "web-vdb"]
    image, path = await machines.add_image("theirs", MIB)
    await world.execute("UPDATE protectables SET project_id = %s WHERE id = %s", receiver, image)
    place = f"/v3/{receiver}/backups/{shown['children'][0]['id']}"
    answer = await world.client.post(f"{place}/restore", json={"restore": {"volume_id": image}}, headers=header)
    check_answer("restore_backup", answer)
    await machines.stored.work()
    assert path.read_bytes() == before["vda"]
    other = await machines.add("theirs", {"vda": bytes(MIB), "vdb": bytes(2 * MIB)})
    await world.execute("UPDATE protectables SET project_id = %s WHERE id = %s", receiver, other)
    ids = machines.ids("theirs")
    pairs = [{"backup_id": c["id"], "volume_id": ids[c["resource_name"][4:]]} for c in shown["children"]]
    asked = {"restore": {"server_id": other, "mappings": pairs}}
    answer = await world.client.post(f"{base}/restore", json=asked, headers=header)
    job = check_answer("restore_backup", answer)["job_id"]
    await machines.stored.work()
    assert await machines.stored.status(job) == ("success", "")
    assert machines.disks("theirs") == before
    answer = await world.client.delete(world.v3(f"backups/{backup}/members/{receiver}"))
    assert answer.status_code == 204
    assert (await world.client.get(place, headers=header)).status_code == 404


async def test_expiry_and_promises_reach_every_disk(machines: Machines) -> None:
    """A locked vault promises the disks what it promises the machine; what is over goes as one."""
    web = await machines.add("web", {"vda": noise("system"), "vdb": noise("data")})
    world = machines.stored.world
    vault = await world.add_vault([web], kind=SERVER, locked=True, keep_manual=True)
    (backup,) = await machines.stored.back_up(vault, retention_days=3)
    rows = await world.execute("SELECT expired_at, promised_until FROM backups")
    assert len(rows) == 3 and len(set(rows)) == 1 and rows[0][1] is not None
    check_error("delete_backup", await world.client.delete(world.v3(f"backups/{backup}")), 400, "6220")


async def test_a_lost_database_is_made_again_with_every_disk(machines: Machines) -> None:
    """Rows of machine and disks come back from the store alone, and restore; disks of a backup that never was whole do
    not become backups."""
    web, vault, backup = await backed_up(machines)
    stored, world = machines.stored, machines.stored.world
    (second,) = await stored.back_up(vault)
    before = [await machines.show(one) for one in (backup, second)]
    # The last root of the second is lost: its disks are of a backup that was never whole.
    root = next(name for name in stored.names(vault, "/roots/") if f"/{second}." in name)
    assert isinstance(stored.store, MemoryStore)
    stored.store.delete(root)
    rebuilt = await lose_database(machines)
    assert any(name.startswith(f"vaults/{world.project}/{vault}") for name, _ in rebuilt.problems)
    after = await machines.show(backup)
    for name in ("name", "resource_id", "resource_type", "resource_name", "resource_size", "status", "checkpoint_id"):
        assert after[name] == before[0][name], name
    assert [(c["id"], c["resource_id"], c["resource_name"], c["status"]) for c in after["children"]] == [
        (c["id"], c["resource_id"], c["resource_name"], c["status"]) for c in before[0]["children"]
    ]
    assert await world.one("SELECT count(*) FROM backups") == 3
    assert await world.one("SELECT count(*) FROM protectables WHERE removed_at IS NULL") == 1
    damaged = damage(machines, "web")
    await machines.look(web, "web")
    await restored(machines, backup, server_id=web)
    assert machines.disks("web") == damaged


async def lose_database(machines: Machines) -> Rebuilt:
    """Every row of backups and vaults goes, and comes back from the store."""
    stored, world = machines.stored, machines.stored.world
    for table in ("sessions", "operation_logs", "backups", "checkpoints", "vault_keys", "vault_resources", "vaults"):
        await world.execute(f"DELETE FROM {table}")
    await world.execute("DELETE FROM protectables")
    save = partial(rebuilding.restore_rows, world.database, now=world.clock.now(), registrations=True)
    return await rebuild_rows(stored.store, stored.tools.master, stored.tools.pool, save)


async def test_what_the_database_forgot_of_a_machine_comes_back_by_a_sync(machines: Machines) -> None:
    """While the server runs: the whole family, or nothing; by name too, the disks with their machine."""
    _, vault, backup = await backed_up(machines)
    world, stored = machines.stored.world, machines.stored
    before = await machines.show(backup)
    for one in (False, True):
        await forget(machines)
        if one:
            root = next(name for name in stored.names(vault, "/roots/") if f"/{backup}." in name)
            entry = {
                "backup_id": backup,
                "backup_name": before["name"],
                "bucket_name": vault,
                "image_path": "domains/" + root.split("/domains/")[1],
                "resource_id": before["resource_id"],
                "resource_name": "web",
                "resource_type": SERVER,
                "created_at": 0,
            }
            answer = await world.client.post(world.v3("backups/sync"), json={"sync": [entry]})
            check_answer("import_backup", answer)
        else:
            body = {"sync": {"vault_id": vault, "auto_trigger": False}}
            check_answer("import_checkpoint", await world.client.post(world.v3("checkpoints/sync"), json=body))
        (task,) = await stored.work()
        assert await stored.status(task.id) == ("success", "")
        assert await world.one("SELECT outcome -> 'imported' FROM operation_logs WHERE id = %s", task.id) == 1
        after = await machines.show(backup)
        for name in ("status", "resource_size", "resource_id", "checkpoint_id"):
            assert after[name] == before[name], name
        assert after["extend_info"]["contain_system_disk"] is True
        assert {c["id"] for c in after["children"]} == {c["id"] for c in before["children"]}
        assert await machines.read(backup) == machines.disks("web")


async def forget(machines: Machines) -> None:
    """An older copy of the database was put back, in which nothing of these backups is."""
    for table in ("sessions", "operation_logs", "backups", "checkpoints"):
        await machines.stored.world.execute(f"DELETE FROM {table}")


async def test_a_prune_takes_what_attempts_left_of_disks_and_nothing_that_nobody_knows(machines: Machines) -> None:
    """A root of a disk whose row is gone is known by its machine's backup; a family that no row tells of is not."""
    _, vault, backup = await backed_up(machines)
    world, stored = machines.stored.world, machines.stored
    # As a zombie leaves it: a root of a disk below a backup that is known, under an id that has no row.
    child = str(await world.one("SELECT id FROM backups WHERE parent_id = %s ORDER BY id LIMIT 1", backup))
    await world.execute("DELETE FROM backups WHERE id = %s", child)
    (second,) = await stored.back_up(vault)
    await world.deleted(second)
    await stored.work("prune")
    assert not [name for name in stored.names(vault, "/roots/") if f"/{child}." in name]
    (third,) = await stored.back_up(vault)
    before = stored.names(vault, "/roots/")
    await world.execute("DELETE FROM operation_logs WHERE backup_id = %s", third)
    await world.execute("DELETE FROM backups WHERE id = %s", third)
    await world.deleted(backup)
    await stored.work("prune")
    assert {name for name in before if f"/{third}." in name} <= set(stored.names(vault, "/roots/"))
    assert len(stored.names(vault, "/roots/")) >= 3
