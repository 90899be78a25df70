"""Where a backup puts its chunks: known ones cost a lookup, new ones go to packs, durable packs go to index objects.
A copy puts chunks and whole segments of its source here, which it has looked up before.

The order packs -> index is kept here: an index object is written for packs that are durable, never before.
"""

import threading
from collections.abc import Callable

from strongroom.base.errors import PackCorrupt
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.content import Content, iter_ids
from strongroom.engine.model import METADATA_SEGMENT_BYTES_MAX
from strongroom.engine.pack import DATA, METADATA, Pack, Segment
from strongroom.engine.repository import Session
from strongroom.engine.segments import Buffers, PackWriter, SegmentWriter
from strongroom.engine.store.remote import together

INDEX_CHUNKS = 1 << 16  # a long backup makes what it has known in portions: 2 MB each, some 8 GB of data
BATCH_IDS_MIN = 1024  # pages of large contents hold 8192: looked up together, a fifth of the time

_ID_BYTES = 32


class Intake:
    """The chunks of one backup. `put_*` from one thread; `check` is called while it waits for buffers.

    prove   open each segment again before it is stored        made  ids of packs that are durable
    """

    def __init__(self, session: Session, check: Callable[[], None], *, prove: bool = False) -> None:
        repository = session.repository
        self._session = session
        self._index = session.index
        self.chunker = session.chunker
        self._lock = threading.Lock()  # guards the four below, which syncers write
        self.made: list[bytes] = []
        self._unindexed: list[Pack] = []
        self._unindexed_chunks = 0
        self._bytes_stored = 0
        self.bytes_new = 0
        self.buffers = Buffers(repository.pool, check)
        self._packs = [
            PackWriter(
                repository.store,
                repository.prefix,
                repository.domain,
                kind,
                repository.pool,
                self._finished,
                prove=prove,
            )
            for kind in (DATA, METADATA)
        ]
        self.data = SegmentWriter(self._packs[0], self.buffers)
        self._metadata = SegmentWriter(self._packs[1], self.buffers, METADATA_SEGMENT_BYTES_MAX)

    @property
    def bytes_stored(self) -> int:
        """Sealed bytes of finished packs and index objects."""
        with self._lock:
            return self._bytes_stored

    def put_data(self, chunk: memoryview) -> bytes:
        """Store a chunk unless it is known; its id."""
        chunk_id = self.chunker.data_id(chunk)
        self.put_named(chunk_id, chunk)
        return chunk_id

    def put_named(self, chunk_id: bytes, chunk: memoryview) -> None:
        """As `put_data`, for a chunk whose id was computed."""
        key = chunk_id[:KEY_BYTES]
        if not self._index.knows(key):
            self._index.bear(key, len(chunk))
            self.bytes_new += len(chunk)
            self.data.append(chunk_id, chunk)

    def put_in_place(self, chunk: memoryview) -> bytes:
        """As `put_data`, for a chunk that lies at the writer's position already: nothing is copied."""
        chunk_id = self.chunker.data_id(chunk)
        key = chunk_id[:KEY_BYTES]
        if not self._index.knows(key):
            self._index.bear(key, len(chunk))
            self.bytes_new += len(chunk)
            self.data.keep(chunk_id, len(chunk))
        return chunk_id

    def knows(self, chunk_id: bytes) -> bool:
        """Whether a data chunk need not be put."""
        return self._index.knows(chunk_id[:KEY_BYTES])

    def knows_as(self, chunk_id: bytes, length: int) -> bool:
        """Whether a data chunk need not be put and is this long: asked of what is told and not seen.

        Answered also while its pack is being filled. What is known was seen once, and named by its bytes.
        """
        return self._index.length_of(chunk_id[:KEY_BYTES]) == length

    def put_metadata(self, chunk: bytes) -> bytes:
        """Store a metadata chunk unless it is known; its id."""
        chunk_id = self.chunker.metadata_id(chunk)
        key = chunk_id[:KEY_BYTES]
        if not self._index.knows(key):
            self._index.bear(key, 0)
            self._metadata.append(chunk_id, chunk)
        return chunk_id

    def copy_chunk(self, kind: int, chunk_id: bytes, chunk: memoryview) -> None:
        """Store a chunk that is not known, with the id it has."""
        (self._metadata if kind == METADATA else self.data).append(chunk_id, chunk)

    def copy_segment(self, kind: int, segment: Segment, payload: memoryview) -> None:
        """Store a whole segment as it was compressed; from any thread. `finish` MUST come after its return."""
        packs = self._packs[1] if kind == METADATA else self._packs[0]
        packs.store_payload(segment.codec, payload, segment.raw, segment.ids, segment.lengths)

    def raise_failed(self) -> None:
        """Raise what went wrong in other threads, if anything did."""
        for packs in self._packs:
            packs.raise_failed()

    @property
    def is_wary(self) -> bool:
        """True when the index has bad packs, so that what a parent refers to must be looked up before it is reused."""
        return bool(self._index.bad)

    def holds(self, content: Content) -> bool:
        """Whether all that a parent's content refers to may be relied on. Cheap unless the index has bad packs."""
        if not self._index.bad:
            return True
        pages = iter_ids(content, self._session.metadata, lambda _: False)
        return all(self._holds_all(ids) for _, ids in pages)

    def _holds_all(self, ids: bytes) -> bool:
        """Of ids that lie one after the other; zeros are holes."""
        if len(ids) >= BATCH_IDS_MIN * _ID_BYTES:
            from strongroom.engine.index_search import halves

            first, second = halves(ids, _ID_BYTES)
            return bool((self._index.knows_many(first, second) | ((first == 0) & (second == 0))).all())
        keys = (ids[at : at + KEY_BYTES] for at in range(0, len(ids), _ID_BYTES))
        return all(self._index.knows(key) or not any(key) for key in keys)

    def finish(self) -> None:
        """Everything put is durable and known on return. Raises what went wrong in any thread.

        Then every pack the index knows is checked to be there with its length (RULINGS 14), except those that were bad
        from the start, on which nothing relies.
        """
        self.data.flush()
        self._metadata.flush()
        for packs in self._packs:
            packs.close_open()
        for packs in self._packs:
            packs.finish()
        repository, lost = self._session.repository, frozenset[bytes]()

        def look() -> None:
            """Beside the index, where requests take long: it is about packs that were there before."""
            nonlocal lost
            lost = repository.bad_packs(self._index.tables) - self._index.bad

        together(repository.store, self._put_index, look)
        if lost:
            names = ", ".join(pack.hex() for pack in sorted(lost)[:10])
            raise PackCorrupt(reason="packs vanished meanwhile; run the task again", detail=names)

    def close(self) -> None:
        """The end, good or bad. Unfinished packs are dropped; finished ones stay: those that are indexed serve the next
        attempt, prune removes the others."""
        for packs in self._packs:
            packs.discard()
        self.buffers.release()

    def _finished(self, pack: Pack) -> None:
        with self._lock:
            self._unindexed.append(pack)
            self.made.append(pack.id)
            self._unindexed_chunks += sum(len(segment.ids) for segment in pack.segments)
            self._bytes_stored += pack.size
            full = self._unindexed_chunks >= INDEX_CHUNKS
        if full:
            self._put_index()

    def _put_index(self) -> None:
        with self._lock:
            packs, self._unindexed, self._unindexed_chunks = self._unindexed, [], 0
        if not packs:
            return
        _, table, size = self._session.repository.put_index_object(packs, self._index.number)
        self._index.settle(table, packs)
        with self._lock:
            self._bytes_stored += size
