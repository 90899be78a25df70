"""Checks answers of the v3 API against strongroom/api/openapi.json, by operationId, and the rules no schema can say.

    body = check_answer("show_vault", response)              # 200 with a Vault that fits the contract
    error = check_error("show_vault", response, 404, "6105") # the CBR envelope with exactly this code

Both return the decoded body. A mismatch is an AssertionError that names the member.
"""

import functools
import json
import re
from importlib import resources
from typing import Any

import httpx
import jsonschema
from jsonschema.protocols import Validator

CONTRACT = json.loads(resources.files("strongroom.api").joinpath("openapi.json").read_text())

# Members that clients dereference without a look: a null there crashes them (contract, "never null on output").
NEVER_NULL = frozenset(
    {
        "billing",
        "bind_rules",
        "resources",
        "tags",
        "children",
        "error_info",
        "operation_definition",
        "trigger",
        "properties",
        "associated_vaults",
        "count",
        "total_count",
        "resource_count",
    }
)
# Times are UTC with microseconds and without an offset: the Python SDK appends the Z itself.
TIMES = frozenset({"created_at", "updated_at", "started_at", "ended_at", "protected_at", "expired_at", "accepted_at"})
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")
_REQUEST_ID = re.compile(r"[0-9a-f-]{36}")


@functools.cache
def operations() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """operationId -> (METHOD, path, operation object)."""
    return {
        operation["operationId"]: (method.upper(), path, operation)
        for path, item in CONTRACT["paths"].items()
        for method, operation in item.items()
        if isinstance(operation, dict) and "operationId" in operation
    }


@functools.cache
def _validator(operation_id: str, status: str) -> Validator | None:
    declared = operations()[operation_id][2]["responses"]
    assert status in declared, f"{operation_id} does not declare status {status}"
    content = declared[status].get("content")
    if content is None:
        return None
    schema = {**content["application/json"]["schema"], "components": CONTRACT["components"]}
    return jsonschema.Draft202012Validator(schema)


def check_answer(operation_id: str, response: httpx.Response, status: int | None = None) -> Any:
    """The decoded body of a success, valid for the operation; None when the contract says there is no body.

    `status` defaults to the one success the contract declares.
    """
    declared = [int(s) for s in operations()[operation_id][2]["responses"] if s < "400"]
    expected = status if status is not None else declared[0]
    assert response.status_code == expected, f"{operation_id}: {response.status_code} {response.text}"
    _check_headers(response)
    validator = _validator(operation_id, str(expected))
    if validator is None:
        assert response.content == b"", f"{operation_id}: a body where the contract has none"
        return None
    body = response.json()
    _validate(validator, body, operation_id)
    _walk(body, operation_id)
    return body


def check_error(operation_id: str, response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error envelope with this status and code (`6105`, or a full `APIGW.0301`), and a sentence for the tenant."""
    assert response.status_code == status, f"{operation_id}: {response.status_code} {response.text}"
    _check_headers(response)
    body: dict[str, Any] = response.json()
    validator = jsonschema.Draft202012Validator(
        {"$ref": "#/components/schemas/ErrorResponse", "components": CONTRACT["components"]}
    )
    _validate(validator, body, operation_id)
    assert body["error_code"] == (code if "." in code else f"BackupService.{code}"), body
    assert len(body["error_msg"]) > 10, body
    return body


def _check_headers(response: httpx.Response) -> None:
    assert response.headers["content-type"].startswith("application/json"), response.headers
    assert _REQUEST_ID.fullmatch(response.headers["x-request-id"]), response.headers


def _validate(validator: Validator, body: Any, operation_id: str) -> None:
    errors = sorted(validator.iter_errors(body), key=lambda e: len(e.absolute_path))
    assert not errors, "\n".join(f"{operation_id} {e.json_path}: {e.message}" for e in errors)


def _walk(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for name, member in value.items():
            assert member is not None or name not in NEVER_NULL, f"{where}.{name} is null"
            if name in TIMES and isinstance(member, str):
                assert _TIME.fullmatch(member), f"{where}.{name} is {member}, not a time without offset"
            _walk(member, f"{where}.{name}")
    elif isinstance(value, list):
        for i, member in enumerate(value):
            _walk(member, f"{where}[{i}]")
