"""What tenants see as protectable, and what operators register, against the contract and the file system."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from in_process_api import PROJECT_A, PROJECT_B, InProcessApi, Person

from strongroom.base.ids import new_id

UNKNOWN = "00000000-0000-4000-8000-000000000000"
TURBO, DISK = "OS::Sfs::Turbo", "OS::Cinder::Volume"
GIB = 1 << 30
ADMIN = "/ext/v1/admin/protectables"


async def new_vault(person: Person, resource_id: str, **billing: Any) -> dict[str, Any]:
    members = {"consistent_level": "crash_consistent", "object_type": "turbo", "protect_type": "backup", "size": 10}
    resources = [{"id": resource_id, "type": TURBO}]
    body = {"vault": {"name": "v", "resources": resources, "billing": members | billing}}
    vault: dict[str, Any] = check_answer("create_vault", await person.post("/vaults", json=body))["vault"]
    return vault


async def instances(person: Person, query: str = "", kind: str = "turbo") -> list[dict[str, Any]]:
    answer = check_answer("list_protectable", await person.get(f"/protectables/{kind}/instances{query}"))
    found: list[dict[str, Any]] = answer["instances"]
    return found


def registration(path: Path | str, /, **members: Any) -> dict[str, Any]:
    return {"protectable": {"project_id": PROJECT_A, "type": "turbo", "name": "n", "path": str(path), **members}}


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


# --- the tenant's side ------------------------------------------------------------------------------------------------


async def test_a_registered_folder_can_be_protected(api: InProcessApi, tmp_path: Path) -> None:
    """List and show agree; the entry says yes, carries no path of the host, and is of its own type and tenant only."""
    (tmp_path / "file").write_bytes(b"1")
    resource_id = await api.register(tmp_path, name="projects")
    expected = {
        "id": resource_id,
        "name": "projects",
        "type": TURBO,
        "size": 1,
        "status": "available",
        "children": [],
        "detail": {},
        "protectable": {"result": True, "code": None, "reason": None, "message": None, "vault": None},
    }
    assert await instances(api.alice) == [expected]
    path = f"/protectables/turbo/instances/{resource_id}"
    assert check_answer("show_protectable", await api.alice.get(path)) == {"instance": expected}
    assert await instances(api.rita) == [expected]
    for kind in ("disk", "server", "workspace", "workspace_v2"):
        assert await instances(api.alice, kind=kind) == []
    assert await instances(api.bob) == []


async def test_a_bound_one_shows_its_vault_in_full(api: InProcessApi, tmp_path: Path) -> None:
    """protectable.result is false with the code clients know, and `vault` is the object GET vault answers."""
    resource_id = await api.register(tmp_path)
    vault = await new_vault(api.alice, resource_id)
    [entry] = await instances(api.alice)
    verdict = entry["protectable"]
    assert (verdict["result"], verdict["code"]) == (False, "BackupService.6103")
    assert (
        verdict["vault"] == vault == check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"]
    )
    assert vault["id"] in verdict["reason"] == verdict["message"]
    path = f"/protectables/turbo/instances/{resource_id}"
    assert check_answer("show_protectable", await api.alice.get(path))["instance"] == entry
    check_answer("delete_vault", await api.alice.delete(f"/vaults/{vault['id']}"))
    assert (await instances(api.alice))[0]["protectable"]["result"] is True


async def test_a_vault_of_replicas_counts_after_one_of_backups(api: InProcessApi, tmp_path: Path) -> None:
    """A resource in a backup vault and a replication vault shows the backup vault."""
    resource_id = await api.register(tmp_path)
    replicas = await new_vault(api.alice, resource_id, protect_type="replication")
    assert (await instances(api.alice))[0]["protectable"]["vault"]["id"] == replicas["id"]
    backups = await new_vault(api.alice, resource_id)
    assert (await instances(api.alice))[0]["protectable"]["vault"]["id"] == backups["id"]


async def test_one_that_vanished_says_so_after_a_look(api: InProcessApi, tmp_path: Path) -> None:
    """A failed look marks the registration, a good one clears it; its last size stays known."""
    source = folder(tmp_path, "source")
    (source / "file").write_bytes(b"1")
    resource_id = await api.register(source)
    (source / "file").unlink()
    source.rmdir()
    billing = {"consistent_level": "crash_consistent", "object_type": "turbo", "protect_type": "backup", "size": 10}
    body = {"vault": {"name": "v", "resources": [{"id": resource_id, "type": TURBO}], "billing": billing}}
    check_error("create_vault", await api.alice.post("/vaults", json=body), 400, "6215")
    [entry] = await instances(api.alice)
    assert (entry["status"], entry["size"], entry["protectable"]["result"]) == ("error", 1, False)
    assert entry["protectable"]["code"] == "BackupService.6215"
    assert await instances(api.alice, "?status=error") == [entry]
    source.mkdir()
    check_answer("create_vault", await api.alice.post("/vaults", json=body))
    assert (await instances(api.alice))[0]["status"] == "available"


async def test_filters_and_pages(api: InProcessApi, tmp_path: Path) -> None:
    """Filters are exact; pages hold at most 50, by offset and by marker, newest first, and end empty."""
    ids = [new_id() for _ in range(120)]
    await api.execute(
        "INSERT INTO protectables (id, project_id, type, resource_type, name, path, created_at) "
        "SELECT id, %s, 'turbo', %s, 'n' || n, id::bytea, timestamptz '2026-01-01' + n / 3 * interval '1 minute' "
        "FROM unnest(%s::text[]) WITH ORDINALITY AS t(id, n)",
        *(PROJECT_A, TURBO, ids),
    )
    answer = check_answer("list_protectable", await api.alice.get("/protectables/turbo/instances"))
    assert (len(answer["instances"]), answer["count"]) == (50, 120)
    by_offset = [e["id"] for offset in (0, 50, 100, 150) for e in await instances(api.alice, f"?offset={offset}")]
    by_marker: list[str] = []
    while page := await instances(api.alice, f"?limit=7&marker={by_marker[-1]}" if by_marker else "?limit=7"):
        by_marker += [entry["id"] for entry in page]
    assert by_offset == by_marker
    assert sorted(by_offset) == sorted(ids)
    for query, expected in {
        "?name=n7": [ids[6]],
        "?name=n": [],
        f"?id={ids[3]}": [ids[3]],
        f"?id={UNKNOWN}": [],
        "?status=deleted": [],
        f"?name=n7&id={ids[3]}": [],
        "?enterprise_project_id=other": [],
        "?name=n7&enterprise_project_id=0": [ids[6]],
        "?name=n7&enterprise_project_id=all_granted_eps": [ids[6]],
        f"?server_id={ids[3]}": [],
    }.items():
        assert [entry["id"] for entry in await instances(api.alice, query)] == expected, query


async def test_server_id_finds_the_server_itself(api: InProcessApi) -> None:
    """One client asks for type server with server_id and takes the first entry."""
    machine = new_id()
    for server_id in (machine, new_id()):
        await api.execute(
            "INSERT INTO protectables (id, project_id, type, resource_type, name, path, created_at) "
            "VALUES (%s, %s, 'server', 'OS::Nova::Server', 'vm', %s, now())",
            *(server_id, PROJECT_A, server_id.encode()),
        )
    assert [entry["id"] for entry in await instances(api.alice, f"?server_id={machine}", "server")] == [machine]


@pytest.mark.parametrize(
    "path",
    [
        "tape/instances",
        "native/instances",
        "turbo/instances?limit=51",
        "turbo/instances?limit=0",
        "turbo/instances?offset=-1",
        "turbo/instances?marker=x",
        f"turbo/instances?marker={UNKNOWN}",
        "turbo/instances?id=x",
        "turbo/instances?server_id=x",
        "turbo/instances?enterprise_project_id=a%2Fb",
    ],
)
async def test_a_bad_list_is_refused(api: InProcessApi, path: str) -> None:
    """A type, filter or page outside the contract ends as 400 9900."""
    check_error("list_protectable", await api.alice.get(f"/protectables/{path}"), 400, "9900")


async def test_missing_and_foreign_ones_answer_alike(api: InProcessApi, tmp_path: Path) -> None:
    """Each type has its own not-found code; another tenant's resource, and one of another type, is not there."""
    foreign = await api.register(tmp_path, project_id=PROJECT_B)
    own = await api.register(tmp_path)
    for kind, code, ids in (
        ("turbo", "6302", (UNKNOWN, foreign)),
        ("disk", "7000", (UNKNOWN, own)),
        ("server", "7100", (UNKNOWN, own)),
        ("workspace", "6302", (UNKNOWN,)),
    ):
        for resource_id in ids:
            response = await api.alice.get(f"/protectables/{kind}/instances/{resource_id}")
            check_error("show_protectable", response, 404, code)
    for path in ("turbo/instances/name", f"tape/instances/{own}"):
        check_error("show_protectable", await api.alice.get(f"/protectables/{path}"), 400, "9900")


# --- the operator's side ----------------------------------------------------------------------------------------------


async def test_a_registration_is_inspected_and_shown_back(api: InProcessApi, tmp_path: Path) -> None:
    """201 carries everything that was asked for, the size just seen, and the path as text and as bytes."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(2 * GIB)
    body = registration(
        f"{tmp_path}//./disk.raw",
        type="disk",
        name="system disk",
        exclude=["*.tmp"],
        one_file_system=True,
        read_limit_bytes_s=1 << 20,
        privileged=True,
    )
    response = await api.oscar.post(ADMIN, json=body)
    assert response.status_code == 201, response.text
    made = response.json()["protectable"]
    assert made == {
        "id": made["id"],
        "project_id": PROJECT_A,
        "type": "disk",
        "resource_type": DISK,
        "name": "system disk",
        "path": str(image),
        "path_b64": base64.b64encode(os.fsencode(image)).decode(),
        "size": 2,
        "size_bytes": 2 * GIB,
        "status": "available",
        "worker_group": "default",
        "source_host": "",
        "options": {
            "exclude": ["*.tmp"],
            "one_file_system": True,
            "read_limit_bytes_s": 1 << 20,
            "privileged": True,
        },
        "machine": {},
        "created_at": made["created_at"],
    }
    for query in ("", f"?project_id={PROJECT_A}"):
        assert (await api.oscar.get(ADMIN + query)).json() == {"protectables": [made], "count": 1}
    assert (await api.oscar.get(f"{ADMIN}?project_id={PROJECT_B}")).json() == {"protectables": [], "count": 0}
    assert (await api.oscar.get(f"{ADMIN}?offset=5")).json() == {"protectables": [], "count": 1}


async def test_a_path_that_is_not_utf8_can_be_registered(api: InProcessApi, tmp_path: Path) -> None:
    """path_b64 carries exact bytes; the text form shows what is not UTF-8 as %XX."""
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(raw)
    body = registration("")
    body["protectable"] |= {"path": None, "path_b64": base64.b64encode(raw).decode()}
    response = await api.oscar.post(ADMIN, json=body)
    assert response.status_code == 201, response.text
    made = response.json()["protectable"]
    assert base64.b64decode(made["path_b64"]) == raw
    assert made["path"] == f"{tmp_path}/caf%E9"
    [row] = await api.rows("SELECT path FROM protectables")
    assert bytes(row["path"]) == raw


async def test_what_cannot_be_protected_is_not_registered(api: InProcessApi, tmp_path: Path) -> None:
    """A path that is missing or of the wrong kind is refused with the reason; no row is left."""
    (tmp_path / "file").touch()
    for body, code in (
        (registration(tmp_path / "missing"), "6215"),
        (registration(tmp_path / "file"), "6215"),
        (registration(tmp_path / "missing", type="disk"), "7003"),
        (registration(tmp_path, type="disk"), "7003"),
    ):
        error = check_error("show_protectable", await api.oscar.post(ADMIN, json=body), 400, code)
        assert str(tmp_path) in error["error_msg"]
    assert await api.rows("SELECT 1 FROM protectables") == []


@pytest.mark.parametrize(
    "members",
    [
        {"type": "server"},
        {"type": None},
        {"project_id": "a"},
        {"project_id": "A" * 32},
        {"name": ""},
        {"name": "n" * 256},
        {"name": "a\tb"},
        {"path": "relative/path"},
        {"path": ""},
        {"path": "/srv/../etc"},
        {"path": "/" + "p" * 4096},
        {"path": None},
        {"path": 7},
        {"path_b64": "L2V0Yw=="},
        {"path": None, "path_b64": "not base64!"},
        {"path": None, "path_b64": "L2EAYg=="},
        {"path": None, "path_b64": "é"},
        {"exclude": "*.tmp"},
        {"exclude": [""]},
        {"exclude": ["x"] * 1001},
        {"exclude": ["x" * 4097]},
        {"one_file_system": "yes"},
        {"read_limit_bytes_s": 0},
        {"read_limit_bytes_s": -5},
        {"read_limit_bytes_s": 2**80},
        {"privileged": 1},
    ],
    ids=lambda members: str(members)[:40],
)
async def test_a_bad_registration_is_refused(api: InProcessApi, tmp_path: Path, members: dict[str, Any]) -> None:
    """Wrong types and values outside their limits end as 400 9900."""
    response = await api.oscar.post(ADMIN, json=registration(tmp_path, **members))
    check_error("show_protectable", response, 400, "9900")
    assert await api.rows("SELECT 1 FROM protectables") == []


async def test_a_path_is_registered_once_per_project(api: InProcessApi, tmp_path: Path) -> None:
    """However spelled, the same folder is refused a second time; another project may have it; a removed one is free."""
    first = await api.register(tmp_path)
    for spelling in (tmp_path, f"{tmp_path}/", f"/{tmp_path}", f"{tmp_path}/."):
        check_error("show_protectable", await api.oscar.post(ADMIN, json=registration(spelling)), 400, "9900")
    await api.register(tmp_path, project_id=PROJECT_B)
    assert (await api.oscar.delete(f"{ADMIN}/{first}")).status_code == 204
    second = await api.register(tmp_path)
    assert [entry["id"] for entry in await instances(api.alice)] == [second]
    unknown_project = await api.oscar.post(ADMIN, json=registration(tmp_path, project_id="c" * 32))
    check_error("show_protectable", unknown_project, 404, "9900")


async def test_a_bound_registration_stays(api: InProcessApi, tmp_path: Path) -> None:
    """Removal is refused while a vault has it or a restore writes to it; afterwards it is gone for tenants."""
    resource_id = await api.register(tmp_path)
    vault = await new_vault(api.alice, resource_id)
    error = check_error("show_protectable", await api.oscar.delete(f"{ADMIN}/{resource_id}"), 400, "6103")
    assert vault["id"] in error["error_msg"]
    check_answer("delete_vault", await api.alice.delete(f"/vaults/{vault['id']}"))
    await api.execute(
        "INSERT INTO operation_logs (id, project_id, operation_type, status, target_resource_id, request_id, "
        "created_at, updated_at) VALUES (%s, %s, 'restore', 'waiting', %s, 'q', now(), now())",
        *(new_id(), PROJECT_A, resource_id),
    )
    check_error("show_protectable", await api.oscar.delete(f"{ADMIN}/{resource_id}"), 400, "2010")
    # An open restore to another resource does not hold this one.
    await api.execute("UPDATE operation_logs SET target_resource_id = %s WHERE status = 'waiting'", UNKNOWN)
    assert (await api.oscar.delete(f"{ADMIN}/{resource_id}")).status_code == 204
    assert await instances(api.alice) == []
    check_error("show_protectable", await api.oscar.delete(f"{ADMIN}/{resource_id}"), 404, "6302")
    check_error("show_protectable", await api.oscar.delete(f"{ADMIN}/{UNKNOWN}"), 404, "6302")
    check_error("show_protectable", await api.oscar.delete(f"{ADMIN}/name"), 400, "9900")
    gone = await api.alice.get(f"/protectables/turbo/instances/{resource_id}")
    check_error("show_protectable", gone, 404, "6302")
    body = {"resources": [{"id": resource_id, "type": TURBO}]}
    empty = await new_vault(api.alice, await api.register(folder(tmp_path, "other")))
    response = await api.alice.post(f"/vaults/{empty['id']}/addresources", json=body)
    check_error("add_vault_resource", response, 404, "6302")


async def test_only_the_operator_registers(api: InProcessApi, tmp_path: Path) -> None:
    """Tenants, whatever their role, cannot see or change registrations of paths."""
    resource_id = await api.register(tmp_path)
    for person, status, code in ((api.alice, 403, "8600"), (api.rita, 403, "8600"), (api.nobody, 401, "APIGW.0301")):
        for response in (
            await person.get(ADMIN),
            await person.post(ADMIN, json=registration(tmp_path)),
            await person.delete(f"{ADMIN}/{resource_id}"),
        ):
            check_error("show_protectable", response, status, code)
    for query in ("project_id=x", "limit=0", "limit=1001", "offset=-1"):
        check_error("show_protectable", await api.oscar.get(f"{ADMIN}?{query}"), 400, "9900")
