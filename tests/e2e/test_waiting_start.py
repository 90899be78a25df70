"""`strongroom api` and `strongroom worker` that start before their PostgreSQL does, as after a power cut."""

import contextlib
import socket
from pathlib import Path

import httpx
import psycopg
import pytest
from harness import contents, make_tree, wait_until
from many_world import empty, many, ready
from ready_database import ReadyDatabase

from strongroom.control.embedded_postgres import EmbeddedPostgres
from strongroom.engine import MasterKey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in held]


def lives(base: str) -> bool:
    try:
        return httpx.get(f"{base}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_start_without_postgresql_waits_for_it(tmp_path: Path, ready_database: ReadyDatabase) -> None:
    """Both live, say why they are not ready and answer nothing with 404; one that is told to end does so at once; when
    PostgreSQL comes, a backup and a restore go through them, at the addresses where they waited."""
    source = tmp_path / "source"
    make_tree(source, 1, files=4)
    wanted = contents(source)
    ready_database.copy_to(tmp_path / "database")
    postgres = EmbeddedPostgres(tmp_path / "database" / "postgres")
    url = postgres.start()
    postgres.stop()
    ports = free_ports(3)
    api, health, other = (f"http://127.0.0.1:{port}" for port in ports)
    with many(tmp_path, url, api_drain_s="0") as world:
        world.key.parent.mkdir(mode=0o700)
        MasterKey.create(world.key)  # a worker that comes before the first API of all ends without it
        waiting = [
            world.api(ready=False, listen=f"127.0.0.1:{ports[0]}"),
            world.worker(ready=False, health_listen=f"127.0.0.1:{ports[1]}"),
        ]
        ended = world.worker(ready=False, health_listen=f"127.0.0.1:{ports[2]}")
        for base in (api, health, other):
            wait_until(lambda base=base: lives(base), f"{base} lives")  # type: ignore[misc]
            status, parts = ready(base)
            assert (status, list(parts)) == (503, ["start"]) and "The database does not answer" in parts["start"]
        answer = httpx.get(f"{api}/v3/{'0' * 32}/vaults/{'0' * 8}")
        assert answer.status_code == 503 and answer.headers["retry-after"], answer.text
        assert ended.stop() == 0
        with pytest.raises(AssertionError, match="the server ended with 0"):
            ended.until_ready()
        assert "the start waits" in ended.log() and "told to end while the start waited" in ended.log()
        postgres.start()
        try:
            assert [process.until_ready() for process in waiting] == waiting
            assert ready(api)[0] == ready(health)[0] == 200
            assert world.apis[0].endpoint == api
            client = world.client()
            vault = client.vault("v", "turbo", [client.register("turbo", "source", source)])
            assert client.settled(client.checkpoint(vault))["status"] == "available"
            empty(source)
            assert client.restore(client.backups()[0]["id"])["status"] == "success"
            assert contents(source) == wanted
            assert [process.stop() for process in waiting] == [0, 0]
        finally:
            postgres.stop()


def test_what_waiting_does_not_mend_ends_the_start(tmp_path: Path, ready_database: ReadyDatabase) -> None:
    """A wrong password, a user and a database that are not there, a database without a schema, and one that is too
    new: an end with the sentence, also of a process that had waited before."""
    ready_database.copy_to(tmp_path / "database")
    folder = tmp_path / "database" / "postgres"
    postgres = EmbeddedPostgres(folder)
    url = postgres.start()
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
            conn.execute("CREATE DATABASE bare")
            conn.execute("CREATE DATABASE newer")
        with psycopg.connect(url.replace("/strongroom?", "/newer?")) as conn:
            conn.execute("CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('9999')")
        rules = folder / "pg_hba.conf"
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        postgres.stop()
        postgres.start()
        cases = {
            url.replace("strongroom@", "guarded:wrong@"): 'password authentication failed for user "guarded"',
            url.replace("strongroom@", "nobody@"): 'role "nobody" does not exist',
            url.replace("/strongroom?", "/nowhere?"): 'database "nowhere" does not exist',
            url.replace("/strongroom?", "/bare?"): "Run `strongroom migrate`",
            url.replace("/strongroom?", "/newer?"): "newer than this version of Strongroom",
        }
        with many(tmp_path, url) as world:
            for number, (wrong, sentence) in enumerate(cases.items()):
                command = ("api", "--listen", "127.0.0.1:0") if number % 2 else ("worker",)
                done = world.run(*command, "--state", str(tmp_path / "none"), database_url=wrong)
                assert done.returncode == 1 and sentence in done.stderr, (sentence, done.stderr)
                assert "Traceback" not in done.stderr and "the start waits" not in done.stderr
            postgres.stop()
            late = world.worker(ready=False, database_url=url.replace("/strongroom?", "/nowhere?"))
            wait_until(lambda: "the start waits" in late.log(), "it waits")
            postgres.start()
            with pytest.raises(AssertionError, match='database "nowhere" does not exist'):
                late.until_ready()
            assert late.wait_dead() == 1
    finally:
        postgres.stop()
