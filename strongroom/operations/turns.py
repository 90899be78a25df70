"""In turns: a thousand workers hear of one task, and one of them is enough.

PostgreSQL tells of a new task to everybody who listens, and each look for it costs the database a transaction. So an
idle worker of n waits a random part of n x TURN_S before it looks. When all are idle, the first to look takes the task
about TURN_S after it was made, however many they are; the others look once for all that they were told of meanwhile.
That bounds the looks of all workers together at 2 / TURN_S a second, where each task once cost n of them.

    n = 1     looks at once
    n = 10    within 40 ms; the first of ten after 4 ms, the only one with room after 20 ms
    n >= 500  within POLL_S, which is when it looks anyway: once a second each

What any worker may do for all (fire policies, expire) is likewise done as often as ten workers would do it, and no less
than a tenth as often by each. n is a guess, at most PEERS_S old; a wrong one costs looks or a moment, never a task.
"""

import asyncio
import math
import random
from collections.abc import Callable

import structlog

from strongroom.base.clock import Clock
from strongroom.base.errors import StrongroomError
from strongroom.control import programs, tasks
from strongroom.control.db import Database

log = structlog.get_logger("worker")

POLL_S = 2.0  # NOTIFY shortens it; this is what a lost notification or a lapsed lease costs
TURN_S = 0.004  # a look in vain, its way included
PEERS_S = 60.0  # how long a count of workers is believed; it reads a row of each
TICKERS = 10  # as many workers do for all what any worker may do
SLOWER_MAX = 10.0


class Turns:
    """Of one worker. peers: workers of its group, itself included, as last counted."""

    def __init__(self, group: str, clock: Clock) -> None:
        self.peers = 1
        self._group = group
        self._clock = clock
        self._chance = random.Random()  # noqa: S311 -- no secret

    @property
    def longest_s(self) -> float:
        """The longest that this worker waits before it looks."""
        return min(POLL_S, TURN_S * self.peers) if self.peers > 1 else 0.0

    def interval_s(self, interval_s: float) -> float:
        """Of a step that any worker may do, when one worker alone does it every `interval_s`."""
        return interval_s * min(max(1.0, self.peers / TICKERS), SLOWER_MAX)

    async def listen(self, database: Database, wake: Callable[[], None]) -> None:
        """Call `wake` in turn whenever tasks of the group were made. Never returns."""
        while True:
            try:
                await self._listen(database, wake)
            except StrongroomError as error:
                log.warning("lost the notifications, polling", error=str(error))
            await asyncio.sleep(POLL_S)

    async def _listen(self, database: Database, wake: Callable[[], None]) -> None:
        counted_s = -math.inf
        async with database.listen(tasks.CHANNEL) as listener:
            while True:
                if self._clock.monotonic_s() >= counted_s + PEERS_S:
                    self.peers = max(1, await programs.workers(database, self._group))
                    counted_s = self._clock.monotonic_s()
                if any(self._concerns(told.payload) for told in await listener.wait(POLL_S)):
                    await asyncio.sleep(self._chance.uniform(0, self.longest_s))
                    await listener.wait(0)  # what was told meanwhile, the same look finds
                    wake()

    def _concerns(self, group: str) -> bool:
        """Older versions name none."""
        return group in ("", tasks.ANY_GROUP, self._group)
