"""One table out of several, written in slices of the key space: memory stays what a slice needs, however many rows.

Every slice takes from each table the rows whose first half lies in it, sorts them and goes behind the slice before it
in each of the five columns. Nothing is dropped but the packs in `gone`: what several tables know stays several rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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


class _Part(NamedTuple):
    """One table of a merge: its columns, the packs and segments that stay, and what these are called in the result."""

    columns: tuple[npt.NDArray[Any], ...]
    packs: bytes
    segments: bytes
    segment: npt.NDArray[np.uint32]  # number in the result
    kept: npt.NDArray[np.bool_] | None  # which segments; None: all


class Merge:
    """A merge that is planned: `size` bytes are known, `write` makes them. Raises IndexIncomplete for absurd tables."""

    def __init__(self, tables: Sequence[Table], gone: frozenset[bytes] = frozenset()) -> None:
        self._parts: list[_Part] = []
        packs = segments = 0
        for table in tables:
            part = _part(table, gone, packs, segments)
            self._parts.append(part)
            packs += len(part.packs) // PACK.size
            segments += len(part.segments) // SEGMENT.size
        self.chunks = sum(_kept_rows(part) for part in self._parts)
        if max(packs, segments, self.chunks) > CHUNKS_MAX:
            raise IndexIncomplete(reason="it has more chunks than a table can hold")
        self._head = HEAD.pack(packs, segments, self.chunks)
        self.rows_at = len(self._head) + packs * PACK.size + segments * SEGMENT.size
        self.size = self.rows_at + self.chunks * ROW_BYTES

    def write(self, write: Write) -> None:
        """All bytes of the table; offsets count from its begin, each is written once."""
        write(0, self._head)
        at = len(self._head)
        for kind in ("packs", "segments"):
            for part in self._parts:
                data: bytes = getattr(part, kind)
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
                columns = [column[low:high] for column in part.columns]
                if part.kept is not None:
                    kept = part.kept[columns[_SEGMENT_COLUMN]]
                    columns = [column[kept] for column in columns]
                columns[_SEGMENT_COLUMN] = part.segment[columns[_SEGMENT_COLUMN]]
                for piece, column in zip(pieces, columns, strict=True):
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


def _part(table: Table, gone: frozenset[bytes], packs_before: int, segments_before: int) -> _Part:
    info = np.frombuffer(table.segments, _SEGMENT)
    columns = tuple(np.frombuffer(column, width) for column, width in zip(table.columns(), _WIDTHS, strict=True))
    if (info["pack"] >= len(table.packs)).any() or _largest(columns[_SEGMENT_COLUMN]) >= len(info):
        raise IndexIncomplete(reason="an index object refers to what it does not have")
    own = info.copy()
    if not gone.isdisjoint(pack.id for pack in table.packs) if gone else False:
        kept_packs = np.array([pack.id not in gone for pack in table.packs], dtype=bool)
        kept = kept_packs[info["pack"]]
        numbers = (np.cumsum(kept) - 1 + segments_before).astype(np.uint32)
        own["pack"] = (np.cumsum(kept_packs) - 1)[info["pack"]] + packs_before
        return _Part(columns, pack_rows(table)[kept_packs].tobytes(), own[kept].tobytes(), numbers, kept)
    own["pack"] += np.uint32(packs_before)
    numbers = np.arange(segments_before, segments_before + len(info), dtype=np.uint32)
    return _Part(columns, bytes(table.packs.view), own.tobytes(), numbers, None)


def _largest(column: npt.NDArray[Any]) -> int:
    """-1 for an empty one."""
    pieces = range(0, len(column), SLICE_ROWS)
    return max((int(column[at : at + SLICE_ROWS].max()) for at in pieces), default=-1)


def _kept_rows(part: _Part) -> int:
    column = part.columns[_SEGMENT_COLUMN]
    if part.kept is None:
        return len(column)
    pieces = range(0, len(column), SLICE_ROWS)
    return sum(int(part.kept[column[at : at + SLICE_ROWS]].sum()) for at in pieces)


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
