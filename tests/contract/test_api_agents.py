"""Agents through the API, against the contract, on a real database: rows, paths, and what may honestly be said."""

import httpx
import pytest
from contract_schema import check_answer, check_error
from in_process_api import PROJECT_A, InProcessApi, Person

from strongroom.base.ids import new_id
from strongroom.control import agents

HOST = {"host_name": "web-1", "host_ip": "10.0.0.7", "host_os": "Debian 12", "agent_version": "1.0.12"}


async def register(person: Person, agent_id: str | None = None, **members: object) -> dict:
    body = {"agent": HOST | {"agent_id": agent_id or new_id()} | members}
    return check_answer("register_agent", await person.post("/agents", json=body))["agent"]


async def add(person: Person, agent_id: str, *paths: str, **members: object) -> httpx.Response:
    return await person.post(f"/agents/{agent_id}/add-path", json={"add_path": list(paths)} | members)


async def remove(person: Person, agent_id: str, *paths: str) -> httpx.Response:
    return await person.post(f"/agents/{agent_id}/remove-path", json={"remove_path": list(paths)})


async def check(person: Person, *ids: str, kind: str = "OS::Nova::Server") -> list[dict]:
    body = {"agent_status": [{"resource_id": i, "resource_type": kind, "resource_name": "x"} for i in ids]}
    return check_answer("check_agent", await person.post("/agent/check", json=body))["agent_status"]


async def connect(api: InProcessApi, agent_id: str, ago_s: int = 0) -> None:
    """What only a connection of the agent itself may write."""
    await api.execute(
        "UPDATE agents SET last_active_at = now() - make_interval(secs => %s) WHERE id = %s", ago_s, agent_id
    )


async def test_a_host_is_registered_shown_and_known_better(api: InProcessApi) -> None:
    """Registering answers every published member; registering again changes what is known, and keeps the paths."""
    made = await register(api.alice, host_nickname="the web", agent_type="native")
    assert made["status"] == "abnormal", "it has never connected"
    assert (made["last_active_time"], made["updated_at"], made["paths"]) == (None, None, [])
    assert (made["host_nickname"], made["agent_type"], made["host_os"]) == ("the web", "native", "Debian 12")
    path = f"/agents/{made['agent_id']}"
    assert check_answer("show_agent", await api.rita.get(path))["agent"] == made
    check_answer("add_agent_path", await add(api.alice, made["agent_id"], "/srv"))
    again = await register(api.alice, made["agent_id"], host_ip="fd00::7", agent_version=None)
    assert (again["host_ip"], again["agent_version"], again["host_nickname"]) == ("fd00::7", None, None)
    assert [p["dir_path"] for p in again["paths"]] == ["/srv"]
    assert again["created_at"] == made["created_at"]
    assert again["updated_at"] is not None


async def test_only_a_connection_makes_an_agent_normal(api: InProcessApi) -> None:
    """An agent is installed when it has connected, and normal as long as it does; a check says which, and why."""
    agent_id = (await register(api.alice))["agent_id"]
    nobody = new_id()

    async def state() -> tuple[str, bool, int, str | None]:
        shown = (await api.alice.get(f"/agents/{agent_id}")).json()["agent"]
        (checked,) = await check(api.alice, agent_id)
        assert checked["is_old"] is None
        assert len(checked["message"]) > 10
        return shown["status"], checked["installed"], checked["code"], checked["version"]

    assert await state() == ("abnormal", False, 7403, None)
    await connect(api, agent_id)
    assert await state() == ("normal", True, 0, "1.0.12")
    await connect(api, agent_id, agents.ACTIVE_S + 5)
    assert await state() == ("abnormal", True, 7403, "1.0.12")
    await connect(api, agent_id)
    changed = await api.alice.put(f"/agents/{agent_id}", json={"agent": {"status": "uninstall"}})
    assert check_answer("update_agent", changed)["agent"]["status"] == "uninstall"
    assert await state() == ("uninstall", False, 7403, None)
    await register(api.alice, agent_id)
    assert (await state())[0] == "normal"
    both = await check(api.alice, nobody, agent_id, nobody, kind="OS::Native::Server")
    assert [(c["resource_id"], c["installed"], c["code"]) for c in both] == [
        (nobody, False, 7410), (agent_id, True, 0), (nobody, False, 7410),
    ]  # fmt: skip


async def test_lists(api: InProcessApi) -> None:
    """Newest first, filtered by id and by status, paged, with the count of all."""
    ids = [(await register(api.alice, host_name=f"host-{i}"))["agent_id"] for i in range(4)]
    await register(api.bob)
    await connect(api, ids[1])
    await api.alice.put(f"/agents/{ids[2]}", json={"agent": {"status": "uninstall"}})

    async def listed(**query: object) -> list[str]:
        answer = check_answer("list_agent", await api.rita.get("/agents", params=query))
        if not {"limit", "offset"} & set(query):
            assert answer["count"] == len(answer["agents"])
        else:
            assert answer["count"] == 4
        return [agent["agent_id"] for agent in answer["agents"]]

    assert await listed() == ids[::-1]
    assert await listed(status="normal") == [ids[1]]
    assert await listed(status="uninstall") == [ids[2]]
    assert await listed(status="abnormal") == [ids[3], ids[0]]
    assert await listed(agent_id=[ids[0], ids[3], new_id()]) == [ids[3], ids[0]]
    assert await listed(limit=1, offset=1) == [ids[2]]
    assert await listed(limit="2") == [ids[3], ids[2]]
    assert await listed(offset=9) == []
    for query in ({"limit": 0}, {"limit": "x"}, {"offset": -1}, {"status": "up"}, {"agent_id": "x"}):
        check_error("list_agent", await api.alice.get("/agents", params=query), 400, "9900")


async def test_paths_of_a_host(api: InProcessApi) -> None:
    """Absolute paths of Unix and of Windows are added once, whatever way they are spelled, and removed."""
    agent_id = (await register(api.alice))["agent_id"]
    answer = check_answer("add_agent_path", await add(api.alice, agent_id, "/srv/a", "/srv//a/", "d:/data\\b", "/"))
    assert answer == {"added": ["/srv/a", "d:/data\\b", "/"], "existed": []}
    excluded = [{"path_name": "/srv/a/", "exclude_path_name": ["/srv/a/tmp", "/srv/a/b, c"]}]
    answer = check_answer(
        "add_agent_path", await add(api.alice, agent_id, "/srv/a", "D:\\data\\b\\", "/new", exclude_path=excluded)
    )
    assert answer == {"added": ["/new"], "existed": ["/srv/a", "D:\\data\\b\\"]}
    paths = (await api.alice.get(f"/agents/{agent_id}")).json()["agent"]["paths"]
    assert sorted((p["dir_path"], p["exclude_paths"], p["status"]) for p in paths) == [
        ("/", "[]", "available"),
        ("/new", "[]", "available"),
        ("/srv/a", '["/srv/a/b, c", "/srv/a/tmp"]', "available"),
        ("D:\\data\\b", "[]", "available"),
    ]
    check_answer("add_agent_path", await add(api.alice, agent_id, "/srv/a"))  # without a word on what is left out
    assert '"/srv/a/tmp"' in (await api.alice.get(f"/agents/{agent_id}")).text.replace("\\", "")
    answer = check_answer("remove_agent_path", await remove(api.alice, agent_id, "/srv/a/", "/srv/b", "d:\\data/b"))
    assert answer == {"removed": ["/srv/a/", "d:\\data/b"], "not_existed": ["/srv/b"]}
    left = (await api.alice.get(f"/agents/{agent_id}")).json()["agent"]["paths"]
    assert sorted(p["dir_path"] for p in left) == ["/", "/new"]


async def test_what_is_refused(api: InProcessApi) -> None:
    """Bad hosts, paths, states and checks, each by its code; a refused call changes nothing."""
    for members in (
        {"agent_id": "x"}, {"host_ip": "10.0.0.256"}, {"host_ip": "web"}, {"host_name": ""}, {"host_name": "x" * 256},
        {"host_os": "a\nb"}, {"agent_version": "1.0"}, {"agent_version": "1.0.1000"}, {"agent_type": "other"},
        {"host_name": None}, {"host_nickname": "\x07"},
    ):  # fmt: skip
        body = {"agent": HOST | {"agent_id": new_id()} | members}
        check_error("register_agent", await api.alice.post("/agents", json=body), 400, "9900")
    check_error("register_agent", await api.alice.post("/agents", json={}), 400, "9900")
    assert (await api.alice.get("/agents")).json()["count"] == 0
    agent_id = (await register(api.alice))["agent_id"]
    for paths in ([], ["srv"], [""], ["/a/../b"], ["/a/."], ["C:data"], ["/" + "x" * 4097], ["/a\x07"], ["/ok", "no"]):
        check_error("add_agent_path", await add(api.alice, agent_id, *paths), 400, "9900")
        check_error("remove_agent_path", await remove(api.alice, agent_id, *paths), 400, "9900")
    for exclude in (
        [{"path_name": "/b", "exclude_path_name": ["/b/c"]}],
        [{"path_name": "/a", "exclude_path_name": ["/b"]}],
        [{"path_name": "/a", "exclude_path_name": ["/a"]}],
        [{"path_name": "/a", "exclude_path_name": [f"/a/{i}" for i in range(65)]}],
        [{"path_name": "/a"}],
    ):
        check_error("add_agent_path", await add(api.alice, agent_id, "/a", exclude_path=exclude), 400, "9900")
    many = [f"/{i}" for i in range(agents.PATHS_MAX)]
    check_answer("add_agent_path", await add(api.alice, agent_id, *many))
    check_error("add_agent_path", await add(api.alice, agent_id, "/one-more"), 400, "7407")
    assert check_answer("add_agent_path", await add(api.alice, agent_id, "/5"))["existed"] == ["/5"]
    for status in ("normal", None, "x"):
        changed = await api.alice.put(f"/agents/{agent_id}", json={"agent": {"status": status}})
        check_error("update_agent", changed, 400, "9900")
    await api.alice.put(f"/agents/{agent_id}", json={"agent": {"status": "uninstall"}})
    check_error("add_agent_path", await add(api.alice, agent_id, "/5"), 400, "7403")
    for listed in ([], [{"resource_id": "x", "resource_type": "OS::Nova::Server"}],
                   [{"resource_id": new_id(), "resource_type": "OS::Nova::Server"}] * 257, [{}]):  # fmt: skip
        check_error("check_agent", await api.alice.post("/agent/check", json={"agent_status": listed}), 400, "9900")
    unknown = {"agent_status": [{"resource_id": new_id(), "resource_type": "OS::Other"}]}
    check_error("check_agent", await api.alice.post("/agent/check", json=unknown), 400, "6116")


async def test_there_is_a_limit(api: InProcessApi) -> None:
    """A project has so many agents; those that are known may still be registered again."""
    known = (await register(api.alice))["agent_id"]
    await api.execute(
        "INSERT INTO agents (id, project_id, host_name, host_ip, host_os, created_at) "
        "SELECT 'filler-' || n, %s, 'h', '10.0.0.1', 'os', now() FROM generate_series(2, %s) n",
        PROJECT_A,
        agents.AGENTS_MAX,
    )
    body = {"agent": HOST | {"agent_id": new_id()}}
    check_error("register_agent", await api.alice.post("/agents", json=body), 400, "7403")
    await register(api.alice, known)


async def test_others_see_nothing(api: InProcessApi) -> None:
    """Another tenant's agent answers like one that never was; the same id may be registered by both, apart."""
    agent_id = (await register(api.alice))["agent_id"]
    await connect(api, agent_id)
    answers = []
    for asked in (agent_id, new_id()):
        for operation, answer in (
            ("show_agent", await api.bob.get(f"/agents/{asked}")),
            ("update_agent", await api.bob.put(f"/agents/{asked}", json={"agent": {"status": "uninstall"}})),
            ("unregister_agent", await api.bob.delete(f"/agents/{asked}")),
            ("add_agent_path", await add(api.bob, asked, "/srv")),
            ("remove_agent_path", await remove(api.bob, asked, "/srv")),
        ):
            answers.append(check_error(operation, answer, 404, "7410")["error_msg"].replace(asked, "ID"))
        (checked,) = await check(api.bob, asked)
        answers.append(str(checked).replace(asked, "ID"))
    assert answers[:6] == answers[6:]
    assert (await api.bob.get("/agents")).json()["agents"] == []
    theirs = await register(api.bob, agent_id, host_name="other")
    assert theirs["status"] == "abnormal"
    assert (await api.alice.get(f"/agents/{agent_id}")).json()["agent"]["host_name"] == "web-1"
    check_answer("unregister_agent", await api.bob.delete(f"/agents/{agent_id}"))
    check_answer("show_agent", await api.alice.get(f"/agents/{agent_id}"))
    for call in (api.rita.delete(f"/agents/{agent_id}"), api.rita.post("/agents", json={"agent": {}})):
        assert (await call).status_code == 403


async def test_unregistered_with_its_backups(api: InProcessApi) -> None:
    """An agent that is unregistered is gone at once; what vaults hold of its host is removed, unless one is locked."""
    agent_id = (await register(api.alice))["agent_id"]
    vault_id = await hybrid_vault(api)
    await api.execute(
        "INSERT INTO protectables (id, project_id, type, resource_type, name, path, created_at) "
        "VALUES (%s, %s, 'native', 'OS::Native::Server', 'web-1', '/', now())",
        agent_id,
        PROJECT_A,
    )
    await api.execute(
        "INSERT INTO vault_resources (project_id, vault_id, resource_id, protect_type, type, name, created_at) "
        "VALUES (%s, %s, %s, 'backup', 'OS::Native::Server', 'web-1', now())",
        PROJECT_A,
        vault_id,
        agent_id,
    )
    await api.execute("UPDATE vaults SET status = 'frozen'")
    check_error("unregister_agent", await api.alice.delete(f"/agents/{agent_id}"), 400, "6112")
    check_answer("show_agent", await api.alice.get(f"/agents/{agent_id}"))
    await api.execute("UPDATE vaults SET status = 'available'")
    check_answer("unregister_agent", await api.alice.delete(f"/agents/{agent_id}"))
    check_error("unregister_agent", await api.alice.delete(f"/agents/{agent_id}"), 404, "7410")
    assert await api.rows("SELECT protect_status FROM vault_resources") == [{"protect_status": "removing"}]
    assert await api.rows("SELECT operation_type, resource_id FROM operation_logs") == [
        {"operation_type": "remove_resource", "resource_id": agent_id}
    ]


async def hybrid_vault(api: InProcessApi) -> str:
    """A vault for hosts with agents."""
    billing = {"object_type": "file", "protect_type": "backup", "consistent_level": "crash_consistent", "size": 100,
               "cloud_type": "hybrid"}  # fmt: skip
    made = await api.alice.post("/vaults", json={"vault": {"name": "hosts", "billing": billing, "resources": []}})
    return str(check_answer("create_vault", made)["vault"]["id"])


@pytest.mark.parametrize("connected", [False, True])
async def test_nothing_is_bound_that_could_not_be_read(api: InProcessApi, connected: bool) -> None:
    """A registered host is no resource until something of it can be read: a vault does not take it."""
    agent_id = (await register(api.alice))["agent_id"]
    if connected:
        await connect(api, agent_id)
    vault_id = await hybrid_vault(api)
    body = {"resources": [{"id": agent_id, "type": "OS::Native::Server"}]}
    bound = await api.alice.post(f"/vaults/{vault_id}/addresources", json=body)
    check_error("add_vault_resource", bound, 400, "7403")
    body["resources"][0]["id"] = new_id()
    check_error("add_vault_resource", await api.alice.post(f"/vaults/{vault_id}/addresources", json=body), 404, "6302")
