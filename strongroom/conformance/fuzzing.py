"""Schemathesis over the published documents: requests nobody would write, and answers that must fit all the same.

Each operation gets valid and invalid requests, and half of them name things that exist, so that they reach past the
first look-up; a DELETE, and what cannot be taken back (AWAY), names only what does not exist. What would hurt others
who use the endpoint (ALONE) is asked of a server of the run's own. A token that an invented request ended is asked for
anew, and an operation that was never asked anything with a token that counts is a fault.
"""

import copy
import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from strongroom.conformance import contract
from strongroom.conformance.contract import Json
from strongroom.conformance.findings import Findings, Fuzzed
from strongroom.conformance.plain import PlainActor, ask_token
from strongroom.conformance.run import AGENTS, variables
from strongroom.conformance.story import load, tell
from strongroom.conformance.target import Party, Target

SEED = 20261  # the same requests each time
OWN_DOCUMENT = "/openapi.json"  # where a server may publish what it has beside CBR
# Operations that are given nothing that exists, as a DELETE is, and why.
AWAY = {"PUT /ext/v1/{project_id}/vaults/{vault_id}/lock": "a lock does not open, and the vault would stay for ever"}
# Operations that are asked of a server of the run's own only, and why. None of them is in CBR's document.
ALONE = {
    "POST /ext/v1/admin/token-keys": "it logs out everybody who uses the endpoint",
    "POST /ext/v1/admin/domains": "it leaves domains behind, and none is ever deleted",
    "POST /ext/v1/admin/projects": "it leaves projects behind",
    "POST /ext/v1/admin/users": "it leaves users behind, some of them with roles",
    "POST /ext/v1/admin/protectables": "it registers folders of the host that answers",
}
_HEADERS = ("#/components/parameters/XAuthToken", "#/components/parameters/XProjectId")  # ours to send, not to invent
_SERVICE = (b"BackupService.", b'"error"')  # a refusal of the service itself, or of its identity; not of a gateway


class WrongAnswer(AssertionError):
    """An answer that does not fit; Hypothesis makes the request smaller while it stays so."""


@dataclass(kw_only=True)
class _Attempts:
    """Sends what is generated for one document. `known`: path parameter -> id of something that exists."""

    party: Party
    token: str
    known: dict[str, str]
    examples: int
    sent: int = 0
    done: int = 0
    unknown: int = 0
    unrouted: int = 0  # of those: answered as an operation that does not exist


def fuzz(
    target: Target,
    findings: Findings,
    now: datetime.datetime,
    say: Callable[[str], None],
    *,
    examples: int,
    alone: bool = False,
    chosen: Callable[[str], bool] = lambda label: True,
) -> None:
    """All documents that the endpoint speaks; what was found goes to `findings.fuzzed`.

    `examples`: requests for each operation and kind. `alone`: nobody else uses the endpoint, and it goes with the run.
    `chosen`: which operations, by `METHOD /path`.
    Raises ModuleNotFoundError when schemathesis is not installed.
    """
    owner = target.owner
    with httpx.Client(base_url=owner.endpoint) as http:
        token = ask_token(http, owner)
        answer = http.get(OWN_DOCUMENT)
    documents = {"strongroom/api/openapi.json": contract.document()}
    if answer.status_code == 200:
        documents[OWN_DOCUMENT] = answer.json()
    actor = PlainActor(owner, signs=False, user_agent=AGENTS["curl"], watch=lambda exchange: None)
    try:
        known = tell("curl", load("known"), {"": actor}, variables(target, "fuzz", now), Findings())
        for name, document in documents.items():
            say(f"schemathesis: {name}, seed {SEED}")
            attempts = _Attempts(party=owner, token=token, known=known, examples=examples)
            if name == OWN_DOCUMENT and alone:
                attempts.known = known | _accounts(attempts)
            asked = [label for label in ALONE if not alone]
            wanted = lambda label, left=asked: label not in left and chosen(label)  # noqa: E731
            findings.fuzzed[name] = list(_all(attempts, document, wanted))
        tell("curl", load("known_away"), {"": actor}, known, Findings())
    finally:
        actor.close()


def _accounts(attempts: _Attempts) -> dict[str, str]:
    """A project, a user and a key to be changed by invented requests: path parameter -> id. Needs an operator."""
    own = attempts.party.project_id
    with httpx.Client(base_url=attempts.party.endpoint, headers={"X-Auth-Token": attempts.token}) as http:

        def made(kind: str, name: str, body: Json) -> Json:
            answer = http.post(f"/ext/v1/admin/{kind}", json={name: body})
            answer.raise_for_status()
            created: Json = answer.json()[name]
            return created

        project = made("projects", "project", {"name": f"invented-{SEED}"})["id"]
        user = made("users", "user", {"name": f"invented-{SEED}", "password": f"Invented-{own}", "project_id": project})
        key = made("keys", "key", {"user_id": user["id"]})
    return {"project": project, "account_id": project, "user_id": user["id"], "access_key": key["access_key"]}


def _all(attempts: _Attempts, document: Json, chosen: Callable[[str], bool]) -> Iterator[Fuzzed]:
    import schemathesis

    schema = schemathesis.openapi.from_dict(_without_credentials(document))
    results: Iterator[Any] = schema.get_all_operations()
    for result in results:
        operation = result.ok()
        if not chosen(operation.label) or "text/event-stream" in str(operation.definition.raw):
            continue  # a stream of events ends when the client does
        attempts.sent = attempts.unrouted = attempts.done = attempts.unknown = 0
        fault = _first_fault(operation, attempts)
        if attempts.sent and attempts.sent == attempts.unrouted:
            fault = "the server has no such operation"
        if attempts.sent and attempts.sent == attempts.unknown and not operation.label.endswith("/auth/tokens"):
            fault = "no request had a token that counts"
        yield Fuzzed(
            operation=operation.label,
            requests=attempts.sent,
            done=attempts.done,
            unknown=attempts.unknown,
            fault=fault,
        )


def _without_credentials(document: Json) -> Json:
    """The document without the headers that say who asks: an invented token would be refused each time."""
    stripped = copy.deepcopy(document)
    for methods in stripped["paths"].values():
        for item in methods.values():
            if isinstance(item, dict) and "parameters" in item:
                item["parameters"] = [one for one in item["parameters"] if one.get("$ref") not in _HEADERS]
    return stripped


def _first_fault(operation: Any, attempts: _Attempts) -> str:
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    fixed = {"project_id": attempts.party.project_id, "api_version": "v3"}
    away = operation.method.upper() == "DELETE" or operation.label in AWAY
    places = [fixed] if away else [{**attempts.known, **fixed}, fixed]
    named = {parameter.name for parameter in operation.path_parameters}
    for place in places:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                _attempt(operation, mode, {n: v for n, v in place.items() if n in named}, attempts)
            except WrongAnswer as err:
                return str(err)
            except Unsatisfiable:
                continue  # there is no invalid request to an operation that takes nothing
    return ""


def _attempt(operation: Any, mode: Any, path: dict[str, str], attempts: _Attempts) -> None:
    """Raises WrongAnswer with the smallest request that shows the fault."""
    import hypothesis
    from schemathesis import checks
    from schemathesis.core.failures import FailureGroup

    wanted = [
        checks.not_a_server_error,
        *(checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance),
    ]

    @hypothesis.settings(
        max_examples=attempts.examples,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(SEED)
    @hypothesis.given(case=operation.as_strategy(mode, path_parameters=path))
    def attempt(case: Any) -> None:
        attempts.sent += 1
        response = case.call(base_url=attempts.party.endpoint, headers={"X-Auth-Token": attempts.token})
        attempts.done += 200 <= response.status_code < 300
        if response.status_code == 401:
            attempts.unknown += 1
            with httpx.Client(base_url=attempts.party.endpoint) as http:
                attempts.token = ask_token(http, attempts.party)
        if response.status_code in (404, 405) and not any(mark in response.content for mark in _SERVICE):
            attempts.unrouted += 1  # an id with a slash in it leads elsewhere; judged is what reaches the operation
            return
        try:
            case.validate_response(response, checks=wanted)
        except FailureGroup as group:
            first = " ".join(str(group.exceptions[0]).split())
            raise WrongAnswer(f"{first[:300]} -- {case.as_curl_command(base_url='')[:500]}") from None

    attempt()
