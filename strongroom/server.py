"""The wiring: the only module that knows everybody. It makes the parts, hands them around and ends them in order.

start   state lock -> master key -> PostgreSQL -> schema -> first accounts -> store -> worker -> listener -> "listens"
stop    listener (no new requests) -> worker (drains) -> pool of the request side -> PostgreSQL -> state lock
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from strongroom.api.accounts import AccountsApi
from strongroom.api.app import build_app
from strongroom.api.authentication import Authenticator, RegionAuthenticator
from strongroom.api.connection import Connection
from strongroom.api.event_hub import EventHub
from strongroom.api.identity import IdentityApi
from strongroom.api.keystone import KeystoneAuthenticator
from strongroom.api.operation import Operation
from strongroom.api.services import Authenticate, Limits, Services
from strongroom.api.table import OPERATIONS
from strongroom.base.clock import SystemClock
from strongroom.base.errors import ConfigError, Unavailable
from strongroom.config import Settings, check_certificate
from strongroom.control import migrate as schema
from strongroom.control.accounts import Accounts
from strongroom.control.callers import Callers
from strongroom.control.db import Database
from strongroom.control.logins import Logins
from strongroom.control.passwords import Passwords
from strongroom.control.token_keys import TokenKeys
from strongroom.control.tokens import Ring
from strongroom.engine import DomainSettings
from strongroom.engine.pool import Pool
from strongroom.engine.store.open import open_store
from strongroom.engine.store.retention import retains
from strongroom.operations import trace
from strongroom.operations.browsing import ResourceInspector, RestorePointBrowser
from strongroom.operations.job import Tools
from strongroom.operations.peers import Peers
from strongroom.operations.portal import Portal
from strongroom.operations.regions import RegionGate
from strongroom.operations.worker import Worker
from strongroom.state import (
    CREDENTIALS,
    EXPORT_MARK,
    INDEX_FOLDER,
    configure_logging,
    load_master_key,
    note_endpoint,
    prepare_state,
    require_no_rotation,
    running_database,
    state_lock,
    write_credentials,
)

log = structlog.get_logger("server")

SHUTDOWN_S_MAX = 10  # for answers under way; a download that takes longer is cut
BACKLOG = 512


def serve(settings: Settings) -> int:
    """Run API and jobs until SIGTERM or SIGINT. Returns the exit code; raises ConfigError when it cannot start."""
    configure_logging(settings)
    check_certificate(settings)
    prepare_state(settings)
    if settings.kill_at is not None:
        trace.arm(settings.kill_at)
    with state_lock(settings):
        require_no_rotation(settings)
        with running_database(settings) as url:
            schema.upgrade(url)
            # The loop that uvicorn takes when it starts by itself.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_serve(settings, url))


async def _serve(settings: Settings, url: str) -> int:
    clock = SystemClock()
    async with await Database.open(url, min_size=2, max_size=settings.database_connections) as database:
        store = open_store(settings.store_url, settings.s3)
        await asyncio.to_thread(store.check)
        master = await load_master_key(settings, database, store)
        ring, passwords = Ring([settings.master_key_file.read_bytes()]), Passwords()
        accounts = Accounts(database=database, ring=ring, passwords=passwords, clock=clock)
        keys = TokenKeys(database=database, ring=ring, clock=clock)
        callers = Callers(
            database=database, accounts=accounts, ring=ring, keys=keys, clock=clock, token_ttl_s=settings.token_ttl_s
        )
        pool = Pool(budget_bytes=settings.worker_memory_bytes)
        peers = Peers(settings.regions, settings.region, clock)

        def make_tools(its_database: Database, portal: Portal) -> Tools:
            return Tools(
                database=its_database,
                portal=portal,
                store=store,
                master=master,
                pool=pool,
                clock=clock,
                settings=DomainSettings(),
                index_folder=str(settings.state_dir / INDEX_FOLDER),
                peers=peers,
            )

        worker = Worker(
            database_url=settings.database_direct_url or url,
            make_tools=make_tools,
            clock=clock,
            group=settings.worker_group,
            concurrency=settings.worker_concurrency,
            alone=True,
            region=settings.region,
            audit_days=settings.audit_days,
        )
        listener = _bind(settings)
        endpoint = _endpoint(settings, listener)
        await accounts.bootstrap(settings.region, lambda first: write_credentials(settings, endpoint, first))
        note_endpoint(settings, endpoint)
        tools = make_tools(database, Portal(asyncio.get_running_loop()))
        own, keystone = Authenticator(callers), None
        if settings.keystone is not None:
            keystone = KeystoneAuthenticator(settings.keystone, own=own, database=database, clock=clock)
        services = _services(settings, tools, keystone or own, worker)
        logins = Logins(database=database, callers=callers, passwords=passwords, clock=clock)
        accounts_rows = _account_operations(settings, accounts, callers, logins, passwords, keys)
        try:
            await asyncio.to_thread(worker.start)
            app = build_app((*OPERATIONS, *accounts_rows), services)
            return await _listen(settings, app, services.events, listener, endpoint, worker)
        finally:
            await asyncio.to_thread(worker.stop)
            if trace.passed() is not None:
                log.info("trace points passed", count=trace.passed())
            if keystone is not None:
                await keystone.close()
            pool.close()
            peers.close()
            passwords.close()


def _account_operations(
    settings: Settings,
    accounts: Accounts,
    callers: Callers,
    logins: Logins,
    passwords: Passwords,
    keys: TokenKeys,
) -> tuple[Operation, ...]:
    """What the identity adds to the table of operations."""
    identity = IdentityApi(
        callers=callers,
        logins=logins,
        accounts=accounts,
        region=settings.region,
        endpoint=settings.endpoint,
        tokens_of=settings.keystone.url if settings.keystone is not None else None,
    )
    admin = AccountsApi(accounts=accounts, callers=callers, passwords=passwords, keys=keys, endpoint=settings.endpoint)
    return (*identity.operations, *admin.operations)


def _services(settings: Settings, tools: Tools, authenticate: Authenticate, worker: Worker) -> Services:
    async def probe_database() -> None:
        async with tools.database.read() as conn:
            await conn.execute("SELECT 1")

    async def probe_store() -> None:
        await asyncio.to_thread(tools.store.check)

    async def probe_worker() -> None:
        if not worker.alive:
            raise Unavailable(reason="The worker ended. Restart the server.")

    async def store_retains() -> bool:
        return await asyncio.to_thread(retains, tools.store)

    return Services(
        database=tools.database,
        clock=tools.clock,
        region=settings.region,
        regions=RegionGate(tools),
        authenticate_region=RegionAuthenticator(settings.regions, own=settings.region, clock=tools.clock),
        authenticate=authenticate,
        browser=RestorePointBrowser(tools),
        retains=store_retains,
        inspector=ResourceInspector(forbidden=_own_places(settings)),
        probes={"database": probe_database, "store": probe_store, "worker": probe_worker},
        limits=Limits(
            body_bytes_max=settings.body_bytes_max,
            concurrency_max=settings.requests_max,
            of_project_max=max(1, settings.requests_max // 2),
        ),
    )


def _own_places(settings: Settings) -> list[Path]:
    """Folders of the service: never to be protected, never to be restored over."""
    store = urlsplit(settings.store_url)
    return [settings.state_dir, *([Path(unquote(store.path))] if store.scheme == "file" else [])]


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the order of the end is ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _listen(
    settings: Settings, app: ASGIApp, events: EventHub, listener: socket.socket, endpoint: str, worker: Worker
) -> int:
    """Answer requests until a signal, or until the worker is gone. Returns the exit code."""
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=SHUTDOWN_S_MAX,
            http=Connection,
            backlog=BACKLOG,
        )
    )
    loop = asyncio.get_running_loop()

    def end() -> None:
        server.should_exit = True
        events.close()  # or the server would wait for streams that never end by themselves

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    announced = False
    while not serving.done():
        await asyncio.wait([serving], timeout=1.0 if announced else 0.02)
        if server.started and not announced:
            announced = True
            _announce(settings, endpoint)
        if not worker.alive and not server.should_exit:
            log.error("the worker ended; the server stops so that it can be started again")
            end()
    await serving
    return 0 if worker.alive else 1


def _announce(settings: Settings, endpoint: str) -> None:
    """What a person reads and a script waits for. On stdout; the log is on stderr."""
    lines = [f"Strongroom listens on {endpoint}", f"Credentials: {settings.state_dir / CREDENTIALS}"]
    mark = settings.state_dir / EXPORT_MARK
    if not mark.exists():
        lines.append(
            "Warning: the master key was never exported. Without it no restore point can be read. "
            "Run `strongroom export-key FILE` and keep the file on another machine."
        )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _bind(settings: Settings) -> socket.socket:
    """The listening socket, so that port 0 has its number before anybody needs it."""
    host, port = settings.listen.host, settings.listen.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as err:
        raise ConfigError(
            reason=f"Cannot listen on {settings.listen}: {err.strerror}. Choose another address with --listen."
        ) from err
    return listener


def _endpoint(settings: Settings, listener: socket.socket) -> str:
    """The base URL for credentials.json: the configured one, else where we listen."""
    if settings.endpoint is not None:
        return settings.endpoint.rstrip("/")
    scheme = "https" if settings.tls_cert is not None else "http"
    host, port = settings.listen.host, listener.getsockname()[1]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
