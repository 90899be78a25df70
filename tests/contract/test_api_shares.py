"""One tenant does not take every place of the service from the others."""

import asyncio
from typing import Any

import httpx
from in_process_api import PROJECT_A, PROJECT_B, InProcessApi

from strongroom.api.app import Application
from strongroom.api.operation import AUTHENTICATED, Call, Operation
from strongroom.api.services import Limits
from strongroom.control.db import Database


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
