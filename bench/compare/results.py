"""What a run wrote down, and the figures that are taken from it. Pure.

The file is JSON Lines: first the run (machine, versions, data), then one row a step:
{repetition, set, program, step, wall_s, cpu_s, system_s, rss_bytes, code, ok, stored_bytes, stored_files, load, equal}

A ratio is taken inside one repetition, between neighbours in time; then the median of these ratios counts. So a machine
that is slower for an hour slows both sides of every ratio.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

STEPS = ("first", "same", "changed", "restore")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One step of one program in one repetition. `equal`: what was restored is the source; None: not a restore."""

    repetition: int
    set: str
    program: str
    step: str
    wall_s: float
    cpu_s: float
    system_s: float
    rss_bytes: int
    code: int
    ok: bool
    stored_bytes: int
    stored_files: int
    load: float
    equal: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and extremes of `count` values."""

    median: float
    low: float
    high: float
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """One run: what is said of it (run), and its rows."""

    run: Mapping[str, Any]
    rows: tuple[Row, ...]

    def sets(self) -> list[str]:
        """Names of the data sets, in order of the run."""
        return list(dict.fromkeys(row.set for row in self.rows))

    def programs(self, set_: str) -> list[str]:
        """Names of the programs that ran on it, in the order they were given."""
        ran = {row.program for row in self.rows if row.set == set_}
        return [name for name in self.run["programs"] if name in ran]


# One figure of one program on one data set in one repetition; None when a step of it is missing or failed.
Figure = Callable[[Mapping[str, Row]], float | None]


def parse(lines: Iterable[str]) -> Results:
    """The results in the lines of a file."""
    first, *rest = (json.loads(line) for line in lines if line.strip())
    return Results(run=first, rows=tuple(Row(**row) for row in rest))


def take(step: str, field: str) -> Figure:
    """A field of one step."""
    return lambda steps: float(getattr(steps[step], field)) if step in steps else None


def peak(steps: Mapping[str, Row]) -> float | None:
    """The largest resident set of all steps."""
    return float(max(row.rss_bytes for row in steps.values())) if len(steps) == len(STEPS) else None


def values(results: Results, set_: str, program: str, figure: Figure) -> dict[int, float]:
    """Repetition -> figure; only where it could be taken."""
    steps: dict[int, dict[str, Row]] = {}
    for row in results.rows:
        if (row.set, row.program) == (set_, program) and row.ok:
            steps.setdefault(row.repetition, {})[row.step] = row
    found = {repetition: figure(rows) for repetition, rows in steps.items()}
    return {repetition: value for repetition, value in found.items() if value is not None}


def spread(numbers: Iterable[float]) -> Spread | None:
    """None of nothing."""
    known = list(numbers)
    if not known:
        return None
    return Spread(median=statistics.median(known), low=min(known), high=max(known), count=len(known))


def ratio(results: Results, set_: str, program: str, base: str, figure: Figure) -> Spread | None:
    """Of the ratios program : base inside each repetition. None when no repetition has both."""
    ours, theirs = (values(results, set_, name, figure) for name in (program, base))
    return spread(ours[key] / theirs[key] for key in ours if theirs.get(key))
