"""File systems of a test's own in loop images."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

IMAGE_BYTES = 400 << 20  # XFS wants 300 MiB at least; the file is sparse
MKFS = {"xfs": ["-q"], "btrfs": ["-q"], "ext4": ["-q", "-F"]}


@contextmanager
def mounted(kind: str, base: Path, options: str = "loop") -> Iterator[Path]:
    """A new file system of this kind, mounted below `base`; skips where it cannot be."""
    tool = shutil.which(f"mkfs.{kind}")
    if tool is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    image, point = base / f"{kind}.img", base / kind
    with image.open("wb") as out:
        out.truncate(IMAGE_BYTES)
    point.mkdir()
    subprocess.run([tool, *MKFS[kind], str(image)], check=True, capture_output=True)
    mount = subprocess.run(["mount", "-o", options, str(image), str(point)], capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"{kind} cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


@contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """A block device of an image file; skips where there are none."""
    made = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
