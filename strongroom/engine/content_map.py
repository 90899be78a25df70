"""Finding the chunks of any range of a content, without walking to it.

Pages of rows are remembered as ids and running ends, so that a page is searched, not scanned; a page of blocks needs no
search. The pages of all contents of a reader share one small memory. What a page says is compared with what the row
above it says: a manifest that does not fit itself is damage.
"""

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple, TypeVar

from strongroom.base.errors import ManifestCorrupt
from strongroom.engine.chunker import HOLE, ID_BYTES
from strongroom.engine.content import BLOCKS, ROW, Content, GetMetadata, require_page
from strongroom.engine.model import BLOCK_BYTES, CHUNK_BYTES_MAX

PAGES_KEPT = 16  # 256 KiB each at most: the way to any place, and the ways of a few streams of a reader


class Piece(NamedTuple):
    """A chunk of `length` bytes at `start` of the content; a hole has the id HOLE and may be long."""

    id: bytes
    start: int
    length: int


class _Rows(NamedTuple):
    """Rows of one page: their ids joined, and where each ends, counted from the page's first byte."""

    ids: bytes
    ends: "array[int]"


_Page = TypeVar("_Page", _Rows, bytes)


def _parse_rows(data: bytes) -> _Rows:
    if len(data) % ROW.size:
        raise ManifestCorrupt(reason="a page of rows is cut off", detail=f"{len(data)} bytes")
    rows = list(ROW.iter_unpack(data))
    if not all(length for _, length in rows):
        raise ManifestCorrupt(reason="a row has an impossible length", detail="0 bytes")
    try:
        return _Rows(b"".join(row[0] for row in rows), array("Q", accumulate(length for _, length in rows)))
    except OverflowError as err:
        raise ManifestCorrupt(reason="a row has an impossible length", detail=str(err)) from err


class Pages:
    """The pages that a reader read last. Safe for several threads, who may parse the same page twice."""

    def __init__(self, get: GetMetadata) -> None:
        self._get = get
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, _Rows | bytes] = OrderedDict()

    def rows(self, page_id: bytes) -> _Rows:
        found = self._find(page_id)
        return found if isinstance(found, _Rows) else self._keep(page_id, _parse_rows(self._get(page_id)))

    def blocks(self, page_id: bytes) -> bytes:
        found = self._find(page_id)
        return found if isinstance(found, bytes) else self._keep(page_id, self._get(page_id))

    def _find(self, page_id: bytes) -> _Rows | bytes | None:
        with self._lock:
            found = self._kept.get(page_id)
            if found is not None:
                self._kept.move_to_end(page_id)
            return found

    def _keep(self, page_id: bytes, page: _Page) -> _Page:
        with self._lock:
            self._kept[page_id] = page
            if len(self._kept) > PAGES_KEPT:
                self._kept.popitem(last=False)
        return page


class ContentMap:
    """The content of one file or disk of `size` bytes. Raises ManifestCorrupt when it has another size."""

    def __init__(self, content: Content, size: int, pages: Pages) -> None:
        self.size = size
        self._content = content
        self._top = _parse_rows(content.rows)
        self._pages = pages
        found = self._top.ends[-1] if self._top.ends else 0
        if found != size:
            raise ManifestCorrupt(reason="a file has another size than its content", detail=f"{size}, {found}")

    def pieces(self, begin: int, end: int) -> Iterator[Piece]:
        """Every chunk and hole that has a byte in [begin, end), in order and whole. Raises ManifestCorrupt."""
        return self._walk(self._content.level, self._top, 0, begin, end)

    def _walk(self, level: int, rows: _Rows, base: int, begin: int, end: int) -> Iterator[Piece]:
        at = bisect_right(rows.ends, max(begin - base, 0))
        start = base + (rows.ends[at - 1] if at else 0)
        while at < len(rows.ends) and start < end:
            row_id = rows.ids[at * ID_BYTES : (at + 1) * ID_BYTES]
            stop = base + rows.ends[at]
            if level == 0 or row_id == HOLE:
                if row_id != HOLE and stop - start > CHUNK_BYTES_MAX:
                    raise ManifestCorrupt(reason="a row has an impossible length", detail=f"{stop - start} bytes")
                yield Piece(row_id, start, stop - start)
            elif self._content.layout == BLOCKS and level == 1:
                yield from self._blocks(row_id, start, stop, begin, end)
            else:
                below = self._pages.rows(row_id)
                if not below.ends or below.ends[-1] != stop - start:
                    raise ManifestCorrupt(reason="a page covers another length than its row says")
                yield from self._walk(level - 1, below, start, begin, end)
            at, start = at + 1, stop

    def _blocks(self, page_id: bytes, start: int, stop: int, begin: int, end: int) -> Iterator[Piece]:
        page = self._pages.blocks(page_id)
        require_page(page, stop - start)
        first = max(begin - start, 0) // BLOCK_BYTES
        for at in range(first, len(page) // ID_BYTES):
            offset = start + at * BLOCK_BYTES
            if offset >= end:
                return
            yield Piece(page[at * ID_BYTES : (at + 1) * ID_BYTES], offset, min(BLOCK_BYTES, stop - offset))
