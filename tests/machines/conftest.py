"""Fixtures of the machines' suite."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from libvirt_world import Hypervisor, libvirtd


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets have names of less than 108 bytes, however the test is called."""
    folder = Path(tempfile.mkdtemp(prefix="sr-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """One libvirt daemon per pytest process, started by the first test that asks."""
    with libvirtd() as running:
        yield running
