"""Segments and packs: how chunks lie in the store.

    segment = one zstd frame (or raw bytes) of consecutive chunks, at most 4 MiB, in one box
    pack    = object id | box of segment | box of segment | ... | box of zstd(footer) | footer box length u32 | magic

The dedup unit (chunk), the unit of compression and encryption (segment) and the object (pack) are different things on
purpose: small chunks make increments small, large segments make the ratio good. No length of a chunk is visible. The
footer makes a pack describe itself, so that an index can be rebuilt. A pack is closed by its name: until the writer
commits, nobody sees it; after an error its id is never used again.
"""

import mmap
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from strongroom.base.errors import ChunkCorrupt, Corrupt, PackCorrupt, ShortRead
from strongroom.base.units import KIB, MIB
from strongroom.engine.chunker import ID_BYTES
from strongroom.engine.keys import Domain
from strongroom.engine.model import CHUNK_BYTES_MAX, SEGMENT_BYTES_MAX
from strongroom.engine.seal import FOOTER, OBJECT_ID_BYTES, SEGMENT, TAG_BYTES, Box
from strongroom.engine.store.base import Store

RAW, ZSTD = 0, 1
DATA, METADATA = 0, 1

SEGMENT_CHUNKS_MAX = 1 << 14  # tiny files: bounds the footer, costs nothing in the ratio
PACK_CHUNKS_MAX = 1 << 16  # of tiny files: what a session holds in memory until the pack is durable, 200 bytes each
PACK_BYTES_MAX = 64 * MIB  # a reader's bound: a pack closes at 32 MiB, plus a segment and a footer
FOOTER_BYTES_MAX = 32 * MIB
PROBE_BYTES = 16 * KIB  # two of these at level -5 tell in 50 us whether 4 MiB are worth compressing
PROBE_FROM_BYTES = 64 * KIB
PROBE_RAW_RATIO = 0.97
PROBE_LEVEL = -5
FOOTER_LEVEL = 3
WINDOW_BYTES_MAX = 8 * MIB  # what a frame may ask a reader to allocate
ALIGNMENT_BYTES = mmap.PAGESIZE  # of scratch buffers
BOXES_MAX = 256  # derived keys a reader remembers

_ERRS = "its memory or processor errs. Nothing of it was kept; test the machine before the next backup"

MAGIC = b"SRPACK01"
_TRAILER = struct.Struct("<I8s")
_HEAD = struct.Struct("<BII")  # kind, segments, chunks
_SEGMENT = struct.Struct("<QIIBI")  # offset, stored, raw, codec, chunks


class Segment(NamedTuple):
    """One segment of a pack. stored includes the tag; ids and lengths go in the order the chunks lie in it."""

    offset: int
    stored: int
    raw: int
    codec: int
    ids: list[bytes]
    lengths: list[int]


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A finished pack: object id, size of the object in bytes, DATA or METADATA, its segments.

    digests  of its parts as they lie (digests.py), joined; empty when it was read from its footer only
    """

    id: bytes
    size: int
    kind: int
    segments: list[Segment]
    digests: bytes = b""


class SegmentPlace(NamedTuple):
    """Where a segment lies; sorts by pack and offset."""

    pack: bytes
    offset: int
    stored: int
    raw: int
    codec: int


Namer = Callable[[bytes | bytearray | memoryview], bytes]  # the id of a chunk


class _Tools(threading.local):
    """What one thread reuses, made at first use: compressors and three buffers. They are not safe to share."""

    def __init__(self) -> None:
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}
        self._decompressor: zstandard.ZstdDecompressor | None = None
        self._buffers: dict[str, memoryview] = {}

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self._compressors.get(level)
        if found is None:
            found = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
            self._compressors[level] = found
        return found

    @property
    def decompressor(self) -> zstandard.ZstdDecompressor:
        if self._decompressor is None:
            self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        return self._decompressor

    def buffer(self, use: str, length: int, phase: int) -> memoryview:
        """This thread's buffer for one use, as long as asked for; its last content is gone."""
        found = self._buffers.get(use)
        if found is None:
            found = self._buffers[use] = memoryview(mmap.mmap(-1, SEGMENT_BYTES_MAX + TAG_BYTES + ALIGNMENT_BYTES))
        return found[phase : phase + length]


_tools = _Tools()


def pack_name(prefix: str, pack: bytes) -> str:
    return f"{prefix}packs/{pack.hex()}"


def compress_segment(plain: memoryview, level: int) -> tuple[int, bytes | memoryview]:
    """(codec, payload). The payload is never longer than `plain`."""
    if _looks_incompressible(plain):
        return RAW, plain
    frame = _tools.compressor(level).compress(plain)
    return (ZSTD, frame) if len(frame) < len(plain) else (RAW, plain)


def _looks_incompressible(plain: memoryview) -> bool:
    size = len(plain)
    if size <= PROBE_FROM_BYTES:
        return False
    early, late = size // 4, 3 * size // 4 - PROBE_BYTES
    compress = _tools.compressor(PROBE_LEVEL).compress
    length = len(compress(plain[early : early + PROBE_BYTES])) + len(compress(plain[late : late + PROBE_BYTES]))
    return length >= PROBE_RAW_RATIO * 2 * PROBE_BYTES


def scratch(use: str, length: int, phase: int = 0) -> memoryview:
    """This thread's buffer for a segment, sealed or plain; valid until it is asked for again for the same use.

    Its address is `phase` (below ALIGNMENT_BYTES) above a multiple of ALIGNMENT_BYTES.
    """
    return _tools.buffer(use, length, phase)


def seal_footer(domain: Domain, pack: bytes, kind: int, segments: list[Segment], offset: int) -> bytes:
    """Everything that follows the last segment's box at `offset`."""
    chunks = sum(len(segment.ids) for segment in segments)
    parts = [_HEAD.pack(kind, len(segments), chunks)]
    parts += [_SEGMENT.pack(s.offset, s.stored, s.raw, s.codec, len(s.ids)) for s in segments]
    parts += [b"".join(segment.ids) for segment in segments]
    parts += [struct.pack(f"<{len(s.lengths)}I", *s.lengths) for s in segments]
    frame = zstandard.ZstdCompressor(level=FOOTER_LEVEL, write_content_size=True).compress(b"".join(parts))
    box = Box(domain.data_key, domain.id, FOOTER, pack).seal(offset, frame)
    return box + _TRAILER.pack(len(box), MAGIC)


def load_pack(store: Store, prefix: str, domain: Domain, pack: bytes) -> Pack:
    """What a pack says of itself, from its footer. Raises PackCorrupt, or StoreError."""
    name = pack_name(prefix, pack)
    size = store.size(name)
    if not OBJECT_ID_BYTES + _TRAILER.size < size <= PACK_BYTES_MAX + FOOTER_BYTES_MAX:
        raise PackCorrupt(reason=f"pack {pack.hex()} has an impossible size", detail=f"{size} bytes")
    length, magic = _TRAILER.unpack(store.read(name, size - _TRAILER.size, _TRAILER.size))
    offset = size - _TRAILER.size - length
    if magic != MAGIC or length > FOOTER_BYTES_MAX or offset < OBJECT_ID_BYTES:
        raise PackCorrupt(reason=f"pack {pack.hex()} has no footer", detail=f"{size} bytes")
    if store.read(name, 0, OBJECT_ID_BYTES) != pack:
        raise PackCorrupt(reason=f"pack {pack.hex()} holds another object")
    try:
        frame = Box(domain.data_key, domain.id, FOOTER, pack).open(offset, store.read(name, offset, length))
    except Corrupt as err:
        raise PackCorrupt(reason=f"the footer of pack {pack.hex()} does not authenticate", detail=err.detail) from err
    kind, segments = _parse_footer(decompress_bounded(frame, FOOTER_BYTES_MAX), offset)
    return Pack(id=pack, size=size, kind=kind, segments=segments)


def read_footer(store: Store, prefix: str, domain: Domain, pack: Pack) -> tuple[int, bytes]:
    """(offset, bytes) of all that follows the last segment of a pack that was loaded. Raises Corrupt, StoreError."""
    offset = max((segment.offset + segment.stored for segment in pack.segments), default=OBJECT_ID_BYTES)
    footer = store.read(pack_name(prefix, pack.id), offset, pack.size - offset)
    length = len(footer) - _TRAILER.size
    if footer[length:] != _TRAILER.pack(length, MAGIC):
        raise PackCorrupt(reason=f"pack {pack.id.hex()} has no footer where its segments end")
    Box(domain.data_key, domain.id, FOOTER, pack.id).open(offset, footer[:length])
    return offset, footer


def _parse_footer(data: bytes, end: int) -> tuple[int, list[Segment]]:
    """(kind, segments); every count is checked against the bytes that are there before it is believed."""
    if len(data) < _HEAD.size:
        raise PackCorrupt(reason="a footer is too short")
    kind, count, chunks = _HEAD.unpack_from(data)
    ids_at = _HEAD.size + count * _SEGMENT.size
    lengths_at = ids_at + chunks * ID_BYTES
    if kind not in (DATA, METADATA) or lengths_at + chunks * 4 != len(data):
        raise PackCorrupt(reason="a footer's counts do not fit its length")
    lengths = struct.unpack_from(f"<{chunks}I", data, lengths_at)
    segments: list[Segment] = []
    first = 0
    for number in range(count):
        offset, stored, raw, codec, own = _SEGMENT.unpack_from(data, _HEAD.size + number * _SEGMENT.size)
        last = first + own
        ids = [data[ids_at + i * ID_BYTES : ids_at + (i + 1) * ID_BYTES] for i in range(first, min(last, chunks))]
        segment = Segment(offset, stored, raw, codec, ids, list(lengths[first:last]))
        if last > chunks or offset + stored > end or not is_sane(SegmentPlace(b"", offset, stored, raw, codec)):
            raise PackCorrupt(reason="a footer describes an impossible segment")
        if sum(segment.lengths) != raw:
            raise PackCorrupt(reason="the chunks of a segment do not add up")
        segments.append(segment)
        first = last
    if first != chunks:
        raise PackCorrupt(reason="a footer's segments do not cover its chunks")
    return kind, segments


def is_sane(place: SegmentPlace) -> bool:
    """Whether a segment could have been written by us; keeps hostile numbers away from buffers."""
    payload = place.stored - TAG_BYTES
    return (
        OBJECT_ID_BYTES <= place.offset < PACK_BYTES_MAX
        and 0 < place.raw <= SEGMENT_BYTES_MAX
        and 0 < payload <= place.raw
        and (place.codec == ZSTD or (place.codec == RAW and payload == place.raw))
    )


def decompress_bounded(frame: bytes, limit: int) -> bytes:
    """A small object's plain bytes. Raises Corrupt before anything larger than `limit` is allocated."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= limit:
            raise Corrupt(reason="a compressed object has an impossible size", detail=f"{size} bytes")
        return _tools.decompressor.decompress(frame, max_output_size=size)
    except zstandard.ZstdError as err:
        raise Corrupt(reason="a compressed object cannot be decompressed", detail=str(err)) from err


class SegmentReader:
    """Reads segments of one domain. Safe for several threads."""

    def __init__(self, store: Store, prefix: str, domain: Domain) -> None:
        self._store = store
        self._prefix = prefix
        self._domain = domain
        self.domain_id = domain.id
        self._boxes: OrderedDict[bytes, Box] = OrderedDict()
        self._lock = threading.Lock()

    def expect(self, place: SegmentPlace) -> None:
        """`read_into` of it comes soon. Tell it as long before as memory for sealed segments allows."""
        if is_sane(place):
            self._store.expect(pack_name(self._prefix, place.pack), place.offset, place.stored)

    def read_into(self, place: SegmentPlace, plain: memoryview) -> None:
        """Fill `plain` (place.raw bytes). Raises PackCorrupt, or StoreError when the pack cannot be read."""
        if place.codec == RAW:
            self._open_into(place, plain)
            return
        _decompress_into(self.read_payload(place), plain, place)

    def read_payload(self, place: SegmentPlace) -> memoryview:
        """What lies in the box, authentic and still compressed; in this thread's buffer, as `scratch` says. Raises as
        `read_into`."""
        payload = scratch("frame", max(place.stored - TAG_BYTES, 0))
        self._open_into(place, payload)
        return payload

    def _open_into(self, place: SegmentPlace, payload: memoryview) -> None:
        if not is_sane(place):
            raise PackCorrupt(reason=f"pack {place.pack.hex()} has an impossible segment", detail=str(place[1:]))
        box = scratch("box", place.stored)
        try:
            self._store.read_into(pack_name(self._prefix, place.pack), place.offset, box)
        except ShortRead as err:
            raise PackCorrupt(reason=f"pack {place.pack.hex()} is too short", detail=str(err)) from err
        try:
            self._box(place.pack).open_into(place.offset, box, payload)
        except Corrupt as err:
            reason = f"a segment of pack {place.pack.hex()} does not authenticate"
            raise PackCorrupt(reason=reason, detail=f"offset {place.offset}") from err

    def _box(self, pack: bytes) -> Box:
        with self._lock:
            box = self._boxes.get(pack)
            if box is None:
                box = self._boxes[pack] = Box(self._domain.data_key, self._domain.id, SEGMENT, pack)
                if len(self._boxes) > BOXES_MAX:
                    self._boxes.popitem(last=False)
            return box


def require_chunks(place: SegmentPlace, payload: memoryview, ids: list[bytes], lengths: list[int], name: Namer) -> None:
    """Compare every chunk of a segment, as `read_payload` gave it, with its id. Raises PackCorrupt or ChunkCorrupt."""
    plain = payload
    if place.codec != RAW:
        plain = scratch("proof", place.raw)
        _decompress_into(payload, plain, place)
    start = 0
    for chunk_id, length in zip(ids, lengths, strict=True):
        if name(plain[start : start + length]) != chunk_id:
            raise ChunkCorrupt(reason=f"chunk {chunk_id.hex()} has other bytes", detail=place.pack.hex())
        start += length


def require_opens(box: Box, place: SegmentPlace, sealed: memoryview, payload: bytes | memoryview) -> None:
    """Open what was just sealed and compare it with what was to be sealed. Raises PackCorrupt: then this machine errs.

    It finds a cipher that erred and a box that changed; what went wrong while the payload was made, `require_sound`
    finds.
    """
    opened = scratch("proof", len(payload))
    _open_own(box, place, sealed, opened)
    wanted = payload if isinstance(payload, bytes) else bytes(payload)
    if not wanted.startswith(opened):  # of one length: `==` of a memoryview looks at each byte for itself
        raise PackCorrupt(reason=f"what was just sealed opens to other bytes: {_ERRS}")


def require_sound(
    box: Box, place: SegmentPlace, sealed: memoryview, ids: list[bytes], lengths: list[int], name: Namer
) -> None:
    """The same as far as can be: open, decompress, and compare every chunk with its id. Raises PackCorrupt."""
    plain = scratch("proof", place.raw)
    if place.codec == RAW:
        _open_own(box, place, sealed, plain)
    else:
        frame = scratch("frame", place.stored - TAG_BYTES)
        _open_own(box, place, sealed, frame)
        try:
            _decompress_into(frame, plain, place)
        except PackCorrupt as err:
            raise PackCorrupt(reason=f"what was just compressed does not decompress: {_ERRS}", detail=str(err)) from err
    start = 0
    for chunk_id, length in zip(ids, lengths, strict=True):
        if name(plain[start : start + length]) != chunk_id:
            raise PackCorrupt(reason=f"a chunk changed in memory while it was stored: {_ERRS}")
        start += length


def _open_own(box: Box, place: SegmentPlace, sealed: memoryview, opened: memoryview) -> None:
    try:
        box.open_into(place.offset, sealed, opened)
    except Corrupt as err:
        raise PackCorrupt(reason=f"what was just sealed does not open: {_ERRS}", detail=str(err)) from err


def _decompress_into(frame: memoryview, plain: memoryview, place: SegmentPlace) -> None:
    """A frame fills exactly the buffer it promised, so a bomb has no room to go off."""
    got = 0
    try:
        with _tools.decompressor.stream_reader(frame) as stream:
            while got < len(plain):
                count = stream.readinto(plain[got:])
                if not count:
                    break
                got += count
    except zstandard.ZstdError as err:
        reason = f"a segment of pack {place.pack.hex()} cannot be decompressed"
        raise PackCorrupt(reason=reason, detail=f"offset {place.offset}: {err}") from err
    if got != len(plain):
        reason = f"a segment of pack {place.pack.hex()} is shorter than it says"
        raise PackCorrupt(reason=reason, detail=f"offset {place.offset}: {got} of {len(plain)} bytes")


assert CHUNK_BYTES_MAX <= SEGMENT_BYTES_MAX  # a chunk never spans segments
