"""Organization policies, against the contract: one policy, kept as a copy in every project of the domain."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from points_world import World, opened_world
from policies_world import run_once

from strongroom.base.ids import new_id
from strongroom.control.access import ROLE_OPERATOR, ROLE_TENANT_ADMIN, Caller
from strongroom.control.accounts import Accounts
from strongroom.control.db import Database
from strongroom.control.passwords import Passwords
from strongroom.control.rebuilding import LostVault, restore_rows

NIGHTLY = "FREQ=DAILY;BYHOUR=2;BYMINUTE=0"
HOURLY = "FREQ=DAILY;BYHOUR=1,2,3;BYMINUTE=30"


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    """The client is a user of the project; `boss` also administers the domain, `bob` is of another project of it."""
    async with opened_world(database) as opened:
        yield opened


def boss(world: World) -> dict[str, str]:
    header = world.add_caller(world.project, ROLE_TENANT_ADMIN)
    caller = world.callers[header["X-Auth-Token"]]
    world.callers[header["X-Auth-Token"]] = Caller(
        **{**caller.__dict__, "roles": frozenset({ROLE_OPERATOR, ROLE_TENANT_ADMIN})}
    )
    return header


def wanted(**members: Any) -> dict[str, Any]:
    policy = {
        "name": "org-nightly",
        "description": "for all",
        "operation_type": "backup",
        "policy_name": "nightly",
        "policy_enabled": True,
        "policy_operation_definition": {"max_backups": 7},
        "policy_trigger": {"properties": {"pattern": [NIGHTLY]}},
        "effective_scope": "all",
    }
    return {"policy": policy | members}


async def create(world: World, header: dict[str, str], **members: Any) -> dict[str, Any]:
    path = world.v3("organization-policies")
    answer = await world.client.post(path, json=wanted(**members), headers=header)
    made: dict[str, Any] = check_answer("create_organization_policy", answer)["policy"]
    return made


async def change(world: World, header: dict[str, str], policy: str, **members: Any) -> Any:
    path = world.v3(f"organization-policies/{policy}")
    return await world.client.put(path, json={"policy": members}, headers=header)


async def copies(world: World, header: dict[str, str], policy: str) -> dict[str, str]:
    """project -> id of its copy."""
    path = world.v3(f"organization-policies/{policy}/policy-detail")
    answer = check_answer("list_organization_policy_detail", await world.client.get(path, headers=header))
    assert answer["count"] == len(answer["policies"])
    assert {row["status"] for row in answer["policies"]} <= {"available"}
    return {row["project_id"]: row["policy_id"] for row in answer["policies"]}


async def policies_of(world: World, project: str, header: dict[str, str]) -> list[dict[str, Any]]:
    answer = await world.client.get(f"/v3/{project}/policies", headers=header)
    found: list[dict[str, Any]] = check_answer("list_policies", answer)["policies"]
    return found


async def test_every_project_gets_a_copy(world: World) -> None:
    """What was asked for comes back; each project of the domain finds it among its policies, and no other does."""
    other, bob = await world.add_project()
    outside, eve = await world.add_project()
    await world.execute("INSERT INTO domains VALUES (%s, 'elsewhere', now())", "e" * 32)
    await world.execute("UPDATE projects SET domain_id = %s WHERE id = %s", "e" * 32, outside)
    header = boss(world)
    made = await create(world, header)
    assert {name: made[name] for name in wanted()["policy"]} == wanted()["policy"]
    assert (made["domain_id"], made["domain_name"], made["status"]) == ("default", "Default", "available")
    path = world.v3(f"organization-policies/{made['id']}")
    assert check_answer("show_organization_policy", await world.client.get(path, headers=header))["policy"] == made
    found = await copies(world, header, made["id"])
    assert found.keys() == {world.project, other}
    (copy,) = await policies_of(world, other, bob)
    assert (copy["id"], copy["name"], copy["policy_type"]) == (found[other], "nightly", "organization_policy_v1")
    assert copy["operation_definition"] == {"max_backups": 7}
    assert copy["trigger"]["properties"]["pattern"] == [NIGHTLY]
    assert await policies_of(world, outside, eve) == []


async def test_a_project_applies_its_copy_and_cannot_change_it(world: World) -> None:
    """It fires for the vaults it is applied to, like any policy; changing or deleting it is the administrator's."""
    made = await create(world, boss(world))
    copy = (await copies(world, boss(world), made["id"]))[world.project]
    vault = await world.add_vault([await world.add_resource()])
    path = world.v3(f"vaults/{vault}/associatepolicy")
    check_answer("associate_vault_policy", await world.client.post(path, json={"policy_id": copy}))
    await run_once(world, vault)
    assert await world.one("SELECT count(*) FROM backups WHERE auto_trigger") == 1
    path = world.v3(f"policies/{copy}")
    for header in ({}, boss(world)):
        refused = await world.client.put(path, json={"policy": {"name": "mine"}}, headers=header)
        check_error("update_policy", refused, 403, "8600")
        check_error("delete_policy", await world.client.delete(path, headers=header), 403, "8600")
    path = world.v3(f"vaults/{vault}/dissociatepolicy")
    check_answer("disassociate_vault_policy", await world.client.post(path, json={"policy_id": copy}))


async def test_only_the_administrator_of_the_domain_may(world: World) -> None:
    """Nobody else makes, reads, changes or deletes one; one of another domain answers like an absent one."""
    made = await create(world, boss(world))
    path = world.v3(f"organization-policies/{made['id']}")
    client = world.client
    check_error("create_organization_policy", await client.post(path[:-37], json=wanted()), 403, "8600")
    check_error("list_organization_policies", await client.get(path[:-37]), 403, "8600")
    check_error("show_organization_policy", await client.get(path), 403, "8600")
    check_error("list_organization_policy_detail", await client.get(f"{path}/policy-detail"), 403, "8600")
    check_error("update_organization_policy", await client.put(path, json=wanted()), 403, "8600")
    check_error("delete_organization_policy", await client.delete(path), 403, "8600")
    header = boss(world)
    await world.execute("INSERT INTO domains VALUES (%s, 'elsewhere', now())", "e" * 32)
    await world.execute("UPDATE organization_policies SET domain_id = %s", "e" * 32)
    for asked in (made["id"], new_id()):
        path = world.v3(f"organization-policies/{asked}")
        answers = [
            check_error("show_organization_policy", await client.get(path, headers=header), 404, "6000"),
            check_error(
                "update_organization_policy", await client.put(path, json={"policy": {}}, headers=header), 404, "6000"
            ),
            check_error("delete_organization_policy", await client.delete(path, headers=header), 404, "6000"),
            check_error(
                "list_organization_policy_detail",
                await client.get(f"{path}/policy-detail", headers=header),
                404,
                "6000",
            ),
        ]
        assert {answer["error_msg"] for answer in answers} == {f"Policy {asked} does not exist."}
    check_error("show_organization_policy", await client.get(f"{path[:-36]}first", headers=header), 400, "9900")


@pytest.mark.parametrize(
    "members",
    [
        {"name": "no spaces"},
        {"name": "x" * 65},
        {"policy_name": ""},
        {"description": "<b>"},
        {"operation_type": "copy"},
        {"policy_trigger": {"properties": {"pattern": ["FREQ=YEARLY"]}}},
        {"policy_trigger": {"properties": {"pattern": []}}},
        {"policy_operation_definition": {"max_backups": 0}},
        {"policy_operation_definition": {"max_backups": "7"}},
        {"policy_operation_definition": {"max_backups": 7, "retention_duration_days": 7}},
        {"effective_scope": "everywhere"},
        {"effective_scope": "0" * 32},
        {"policy_enabled": None},
    ],
)
async def test_a_bad_policy_is_nowhere(world: World, members: dict[str, Any]) -> None:
    """What is refused leaves neither a policy nor a copy, made or changed."""
    header = boss(world)
    answer = await world.client.post(world.v3("organization-policies"), json=wanted(**members), headers=header)
    check_error("create_organization_policy", answer, 400, "6117" if "operation_type" in members else "9900")
    assert await world.one("SELECT count(*) FROM organization_policies") == 0
    assert await world.one("SELECT count(*) FROM policies") == 0
    if "operation_type" in members or members.get("policy_enabled", "") is None:
        return  # a change knows no operation_type, and null is absent
    made = await create(world, header)
    before = await world.execute("SELECT * FROM policies")
    check_error("update_organization_policy", await change(world, header, made["id"], **members), 400, "9900")
    assert await world.execute("SELECT * FROM policies") == before


async def test_a_change_reaches_every_copy(world: World) -> None:
    """Members that are left out stay; what a vault runs next by follows; a scope takes copies away and gives them."""
    other, bob = await world.add_project()
    header = boss(world)
    made = await create(world, header)
    before = await copies(world, header, made["id"])
    after = await change(
        world, header, made["id"], policy_name="hourly", policy_trigger={"properties": {"pattern": [HOURLY]}}
    )
    shown = check_answer("update_organization_policy", after)["policy"]
    assert (shown["name"], shown["policy_name"]) == ("org-nightly", "hourly")
    assert await copies(world, header, made["id"]) == before
    for project, who in ((world.project, {}), (other, bob)):
        (copy,) = await policies_of(world, project, who)
        assert (copy["name"], copy["trigger"]["properties"]["pattern"]) == ("hourly", [HOURLY])
        assert copy["operation_definition"] == {"max_backups": 7}
    check_answer("update_organization_policy", await change(world, header, made["id"], effective_scope=other))
    assert (await copies(world, header, made["id"])).keys() == {other}
    assert await policies_of(world, world.project, {}) == []
    check_answer("update_organization_policy", await change(world, header, made["id"], effective_scope=""))
    assert (await copies(world, header, made["id"])).keys() == {other, world.project}


async def test_a_locked_vault_stops_a_change_for_all(world: World) -> None:
    """A rule that keeps less than a project's locked vault promised changes no copy (6110)."""
    other, bob = await world.add_project()
    header = boss(world)
    made = await create(world, header)
    copy = (await copies(world, header, made["id"]))[world.project]
    vault = await world.add_vault([await world.add_resource()], locked=True)
    path = world.v3(f"vaults/{vault}/associatepolicy")
    check_answer("associate_vault_policy", await world.client.post(path, json={"policy_id": copy}))
    await run_once(world, vault)
    less = await change(world, header, made["id"], policy_operation_definition={"max_backups": 2})
    refused = check_error("update_organization_policy", less, 400, "6110")
    assert world.project in refused["error_msg"]
    (theirs,) = await policies_of(world, other, bob)
    assert theirs["operation_definition"] == {"max_backups": 7}


async def test_what_is_in_use_stays_when_the_policy_goes(world: World) -> None:
    """Copies that no vault uses go; one in use goes on protecting its vault, and is the project's own from then on."""
    other, bob = await world.add_project()
    header = boss(world)
    made = await create(world, header)
    copy = (await copies(world, header, made["id"]))[world.project]
    vault = await world.add_vault([await world.add_resource()])
    path = world.v3(f"vaults/{vault}/associatepolicy")
    check_answer("associate_vault_policy", await world.client.post(path, json={"policy_id": copy}))
    path = world.v3(f"organization-policies/{made['id']}")
    check_answer("delete_organization_policy", await world.client.delete(path, headers=header))
    check_error("show_organization_policy", await world.client.get(path, headers=header), 404, "6000")
    assert await policies_of(world, other, bob) == []
    (left,) = await policies_of(world, world.project, {})
    assert (left["id"], left["policy_type"]) == (copy, "organization_policy_removed")
    await run_once(world, vault)
    path = world.v3(f"policies/{copy}")
    check_answer("update_policy", await world.client.put(path, json={"policy": {"name": "mine"}}))
    check_answer("delete_policy", await world.client.delete(path))


async def test_a_project_that_joins_gets_what_is_for_all(world: World) -> None:
    """A project that an operator makes, or that a rebuild brings back, has the copies at once."""
    await world.execute("UPDATE domains SET name = 'default'")
    header = boss(world)
    made = await create(world, header)
    await create(world, header, name="some", effective_scope=world.project)
    accounts = Accounts(database=world.database, ring=None, passwords=Passwords(), clock=world.clock)  # type: ignore[arg-type]
    joined = await accounts.create_project("joined")
    assert (await copies(world, header, made["id"])).keys() == {world.project, joined.id}
    vault = LostVault(
        id=new_id(),
        project_id="f" * 32,
        name="v",
        object_type="turbo",
        size_gb=10,
        used_bytes=0,
        wrapped={},
        created_at=world.clock.now(),
        backups=(),
    )
    await restore_rows(world.database, vault, world.clock.now(), registrations=False)
    assert (await copies(world, header, made["id"])).keys() == {world.project, joined.id, "f" * 32}


async def test_lists_have_pages_and_quotas(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """operation_type is a filter; the count is of all; so many of a kind and no more (6001); the project's own quota
    does not count copies."""
    monkeypatch.setattr("strongroom.control.organization_policies.POLICIES_MAX", 2)
    monkeypatch.setattr("strongroom.control.policies.POLICIES_MAX", 1)
    header = boss(world)
    names = [(await create(world, header, name=f"org-{number}"))["name"] for number in range(2)]
    path = world.v3("organization-policies")
    check_error("create_organization_policy", await world.client.post(path, json=wanted(), headers=header), 400, "6001")
    for query, expected, count in (
        ("", names[::-1], 2),
        ("?operation_type=backup&limit=1", names[1:], 2),
        ("?offset=1", names[:1], 2),
        ("?offset=5", [], 2),
        ("?operation_type=replication", [], 0),
    ):
        answer = check_answer("list_organization_policies", await world.client.get(path + query, headers=header))
        assert ([policy["name"] for policy in answer["policies"]], answer["count"]) == (expected, count)
    for query in ("?limit=0", "?offset=-1", "?operation_type=copy"):
        refused = await world.client.get(path + query, headers=header)
        check_error("list_organization_policies", refused, 400, "9900")
    own = {
        "name": "own",
        "operation_type": "backup",
        "trigger": {"properties": {"pattern": [NIGHTLY]}},
        "operation_definition": {},
    }
    check_answer("create_policy", await world.client.post(world.v3("policies"), json={"policy": own}))
