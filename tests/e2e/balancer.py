"""A small TCP balancer for tests: asks /readyz of each backend, and gives new connections to the ready ones."""

import asyncio
import threading
from contextlib import suppress

import httpx

CHECK_S = 0.05


class Balancer:
    """Listens on a port of its own until the block ends. `backends` are base URLs; change them as you like."""

    def __init__(self, backends: list[str]) -> None:
        self._backends = list(backends)
        self._ready: list[str] = []
        self._turn = 0
        self._begun = threading.Event()
        self._ended: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.port = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> "Balancer":
        self._thread.start()
        assert self._begun.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set_backends(self, backends: list[str]) -> None:
        """From now on these."""
        self._backends = list(backends)

    def is_ready(self, backend: str) -> bool:
        """Whether it gets connections now."""
        return backend in self._ready

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with httpx.AsyncClient(timeout=5) as client:
            checking = asyncio.create_task(self._check(client))
            self._begun.set()
            await self._ended.wait()
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)
        server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _check(self, client: httpx.AsyncClient) -> None:
        while True:
            found = []
            for backend in list(self._backends):
                with suppress(httpx.TransportError):
                    # As balancers do: a connection of its own for each look.
                    answer = await client.get(f"{backend}/readyz", headers={"Connection": "close"})
                    if answer.status_code == 200:
                        found.append(backend)
            self._ready = found
            await asyncio.sleep(CHECK_S)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, to its end on either side."""
        try:
            if not self._ready:
                return
            self._turn += 1
            host, _, port = self._ready[self._turn % len(self._ready)].removeprefix("http://").partition(":")
            there, back = await asyncio.open_connection(host, int(port))
            try:
                await asyncio.wait(
                    [asyncio.create_task(_pipe(reader, back)), asyncio.create_task(_pipe(there, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                back.close()
        except OSError:
            pass
        finally:
            writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
