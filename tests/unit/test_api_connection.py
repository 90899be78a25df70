"""How answers leave: head and body together, and neither waits for the other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from strongroom.api.connection import Connection


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client of the application over TCP, through the connections of the server."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", http=Connection, ws="none")
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, ServerState(), {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    async with asyncio.timeout(20), server:
        try:
            yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


async def test_the_head_does_not_wait_for_a_body_that_takes_its_time() -> None:
    """A client sees that its download began before the first byte of it is there, and gets all parts in their order."""
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        for part in (b"one", b"two", b"six"):
            await go_on.wait()
            await send({"type": "http.response.body", "body": part, "more_body": part != b"six"})

    async with connected(slow) as (reader, writer):
        for _ in range(2):  # on one connection
            go_on.clear()
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            go_on.set()
            assert await reader.readexactly(9) == b"onetwosix"


async def test_an_answer_that_ends_its_connection_arrives_whole() -> None:
    """`Connection: close` closes behind the last byte, never before it; also when the answer has no body."""
    for status, body in ((200, b"x" * 100_000), (204, b"")):

        async def last(scope: Scope, receive: Receive, send: Send, status: int = status, body: bytes = body) -> None:
            headers = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        async with connected(last) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert answer.partition(b"\r\n\r\n")[2] == body
