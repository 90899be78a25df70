"""From an open file to its content: small files, files cut by content, and disk images in fixed blocks."""

from collections.abc import Callable, Iterable, Iterator
from typing import cast

from strongroom.base.errors import SourceChanged
from strongroom.base.streams import CutFile, Entry, Extent, ExtentKind, FileData
from strongroom.base.units import MIB
from strongroom.engine.chunker import HOLE, ID_BYTES, KEY_BYTES, is_zero
from strongroom.engine.content import (
    BLOCKS,
    CHUNKS,
    EMPTY,
    PAGE_COVERS_BYTES,
    ROW,
    Content,
    ContentWriter,
    GetMetadata,
    iter_pages,
    iter_rows,
    require_page,
)
from strongroom.engine.former import Former
from strongroom.engine.intake import Intake
from strongroom.engine.model import BLOCK_BYTES, CHUNK_BYTES_MAX, SMALL_FILE_BYTES

CUT_BYTES = 1 * MIB  # cut at a time of a file that had chunks before; the largest chunk has half of it
IMAGE_BYTES_MIN = 64 * MIB  # below, cutting by content is as good and needs no page of ids
IMAGE_SUFFIXES = (b".raw", b".img", b".qcow2", b".vmdk", b".vhd", b".vhdx", b".vdi", b".iso")

_EMPTY_BLOCK = bytes(BLOCK_BYTES)

ReadInto = Callable[[int, memoryview], int]
Run = tuple[int, int, ExtentKind]  # [start, end) on block borders (or the end of the disk)


def is_image(entry: Entry) -> bool:
    return entry.size >= IMAGE_BYTES_MIN and entry.name.lower().endswith(IMAGE_SUFFIXES)


class ContentReader:
    """Reads sources into an Intake. For one thread. `tick` is called with the bytes read, at most once a MiB or so."""

    def __init__(self, intake: Intake, get: GetMetadata, tick: Callable[[int], None]) -> None:
        self._intake = intake
        self._get = get
        self._tick = tick
        self._buffer: bytearray | None = None

    def read_file(self, data: FileData, old: Content | None = None) -> tuple[Content, bool]:
        """(content of exactly data.entry.size bytes, whether the file was that long). What was cut off is a hole.

        old: what it held in the parent; it only saves work.
        """
        entry = data.entry
        size = entry.size
        if hasattr(data, "pieces"):
            return self._take_pieces(cast(CutFile, data))
        if size == 0:
            return EMPTY, True
        if is_image(entry):
            return self.read_blocks(size, data.extents(), data.read_into, None)
        if size <= SMALL_FILE_BYTES and not entry.sparse:
            return self._read_small(data, size)
        extents = data.extents() if entry.sparse else (Extent(0, size, ExtentKind.DATA),)
        return self._read_cut(data, size, extents, self._former(old))

    def _take_pieces(self, data: CutFile) -> tuple[Content, bool]:
        """The content of a file that its source has cut. What came is named again here: nobody's word counts for it."""
        intake, size = self._intake, data.entry.size
        image = is_image(data.entry)
        rows = ContentWriter(BLOCKS if image else CHUNKS, intake.put_metadata)
        page = bytearray()
        done = paged = 0
        for chunk_id, length, chunk in data.pieces():
            done += length
            if length <= 0 or (chunk_id != HOLE and length > CHUNK_BYTES_MAX) or done > size:
                raise SourceChanged(reason="The source describes a file with impossible pieces. Run the task again.")
            self._tick(length)
            if chunk is not None:
                if len(chunk) != length or intake.chunker.data_id(chunk) != chunk_id:
                    raise SourceChanged(
                        reason="The source sent a piece that is not what it said. Run the task again.",
                        detail=f"{len(chunk)} bytes for {length} that end at {done}",
                    )
                intake.put_named(chunk_id, chunk)
            elif chunk_id != HOLE and not intake.knows_as(chunk_id, length):
                raise SourceChanged(reason="The source left out a piece that is not stored so. Run the task again.")
            if not image:
                rows.add(chunk_id, length)
                continue
            # A hole may be of many blocks; every block but the last of the image is whole.
            blocks = -(-length // BLOCK_BYTES)
            if (length % BLOCK_BYTES and done != size) or (blocks > 1 and chunk_id != HOLE):
                raise SourceChanged(reason="The source cut an image at a wrong place. Run the task again.")
            for _ in range(blocks):
                page += chunk_id
                covers = min(len(page) // ID_BYTES * BLOCK_BYTES, size - paged)
                if covers == PAGE_COVERS_BYTES or paged + covers == size:
                    rows.add(intake.put_metadata(bytes(page)) if any(page) else HOLE, covers)
                    page.clear()
                    paged += covers
                    self._tick(0)  # of a hole without end a stop is heard too
        if done != size:
            raise SourceChanged(reason="The source described less than a whole file. Run the task again.")
        return rows.finish(), data.whole

    def _former(self, old: Content | None) -> Former | None:
        if old is None or old.layout != CHUNKS or (old.level == 0 and len(old.rows) <= ROW.size):
            return None
        return Former(iter_rows(old, self._get))

    def _read_small(self, data: FileData, size: int) -> tuple[Content, bool]:
        """One chunk, read straight into the segment."""
        room = self._intake.data.room(size)
        got = data.read_into(0, room)
        self._tick(got)
        if got == size:
            return Content(CHUNKS, 0, ROW.pack(self._intake.put_in_place(room), size)), True
        rows = ROW.pack(self._intake.put_in_place(room[:got]), got) if got else b""
        return Content(CHUNKS, 0, rows + ROW.pack(HOLE, size - got)), False

    def _read_cut(
        self, data: FileData, size: int, extents: Iterable[Extent], former: Former | None
    ) -> tuple[Content, bool]:
        rows = ContentWriter(CHUNKS, self._intake.put_metadata)
        whole = True
        end = 0
        for offset, length, kind in extents:
            if offset != end or offset + length > size:
                raise SourceChanged(reason="The source describes a file with gaps or overlaps. Run the task again.")
            end = offset + length
            if kind == ExtentKind.ZERO:
                rows.add(HOLE, length)
            elif not self._cut_extent(data, offset, end, rows, former):
                whole = False
        if end < size:
            rows.add(HOLE, size - end)
        return rows.finish(), whole and end == size

    def _cut_extent(self, data: FileData, offset: int, end: int, rows: ContentWriter, former: Former | None) -> bool:
        """Cut [offset, end) into chunks. False when the file ended sooner; the rest is a hole then."""
        if self._buffer is None:
            self._buffer = self._intake.buffers.take()
        buffer = self._buffer
        view = memoryview(buffer)
        have = 0
        while True:
            wanted = min(len(buffer) - have, end - offset)
            got = data.read_into(offset, view[have : have + wanted]) if wanted else 0
            self._tick(got)
            have += got
            offset += got
            at_end = got < wanted or offset == end
            done = self._cut(buffer, have, at_end, rows, former)
            if at_end:
                break
            have -= done
            view[:have] = view[done : done + have]
        if offset < end:
            rows.add(HOLE, end - offset)
        return offset == end

    def _cut(self, buffer: bytearray, have: int, at_end: bool, rows: ContentWriter, former: Former | None) -> int:
        """Take the whole chunks at the start of buffer[:have]; the bytes they have. At the end that is all."""
        done = 0
        with memoryview(buffer) as view:
            while done < have:
                stop = have
                if former is not None and former.is_useful:
                    done = self._take_former(view, done, have, rows, former)
                    if done == have or (former.in_step and not at_end):
                        break  # it goes on in the next buffer
                    former.lose()
                    stop = min(have, done + CUT_BYTES)  # little, because it may be in step again soon
                for length in self._intake.chunker.cut_data(view[done:stop], at_end=at_end and stop == have):
                    start, done = done, done + length
                    if is_zero(buffer, start, length):
                        rows.add(HOLE, length)
                        continue
                    chunk_id = self._intake.put_data(view[start:done])
                    rows.add(chunk_id, length)
                    if former is not None and former.is_useful and former.meets(chunk_id):
                        break
                else:
                    if stop == have:
                        break
        return done

    def _take_former(self, view: memoryview, done: int, have: int, rows: ContentWriter, former: Former) -> int:
        """Take chunks of view[done:have] as long as they are the old ones: where they end. Out of step: it differs."""
        while former.in_step:
            expected = former.expected()
            if expected is None:
                former.lose()
                break
            chunk_id, length = expected
            if length > have - done:
                break
            chunk = view[done : done + length]
            if self._intake.chunker.data_id(chunk) != chunk_id:
                former.lose()
                break
            self._intake.put_named(chunk_id, chunk)
            rows.add(chunk_id, length)
            former.took()
            done += length
        return done

    # --- disks and images ---

    def read_blocks(
        self, size: int, extents: Iterable[Extent], read_into: ReadInto, parent: Content | None
    ) -> tuple[Content, bool]:
        """A content of BLOCKS. SAME is taken over from `parent` (of the same size), or read when there is none.

        Second: whether every read gave all it was asked for; what was missing is zeros.
        """
        rows = ContentWriter(BLOCKS, self._intake.put_metadata)
        old_pages = iter_pages(parent, self._get) if parent is not None else None
        whole = True
        for start, end, runs in pages_of(aligned_runs(extents, size), size):
            old = next(old_pages, None) if old_pages is not None else None
            kinds = {kind for _, _, kind in runs}
            if kinds == {ExtentKind.SAME} and old is not None and self._holds_page(*old):
                rows.add(*old)
                continue
            if kinds == {ExtentKind.ZERO}:
                rows.add(HOLE, end - start)
                continue
            ids = bytearray(-(-(end - start) // BLOCK_BYTES) * ID_BYTES)
            known = self._old_ids(old) if ExtentKind.SAME in kinds and old is not None else None
            for first, last, kind in runs:
                if kind == ExtentKind.ZERO:
                    continue
                at = (first - start) // BLOCK_BYTES * ID_BYTES
                if kind == ExtentKind.SAME and known is not None:
                    to = at + -(-(last - first) // BLOCK_BYTES) * ID_BYTES
                    ids[at:to] = known[at:to]
                elif not self._read_run(first, last, read_into, ids, at):
                    whole = False
            page = bytes(ids)
            rows.add(self._intake.put_metadata(page) if any(page) else HOLE, end - start)
        return rows.finish(), whole

    def _holds_page(self, page_id: bytes, covers: int) -> bool:
        return page_id == HOLE or self._intake.holds(Content(BLOCKS, 1, ROW.pack(page_id, covers)))

    def _old_ids(self, old: tuple[bytes, int]) -> bytes | None:
        """The parent's ids of a page, or None when it may not be relied on."""
        page_id, covers = old
        if page_id == HOLE:
            return bytes(-(-covers // BLOCK_BYTES) * ID_BYTES)
        if not self._holds_page(page_id, covers):
            return None
        page = self._get(page_id)
        require_page(page, covers)
        return page

    def _read_run(self, start: int, end: int, read_into: ReadInto, ids: bytearray, at: int) -> bool:
        """Read [start, end) and write the ids of its blocks to ids[at:]. False when a read came short."""
        writer = self._intake.data
        put = self._intake.put_in_place
        whole = True
        while start < end:
            buffer, offset, size = writer.run(end - start, BLOCK_BYTES)
            with memoryview(buffer) as view:
                got = read_into(start, view[offset : offset + size])
                self._tick(got)
                if got < size:
                    whole = False
                    view[offset + got : offset + size] = bytes(size - got)
                for block in range(offset, offset + size, BLOCK_BYTES):
                    length = min(BLOCK_BYTES, offset + size - block)
                    if not is_zero(buffer, block, length):
                        to = writer.position
                        if to != block:
                            view[to : to + length] = view[block : block + length]
                        ids[at : at + ID_BYTES] = put(view[to : to + length])
                    at += ID_BYTES
            start += size
        return whole


def aligned_runs(extents: Iterable[Extent], size: int) -> Iterator[Run]:
    """Extents on block borders. A block that several extents share keeps their kind if they agree, else it is DATA.

    extents  |----DATA----|---------ZERO--------|--SAME--|
    blocks   |      |      |      |      |      |      |
    runs     |----DATA-----|-----ZERO----|-DATA-|-SAME-|
    """
    expected = 0
    open_block: ExtentKind | None = None  # kind of the block that begins before `expected` and ends after it
    for offset, length, kind in extents:
        if offset != expected or length <= 0 or offset + length > size:
            raise SourceChanged(reason="The source describes its disk with gaps or overlaps. Run the task again.")
        expected = end = offset + length
        first = offset - offset % BLOCK_BYTES
        last = end if end == size else end - end % BLOCK_BYTES
        if open_block is not None:
            shared = kind if kind == open_block else ExtentKind.DATA
            if last <= first:
                open_block = shared
                continue
            yield first, min(first + BLOCK_BYTES, size), shared
            first += BLOCK_BYTES
        if first < last:
            yield first, last, kind
        open_block = kind if last < end else None
    if expected != size:
        raise SourceChanged(reason="The source describes less than its disk. Run the task again.")


def pages_of(runs: Iterable[Run], size: int) -> Iterator[tuple[int, int, list[Run]]]:
    """(start, end, runs inside) of each page of blocks; neighbouring runs of one kind are joined."""
    page: list[Run] = []
    for start, end, kind in runs:
        while start < end:
            border = min(start - start % PAGE_COVERS_BYTES + PAGE_COVERS_BYTES, size)
            stop = min(end, border)
            if page and page[-1][1] == start and page[-1][2] == kind:
                page[-1] = (page[-1][0], stop, kind)
            else:
                page.append((start, stop, kind))
            if stop == border:
                yield page[0][0], border, page
                page = []
            start = stop


def changed_extents(extents: Iterable[tuple[int, int]], size: int) -> Iterator[Extent]:
    """What a changed-block list says, as extents: DATA where it changed, SAME between. Any order, overlaps allowed."""
    at = 0
    for offset, length in sorted(extents):
        start, end = max(offset, at, 0), min(offset + length, size)
        if end <= start:
            continue
        if start > at:
            yield Extent(at, start - at, ExtentKind.SAME)
        yield Extent(start, end - start, ExtentKind.DATA)
        at = end
    if at < size:
        yield Extent(at, size - at, ExtentKind.SAME)


assert ID_BYTES == 2 * KEY_BYTES
