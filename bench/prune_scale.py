"""What a prune of many chunks costs: a synthesised vault with real roots, pruned by a fresh process.

    python -m bench.prune_scale [--chunks 2M] [--points 10] [--dir .bench] [--out docs/benchmarks]

Makes the index objects and sparse packs of bench.index_scale, and real restore points of a disk whose pages of ids
refer to them: the first one to nine tenths of all chunks, each later one with one page in a hundred made anew. So a
tenth of the packs is dead. A process of its own then prunes, and another one again; every pack that is needed must be
there afterwards, and every other be gone. Writes prune.md and ends with 1 when a bound was missed. The published size:
--chunks 10M (1 GB of disk, minutes).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.index_scale import MASTER, PACK_SEGMENTS, SEGMENT_CHUNKS, STORED_BYTES, Anonymous, anonymous, random_table
from strongroom.base.streams import SilentMonitor
from strongroom.engine import BackupReport, DomainSettings, Root, create_repository, open_repository
from strongroom.engine.content import BLOCKS, PAGE_BLOCKS, PAGE_COVERS_BYTES, ContentWriter
from strongroom.engine.index_table import Table
from strongroom.engine.intake import Intake
from strongroom.engine.model import RootBody
from strongroom.engine.prune import prune
from strongroom.engine.repository import Repository
from strongroom.engine.store.posix import PosixStore

OBJECT_CHUNKS = PAGE_BLOCKS * 8  # of an index object; a page of a disk never refers to two of them
DEAD_PART, CHANGED_PART = 10, 100  # one index object in that many is dead; one page changes from point to point
ANONYMOUS_A_CHUNK, ANONYMOUS_FIXED = 4.0, 256 << 20  # the bounds that prune promises
Pages = list[bytes]


def make(folder: Path, chunks: int, points: int) -> None:
    """The repository, and `dead` and `live`: ids of the packs of data that no root needs, and of the others."""
    store = PosixStore(str(folder / "store"))
    repository = create_repository(store, "", MASTER, DomainSettings())
    packs = folder / "store" / f"{repository.prefix}packs"
    packs.mkdir()
    rng = np.random.default_rng(1)
    pages: Pages = []
    dead: list[str] = []
    live: list[str] = []
    for number in range(max(chunks // OBJECT_CHUNKS, 1)):
        data, keys, ids = random_table(rng, OBJECT_CHUNKS)
        for pack in ids:
            with (packs / pack.hex()).open("wb") as file:
                file.truncate(PACK_SEGMENTS * STORED_BYTES)
        repository.put_table(Table(data), 0)
        if number % DEAD_PART == 1:
            dead += [pack.hex() for pack in ids]
            continue
        live += [pack.hex() for pack in ids]
        rows = np.zeros((OBJECT_CHUNKS, 4), np.uint64)
        rows[:, :2] = keys
        rows[:, 2:] = rng.integers(1, 1 << 64, (OBJECT_CHUNKS, 2), dtype=np.uint64)
        pages += [part.tobytes() for part in np.split(rows, OBJECT_CHUNKS // PAGE_BLOCKS)]
    for point in range(points):
        if point:
            for at in rng.integers(0, len(pages), max(len(pages) // CHANGED_PART, 1)):
                other = np.frombuffer(pages[int(rng.integers(0, len(pages)))], "V32").copy()
                rng.shuffle(other)
                pages[at] = other.tobytes()
        _commit(repository, point, pages)
    (folder / "dead").write_text("\n".join(dead))
    (folder / "live").write_text("\n".join(live))
    repository.close()


def _commit(repository: Repository, point: int, pages: Pages) -> None:
    with repository.session("backup") as session:
        intake = Intake(session, lambda: None)
        try:
            writer = ContentWriter(BLOCKS, intake.put_metadata)
            for page in pages:
                writer.add(intake.put_metadata(page), PAGE_COVERS_BYTES)
            content = writer.finish()
            intake.finish()
        finally:
            intake.close()
        name = f"point-{point}.1"
        repository.put_root(
            Root(
                name=name,
                backup_id=f"point-{point}",
                generation=1,
                kind="block",
                created_at=datetime(2026, 1, 1, point % 24, tzinfo=UTC),
                parent=None,
                size=len(pages) * PAGE_COVERS_BYTES,
                labels={},
                report=BackupReport(root=name, bytes_total=len(pages) * PAGE_COVERS_BYTES, bytes_read=0, entries=1),
                body=RootBody((content.layout, content.level, content.rows), None, 0, session.index.number),
            )
        )


def measure(folder: Path) -> dict[str, Any]:
    """Prune; figures."""
    found: dict[str, Any] = {"base": anonymous()}
    watch = Anonymous()
    watch.start()
    begun, cpu = time.perf_counter(), time.process_time()
    repository = open_repository(PosixStore(str(folder / "store")), "", MASTER, cache=str(folder / "cache"))
    report = prune(repository, dead=(), monitor=SilentMonitor())
    found |= {"s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu, "peak": watch.stop()}
    found["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    found |= {"freed": report.bytes_freed, "deleted": report.packs_deleted, "lists": report.lists_written}
    repository.close()
    return found


def check(folder: Path) -> list[str]:
    """What went wrong, in words. That the metadata reads is shown by the second prune, which marks it all again."""
    dead, live = (set((folder / name).read_text().split()) for name in ("dead", "live"))
    after = {path.name for path in (folder / "store").glob("domains/*/packs/*")}
    found = [f"{len(lost)} packs that are needed are gone"] if (lost := live - after) else []
    return found + ([f"{len(left)} dead packs are left"] if (left := dead & after) else [])


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.prune_scale", description="A prune of many chunks.")
    parser.add_argument("--chunks", type=_count, default=_count("2M"))
    parser.add_argument("--points", type=int, default=10, help="restore points")
    parser.add_argument("--dir", type=Path, default=Path(".bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    folder = options.dir.resolve() / "prune"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder, options.chunks, options.points)
    os.sync()
    command = [sys.executable, "-m", "bench.prune_scale", "--measure", str(folder)]
    runs = []
    for name in ("a tenth of the packs dead", "nothing to do"):
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        runs.append((name, json.loads(done.stdout)))
    missed = check(folder)
    shutil.rmtree(folder)
    for name, row in runs:
        if row["peak"] > ANONYMOUS_A_CHUNK * options.chunks + ANONYMOUS_FIXED:
            missed.append(f"{name}: {row['peak'] / 1e6:.0f} MB of anonymous memory")
    text = os.environ.get("BENCH_COMMAND") or "python -m bench.prune_scale " + " ".join(sys.argv[1:])
    report = write_report(options, runs, text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "prune.md").write_text(report)
    print(report)
    for miss in missed:
        print(f"missed: {miss}")
    return 1 if missed else 0


def write_report(options: argparse.Namespace, runs: list[tuple[str, dict[str, Any]]], command: str) -> str:
    """Markdown."""
    text = [
        "# A prune of many chunks",
        "",
        f"Made by `{command}`: {options.chunks:,} chunks, {SEGMENT_CHUNKS} a segment, in packs of "
        f"{PACK_SEGMENTS * STORED_BYTES >> 20} MiB; {options.points} restore points of a disk,",
        f"one page in {CHANGED_PART} of which changes from each to the next. Each row is a process of its own: it",
        "marks, counts, deletes and writes the next list, as often as it takes. RssAnon counts memory that cannot be",
        "dropped; the resident size also counts the mapped index. Each point leaves a small pack of metadata; those",
        "are merged by the first prune.",
        "",
        "| prune | s | CPU s | lists | packs deleted | GB freed | RssAnon MB before | at most | bytes a chunk "
        "| resident MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in runs:
        text.append(
            f"| {name} | {row['s']:.1f} | {row['cpu_s']:.1f} | {row['lists']} | {row['deleted']:,} "
            f"| {row['freed'] / 1e9:.1f} | {row['base'] / 1e6:.0f} | {row['peak'] / 1e6:.0f} "
            f"| {row['peak'] / options.chunks:.1f} | {row['rss'] / 1e6:.0f} |"
        )
    return "\n".join(text) + "\n"


def _count(text: str) -> int:
    """A decimal count: 2M are two million."""
    number, unit = (text[:-1], {"K": 10**3, "M": 10**6}[text[-1]]) if text[-1] in "KM" else (text, 1)
    return int(float(number) * unit)


if __name__ == "__main__":
    sys.exit(main())
