"""A model of an installation that no machine here could hold: 1 000 workers, 10 PB, 10^9 restore points.

Three small parts, each checked against what was measured before it is believed:

    cost of a step   a + b log10(rows), by least squares, or in proportion where all rows are looked at; the row of the
                     largest catalogue is predicted from the others
    workers          mean value analysis of a closed queue: cores that are shared, and waiting that is not (round trips,
                     fsyncs); the rows of four workers are predicted from those of one and two
    a day            second by second: what falls due, who is free, what PostgreSQL is asked for and by whom

Everything here is arithmetic on growth.json; `ASSUMED` is what was not measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from strongroom.operations import turns, worker

DAY_S = 86400
WORKERS, POINTS = 1000, 1e9
CONNECTIONS_BESIDE = 3  # of a worker: two of its health and sign of life, one that listens
LOOK_BEFORE_MS = 4.5  # of a look in vain while each planned the walk over all tenants; median of twelve
PROPORTIONAL = {"metrics"}  # looks at every vault and resource
CONCURRENCY = 2  # of the workers that were measured
ASSUMED = {
    "days a restore point is kept": 365,
    "hours in which all of a day's runs fall due": 8,
    "cores of PostgreSQL": 32,
    "seconds of a backup on its worker": 30,
    "tasks at once of a worker": 4,
    "GiB of memory of PostgreSQL": 256,
    "connections of PostgreSQL": 1000,
    "PB in the store": 10,
    "vaults": 100_000,
}


# --- cost of a step ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """y = a + b log10(x)."""

    a: float
    b: float

    def at(self, x: float) -> float:
        return self.a + self.b * math.log10(x)


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """Least squares; one point is a constant."""
    xs = [math.log10(x) for x, _ in points]
    ys = [y for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    b = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
    return Line(a=mean_y - b * mean_x, b=b)


def predict_largest(catalogues: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """step -> (predicted, measured) ms at the largest size, from all smaller ones; and bytes of the database."""
    *smaller, largest = sorted(catalogues, key=lambda row: row["points"])
    found = {}
    for step, cost in largest["steps"].items():
        line = fit([(row["points"], row["steps"][step]["p50"]) for row in smaller])
        found[step] = line.at(largest["points"]), cost["p50"]
        if step in PROPORTIONAL:
            last = smaller[-1]
            found[step] = last["steps"][step]["p50"] * largest["points"] / last["points"], cost["p50"]
    whole = "(the whole database)"
    each = smaller[-1]["tables"][whole]["table_bytes"] / smaller[-1]["points"]
    found["MiB of the database"] = (
        each * largest["points"] / 2**20,
        largest["tables"][whole]["table_bytes"] / 2**20,
    )
    seconds = smaller[-1]["copy"]["seconds"] / smaller[-1]["points"]
    found["seconds of its copy"] = seconds * largest["points"], largest["copy"]["seconds"]
    return found


# --- workers ----------------------------------------------------------------------------------------------------------


def throughput(jobs: int, demand_s: float, cores: int, delay_s: float) -> float:
    """Tasks a second of so many threads, each task `demand_s` of CPU on shared cores and `delay_s` of waiting.

    Exact mean value analysis of one queue; several cores are one that is as fast, and the rest is delay (Seidmann).
    """
    fast_s = demand_s / cores
    delay_s += demand_s * (cores - 1) / cores
    queue = 0.0
    rate = 0.0
    for n in range(1, jobs + 1):
        response_s = fast_s * (1 + queue)
        rate = n / (delay_s + response_s)
        queue = rate * response_s
    return rate


def predict_four(rows: Sequence[Mapping[str, Any]], cores: int) -> list[dict[str, float]]:
    """For each distance: the rate of four workers, from a task's CPU and the wait that one and two workers show."""
    found = []
    for rtt in sorted({row["rtt_ms"] for row in rows}):
        of = {row["workers"]: row for row in rows if row["rtt_ms"] == rtt}
        if not {1, 2, 4} <= of.keys():
            continue
        demand = sum(_cpu(of[n]) for n in (1, 2)) / 2
        delay = min(
            (step / 200 for step in range(2000)),
            key=lambda d: sum(
                (throughput(n * CONCURRENCY, demand, cores, d) / of[n]["tasks_s"] - 1) ** 2 for n in (1, 2)
            ),
        )
        predicted = throughput(4 * CONCURRENCY, demand, cores, delay)
        found.append({"rtt_ms": rtt, "cpu_s": demand, "wait_s": delay, "predicted": predicted,
                      "measured": of[4]["tasks_s"]})  # fmt: skip
    return found


def _cpu(row: Mapping[str, Any]) -> float:
    return float(row["worker_cpu_s"] + row["postgres_cpu_s"] + row["store_cpu_s"])


# --- a day ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Large:
    """An installation. Milliseconds are of PostgreSQL's cores; a task is one backup of one resource.

    turn_s      a look for a new task comes within so many seconds, drawn evenly, for each worker without work;
                0: at once, and all of them for each task
    slower      so much less often a worker does what any may do
    """

    workers: int
    points: float
    task_ms: float
    look_ms: float
    tickers_ms: float
    turn_s: float = 0.0
    slower: float = 1.0
    poll_s: float = turns.POLL_S
    ticker_s: float = worker.FIRE_S

    @property
    def tasks_a_day(self) -> float:
        return self.points / ASSUMED["days a restore point is kept"]


@dataclass(frozen=True, kw_only=True)
class Day:
    """What a simulated day showed. cores: of PostgreSQL, at the worst second, by whom they are asked for."""

    cores: Mapping[str, float]
    longest_queue: float
    late_h: float


def simulate(large: Large) -> Day:
    """Second by second. PostgreSQL gives what it has: what is asked in vain is paid first, tasks get the rest."""
    window_s = int(ASSUMED["hours in which all of a day's runs fall due"] * 3600)
    due = large.tasks_a_day / window_s
    places = large.workers * ASSUMED["tasks at once of a worker"]
    each_s, budget = ASSUMED["seconds of a backup on its worker"], float(ASSUMED["cores of PostgreSQL"])
    queue = running = longest = 0.0
    worst: dict[str, float] = {}
    for second in range(2 * DAY_S):
        made = due if second < window_s else 0.0
        queue += made
        idle = large.workers * max(0.0, 1 - running / places)
        asked = {
            "looks at intervals": idle / large.poll_s * large.look_ms / 1000,
            "looks of woken workers": idle * _looks(made, large.turn_s * large.workers) * large.look_ms / 1000,
            "tickers": large.workers / large.ticker_s / large.slower * large.tickers_ms / 1000,
        }
        left = max(0.0, budget - sum(asked.values()))
        running -= running / each_s
        begun = min(queue, places - running, left / (large.task_ms / 1000))
        queue, running = queue - begun, running + begun
        asked["tasks"] = begun * large.task_ms / 1000
        longest = max(longest, queue)
        if sum(asked.values()) > sum(worst.values()):
            worst = asked
        if second >= window_s and queue < 1:
            break
    return Day(cores=worst, longest_queue=longest, late_h=max(0.0, (second - window_s) / 3600))


def _looks(made: float, turns_s: float) -> float:
    """Of one worker a second: it waits for a task, then for its turn, and then finds all that came meanwhile."""
    return 1 / (1 / made + min(turns_s, turns.POLL_S) / 2) if made else 0.0


def large_of(growth: Mapping[str, Any]) -> Large:
    """1 000 workers and 10^9 restore points, with the costs that were measured for the largest catalogue."""
    largest = max(growth["catalogues"], key=lambda row: row["points"])
    near = [row for row in growth["workers"] if row["rtt_ms"] == 0]
    return Large(
        workers=WORKERS,
        points=POINTS,
        task_ms=1000 * sum(row["postgres_cpu_s"] for row in near) / len(near),
        look_ms=largest["steps"]["idle look for a task"]["p50"],
        tickers_ms=largest["steps"]["idle tickers, one round"]["p50"],
    )


def variants(large: Large) -> dict[str, Large]:
    """As it is, and as it was."""
    turned = replace(large, turn_s=turns.TURN_S)
    many = large.workers / turns.TICKERS
    return {
        "before a look was one question": replace(large, look_ms=LOOK_BEFORE_MS),
        "before workers looked in turns": large,
        "before few of them ticked for all": turned,
        "as it is": replace(turned, slower=min(many, turns.SLOWER_MAX)),
    }


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What ends where, counted in `unit`, and what is done then."""

    what: str
    at: float
    unit: str
    then: str


def limits(growth: Mapping[str, Any]) -> list[Limit]:
    """Where tables and connections end, from the rows of the largest catalogue; those that end first, first."""
    largest = max(growth["catalogues"], key=lambda row: row["points"])
    points, tables = largest["points"], largest["tables"]
    indexes = sum(row["index_bytes"] for row in tables.values()) / points
    found = [
        Limit(
            what="workers at work want more connections than PostgreSQL has",
            at=ASSUMED["connections of PostgreSQL"]
            / (ASSUMED["tasks at once of a worker"] + worker.CONNECTIONS_EXTRA + CONNECTIONS_BESIDE),
            unit="workers",
            then="PgBouncer in transaction mode, `database_direct_url` beside it for those that listen",
        ),
        Limit(
            what="the indexes are larger than PostgreSQL's memory",
            at=ASSUMED["GiB of memory of PostgreSQL"] * 2**30 / indexes,
            unit="restore points",
            then="partition `backups`, `checkpoints` and their rows by a hash of the project: a night touches what is "
            "new of each part, and old leaves stay on disk; then PostgreSQLs of their own for groups of projects",
        ),
        Limit(
            what="a copy of the database takes more than a day",
            at=DAY_S / (largest["copy"]["seconds"] / points),
            unit="restore points",
            then="`self_backup_hours = 0` and PostgreSQL's own archive; `rebuild` still needs nothing but the store",
        ),
        Limit(
            what="one look of `/metrics` takes 10 s",
            at=10_000 / (largest["steps"]["metrics"]["p50"] / points),
            unit="restore points",
            then="keep the figures with triggers, as `list_counts` does, or look less often",
        ),
        Limit(
            what="a bucket index of Ceph with its 1 999 shards of 100 000 objects is full",
            at=1999 * 100_000 / objects_of_a_point(),
            unit="restore points",
            then="a bucket for each group of vaults: every key begins with `vaults/<vault id>/`, so the split is a "
            "rule from the id to the bucket",
        ),
    ]
    return sorted(found, key=lambda limit: limit.at / (WORKERS if limit.unit == "workers" else POINTS))


def objects_of_a_point() -> float:
    """Objects in the store for each restore point: its root, its index, and its share of packs of 32 MiB."""
    packs = ASSUMED["PB in the store"] * 1e15 / (32 << 20) / 1e9
    return 2 + packs
