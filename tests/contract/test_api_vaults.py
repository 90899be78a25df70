"""create, list, show, update and delete vault, against the contract and against each other."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from in_process_api import CALLERS, PROJECT_A, InProcessApi, Person

from strongroom.base.ids import new_id

UNKNOWN = "00000000-0000-4000-8000-000000000000"
MIB, GIB = 1 << 20, 1 << 30


def wanted(**members: Any) -> dict[str, Any]:
    """A body for create; `billing` members are given as `billing_size=...`."""
    billing = {
        "consistent_level": "crash_consistent",
        "object_type": "turbo",
        "protect_type": "backup",
        "size": 100,
        **{name.removeprefix("billing_"): members.pop(name) for name in list(members) if name.startswith("billing_")},
    }
    return {"vault": {"name": "vault-1", "resources": [], "billing": billing, **members}}


async def create(person: Person, **members: Any) -> dict[str, Any]:
    vault: dict[str, Any] = check_answer("create_vault", await person.post("/vaults", json=wanted(**members)))["vault"]
    return vault


async def names(person: Person, query: str = "") -> list[str]:
    answer = check_answer("list_vault", await person.get(f"/vaults{query}"))
    return [vault["name"] for vault in answer["vaults"]]


async def insert_backup(api: InProcessApi, vault: dict[str, Any], resource_id: str, status: str, stored: int) -> str:
    """A backup as jobs leave it behind."""
    checkpoint_id, backup_id = new_id(), new_id()
    await api.execute(
        "INSERT INTO checkpoints (id, project_id, vault_id, vault_name, provider_id, status, name, created_at) "
        "VALUES (%s, %s, %s, %s, %s, 'available', 'cp', now())",
        *(checkpoint_id, PROJECT_A, vault["id"], vault["name"], vault["provider_id"]),
    )
    await api.execute(
        "INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, resource_name, "
        "name, provider_id, status, incremental, stored_bytes, root, created_at) "
        "VALUES (%s, %s, %s, %s, %s, 'OS::Sfs::Turbo', 'r', 'b', %s, %s, true, %s, 'root', now())",
        *(backup_id, PROJECT_A, vault["id"], checkpoint_id, resource_id, vault["provider_id"], status, stored),
    )
    return backup_id


# --- create -----------------------------------------------------------------------------------------------------------


async def test_create_with_the_least_takes_the_contracts_defaults(api: InProcessApi) -> None:
    """A vault created with required members only carries every documented default."""
    vault = await create(api.alice)
    assert vault == {
        "id": vault["id"],
        "name": "vault-1",
        "description": None,
        "project_id": PROJECT_A,
        "user_id": CALLERS["token-of-alice"].user_id,
        "provider_id": "3f3c3220-245c-4805-b811-758870015881",
        "enterprise_project_id": "0",
        "resources": [],
        "tags": [],
        "auto_bind": False,
        "bind_rules": {},
        "auto_expand": False,
        "threshold": 80,
        "smn_notify": True,
        "backup_name_prefix": None,
        "demand_billing": False,
        "locked": False,
        "frozen": False,
        "availability_zone": None,
        "sys_lock_source_service": None,
        "created_at": vault["created_at"],
        "updated_at": None,
        "cbc_delete_count": 0,
        "version": None,
        "billing": {
            "allocated": 0,
            "used": 0,
            "size": 100,
            "charging_mode": "post_paid",
            "cloud_type": "public",
            "consistent_level": "crash_consistent",
            "object_type": "turbo",
            "protect_type": "backup",
            "spec_code": "vault.backup.turbo.normal",
            "status": "available",
            "is_multi_az": False,
            "order_id": None,
            "product_id": None,
            "storage_unit": None,
            "frozen_scene": None,
        },
    }


async def test_show_and_list_equal_what_create_answered(api: InProcessApi, tmp_path: Path) -> None:
    """Every member given at creation is echoed, and show, list and create agree field by field."""
    (tmp_path / "file").write_bytes(b"x" * 5000)
    resource_id = await api.register(tmp_path, name="projects")
    vault = await create(
        api.alice,
        name="库-Name_1",
        description="all of it",
        resources=[{"id": resource_id, "type": "OS::Sfs::Turbo", "extra_info": {}}],
        tags=[{"key": "team", "value": "a.b"}, {"key": "empty", "value": None}],
        enterprise_project_id="b2d4c0a8-1111-4222-8333-0123456789ab",
        auto_bind=True,
        bind_rules={"tags": [{"key": "backup", "value": "yes"}]},
        auto_expand=True,
        threshold=55,
        smn_notify=False,
        backup_name_prefix="nightly-",
        demand_billing=True,
        locked=True,
        availability_zone="eu-de-01",
        sys_lock_source_service="SMB",
        billing_is_multi_az=True,
        billing_cloud_type="public",
        billing_charging_mode="post_paid",
        billing_is_auto_renew=True,
        billing_extra_info={"combined_order_id": "x"},
        unknown_member={"a": [1]},
    )
    assert check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"] == vault
    assert check_answer("list_vault", await api.alice.get("/vaults"))["vaults"] == [vault]
    assert vault["tags"] == [{"key": "empty", "value": ""}, {"key": "team", "value": "a.b"}]
    assert vault["bind_rules"] == {"tags": [{"key": "backup", "value": "yes"}]}
    assert (vault["threshold"], vault["smn_notify"], vault["auto_bind"], vault["auto_expand"]) == (
        55,
        False,
        True,
        True,
    )
    assert (vault["locked"], vault["demand_billing"], vault["billing"]["is_multi_az"]) == (True, True, True)
    assert (vault["backup_name_prefix"], vault["availability_zone"]) == ("nightly-", "eu-de-01")
    assert (vault["sys_lock_source_service"], vault["description"]) == ("SMB", "all of it")
    assert vault["enterprise_project_id"] == "b2d4c0a8-1111-4222-8333-0123456789ab"
    assert vault["billing"]["allocated"] == 1
    assert vault["resources"] == [
        {
            "id": resource_id,
            "name": "projects",
            "type": "OS::Sfs::Turbo",
            "size": 1,
            "protect_status": "available",
            "backup_size": 0,
            "backup_count": 0,
            "auto_protect": True,
            "extra_info": {},
        }
    ]


@pytest.mark.parametrize(
    ("billing", "spec", "provider"),
    [
        ({"object_type": "server"}, "vault.backup.server.normal", "0daac4c5-6707-4851-97ba-169e36266b66"),
        ({"object_type": "disk"}, "vault.backup.volume.normal", "d1603440-187d-4516-af25-121250c7cc97"),
        ({"object_type": "workspace"}, "vault.backup.server.normal", "86a80900-71bf-4961-956a-d52df944f84a"),
        (
            {"object_type": "server", "protect_type": "replication"},
            "vault.replication.server.normal",
            "0daac4c5-6707-4851-97ba-169e36266b66",
        ),
        (
            {"object_type": "vmware", "cloud_type": "hybrid"},
            "vault.hybrid.server.normal",
            "a13639de-00be-4e94-af30-26912d75e4a2",
        ),
        (
            {"object_type": "server", "consistent_level": "app_consistent"},
            "vault.backup.server.normal",
            "0daac4c5-6707-4851-97ba-169e36266b66",
        ),
        ({"object_type": "rds"}, "vault.backup.rds.normal", None),
    ],
)
async def test_spec_code_and_provider_follow_from_the_kind(
    api: InProcessApi, billing: dict[str, str], spec: str, provider: str | None
) -> None:
    """billing.spec_code and provider_id are derived from object_type, protect_type and cloud_type."""
    vault = await create(api.alice, **{f"billing_{name}": value for name, value in billing.items()})
    assert vault["billing"]["spec_code"] == spec
    assert provider is None or vault["provider_id"] == provider


async def test_empty_lists_of_a_client_mean_nothing_given(api: InProcessApi) -> None:
    """`tags: []`, `bind_rules: {"tags": []}` and nulls are what one real client always sends; they read as defaults."""
    plain = await create(api.alice)
    vault = await create(api.alice, tags=[], bind_rules={"tags": []}, description=None, threshold=None, locked=None)
    assert {**vault, "id": plain["id"], "created_at": plain["created_at"]} == plain


async def test_operation_type_is_accepted_for_protect_type(api: InProcessApi) -> None:
    """A client that spells protect_type as operation_type is understood; without either the call is refused."""
    body = wanted()
    body["vault"]["billing"]["operation_type"] = body["vault"]["billing"].pop("protect_type")
    assert (
        check_answer("create_vault", await api.alice.post("/vaults", json=body))["vault"]["billing"]["protect_type"]
        == "backup"
    )
    del body["vault"]["billing"]["operation_type"]
    check_error("create_vault", await api.alice.post("/vaults", json=body), 400, "9900")


BAD_CREATES: list[tuple[str, dict[str, Any], int, str]] = [
    ("name of 300 characters", {"name": "n" * 300}, 400, "9900"),
    ("empty name", {"name": ""}, 400, "9900"),
    ("name with a blank", {"name": "a b"}, 400, "9900"),
    ("name with a line end", {"name": "vault\n"}, 400, "9900"),
    ("name is a number", {"name": 7}, 400, "9900"),
    ("name is null", {"name": None}, 400, "9900"),
    ("angle bracket in the description", {"description": "a < b"}, 400, "9900"),
    ("description of 65 characters", {"description": "d" * 65}, 400, "9900"),
    ("size too small", {"billing_size": 9}, 400, "6101"),
    ("size too large", {"billing_size": 10485761}, 400, "6101"),
    ("size of thirty digits", {"billing_size": 10**30}, 400, "6101"),
    ("negative size", {"billing_size": -1}, 400, "6101"),
    ("size is a text", {"billing_size": "100"}, 400, "9900"),
    ("size is a fraction", {"billing_size": 10.5}, 400, "9900"),
    ("size is a truth", {"billing_size": True}, 400, "9900"),
    ("unknown object_type", {"billing_object_type": "tape"}, 400, "9900"),
    ("unknown protect_type", {"billing_protect_type": "copy"}, 400, "9900"),
    ("unknown consistent_level", {"billing_consistent_level": "maybe"}, 400, "9900"),
    ("app consistency of a folder", {"billing_consistent_level": "app_consistent"}, 400, "9900"),
    ("replicas of disks", {"billing_object_type": "disk", "billing_protect_type": "replication"}, 400, "9900"),
    ("vmware in the public cloud", {"billing_object_type": "vmware"}, 400, "9900"),
    ("unknown cloud_type", {"billing_cloud_type": "private"}, 400, "9900"),
    ("pre-paid", {"billing_charging_mode": "pre_paid"}, 400, "6109"),
    ("unknown charging_mode", {"billing_charging_mode": "free"}, 400, "9900"),
    ("threshold 0", {"threshold": 0}, 400, "9900"),
    ("threshold 101", {"threshold": 101}, 400, "9900"),
    ("prefix of 33 characters", {"backup_name_prefix": "p" * 33}, 400, "9900"),
    ("prefix no name may have", {"backup_name_prefix": "../"}, 400, "9900"),
    ("zone of 33 characters", {"availability_zone": "z" * 33}, 400, "9900"),
    ("unknown lock service", {"sys_lock_source_service": "NFS"}, 400, "9900"),
    ("bad enterprise project", {"enterprise_project_id": "no such/id"}, 400, "9900"),
    ("six bind rules", {"bind_rules": {"tags": [{"key": f"k{i}", "value": ""} for i in range(6)]}}, 400, "9900"),
    ("21 tags", {"tags": [{"key": f"k{i}", "value": "v"} for i in range(21)]}, 400, "6600"),
    ("a tag twice", {"tags": [{"key": "k", "value": "1"}, {"key": "k", "value": "2"}]}, 400, "9900"),
    ("a tag key of 37", {"tags": [{"key": "k" * 37, "value": ""}]}, 400, "9900"),
    ("a tag value of 44", {"tags": [{"key": "k", "value": "v" * 44}]}, 400, "9900"),
    ("a tag key with a dot", {"tags": [{"key": "a.b", "value": ""}]}, 400, "9900"),
    ("tags is an object", {"tags": {"a": "b"}}, 400, "9900"),
    ("resources is null", {"resources": None}, 400, "9900"),
    ("a resource without type", {"resources": [{"id": UNKNOWN}]}, 400, "9900"),
    ("a resource nobody registered", {"resources": [{"id": UNKNOWN, "type": "OS::Sfs::Turbo"}]}, 404, "6302"),
    ("unknown backup policy", {"backup_policy_id": UNKNOWN}, 404, "6000"),
    ("malformed backup policy", {"backup_policy_id": "my-policy"}, 400, "9900"),
]


@pytest.mark.parametrize(
    ("members", "status", "code"), [bad[1:] for bad in BAD_CREATES], ids=[b[0] for b in BAD_CREATES]
)
async def test_a_bad_create_is_refused_and_writes_nothing(
    api: InProcessApi, members: dict[str, Any], status: int, code: str
) -> None:
    """Every refused creation carries the contract's code, and leaves no row behind."""
    check_error("create_vault", await api.alice.post("/vaults", json=wanted(**members)), status, code)
    assert await api.rows("SELECT id FROM vaults") == []
    assert await api.rows("SELECT key FROM vault_tags") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"vault": []}',
        b'{"vault": {}}',
        b'{"vault": {"name": "\xff"}}',
        b'{"vault": {"name": "\\u0000"}}',
        b'{"vault": {"name": "\\ud800"}}',
        b'{"vault": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        json.dumps(wanted()).encode()[:-3],
    ],
    ids=repr,
)
async def test_a_body_that_is_no_vault_is_refused(api: InProcessApi, body: bytes) -> None:
    """Broken, truncated or hostile JSON ends as 400 9900."""
    check_error("create_vault", await api.alice.post("/vaults", content=body), 400, "9900")


async def test_a_huge_body_is_refused_unread(api: InProcessApi) -> None:
    """A body above the limit is answered 413, with and without a declared length."""

    async def chunks() -> Any:
        for _ in range(40):
            yield b" " * (64 << 10)

    check_error("create_vault", await api.alice.post("/vaults", content=b" " * (2 << 20)), 413, "APIGW.0201")
    check_error("create_vault", await api.alice.post("/vaults", content=chunks()), 413, "APIGW.0201")


async def test_the_quota_of_vaults_is_kept(api: InProcessApi) -> None:
    """Of eight creations at once the one that fits the quota is made; every later one answers 6133."""
    await create(api.alice)
    await api.execute(
        "INSERT INTO vaults (id, project_id, user_id, name, provider_id, object_type, protect_type, consistent_level, "
        "size_gb, created_at) SELECT 'v' || n, project_id, user_id, name, provider_id, object_type, protect_type, "
        "consistent_level, size_gb, created_at FROM vaults, generate_series(1, 9998) AS n"
    )
    answers = await asyncio.gather(*(api.alice.post("/vaults", json=wanted()) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
    check_error("create_vault", await api.alice.post("/vaults", json=wanted()), 400, "6133")
    await create(api.bob)


# --- show and list ----------------------------------------------------------------------------------------------------


async def test_a_vault_name_in_the_path_is_a_bad_id(api: InProcessApi) -> None:
    """Name lookups of clients get 400 for a name, also for one of a path that takes other methods."""
    for name in ("vault-1", "order", "change-charge-mode", "batch-update", "%E5%BA%93", "a" * 300, UNKNOWN + "F"):
        error = check_error("show_vault", await api.alice.get(f"/vaults/{name}"), 400, "9900")
        assert error["error_msg"] == "Invalid vault_id provided."
    check_error("list_external_vault", await api.alice.get("/vaults/external"), 400, "9900")


async def test_unknown_and_foreign_vaults_answer_alike(api: InProcessApi) -> None:
    """A vault of another tenant is as missing as one that never was, for every operation on it, and stays untouched."""
    vault = await create(api.alice)
    for vault_id in (vault["id"], UNKNOWN):
        path = f"/vaults/{vault_id}"
        resources = {"resources": [{"id": UNKNOWN, "type": "OS::Sfs::Turbo"}]}
        message = f"Vault {vault_id} does not exist."
        for operation, response in (
            ("show_vault", await api.bob.get(path)),
            ("update_vault", await api.bob.put(path, json={"vault": {"name": "mine"}})),
            ("delete_vault", await api.bob.delete(path)),
            ("add_vault_resource", await api.bob.post(path + "/addresources", json=resources)),
            ("remove_vault_resource", await api.bob.post(path + "/removeresources", json={"resource_ids": [UNKNOWN]})),
        ):
            assert check_error(operation, response, 404, "6105")["error_msg"] == message
    assert check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"] == vault
    assert await names(api.bob, f"?id={vault['id']}") == []


async def test_roles_and_projects_are_checked_first(api: InProcessApi) -> None:
    """No token is 401; a reader may list but not create; a foreign project in the path is 403."""
    check_error("list_vault", await api.nobody.get("/vaults"), 401, "APIGW.0301")
    assert await names(api.rita) == []
    check_error("create_vault", await api.rita.post("/vaults", json=wanted()), 403, "8600")
    check_error("list_vault", await api.bob.get(f"/v3/{PROJECT_A}/vaults"), 403, "8600")
    check_error("list_vault", await api.oscar.get(f"/v3/{PROJECT_A}/vaults"), 403, "8600")


async def test_list_filters_are_exact_and_joined(api: InProcessApi, tmp_path: Path) -> None:
    """Each filter finds what it names and nothing else; the count is of the matches."""
    resource_id = await api.register(tmp_path)
    first = await create(api.alice, name="one", resources=[{"id": resource_id, "type": "OS::Sfs::Turbo"}])
    second = await create(api.alice, name="two", billing_object_type="disk", enterprise_project_id="ep-1")
    third = await create(api.alice, name="three", billing_object_type="server", billing_protect_type="replication")
    await api.execute("UPDATE vaults SET status = 'error' WHERE id = %s", third["id"])
    for query, expected in {
        "": ["three", "two", "one"],
        "?name=one": ["one"],
        "?name=on": [],
        f"?id={first['id']}&id={third['id']}": ["three", "one"],
        f"?id={UNKNOWN}": [],
        "?status=available": ["two", "one"],
        "?object_type=disk": ["two"],
        "?protect_type=replication": ["three"],
        "?cloud_type=public": ["three", "two", "one"],
        "?cloud_type=hybrid": [],
        "?enterprise_project_id=ep-1": ["two"],
        "?enterprise_project_id=0": ["three", "one"],
        "?enterprise_project_id=all_granted_eps": ["three", "two", "one"],
        f"?resource_ids={UNKNOWN},{resource_id}": ["one"],
        f"?resource_ids={UNKNOWN}": [],
        f"?policy_id={UNKNOWN}": [],
        "?object_type=disk&name=two": ["two"],
        "?object_type=disk&name=one": [],
        "?unknown=1": ["three", "two", "one"],
    }.items():
        answer = check_answer("list_vault", await api.alice.get(f"/vaults{query}"))
        assert [vault["name"] for vault in answer["vaults"]] == expected, query
        assert answer["count"] == len(expected), query
    assert second["enterprise_project_id"] == "ep-1"
    assert await names(api.bob) == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=ten",
        "limit=1.5",
        "limit=" + "9" * 30,
        "offset=-1",
        "offset=x",
        "offset=99999999999",
        "marker=vault-1",
        f"marker={UNKNOWN}",
        "id=vault-1",
        "policy_id=p",
        "resource_ids=a,b",
        "status=broken",
        "object_type=tape",
        "protect_type=copy",
        "cloud_type=private",
        "name=a%20b",
        "name=" + "n" * 65,
        "name=%00",
        "name=%ff",
        "enterprise_project_id=%3C",
    ],
)
async def test_a_bad_query_is_refused(api: InProcessApi, query: str) -> None:
    """Values of the query outside the contract end as 400 9900."""
    check_error("list_vault", await api.alice.get(f"/vaults?{query}"), 400, "9900")


async def test_pages_by_offset_and_by_marker_visit_every_vault_once(api: InProcessApi) -> None:
    """Both ways of paging walk newest first over all vaults, end with an empty page, and always count all."""
    made = [(await create(api.alice, name=f"v{i}"))["name"] for i in range(5)]
    await api.execute("UPDATE vaults SET created_at = '2026-01-01' WHERE name IN ('v1', 'v2', 'v3')")
    everything = await names(api.alice)
    assert sorted(everything) == made
    by_offset, by_marker, marker = [], [], ""
    for page in range(4):
        answer = check_answer("list_vault", await api.alice.get(f"/vaults?limit=2&offset={2 * page}"))
        by_offset += [vault["name"] for vault in answer["vaults"]]
        assert (answer["count"], answer["limit"], answer["offset"]) == (5, 2, 2 * page)
        answer = check_answer("list_vault", await api.alice.get(f"/vaults?limit=2{marker}"))
        by_marker += [vault["name"] for vault in answer["vaults"]]
        assert answer["count"] == 5
        if answer["vaults"]:
            marker = f"&marker={answer['vaults'][-1]['id']}"
    assert by_offset == by_marker == everything
    foreign = (await create(api.bob))["id"]
    check_error("list_vault", await api.alice.get(f"/vaults?marker={foreign}"), 400, "9900")


async def test_used_is_megabytes_and_backups_of_a_resource_are_summed(api: InProcessApi, tmp_path: Path) -> None:
    """used and backup_size are MB rounded up; failed and deleted backups are not counted."""
    resource_id = await api.register(tmp_path)
    vault = await create(api.alice, resources=[{"id": resource_id, "type": "OS::Sfs::Turbo"}])
    await api.execute("UPDATE vaults SET used_bytes = %s WHERE id = %s", 3 * MIB + 1, vault["id"])
    await api.execute("UPDATE vault_resources SET size_bytes = %s", 2 * GIB + 1)
    for status, stored in (("available", MIB), ("restoring", 1), ("error", MIB), ("deleting", MIB), ("protecting", 0)):
        await insert_backup(api, vault, resource_id, status, stored)
    shown = check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"]
    assert (shown["billing"]["used"], shown["billing"]["allocated"]) == (4, 3)
    resource = shown["resources"][0]
    assert (resource["size"], resource["backup_size"], resource["backup_count"]) == (3, 2, 2)


# --- update -----------------------------------------------------------------------------------------------------------


async def test_update_changes_what_it_names_and_nothing_else(api: InProcessApi) -> None:
    """Each member of a PUT is set; absent ones, nulls and `billing: {}` leave a vault as it was."""
    vault = await create(api.alice, billing_object_type="server", tags=[{"key": "k", "value": "v"}])
    path = f"/vaults/{vault['id']}"
    for nothing in ({}, {"billing": {}}, {"billing": None, "name": None, "bind_rules": None, "locked": None}):
        assert check_answer("update_vault", await api.alice.put(path, json={"vault": nothing}))["vault"] == vault
    change = {
        "name": "renamed",
        "auto_bind": True,
        "bind_rules": {"tags": [{"key": "a", "value": "b"}]},
        "auto_expand": True,
        "smn_notify": False,
        "threshold": 1,
        "locked": True,
    }
    billing = {"size": 10485760, "consistent_level": "app_consistent"}
    changed = check_answer("update_vault", await api.alice.put(path, json={"vault": {**change, "billing": billing}}))[
        "vault"
    ]
    assert changed == {
        **vault,
        **change,
        "billing": vault["billing"] | billing,
        "updated_at": changed["updated_at"],
    }
    assert changed["updated_at"] > vault["created_at"]
    assert check_answer("show_vault", await api.alice.get(path))["vault"] == changed
    cleared = await api.alice.put(path, json={"vault": {"bind_rules": {"tags": []}, "billing": {"size": 1}}})
    after = check_answer("update_vault", cleared)["vault"]
    assert (after["bind_rules"], after["billing"]["size"]) == ({}, 1)


async def test_a_lock_never_opens(api: InProcessApi) -> None:
    """locked true to false is refused in the words that clients look for."""
    vault = await create(api.alice, locked=True)
    response = await api.alice.put(f"/vaults/{vault['id']}", json={"vault": {"locked": False, "name": "free"}})
    error = check_error("update_vault", response, 400, "9900")
    assert "vault not support to modify locked attribute from true to false." in error["error_msg"]
    assert check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"] == vault


async def test_a_vault_does_not_shrink_below_what_it_holds(api: InProcessApi) -> None:
    """A size below the used bytes is 6101; the used bytes themselves fit exactly; a full vault may still grow."""
    vault = await create(api.alice)
    await api.execute("UPDATE vaults SET used_bytes = %s WHERE id = %s", 20 * GIB, vault["id"])
    path = f"/vaults/{vault['id']}"
    check_error("update_vault", await api.alice.put(path, json={"vault": {"billing": {"size": 19}}}), 400, "6101")
    for size in (20, 21):
        answer = await api.alice.put(path, json={"vault": {"billing": {"size": size}}})
        assert check_answer("update_vault", answer)["vault"]["billing"]["size"] == size
    await api.execute("UPDATE vaults SET used_bytes = %s WHERE id = %s", 90 * GIB, vault["id"])
    answer = await api.alice.put(path, json={"vault": {"billing": {"size": 22}}})
    assert check_answer("update_vault", answer)["vault"]["billing"]["size"] == 22


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": ""}, "9900"),
        ({"name": "x" * 65}, "9900"),
        ({"name": 1}, "9900"),
        ({"threshold": 0}, "9900"),
        ({"threshold": 101}, "9900"),
        ({"threshold": "80"}, "9900"),
        ({"locked": "yes"}, "9900"),
        ({"bind_rules": {"tags": [{"key": "", "value": ""}]}}, "9900"),
        ({"bind_rules": []}, "9900"),
        ({"billing": {"size": 0}}, "6101"),
        ({"billing": {"size": 10485761}}, "6101"),
        ({"billing": {"size": 2**70}}, "6101"),
        ({"billing": {"consistent_level": "app_consistent"}}, "9900"),
        ({"billing": {"consistent_level": "none"}}, "9900"),
        ([], "9900"),
        (None, "9900"),
    ],
)
async def test_a_bad_update_is_refused_and_changes_nothing(api: InProcessApi, change: Any, code: str) -> None:
    """A refused PUT carries the contract's code and leaves every member as it was."""
    vault = await create(api.alice)
    path = f"/vaults/{vault['id']}"
    check_error("update_vault", await api.alice.put(path, json={"vault": change}), 400, code)
    assert check_answer("show_vault", await api.alice.get(path))["vault"] == vault


async def test_app_consistency_is_not_taken_back(api: InProcessApi) -> None:
    """consistent_level goes from crash to app only."""
    vault = await create(api.alice, billing_object_type="server", billing_consistent_level="app_consistent")
    path = f"/vaults/{vault['id']}"
    same = await api.alice.put(path, json={"vault": {"billing": {"consistent_level": "app_consistent"}}})
    assert check_answer("update_vault", same)["vault"] == vault
    back = await api.alice.put(path, json={"vault": {"billing": {"consistent_level": "crash_consistent"}}})
    check_error("update_vault", back, 400, "9900")


# --- delete -----------------------------------------------------------------------------------------------------------


async def test_a_vault_without_backups_is_gone_at_once(api: InProcessApi, tmp_path: Path) -> None:
    """Deleting it answers 204, the next call 404; its log says success, its resources are free again."""
    resource_id = await api.register(tmp_path)
    resources = [{"id": resource_id, "type": "OS::Sfs::Turbo"}]
    vault = await create(api.alice, resources=resources, tags=[{"key": "k", "value": "v"}], locked=True)
    check_answer("delete_vault", await api.alice.delete(f"/vaults/{vault['id']}"))
    check_error("show_vault", await api.alice.get(f"/vaults/{vault['id']}"), 404, "6105")
    check_error("delete_vault", await api.alice.delete(f"/vaults/{vault['id']}"), 404, "6105")
    [log] = await api.rows("SELECT * FROM operation_logs")
    assert (log["operation_type"], log["status"], log["vault_id"]) == ("vault_delete", "success", vault["id"])
    assert (log["vault_name"], log["provider_id"], log["progress"]) == (vault["name"], vault["provider_id"], 100)
    assert log["ended_at"] is not None
    await create(api.alice, resources=resources)


async def test_a_vault_with_backups_is_deleted_by_a_task(api: InProcessApi, tmp_path: Path) -> None:
    """It says deleting until the task is done, takes no second delete, no change and no resources meanwhile."""
    resource_id = await api.register(tmp_path)
    vault = await create(api.alice, resources=[{"id": resource_id, "type": "OS::Sfs::Turbo"}])
    await insert_backup(api, vault, resource_id, "available", 1)
    path = f"/vaults/{vault['id']}"
    check_answer("delete_vault", await api.alice.delete(path))
    assert check_answer("show_vault", await api.alice.get(path))["vault"]["billing"]["status"] == "deleting"
    [task] = await api.rows("SELECT operation_type, status, project_id, vault_id FROM operation_logs")
    assert task == {
        "operation_type": "vault_delete",
        "status": "waiting",
        "project_id": PROJECT_A,
        "vault_id": vault["id"],
    }
    check_error("delete_vault", await api.alice.delete(path), 400, "6112")
    check_error("update_vault", await api.alice.put(path, json={"vault": {"name": "x"}}), 400, "6112")
    body = {"resources": [{"id": resource_id, "type": "OS::Sfs::Turbo"}]}
    check_error("add_vault_resource", await api.alice.post(path + "/addresources", json=body), 400, "6112")
    body = {"resource_ids": [resource_id]}
    check_error("remove_vault_resource", await api.alice.post(path + "/removeresources", json=body), 400, "6112")


async def test_a_vault_that_once_had_backups_is_deleted_by_a_task(api: InProcessApi) -> None:
    """Its repository exists as long as its keys do, so somebody has to remove it although no backup is left."""
    vault = await create(api.alice)
    await api.execute(
        "INSERT INTO vault_keys (project_id, vault_id, wrapped) VALUES (%s, %s, 'w')", PROJECT_A, vault["id"]
    )
    check_answer("delete_vault", await api.alice.delete(f"/vaults/{vault['id']}"))
    assert check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"]["billing"]["status"] == (
        "deleting"
    )


async def test_a_locked_vault_with_backups_is_not_deleted(api: InProcessApi, tmp_path: Path) -> None:
    """6111 while a backup is there; a failed backup does not count."""
    resource_id = await api.register(tmp_path)
    vault = await create(api.alice, resources=[{"id": resource_id, "type": "OS::Sfs::Turbo"}], locked=True)
    backup_id = await insert_backup(api, vault, resource_id, "available", 1)
    check_error("delete_vault", await api.alice.delete(f"/vaults/{vault['id']}"), 400, "6111")
    await api.execute("UPDATE backups SET status = 'error' WHERE id = %s", backup_id)
    check_answer("delete_vault", await api.alice.delete(f"/vaults/{vault['id']}"))
    assert check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"]["billing"]["status"] == (
        "deleting"
    )


@pytest.mark.parametrize(
    ("status", "code"), [("lock", "6112"), ("frozen", "6112"), ("deleting", "6112"), ("error", None)]
)
async def test_delete_is_for_available_and_failed_vaults(api: InProcessApi, status: str, code: str | None) -> None:
    """A vault in error can be deleted again; one that is locked, frozen or on its way out cannot."""
    vault = await create(api.alice)
    await api.execute("UPDATE vaults SET status = %s WHERE id = %s", status, vault["id"])
    response = await api.alice.delete(f"/vaults/{vault['id']}")
    if code is None:
        check_answer("delete_vault", response)
    else:
        check_error("delete_vault", response, 400, code)


async def test_open_backups_of_a_deleted_vault_are_told_to_stop(api: InProcessApi) -> None:
    """An open task keeps the vault until it is final, but a backup nobody wants any more is asked to end."""
    vault = await create(api.alice)
    await api.execute(
        "INSERT INTO operation_logs (id, project_id, operation_type, status, vault_id, resource_id, request_id, "
        "created_at, updated_at) VALUES (%s, %s, 'backup', 'waiting', %s, 'r', 'q', now(), now())",
        *(new_id(), PROJECT_A, vault["id"]),
    )
    check_answer("delete_vault", await api.alice.delete(f"/vaults/{vault['id']}"))
    assert check_answer("show_vault", await api.alice.get(f"/vaults/{vault['id']}"))["vault"]["billing"]["status"] == (
        "deleting"
    )
    found = await api.rows("SELECT operation_type, cancel_requested FROM operation_logs ORDER BY operation_type")
    assert found == [
        {"operation_type": "backup", "cancel_requested": True},
        {"operation_type": "vault_delete", "cancel_requested": False},
    ]


async def test_two_deletes_at_once_start_one_task(api: InProcessApi, tmp_path: Path) -> None:
    """Of ten deletions at once one is accepted and the others answer 6112."""
    resource_id = await api.register(tmp_path)
    vault = await create(api.alice, resources=[{"id": resource_id, "type": "OS::Sfs::Turbo"}])
    await insert_backup(api, vault, resource_id, "available", 1)
    answers = await asyncio.gather(*(api.alice.delete(f"/vaults/{vault['id']}") for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [204] + [400] * 9
    assert len(await api.rows("SELECT 1 FROM operation_logs")) == 1
