"""Our own OpenAPI document is valid, complete, and served; answers are checked against it wherever tests get one."""

import httpx
import pytest
from ext_schema import described_operations, document
from in_process_api import InProcessApi
from openapi_spec_validator import OpenAPIV31SpecValidator

from strongroom.api.app import build_app
from strongroom.api.openapi_document import JSON, is_ours
from strongroom.api.operation import PUBLIC
from strongroom.api.table import OPERATIONS


def test_the_document_is_valid() -> None:
    """OpenAPI 3.1, with references that lead somewhere and parameters for every name in a path."""
    OpenAPIV31SpecValidator(document()).validate()


def test_described_operations_of_ours_is_described() -> None:
    """Each row that CBR's document does not have, once, with what it takes, answers and asks of a role."""
    described = {
        operation["operationId"]: operation for item in document()["paths"].values() for operation in item.values()
    }
    ours = {operation.name: operation for operation in described_operations() if is_ours(operation)}
    assert set(described) == set(ours)
    assert len(described) > 30
    for name, operation in ours.items():
        assert ("requestBody" in described[name]) == (operation.body is not None)
        assert (described[name]["security"] == []) == (operation.action == PUBLIC)
        success = described[name]["responses"][str(operation.status)]
        if operation.answer is None:
            assert operation.status == 204, f"{name} answers something that the table does not tell"
        else:
            assert list(success["content"]) == [operation.answer if isinstance(operation.answer, str) else JSON]


def test_a_description_says_what_the_code_says() -> None:
    """Types become schemas with their sentences; null is no value of a query."""
    task = document()["components"]["schemas"]["TaskView"]
    assert task["properties"]["bytes_total"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert "bytes_total" in task["required"]
    assert "nobody knows" in task["description"]
    parameters = document()["paths"]["/ext/v1/{project_id}/tasks"]["get"]["parameters"]
    by_name = {parameter["name"]: parameter for parameter in parameters}
    assert by_name["open"]["schema"] == {"type": "boolean"}
    assert by_name["status"]["schema"]["enum"] == sorted(by_name["status"]["schema"]["enum"])
    assert by_name["project_id"]["required"]
    quotas = document()["components"]["schemas"]["QuotaLimits"]
    assert "required" not in quotas or quotas["required"] == []


@pytest.mark.parametrize(("path", "title"), [("/openapi.json", "Strongroom, beside CBR v3"), ("/openapi/cbr.json", "")])
async def test_both_documents_are_served_to_everybody(api: InProcessApi, path: str, title: str) -> None:
    """Without credentials; ours describes itself."""
    transport = httpx.ASGITransport(build_app(OPERATIONS, api.services))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    served = answer.json()
    assert served["openapi"].startswith("3.")
    assert title in served["info"]["title"]
    assert ("/openapi.json" in served["paths"]) == bool(title)
    assert ("/v3/{project_id}/vaults" in served["paths"]) != bool(title)
