"""The journal of a folder restore: what is written is read back, what is damaged or not ours is not believed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_trees import plain_entry

from strongroom.base.errors import SourceError, TargetDenied
from strongroom.base.streams import Attributes
from strongroom.sources.journal import JOURNAL, Journal, Move, Record, load_journal, write_journal
from strongroom.sources.selection import Unit


@pytest.fixture
def stage_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


FULL = Journal(
    state="swapping",
    moves=(
        Move(number=0, unit=Unit(staged=(b"a\xff",), live=(b"a\xff",)), staged=True, new_mode=0, new_flags=0x10),
        Move(number=1, unit=Unit(staged=(), live=(b"new\nline", b'"')), staged=False, old_mode=0o555, old_flags=0x20),
    ),
    missing=((b"new\nline",),),
    parents=(
        Record(
            path=(b"new\nline",),
            entry=plain_entry(b"new\nline", 0o40755, mtime_ns=-5),
            attributes=Attributes(xattrs=((b"user.\xff", bytes(range(256))),), flags=0x40),
        ),
    ),
    root=Record(path=(), entry=plain_entry(b"", 0o40700), attributes=Attributes()),
    trusted=True,
    exclude=("*.tmp", "\udcff"),
)


def test_a_journal_is_read_back_as_it_was_written(stage_fd: int) -> None:
    """Names are any bytes, mode 0 is not None, flags and times keep their sign."""
    assert load_journal(stage_fd) is None
    for journal in (Journal(state="staging"), FULL):
        write_journal(stage_fd, journal)
        assert load_journal(stage_fd) == journal


def test_a_journal_that_others_may_read_or_write_is_not_believed(stage_fd: int, tmp_path: Path) -> None:
    """Nor one that is a link."""
    write_journal(stage_fd, FULL)
    (tmp_path / "journal").chmod(0o660)
    with pytest.raises(SourceError, match="not written by this service"):
        load_journal(stage_fd)
    (tmp_path / "journal").rename(tmp_path / "other")
    (tmp_path / "journal").symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        load_journal(stage_fd)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".strongroom-x"])
def test_a_path_that_leads_out_is_refused(name: str, stage_fd: int, tmp_path: Path) -> None:
    """Names in a journal are names."""
    write_journal(stage_fd, FULL)
    document = json.loads((tmp_path / "journal").read_bytes())
    document["moves"][0][1] = [name]
    (tmp_path / "journal").write_text(json.dumps(document))
    with pytest.raises(TargetDenied):
        load_journal(stage_fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr)))
def test_damage_is_an_error_of_ours(stage_fd: int, raw: bytes | str) -> None:
    """Any bytes: SourceError, never a KeyError."""
    fd = os.open(JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=stage_fd)
    os.write(fd, raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"))
    os.close(fd)
    with pytest.raises(SourceError):
        load_journal(stage_fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(["format", "state", "moves", "missing", "parents", "root", "exclude", "trusted"]),
    st.recursive(st.none() | st.integers(-5, 5) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=8)),
)
def test_any_member_may_be_damaged(stage_fd: int, tmp_path: Path, member: str, value: object) -> None:
    """It is read, or refused as ours."""
    write_journal(stage_fd, FULL)
    document = json.loads((tmp_path / "journal").read_bytes())
    document[member] = value
    (tmp_path / "journal").write_text(json.dumps(document))
    try:
        load_journal(stage_fd)
    except SourceError:
        return
