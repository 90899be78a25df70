"""Tasks of an event loop that are told to end."""

import asyncio
from collections.abc import Collection
from typing import Any

AGAIN_S = 0.5


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel them until each has ended; what they raise is not raised here.

    One cancel may get lost: `asyncio.wait_for` of Python 3.11 drops it when what it waits for comes at the same moment,
    and psycopg raises its own error instead when the connection is lost while the statement is canceled. A loop that
    goes on after errors then goes on for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
