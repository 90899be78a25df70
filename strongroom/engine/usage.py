"""How much of each pack is needed, from the marks beside the rows of the index.

A chunk may lie in several packs. One place counts, so that the others may go: that in a sound pack before one in a
doubtful pack, then that in the pack of which more is marked, then in the larger one. So a copy that a prune made counts
from the moment the index knows it, and what it was copied from is free: a prune that was killed goes on from there.

Tables are read in slices of the key space, in which all their rows of a key are together. Memory: one byte a row, eight
bytes a segment, and a slice.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from strongroom.base.errors import IndexIncomplete
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.index import Index
from strongroom.engine.index_table import Table
from strongroom.engine.mark import SLICE_ROWS, Flags, Halves, Keys, Marks, Rows, find_rows, first_of, second_of
from strongroom.engine.pack import DATA

_SEGMENT = np.dtype([("pack", "<u4"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("codec", "u1")])


class Usage:
    """A count, as of now.

    packs    ids of all packs the index names                 live_bytes  sealed bytes that are needed, of all packs
    unknown  keys of needed chunks that no pack holds
    """

    def __init__(self, index: Index, marks: Marks, *, slice_rows: int = SLICE_ROWS) -> None:
        flags = marks.settle(index)
        self.unknown = marks.unknown
        self._numbers: dict[bytes, int] = {}
        self._kinds: list[int] = []
        self._slice_rows = slice_rows
        self._tables = [_Counted(table, self._number) for table in index.tables]
        self.packs = list(self._numbers)
        count = len(self.packs)
        doubtful = np.fromiter((pack in index.bad for pack in self.packs), dtype=bool, count=count)
        self._stored, self._chunks = _first_entries(self._tables, count)
        self._choose(flags, self._rank(flags, doubtful))
        self._live, self._needed = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for counted in self._tables:
            counted.add_live(self._live, self._needed)
        self.live_bytes = int(self._live.sum())

    def of(self, pack: bytes) -> tuple[int, int]:
        """(stored, live) bytes of a pack: sealed bytes of its segments, and the share of them that is needed, by raw
        bytes. Zeros for a pack that no index object names."""
        number = self._numbers.get(pack)
        return (0, 0) if number is None else (int(self._stored[number]), int(self._live[number]))

    def chunks_of(self, pack: bytes) -> tuple[int, int]:
        """(chunks that the index puts there, those for which this pack is the place that counts)."""
        number = self._numbers.get(pack)
        return (0, 0) if number is None else (int(self._chunks[number]), int(self._needed[number]))

    def kind_of(self, pack: bytes) -> int:
        """DATA or METADATA; DATA for a pack that no index object names."""
        number = self._numbers.get(pack)
        return DATA if number is None else self._kinds[number]

    def needs_all(self, ids: Iterable[bytes]) -> bool:
        """Whether each of these chunks is needed, and lies in a pack that the index names; False for none."""
        first, second = _halves(ids)
        found = np.zeros(len(first), dtype=bool)
        for counted in self._tables:
            for which, rows in find_rows(counted.table, first, second):
                found[which[counted.counts[rows]]] = True
        return bool(len(found) and found.all())

    def needed_keys(self, pack: bytes) -> set[bytes]:
        """Keys of the chunks for which this pack is the place that counts. Reads all rows: for few packs."""
        number = self._numbers[pack]
        keys: set[bytes] = set()
        for counted in self._tables:
            for rows in counted.rows_of(number, self._slice_rows):
                first, second = first_of(counted.table)[rows], second_of(counted.table)[rows]
                keys |= Keys(first, second).as_bytes()
        return keys

    def needed_among(self, pack: bytes, ids: Iterable[bytes]) -> set[bytes]:
        """As `needed_keys`, of those that begin one of these ids: a look-up, for who has read the pack's footer."""
        first, second = _halves(ids)
        number = self._numbers[pack]
        found = np.zeros(len(first), dtype=bool)
        for counted in self._tables:
            if counted.names(number):
                for which, rows in find_rows(counted.table, first, second):
                    found[which[counted.counts[rows] & (counted.packs_of(rows) == number)]] = True
        return Keys(first[found], second[found]).as_bytes()

    # --- counting ---

    def _number(self, pack: bytes, kind: int) -> int:
        number = self._numbers.setdefault(pack, len(self._numbers))
        if number == len(self._kinds):
            self._kinds.append(kind)
        return number

    def _rank(self, flags: list[Flags], doubtful: Flags) -> npt.NDArray[np.int64]:
        """Per pack its place in the order in which packs are chosen, if several hold a chunk."""
        count = len(doubtful)
        marked, raw = np.zeros(count, np.float64), np.zeros(count, np.float64)
        for counted, own in zip(self._tables, flags, strict=True):
            raw += np.bincount(counted.pack, counted.info["raw"], count)
            for start in range(0, len(own), self._slice_rows):
                rows = np.flatnonzero(own[start : start + self._slice_rows]) + start
                marked += np.bincount(counted.packs_of(rows), counted.lengths(rows), count)
        share = np.floor(1000 * marked / np.maximum(raw, 1))  # coarse: whole packs are equal, then size decides
        rank = np.empty(count, np.int64)
        rank[np.lexsort((-self._stored, -share, doubtful))] = np.arange(count)
        return rank

    def _choose(self, flags: list[Flags], rank: npt.NDArray[np.int64]) -> None:
        """Say of every needed chunk which row counts."""
        for spans in self._slices():
            parts = [np.flatnonzero(own[start:end]) + start for own, (start, end) in zip(flags, spans, strict=True)]
            first = np.concatenate([first_of(c.table)[rows] for c, rows in zip(self._tables, parts, strict=True)])
            second = np.concatenate([second_of(c.table)[rows] for c, rows in zip(self._tables, parts, strict=True)])
            ranks = np.concatenate([rank[c.packs_of(rows)] for c, rows in zip(self._tables, parts, strict=True)])
            chosen = _best(first, second, ranks)
            at = 0
            for counted, rows in zip(self._tables, parts, strict=True):
                counted.count(rows[chosen[at : at + len(rows)]])
                at += len(rows)

    def _slices(self) -> Iterator[list[tuple[int, int]]]:
        """Per table the rows of one part of the key space, part by part; the largest table says where to cut."""
        tables = [counted.table for counted in self._tables]
        total = sum(table.chunk_count for table in tables)
        if not total:
            return
        largest = first_of(max(tables, key=lambda table: table.chunk_count))
        parts = -(-total // self._slice_rows)
        cuts = np.unique(largest[np.linspace(0, len(largest) - 1, parts, dtype=np.int64)[1:]])
        begins = [0] * len(tables)
        for cut in cuts:
            ends = [int(np.searchsorted(first_of(table), cut)) for table in tables]
            yield list(zip(begins, ends, strict=True))
            begins = ends
        yield [(begin, table.chunk_count) for begin, table in zip(begins, tables, strict=True)]


class _Counted:
    """One table: the columns of its segments, and what is needed of them.

    own     per pack entry of the table: the pack's number        pack  the same per segment
    counts  per row: it is the place that counts for a needed chunk
    """

    def __init__(self, table: Table, number: Callable[[bytes, int], int]) -> None:
        self.table = table
        self.info = np.frombuffer(table.segments, _SEGMENT)
        self.own = np.fromiter((number(pack.id, pack.kind) for pack in table.packs), np.int32, len(table.packs))
        if len(self.info) and (self.info["pack"] >= len(self.own)).any():
            raise IndexIncomplete(reason="an index object refers to a pack it does not have")
        self.pack = self.own[self.info["pack"]] if len(self.info) else np.empty(0, np.int32)
        self.counts = np.zeros(table.chunk_count, dtype=bool)
        self._live_raw = np.zeros(len(self.info), np.uint32)
        self._segment = np.frombuffer(table.segment, "<u4")
        self._length = np.frombuffer(table.length, "<u4")

    def segments(self, rows: Rows) -> npt.NDArray[np.uint32]:
        found = self._segment[rows]
        if len(found) and int(found.max()) >= len(self.info):
            raise IndexIncomplete(reason="an index object refers to a segment it does not have")
        return found

    def packs_of(self, rows: Rows) -> npt.NDArray[np.int32]:
        return self.pack[self.segments(rows)]

    def lengths(self, rows: Rows) -> npt.NDArray[np.uint32]:
        return self._length[rows]

    def count(self, rows: Rows) -> None:
        self.counts[rows] = True
        np.add.at(self._live_raw, self.segments(rows), self._length[rows])

    def add_live(self, live: npt.NDArray[np.int64], needed: npt.NDArray[np.int64]) -> None:
        """Add what is needed of each pack: sealed bytes of segments by their share of raw bytes, and chunks."""
        raw = self.info["raw"].astype(np.int64)
        # Rounded up: a chunk of a few bytes in a segment that compressed well is still a chunk that somebody needs.
        share = -(-self.info["stored"].astype(np.int64) * np.minimum(self._live_raw, raw) // np.maximum(raw, 1))
        live += np.bincount(self.pack, share, len(live)).astype(np.int64)
        for start in range(0, len(self.counts), SLICE_ROWS):
            rows = np.flatnonzero(self.counts[start : start + SLICE_ROWS]) + start
            needed += np.bincount(self.packs_of(rows), minlength=len(needed))

    def names(self, number: int) -> bool:
        return bool((self.own == number).any())

    def rows_of(self, number: int, slice_rows: int) -> Iterator[Rows]:
        """The rows that count and lie in this pack."""
        if not self.names(number):
            return
        mine = self.pack == number
        for start in range(0, len(self.counts), slice_rows):
            rows = np.flatnonzero(self.counts[start : start + slice_rows]) + start
            yield rows[mine[self.segments(rows)]]


def _halves(ids: Iterable[bytes]) -> tuple[Halves, Halves]:
    """The two halves of the keys of these chunks; the first ones ascend."""
    joined = b"".join([chunk_id[:KEY_BYTES] for chunk_id in ids])
    halves = np.frombuffer(joined, "<u8").reshape(-1, 2)
    halves = halves[np.argsort(halves[:, 0])]
    return halves[:, 0].copy(), halves[:, 1].copy()


def _first_entries(tables: list[_Counted], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(sealed bytes, chunks) of each pack, by the first entry that names it: every entry names all of its segments."""
    stored, chunks = np.zeros(count, np.int64), np.zeros(count, np.int64)
    known = np.zeros(count, dtype=bool)
    for counted in tables:
        entries = len(counted.own)
        own_stored = np.bincount(counted.info["pack"], counted.info["stored"], entries).astype(np.int64)
        own_chunks = np.zeros(entries, np.int64)
        segment = np.frombuffer(counted.table.segment, "<u4")
        for start in range(0, len(segment), SLICE_ROWS):
            part = segment[start : start + SLICE_ROWS]
            if len(part) and int(part.max()) >= len(counted.info):
                raise IndexIncomplete(reason="an index object refers to a segment it does not have")
            own_chunks += np.bincount(counted.info["pack"][part], minlength=entries)
        numbers, at = np.unique(counted.own, return_index=True)
        new = ~known[numbers]
        stored[numbers[new]], chunks[numbers[new]] = own_stored[at[new]], own_chunks[at[new]]
        known[numbers] = True
    return stored, chunks


def _best(first: Halves, second: Halves, ranks: npt.NDArray[np.int64]) -> Flags:
    """Of the rows of each key the one with the lowest rank; of equal ones the first."""
    chosen = np.ones(len(first), dtype=bool)
    order = np.argsort(first, kind="stable")  # runs in order, one a table: they are merged
    again = np.zeros(len(first) + 1, dtype=bool)
    again[1:-1] = first[order][1:] == first[order][:-1]
    several = order[again[1:] | again[:-1]]  # rare: chunks with more than one place
    if not len(several):
        return chosen
    several = several[np.lexsort((several, ranks[several], second[several], first[several]))]
    same = (first[several][1:] == first[several][:-1]) & (second[several][1:] == second[several][:-1])
    chosen[several[1:][same]] = False
    return chosen
