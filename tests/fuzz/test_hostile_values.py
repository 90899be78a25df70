"""What the fuzzers found: values of a legal form that mean the impossible. Each test is named after what happened."""

import json
import os
import resource
import stat
from pathlib import Path

import msgpack
import pytest
from fuzz_targets import DIGESTED, contents, digests, journals, plain_keys
from fuzz_world import entry, items, payloads, repository, rows

from strongroom.base.errors import Corrupt, FormatUnknown, IndexIncomplete, InvalidRequest, ManifestCorrupt, SourceError
from strongroom.cli.engine import _load_changed_blocks
from strongroom.engine import keys
from strongroom.engine.content import ROW, iter_rows, parse_content
from strongroom.engine.digests import decode_digest, whole_digest
from strongroom.engine.index import IndexList
from strongroom.engine.manifest import pack_records, parse_entry, parse_record
from strongroom.engine.roots import parse_root
from strongroom.engine.seal import ROOT
from strongroom.sources.journal import load_journal
from strongroom.sources.tokens import load_token

NESTED = b"[" * 3000 + b"]" * 3000


@pytest.mark.parametrize("position", range(1, 5))
def test_a_list_of_index_objects_that_is_a_number_was_a_type_error(position: int) -> None:
    """A member of an index list that is no list is damage."""
    value: list[object] = [0, [], [], [], []]
    value[position] = 5
    with pytest.raises(IndexIncomplete):
        IndexList.decode(bytes(msgpack.packb(value)), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"size": "x"}, {"size": -1}, {"parent": 7}, {"body": "abcd"}, {"body": [5, None, 0, 0]},
        {"body": [[], None, "x", 0]}, {"created_at_us": 1 << 63}, {"created_at_us": "x"}, {"labels": 5},
    ],
)  # fmt: skip
def test_a_root_of_wrong_forms_was_opened(change: dict[str, object]) -> None:
    """Every member of a root has its form, or the root is damaged: who lists roots does no arithmetic with text."""
    sound = msgpack.unpackb(payloads(ROOT)[0])
    parse_root("b-0.1", bytes(msgpack.packb(sound)))
    with pytest.raises(ManifestCorrupt):
        parse_root("b-0.1", bytes(msgpack.packb(sound | change)))


@pytest.mark.parametrize(
    "change", [{"data_key": 5}, {"dedup_key": b"short"}, {"chunker_seed": 0}, {"chunker_seed": "1"}, {"level": 99}]
)
def test_keys_of_wrong_forms_were_believed(change: dict[str, object]) -> None:
    """Keys are 32 bytes, the seed and the level are ones that we write."""
    sound = msgpack.unpackb(plain_keys()[0])
    keys._domain(bytes(16), bytes(msgpack.packb(sound)))
    with pytest.raises(FormatUnknown):
        keys._domain(bytes(16), bytes(msgpack.packb(sound | change)))


def journal_of(folder: Path, text: bytes) -> int:
    (folder / "journal").write_bytes(text)
    (folder / "journal").chmod(0o600)
    return os.open(folder, os.O_RDONLY)


def test_json_of_many_brackets_was_a_recursion_error(tmp_path: Path) -> None:
    """Nesting deeper than any document of ours is the error of a document that cannot be read."""
    changed = tmp_path / "changed"
    changed.write_bytes(NESTED)
    with pytest.raises(InvalidRequest):
        _load_changed_blocks(str(changed))
    with pytest.raises(SourceError):
        load_journal(journal_of(tmp_path, NESTED))
    assert load_token("folder", NESTED[:4000]) is None


@pytest.mark.parametrize("extent", [[0, 1.5], ["0", 5], [0, float("inf")], [0], [0, 1, 2], 7])
def test_half_a_byte_of_a_changed_extent_was_cut_off(extent: object, tmp_path: Path) -> None:
    """A changed-block list is taken as it stands or refused: rounding would leave out what changed."""
    changed = tmp_path / "changed"
    changed.write_text(json.dumps({"extents": [[0, 4096], extent]}))
    with pytest.raises(InvalidRequest):
        _load_changed_blocks(str(changed))


def test_a_journal_took_the_memory_of_the_largest(tmp_path: Path) -> None:
    """A journal of 500 bytes is read in a process that has no gigabyte to spare."""
    folder = journal_of(tmp_path, journals()[0])
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20), limits[1]))
    try:
        found = load_journal(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert found is not None
    assert len(found.moves) == 2


@pytest.mark.parametrize("place", [("moves", 0, 4), ("moves", 0, 5), ("root", "entry", 1)])
@pytest.mark.parametrize("value", ["x", float("inf"), [1]])
def test_a_journal_with_text_for_a_mode_was_believed(place: tuple, value: object, tmp_path: Path) -> None:
    """Numbers of a journal are numbers."""
    whole = json.loads(journals()[0])
    holder = whole[place[0]][place[1]]
    holder[place[2]] = value
    with pytest.raises(SourceError):
        load_journal(journal_of(tmp_path, json.dumps(whole).encode()))


@pytest.mark.parametrize("field", ["mode", "uid", "gid", "rdev", "size"])
@pytest.mark.parametrize("value", [-1, 1 << 63, (1 << 64) - 1])
def test_an_entry_that_no_system_call_takes_was_believed(field: str, value: int) -> None:
    """Modes, owners, device numbers and sizes fit the calls a restore makes."""
    sound = entry(b"a", stat.S_IFREG | 0o644)
    assert parse_entry(tuple(sound)) == sound
    if field == "rdev" and value > 0:
        assert parse_entry(tuple(sound._replace(rdev=value))).rdev == value
        return
    with pytest.raises(ManifestCorrupt):
        parse_entry(tuple(sound._replace(**{field: value})))


def test_doubts_that_are_no_numbers_were_believed() -> None:
    """A doubt is a number."""
    ((_, data),) = pack_records((), b"", items())
    value = msgpack.unpackb(data[8:], strict_map_key=False)
    value[3] = {0: b"x"}
    with pytest.raises(ManifestCorrupt):
        parse_record(data[:8] + bytes(msgpack.packb(value)))


@pytest.mark.parametrize("covers", [1, 14_999, 15_001, 1 << 62])
def test_a_page_that_covers_less_than_its_row_left_a_gap(covers: int) -> None:
    """The rows of a page add up to what the row above says: no range of a file is left unwritten, none is endless."""
    page = rows(3)
    whole = parse_content([0, 1, ROW.pack(bytes([1] * 32), 15_000)])
    assert [length for _, length, _ in iter_rows(whole, lambda _: page)] == [5000] * 3
    torn = parse_content([0, 1, ROW.pack(bytes([1] * 32), covers)])
    with pytest.raises(ManifestCorrupt):
        list(iter_rows(torn, lambda _: page))


def test_sound_contents_are_read() -> None:
    """The checks above refuse nothing that a writer makes."""
    assert len(contents()) == 4
    made = repository()
    assert sorted(made.root_names()) == ["b-0.1", "b-1.1"]


@pytest.mark.parametrize(
    "change", [{"digest": 1 << 40}, {"fossils": [1 << 40]}, {"size": float("inf")}, {"retired": [5]}]
)
def test_a_digest_took_as_many_zeros_as_it_said(change: dict[str, object]) -> None:
    """A number in the place of bytes is damage, not an allocation; a digest has no seal against who writes it."""
    body = msgpack.unpackb(digests()[0])
    plain = b"SRDIGST1" + bytes(msgpack.packb(body | change))
    with pytest.raises(Corrupt):
        decode_digest(plain + whole_digest(plain), DIGESTED)
