"""The conformance kit against a real server: all clients, all operations; and against servers that are wrong."""

import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import Server
from wrong_server import Answer, Wrong, WrongServer

from strongroom.cli.client import Client
from strongroom.cli.conformance.cast import Cast, find_target
from strongroom.cli.conformance.own import prepare
from strongroom.cli.credentials import load_credentials
from strongroom.conformance.contract import operations
from strongroom.conformance.findings import Findings, Fuzzed
from strongroom.conformance.fuzzing import fuzz
from strongroom.conformance.run import run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # of the SDK and its friends
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("conformance") / "state").start()
    yield running
    assert running.stop() == 0, running.log()


@pytest.fixture(scope="module")
def cast(server: Server) -> Cast:
    owner = load_credentials(state=server.state, endpoint=server.endpoint, file=None)
    with Client(owner) as client:
        return prepare(client, owner, None, server.state.parent)


@pytest.fixture(scope="module")
def wrong_server(server: Server) -> Iterator[WrongServer]:
    with WrongServer(server.endpoint) as proxy:
        yield proxy


def told(cast: Cast, endpoint: str, clients: list[str]) -> Findings:
    """Run clients against an endpoint through which the cast's server is reached."""
    with Client(cast.owner) as client:
        target = find_target(client, cast)
    assert target.partner is not None
    owner, partner = (replace(party, endpoint=endpoint) for party in (target.owner, target.partner))
    there = replace(target, owner=owner, partner=partner)
    return run(there, clients, datetime.datetime.now(datetime.UTC), lambda _: None)


def test_every_client_gets_what_it_expects(tmp_path: Path) -> None:
    """`strongroom conformance --own-server`: every operation that a client calls is right, or explained."""
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "strongroom", "conformance", "--own-server", "--json", "--report", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["absent_clients"] == {}
    assert [cell for cell in found["cells"] if cell["verdict"] not in ("ok", "explained")] == []
    assert done.returncode == 0, done.stderr
    assert all(f"| {operation} |" in page.read_text() for operation in operations())


# --- wrong servers --------------------------------------------------------------------------------------------------


def body(change: Any) -> Wrong:
    """Successes get another body."""
    return lambda answer: answer.with_body(change) if answer.status < 400 and answer.body is not None else answer


def refusal(**changes: Any) -> Wrong:
    """Refusals get another status, or other members."""

    def wrong(answer: Answer) -> Answer:
        if answer.status < 400:
            return answer
        members = {name: value for name, value in changes.items() if name != "status"}
        return replace(answer, status=changes.get("status", answer.status), body={**answer.body, **members})

    return wrong


def status(code: int) -> Wrong:
    return lambda answer: replace(answer, status=code) if answer.status < 400 else answer


def headers(**changes: str | None) -> Wrong:
    def wrong(answer: Answer) -> Answer:
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in named}
        return replace(answer, headers=kept | {name: value for name, value in named.items() if value is not None})

    return wrong


def gone(answer: Answer) -> Answer:
    """As a gateway answers that does not know the operation."""
    return replace(answer, status=404, body={"error_code": "APIGW.0101", "error_msg": "The API does not exist."})


# operationId -> (what is wrong, the verdict that is due, a word of the reason). ONE for the SDK, TWO for curl.
ONE: dict[str, tuple[Wrong, str, str]] = {
    "show_vault": (body(lambda b: b["vault"].pop("provider_id")), "fails", "provider_id"),
    "list_backups": (body(lambda b: b.pop("limit")), "fails", "$.limit is absent"),
    "list_policies": (body(lambda b: [p.update(associated_vaults=None) for p in b["policies"]]), "fails", "null"),
    "show_backup": (body(lambda b: b["backup"].update(resource_size="1")), "fails", "resource_size"),
    "show_op_log": (
        body(lambda b: b["operation_log"].update(created_at=b["operation_log"]["created_at"] + "+00:00")),
        "fails",
        "created_at",
    ),
    "add_vault_resource": (status(202), "fails", "status 202"),
    "show_summary": (headers(x_request_id=None), "fails", "X-Request-Id"),
    "show_vault_tag": (headers(content_type="text/plain"), "fails", "Content-Type"),
    "show_storage_usage": (gone, "missing", "no such operation"),
    "create_policy": (
        body(lambda b: b["policy"]["trigger"]["properties"].update(pattern=["FREQ=DAILY"])),
        "fails",
        "pattern",
    ),
    "list_protectable": (
        body(lambda b: b["instances"].extend([b["instances"][0]] if b["instances"] else [{}])),
        "fails",
        "instances",
    ),
    "set_vault_resource": (status(500), "fails", "500"),
}
TWO: dict[str, tuple[Wrong, str, str]] = {
    "show_policy": (refusal(error_code="BackupService.6001"), "fails", "404 BackupService.6000 was due"),
    "update_backup": (refusal(status=400), "fails", "404 BackupService.6200 was due"),
    "delete_vault": (status(200), "fails", "200"),
    "update_vault": (body(lambda b: b["vault"]["billing"].update(size=1)), "fails", "billing.size"),
    "list_op_logs": (body(lambda b: [o.update(error_info=None) for o in b["operation_logs"]]), "fails", "error_info"),
    "list_vault": (body(lambda b: b.update(count=str(b["count"]))), "fails", "count"),
    "show_vault_project_tag": (body(lambda b: [t.update(values="x") for t in b["tags"]]), "fails", "values"),
    "create_checkpoint": (
        body(lambda b: b["checkpoint"]["vault"]["resources"][0].update(resource_size=1)),
        "fails",
        "resource_size",
    ),
}


def found(findings: Findings, client: str, wrong: dict[str, tuple[Wrong, str, str]]) -> list[str]:
    """What the kit missed, as sentences."""
    missed = []
    for operation, (_, due, word) in wrong.items():
        verdict, reasons = findings.verdict(client, operation)
        if verdict != due or word not in " ".join(reasons):
            missed.append(f"{operation}: {word} was due, got {verdict}: {reasons}")
    return missed


@pytest.mark.parametrize(("client", "wrong"), [("sdk", ONE), ("curl", TWO)])
def test_each_wrong_answer_is_found_where_it_is(
    cast: Cast, wrong_server: WrongServer, client: str, wrong: dict[str, tuple[Wrong, str, str]]
) -> None:
    """Members, types, statuses, codes, headers: each mutation is found in its own operation, and only there."""
    wrong_server.wrong = {operation: change for operation, (change, _, _) in wrong.items()}
    findings = told(cast, wrong_server.endpoint, [client])
    assert found(findings, client, wrong) == []
    others = [row for row in findings.cells([client]) if row[2] == "fails" and row[1] not in wrong]
    assert others == []


# --- invented requests ----------------------------------------------------------------------------------------------

SOME = ("/vaults/{vault_id}", "/policies", "/checkpoints", "/backups/{backup_id}", "/tags")  # ends of paths


def fuzzed(cast: Cast, examples: int, chosen: Callable[[str], bool]) -> list[Fuzzed]:
    with Client(cast.owner) as client:
        target = find_target(client, cast)
    findings = Findings()
    now = datetime.datetime.now(datetime.UTC)
    fuzz(target, findings, now, lambda _: None, examples=examples, alone=True, chosen=chosen)
    return [row for done in findings.fuzzed.values() for row in done]


@pytest.mark.parametrize(
    ("examples", "ends"), [(2, SOME), pytest.param(60, ("",), marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
def test_invented_requests_get_documented_answers(cast: Cast, examples: int, ends: tuple[str, ...]) -> None:
    """Valid or not, known ids or not: no answer is undocumented, malformed or a 500."""
    rows = fuzzed(cast, examples, lambda label: label.endswith(ends))
    assert sum(row.requests for row in rows) > examples * len(rows)
    assert [(row.operation, row.fault) for row in rows if row.fault] == []
