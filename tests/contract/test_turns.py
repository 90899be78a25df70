"""Workers that hear of one task look for it in turns (operations/turns.py)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from strongroom.base.clock import SystemClock
from strongroom.control import programs, tasks
from strongroom.control.db import Database
from strongroom.control.programs import Program
from strongroom.operations import turns
from strongroom.operations.turns import Turns

SOON_S = 20.0


class Sleeper:
    """A worker without work: counts how often it is woken."""

    def __init__(self, group: str) -> None:
        self.turns = Turns(group, SystemClock())
        self.program = Program(kind="worker", worker_group=group)
        self.woken = 0
        self._told = asyncio.Event()

    def wake(self) -> None:
        self.woken += 1
        self._told.set()

    async def until_woken(self, within_s: float = SOON_S) -> None:
        async with asyncio.timeout(within_s):
            await self._told.wait()
        self._told.clear()

    async def until_quiet(self) -> None:
        """Nothing is told any more, and it has been woken for all that was."""
        with suppress(TimeoutError):
            while True:
                await self.until_woken(0.5)
        self.woken = 0


@asynccontextmanager
async def listening(database: Database, *sleepers: Sleeper) -> AsyncIterator[None]:
    """Each with its sign of life; entered when all of them have heard a word that is for everybody."""
    for each in sleepers:
        await programs.beat(database, each.program)
    loops = [asyncio.create_task(each.turns.listen(database, each.wake)) for each in sleepers]
    try:
        async with asyncio.timeout(SOON_S):
            while not all(each.woken for each in sleepers):
                await tell(database, tasks.ANY_GROUP)
                await asyncio.sleep(0.05)
        for each in sleepers:
            await each.until_quiet()
        yield
    finally:
        for each in loops:
            each.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def tell(database: Database, payload: str) -> None:
    async with database.transaction() as conn:
        await conn.execute("SELECT pg_notify(%s, %s)", [tasks.CHANNEL, payload])


async def test_a_task_wakes_the_workers_of_its_group_and_no_other(database: Database):
    """What names no group, or all of them, is for everybody."""
    mine, other = Sleeper("mine"), Sleeper("other")
    async with listening(database, mine, other):
        await tell(database, "mine")
        await mine.until_woken()
        with pytest.raises(TimeoutError):  # one that did not care would look at once
            await other.until_woken(0.5)
        for everybody in ("", tasks.ANY_GROUP):
            await tell(database, everybody)
            await mine.until_woken()
            await other.until_woken()


async def test_workers_know_how_many_they_are_and_wait_their_turn(database: Database):
    """The longest wait grows with their number; one alone does not wait."""
    alone, dead = Sleeper("alone"), Sleeper("many")
    await programs.beat(database, dead.program)
    async with database.transaction() as conn:
        await conn.execute("UPDATE programs SET seen_at = now() - interval '1 hour'")
    many = [Sleeper("many") for _ in range(12)]
    async with listening(database, alone, *many):
        await tell(database, tasks.ANY_GROUP)
        for each in (alone, *many):
            await each.until_woken()
        assert alone.turns.peers == 1 and alone.turns.longest_s == 0
        assert {each.turns.peers for each in many} == {12}
        assert many[0].turns.longest_s == pytest.approx(12 * turns.TURN_S)
        assert many[0].turns.interval_s(2.0) == pytest.approx(2.4)
    many[0].turns.peers = 100_000
    assert many[0].turns.longest_s == turns.POLL_S
    assert many[0].turns.interval_s(2.0) == 2.0 * turns.SLOWER_MAX


async def test_many_tasks_within_a_turn_are_one_look(database: Database, monkeypatch: pytest.MonkeyPatch):
    """And none of them is forgotten: the look comes after the last of them."""
    first, second = Sleeper("busy"), Sleeper("busy")
    async with listening(database, first, second):
        monkeypatch.setattr(turns, "TURN_S", 1.0)
        first.turns.peers = second.turns.peers = 2  # a turn of two seconds at most, drawn as the whole of it
        for each in (first, second):
            monkeypatch.setattr(each.turns, "_chance", Whole())
        await tell(database, "busy")
        for _ in range(20):
            await tell(database, "busy")
        await first.until_woken()
        await second.until_woken()
        with pytest.raises(TimeoutError):
            await first.until_woken(2.5)  # longer than another turn
        assert (first.woken, second.woken) == (1, 1)
        await tell(database, "busy")
        await first.until_woken()


class Whole:
    """Draws the upper end."""

    def uniform(self, low: float, high: float) -> float:
        return high
