"""The one way from a job's thread into `control`: run a coroutine on the worker's loop and wait for it (RULINGS 2)."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from strongroom.operations import trace

T = TypeVar("T")


class Portal:
    """Made on the loop's thread, used from others. A job makes O(1) calls, so the hop costs nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Result of the coroutine, or its exception. Blocks; never call it on the loop's own thread."""
        trace.point("database")
        result = asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
        trace.point("database")
        return result
