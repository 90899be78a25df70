"""Make the data to back up: a file share, a disk image, incompressible bytes, each in two generations.

    python -m bench.compare.datasets --out DIR [--tree 2G] [--image 4G] [--random 512M] [--seed 1] [--synthetic]

    tree.1/ tree.2/      a share, and itself later: about 2 % of its bytes overwritten in 4 KiB blocks, inserted,
                         appended or new; 1 % of its files renamed, 0.5 % deleted; times move for these only
    image.1 image.2      a raw disk with ext4 made of tree.1, and itself later (see disk.py)
    image.cbt.json       the blocks in which the two differ
    random.1 random.2    bytes no program can compress, and the same with up to 999 bytes inserted at 20 places
    datasets.json        how it was made, counts, and digests: whoever has the same digests has the same data

Files of this host (/usr/lib, /usr/share) compress as real ones do, but are other files elsewhere; --synthetic depends
on the seed alone. What is there already and was made the same way is kept. A process of its own: what starts measured
programs must stay small (see measure.py).
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

from bench.compare import disk
from bench.compare.measure import digest_tree, parse_size, regular_files

HOST_FOLDERS = (Path("/usr/lib"), Path("/usr/share"))
FILE_BYTES_MAX = 300 << 20
CHANGE = 0.02
RENAMED_PART, DELETED_PART = 100, 200  # one file in that many
IN_BIG_FILES = 0.6  # of the changed bytes; the rest are new files
BIG_FILE_BYTES = 64 << 10
COPIED_BYTES_MAX = 4 << 20
LOG_BYTES = 64 << 10
INSERTIONS = 20
FIRST_TIME, SECOND_TIME = 1_700_000_000, 1_740_000_000
POOL_BYTES, WORDS = 16 << 20, 6000
FORMAT = 2  # of this program: a change in what it makes makes all data anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes in bytes. Equal recipes on one host make equal data (the image: up to a few inode times)."""

    tree: int
    image: int
    random: int
    seed: int
    synthetic: bool
    format: int = FORMAT


def make(out: Path, recipe: Recipe) -> dict[str, object]:
    """Make what `recipe` says below `out`, unless it is there; what datasets.json says of it."""
    note = out / "datasets.json"
    if note.exists():
        known: dict[str, object] = json.loads(note.read_text())
        if known["recipe"] == dataclasses.asdict(recipe):
            return known
        note.unlink()
    out.mkdir(parents=True, exist_ok=True)
    one, two = out / "tree.1", out / "tree.2"
    for tree in (one, two):
        shutil.rmtree(tree, ignore_errors=True)
    one.mkdir()
    if recipe.synthetic:
        _write_tree(one, recipe.tree, random.Random(recipe.seed))
    else:
        _copy_host(one, recipe.tree, recipe.seed)
    about: dict[str, object] = {"recipe": dataclasses.asdict(recipe)}
    about["change"] = _make_next_tree(one, two, random.Random(recipe.seed + 7))
    for tree in (one, two):
        files = regular_files(tree)
        about[tree.name] = {
            "files": len(files),
            "bytes": sum(size for _, size in files),
            "sha256": digest_tree(tree),
        }
    changed = disk.make(one, two, out, recipe.image, CHANGE, random.Random(recipe.seed + 11))
    _write_random(out, recipe.random, random.Random(recipe.seed + 3))
    for name in ("image.1", "image.2", "random.1", "random.2"):
        found = (out / name).stat()
        about[name] = {"bytes": found.st_size, "allocated": found.st_blocks * 512}
    about["image.changed_bytes"] = changed
    note.write_text(json.dumps(about, indent=1) + "\n")
    return about


# --- the first generation of the tree ---


def _copy_host(out: Path, total: int, seed: int) -> None:
    """Whole folders of this host in a seeded order, until there are `total` bytes: neighbours stay neighbours."""
    groups: dict[str, list[Path]] = {}
    for top in HOST_FOLDERS:
        for folder, folders, names in os.walk(top):
            folders.sort()
            group = "/".join(folder.split("/")[1:5])
            groups.setdefault(group, []).extend(Path(folder, name) for name in sorted(names))
    copied = 0
    for group in sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        for path in groups[group]:
            copied += _copy_one(path, out / path.relative_to("/"), total - copied)
        if copied >= total * 0.995:
            return


def _copy_one(path: Path, to: Path, room: int) -> int:
    """Copy a file or symbolic link; the bytes it brought. What may not be read, or would not fit, is left out."""
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(os.readlink(path))
        elif stat.S_ISREG(found.st_mode) and found.st_size <= min(FILE_BYTES_MAX, room):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)
            return found.st_size
    except (PermissionError, FileExistsError, FileNotFoundError):
        pass  # a host lives; its digest says what was copied
    return 0


def _write_tree(out: Path, total: int, rng: random.Random) -> None:
    """Files of text (70 %), of binary data (20 %) and incompressible ones, with the sizes of a share (log-normal)."""
    pool = _words(rng, min(POOL_BYTES, max(total, 2 << 20)))
    written = number = 0
    while written < total:
        folder = out / f"share{number // 400:04d}" / f"folder{number // 40 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        size = min(int(rng.lognormvariate(9.2, 1.9)), FILE_BYTES_MAX, max(total - written, 64))
        kind = rng.choices(("txt", "dat", "jpg"), (70, 20, 10))[0]
        path = folder / f"file{number:06d}.{kind}"
        with path.open("wb") as file:
            for start in range(0, size, 1 << 20):
                file.write(_piece(rng, pool, kind, min(1 << 20, size - start)))
        os.utime(path, (FIRST_TIME + number,) * 2)
        written += size
        number += 1


def _words(rng: random.Random, size: int) -> bytes:
    """Text in which few words are frequent, as in any language."""
    letters = b"abcdefghijklmnopqrstuvwxyz0123456789_./"
    words = [bytes(rng.choices(letters, k=rng.randint(2, 11))) for _ in range(WORDS)]
    weights = [1 / (rank + 5) for rank in range(WORDS)]
    lines: list[bytes] = []
    length = 0
    while length < size:
        lines.append(b" ".join(rng.choices(words, weights, k=400)))
        length += len(lines[-1]) + 1
    return b"\n".join(lines)[:size]


def _piece(rng: random.Random, pool: bytes, kind: str, size: int) -> bytes:
    """A piece of the pool with 8 random bytes here and there, so that it is hardly anywhere else."""
    if kind == "jpg":
        return rng.randbytes(size)
    start = rng.randrange(len(pool) - size + 1)
    piece = bytearray(pool[start : start + size])
    for _ in range(1 + size // (900 if kind == "txt" else 120)):
        _overwrite(piece, rng.randrange(size), rng.randbytes(8))
    return bytes(piece)


def _overwrite(data: bytearray, at: int, new: bytes) -> None:
    """Put `new` at `at`; the length stays."""
    new = new[: len(data) - at]
    data[at : at + len(new)] = new


# --- the second generation ---


def _make_next_tree(one: Path, two: Path, rng: random.Random) -> dict[str, int]:
    """Copy `one` to `two` and change it as its users would; what was done, in files and (about) bytes.

    What an increment costs hangs on few large files: keep the order of the draws, and old figures stay comparable.
    """
    subprocess.run(["cp", "-a", "--reflink=auto", one, two], check=True)
    files = regular_files(two)
    budget = int(sum(size for _, size in files) * CHANGE)
    large = [(path, size) for path, size in files if size > BIG_FILE_BYTES]
    rng.shuffle(files)
    rng.shuffle(large)
    renamed = max(1, len(files) // RENAMED_PART)
    deleted = max(1, len(files) // DELETED_PART)
    for path, _ in files[:renamed]:
        path.rename(path.with_name(path.name + ".moved"))
    for path, _ in files[renamed : renamed + deleted]:
        path.unlink()
    gone = {path for path, _ in files[: renamed + deleted]}
    done = {"renamed": renamed, "deleted": deleted, "overwritten": 0, "inserted": 0, "appended": 0, "created": 0}
    changed, stamp = 0, SECOND_TIME
    for path, size in large:
        if changed > budget * IN_BIG_FILES:
            break
        if path not in gone:
            way, cost = _change_file(path, size, rng)
            done[way] += 1
            changed += cost
            stamp += 1
            os.utime(path, (stamp, stamp))
    while changed < budget:
        like, size = rng.choice(files)
        if like not in gone and 0 < size <= COPIED_BYTES_MAX:
            path = like.with_name(f"new-{done['created']:06d}.dat")
            path.write_bytes(_half_new(like.read_bytes(), rng, every=512, of=24))
            done["created"] += 1
            changed += size
            stamp += 1
            os.utime(path, (stamp, stamp))
    return {**done, "bytes": changed}


def _change_file(path: Path, size: int, rng: random.Random) -> tuple[str, int]:
    """Change one file in one of three ways: which, and about how many bytes a deduplicating program finds new."""
    draw = rng.random()
    way = "overwritten" if draw < 0.5 else "inserted" if draw < 0.8 else "appended"
    if way == "overwritten":  # as a database does: 4 KiB blocks, half of each compressible
        blocks = max(1, size // (512 << 10))
        with path.open("r+b") as file:
            for _ in range(blocks):
                file.seek(rng.randrange(size - 4096) & ~4095)
                file.write(rng.randbytes(2048) + bytes(2048))
        return way, blocks * 4096
    if way == "inserted":
        at, new = rng.randrange(size), rng.randbytes(rng.randint(1, 700))
        data = path.read_bytes()
        path.write_bytes(data[:at] + new + data[at:])
        return way, len(new) + BIG_FILE_BYTES
    with path.open("ab") as file:
        file.write(b"2026-11-23T00:00:00Z level=info msg=" + rng.randbytes(LOG_BYTES).hex().encode())
    return way, 2 * LOG_BYTES


def _half_new(data: bytes, rng: random.Random, every: int, of: int) -> bytes:
    """`data` with `of` random bytes in every `every`: new to everybody, and compressible as before."""
    changed = bytearray(data)
    for at in range(0, len(changed), every):
        _overwrite(changed, at, rng.randbytes(of))
    return bytes(changed)


def _write_random(out: Path, total: int, rng: random.Random) -> None:
    step = max(total // INSERTIONS, 1)
    with (out / "random.1").open("wb") as one, (out / "random.2").open("wb") as two:
        for start in range(0, total, step):
            left = min(step, total - start)
            while left:
                piece = rng.randbytes(min(left, 1 << 20))
                one.write(piece)
                two.write(piece)
                left -= len(piece)
            two.write(rng.randbytes(rng.randint(1, 999)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the data of the benchmark.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tree", type=parse_size, default=parse_size("2G"))
    parser.add_argument("--image", type=parse_size, default=parse_size("4G"))
    parser.add_argument("--random", type=parse_size, default=parse_size("512M"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--synthetic", action="store_true", help="of the seed alone, not of this host's files")
    options = parser.parse_args()
    recipe = Recipe(**{name: value for name, value in vars(options).items() if name != "out"})
    make(options.out, recipe)


if __name__ == "__main__":
    main()
