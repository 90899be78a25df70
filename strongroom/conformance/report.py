"""The findings for people and for programs: one row an operation, one column a client."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from strongroom.conformance.contract import operations
from strongroom.conformance.findings import Findings, Verdict
from strongroom.conformance.run import CLIENTS

Row = tuple[str, dict[str, Verdict]]

NOT_CALLED = "-"  # the client has no such call


def rows(findings: Findings, clients: list[str]) -> list[Row]:
    """(operationId, client -> verdict), in the order of the document."""
    found: dict[str, dict[str, Verdict]] = {operation_id: {} for operation_id in operations()}
    for client, operation_id, verdict, _ in findings.cells(clients):
        found[operation_id][client] = verdict
    return list(found.items())


def totals(findings: Findings, clients: list[str]) -> dict[str, Counter[str]]:
    """client -> how many cells of each verdict."""
    found: dict[str, Counter[str]] = {client: Counter() for client in clients}
    for client, _, verdict, _ in findings.cells(clients):
        found[client][verdict] += 1
    return found


def as_json(findings: Findings, clients: list[str]) -> dict[str, Any]:
    """Everything, for a program."""
    return {
        "cells": [
            {"client": client, "operation": operation_id, "verdict": verdict, "reasons": reasons}
            for client, operation_id, verdict, reasons in findings.cells(clients)
        ],
        "totals": {client: dict(counts) for client, counts in totals(findings, clients).items()},
        "absent_clients": findings.absent_clients,
        "fuzzed": {name: [asdict(row) for row in done] for name, done in findings.fuzzed.items()},
        "unknown_to_document": _sorted(findings.extra),
        "unknown_to_sdk": _sorted(findings.unknown),
    }


def markdown(findings: Findings, clients: list[str], facts: dict[str, str]) -> str:
    """The page that docs/CONFORMANCE.md is. `facts`: what was run, against what."""
    ran = [client for client in clients if client not in findings.absent_clients]
    lines = [
        "# Conformance",
        "",
        "What real clients meet at each operation of the CBR v3 API. Made by `make conformance` from a run against a",
        "real server; `strongroom conformance --endpoint URL` does the same against any other ([CLI.md](CLI.md)).",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "Every answer to every client is judged by the published document (`strongroom/api/openapi.json`): status,",
        "schema, members that must be there or must not be null, times, error envelope and code. The SDK's answers are",
        "also compared with the types that its models declare, value by value.",
        "",
        "| client | what it is | ok | explained | fails | missing | refused | untried |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for client, counts in totals(findings, ran).items():
        numbers = (str(counts[name]) for name in ("ok", "explained", "fails", "missing", "refused", "untried"))
        lines.append(f"| {client} | {CLIENTS[client]} | {' | '.join(numbers)} |")
    lines += [f"\n{client} did not run: {reason}." for client, reason in findings.absent_clients.items()]
    notes: list[str] = []
    lines += ["", f"| operation | {' | '.join(ran)} |", f"|---|{'---|' * len(ran)}"]
    for operation_id, verdicts in rows(findings, ran):
        cells = (_cell(findings, client, operation_id, verdicts.get(client), notes) for client in ran)
        lines.append(f"| {operation_id} | {' | '.join(cells)} |")
    lines += ["", f"`{NOT_CALLED}`: the client has no such call. A number leads to its note.", ""]
    lines += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    lines += _fuzzed(findings)
    lines += _listing("Members beyond the document", "Harmless to every client.", findings.extra)
    lines += _listing("Members that the SDK's models do not have", "The SDK drops them.", findings.unknown)
    return "\n".join(lines).rstrip() + "\n"


def _cell(findings: Findings, client: str, operation_id: str, verdict: Verdict | None, notes: list[str]) -> str:
    if verdict is None:
        return NOT_CALLED
    if verdict == "ok":
        return "ok"
    note = "; ".join(findings.verdict(client, operation_id)[1]).replace("\n", " ")
    if note not in notes:
        notes.append(note)
    return f"{verdict if verdict == 'explained' else f'**{verdict}**'} ({notes.index(note) + 1})"


def _fuzzed(findings: Findings) -> list[str]:
    if not findings.fuzzed:
        return []
    found = [
        "",
        "## Invented requests",
        "",
        "Schemathesis, valid and invalid requests for every operation of a document.",
        "",
    ]
    found += [
        "| document | operations | with an answer 2xx | requests | answered 2xx | faults |",
        "|---|---|---|---|---|---|",
    ]
    for name, done in findings.fuzzed.items():
        faults = sum(bool(row.fault) for row in done)
        requests, reached = sum(row.requests for row in done), sum(row.done for row in done)
        found.append(
            f"| `{name}` | {len(done)} | {sum(bool(row.done) for row in done)} | {requests} | {reached} | {faults} |"
        )
    return found + [
        line
        for done in findings.fuzzed.values()
        for row in done
        if row.fault
        for line in ("", f"{row.operation}: {row.fault}")
    ]


def _listing(title: str, text: str, members: dict[str, set[str]]) -> list[str]:
    shared: dict[tuple[str, ...], list[str]] = {}
    for operation_id, names in _sorted(members).items():
        if names:
            shared.setdefault(tuple(names), []).append(operation_id)
    if not shared:
        return []
    found = ["", f"## {title}", "", text, ""]
    return found + [f"- {', '.join(where)}: {', '.join(f'`{n}`' for n in names)}" for names, where in shared.items()]


def _sorted(members: dict[str, set[str]]) -> dict[str, list[str]]:
    return {operation_id: sorted(names) for operation_id, names in sorted(members.items()) if names}
