"""Tags of vaults, project tags, and resource_instances/action, against the contract."""

import asyncio
from typing import Any

import pytest
from contract_schema import check_answer, check_error
from in_process_api import InProcessApi, Person
from test_api_vaults import UNKNOWN, create

ACTION = "/vault/resource_instances/action"


async def tags_of(person: Person, vault_id: str) -> dict[str, str]:
    answer = check_answer("show_vault_tag", await person.get(f"/vault/{vault_id}/tags"))
    shown = check_answer("show_vault", await person.get(f"/vaults/{vault_id}"))["vault"]["tags"]
    assert shown == answer["tags"]
    return {tag["key"]: tag["value"] for tag in answer["tags"]}


async def put_tag(person: Person, vault_id: str, key: str, value: str) -> Any:
    return await person.post(f"/vault/{vault_id}/tags", json={"tag": {"key": key, "value": value}})


async def act(person: Person, vault_id: str, action: str, *tags: Any) -> Any:
    return await person.post(f"/vault/{vault_id}/tags/action", json={"action": action, "tags": list(tags)})


async def found(person: Person, **conditions: Any) -> list[str]:
    """Names that a search finds, sorted; its count agrees."""
    body = {"action": "filter", **conditions}
    answer = check_answer("show_vault_resource_instances", await person.post(ACTION, json=body))
    counted = await person.post(ACTION, json={**body, "action": "count"})
    assert check_answer("show_vault_resource_instances", counted) == {"total_count": answer["total_count"]}
    assert answer["total_count"] == len(answer["resources"])
    return sorted(resource["resource_name"] for resource in answer["resources"])


async def test_a_tag_is_set_overwritten_and_deleted(api: InProcessApi) -> None:
    """A key that is there gets the new value; a key that is not there cannot be deleted; other tags stay."""
    vault_id = (await create(api.alice, tags=[{"key": "old", "value": "1"}]))["id"]
    check_answer("create_vault_tags", await put_tag(api.alice, vault_id, "\u5e93", "a.b"))
    check_answer("create_vault_tags", await put_tag(api.alice, vault_id, "\u5e93", ""))
    assert await tags_of(api.alice, vault_id) == {"old": "1", "\u5e93": ""}
    check_answer("delete_vault_tag", await api.alice.delete(f"/vault/{vault_id}/tags/%E5%BA%93"))
    assert await tags_of(api.alice, vault_id) == {"old": "1"}
    for key in ("%E5%BA%93", "never", "k" * 300, "%00", "a.b"):
        check_error("delete_vault_tag", await api.alice.delete(f"/vault/{vault_id}/tags/{key}"), 404, "6601")
    assert await tags_of(api.alice, vault_id) == {"old": "1"}


async def test_a_slash_that_is_sent_as_part_of_a_value_stays_in_it(api: InProcessApi) -> None:
    """%2F splits no path: such a key is one that is not there, and what lies before the slash is not hit."""
    vault_id = (await create(api.alice, tags=[{"key": "team", "value": "1"}]))["id"]
    assert (await put_tag(api.alice, vault_id, "team/owner", "1")).status_code == 400
    for key in ("team%2Fowner", "team%2f", "%2Fteam"):
        check_error("delete_vault_tag", await api.alice.delete(f"/vault/{vault_id}/tags/{key}"), 404, "6601")
    assert await tags_of(api.alice, vault_id) == {"team": "1"}
    for path in (f"/vault%2F{vault_id}/tags", f"/vault/{vault_id}%2Ftags"):
        assert (await api.alice.get(path)).status_code == 404


async def test_tags_change_in_batches(api: InProcessApi) -> None:
    """A client changes tags by deleting all and creating others; deleting what is not there succeeds."""
    vault_id = (await create(api.alice, tags=[{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]))["id"]
    tags = [{"key": "a"}, {"key": "b", "value": "another"}, {"key": "x" * 127, "value": "v" * 255}]
    check_answer("batch_create_and_delete_vault_tags", await act(api.alice, vault_id, "delete", *tags))
    assert await tags_of(api.alice, vault_id) == {}
    tags = [{"key": "c", "value": "3"}, {"key": "d"}]
    check_answer("batch_create_and_delete_vault_tags", await act(api.alice, vault_id, "create", *tags))
    assert await tags_of(api.alice, vault_id) == {"c": "3", "d": ""}


async def test_a_vault_takes_twenty_tags(api: InProcessApi) -> None:
    """The twenty-first key is 6600 and changes nothing, also when many arrive at once; a known key may change."""
    vault_id = (await create(api.alice, tags=[{"key": f"k{i}", "value": "v"} for i in range(18)]))["id"]
    full = await act(api.alice, vault_id, "create", *({"key": f"n{i}", "value": ""} for i in range(3)))
    check_error("batch_create_and_delete_vault_tags", full, 400, "6600")
    answers = await asyncio.gather(*(put_tag(api.alice, vault_id, f"one{i}", "") for i in range(6)))
    assert sorted(answer.status_code for answer in answers) == [204] * 2 + [400] * 4
    check_answer("create_vault_tags", await put_tag(api.alice, vault_id, "k0", "changed"))
    tags = await tags_of(api.alice, vault_id)
    assert (len(tags), tags["k0"]) == (20, "changed")


@pytest.mark.parametrize(
    "body",
    [
        {"tags": [{"key": "a", "value": "1"}]},
        {"action": "replace", "tags": [{"key": "a", "value": "1"}]},
        {"action": "create"},
        {"action": "create", "tags": []},
        {"action": "delete", "tags": None},
        {"action": "create", "tags": [{"value": "1"}]},
        {"action": "create", "tags": [{"key": "", "value": "1"}]},
        {"action": "create", "tags": [{"key": "a b", "value": "1"}]},
        {"action": "create", "tags": [{"key": "k" * 37, "value": "1"}]},
        {"action": "create", "tags": [{"key": "k", "value": "v" * 44}]},
        {"action": "create", "tags": [{"key": "k", "value": "1"}, {"key": "k", "value": "2"}]},
        {"action": "delete", "tags": [{"key": "k"}, {"key": "k"}]},
        {"action": "delete", "tags": [{"key": "k" * 128}]},
        {"action": "delete", "tags": [{"key": f"k{i}"} for i in range(101)]},
        {"action": "create", "tags": {"key": "k"}},
    ],
)
async def test_a_bad_batch_is_refused_and_changes_nothing(api: InProcessApi, body: Any) -> None:
    """Every malformed batch ends as 9900, and the tags are as they were."""
    vault_id = (await create(api.alice, tags=[{"key": "k", "value": "1"}]))["id"]
    response = await api.alice.post(f"/vault/{vault_id}/tags/action", json=body)
    check_error("batch_create_and_delete_vault_tags", response, 400, "9900")
    assert await tags_of(api.alice, vault_id) == {"k": "1"}


async def test_who_may_touch_tags(api: InProcessApi) -> None:
    """A reader only reads; a foreign vault is as missing as none; system tags are nobody's; a dying vault keeps its."""
    vault_id = (await create(api.alice, tags=[{"key": "k", "value": "1"}]))["id"]
    assert await tags_of(api.rita, vault_id) == {"k": "1"}
    check_error("create_vault_tags", await put_tag(api.rita, vault_id, "k", "2"), 403, "8600")
    batch = "batch_create_and_delete_vault_tags"
    check_error(batch, await act(api.rita, vault_id, "delete", {"key": "k"}), 403, "8600")
    check_error("delete_vault_tag", await api.rita.delete(f"/vault/{vault_id}/tags/k"), 403, "8600")
    for foreign in (vault_id, UNKNOWN):
        for operation, answer in (
            ("show_vault_tag", await api.bob.get(f"/vault/{foreign}/tags")),
            ("create_vault_tags", await put_tag(api.bob, foreign, "k", "2")),
            (batch, await act(api.bob, foreign, "delete", {"key": "k"})),
            ("delete_vault_tag", await api.bob.delete(f"/vault/{foreign}/tags/k")),
        ):
            assert check_error(operation, answer, 404, "6105")["error_msg"] == f"Vault {foreign} does not exist."
    body = {"action": "create", "sys_tags": [{"key": "_sys_enterprise_project_id", "value": "x"}]}
    check_error(batch, await api.alice.post(f"/vault/{vault_id}/tags/action", json=body), 403, "8600")
    await api.execute("UPDATE vaults SET status = 'deleting' WHERE id = %s", vault_id)
    check_error("create_vault_tags", await put_tag(api.alice, vault_id, "k", "2"), 400, "6112")
    assert await tags_of(api.alice, vault_id) == {"k": "1"}


async def test_project_tags_join_all_vaults(api: InProcessApi) -> None:
    """Each key once with its distinct values; of other projects nothing."""
    for value in ("x", "y", "x", ""):
        await create(api.alice, tags=[{"key": "env", "value": value}, {"key": "a", "value": "1"}])
    await create(api.bob, tags=[{"key": "env", "value": "secret"}])
    answer = check_answer("show_vault_project_tag", await api.rita.get("/vault/tags"))
    assert answer == {"tags": [{"key": "a", "values": ["1"]}, {"key": "env", "values": ["", "x", "y"]}]}


async def test_vaults_are_found_by_their_tags(api: InProcessApi) -> None:
    """All, any, not all, not any; values of a key are alternatives; none is any; a star looks inside."""
    for name, tags in {
        "prod-db": {"env": "prod", "team": "db"},
        "prod-web": {"env": "prod", "team": "web-front"},
        "test-web": {"env": "test", "team": "web-front"},
        "bare": {},
    }.items():
        await create(api.alice, name=name, tags=[{"key": k, "value": v} for k, v in tags.items()])
    await create(api.bob, name="bobs", tags=[{"key": "env", "value": "prod"}])

    def key(name: str, *values: str) -> dict[str, Any]:
        return {"key": name, "values": list(values)}

    prod, web = key("env", "prod"), key("team", "*web")
    everything = ["bare", "prod-db", "prod-web", "test-web"]
    for conditions, expected in (
        ({}, everything),
        ({"tags": []}, everything),
        ({"tags": [prod]}, ["prod-db", "prod-web"]),
        ({"tags": [prod, web]}, ["prod-web"]),
        ({"tags": [key("env", "prod", "test")]}, ["prod-db", "prod-web", "test-web"]),
        ({"tags": [key("env")]}, ["prod-db", "prod-web", "test-web"]),
        ({"tags": [key("team", "web")]}, []),
        ({"tags": [key("team", "*")]}, None),
        ({"tags": [key("env", "*ro", "test")]}, ["prod-db", "prod-web", "test-web"]),
        ({"tags": [key("env", "*%")]}, []),
        ({"tags_any": [prod, web]}, ["prod-db", "prod-web", "test-web"]),
        ({"not_tags": [prod, web]}, ["bare", "prod-db", "test-web"]),
        ({"not_tags_any": [prod, web]}, ["bare"]),
        ({"tags": [prod], "not_tags": [web]}, ["prod-db"]),
        ({"without_any_tag": True}, ["bare"]),
        ({"without_any_tag": True, "tags": [prod]}, ["bare"]),
        ({"matches": [{"key": "resource_name", "value": "web"}]}, ["prod-web", "test-web"]),
        ({"matches": [{"key": "resource_name", "value": ""}]}, []),
        ({"matches": []}, everything),
        ({"object_type": "turbo"}, everything),
        ({"object_type": "disk"}, []),
        ({"cloud_type": "hybrid"}, []),
        ({"sys_tags": [key("_sys_enterprise_project_id", "0")]}, everything),
        ({"sys_tags": [key("_sys_enterprise_project_id", "other")]}, []),
    ):
        if expected is None:
            refused = await api.alice.post(ACTION, json={"action": "filter", **conditions})
            check_error("show_vault_resource_instances", refused, 400, "9900")
        else:
            assert await found(api.alice, **conditions) == expected, conditions


async def test_a_search_is_paged_by_texts_and_shows_whole_vaults(api: InProcessApi) -> None:
    """limit and offset are texts; behind the end the page is empty and the count whole; the detail is the vault."""
    made = [await create(api.alice, name=f"v{i}", tags=[{"key": "k", "value": ""}]) for i in range(3)]
    seen = []
    for offset in ("0", "2", "4"):
        body = {"action": "filter", "limit": "2", "offset": offset}
        answer = check_answer("show_vault_resource_instances", await api.rita.post(ACTION, json=body))
        assert answer["total_count"] == 3
        seen += answer["resources"]
    assert [entry["resource_detail"]["vault"] for entry in seen] == made[::-1]
    assert [entry["tags"] for entry in seen] == [[{"key": "k", "value": ""}]] * 3
    query = await api.alice.post(f"{ACTION}?enterprise_project_id=none", json={"action": "count"})
    assert check_answer("show_vault_resource_instances", query) == {"total_count": 0}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": "list"},
        {"action": "filter", "limit": "0"},
        {"action": "filter", "limit": "1001"},
        {"action": "filter", "limit": "ten"},
        {"action": "filter", "limit": "9" * 40},
        {"action": "filter", "offset": "-1"},
        {"action": "filter", "limit": ""},
        {"action": "filter", "tags": [{"key": "", "values": []}]},
        {"action": "filter", "tags": [{"values": []}]},
        {"action": "filter", "tags": [{"key": "k", "values": ["a", "a"]}]},
        {"action": "filter", "tags": [{"key": "k", "values": []}, {"key": "k", "values": []}]},
        {"action": "filter", "not_tags_any": [{"key": f"k{i}", "values": []} for i in range(21)]},
        {"action": "filter", "tags_any": [{"key": "k" * 128, "values": []}]},
        {"action": "filter", "not_tags": [{"key": "k", "values": ["v" * 256]}]},
        {"action": "filter", "matches": [{"key": "name", "value": "x"}]},
        {"action": "filter", "matches": [{"key": "resource_name", "value": "x"}] * 2},
        {"action": "filter", "sys_tags": [{"key": "other", "values": []}]},
        {"action": "filter", "object_type": "tape"},
        {"action": "filter", "cloud_type": "private"},
    ],
)
async def test_a_bad_search_is_refused(api: InProcessApi, body: Any) -> None:
    """Conditions outside the contract end as 400 9900."""
    check_error("show_vault_resource_instances", await api.alice.post(ACTION, json=body), 400, "9900")
