"""Fixtures of the unit suite: what `strongroom engine` is tried on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_streams import noise

from strongroom.cli.engine import EXIT_OK, run
from strongroom.engine import Pool


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a large file, an empty one, and two kinds of link."""
    source = tmp_path / "source"
    (source / "d" / "e").mkdir(parents=True)
    (source / "a").write_bytes(b"a" * 1000)
    (source / "d" / "large").write_bytes(noise(3 << 20, 1))
    (source / "d" / "e" / "link").symlink_to("../large")
    os.link(source / "a", source / "d" / "same")
    (source / "empty").touch(mode=0o600)
    return source


@pytest.fixture
def repo(tmp_path: Path) -> str:
    """An empty repository in a folder."""
    assert run(["init", str(tmp_path / "repo")]) == EXIT_OK
    return str(tmp_path / "repo")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(threads=2)
    yield pool
    pool.close()
