"""What LVM's tools tell, as values; the tools themselves run in tests/storage/test_lvm.py."""

import random

import pytest

from strongroom.sources.snapshots.lvm import parse_delta, room_for

HEAD = '<superblock uuid="" time="3" transaction="5" data_block_size="128" nr_data_blocks="4096">\n'
HEAD += '<diff left="2" right="3">\n'
END = "</diff>\n</superblock>\n"
UNIT = 64 << 10
SIZE = 3200 * UNIT


def test_what_differs_is_told_in_bytes() -> None:
    """Blocks that only one of both has differ too; neighbours are joined; what is beyond the volume is not named."""
    told = f"""{HEAD}<same begin="0" length="40"/>
    <different begin="40" length="3"/>
    <right_only begin="43" length="2"/>
    <same begin="45" length="100"/>
    <left_only begin="200" length="1"/>
    <different begin="3199" length="9"/>
    {END}"""
    assert parse_delta(told, SIZE) == [(40 * UNIT, 5 * UNIT), (200 * UNIT, UNIT), (3199 * UNIT, UNIT)]


@pytest.mark.parametrize("told", ["", HEAD, END, "no such device", HEAD.replace("data_block_size", "x") + END])
def test_an_answer_that_is_cut_off_tells_nothing(told: str) -> None:
    """Then everything is read."""
    assert parse_delta(told, SIZE) is None


def test_any_cut_of_an_answer_tells_nothing_or_all() -> None:
    """Never a part of it."""
    chance = random.Random(1)
    rows = "".join(f'<different begin="{at}" length="1"/>\n' for at in range(0, 3000, 7))
    whole = HEAD + rows + END
    for _ in range(200):
        cut = whole[: chance.randrange(len(whole))]
        assert parse_delta(cut, SIZE) in (None, parse_delta(whole, SIZE))


@pytest.mark.parametrize(
    ("origin", "free", "room"),
    [
        (100 << 30, 1 << 40, 20 << 30),  # a fifth
        (100 << 30, 6 << 30, 6 << 30),  # what there is
        (100 << 30, 4 << 30, None),  # less than a twentieth
        (32 << 20, 1 << 40, 32 << 20),  # a small one gets the least
        (32 << 20, 16 << 20, None),
    ],
)
def test_room_of_a_classic_snapshot(origin: int, free: int, room: int | None) -> None:
    assert room_for(origin, free) == room
