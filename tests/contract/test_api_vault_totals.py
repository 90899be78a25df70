"""summary, storage_usage, batch-update and external vaults, against the contract; nothing of other tenants in them."""

from pathlib import Path
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from in_process_api import CALLERS, DOMAIN, PROJECT_A, PROJECT_B, InProcessApi
from test_api_vaults import GIB, MIB, UNKNOWN, create, insert_backup

from strongroom.base.ids import new_id

TURBO = "OS::Sfs::Turbo"


async def test_the_summary_adds_up_the_vaults_of_the_project(api: InProcessApi) -> None:
    """size and used_size are GB over all vaults of the project, and 0 without any."""
    assert check_answer("show_summary", await api.rita.get("/vaults/summary")) == {"size": 0, "used_size": 0}
    for size, used in ((10, GIB), (10485760, GIB // 2), (20, 0)):
        vault = await create(api.alice, billing_size=size)
        await api.execute("UPDATE vaults SET used_bytes = %s WHERE id = %s", used, vault["id"])
    await create(api.bob, billing_size=77)
    assert check_answer("show_summary", await api.rita.get("/vaults/summary")) == {"size": 10485790, "used_size": 2}


async def test_storage_usage_tells_what_each_resource_takes_up(api: InProcessApi) -> None:
    """Restore points that are there are summed over vaults, by resource; failed and deleted ones are not."""
    plain, multi = await create(api.alice), await create(api.alice, billing_is_multi_az=True)
    first, second = sorted([new_id(), new_id()])
    for vault, resource, status, stored in (
        (plain, first, "available", 3 * MIB),
        (multi, first, "restoring", MIB + 1),
        (plain, first, "error", MIB),
        (plain, first, "deleting", MIB),
        (multi, second, "available", 1),
    ):
        await insert_backup(api, vault, resource, status, stored)
    name = {"resource_name": "r", "resource_type": TURBO}
    rows = [
        {"resource_id": first, **name, "backup_count": 2, "backup_size": 5, "backup_size_multiaz": 2},
        {"resource_id": second, **name, "backup_count": 1, "backup_size": 1, "backup_size_multiaz": 1},
    ]
    for query, expected, count in (
        ("", rows, 2),
        (f"?resource_id={second}", rows[1:], 1),
        (f"?resource_type={TURBO}", rows, 2),
        ("?resource_type=OS::Cinder::Volume", [], 0),
        ("?limit=1", rows[:1], 2),
        ("?limit=1&offset=1", rows[1:], 2),
        ("?offset=2", [], 2),
    ):
        answer = check_answer("show_storage_usage", await api.rita.get(f"/storage_usage{query}"))
        assert answer == {"storage_usage": expected, "resource_count": count}, query
    assert check_answer("show_storage_usage", await api.bob.get("/storage_usage"))["storage_usage"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "offset=-1", "offset=9999999999", "resource_id=x"])
async def test_a_bad_query_of_storage_usage_is_refused(api: InProcessApi, query: str) -> None:
    """Values outside the contract end as 400 9900."""
    check_error("show_storage_usage", await api.alice.get(f"/storage_usage?{query}"), 400, "9900")


async def test_a_batch_update_changes_all_vaults_of_the_project(api: InProcessApi) -> None:
    """Every vault gets what is named; those on their way out, members that are not named and other projects stay."""
    vaults = [await create(api.alice, name=f"v{i}") for i in range(3)]
    foreign = await create(api.bob)
    await api.execute("UPDATE vaults SET status = 'deleting' WHERE id = %s", vaults[0]["id"])
    await api.execute("UPDATE vaults SET status = 'error' WHERE id = %s", vaults[1]["id"])
    body: dict[str, Any] = {"vault": {"threshold": 33}}
    answer = check_answer("batch_update_vault", await api.alice.put("/vaults/batch-update", json=body))
    assert answer == {"updated_vaults_id": [vaults[2]["id"], vaults[1]["id"]]}
    body = {"vault": {"smn_notify": False, "unknown": 1}}
    check_answer("batch_update_vault", await api.alice.put("/vaults/batch-update", json=body))
    listed = check_answer("list_vault", await api.alice.get("/vaults"))["vaults"]
    assert {v["name"]: (v["threshold"], v["smn_notify"]) for v in listed} == {
        "v0": (80, True),
        "v1": (33, False),
        "v2": (33, False),
    }
    nothing = check_answer("batch_update_vault", await api.alice.put("/vaults/batch-update", json={"vault": {}}))
    assert nothing == {"updated_vaults_id": []}
    assert check_answer("show_vault", await api.bob.get(f"/vaults/{foreign['id']}"))["vault"] == foreign
    for bad in ({"threshold": 0}, {"threshold": 101}, {"threshold": "80"}, {"smn_notify": 1}, None, []):
        refused = await api.alice.put("/vaults/batch-update", json={"vault": bad})
        check_error("batch_update_vault", refused, 400, "9900")
    refused = await api.rita.put("/vaults/batch-update", json={"vault": {"threshold": 1}})
    check_error("batch_update_vault", refused, 403, "8600")


async def test_external_vaults_are_shown_to_members_of_their_project(api: InProcessApi) -> None:
    """Vaults of another project are listed for who may list them there; for others it looks as if there were none."""
    await create(api.bob, name="plain")
    await create(api.bob, name="replicas", billing_object_type="server", billing_protect_type="replication")
    own = await create(api.alice, name="own")

    async def names(query: str) -> list[str]:
        answer = check_answer("list_external_vault", await api.alice.get(f"/vaults/external?{query}"))
        assert answer["count"] == len(answer["vaults"])
        return [vault["name"] for vault in answer["vaults"]]

    here = "region_id=eu-de&external_project_id="
    assert await names(here + PROJECT_A) == ["own"]
    assert await names(here + PROJECT_B) == await names(here + "c" * 32) == []
    alice = CALLERS["token-of-alice"].user_id
    await api.execute(
        "INSERT INTO users (id, domain_id, name, password_hash, created_at) VALUES (%s, %s, 'alice', 'x', now())",
        *(alice, DOMAIN),
    )
    await api.execute("INSERT INTO role_assignments VALUES (%s, %s, 'CBR ReadOnlyAccess')", alice, PROJECT_B)
    for query, expected in (
        (here + PROJECT_B, ["replicas", "plain"]),
        (here + PROJECT_B + "&protect_type=replication", ["replicas"]),
        (here + PROJECT_B + "&objcet_type=turbo", ["plain"]),
        (here + PROJECT_B + "&object_type=server&cloud_type=public", ["replicas"]),
        (here + PROJECT_B + f"&vault_id={own['id']}", []),
        (f"region_id=elsewhere&external_project_id={PROJECT_B}", []),
    ):
        assert await names(query) == expected, query
    page = check_answer("list_external_vault", await api.alice.get(f"/vaults/external?{here}{PROJECT_B}&limit=1"))
    assert (len(page["vaults"]), page["count"]) == (1, 2)
    await api.execute("UPDATE projects SET enabled = false WHERE id = %s", PROJECT_B)
    assert await names(here + PROJECT_B) == []
    for bad in ("", "region_id=eu-de", f"external_project_id={PROJECT_B}", here + "x", here + PROJECT_B + "&limit=0"):
        check_error("list_external_vault", await api.alice.get(f"/vaults/external?{bad}"), 400, "9900")


async def test_resources_are_suspended_and_taken_back(api: InProcessApi, tmp_path: Path) -> None:
    """suspend turns auto_protect off, unsuspend on; a resource of no or another vault refuses the whole call."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first, second = [{"id": await api.register(folder), "type": TURBO} for folder in folders]
    vault = await create(api.alice, resources=[first])
    other = await create(api.alice, resources=[second])
    path = f"/vaults/{vault['id']}/set-resources"

    async def set_resources(action: str, *ids: str, person: Any = api.alice) -> Any:
        return await person.put(path, json={"resource_ids": list(ids), "action": action})

    async def protected() -> list[bool]:
        shown = check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"]
        return [resource["auto_protect"] for resource in shown["resources"]]

    for action, expected in (("suspend", False), ("suspend", False), ("unsuspend", True)):
        answer = check_answer("set_vault_resource", await set_resources(action, first["id"]))
        assert answer == {"set_resource_ids": [first["id"]]}
        assert await protected() == [expected]
    for ids, code in (
        ([first["id"], second["id"]], "6135"),
        ([UNKNOWN], "6135"),
        ([first["id"], first["id"]], "6104"),
        ([], "9900"),
        (["x"], "9900"),
    ):
        check_error("set_vault_resource", await set_resources("suspend", *ids), 400, code)
    check_error("set_vault_resource", await set_resources("stop", first["id"]), 400, "9900")
    check_error("set_vault_resource", await set_resources("suspend", first["id"], person=api.rita), 403, "8600")
    check_error("set_vault_resource", await set_resources("suspend", first["id"], person=api.bob), 404, "6105")
    await api.execute("UPDATE vault_resources SET protect_status = 'removing' WHERE vault_id = %s", vault["id"])
    check_error("set_vault_resource", await set_resources("suspend", first["id"]), 400, "6134")
    assert await protected() == [True]
    assert check_answer("show_vault", await api.alice.get(f"/vaults/{other['id']}"))["vault"] == other
