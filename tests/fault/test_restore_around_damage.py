"""What is whole of a damaged restore point comes back exactly, and what does not is named: nothing in between."""

import random

import pytest
from fault_store import copy_of
from fault_world import MONITOR, MemoryDisk, MemoryTreeTarget, reopen
from test_damage import DAMAGES, SEED, damaged_world
from test_suspects import packs_of

from strongroom.base.errors import Corrupt, ManifestCorrupt, ObjectMissing
from strongroom.engine import restore_block, restore_tree
from strongroom.engine.verify import find_lost

ROOTS = ("tree.1", "tree.2", "disk.1")


@pytest.mark.parametrize("damage", ["flip box", "flip middle", "flip footer", "cut half", "delete", "swap", "foreign"])
def test_what_is_whole_comes_back_and_the_rest_is_named(damage: str) -> None:
    """Each pack damaged in turn: files are byte for byte what they were, or named as lost; a disk has zeros where it
    says so. A root whose list of files does not read is refused as a whole."""
    world, store = damaged_world()
    random.seed(SEED)
    around = whole = refused = 0
    for pack in packs_of(store):
        broken = copy_of(store)
        DAMAGES[damage](broken, pack)
        for root in ROOTS:
            try:
                lost = find_lost(reopen(broken), root, MONITOR)
            except ManifestCorrupt:
                refused += 1
                continue
            if _restored(broken, root, lost, world.kept[root]):
                around += 1
                with pytest.raises((Corrupt, ObjectMissing)):
                    _restored(broken, root, frozenset(), world.kept[root])
            else:
                whole += 1
                _restored(broken, root, frozenset(), world.kept[root])
    assert whole, (around, whole, refused)
    assert around or damage == "flip footer", "its segments are where the index says"


def _restored(store: object, root: str, lost: frozenset[bytes], expected: object) -> int:
    """How much was left out. What came is checked, and what is said to be missing."""
    repository = reopen(store)  # type: ignore[arg-type]
    if isinstance(expected, bytes):
        disk = MemoryDisk(b"\x55" * len(expected))
        report = restore_block(repository, root, disk, MONITOR, lost=lost)
        wanted = bytearray(expected)
        for one in report.lost:
            start, end = (int(word) for word in one.reason.split() if word.isdecimal())
            assert 0 <= start < end <= len(wanted)
            wanted[start:end] = bytes(end - start)
        assert bytes(disk.data) == wanted
    else:
        assert isinstance(expected, dict)
        target = MemoryTreeTarget()
        report = restore_tree(repository, root, target, monitor=MONITOR, lost=lost)
        assert target.finished
        missing = {one.path for one in report.lost}
        assert target.files == {path: data for path, data in expected.items() if path not in missing}
        assert missing <= set(expected)
    assert report.lost_count == len(report.lost)
    return report.lost_count
