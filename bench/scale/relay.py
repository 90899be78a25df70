"""Distance on one machine: a TCP relay that gives everything it carries so many milliseconds, each way half of them.

`tc netem` does the same where the kernel has it; many have not. Bytes leave in the order in which they came, and
waiting ones hold nobody up: it is latency, not a slow line. `turns` counts how often an answer had to be waited for.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable

_CHUNK = 1 << 16

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Relay:
    """Listens on `port` of loopback until `close`; `rtt_s` may be changed at any time."""

    def __init__(self, *, port: int | None = None, socket: str | None = None) -> None:
        """To a port of loopback, or to a Unix socket."""
        self.rtt_s, self.turns = 0.0, 0
        self._connect: Connect = (
            (lambda: asyncio.open_unix_connection(socket))
            if socket is not None
            else (lambda: asyncio.open_connection("127.0.0.1", port))
        )
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """No connection is carried on."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    async def _serve(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far, far_out = await self._connect()
        last = [""]  # who spoke last

        def spoke(side: str) -> None:
            self.turns += side == "near" and last[0] != "near"
            last[0] = side

        with contextlib.suppress(asyncio.CancelledError):  # the relay is closed
            await asyncio.gather(self._carry(near, far_out, "near", spoke), self._carry(far, near_out, "far", spoke))

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, side: str, spoke: Callable[[str], None]
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.create_task(self._send(under_way, target))
        try:
            while data := await source.read(_CHUNK):
                spoke(side)
                under_way.put_nowait((self._loop.time() + self.rtt_s / 2, data))
        except ConnectionError:
            pass
        under_way.put_nowait((self._loop.time() + self.rtt_s / 2, b""))
        await sending

    async def _send(self, under_way: asyncio.Queue[tuple[float, bytes]], target: asyncio.StreamWriter) -> None:
        try:
            while True:
                due, data = await under_way.get()
                if (wait_s := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                if not data:
                    break
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        target.close()
