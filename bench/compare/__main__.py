"""`python -m bench.compare run|report`: see `make bench`.

run     fetch the peers, make the data, measure, write results.jsonl, report.md and ratios.svg
report  write report.md and ratios.svg again from results.jsonl
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.compare import chart, report
from bench.compare.measure import floor_bytes, parse_size
from bench.compare.peers import fetch
from bench.compare.programs import Program, find_programs
from bench.compare.results import parse
from bench.compare.rounds import Bench, measure, write_to

SETS = ("tree", "image", "random")
RESULTS, REPORT, CHART = "results.jsonl", "report.md", "ratios.svg"
GENERATIONS_KEPT = 3  # of all data: two, and the live folders
SPACE_A_PROGRAM = 1.5  # of one data set: its restore, and its store


def main() -> int:
    options = _parser().parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    failed = _run(options, out) if options.command == "run" else 0
    with (out / RESULTS).open() as lines:
        results = parse(lines)
    (out / REPORT).write_text(report.write_report(results, CHART))
    (out / CHART).write_text(chart.draw(results))
    print(f"{out / REPORT}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.compare", description="Strongroom beside other backup programs.")
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder of results and report")
    parser.add_argument("--dir", type=Path, default=Path(".bench"), help="folder for peers, data and work")
    parser.add_argument("--tree", default="2G")
    parser.add_argument("--image", default="4G", help="size of the disk; it must hold the tree")
    parser.add_argument("--random", default="512M")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--synthetic", action="store_true", help="data of the seed alone, not of this host's files")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--programs", help="names, by commas (default: the usual ones)")
    parser.add_argument("--restic", type=Path, help="use this program instead of fetching one")
    parser.add_argument("--borg", type=Path, help="use this program instead of fetching one")
    parser.add_argument("--no-fetch", action="store_true", help="no peers but those named")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds to wait after the deletions")
    return parser


def _run(options: argparse.Namespace, out: Path) -> int:
    """Measure; the number of failed steps. Results are written to a new file, moved to its place at the end."""
    folder = options.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    named = {name: path.resolve() for name in ("restic", "borg") if (path := getattr(options, name))}
    peers = named if options.no_fetch else {**fetch(folder / "peers"), **named}
    programs = find_programs(peers, options.programs.split(",") if options.programs else None)
    why = "was not asked for" if options.no_fetch else "was not obtainable"
    notes = [f"{name} {why} and is not in the tables." for name in ("restic", "borg") if name not in peers]
    _require_room(folder, parse_size(options.tree), parse_size(options.random), len(programs))
    about = _make_data(options, folder / "data")
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    partial = folder / RESULTS
    with partial.open("w") as file, (folder / "log.txt").open("wb") as log:
        write = write_to(file)
        write(_describe(programs, about, notes, folder))
        bench = Bench(
            data=folder / "data",
            work=work,
            programs=tuple(programs),
            sets=tuple(options.sets.split(",")),
            repetitions=options.reps,
            settle_s=options.settle,
            write=write,
            log=log,
        )
        failed = measure(bench)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copyfile(partial, out / RESULTS)
    print(f"No peak below {floor_bytes() / 1e6:.0f} MB could have been seen: this process has that itself.")
    return failed


def _require_room(folder: Path, tree: int, random: int, programs: int) -> None:
    """Refuse a run that would fill the disk. The image's holes cost nothing: it takes about what the tree does."""
    need = GENERATIONS_KEPT * (2 * tree + random) + SPACE_A_PROGRAM * programs * max(tree, random)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free; this run may need {need / 1e9:.1f} GB. "
            "Name another folder (BENCH_DIR) or smaller data (BENCH_TREE, BENCH_RANDOM)."
        )


def _make_data(options: argparse.Namespace, folder: Path) -> Mapping[str, Any]:
    """In a process of its own, so that this one stays small (see measure.py)."""
    sizes = [f"--{name}={getattr(options, name)}" for name in ("tree", "image", "random", "seed")]
    synthetic = ["--synthetic"] if options.synthetic else []
    command = [sys.executable, "-m", "bench.compare.datasets", "--out", str(folder), *sizes, *synthetic]
    subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads((folder / "datasets.json").read_text())
    return found


def _describe(programs: list[Program], data: Mapping[str, Any], notes: list[str], folder: Path) -> dict[str, Any]:
    return {
        "command": os.environ.get("BENCH_COMMAND") or "python -m bench.compare " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": _machine(folder),
        "programs": {program.name: {"version": program.version, "about": program.about} for program in programs},
        "data": data,
        "notes": notes,
    }


def _commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _machine(folder: Path) -> str:
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    mount = ["findmnt", "-n", "-o", "FSTYPE", "-T", str(folder)]
    filesystem = subprocess.run(mount, capture_output=True, text=True, check=False)
    return (
        f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GiB, {filesystem.stdout.strip()}, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
