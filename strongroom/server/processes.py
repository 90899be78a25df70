"""The three forms of a process: how each starts, what it runs, and how it ends."""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal

import structlog
import uvloop

from strongroom.api.health import health_app
from strongroom.base.errors import ConfigError
from strongroom.config import Settings
from strongroom.control import migrate as schema
from strongroom.control.db import require_sessions
from strongroom.operations import trace
from strongroom.operations.worker import Worker
from strongroom.server import listener as http
from strongroom.server.agents import agents_port
from strongroom.server.parts import Parts, known, open_parts, probe_of
from strongroom.server.request_side import RequestSide, request_side
from strongroom.server.waiting import opened
from strongroom.state import (
    CREDENTIALS,
    configure_logging,
    export_mark,
    prepare_state,
    require_settled,
    running_database,
    state_lock,
)

log = structlog.get_logger("server")

CLOUDS = "clouds.yaml"
WORKER_CONNECTIONS = 2  # of its health probes; its jobs have a pool of their own


def serve(settings: Settings) -> int:
    """Run API and jobs until SIGTERM or SIGINT. Returns the exit code; raises ConfigError when it cannot start."""
    _prepare(settings)
    http.check_certificate(settings)
    with state_lock(settings):
        require_settled(settings)
        _check_pooler(settings)
        with running_database(settings) as url:
            schema.upgrade(settings.database_direct_url or url, alone=settings.database_url is None)
            code = _run(_serve(settings, url))
    return _left(code)


def run_api(settings: Settings) -> int:
    """Answer requests until SIGTERM or SIGINT; the jobs are those of workers elsewhere. As `serve` else."""
    with _one_of_many(settings, "api") as url:
        http.check_certificate(settings)
        return _run(_api(settings, url))


def run_worker(settings: Settings) -> int:
    """Run jobs and tickers until SIGTERM or SIGINT. As `serve` else."""
    with _one_of_many(settings, "worker") as url:
        code = _run(_worker(settings, url))
    return _left(code)


def _prepare(settings: Settings) -> None:
    configure_logging(settings)
    prepare_state(settings)
    _find_clouds(settings)
    if settings.kill_at is not None:
        trace.arm(settings.kill_at)


def _find_clouds(settings: Settings) -> None:
    """The clouds.yaml of the state folder, told as OpenStack's own libraries are, which read its volumes.

    Raises ConfigError when others can read the passwords in it.
    """
    clouds = settings.state_dir / CLOUDS
    if not clouds.exists():
        return
    if clouds.stat().st_mode & 0o077:
        raise ConfigError(reason=f"{clouds} holds passwords and others may read it. Run: chmod 600 {clouds}")
    os.environ.setdefault("OS_CLIENT_CONFIG_FILE", str(clouds))


def _check_pooler(settings: Settings) -> None:
    """A pooler in transaction mode needs the way past it too."""
    if settings.database_url is not None and settings.database_direct_url is None:
        require_sessions(settings.database_url)


@contextmanager
def _one_of_many(settings: Settings, command: str) -> Iterator[str]:
    """URL of the database that all processes share. Raises ConfigError where they could not."""
    if settings.database_url is None:
        raise ConfigError(
            reason=f"`strongroom {command}` is one process of many, and needs the PostgreSQL that all of them use. "
            "Name it with STRONGROOM_DATABASE_URL, or run `strongroom serve`, which has one of its own."
        )
    if not settings.store_named:
        raise ConfigError(
            reason=f"`strongroom {command}` is one process of many, and needs the store that all of them use. "
            "Name it with STRONGROOM_STORE_URL: s3://bucket/prefix, or file:// with a folder that every machine mounts."
        )
    _prepare(settings)
    with state_lock(settings, shared=True):
        require_settled(settings)
        yield settings.database_url


async def _check_database(settings: Settings, url: str) -> None:
    """Raises Unavailable while it does not answer, ConfigError when it is none for this program."""
    await asyncio.to_thread(_check_pooler, settings)
    await asyncio.to_thread(schema.check, settings.database_direct_url or url)


def _run(main: Coroutine[Any, Any, int]) -> int:
    # The loop that uvicorn takes when it starts by itself.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _left(code: int) -> int:
    """The exit code; where the threads of jobs did not stop, without waiting for them: their tasks were given back."""
    if code != LEFT_BEHIND:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


LEFT_BEHIND = -1  # of a process that was told to end, and whose jobs did not stop


async def _serve(settings: Settings, url: str) -> int:
    connections = settings.database_connections
    async with open_parts(settings, url, connections=connections, may_make_key=True, many=False) as parts:
        # A PostgreSQL of its own has no other process; one that was named may have many, of other state folders.
        dead: Literal["place", "all"] = "all" if settings.database_url is None else "place"
        worker = parts.worker(dead=dead, drain_s=0)  # nobody else would take over what it finishes
        probes, groups = {"worker": probe_of(worker)}, frozenset({settings.worker_group})
        listener = http.bind(settings.listen)
        endpoint = _listens_on(settings, listener)
        async with known(parts, "serve", settings.worker_group), agents_port(parts):
            try:
                async with request_side(parts, endpoint, probes, groups) as side:
                    await asyncio.to_thread(worker.start)
                    await _answer(settings, side, listener, endpoint, drain_s=0, worker=worker)
                code = 0 if worker.alive else 1
            finally:
                clean = await asyncio.to_thread(worker.stop)
                _tell_trace()
        return code if clean else LEFT_BEHIND


async def _api(settings: Settings, url: str) -> int:
    listener = http.bind(settings.listen)
    endpoint = _listens_on(settings, listener)
    async with opened(lambda: _request_side(settings, url, endpoint), settings, listener, tls=True) as side:
        await _answer(settings, side, listener, endpoint, drain_s=settings.api_drain_s)
        _tell_trace()
    return 0


@asynccontextmanager
async def _request_side(settings: Settings, url: str, endpoint: str) -> AsyncIterator[RequestSide]:
    """All that an `api` answers with."""
    await _check_database(settings, url)
    connections = settings.database_connections
    async with (
        open_parts(settings, url, connections=connections, may_make_key=True, many=True) as parts,
        known(parts, "api", None),
        request_side(parts, endpoint, {}, frozenset()) as side,
    ):
        yield side


async def _answer(
    settings: Settings,
    side: RequestSide,
    listener: socket.socket,
    endpoint: str,
    *,
    drain_s: float,
    worker: Worker | None = None,
) -> None:
    """Listen and answer until a signal, or until the worker of this process is gone."""
    _keep_what_stands()
    await http.answer(
        http.HttpServer(side.app, settings.tls_cert, settings.tls_key, settings.trusted_proxies),
        listener,
        side.services,
        announce=partial(_announce, settings, endpoint),
        drain_s=drain_s,
        alive=lambda: worker is None or worker.alive,
    )


async def _worker(settings: Settings, url: str) -> int:
    health = http.bind(settings.health_listen) if settings.health_listen is not None else None
    if health is not None and settings.health_listen is not None:
        sys.stdout.write(f"Health: {http.base_url(settings.health_listen, health, tls=False)}/readyz\n")
        sys.stdout.flush()
    async with opened(lambda: _job_side(settings, url), settings, health, tls=False) as (parts, worker):
        answering = _Health(health, parts, worker)
        try:
            await answering.start()
            sys.stdout.write(f"Strongroom worker {worker.name} of the group {settings.worker_group} is ready\n")
            sys.stdout.flush()
            await _until_ended(worker)
            code = 0 if worker.draining else 1
        finally:
            clean = await asyncio.to_thread(worker.stop)
            await answering.stop()
            _tell_trace()
    return code if clean else LEFT_BEHIND


@asynccontextmanager
async def _job_side(settings: Settings, url: str) -> AsyncIterator[tuple[Parts, Worker]]:
    """What a `worker` is made of, and itself, started; who gets it stops it."""
    await _check_database(settings, url)
    async with (
        open_parts(settings, url, connections=WORKER_CONNECTIONS, may_make_key=False, many=True) as parts,
        known(parts, "worker", settings.worker_group),
        agents_port(parts),
    ):
        worker = parts.worker(dead="none", drain_s=settings.worker_drain_s)
        await asyncio.to_thread(worker.start)
        yield parts, worker


async def _until_ended(worker: Worker) -> None:
    """Until the worker has drained after a signal, or is gone by itself. The second signal does not wait for jobs."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if worker.draining:
            worker.hurry()
        else:
            log.info("no new tasks; those that run may finish", seconds=worker.drain_s, running=worker.running)
            worker.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await asyncio.to_thread(worker.join)


class _Health:
    """The small listener of a worker: /healthz, /readyz and /metrics. Nothing without the setting."""

    def __init__(self, listener: socket.socket | None, parts: Parts, worker: Worker) -> None:
        self._listener = listener
        self._app = health_app(parts.probes() | {"worker": probe_of(worker)})
        self._server: http.HttpServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._listener is not None:
            self._server = http.HttpServer(self._app)
            self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.end()
            self._server.end()
            await asyncio.gather(self._serving, return_exceptions=True)


def _keep_what_stands() -> None:
    """The collector need not look again and again at what lives as long as the process: looking took 100 ms, in which
    no request was answered (docs/benchmarks/api.md)."""
    gc.collect()
    gc.freeze()


def _tell_trace() -> None:
    if trace.passed() is not None:
        log.info("trace points passed", count=trace.passed())


def _listens_on(settings: Settings, listener: socket.socket) -> str:
    """The base URL for credentials.json: the configured one, else where we listen."""
    if settings.endpoint is not None:
        return settings.endpoint.rstrip("/")
    return http.base_url(settings.listen, listener, tls=settings.tls_cert is not None)


def _announce(settings: Settings, endpoint: str) -> None:
    """What a person reads and a script waits for. On stdout; the log is on stderr."""
    lines = [f"Strongroom listens on {endpoint}"]
    credentials = settings.state_dir / CREDENTIALS
    if credentials.exists():
        lines.append(f"Credentials: {credentials}")
    if not export_mark(settings).exists():
        lines.append(
            "Warning: the master key was never exported. Without it no restore point can be read. "
            "Run `strongroom export-key FILE` and keep the file on another machine."
        )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
