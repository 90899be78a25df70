"""The conformance kit against a real server: all clients, all operations; and against servers that are wrong."""

import datetime
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from harness import Server
from wrong_server import Answer, Wrong, WrongServer

from strongroom.cli.client import Client
from strongroom.cli.conformance.command import _target
from strongroom.cli.conformance.own import RESOURCE, prepare
from strongroom.cli.credentials import Credentials, load_credentials
from strongroom.conformance.findings import Findings
from strongroom.conformance.run import CLIENTS, run

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
def parties(server: Server) -> tuple[Credentials, Credentials]:
    image = server.state.with_name("disk.raw")
    image.write_bytes(bytes(4 << 20) + bytes(range(256)) * 4096)
    owner = load_credentials(state=server.state, endpoint=server.endpoint, file=None)
    with Client(owner) as client:
        return owner, prepare(client, owner, image)


@pytest.fixture(scope="module")
def wrong_server(server: Server) -> Iterator[WrongServer]:
    with WrongServer(server.endpoint) as proxy:
        yield proxy


def told(parties: tuple[Credentials, Credentials], endpoint: str, clients: list[str]) -> Findings:
    owner, partner = (replace(party, endpoint=endpoint) for party in parties)
    with Client(owner) as client:
        target = _target(client, owner, partner, RESOURCE)
    return run(target, clients, datetime.datetime.now(datetime.UTC), lambda _: None)


def test_every_client_gets_what_it_expects(parties: tuple[Credentials, Credentials], server: Server) -> None:
    """No answer to any client is wrong, and every client runs."""
    findings = told(parties, server.endpoint, list(CLIENTS))
    assert findings.absent_clients == {}
    bad = [row for row in findings.cells(list(CLIENTS)) if row[2] in ("fails", "refused")]
    assert bad == [], "\n".join(f"{client} {operation}: {verdict} {why}" for client, operation, verdict, why in bad)


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


# operationId -> (what is wrong, the verdict that is due, a word of the reason)
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


def found(findings: Findings, clients: list[str], wrong: dict[str, tuple[Wrong, str, str]]) -> list[str]:
    """What the kit missed, as sentences."""
    missed = []
    for operation, (_, due, word) in wrong.items():
        seen = [findings.verdict(client, operation) for client in clients]
        if not any(verdict == due and word in " ".join(reasons) for verdict, reasons in seen):
            missed.append(f"{operation}: {word} was due, got {seen}")
    return missed


@pytest.mark.parametrize("wrong", [ONE, TWO], ids=["one", "two"])
def test_each_wrong_answer_is_found_where_it_is(
    parties: tuple[Credentials, Credentials], wrong_server: WrongServer, wrong: dict[str, tuple[Wrong, str, str]]
) -> None:
    """Members, types, statuses, codes, headers: each mutation is found in its own operation, and only there."""
    wrong_server.wrong = {operation: change for operation, (change, _, _) in wrong.items()}
    clients = ["curl", "sdk"]
    findings = told(parties, wrong_server.endpoint, clients)
    assert found(findings, clients, wrong) == []
    others = [row for row in findings.cells(clients) if row[2] == "fails" and row[1] not in wrong]
    assert others == []
