"""One index object, opened: rows of chunks, segments and packs, searched where they lie, in memory or in a mapped file.

The rows of chunks are columns, sorted by the first eight bytes of the id. Integers are little endian, and read as such:
a host of another byte order is not supported. A table that lies in a file has a guide beside it, which says in which
few rows a key can be (index_search.py). docs/FORMAT.md has the bytes.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, overload

from strongroom.base.errors import IndexIncomplete
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.pack import Pack, SegmentPlace, is_sane

PLACES_MAX = 1 << 14  # segments of a table whose place is remembered: 64 GB of data, 4 MB of memory

DIRECTORY_ROWS = 8  # rows a slice: 4 bytes for 8 rows of 28 bytes
DIRECTORY_BITS_MAX = 32
BLOOM_BITS = 10  # a key: 1.25 bytes; 1.9 % of unknown keys pass
WORD_BITS = 64  # of the filter

HEAD = struct.Struct("<III")  # packs, segments, chunks
PACK = struct.Struct("<16sQB")  # id, size, kind
SEGMENT = struct.Struct("<IIIIB")  # pack, offset, stored, raw, codec
ROW_BYTES = 8 + 8 + 4 + 4 + 4  # first and second half of the key, segment, start in it, length
KEY = struct.Struct("<QQ")


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


class Packs(Sequence[PackInfo]):
    """The packs of a table, read from its bytes when they are asked for: 100 million chunks have 400 000 of them.

    view   the packed rows, for who reads them all at once
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._count = len(view) // PACK.size

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> PackInfo: ...
    @overload
    def __getitem__(self, at: slice) -> list[PackInfo]: ...

    def __getitem__(self, at: int | slice) -> PackInfo | list[PackInfo]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(self._count))]
        if not 0 <= at < self._count:
            raise IndexError(at)
        return PackInfo(*PACK.unpack_from(self.view, at * PACK.size))

    def __iter__(self) -> Iterator[PackInfo]:
        return map(PackInfo._make, PACK.iter_unpack(self.view))


class Guide(NamedTuple):
    """Where a key can be in the sorted column.

    directory  u32: entry b counts the rows whose first half, shifted right by `shift`, is below b
    bloom      u64 words of a blocked Bloom filter over whole keys
    """

    shift: int
    directory: memoryview
    bloom: memoryview


def directory_bits(count: int) -> int:
    """So that a slice has DIRECTORY_ROWS rows or a little more; at least one, because a shift by 64 is no shift."""
    return min(max((count // DIRECTORY_ROWS).bit_length() - 1, 1), DIRECTORY_BITS_MAX)


def bloom_words(count: int) -> int:
    return max(count * BLOOM_BITS // WORD_BITS, 1)


class Table:
    """The rows of one index object, or of several that were merged. Columns are memoryviews (numpy may be laid over).

    data    HEAD, packs, segments and columns
    names   of the index objects it stands for; empty when they have none
    guide   narrows a search; None: the column is searched as a whole
    is_run  it is the outcome of a merge, on which more of the same size should wait before it is merged again
    """

    def __init__(
        self,
        data: bytes | memoryview,
        *,
        names: frozenset[str] = frozenset(),
        guide: Guide | None = None,
        is_run: bool = False,
    ) -> None:
        if len(data) < HEAD.size:
            raise IndexIncomplete(reason="an index object is too short")
        self.data = data
        self.names = names
        self.guide = guide
        self.is_run = is_run
        packs, self.segment_count, self.chunk_count = HEAD.unpack_from(data)
        self._segments_at = HEAD.size + packs * PACK.size
        rows_at = self._segments_at + self.segment_count * SEGMENT.size
        if rows_at + self.chunk_count * ROW_BYTES != len(data):
            raise IndexIncomplete(reason="the counts of an index object do not fit its length")
        self.packs = Packs(memoryview(data)[HEAD.size : self._segments_at])
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
        return memoryview(self.data)[at : at + self.segment_count * SEGMENT.size]

    def rows(self, key: bytes) -> Iterator[int]:
        """Row numbers of a key of KEY_BYTES."""
        first, second = KEY.unpack(key)
        column = self.first
        if self.guide is None:
            row = bisect_left(column, first)
        else:
            shift, directory, _ = self.guide
            bucket = first >> shift
            row = bisect_left(column, first, directory[bucket], directory[bucket + 1])
        while row < self.chunk_count and column[row] == first:
            if self.second[row] == second:
                yield row
            row += 1

    def segment_row(self, number: int) -> tuple[int, int, int, int, int]:
        """(pack, offset, stored, raw, codec) of one segment."""
        if number >= self.segment_count:
            raise IndexIncomplete(reason="an index object refers to a segment it does not have")
        return SEGMENT.unpack_from(self.data, self._segments_at + number * SEGMENT.size)

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
        heads += PACK.pack(pack.id, pack.size, pack.kind)
        for segment in pack.segments:
            segment_number += 1
            segments += SEGMENT.pack(pack_number, segment.offset, segment.stored, segment.raw, segment.codec)
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
    head = HEAD.pack(pack_number + 1, segment_number + 1, len(keys))
    return b"".join([head, heads, segments, *(column.tobytes() for column in columns)])
