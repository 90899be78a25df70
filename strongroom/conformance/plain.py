"""Requests without a client library: what curl sends, and the recorded habits of the clients that are written in Go."""

import re
from collections.abc import Callable
from typing import Any

import httpx

from strongroom.base.clock import SystemClock
from strongroom.conformance.contract import Exchange, operations
from strongroom.conformance.signing import GoSigner
from strongroom.conformance.story import Outcome, Step
from strongroom.conformance.target import Party

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_PARAMETER = re.compile(r"\{(\w+)\}")


class PlainActor:
    """Sends requests as written. `watch` is told of every exchange.

    With `signs`, or without a password to ask a token with, requests are signed with the access key (SDK-HMAC-SHA256).
    """

    def __init__(self, party: Party, *, signs: bool, user_agent: str, watch: Callable[[Exchange], object]) -> None:
        self._party = party
        self._watch = watch
        headers = {"User-Agent": user_agent, "Accept": "application/json"}
        signs = signs or not party.has_password
        auth = GoSigner(party, SystemClock()) if signs else None
        self._http = httpx.Client(base_url=party.endpoint, timeout=TIMEOUT, headers=headers, auth=auth)
        if not signs:
            self._http.headers["X-Auth-Token"] = ask_token(self._http, party)

    def close(self) -> None:
        self._http.close()

    def perform(self, step: Step) -> Outcome:
        method, path, query, body = self._request(step)
        headers = {"Content-Type": "application/json"}
        request = self._http.build_request(method, path, params=query or None, json=body, headers=headers)
        exchange = exchange_of(self._http.send(request))
        self._watch(exchange)
        if exchange.status < 400:
            return Outcome(body=exchange.body, status=exchange.status)
        text = (
            exchange.body.get("error_msg", "")
            if isinstance(exchange.body, dict)
            else exchange.content[:200].decode(errors="replace")
        )
        return Outcome(
            body=exchange.body,
            error=f"{exchange.status} {exchange.error_code}",
            refusal=f"answered {exchange.status} {exchange.error_code}: {text}",
            missing=exchange.unknown_path,
        )

    def _request(self, step: Step) -> tuple[str, str, dict[str, Any], Any]:
        arguments = step.arguments
        query, body = arguments.get("query", {}), arguments.get("body")
        method, _, path = step.do.partition(" ")
        if not path.startswith("/"):
            operation = operations()[step.do]
            values = {"project_id": self._party.project_id, **arguments.get("path", {})}
            method, path = operation.method, _PARAMETER.sub(lambda found: values[found[1]], operation.path)
        return method, path, query, body


def ask_token(http: httpx.Client, party: Party) -> str:
    """A token of the party's project. Raises httpx.HTTPError when there is none to be had."""
    domain = {"name": party.domain_name}
    user = {"name": party.username, "password": party.password, "domain": domain}
    scope = {"project": {"name": party.project_name, "domain": domain}}
    identity = {"methods": ["password"], "password": {"user": user}}
    answer = http.post("/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}})
    answer.raise_for_status()
    return answer.headers["X-Subject-Token"]


def exchange_of(response: httpx.Response) -> Exchange:
    """An answer of httpx as the kit looks at it."""
    return Exchange(
        method=response.request.method,
        path=response.request.url.raw_path.partition(b"?")[0].decode("ascii"),
        status=response.status_code,
        headers=dict(response.headers),
        content=response.content,
    )
