"""docs/RELIABILITY.md from the figures of the fault suites: `python -m bench.reliability FILE`.

FILE has a line of JSON for each suite that ended without a failure (tests/reliability.py). The newest figure of each
suite is kept in docs/reliability.json, with its seed and commit, and the table of the page is written from that.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "RELIABILITY.md"
FIGURES = ROOT / "docs" / "reliability.json"
BEGIN, END = "<!-- figures: written by bench.reliability -->", "<!-- end of figures -->"

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One row. promise: what never happens. counted: what the count is of. file: where the test is, below tests/."""

    promise: str
    counted: str
    file: str


STORE = "no silent success, no lost root: "
CALLS = "failing or last store calls"
KILLS = "processes that got SIGKILL"
FAULTS = {  # what is done, and the module that does it
    **{f"faults {verb}": (verb, "verbs") for verb in ("restore", "delete", "verify", "prune")},
    **{
        f"faults {way} {what}": (f"{way} backup of a {what}", "verbs")
        for way in ("first", "incremental", "full")
        for what in ("tree", "disk")
    },
    **{f"faults copy, {side}": (f"copy, at the {side}", "copy") for side in ("source", "receiver")},
    "faults rebuild": ("rebuild", "rebuild"),
}
PARSERS = (
    "pack footer", "compressed frame", "index object", "index list", "digest", "root", "labels", "directory records",
    "page of the stream", "content", "wrapped keys, plain", "wrapped keys, sealed", "sealed object", "key file",
    "changed blocks", "journal", "token",
)  # fmt: skip

SUITES: dict[str, Suite] = {
    **{
        name: Suite(promise=STORE + what, counted=CALLS, file=f"fault/test_{module}_fault.py")
        for name, (what, module) in FAULTS.items()
    },
    "chaos": Suite(
        promise="many processes, PostgreSQL and S3, something broken each second: nothing acknowledged is lost, no job "
        "is stuck, no firing lost or doubled",
        counted=KILLS,
        file="e2e/test_chaos.py",
    ),
    "files through an agent": Suite(
        promise="many small files of a host, over a line that is cut every 30 s: one attempt each way, all are back",
        counted="files",
        file="e2e/test_agent_many.py",
    ),
    "faults rotate": Suite(
        promise="every domain opens while the master key is rotated",
        counted=CALLS,
        file="fault/test_rotate_fault.py",
    ),
    "power cuts": Suite(
        promise="what was acknowledged survives a power cut", counted="cuts", file="fault/test_verbs_power_cut.py"
    ),
    "system calls": Suite(
        promise="an error of the kernel loses nothing", counted="failing calls", file="fault/test_verbs_io_errors.py"
    ),
    "kills": Suite(
        promise="a killed process loses nothing and is in nobody's way, nor one killed while it takes up its work",
        counted=KILLS,
        file="fault/test_verbs_killed.py",
    ),
    **{
        f"worker kills, {what}": Suite(
            promise=f"a worker killed at a trace point loses nothing, and its task ends after it: {what}",
            counted=KILLS,
            file=f"e2e/test_{module}.py",
        )
        for what, module in (
            ("backup and restore", "kill"),
            ("replication", "replication_kills"),
            ("migration", "move_killed"),
        )
    },
    "disk full": Suite(
        promise="a full disk loses nothing, and prune frees it",
        counted="writes of backups and prune that were the first without room",
        file="fault/test_disk_full.py",
    ),
    "disk full, real": Suite(
        promise="the same on a real file system", counted="sizes of free space", file="fault/test_disk_full.py"
    ),
    "damage": Suite(
        promise="damage is found, wrong bytes never come back",
        counted="damaged objects, in ten ways",
        file="fault/test_damage_counted.py",
    ),
    "histories": Suite(
        promise="whatever happens in whatever order, what was acknowledged comes back",
        counted="seeded histories",
        file="fault/test_histories.py",
    ),
    **{
        f"round trips of {what}": Suite(
            promise=f"random {what} come back as they were", counted="restores", file="fault/test_round_trips.py"
        )
        for what in ("trees", "disks", "folders")
    },
    "confinement corpus": Suite(
        promise="no hostile tree is written outside", counted="hostile restores", file="fault/test_confinement.py"
    ),
    "confinement under attack": Suite(
        promise="no swapped link leads a restore out", counted="restores under attack", file="fault/test_confinement.py"
    ),
    "hostile requests": Suite(
        promise="no request breaks the server, and none that is refused leaves a row",
        counted="requests over every operation",
        file="e2e/test_hostile.py",
    ),
    "foreign ids": Suite(
        promise="an id of another tenant is an id of nobody",
        counted="pairs of requests, with a foreign id and with one that nobody has",
        file="e2e/test_tenants.py",
    ),
    **{
        f"fuzz {name}": Suite(
            promise=f"{name}: a documented error or a usable value",
            counted="hostile inputs",
            file="fuzz/test_fuzz_parsers.py",
        )
        for name in PARSERS
    },
}


def merged(figures: Figures, lines: str) -> Figures:
    """Figures with those of a run; several lines of one suite are added up. Raises KeyError for an unknown suite."""
    fresh: Figures = {}
    for line in filter(None, lines.splitlines()):
        found = json.loads(line)
        name = found.pop("suite")
        SUITES[name]
        if name not in fresh:
            fresh[name] = found
            continue
        for key, value in found.items():
            if key in ("seed", "at", "commit") or not isinstance(value, int):
                fresh[name][key] = value
            else:
                fresh[name][key] = fresh[name].get(key, 0) + value
    return {name: {**figures, **fresh}[name] for name in SUITES if name in figures or name in fresh}


def table(figures: Figures) -> str:
    """The rows in the order of SUITES, and the sum of what was killed."""
    columns = "promise", "counted", "count", "other figures", "seed", "commit, date", "suite"
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, suite in SUITES.items():
        found = dict(figures.get(name, {}))
        if not found:
            rows.append(f"| {suite.promise} | {suite.counted} | not run yet | | | | `{suite.file}` |")
            continue
        count, seed, commit, at = (found.pop(key) for key in ("count", "seed", "commit", "at"))
        others = ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in found.items())
        made = f"{shown(count)} | {others} | {seed} | {commit}, {at}"
        rows.append(f"| {suite.promise} | {suite.counted} | {made} | `{suite.file}` |")
    killed = sum(figures[name]["count"] for name, suite in SUITES.items() if suite.counted == KILLS and name in figures)
    return "\n".join([*rows, "", f"SIGKILLs in all suites together: {shown(killed)}."])


def shown(value: object) -> str:
    """12 345 for a whole number, else as it is."""
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)


def page(text: str, figures: Figures) -> str:
    """The page with the table of these figures."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table(figures)}\n\n{END}{tail}"


def main(arguments: list[str]) -> None:
    figures: Figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    lines = "\n".join(Path(name).read_text() for name in arguments)
    figures = merged(figures, lines)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), figures))


if __name__ == "__main__":
    main(sys.argv[1:])
