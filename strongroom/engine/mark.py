"""Which chunks the roots need: a mark beside every row of the index that holds one.

Marking reads metadata only, each distinct part of it once: the pages of large contents, and of every tree's stream the
stretches that no marked root had. Ids are gathered in portions, sorted, and looked up in the columns of the tables. So
a mark costs one byte a row, and nothing is written anywhere: it works on a full disk.

Marks stay when the index changes: those of tables that are gone are carried over to the tables that took their place.
"""

import mmap
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from strongroom.base.errors import ManifestCorrupt
from strongroom.base.streams import Monitor
from strongroom.engine.chunker import ID_BYTES, KEY_BYTES
from strongroom.engine.content import GetMetadata, iter_ids, parse_content
from strongroom.engine.index import Index
from strongroom.engine.index_table import Table
from strongroom.engine.manifest import Stream, StreamRow, open_stream, parse_record, take_frames
from strongroom.engine.model import Root

PORTION_IDS = 1 << 21  # ids gathered before they are looked up: 64 MB, and as much again while they are sorted
SLICE_ROWS = 1 << 20  # rows of a column that are in work at once
SEEN_SLOTS = 1 << 22  # of metadata that is remembered as marked: 64 MB, touched only as far as it is used

_DIGEST_BYTES = 16
_NO_DIGEST = bytes(_DIGEST_BYTES)

Known = Callable[[bytes], bool]
Rows = npt.NDArray[np.int64]
Halves = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


class Reader(Protocol):
    """Where marking reads: a session, or two."""

    @property
    def index(self) -> Index: ...

    def metadata(self, chunk_id: bytes) -> bytes: ...


class Keys(NamedTuple):
    """Distinct index keys as their two halves, ascending."""

    first: Halves
    second: Halves

    def as_bytes(self) -> set[bytes]:
        joined = np.stack([self.first, self.second], axis=1).tobytes()
        return {joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES)}


class Seen:
    """Remembers digests in a fixed room. It may forget one, which costs work; it never invents one."""

    def __init__(self, slots: int = SEEN_SLOTS) -> None:
        self._slots = slots
        self._room = mmap.mmap(-1, slots * _DIGEST_BYTES)

    def before(self, digest: bytes) -> bool:
        """Whether this digest of 16 bytes came before; from now on it did."""
        at = int.from_bytes(digest[:8], "little") % self._slots * _DIGEST_BYTES
        if self._room[at : at + _DIGEST_BYTES] == digest != _NO_DIGEST:
            return True
        self._room[at : at + _DIGEST_BYTES] = digest
        return False


class Marks:
    """What has been marked so far. Roots may be added at any time; nothing is ever taken away.

    roots     names of those that are marked wholly
    unknown   needed keys that no table of the index has, as of the last `settle`
    """

    def __init__(
        self, *, portion_ids: int = PORTION_IDS, slice_rows: int = SLICE_ROWS, slots: int = SEEN_SLOTS
    ) -> None:
        self.roots: set[str] = set()
        self.unknown = Keys(np.empty(0, np.uint64), np.empty(0, np.uint64))
        self._slots = slots
        self._seen = Seen(slots)
        self._ids = bytearray()
        self._ids_max = portion_ids * ID_BYTES
        self._slice_rows = slice_rows
        self._tables: tuple[Table, ...] = ()
        self._flags: list[Flags] = []

    def add(self, session: Reader, root: Root, monitor: Monitor) -> None:
        """Everything a root needs. Raises Corrupt classes when its metadata cannot be read."""
        try:
            for ids in root_ids(session, root, monitor, self._is_known, self._is_seen):
                self.add_ids(session.index, ids)
        except BaseException:
            self._seen = Seen(
                self._slots
            )  # what was begun is not marked: another root with the same part has to read it
            raise
        self.roots.add(root.name)

    def add_ids(self, index: Index, ids: bytes) -> None:
        """Chunk ids, joined; holes among them are left out."""
        self._ids += ids
        if len(self._ids) >= self._ids_max:
            self.settle(index)

    def add_keys(self, index: Index, keys: Keys) -> None:
        """Keys themselves, instead of ids."""
        self._follow(index.tables)
        self._mark(keys.first, keys.second, [True] * len(self._tables), must=True)

    def keys(self, index: Index) -> Keys:
        """All that is marked, as one array: 16 bytes a chunk. For who has to carry them to another index."""
        flags = self.settle(index)
        tables = list(zip(self._tables, (np.flatnonzero(own) for own in flags), strict=True))
        first = [first_of(table)[rows] for table, rows in tables]
        second = [second_of(table)[rows] for table, rows in tables]
        return distinct(np.concatenate([self.unknown.first, *first]), np.concatenate([self.unknown.second, *second]))

    def settle(self, index: Index) -> list[Flags]:
        """Per table of this index, which of its rows hold a needed chunk. Valid until something is added."""
        self._follow(index.tables)
        halves = np.frombuffer(self._ids, "<u8").reshape(-1, ID_BYTES // 8)
        first, second = halves[:, 0].copy(), halves[:, 1].copy()
        del halves
        self._ids = bytearray()
        whole = (first != 0) | (second != 0)  # a page of blocks has ids of zeros where the disk has holes
        first, second = first[whole], second[whole]
        order = np.argsort(first)
        self._mark(first[order], second[order], [True] * len(self._tables), must=True)
        return self._flags

    def _mark(self, first: Halves, second: Halves, wanted: list[bool], *, must: bool) -> None:
        """Mark the rows of these keys, which ascend, in the tables that are wanted; `must`: else they are unknown."""
        if not len(first):
            return
        found = np.zeros(len(first), dtype=bool)
        for table, flags, is_wanted in zip(self._tables, self._flags, wanted, strict=True):
            if is_wanted:
                for which, rows in find_rows(table, first, second):
                    flags[rows] = True
                    found[which] = True
        if must and not found.all():
            self.unknown = distinct(
                np.concatenate([self.unknown.first, first[~found]]),
                np.concatenate([self.unknown.second, second[~found]]),
            )

    def _follow(self, tables: tuple[Table, ...]) -> None:
        """Carry the marks over to the tables of a newer index."""
        if len(tables) == len(self._tables) and all(a is b for a, b in zip(tables, self._tables, strict=True)):
            return
        before = {id(table): flags for table, flags in zip(self._tables, self._flags, strict=True)}
        old, now = list(zip(self._tables, self._flags, strict=True)), {id(table) for table in tables}
        self._tables = tables
        self._flags = [before.get(id(table), np.zeros(table.chunk_count, dtype=bool)) for table in tables]
        fresh, every = [id(table) not in before for table in tables], [True] * len(tables)
        for table, flags in old:
            stays = id(table) in now
            for start in range(0, table.chunk_count if any(fresh) or not stays else 0, self._slice_rows):
                rows = np.flatnonzero(flags[start : start + self._slice_rows]) + start
                first, second = first_of(table)[rows], second_of(table)[rows]
                self._mark(first, second, fresh if stays else every, must=not stays)
        lost, self.unknown = self.unknown, Keys(np.empty(0, np.uint64), np.empty(0, np.uint64))
        self._mark(lost.first, lost.second, every, must=True)

    def _is_known(self, page: bytes) -> bool:
        return self._seen.before(page[:_DIGEST_BYTES])

    def _is_seen(self, data: bytes) -> bool:
        return self._seen.before(blake3(data).digest(_DIGEST_BYTES))


# --- reading roots --------------------------------------------------------------------------------------------------


def root_ids(
    session: Reader,
    root: Root,
    monitor: Monitor,
    is_known: Known = lambda _: False,
    is_seen: Known = lambda _: False,
) -> Iterator[bytes]:
    """Ids, joined, of every chunk a root needs, metadata included; holes are ids of zeros.

    Pages for which `is_known` and records for which `is_seen` are true are left out with all they refer to. `is_seen`
    is also asked about stretches of a tree's stream, by what they are made of, so that equal ones are not even read.
    """
    get = session.metadata
    if root.kind == "block":
        for _, ids in iter_ids(parse_content(root.body.stream), get, is_known):
            monitor.check()
            yield ids
        return
    stream = open_stream(root, get)
    for _, chunk_id in stream.pages():
        yield chunk_id
    for data in _frames(stream, get, is_seen):
        monitor.check()
        if is_seen(data):
            continue
        for content in parse_record(data).contents:
            if content is not None:
                for _, ids in iter_ids(parse_content(content), get, is_known):
                    yield ids


def _frames(stream: Stream, get: GetMetadata, is_seen: Known) -> Iterator[bytes]:
    """The records of a stream in order, but for stretches that were seen.

    A stretch goes from the first record that begins in a chunk to the first one that begins in a later chunk:

        chunk      |--------a--------|----b----|--------c--------|       b: no record begins in it
        record       ^start                       ^start
        stretch      [..................................)

    So the ids of its chunks and the two starts say which records it holds, whatever lies around it.
    """
    stretch: list[StreamRow] = []
    for row in stream.chunks():
        if stretch and row.start >= 0:
            yield from _stretch(stretch, row, get, is_seen)
            stretch = []
        if stretch or row.start >= 0:
            stretch.append(row)
    if stretch:
        yield from _stretch(stretch, None, get, is_seen)


def _stretch(rows: list[StreamRow], after: StreamRow | None, get: GetMetadata, is_seen: Known) -> Iterator[bytes]:
    start, end = rows[0].start, after.start if after is not None else 0
    name = b"".join([row.id for row in [*rows, *([after] if after is not None and end else [])]])
    if is_seen(b"stretch %d %d " % (start, end) + name):
        return
    buffer = bytearray()
    for row in rows:
        buffer += _chunk(row, get)
    del buffer[:start]
    if after is not None and end:
        buffer += _chunk(after, get)[:end]
    yield from take_frames(buffer)
    if buffer:
        raise ManifestCorrupt(reason="a record of the stream does not end where the next one begins")


def _chunk(row: StreamRow, get: GetMetadata) -> bytes:
    chunk = get(row.id)
    if len(chunk) != row.length:
        raise ManifestCorrupt(reason="a chunk of the stream has another length than its row says")
    return chunk


# --- columns --------------------------------------------------------------------------------------------------------


def first_of(table: Table) -> Halves:
    return np.frombuffer(table.first, "<u8")


def second_of(table: Table) -> Halves:
    return np.frombuffer(table.second, "<u8")


def find_rows(table: Table, first: Halves, second: Halves) -> Iterator[tuple[Rows, Rows]]:
    """(positions in the keys, rows of the table) where they are equal, in portions. The first halves ascend."""
    column, rest = first_of(table), second_of(table)
    rows = np.searchsorted(column, first)
    which = np.arange(len(first))
    while len(which):
        inside = rows < len(column)
        which, rows = which[inside], rows[inside]
        same = column[rows] == first[which]
        which, rows = which[same], rows[same]
        whole = rest[rows] == second[which]
        yield which[whole], rows[whole]
        rows = rows + 1  # several rows may have one first half, or be of one key


def distinct(first: Halves, second: Halves) -> Keys:
    """The keys in order, each once."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    begins = np.ones(len(first), dtype=bool)
    begins[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return Keys(first[begins], second[begins])
