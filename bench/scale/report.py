"""load.md and growth.md from what `bench.scale.load` and `bench.scale.growth` measured, and the model beside it."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.scale import model, plot

GIB = 2**30
_SHOWN = ("create", "claim", "end", "show", "list, first page", "retention of a resource", "ticker, a due vault",
          "idle look for a task", "metrics")  # fmt: skip


def write(out: Path) -> None:
    """The pages and plots whose figures are there."""
    if (out / "load.json").exists():
        (out / "load.md").write_text("\n".join(load_page(json.loads((out / "load.json").read_text()))) + "\n")
    if (out / "growth.json").exists():
        growth = json.loads((out / "growth.json").read_text())
        (out / "growth.md").write_text("\n".join(growth_page(growth)) + "\n")
        for name, picture in pictures(growth).items():
            (out / name).write_text(picture)


# --- load -------------------------------------------------------------------------------------------------------------


def load_page(found: Mapping[str, Any]) -> Iterator[str]:
    asked, result = found["asked"], found["result"]
    yield "# Many clients at once"
    yield ""
    yield f"Made by `{found['command']}` on {found['machine']}. Clients, API, workers, PostgreSQL and store share"
    yield "these cores, so the walls say how long a full machine lets one wait, not how fast the program is."
    yield ""
    yield (
        f"{asked['clients']:,} clients ask at once, without pause, for {asked['seconds']:.0f} s: ten tenants with "
        f"{asked['points']:,} restore points in {asked['vaults']:,} vaults; {asked['jobs']} vaults with a slow folder,"
    )
    yield (
        f"and one of 256 resources, are backed up meanwhile by four workers. {found['requests_s']:.0f} requests a "
        f"second were answered; PostgreSQL used {found['postgres_cpu_s']:.0f} s of CPU."
    )
    yield ""
    yield "| request, answered with 200 | number | p50 ms | p99 ms | longest ms |"
    yield "| --- | --- | --- | --- | --- |"
    for kind, row in [*found["kinds"].items(), ("(refused: 429, 503)", found["refusals"])]:
        if row:
            yield f"| {kind} | {row['n']:,} | {row['p50']:,.0f} | {row['p99']:,.0f} | {row['max']:,.0f} |"
    yield ""
    refused = sum(n for name, n in found["answers"].items() if name.split()[-1] in ("429", "503"))
    every = sum(found["answers"].values())
    yield f"Of {every:,} answers {refused:,} were refusals because of the load, all of them with `Retry-After`;"
    yield f"{result['no answer']} requests got no answer. Other refusals:"
    yield ""
    for text, n in found["wrong"].items():
        yield f"- {n:,} x `{text[:160]}`"
    yield ""
    ended = ", ".join(f"{n} {status}" for status, n in result["ended"].items())
    yield (
        f"**Nothing lost**: {result['acknowledged']} restore points were acknowledged and {result['refused']} refused; "
        f"{found['drained_s']:.0f} s after the last request all had ended ({ended}), and no refused one had left a row."
        if not result["problems"]
        else f"**Lost or left over**: {'; '.join(result['problems'][:10])}"
    )
    yield ""
    yield f"At most, looked at once a second (jobs running: {found['running_median']:.0f} in the median):"
    yield ""
    yield "| what | most |"
    yield "| --- | --- |"
    for name, most in found["peaks"].items():
        yield f"| {name} | {most:,} |"


# --- growth -----------------------------------------------------------------------------------------------------------


def growth_page(growth: Mapping[str, Any]) -> Iterator[str]:
    yield "# As restore points and workers grow"
    yield ""
    yield f"Made by `{growth['command']}`. Walls are as good as the load averages that stand with the tables are"
    yield "low; bytes, round trips and what is in proportion do not depend on them."
    yield ""
    if "catalogues" in growth:
        yield from _costs(growth["catalogues"], growth.get("project"))
        yield from _rows(growth["catalogues"])
    if "workers" in growth:
        yield from _workers(growth)
    if "catalogues" in growth and "workers" in growth:
        yield from _model(growth)


def _costs(catalogues: list[Mapping[str, Any]], project: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## What a step costs"
    yield ""
    yield "Median / 99th percentile of 40, ms; the product's own functions on a PostgreSQL with the settings of the"
    yield "embedded one (64 MB of shared buffers). A vault has 2 resources and 100 restore points; ten tenants have one"
    yield "policy each for all their vaults. *metrics* is one look of `/metrics` at all tenants."
    yield ""
    sizes = [f"{row['points']:,}" for row in catalogues]
    columns = [*catalogues, *([project] if project else [])]
    if project:
        sizes.append(f"{project['points']:,} of one project")
    yield f"| step | {' | '.join(sizes)} |"
    yield f"|{' --- |' * (len(columns) + 1)}"
    for step in catalogues[0]["steps"]:
        cells = [f"{row['steps'][step]['p50']:.1f} / {row['steps'][step]['p99']:.0f}" for row in columns]
        yield f"| {step} | {' | '.join(cells)} |"
    copies = [f"{row['copy']['seconds']:.0f} s, {row['copy']['bytes'] / 2**20:.1f} MiB" for row in catalogues]
    yield f"| `backup-self` | {' | '.join(copies)} |{' - |' if project else ''}"
    yield ""
    if project:
        yield f"The last column is of `{project['command']}`: one tenant, 5 000 vaults, no logs of ended tasks."
    loads = ", ".join(row["machine"].rsplit(" ", 1)[1] for row in columns)
    yield f"On {catalogues[0]['machine'].rpartition(', load')[0]}; load average before each: {loads}."
    yield ""
    yield "![steps](growth-steps.svg)"
    yield ""


def _rows(catalogues: list[Mapping[str, Any]]) -> Iterator[str]:
    largest = max(catalogues, key=lambda row: row["points"])
    backups = largest["tables"]["backups"]["rows"]
    yield f"## What rows take, of {largest['points']:,} restore points with {backups:,} backups"
    yield ""
    yield "| table | rows | bytes a row | bytes of indexes a row | GiB |"
    yield "| --- | --- | --- | --- | --- |"
    for name, row in largest["tables"].items():
        if name.startswith("("):
            yield f"| {name} | | | | {row['table_bytes'] / GIB:.2f} |"
        elif row["rows"]:
            both = row["table_bytes"] + row["index_bytes"]
            each = f"{row['table_bytes'] / row['rows']:.0f} | {row['index_bytes'] / row['rows']:.0f}"
            yield f"| {name} | {row['rows']:,} | {each} | {both / GIB:.2f} |"
    whole = largest["tables"]["(the whole database)"]["table_bytes"]
    yield ""
    yield f"That is **{whole / backups:,.0f} bytes a backup**, with its restore point, operation log and all indexes."
    yield ""


def _workers(growth: Mapping[str, Any]) -> Iterator[str]:
    yield "## Workers, near and far"
    yield ""
    yield f"Full backups of small folders, workers of two tasks at once, on {growth['workers_machine']}."
    yield "PostgreSQL and a SeaweedFS are reached through relays that add the round trip (`bench/scale/relay.py`)."
    yield ""
    yield "| round trip ms | workers | tasks/s | CPU ms a task: worker, PostgreSQL, store | round trips a task: both |"
    yield "| --- | --- | --- | --- | --- |"
    for row in growth["workers"]:
        cpu = " + ".join(f"{row[name] * 1000:.0f}" for name in ("worker_cpu_s", "postgres_cpu_s", "store_cpu_s"))
        turns = f"{row['database_turns']:.0f} + {row['store_turns']:.0f}"
        yield f"| {row['rtt_ms']} | {row['workers']} | {row['tasks_s']:.1f} | {cpu} | {turns} |"
    yield ""
    yield "![workers](growth-workers.svg)"
    yield ""


def _model(growth: Mapping[str, Any]) -> Iterator[str]:
    yield "## The model, checked"
    yield ""
    catalogues = growth["catalogues"]
    largest = max(row["points"] for row in catalogues)
    yield f"`bench/scale/model.py`. The row of {largest:,} restore points from the smaller ones, a + b log10 n"
    yield "(metrics, bytes and copies in proportion):"
    yield ""
    yield "| what | predicted | measured | error |"
    yield "| --- | --- | --- | --- |"
    for what, (predicted, measured) in model.predict_largest(catalogues).items():
        yield f"| {what} | {predicted:,.1f} | {measured:,.1f} | {(predicted / measured - 1) * 100:+.0f} % |"
    yield ""
    yield "Four workers from one and two (mean value analysis; CPU of a task measured, its wait fitted):"
    yield ""
    yield "| round trip ms | CPU s | wait s | predicted tasks/s | measured | error |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in model.predict_four(growth["workers"], os.cpu_count() or 1):
        error = (row["predicted"] / row["measured"] - 1) * 100
        cells = f"{row['cpu_s']:.3f} | {row['wait_s']:.3f} | {row['predicted']:.1f} | {row['measured']:.1f}"
        yield f"| {row['rtt_ms']} | {cells} | {error:+.0f} % |"
    yield ""
    yield from _large(growth)


def _large(growth: Mapping[str, Any]) -> Iterator[str]:
    large = model.large_of(growth)
    yield "## 1 000 workers, 10 PB, 10^9 restore points"
    yield ""
    yield "Assumed:"
    yield ""
    yield from (f"- {name}: {value:,}" for name, value in model.ASSUMED.items())
    yield ""
    yield f"Then a day has {large.tasks_a_day:,.0f} backups. A simulated day, second by second; cores of PostgreSQL"
    yield "that are asked for at the worst one:"
    yield ""
    yield "| | tasks | looks at intervals | looks of woken workers | tickers | longest queue | hours late |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, variant in model.variants(large).items():
        day = model.simulate(variant)
        cores = " | ".join(
            f"{day.cores[part]:.1f}" for part in ("tasks", "looks at intervals", "looks of woken workers", "tickers")
        )
        yield f"| {name} | {cores} | {day.longest_queue:,.0f} | {day.late_h:.1f} |"
    yield ""
    yield "What ends, first what ends first:"
    yield ""
    yield "| what | at | then |"
    yield "| --- | --- | --- |"
    for limit in model.limits(growth):
        yield f"| {limit.what} | {limit.at:,.0f} {limit.unit} | {limit.then} |"
    yield ""


def pictures(growth: Mapping[str, Any]) -> dict[str, str]:
    """Name of the file -> SVG."""
    found = {}
    if "catalogues" in growth:
        rows = growth["catalogues"]
        series = {step: [(row["points"], row["steps"][step]["p50"]) for row in rows] for step in _SHOWN}
        found["growth-steps.svg"] = plot.lines("What a step costs", "restore points", "ms, median", series)
    if "workers" in growth:
        distances = sorted({row["rtt_ms"] for row in growth["workers"]})
        far = {
            f"{rtt} ms away": [(row["workers"], row["tasks_s"]) for row in growth["workers"] if row["rtt_ms"] == rtt]
            for rtt in distances
        }
        found["growth-workers.svg"] = plot.lines("Workers", "workers", "tasks a second", far)
    return found
