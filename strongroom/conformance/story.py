"""Stories: what a client asks, step by step, as data; and the one loop that tells them.

A story is a JSON file of steps. A step:

    do       what the client does: an operationId, `METHOD /path`, words of a command line, or the name of a call
    op       operationId, where `do` does not say it
    with     arguments: path, query, body of a request; positional and keyword arguments of a call
    expect   dotted path into the answer -> value; `"@absent"` and `"@present"` ask only that
    keep     variable -> dotted path into the answer, for later steps: `{vault}`
    error    status and code it must be refused with, `404 BackupService.6105`, or several with `|`; without: success
    may_refuse  true: a refusal in the right form is no fault
    until    as `expect`, or {"error": code}: the step is repeated until it holds
    by       "partner": done as the other tenant; "replica": done in the other region
    accepts  statuses that this client takes for success, where it takes fewer than the document has
    needs    variables it is untried without, beside those it names: `["{member}"]`
    why      what the step is there for

No step depends on another but by variables: after a fault the story goes on; a step without its variables is untried.
"""

import functools
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Protocol

from strongroom.conformance.contract import Json, operation_of
from strongroom.conformance.findings import Findings, in_scope

UNTIL_S = 60.0  # a backup of a small folder takes one second; a busy machine ten times that
POLL_S = 0.2
_VARIABLE = re.compile(r"\{(\w+)\}")


class UnknownVariableError(Exception):
    """A step needs what no earlier step has kept."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, its variables filled in. `label`: what it does as the story has it, for sentences."""

    do: str
    op: str
    label: str
    arguments: Json = field(default_factory=dict)
    expect: Json = field(default_factory=dict)
    keep: dict[str, str] = field(default_factory=dict)
    error: str = ""
    until: Json = field(default_factory=dict)
    may_refuse: bool = False
    by: str = ""
    accepts: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the client got: `body` as it sees it; when refused, `error` (status and code) and `refusal` (a sentence).

    missing  the server has no such operation; told by the exchange, not by the client
    faults   what the client itself found wrong
    """

    body: Any = None
    status: int = 0  # of a success, where the client tells it
    error: str = ""
    refusal: str = ""
    missing: bool = False
    faults: tuple[str, ...] = ()


class Actor(Protocol):
    """A client: carries out one step and says what it got. Judging the exchanges is not its business."""

    def perform(self, step: Step) -> Outcome: ...

    def close(self) -> None: ...


def load(name: str) -> list[Json]:
    """Steps of a story."""
    text = resources.files("strongroom.conformance").joinpath("stories", f"{name}.json").read_text()
    found: list[Json] = json.loads(text)["steps"]
    return found


def tell(
    client: str, steps: list[Json], actors: Mapping[str, Actor | None], variables: dict[str, str], findings: Findings
) -> dict[str, str]:
    """Carry out all steps that the client can make; returns the variables that were known in the end.

    `actors`: "" -> the owner, "partner" -> the other tenant, "replica" -> the owner in the other region.
    """
    kept = dict(variables)
    for row in steps:
        operation_id = _operation(row)
        if not in_scope(client, operation_id):
            continue
        try:
            step = _step(row, kept, operation_id)
        except UnknownVariableError as err:
            findings.untried(client, operation_id, f"nothing gave {{{err.name}}}")
            continue
        actor = actors.get(step.by)
        if actor is None:
            findings.untried(
                client, operation_id, f"it needs a {step.by} with the credentials that this client uses: --{step.by}"
            )
            continue
        outcome = _perform(actor, step)
        for sentence in _judged(step, outcome):
            findings.fault(client, operation_id, sentence)
        if step.may_refuse and outcome.refusal:
            findings.untried(client, operation_id, outcome.refusal)
        for name, path in step.keep.items():
            value = find(outcome.body, path)
            if value is not ABSENT and value is not None:
                kept[name] = value
    return kept


def _perform(actor: Actor, step: Step) -> Outcome:
    """Once, or until what is waited for has come."""
    outcome = actor.perform(step)
    deadline = time.monotonic() + UNTIL_S
    while step.until and not outcome.missing and not _reached(step, outcome) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        outcome = actor.perform(step)
    return outcome


def _reached(step: Step, outcome: Outcome) -> bool:
    wanted = step.until.get("error", "")
    if wanted or outcome.refusal:
        return outcome.error in wanted.split("|") and bool(wanted)
    return not list(_differences(step.until, outcome.body))


def _judged(step: Step, outcome: Outcome) -> list[str]:
    found = list(outcome.faults)
    if outcome.missing:
        return found
    wanted = step.error or step.until.get("error", "")
    if wanted:
        if outcome.error not in wanted.split("|"):
            got = outcome.refusal or "it succeeded"
            found.append(f"{step.label}: {wanted} was due, {got}")
        return found
    if step.accepts and outcome.status not in step.accepts and not outcome.refusal:
        found.append(f"{step.label}: the client takes {step.accepts} for success, and got {outcome.status}")
    if outcome.refusal:
        return found if step.may_refuse else [*found, f"{step.label}: {outcome.refusal}"]
    found += [f"{step.label}: {text}" for text in _differences({**step.expect, **step.until}, outcome.body)]
    return found


def _differences(wanted: Json, body: Any) -> list[str]:
    found = []
    for path, value in wanted.items():
        got = find(body, path)
        if value == "@absent":
            if got is not ABSENT:
                found.append(f"{path} is {_short(got)}, and should not be there")
        elif got is ABSENT:
            found.append(f"{path} is absent")
        elif value != "@present" and got != value:
            found.append(f"{path} is {_short(got)}, not {_short(value)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


ABSENT = object()


def find(body: Any, path: str) -> Any:
    """The value at a dotted path, `vaults.0.id`; `#` is the length of a list. ABSENT when it is not there.

    A key that has dots itself, as those of features, is found as a whole.
    """
    if isinstance(body, dict) and path in body:
        return body[path]
    for part in path.split(".") if path else ():
        if isinstance(body, list) and part == "#":
            body = len(body)
        elif isinstance(body, list) and part.isdigit() and int(part) < len(body):
            body = body[int(part)]
        elif isinstance(body, dict) and part in body:
            body = body[part]
        else:
            return ABSENT
    return body


def _operation(row: Json) -> str:
    """operationId of a step as written: its path's variables match as any value would."""
    if "op" in row:
        return str(row["op"])
    method, _, path = row["do"].partition(" ")
    return (operation_of(method, path) if path.startswith("/") else None) or str(row["do"])


def _step(row: Json, variables: Mapping[str, str], operation_id: str) -> Step:
    filled = fill({name: value for name, value in row.items() if name not in ("why", "op", "keep")}, variables)
    filled.pop("needs", None)
    if "with" in filled:
        filled["arguments"] = filled.pop("with")
    return replace(Step(do="", op=operation_id, label=row["do"], keep=row.get("keep", {})), **filled)


def fill(value: Any, variables: Mapping[str, str]) -> Any:
    """Put variables in, in texts and names of members. A text that is one variable becomes its value, of any type."""
    if isinstance(value, dict):
        return {fill(name, variables): fill(member, variables) for name, member in value.items()}
    if isinstance(value, list):
        return [fill(member, variables) for member in value]
    if not isinstance(value, str):
        return value
    for name in _variables(value):
        if name not in variables:
            raise UnknownVariableError(name)
        if value == f"{{{name}}}":
            return variables[name]
        value = value.replace(f"{{{name}}}", str(variables[name]))
    return value


@functools.lru_cache(maxsize=4096)
def _variables(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_VARIABLE.findall(text)))
