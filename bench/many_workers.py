"""What workers make of one queue together, and how soon a dead worker's task is another's: docs/SCALE.md.

    python -m bench.many_workers [--tasks 96] [--workers 1,2,4] [--kills 5]

Real processes on one machine: one `strongroom api`, then 1, 2, 4 `strongroom worker --concurrency 2` on a PostgreSQL of
the bench's own and a store in a folder. Throughput: small folders (one file of 256 KiB each, a vault each) are backed
up in full by one request each; from the first task that begins to the last that ends, by the database's clock.
Take-over: one of two workers is killed in the middle of a slow backup; from the kill to the claim by the other.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg

from bench.ending import end_on_sigterm
from strongroom.control import migrate
from strongroom.control.embedded_postgres import EmbeddedPostgres

WAIT_S = 300


class Installation:
    """Processes on one database and store. url: of the database. settings: those of every process."""

    def __init__(self, folder: Path, url: str, *, apis: int = 1, **settings: str) -> None:
        self.folder, self.url = folder, url
        self.processes: list[subprocess.Popen[str]] = []
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")} | {
            "STRONGROOM_DATABASE_URL": url,
            "STRONGROOM_STORE_URL": (folder / "store").as_uri(),
            "STRONGROOM_MASTER_KEY_FILE": str(folder / "api" / "master.key"),
            "STRONGROOM_LOG_LEVEL": "warning",
        }
        self.environ |= {f"STRONGROOM_{key.upper()}": value for key, value in settings.items()}
        (folder / "store").mkdir(exist_ok=True)
        names = ["api", *(f"api-{number}" for number in range(1, apis))]  # the first makes the key and the account
        self.endpoints = [self.start("api", "--listen", "127.0.0.1:0", name=name).split()[-1] for name in names]
        self.endpoint = self.endpoints[0]

    def start(self, command: str, *words: str, name: str, **settings: str) -> str:
        """Start a process; the line that says that it is ready. settings: its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "strongroom", command, *words, "--state", str(self.folder / name)],
            env=self.environ | {f"STRONGROOM_{key.upper()}": value for key, value in settings.items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Strongroom "):
                return line
        raise SystemExit(f"{command} ended with {process.wait()}")

    def workers(self, count: int, concurrency: int = 2, **settings: str) -> None:
        """End those there are and start so many."""
        old = self.processes[len(self.endpoints) :]
        for process in old:
            process.terminate()
        for process in old:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        del self.processes[len(self.endpoints) :]
        for number in range(count):
            self.start("worker", "--concurrency", str(concurrency), name=f"worker-{number}", **settings)

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as conn:
            return conn.execute(statement.encode(), values).fetchall()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def client(bench: Installation) -> httpx.Client:
    """A client with a token of the first user."""
    given = json.loads((bench.folder / "api" / "credentials.json").read_text())
    found = httpx.Client(base_url=bench.endpoint, timeout=60)
    user = {"name": given["username"], "password": given["password"], "domain": {"name": given["domain_name"]}}
    body = {
        "auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"id": given["project_id"]}},
        }
    }
    answer = found.post("/v3/auth/tokens", json=body)
    found.headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]
    found.base_url = httpx.URL(f"{bench.endpoint}/v3/{given['project_id']}/")
    found.headers["X-Bench-Project"] = given["project_id"]
    return found


def make_vaults(bench: Installation, api: httpx.Client, count: int, **options: object) -> list[str]:
    """So many vaults with a small folder each."""
    made = []
    for number in range(count):
        place = bench.folder / "sources" / f"{len(os.listdir(bench.folder / 'sources'))}-{number}"
        place.mkdir()
        (place / "file").write_bytes(os.urandom(256 << 10))
        new = {
            "project_id": api.headers["X-Bench-Project"],
            "type": "turbo",
            "name": "f",
            "path": str(place),
            **options,
        }
        registered = api.post(f"{bench.endpoint}/ext/v1/admin/protectables", json={"protectable": new}).json()
        vault = {
            "name": "v",
            "billing": {
                "object_type": "turbo",
                "protect_type": "backup",
                "consistent_level": "crash_consistent",
                "size": 10,
            },
            "resources": [{"id": registered["protectable"]["id"], "type": "OS::Sfs::Turbo"}],
        }
        made.append(api.post("vaults", json={"vault": vault}).json()["vault"]["id"])
    return made


def back_up(api: httpx.Client, vaults: list[str]) -> None:
    for vault in vaults:
        answer = api.post("checkpoints", json={"checkpoint": {"vault_id": vault, "parameters": {"incremental": False}}})
        assert answer.status_code == 200, answer.text


def settle(bench: Installation) -> None:
    """Until nothing is open."""
    deadline = time.monotonic() + WAIT_S
    while bench.rows("SELECT count(*) FROM operation_logs WHERE status IN ('waiting', 'running')")[0][0]:
        if time.monotonic() > deadline:
            raise SystemExit("the tasks did not end")
        time.sleep(0.05)


def throughput(bench: Installation, api: httpx.Client, vaults: list[str], workers: int) -> float:
    """Tasks a second. The queue is full before a worker is there."""
    bench.workers(0)
    back_up(api, vaults)
    bench.workers(workers)
    settle(bench)
    ((seconds,),) = bench.rows(
        "SELECT extract(epoch FROM max(ended_at) - min(started_at))::float8 FROM (SELECT ended_at, started_at "
        "FROM operation_logs WHERE operation_type = 'backup' ORDER BY created_at DESC LIMIT %s) t",
        len(vaults),
    )
    return len(vaults) / float(seconds)


def take_over(bench: Installation, api: httpx.Client, vault: str) -> float:
    """Seconds from the kill of a worker to the claim by the other one."""
    bench.workers(2)
    back_up(api, [vault])
    query = (
        "SELECT worker, generation, lease_until - interval '10 s' FROM operation_logs WHERE operation_type = 'backup' "
        "AND status = 'running' ORDER BY created_at DESC LIMIT 1"
    )
    while not (found := bench.rows(query)):
        time.sleep(0.01)
    holder = str(found[0][0]).split(":")[1]
    victim = next(p for p in bench.processes if str(p.pid) == holder)
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    while not (found := bench.rows(query)) or found[0][1] == 1:
        time.sleep(0.01)
    seconds = time.monotonic() - killed
    settle(bench)
    return seconds


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=96)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="many-"))
    postgres = EmbeddedPostgres(folder / "postgres", settings={"max_connections": "100"})
    url = postgres.start()
    migrate.upgrade(url)
    bench = Installation(folder, url)
    try:
        (folder / "sources").mkdir()
        api = client(bench)
        vaults = make_vaults(bench, api, options.tasks)
        print("| workers | tasks a second |\n| --- | --- |")
        for count in map(int, options.workers.split(",")):
            print(f"| {count} | {throughput(bench, api, vaults, count):.1f} |", flush=True)
        (slow,) = make_vaults(bench, api, 1, read_limit_bytes_s=64 << 10)
        spent = [take_over(bench, api, slow) for _ in range(options.kills)]
        if spent:
            print(f"\nTake-over: median {statistics.median(spent):.1f} s, longest {max(spent):.1f} s of {len(spent)}.")
        api.close()
    finally:
        bench.end()
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
