"""What prune decides about each pack, as values; and the numbers it decides from."""

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.base.units import MIB
from strongroom.engine.index import Index
from strongroom.engine.index_merge import merge_tables
from strongroom.engine.index_table import Table, encode_table
from strongroom.engine.mark import Marks
from strongroom.engine.model import PACK_BYTES
from strongroom.engine.pack import DATA, METADATA, PACK_CHUNKS_MAX, Pack, Segment
from strongroom.engine.prune_plan import MERGE_PACKS_MIN, SIZES, PackState, plan_prune, small_size, summary
from strongroom.engine.seal import OBJECT_ID_BYTES
from strongroom.engine.usage import Usage

ID = bytes(16)
FULL = PackState(id=b"f" * 16, size=PACK_BYTES, stored=PACK_BYTES, live=PACK_BYTES)


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
    decision, _ = plan_prune([state, FULL], oldest_pinned=oldest)
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


def pack_state(number: int, stored: int, live: int, **rest: Any) -> PackState:
    return PackState(id=number.to_bytes(16, "big"), size=stored + 100, stored=stored, live=live, **rest)


def test_no_more_than_a_quarter_stays_dead() -> None:
    """Packs over half live are moved, the emptiest first, and no more of them than it takes; the reason has the sum."""
    packs = [pack_state(number, 30 * MIB, 30 * MIB * share // 100) for number, share in enumerate((95, 60, 70, 65, 99))]
    decisions = plan_prune(packs, oldest_pinned=None)
    assert [d.action for d in decisions] == ["keep", "keep", "keep", "keep", "keep"]
    packs += [pack_state(number, 30 * MIB, 30 * MIB * 66 // 100) for number in range(5, 25)]
    decisions = plan_prune(packs, oldest_pinned=None)
    moved = [d.pack for d in decisions if d.action == "move"]
    kept = [d.pack for d in decisions if d.action == "keep"]
    assert {pack.id for pack in packs[1:4:2]} <= {pack.id for pack in moved}
    assert max(pack.live / pack.stored for pack in moved) <= min(pack.live / pack.stored for pack in kept)
    stays = sum(pack.stored for pack in kept) + sum(pack.live for pack in moved)
    assert sum(pack.stored - pack.live for pack in kept) * 4 <= stays
    last = max(moved, key=lambda pack: pack.live / pack.stored)
    waste = sum(pack.stored - pack.live for pack in [*kept, last])
    assert waste * 4 > stays + last.stored - last.live  # one fewer would not have done
    assert all("% of all that stays is dead" in d.reason for d in decisions if d.action == "move")


def test_eight_small_packs_of_a_size_become_one() -> None:
    """Fewer stay; other sizes above, other kinds, full ones by their number of chunks and suspects are left alone."""
    seven = [pack_state(number, 60_000 + number, 60_000) for number in range(7)]
    others = [
        pack_state(20, 9 * MIB, 9 * MIB),
        pack_state(21, 7 * MIB, 7 * MIB),
        pack_state(22, 60_000, 60_000, kind=METADATA),
        pack_state(23, 60_000, 60_000, chunks=PACK_CHUNKS_MAX),
        pack_state(24, 60_000, 60_000, suspect=True),
        FULL,
    ]
    assert {d.action for d in plan_prune(seven + others, oldest_pinned=None)} == {"keep"}
    tiny = pack_state(30, 900, 900)
    eight = [*seven, pack_state(8, 70_000, 70_000), tiny]
    decisions = plan_prune(eight + others, oldest_pinned=None)
    assert [d.action for d in decisions] == ["merge"] * 9 + ["keep"] * 6
    assert "one of 9 small packs" in decisions[0].reason


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(100, 40 * MIB), min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_small_packs_stay_few_and_bytes_are_seldom_written_again(added: list[int], chance: random.Random) -> None:
    """However many increments, a prune after each: small packs stay bounded, a byte moves at most once a size."""
    packs: list[PackState] = []
    written = 0
    for number, size in enumerate(added):
        chunks = chance.randint(1, max(1, min(PACK_CHUNKS_MAX, size // 50)))
        packs.append(pack_state(number, size, size, chunks=chunks))
        decisions = plan_prune(packs, oldest_pinned=None)
        merged = [d.pack for d in decisions if d.action == "merge"]
        written += sum(pack.live for pack in merged)
        packs = [d.pack for d in decisions if d.action == "keep"]
        while merged:
            one: list[PackState] = []
            while merged and sum(p.stored for p in one) < PACK_BYTES and sum(p.chunks for p in one) < PACK_CHUNKS_MAX:
                one.append(merged.pop())
            stored = sum(p.stored for p in one)
            packs.append(pack_state(10_000 + number, stored, stored, chunks=sum(p.chunks for p in one)))
        small = [pack for pack in packs if small_size(pack) is not None]
        assert len(small) < SIZES * MERGE_PACKS_MIN
    assert written <= 2 * SIZES * sum(added)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda stored, live, gone, **rest: PackState(
                id=ID, size=None if gone else stored + 100, stored=stored, live=min(live, stored), **rest
            ),
            stored=st.integers(0, 40 * MIB) | st.integers(0, 5000),
            live=st.integers(0, 40 * MIB),
            gone=st.sampled_from([False] * 9 + [True]),
            kind=st.integers(0, 1),
            chunks=st.integers(0, PACK_CHUNKS_MAX),
            fossil_since=st.none() | st.integers(0, 9),
            suspect=st.sampled_from([False] * 9 + [True]),
        ),
        max_size=40,
    ),
    st.none() | st.integers(0, 9),
)
def test_a_plan_keeps_what_is_needed_and_bounds_what_is_dead(packs: list[PackState], oldest: int | None) -> None:
    """For every repository: nothing needed goes without being moved, the sums are right, the bound holds."""
    decisions = plan_prune(packs, oldest_pinned=oldest)
    assert [d.pack for d in decisions] == packs
    for d in decisions:
        if d.action in ("sweep", "condemn", "wait", "forget"):
            assert d.pack.live == 0
        if d.action in ("move", "merge"):
            assert d.pack.live
            assert not d.pack.suspect
            assert d.pack.size is not None
            assert d.pack.fossil_since is None
        assert d.reason
    kept = [d.pack for d in decisions if d.action == "keep" and d.pack.size is not None and not d.pack.suspect]
    stays = sum(pack.stored for pack in kept) + sum(d.pack.live for d in decisions if d.action in ("move", "merge"))
    assert sum(pack.stored - pack.live for pack in kept) * 4 <= stays
    told = summary(decisions, roots=(), packs=len(packs))
    goes = [d.pack for d in decisions if d.action in ("sweep", "condemn", "move", "merge")]
    assert told.bytes_moved == sum(d.pack.live for d in decisions if d.action in ("move", "merge"))
    assert told.bytes_freed == sum(pack.size or 0 for pack in goes) - told.bytes_moved
    assert told.live_bytes == sum(pack.live for pack in packs)


# --- the numbers ----------------------------------------------------------------------------------------------------


def chunk_id(number: int) -> bytes:
    """An id whose first half collides with that of its neighbours now and then."""
    return (1 + number // 3).to_bytes(8, "big") + number.to_bytes(8, "big") + bytes(16)


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


def usage_of(index: Index, numbers: set[int], **sizes: int) -> Usage:
    """The count when these chunks are needed; `sizes` make portions and slices small."""
    slices = {"slice_rows": sizes["slice_rows"]} if "slice_rows" in sizes else {}
    marks = Marks(slots=1 << 10, **sizes)
    for number in sorted(numbers, reverse=True):
        marks.add_ids(index, chunk_id(number) + bytes(32))
    return Usage(index, marks, **slices)


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
    usage = usage_of(Index(0, made, doubtful), needed)
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


def counted(usage: Usage) -> dict[bytes, object]:
    """All that a count says."""
    said: dict[bytes, object] = {
        pack: (usage.of(pack), usage.chunks_of(pack), frozenset(usage.needed_keys(pack))) for pack in usage.packs
    }
    return said | {b"unknown": usage.unknown.as_bytes(), b"live": usage.live_bytes}


@settings(max_examples=200, deadline=None)
@given(PACKS, st.sets(st.integers(0, 35)), st.sets(st.integers(0, 5)), st.integers(1, 3), st.integers(1, 9))
def test_small_slices_give_what_one_large_one_gives(
    layout: list[list[list[tuple[int, int]]]], needed: set[int], bad: set[int], tables: int, rows: int
) -> None:
    """However little memory it may use, the count is the same; so is what a look-up of a footer's ids gives."""
    packs = [pack_of(number, segments) for number, segments in enumerate(layout)]
    made = [Table(encode_table(packs[start::tables])) for start in range(tables)]
    index = Index(0, made, frozenset(number.to_bytes(16, "big") for number in bad))
    whole = usage_of(index, needed)
    sliced = usage_of(index, needed, slice_rows=rows, portion_ids=rows)
    assert counted(sliced) == counted(whole)
    for pack in packs:
        ids = [chunk for segment in pack.segments for chunk in segment.ids]
        assert sliced.needed_among(pack.id, ids) == whole.needed_keys(pack.id)


@settings(max_examples=200, deadline=None)
@given(
    PACKS,
    st.sets(st.integers(0, 35)),
    st.lists(st.tuples(st.integers(0, 4), st.sets(st.integers(0, 5))), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_marks_follow_the_index(
    layout: list[list[list[tuple[int, int]]]], needed: set[int], changes: list[tuple[int, set[int]]], rows: int
) -> None:
    """Tables come, go and are merged between two looks: what was marked before is marked in the tables of now."""
    packs = [pack_of(number, segments) for number, segments in enumerate(layout)]
    ids = sorted(needed)
    marks = Marks(slice_rows=rows, portion_ids=rows, slots=1 << 10)
    tables: dict[int, Table] = {}
    for step, (count, gone) in enumerate(changes):
        if count:  # else the tables of before, but for those that go
            tables = {part: Table(encode_table(packs[part::count])) for part in range(count)}
        index = Index(step, [table for part, table in tables.items() if part not in gone])
        for number in ids[step :: len(changes)]:
            marks.add_ids(index, chunk_id(number))
        Usage(index, marks, slice_rows=rows)
    so_far = {number for step in range(len(changes)) for number in ids[step :: len(changes)]}
    assert counted(Usage(index, marks)) == counted(usage_of(index, so_far))


def test_a_copy_counts_and_not_what_it_was_made_from() -> None:
    """Of a chunk with several places that in the pack of which most is needed counts, then that in the larger pack."""
    old = pack_of(1, [[(1, 600), (2, 400), (3, 500)]])
    copy = pack_of(2, [[(1, 600)]])
    small, merged = pack_of(3, [[(5, 100)]]), pack_of(4, [[(5, 100), (6, 100)]])
    for order in ([old, copy, small, merged], [merged, small, copy, old]):
        index = Index(0, [Table(encode_table([pack])) for pack in order])
        usage = usage_of(index, {1, 5, 6})
        assert [usage.chunks_of(pack.id)[1] for pack in (old, copy, small, merged)] == [0, 1, 0, 2]


def test_a_wholly_needed_pack_is_wholly_live() -> None:
    """Shares are by raw bytes: all chunks needed is all of the stored bytes, half of them about half."""
    pack = pack_of(1, [[(1, 600), (2, 400)], [(3, 1000)]])
    index = Index(0, [Table(encode_table([pack]))])
    assert usage_of(index, {1, 2, 3}).of(pack.id) == (517 + 517, 517 + 517)
    assert usage_of(index, {1}).of(pack.id) == (1034, -(-517 * 600 // 1000))
    assert usage_of(index, set()).of(pack.id) == (1034, 0)
    assert usage_of(index, {9}).unknown.as_bytes() == {chunk_id(9)[:16]}


def test_a_pack_named_twice_counts_once() -> None:
    """Two index objects may name one pack (a merge whose list was lost): its bytes are not doubled."""
    pack = pack_of(1, [[(1, 600), (2, 400)]])
    table = Table(encode_table([pack]))
    assert usage_of(Index(0, [table, table]), {1, 2}).of(pack.id) == (517, 517)


def test_an_empty_repository_has_no_usage() -> None:
    """No index object and no root is no error."""
    usage = usage_of(Index(0, []), set())
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
