"""Ids: their form, that none comes twice, and that they grow with the time."""

import time
import uuid
from itertools import pairwise

from strongroom.base.ids import is_id, new_id


def test_an_id_is_a_uuid_of_version_7_with_the_time_of_now() -> None:
    before = time.time_ns() // 1_000_000
    text = new_id()
    made = uuid.UUID(text)
    assert str(made) == text
    assert is_id(text)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000


def test_later_ids_sort_behind_earlier_ones() -> None:
    """Their text as well: that is what the indexes hold."""
    ids = []
    for _ in range(5):
        ids.append(new_id())
        begun = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == begun:  # until the clock shows the next millisecond
            pass
    assert all(first < second for first, second in pairwise(ids))


def test_ids_of_one_moment_share_nothing_but_the_time() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert len({text[-12:] for text in ids}) == len(ids)
    random = [uuid.UUID(text).int & ((1 << 76) - 1) & ~(0x3 << 62) for text in ids]
    for bit in {*range(76)} - {62, 63}:
        share = sum(number >> bit & 1 for number in random) / len(ids)
        assert 0.45 < share < 0.55, f"bit {bit} is one in {share:.0%}"
