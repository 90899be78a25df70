"""Health of the process and readiness of what it needs. No credentials, no tenant's data."""

import asyncio
from collections.abc import Mapping

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from strongroom import __version__
from strongroom.api.operation import PUBLIC, Call, Operation
from strongroom.api.services import Probe
from strongroom.base.errors import StrongroomError

PROBE_S_MAX = 5.0  # load balancers give up sooner than that


class HealthAnswer(msgspec.Struct):
    status: str
    version: str


class ReadyAnswer(msgspec.Struct):
    """parts: `ok`, or what is wrong with it."""

    status: str
    parts: dict[str, str]


async def healthz(call: Call) -> HealthAnswer:
    """The process answers."""
    return HealthAnswer(status="ok", version=__version__)


async def readyz(call: Call) -> Response:
    """Database, store and worker answer and the process is not about to end; 503 names what is not so."""
    ending = {"process": "ends soon"} if call.services.ending.is_set() else {}
    return await _ready(call.services.probes, ending)


async def _ready(probes: Mapping[str, Probe], parts: dict[str, str]) -> Response:
    for name, probe in probes.items():
        try:
            await asyncio.wait_for(probe(), PROBE_S_MAX)
            parts[name] = "ok"
        except TimeoutError:
            parts[name] = "does not answer"
        except StrongroomError as error:
            parts[name] = error.message
    ready = all(state == "ok" for state in parts.values())
    return JSONResponse({"status": "ok" if ready else "not ready", "parts": parts}, 200 if ready else 503)


OPERATIONS = (
    Operation(
        name="healthz",
        method="GET",
        path="/healthz",
        action=PUBLIC,
        handler=healthz,
        answer=HealthAnswer,
        always=True,
    ),
    Operation(
        name="readyz", method="GET", path="/readyz", action=PUBLIC, handler=readyz, answer=ReadyAnswer, always=True
    ),
)


def health_app(probes: Mapping[str, Probe]) -> Starlette:
    """The same three paths alone, for a process without an API."""

    async def alive(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    async def ready(_: Request) -> Response:
        return await _ready(probes, {})

    async def numbers(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", alive), Route("/readyz", ready), Route("/metrics", numbers)])
