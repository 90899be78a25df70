"""What restore points and workers cost as both grow, and a model of what no machine here could hold.

    python -m bench.scale.growth [--sizes 1K,10K,100K,1M] [--tasks 48] [--keep] [--parts costs workers report]

costs     each step of a restore point's life in catalogues of these sizes, and the bytes of rows (costs.py)
project   the same steps in the one project that `python -m bench.api --points N --seed-only` has made (--project 10M)
workers   tasks a second of 1, 2, 4 workers, near to PostgreSQL and the store and 5 and 20 ms away (workers.py)
report    growth.md with its plots, and the model (model.py) beside what was measured; load.md, of `bench.scale.load`

What was measured is kept in growth.json, so that the parts may be made one after the other.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench import parse_count
from bench.ending import end_on_sigterm
from bench.scale import catalogue as seeded
from bench.scale import costs, report, workers

POINTS_PER_VAULT = 100


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1K,10K,100K,1M")
    parser.add_argument("--project", type=parse_count, default=parse_count("10M"), help="size of the part `project`")
    parser.add_argument("--tasks", type=int, default=48, help="of each number of workers and distance")
    parser.add_argument("--workers", type=_numbers, default=[1, 2, 4])
    parser.add_argument("--round-trips", type=_numbers, default=[0, 5, 20], help="ms to PostgreSQL and the store")
    parser.add_argument("--dir", type=Path, default=Path(".bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--keep", action="store_true", help="use catalogues of an earlier run, and leave them there")
    parser.add_argument("--parts", nargs="*", default=["costs", "workers", "report"])
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "growth.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    command = os.environ.get("BENCH_COMMAND") or "python -m bench.scale.growth " + " ".join(sys.argv[1:])
    if "costs" in options.parts:
        found["catalogues"] = [_costs(options, parse_count(size)) for size in options.sizes.split(",")]
    if "project" in options.parts:
        with seeded.of_api(options.dir, options.project) as made:
            found["project"] = {**costs.measure(made), "machine": seeded.machine(), "command": command}
    if "workers" in options.parts:
        found["workers_machine"] = seeded.machine()
        for row in workers.measure(options.dir.resolve(), options.tasks, options.workers, options.round_trips):
            print(row, flush=True)
            found["workers"] = [*(r for r in found.get("workers", []) if _place(r) != _place(row)), row]
            found["workers"].sort(key=_place)
            path.write_text(json.dumps(found, indent=1) + "\n")
    if {"costs", "workers"} & set(options.parts):
        found["command"] = command
    if options.parts != ["report"]:
        path.write_text(json.dumps(found, indent=1) + "\n")
    if "report" in options.parts:
        report.write(options.out)
    return 0


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["rtt_ms"], row["workers"]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _costs(options: argparse.Namespace, points: int) -> dict[str, Any]:
    machine = seeded.machine()
    with seeded.catalogue(options.dir, points, points // POINTS_PER_VAULT, keep=options.keep) as made:
        print(f"{points:,} restore points, made in {made.seconds:.0f} s", flush=True)
        return {**costs.measure(made), "copy": costs.copy(made), "machine": machine, "seeded_s": made.seconds}


if __name__ == "__main__":
    sys.exit(main())
