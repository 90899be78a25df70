"""addresources and removeresources, against the contract; the codes of every refusal, and two clients at once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from in_process_api import PROJECT_A, PROJECT_B, InProcessApi, Person

from strongroom.base.ids import new_id
from strongroom.control.resource_binding import Look

UNKNOWN = "00000000-0000-4000-8000-000000000000"
TURBO, DISK, SERVER = "OS::Sfs::Turbo", "OS::Cinder::Volume", "OS::Nova::Server"
GIB = 1 << 30


async def new_vault(person: Person, object_type: str = "turbo", **members: Any) -> str:
    protect_type = members.pop("protect_type", "backup")
    billing = {
        "consistent_level": "crash_consistent",
        "object_type": object_type,
        "protect_type": protect_type,
        "size": 10,
        "cloud_type": members.pop("cloud_type", "public"),
    }
    body = {"vault": {"name": "v", "resources": [], "billing": billing, **members}}
    return str(check_answer("create_vault", await person.post("/vaults", json=body))["vault"]["id"])


async def shown(person: Person, vault_id: str) -> dict[str, Any]:
    vault: dict[str, Any] = check_answer("show_vault", await person.get(f"/vaults/{vault_id}"))["vault"]
    return vault


async def add(person: Person, vault_id: str, *resources: dict[str, Any]) -> Any:
    return await person.post(f"/vaults/{vault_id}/addresources", json={"resources": list(resources)})


async def remove(person: Person, vault_id: str, *ids: str) -> Any:
    return await person.post(f"/vaults/{vault_id}/removeresources", json={"resource_ids": list(ids)})


async def server(api: InProcessApi, name: str) -> str:
    """A registered server: this version's operator call makes none yet, its vaults already take them."""
    server_id = new_id()
    await api.execute(
        "INSERT INTO protectables (id, project_id, type, resource_type, name, path, size_bytes, created_at) "
        "VALUES (%s, %s, 'server', %s, %s, %s, %s, now())",
        *(server_id, PROJECT_A, SERVER, name, f"/{name}".encode(), 40 * GIB),
    )
    return server_id


class SeesEverything:
    """For registrations that tests write themselves: a machine of 40 GB that is fine."""

    async def inspect(self, resource_id: str, resource_type: str, path: bytes, options: dict[str, object]) -> Look:
        return Look(size_bytes=40 * GIB, obstacle=None)


@pytest.fixture
async def machines(api: InProcessApi) -> InProcessApi:
    """The same application with an inspector that reaches servers."""
    object.__setattr__(api.services, "inspector", SeesEverything())
    return api


# --- add --------------------------------------------------------------------------------------------------------------


async def test_added_resources_are_echoed_in_order_and_shown(api: InProcessApi, tmp_path: Path) -> None:
    """The answer repeats the ids in the order of the request; the vault shows names, sizes and sums."""
    folders = [tmp_path / name for name in ("c", "a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_bytes(b"1234")
    ids = [await api.register(folder) for folder in folders]
    vault_id = await new_vault(api.alice)
    resources = [{"id": ids[0], "type": TURBO, "name": "my own name"}, *({"id": i, "type": TURBO} for i in ids[1:])]
    answer = check_answer("add_vault_resource", await add(api.alice, vault_id, *resources))
    assert answer == {"add_resource_ids": ids}
    vault = await shown(api.alice, vault_id)
    assert {resource["id"]: resource["name"] for resource in vault["resources"]} == dict(
        zip(ids, ["my own name", "a", "b"], strict=True)
    )
    assert vault["billing"]["allocated"] == sum(resource["size"] for resource in vault["resources"]) == 3
    assert vault["tags"] == []


async def test_more_resources_than_the_vault_is_large_are_taken(api: InProcessApi, tmp_path: Path) -> None:
    """An association is never refused for size: a 10 GB vault takes a sparse disk of 500 GB, and counts it."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(500 * GIB)
    disk_id = await api.register(image, type="disk")
    vault_id = await new_vault(api.alice, "disk")
    check_answer("add_vault_resource", await add(api.alice, vault_id, {"id": disk_id, "type": DISK}))
    vault = await shown(api.alice, vault_id)
    assert (vault["billing"]["size"], vault["billing"]["allocated"]) == (10, 500)


async def test_binding_looks_again_and_keeps_the_size(api: InProcessApi, tmp_path: Path) -> None:
    """The size is of the moment of binding, for the resource and for its registration."""
    image = tmp_path / "disk.raw"
    image.write_bytes(b"x")
    disk_id = await api.register(image, type="disk")
    with image.open("r+b") as file:
        file.truncate(3 * GIB)
    vault_id = await new_vault(api.alice, "disk")
    check_answer("add_vault_resource", await add(api.alice, vault_id, {"id": disk_id, "type": DISK}))
    assert (await shown(api.alice, vault_id))["resources"][0]["size"] == 3
    assert (await api.rows("SELECT size_bytes FROM protectables"))[0]["size_bytes"] == 3 * GIB


@pytest.mark.parametrize(("object_type", "type_name", "code"), [("turbo", TURBO, "6215"), ("disk", DISK, "7003")])
async def test_a_resource_that_vanished_is_not_bound(
    api: InProcessApi, tmp_path: Path, object_type: str, type_name: str, code: str
) -> None:
    """A path that went away since its registration is refused with the reason; back again, it is taken."""
    path = tmp_path / "source"
    make = path.mkdir if object_type == "turbo" else path.touch
    make()
    resource = {"id": await api.register(path, type=object_type), "type": type_name}
    path.rmdir() if object_type == "turbo" else path.unlink()
    vault_id = await new_vault(api.alice, object_type)
    error = check_error("add_vault_resource", await add(api.alice, vault_id, resource), 400, code)
    assert "No such file or directory" in error["error_msg"]
    assert (await shown(api.alice, vault_id))["resources"] == []
    make()
    check_answer("add_vault_resource", await add(api.alice, vault_id, resource))


async def test_unknown_and_foreign_resources_answer_alike(api: InProcessApi, tmp_path: Path) -> None:
    """Each type has its own not-found code; a resource of another tenant or of another type is not found either."""
    foreign = await api.register(tmp_path, project_id=PROJECT_B)
    own = await api.register(tmp_path)
    turbo, disk, machine = [await new_vault(api.alice, kind) for kind in ("turbo", "disk", "server")]
    for resource_id in (UNKNOWN, foreign):
        response = await add(api.alice, turbo, {"id": own, "type": TURBO}, {"id": resource_id, "type": TURBO})
        error = check_error("add_vault_resource", response, 404, "6302")
        assert error["error_msg"] == f"Resource {resource_id} does not exist."
    for resource_id in (UNKNOWN, own):
        response = await add(api.alice, disk, {"id": resource_id, "type": DISK})
        check_error("add_vault_resource", response, 404, "7000")
        response = await add(api.alice, machine, {"id": resource_id, "type": SERVER})
        check_error("add_vault_resource", response, 404, "7100")
    assert (await shown(api.alice, turbo))["resources"] == []


async def test_a_resource_is_in_one_vault_only(machines: InProcessApi, tmp_path: Path) -> None:
    """A second vault, or the same one again, is refused with the code of the type; nothing moves."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "disk").touch()
    folder = await machines.register(tmp_path / "folder")
    disk = await machines.register(tmp_path / "disk", type="disk")
    machine = await server(machines, "vm")
    for kind, resource, code in (
        ("turbo", {"id": folder, "type": TURBO}, "6103"),
        ("disk", {"id": disk, "type": DISK}, "7006"),
        ("server", {"id": machine, "type": SERVER}, "7116"),
    ):
        first, second = await new_vault(machines.alice, kind), await new_vault(machines.alice, kind)
        check_answer("add_vault_resource", await add(machines.alice, first, resource))
        check_error("add_vault_resource", await add(machines.alice, second, resource), 400, code)
        if kind != "server":
            check_error("add_vault_resource", await add(machines.alice, first, resource), 400, code)
        assert len((await shown(machines.alice, first))["resources"]) == 1
        assert (await shown(machines.alice, second))["resources"] == []
    replicas = await new_vault(machines.alice, "turbo", protect_type="replication")
    check_answer("add_vault_resource", await add(machines.alice, replicas, {"id": folder, "type": TURBO}))


async def test_a_server_added_again_gets_the_new_list_of_volumes(machines: InProcessApi) -> None:
    """Re-adding a server to its own vault overwrites exclude_volumes, and answers 200."""
    volume, other = new_id(), new_id()
    machine = await server(machines, "vm")
    vault_id = await new_vault(machines.alice, "server")
    for extra_info in (
        {"exclude_volumes": [volume]},
        {"include_volumes": [{"id": other, "os_version": "Debian 12"}]},
        {},
    ):
        resource = {"id": machine, "type": SERVER, "extra_info": extra_info}
        check_answer("add_vault_resource", await add(machines.alice, vault_id, resource))
        [seen] = (await shown(machines.alice, vault_id))["resources"]
        assert seen["extra_info"] == extra_info
        assert seen["size"] == 40


@pytest.mark.parametrize(
    ("object_type", "cloud_type", "resource", "code"),
    [
        ("turbo", "public", {"type": DISK}, "6102"),
        ("disk", "public", {"type": SERVER}, "6102"),
        ("server", "public", {"type": "OS::Native::Server"}, "6102"),
        ("turbo", "public", {"type": "OS::Floppy::Drive"}, "6116"),
        ("turbo", "public", {"type": ""}, "6116"),
        ("vmware", "hybrid", {"type": SERVER}, "6108"),
        ("turbo", "public", {"type": 5}, "9900"),
        ("turbo", "public", {"type": TURBO, "id": "folder"}, "9900"),
        ("turbo", "public", {"type": TURBO, "id": None}, "9900"),
        ("turbo", "public", {"type": TURBO, "name": "n" * 256}, "9900"),
        ("turbo", "public", {"type": TURBO, "name": "two\nlines"}, "9900"),
        ("turbo", "public", {"type": TURBO, "extra_info": {"exclude_volumes": [UNKNOWN]}}, "9900"),
        ("server", "public", {"type": SERVER, "extra_info": {"exclude_volumes": ["vdb"]}}, "9900"),
        ("server", "public", {"type": SERVER, "extra_info": {"exclude_volumes": [UNKNOWN] * 129}}, "9900"),
        ("server", "public", {"type": SERVER, "extra_info": {"include_volumes": [UNKNOWN]}}, "9900"),
        ("server", "public", {"type": SERVER, "extra_info": []}, "9900"),
    ],
)
async def test_a_resource_that_does_not_fit_is_refused(
    api: InProcessApi, object_type: str, cloud_type: str, resource: dict[str, Any], code: str
) -> None:
    """Wrong types, names and lists of volumes end with the contract's code, before anything is looked at."""
    vault_id = await new_vault(api.alice, object_type, cloud_type=cloud_type)
    response = await add(api.alice, vault_id, {"id": UNKNOWN, **resource})
    check_error("add_vault_resource", response, 400, code)


async def test_the_number_of_resources_is_limited(machines: InProcessApi, tmp_path: Path) -> None:
    """1-256 a call, 256 a vault, none twice; a refused call binds nothing."""
    ids = [new_id() for _ in range(257)]
    await machines.execute(
        "INSERT INTO protectables (id, project_id, type, resource_type, name, path, created_at) "
        "SELECT id, %s, 'turbo', %s, 'n', id::bytea, now() FROM unnest(%s::text[]) AS id",
        *(PROJECT_A, TURBO, ids),
    )
    resources = [{"id": resource_id, "type": TURBO} for resource_id in ids]
    vault_id = await new_vault(machines.alice)
    check_error("add_vault_resource", await add(machines.alice, vault_id), 400, "9900")
    check_error("add_vault_resource", await add(machines.alice, vault_id, *resources), 400, "6100")
    check_error("add_vault_resource", await add(machines.alice, vault_id, resources[0], resources[0]), 400, "6104")
    assert (await shown(machines.alice, vault_id))["resources"] == []
    check_answer("add_vault_resource", await add(machines.alice, vault_id, *resources[:256]))
    check_error("add_vault_resource", await add(machines.alice, vault_id, resources[256]), 400, "6100")
    assert len((await shown(machines.alice, vault_id))["resources"]) == 256
    body = {"vault": {"name": "v", "resources": resources, "billing": {"size": 10}}}
    body["vault"]["billing"] |= {
        "object_type": "turbo",
        "protect_type": "backup",
        "consistent_level": "crash_consistent",
    }
    check_error("create_vault", await machines.alice.post("/vaults", json=body), 400, "6100")


async def test_vaults_that_bind_the_same_resources_at_once(api: InProcessApi, tmp_path: Path) -> None:
    """Of many clients that bind the same resources in any order, one wins them all and the others answer 6103.

    Several rounds, because the deadlock this once found (rows locked in the order of a join) needed some luck.
    """
    for turn in range(6):
        folders = [tmp_path / f"{turn}-{i}" for i in range(8)]
        for folder in folders:
            folder.mkdir()
        resources = [{"id": await api.register(folder), "type": TURBO} for folder in folders]
        vaults = [await new_vault(api.alice) for _ in range(6)]
        requests = [resources if i % 2 else resources[::-1] for i in range(len(vaults))]
        answers = await asyncio.gather(
            *(add(api.alice, vault_id, *wanted) for vault_id, wanted in zip(vaults, requests, strict=True))
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [400] * 5
        for answer in answers:
            if answer.status_code == 400:
                check_error("add_vault_resource", answer, 400, "6103")
        counts = sorted([len((await shown(api.alice, vault_id))["resources"]) for vault_id in vaults])
        assert counts == [0] * 5 + [8]


async def test_binding_and_unregistering_at_once(api: InProcessApi, tmp_path: Path) -> None:
    """Whichever comes first wins: a resource is never bound without its registration, nor unregistered while bound."""
    vault_id = await new_vault(api.alice)
    for i in range(10):
        (tmp_path / str(i)).mkdir()
        resource_id = await api.register(tmp_path / str(i))
        added, removed = await asyncio.gather(
            add(api.alice, vault_id, {"id": resource_id, "type": TURBO}),
            api.oscar.delete(f"/ext/v1/admin/protectables/{resource_id}"),
        )
        assert (added.status_code, removed.status_code) in ((200, 400), (404, 204))
        bound_ids = [resource["id"] for resource in (await shown(api.alice, vault_id))["resources"]]
        assert (resource_id in bound_ids) == (added.status_code == 200)


async def test_resources_go_into_available_vaults_only(api: InProcessApi, tmp_path: Path) -> None:
    """A vault that is locked by its operator, frozen or in error takes none: 6112."""
    resource = {"id": await api.register(tmp_path), "type": TURBO}
    vault_id = await new_vault(api.alice)
    for status in ("lock", "frozen", "error"):
        await api.execute("UPDATE vaults SET status = %s", status)
        check_error("add_vault_resource", await add(api.alice, vault_id, resource), 400, "6112")


# --- remove -----------------------------------------------------------------------------------------------------------


async def bound(api: InProcessApi, tmp_path: Path, count: int, **vault: Any) -> tuple[str, list[str]]:
    """A vault with folders in it."""
    ids = []
    for i in range(count):
        (tmp_path / f"folder-{i}").mkdir()
        ids.append(await api.register(tmp_path / f"folder-{i}"))
    vault_id = await new_vault(api.alice, **vault)
    check_answer(
        "add_vault_resource", await add(api.alice, vault_id, *({"id": resource, "type": TURBO} for resource in ids))
    )
    return vault_id, ids


async def statuses(api: InProcessApi, vault_id: str) -> dict[str, str]:
    return {resource["id"]: resource["protect_status"] for resource in (await shown(api.alice, vault_id))["resources"]}


async def test_removal_is_a_task_and_shows_as_removing(api: InProcessApi, tmp_path: Path) -> None:
    """The answer repeats the ids in order, they say removing, the others stay, and one task names them all."""
    vault_id, ids = await bound(api, tmp_path, 3)
    answer = check_answer("remove_vault_resource", await remove(api.alice, vault_id, ids[2], ids[0]))
    assert answer == {"remove_resource_ids": [ids[2], ids[0]]}
    assert await statuses(api, vault_id) == {ids[0]: "removing", ids[1]: "available", ids[2]: "removing"}
    [task] = await api.rows("SELECT * FROM operation_logs")
    assert (task["operation_type"], task["status"], task["vault_id"]) == ("remove_resource", "waiting", vault_id)
    assert task["parameters"] == {"resources": [ids[2], ids[0]]}
    assert task["resource_id"] is None
    check_answer("remove_vault_resource", await remove(api.alice, vault_id, ids[1]))
    [task] = await api.rows("SELECT * FROM operation_logs WHERE resource_id IS NOT NULL")
    assert (task["resource_id"], task["resource_name"], task["resource_type"]) == (ids[1], "folder-1", TURBO)


async def test_refused_removals_change_nothing(api: InProcessApi, tmp_path: Path) -> None:
    """Ids that are malformed, repeated, unknown, foreign, of another vault or on the way out: the contract's codes."""
    vault_id, ids = await bound(api, tmp_path, 2)
    other = await new_vault(api.alice)
    foreign = await api.register(tmp_path, project_id=PROJECT_B)
    for wrong, code in (
        ([], "9900"),
        (["folder-0"], "9900"),
        ([ids[0]] * 2, "6104"),
        ([ids[0], UNKNOWN], "6135"),
        ([ids[0], foreign], "6135"),
        ([new_id() for _ in range(257)], "9900"),
    ):
        check_error("remove_vault_resource", await remove(api.alice, vault_id, *wrong), 400, code)
    check_error("remove_vault_resource", await remove(api.alice, other, ids[0]), 400, "6135")
    for body in ({}, {"resource_ids": ids[0]}, {"resource_ids": [1]}, {"resource_ids": None}):
        response = await api.alice.post(f"/vaults/{vault_id}/removeresources", json=body)
        check_error("remove_vault_resource", response, 400, "9900")
    assert await statuses(api, vault_id) == dict.fromkeys(ids, "available")
    assert await api.rows("SELECT 1 FROM operation_logs") == []
    check_answer("remove_vault_resource", await remove(api.alice, vault_id, ids[0]))
    check_error("remove_vault_resource", await remove(api.alice, vault_id, *ids), 400, "6134")
    response = await add(api.alice, vault_id, {"id": ids[0], "type": TURBO})
    check_error("add_vault_resource", response, 400, "6134")
    assert (await statuses(api, vault_id))[ids[1]] == "available"


@pytest.mark.parametrize(("status", "code"), [("protecting", "6125"), ("restoring", "2010"), ("removing", "6134")])
async def test_busy_resources_are_not_removed(api: InProcessApi, tmp_path: Path, status: str, code: str) -> None:
    """A resource under backup or restore stays, with its neighbours of the same call; one in error can go."""
    vault_id, ids = await bound(api, tmp_path, 2)
    await api.execute("UPDATE vault_resources SET protect_status = %s WHERE resource_id = %s", status, ids[1])
    check_error("remove_vault_resource", await remove(api.alice, vault_id, *ids), 400, code)
    assert await statuses(api, vault_id) == {ids[0]: "available", ids[1]: status}
    await api.execute("UPDATE vault_resources SET protect_status = 'error' WHERE resource_id = %s", ids[1])
    check_answer("remove_vault_resource", await remove(api.alice, vault_id, *ids))


@pytest.mark.parametrize(
    ("operation", "column", "code"),
    [("backup", "resource_id", "6125"), ("restore", "resource_id", "2010"), ("restore", "target_resource_id", "2010")],
)
async def test_a_waiting_task_keeps_its_resource(
    api: InProcessApi, tmp_path: Path, operation: str, column: str, code: str
) -> None:
    """A task that has not begun yet counts: its resource still says available, but cannot be removed under it."""
    vault_id, ids = await bound(api, tmp_path, 1)
    await api.execute(
        f"INSERT INTO operation_logs (id, project_id, operation_type, status, vault_id, {column}, request_id, "
        "created_at, updated_at) VALUES (%s, %s, %s, 'waiting', %s, %s, 'q', now(), now())",
        *(new_id(), PROJECT_A, operation, vault_id, ids[0]),
    )
    check_error("remove_vault_resource", await remove(api.alice, vault_id, ids[0]), 400, code)
    assert await statuses(api, vault_id) == {ids[0]: "available"}


async def test_a_locked_vault_keeps_its_resources(api: InProcessApi, tmp_path: Path) -> None:
    """Removal would delete backups, so a locked vault refuses it."""
    vault_id, ids = await bound(api, tmp_path, 1, locked=True)
    check_error("remove_vault_resource", await remove(api.alice, vault_id, ids[0]), 400, "6112")


async def test_removals_at_once_make_one_task_per_resource(api: InProcessApi, tmp_path: Path) -> None:
    """Of ten removals of one resource at once one is accepted, the others answer 6134."""
    vault_id, ids = await bound(api, tmp_path, 1)
    answers = await asyncio.gather(*(remove(api.alice, vault_id, ids[0]) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 9
    assert len(await api.rows("SELECT 1 FROM operation_logs")) == 1


async def test_a_reader_neither_adds_nor_removes(api: InProcessApi, tmp_path: Path) -> None:
    """The read-only role gets 403 before anything is looked up."""
    vault_id, ids = await bound(api, tmp_path, 1)
    response = await add(api.rita, vault_id, {"id": ids[0], "type": TURBO})
    check_error("add_vault_resource", response, 403, "8600")
    check_error("remove_vault_resource", await remove(api.rita, vault_id, ids[0]), 403, "8600")
