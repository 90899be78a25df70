"""One table out of several, written in slices of the key space: memory stays what a slice needs, however many rows.

Every slice takes from each table the rows whose first half lies in it, sorts them and goes behind the slice before it
in each of the five columns. Nothing is dropped but the packs in `gone`: what several tables know stays several rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from strongroom.base.errors import IndexIncomplete
from strongroom.engine.index_search import pack_rows
from strongroom.engine.index_table import HEAD, PACK, ROW_BYTES, SEGMENT, Table

SLICE_ROWS = 1 << 19  # sorted in one go: 15 MB in, 15 MB out
CHUNKS_MAX = (1 << 32) - 1  # what the counts of a table hold: 3.8 billion rows are 500 TB

Write = Callable[[int, bytes | memoryview], None]  # (offset, bytes)

_WIDTHS = ("<u8", "<u8", "<u4", "<u4", "<u4")
_SEGMENT_COLUMN = 2
_SEGMENT = np.dtype([("pack", "<u4"), ("rest", f"V{SEGMENT.size - 4}")])
_KEY_SPACE = 1 << 64

Mask = npt.NDArray[np.bool_]


class _Part:
    """One table of a merge, with what stays of it and where that begins in the result."""

    def __init__(self, table: Table, gone: frozenset[bytes], packs_before: int, segments_before: int) -> None:
        self._table = table
        self._packs_before, self._segments_before = packs_before, segments_before
        self._info = np.frombuffer(table.segments, _SEGMENT)
        self.columns = tuple(
            np.frombuffer(column, width) for column, width in zip(table.columns(), _WIDTHS, strict=True)
        )
        if (self._info["pack"] >= len(table.packs)).any() or _largest(self.columns[_SEGMENT_COLUMN]) >= len(self._info):
            raise IndexIncomplete(reason="an index object refers to what it does not have")
        self._kept_packs: Mask | None = None  # None: all stay
        self._kept: Mask | None = None  # segments
        self.packs, self.segments, self.chunks = len(table.packs), len(self._info), table.chunk_count
        if gone and not gone.isdisjoint(pack.id for pack in table.packs):
            self._kept_packs = np.array([pack.id not in gone for pack in table.packs], dtype=bool)
            self._kept = self._kept_packs[self._info["pack"]]
            self.packs, self.segments = int(self._kept_packs.sum()), int(self._kept.sum())
            self.chunks = sum(int(self._kept[piece].sum()) for piece in _pieces(self.columns[_SEGMENT_COLUMN]))

    def pack_bytes(self) -> bytes:
        rows = pack_rows(self._table)
        return bytes(self._table.packs.view) if self._kept_packs is None else rows[self._kept_packs].tobytes()

    def segment_bytes(self) -> bytes:
        rows = self._info.copy()
        if self._kept_packs is not None:
            rows["pack"] = (np.cumsum(self._kept_packs) - 1)[rows["pack"]]
        rows["pack"] += np.uint32(self._packs_before)
        return rows.tobytes() if self._kept is None else rows[self._kept].tobytes()

    def rows(self, low: int, high: int) -> list[npt.NDArray[Any]]:
        """The columns of some rows, without those that go, as they are called in the result."""
        columns = [column[low:high] for column in self.columns]
        if self._kept is not None:
            kept = self._kept[columns[_SEGMENT_COLUMN]]
            columns = [column[kept] for column in columns]
            columns[_SEGMENT_COLUMN] = self._numbers[columns[_SEGMENT_COLUMN]]
        columns[_SEGMENT_COLUMN] = columns[_SEGMENT_COLUMN] + np.uint32(self._segments_before)
        return columns

    @cached_property
    def _numbers(self) -> npt.NDArray[np.uint32]:
        """Of a segment among those that stay."""
        assert self._kept is not None
        return (np.cumsum(self._kept) - 1).astype(np.uint32)


class Merge:
    """A merge that is planned: `size` bytes are known, `write` makes them. Raises IndexIncomplete for absurd tables."""

    def __init__(self, tables: Sequence[Table], gone: frozenset[bytes] = frozenset()) -> None:
        self._parts: list[_Part] = []
        packs = segments = self.chunks = 0
        for table in tables:
            part = _Part(table, gone, packs, segments)
            self._parts.append(part)
            packs += part.packs
            segments += part.segments
            self.chunks += part.chunks
        if max(packs, segments, self.chunks) > CHUNKS_MAX:
            raise IndexIncomplete(reason="it has more chunks than a table can hold")
        self._head = HEAD.pack(packs, segments, self.chunks)
        self.rows_at = len(self._head) + packs * PACK.size + segments * SEGMENT.size
        self.size = self.rows_at + self.chunks * ROW_BYTES

    def write(self, write: Write) -> None:
        """All bytes of the table; offsets count from its begin, each is written once."""
        write(0, self._head)
        at = len(self._head)
        for pieces in (_Part.pack_bytes, _Part.segment_bytes):
            for part in self._parts:
                data = pieces(part)
                write(at, data)
                at += len(data)
        done = 0
        for rows in self._slices():
            offset = self.rows_at
            for column in rows:
                write(offset + done * column.itemsize, column.tobytes())
                offset += self.chunks * column.itemsize
            done += len(rows[0])
        assert done == self.chunks

    def _slices(self) -> Iterator[list[npt.NDArray[Any]]]:
        for borders in _borders([part.columns[0] for part in self._parts]):
            pieces: list[list[npt.NDArray[Any]]] = [[] for _ in _WIDTHS]
            for part, (low, high) in zip(self._parts, borders, strict=True):
                for piece, column in zip(pieces, part.rows(low, high), strict=True):
                    piece.append(column)
            whole = [np.concatenate(piece) for piece in pieces]
            order = np.argsort(whole[0], kind="stable")
            yield [column[order] for column in whole]


def merge_tables(tables: Sequence[Table], gone: frozenset[bytes] = frozenset()) -> Table:
    """One table in memory with the rows of all, without those of the packs in `gone`."""
    merge = Merge(tables, gone)
    data = memoryview(bytearray(merge.size))

    def write(offset: int, piece: bytes | memoryview) -> None:
        data[offset : offset + len(piece)] = piece

    merge.write(write)
    return Table(data.toreadonly())


def _pieces(column: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for at in range(0, len(column), SLICE_ROWS):
        yield column[at : at + SLICE_ROWS]


def _largest(column: npt.NDArray[Any]) -> int:
    """-1 for an empty one."""
    return max((int(piece.max()) for piece in _pieces(column)), default=-1)


def _borders(columns: list[npt.NDArray[Any]]) -> Iterator[list[tuple[int, int]]]:
    """Rows of each column for one slice of the key space after the other; a slice is halved until it is small."""
    waiting = [(0, _KEY_SPACE, [(0, len(column)) for column in columns])]
    while waiting:
        low, high, borders = waiting.pop()
        rows = sum(last - first for first, last in borders)
        if rows <= SLICE_ROWS or high - low == 1:
            if rows:
                yield borders
            continue
        middle = (low + high) // 2
        cuts = [
            first + int(np.searchsorted(column[first:last], np.uint64(middle)))
            for column, (first, last) in zip(columns, borders, strict=True)
        ]
        waiting.append((middle, high, [(cut, last) for cut, (_, last) in zip(cuts, borders, strict=True)]))
        waiting.append((low, middle, [(first, cut) for cut, (first, _) in zip(cuts, borders, strict=True)]))
