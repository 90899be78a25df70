"""Which chunk lies where.

    index/<n>          list number n: which index objects are valid, which packs are suspect or fossils; put if absent
    index/<n>.<hex>    an index object: the chunks of some packs, written by a session that had pinned list n

What a reader at list n uses is every index object in the store except those that list n retires; all that list n names
must be there. So a writer never touches a list, and what it adds is seen by every reader from then on.

An index object is columns, sorted by the first eight bytes of the id: it is searched where it lies, without parsing.
Integers are little endian, and read as such: a host of another byte order is not supported.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgpack

from strongroom.base.errors import IndexIncomplete
from strongroom.base.units import MIB
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.pack import Pack, SegmentPlace, is_sane
from strongroom.engine.seal import OBJECT_ID_BYTES

INDEX_BYTES_MAX = 512 * MIB  # plain; what a merge of 16 million chunks makes
INDEX_LIST_BYTES_MAX = 64 * MIB
TABLES_MAX = 12  # each costs a search a lookup; beyond, they are merged in memory
PLACES_MAX = 1 << 14  # segments of a table whose place is remembered: 64 GB of data, 4 MB of memory
NUMBER_DIGITS = 10  # so that lists sort by name as by number

_HEAD = struct.Struct("<III")  # packs, segments, chunks
_PACK = struct.Struct("<16sQB")  # id, size, kind
_SEGMENT = struct.Struct("<IIIIB")  # pack, offset, stored, raw, codec
_ROW_BYTES = 8 + 8 + 4 + 4 + 4  # first and second half of the key, segment, start in it, length
_KEY = struct.Struct("<QQ")


class ChunkPlace(NamedTuple):
    """A chunk is `length` bytes from `start` in the plain bytes of a segment. Sorts in the order of the store."""

    segment: SegmentPlace
    start: int
    length: int


class PackInfo(NamedTuple):
    """What the index knows of a pack: its size in the store, DATA or METADATA."""

    id: bytes
    size: int
    kind: int


class Table:
    """One index object, opened. The columns are memoryviews of the object's bytes (numpy may be laid over them)."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEAD.size:
            raise IndexIncomplete(reason="an index object is too short")
        self.data = data
        packs, self.segment_count, self.chunk_count = _HEAD.unpack_from(data)
        self._segments_at = _HEAD.size + packs * _PACK.size
        rows_at = self._segments_at + self.segment_count * _SEGMENT.size
        if rows_at + self.chunk_count * _ROW_BYTES != len(data):
            raise IndexIncomplete(reason="the counts of an index object do not fit its length")
        self.packs = [PackInfo(*_PACK.unpack_from(data, _HEAD.size + i * _PACK.size)) for i in range(packs)]
        self.first = self._column(rows_at, 0, "Q")
        self.second = self._column(rows_at, 8, "Q")
        self.segment = self._column(rows_at, 16, "I")
        self.start = self._column(rows_at, 20, "I")
        self.length = self._column(rows_at, 24, "I")
        self._places: dict[int, SegmentPlace] = {}

    def _column(self, rows_at: int, before: int, code: Literal["Q", "I"]) -> memoryview:
        at = rows_at + before * self.chunk_count
        width = 8 if code == "Q" else 4
        return memoryview(self.data)[at : at + width * self.chunk_count].cast(code)

    def columns(self) -> tuple[memoryview, ...]:
        """The columns of chunks, in the order they lie."""
        return self.first, self.second, self.segment, self.start, self.length

    @property
    def segments(self) -> memoryview:
        """The packed rows of segments, for who reads them all at once."""
        at = self._segments_at
        return memoryview(self.data)[at : at + self.segment_count * _SEGMENT.size]

    def rows(self, key: bytes) -> Iterator[int]:
        """Row numbers of a key of KEY_BYTES."""
        first, second = _KEY.unpack(key)
        column = self.first
        row = bisect_left(column, first)
        while row < self.chunk_count and column[row] == first:
            if self.second[row] == second:
                yield row
            row += 1

    def segment_row(self, number: int) -> tuple[int, int, int, int, int]:
        """(pack, offset, stored, raw, codec) of one segment."""
        if number >= self.segment_count:
            raise IndexIncomplete(reason="an index object refers to a segment it does not have")
        return _SEGMENT.unpack_from(self.data, self._segments_at + number * _SEGMENT.size)

    def pack_of(self, row: int) -> PackInfo:
        pack = self.segment_row(self.segment[row])[0]
        if pack >= len(self.packs):
            raise IndexIncomplete(reason="an index object refers to a pack it does not have")
        return self.packs[pack]

    def place(self, row: int) -> ChunkPlace:
        number = self.segment[row]
        segment = self._places.get(number)
        if segment is None:
            segment = self._place_of_segment(row, number)
        start, length = self.start[row], self.length[row]
        if not 0 < length <= segment.raw - start:
            raise IndexIncomplete(reason="an index object describes an impossible chunk")
        return ChunkPlace(segment, start, length)

    def _place_of_segment(self, row: int, number: int) -> SegmentPlace:
        """Remembered: neighbours in a file are neighbours in a segment."""
        _, offset, stored, raw, codec = self.segment_row(number)
        segment = SegmentPlace(self.pack_of(row).id, offset, stored, raw, codec)
        if not is_sane(segment):
            raise IndexIncomplete(reason="an index object describes an impossible segment")
        if len(self._places) >= PLACES_MAX:
            self._places.clear()
        self._places[number] = segment
        return segment


def encode_table(packs: Iterable[Pack]) -> bytes:
    """The plain bytes of an index object for `packs`."""
    heads, segments = bytearray(), bytearray()
    keys: list[bytes] = []
    segment_of, starts, lengths = array("I"), array("I"), array("I")
    pack_number = segment_number = -1
    for pack_number, pack in enumerate(packs):
        heads += _PACK.pack(pack.id, pack.size, pack.kind)
        for segment in pack.segments:
            segment_number += 1
            segments += _SEGMENT.pack(pack_number, segment.offset, segment.stored, segment.raw, segment.codec)
            start = 0
            for chunk_id, length in zip(segment.ids, segment.lengths, strict=True):
                keys.append(chunk_id[:KEY_BYTES])
                segment_of.append(segment_number)
                starts.append(start)
                lengths.append(length)
                start += length
    halves = struct.unpack(f"<{2 * len(keys)}Q", b"".join(keys))
    first, second = halves[0::2], halves[1::2]
    order = sorted(range(len(keys)), key=first.__getitem__)
    columns = [array("Q", map(first.__getitem__, order)), array("Q", map(second.__getitem__, order))]
    columns += [array("I", map(column.__getitem__, order)) for column in (segment_of, starts, lengths)]
    head = _HEAD.pack(pack_number + 1, segment_number + 1, len(keys))
    return b"".join([head, heads, segments, *(column.tobytes() for column in columns)])


def merge_tables(tables: list[Table], gone: frozenset[bytes] = frozenset()) -> Table:
    """One table with the rows of all, without those of the packs in `gone`; what several know stays several rows.

    Needs numpy, so it is loaded here only.
    """
    import numpy as np

    heads, segments = [], []
    columns: list[list[Any]] = [[], [], [], [], []]
    pack_count = segment_count = 0
    segment_type = np.dtype([("pack", "<u4"), ("rest", "V13")])
    for table in tables:
        info = np.frombuffer(table.segments, segment_type)
        rows = np.frombuffer(table.segment, "<u4")
        if (info["pack"] >= len(table.packs)).any() or (rows >= len(info)).any():
            raise IndexIncomplete(reason="an index object refers to what it does not have")
        kept_packs = np.array([pack.id not in gone for pack in table.packs], dtype=bool)
        heads += [_PACK.pack(*pack) for pack in table.packs if pack.id not in gone]
        kept_segments = kept_packs[info["pack"]] if len(info) else np.zeros(0, dtype=bool)
        own = info[kept_segments].copy()
        own["pack"] = (np.cumsum(kept_packs) - 1)[own["pack"]] + pack_count
        segments.append(own.tobytes())
        kept = kept_segments[rows] if len(rows) else np.zeros(0, dtype=bool)
        for column, values, width in zip(columns, table.columns(), ("<u8", "<u8", "<u4", "<u4", "<u4"), strict=True):
            column.append(np.frombuffer(values, width)[kept])
        columns[2][-1] = ((np.cumsum(kept_segments) - 1)[columns[2][-1]] + segment_count).astype("<u4")
        pack_count += int(kept_packs.sum())
        segment_count += len(own)
    whole = [np.concatenate(column) for column in columns]
    order = np.argsort(whole[0], kind="stable")
    head = _HEAD.pack(pack_count, segment_count, len(order))
    return Table(b"".join([head, *heads, *segments, *(column[order].tobytes() for column in whole)]))


class Index:
    """All that a session knows: the tables of its list number, and the chunks it stored itself.

    number   the list it was read at
    bad      packs writers do not rely on: missing, of another size, suspect (RULINGS 14), or fossils
    """

    def __init__(self, number: int, tables: list[Table], bad: frozenset[bytes] = frozenset()) -> None:
        self.number = number
        self.bad = bad
        self._born: dict[bytes, None] = {}
        self._tables = [merge_tables(tables)] if len(tables) > TABLES_MAX else list(tables)

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(self._tables)

    def packs(self) -> Iterator[PackInfo]:
        """Every pack of the tables; one that several tables name comes several times."""
        for table in self._tables:
            yield from table.packs

    def knows(self, key: bytes) -> bool:
        """Whether a writer may rely on this chunk instead of storing it."""
        if key in self._born:
            return True
        bad = self.bad
        for table in self._tables:
            for row in table.rows(key):
                if not bad or table.pack_of(row).id not in bad:
                    return True
        return False

    def bear(self, key: bytes) -> None:
        """This session stores the chunk: its packs will be durable before its root."""
        self._born[key] = None

    def places(self, key: bytes) -> Iterator[ChunkPlace]:
        """Where a reader finds a chunk: sound packs first, then bad ones, which may still hold it."""
        doubtful = []
        for table in self._tables:
            for row in table.rows(key):
                place = table.place(row)
                if place.segment.pack in self.bad:
                    doubtful.append(place)
                else:
                    yield place
        yield from doubtful

    def settle(self, table: Table, packs: Iterable[Pack]) -> None:
        """`table`, the index object of these packs, is durable: move their chunks from the dict to the columns."""
        self._tables = (
            [*self._tables, table] if len(self._tables) < TABLES_MAX else [merge_tables([*self._tables, table])]
        )
        for pack in packs:
            for segment in pack.segments:
                for chunk_id in segment.ids:
                    self._born.pop(chunk_id[:KEY_BYTES], None)


@dataclass(frozen=True, kw_only=True)
class IndexList:
    """The object index/<n>.

    objects  names of index objects that existed when it was made; they MUST all be readable
    retired  (name, number) of index objects that list `number` replaced; they are kept for readers of older lists
    suspect  ids of packs that failed a check: unknown to writers, last choice of readers
    fossils  (id, number) of packs that no root needed at list `number`: unknown to writers, last choice of readers,
             deleted when nobody pins an older list and still no root needs them
    """

    number: int
    objects: tuple[str, ...] = ()
    retired: tuple[tuple[str, int], ...] = ()
    suspect: tuple[bytes, ...] = ()
    fossils: tuple[tuple[bytes, int], ...] = ()

    def encode(self) -> bytes:
        lists = [list(self.objects), list(self.retired), list(self.suspect), list(self.fossils)]
        return bytes(msgpack.packb([self.number, *lists]))

    @classmethod
    def decode(cls, data: bytes, number: int) -> "IndexList":
        """Raises IndexIncomplete."""
        try:
            stored, *lists = msgpack.unpackb(data)
            objects, retired, suspect, fossils = lists
            dates = [number for _, number in (*retired, *fossils)]
            packs = (*suspect, *(pack for pack, _ in fossils))
            names = (*objects, *(name for name, _ in retired))
        except (ValueError, TypeError) as err:
            raise IndexIncomplete(reason=f"list {number} cannot be read", detail=str(err)) from err
        are_ids = all(isinstance(pack, bytes) and len(pack) == OBJECT_ID_BYTES for pack in packs)
        are_names = all(isinstance(name, str) for name in names)
        if stored != number or not are_names or not are_ids or not all(isinstance(date, int) for date in dates):
            raise IndexIncomplete(reason=f"list {number} is malformed")
        return cls(
            number=number,
            objects=tuple(objects),
            retired=tuple((name, date) for name, date in retired),
            suspect=tuple(suspect),
            fossils=tuple((pack, date) for pack, date in fossils),
        )
