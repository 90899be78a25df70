"""Checks answers of the v3 API by operationId, with the eyes of the conformance kit: against the published document,
and by the rules that no schema can say.

    body = check_answer("show_vault", response)              # 200 with a Vault that fits the contract
    error = check_error("show_vault", response, 404, "6105") # the CBR envelope with exactly this code

Both return the decoded body. A mismatch is an AssertionError that names the member.
"""

import re
from typing import Any

import httpx

from strongroom.conformance import contract
from strongroom.conformance.contract import Json, document
from strongroom.conformance.plain import exchange_of

CONTRACT = document()
_REQUEST_ID = re.compile(r"[0-9a-f-]{36}")


def operations() -> dict[str, tuple[str, str, Json]]:
    """operationId -> (METHOD, path, operation object)."""
    return {name: (row.method, row.path, row.document) for name, row in contract.operations().items()}


def check_answer(operation_id: str, response: httpx.Response, status: int | None = None) -> Any:
    """The decoded body of a success, valid for the operation; None when the contract says there is no body.

    `status` defaults to the one success the contract declares.
    """
    expected = status if status is not None else contract.operations()[operation_id].success[0]
    assert response.status_code == expected, f"{operation_id}: {response.status_code} {response.text}"
    _check(operation_id, response)
    return response.json() if response.content else None


def check_error(operation_id: str, response: httpx.Response, status: int, code: str) -> Json:
    """The error envelope with this status and code (`6105`, or a full `APIGW.0301`), and a sentence for the tenant."""
    assert response.status_code == status, f"{operation_id}: {response.status_code} {response.text}"
    _check(operation_id, response)
    body: Json = response.json()
    assert body["error_code"] == (code if "." in code else f"BackupService.{code}"), body
    return body


def _check(operation_id: str, response: httpx.Response) -> None:
    assert response.headers["content-type"].startswith("application/json"), response.headers
    assert _REQUEST_ID.fullmatch(response.headers["x-request-id"]), response.headers
    found = contract.faults(operation_id, exchange_of(response))
    assert found == [], "\n".join(f"{operation_id} {sentence}" for sentence in found)
