"""No request, however strange, ends as a 500 or leaves half of a vault behind."""

import json
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
from contract_schema import check_answer, check_error
from in_process_api import InProcessApi

UNKNOWN = "00000000-0000-4000-8000-000000000000"
TURBO = "OS::Sfs::Turbo"

EXAMPLES = 100  # each is two or three requests; together a few seconds

# Values that have broken services: ends of ranges, wrong types, texts that mean something to a lower floor.
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 10, 10485760, 10485761, 2**31, 2**63 - 1, 2**63, 2**64, 10**40]),
    st.floats(),
    st.text(max_size=70),
    st.sampled_from(
        ["", "a" * 300, "<b>", "'; DROP TABLE vaults; --", "%s", "{}", "\ud7ff\uffff", UNKNOWN, TURBO, "null"]
    ),
    st.lists(st.one_of(st.none(), st.text(max_size=5), st.integers()), max_size=3),
    st.dictionaries(st.sampled_from(["id", "key", "tags", "type"]), st.text(max_size=5), max_size=2),
)


def valid(resource_id: str) -> dict[str, Any]:
    """A body of create with every member, all of them good."""
    return {
        "name": "v",
        "description": "d",
        "billing": {
            "consistent_level": "crash_consistent",
            "object_type": "turbo",
            "protect_type": "backup",
            "size": 10,
            "cloud_type": "public",
            "charging_mode": "post_paid",
            "is_multi_az": False,
            "period_num": 1,
        },
        "resources": [{"id": resource_id, "type": TURBO, "name": "n", "extra_info": {"exclude_volumes": []}}],
        "tags": [{"key": "k", "value": "v"}],
        "bind_rules": {"tags": [{"key": "k", "value": "v"}]},
        "backup_policy_id": None,
        "enterprise_project_id": "0",
        "auto_bind": False,
        "auto_expand": False,
        "threshold": 80,
        "smn_notify": True,
        "backup_name_prefix": "p",
        "demand_billing": False,
        "sys_lock_source_service": "",
        "locked": False,
        "availability_zone": "z",
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every member and item of a body, by its path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, member in inner for found in [(*path, name), *places(member, (*path, name))]]


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the body with the value in that place; as it was if an earlier value took the place away."""
    copy = json.loads(json.dumps(body))
    at = copy
    try:
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value
    except (KeyError, IndexError, TypeError):
        return body
    return copy


async def test_no_body_breaks_the_service(api: InProcessApi, tmp_path: Path) -> None:
    """Any values in any places of create, update and addresources: a contract answer, whole rows or none."""
    resource_id = await api.register(tmp_path)
    everywhere = places(valid(resource_id))

    async def send(vault: Any) -> None:
        created = await api.alice.post("/vaults", content=json.dumps({"vault": vault}))
        if created.status_code == 200:
            made = check_answer("create_vault", created)["vault"]
            path = f"/vaults/{made['id']}"
            assert check_answer("show_vault", await api.alice.get(path))["vault"] == made
            check_answer("delete_vault", await api.alice.delete(path))
        else:
            check_error("create_vault", created, created.status_code, created.json()["error_code"])
            assert created.status_code in (400, 404)
        for table in ("vaults", "vault_tags", "vault_resources"):
            assert await api.rows(f"SELECT 1 FROM {table} WHERE project_id = 'a' || repeat('a', 31)") == []

    mutation = st.lists(st.tuples(st.sampled_from(everywhere), odd), min_size=1, max_size=3)
    for mutations in _examples(mutation, EXAMPLES):
        vault = valid(resource_id)
        for path, value in mutations:
            vault = replaced(vault, path, value)
        await send(vault)


async def test_no_change_breaks_a_vault(api: InProcessApi, tmp_path: Path) -> None:
    """Any values in any places of update and addresources: the vault stays one that can be shown."""
    resource_id = await api.register(tmp_path)
    vault = valid(resource_id) | {"resources": []}
    made = check_answer("create_vault", await api.alice.post("/vaults", json={"vault": vault}))["vault"]
    path = f"/vaults/{made['id']}"
    change = {
        name: vault[name] for name in ("name", "auto_bind", "bind_rules", "auto_expand", "smn_notify", "threshold")
    }
    change["billing"] = {"size": 10, "consistent_level": "crash_consistent"}
    adding = {"resources": [{"id": resource_id, "type": TURBO, "name": "n", "extra_info": {"include_volumes": []}}]}
    for target, body, operation in (
        (path, {"vault": change}, "update_vault"),
        (path + "/addresources", adding, "add_vault_resource"),
        (path + "/removeresources", {"resource_ids": [resource_id]}, "remove_vault_resource"),
    ):
        method = "PUT" if operation == "update_vault" else "POST"
        for where, value in _examples(st.tuples(st.sampled_from(places(body)), odd), EXAMPLES):
            answer = await api.alice.request(method, target, content=json.dumps(replaced(body, where, value)))
            if answer.status_code == 200:
                check_answer(operation, answer)
            else:
                assert answer.status_code in (400, 404), answer.text
                check_error(operation, answer, answer.status_code, answer.json()["error_code"])
            check_answer("show_vault", await api.alice.get(path))


def _examples(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Values of a strategy, drawn up front: hypothesis itself does not drive coroutines."""
    drawn: list[Any] = []

    @hypothesis.settings(max_examples=count, database=None, derandomize=True, deadline=None)
    @hypothesis.given(strategy)
    def draw(value: Any) -> None:
        drawn.append(value)

    draw()
    return drawn
