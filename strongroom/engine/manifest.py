"""What a tree backup points to: a stream of directory records in pre-order, stored as metadata chunks.

    stream  = record | record | ...      record = length u32 | size u64 | msgpack of a Record (length counts size too)
    chunks  = the stream, cut by FastCDC at about 64 KiB: an unchanged part of a tree is the same chunks again
    index   = rows (chunk id, length, start, path, name) in a tree of pages; path and name say which record is the first
              to begin in the chunk, at `start`; so one folder is found by reading one page a level and one chunk

A record is one folder, or one part of a large one. Its key is (path, name of its first entry; b"" for the first part):
keys ascend through the stream, which lets two streams be merged, and one be searched, without holding either.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgpack

from strongroom.base.errors import ManifestCorrupt
from strongroom.base.streams import FOLDER_PART_ENTRIES_MAX, NO_ATTRIBUTES, Attributes, Entry, Path
from strongroom.base.units import MIB
from strongroom.engine.chunker import Chunker
from strongroom.engine.content import (
    LEVEL_MAX,
    Content,
    GetMetadata,
    PutMetadata,
    is_page_end,
    pack_content,
    parse_content,
)
from strongroom.engine.model import Root

RECORD_SPLIT_BYTES = 8 * MIB  # a larger record is stored as two, so that a reader's memory has a bound
RECORD_BYTES_MAX = 64 * MIB  # one entry with the largest attributes a filesystem allows stays far below
STREAM_ROWS_INLINE_MAX = 64
NAME_BYTES_MAX = 4096
EXPECTED_ROWS = 64  # chunks of 64 KiB that a slow store is told of in advance, and as many after them
CUT_FROM_BYTES = 1 * MIB  # the stream is cut when this much has gathered

RACY = 1  # it may have changed in the moment after it was read without leaving a trace in its times (RULINGS 15)
CHANGED = 2  # it changed while it was read: its content is of no single moment

_NUMBERS = frozenset([int, bool])
_WORD_END, _SIZE_END = 1 << 32, 1 << 63  # what the system calls of a restore take
_FRAME = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
_RECORD_ARRAY, _EMPTY_MAP = b"\x96", b"\x80"  # msgpack: an array of six, and no doubts

ExpectMetadata = Callable[[Iterable[bytes]], None]  # told which chunks are read soon, in order

Key = tuple[Path, bytes]  # path of a folder, name of the first entry of the part


class Record(NamedTuple):
    """One folder part, as stored. Everything that costs a decode per entry is packed for itself.

    stats       msgpack of the list of Entry tuples: equal bytes mean that nothing in the folder changed
    doubts      position -> RACY or CHANGED or both: the next run reads these again, whatever their times say
    attributes  position -> (xattrs, flags, target), only where there are any
    contents    per position: None for what is no regular file, else what `parse_content` reads

    Its sum of file sizes lies before it, so that a folder in which nothing changed is not decoded at all.
    """

    path: Path
    first: bytes
    stats: bytes
    doubts: Mapping[int, int]
    attributes: Mapping[int, Sequence[object]]
    contents: Sequence[object]

    @property
    def key(self) -> Key:
        return self.path, self.first

    def entries(self) -> list[Entry]:
        """Raises ManifestCorrupt for anything that no source could have given."""
        return _parse_entries(self.stats, len(self.contents))

    def items(self) -> "Iterator[Item]":
        """Every entry with what is stored of it. Raises ManifestCorrupt."""
        for at, entry in enumerate(self.entries()):
            content = None if self.contents[at] is None else self.content_of(at)
            yield Item(entry, self.attributes_of(at), content, self.doubts.get(at, 0))

    def attributes_of(self, position: int) -> Attributes:
        found = self.attributes.get(position)
        return NO_ATTRIBUTES if found is None else parse_attributes(found)

    def content_of(self, position: int) -> Content:
        return parse_content(self.contents[position])


class Item(NamedTuple):
    """One entry with all that is stored of it. content is None for what is no regular file; doubts: RACY | CHANGED."""

    entry: Entry
    attributes: Attributes
    content: Content | None
    doubts: int = 0


def pack_stats(entries: Sequence[Entry]) -> bytes:
    """As `Record.stats`."""
    return bytes(msgpack.packb(entries))


def count_stats(stats: bytes) -> int:
    """How many entries `pack_stats` packed: the head of a msgpack array, of 4, 16 or 32 bits."""
    head = stats[0]
    return head & 0x0F if head < 0xA0 else int.from_bytes(stats[1 : 3 if head == 0xDC else 5], "big")


def pack_opening(path: Path, first: bytes, stats: bytes) -> bytes:
    """The bytes with which a record of exactly these entries begins, after its size."""
    return _RECORD_ARRAY + bytes(msgpack.packb((path, first, stats)))[1:]


def is_same(data: bytes, opening: bytes) -> bool:
    """Whether a record begins so and has no doubts: then what it says may be believed without decoding it."""
    after = _SIZE.size + len(opening)
    return data.startswith(opening, _SIZE.size) and data[after : after + 1] == _EMPTY_MAP


def record_size(data: bytes) -> int:
    """Sum of the sizes of the files of a record."""
    return int(_SIZE.unpack_from(data)[0])


def pack_records(path: Path, first: bytes, items: Sequence[Item]) -> Iterator[tuple[Key, bytes]]:
    """The record of a folder part, or the records of its halves when it is too large."""
    attributes = {i: list(item.attributes) for i, item in enumerate(items) if item.attributes != NO_ATTRIBUTES}
    contents = [None if item.content is None else pack_content(item.content) for item in items]
    doubts = {i: item.doubts for i, item in enumerate(items) if item.doubts}
    size = sum(item.entry.size for item in items if item.content is not None)
    stats = pack_stats([item.entry for item in items])
    data = _SIZE.pack(size) + bytes(msgpack.packb(Record(path, first, stats, doubts, attributes, contents)))
    if len(data) <= RECORD_SPLIT_BYTES or len(items) == 1:
        yield (path, first), data
        return
    middle = len(items) // 2
    yield from pack_records(path, first, items[:middle])
    yield from pack_records(path, items[middle].entry.name, items[middle:])


def parse_record(data: bytes) -> Record:
    """Raises ManifestCorrupt."""
    try:
        record = Record(*msgpack.unpackb(memoryview(data)[_SIZE.size :], use_list=False, strict_map_key=False))
    except (ValueError, TypeError) as err:
        raise ManifestCorrupt(reason="a directory record cannot be read", detail=str(err)) from err
    path, first, stats, doubts, attributes, contents = record
    shapes = (first, bytes), (stats, bytes), (doubts, dict), (attributes, dict), (contents, tuple)
    if not all(isinstance(value, kind) for value, kind in shapes):
        raise ManifestCorrupt(reason="a directory record is malformed")
    if doubts and not all(isinstance(doubt, int) for doubt in doubts.values()):
        raise ManifestCorrupt(reason="a directory record has impossible doubts")
    if len(contents) > FOLDER_PART_ENTRIES_MAX or not is_path(path):
        raise ManifestCorrupt(reason="a directory record has an impossible path or too many entries")
    return record


def is_path(path: object) -> bool:
    """A path that stays below its root: `is_name` of every part, for many paths at once as cheap as can be."""
    if not isinstance(path, tuple):
        return False
    try:
        joined = b"".join(path)
    except TypeError:
        return False
    if b"/" in joined or b"\0" in joined or b"" in path or b"." in path or b".." in path:
        return False
    return len(joined) <= NAME_BYTES_MAX or all(len(name) <= NAME_BYTES_MAX for name in path)


def is_name(name: object) -> bool:
    """A name that stays inside its folder."""
    return (
        isinstance(name, bytes)
        and 0 < len(name) <= NAME_BYTES_MAX
        and name not in (b".", b"..")
        and b"/" not in name
        and b"\0" not in name
    )


def parse_entry(row: object, *, is_root: bool = False) -> Entry:
    """Raises ManifestCorrupt."""
    if not isinstance(row, list | tuple) or len(row) != len(Entry._fields):
        raise ManifestCorrupt(reason="an entry is malformed")
    entry = Entry._make(row)
    if (
        not _NUMBERS.issuperset(map(type, row[1:]))
        or not 0 <= entry.size < _SIZE_END
        or min(entry.mode, entry.uid, entry.gid, entry.rdev) < 0
        or max(entry.mode, entry.uid, entry.gid) >= _WORD_END
        or not (entry.name == b"" if is_root else is_name(entry.name))
    ):
        raise ManifestCorrupt(reason="an entry has impossible values")
    return entry


def parse_attributes(row: object) -> Attributes:
    """Raises ManifestCorrupt."""
    if not isinstance(row, list | tuple) or len(row) != len(Attributes._fields):
        raise ManifestCorrupt(reason="attributes are malformed")
    xattrs, flags, target = row
    if not isinstance(xattrs, list | tuple) or not isinstance(flags, int) or not isinstance(target, bytes):
        raise ManifestCorrupt(reason="attributes are malformed")
    pairs = tuple(tuple(pair) if isinstance(pair, list | tuple) else () for pair in xattrs)
    if not all(len(pair) == 2 and all(isinstance(part, bytes) for part in pair) for pair in pairs):
        raise ManifestCorrupt(reason="extended attributes are malformed")
    return Attributes(pairs, flags, target)


def _parse_entries(stats: bytes, count: int) -> list[Entry]:
    try:
        rows = msgpack.unpackb(stats, use_list=False)
    except ValueError as err:
        raise ManifestCorrupt(reason="the entries of a folder cannot be read", detail=str(err)) from err
    if not isinstance(rows, tuple) or len(rows) != count:
        raise ManifestCorrupt(reason="a folder has another number of entries than of contents")
    return [parse_entry(row) for row in rows]


# --- the stream's own index -----------------------------------------------------------------------------------------


class StreamRow(NamedTuple):
    """One chunk of the stream, or one page of rows. start is -1, path () and name b"" when no record begins in it."""

    id: bytes
    length: int
    start: int
    path: Path
    name: bytes

    @property
    def key(self) -> Key:
        return self.path, self.name


class StreamWriter:
    """Takes records in the order of their keys, stores the stream and its index. For one thread."""

    def __init__(self, chunker: Chunker, put: PutMetadata) -> None:
        self._chunker = chunker
        self._put = put
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's first byte in the stream
        self._starts: deque[tuple[int, Key]] = deque()  # records that begin in the buffer
        self._levels: list[list[StreamRow]] = [[]]

    def add(self, key: Key, data: bytes) -> None:
        self._starts.append((self._offset + len(self._buffer), key))
        self._buffer += _FRAME.pack(len(data))
        self._buffer += data
        if len(self._buffer) >= CUT_FROM_BYTES:
            self._cut(at_end=False)

    def finish(self) -> tuple[int, list[StreamRow]]:
        """(level, rows) for the root: at most STREAM_ROWS_INLINE_MAX rows."""
        self._cut(at_end=True)
        level = 0
        while level + 1 < len(self._levels) or len(self._levels[level]) > STREAM_ROWS_INLINE_MAX:
            if self._levels[level]:
                self._end_page(level)
            level += 1
        return level, self._levels[level]

    def _cut(self, *, at_end: bool) -> None:
        done = 0
        with memoryview(self._buffer) as view:
            for length in self._chunker.cut_metadata(view, at_end=at_end):
                begin, end = self._offset + done, self._offset + done + length
                start = -1
                key: Key = ((), b"")
                while self._starts and self._starts[0][0] < end:
                    at, first = self._starts.popleft()
                    if start < 0:
                        start, key = at - begin, first
                chunk_id = self._put(bytes(view[done : done + length]))
                self._add_row(0, StreamRow(chunk_id, length, start, *key))
                done += length
        del self._buffer[:done]
        self._offset += done

    def _add_row(self, level: int, row: StreamRow) -> None:
        if level == len(self._levels):
            self._levels.append([])
        page = self._levels[level]
        page.append(row)
        if is_page_end(row.id, len(page)):
            self._end_page(level)

    def _end_page(self, level: int) -> None:
        page, self._levels[level] = self._levels[level], []
        first = next((row for row in page if row.start >= 0), page[0])
        page_id = self._put(bytes(msgpack.packb(page)))
        covers = sum(row.length for row in page)
        self._add_row(level + 1, StreamRow(page_id, covers, min(first.start, 0), first.path, first.name))


def parse_stream_rows(value: object) -> list[StreamRow]:
    """Raises ManifestCorrupt."""
    if not isinstance(value, list | tuple):
        raise ManifestCorrupt(reason="a page of the stream is malformed")
    return [_parse_stream_row(item) for item in value]


def _parse_stream_row(item: object) -> StreamRow:
    if not isinstance(item, list | tuple) or len(item) != len(StreamRow._fields):
        raise ManifestCorrupt(reason="a row of the stream is malformed")
    chunk_id, length, start, path, name = item
    shapes = (chunk_id, bytes), (length, int), (start, int), (path, list | tuple), (name, bytes)
    if not all(isinstance(part, kind) for part, kind in shapes) or not is_path(tuple(path)):
        raise ManifestCorrupt(reason="a row of the stream is malformed")
    if length <= 0 or not -1 <= start < length:
        raise ManifestCorrupt(reason="a row of the stream has impossible values")
    return StreamRow(chunk_id, length, start, tuple(path), name)


class Stream:
    """A stored stream. Reads as little as it is asked for."""

    def __init__(
        self, level: int, rows: Sequence[StreamRow], get: GetMetadata, expect: ExpectMetadata | None = None
    ) -> None:
        if not 0 <= level <= LEVEL_MAX:
            raise ManifestCorrupt(reason="the stream has an impossible depth", detail=f"level {level}")
        self._level = level
        self._rows = rows
        self._get = get
        self._expect = expect

    def records(self, key: Key | None = None) -> Iterator[tuple[Record, bytes]]:
        """(record, its bytes), from a record at or before `key` on; from the start for None."""
        for data in self.frames(key):
            yield parse_record(data), data

    def frames(self, key: Key | None = None) -> Iterator[bytes]:
        """As `records`, not decoded."""
        buffer = bytearray()
        skipping = True  # until the first record begins
        for row in self._leaves(self._level, self._rows, key):
            chunk = self._get(row.id)
            if len(chunk) != row.length:
                raise ManifestCorrupt(reason="a chunk of the stream has another length than its row says")
            if skipping:
                if row.start < 0:
                    continue
                chunk, skipping = chunk[row.start :], False
            buffer += chunk
            yield from take_frames(buffer)
        if buffer:
            raise ManifestCorrupt(reason="the stream ends inside a record")

    def chunks(self) -> Iterator[StreamRow]:
        """The rows of its chunks, in order."""
        return self._leaves(self._level, self._rows, None)

    def find(self, path: Path) -> Item | None:
        """The entry at a path other than the root, or None. Reads a page a level and the chunks of one record."""
        wanted = path[:-1], path[-1]
        part = None
        for record, _ in self.records(wanted):
            if record.key > wanted:
                break
            part = record
        if part is None or part.path != path[:-1]:
            return None
        return next((item for item in part.items() if item.entry.name == path[-1]), None)

    def pages(self) -> Iterator[tuple[bool, bytes]]:
        """(is a page of rows, id) of every metadata chunk the stream itself is made of."""

        def walk(level: int, rows: Sequence[StreamRow]) -> Iterator[tuple[bool, bytes]]:
            for row in rows:
                yield level > 0, row.id
                if level:
                    yield from walk(level - 1, self._page(row.id))

        return walk(self._level, self._rows)

    def _leaves(self, level: int, rows: Sequence[StreamRow], key: Key | None) -> Iterator[StreamRow]:
        first = 0
        if key is not None:
            below = [i for i, row in enumerate(rows) if row.start >= 0 and row.key <= key]
            first = below[-1] if below else 0
        for i in range(first, len(rows)):
            if self._expect is not None and key is None and (i - first) % EXPECTED_ROWS == 0:
                self._expect(row.id for row in rows[i : i + 2 * EXPECTED_ROWS])
            if level == 0:
                yield rows[i]
            else:
                yield from self._leaves(level - 1, self._page(rows[i].id), key if i == first else None)

    def _page(self, page_id: bytes) -> list[StreamRow]:
        try:
            return parse_stream_rows(msgpack.unpackb(self._get(page_id), use_list=False))
        except ValueError as err:
            raise ManifestCorrupt(reason="a page of the stream cannot be read", detail=str(err)) from err


def open_stream(root: Root, get: GetMetadata, expect: ExpectMetadata | None = None) -> Stream:
    """The stream of a tree's root; `expect` is told what a walk over all of it reads next. Raises ManifestCorrupt."""
    if root.kind != "tree" or len(root.body.stream) != 2:
        raise ManifestCorrupt(reason=f"root {root.name} holds no tree")
    level, rows = root.body.stream
    if not isinstance(level, int):
        raise ManifestCorrupt(reason=f"root {root.name} is malformed")
    return Stream(level, parse_stream_rows(rows), get, expect)


def take_frames(buffer: bytearray) -> list[bytes]:
    """Take every whole record off the front of `buffer`."""
    frames = []
    at = 0
    with memoryview(buffer) as view:
        while len(view) - at >= _FRAME.size:
            (length,) = _FRAME.unpack_from(view, at)
            if not _SIZE.size < length <= RECORD_BYTES_MAX:
                raise ManifestCorrupt(reason="a directory record has an impossible length", detail=f"{length} bytes")
            end = at + _FRAME.size + length
            if len(view) < end:
                break
            frames.append(bytes(view[at + _FRAME.size : end]))
            at = end
    del buffer[:at]
    return frames
