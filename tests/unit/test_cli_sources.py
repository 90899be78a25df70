"""`strongroom source check` of folders, files and addresses that nobody answers at."""

import json
from pathlib import Path

import pytest

from strongroom.cli.main import run


def checked(address: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    code = run(["source", "check", address, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_folder_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each ability has a reason, and the exit code says that a backup would start."""
    code, found = checked(str(tmp_path), capsys)
    assert (code, found["type"], found["readable"]) == (0, "OS::Sfs::Turbo", True)
    assert found["abilities"]
    assert run(["source", "check", str(tmp_path)]) == 0
    assert "A backup can be made." in capsys.readouterr().out


def test_an_image_is_checked_and_a_missing_one_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "a:disk.raw"
    image.write_bytes(bytes(4096))
    code, found = checked(str(image), capsys)
    assert (code, found["type"], found["size_bytes"]) == (0, "OS::Cinder::Volume", 4096)
    image.unlink()
    code, found = checked(str(image), capsys)
    assert (code, found["exists"]) == (1, False)


def test_an_address_that_is_none_says_how_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["source", "check", "libvirt:xen:///system#web"]) == 1
    assert "libvirt:qemu:///system#NAME" in capsys.readouterr().err


def test_a_machine_that_nobody_runs_is_not_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither libvirt's binding nor its daemon need to be here for the answer."""
    code, found = checked(f"libvirt:qemu+unix:///session?socket={tmp_path}/none#web", capsys)
    assert (code, found["readable"]) == (1, False)
    assert found["reason"]
