"""A host with our agent: enrolled, backed up, changed, restored, with the connection cut and both ends killed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import source_trees
from agent_world import BARE_METAL, Proxy, World, past_doubt
from harness import contents, make_tree, wait_until
from source_mounts import mounted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an agent obeys a file of root's only")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.end()


def test_a_host_is_backed_up_changed_and_restored(world: World, tmp_path: Path) -> None:
    """Full, unchanged, incremental and in place: what comes back is what was there, and only new chunks travel."""
    data, conf = tmp_path / "host" / "data", tmp_path / "host" / "conf"
    make_tree(data, seed=1)
    make_tree(conf, seed=2, files=5)
    (data / "cache").mkdir()
    (data / "cache" / "junk").write_bytes(b"not wanted" * 1000)
    host = world.registered("web1", data, conf, excluded={str(data): [str(data / "cache")]})
    agent = world.agent("agent", host, tmp_path / "host", restore=True)
    vault = world.vault("hosts", host)
    before = contents(data), contents(conf)

    first = world.backup(vault, host)
    report = first
    assert report["source"]["sent_bytes"] >= 6_000_000, report
    past_doubt(data, conf)
    world.backup(vault, host)
    again = world.backup(vault, host)
    assert (again["bytes_read"], again["source"]["sent_bytes"], again["full_reason"]) == (0, 0, None)

    (data / "d0" / "new").write_bytes(os.urandom(50_000))
    with (data / "big").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    changed = world.backup(vault, host)
    assert 50_000 <= changed["source"]["sent_bytes"] < 50_000 + 3 * 512 * 1024, changed

    (data / "d1" / "e1" / "f1").unlink(missing_ok=True)
    (conf / "stray").write_text("made later")
    ended = world.client.restore(first["id"], resource_id=host)
    assert ended["status"] == "success", (ended, agent.log(), world.server.log())
    kept = {name: what for name, what in before[0].items() if not name.startswith("cache")}
    found = contents(data)
    assert {name: what for name, what in found.items() if not name.startswith("cache")} == kept
    assert found["cache/junk"][1] == b"not wanted" * 1000
    assert contents(conf) == before[1]
    assert (data / "big").stat().st_ino == (data / "d0" / "hard").stat().st_ino


def test_a_restore_goes_aside_and_to_another_host_only_where_the_host_allows_it(world: World, tmp_path: Path) -> None:
    """The switch is the target host's: off is a refusal with a sentence, on is a restore into the folder named."""
    data = tmp_path / "one" / "data"
    make_tree(data, seed=3, files=12)
    first = world.registered("one", data)
    second = world.registered("two", tmp_path / "two")
    (tmp_path / "two" / "here").mkdir(parents=True)
    (tmp_path / "two" / "here" / "neighbour").write_text("stays")
    world.agent("agent-one", first, tmp_path / "one")
    other = world.agent("agent-two", second, tmp_path / "two", restore=True)
    backup = world.backup(world.vault("hosts", first), first)

    refused = world.client.restore(backup["id"], resource_id=first)
    assert refused["status"] == "failed"
    assert "restore = true" in refused["error_info"]["message"]
    outside = {"resource_id": second, "details": {"destination_path": str(tmp_path / "elsewhere")}}
    refused = world.client.restore(backup["id"], **outside)
    assert "restore_paths" in refused["error_info"]["message"]

    aside = {"resource_id": second, "details": {"destination_path": str(tmp_path / "two" / "here")}}
    ended = world.client.restore(backup["id"], **aside)
    assert ended["status"] == "success", (ended, other.log())
    assert contents(tmp_path / "two" / "here" / str(data).lstrip("/")) == contents(data)
    assert (tmp_path / "two" / "here" / "neighbour").read_text() == "stays"


def test_a_path_that_is_gone_comes_back_and_one_file_alone(world: World, tmp_path: Path) -> None:
    """A protected folder that was deleted is made again; a restore of one file touches nothing else."""
    data = tmp_path / "host" / "srv" / "data"
    make_tree(data, seed=4, files=12)
    host = world.registered("web", data)
    agent = world.agent("agent", host, tmp_path / "host", restore=True)
    backup = world.backup(world.vault("hosts", host), host)
    before = contents(data)

    (data / "big").write_bytes(b"spoilt")
    (data / "d1" / "more").write_text("stays")
    path = {"path": f"{data}/big".lstrip("/")}
    job = world.client.ok("POST", f"/ext/v1/{world.client.project}/backups/{backup['id']}/restore", {"restore": path})[
        "job_id"
    ]
    ended = world.client.ended(job)
    assert ended["status"] == "success", (ended, agent.log())
    assert contents(data)["big"] == before["big"]
    assert (data / "d1" / "more").read_text() == "stays"

    shutil.rmtree(tmp_path / "host" / "srv")
    ended = world.client.restore(backup["id"], resource_id=host)
    assert ended["status"] == "success", (ended, agent.log())
    assert contents(data) == before


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))])
def test_cut_connections_cost_nothing_but_dialling_again(world: World, tmp_path: Path, seed: int) -> None:
    """Connections cut after a megabyte or two: one attempt, whole, restored the same way, and little sent twice."""
    data = tmp_path / "host" / "data"
    make_tree(data, seed=5, files=200)
    (data / "large").write_bytes(os.urandom(12_000_000))
    host = world.registered("web", data)
    agent = world.agent("agent", host, tmp_path / "host", restore=True)
    vault = world.vault("hosts", host)
    agent.stop()
    proxy = Proxy(world.token(host)["server"], cut_every_bytes=1_500_000, seed=seed)
    agent.dial(proxy.address)
    agent.start()
    before = contents(data)
    backup = world.backup(vault, host)
    assert proxy.cuts >= 6, agent.log()
    sent = backup["source"]["sent_bytes"]
    assert proxy.passed < 2.5 * sent, (proxy.passed, sent, proxy.cuts)
    task = world.client.ok("GET", f"/ext/v1/{world.client.project}/tasks", backup_id=backup["id"])["tasks"][0]
    assert task["attempts"] == 1
    shutil.rmtree(data)
    ended = world.client.restore(backup["id"], resource_id=host)
    assert ended["status"] == "success", (ended, agent.log())
    assert contents(data) == before
    proxy.close()


def test_an_agent_or_a_server_that_is_killed_comes_back_to_a_whole_backup(world: World, tmp_path: Path) -> None:
    """kill -9 of either end in the middle of the content: the next attempt makes the backup, and it restores."""
    data = tmp_path / "host" / "data"
    make_tree(data, seed=6, files=30)
    (data / "large").write_bytes(os.urandom(40_000_000))
    host = world.registered("web", data)
    agent = world.agent("agent", host, tmp_path / "host", restore=True)
    vault = world.vault("hosts", host)
    before = contents(data)
    for victim in ("agent", "server"):
        agent.stop()
        proxy = Proxy(world.token(host)["server"], cut_every_bytes=10_000_000)
        agent.dial(proxy.address)
        agent.start()
        (data / "large").write_bytes(os.urandom(40_000_000))
        before = contents(data)
        made = world.client.checkpoint(vault)
        wait_until(lambda proxy=proxy: proxy.cuts >= 2, f"content travels: {agent.log()}")
        if victim == "agent":
            agent.kill()
            agent.start()
        else:
            world.restart()
        settled = world.client.settled(made)
        assert settled["status"] == "available", (victim, settled, agent.log(), world.server.log())
        (found,) = world.client.backups(checkpoint_id=made)
        proxy.close()
    shutil.rmtree(data)
    ended = world.client.restore(found["id"], resource_id=host)
    assert ended["status"] == "success", (ended, agent.log())
    assert contents(data) == before


@pytest.fixture(params=["here", "xfs", "btrfs", pytest.param("ext4", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the file system of the tests, and on others."""
    if request.param == "here":
        yield tmp_path
        return
    with mounted(request.param, tmp_path) as point:
        yield point


def test_a_tree_with_everything_comes_back_through_an_agent(world: World, place: Path) -> None:
    """Names, holes, owners, modes, ACLs, attributes, flags, times, links and nodes, as without an agent."""
    source = place / "host" / "data"
    source.parent.mkdir()
    missed = source_trees.make_tree(source)
    host = world.registered("web", source)
    agent = world.agent("agent", host, place / "host", restore=True)
    backup = world.backup(world.vault("hosts", host), host)
    before = source_trees.listing(source)
    source_trees.loosen_all(source)
    (source / "stale").write_text("not in the restore point")
    # One file of it is larger than these file systems, and nearly all a hole.
    ended = world.client.restore(backup["id"], resource_id=host, force=True)
    assert ended["status"] == "success", (ended, agent.log())
    assert source_trees.differences(before, source_trees.listing(source)) == [], missed
    source_trees.loosen_all(source)
    agent.stop()  # it may hold folders of a file system that goes now


def test_a_bare_metal_server_is_a_server_to_vaults_and_a_host_to_everything_else(world: World, tmp_path: Path) -> None:
    """Listed and bound as a server, backed up and restored by its agent; its id enrolls as no other type later."""
    data = tmp_path / "host" / "data"
    make_tree(data, seed=7, files=12)
    client = world.client
    host = world.registered("metal1", data)
    agent = world.agent("agent", host, tmp_path / "host", restore=True, kind=BARE_METAL)
    shown = client.ok("GET", f"protectables/server/instances/{host}")["instance"]
    assert (shown["type"], shown["name"], shown["children"]) == (BARE_METAL, "metal1", [])
    asked = {"agent_status": [{"resource_id": host, "resource_type": BARE_METAL}]}
    (checked,) = client.ok("POST", "agent/check", asked)["agent_status"]
    assert (checked["installed"], checked["code"]) == (True, 0)

    vault = client.vault("metal", "server", [])
    added = client.ok("POST", f"vaults/{vault}/addresources", {"resources": [{"id": host, "type": BARE_METAL}]})
    assert added["add_resource_ids"] == [host]
    backup = world.backup(vault, host)
    assert client.backups(id=backup["id"])[0]["resource_type"] == BARE_METAL
    before = contents(data)
    (data / "big").write_bytes(b"spoilt")
    ended = client.restore(backup["id"], server_id=host)
    assert ended["status"] == "success", (ended, agent.log(), world.server.log())
    assert contents(data) == before

    agent.stop()
    made = world.token(host)
    refused = agent.enroll(made["server"], made["token"], check=False)
    assert refused.returncode != 0
    assert "the other type of server" in refused.stderr
    client.ok("DELETE", f"agents/{host}")
    assert client.call("GET", f"protectables/server/instances/{host}")[0] == 404
