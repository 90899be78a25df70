"""What a file or a disk holds: rows of chunk ids, in a tree whose pages are metadata chunks.

    row      id 32 | length u64       an id of zeros is a hole of that length; holes and zeros are never stored
    level 0  rows of chunks           level n  rows of pages, whose rows are of level n - 1; length is what they cover

    CHUNKS   pieces of any length, cut by content
    BLOCKS   fixed blocks of 64 KiB: a level-1 row is a page of bare ids (8192 of them cover 512 MiB), so a changed
             block changes one page; a page of zeros only is a hole

Pages of rows are cut where an id says so: a piece inserted into a large file changes one page, not all after it.
A file of 1 TB needs two levels; nothing ever holds more than a page per level.
"""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from strongroom.base.errors import ManifestCorrupt
from strongroom.engine.chunker import HOLE, ID_BYTES
from strongroom.engine.model import BLOCK_BYTES, CHUNK_BYTES_MAX

CHUNKS, BLOCKS = 0, 1

ROWS_INLINE_MAX = 64  # rows kept beside their owner: a folder of 4096 such files is still a record of 10 MB
PAGE_ROWS_MIN, PAGE_ROWS_MAX = 128, 4096
PAGE_BLOCKS = 8192  # RULINGS: a changed page costs 256 KiB
PAGE_COVERS_BYTES = PAGE_BLOCKS * BLOCK_BYTES
LEVEL_MAX = 8  # 64 * 128 ** 8 rows; deeper is not ours
_CUT_MASK = 0x3FF  # a page of 128 + 1024 rows on average

ROW = struct.Struct("<32sQ")

PutMetadata = Callable[[bytes], bytes]  # stores a metadata chunk, gives its id
GetMetadata = Callable[[bytes], bytes]  # reads one by id, checked


class Content(NamedTuple):
    """layout CHUNKS or BLOCKS, level of `rows`, and at most ROWS_INLINE_MAX rows."""

    layout: int
    level: int
    rows: bytes


EMPTY = Content(CHUNKS, 0, b"")


def is_page_end(chunk_id: bytes, rows: int) -> bool:
    """Whether a page of `rows` rows ends after this id."""
    if rows < PAGE_ROWS_MIN:
        return False
    return rows >= PAGE_ROWS_MAX or int.from_bytes(chunk_id[-2:], "big") & _CUT_MASK == 0


class ContentWriter:
    """Builds one content from rows in order; full pages leave at once. For BLOCKS, rows are pages: `level` is 1."""

    def __init__(self, layout: int, put: PutMetadata) -> None:
        self._layout = layout
        self._base = 1 if layout == BLOCKS else 0
        self._put = put
        self._levels: list[bytearray] = [bytearray()]
        self._covers: list[int] = [0]
        self._hole = 0

    def add(self, chunk_id: bytes, length: int) -> None:
        """The next row. Holes that follow each other become one (not in BLOCKS, where a row is a page)."""
        if chunk_id == HOLE and self._layout == CHUNKS:
            self._hole += length
            return
        if self._hole:
            self._end_hole()
        self._add(0, chunk_id, length)

    def finish(self) -> Content:
        if self._hole:
            self._end_hole()
        level = 0
        while level + 1 < len(self._levels) or len(self._levels[level]) > ROWS_INLINE_MAX * ROW.size:
            if self._levels[level]:
                self._end_page(level)
            level += 1
        return Content(self._layout, self._base + level, bytes(self._levels[level]))

    def _end_hole(self) -> None:
        length, self._hole = self._hole, 0
        self._add(0, HOLE, length)

    def _add(self, level: int, chunk_id: bytes, length: int) -> None:
        if level == len(self._levels):
            self._levels.append(bytearray())
            self._covers.append(0)
        page = self._levels[level]
        page += ROW.pack(chunk_id, length)
        self._covers[level] += length
        if is_page_end(chunk_id, len(page) // ROW.size):
            self._end_page(level)

    def _end_page(self, level: int) -> None:
        page, covers = bytes(self._levels[level]), self._covers[level]
        self._levels[level].clear()
        self._covers[level] = 0
        self._add(level + 1, self._put(page), covers)


def parse_content(value: object) -> Content:
    """What a record or root holds. Bare bytes are rows of level 0. Raises ManifestCorrupt."""
    if isinstance(value, bytes):
        return Content(CHUNKS, 0, value)
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ManifestCorrupt(reason="a content is of no known form")
    layout, level, rows = value
    if layout not in (CHUNKS, BLOCKS) or not isinstance(level, int) or not isinstance(rows, bytes):
        raise ManifestCorrupt(reason="a content is malformed")
    if not (1 if layout == BLOCKS else 0) <= level <= LEVEL_MAX:
        raise ManifestCorrupt(reason="a content has an impossible level", detail=f"layout {layout}, level {level}")
    return Content(layout, level, rows)


def pack_content(content: Content) -> object:
    """The short form of what `parse_content` reads."""
    return content.rows if content.layout == CHUNKS and content.level == 0 else list(content)


def _rows(data: bytes) -> Iterator[tuple[bytes, int]]:
    if len(data) % ROW.size:
        raise ManifestCorrupt(reason="a page of rows is cut off", detail=f"{len(data)} bytes")
    return ROW.iter_unpack(data)


def is_one_chunk(content: Content, size: int) -> bool:
    """Whether it is a single chunk of `size` bytes, as most files are; a hole is none."""
    layout, level, rows = content
    if layout != CHUNKS or level or len(rows) != ROW.size or not 0 < size <= CHUNK_BYTES_MAX:
        return False
    chunk_id, length = ROW.unpack(rows)
    return bool(length == size and chunk_id != HOLE)


def iter_rows(content: Content, get: GetMetadata, offset: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """(id, length, offset) of every chunk, block or hole that ends after `offset`, in order. Raises ManifestCorrupt.

    The last block of a disk may be short, and a hole may be long; every other length is that of a chunk.
    """
    return _walk(content.layout, content.level, content.rows, get, offset, 0, None)


def _walk(
    layout: int, level: int, data: bytes, get: GetMetadata, offset: int, start: int, last: int | None
) -> Iterator[tuple[bytes, int, int]]:
    """`last` is where a page has to end; None for the rows beside their owner, who knows its size."""
    leaf = level == 0
    for chunk_id, length in _rows(data):
        end = start + length
        if not length or (leaf and length > CHUNK_BYTES_MAX and chunk_id != HOLE) or (last is not None and end > last):
            raise ManifestCorrupt(reason="a row has an impossible length", detail=f"{length} bytes")
        if end > offset:
            if leaf or chunk_id == HOLE:
                yield chunk_id, length, start
            elif layout == BLOCKS and level == 1:
                yield from _walk_blocks(get(chunk_id), length, offset, start)
            else:
                yield from _walk(layout, level - 1, get(chunk_id), get, offset, start, end)
        start = end
    if last is not None and start != last:
        raise ManifestCorrupt(reason="a page of rows covers less than its row says", detail=f"{last - start} bytes")


def _walk_blocks(page: bytes, covers: int, offset: int, start: int) -> Iterator[tuple[bytes, int, int]]:
    require_page(page, covers)
    first = max(0, offset - start) // BLOCK_BYTES
    for at in range(first, len(page) // ID_BYTES):
        begin = at * BLOCK_BYTES
        yield page[at * ID_BYTES : (at + 1) * ID_BYTES], min(BLOCK_BYTES, covers - begin), start + begin


def top_pages(content: Content) -> list[bytes]:
    """The ids of the pages that `iter_rows` reads first, in order."""
    return [row_id for row_id, _ in _rows(content.rows) if row_id != HOLE] if content.level else []


def require_page(page: bytes, covers: int) -> None:
    """Raises ManifestCorrupt unless a page of block ids has exactly the ids of the bytes it covers."""
    if not 0 < covers <= PAGE_COVERS_BYTES or len(page) != -(-covers // BLOCK_BYTES) * ID_BYTES:
        raise ManifestCorrupt(reason="a page of blocks has a wrong size", detail=f"{len(page)} for {covers} bytes")


def iter_pages(content: Content, get: GetMetadata) -> Iterator[tuple[bytes, int]]:
    """(page id, bytes covered) of a BLOCKS content, in order; HOLE for a page of zeros."""

    def walk(level: int, data: bytes) -> Iterator[tuple[bytes, int]]:
        for page_id, covers in _rows(data):
            if level == 1:
                yield page_id, covers
            else:
                yield from walk(level - 1, get(page_id))

    if content.layout != BLOCKS:
        raise ManifestCorrupt(reason="a disk is expected, but the content is not of blocks")
    return walk(content.level, content.rows)


def iter_ids(content: Content, get: GetMetadata, seen: Callable[[bytes], bool]) -> Iterator[tuple[bool, bytes]]:
    """(is_metadata, ids joined) of everything a content refers to; a page of which `seen` is true is not opened."""

    def walk(level: int, data: bytes) -> Iterator[tuple[bool, bytes]]:
        ids = [row_id for row_id, _ in _rows(data) if row_id != HOLE]
        yield level > 0, b"".join(ids)
        if level == 0:
            return
        for page_id in ids:
            if seen(page_id):
                continue
            page = get(page_id)
            if content.layout == BLOCKS and level == 1:
                yield False, page
            else:
                yield from walk(level - 1, page)

    return walk(content.level, content.rows)
