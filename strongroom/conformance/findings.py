"""What came of it: one cell for each operation and client, with every fault that was seen.

ok         answered, and every answer was right
fails      an answer was wrong, or the client stumbled; the faults say how
missing    the server has no such operation
refused    the server has it and refuses what the client asks, in the right form
untried    the client never got there
explained  one of the four above, with a reason in stories/explained.json
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from strongroom.conformance.contract import Exchange, faults, operation_of, operations, unknown_members

Verdict = Literal["ok", "fails", "missing", "refused", "untried", "explained"]

FAULTS_KEPT = 20  # of one cell: the first ones say it; a list of a thousand rows repeats itself a thousand times


@dataclass(kw_only=True)
class Cell:
    """What one client met at one operation."""

    exchanges: int = 0
    successes: int = 0
    missing: bool = False
    faults: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)

    def verdict(self) -> tuple[Verdict, list[str]]:
        """The bare verdict, before anything is explained, and its reasons."""
        if self.faults:
            return "fails", self.faults
        if self.missing:
            return "missing", ["the server has no such operation"]
        if self.successes:
            return "ok", []
        if self.exchanges:
            return "refused", self.refusals or ["only refusals were seen"]
        return "untried", self.untried or ["no step of the story asks for it"]


@dataclass(frozen=True, kw_only=True)
class Fuzzed:
    """Invented requests to one operation: how many, and the first fault with the request that shows it.

    done     answered 2xx: those that reached past every check
    unknown  answered 401: those that asked nothing of the operation, because the token was not taken
    """

    operation: str
    requests: int
    done: int
    unknown: int
    fault: str


class Findings:
    """Collects exchanges, faults and gaps of all clients."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], Cell] = {}
        self.extra: dict[str, set[str]] = {}  # operationId -> members that the document does not name
        self.unknown: dict[str, set[str]] = {}  # operationId -> members that the SDK's models do not have
        self.fuzzed: dict[str, list[Fuzzed]] = {}  # document -> one row an operation
        self.absent_clients: dict[str, str] = {}  # client -> why it did not run

    def cell(self, client: str, operation_id: str) -> Cell:
        """The cell, made when it is first asked for."""
        return self._cells.setdefault((client, operation_id), Cell())

    def exchange(self, client: str, exchange: Exchange) -> str | None:
        """Judge one exchange of a client; its operation, or None for calls that are not of the document."""
        operation_id = operation_of(exchange.method, exchange.path)
        if operation_id is None or not in_scope(client, operation_id):
            return None
        cell = self.cell(client, operation_id)
        cell.exchanges += 1
        if exchange.unknown_path:
            cell.missing = True
            return operation_id
        for sentence in faults(operation_id, exchange):
            self.fault(client, operation_id, sentence)
        if exchange.status in operations()[operation_id].success:
            cell.successes += 1
            self.extra.setdefault(operation_id, set()).update(unknown_members(operation_id, exchange))
        elif exchange.status >= 400:
            text = str(exchange.body.get("error_msg", "")) if isinstance(exchange.body, dict) else ""
            cell.refusals = [f"{exchange.status} {exchange.error_code}: {text}"]
        return operation_id

    def fault(self, client: str, operation_id: str, sentence: str) -> None:
        """Something is wrong; told once a cell."""
        known = self.cell(client, operation_id).faults
        if sentence not in known and len(known) < FAULTS_KEPT:
            known.append(sentence)

    def untried(self, client: str, operation_id: str, reason: str) -> None:
        """A step could not be made."""
        known = self.cell(client, operation_id).untried
        if reason not in known:
            known.append(reason)

    def verdict(self, client: str, operation_id: str) -> tuple[Verdict, list[str]]:
        """The verdict of a cell with its reasons; of an explained one, the explanation."""
        cell = self._cells.get((client, operation_id), Cell())
        verdict, reasons = cell.verdict()
        if verdict == "ok":
            return verdict, reasons
        for entry in _explained():
            if (
                client in entry["clients"]
                and operation_id in entry["operations"]
                and verdict == entry["verdict"]
                and all(any(part in reason for part in entry.get("reasons", [""])) for reason in reasons)
            ):
                return "explained", [entry["why"]]
        return verdict, reasons

    def cells(self, clients: list[str]) -> Iterator[tuple[str, str, Verdict, list[str]]]:
        """(client, operationId, verdict, reasons) of each cell that a client should have, in the document's order."""
        for operation_id in operations():
            for client in clients:
                if in_scope(client, operation_id) and client not in self.absent_clients:
                    yield client, operation_id, *self.verdict(client, operation_id)


def in_scope(client: str, operation_id: str) -> bool:
    """Whether a client calls an operation at all. `curl` stands for everybody, and calls all of them."""
    operation = operations()[operation_id]
    if client == "curl":
        return True
    if client in ("openstack", "conn.cbr"):
        return operation_id in _only(client)
    return client in operation.clients


@functools.cache
def _only(client: str) -> frozenset[str]:
    """Operations of the two clients that the document counts as one, otcextensions."""
    text = resources.files("strongroom.conformance").joinpath("stories", f"{client}.json").read_text()
    return frozenset(json.loads(text)["operations"])


@functools.cache
def _explained() -> list[dict[str, Any]]:
    text = resources.files("strongroom.conformance").joinpath("stories", "explained.json").read_text()
    found: list[dict[str, Any]] = json.loads(text)
    return found
