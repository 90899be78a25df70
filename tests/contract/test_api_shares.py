"""One tenant does not take every place of the service from the others, nor all of them that of its health."""

import asyncio
from typing import Any

import httpx
import pytest
from in_process_api import PROJECT_A, PROJECT_B, InProcessApi

from strongroom.api import health
from strongroom.api.app import Application
from strongroom.api.errors import RETRY_AFTER_S
from strongroom.api.operation import AUTHENTICATED, Call, Operation
from strongroom.api.services import Limits
from strongroom.control.db import Database
from strongroom.server.listener import HttpServer


async def test_a_project_has_its_share_of_places(database: Database) -> None:
    """Beyond it 429 with a sentence; another project is served meanwhile, and so is the first one afterwards."""
    release, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def slow(call: Call) -> dict[str, Any]:
        entered.release()
        await release.wait()
        return {}

    async def quick(call: Call) -> dict[str, Any]:
        return {}

    operations = [
        Operation(name=handler.__name__, method="GET", path=f"/v3/{{project_id}}/{handler.__name__}",
                  action=AUTHENTICATED, handler=handler)
        for handler in (slow, quick)
    ]  # fmt: skip
    async with await InProcessApi.start(database, limits=Limits(concurrency_max=5, of_project_max=2)) as api:
        transport = httpx.ASGITransport(Application(operations, api.services))
        async with httpx.AsyncClient(transport=transport, base_url="http://cbr.test") as client:

            async def ask(project: str, token: str, name: str) -> httpx.Response:
                return await client.get(f"/v3/{project}/{name}", headers={"X-Auth-Token": token})

            waiting = [asyncio.create_task(ask(PROJECT_A, "token-of-alice", "slow")) for _ in range(2)]
            for _ in waiting:
                await entered.acquire()
            for token in ("token-of-alice", "token-of-rita"):
                refused = await ask(PROJECT_A, token, "quick")
                assert refused.status_code == 429
                assert refused.json()["error_code"] == "APIGW.0308"
                assert "of this project" in refused.json()["error_msg"]
                assert refused.headers["retry-after"] == "5"
            assert (await ask(PROJECT_B, "token-of-bob", "quick")).status_code == 200
            release.set()
            assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
            assert (await ask(PROJECT_A, "token-of-alice", "quick")).status_code == 200


async def test_a_full_service_says_when_to_come_back_and_that_it_lives(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every place taken a request is told 429 and when to come back, without a word to the operator for each;
    health is answered all the same: who balances must not take a busy process for a dead one."""
    release, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def slow(call: Call) -> dict[str, Any]:
        entered.release()
        await release.wait()
        return {}

    own = Operation(name="slow", method="GET", path="/v3/{project_id}/slow", action=AUTHENTICATED, handler=slow)
    async with await InProcessApi.start(database, limits=Limits(concurrency_max=2, of_project_max=2)) as api:
        transport = httpx.ASGITransport(Application([own, *health.OPERATIONS], api.services))
        async with httpx.AsyncClient(transport=transport, base_url="http://cbr.test") as client:
            ask = {"url": f"/v3/{PROJECT_A}/slow", "headers": {"X-Auth-Token": "token-of-alice"}}
            waiting = [asyncio.create_task(client.get(**ask)) for _ in range(2)]
            for _ in waiting:
                await entered.acquire()
            refused = await client.get(f"/v3/{PROJECT_B}/slow", headers={"X-Auth-Token": "token-of-bob"})
            assert refused.status_code == 429
            assert refused.json()["error_code"] == "APIGW.0308"
            assert refused.headers["retry-after"] == str(RETRY_AFTER_S)
            assert "[error" not in capsys.readouterr().out
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
            release.set()
            assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


def test_who_comes_back_when_told_finds_the_connection() -> None:
    """A connection that waits outlives Retry-After, and the 60 seconds for which balancers keep theirs: who closed it
    first would cut a request that was just being sent."""
    config = HttpServer(lambda: None).config  # type: ignore[arg-type]
    assert config.timeout_keep_alive > max(60, 2 * RETRY_AFTER_S)
