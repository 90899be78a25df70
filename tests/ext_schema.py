"""Checks every answer below /ext, and of the identity, against our own OpenAPI document, as it comes.

    httpx.AsyncClient(..., event_hooks={"response": [check_ours]})

A mismatch is an AssertionError that names the member. Undescribed members are refused: the document tells all of it.
"""

import functools
import json
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema
from every_operation import every_operation
from jsonschema.protocols import Validator

from strongroom.api.app import Router
from strongroom.api.openapi_document import describe, is_ours, with_documents
from strongroom.api.operation import Operation


@functools.cache
def described_operations() -> tuple[Operation, ...]:
    """The whole table, with the rows of its documents."""
    return with_documents(every_operation())


@functools.cache
def document() -> dict[str, Any]:
    return json.loads(json.dumps(describe(described_operations())))  # type: ignore[no-any-return]


@functools.cache
def _router() -> Router:
    return Router(described_operations())


@functools.cache
def _validator(path: str, method: str, status: str) -> Validator | None:
    responses = document()["paths"][path][method.lower()]["responses"]
    content = responses.get(status, responses["default"]).get("content", {})
    assert content or status in responses, f"{method} {path} does not describe {status}"
    if "application/json" not in content:
        return None
    schemas = {
        name: schema | {"additionalProperties": False} if "properties" in schema else schema
        for name, schema in document()["components"]["schemas"].items()
    }
    schema = {**content["application/json"]["schema"], "components": {"schemas": schemas}}
    return jsonschema.Draft202012Validator(schema)


async def check_ours(response: httpx.Response) -> None:
    """Does nothing for answers of CBR's own paths."""
    request = response.request
    matched = _router().match(request.method, urlsplit(str(request.url)).path)
    if isinstance(matched, list) or not is_ours(matched[0]):
        return
    operation = matched[0]
    await response.aread()
    if response.headers.get("content-type") != "application/json":
        assert response.status_code == operation.status, response.text
        assert isinstance(operation.answer, str), f"{operation.name} answered {response.headers}"
        return
    status = str(response.status_code)
    validator = _validator(operation.path, operation.method, status)
    if validator is None:
        assert response.content == b"", f"{operation.name}: a body that is not described"
        return
    errors = sorted(validator.iter_errors(response.json()), key=lambda error: len(error.absolute_path))
    assert not errors, "\n".join(f"{operation.name} {status} {error.json_path}: {error.message}" for error in errors)
