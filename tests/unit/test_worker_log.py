"""What the worker says of what went wrong beside its jobs: an error of ours by its name, with code and detail."""

import asyncio
from collections.abc import Awaitable

import pytest
from structlog.testing import capture_logs

from strongroom.base.clock import SystemClock
from strongroom.base.errors import DatabaseBehind, StoreFull, StrongroomError, Unavailable
from strongroom.operations.worker import Worker


def worker() -> Worker:
    def no_tools(*_: object) -> None:
        raise AssertionError("nothing runs here")

    return Worker(
        database_url="",
        make_tools=no_tools,  # type: ignore[arg-type]
        clock=SystemClock(),
        group="g",
        concurrency=1,
        place="p",
        dead="none",
        audit_days=365,
        operation_log_days=365,
    )


async def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [(StoreFull(name="packs/aa", detail="28"), "StoreFull"), (DatabaseBehind(count=3, detail="a.1"), "DatabaseBehind")],
)
async def test_an_error_of_ours_is_not_called_unexpected(error: StrongroomError, kind: str) -> None:
    """One vault's trouble: its class, sentence, detail and code; the next vault's turn comes."""
    with capture_logs() as lines:
        await worker()._one_of_many(failing(error), "vault 7")
    (line,) = lines
    assert (line["event"], line["kind"], line["what"]) == ("failed for one vault", kind, "vault 7")
    assert line["error"] == str(error)
    assert error.detail in line["error"]
    assert line["code"] == error.published_code


async def test_a_round_that_fails_says_why_and_comes_again() -> None:
    """Ours by its class, a database that is away as that, anything else as unexpected with its trace."""
    rounds = iter([StoreFull(name="x"), Unavailable(reason="It is away."), ValueError("a bug")])
    ended = asyncio.Event()

    def step() -> Awaitable[None]:
        error = next(rounds, None)
        if error is None:
            ended.set()
            return asyncio.sleep(0)
        return failing(error)

    with capture_logs() as lines:
        running = asyncio.create_task(worker()._forever(0, step))
        async with asyncio.timeout(10):
            await ended.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [line["event"] for line in lines] == [
        "failed beside the jobs",
        "the database does not answer the worker",
        "unexpected failure beside the jobs",
    ]
    assert (lines[0]["kind"], lines[2]["exc_info"]) == ("StoreFull", True)


async def test_a_database_that_is_away_ends_the_round_of_all_vaults() -> None:
    """The next vaults would wait for it too: the round ends, the next one tries."""
    with pytest.raises(Unavailable):
        await worker()._one_of_many(failing(Unavailable(reason="It is away.")), "vault 7")
