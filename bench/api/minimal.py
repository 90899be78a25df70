"""The least that can answer `GET checkpoint`: one Starlette handler by hand. What the API's speed is measured against.

    python -m bench.api.minimal URL PORT

The statement is the product's own, prepared; pool, encoder and server are those of the product. It checks no token, no
role and no project of a caller, writes no log line and counts nothing.
"""

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import uvicorn
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from strongroom.control.checkpoint_views import POINT, PROTECT_STATUS

POOL = 16  # connections, as the product's default
BACKLOG = 512


def make_app(url: str) -> Starlette:
    """The application; its pool lives as long as it serves."""
    pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
        url, min_size=2, max_size=POOL, open=False, kwargs={"autocommit": True, "prepare_threshold": 0}
    )
    encoder = msgspec.json.Encoder()

    async def show(request: Request) -> Response:
        async with pool.connection() as conn:
            cursor = await conn.execute(
                POINT, [request.path_params["project_id"], request.path_params["checkpoint_id"]]
            )
            rows = await cursor.fetchall()
        if not rows:
            return Response(status_code=404)
        return Response(encoder.encode({"checkpoint": shape(rows)}), media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with pool:
            yield

    return Starlette(routes=[Route("/v3/{project_id}/checkpoints/{checkpoint_id}", show)], lifespan=lifespan)


def shape(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The published form of a restore point, for one that was not disturbed."""
    (id_, project_id, status, created_at, vault_id, vault_name, provider_id, name, description, days) = rows[0][:10]
    return {
        "id": id_,
        "project_id": project_id,
        "status": status,
        "created_at": created_at.replace(tzinfo=None).isoformat(timespec="microseconds"),
        "vault": {
            "id": vault_id,
            "name": vault_name,
            "provider_id": provider_id,
            "resources": [
                {
                    "id": row[10],
                    "type": row[11],
                    "name": row[12],
                    "extra_info": row[14],
                    "protect_status": PROTECT_STATUS[row[17]],
                    "resource_size": str(-(-row[13] // (1 << 30))),
                    "backup_size": str(-(-row[18] // (1 << 20))),
                    "backup_count": str(row[19]),
                }
                for row in rows
            ],
            "skipped_resources": [],
        },
        "extra_info": {"name": name, "description": description, "retention_duration": days},
    }


if __name__ == "__main__":
    uvicorn.run(
        make_app(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        backlog=BACKLOG,
    )
