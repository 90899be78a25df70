"""What prune decides about each pack, as values; and the numbers it decides from."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.engine.index import Index
from strongroom.engine.index_merge import merge_tables
from strongroom.engine.index_table import Table, encode_table
from strongroom.engine.mark import Keys, Usage
from strongroom.engine.pack import DATA, Pack, Segment
from strongroom.engine.prune import PackState, plan_prune
from strongroom.engine.seal import OBJECT_ID_BYTES

ID = bytes(16)


@pytest.mark.parametrize(
    ("state", "oldest", "action", "reason"),
    [
        (PackState(id=ID, size=100, stored=90, live=90), None, "keep", "100 % live"),
        (PackState(id=ID, size=100, stored=90, live=45), None, "keep", "50 % live"),
        (PackState(id=ID, size=100, stored=90, live=44), None, "move", "48 % live"),
        (PackState(id=ID, size=100, stored=90, live=1, suspect=True), None, "keep", "1 % live"),
        (PackState(id=ID, size=100, stored=90, live=0), None, "condemn", "no root needs it"),
        (PackState(id=ID, size=100, stored=0, live=0), None, "condemn", "no index object names it"),
        (PackState(id=ID, size=100, stored=90, live=0, fossil_since=7), None, "sweep", "a fossil since list 7"),
        (PackState(id=ID, size=100, stored=90, live=0, fossil_since=7), 7, "sweep", "nobody pins an older one"),
        (PackState(id=ID, size=100, stored=90, live=0, fossil_since=7), 6, "wait", "list 6 is pinned"),
        (PackState(id=ID, size=100, stored=90, live=90, fossil_since=7), None, "revive", "a root needs it"),
        (PackState(id=ID, size=100, stored=90, live=1, fossil_since=7), 9, "revive", "a root needs it"),
        (PackState(id=ID, size=None, stored=90, live=1), None, "keep", "missing: damage"),
        (PackState(id=ID, size=None, stored=90, live=0), None, "forget", "gone"),
        (PackState(id=ID, size=None, stored=0, live=0, fossil_since=7), 3, "forget", "gone"),
    ],
)
def test_each_pack_gets_what_it_deserves(state: PackState, oldest: int | None, action: str, reason: str) -> None:
    """A pack goes only when no root needs it, it is a fossil, and nobody pins a list older than that."""
    (decision,) = plan_prune([state], oldest_pinned=oldest)
    assert (decision.action, decision.pack) == (action, state)
    assert reason in decision.reason


@given(
    st.builds(
        PackState,
        id=st.just(ID),
        size=st.none() | st.integers(1, 100),
        stored=st.integers(0, 100),
        live=st.integers(0, 100),
        fossil_since=st.none() | st.integers(0, 9),
        suspect=st.booleans(),
    ),
    st.none() | st.integers(0, 9),
)
def test_what_is_needed_is_never_deleted(state: PackState, oldest: int | None) -> None:
    """For every state there is: sweep means dead, and known as such to every session."""
    (decision,) = plan_prune([state], oldest_pinned=oldest)
    if decision.action == "sweep":
        assert state.live == 0
        assert state.fossil_since is not None
        assert oldest is None or oldest >= state.fossil_since
    if state.live:
        assert decision.action in ("keep", "move", "revive")


# --- the numbers ----------------------------------------------------------------------------------------------------


def chunk_id(number: int) -> bytes:
    """An id whose first half collides with that of its neighbours now and then."""
    return (number // 3).to_bytes(8, "big") + number.to_bytes(8, "big") + bytes(16)


def pack_of(number: int, segments: list[list[tuple[int, int]]]) -> Pack:
    """Segments of (chunk number, length), stored at half their size."""
    made, offset = [], OBJECT_ID_BYTES
    for chunks in segments:
        raw = sum(length for _, length in chunks)
        stored = raw // 2 + 17
        ids, lengths = [chunk_id(chunk) for chunk, _ in chunks], [length for _, length in chunks]
        made.append(Segment(offset, stored, raw, 1, ids, lengths))
        offset += stored
    return Pack(id=number.to_bytes(16, "big"), size=offset, kind=DATA, segments=made)


def keys_of(numbers: set[int]) -> Keys:
    halves = np.frombuffer(b"".join(chunk_id(number)[:16] for number in sorted(numbers)), "<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    return Keys(halves[order, 0].copy(), halves[order, 1].copy())


PACKS = st.lists(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(2, 9)), min_size=1, max_size=4), max_size=3), max_size=6
)


@settings(max_examples=200, deadline=None)
@given(PACKS, st.sets(st.integers(0, 35)), st.sets(st.integers(0, 5)), st.integers(1, 3))
def test_usage_is_what_counting_by_hand_gives(
    layout: list[list[list[tuple[int, int]]]], needed: set[int], bad: set[int], tables: int
) -> None:
    """Every needed chunk counts in exactly one pack, a sound one if there is any; the rest is unknown."""
    packs = [
        pack_of(number, [[(chunk, 5) for chunk, _ in segment] for segment in segments])
        for number, segments in enumerate(layout)
    ]
    made = [Table(encode_table(packs[start::tables])) for start in range(tables)]
    doubtful = frozenset(number.to_bytes(16, "big") for number in bad)
    usage = Usage(Index(0, made, doubtful), keys_of(needed))
    places: dict[int, set[int]] = {}
    for number, segments in enumerate(layout):
        for segment in segments:
            for chunk, _ in segment:
                places.setdefault(chunk, set()).add(number)
    assert usage.unknown.as_bytes() == {chunk_id(number)[:16] for number in needed - set(places)}
    holders: dict[int, list[int]] = {}
    for pack in packs:
        if pack.id in usage.packs:
            for key in usage.needed_keys(pack.id):
                holders.setdefault(int.from_bytes(key[8:], "big"), []).append(int.from_bytes(pack.id, "big"))
    assert set(holders) == needed & set(places)
    for chunk, found in holders.items():
        assert len(found) == 1
        sound = places[chunk] - bad
        assert found[0] in (sound or places[chunk])
    for pack in packs:
        stored, live = usage.of(pack.id)
        assert stored == sum(segment.stored for segment in pack.segments)
        assert 0 <= live <= stored
        if not any(found == [int.from_bytes(pack.id, "big")] for found in holders.values()):
            assert live == 0
        else:
            assert live > 0  # zero means garbage: prune would delete what is needed


def test_a_wholly_needed_pack_is_wholly_live() -> None:
    """Shares are by raw bytes: all chunks needed is all of the stored bytes, half of them about half."""
    pack = pack_of(1, [[(1, 600), (2, 400)], [(3, 1000)]])
    index = Index(0, [Table(encode_table([pack]))])
    assert Usage(index, keys_of({1, 2, 3})).of(pack.id) == (517 + 517, 517 + 517)
    assert Usage(index, keys_of({1})).of(pack.id) == (1034, -(-517 * 600 // 1000))
    assert Usage(index, keys_of(set())).of(pack.id) == (1034, 0)
    assert Usage(index, keys_of({9})).unknown.as_bytes() == {chunk_id(9)[:16]}


def test_a_pack_named_twice_counts_once() -> None:
    """Two index objects may name one pack (a merge whose list was lost): its bytes are not doubled."""
    pack = pack_of(1, [[(1, 600), (2, 400)]])
    table = Table(encode_table([pack]))
    assert Usage(Index(0, [table, table]), keys_of({1, 2})).of(pack.id) == (517, 517)


def test_an_empty_repository_has_no_usage() -> None:
    """No index object and no root is no error."""
    usage = Usage(Index(0, []), keys_of(set()))
    assert (usage.packs, usage.live_bytes, usage.unknown.as_bytes()) == ([], 0, set())


@settings(max_examples=100, deadline=None)
@given(PACKS, st.sets(st.integers(0, 5)), st.integers(0, 2**32))
def test_a_merge_without_some_packs(layout: list[list[list[tuple[int, int]]]], gone: set[int], seed: int) -> None:
    """The merged table holds exactly the rows of the packs that stay, at the same places, and is sorted."""
    packs = [pack_of(number, segments) for number, segments in enumerate(layout)]
    tables: list[list[Pack]] = [[], [], []]
    chance = random.Random(seed)
    for pack in packs:
        chance.choice(tables).append(pack)
    lost = frozenset(number.to_bytes(16, "big") for number in gone)
    merged = merge_tables([Table(encode_table(some)) for some in tables], lost)

    def places(table: Table) -> list[tuple[int, int, object]]:
        return sorted((table.first[row], table.second[row], table.place(row)) for row in range(table.chunk_count))  # type: ignore[type-var]

    kept = [pack for pack in packs if pack.id not in lost]
    assert places(merged) == places(Table(encode_table(kept)))
    assert sorted(merged.packs) == sorted(Table(encode_table(kept)).packs)
    assert all(one <= two for one, two in pairwise(merged.first.tolist()))
