"""A file that had chunks in the parent is cut as if it had none: the old chunks save work and change nothing."""

import random
from dataclasses import replace

import pytest
from engine_streams import MemoryTree, Node, Tree

from strongroom.base.streams import SilentMonitor
from strongroom.engine import BackupRequest, DomainSettings, MasterKey, Repository, backup, create_repository
from strongroom.engine.chunker import HOLE
from strongroom.engine.content import Content
from strongroom.engine.former import AHEAD_ROWS, LOST_CHUNKS_MAX, Former
from strongroom.engine.manifest import open_stream
from strongroom.engine.store.memory import MemoryStore

KIB, MIB = 1 << 10, 1 << 20
OLD, SAME = (b"file",), (b"without a parent",)


def _backup(repository: Repository, number: int, files: Tree, parent: str | None) -> dict[bytes, Content]:
    tree = {path: replace(node, ino=1000 * number + at) for at, (path, node) in enumerate(sorted(files.items()))}
    request = BackupRequest(backup_id=f"b{number}", generation=1, parent=parent)
    backup(repository, MemoryTree(tree), request, SilentMonitor(), lambda: None)
    with repository.session("restore") as session:
        stream = open_stream(repository.load_root(f"b{number}.1"), session.metadata)
        items = [item for record, _ in stream.records() for item in record.items()]
        return {item.entry.name: item.content for item in items if item.content is not None}


def _edited(rng: random.Random, data: bytes) -> bytes:
    """The data after some inserts, cuts, overwrites, moves and runs of zeros."""
    edited = bytearray(data)
    for _ in range(rng.randrange(1, 8)):
        at, length = rng.randrange(len(edited) + 1), rng.choice((1, 100, 70_000, 700_000))
        kind = rng.randrange(6)
        if kind == 0:
            edited[at:at] = rng.randbytes(length)
        elif kind == 1:
            del edited[at : at + length]
        elif kind == 2:
            edited[at : at + length] = rng.randbytes(min(length, len(edited) - at))
        elif kind == 3:
            edited[at:at] = edited[:length]
        elif kind == 4:
            edited[at:at] = bytes(2 * length)
        else:
            del edited[at:]
            edited += rng.randbytes(200 * KIB)
    return bytes(edited)


@pytest.mark.parametrize("seed", range(12))
def test_edits_are_cut_as_if_there_were_no_parent(seed: int) -> None:
    """Rows of an edited file are those of the same bytes under a name that the parent does not have."""
    rng = random.Random(seed)
    repository = create_repository(MemoryStore(), "vault", MasterKey(bytes(32)), DomainSettings())
    before = rng.randbytes(4 * MIB) + bytes(rng.randrange(MIB)) + rng.randbytes(3 * MIB)
    after = _edited(rng, before)
    holes = {"sparse": True, "holes": ((MIB, 2 * MIB),)} if seed % 3 == 0 and len(after) > 3 * MIB else {}
    if holes:
        after = after[:MIB] + bytes(MIB) + after[2 * MIB :]
    _backup(repository, 1, {OLD: Node(data=before)}, None)
    node = Node(data=after, mtime_ns=5, **holes)  # type: ignore[arg-type]
    found = _backup(repository, 2, {OLD: node, SAME: node}, "b1.1")
    assert found[OLD[0]] == found[SAME[0]]
    repository.close()


def _row(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_the_end_of_an_extent_is_no_border() -> None:
    """Chunks before a hole and at the end of a file are never expected, only met."""
    rows = [(_row(1), 10, 0), (_row(2), 20, 10), (HOLE, 5, 30), (_row(3), 30, 35), (_row(4), 40, 65)]
    former = Former(rows)
    assert former.expected() == (_row(1), 10)
    former.took()
    assert former.expected() is None
    former.lose()
    assert not former.meets(_row(9))
    assert former.meets(_row(2))
    assert former.expected() == (_row(3), 30)
    former.took()
    assert former.expected() is None


def test_chunks_that_were_cut_out_are_passed_over() -> None:
    """Some chunks further on it is in step again; beyond its reach it gives up, and asking costs nothing then."""
    rows = [(_row(number), 1, number) for number in range(1, 5 * AHEAD_ROWS)]
    former = Former(iter(rows))
    former.lose()
    assert former.meets(_row(AHEAD_ROWS))
    assert former.expected() == (_row(AHEAD_ROWS + 1), 1)
    former.lose()
    for _ in range(LOST_CHUNKS_MAX + 1):
        assert former.is_useful
        assert not former.meets(_row(4 * AHEAD_ROWS))
    assert not former.is_useful
