"""What 100 ms a request cost a backup to and a restore from an S3 store, beside the same store without.

    python bench/s3_latency.py [--mib 2048] [--latency-ms 100] [--repeat 3] [--data random text] [--out docs/benchmarks]

A SeaweedFS on loopback (requirements/test.txt) and a proxy in front, which holds every request back before it goes on;
the zero-latency runs go through the proxy too. Data: a disk of random bytes, where the store is the limit, and one of
hexadecimal text, where zstd is. Backup and restore are the engine's own verbs; what came back is compared. Prints MB/s
of the source and the share of it that is kept at that latency; the two latencies take turns. "Large data" is 2 GiB, at
least 1: what is asked before the first byte and after the last is a smaller part of more. With --out it writes s3.md.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy
from seaweed import BUCKET, Proxy, seaweed

from strongroom.base.streams import Extent, ExtentKind, SilentMonitor
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    backup,
    create_repository,
    open_repository,
    restore_block,
)
from strongroom.engine.store.access import S3Access
from strongroom.engine.store.open import open_store

MIB = 1 << 20
MASTER = MasterKey(bytes(range(32)))


class Disk:
    """A disk in memory: source, and target that compares."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.size = len(data)
        self.wrong = 0

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, ExtentKind.DATA)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self.data[offset : offset + len(buffer)]
        return len(buffer)

    def write(self, offset: int, data: memoryview) -> None:
        self.wrong += self.data[offset : offset + len(data)] != data

    def zero(self, offset: int, length: int) -> None:
        self.wrong += any(self.data[offset : offset + length])

    def flush(self) -> None:
        return None


def random_bytes(seed: int, size: int) -> bytes:
    return numpy.random.default_rng(seed).bytes(size)


def no_fence() -> None:
    return None


def run(data: bytes, prefix: str, access: S3Access, pool: Pool) -> dict[str, float]:
    """MB/s of the source for a backup and a restore in a new repository."""
    url = f"s3://{BUCKET}/{prefix}"
    repository = create_repository(open_store(url, access), "", MASTER, DomainSettings(), pool=pool)
    disk = Disk(data)
    begun = time.perf_counter()
    report = backup(repository, disk, BackupRequest(backup_id="a", generation=1), SilentMonitor(), no_fence)
    between = time.perf_counter()
    repository = open_repository(open_store(url, access), "", MASTER, pool=pool)
    restore_block(repository, report.root, disk, SilentMonitor())
    ended = time.perf_counter()
    assert not disk.wrong
    return {"backup": len(data) / 1e6 / (between - begun), "restore": len(data) / 1e6 / (ended - between)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--latency-ms", type=float, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", nargs="+", choices=("random", "text"), default=("random", "text"))
    options = parser.parse_args()
    size = options.mib * MIB
    pool = Pool()
    speeds: dict[tuple[str, str, float], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, seaweed(Path(folder) / "seaweed") as server:
        proxy = Proxy(server.port)
        run(random_bytes(0, 64 * MIB), "warm", server.access(proxy.port), pool)
        for repetition in range(options.repeat):
            for kind in options.data:
                half = random_bytes(repetition, size // 2)
                data = random_bytes(repetition, size) if kind == "random" else half.hex().encode()
                latencies = (0.0, options.latency_ms)
                for latency_ms in latencies if repetition % 2 == 0 else latencies[::-1]:
                    proxy.latency_s = latency_ms / 1000
                    found = run(data, f"{kind}-{repetition}-{latency_ms:.0f}", server.access(proxy.port), pool)
                    for verb, speed in found.items():
                        speeds.setdefault((kind, verb, latency_ms), []).append(speed)
                        print(f"{kind:7} {verb:8} {latency_ms:5.0f} ms {speed:7.1f} MB/s", flush=True)
        proxy.close()
    pool.close()
    rows = list(table(speeds, options.latency_ms))
    print("", *rows, sep="\n")
    if options.out is not None:
        begun = f"python bench/s3_latency.py --mib {options.mib} --latency-ms {options.latency_ms:g} "
        command = f"{begun}--repeat {options.repeat} --data {' '.join(options.data)}"
        (options.out / "s3.md").write_text("\n".join([*INTRODUCTION, f"    {command}", "", *rows]) + "\n")


INTRODUCTION = (
    "# What the latency of an object store costs",
    "",
    "A disk backed up to a SeaweedFS on loopback and restored from it, through a proxy that holds every request back.",
    "MB/s of the source, medians; kept is the median of pairs, with least and most. What was restored is compared.",
    "How it is hidden: [decision 3](../decisions/0003-latency-of-an-object-store.md). Made by",
    "",
)


def table(speeds: dict[tuple[str, str, float], list[float]], latency_ms: float) -> Iterator[str]:
    yield f"| data | verb | 0 ms MB/s | {latency_ms:g} ms MB/s | kept |"
    yield "|---|---|---|---|---|"
    for kind, verb, without_ms in speeds:
        if without_ms == 0:
            without, late = speeds[kind, verb, 0.0], speeds[kind, verb, latency_ms]
            kept = [b / a for a, b in zip(without, late, strict=True)]
            yield (
                f"| {kind} | {verb} | {statistics.median(without):.0f} | {statistics.median(late):.0f} "
                f"| {statistics.median(kept):.2f} ({min(kept):.2f}-{max(kept):.2f}) |"
            )


if __name__ == "__main__":
    main()
