"""What 1, 2 and 4 workers make of one queue, near to PostgreSQL and the store and far from them.

Workers reach both through relays (relay.py); the store is a SeaweedFS, so that an object is a request. Small folders
in a vault each are backed up in full. Beside tasks a second it is measured what a task takes: CPU seconds of its
worker, of PostgreSQL and of the store, and how often it waits for an answer of each. The model (model.py) needs these.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psycopg

from bench.api.load import cpu_seconds, family_cpu_seconds
from bench.many_workers import Installation, back_up, client, make_vaults, settle
from bench.scale.model import CONCURRENCY
from bench.scale.relay import Relay
from strongroom.control import migrate
from strongroom.control.embedded_postgres import EmbeddedPostgres
from strongroom.control.tasks import CHANNEL

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, Seaweed, seaweed


def measure(
    folder: Path, tasks: int, workers: Sequence[int], round_trips_ms: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """A row for each number of workers and distance, as it is measured."""
    place = Path(tempfile.mkdtemp(prefix="workers-", dir=folder))
    postgres = EmbeddedPostgres(place / "postgres", settings={"max_connections": "200"})
    try:
        url = postgres.start()
        migrate.upgrade(url)
        assert postgres.pid is not None
        with seaweed(place / "seaweed") as store:
            wanted = [(number, rtt_ms) for rtt_ms in round_trips_ms for number in workers]
            yield from _rows(place, url, postgres.pid, store, tasks, wanted)
    finally:
        postgres.stop()
        shutil.rmtree(place, ignore_errors=True)


def _rows(
    place: Path, url: str, postgres_pid: int, store: Seaweed, tasks: int, wanted: Sequence[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    to_database, to_store = Relay(socket=str(_socket_of(url))), Relay(port=store.port)
    settings = {
        "store_url": f"s3://{BUCKET}/workers",
        "s3_endpoint": f"http://127.0.0.1:{store.port}",
        "s3_access_key": ACCESS_KEY,
        "s3_secret_key": SECRET_KEY,
        "s3_allow_http": "true",
    }
    far = {
        "database_url": _through(url, to_database.port),
        "s3_endpoint": f"http://127.0.0.1:{to_store.port}",
    }
    bench = Installation(place, url, **settings)
    try:
        (place / "sources").mkdir()
        api = client(bench)
        vaults = make_vaults(bench, api, tasks)
        assert store._process is not None
        back_up(api, vaults[:4])  # the store's first objects take longer
        bench.workers(1)
        settle(bench)
        for workers, rtt_ms in wanted:
            to_database.rtt_s = to_store.rtt_s = 0.0  # while they start
            bench.workers(0)
            back_up(api, vaults)
            _hold(url, "now() + interval '1 hour'")
            bench.workers(workers, CONCURRENCY, **far)
            before = _Cpu(bench, postgres_pid, store._process.pid, (to_database, to_store))
            to_database.rtt_s = to_store.rtt_s = rtt_ms / 1000
            _hold(url, "NULL")
            settle(bench)
            yield {"workers": workers, "rtt_ms": rtt_ms, "tasks_s": _rate(bench, tasks), **before.each(tasks)}
        api.close()
    finally:
        bench.end()
        to_database.close()
        to_store.close()


def _hold(url: str, until: str) -> None:
    """When what waits may begin: not before all workers are there."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"UPDATE operation_logs SET not_before = {until} WHERE status = 'waiting'".encode())
        conn.execute(f"NOTIFY {CHANNEL}".encode())


class _Cpu:
    """What has been used so far, by whom."""

    def __init__(self, bench: Installation, postgres: int, store: int, relays: tuple[Relay, Relay]) -> None:
        self._bench, self._postgres, self._store, self._relays = bench, postgres, store, relays
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        workers = self._bench.processes[len(self._bench.endpoints) :]
        return {
            "worker_cpu_s": sum(cpu_seconds(process.pid) for process in workers),
            "postgres_cpu_s": family_cpu_seconds(self._postgres),
            "store_cpu_s": cpu_seconds(self._store),
            "database_turns": float(self._relays[0].turns),
            "store_turns": float(self._relays[1].turns),
        }

    def each(self, tasks: int) -> dict[str, float]:
        """Of each task."""
        return {name: (value - self._before[name]) / tasks for name, value in self._now().items()}


def _rate(bench: Installation, tasks: int) -> float:
    """Tasks a second, from the first that begins to the last that ends, by the database's clock."""
    ((seconds,),) = bench.rows(
        "SELECT extract(epoch FROM max(ended_at) - min(started_at))::float8 FROM (SELECT ended_at, started_at "
        "FROM operation_logs WHERE operation_type = 'backup' ORDER BY created_at DESC LIMIT %s) t",
        tasks,
    )
    return tasks / float(seconds)


def _socket_of(url: str) -> Path:
    """The Unix socket that the URL names."""
    return next(Path(parse_qs(urlsplit(url).query)["host"][0]).glob(".s.PGSQL.*[0-9]"))


def _through(url: str, port: int) -> str:
    parts = urlsplit(url)
    return f"postgresql://{quote(parts.username or '')}@127.0.0.1:{port}{parts.path}"
