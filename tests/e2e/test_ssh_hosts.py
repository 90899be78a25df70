"""A host without an agent: the agent is sent over ssh, to a real sshd whose Python has none of our packages."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_world import BARE_METAL, Proxy, past_doubt
from harness import Client, Server, contents, make_tree
from ssh_world import Sshd, keygen

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="logs in as root, and mounts over folders of the host"),
    pytest.mark.long,
]

OTHER_PYTHONS = sorted(
    path
    for minor in range(6, 16)
    for path in Path.home().glob(f".pyenv/versions/*/bin/python3.{minor}")
    if minor != sys.version_info[1]
)


class World:
    """A server that knows one host's key."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.server = Server(base / "state").start()
        self.folder = base / "state" / "ssh"
        self.folder.mkdir(mode=0o700)
        self.key = keygen(self.folder / "id")
        self.host = Sshd(base / "host", self.key)
        (self.folder / "known_hosts").write_text("")
        self.know(self.host.port, self.host.host_key)
        self.client: Client = self.server.client()

    def know(self, port: int, key: str) -> None:
        with (self.folder / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port} {key}\n")

    def end(self) -> None:
        self.client.http.close()
        self.server.stop()
        self.host.stop()

    def check(self, address: str) -> dict[str, object]:
        """`strongroom source check`, as JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "strongroom", "source", "check", address, "--json", "--state", self.base / "state"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        found: dict[str, object] = json.loads(done.stdout)
        assert (done.returncode == 0) == found["readable"], (found, done.stderr)
        return found

    def vault(self, resource: str) -> str:
        made = self.client.vault(f"of-{resource[-8:]}", "server", [])
        body = {"resources": [{"id": resource, "type": BARE_METAL}]}
        self.client.ok("POST", f"vaults/{made}/addresources", body)
        return made

    def backup(self, vault: str) -> dict[str, object]:
        made = self.client.checkpoint(vault)
        settled = self.client.settled(made)
        (found,) = self.client.backups(checkpoint_id=made)
        assert settled["status"] == "available", (found, self.server.log(), self.host.log())
        shown: dict[str, object] = self.client.ok("GET", f"/ext/v1/{self.client.project}/backups/{found['id']}")[
            "backup"
        ]
        return shown


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("ssh"))
    yield made
    made.end()


def test_a_host_by_ssh_is_backed_up_changed_and_restored(world: World, tmp_path: Path) -> None:
    """Checked, full, unchanged, incremental; no restore without the host's switch; and nothing of ours stays there."""
    data = tmp_path / "the data"
    make_tree(data, seed=1)
    address = f"ssh:root@127.0.0.1:{world.host.port}?path={data}".replace(" ", "%20")
    found = world.check(address)
    assert (found["type"], found["readable"]) == (BARE_METAL, True), found
    host = world.client.register("server", "metal1", address)
    vault = world.vault(host)
    before = contents(data)
    first = world.backup(vault)
    assert world.client.backups(resource_id=host)[0]["resource_type"] == BARE_METAL
    past_doubt(data)
    world.backup(vault)
    again = world.backup(vault)
    assert (again["bytes_read"], again["source"]["sent_bytes"], again["full_reason"]) == (0, 0, None)
    (data / "d0" / "new").write_bytes(os.urandom(50_000))
    changed = world.backup(vault)
    assert 50_000 <= changed["source"]["sent_bytes"] < 600_000, changed

    ended = world.client.restore(first["id"], server_id=host)
    assert ended["status"] == "failed"
    assert "restore = true" in ended["error_info"]["message"]
    world.host.allow(f"paths = [{json.dumps(str(tmp_path))}]\nrestore = true\n")
    (data / "stray").write_text("made later")
    ended = world.client.restore(first["id"], server_id=host)
    assert ended["status"] == "success", (ended, world.host.log())
    assert contents(data) == before
    world.host.allow('paths = ["/srv"]\n')
    refused = world.check(address)
    assert not refused["readable"]
    assert "does not allow its agent to read" in str(refused["reason"])
    (world.host.base / "etc" / "agent.toml").unlink()
    for place in ("/dev/shm", "/run", "/var/tmp", "/tmp"):
        assert not [name for name in os.listdir(place) if name.startswith("strongroom-agent-")]


def test_a_connection_that_is_cut_in_the_middle_is_made_again(world: World, tmp_path: Path) -> None:
    """The attempt ends with its connection, the next one makes the backup, and it restores."""
    data = tmp_path / "data"
    make_tree(data, seed=2, files=30)
    (data / "large").write_bytes(os.urandom(40_000_000))
    before = contents(data)
    proxy = Proxy(f"127.0.0.1:{world.host.port}", cut_every_bytes=20_000_000, from_far=True, cuts_max=1)
    port = int(proxy.address.rpartition(":")[2])
    world.know(port, world.host.host_key)
    host = world.client.register("server", "cut", f"ssh:root@127.0.0.1:{port}?path={data}")
    backup = world.backup(world.vault(host))
    assert proxy.cuts == 1
    task = world.client.ok("GET", f"/ext/v1/{world.client.project}/tasks", backup_id=backup["id"])["tasks"][0]
    assert task["attempts"] == 2, task
    world.host.allow(f"paths = [{json.dumps(str(data))}]\nrestore = true\n")
    (data / "large").write_bytes(b"spoilt")
    ended = world.client.restore(str(backup["id"]), server_id=host)
    assert ended["status"] == "success", (ended, world.host.log())
    assert contents(data) == before
    (world.host.base / "etc" / "agent.toml").unlink()
    proxy.close()


def test_what_cannot_be_trusted_or_run_is_refused_with_a_sentence(world: World, tmp_path: Path) -> None:
    """An unknown key, another key, a key of ours that is not welcome, a host without Python, one that is not there."""
    without = Sshd(tmp_path / "without", world.key, python=None)
    stranger = Sshd(tmp_path / "stranger", keygen(tmp_path / "somebody"))
    try:
        address = f"ssh:root@127.0.0.1:{without.port}?path=/srv"
        assert "is not the one in known_hosts" in str(world.check(address)["reason"])
        world.know(without.port, stranger.host_key)
        assert "is not the one in known_hosts" in str(world.check(address)["reason"])
        known = world.folder / "known_hosts"
        known.write_text("".join(known.read_text().splitlines(keepends=True)[:-1]))
        world.know(without.port, without.host_key)
        assert "has no python3" in str(world.check(address)["reason"])
        status, told = world.client.call(
            "POST",
            "/ext/v1/admin/protectables",
            {
                "protectable": {
                    "project_id": world.client.project,
                    "type": "server",
                    "name": "without",
                    "path": address,
                }
            },
        )
        assert status == 400, told
        assert "has no python3" in str(told)
        world.know(stranger.port, stranger.host_key)
        unwelcome = world.check(f"ssh:root@127.0.0.1:{stranger.port}?path=/srv")
        assert "does not accept this server's key" in str(unwelcome["reason"])
    finally:
        without.stop()
        stranger.stop()
    assert "ended: " in str(world.check(address)["reason"])


@pytest.mark.skipif(not OTHER_PYTHONS, reason="no Python of another version is here")
def test_a_host_with_another_python_is_told_what_it_needs(world: World, tmp_path: Path) -> None:
    """A Python of another version says what it is, and the refusal names both."""
    older = Sshd(tmp_path / "older", world.key, python=OTHER_PYTHONS[0])
    try:
        world.know(older.port, older.host_key)
        reason = str(world.check(f"ssh:root@127.0.0.1:{older.port}?path=/srv")["reason"])
        assert f"needs CPython {sys.version_info[0]}.{sys.version_info[1]} on" in reason
        assert f"has CPython {OTHER_PYTHONS[0].name.removeprefix('python')} on" in reason
    finally:
        older.stop()
