"""An installation to be mistreated: APIs and workers on a PostgreSQL and an S3 store that can be ended too.

    tenants -> api x N \\
                        PostgreSQL (stopped at once, restarted, its connections cut)
    workers x M        /
        \\-> proxy (cuts, delays, loses answers, 503) -> SeaweedFS (killed, restarted)

Each process is started by a thread of its own, its keeper, because it ends with the thread that started it.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from harness import Server, wait_until
from many_world import Many
from ready_database import ReadyDatabase
from seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, Proxy, Seaweed, seaweed

from strongroom.control.embedded_postgres import EmbeddedPostgres
from strongroom.engine.store.s3 import S3Store

FROZEN_S = (1.0, 14.0)  # a lease is 10 s: some wake up in time, some too late
DOWN_S = (0.0, 2.0)
STORE_S = (0.5, 4.0)
POSTGRES_SPARED_S = 20.0  # its keeper waits longer after each end, and a process starts only while it is there


class World:
    """The installation and its troubles. `counts` tells how often each kind was."""

    def __init__(self, many: Many, postgres: EmbeddedPostgres, store: Seaweed, proxy: Proxy, seed: int) -> None:
        self.many = many
        self.counts: Counter[str] = Counter()
        self._postgres = postgres
        self._store = store
        self._proxy = proxy
        self._rng = random.Random(seed)
        self._postgres_spared_until_s = 0.0
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._down: set[int] = set()  # ids of processes that are ended or frozen now
        self._keepers = {id(each): _Keeper(each, self._down) for each in (*many.apis, *many.workers)}
        for keeper in self._keepers.values():
            keeper.start()

    @property
    def endpoints(self) -> list[str]:
        """Of all APIs, also of those that are down."""
        return [api.endpoint for api in self.many.apis]

    @property
    def kills(self) -> int:
        """Processes that got SIGKILL."""
        return sum(number for kind, number in self.counts.items() if kind.startswith("kill"))

    def objects(self) -> list[str]:
        """Names of all objects in the store."""
        return [found.name for found in S3Store(BUCKET, "chaos", self._store.access()).list("")]

    def trouble(self) -> None:
        """One more, drawn from the seed; and the end of those whose time is up."""
        self._mend(time.monotonic())
        kinds = (
            *[self._kill_worker] * 6,
            *[self._kill_api] * 3,
            *[self._freeze_worker] * 3,
            self._freeze_api,
            self._restart_worker,
            self._restart_api,
            self._kill_postgres,
            self._restart_postgres,
            self._cut_postgres,
            self._kill_store,
            *[self._cut_store] * 2,
            self._slow_store,
            self._busy_store,
            *[self._lose_answers] * 2,
        )
        self._rng.choice(kinds)()

    def calm(self) -> None:
        """End all troubles: everything runs and answers on return."""
        while self._later:
            self._mend(float("inf"))
        for keeper in self._keepers.values():
            keeper.wanted.set()
        wait_until(lambda: not self._down and all(keeper.is_up for keeper in self._keepers.values()), "all run", 180)
        self._proxy.latency_s, self._proxy.busy, self._proxy.lose_answers = 0.0, False, 0

    # --- kinds of trouble -----------------------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        self._end(self._one(self.many.workers), signal.SIGKILL, "kill worker")

    def _kill_api(self) -> None:
        self._end(self._one(self.many.apis), signal.SIGKILL, "kill api")

    def _restart_worker(self) -> None:
        self._end(self._one(self.many.workers), signal.SIGTERM, "terminate worker")

    def _restart_api(self) -> None:
        self._end(self._one(self.many.apis), signal.SIGTERM, "terminate api")

    def _freeze_worker(self) -> None:
        self._freeze(self._one(self.many.workers), "freeze worker")

    def _freeze_api(self) -> None:
        self._freeze(self._one(self.many.apis), "freeze api")

    def _kill_postgres(self) -> None:
        self._signal_postgres(signal.SIGQUIT, "stop postgres at once")

    def _restart_postgres(self) -> None:
        self._signal_postgres(signal.SIGINT, "restart postgres")

    def _signal_postgres(self, number: int, kind: str) -> None:
        """Its keeper starts it again."""
        pid = self._postgres.pid
        if pid is not None and time.monotonic() > self._postgres_spared_until_s:
            self._postgres_spared_until_s = time.monotonic() + POSTGRES_SPARED_S
            self.counts[kind] += 1
            os.kill(pid, number)

    def _cut_postgres(self) -> None:
        """Every connection that it has, in whatever transaction it is."""
        with contextlib.suppress(psycopg.OperationalError):  # it is away, or this was one of them
            with psycopg.connect(self.many.settings["database_url"], autocommit=True, connect_timeout=2) as conn:
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
            self.counts["cut connections to postgres"] += 1

    def _kill_store(self) -> None:
        self.counts["kill store"] += 1
        self._store.kill()
        self._store.start()

    def _cut_store(self) -> None:
        self.counts["cut connections to the store"] += 1
        self._proxy.cut()

    def _slow_store(self) -> None:
        self.counts["slow store"] += 1
        self._proxy.latency_s = self._rng.uniform(0.05, 0.5)
        self._after(STORE_S, self._quick_store)

    def _quick_store(self) -> None:
        self._proxy.latency_s = 0.0

    def _busy_store(self) -> None:
        self.counts["503 from the store"] += 1
        self._proxy.busy = True
        self._after(STORE_S, self._willing_store)

    def _willing_store(self) -> None:
        self._proxy.busy = False

    def _lose_answers(self) -> None:
        self.counts["answers of the store lost"] += 1
        self._proxy.lose_of = self._rng.choice((b"PUT", b"POST", b"DELETE", b"GET"))
        self._proxy.lose_answers = self._rng.randint(1, 3)

    # --- their parts ----------------------------------------------------------------------------------------------

    def _one(self, processes: Sequence[Server]) -> Server | None:
        """One that runs, unless it is the last: tenants are to work, not to wait for a start."""
        running = [each for each in processes if id(each) not in self._down]
        return self._rng.choice(running) if len(running) > 1 else None

    def _end(self, process: Server | None, number: int, kind: str) -> None:
        if process is None or process.process is None:
            return
        self.counts[kind] += 1
        self._down.add(id(process))
        process.process.send_signal(number)
        if number == signal.SIGKILL:
            process.process.wait()
        self._after(DOWN_S, lambda: self._start(process))

    def _freeze(self, process: Server | None, kind: str) -> None:
        if process is None or process.process is None:
            return
        self.counts[kind] += 1
        self._down.add(id(process))
        process.process.send_signal(signal.SIGSTOP)

        def wake() -> None:
            assert process.process is not None
            process.process.send_signal(signal.SIGCONT)
            self._down.discard(id(process))

        self._after(FROZEN_S, wake)

    def _start(self, process: Server) -> None:
        """Start what ended, also of itself; its keeper does it, and nobody waits."""
        self._keepers[id(process)].wanted.set()

    def _after(self, seconds: tuple[float, float], what: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + self._rng.uniform(*seconds), what))

    def _mend(self, until_s: float) -> None:
        due = [item for item in self._later if item[0] <= until_s]
        self._later = [item for item in self._later if item[0] > until_s]
        for _, what in due:
            what()


class _Keeper(threading.Thread):
    """Starts one process whenever it is wanted. It lives as long as the test, because the process ends with it."""

    def __init__(self, process: Server, down: set[int]) -> None:
        super().__init__(daemon=True)
        self.wanted = threading.Event()
        self._process = process
        self._down = down

    @property
    def is_up(self) -> bool:
        process = self._process.process
        return not self.wanted.is_set() and process is not None and process.poll() is None

    def run(self) -> None:
        while True:
            self.wanted.wait()
            process = self._process.process
            if process is not None and (process.poll() is None) and id(self._process) in self._down:
                process.wait(120)  # it was told to end
            if process is None or process.poll() is not None:
                with contextlib.suppress(AssertionError):  # the database may be away just then: once more
                    self._process.start()
                    self._ready()
                continue
            self._ready()

    def _ready(self) -> None:
        self._down.discard(id(self._process))
        self.wanted.clear()


@contextmanager
def world(folder: Path, database: ReadyDatabase, *, apis: int, workers: int, seed: int) -> Iterator[World]:
    """Everything started."""
    with ExitStack() as stack:
        store = stack.enter_context(seaweed(folder / "seaweed"))
        proxy = Proxy(store.port)
        stack.callback(proxy.close)
        database.copy_to(folder / "database")
        postgres = EmbeddedPostgres(folder / "database" / "postgres", settings={"max_connections": "200"})
        stack.callback(postgres.stop)
        many = Many(
            folder,
            postgres.start(),
            store_url=f"s3://{BUCKET}/chaos",
            s3_endpoint=f"http://127.0.0.1:{proxy.port}",
            s3_allow_http="true",
            s3_access_key=ACCESS_KEY,
            s3_secret_key=SECRET_KEY,
            api_drain_s="0",
        )
        stack.callback(many.end)
        for _ in range(apis):
            many.api()
        for _ in range(workers):
            many.worker()
        yield World(many, postgres, store, proxy, seed)
