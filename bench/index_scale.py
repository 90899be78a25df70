"""How an index of many chunks is opened and looked up: a synthesised vault, each measurement a fresh process.

    python -m bench.index_scale [--chunks 2M] [--object-chunks 65536] [--dir .bench] [--out docs/benchmarks]

Makes a repository in a folder: sealed index objects of random keys, as backups write them, and every pack they name as
an empty file of the right size (sparse), so that opening a session does all that it does in a real vault. Then, each in
a process of its own: the first opening, which has no copy of the index yet; the second; one after the copy was dropped
from the page cache; and lookups in sorted batches, half of them hits. Every answer is checked. Writes index.md and ends
with 1 when a bound of the project was missed. The size the project promises: --chunks 100M (8 GB of disk, minutes).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.engine import DomainSettings, MasterKey, create_repository, open_repository
from strongroom.engine.index_table import HEAD, KEY, PACK, SEGMENT, Table
from strongroom.engine.pack import DATA, ZSTD
from strongroom.engine.repository import Repository
from strongroom.engine.store.posix import PosixStore

SEGMENT_CHUNKS, PACK_SEGMENTS = 32, 8  # chunks of 128 KiB in segments of 4 MiB in packs of 32 MiB
CHUNK_BYTES, STORED_BYTES = 128 << 10, 2 << 20
SAMPLES = 1 << 22  # keys that batches take their hits from
BATCHES = (1 << 13, 1 << 16, 1 << 20, 1 << 23)
REPEATS = 5  # the median counts
SINGLE_KEYS = 50_000
SPEED_MIN = 5e6  # ids a second, issue 3
ANONYMOUS_MAX = 2.0  # bytes a chunk, issue 3
ANONYMOUS_BASE = 64 << 20  # Python, numpy and the program itself: what counts for a small index
MASTER = MasterKey(bytes(range(32)))

_SEGMENT = np.dtype([("pack", "<u4"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("codec", "u1")])
_PACK = np.dtype([("id", "V16"), ("size", "<u8"), ("kind", "u1")])

Keys = npt.NDArray[np.uint64]


# --- making it ---


def make(folder: Path, chunks: int, object_chunks: int, seed: int) -> None:
    """The repository, and `samples`: keys that it has."""
    store = PosixStore(str(folder / "store"))
    repository = create_repository(store, "", MASTER, DomainSettings())
    packs = folder / "store" / f"{repository.prefix}packs"
    packs.mkdir()
    rng = np.random.default_rng(seed)
    with (folder / "samples").open("wb") as samples:
        for at in range(0, chunks, object_chunks):
            count = min(object_chunks, chunks - at)
            data, keys, ids = random_table(rng, count)
            for pack in ids:
                with (packs / pack.hex()).open("wb") as file:
                    file.truncate(PACK_SEGMENTS * STORED_BYTES)
            repository.put_table(Table(data), 0)
            wanted = max(SAMPLES * count // chunks, 1)
            samples.write(keys[rng.integers(0, count, wanted)].tobytes())


def random_table(rng: np.random.Generator, count: int) -> tuple[bytes, Keys, list[bytes]]:
    """(bytes of an index object, its keys, ids of its packs)."""
    segment_count = -(-count // SEGMENT_CHUNKS)
    pack_count = -(-segment_count // PACK_SEGMENTS)
    packs = np.zeros(pack_count, _PACK)
    packs["id"] = np.frombuffer(rng.bytes(16 * pack_count), "V16")
    packs["size"], packs["kind"] = PACK_SEGMENTS * STORED_BYTES, DATA
    segments = np.zeros(segment_count, _SEGMENT)
    number = np.arange(segment_count)
    segments["pack"] = number // PACK_SEGMENTS
    segments["offset"] = 16 + number % PACK_SEGMENTS * STORED_BYTES
    segments["stored"], segments["codec"] = STORED_BYTES - 64, ZSTD
    segments["raw"] = SEGMENT_CHUNKS * CHUNK_BYTES
    keys = rng.integers(0, 1 << 64, (count, 2), dtype=np.uint64)
    order = np.argsort(keys[:, 0])  # random keys: as if their chunks lay in random order, which is the worst
    columns = [keys[order, 0], keys[order, 1], (order // SEGMENT_CHUNKS).astype("<u4")]
    columns += [(order % SEGMENT_CHUNKS * CHUNK_BYTES).astype("<u4"), np.full(count, CHUNK_BYTES, "<u4")]
    head = HEAD.pack(pack_count, segment_count, count)
    assert packs.itemsize == PACK.size and segments.itemsize == SEGMENT.size
    ids = [bytes(pack) for pack in packs["id"]]
    return b"".join([head, packs.tobytes(), segments.tobytes(), *(column.tobytes() for column in columns)]), keys, ids


# --- measuring, in a process of its own ---


class Anonymous(threading.Thread):
    """The largest RssAnon, looked at 50 times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.02):
            self.peak = max(self.peak, anonymous())

    def stop(self) -> int:
        self._end.set()
        self.join()
        return max(self.peak, anonymous())


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) << 10


def measure(folder: Path, lookups: bool) -> dict[str, Any]:
    """Open a session, look up if asked to; figures."""
    found: dict[str, Any] = {"base": anonymous()}
    watch = Anonymous()
    watch.start()
    begun, cpu = time.perf_counter(), time.process_time()
    repository = open_repository(PosixStore(str(folder / "store")), "", MASTER, cache=str(folder / "cache"))
    with repository.session("restore") as session:
        found["open_s"], found["open_cpu_s"] = time.perf_counter() - begun, time.process_time() - cpu
        found["open_peak"] = watch.stop()
        found["opened"] = anonymous()
        found["tables"] = len(session.index.tables)
        found["bad"] = len(session.index.bad)
        found["list_s"] = _list_seconds(repository)
        if lookups:
            found["batches"] = dict(_batches(session.index, folder))
            found["looked_up"] = anonymous()
            found["single_ns"] = _single(session.index, folder)
    return found


def _list_seconds(repository: Repository) -> float:
    """How much of an opening is the look at all packs: the store alone, done again."""
    begun = time.perf_counter()
    for _ in repository.store.list(f"{repository.prefix}packs/"):
        pass
    return time.perf_counter() - begun


def _batches(index: Any, folder: Path) -> Iterator[tuple[int, tuple[float, float]]]:
    """(size of a batch, (ids a second, of one core by its CPU time))."""
    samples = np.memmap(folder / "samples", np.uint64, "r").reshape(-1, 2)
    rng = np.random.default_rng(2)
    for size in BATCHES:
        if size > max(index.tables[0].chunk_count, BATCHES[0]):
            break
        rates = []
        for _ in range(REPEATS):
            keys = rng.integers(0, 1 << 64, (size, 2), dtype=np.uint64)
            keys[: size // 2] = samples[rng.integers(0, len(samples), size // 2)]
            is_hit = np.arange(size) < size // 2
            order = np.argsort(keys[:, 0])
            first, second = keys[order, 0], keys[order, 1]
            is_hit = is_hit[order]
            begun, cpu = time.perf_counter(), time.process_time()
            known = index.knows_many(first, second)
            rates.append((size / (time.perf_counter() - begun), size / (time.process_time() - cpu)))
            assert (known == is_hit).all(), "a lookup is wrong"
        middle = REPEATS // 2
        yield size, (sorted(wall for wall, _ in rates)[middle], sorted(own for _, own in rates)[middle])


def _single(index: Any, folder: Path) -> tuple[float, float]:
    """Nanoseconds of CPU for one known key, one unknown key, in random order."""
    samples = np.memmap(folder / "samples", np.uint64, "r").reshape(-1, 2)
    some = samples[np.random.default_rng(3).integers(0, len(samples), SINGLE_KEYS)]
    hits = [KEY.pack(int(first), int(second)) for first, second in some]
    misses = [os.urandom(KEY.size) for _ in range(SINGLE_KEYS)]
    spent = []
    for keys, want in ((hits, True), (misses, False)):
        cpu = time.process_time()
        assert all(index.knows(key) is want for key in keys)
        spent.append((time.process_time() - cpu) / SINGLE_KEYS * 1e9)
    return spent[0], spent[1]


# --- the report ---


def write_report(chunks: int, object_chunks: int, figures: dict[str, dict[str, Any]], command: str) -> str:
    """Markdown."""
    size = figures["size"]
    text = [
        "# An index of many chunks",
        "",
        f"Made by `{command}`: {chunks:,} chunks in {size['objects']:,} index objects of {object_chunks:,},",
        f"{size['objects_bytes'] / 1e6:,.0f} MB. The copy of the index has {size['cache_bytes'] / 1e6:,.0f} MB. "
        "Each row is a process of its own.",
        "Opening includes the look whether every pack is there with its size (one LIST).",
        f"Load at the end: {size['load']:.1f} on {os.cpu_count()} cores; walls are as good as that is low.",
        "",
        "| opening | s | CPU s | of it LIST s | tables | RssAnon MB before | at most | after | bytes a chunk after |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("first", "again", "from disk"):
        row = figures[name]
        after = max(row["opened"], row.get("looked_up", 0))
        text.append(
            f"| {name} | {row['open_s']:.2f} | {row['open_cpu_s']:.2f} | {row['list_s']:.2f} | {row['tables']} "
            f"| {row['base'] / 1e6:.0f} | {row['open_peak'] / 1e6:.0f} | {after / 1e6:.0f} | {after / chunks:.2f} |"
        )
    text += ["", "| sorted batch, half hits | million ids/s | by CPU time |", "| --- | --- | --- |"]
    for batch, (wall, own) in figures["again"]["batches"].items():
        text.append(f"| {int(batch):,} | {wall / 1e6:.1f} | {own / 1e6:.1f} |")
    hit, miss = figures["again"]["single_ns"]
    text += ["", f"A single key, in random order: {hit:.0f} ns of CPU if known, {miss:.0f} ns if not."]
    return "\n".join(text) + "\n"


def misses(chunks: int, figures: dict[str, dict[str, Any]]) -> list[str]:
    """Which bounds were missed, in words."""
    found = []
    row = figures["again"]
    anonymous_bytes = max(row["opened"], row["looked_up"])
    if anonymous_bytes > max(ANONYMOUS_MAX * chunks, ANONYMOUS_BASE):
        found.append(f"{anonymous_bytes / chunks:.2f} bytes of anonymous memory a chunk")
    best = max(own for _, own in row["batches"].values())  # by CPU time: walls tell what else the machine does
    if best < SPEED_MIN:
        found.append(f"{best / 1e6:.1f} million ids a second")
    if any(figures[name]["bad"] for name in ("first", "again", "from disk")):
        found.append("packs that are there count as missing")
    return found


def _child(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.index_scale", "--measure", str(folder), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _forget_pages(folder: Path) -> None:
    """Out of the page cache with the copy of the index: the next opening reads it from the disk."""
    for path in folder.rglob("*.run"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.index_scale", description="An index of many chunks.")
    parser.add_argument("--chunks", type=_count, default=_count("2M"))
    parser.add_argument("--object-chunks", type=_count, default=1 << 16, help="chunks of an index object")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, default=Path(".bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--keep", action="store_true", help="use the vault of an earlier run, and leave it there")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lookups", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.lookups)))
        return 0
    folder = options.dir.resolve() / "index"
    if not (options.keep and (folder / "made").exists()):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder, options.chunks, options.object_chunks, options.seed)
        (folder / "made").touch()
    shutil.rmtree(folder / "cache", ignore_errors=True)
    os.sync()
    figures = {"first": _child(folder), "again": _child(folder, "--lookups")}
    _forget_pages(folder / "cache")
    figures["from disk"] = _child(folder)
    index_objects = [path for path in (folder / "store").glob("domains/*/index/*.*") if path.is_file()]
    figures["size"] = {
        "objects": len(index_objects),
        "objects_bytes": sum(path.stat().st_size for path in index_objects),
        "cache_bytes": _size(folder / "cache"),
        "load": os.getloadavg()[0],
    }
    if not options.keep:
        shutil.rmtree(folder)
    command = os.environ.get("BENCH_COMMAND") or "python -m bench.index_scale " + " ".join(sys.argv[1:])
    report = write_report(options.chunks, options.object_chunks, figures, command)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "index.md").write_text(report)
    print(report)
    for miss in (missed := misses(options.chunks, figures)):
        print(f"missed: {miss}")
    return 1 if missed else 0


def _count(text: str) -> int:
    """A decimal count: 2M are two million."""
    number, unit = (text[:-1], {"K": 10**3, "M": 10**6}[text[-1]]) if text[-1] in "KM" else (text, 1)
    return int(float(number) * unit)


if __name__ == "__main__":
    sys.exit(main())
