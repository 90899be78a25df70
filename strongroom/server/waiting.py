"""A start that waits for what may come back: the database, the store.

    open everything   it worked: go on
                      it may work later (an error that is retryable): close what was opened, say so, try again
                      it never will (a wrong password, a schema of another version): the process ends with the sentence

While it waits, the process answers where it is going to: /healthz says that it lives, /readyz why it is not ready, and
every other path 503, because a client that was told 404 would believe that its vault is gone. A signal ends it at once:
nothing was begun.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

import structlog
from starlette.types import Receive, Scope, Send

from strongroom.api.errors import error_response
from strongroom.api.health import health_app
from strongroom.base.errors import StrongroomError, Unavailable
from strongroom.base.ids import new_id
from strongroom.config import Settings
from strongroom.server import listener as http

log = structlog.get_logger("server")

PAUSE_S_FIRST, PAUSE_S_MAX = 0.25, 5.0  # doubled each time; who comes back is found soon, and not stormed by many
_HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})

T = TypeVar("T")


@asynccontextmanager
async def opened(
    make: Callable[[], AbstractAsyncContextManager[T]], settings: Settings, listener: socket.socket | None, *, tls: bool
) -> AsyncIterator[T]:
    """What `make` opens, as soon as it can be opened; closed in order when the block ends.

    make      gives a new context at each call; what it raises when it is entered decides (see above)
    listener  bound, not listening: answered on while waiting, and left as it was. None: nobody asks this process
    """
    async with AsyncExitStack() as stack:
        try:
            value = await stack.enter_async_context(make())
        except StrongroomError as error:
            if not error.retryable:
                raise
            async with _waiting_room(settings, listener, tls=tls, why=error) as room:
                value = await _entered(stack, make, room)
        yield value


class _Room:
    """The application of a process that waits. why: what it waits for, as the last try told it."""

    def __init__(self, why: StrongroomError) -> None:
        self.why = why
        self._health = health_app({"start": self._probe})

    async def _probe(self) -> None:
        raise Unavailable(reason=f"Waiting: {self.why.message}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _HEALTH_PATHS:
            await self._health(scope, receive, send)
            return
        request_id = new_id()
        response = error_response(
            Unavailable(reason="The service starts and waits for a part of it. Try again in a few seconds."),
            keystone=False,
            request_id=request_id,
        )
        response.headers["X-Request-Id"] = request_id
        response.headers["Connection"] = "close"  # the next one is for the process that is ready
        await response(scope, receive, send)


async def _entered(stack: AsyncExitStack, make: Callable[[], AbstractAsyncContextManager[T]], room: _Room) -> T:
    pause_s = PAUSE_S_FIRST
    while True:
        log.warning("the start waits for what does not answer", error=str(room.why), again_in_s=pause_s)
        await asyncio.sleep(pause_s)
        try:
            value = await stack.enter_async_context(make())
        except StrongroomError as error:
            if not error.retryable:
                raise
            room.why = error
        else:
            log.info("the start goes on")
            return value
        pause_s = min(2 * pause_s, PAUSE_S_MAX)


@asynccontextmanager
async def _waiting_room(
    settings: Settings, listener: socket.socket | None, *, tls: bool, why: StrongroomError
) -> AsyncIterator[_Room]:
    loop, room = asyncio.get_running_loop(), _Room(why)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _leave)
    server = http.HttpServer(room, *((settings.tls_cert, settings.tls_key) if tls else ()))
    # The socket stays bound for who is ready later: connections of between wait in its queue.
    serving = asyncio.create_task(server.serve(sockets=[listener.dup()])) if listener is not None else None
    try:
        yield room
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if serving is not None:
            server.end()
            await serving


def _leave() -> None:
    """Without waiting for a thread that waits for a connection."""
    log.info("told to end while the start waited")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
