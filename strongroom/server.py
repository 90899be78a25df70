"""The wiring: the only module that knows everybody. It makes the parts, hands them around and ends them in order.

start   state lock -> master key -> PostgreSQL -> schema -> first accounts -> store -> worker -> listener -> "listens"
stop    listener (no new requests) -> worker (drains) -> pool of the request side -> PostgreSQL -> state lock
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp

from strongroom.api.app import build_app
from strongroom.api.authentication import Authenticator
from strongroom.api.connection import Connection
from strongroom.api.identity import IdentityApi
from strongroom.api.services import Authenticate, Limits, Services
from strongroom.api.table import OPERATIONS
from strongroom.base.clock import SystemClock
from strongroom.base.errors import ConfigError, Unavailable
from strongroom.config import Settings, check_certificate, prepare_state, state_lock
from strongroom.control import installation
from strongroom.control import migrate as schema
from strongroom.control.accounts import Accounts, FirstAccount
from strongroom.control.callers import Callers
from strongroom.control.db import Database
from strongroom.control.embedded_postgres import EmbeddedPostgres
from strongroom.control.passwords import Passwords
from strongroom.control.rebuilding import restore_rows
from strongroom.control.tokens import Ring
from strongroom.engine import DomainSettings, MasterKey
from strongroom.engine.catalogue import find_domains
from strongroom.engine.key_files import open_domain, vault_key_text
from strongroom.engine.pool import Pool
from strongroom.engine.store.open import open_store
from strongroom.operations import rotation, trace
from strongroom.operations.browsing import ResourceInspector, RestorePointBrowser
from strongroom.operations.job import Tools
from strongroom.operations.portal import Portal
from strongroom.operations.rebuild import Rebuilt, rebuild_rows
from strongroom.operations.worker import Worker

log = structlog.get_logger("server")

CREDENTIALS = "credentials.json"  # in the state folder, made by the first start

EXPORT_MARK = "master.key.exported"  # in the state folder; holds the id of the key that was exported
SHUTDOWN_S_MAX = 10  # for answers under way; a download that takes longer is cut
BACKLOG = 512


def serve(settings: Settings) -> int:
    """Run API and jobs until SIGTERM or SIGINT. Returns the exit code; raises ConfigError when it cannot start."""
    _configure_logging(settings)
    check_certificate(settings)
    prepare_state(settings)
    if settings.kill_at is not None:
        trace.arm(settings.kill_at)
    with state_lock(settings):
        _require_no_rotation(settings)
        with _database_url(settings) as url:
            schema.upgrade(url)
            return asyncio.run(_serve(settings, url))


def migrate(settings: Settings) -> int:
    """Bring the database to this version's schema."""
    _configure_logging(settings)
    prepare_state(settings)
    with state_lock(settings), _database_url(settings) as url:
        schema.upgrade(url)
    return 0


def export_key(settings: Settings, out_path: Path) -> int:
    """Copy the master key into a new file (0600) that is to be kept elsewhere, and note that it was done."""
    key = MasterKey.load(settings.master_key_file)
    _export(out_path, settings.master_key_file.read_bytes())
    mark = settings.state_dir / EXPORT_MARK
    mark.unlink(missing_ok=True)
    _write_new(mark, key.key_id.hex().encode())
    return 0


def export_vault_key(settings: Settings, out_path: Path, vault_id: str) -> int:
    """Write the keys of one vault's domains into a new file (0600): for who shall read this vault and no other."""
    store = open_store(settings.store_url, settings.s3)
    key = MasterKey.load(settings.master_key_file)
    places = [place for place in find_domains(store, "vaults/") if place.prefix.endswith(f"/{vault_id}/")]
    if not places:
        raise ConfigError(reason=f"The store holds nothing of a vault with the id {vault_id}.")
    domains = [open_domain(store, place.prefix, place.id, key).domain for place in places]
    _export(out_path, vault_key_text(domains))
    return 0


def rotate_key(settings: Settings) -> rotation.Rotation:
    """Replace the master key (operations/rotation.py tells the story). The server is not running."""
    _configure_logging(settings)
    prepare_state(settings)
    if settings.kill_at is not None:
        trace.arm(settings.kill_at)
    with state_lock(settings), _database_url(settings) as url:
        schema.upgrade(url)
        return asyncio.run(_rotate_key(settings, url))


async def _rotate_key(settings: Settings, url: str) -> rotation.Rotation:
    async with await Database.open(url, max_size=2) as database:
        (settings.state_dir / EXPORT_MARK).unlink(missing_ok=True)  # before: a warning too many costs nothing
        return await rotation.rotate(database, open_store(settings.store_url, settings.s3), settings.master_key_file)


def forget_old_keys(settings: Settings) -> int:
    """Remove what earlier master keys open; gives the number of wraps. Refused until the present key was exported."""
    _configure_logging(settings)
    prepare_state(settings)
    with state_lock(settings):
        _require_no_rotation(settings)
        mark = settings.state_dir / EXPORT_MARK
        if not mark.exists() or mark.read_text() != MasterKey.load(settings.master_key_file).key_id.hex():
            raise ConfigError(
                reason="The present master key was never exported, and after this no other one opens the store. "
                "Run `strongroom export-key FILE` first and keep the file on another machine."
            )
        return rotation.drop_old(open_store(settings.store_url, settings.s3), settings.master_key_file)


def rebuild(settings: Settings, *, registrations: bool) -> Rebuilt:
    """Make the rows of a lost database again from the store (operations/rebuild.py). The server is not running."""
    _configure_logging(settings)
    prepare_state(settings)
    if not settings.master_key_file.exists():
        raise ConfigError(
            reason=f"Put the file that `strongroom export-key` wrote at {settings.master_key_file} (mode 0600) first."
        )
    with state_lock(settings):
        _require_no_rotation(settings)
        with _database_url(settings) as url:
            schema.upgrade(url)
            return asyncio.run(_rebuild(settings, url, registrations))


async def _rebuild(settings: Settings, url: str, registrations: bool) -> Rebuilt:
    clock, passwords, pool = SystemClock(), Passwords(), Pool(budget_bytes=settings.worker_memory_bytes)
    async with await Database.open(url, max_size=2) as database:
        master = await _master_key(settings, database)
        ring = Ring([settings.master_key_file.read_bytes()])
        accounts = Accounts(database=database, ring=ring, passwords=passwords, clock=clock)
        endpoint = settings.endpoint or f"http://{settings.listen}"
        try:
            # First the operator's account: the projects that come back are given to it.
            await accounts.bootstrap(settings.region, lambda first: _write_credentials(settings, endpoint, first))
            return await rebuild_rows(
                open_store(settings.store_url, settings.s3),
                master,
                pool,
                lambda vault: restore_rows(database, vault, clock.now(), registrations=registrations),
            )
        finally:
            pool.close()
            passwords.close()


def _require_no_rotation(settings: Settings) -> None:
    if rotation.next_file(settings.master_key_file).exists():
        raise ConfigError(
            reason="A rotation of the master key was cut short. Run `strongroom rotate-key` again to finish it."
        )


def _export(out_path: Path, data: bytes) -> None:
    try:
        _write_new(out_path, data)
    except FileExistsError as err:
        raise ConfigError(reason=f"{out_path} exists. Name a new file; nothing is overwritten.") from err
    except OSError as err:
        raise ConfigError(reason=f"{out_path} cannot be written: {err.strerror}.") from err


def _write_new(path: Path, data: bytes) -> None:
    """A new file of mode 0600, durable on return."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _database_url(settings: Settings) -> Iterator[str]:
    if settings.database_url is not None:
        yield settings.database_url
        return
    postgres = EmbeddedPostgres(settings.state_dir / "postgres", runtime_dir=settings.runtime_dir)
    try:
        yield postgres.start()
    finally:
        postgres.stop()


async def _master_key(settings: Settings, database: Database) -> MasterKey:
    """Load the key, or make it at the very first start. A lost key is never silently replaced by a new one."""
    path, bound = settings.master_key_file, await installation.find_master_key_id(database)
    if path.exists():
        key = MasterKey.load(path)
    elif bound is None:
        key = MasterKey.create(path)
    else:
        raise ConfigError(
            reason=f"The master key {path} is missing, and this installation was made with one. "
            "Put back the file that `strongroom export-key` wrote; without it no restore point can be read."
        )
    await installation.claim_master_key(database, key.key_id.hex())
    return key


async def _serve(settings: Settings, url: str) -> int:
    clock = SystemClock()
    async with await Database.open(url, min_size=2, max_size=settings.database_connections) as database:
        master = await _master_key(settings, database)
        ring, passwords = Ring([settings.master_key_file.read_bytes()]), Passwords()
        accounts = Accounts(database=database, ring=ring, passwords=passwords, clock=clock)
        callers = Callers(
            database=database,
            accounts=accounts,
            ring=ring,
            passwords=passwords,
            clock=clock,
            token_ttl_s=settings.token_ttl_s,
        )
        store = open_store(settings.store_url, settings.s3)
        await asyncio.to_thread(store.check)
        pool = Pool(budget_bytes=settings.worker_memory_bytes)

        def make_tools(its_database: Database, portal: Portal) -> Tools:
            return Tools(
                database=its_database,
                portal=portal,
                store=store,
                master=master,
                pool=pool,
                clock=clock,
                settings=DomainSettings(),
            )

        worker = Worker(
            database_url=settings.database_direct_url or url,
            make_tools=make_tools,
            clock=clock,
            group=settings.worker_group,
            concurrency=settings.worker_concurrency,
            alone=True,
        )
        listener = _bind(settings)
        endpoint = _endpoint(settings, listener)
        await accounts.bootstrap(settings.region, lambda first: _write_credentials(settings, endpoint, first))
        _note_endpoint(settings, endpoint)
        tools = make_tools(database, Portal(asyncio.get_running_loop()))
        services = _services(settings, tools, Authenticator(callers), worker)
        identity = IdentityApi(callers=callers, accounts=accounts, region=settings.region, endpoint=settings.endpoint)
        try:
            await asyncio.to_thread(worker.start)
            return await _listen(
                settings, build_app((*OPERATIONS, *identity.operations), services), listener, endpoint, worker
            )
        finally:
            await asyncio.to_thread(worker.stop)
            if trace.passed() is not None:
                log.info("trace points passed", count=trace.passed())
            pool.close()
            passwords.close()


def _services(settings: Settings, tools: Tools, authenticate: Authenticate, worker: Worker) -> Services:
    async def probe_database() -> None:
        async with tools.database.read() as conn:
            await conn.execute("SELECT 1")

    async def probe_store() -> None:
        await asyncio.to_thread(tools.store.check)

    async def probe_worker() -> None:
        if not worker.alive:
            raise Unavailable(reason="The worker ended. Restart the server.")

    return Services(
        database=tools.database,
        clock=tools.clock,
        region=settings.region,
        endpoint=settings.endpoint,
        authenticate=authenticate,
        browser=RestorePointBrowser(tools),
        inspector=ResourceInspector(forbidden=(settings.state_dir,)),
        probes={"database": probe_database, "store": probe_store, "worker": probe_worker},
        limits=Limits(body_bytes_max=settings.body_bytes_max, concurrency_max=settings.requests_max),
    )


def _write_credentials(settings: Settings, endpoint: str, first: FirstAccount) -> None:
    """The first account, readable by its owner only. Replaces what a first start that did not commit left."""
    values = {
        "endpoint": endpoint,
        "region": settings.region,
        "domain_name": first.domain_name,
        "project_id": first.project_id,
        "project_name": first.project_name,
        "username": first.username,
        "password": first.password,
        "access_key": first.access_key,
        "secret_key": first.secret_key,
    }
    _replace(settings.state_dir / CREDENTIALS, json.dumps(values, indent=2).encode() + b"\n")


def _note_endpoint(settings: Settings, endpoint: str) -> None:
    """Clients on this host find the server by credentials.json: keep its endpoint right when the address changes."""
    path = settings.state_dir / CREDENTIALS
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return  # the operator took it away or wrote their own; nothing of ours depends on it
    if isinstance(values, dict) and values.get("endpoint") != endpoint:
        values["endpoint"] = endpoint
        _replace(path, json.dumps(values, indent=2).encode() + b"\n")


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    _write_new(new, data)
    new.replace(path)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the order of the end is ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _listen(settings: Settings, app: ASGIApp, listener: socket.socket, endpoint: str, worker: Worker) -> int:
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
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    announced = False
    while not serving.done():
        await asyncio.wait([serving], timeout=1.0 if announced else 0.02)
        if server.started and not announced:
            announced = True
            _announce(settings, endpoint)
        if not worker.alive and not server.should_exit:
            log.error("the worker ended; the server stops so that it can be started again")
            server.should_exit = True
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


def _configure_logging(settings: Settings) -> None:
    """One line an event on stderr. Nothing that is logged carries a secret: bodies, tokens and keys never are."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
