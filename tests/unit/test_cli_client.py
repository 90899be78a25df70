"""Names, pages, refusals and watching, against a small server in memory that keeps the contract's rules."""

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from strongroom.cli import names
from strongroom.cli.client import PAGE_LIMIT, Client
from strongroom.cli.credentials import Credentials
from strongroom.cli.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_PARTLY_DONE,
    AnswerStrange,
    NameAmbiguous,
    NameUnknown,
    RequestRefused,
    ServerUnreachable,
)
from strongroom.cli.output import Output
from strongroom.cli.watching import outcome_code, watch

PROJECT = "0605767b5780d5762fc5c0118072a564"
VAULT = "8b0851a8-adf3-4f4c-a914-dead08bf9664"
TASKS = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"]


def client_of(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    credentials = Credentials(endpoint="http://server", project_id=PROJECT, access_key="AK", secret_key="SK")
    return Client(credentials, transport=httpx.MockTransport(answer))


def paged(rows: list[dict[str, Any]], member: str) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.params
        found = [row for row in rows if query.get("name") in (None, row["name"])]
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 1000))
        return httpx.Response(200, json={member: found[offset : offset + limit], "count": len(found)})

    return answer


def test_all_pages_are_read() -> None:
    """A list longer than a page is complete and in order; a limit stops it."""
    rows = [{"id": str(n), "name": f"v{n}"} for n in range(2 * PAGE_LIMIT + 3)]
    client = client_of(paged(rows, "vaults"))
    assert client.pages("/v3/x/vaults", "vaults") == rows
    assert client.pages("/v3/x/vaults", "vaults", limit=PAGE_LIMIT + 1) == rows[: PAGE_LIMIT + 1]


def test_name_stands_for_its_id() -> None:
    """One match: its id. An id is not looked up at all."""
    client = client_of(paged([{"id": VAULT, "name": "homes"}], "vaults"))
    assert names.vault_id(client, "homes") == VAULT
    assert names.vault_id(client_of(lambda _: httpx.Response(500)), VAULT) == VAULT


def test_unknown_and_ambiguous_names_are_refused() -> None:
    """None and several are told apart, with what to do."""
    client = client_of(paged([{"id": "a", "name": "twice"}, {"id": "b", "name": "twice"}], "vaults"))
    with pytest.raises(NameUnknown, match="strongroom vault list"):
        names.vault_id(client, "nothing")
    with pytest.raises(NameAmbiguous, match="a, b"):
        names.vault_id(client, "twice")


@pytest.mark.parametrize(
    ("body", "sentence", "code"),
    [
        ({"error_code": "BackupService.6105", "error_msg": "No vault."}, "No vault.", "BackupService.6105"),
        ({"error": {"code": 401, "message": "Wrong.", "title": "Unauthorized"}}, "Wrong.", "401"),
    ],
)
def test_refusals_keep_the_servers_sentence(body: dict[str, Any], sentence: str, code: str) -> None:
    """Both envelopes of the contract are understood; the request id comes along."""
    client = client_of(lambda _: httpx.Response(404, json=body, headers={"X-Request-Id": "r"}))
    with pytest.raises(RequestRefused) as caught:
        client.get("/v3/x")
    error = caught.value
    assert (error.message, error.published_code, error.request_id, error.status) == (sentence, code, "r", 404)


@pytest.mark.parametrize("response", [httpx.Response(502, text="<html>"), httpx.Response(200, text="<html>")])
def test_what_is_not_ours_is_said(response: httpx.Response) -> None:
    """A proxy's page is not shown as if it were an answer."""
    with pytest.raises(AnswerStrange, match="--endpoint"):
        client_of(lambda _: response).get("/v3/x")


def test_absent_values_are_not_sent() -> None:
    """None is left out, truth is spelled as the API wants it."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.query.decode())
        return httpx.Response(200, json={})

    client_of(answer).get("/v3/x", path=None, open=True, limit=3)
    assert seen == ["open=true&limit=3"]


class Tasks:
    """Two tasks that move on by one look each; `silent` looks are refused connections, as of a server that restarts."""

    def __init__(self, looks: int, statuses: tuple[str, str], silent: frozenset[int] = frozenset()) -> None:
        self.looks, self.statuses, self.silent, self.requests = looks, statuses, silent, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return self.stream(request)
        self.requests += 1
        if self.requests in self.silent:
            raise httpx.ConnectError("refused", request=request)
        rows = [
            {
                "id": task_id,
                "operation_type": "backup",
                "status": status if self.requests > self.looks * (n + 1) else "running",
                "progress": 50,
                "bytes_done": 5,
                "bytes_total": 10,
                "resource_name": f"r{n}",
                "error_message": "",
            }
            for n, (task_id, status) in enumerate(zip(TASKS, self.statuses, strict=True))
        ]
        if request.url.path.endswith("/tasks"):
            return httpx.Response(200, json={"tasks": [row for row in rows if row["status"] == "running"]})
        return httpx.Response(200, json={"task": next(row for row in rows if request.url.path.endswith(row["id"]))})

    def stream(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(429, json={"error_code": "APIGW.0308", "error_msg": "Too many event streams are open."})


class Streaming(Tasks):
    """Tells the end of both tasks as events, in pieces that end anywhere; asked for the first look only."""

    def stream(self, request: httpx.Request) -> httpx.Response:
        ended = [
            {"id": task_id, "operation_type": "backup", "status": status, "bytes_done": 9, "error_message": "x: y"}
            for task_id, status in zip(TASKS, self.statuses, strict=True)
        ]
        other = {"id": "33333333-3333-4333-8333-333333333333", "status": "success"}
        told = [("ready", {}), ("restore_point", {"restore_point": {}}), ("task", {"task": other})]
        told += [("task", {"task": row}) for row in ended]
        text = "retry: 2000\n" + "".join(
            f"id: 7\nevent: {kind}\ndata: {json.dumps(data)}\n\n: alive\n\n" for kind, data in told
        )
        return httpx.Response(200, content=(text[at : at + 7].encode() for at in range(0, len(text), 7)))


def test_watch_is_told_by_the_server() -> None:
    """One look when the stream is open; from there on the server's events end the watching."""
    server = Streaming(100, ("success", "failed"))
    ended = watch(client_of(server), Output(as_json=False), TASKS, sleep=lambda _: None)
    assert [task["status"] for task in ended] == ["success", "failed"]
    assert server.requests == 1


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (("success", "success"), EXIT_OK),
        (("success", "failed"), EXIT_PARTLY_DONE),
        (("failed", "timeout"), EXIT_FAILED),
    ],
)
def test_watch_ends_when_all_have_ended(statuses: tuple[str, str], code: int) -> None:
    """Tasks come back in the order asked for, as they ended; the exit code says how many succeeded."""
    ended = watch(client_of(Tasks(2, statuses)), Output(as_json=False), TASKS, sleep=lambda _: None)
    assert [task["id"] for task in ended] == TASKS
    assert tuple(task["status"] for task in ended) == statuses
    assert outcome_code(ended) == code


def test_watch_waits_for_a_server_that_restarts() -> None:
    """Refused connections in between do not end the watching."""
    server = Tasks(2, ("success", "success"), silent=frozenset({2, 3}))
    ended = watch(client_of(server), Output(as_json=False), TASKS, sleep=lambda _: None)
    assert {task["status"] for task in ended} == {"success"}


def test_watch_gives_up_on_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time for a restart the user is told."""
    monkeypatch.setattr("strongroom.cli.watching.RECONNECT_S", 0.0)
    server = Tasks(2, ("success", "success"), silent=frozenset(range(2, 1000)))
    with pytest.raises(ServerUnreachable):
        watch(client_of(server), Output(as_json=False), TASKS, sleep=lambda _: None)


def test_watch_prints_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs get one status line a task and look."""
    lines = io.StringIO()
    monkeypatch.setattr("sys.stdout", lines)
    watch(client_of(Tasks(1, ("success", "success"))), Output(as_json=True), TASKS[:1], sleep=lambda _: None)
    assert lines.getvalue().count('"message_type": "status"') == 2
