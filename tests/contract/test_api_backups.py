"""Backups through the API, against the contract, on a real database: lists, names, deletion, restore."""

import asyncio
import random

import pytest
from contract_schema import check_answer, check_error
from points_world import DISK, TURBO, World, reader_of

from strongroom.base.ids import new_id
from strongroom.base.units import GIB
from strongroom.control import deletions, restores


async def listed(world: World, **query: object) -> dict:
    params = {name: str(v).lower() if isinstance(v, bool) else v for name, v in query.items()}
    return check_answer("list_backups", await world.client.get(world.v3("backups"), params=params))


async def ids(world: World, **query: object) -> list[str]:
    return [backup["id"] for backup in (await listed(world, **query))["backups"]]


async def restore(world: World, backup: str, **members: object):
    return await world.client.post(world.v3(f"backups/{backup}/restore"), json={"restore": members})


# --- show and list --------------------------------------------------------------------------------------------------


async def test_published_shape(world: World) -> None:
    """GET of a backup answers every published member, with the requested kind in both places."""
    resource = await world.add_resource(name="files")
    vault = await world.add_vault([resource], is_multi_az=True)
    point, found = await world.backed_up(vault, name="n", description="d", retention_days=2, incremental=False)
    shown = check_answer("show_backup", await world.client.get(world.v3(f"backups/{found[0]}")))["backup"]
    assert shown["checkpoint_id"] == point.id
    assert (shown["vault_id"], shown["resource_id"], shown["resource_type"]) == (vault, resource, TURBO)
    assert (shown["name"], shown["description"], shown["resource_name"]) == ("n", "d", "files")
    assert (shown["status"], shown["resource_size"], shown["children"], shown["parent_id"]) == (
        "available",
        4,
        [],
        None,
    )
    assert (shown["incremental"], shown["version"], shown["image_type"]) == (False, 3, "backup")
    assert shown["expired_at"][:10] == "2026-05-12"
    assert shown["protected_at"] is not None
    info = shown["extend_info"]
    assert (info["auto_trigger"], info["incremental"], info["is_multi_az"], info["progress"]) == (
        False,
        False,
        True,
        100,
    )
    assert info["supported_restore_mode"] == "backup"
    assert info["app_consistency"]["app_consistency"] == "0"
    assert (await listed(world))["backups"] == [shown]


async def test_progress_of_running(world: World) -> None:
    """A backup that runs shows the progress of its task."""
    vault = await world.add_vault([await world.add_resource()])
    await world.run(vault)
    await world.execute("UPDATE operation_logs SET progress = 42")
    (backup,) = (await listed(world))["backups"]
    assert (backup["status"], backup["extend_info"]["progress"]) == ("waiting_protect", 42)


async def test_filters(world: World) -> None:
    """Every filter hits what it names and nothing else; count is of all matches."""
    turbo = await world.add_resource(name="folder-of-ada")
    disk = await world.add_resource(DISK, name="disk-of-bob", size_bytes=GIB)
    first = await world.add_vault([turbo], name="first", size_gb=10, used_bytes=0)
    second = await world.add_vault([disk], kind=DISK, name="second", size_gb=1, enterprise_project_id="ep-1")
    point, (a,) = await world.backed_up(first, name="one", incremental=False)
    await world.execute("UPDATE backups SET enterprise_project_id = '0' WHERE id = %s", a)
    _, (b,) = await world.backed_up(second, name="two")
    await world.run(first, name="one-more")
    c = str(await world.one("SELECT id FROM backups WHERE root IS NULL"))
    created = {i: (await world.one("SELECT created_at FROM backups WHERE id = %s", i)) for i in (a, b, c)}
    at = {i: t.strftime("%Y-%m-%dT%H:%M:%SZ") for i, t in created.items()}
    assert await ids(world) == [c, b, a]
    for query, expected in (
        ({"name": "one"}, [a]),
        ({"name": "on"}, []),
        ({"resource_name": "ada"}, [c, a]),
        ({"resource_name": "disk-of-bob"}, [b]),
        ({"resource_name": "%"}, []),
        ({"checkpoint_id": point.id}, [a]),
        ({"resource_id": disk}, [b]),
        ({"vault_id": first}, [c, a]),
        ({"vault_id": "not-an-id"}, []),
        ({"parent_id": a}, []),
        ({"image_type": "backup"}, [c, b, a]),
        ({"image_type": "replication"}, []),
        ({"resource_type": DISK}, [b]),
        ({"resource_az": "az1"}, []),
        ({"enterprise_project_id": "ep-1"}, [b]),
        ({"enterprise_project_id": "0"}, [c, a]),
        ({"enterprise_project_id": "all_granted_eps"}, [c, b, a]),
        ({"status": "available"}, [b, a]),
        ({"status": ["available", "waiting_protect"]}, [c, b, a]),
        ({"own_type": "shared"}, []),
        ({"own_type": "all_granted"}, [c, b, a]),
        ({"used_percent": 1}, []),
        ({"incremental": True}, [c, b]),
        ({"incremental": False}, [a]),
        ({"checkpoint_id": point.id, "incremental": False}, [a]),
        ({"start_time": at[c]}, [c]),
        ({"end_time": at[a]}, []),
        ({"end_time": at[b]}, [a]),
        ({"start_time": "2020-01-01T00:00:00Z", "end_time": "2030-01-01T00:00:00Z"}, [c, b, a]),
        ({"show_replication": True}, [c, b, a]),
        ({"dec": True, "something_else": "x"}, [c, b, a]),
        ({"name": ""}, [c, b, a]),
    ):
        answer = await listed(world, **query)
        assert [backup["id"] for backup in answer["backups"]] == expected, query
        assert answer["count"] == len(expected), query
    await world.execute("UPDATE vaults SET used_bytes = %s WHERE id = %s", GIB // 2, second)
    assert await ids(world, used_percent=50) == [b]
    assert await ids(world, used_percent=51) == []


async def test_sorting_and_paging(world: World) -> None:
    """Every order is total: pages by offset and by marker show each backup once, whatever the keys."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    resources = [await world.add_resource(name=f"r{i}") for i in range(5)]
    vault = await world.add_vault(resources)
    for i in range(4):
        await world.backed_up(vault, name=f"n{i % 2}")
    await world.execute("UPDATE backups SET updated_at = NULL, protected_at = NULL WHERE random() < 0.5")
    everything = await ids(world)
    assert len(everything) == 20
    keys = ["created_at", "updated_at", "name", "status", "protected_at", "id"]
    for _ in range(12):
        chosen = chance.sample(keys, chance.randint(1, 3))
        sort = ",".join(key + chance.choice(["", ":asc", ":desc"]) for key in chosen)
        whole = await ids(world, sort=sort)
        assert sorted(whole) == sorted(everything)
        limit = chance.randint(1, 7)
        by_offset = [i for at in range(0, 20, limit) for i in await ids(world, sort=sort, limit=limit, offset=at)]
        assert by_offset == whole, sort
        by_marker: list[str] = []
        while page := await ids(world, sort=sort, limit=limit, **({"marker": by_marker[-1]} if by_marker else {})):
            by_marker += page
        assert by_marker == whole, sort
    assert await ids(world, sort="id:asc") == sorted(everything)
    assert await ids(world, sort="id") == sorted(everything, reverse=True)
    past = await listed(world, offset=1000)
    assert (past["backups"], past["count"], past["offset"], past["limit"]) == ([], 20, 1000, 1000)


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": "x"},
        {"offset": -1},
        {"offset": 10**12},
        {"marker": "x"},
        {"marker": "00000000-0000-0000-0000-000000000000"},
        {"sort": "size"},
        {"sort": "name:up"},
        {"sort": "name,name"},
        {"sort": "name," * 60},
        {"sort": "name;drop table backups"},
        {"status": "gone"},
        {"status": ["available", "x"]},
        {"image_type": "x"},
        {"resource_type": "x"},
        {"own_type": "x"},
        {"member_status": "x"},
        {"used_percent": 0},
        {"used_percent": 101},
        {"used_percent": "half"},
        {"start_time": "2020-01-01"},
        {"start_time": "2020-13-01T00:00:00Z"},
        {"end_time": "2020-01-01T00:00:00+00:00"},
        {"incremental": "maybe"},
        {"show_replication": "2"},
        {"name": "a\x00b"},
    ],
)
async def test_bad_queries(world: World, query: dict) -> None:
    """A query member out of range or form is 9900, never a wrong page."""
    check_error("list_backups", await world.client.get(world.v3("backups"), params=query), 400, "9900")


async def test_foreign_backups(world: World) -> None:
    """Another project sees, changes, restores and deletes nothing of this one; its answers are those of missing ids."""
    vault = await world.add_vault([await world.add_resource()])
    _, (backup,) = await world.backed_up(vault)
    other, header = await world.add_project()
    base = f"/v3/{other}/backups"
    assert check_answer("list_backups", await world.client.get(base, headers=header))["count"] == 0
    marker = await world.client.get(base, params={"marker": backup}, headers=header)
    check_error("list_backups", marker, 400, "9900")
    for one in (backup, new_id()):
        path = f"{base}/{one}"
        check_error("show_backup", await world.client.get(path, headers=header), 404, "6200")
        renamed = await world.client.put(path, json={"backup": {"name": "x"}}, headers=header)
        check_error("update_backup", renamed, 404, "6200")
        check_error("delete_backup", await world.client.delete(path, headers=header), 404, "6200")
        restored = await world.client.post(f"{path}/restore", json={"restore": {}}, headers=header)
        check_error("restore_backup", restored, 404, "6200")
        check_error("show_backup", await world.client.get(path), 403, "8600")
    check_error("show_backup", await world.client.get(world.v3("backups/manualbk_12ab")), 400, "9900")
    assert await world.one("SELECT status FROM backups") == "available"


async def test_reader_may_look_only(world: World) -> None:
    """A read-only role lists and shows, and may not rename, delete or restore."""
    _, (backup,) = await world.backed_up(await world.add_vault([await world.add_resource()]))
    reader, path = reader_of(world), world.v3(f"backups/{backup}")
    check_answer("show_backup", await world.client.get(path, headers=reader))
    for operation, answer in (
        ("update_backup", await world.client.put(path, json={"backup": {"name": "x"}}, headers=reader)),
        ("delete_backup", await world.client.delete(path, headers=reader)),
        ("restore_backup", await world.client.post(f"{path}/restore", json={"restore": {}}, headers=reader)),
    ):
        check_error(operation, answer, 403, "8600")


# --- update ---------------------------------------------------------------------------------------------------------


async def test_rename(world: World) -> None:
    """The name is changed and nothing else; bad names are 9900."""
    _, (backup,) = await world.backed_up(await world.add_vault([await world.add_resource()]))
    path = world.v3(f"backups/{backup}")
    before = check_answer("show_backup", await world.client.get(path))["backup"]
    body = {"backup": {"name": "备份-1", "description": "ignored", "status": "error"}}
    after = check_answer("update_backup", await world.client.put(path, json=body))["backup"]
    assert after == {**before, "name": "备份-1", "updated_at": after["updated_at"]}
    for bad in ({}, {"backup": {}}, {"backup": {"name": None}}, {"backup": {"name": ""}}, {"backup": {"name": "a/b"}},
                {"backup": {"name": "x" * 65}}, {"backup": {"name": 7}}, {"backup": []}, []):  # fmt: skip
        check_error("update_backup", await world.client.put(path, json=bad), 400, "9900")
    assert check_answer("show_backup", await world.client.get(path))["backup"]["name"] == "备份-1"


# --- delete ---------------------------------------------------------------------------------------------------------


async def test_delete(world: World) -> None:
    """DELETE is accepted with 204; the backup shows deleting, then 404; vault usage and counts drop."""
    vault = await world.add_vault([await world.add_resource()])
    _, (backup,) = await world.backed_up(vault)
    point, _ = await world.backed_up(vault)
    path = world.v3(f"backups/{backup}")
    answer = await world.client.delete(path)
    assert check_answer("delete_backup", answer) is None
    shown = check_answer("show_backup", await world.client.get(path))["backup"]
    assert shown["status"] == "deleting"
    counted = await world.client.get(world.v3(f"checkpoints/{point.id}"))
    assert counted.json()["checkpoint"]["vault"]["resources"][0]["backup_count"] == "1"
    check_error("delete_backup", await world.client.delete(path), 400, "6201")
    task = await world.claim("delete")
    await deletions.start_delete(world.database, task)
    await deletions.finish_delete(world.database, task, used_bytes=5_000_000, outcome={}, clock=world.clock)
    check_error("show_backup", await world.client.get(path), 404, "6200")
    check_error("delete_backup", await world.client.delete(path), 404, "6200")


async def test_delete_refused(world: World) -> None:
    """Deletes that the state forbids answer their code and change nothing; test_vault_locks.py has locked vaults."""
    resource = await world.add_resource()
    vault = await world.add_vault([resource])
    _, (older,) = await world.backed_up(vault, auto_trigger=True)
    _, (newest,) = await world.backed_up(vault)

    async def refused(backup: str, code: str) -> None:
        status = await world.one("SELECT status FROM backups WHERE id = %s", backup)
        answer = await world.client.delete(world.v3(f"backups/{backup}"))
        check_error("delete_backup", answer, 400, code)
        assert await world.one("SELECT status FROM backups WHERE id = %s", backup) == status

    task = await world.restored(newest)
    await refused(newest, "6216")
    await restores.commit_restore(world.database, task, {}, world.clock)
    await world.run(vault)
    running = str(await world.one("SELECT id FROM backups WHERE root IS NULL"))
    await refused(running, "6201")
    await refused(newest, "6216")
    await world.execute("UPDATE vault_resources SET protect_status = 'removing'")
    await refused(older, "6134")
    await world.execute("UPDATE vaults SET status = 'deleting'")
    await refused(older, "6112")
    await world.execute("UPDATE vaults SET status = 'available'")
    await world.execute("UPDATE vault_resources SET protect_status = 'protecting'")
    check_answer("delete_backup", await world.client.delete(world.v3(f"backups/{older}")))


async def test_delete_at_once(world: World) -> None:
    """Of many deletes of one backup at the same moment one is accepted."""
    _, (backup,) = await world.backed_up(await world.add_vault([await world.add_resource()]))
    path = world.v3(f"backups/{backup}")
    answers = await asyncio.gather(*(world.client.delete(path) for _ in range(5)))
    assert sorted(a.status_code for a in answers) == [204, 400, 400, 400, 400]
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'delete'") == 1


async def test_delete_failed_backup(world: World) -> None:
    """A backup in error, which never had a root, can be deleted."""
    vault = await world.add_vault([await world.add_resource()])
    await world.run(vault)
    await world.execute("UPDATE backups SET status = 'error'")
    await world.execute("DELETE FROM operation_logs")
    backup = str(await world.one("SELECT id FROM backups"))
    check_answer("delete_backup", await world.client.delete(world.v3(f"backups/{backup}")))
    job = await deletions.start_delete(world.database, await world.claim("delete"))
    assert job.backups == ((backup, None),)


# --- restore --------------------------------------------------------------------------------------------------------


async def test_restore_onto_the_source(world: World) -> None:
    """A restore without a target goes to the source; backup, point and resource show it; the log is the job."""
    disk = await world.add_resource(DISK)
    vault = await world.add_vault([disk], kind=DISK)
    point, (backup,) = await world.backed_up(vault)
    job = check_answer("restore_backup", await restore(world, backup, server_id=None, mappings=[], power_on=False))
    shown = check_answer("show_backup", await world.client.get(world.v3(f"backups/{backup}")))["backup"]
    assert shown["status"] == "waiting_restore"
    assert await world.one("SELECT protect_status FROM vault_resources") == "restoring"
    log = check_answer("show_op_log", await world.client.get(world.v3(f"operation-logs/{job['job_id']}")))
    assert log["operation_log"]["status"] == "waiting"
    assert log["operation_log"]["extra_info"]["restore"]["target_resource_id"] == disk
    task = await world.claim("restore")
    await restores.start_restore(world.database, task)
    await restores.commit_restore(world.database, task, {}, world.clock)
    log = check_answer("show_op_log", await world.client.get(world.v3(f"operation-logs/{job['job_id']}")))
    assert log["operation_log"]["status"] == "success"
    shown = check_answer("show_checkpoint", await world.client.get(world.v3(f"checkpoints/{point.id}")))["checkpoint"]
    assert shown["vault"]["resources"][0]["protect_status"] == "available"


async def test_restore_elsewhere(world: World) -> None:
    """volume_id and resource_id name another registered resource of the same kind, bound to a vault or not."""
    for kind, member in ((DISK, "volume_id"), (TURBO, "resource_id")):
        source, unbound, bound = [await world.add_resource(kind) for _ in range(3)]
        _, (backup,) = await world.backed_up(await world.add_vault([source], kind=kind))
        await world.add_vault([bound], kind=kind, name="other")
        for target in (unbound, bound):
            check_answer("restore_backup", await restore(world, backup, **{member: target}))
            task = await world.claim("restore")
            job = await restores.start_restore(world.database, task)
            assert (job.target.id, job.same_resource) == (target, False)
            await restores.commit_restore(world.database, task, {}, world.clock)


async def test_restore_refuses_targets(world: World) -> None:
    """Unknown, foreign, unregistered targets and those of another kind are refused; none turns into the source."""
    other, _ = await world.add_project()
    disk, folder = await world.add_resource(DISK), await world.add_resource()
    removed = await world.add_resource(DISK)
    await world.execute("UPDATE protectables SET removed_at = now() WHERE id = %s", removed)
    _, (of_disk,) = await world.backed_up(await world.add_vault([disk], kind=DISK))
    _, (of_folder,) = await world.backed_up(await world.add_vault([folder]))
    foreign_disk = await world.add_resource(DISK, project=other)
    for backup, members, status, code in (
        (of_disk, {"volume_id": new_id()}, 404, "7000"),
        (of_disk, {"volume_id": foreign_disk}, 404, "7000"),
        (of_disk, {"volume_id": removed}, 404, "7000"),
        (of_disk, {"volume_id": folder}, 404, "7000"),
        (of_folder, {"resource_id": new_id()}, 404, "6302"),
        (of_folder, {"resource_id": disk}, 404, "6302"),
        (of_disk, {"volume_id": "sda"}, 400, "9900"),
        (of_disk, {"volume_id": ""}, 400, "9900"),
        (of_disk, {"resource_id": new_id()}, 400, "9900"),
        (of_disk, {"server_id": new_id()}, 400, "9900"),
        (of_folder, {"volume_id": disk}, 400, "9900"),
        (of_disk, {"volume_id": 7}, 400, "9900"),
        (of_disk, {"force": "yes"}, 400, "9900"),
        (of_disk, {"mappings": [{}]}, 400, "9900"),
    ):
        body = check_error("restore_backup", await restore(world, backup, **members), status, code)
        assert "BackupService" not in body["error_msg"]
    for raw in (b"", b"{}", b'{"restore":null}', b'{"restore":[]}', b"[]", b"{"):
        answer = await world.client.post(world.v3(f"backups/{of_disk}/restore"), content=raw)
        check_error("restore_backup", answer, 400, "9900")
    await world.execute("UPDATE protectables SET removed_at = now() WHERE id = %s", disk)
    check_error("restore_backup", await restore(world, of_disk), 404, "7000")
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'restore'") == 0
    assert await world.one("SELECT count(*) FROM backups WHERE status <> 'available'") == 0


async def test_restore_refuses_states(world: World) -> None:
    """Busy targets 2010, 2002 and 6134, backup states 2005, vault states 6202; nothing is half begun."""
    resource, target = await world.add_resource(), await world.add_resource()
    vault = await world.add_vault([resource, target])
    _, (first,) = await world.backed_up(vault, resource_ids=(resource,))
    _, (second,) = await world.backed_up(vault, resource_ids=(resource,))
    task = await world.restored(first)
    check_error("restore_backup", await restore(world, second), 400, "2010")
    check_error("restore_backup", await restore(world, first), 400, "2010")
    check_error("restore_backup", await restore(world, first, resource_id=target), 400, "2005")
    await restores.commit_restore(world.database, task, {}, world.clock)
    await world.run(vault, resource_ids=(target,))
    check_error("restore_backup", await restore(world, first, resource_id=target), 400, "2002")
    await world.execute("UPDATE vault_resources SET protect_status = 'removing' WHERE resource_id = %s", resource)
    check_error("restore_backup", await restore(world, first), 400, "6134")
    free = await world.add_resource()
    check_error("restore_backup", await restore(world, first, resource_id=free), 400, "6134")
    await world.execute("UPDATE vault_resources SET protect_status = 'available'")
    for status in ("deleting", "error"):
        await world.execute("UPDATE backups SET status = %s WHERE id = %s", status, second)
        check_error("restore_backup", await restore(world, second), 400, "2005")
    running = str(await world.one("SELECT id FROM backups WHERE root IS NULL"))
    check_error("restore_backup", await restore(world, running, resource_id=resource), 400, "2005")
    await world.execute("UPDATE vaults SET status = 'frozen'")
    check_error("restore_backup", await restore(world, first), 400, "6202")
    assert await world.one("SELECT status FROM backups WHERE id = %s", first) == "available"
    assert await world.one("SELECT count(*) FROM operation_logs WHERE status = 'waiting'") == 1


async def test_restores_at_once(world: World) -> None:
    """Restores of many backups, of two vaults, onto one unbound target: one is accepted, the others get 2010."""
    target = await world.add_resource()
    backups = []
    for name in ("left", "right"):
        vault = await world.add_vault([await world.add_resource()], name=name)
        backups += [(await world.backed_up(vault))[1][0] for _ in range(3)]
    answers = await asyncio.gather(*(restore(world, backup, resource_id=target) for backup in backups))
    assert sorted(a.status_code for a in answers) == [202, 400, 400, 400, 400, 400]
    for answer in answers:
        if answer.status_code == 400:
            check_error("restore_backup", answer, 400, "2010")
    assert await world.one("SELECT count(*) FROM backups WHERE status <> 'available'") == 1


async def test_restore_meets_backup(world: World) -> None:
    """A restore and a checkpoint of one resource at the same moment: one of them goes, the other is told why."""
    for _ in range(5):
        vault = await world.add_vault([await world.add_resource()])
        _, (backup,) = await world.backed_up(vault)
        restored, created = await asyncio.gather(
            restore(world, backup),
            world.client.post(world.v3("checkpoints"), json={"checkpoint": {"vault_id": vault}}),
        )
        if restored.status_code == 202:
            check_error("create_checkpoint", created, 400, "0001")
        else:
            check_error("restore_backup", restored, 400, "2002")
            check_answer("create_checkpoint", created)
        await world.execute("DELETE FROM operation_logs")
