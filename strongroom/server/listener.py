"""HTTP of one process: the socket, uvicorn without its signal handlers, and the order in which answering ends.

    first signal    readyz says 503, every answer closes its connection: balancers and clients go elsewhere
    DRAIN later     no new connections; answers under way end, within SHUTDOWN_S_MAX
    second signal   at once

So a balancer that follows readyz sends the last request before the listener goes.
"""

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp

from strongroom.api.connection import Connection
from strongroom.api.services import Services
from strongroom.base.errors import ConfigError
from strongroom.config import Settings
from strongroom.setting_texts import Listen

log = structlog.get_logger("server")

SHUTDOWN_S_MAX = 10  # for answers under way; a download that takes longer is cut
BACKLOG = 512
KEEP_ALIVE_S = 75  # of a connection without a request; balancers and proxies close theirs after 60
CHECK_S = 1.0  # how long a process whose worker died goes on


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the order of the end is ours."""

    def __init__(
        self,
        app: ASGIApp,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        """trusted_proxies: addresses and networks whose X-Forwarded-For and -Proto are believed."""
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                ssl_certfile=tls_cert,
                ssl_keyfile=tls_key,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_S_MAX,
                http=Connection,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=list(trusted_proxies),
                backlog=BACKLOG,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        """Take no more connections, finish the answers under way. The second call does not wait for those."""
        self.force_exit = self.should_exit
        self.should_exit = True


def check_certificate(settings: Settings) -> None:
    """Raises ConfigError for what the listener could not load, so that nothing is started for it."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        # A password for the key is never asked for: a service has nobody to answer.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_cert, settings.tls_key, password=lambda: ""
        )
    except (OSError, ValueError) as err:  # SSLError is an OSError
        raise ConfigError(
            reason=f"The certificate {settings.tls_cert} and the key {settings.tls_key} cannot be used together: "
            f"{err}. Give a PEM chain and its own key without a password."
        ) from err


def bind(listen: Listen) -> socket.socket:
    """The listening socket, so that port 0 has its number before anybody needs it. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as err:
        raise ConfigError(
            reason=f"Cannot listen on {listen}: {err.strerror}. Choose another address with --listen."
        ) from err
    return listener


def base_url(listen: Listen, listener: socket.socket, *, tls: bool) -> str:
    """Where that socket is reached."""
    host, port = listen.host, listener.getsockname()[1]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def answer(
    server: HttpServer,
    listener: socket.socket,
    services: Services,
    *,
    announce: Callable[[], None],
    drain_s: float,
    alive: Callable[[], bool],
) -> None:
    """Answer requests until a signal, or until `alive` says no. announce: called once, when requests are answered."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        services.end()
        server.end()

    def on_signal() -> None:
        if services.ending.is_set() or drain_s <= 0:
            end()
            return
        services.begin_end()
        loop.call_later(drain_s, lambda: None if server.should_exit else end())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    announced = False
    while not serving.done():
        await asyncio.wait([serving], timeout=CHECK_S if announced else 0.02)
        if server.started and not announced:
            announced = True
            announce()
        if not alive() and not server.should_exit:
            log.error("the worker ended; the server stops so that it can be started again")
            end()
    await serving
