"""Copying what is live out of packs into new ones, because it is little, or because the packs are small.

Every chunk is compared with its whole id on the way, so damage is not carried on under a new seal. The new packs are
durable but unknown until the caller puts an index object for them; the old ones stay until it condemns them. From the
index object on the copies are what counts (usage.py), so whoever comes next does not copy again.
"""

from dataclasses import dataclass, field

from strongroom.base.errors import ChunkCorrupt, PackCorrupt, StoreFull
from strongroom.base.streams import Monitor
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.model import METADATA_SEGMENT_BYTES_MAX, SEGMENT_BYTES_MAX
from strongroom.engine.pack import DATA, METADATA, Pack, SegmentPlace, load_pack
from strongroom.engine.repository import Session
from strongroom.engine.segments import Buffers, PackWriter, SegmentWriter
from strongroom.engine.usage import Usage


@dataclass(kw_only=True)
class Moved:
    """What came of it.

    made     packs that are durable and that no index object names yet
    done     packs of which everything live is in `made`
    suspect  packs that failed a check
    full     why it ended before its end: there was no room for more
    """

    made: list[Pack] = field(default_factory=list)
    done: set[bytes] = field(default_factory=set)
    suspect: set[bytes] = field(default_factory=set)
    full: StoreFull | None = None


def move_live(session: Session, usage: Usage, packs: list[bytes], monitor: Monitor) -> Moved:
    """Copy what is live in `packs`. Raises StoreError other than StoreFull, and what `monitor` raises."""
    moved = Moved()
    mover = _Mover(session, moved.made, monitor)
    done: set[bytes] = set()
    try:
        for pack in packs:
            monitor.check()
            try:
                mover.move(pack, usage)
                done.add(pack)
            except (PackCorrupt, ChunkCorrupt):
                moved.suspect.add(pack)
        mover.finish()
        moved.done = done
    except StoreFull as err:
        moved.full = err
    finally:
        mover.release()
    return moved


class _Mover:
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
        sizes = {DATA: SEGMENT_BYTES_MAX, METADATA: METADATA_SEGMENT_BYTES_MAX}
        self._segments = {kind: SegmentWriter(packs, self._buffers, sizes[kind]) for kind, packs in self._packs.items()}

    def move(self, pack_id: bytes, usage: Usage) -> None:
        """Raises PackCorrupt or ChunkCorrupt; what was copied before is only a second copy then."""
        repository = self._repository
        pack = load_pack(repository.store, repository.prefix, repository.domain, pack_id)
        keys = usage.needed_among(pack_id, (chunk_id for segment in pack.segments for chunk_id in segment.ids))
        if len(keys) < usage.chunks_of(pack_id)[1]:
            raise PackCorrupt(reason=f"pack {pack_id.hex()} lacks chunks that the index puts there")
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
