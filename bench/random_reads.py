"""Reading a restore point at random and in order, beside the restore of the same disk.

    python -m bench.random_reads [--mib 1024] [--repeat 3] [--dir .bench]

A disk, half noise and half hexadecimal text in alternating MiB, in a repository in a folder. `restore` writes a new
image file and syncs it, as users do; `to memory` and `in order` copy every byte to memory and no further. They take
turns, and every byte is decrypted, decompressed and checked in all three.
Random reads are of 4 KiB at multiples of 4 KiB, all over the disk: cold with a cache of one segment, warm within 64 MiB
of a cache that holds them. CPU seconds are of the whole process.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from strongroom.base.streams import Extent, ExtentKind, SilentMonitor
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    Repository,
    backup,
    create_repository,
    restore_block,
)
from strongroom.engine.reader import Reader, open_reader
from strongroom.engine.store.posix import PosixStore

MIB = 1 << 20
READ_BYTES = MIB
RANDOM_BYTES = 4096
WARM_BYTES = 64 * MIB
RANDOM_COLD, RANDOM_WARM = 400, 20_000  # reads a measurement


class Disk:
    """A disk that is made as it is read, and a target that copies to memory what it is given, over what was there."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._copy = memoryview(bytearray(4 * MIB))

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, ExtentKind.DATA)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        number, at = divmod(offset, MIB)
        count = min(len(buffer), MIB - at)
        noise = random.Random(number)
        whole = noise.randbytes(MIB // 2).hex().encode() if number % 2 else noise.randbytes(MIB)
        piece = whole[at : at + count]
        buffer[:count] = piece
        return count if count == len(buffer) else count + self.read_into(offset + count, buffer[count:])

    def write(self, offset: int, data: memoryview) -> None:
        self._copy[: len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        return None

    def flush(self) -> None:
        return None


class Image(Disk):
    """A target in a file."""

    def __init__(self, size: int, path: Path) -> None:
        super().__init__(size)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(self, offset: int, data: memoryview) -> None:
        os.pwrite(self._file, data, offset)

    def flush(self) -> None:
        os.fsync(self._file)
        os.close(self._file)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_order(reader: Reader) -> None:
    buffer = memoryview(bytearray(READ_BYTES))
    for at in range(0, reader.size, READ_BYTES):
        reader.read_into(at, buffer)


def at_random(reader: Reader, reads: int, span: int, threads: int) -> float:
    """Reads a second."""

    def work(seed: int) -> None:
        rng, buffer = random.Random(seed), memoryview(bytearray(RANDOM_BYTES))
        for _ in range(reads // threads):
            reader.read_into(rng.randrange(span // RANDOM_BYTES) * RANDOM_BYTES, buffer)

    with ThreadPoolExecutor(threads) as pool:
        wall, _ = timed(lambda: [done.result() for done in [pool.submit(work, seed) for seed in range(threads)]])
    return reads / wall


def measure(repository: Repository, root: str, repeat: int, image: Path) -> None:
    size = repository.load_root(root).size
    speeds: dict[str, list[tuple[float, float]]] = {"restore": [], "to memory": [], "in order": []}
    for repetition in range(repeat):
        for name in list(speeds)[:: 1 if repetition % 2 == 0 else -1]:
            if name != "in order":
                target = Disk(size) if name == "to memory" else Image(size, image)
                speeds[name].append(
                    timed(lambda target=target: restore_block(repository, root, target, SilentMonitor()))
                )
            else:
                with open_reader(repository, root) as reader:
                    speeds[name].append(timed(lambda reader=reader: in_order(reader)))
    print("| | MB/s | CPU s |\n|---|---|---|")
    for name, found in speeds.items():
        walls, cpus = [size / 1e6 / wall for wall, _ in found], [cpu for _, cpu in found]
        print(f"| {name} | {statistics.median(walls):.0f} ({min(walls):.0f}-{max(walls):.0f}) "
              f"| {statistics.median(cpus):.2f} |")  # fmt: skip
    for name in ("restore", "to memory"):
        walls = [a[0] / b[0] for a, b in zip(speeds[name], speeds["in order"], strict=True)]
        cpus = [a[1] / b[1] for a, b in zip(speeds[name], speeds["in order"], strict=True)]
        print(f"| in order / {name}, pairwise | {statistics.median(walls):.2f} ({min(walls):.2f}-{max(walls):.2f}) "
              f"| {statistics.median(cpus):.2f} |")  # fmt: skip
    for threads in (1, 4):
        with open_reader(repository, root, cache_bytes=0) as reader:
            cold = at_random(reader, RANDOM_COLD, size, threads)
        with open_reader(repository, root, cache_bytes=2 * WARM_BYTES) as reader:
            for at in range(0, WARM_BYTES, READ_BYTES):
                reader.read(at, READ_BYTES)
            warm = at_random(reader, RANDOM_WARM, WARM_BYTES, threads)
        print(f"| 4 KiB at random, {threads} threads | cold {cold:.0f}/s, warm {warm:.0f}/s | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path(".bench"))
    options = parser.parse_args()
    folder = options.dir.resolve() / "random-reads"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pool = Pool()
    store = PosixStore(str(folder))
    repository = create_repository(store, "", MasterKey(bytes(range(32))), DomainSettings(), pool=pool)
    request = BackupRequest(backup_id="a", generation=1)
    root = backup(repository, Disk(options.mib * MIB), request, SilentMonitor(), lambda: None).root
    measure(repository, root, options.repeat, folder / "image.raw")
    pool.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
