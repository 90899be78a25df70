"""A raw disk image with ext4 in it, its next generation, and the blocks that differ, as a hypervisor would list them.

The second generation: files rewritten the way ext4 does it (old inode freed, new blocks: debugfs), then blocks of
4 to 64 KiB overwritten in place, some dozen near each other, as a database does. Holes stay holes. No root needed.
"""

import json
import os
import random
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.compare.measure import regular_files

MADE_AT, CHANGED_AT = 1_700_000_000, 1_700_000_009
IDENTITY = str(uuid.UUID(int=1 << 100))  # of the filesystem: the same blocks each time
BLOCK = 64 << 10  # of the changed-block map; what QEMU's dirty bitmaps use
COMPARE_BYTES = 4 << 20
REWRITTEN_BYTES = range((16 << 10) + 1, 8 << 20)
NEAR_BYTES = 512 << 10
ROW = (b"INSERT INTO orders VALUES (0000000000, 'customer', 'pending', NULL);\n" * 48)[:3072]
TOOLS = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}


def make(tree: Path, next_tree: Path, out: Path, size: int, change: float, rng: random.Random) -> int:
    """Write image.1, image.2 and image.cbt.json below `out`; the bytes in changed blocks."""
    one, two = out / "image.1", out / "image.2"
    one.unlink(missing_ok=True)
    with one.open("wb") as file:
        file.truncate(size)
    how = ["-b", "4096", "-i", "8192", "-U", IDENTITY, "-E", f"hash_seed={IDENTITY},lazy_itable_init=1,nodiscard"]
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", *how, "-d", tree, one],
        check=True,
        env={**TOOLS, "E2FSPROGS_FAKE_TIME": str(MADE_AT)},
    )
    subprocess.run(["cp", "--sparse=always", one, two], check=True)
    data = list(data_extents(two))
    budget = int(sum(length for _, length in data) * change / 2)  # half for each way to change
    _rewrite_files(two, next_tree, budget, rng)
    _overwrite_blocks(two, data, budget, rng)
    extents = changed_extents(one, two)
    (out / "image.cbt.json").write_text(json.dumps({"block": BLOCK, "extents": extents}))
    return sum(length for _, length in extents)


def data_extents(path: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is no hole."""
    with path.open("rb", buffering=0) as file:
        end, at = path.stat().st_size, 0
        while at < end:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start, at - start


def _rewrite_files(image: Path, tree: Path, budget: int, rng: random.Random) -> None:
    """Remove files of `tree` from the image and write them anew, 64 bytes in 2 KiB changed, until `budget` is spent."""
    files = [path for path, size in regular_files(tree) if size in REWRITTEN_BYTES and " " not in str(path)]
    rng.shuffle(files)
    commands, new = ["mkdir /changed"], []
    for number, path in enumerate(files):
        if budget < 0:
            break
        content = bytearray(path.read_bytes())
        for at in range(0, len(content), 2048):
            content[at : at + 64] = rng.randbytes(64)[: len(content) - at]
        new.append(image.with_name(f"{image.name}.new{number}"))
        new[-1].write_bytes(content)
        commands += [f"rm /{path.relative_to(tree)}", f"write {new[-1]} /changed/file{number}"]
        budget -= len(content)
    script = image.with_name(f"{image.name}.commands")
    script.write_text("\n".join(commands) + "\n")
    subprocess.run(
        ["debugfs", "-w", "-f", script, image],
        check=True,
        env={**TOOLS, "E2FSPROGS_FAKE_TIME": str(CHANGED_AT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for path in (*new, script):
        path.unlink()


def _overwrite_blocks(image: Path, data: list[tuple[int, int]], budget: int, rng: random.Random) -> None:
    """Overwrite runs of blocks, a quarter of each random, within the extents of `data`."""
    end = image.stat().st_size
    with image.open("r+b", buffering=0) as file:
        while budget > 0 and any(length >= 2 * NEAR_BYTES for _, length in data):
            start, length = rng.choice(data)
            if length < 2 * NEAR_BYTES:
                continue
            near = (start + rng.randrange(length - NEAR_BYTES)) & ~4095
            for _ in range(rng.randint(1, 24)):
                size = rng.choice((4096, 4096, 8192, 16384, 65536))
                at = min(near + (rng.randrange(NEAR_BYTES) & ~4095), end - size)
                os.pwrite(file.fileno(), (rng.randbytes(1024) + ROW) * (size // 4096), at)
                budget -= size


def changed_extents(one: Path, two: Path) -> list[list[int]]:
    """[offset, length] of the blocks in which two files of one size differ, neighbours as one, in order."""
    extents: list[list[int]] = []
    with one.open("rb", buffering=0) as old, two.open("rb", buffering=0) as new:
        at = 0
        while piece := new.read(COMPARE_BYTES):
            before = old.read(COMPARE_BYTES)
            for start in range(0, len(piece), BLOCK) if piece != before else ():
                block = piece[start : start + BLOCK]
                if block == before[start : start + BLOCK]:
                    continue
                if extents and sum(extents[-1]) == at + start:
                    extents[-1][1] += len(block)
                else:
                    extents.append([at + start, len(block)])
            at += len(piece)
    return extents
