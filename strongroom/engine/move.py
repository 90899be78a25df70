"""Copying what is live out of packs that are mostly dead, into new ones.

Every chunk is compared with its whole id on the way, so damage is not carried on under a new seal. The new packs are
durable but unknown until the caller puts an index object for them; the old ones stay until it condemns them.
"""

from strongroom.base.errors import ChunkCorrupt
from strongroom.base.streams import Monitor
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.pack import DATA, METADATA, Pack, SegmentPlace, load_pack
from strongroom.engine.repository import Session
from strongroom.engine.segments import Buffers, PackWriter, SegmentWriter


class Mover:
    """Fills new packs of each kind; `made` gets the durable ones. For one thread."""

    def __init__(self, session: Session, made: list[Pack], monitor: Monitor) -> None:
        repository = session.repository
        self._session = session
        self._repository = repository
        self._buffers = Buffers(repository.pool, monitor.check)
        self._packs = {
            kind: PackWriter(repository.store, repository.prefix, repository.domain, kind, repository.pool, made.append)
            for kind in (DATA, METADATA)
        }
        self._segments = {kind: SegmentWriter(packs, self._buffers) for kind, packs in self._packs.items()}

    def move(self, pack_id: bytes, keys: set[bytes]) -> None:
        """Raises PackCorrupt or ChunkCorrupt; what was copied before is only a second copy then."""
        repository = self._repository
        pack = load_pack(repository.store, repository.prefix, repository.domain, pack_id)
        chunker = self._session.chunker
        name = chunker.metadata_id if pack.kind == METADATA else chunker.data_id
        for segment in pack.segments:
            if not any(chunk_id[:KEY_BYTES] in keys for chunk_id in segment.ids):
                continue
            plain = memoryview(bytearray(segment.raw))
            place = SegmentPlace(pack_id, segment.offset, segment.stored, segment.raw, segment.codec)
            repository.segments.read_into(place, plain)
            start = 0
            for chunk_id, length in zip(segment.ids, segment.lengths, strict=True):
                chunk = plain[start : start + length]
                start += length
                if chunk_id[:KEY_BYTES] not in keys:
                    continue
                if name(chunk) != chunk_id:
                    raise ChunkCorrupt(reason=f"chunk {chunk_id.hex()} has other bytes", detail=pack_id.hex())
                self._segments[pack.kind].append(chunk_id, chunk)

    def finish(self) -> None:
        """Everything copied is durable on return."""
        for segments in self._segments.values():
            segments.flush()
        for packs in self._packs.values():
            packs.finish()

    def release(self) -> None:
        """Forget what is not finished, and give the buffers back."""
        for packs in self._packs.values():
            packs.discard()
        self._buffers.release()
