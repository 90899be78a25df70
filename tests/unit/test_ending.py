"""Tasks that are told to end do end, also when a cancel gets lost on the way."""

import asyncio

from strongroom.base.ending import end_tasks


async def test_a_cancel_that_wait_for_drops_is_sent_again() -> None:
    """What it waits for comes in the same turn of the loop as the cancel."""
    came, rounds = asyncio.Event(), 0

    async def loop() -> None:
        nonlocal rounds
        while True:
            await asyncio.wait_for(came.wait(), 60)
            came.clear()
            rounds += 1

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)  # it waits
    came.set()
    await asyncio.sleep(0)  # the inner wait has ended, and wait_for has not been told
    await asyncio.wait_for(end_tasks([task]), 30)
    assert task.cancelled()
    assert rounds <= 1


async def test_a_cancel_that_becomes_another_error_is_sent_again() -> None:
    """As of a database that is lost while its statement is canceled, in a loop that goes on after errors."""
    begun = asyncio.Event()

    async def loop() -> None:
        first = True
        while True:
            try:
                begun.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if not first:
                    raise
                first = False

    task = asyncio.create_task(loop())
    await begun.wait()
    await asyncio.wait_for(end_tasks([task]), 30)
    assert task.cancelled()


async def test_what_they_raise_stays_theirs() -> None:
    async def fails() -> None:
        raise ValueError

    async def ends() -> int:
        return 1

    tasks = [asyncio.create_task(fails()), asyncio.create_task(ends())]
    await end_tasks(tasks)
    assert all(task.done() for task in tasks)
    await end_tasks([])
