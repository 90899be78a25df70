"""Which chunk lies where.

    index/<n>          list number n: which index objects are valid, which packs are suspect or fossils; put if absent
    index/<n>.<hex>    an index object: the chunks of some packs, written by a session that had pinned list n

What a reader at list n uses is every index object in the store except those that list n retires; all that list n names
must be there. So a writer never touches a list, and what it adds is seen by every reader from then on.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgpack

from strongroom.base.errors import Corrupt, IndexIncomplete, ObjectMissing, PackCorrupt
from strongroom.base.units import MIB
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.index_cache import IndexCache
from strongroom.engine.index_table import KEY, ChunkPlace, PackInfo, Table
from strongroom.engine.pack import DATA, Pack
from strongroom.engine.seal import OBJECT_ID_BYTES

if TYPE_CHECKING:  # loaded by the first batch: numpy costs 0.1 s, and most sessions look up single keys
    from strongroom.engine.index_search import Halves, Located, Mask

INDEX_BYTES_MAX = 512 * MIB  # plain; what a merge of 16 million chunks makes
INDEX_LIST_BYTES_MAX = 64 * MIB
NUMBER_DIGITS = 10  # so that lists sort by name as by number

# (the sorted column, the other half, its directory or None, its shift, rows, the table): what `knows` needs, unpacked
_Searched = tuple[memoryview, memoryview, memoryview | None, int, int, Table]


class Index:
    """All that a session knows: the tables of its list number, and the chunks it stored itself.

    number   the list it was read at
    bad      packs writers do not rely on: missing, of another size, suspect (RULINGS 14), or fossils
    """

    def __init__(
        self,
        number: int,
        tables: Sequence[Table],
        bad: frozenset[bytes] = frozenset(),
        cache: IndexCache | None = None,
    ) -> None:
        self.number = number
        self.bad = bad
        self._cache = cache or IndexCache(None, b"")
        self._born: dict[bytes, int] = {}  # stored, but not in an index object yet; with their lengths (`bear`)
        self._lock = threading.Lock()  # guards the list of tables against two who settle
        self._merging = threading.Lock()
        self._replace(tuple(self._cache.compacted(tables)))

    @property
    def tables(self) -> tuple[Table, ...]:
        return self._tables

    def packs(self) -> Iterator[PackInfo]:
        """Every pack of the tables; one that several tables name comes several times."""
        for table in self._tables:
            yield from table.packs

    # --- single keys ---

    def knows(self, key: bytes) -> bool:
        """Whether a writer may rely on this chunk instead of storing it."""
        if key in self._born:
            return True
        first, second = KEY.unpack(key)
        bad = self.bad
        for column, other, directory, shift, count, table in self._searched:
            if directory is None:
                row = bisect_left(column, first)
            else:
                at = first >> shift
                row = bisect_left(column, first, directory[at], directory[at + 1])
            while row < count and column[row] == first:
                if other[row] == second and (not bad or table.pack_of(row).id not in bad):
                    return True
                row += 1
        return False

    def length_of(self, key: bytes) -> int | None:
        """Of a data chunk that `knows` affirms; None for anything else."""
        length = self._born.get(key)  # before the tables: that is the way it moves (`settle`)
        if length:
            return length
        for table in self._tables:
            for row in table.rows(key):
                pack = table.pack_of(row)
                if pack.kind == DATA and pack.id not in self.bad:
                    return int(table.length[row])
        return None

    def bear(self, key: bytes, length: int) -> None:
        """This session stores the chunk: its packs will be durable before its root. length: 0 for metadata."""
        self._born[key] = length

    def place(self, key: bytes) -> ChunkPlace | None:
        """The first of `places`, for who looks up many."""
        doubtful = None
        for table in self._tables:
            for row in table.rows(key):
                place = table.place(row)
                if place.segment.pack not in self.bad:
                    return place
                doubtful = doubtful or place
        return doubtful

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

    # --- many keys ---

    def knows_many(self, first: "Halves", second: "Halves") -> "Mask":
        """`knows` of each key, given as two columns (`index_search.halves`); ascending keys are the fastest."""
        from strongroom.engine.index_search import locate, mark_born

        known = locate(self._tables, self.bad, first, second)[1]
        if self._born:
            mark_born(self._born, first, second, known)
        return known

    def locate(self, first: "Halves", second: "Halves") -> "tuple[tuple[Table, ...], Located]":
        """(tables, the table and row of each key where a reader looks first)."""
        from strongroom.engine.index_search import locate

        tables = self._tables
        return tables, locate(tables, self.bad, first, second)[0]

    # --- what this session adds ---

    def settle(self, table: Table, packs: Iterable[Pack]) -> None:
        """`table`, the index object of these packs, is durable: move their chunks from those born to the columns.

        From any thread. Who makes one table too many merges some, while others look up and settle as before.
        """
        with self._lock:
            self._replace((*self._tables, table))
        for pack in packs:
            for segment in pack.segments:
                for chunk_id in segment.ids:
                    self._born.pop(chunk_id[:KEY_BYTES], None)
        if self._merging.acquire(blocking=False):
            try:
                before = self._tables
                after = self._cache.compacted(before)
                with self._lock:
                    self._replace((*after, *self._tables[len(before) :]))
            finally:
                self._merging.release()

    def _replace(self, tables: tuple[Table, ...]) -> None:
        searched: list[_Searched] = []
        for table in tables:
            directory, shift = (table.guide.directory, table.guide.shift) if table.guide else (None, 0)
            searched.append((table.first, table.second, directory, shift, table.chunk_count, table))
        self._tables, self._searched = tables, searched


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


def unread(chunk_id: bytes, failure: Corrupt | ObjectMissing | None) -> Corrupt:
    """The error when a chunk is nowhere, or only where `failure` is what one gets: damage, whatever it looked like."""
    if isinstance(failure, Corrupt):
        return failure
    if failure is None:
        return IndexIncomplete(reason=f"chunk {chunk_id.hex()} is in no pack the index knows")
    missing = PackCorrupt(reason=f"{failure.name} is missing", detail=failure.detail)
    missing.__cause__ = failure
    return missing
