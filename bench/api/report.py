"""docs/benchmarks/api.md from the figures of a run. What was learned on the way is written by hand below a heading."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.api.load import Load

BY_HAND = "## What each step gave"  # what stands from here on is kept
OF_MINIMAL_MIN = 0.8  # issue 4
OF_ORM_MIN = 2.0  # issue 4
DEPTH_MAX = 1.25  # the slowest depth of a list beside the fastest; more than the noise of one run
CREATE_S_MAX = 0.1  # issue 4, p99

NAMES = {
    "token": "strongroom, token",
    "signature": "strongroom, access key",
    "minimal": "Starlette by hand",
    "orm": "FastAPI + SQLAlchemy",
}


@dataclass(kw_only=True)
class Figures:
    """Everything that was measured.

    reads     name of the server -> one Load a round      lists   name of the list -> depth -> one Load a round
    counts    what was counted -> seconds                 creates seconds of one request each
    """

    points: int
    backups: int
    command: str
    machine: str
    load_before: float = 0.0
    reads: dict[str, list[Load]] = field(default_factory=dict)
    lists: dict[str, dict[str, list[Load]]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    filters: dict[str, float] = field(default_factory=dict)
    creates: list[float] = field(default_factory=list)
    create_resources: int = 0

    def ratio(self, one: str, other: str) -> float:
        """How many times as many requests a second `one` answers: taken in each round, the median counts."""
        return statistics.median(a.rate / b.rate for a, b in zip(self.reads[one], self.reads[other], strict=True))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def _reads(figures: Figures) -> list[str]:
    text = [
        "## GET checkpoint",
        "",
        "| server | requests/s | of Starlette by hand | of FastAPI | CPU µs | PostgreSQL's | p50 ms | p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, loads in figures.reads.items():
        rates = [load.rate for load in loads]
        latencies = [one for load in loads for one in load.latencies_s]
        against = [f"{figures.ratio(name, peer):.2f}" if peer in figures.reads else "" for peer in ("minimal", "orm")]
        text.append(
            f"| {NAMES.get(name, name)} | {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) "
            f"| {against[0]} | {against[1]} "
            f"| {statistics.median(load.cpu_s / load.requests for load in loads) * 1e6:.0f} "
            f"| {statistics.median(load.database_cpu_s / load.requests for load in loads) * 1e6:.0f} "
            f"| {quantile(latencies, 0.5) * 1e3:.1f} | {quantile(latencies, 0.99) * 1e3:.1f} |"
        )
    return text


def _lists(figures: Figures) -> list[str]:
    text = [
        "",
        "## Lists of 50, by marker",
        "",
        "One client, one request at a time; the median of a request in ms.",
        "",
        "| list | first page | middle | last page | slowest of fastest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, depths in figures.lists.items():
        medians = depth_medians(depths)
        text.append(
            f"| {name} | {' | '.join(f'{seconds * 1e3:.2f}' for seconds in medians)} "
            f"| {max(medians) / min(medians):.2f} |"
        )
    text += ["", "| the count of a list | ms |", "| --- | --- |"]
    return [*text, *(f"| {name} | {seconds * 1e3:.2f} |" for name, seconds in figures.counts.items())]


def depth_medians(depths: dict[str, list[Load]]) -> list[float]:
    """Seconds of one request at each depth: the median of the rounds' medians."""
    return [
        statistics.median(statistics.median(load.latencies_s) for load in depths[depth])
        for depth in ("first", "middle", "last")
    ]


def _filters(figures: Figures) -> list[str]:
    if not figures.filters:
        return []
    return [
        "",
        "## Filters and orders of the list of backups",
        "",
        "The first page of 50, with the count of all that match; one request at a time.",
        "",
        "| asked for | ms |",
        "| --- | --- |",
        *(f"| {name} | {seconds * 1e3:,.1f} |" for name, seconds in figures.filters.items()),
    ]


def _creates(figures: Figures) -> list[str]:
    if not figures.creates:
        return []
    middle, late = quantile(figures.creates, 0.5), quantile(figures.creates, 0.99)
    return [
        "",
        "## POST checkpoint",
        "",
        f"{len(figures.creates)} requests, one after the other, each for a vault of {figures.create_resources} "
        f"resources: p50 {middle * 1e3:.0f} ms, p99 {late * 1e3:.0f} ms, slowest {max(figures.creates) * 1e3:.0f} ms.",
    ]


def render(figures: Figures) -> str:
    """The page, down to what is written by hand."""
    head = [
        "# Speed of the API",
        "",
        f"Made by `{figures.command}` on {figures.machine}: {figures.points:,} restore points with {figures.backups:,} "
        "backups in one project,",
        "on the PostgreSQL that the product starts, with its settings (but for the number of connections), warm. All "
        "servers run at once and are asked in turns, 16 connections;",
        "ratios are taken inside a round, and their median counts. Load average before: "
        f"{figures.load_before:.1f}; walls are as good as that is low.",
        "",
        "strongroom is the real `strongroom serve` with the credentials that a client has, its log written to a file. "
        "*Starlette by hand*",
        "(`bench/api/minimal.py`) is one handler with the same prepared statement, pool and encoder, which checks and "
        "logs nothing;",
        "*FastAPI + SQLAlchemy* (`bench/api/orm.py`) has mapped classes and response models, checks and logs nothing.",
        "All answer the same JSON, compared before the run. uvicorn, uvloop and httptools are the same in all.",
        "",
    ]
    return "\n".join([*head, *_reads(figures), *_lists(figures), *_filters(figures), *_creates(figures)]) + "\n"


def write(figures: Figures, page: Path) -> str:
    """Write the page, keep what stands there by hand, and return what was written anew."""
    new = render(figures)
    old = page.read_text() if page.exists() else ""
    by_hand = old[old.index(BY_HAND) :] if BY_HAND in old else ""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{new}\n{by_hand}" if by_hand else new)
    return new


def misses(figures: Figures) -> list[str]:
    """Which promises were missed, in words."""
    found = []
    for name in ("token", "signature"):
        for peer, least in (("minimal", OF_MINIMAL_MIN), ("orm", OF_ORM_MIN)):
            if peer in figures.reads and figures.ratio(name, peer) < least:
                found.append(f"{NAMES[name]}: {figures.ratio(name, peer):.2f} of {NAMES[peer]}, promised is {least}")
    for name, depths in figures.lists.items():
        medians = depth_medians(depths)
        if max(medians) > DEPTH_MAX * min(medians):
            found.append(f"the list of {name} costs {max(medians) / min(medians):.2f} times as much at some depth")
    if figures.creates and quantile(figures.creates, 0.99) > CREATE_S_MAX:
        found.append(f"creating a checkpoint took {quantile(figures.creates, 0.99) * 1e3:.0f} ms at p99")
    return found
