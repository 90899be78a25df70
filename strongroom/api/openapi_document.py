"""Our own OpenAPI document, made from the table of operations: what is below /ext, the identity, health and metrics.

What CBR publishes has a document of its own, which came with the contract (openapi.json in this folder). Both are
served, for everybody: they say what this program can do, and nothing about this installation.
"""

from collections.abc import Sequence
from importlib import resources
from typing import Any, get_type_hints

import msgspec
from starlette.responses import Response

from strongroom import __version__
from strongroom.api.operation import AUTHENTICATED, PUBLIC, REGION, Call, Operation
from strongroom.base.ids import HEX_ID_PATTERN, ID_PATTERN

JSON = "application/json"
REF = "#/components/schemas/{name}"
_TITLE = "Strongroom, beside CBR v3"
_DESCRIPTION = (
    "What Strongroom answers beyond the CBR v3 API: tasks, events, restore by path, quotas, the audit log, and the "
    "identity that issues tokens. CBR's own document is at /openapi/cbr.json."
)


class ErrorAnswer(msgspec.Struct, omit_defaults=True):
    """What went wrong and what to do; docs/ERRORS.md has the codes. request_id is in the header X-Request-Id too."""

    error_code: str
    error_msg: str
    request_id: str | msgspec.UnsetType = msgspec.UNSET


class KeystoneErrorPart(msgspec.Struct):
    code: int
    message: str
    title: str


class KeystoneErrorAnswer(msgspec.Struct):
    """As Keystone's clients want it."""

    error: KeystoneErrorPart


def with_documents(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The table with the rows that serve its documents."""
    cbr = resources.files("strongroom.api").joinpath("openapi.json").read_bytes()
    own: list[bytes] = []

    async def show_openapi(call: Call) -> Response:
        """This document."""
        return Response(own[0], media_type=JSON)

    async def show_cbr_openapi(call: Call) -> Response:
        """The document of the CBR v3 API, as published."""
        return Response(cbr, media_type=JSON)

    rows = (
        *operations,
        Operation(
            name="show_openapi",
            method="GET",
            path="/openapi.json",
            action=PUBLIC,
            handler=show_openapi,
            answer=JSON,
        ),
        Operation(
            name="show_cbr_openapi",
            method="GET",
            path="/openapi/cbr.json",
            action=PUBLIC,
            handler=show_cbr_openapi,
            answer=JSON,
        ),
    )
    own.append(msgspec.json.encode(describe(rows)))
    return rows


def is_ours(operation: Operation) -> bool:
    """Whether it is in this document, and not in CBR's."""
    own = operation.path.startswith("/ext/") or operation.keystone or operation.action == PUBLIC
    return own and operation.action != REGION  # what regions ask each other is no client's


def describe(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document, OpenAPI 3.1, of those of the operations that are ours."""
    ours = [operation for operation in operations if is_ours(operation)]
    types = [
        type_
        for operation in ours
        for type_ in (operation.body, operation.answer, *operation.events.values())
        if type_ is not None and not isinstance(type_, str)
    ]
    types = list(dict.fromkeys([*types, ErrorAnswer, KeystoneErrorAnswer]))
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in ours:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "SDK-HMAC-SHA256 over the request, with an access key.",
                },
            },
        },
    }


def _described(operation: Operation, schema_of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    error = schema_of[KeystoneErrorAnswer if operation.keystone else ErrorAnswer]
    described: dict[str, Any] = {
        "operationId": operation.name,
        "parameters": [*_path_parameters(operation), *_query_parameters(operation)],
        "responses": {
            str(operation.status): _success(operation, schema_of),
            "default": {"description": "What went wrong.", "content": {JSON: {"schema": error}}},
        },
        "security": [] if operation.action == PUBLIC else [{"token": []}, {"signature": []}],
    }
    if operation.handler.__doc__:
        described["description"] = " ".join(operation.handler.__doc__.split())
    if operation.action not in (PUBLIC, AUTHENTICATED):
        described["x-action"] = operation.action
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema_of[operation.body]}}}
    return described


def _success(operation: Operation, schema_of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "Done."}
    if operation.answer == JSON:
        return {"description": "Done.", "content": {JSON: {"schema": {"type": "object"}}}}
    if isinstance(operation.answer, str):
        success = {"description": "Done.", "content": {operation.answer: {"schema": {"type": "string"}}}}
        events = {kind: schema_of[type_] for kind, type_ in operation.events.items()}
        return success | ({"x-events": events} if events else {})
    return {"description": "Done.", "content": {JSON: {"schema": schema_of[operation.answer]}}}


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", **_pattern(name)}} for name in names
    ]


def _pattern(name: str) -> dict[str, str]:
    if name in ("project_id", "project"):
        return {"pattern": f"^{HEX_ID_PATTERN}$"}
    return {"pattern": f"^{ID_PATTERN}$"} if name.endswith("_id") else {}


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    """One a member of the query type; null is no value of a query, so it is no part of the schemas."""
    if operation.query is None:
        return []
    hints = get_type_hints(operation.query)
    return [
        {
            "name": field.encode_name,
            "in": "query",
            "required": field.required,
            "schema": _without_null(msgspec.json.schema(hints[field.name])),
        }
        for field in msgspec.structs.fields(operation.query)
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        return {"enum": [value for value in schema["enum"] if value is not None]}
    alternatives = [part for part in schema.get("anyOf", []) if part != {"type": "null"}]
    return alternatives[0] if len(alternatives) == 1 else schema
