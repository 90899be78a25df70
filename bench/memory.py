"""Does memory stay flat as data grows, and does an increment cost what changed? Whole processes, as users start them.

    python -m bench.memory [CASE]... [--files 200K] [--sparse 1T] [--entries 100K] [--points 10]

    files    many small files, 1000 a folder: first backup, nothing changed, restore, within --bound of memory
    sparse   one sparse file with 1 MiB of data in 16 places: backup, nothing changed, restore
    folder   one folder with many entries: backup, one entry more, restore
    points   a tree of which 1 % changes before each restore point: the cost of number 1, 10, 100
    vault    the same change in a vault that holds nothing else, and in one of ten times the size

Without a case all of them. The sizes the project promises: --files 2M --sparse 1T --entries 1M --points 100 (`make
bench-memory-full`; some 20 minutes and 30 GB). What was restored is compared by digest. Writes memory.md and
memory.jsonl to --out and ends with 1 when a bound was missed or a restore is not the source.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bench.compare.disk import data_extents
from bench.compare.measure import Cost, digest_tree, folder_size, parse_size, run

FILES_A_FOLDER = 1000
PLACES, PLACE_BYTES = 16, 1 << 20
POINT_FILES, POINT_FILE_BYTES = 5000, 16 << 10
CHANGED_PART = 100  # one file in that many, before each restore point
SHOWN_POINTS = (1, 10, 100, 1000)
VAULT_TIMES = 10
NEIGHBOURS = 5  # the cost of a restore point is the median of its last few

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the report. `bound`: bytes of memory it may take, None: none was set."""

    case: str
    step: str
    cost: Cost
    stored_bytes: int
    bound: int | None = None
    equal: bool | None = None

    @property
    def good(self) -> bool:
        """It ended well, within its bound, and what it restored is the source."""
        within = self.bound is None or self.cost.rss_bytes <= self.bound
        return self.cost.code == 0 and within and self.equal is not False


class Engine:
    """`strongroom engine` on one repository below `folder`, which it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._call("init", str(self.repository))

    def backup(self, source: Path, label: str) -> Cost:
        return self._call("backup", str(self.repository), str(source), label)

    def restore(self, label: str, target: Path, *options: str) -> Cost:
        return self._call("restore", *options, str(self.repository), label, str(target))

    def stored(self) -> int:
        return folder_size(self.repository)[0]

    def _call(self, *arguments: str) -> Cost:
        os.sync()
        with (self.folder.parent / "memory.log").open("ab") as log:
            return run([str(Path(sys.executable).with_name("strongroom")), "engine", *arguments], log=log)


# --- the cases ---


def many_files(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    case = f"{options.files:,} small files"
    engine, source = Engine(folder), folder / "source"
    for number in range(options.files):
        if number % FILES_A_FOLDER == 0:
            place = source / f"{number // FILES_A_FOLDER:06d}"
            place.mkdir(parents=True)
        _write_small(place / f"file{number:09d}", b"%d" % number * 16)
    for step, label in (("first backup", "1"), ("nothing changed", "2")):
        cost = engine.backup(source, label)
        yield Line(case=case, step=step, cost=cost, stored_bytes=engine.stored(), bound=options.bound)
    yield _restored(engine, case, "2", source, folder / "target", options.bound)


def sparse_file(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    case = f"sparse file of {options.sparse / (1 << 40):.3g} TiB"
    engine, source = Engine(folder), folder / "source"
    source.mkdir()
    image, rng = source / "disk.raw", random.Random(1)
    with image.open("wb") as file:
        file.truncate(options.sparse)
        for place in range(PLACES):
            file.seek(options.sparse // PLACES * place // 4096 * 4096)
            file.write(rng.randbytes(min(PLACE_BYTES, options.sparse // PLACES)))
    for step, label in (("first backup", "1"), ("nothing changed", "2")):
        yield Line(case=case, step=step, cost=engine.backup(source, label), stored_bytes=engine.stored())
    target = folder / "target"
    cost = engine.restore("2", target, "--force")  # it is nearly all holes; the disk may be smaller
    same = cost.code == 0 and digest_sparse(image) == digest_sparse(target / image.name)
    yield Line(case=case, step="restore", cost=cost, stored_bytes=engine.stored(), equal=same)


def large_folder(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    case = f"folder of {options.entries:,} entries"
    engine, source = Engine(folder), folder / "source"
    source.mkdir()
    for number in range(options.entries):
        _write_small(source / f"entry{number:09d}", b"%d" % (number % 1000))
    yield Line(case=case, step="first backup", cost=engine.backup(source, "1"), stored_bytes=engine.stored())
    _write_small(source / "entry-new", b"new")
    yield Line(case=case, step="one entry more", cost=engine.backup(source, "2"), stored_bytes=engine.stored())
    yield _restored(engine, case, "2", source, folder / "target", None)


def many_points(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    case = f"{POINT_FILES // CHANGED_PART} of {POINT_FILES:,} files changed"
    engine, source, rng = Engine(folder), folder / "source", random.Random(2)
    source.mkdir()
    for number in range(POINT_FILES):
        _write_small(source / f"file{number:05d}", rng.randbytes(POINT_FILE_BYTES))
    engine.backup(source, "0")
    costs: list[Cost] = []
    for point in range(1, options.points + 1):
        for number in rng.sample(range(POINT_FILES), POINT_FILES // CHANGED_PART):
            _write_small(source / f"file{number:05d}", rng.randbytes(POINT_FILE_BYTES))
        before = engine.stored()
        costs.append(engine.backup(source, str(point)))
        if point in SHOWN_POINTS:
            step = f"restore point {point}"
            yield Line(case=case, step=step, cost=_typical(costs[-NEIGHBOURS:]), stored_bytes=engine.stored() - before)
    yield _restored(engine, case, str(options.points), source, folder / "target", None)


def larger_vault(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    """Another source in the same repository; what is backed up each time stays as it is."""
    case = f"{POINT_FILES // CHANGED_PART} of {POINT_FILES:,} files changed"
    engine, source, other, rng = Engine(folder), folder / "source", folder / "other", random.Random(3)
    source.mkdir()
    other.mkdir()
    for number in range(POINT_FILES):
        _write_small(source / f"file{number:05d}", rng.randbytes(POINT_FILE_BYTES))
    engine.backup(source, "0")
    for size in (1, VAULT_TIMES):
        if size > 1:
            for number in range(POINT_FILES * (VAULT_TIMES - 1)):
                _write_small(other / f"file{number:06d}", rng.randbytes(POINT_FILE_BYTES))
            engine.backup(other, "other")
        costs: list[Cost] = []
        before = engine.stored()
        for turn in range(NEIGHBOURS):
            for number in rng.sample(range(POINT_FILES), POINT_FILES // CHANGED_PART):
                _write_small(source / f"file{number:05d}", rng.randbytes(POINT_FILE_BYTES))
            costs.append(engine.backup(source, f"{size}-{turn}"))
        stored = (engine.stored() - before) // NEIGHBOURS
        yield Line(case=case, step=f"a vault of {before / 1e6:.0f} MB", cost=_typical(costs), stored_bytes=stored)


CASES: dict[str, Callable[[Path, argparse.Namespace], Iterator[Line]]] = {
    "files": many_files,
    "sparse": sparse_file,
    "folder": large_folder,
    "points": many_points,
    "vault": larger_vault,
}


def _restored(engine: Engine, case: str, label: str, source: Path, target: Path, bound: int | None) -> Line:
    cost = engine.restore(label, target)
    equal = cost.code == 0 and _apart(digest_tree, source) == _apart(digest_tree, target)
    return Line(case=case, step="restore", cost=cost, stored_bytes=engine.stored(), bound=bound, equal=equal)


def _apart(function: Callable[[Path], Result], path: Path) -> Result:
    """Call it in a child: the memory it takes would count into whatever we start next (see compare/measure.py)."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, (path,))


def _write_small(path: Path, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(file, content)
    os.close(file)


def digest_sparse(path: Path) -> str:
    """SHA-256 over size, and offset and content of the 4 KiB blocks that are not zero: how holes lie does not count."""
    total = hashlib.sha256(b"%d" % path.stat().st_size)
    with path.open("rb", buffering=0) as file:
        for start, length in data_extents(path):
            for at in range(start, start + length, 4096):
                block = os.pread(file.fileno(), 4096, at)
                if block.count(0) != len(block):
                    total.update(b"%d:" % at + block)
    return total.hexdigest()


def _typical(costs: list[Cost]) -> Cost:
    """The median of each figure; a failure is not hidden."""
    return Cost(
        wall_s=statistics.median(cost.wall_s for cost in costs),
        cpu_s=statistics.median(cost.cpu_s for cost in costs),
        system_s=statistics.median(cost.system_s for cost in costs),
        rss_bytes=max(cost.rss_bytes for cost in costs),
        code=next((cost.code for cost in costs if cost.code), 0),
    )


# --- the report ---


def write_report(lines: list[Line], command: str) -> str:
    """Markdown."""
    rows = [
        f"| {line.case} | {line.step} | {line.cost.wall_s:.2f} | {line.cost.cpu_s:.2f} | "
        f"{line.cost.rss_bytes / 1e6:.0f} | {f'{line.bound / 1e6:.0f}' if line.bound else '-'} | "
        f"{line.stored_bytes / 1e6:.2f} | {_verdict(line)} |"
        for line in lines
    ]
    text = [
        "# Memory, and the cost of an increment",
        "",
        f"Made by `{command}`. Each step is one process, Python and its imports included.",
        "For restore points and vaults, stored is what one restore point added, "
        f"and times are the median of the last {NEIGHBOURS}.",
        "",
        "| case | step | wall s | CPU s | peak RSS MB | bound MB | stored MB | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
    return "\n".join(text) + "\n"


def _verdict(line: Line) -> str:
    if line.cost.code:
        return f"**failed ({line.cost.code})**"
    if not line.good:
        return "**restored wrongly**" if line.equal is False else "**above the bound**"
    return "equal" if line.equal else "ok"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.memory", description="Memory as data grows.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--files", type=_count, default=_count("200K"))
    parser.add_argument("--sparse", type=parse_size, default=parse_size("1T"))
    parser.add_argument("--entries", type=_count, default=_count("100K"))
    parser.add_argument("--points", type=_count, default=10)
    parser.add_argument("--bound", type=_count, default=_count("300M"), help="bytes of memory for the files")
    parser.add_argument("--dir", type=Path, default=Path(".bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    wanted = options.cases or list(CASES)
    if unknown := set(wanted) - set(CASES):
        parser.error(f"there is no case {unknown.pop()}")
    options.dir.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    with (options.out / "memory.jsonl").open("w") as rows:
        for name in wanted:
            folder = options.dir.resolve() / "memory"
            for line in CASES[name](folder, options):
                lines.append(line)
                rows.write(json.dumps(dataclasses.asdict(line)) + "\n")
                print(f"{line.case}: {line.step}: {line.cost.wall_s:.2f} s, CPU {line.cost.cpu_s:.2f} s, "
                      f"{line.cost.rss_bytes / 1e6:.0f} MB, {_verdict(line)}", flush=True)  # fmt: skip
            shutil.rmtree(folder, ignore_errors=True)
    command = os.environ.get("BENCH_COMMAND") or "python -m bench.memory " + " ".join(sys.argv[1:])
    (options.out / "memory.md").write_text(write_report(lines, command))
    return 0 if all(line.good for line in lines) else 1


def _count(text: str) -> int:
    """A decimal count: 2M are two million."""
    number, unit = (text[:-1], {"K": 10**3, "M": 10**6, "G": 10**9}[text[-1]]) if text[-1] in "KMG" else (text, 1)
    return int(float(number) * unit)


if __name__ == "__main__":
    sys.exit(main())
