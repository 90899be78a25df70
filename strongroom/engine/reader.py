"""Any bytes of a restore point, at random: the one way to look into it, for downloads, mounts and instant restores.

    open_reader -> Reader        one session, pinned while it is open: no prune takes away what it may read
      .read, .read_into, .extents    a disk
      .open(path) -> FileReader      a file of a tree; also the disk, at the path ()
      .list, .stat                   names of a tree

    range -> chunks (content_map) -> segments (segment_cache, shared by all readers of the process) -> slices

Every chunk is compared with all 32 bytes of its id before a byte of it is given. One that cannot be read is looked for
in its other places, then in the newest index, read once more; else it is damage and an error, never wrong bytes. Holes
cost nothing. Who reads on where he stopped is read ahead for. Everything here may be used by several threads.
"""

import contextlib
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from strongroom.base.errors import ChunkCorrupt, Corrupt, EntryNotFound, InvalidRequest, ObjectMissing, PackCorrupt
from strongroom.base.streams import Extent, ExtentKind, Path
from strongroom.base.units import MIB
from strongroom.engine.chunker import HOLE, KEY_BYTES, ZEROS
from strongroom.engine.content import Content, parse_content
from strongroom.engine.content_map import ContentMap, Pages, Piece
from strongroom.engine.index import unread
from strongroom.engine.index_table import ChunkPlace
from strongroom.engine.manifest import CHANGED, Item, Stream, open_stream
from strongroom.engine.model import METADATA_SEGMENT_BYTES_MAX, SEGMENT_BYTES_MAX, BrowsedEntry, Root
from strongroom.engine.pack import SegmentPlace
from strongroom.engine.repository import Repository, Session
from strongroom.engine.segment_cache import Held

CACHE_BYTES = 64 * MIB  # of a reader, unless it is told otherwise: a window read ahead, and as much again
LIST_MAX = 10_000  # entries of one listing; the caller goes on after the last name
AHEAD_BYTES_MAX = 64 * MIB  # 16 segments: at 100 ms a request 600 MB/s
RUNS_MAX = 8  # places of a file or disk where somebody reads on: a client with a few streams
PLACES_KEPT = 1 << 14  # places of chunks that were looked up: read ahead finds what is read next; some 4 MiB

Name = Callable[[memoryview], bytes]  # makes the id of a chunk


class Reader:
    """One restore point, open. Close it: it holds a session. Made by `open_reader`."""

    def __init__(self, session: Session, root: Root, cache_bytes: int, closing: contextlib.ExitStack) -> None:
        self.root = root
        self.size = root.size
        self._session = session
        self._segments = session.repository.segments
        self._cache = session.repository.pool.cache
        self._lock = threading.Lock()  # of the session
        self._places: dict[bytes, ChunkPlace] = {}
        self._closing = closing
        self._closed = False
        self._pages = Pages(self._metadata)
        self.ahead_bytes = min(cache_bytes // 2, AHEAD_BYTES_MAX)
        self._stream: Stream | None = None
        self._disk: FileReader | None = None
        if root.kind == "block":
            self._disk = FileReader(self, ContentMap(parse_content(root.body.stream), root.size, self._pages))
        else:
            self._stream = open_stream(root, self._metadata)
        self._cache.enter(cache_bytes)
        closing.callback(self._cache.leave, cache_bytes)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the session and the memory back. Idempotent; what is read meanwhile or later raises InvalidRequest."""
        self._closed = True
        self._closing.close()

    # --- a disk ---

    def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of the disk, fewer at its end. Raises Corrupt classes, StoreError."""
        return self._require_disk().read(offset, length)

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset` of the disk; the number of bytes, fewer only at its end."""
        return self._require_disk().read_into(offset, view)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What lies in [offset, offset + length) of the disk: see FileReader."""
        return self._require_disk().extents(offset, length)

    def _require_disk(self) -> "FileReader":
        if self._disk is None:
            raise InvalidRequest(reason="This restore point is a tree: open one of its files.")
        return self._disk

    # --- a tree ---

    def open(self, path: Path) -> "FileReader":
        """A regular file, or the disk at `()`. Raises EntryNotFound for anything else."""
        if self._disk is not None and not path:
            return self._disk
        item = self._require(path)
        if item.content is None:
            raise EntryNotFound(id=_shown(path))
        return self.open_content(item.content, item.entry.size)

    def open_content(self, content: Content, size: int) -> "FileReader":
        """What somebody found in the manifest before."""
        return FileReader(self, ContentMap(content, size, self._pages))

    def stat(self, path: Path) -> BrowsedEntry:
        """One entry below the top folder. Raises EntryNotFound."""
        return _browsed(self._require(path))

    def list(self, path: Path, after: bytes | None = None, limit: int = 1000) -> list[BrowsedEntry]:
        """At most `limit` entries of the folder at `path`, by name, those after `after`. Raises EntryNotFound."""
        if not 0 < limit <= LIST_MAX:
            raise InvalidRequest(reason=f"A listing has 1 to {LIST_MAX} entries.")
        if self._stream is None or (path and not stat.S_ISDIR(self._require(path).entry.mode)):
            raise EntryNotFound(id=_shown(path))
        entries: list[BrowsedEntry] = []
        for record, _ in self._stream.records((path, after or b"")):
            if record.path < path:
                continue
            if record.path > path:
                break
            entries += [_browsed(item) for item in record.items() if after is None or item.entry.name > after]
            if len(entries) >= limit:
                break
        return entries[:limit]

    def _require(self, path: Path) -> Item:
        item = self._stream.find(path) if path and self._stream is not None else None
        if item is None:
            raise EntryNotFound(id=_shown(path))
        return item

    # --- chunks ---

    def copy(self, pieces: Iterable[Piece], offset: int, view: memoryview) -> None:
        """Fill `view`, which lies at `offset` of the content, from pieces in order. Raises Corrupt classes, StoreError.

        Neighbours of one segment are copied while it is held once.
        """
        end = offset + view.nbytes
        held: Held | None = None
        try:
            for piece in pieces:
                start = piece.start
                first = offset - start if start < offset else 0
                target = view[start + first - offset : min(start + piece.length, end) - offset]
                if piece.id == HOLE:
                    _fill_zeros(target)
                    continue
                place = self._places.get(piece.id) or self.place(piece)
                if held is not None and (place is None or place.segment != held.key[1]):
                    self._cache.release(held)
                    held = None
                try:
                    if place is None or place.length != piece.length:
                        raise ChunkCorrupt(reason=f"chunk {piece.id.hex()} is not where it should be")
                    if held is None:
                        held = self._claim(place)
                    self._check(held, place, piece.id, self._session.chunker.data_id)
                    begin = place.start + first
                    target[:] = held.plain[begin : begin + len(target)]
                except (PackCorrupt, ObjectMissing, ChunkCorrupt):
                    self._places.pop(piece.id, None)
                    if held is not None:  # one at a time: the next place may be another segment
                        self._cache.release(held)
                        held = None
                    chunk = self._find(piece.id, piece.length, self._session.chunker.data_id)
                    target[:] = memoryview(chunk)[first : first + len(target)]
        finally:
            if held is not None:
                self._cache.release(held)

    def place(self, piece: Piece) -> ChunkPlace | None:
        """Where a chunk of data is read from first; remembered for `copy`."""
        found = self._places.get(piece.id) or self._first_place(piece.id)
        if found is None or found.length != piece.length:
            return None
        self._remember(piece.id, found)
        return found

    def prefetch(self, segment: SegmentPlace) -> bool:
        """False when so much is on its way that no more will be read ahead now."""
        return self._cache.prefetch(self._segments, segment)

    def _metadata(self, chunk_id: bytes) -> bytes:
        """A metadata chunk. Its length is what its place says: the id is what proves it."""
        return self._find(chunk_id, None, self._session.chunker.metadata_id)

    def _first_place(self, chunk_id: bytes) -> ChunkPlace | None:
        with self._lock:
            return next(self._session.index.places(chunk_id[:KEY_BYTES]), None)

    def _find(self, chunk_id: bytes, length: int | None, name: Name) -> bytes:
        """The whole chunk, from any place, or from those of the newest index. Raises Corrupt classes, StoreError."""
        failure: Corrupt | ObjectMissing | None = None
        while True:
            with self._lock:
                index = self._session.index
                places = list(index.places(chunk_id[:KEY_BYTES]))
            for place in places:
                try:
                    chunk = self._whole(place, chunk_id, name)
                    if length not in (None, len(chunk)):
                        raise ChunkCorrupt(reason=f"chunk {chunk_id.hex()} has another length than the manifest says")
                except (PackCorrupt, ObjectMissing, ChunkCorrupt) as err:
                    failure = err
                    continue
                if length is not None:
                    self._remember(chunk_id, place)
                return chunk
            with self._lock:
                if self._session.index is index and not self._session.renew():
                    raise unread(chunk_id, failure)

    def _whole(self, place: ChunkPlace, chunk_id: bytes, name: Name) -> bytes:
        held = self._claim(place)
        try:
            self._check(held, place, chunk_id, name)
            return bytes(held.plain[place.start : place.start + place.length])
        finally:
            self._cache.release(held)

    def _claim(self, place: ChunkPlace) -> Held:
        if self._closed:
            raise InvalidRequest(reason="The restore point is not open any more.")
        try:
            return self._cache.claim(self._segments, place.segment)
        except PackCorrupt:
            self._session.fail(place.segment)  # it is tried last from now on, and suspect in the next index list
            raise

    def _check(self, held: Held, place: ChunkPlace, chunk_id: bytes, name: Name) -> None:
        """All 32 bytes of the id, once while the segment is in memory."""
        at = place.start, place.length
        if held.checked.get(at) == chunk_id:
            return
        if name(held.plain[place.start : place.start + place.length]) != chunk_id:
            self._session.fail(place.segment, wrong=True)
            raise ChunkCorrupt(reason=f"chunk {chunk_id.hex()} has other bytes", detail=str(place))
        held.checked[at] = chunk_id

    def _remember(self, chunk_id: bytes, place: ChunkPlace) -> None:
        if len(self._places) >= PLACES_KEPT:
            self._places.clear()
        self._places[chunk_id] = place


class FileReader:
    """One regular file of a tree, or a disk, of `size` bytes. It needs no closing; its reader does."""

    def __init__(self, reader: Reader, content: ContentMap) -> None:
        self._reader = reader
        self._content = content
        self.size = content.size
        self._lock = threading.Lock()  # guards the one below
        self._runs: OrderedDict[int, tuple[int, int]] = OrderedDict()  # where one stopped -> (window, read ahead until)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length), fewer at the end. Raises Corrupt classes, StoreError."""
        buffer = bytearray(max(min(length, self.size - offset), 0))
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset`; the number of bytes, fewer only at the end. Raises Corrupt classes, StoreError."""
        if offset < 0:
            raise InvalidRequest(reason="A range begins at 0 or later.")
        count = min(view.nbytes, self.size - offset)
        if count <= 0:
            return 0
        end = offset + count
        self._read_ahead(offset, end)
        self._reader.copy(self._content.pieces(offset, end), offset, view[:count])
        return count

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """DATA and ZERO in turn, covering [offset, offset + length) as far as there is something. Reads no data."""
        end = min(offset + length, self.size)
        begin, kind = offset, ExtentKind.DATA
        for piece in self._content.pieces(offset, end):
            own = ExtentKind.ZERO if piece.id == HOLE else ExtentKind.DATA
            start = max(piece.start, offset)
            if own != kind:
                if start > begin:
                    yield Extent(begin, start - begin, kind)
                begin, kind = start, own
        if end > begin:
            yield Extent(begin, end - begin, kind)

    def _read_ahead(self, begin: int, end: int) -> None:
        """Begin to load what this read needs of several segments, and, if it goes on where one stopped, what follows.

        The window doubles from read to read, so that a client who only looks here and there costs nothing.
        """
        most = self._reader.ahead_bytes
        if most < SEGMENT_BYTES_MAX:
            return
        with self._lock:
            run = self._runs.pop(begin, None)
            window, until = run or (SEGMENT_BYTES_MAX // 2, begin)
            goes_on = run is not None or begin == 0
            if goes_on:
                window = min(window * 2, most)
            self._runs[end] = window, until
            if len(self._runs) > RUNS_MAX:
                self._runs.popitem(last=False)
        if goes_on and until - end <= window // 2:
            reached = self._prefetch(max(until, begin), end + window)
            with self._lock:
                if end in self._runs:
                    self._runs[end] = window, reached
        elif not goes_on and end - begin > SEGMENT_BYTES_MAX:
            self._prefetch(begin, end)

    def _prefetch(self, begin: int, end: int) -> int:
        """Begin to load the segments of [begin, end), and the last of them to its end; how far that reached.

        What does not read is told later, by the read that wants it.
        """
        wanted: dict[SegmentPlace, int] = {}
        reached = begin
        with contextlib.suppress(Corrupt, ObjectMissing):
            for piece in self._content.pieces(begin, min(end + SEGMENT_BYTES_MAX, self.size)):
                place = None if piece.id == HOLE else self._reader.place(piece)
                if piece.start >= end and (place is None or place.segment not in wanted):
                    break
                if place is not None:
                    wanted.setdefault(place.segment, piece.start)
                reached = piece.start + piece.length
        for segment, start in wanted.items():
            if not self._reader.prefetch(segment):
                return start
        return reached


def open_reader(repository: Repository, root_name: str, *, cache_bytes: int = CACHE_BYTES) -> Reader:
    """A restore point to read from, until it is closed.

    `cache_bytes` is what it adds to the cache of the repository's pool while it is open; one segment is always kept.
    Raises ObjectMissing when there is no such root, Corrupt classes, StoreError.
    """
    closing = contextlib.ExitStack()
    try:
        session = closing.enter_context(repository.session("mount", root_name))
        return Reader(session, session.load_root(root_name), cache_bytes, closing)
    except BaseException:
        closing.close()
        raise


def _fill_zeros(target: memoryview) -> None:
    for at in range(0, len(target), len(ZEROS)):
        piece = target[at : at + len(ZEROS)]
        piece[:] = ZEROS[: len(piece)]


def _browsed(item: Item) -> BrowsedEntry:
    mode = item.entry.mode
    if stat.S_ISDIR(mode):
        return BrowsedEntry(name=item.entry.name, kind="folder", entry=item.entry)
    if stat.S_ISLNK(mode):
        return BrowsedEntry(name=item.entry.name, kind="link", entry=item.entry, target=item.attributes.target)
    kind: Literal["file", "other"] = "other" if item.content is None else "file"
    return BrowsedEntry(name=item.entry.name, kind=kind, entry=item.entry, doubtful=bool(item.doubts & CHANGED))


def _shown(path: Path) -> str:
    return "/" + b"/".join(path).decode(errors="backslashreplace")


assert METADATA_SEGMENT_BYTES_MAX <= SEGMENT_BYTES_MAX  # one place in the cache holds either
