"""Processes are replaced one by one while clients work: no request is lost, no task waits, old and new get along."""

import shutil
import threading
from pathlib import Path

import httpx
import psycopg
import pytest
from balancer import Balancer
from harness import make_tree, wait_until
from many_world import Api, Many, many, ready

import strongroom
from strongroom.control import migrate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


class Caller(threading.Thread):
    """Reads and writes through an endpoint without a pause, on connections that it keeps, and tries nothing twice."""

    def __init__(self, endpoint: str, headers: dict[str, str], path: str) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.failures: list[str] = []
        self._endpoint, self._headers, self._path = endpoint, headers, path
        self._over = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._endpoint, headers=self._headers, timeout=60) as client:
            while not self._over.is_set():
                for method, body in (("GET", None), ("PUT", {"policy": {"name": f"p{self.answered}"}})):
                    try:
                        answer = client.request(method, self._path, json=body)
                    except httpx.HTTPError as error:
                        self.failures.append(repr(error))
                        continue
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code} {answer.text}")
                    self.answered += 1

    def end(self) -> None:
        self._over.set()
        self.join(90)


POLICY = {
    "name": "p",
    "operation_type": "backup",
    "enabled": False,
    "operation_definition": {"max_backups": 3, "timezone": "UTC+00:00"},
    "trigger": {"properties": {"pattern": ["FREQ=DAILY;INTERVAL=1;BYHOUR=3;BYMINUTE=0"]}},
}


def test_a_rolling_restart_loses_no_request(tmp_path: Path, postgres_url: str) -> None:
    """Both APIs are replaced one after the other behind a balancer that follows /readyz: every request of two clients,
    which keep their connections and try nothing twice, is answered with 200."""
    with many(tmp_path, postgres_url, api_drain_s="5") as world:
        world.api(), world.api()
        with Balancer([api.endpoint for api in world.apis]) as balancer:
            wait_until(lambda: all(balancer.is_ready(api.endpoint) for api in world.apis), "both are ready")
            client = world.client()
            token = {"X-Auth-Token": client.http.headers["X-Auth-Token"]}
            made = [client.ok("POST", "policies", {"policy": POLICY})["policy"]["id"] for _ in range(2)]
            paths = [f"/v3/{client.project}/policies/{policy}" for policy in made]
            callers = [Caller(balancer.endpoint, token, path) for path in paths]
            for caller in callers:
                caller.start()
            wait_until(lambda: all(caller.answered > 4 for caller in callers), "clients work")
            for number in range(2):
                new = world.api()
                old = world.apis[number]
                balancer.set_backends([api.endpoint for api in world.apis[number:]])
                wait_until(lambda new=new: balancer.is_ready(new.endpoint), "the new one is ready")  # type: ignore[misc]
                assert old.stop() == 0
                before = [caller.answered for caller in callers]
                wait_until(
                    lambda before=before: all(c.answered > n + 4 for c, n in zip(callers, before, strict=True)),  # type: ignore[misc]
                    "clients go on",
                )
            for caller in callers:
                caller.end()
        assert [caller.failures for caller in callers] == [[], []]
        assert sum(caller.answered for caller in callers) > 20


def task_row(url: str) -> tuple[str, str, int, int]:
    """(status, worker, attempts, generation) of the one backup there is."""
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT status, coalesce(worker, ''), attempts, generation FROM operation_logs "
            "WHERE operation_type = 'backup' ORDER BY created_at DESC LIMIT 1"
        ).fetchone()
    assert row is not None
    return row


@pytest.mark.long
def test_a_worker_that_drains(tmp_path: Path, postgres_url: str) -> None:
    """At SIGTERM a worker says that it is not ready and finishes what runs; past its bound it gives the task back, and
    another takes it over without waiting for a lease, as a first attempt; the second SIGTERM gives it back at once."""
    with many(tmp_path, postgres_url) as world:
        source = tmp_path / "source"
        make_tree(source, 1, files=4)
        world.api(api_drain_s="0")
        client = world.client()
        # 3 MB at half a MiB a second: long enough to be met in the middle.
        resource = client.register("turbo", "source", source, read_limit_bytes_s=1 << 19)
        vault = client.vault("v", "turbo", [resource])
        for drain_s, signals, finished in (("600", 1, True), ("0", 1, False), ("600", 2, False)):
            first = world.worker(worker_drain_s=drain_s)
            checkpoint = client.checkpoint(vault, incremental=False)
            wait_until(lambda: task_row(postgres_url)[0] == "running", "it runs")
            assert first.process is not None
            first.process.terminate()
            if finished:
                wait_until(lambda first=first: ready(first.health)[0] == 503, "it says that it drains")  # type: ignore[misc]
            if signals == 2:
                wait_until(lambda first=first: "no new tasks" in first.log_path.read_text(), "it drains")  # type: ignore[misc]
                first.process.terminate()
            second = world.worker()
            assert first.wait_dead() == 0, first.log()
            assert client.settled(checkpoint)["status"] == "available"
            status, worker, attempts, generation = task_row(postgres_url)
            assert (status, attempts, generation) == ("success", 1, 1 if finished else 2)
            named = (first if finished else second).output[-1]
            assert worker in named, (worker, named)
            client.quiet()
            assert second.stop() == 0
        assert "lease" not in "".join(worker.log_path.read_text() for worker in world.workers)


def newer_program(folder: Path, revisions: dict[str, str | None]) -> tuple[str, ...]:
    """A copy of the program with more revisions of the schema ({number: oldest program}); the words that run it."""
    place = folder / f"program-{max(revisions)}"
    package = place / "strongroom"
    shutil.copytree(Path(strongroom.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    versions = package / "control" / "migrations" / "versions"
    for revision, oldest in revisions.items():
        line = f'\noldest_program = "{oldest}"' if oldest is not None else ""
        before = max(path.name[:4] for path in versions.glob("[0-9]*.py"))
        (versions / f"{revision}_more.py").write_text(
            f'"""More."""\n\nfrom strongroom.control.migrate import apply_sql_beside\n\nrevision = "{revision}"\n'
            f'down_revision = "{before}"{line}\n\n\ndef upgrade() -> None:\n    apply_sql_beside(__file__)\n'
        )
        (versions / f"{revision}_more.sql").write_text(f"ALTER TABLE vaults ADD COLUMN more_{revision} text;\n")
    return ("env", "PYTHONSAFEPATH=1", f"PYTHONPATH={place}")


def test_an_upgrade_rolls(tmp_path: Path, postgres_url: str) -> None:
    """The schema of a newer program that only adds comes while an old API and worker are at work; old and new work side
    by side. A schema that the old ones could not take is refused with their names, comes when they have ended, and an
    old program is then refused with a sentence."""
    head = migrate.head()
    newer = newer_program(tmp_path, {"9000": head})
    newest = newer_program(tmp_path, {"9000": head, "9001": None})
    with many(tmp_path, postgres_url, api_drain_s="0") as world:
        old_api, old_worker = world.api(), world.worker()
        client = world.client()
        source = tmp_path / "source"
        make_tree(source, 1, files=4)
        vault = client.vault("v", "turbo", [client.register("turbo", "source", source)])
        state = str(tmp_path / "operator")
        done = world.run("migrate", "--state", state, prefix=newer)
        assert done.returncode == 0, done.stderr
        new_api = start(world, newer)
        assert client.settled(client.checkpoint(vault))["status"] == "available"
        with psycopg.connect(postgres_url) as conn:
            found = conn.execute("SELECT kind, schema FROM programs ORDER BY schema, kind").fetchall()
        assert found == [("api", head), ("worker", head), ("api", "9000")]
        refused = world.run("migrate", "--state", state, prefix=newest)
        assert old_api.process is not None
        assert refused.returncode == 1 and f"api {old_api.process.pid} on " in refused.stderr, refused.stderr
        for process in (old_api, old_worker, new_api):
            assert process.stop() == 0
        done = world.run("migrate", "--state", state, prefix=newest)
        assert done.returncode == 0, done.stderr
        late = world.run("api", "--listen", "127.0.0.1:0", "--state", str(old_api.state))
        assert late.returncode == 1 and "9001 is newer than this version" in late.stderr, late.stderr


def start(world: Many, prefix: tuple[str, ...]) -> Api:
    """One more API, of another program."""
    api = Api(world.folder / "other", **world.settings, master_key_file=str(world.key))
    api.prefix = prefix
    world.apis.append(api)
    api.start()
    return api
