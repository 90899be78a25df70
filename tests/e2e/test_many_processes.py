"""One installation as many processes: who runs what, how each ends, and what is refused."""

from pathlib import Path

import httpx
import pytest
from harness import contents, make_tree
from many_world import empty, many, ready

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_requests_here_and_jobs_there(tmp_path: Path, postgres_url: str) -> None:
    """Two APIs and two workers: a checkpoint asked for at one API is made by a worker, seen and restored by the other;
    a worker tells its health; each ends in order."""
    source = tmp_path / "source"
    make_tree(source, 1)
    wanted = contents(source)
    with many(tmp_path, postgres_url, api_drain_s="0") as world:
        first, second = world.api(), world.api()
        worker, other = world.worker(), world.worker()
        with world.client(0) as here, world.client(1) as there:
            vault = here.vault("v", "turbo", [here.register("turbo", "source", source)])
            checkpoint = here.checkpoint(vault)
            assert there.settled(checkpoint)["status"] == "available"
            empty(source)
            assert there.restore(there.backups()[0]["id"])["status"] == "success"
        assert contents(source) == wanted
        assert ready(worker.health) == (200, {"database": "ok", "store": "ok", "worker": "ok"})
        assert httpx.get(f"{worker.health}/healthz").json()["status"] == "ok"
        assert "python_info" in httpx.get(f"{worker.health}/metrics").text
        assert ready(first.endpoint) == (200, {"database": "ok", "store": "ok"})
        lonely = world.run(
            *("worker", "--state", str(tmp_path / "x")),
            store_url=(tmp_path / "no-store").as_uri(),
            master_key_file=str(world.key),
        )
        assert lonely.returncode == 1 and "not the one that the other processes use" in lonely.stderr, lonely.stderr
        assert [process.stop() for process in (first, second, worker, other)] == [0, 0, 0, 0]


def test_what_does_not_fit_many_processes_is_refused(tmp_path: Path, postgres_url: str) -> None:
    """Without a shared database, store or key, or with a `serve` in the same folder: a sentence."""
    with many(tmp_path, postgres_url) as world:
        for command in ("api", "worker"):
            words = (command, "--state", str(tmp_path / "none"))
            done = world.run(*words, database_url="")
            assert done.returncode == 1 and "Name it with STRONGROOM_DATABASE_URL" in done.stderr, done.stderr
            done = world.run(*words, store_url="")
            assert done.returncode == 1 and "Name it with STRONGROOM_STORE_URL" in done.stderr, done.stderr
        done = world.run("worker", "--state", str(tmp_path / "none"))
        assert done.returncode == 1 and "STRONGROOM_MASTER_KEY_FILE" in done.stderr, done.stderr
        world.api()
        done = world.run("serve", "--listen", "127.0.0.1:0", "--state", str(world.apis[0].state))
        assert done.returncode == 1 and "is in use by process" in done.stderr, done.stderr
