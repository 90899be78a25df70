"""create, list, show, update and delete policy, and policies applied to vaults, against the contract."""

import asyncio
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from in_process_api import PROJECT_A, InProcessApi, Person

UNKNOWN = "00000000-0000-4000-8000-000000000000"
NIGHTLY = "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR,SA,SU;BYHOUR=06;BYMINUTE=00"
DAILY = "FREQ=DAILY;INTERVAL=2;BYHOUR=8,20;BYMINUTE=0"


def wanted(**members: Any) -> dict[str, Any]:
    """A body for create; `trigger_...` and `definition` members are given by their own names."""
    properties = {"pattern": members.pop("pattern", [NIGHTLY]), **members.pop("properties", {})}
    body = {
        "name": "nightly",
        "operation_type": "backup",
        "trigger": {"properties": properties},
        "operation_definition": members.pop("definition", {"max_backups": 7}),
        **members,
    }
    return {"policy": body}


async def create(person: Person, **members: Any) -> dict[str, Any]:
    answer = check_answer("create_policy", await person.post("/policies", json=wanted(**members)))
    policy: dict[str, Any] = answer["policy"]
    return policy


async def create_vault(person: Person, object_type: str = "turbo", **members: Any) -> str:
    billing = {
        "consistent_level": "crash_consistent",
        "object_type": object_type,
        "protect_type": members.pop("protect_type", "backup"),
        "size": 100,
        "cloud_type": members.pop("cloud_type", "public"),
    }
    body = {"vault": {"name": "v", "resources": [], "billing": billing, **members}}
    return str(check_answer("create_vault", await person.post("/vaults", json=body))["vault"]["id"])


async def apply(person: Person, vault_id: str, policy_id: str) -> Any:
    answer = await person.post(f"/vaults/{vault_id}/associatepolicy", json={"policy_id": policy_id})
    return check_answer("associate_vault_policy", answer)


async def show(person: Person, policy_id: str) -> dict[str, Any]:
    policy: dict[str, Any] = check_answer("show_policy", await person.get(f"/policies/{policy_id}"))["policy"]
    return policy


async def next_of(api: InProcessApi, vault_id: str) -> Any:
    rows = await api.rows("SELECT next_fire_at FROM policy_vaults WHERE vault_id = %s", vault_id)
    return rows[0]["next_fire_at"] if rows else "unbound"


# --- policies ---------------------------------------------------------------------------------------------------------


async def test_create_answers_what_was_given_word_for_word(api: InProcessApi) -> None:
    """Patterns in order with their zeros, the definition's given members and no others, every documented default."""
    definition = {"max_backups": 7, "day_backups": 3, "timezone": "UTC+08:00", "retention_duration_days": -1}
    policy = await create(api.alice, pattern=[NIGHTLY, DAILY], definition=definition)
    assert policy == {
        "id": policy["id"],
        "name": "nightly",
        "enabled": True,
        "operation_type": "backup",
        "trigger": {
            "id": policy["trigger"]["id"],
            "name": "default",
            "type": "time",
            "properties": {
                "pattern": [NIGHTLY, DAILY],
                "start_time": policy["trigger"]["properties"]["start_time"],
            },
        },
        "operation_definition": definition,
        "associated_vaults": [],
        "policy_type": "custom_policy",
    }
    assert policy["trigger"]["properties"]["start_time"].endswith("+00:00")
    assert await show(api.alice, policy["id"]) == policy
    listed = check_answer("list_policies", await api.alice.get("/policies"))
    assert listed == {"policies": [policy], "count": 1}


async def test_a_definition_may_be_nearly_empty_and_members_null(api: InProcessApi) -> None:
    """null is absent, unknown members are ignored, and only a time zone is enough."""
    policy = await create(
        api.alice,
        definition={"timezone": "UTC+00:00", "max_backups": None, "something": 1},
        enabled=None,
        extra_info={},
        properties={"start_window_minutes": None, "other": True},
    )
    assert policy["operation_definition"] == {"timezone": "UTC+00:00"}
    assert policy["enabled"] is True


async def test_start_window_and_time_zone_are_kept(api: InProcessApi) -> None:
    """The spread of the newer SDK, and our own member for the wall clock of a place: retention counts its days."""
    properties = {"start_window_minutes": 60, "time_zone": "Europe/Berlin"}
    policy = await create(api.alice, properties=properties, definition={"day_backups": 3})
    assert properties.items() <= policy["trigger"]["properties"].items()


async def test_two_policies_may_have_one_name_and_the_newest_is_first(api: InProcessApi) -> None:
    """Names are not unique; the list is whole, newest first, and can be filtered by kind."""
    first, second = await create(api.alice), await create(api.alice)
    replication = {"destination_region": "eu-nl", "destination_project_id": PROJECT_A}
    third = await create(api.alice, operation_type="replication", definition=replication)
    ids = [policy["id"] for policy in check_answer("list_policies", await api.alice.get("/policies"))["policies"]]
    assert ids == [third["id"], second["id"], first["id"]]
    for kind, count in (("backup", 2), ("replication", 1)):
        answer = check_answer("list_policies", await api.alice.get(f"/policies?operation_type={kind}"))
        assert answer["count"] == len(answer["policies"]) == count
        assert {policy["operation_type"] for policy in answer["policies"]} == {kind}


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("name", {"name": "a b"}),
    ("name", {"name": "x" * 65}),
    ("pattern", {"pattern": []}),
    ("pattern", {"pattern": ["FREQ=DAILY"]}),
    ("pattern", {"pattern": ["FREQ=DAILY;BYHOUR=1;BYMINUTE=0,30"]}),
    ("pattern", {"pattern": [NIGHTLY] * 25}),
    ("start_window_minutes", {"properties": {"start_window_minutes": 59}}),
    ("start_window_minutes", {"properties": {"start_window_minutes": 481}}),
    ("time_zone", {"properties": {"time_zone": "Mars"}}),
    ("max_backups", {"definition": {"max_backups": 0}}),
    ("max_backups", {"definition": {"max_backups": 100000}}),
    ("max_backups", {"definition": {"max_backups": "7"}}),
    ("max_backups", {"definition": {"max_backups": -2}}),
    ("retention_duration_days", {"definition": {"retention_duration_days": 0}}),
    ("day_backups", {"definition": {"day_backups": 101, "timezone": "UTC+08:00"}}),
    ("year_backups", {"definition": {"year_backups": -1, "timezone": "UTC+08:00"}}),
    ("timezone", {"definition": {"week_backups": 1}}),
    ("timezone", {"definition": {"timezone": "Europe/Berlin"}}),
    ("full_backup_interval", {"definition": {"full_backup_interval": 101}}),
    ("exclude each other", {"definition": {"max_backups": 1, "retention_duration_days": 1}}),
    ("exclude each other", {"definition": {"month_backups": 1, "timezone": "UTC+08:00", "retention_duration_days": 1}}),
    ("enable_acceleration", {"definition": {"enable_acceleration": True}}),
    ("advanced_retention_rules", {"definition": {"advanced_retention_rules": {"weekly_retention_rules": {}}}}),
    ("destination_region", {"operation_type": "replication"}),
    (
        "destination_region",
        {"operation_type": "replication", "definition": {"destination_region": "eu-de", "destination_project_id": "p"}},
    ),
    ("destination_project_id", {"operation_type": "replication", "definition": {"destination_region": "eu-nl"}}),
]


@pytest.mark.parametrize(("member", "members"), REFUSED, ids=[f"{m}-{i}" for i, (m, _) in enumerate(REFUSED)])
async def test_a_bad_policy_is_refused_and_nothing_is_written(
    api: InProcessApi, member: str, members: dict[str, Any]
) -> None:
    """400 with 9900 and a sentence that names the member."""
    error = check_error("create_policy", await api.alice.post("/policies", json=wanted(**members)), 400, "9900")
    assert member in error["error_msg"]
    assert await api.rows("SELECT 1 FROM policies") == []


async def test_missing_members_are_named(api: InProcessApi) -> None:
    """name, operation_type, trigger and operation_definition are required."""
    for member in ("name", "operation_type", "trigger", "operation_definition"):
        body = wanted()
        del body["policy"][member]
        error = check_error("create_policy", await api.alice.post("/policies", json=body), 400, "9900")
        assert member in error["error_msg"]


async def test_the_quota_holds_for_creations_at_once(api: InProcessApi) -> None:
    """32 backup policies, however they arrive; the 33rd is refused with 6001, and replication has its own 32."""
    answers = await asyncio.gather(*(api.alice.post("/policies", json=wanted()) for _ in range(34)))
    assert sorted(answer.status_code for answer in answers) == [200] * 32 + [400] * 2
    for answer in answers:
        if answer.status_code == 400:
            check_error("create_policy", answer, 400, "6001")
    replication = {"destination_region": "eu-nl", "destination_project_id": PROJECT_A}
    await create(api.alice, operation_type="replication", definition=replication)
    await create(api.bob)


async def test_update_replaces_definition_and_trigger_whole(api: InProcessApi) -> None:
    """What is left out at the top stays; inside it goes; ids, start and kind are the policy's for ever."""
    policy = await create(api.alice, properties={"start_window_minutes": 60}, definition={"retention_duration_days": 9})
    path = f"/policies/{policy['id']}"

    async def update(**members: Any) -> dict[str, Any]:
        answer = check_answer("update_policy", await api.alice.put(path, json={"policy": members}))
        assert answer["policy"] == await show(api.alice, policy["id"])
        changed: dict[str, Any] = answer["policy"]
        return changed

    assert await update() == policy
    assert await update(name="other", operation_type="replication") == policy | {"name": "other"}
    counted = await update(operation_definition={"max_backups": 3})
    assert counted["operation_definition"] == {"max_backups": 3}
    assert counted["trigger"] == policy["trigger"]
    moved = await update(trigger={"properties": {"pattern": [DAILY]}}, enabled=False)
    assert moved["trigger"] == {
        **policy["trigger"],
        "properties": {"pattern": [DAILY], "start_time": policy["trigger"]["properties"]["start_time"]},
    }
    assert moved["enabled"] is False
    for member, value in {
        "name": "a b",
        "trigger": {"properties": {"pattern": ["x"]}},
        "operation_definition": {"max_backups": 0},
        "enabled": "yes",
    }.items():
        check_error("update_policy", await api.alice.put(path, json={"policy": {member: value}}), 400, "9900")
    assert await show(api.alice, policy["id"]) == moved


async def test_the_triggers_zone_cannot_go_while_the_definition_needs_it(api: InProcessApi) -> None:
    """Day rules without a zone of their own count the trigger's days; a PUT that drops that zone is refused."""
    policy = await create(api.alice, properties={"time_zone": "Europe/Berlin"}, definition={"day_backups": 3})
    body = {"policy": {"trigger": {"properties": {"pattern": [DAILY]}}}}
    answer = await api.alice.put(f"/policies/{policy['id']}", json=body)
    assert "timezone" in check_error("update_policy", answer, 400, "9900")["error_msg"]


async def test_delete_unbinds_and_is_once(api: InProcessApi) -> None:
    """204, then 404 6000 for everything; the vault it was applied to is free."""
    policy, vault = await create(api.alice), await create_vault(api.alice)
    await apply(api.alice, vault, policy["id"])
    check_answer("delete_policy", await api.alice.delete(f"/policies/{policy['id']}"))
    check_error("delete_policy", await api.alice.delete(f"/policies/{policy['id']}"), 404, "6000")
    check_error("show_policy", await api.alice.get(f"/policies/{policy['id']}"), 404, "6000")
    check_error("update_policy", await api.alice.put(f"/policies/{policy['id']}", json={"policy": {}}), 404, "6000")
    assert await next_of(api, vault) == "unbound"


async def test_a_malformed_id_is_400_and_a_filter_too(api: InProcessApi) -> None:
    """The name look-up of clients: not 404, not 500."""
    check_error("show_policy", await api.alice.get("/policies/my-policy"), 400, "9900")
    for query in ("operation_type=x", "vault_id=x"):
        check_error("list_policies", await api.alice.get(f"/policies?{query}"), 400, "9900")
    assert check_answer("list_policies", await api.alice.get(f"/policies?vault_id={UNKNOWN}"))["policies"] == []


# --- applied to vaults ------------------------------------------------------------------------------------------------


async def test_apply_and_take_away(api: InProcessApi) -> None:
    """The answers of both calls; policies by vault, vaults by policy, and the policy's own list agree."""
    policy, vault = await create(api.alice), await create_vault(api.alice)
    other = await create_vault(api.alice)
    assert await apply(api.alice, vault, policy["id"]) == {
        "associate_policy": {"vault_id": vault, "policy_id": policy["id"], "destination_vault_id": None}
    }
    await apply(api.alice, other, policy["id"])
    shown = await show(api.alice, policy["id"])
    assert shown["associated_vaults"] == [
        {"vault_id": vault, "destination_vault_id": None},
        {"vault_id": other, "destination_vault_id": None},
    ]
    assert check_answer("list_policies", await api.alice.get(f"/policies?vault_id={vault}"))["policies"] == [shown]
    vaults = check_answer("list_vault", await api.alice.get(f"/vaults?policy_id={policy['id']}"))["vaults"]
    assert {row["id"] for row in vaults} == {vault, other}
    path = f"/vaults/{vault}/dissociatepolicy"
    answer = check_answer("disassociate_vault_policy", await api.alice.post(path, json={"policy_id": policy["id"]}))
    assert answer["dissociate_policy"] == {"vault_id": vault, "policy_id": policy["id"], "destination_vault_id": None}
    answer = await api.alice.post(path, json={"policy_id": policy["id"]})
    check_error("disassociate_vault_policy", answer, 404, "6002")
    answer = await api.alice.post(path, json={"policy_id": UNKNOWN})
    check_error("disassociate_vault_policy", answer, 404, "6000")
    assert await next_of(api, vault) == "unbound"


async def test_a_vault_has_one_policy_of_a_kind(api: InProcessApi) -> None:
    """A second backup policy takes the first one's place; the same one again changes nothing."""
    first, second = await create(api.alice), await create(api.alice, pattern=[DAILY])
    vault = await create_vault(api.alice)
    await apply(api.alice, vault, first["id"])
    before = await next_of(api, vault)
    await apply(api.alice, vault, first["id"])
    assert await next_of(api, vault) == before
    await apply(api.alice, vault, second["id"])
    assert (await show(api.alice, first["id"]))["associated_vaults"] == []
    assert [row["vault_id"] for row in (await show(api.alice, second["id"]))["associated_vaults"]] == [vault]


async def test_a_vault_may_be_made_with_its_policy(api: InProcessApi) -> None:
    """backup_policy_id binds in the same call; an unknown or foreign one is 404 6000 and no vault is left."""
    policy, foreign = await create(api.alice), await create(api.bob)
    vault = await create_vault(api.alice, backup_policy_id=policy["id"])
    assert [row["vault_id"] for row in (await show(api.alice, policy["id"]))["associated_vaults"]] == [vault]
    billing = {"consistent_level": "crash_consistent", "object_type": "turbo", "protect_type": "backup", "size": 10}
    for wrong in (UNKNOWN, foreign["id"]):
        body = {"vault": {"name": "w", "resources": [], "billing": billing, "backup_policy_id": wrong}}
        check_error("create_vault", await api.alice.post("/vaults", json=body), 404, "6000")
    assert len(await api.rows("SELECT 1 FROM vaults")) == 1


async def test_add_policy_ids_applies_each_in_turn_or_none(api: InProcessApi) -> None:
    """The newer form: the last of a kind stays; with an unknown one nothing is changed; never both forms or neither."""
    first, second = await create(api.alice), await create(api.alice)
    vault = await create_vault(api.alice)
    path = f"/vaults/{vault}/associatepolicy"
    for ids in ([first["id"], UNKNOWN], [first["id"]] * 11, []):
        answer = await api.alice.post(path, json={"add_policy_ids": ids})
        code = (404, "6000") if UNKNOWN in ids else (400, "9900")
        check_error("associate_vault_policy", answer, *code)
        assert await next_of(api, vault) == "unbound"
    for body in ({}, {"policy_id": first["id"], "add_policy_ids": [first["id"]]}, {"policy_id": "x"}):
        check_error("associate_vault_policy", await api.alice.post(path, json=body), 400, "9900")
    answer = await api.alice.post(path, json={"add_policy_ids": [first["id"], second["id"]]})
    assert check_answer("associate_vault_policy", answer)["associate_policy"]["policy_id"] == second["id"]
    assert [row["vault_id"] for row in (await show(api.alice, second["id"]))["associated_vaults"]] == [vault]


async def test_a_policy_must_fit_the_vault(api: InProcessApi) -> None:
    """Published codes: 6127 for the wrong kinds, 6136 for hybrid vaults, 9900 without, 6120 with an unknown target."""
    backup = (await create(api.alice))["id"]
    target = {"destination_region": "eu-nl", "destination_project_id": PROJECT_A}
    replication = (await create(api.alice, operation_type="replication", definition=target))["id"]
    replicas = await create_vault(api.alice, protect_type="replication")
    hybrid = await create_vault(api.alice, "server", protect_type="hybrid", cloud_type="hybrid")
    disks, servers = await create_vault(api.alice, "disk"), await create_vault(api.alice, "server")

    async def refused(vault: str, status: int, code: str, **body: Any) -> None:
        answer = await api.alice.post(f"/vaults/{vault}/associatepolicy", json=body)
        check_error("associate_vault_policy", answer, status, code)

    await refused(replicas, 400, "6127", policy_id=backup)
    await refused(hybrid, 400, "6136", policy_id=backup)
    await refused(disks, 400, "6127", policy_id=replication, destination_vault_id=UNKNOWN)
    await refused(replicas, 400, "6127", policy_id=replication, destination_vault_id=UNKNOWN)
    await refused(servers, 400, "9900", policy_id=replication)
    await refused(servers, 400, "6120", policy_id=replication, destination_vault_id=UNKNOWN)
    await refused(UNKNOWN, 404, "6105", policy_id=backup)
    await refused(servers, 404, "6000", policy_id=UNKNOWN)
    assert await api.rows("SELECT 1 FROM policy_vaults") == []


async def test_disabled_does_not_fire_and_only_a_change_of_time_moves_the_next_run(api: InProcessApi) -> None:
    """enabled and trigger decide the next run of every vault; a new name or retention leaves a due one due."""
    policy, vault = await create(api.alice, enabled=False), await create_vault(api.alice)
    path = f"/policies/{policy['id']}"
    await apply(api.alice, vault, policy["id"])
    assert await next_of(api, vault) is None
    check_answer("update_policy", await api.alice.put(path, json={"policy": {"enabled": True}}))
    fires = await next_of(api, vault)
    assert (fires.hour, fires.minute) == (6, 0)
    await api.execute("UPDATE policy_vaults SET next_fire_at = now() - interval '1 hour'")
    due = await next_of(api, vault)
    body = {"policy": {"name": "n", "enabled": True, "operation_definition": {"max_backups": 1}}}
    check_answer("update_policy", await api.alice.put(path, json=body))
    assert await next_of(api, vault) == due
    body = {"policy": {"trigger": {"properties": {"pattern": ["FREQ=DAILY;BYHOUR=7;BYMINUTE=5"]}}}}
    check_answer("update_policy", await api.alice.put(path, json=body))
    assert (await next_of(api, vault)).minute == 5
    check_answer("update_policy", await api.alice.put(path, json={"policy": {"enabled": False}}))
    assert await next_of(api, vault) is None


async def test_a_start_window_spreads_the_vaults(api: InProcessApi) -> None:
    """With a window of four hours the runs of 20 vaults lie within it, apart, and each always at its own place."""
    policy = await create(api.alice, properties={"start_window_minutes": 240}, pattern=[NIGHTLY])
    vaults = [await create_vault(api.alice, backup_policy_id=policy["id"]) for _ in range(20)]
    at = [await next_of(api, vault) for vault in vaults]
    assert all(6 <= fires.hour < 10 for fires in at)
    assert len(set(at)) == 20
    off_and_on = [{"policy": {"enabled": False}}, {"policy": {"enabled": True}}]
    for body in off_and_on:
        check_answer("update_policy", await api.alice.put(f"/policies/{policy['id']}", json=body))
    assert [(await next_of(api, vault)).time() for vault in vaults] == [fires.time() for fires in at]


async def test_a_vault_on_its_way_out_has_no_policy(api: InProcessApi) -> None:
    """Deleting a vault that holds something unbinds its policies at once, and none can be applied any more."""
    policy, vault = await create(api.alice), await create_vault(api.alice)
    await apply(api.alice, vault, policy["id"])
    await api.execute("INSERT INTO vault_keys VALUES (%s, %s, 'x')", PROJECT_A, vault)
    check_answer("delete_vault", await api.alice.delete(f"/vaults/{vault}"))
    assert (await show(api.alice, policy["id"]))["associated_vaults"] == []
    answer = await api.alice.post(f"/vaults/{vault}/associatepolicy", json={"policy_id": policy["id"]})
    check_error("associate_vault_policy", answer, 400, "6112")


# --- who may ----------------------------------------------------------------------------------------------------------


async def test_another_tenant_sees_and_changes_nothing(api: InProcessApi) -> None:
    """A foreign policy or vault is answered like a missing one, in path, query and body."""
    policy, vault = await create(api.alice), await create_vault(api.alice)
    mine, own = await create(api.bob), await create_vault(api.bob)
    await apply(api.alice, vault, policy["id"])
    path = f"/policies/{policy['id']}"
    check_error("show_policy", await api.bob.get(path), 404, "6000")
    check_error("update_policy", await api.bob.put(path, json={"policy": {"enabled": False}}), 404, "6000")
    check_error("delete_policy", await api.bob.delete(path), 404, "6000")
    assert check_answer("list_policies", await api.bob.get(f"/policies?vault_id={vault}"))["policies"] == []
    assert check_answer("list_vault", await api.bob.get(f"/vaults?policy_id={policy['id']}"))["vaults"] == []
    for verb, operation in (("associate", "associate_vault_policy"), ("dissociate", "disassociate_vault_policy")):
        answer = await api.bob.post(f"/vaults/{vault}/{verb}policy", json={"policy_id": mine["id"]})
        check_error(operation, answer, 404, "6105")
        answer = await api.bob.post(f"/vaults/{own}/{verb}policy", json={"policy_id": policy["id"]})
        check_error(operation, answer, 404, "6000")
    assert await show(api.alice, policy["id"]) == policy | {
        "associated_vaults": [{"vault_id": vault, "destination_vault_id": None}]
    }


async def test_a_reader_reads_only(api: InProcessApi) -> None:
    """list and show are a reader's; everything that changes is 403."""
    policy, vault = await create(api.alice), await create_vault(api.alice)
    path = f"/policies/{policy['id']}"
    check_answer("list_policies", await api.rita.get("/policies"))
    check_answer("show_policy", await api.rita.get(path))
    check_error("create_policy", await api.rita.post("/policies", json=wanted()), 403, "8600")
    check_error("update_policy", await api.rita.put(path, json={"policy": {}}), 403, "8600")
    check_error("delete_policy", await api.rita.delete(path), 403, "8600")
    for verb, operation in (("associate", "associate_vault_policy"), ("dissociate", "disassociate_vault_policy")):
        answer = await api.rita.post(f"/vaults/{vault}/{verb}policy", json={"policy_id": policy["id"]})
        check_error(operation, answer, 403, "8600")
    check_error("list_policies", await api.nobody.get("/policies"), 401, "APIGW.0301")
