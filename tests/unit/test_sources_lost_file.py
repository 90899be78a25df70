"""A file that is taken away from under its descriptor, as a network file system does it."""

import os
from pathlib import Path

import pytest

from strongroom.base.errors import SourceError
from strongroom.sources.files import OpenFile
from strongroom.sources.inodes import OPEN_READ
from strongroom.sources.pace import Pace


def test_a_lost_file_is_an_error_of_the_source_with_its_path(tmp_path: Path) -> None:
    """Every question to a descriptor that does not answer raises SourceError, never a bare OSError."""
    path = os.fsencode(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"content")
    descriptor = os.open(path, OPEN_READ)
    with OpenFile(descriptor, b"file", path, Pace(None)) as data:
        replacement = os.open("/", os.O_PATH)  # answers nothing but where it is
        os.dup2(replacement, descriptor)
        os.close(replacement)
        for ask in (data.attributes, lambda: data.read_into(0, memoryview(bytearray(4)))):
            with pytest.raises(SourceError, match="file"):
                ask()
        os.close(descriptor)
        with pytest.raises(SourceError, match="file"):
            data.changed()
        assert os.open(os.devnull, os.O_RDONLY) == descriptor  # for the end of the block to close
