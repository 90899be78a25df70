"""A PgBouncer before the database: session mode works, transaction mode is refused (RULINGS 23)."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from harness import contents, make_tree, wait_until
from lifeline import end_with_starter
from many_world import empty, many

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@contextmanager
def pgbouncer(folder: Path, url: str, mode: str) -> Iterator[str]:
    """URL of the same database through a PgBouncer in this pool mode."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "install the package pgbouncer (make test does)"
    parts = urlsplit(url)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    settings = folder / f"{mode}.ini"
    settings.write_text(
        f"[databases]\n* = host={parse_qs(parts.query)['host'][0]} user={parts.username}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {mode}\ndefault_pool_size = 40\nmax_client_conn = 100\n"
    )
    # It refuses uid 0. In a user namespace root is somebody else, who still reaches the database's socket.
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    with (folder / f"{mode}.log").open("wb") as log:
        process = subprocess.Popen(
            [*prefix, program, str(settings)],
            stdout=log,
            stderr=log,
            preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
        )
    through = f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"

    def answers() -> bool:
        assert process.poll() is None, (folder / f"{mode}.log").read_text()
        try:
            psycopg.connect(through, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_until(answers, "PgBouncer answers")
        yield through
    finally:
        process.terminate()
        process.wait(30)


def test_behind_a_pooler_in_session_mode(tmp_path: Path, postgres_url: str) -> None:
    """API and worker work through it: backup, restore, and a task that a killed worker had."""
    source = tmp_path / "source"
    make_tree(source, 1, files=8)
    wanted = contents(source)
    with pgbouncer(tmp_path, postgres_url, "session") as url, many(tmp_path, url, api_drain_s="0") as world:
        world.api()
        client = world.client()
        vault = client.vault("v", "turbo", [client.register("turbo", "source", source)])
        worker = world.worker(kill_at="backup:database:4")
        checkpoint = client.checkpoint(vault)
        assert worker.wait_dead() == -9
        world.worker()
        assert client.settled(checkpoint)["status"] == "available"
        empty(source)
        assert client.restore(client.backups()[0]["id"])["status"] == "success"
        assert contents(source) == wanted
        assert world.apis[0].stop() == 0 and world.workers[1].stop() == 0


def test_a_pooler_in_transaction_mode_is_refused(tmp_path: Path, postgres_url: str) -> None:
    """With the sentence that says what to do."""
    with pgbouncer(tmp_path, postgres_url, "transaction") as url, many(tmp_path, url) as world:
        for command in ("api", "serve"):
            words = (command, "--listen", "127.0.0.1:0", "--state", str(tmp_path / command))
            done = world.run(*words)
            assert done.returncode == 1 and "pool_mode = session" in done.stderr, (command, done.stderr)
