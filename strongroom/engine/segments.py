"""The writing side of packs: from chunks in a buffer to packs in the store.

    caller's thread     chunks -> segment buffer -> (full) -> task
    compressors         compress -> reserve a place in the open pack -> encrypt -> write at its offset
    syncers             the last writer of a full pack is done -> footer -> commit (durable, visible) -> `finished`

An error in any thread is raised in the caller's at its next segment, and at `finish`.
"""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from strongroom.engine.chunker import Chunker
from strongroom.engine.digests import part_digest
from strongroom.engine.keys import Domain
from strongroom.engine.model import PACK_BYTES, SEGMENT_BYTES_MAX
from strongroom.engine.pack import (
    ALIGNMENT_BYTES,
    METADATA,
    PACK_CHUNKS_MAX,
    RAW,
    SEGMENT_CHUNKS_MAX,
    Namer,
    Pack,
    Segment,
    SegmentPlace,
    compress_segment,
    pack_name,
    require_opens,
    require_sound,
    scratch,
    seal_footer,
)
from strongroom.engine.pool import Pool
from strongroom.engine.seal import OBJECT_ID_BYTES, SEGMENT, TAG_BYTES, Box, new_object_id
from strongroom.engine.store.base import ObjectWriter, Store

if TYPE_CHECKING:
    from concurrent.futures import Future

RUN_PIECES_MAX = 16  # 1 MiB of blocks a read: larger reads are not faster


class _OpenPack:
    """A pack being filled. `end` grows under the lock of its PackWriter; `busy` counts segments on their way."""

    def __init__(self, store: Store, prefix: str, domain: Domain) -> None:
        self.id = new_object_id()
        self.writer: ObjectWriter = store.writer(pack_name(prefix, self.id))
        self.box = Box(domain.data_key, domain.id, SEGMENT, self.id)
        self.end = OBJECT_ID_BYTES
        self.chunks = 0
        self.busy = 0
        self.full = False
        self.segments: list[Segment] = []
        self.digests: dict[int, bytes] = {0: part_digest(self.id)}  # by offset


class PackWriter:
    """Fills packs of one kind from several threads. `finished` is called with each durable pack, on a syncer.

    Every segment is opened again before it is stored, and compared. Of metadata, and of what did not compress, each
    chunk is compared with its id; of compressed data the frame, unless `prove`: decompressing all of it again costs a
    fifth of a backup (docs/decisions/0006).
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        domain: Domain,
        kind: int,
        pool: Pool,
        finished: Callable[[Pack], None],
        *,
        prove: bool = False,
    ) -> None:
        chunker = Chunker(domain)
        self._name: Namer = chunker.metadata_id if kind == METADATA else chunker.data_id
        self._prove_all = prove or kind == METADATA
        self._store = store
        self._prefix = prefix
        self._domain = domain
        self._kind = kind
        self._pool = pool
        self._finished = finished
        self._lock = threading.Lock()
        self._open: _OpenPack | None = None
        self._unfinished: set[_OpenPack] = set()
        self._futures: deque[Future[None]] = deque()  # segments that are stored
        self._closing: deque[Future[None]] = deque()  # packs that become durable; a segment's task may add one

    def submit(
        self, buffer: bytearray, size: int, ids: list[bytes], lengths: list[int], free: Callable[[], None]
    ) -> None:
        """Store buffer[:size] as one segment on a compressor; `free` is called when the buffer may be filled again."""
        self.raise_failed()

        def task() -> None:
            try:
                self._store_segment(memoryview(buffer)[:size], ids, lengths)
            finally:
                free()

        self._futures.append(self._pool.compute(task))

    def raise_failed(self) -> None:
        """Raise what went wrong in other threads, if anything did."""
        for futures in (self._futures, self._closing):
            while futures and futures[0].done():
                futures.popleft().result()

    def close_open(self) -> None:
        """Begin to make the last pack durable, once every segment submitted lies in it. Raises what went wrong."""
        _drain(self._futures)
        with self._lock:
            pack, self._open = self._open, None
            if pack is not None:
                pack.full = True
        if pack is not None:
            self._closing.append(self._pool.sync(lambda: self._close(pack)))

    def finish(self) -> None:
        """Every segment submitted lies in a durable pack on return. Raises what went wrong."""
        self.close_open()
        _drain(self._closing)

    def discard(self) -> None:
        """Forget the packs that are not finished. Waits for the threads that still write to them."""
        for futures in (self._futures, self._closing):
            while futures:
                futures.popleft().exception()
        for pack in list(self._unfinished):
            pack.writer.discard()
        self._unfinished.clear()

    def _store_segment(self, plain: memoryview, ids: list[bytes], lengths: list[int]) -> None:
        codec, payload = compress_segment(plain, self._domain.level)
        self.store_payload(codec, payload, len(plain), ids, lengths)

    def store_payload(
        self, codec: int, payload: bytes | memoryview, raw: int, ids: list[bytes], lengths: list[int]
    ) -> None:
        """Store what is compressed already as one segment, on this thread. `finish` MUST come after its return."""
        stored = len(payload) + TAG_BYTES
        pack, offset = self._reserve(stored, raw, codec, ids, lengths)
        box = scratch("box", stored, offset % ALIGNMENT_BYTES)  # as it will lie in a file: written without a copy
        pack.box.seal_into(offset, payload, box)
        place = SegmentPlace(pack.id, offset, stored, raw, codec)
        if self._prove_all or codec == RAW:
            require_sound(pack.box, place, box, ids, lengths, self._name)
        else:
            require_opens(pack.box, place, box, payload)
        digest = part_digest(box)  # of what was sealed, not of what the store says it has
        pack.writer.write_at(offset, box)
        with self._lock:
            pack.digests[offset] = digest
            pack.busy -= 1
            last = pack.full and not pack.busy
        if last:
            self._closing.append(self._pool.sync(lambda: self._close(pack)))

    def _reserve(
        self, stored: int, raw: int, codec: int, ids: list[bytes], lengths: list[int]
    ) -> tuple[_OpenPack, int]:
        """A range of the open pack that no other segment gets: its offset is a nonce."""
        with self._lock:
            pack = self._open
            if pack is None:
                pack = self._open = _OpenPack(self._store, self._prefix, self._domain)
                self._unfinished.add(pack)
                pack.writer.write_at(0, pack.id)  # now, so that a store may send the beginning before the end is there
            offset = pack.end
            pack.end += stored
            pack.chunks += len(ids)
            pack.busy += 1
            pack.segments.append(Segment(offset, stored, raw, codec, ids, lengths))
            if pack.end >= PACK_BYTES or pack.chunks >= PACK_CHUNKS_MAX:
                pack.full = True
                self._open = None
            return pack, offset

    def _close(self, pack: _OpenPack) -> None:
        """The footer, then the commit that makes the pack durable and visible."""
        footer = seal_footer(self._domain, pack.id, self._kind, pack.segments, pack.end)
        pack.writer.write_at(pack.end, footer)
        pack.writer.commit()
        with self._lock:
            self._unfinished.discard(pack)
        pack.digests[pack.end] = part_digest(footer)
        digests = b"".join(digest for _, digest in sorted(pack.digests.items()))
        size = pack.end + len(footer)
        self._finished(Pack(id=pack.id, size=size, kind=self._kind, segments=pack.segments, digests=digests))


def _drain(futures: "deque[Future[None]]") -> None:
    while futures:
        futures.popleft().result()


class Buffers:
    """The segment buffers of one job, leased together when the first is needed. `take` and `give` from any thread."""

    def __init__(self, pool: Pool, check: Callable[[], None]) -> None:
        self._pool = pool
        self._check = check
        self._all: list[bytearray] = []
        self._free: SimpleQueue[bytearray] = SimpleQueue()

    def take(self) -> bytearray:
        """Blocks while all are on their way to the store: that is the back-pressure."""
        if not self._all:
            self._all = self._pool.lease(self._check)
            for buffer in self._all:
                self._free.put(buffer)
        return self._free.get()

    def give(self, buffer: bytearray) -> None:
        self._free.put(buffer)

    def release(self) -> None:
        """Back to the pool with all of them. No thread may use one any more."""
        self._pool.give_back(self._all)
        self._all = []


class SegmentWriter:
    """Collects chunks of one kind into segments. For one thread.

    Two ways in: `append` copies a chunk; `room` gives the place where the next chunk may be read to, `keep` takes it.
    """

    def __init__(self, packs: PackWriter, buffers: Buffers, bytes_max: int = SEGMENT_BYTES_MAX) -> None:
        self._packs = packs
        self._buffers = buffers
        self._bytes_max = bytes_max
        self._buffer: bytearray | None = None
        self._view = memoryview(b"")
        self._size = 0
        self._ids: list[bytes] = []
        self._lengths: list[int] = []

    def room(self, size: int) -> memoryview:
        """A writable place of `size` bytes, at most a chunk. Valid until the next call of any method."""
        if self._buffer is None:
            self._begin()
        elif self._size + size > self._bytes_max:
            self.flush()
            self._begin()
        return self._view[self._size : self._size + size]

    def run(self, length: int, step: int) -> tuple[bytearray, int, int]:
        """(buffer, offset, size): a place for up to `length` bytes in pieces of `step`, which follow each other there.

        For who reads many pieces at once and keeps some: each kept piece is moved to `position` first.
        """
        if self._bytes_max - self._size < min(step, length) or len(self._ids) + RUN_PIECES_MAX > SEGMENT_CHUNKS_MAX:
            self.flush()
        self.room(0)
        assert self._buffer is not None
        left = self._bytes_max - self._size
        size = length if length <= left else left - left % step
        return self._buffer, self._size, min(size, RUN_PIECES_MAX * step)

    @property
    def position(self) -> int:
        """Where in the buffer the next chunk goes."""
        return self._size

    def keep(self, chunk_id: bytes, size: int) -> None:
        """The first `size` bytes of the room given last are a chunk."""
        self._ids.append(chunk_id)
        self._lengths.append(size)
        self._size += size
        if self._size >= self._bytes_max or len(self._ids) >= SEGMENT_CHUNKS_MAX:
            self.flush()

    def append(self, chunk_id: bytes, chunk: bytes | memoryview) -> None:
        size = len(chunk)
        self.room(size)[:] = chunk
        self.keep(chunk_id, size)

    def flush(self) -> None:
        """Send what is there on its way, however little."""
        buffer = self._buffer
        if buffer is None:
            return
        self._view.release()
        self._buffer = None
        if not self._ids:
            self._buffers.give(buffer)
            return
        ids, lengths, size = self._ids, self._lengths, self._size
        self._ids, self._lengths, self._size = [], [], 0
        self._packs.submit(buffer, size, ids, lengths, lambda: self._buffers.give(buffer))

    def _begin(self) -> None:
        self._buffer = self._buffers.take()
        self._packs.raise_failed()
        self._view = memoryview(self._buffer)
        self._size = 0
