"""Many keys looked up at once, and the guides that make it fast. Columns in, columns out; numpy, so it is loaded late.

    directory   the first rows of equal slices of the key space, some 8 rows each: a search begins where it nearly ends
    bloom       one word of 64 bits for some 6 keys, 4 bits a key: 98 of 100 unknown keys end there, without a look at
                the columns, which may lie on disk

Keys are hashes, so slices of the key space fill evenly; columns of keys that are not (or share their first half) are
searched correctly, only slower. Both guides go by the high bits of the first half: sorted keys walk through them in
order, and through the columns too. Numbers are in docs/decisions/0004.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.index_table import SEGMENT, WORD_BITS, Table

BLOOM_PROBES = 4
SLICE_KEYS = 1 << 15  # looked up in one go: temporaries of 256 KB each stay in the cache of a core
SLICE_ROWS = 1 << 20  # of a column that is passed over: 8 MB

_HALF = np.uint64(32)
_PROBE_BITS = 6  # 64 positions in a word
_SEGMENT = np.dtype([("pack", "<u4"), ("rest", f"V{SEGMENT.size - 4}")])
_PACK = np.dtype([("first", "<u8"), ("second", "<u8"), ("size", "<u8"), ("kind", "u1")])

Halves = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Located(NamedTuple):
    """For each key the number of the table that has it, -1 for an unknown one, and the row in that table."""

    table: npt.NDArray[np.int32]
    row: Rows


def halves(joined: bytes | memoryview, width: int = KEY_BYTES) -> tuple[Halves, Halves]:
    """The two columns of keys that lie one after the other, each in the first bytes of `width`."""
    whole = np.frombuffer(joined, "<u8").reshape(-1, width // 8)
    return whole[:, 0], whole[:, 1]


# --- guides ---


def directory_of(first: Halves, bits: int) -> Iterator[npt.NDArray[np.uint32]]:
    """The entries of a directory of 2^bits slices, in pieces; the last one is the number of rows."""
    slices = 1 << bits
    shift = np.uint64(WORD_BITS - bits)
    for at in range(0, slices, SLICE_ROWS):
        edges = np.arange(at, min(at + SLICE_ROWS, slices), dtype=np.uint64) << shift
        yield np.searchsorted(first, edges).astype(np.uint32)
    yield np.array([len(first)], np.uint32)


def fill_bloom(words: Halves, first: Halves, second: Halves) -> None:
    """Note the keys, whose first halves ascend, in a filter of zeros."""
    for at in range(0, len(first), SLICE_ROWS):
        block = _block(first[at : at + SLICE_ROWS], len(words))
        marks = _marks(second[at : at + SLICE_ROWS])
        begins = np.ones(len(block), dtype=bool)
        begins[1:] = block[1:] != block[:-1]
        starts = np.flatnonzero(begins)
        words[block[starts]] |= np.bitwise_or.reduceat(marks, starts)


def _block(first: Halves, words: int) -> Rows:
    """The word of a key; ascends with the key."""
    return (((first >> _HALF) * np.uint64(words)) >> _HALF).view(np.int64)


def _marks(second: Halves) -> Halves:
    one, low = np.uint64(1), np.uint64(WORD_BITS - 1)
    marks = one << (second & low)
    for probe in range(1, BLOOM_PROBES):
        marks |= one << ((second >> np.uint64(_PROBE_BITS * probe)) & low)
    return marks


# --- searching one table ---


class _Searcher:
    """One table with its columns as arrays, and which of its segments lie in bad packs."""

    def __init__(self, table: Table, bad: frozenset[bytes]) -> None:
        self._table = table
        self._first = _aligned(table.first, "<u8")
        self._second = np.frombuffer(table.second, "<u8")
        self._segment = np.frombuffer(table.segment, "<u4")
        self._bad = bad_segments(table, bad)
        guide = table.guide
        self._shift = np.uint64(guide.shift) if guide else None
        self._directory = np.frombuffer(guide.directory, "<u4") if guide else None
        self._bloom = np.frombuffer(guide.bloom, "<u8") if guide else None

    def find(self, first: Halves, second: Halves) -> tuple[Rows, Rows]:
        """(row in a sound pack or -1, row in a bad pack or -1) for each key."""
        sound = np.full(len(first), -1, np.int64)
        doubtful = np.full(len(first), -1, np.int64)
        count = len(self._first)
        if not count:
            return sound, doubtful
        at = self._may_have(first, second)
        row = self._lower_bound(first[at])
        while len(at):
            row_there = np.minimum(row, count - 1)
            goes_on = (self._first[row_there] == first[at]) & (row < count)
            at, row = at[goes_on], row[goes_on]
            same = self._second[row] == second[at]
            if self._bad is None:
                sound[at[same]] = row[same]
                at, row = at[~same], row[~same] + 1
                continue
            rotten = self._is_bad(row)
            fine = same & ~rotten
            sound[at[fine]] = row[fine]
            poor = same & rotten
            fresh = poor & (doubtful[at] < 0)
            doubtful[at[fresh]] = row[fresh]
            at, row = at[~fine], row[~fine] + 1
        return sound, doubtful

    def _may_have(self, first: Halves, second: Halves) -> Rows:
        """Positions of the keys that pass the filter."""
        if self._bloom is None:
            return np.arange(len(first))
        marks = _marks(second)
        return np.flatnonzero((self._bloom[_block(first, len(self._bloom))] & marks) == marks)

    def _lower_bound(self, first: Halves) -> Rows:
        """The first row that is not below each key."""
        if self._directory is None or self._shift is None:
            return np.searchsorted(self._first, first).astype(np.int64)
        slices = (first >> self._shift).view(np.int64)
        low, high = self._directory[slices].astype(np.int64), self._directory[slices + 1].astype(np.int64)
        last = len(self._first) - 1
        below = low - 1  # the last row known to be below the key
        step = 1 << max(int((high - low).max(initial=1)).bit_length() - 1, 0)
        while step:
            further = below + step
            np.minimum(further, last, out=further)
            is_below = (further < high) & (self._first[further] < first)
            below = np.where(is_below, further, below)
            step >>= 1
        return below + 1

    def _is_bad(self, row: Rows) -> Mask:
        assert self._bad is not None
        segment = self._segment[row]
        is_bad: Mask = self._bad[np.minimum(segment, len(self._bad) - 1)] | (segment >= len(self._bad))
        return is_bad


def _aligned(column: memoryview, kind: str) -> npt.NDArray[Any]:
    """As an array that numpy need not copy at each use; what is in a file lies well already."""
    return np.require(np.frombuffer(column, kind), requirements="A")


def bad_segments(table: Table, bad: frozenset[bytes]) -> Mask | None:
    """Which segments of a table lie in a bad pack or in none; None when all are sound."""
    if not bad:
        return None
    packs = pack_rows(table)
    suspects = [int(at) for at in np.flatnonzero(np.isin(packs["first"], halves(b"".join(sorted(bad)))[0]))]
    is_bad = np.zeros(len(packs) + 1, dtype=bool)
    is_bad[[at for at in suspects if table.packs[at].id in bad]] = True
    is_bad[len(packs)] = True
    pack = np.minimum(np.frombuffer(table.segments, _SEGMENT)["pack"], len(packs))
    marked = is_bad[pack]
    return marked if marked.any() else None


def pack_rows(table: Table) -> npt.NDArray[Any]:
    """The packs of a table as rows of (first and second half of the id, size, kind)."""
    return np.frombuffer(table.packs.view, _PACK)


# --- searching many tables ---


def locate(tables: tuple[Table, ...], bad: frozenset[bytes], first: Halves, second: Halves) -> tuple[Located, Mask]:
    """(where a reader looks first for each key, whether a writer may rely on it). Fastest for ascending keys."""
    number = np.full(len(first), -1, np.int32)
    rows = np.full(len(first), -1, np.int64)
    known = np.zeros(len(first), dtype=bool)
    searchers = [_Searcher(table, bad) for table in tables]
    for at in range(0, len(first), SLICE_KEYS):
        here = slice(at, at + SLICE_KEYS)
        _locate(searchers, first[here], second[here], number[here], rows[here], known[here])
    return Located(number, rows), known


def _locate(
    searchers: list[_Searcher],
    first: Halves,
    second: Halves,
    number: npt.NDArray[np.int32],
    rows: Rows,
    known: Mask,
) -> None:
    first, second = np.ascontiguousarray(first), np.ascontiguousarray(second)
    left: Rows | None = None  # positions no table has a sound row for
    for own, searcher in enumerate(searchers):
        some = (first, second) if left is None else (first[left], second[left])
        sound, doubtful = searcher.find(*some)
        found = sound >= 0
        at = np.flatnonzero(found) if left is None else left[found]
        number[at], rows[at], known[at] = own, sound[found], True
        poor = ~found & (doubtful >= 0)
        if poor.any():
            at = np.flatnonzero(poor) if left is None else left[poor]
            fresh = number[at] < 0
            number[at[fresh]], rows[at[fresh]] = own, doubtful[poor][fresh]
        left = np.flatnonzero(~found) if left is None else left[~found]
        if not len(left):
            return


def mark_born(born: Container[bytes], first: Halves, second: Halves, known: Mask) -> None:
    """Note these keys as known."""
    unknown = np.flatnonzero(~known)
    joined = np.stack([first[unknown], second[unknown]], axis=1).astype("<u8").tobytes()
    known[unknown] = [joined[at : at + KEY_BYTES] in born for at in range(0, len(joined), KEY_BYTES)]


# --- packs ---


def bad_packs(tables: Sequence[Table], listed: Iterable[tuple[str, int]]) -> frozenset[bytes]:
    """Ids of the packs that the store, which lists (id in hex, size), does not hold with the size each table says."""
    sizes = _PackSizes(tables)
    names, bytes_ = [], []
    for name, size in listed:
        if len(name) != 2 * KEY_BYTES:
            continue
        names.append(name)
        bytes_.append(size)
        if len(names) >= SLICE_KEYS:
            sizes.note(names, bytes_)
            names, bytes_ = [], []
    sizes.note(names, bytes_)
    return sizes.bad()


class _PackSizes:
    """The packs of some tables, sorted: 24 bytes each."""

    def __init__(self, tables: Sequence[Table]) -> None:
        rows = np.concatenate([np.empty(0, _PACK), *(pack_rows(table) for table in tables)])
        order = np.argsort(rows["first"], kind="stable")
        self._first, self._second = rows["first"][order], rows["second"][order]
        self._size = rows["size"][order]
        self._is_sound = np.zeros(len(order), dtype=bool)

    def note(self, names: list[str], sizes: list[int]) -> None:
        try:
            first, second = halves(bytes.fromhex("".join(names)))
        except ValueError:  # somebody's file among the packs: its neighbours are looked at one by one
            if len(names) > 1:
                for name, size in zip(names, sizes, strict=True):
                    self.note([name], [size])
            return
        wanted = np.array(sizes, np.uint64)
        row = np.searchsorted(self._first, first)
        at = np.arange(len(first))
        while len(at):
            at, row = at[row < len(self._first)], row[row < len(self._first)]
            goes_on = self._first[row] == first[at]
            at, row = at[goes_on], row[goes_on]
            self._is_sound[row[(self._second[row] == second[at]) & (self._size[row] == wanted[at])]] = True
            row = row + 1

    def bad(self) -> frozenset[bytes]:
        rows = np.flatnonzero(~self._is_sound)
        joined = np.stack([self._first[rows], self._second[rows]], axis=1).astype("<u8").tobytes()
        return frozenset(joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES))
