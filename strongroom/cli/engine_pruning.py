"""`strongroom engine prune`: free what no backup needs, in every domain of a repository in a folder.

    engine prune REPO [--dry-run]

Options and exit codes as in docs/CLI.md; parsed by engine.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from strongroom.base.streams import Monitor
from strongroom.base.units import human_bytes
from strongroom.cli.engine_domains import summed
from strongroom.cli.errors import EXIT_OK, EXIT_PARTLY_DONE

if TYPE_CHECKING:
    from strongroom.engine import Repository
    from strongroom.engine.prune_plan import PrunePlan

Outcome = tuple[int, Mapping[str, object], list[str]]  # exit code, summary, lines for people


def run_prune(opened: Sequence["Repository"], monitor: Monitor) -> Outcome:
    """`opened`: all domains of the repository."""
    from strongroom.engine.prune import prune

    reports = [asdict(prune(repository, dead=(), monitor=monitor)) for repository in opened]
    postponed = " ".join(report.pop("postponed") for report in reports).strip()
    total = summed(reports)
    text = (
        f"Freed {human_bytes(total['bytes_freed'])}, moved {human_bytes(total['bytes_moved'])}, "
        f"{human_bytes(total['live_bytes'])} are needed. {postponed}"
    )
    return EXIT_PARTLY_DONE if postponed else EXIT_OK, {**total, "postponed": postponed}, [text.rstrip()]


def run_plan(opened: Sequence["Repository"], monitor: Monitor) -> Outcome:
    """What a prune would do; nothing is changed."""
    from strongroom.engine.prune import plan

    plans = [plan(repository, dead=(), monitor=monitor) for repository in opened]
    summary = summed([_values(found) for found in plans])
    return EXIT_OK, {"dry_run": True, **summary}, [line for found in plans for line in _lines(found)]


def _lines(found: "PrunePlan") -> list[str]:
    """One line a pack that does not stay: what becomes of it, its size, its name and why."""
    lines = [
        f"{d.action:8} {human_bytes(d.pack.size or 0):>10}  {d.pack.id.hex()}  {d.reason}" for d in found.decisions
    ]
    lines.append(
        f"{found.packs} packs hold {human_bytes(found.stored_bytes)}, of which {human_bytes(found.live_bytes)} are "
        f"needed. A prune would free {human_bytes(found.bytes_freed)} and move {human_bytes(found.bytes_moved)}."
    )
    return lines


def _values(found: "PrunePlan") -> dict[str, object]:
    return {
        "packs": found.packs,
        "stored_bytes": found.stored_bytes,
        "live_bytes": found.live_bytes,
        "bytes_freed": found.bytes_freed,
        "bytes_moved": found.bytes_moved,
        "decisions": [
            {"pack": d.pack.id.hex(), "action": d.action, "reason": d.reason, "size": d.pack.size, "live": d.pack.live}
            for d in found.decisions
        ],
    }
