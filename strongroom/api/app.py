"""The ASGI application: routes made from the table of operations, and the walk of one request through them."""

import asyncio
import functools
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
import structlog
from prometheus_client import Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from strongroom.api.errors import error_response, gateway_response
from strongroom.api.openapi_document import with_documents
from strongroom.api.operation import AUTHENTICATED, PUBLIC, REGION, Call, Operation
from strongroom.api.services import Services
from strongroom.base.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    StrongroomError,
    Throttled,
    TooLarge,
    TooSlow,
    Unauthenticated,
    Unavailable,
)
from strongroom.base.ids import is_hex_id, is_id, new_id
from strongroom.control.access import ACTION_ADMIN, ANONYMOUS, Caller, allowed
from strongroom.control.audit import Note

log = structlog.get_logger("api")
REQUESTS = Histogram(
    "strongroom_request_seconds", "Seconds from the first byte of a request to the answer.", ["operation", "status"]
)

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})  # as ASGI has names: in lower case
_PARAMETER = re.compile(r"\{(\w+)\}")
QUERY_ITEMS_MAX = 1000  # 300 ids in one list call is the most a real client sends; beyond this it is abuse
READING_METHODS = frozenset({"GET", "HEAD"})
RECORDED = (Unauthenticated, Forbidden, NotFound, Throttled)  # refusals that the audit log tells of
ID_PARAMETERS_FREE = frozenset(
    {"project_id", "source_project_id", "user_id", "member_id", "access_key", "account_id"}
)  # not UUIDs, checked elsewhere


class Router:
    """Literal segments win over parameters, so `vaults/summary` is found before `vaults/{vault_id}`."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._tree: dict[str, Any] = {}
        for operation in operations:
            node = self._tree
            for part in operation.path.strip("/").split("/"):
                node = node.setdefault("{}" if _PARAMETER.fullmatch(part) else part, {})
            methods = node.setdefault("/methods", {})
            if operation.method in methods:
                raise ValueError(f"two operations answer {operation.method} {operation.path}")
            methods[operation.method] = (operation, _PARAMETER.findall(operation.path))

    def match(self, method: str, path: str, raw: bytes = b"") -> tuple[Operation, dict[str, str]] | list[str]:
        """The operation and its path values; else the methods that the path answers, none when it does not exist.

        raw: the path as it was sent, where a slash that belongs to a value (the key of a tag) is %2F.
        """
        parts = path.strip("/").split("/")
        if b"%2f" in raw.lower():
            parts = [unquote(part) for part in raw.decode("ascii", "replace").strip("/").split("/")]
        found: list[tuple[Any, list[str]]] = []
        self._find(self._tree, parts, 0, [], found)
        for methods, values in found:
            # A vault may have the name of a neighbour path: one that does not answer this method stands in no way.
            if method in methods:
                operation, names = methods[method]
                return operation, dict(zip(names, values, strict=True))
        return sorted({method for methods, _ in found for method in methods})

    def _find(
        self, node: dict[str, Any], parts: list[str], at: int, values: list[str], found: list[tuple[Any, list[str]]]
    ) -> None:
        """Append what the path answers from its part `at` on: (methods, values of the parameters)."""
        if at == len(parts):
            if "/methods" in node:
                found.append((node["/methods"], values))
            return
        head = parts[at]
        if head in node and head != "{}":
            self._find(node[head], parts, at + 1, values, found)
        if "{}" in node and head:
            self._find(node["{}"], parts, at + 1, [*values, head], found)


class _Places:
    """As a block: takes a place while it runs. Raises Throttled when there is none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    def __enter__(self) -> None:
        if self._taken >= self._limit:
            raise Throttled(reason="Too many requests at once. Try again in a few seconds.")
        self._taken += 1

    def __exit__(self, *_: object) -> None:
        self._taken -= 1


class _Shares:
    """Requests of each project in work: one tenant does not take every place from the others."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    @contextmanager
    def one_of(self, project_id: str, limit: int) -> Iterator[None]:
        """Raises Throttled when the project has as many in work as it may. "" (no project) is nobody's share."""
        taken = self._taken.get(project_id, 0)
        if project_id and taken >= limit:
            raise Throttled(reason="Too many requests of this project at once. Try again in a few seconds.")
        self._taken[project_id] = taken + 1
        try:
            yield
        finally:
            self._taken[project_id] -= 1
            if not self._taken[project_id]:
                del self._taken[project_id]


class Application:
    """One instance a process. Every answer carries X-Request-Id; every failure ends in `error_response`."""

    def __init__(self, operations: Sequence[Operation], services: Services) -> None:
        self._router = Router(operations)
        self._services = services
        limits = services.limits
        self._receiving, self._working = _Places(limits.bodies_max), _Places(limits.concurrency_max)
        self._shares = _Shares()
        self._encoder = msgspec.json.Encoder()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        request_id = new_id()
        started = time.monotonic()
        name, path, response = await self._answer(request, request_id)
        project = {"project": path["project_id"]} if "project_id" in path else {}
        response.raw_headers.append((b"x-request-id", request_id.encode()))
        if self._services.ending.is_set():
            response.headers["Connection"] = "close"
        taken_s = time.monotonic() - started
        _seconds_of(name, response.status_code).observe(taken_s)
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=response.status_code,
            ms=round(taken_s * 1000, 1),
            request_id=request_id,
            **project,
        )
        try:
            await response(scope, receive, send)
        except ClientDisconnect:
            log.info("client left", request_id=request_id)

    async def _answer(self, request: Request, request_id: str) -> tuple[str, dict[str, str], Response]:
        """Name of the operation (never the path: metrics must not grow with what clients make up), what stands in its
        path, and the answer."""
        matched = self._router.match(request.method, request.scope["path"], request.scope.get("raw_path") or b"")
        if isinstance(matched, list):
            if not matched:
                text = "The API does not exist or has not been published."
                return "none", {}, gateway_response(404, "APIGW.0101", text, request_id)
            text = f"This path does not answer this method. Use {' or '.join(matched)}."
            refused = gateway_response(405, "APIGW.0101", text, request_id)
            refused.headers["Allow"] = ", ".join(matched)
            return "none", {}, refused
        operation, path = matched
        return operation.name, path, await self._guarded(operation, path, request, request_id)

    async def _guarded(self, operation: Operation, path: dict[str, str], request: Request, request_id: str) -> Response:
        note = Note(
            operation=operation.name,
            request_id=request_id,
            address=request.client.host if request.client is not None else "",
            objects=path,
            status=operation.status,
            clock=self._services.clock,
        )
        try:
            return await self._perform(operation, path, request, note)
        except StrongroomError as error:
            response = error_response(error, keystone=operation.keystone, request_id=request_id)
            if isinstance(error, TooLarge | TooSlow):
                response.headers["Connection"] = "close"  # the rest of the body is not worth reading
            if response.status_code >= 500:
                told = not isinstance(error, Unavailable)  # what is away or busy has said so in its sentence
                log.error("failed", operation=operation.name, error=str(error), request_id=request_id, exc_info=told)
            if isinstance(error, RECORDED):
                await self._services.audit.refused(
                    self._services.database, note, response.status_code, error.published_code
                )
            return response
        except ClientDisconnect:
            return gateway_response(400, "APIGW.0201", "The request body was cut off.", request_id)
        except Exception as error:
            log.exception("unexpected", operation=operation.name, error=repr(error), request_id=request_id)
            return error_response(StrongroomError(), keystone=operation.keystone, request_id=request_id)

    async def _perform(self, operation: Operation, path: dict[str, str], request: Request, note: Note) -> Response:
        if "project_id" in path and not is_hex_id(path["project_id"]):
            # The SDK without a project id sends the literal placeholder (contract/identity.md section 4).
            return gateway_response(
                404, "APIGW.0101", "The API does not exist: bad project id in the path.", note.request_id
            )
        body = await self._receive(request)
        if operation.always:
            return await self._work(operation, path, request, body, note)
        with self._working:
            return await self._work(operation, path, request, body, note)

    async def _receive(self, request: Request) -> bytes:
        """The body, within its bounds. Bodies that do not come take no place from requests that are there."""
        if not any(name in _BODY_HEADERS for name, _ in request.scope["headers"]):
            return b""
        limits = self._services.limits
        with self._receiving:
            try:
                async with asyncio.timeout(limits.body_s_max):
                    return await _read_body(request, limits.body_bytes_max)
            except TimeoutError as err:
                raise TooSlow(limit_s=limits.body_s_max) from err

    async def _work(
        self, operation: Operation, path: dict[str, str], request: Request, body: bytes, note: Note
    ) -> Response:
        caller = await self._authorized(operation, path, request, body, note)
        _check_ids(path)
        services = self._services
        if operation.method not in READING_METHODS:
            services = replace(services, database=services.database.with_each_transaction(note.write_with))
        call = Call(
            services=services,
            caller=caller,
            path=path,
            query=_decode_query(operation, request),
            body=_decode_body(operation, body),
            request=request,
            request_id=note.request_id,
            note=note,
        )
        with self._shares.one_of(caller.project_id, self._services.limits.of_project_max):
            result = await operation.handler(call)
        if operation.audit and not note.written:
            await self._services.audit.done(self._services.database, note)
        if isinstance(result, Response):
            return result
        if result is None:
            return Response(
                status_code=operation.status, headers=dict(operation.headers), media_type="application/json"
            )
        return Response(
            self._encoder.encode(result), operation.status, dict(operation.headers), media_type="application/json"
        )

    async def _authorized(
        self, operation: Operation, path: dict[str, str], request: Request, body: bytes, note: Note
    ) -> Caller:
        if operation.action == PUBLIC:
            return ANONYMOUS
        if operation.action == REGION:
            if self._services.authenticate_region is None:
                raise Unauthenticated(reason="this server knows no other region")
            caller = await self._services.authenticate_region(request, body, note.request_id)
            note.user_id, note.user_name, note.project_id = caller.user_id, caller.user_name, caller.project_id
            return caller
        caller = await self._services.authenticate(request, body, note.request_id)
        note.user_id, note.user_name = caller.user_id, caller.user_name
        # What the operator does to a project stands in that project's log, anything else in that of the caller.
        note.project_id = path.get("project", "") if operation.action == ACTION_ADMIN else caller.project_id
        if "project_id" in path and path["project_id"] != caller.project_id:
            raise Forbidden(
                reason="The project in the path is not the project of your credentials. "
                "Use the project id that your token or access key belongs to."
            )
        if operation.action != AUTHENTICATED and not allowed(caller.roles, operation.action):
            raise Forbidden(
                reason=f"Your role does not allow {operation.action}. Ask an administrator for a role that does."
            )
        return caller


@functools.cache
def _seconds_of(name: str, status: int) -> Histogram:
    """The series of an operation and a status: as many as there are operations and statuses of ours."""
    return REQUESTS.labels(name, status)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _read_body(request: Request, limit: int) -> bytes:
    """The whole body, never more than the limit in memory. Raises TooLarge."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(limit_bytes=limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(limit_bytes=limit)
        parts.append(part)
    return b"".join(parts)


def _check_ids(path: dict[str, str]) -> None:
    for name, value in path.items():
        if name.endswith("_id") and name not in ID_PARAMETERS_FREE and not is_id(value):
            raise InvalidRequest(reason=f"Invalid {name} provided.")


@functools.cache
def _list_members(query: type[msgspec.Struct]) -> frozenset[str]:
    """Names of the members that take repeated keys."""
    fields = msgspec.structs.fields(query)
    return frozenset(f.encode_name for f in fields if "list" in str(f.type) or "tuple" in str(f.type))


def _decode_query(operation: Operation, request: Request) -> msgspec.Struct | None:
    if operation.query is None:
        return None
    try:
        pairs = parse_qsl(
            request.scope["query_string"].decode("ascii"),
            keep_blank_values=True,
            max_num_fields=QUERY_ITEMS_MAX,
            errors="strict",
        )
    except ValueError as err:
        raise InvalidRequest(reason="The query string is malformed.", detail=str(err)) from err
    lists = _list_members(operation.query)
    values: dict[str, object] = {}
    for name, value in pairs:
        if name in lists:
            values.setdefault(name, [])
            values[name].append(value)  # type: ignore[attr-defined]
        else:
            values[name] = value
    if any("\x00" in value for _, value in pairs):
        raise InvalidRequest(reason="The query string holds a NUL character.")
    try:
        return msgspec.convert(values, operation.query, strict=False)
    except msgspec.ValidationError as err:
        raise InvalidRequest(reason=sentence(str(err))) from err


def _decode_body(operation: Operation, body: bytes) -> msgspec.Struct | None:
    if operation.body is None:
        return None
    if not body:
        raise InvalidRequest(reason="The request needs a JSON body.")
    if b"\\u0000" in body or b"\x00" in body:
        raise InvalidRequest(reason="The request body holds a NUL character.")
    try:
        return msgspec.json.decode(body, type=operation.body)
    except msgspec.ValidationError as err:
        raise InvalidRequest(reason=sentence(str(err))) from err
    except (msgspec.DecodeError, RecursionError, UnicodeError) as err:
        raise InvalidRequest(reason="The request body is not valid JSON.", detail=str(err)) from err


def sentence(text: str) -> str:
    """msgspec's `Expected `int`, got `str` - at `$.vault.billing.size`` as a sentence that names the member."""
    what, _, where = text.partition(" - at `")
    member = where.rstrip("`").removeprefix("$.").removeprefix("$")
    return f"Invalid {member}: {what}." if member else f"Invalid request: {what}."


def build_app(operations: Sequence[Operation], services: Services) -> ASGIApp:
    """The application for an ASGI server: the operations, and the documents that describe them."""
    return Application(with_documents(operations), services)
