"""Large runs are written past the page cache where that is possible, and hold the same bytes wherever it is not."""

import itertools
import mmap
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from strongroom.base.direct import BLOCK_BYTES, DIRECT_BYTES_MIN, DirectWriter, direct_alignment


def _make(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


def _aligned(data: bytes, phase: int) -> memoryview:
    """The data in memory at an address `phase` above a block border."""
    memory = memoryview(mmap.mmap(-1, len(data) + BLOCK_BYTES))
    memory[phase : phase + len(data)] = data
    return memory[phase : phase + len(data)]


def _cuts(rng: random.Random, size: int) -> list[tuple[int, int]]:
    """[0, size) in pieces of 1 byte to 3 MiB, in any order."""
    borders = sorted({0, size, *(rng.randrange(size) for _ in range(12)), *(rng.randrange(4096) for _ in range(3))})
    pieces = list(itertools.pairwise(borders))
    rng.shuffle(pieces)
    return pieces


@pytest.mark.parametrize("seed", range(8))
def test_pieces_at_any_offset_address_and_order_become_the_file(tmp_path: Path, seed: int) -> None:
    """Whatever way each part goes, two threads that write neighbours leave exactly the bytes they were given."""
    rng = random.Random(seed)
    data = rng.randbytes(5 * 1024 * 1024 + rng.randrange(10_000))
    fd = _make(tmp_path / "file")
    writer = DirectWriter(fd, len(data))

    def write(piece: tuple[int, int]) -> None:
        start, end = piece
        lies = start % BLOCK_BYTES if seed % 2 else rng.randrange(BLOCK_BYTES)
        writer.write(start, _aligned(data[start:end], lies))

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, _cuts(rng, len(data))))
    writer.close()
    assert (tmp_path / "file").read_bytes() == data
    os.close(fd)


def test_bytes_that_cannot_be_written_to_are_copied_first(tmp_path: Path) -> None:
    """A read-only buffer, whose address nobody tells, is written as well."""
    data = random.Random(1).randbytes(DIRECT_BYTES_MIN + 5)
    fd = _make(tmp_path / "file")
    writer = DirectWriter(fd, len(data))
    writer.write(0, memoryview(data))
    writer.close()
    writer.close()
    assert (tmp_path / "file").read_bytes() == data
    os.close(fd)


def test_large_runs_leave_no_pages_behind(tmp_path: Path) -> None:
    """What went past the page cache is not in it (where the file system of the tests has direct writes)."""
    fd = _make(tmp_path / "file")
    if not direct_alignment(fd):
        pytest.skip("the file system of the temporary folder has no direct writes")
    data = random.Random(2).randbytes(1 << 20)
    writer = DirectWriter(fd, len(data))
    writer.write(0, _aligned(data, 0))
    writer.close()
    with pytest.raises(BlockingIOError):
        os.preadv(fd, [bytearray(4096)], 0, os.RWF_NOWAIT)
    os.close(fd)


def test_a_file_system_without_direct_writes_gets_buffered_ones(tmp_path: Path) -> None:
    """Where the kernel knows of no direct writes, or refuses the open, the file is the same."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("this machine has no file system in memory")
    path = shared / f"strongroom-direct-{os.getpid()}"
    data = random.Random(3).randbytes(DIRECT_BYTES_MIN * 2)
    fd = _make(path)
    try:
        writer = DirectWriter(fd, len(data))
        writer.write(0, _aligned(data, 0))
        writer.close()
        assert path.read_bytes() == data
    finally:
        os.close(fd)
        path.unlink()
