"""A host whose agent dials a worker process of its own, its certificate renewed, and a canceled job at the host."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from agent_world import World
from harness import contents, make_tree, wait_until
from many_world import Many, many

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="an agent obeys a file of root's only"),
]


class ManyWorld(World):
    """An API without agents, a worker of everything else, and one that agents dial."""

    def __init__(self, installation: Many) -> None:
        self.base = installation.folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.server = installation.api(agent_endpoint=self.address)
        self.client = installation.client()
        self.agents = []
        installation.worker()
        self.hosts = installation.worker("hosts", agent_listen=self.address)

    def end(self) -> None:
        for agent in self.agents:
            agent.stop()


@pytest.fixture
def world(tmp_path: Path, postgres_url: str) -> Iterator[ManyWorld]:
    with many(tmp_path / "many", postgres_url) as installation:
        made = ManyWorld(installation)
        yield made
        made.end()


def test_a_host_of_a_worker_process_and_its_renewed_certificate(
    world: ManyWorld, tmp_path: Path, postgres_url: str
) -> None:
    """The worker that the agent dials makes the backup; a certificate near its end is replaced and the old one ends;
    a canceled backup ends the host's command and leaves the host free; after a kill of the worker all goes on."""
    data = tmp_path / "host" / "data"
    make_tree(data, seed=7, files=20)
    host = world.registered("web", data)
    slow = tmp_path / "host" / "slow"
    hook = '[hooks]\nbefore-backup = ["/bin/sh", "-c", "test ! -e {0} || {{ touch {0}.runs; sleep 1000; }}"]\n'
    agent = world.agent("agent", host, tmp_path / "host", restore=True, more=hook.format(slow))
    vault = world.vault("hosts", host)
    world.backup(vault, host)

    with psycopg.connect(postgres_url, autocommit=True) as rows:
        rows.execute("UPDATE agent_certificates SET not_after = now() + interval '6 days'")
        agent.stop()
        agent.start()
        wait_until(lambda: "certificate renewed" in agent.log(), agent.log())
        agent.stop()
        agent.start()
        ended = "SELECT count(*), count(revoked_at) FROM agent_certificates"
        wait_until(lambda: rows.execute(ended).fetchone() == (2, 1), "the new certificate is used, the old one ended")
    world.backup(vault, host)

    slow.touch()
    made = world.client.checkpoint(vault)
    wait_until((tmp_path / "host" / "slow.runs").exists, f"the host's command runs: {agent.log()}")
    (task,) = world.client.ok("GET", f"/ext/v1/{world.client.project}/tasks", status="running")["tasks"]
    world.client.ok("POST", f"/ext/v1/{world.client.project}/tasks/{task['id']}/cancel")
    assert world.client.settled(made)["status"] == "error"
    slow.unlink()

    world.hosts.kill()
    world.hosts.start()
    before = contents(data)
    backup = world.backup(vault, host)
    shutil.rmtree(data)
    done = world.client.restore(backup["id"], resource_id=host)
    assert done["status"] == "success", (done, agent.log())
    assert contents(data) == before
