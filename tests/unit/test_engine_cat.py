"""`strongroom engine cat`: a restore point's bytes on standard output, read at random."""

import subprocess
import sys
from pathlib import Path

import pytest
from engine_streams import noise

from strongroom.cli.engine import EXIT_FAILED, EXIT_OK, EXIT_USAGE, run


def test_a_file_or_a_disk_is_written_to_standard_output(
    tmp_path: Path, source: Path, repo: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """`cat` gives a file of a tree, a disk, or any range of them, byte for byte; what is not there has a sentence."""
    disk = noise(5 << 20, 3) + bytes(1 << 20) + b"end"
    (tmp_path / "disk.raw").write_bytes(disk)
    assert run(["backup", repo, str(source), "tree"]) == EXIT_OK
    assert run(["backup", repo, str(tmp_path / "disk.raw"), "disk"]) == EXIT_OK
    capfdbinary.readouterr()

    def cat(*argv: str, code: int = EXIT_OK) -> bytes:
        assert run(["cat", repo, *argv]) == code
        return capfdbinary.readouterr().out

    assert cat("tree", "d/large") == noise(3 << 20, 1)
    assert cat("tree", "/empty") == b""
    assert cat("disk") == disk
    assert cat("disk", "--offset", "5242000", "--length", "2000") == disk[5242000:5244000]
    assert cat("disk", "--offset", str(len(disk) - 3)) == b"end"
    assert cat("disk", "--offset", str(len(disk) + 3)) == b""
    for argv in (["tree"], ["tree", "d"], ["tree", "none"], ["disk", "x"], ["none"]):
        assert cat(*argv, code=EXIT_FAILED) == b""
    assert cat("disk", "--offset", "-1", code=EXIT_USAGE) == b""


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, repo: str) -> None:
    """`cat` into a pipe that is closed early ends well, and quietly."""
    (tmp_path / "disk.raw").write_bytes(noise(4 << 20, 3))
    assert run(["backup", repo, str(tmp_path / "disk.raw"), "disk"]) == EXIT_OK
    command = [sys.executable, "-m", "strongroom", "engine", "cat", repo, "disk"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(100) == noise(4 << 20, 3)[:100]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == EXIT_OK
