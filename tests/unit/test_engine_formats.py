"""The bytes of the format: keys, boxes, cuts, packs, index objects. Golden values keep them from drifting."""

import hashlib
import os
import random
import stat
import struct
from pathlib import Path

import msgpack
import pytest
import zstandard
from pyfastcdc import FastCDC

from strongroom.base.errors import ConfigError, Corrupt, FormatUnknown, IndexIncomplete, KeyWrong, PackCorrupt
from strongroom.base.units import KIB
from strongroom.engine.chunker import Chunker, is_zero
from strongroom.engine.index import Index, IndexList
from strongroom.engine.index_cache import TABLES_MAX
from strongroom.engine.index_merge import merge_tables
from strongroom.engine.index_table import Table, encode_table
from strongroom.engine.keys import Domain, MasterKey
from strongroom.engine.pack import (
    DATA,
    METADATA,
    RAW,
    ZSTD,
    Pack,
    Segment,
    SegmentPlace,
    SegmentReader,
    compress_segment,
    decompress_bounded,
    load_pack,
    pack_name,
    seal_footer,
)
from strongroom.engine.seal import FOOTER, OBJECT_ID_BYTES, SEGMENT, Box, derive_key, open_object, seal_object
from strongroom.engine.store.memory import MemoryStore

DOMAIN = Domain(
    id=bytes(range(16)), data_key=bytes(range(32)), dedup_key=bytes(range(32, 64)), chunker_seed=20261123, level=3
)
STREAM = hashlib.shake_256(b"strongroom golden").digest(3 << 20)
DATA_CUTS = [
    244059, 168867, 92778, 177971, 51028, 192122, 149835, 161089, 150938, 248352, 81928, 45933, 169835, 165377, 172546,
    46906, 228201, 216775, 82996, 152809, 135698, 9685,
]  # fmt: skip
METADATA_CUTS = [
    148948, 81362, 31154, 78059, 73403, 76613, 77921, 27500, 88715, 51028, 41633, 191342, 80898,
]  # fmt: skip


def test_cuts_are_golden() -> None:
    """The same bytes are cut at the same places by every version: else nothing deduplicates after an update."""
    chunker = Chunker(DOMAIN)
    assert chunker.cut_data(memoryview(STREAM), at_end=True) == DATA_CUTS
    assert chunker.cut_metadata(memoryview(STREAM)[: 1 << 20], at_end=True) == METADATA_CUTS


def test_cuts_do_not_depend_on_buffers() -> None:
    """A stream that arrives in pieces of any size is cut where the whole is cut."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    chunker = Chunker(DOMAIN)
    buffer, at, cuts = bytearray(), 0, []
    while at < len(STREAM):
        size = rng.randrange(1, 700_000)
        buffer += STREAM[at : at + size]
        at += size
        with memoryview(buffer) as view:
            lengths = chunker.cut_data(view, at_end=at >= len(STREAM))
        cuts += lengths
        del buffer[: sum(lengths)]
    assert cuts == DATA_CUTS


@pytest.mark.parametrize("size", [0, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 32 * KIB, 32 * KIB + 1])
def test_what_is_too_short_to_cut_is_one_piece(size: int) -> None:
    """It is not even asked of FastCDC, which would say the same."""
    chunker, piece = Chunker(DOMAIN), memoryview(STREAM)[:size]
    for cut, (least, average, most) in (
        (chunker.cut_data, (32 * KIB, 128 * KIB, 512 * KIB)),
        (chunker.cut_metadata, (16 * KIB, 64 * KIB, 256 * KIB)),
    ):
        fastcdc = FastCDC(average, min_size=least, max_size=most, seed=DOMAIN.chunker_seed)
        assert cut(piece, at_end=True) == [chunk.length for chunk in fastcdc.cut_buf(piece)]


def test_keys_and_ids_are_golden() -> None:
    """Derivation of keys, ids and boxes never changes within format version 1."""
    chunker = Chunker(DOMAIN)
    assert chunker.data_id(b"chunk").hex() == "bd89fd5bac00d03d0cda9114d3f775c3ae6628fc6f3e95be18cf7ec1feac4b62"
    assert chunker.metadata_id(b"chunk").hex() == "498fe4445990be5f3aab878ef90ebcd485266dca2a12df6925a992949903cce1"
    assert derive_key("segment", bytes(48)).hex() == "298c3ebd199e5f30c259fc36b85ffaf138e00b8d2ae8c8d088b83095ac998d55"
    box = Box(DOMAIN.data_key, DOMAIN.id, SEGMENT, bytes(16)).seal(16, b"plain")
    assert box.hex() == "73d4472208c1ae5466366a4fcc1f690b3e84b88d5d"
    assert MasterKey(bytes(32)).key_id.hex() == "769844496e285d206db116e4693f755a"


def test_a_box_opens_only_where_it_was_sealed() -> None:
    """Another offset, kind, object, domain or name does not open a box."""
    secret, domain = os.urandom(32), os.urandom(16)
    sealed = Box(secret, domain, SEGMENT, bytes(16), b"x").seal(16, b"plain")
    assert Box(secret, domain, SEGMENT, bytes(16), b"x").open(16, sealed) == b"plain"
    others = [
        (Box(secret, domain, SEGMENT, bytes(16), b"x"), 17),
        (Box(secret, domain, FOOTER, bytes(16), b"x"), 16),
        (Box(secret, domain, SEGMENT, b"1" * 16, b"x"), 16),
        (Box(secret, os.urandom(16), SEGMENT, bytes(16), b"x"), 16),
        (Box(os.urandom(32), domain, SEGMENT, bytes(16), b"x"), 16),
        (Box(secret, domain, SEGMENT, bytes(16), b"y"), 16),
    ]
    for box, offset in others:
        with pytest.raises(Corrupt):
            box.open(offset, sealed)


def test_every_object_has_its_own_id() -> None:
    """The same payload sealed twice shares no id and no byte of ciphertext to compare."""
    first, second = (seal_object(DOMAIN.data_key, DOMAIN.id, "index", b"payload") for _ in range(2))
    assert first[:OBJECT_ID_BYTES] != second[:OBJECT_ID_BYTES]
    assert first[OBJECT_ID_BYTES:] != second[OBJECT_ID_BYTES:]
    for length in range(len(first)):
        with pytest.raises(Corrupt):
            open_object(DOMAIN.data_key, DOMAIN.id, "index", first[:length])


def test_master_key_file_is_private(tmp_path: Path) -> None:
    """A key file has mode 0600, is never overwritten, and one that others may read is refused."""
    path = tmp_path / "master.key"
    master = MasterKey.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert MasterKey.load(path).key_id == master.key_id
    with pytest.raises(ConfigError):
        MasterKey.create(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        MasterKey.load(path)
    path.chmod(0o600)
    path.write_text("strongroom-master-key-v1 short\n")
    with pytest.raises(ConfigError):
        MasterKey.load(path)
    with pytest.raises(ConfigError):
        MasterKey.load(tmp_path / "none")
    assert "secret" not in repr(master)


def test_wrapped_keys_come_back_whole() -> None:
    """A domain survives its wrap; another master key, version or a flipped bit is told apart."""
    master, domain = MasterKey(os.urandom(32)), Domain.create(1)
    wrapped = master.wrap(domain)
    assert master.unwrap(wrapped) == domain
    assert domain.data_key.hex() not in repr(domain)
    with pytest.raises(KeyWrong):
        MasterKey(os.urandom(32)).unwrap(wrapped)
    with pytest.raises(FormatUnknown):
        master.unwrap(wrapped[:16] + b"\x02\x00" + wrapped[18:])
    for at in (0, 40, len(wrapped) - 1):
        damaged = bytearray(wrapped)
        damaged[at] ^= 1
        with pytest.raises(Corrupt):
            master.unwrap(bytes(damaged))
    with pytest.raises(Corrupt):
        master.unwrap(wrapped[:20])
    with pytest.raises(ConfigError):
        Domain.create(19)


# --- packs ---


def _packed(store: MemoryStore, contents: list[list[bytes]], kind: int = DATA) -> Pack:
    """A pack written by hand, as docs/FORMAT.md says."""
    chunker = Chunker(DOMAIN)
    pack = os.urandom(16)
    box = Box(DOMAIN.data_key, DOMAIN.id, SEGMENT, pack)
    data = bytearray(pack)
    segments = []
    for chunks in contents:
        plain = b"".join(chunks)
        codec, payload = compress_segment(memoryview(plain), 3)
        offset = len(data)
        data += box.seal(offset, bytes(payload))
        ids = [chunker.data_id(chunk) for chunk in chunks]
        segments.append(Segment(offset, len(data) - offset, len(plain), codec, ids, [len(c) for c in chunks]))
    data += seal_footer(DOMAIN, pack, kind, segments, len(data))
    store.put(pack_name("", pack), [data])
    return Pack(id=pack, size=len(data), kind=kind, segments=segments)


def test_a_pack_describes_itself() -> None:
    """The footer gives back every segment, id and length; segments open to the bytes that went in."""
    store = MemoryStore()
    contents = [[b"a" * 9000, os.urandom(40_000)], [os.urandom(100_000), os.urandom(5)], [b"z" * 4_000_000]]
    written = _packed(store, contents)
    found = load_pack(store, "", DOMAIN, written.id)
    assert found == written
    assert [segment.codec for segment in found.segments] == [ZSTD, RAW, ZSTD]
    reader = SegmentReader(store, "", DOMAIN)
    for segment, chunks in zip(found.segments, contents, strict=True):
        plain = bytearray(segment.raw)
        place = SegmentPlace(found.id, segment.offset, segment.stored, segment.raw, segment.codec)
        reader.read_into(place, memoryview(plain))
        assert plain == b"".join(chunks)


def test_every_flipped_bit_of_a_pack_is_found() -> None:
    """Damage anywhere in a pack is PackCorrupt, never wrong bytes and never another error."""
    store = MemoryStore()
    written = _packed(store, [[os.urandom(300)], [b"b" * 300]])
    whole = store.read(pack_name("", written.id))
    segment = written.segments[0]
    place = SegmentPlace(written.id, segment.offset, segment.stored, segment.raw, segment.codec)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        bad = MemoryStore()
        bad.put(pack_name("", written.id), [damaged])
        in_segment = segment.offset <= at < segment.offset + segment.stored
        in_rest = at < 16 or at >= segment.offset + segment.stored + written.segments[1].stored
        if in_segment:
            with pytest.raises(PackCorrupt):
                SegmentReader(bad, "", DOMAIN).read_into(place, memoryview(bytearray(segment.raw)))
        if in_rest:
            with pytest.raises(PackCorrupt):
                load_pack(bad, "", DOMAIN, written.id)


def test_a_pack_cut_short_is_found() -> None:
    """A truncated or foreign object under a pack's name is PackCorrupt."""
    store = MemoryStore()
    written = _packed(store, [[os.urandom(300)]])
    whole = store.read(pack_name("", written.id))
    for data in (b"", whole[:10], whole[:-1], whole[20:], whole + b"x"):
        bad = MemoryStore()
        bad.put(pack_name("", written.id), [data])
        with pytest.raises(PackCorrupt):
            load_pack(bad, "", DOMAIN, written.id)
    other = os.urandom(16)
    store.put(pack_name("", other), [whole])
    with pytest.raises(PackCorrupt):
        load_pack(store, "", DOMAIN, other)


def _footer_pack(payload: bytes, *, frame: bytes | None = None) -> tuple[MemoryStore, bytes]:
    """A pack whose footer holds any bytes at all, sealed with the right key: what only a key holder could forge."""
    store, pack = MemoryStore(), os.urandom(16)
    frame = zstandard.ZstdCompressor().compress(payload) if frame is None else frame
    box = Box(DOMAIN.data_key, DOMAIN.id, FOOTER, pack).seal(116, frame)
    store.put(pack_name("", pack), [pack, bytes(100), box, struct.pack("<I8s", len(box), b"SRPACK01")])
    return store, pack


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0" * 8,
        struct.pack("<BII", 0, 0xFFFFFFFF, 0xFFFFFFFF),
        struct.pack("<BII", 7, 0, 0),
        struct.pack("<BII", 0, 1, 0) + struct.pack("<QIIBI", 16, 100, 100, 0, 9),
        struct.pack("<BII", 0, 1, 1) + struct.pack("<QIIBI", 16, 100, 84, 0, 1) + bytes(32) + struct.pack("<I", 83),
        struct.pack("<BII", 0, 1, 1) + struct.pack("<QIIBI", 1 << 60, 100, 84, 0, 1) + bytes(32) + b"T\0\0\0",
        struct.pack("<BII", 0, 1, 1) + struct.pack("<QIIBI", 16, 100, 1 << 31, 1, 1) + bytes(32) + b"\0\0\0\x80",
        struct.pack("<BII", 0, 0, 1) + bytes(36),
    ],
)
def test_absurd_footers_are_refused(payload: bytes) -> None:
    """Counts, places and sizes that no writer makes are PackCorrupt before anything is allocated for them."""
    store, pack = _footer_pack(payload)
    with pytest.raises(PackCorrupt):
        load_pack(store, "", DOMAIN, pack)


def test_a_bomb_does_not_go_off() -> None:
    """A frame that claims or makes more than its place is refused, and allocates no more than that."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(256 << 20))
    with pytest.raises(Corrupt):
        decompress_bounded(bomb, 1 << 20)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    with pytest.raises(Corrupt):
        decompress_bounded(unsized, 1 << 20)
    store, pack = _footer_pack(b"", frame=bomb)
    with pytest.raises(Corrupt):
        load_pack(store, "", DOMAIN, pack)
    # A segment: the frame would fill 256 MiB, its place says 1000 bytes.
    store, pack = MemoryStore(), os.urandom(16)
    box = Box(DOMAIN.data_key, DOMAIN.id, SEGMENT, pack).seal(16, zstandard.ZstdCompressor().compress(b"q" * 900))
    store.put(pack_name("", pack), [pack, box])
    reader = SegmentReader(store, "", DOMAIN)
    with pytest.raises(PackCorrupt, match="shorter"):
        reader.read_into(SegmentPlace(pack, 16, len(box), 1000, ZSTD), memoryview(bytearray(1000)))
    with pytest.raises(PackCorrupt, match="impossible"):
        reader.read_into(SegmentPlace(pack, 16, len(box), 1 << 30, ZSTD), memoryview(bytearray(8)))


def test_zeros_are_recognised() -> None:
    """A run of zeros is found at every length, one other byte anywhere is seen."""
    for length in (1, 2, 511, 65536, 524288):
        buffer = bytearray(length + 2)
        assert is_zero(buffer, 1, length)
        for at in {1, length // 2 + 1, length}:
            buffer[at] = 1
            assert not is_zero(buffer, 1, length)
            buffer[at] = 0


# --- index ---


def _pack(ids: list[bytes], *, pack: bytes | None = None) -> Pack:
    lengths = [100 + i % 50 for i in range(len(ids))]
    segments = []
    for at in range(0, len(ids), 30):
        own = lengths[at : at + 30]
        segments.append(Segment(16 + at * 100, sum(own) + 16, sum(own), RAW, ids[at : at + 30], own))
    return Pack(id=pack or os.urandom(16), size=10_000, kind=METADATA, segments=segments)


def test_an_index_object_finds_every_chunk() -> None:
    """Every chunk of every pack is found with its segment, start and length; no other is."""
    ids = [os.urandom(32) for _ in range(1000)]
    packs = [_pack(ids[:400]), _pack(ids[400:401]), _pack(ids[401:])]
    table = Table(encode_table(packs))
    index = Index(0, [table])
    for pack in packs:
        for segment in pack.segments:
            start = 0
            for chunk_id, length in zip(segment.ids, segment.lengths, strict=True):
                (place,) = index.places(chunk_id[:16])
                assert place.segment == (pack.id, segment.offset, segment.stored, segment.raw, segment.codec)
                assert (place.start, place.length) == (start, length)
                assert index.knows(chunk_id[:16])
                start += length
    assert not index.knows(os.urandom(16))
    assert [pack.id for pack in index.packs()] == [pack.id for pack in packs]


def test_keys_that_share_their_first_half_are_told_apart() -> None:
    """The search column has eight bytes of sixteen: equal ones are compared in full."""
    ids = [b"same....%08d" % i + bytes(16) for i in range(50)]
    index = Index(0, [Table(encode_table([_pack(ids)]))])
    assert all(len(list(index.places(chunk_id[:16]))) == 1 for chunk_id in ids)
    assert not index.knows(b"same....99999999")


def test_many_tables_are_merged() -> None:
    """Beyond TABLES_MAX tables the index is one, and knows what all knew, duplicates included."""
    groups = [[os.urandom(32) for _ in range(45)] for _ in range(TABLES_MAX + 3)]
    groups[3][0] = groups[4][0]
    tables = [Table(encode_table([_pack(ids)])) for ids in groups]
    index = Index(0, tables)
    assert len(index.tables) == 1
    assert len(index.tables[0].packs) == len(groups)
    assert all(index.knows(chunk_id[:16]) for ids in groups for chunk_id in ids)
    assert len({place.segment.pack for place in index.places(groups[3][0][:16])}) == 2
    again = merge_tables(tables[:2])
    assert list(again.rows(groups[1][7][:16]))


def test_bad_packs_are_last_and_unknown() -> None:
    """A writer does not rely on a bad pack; a reader tries it after the sound ones."""
    chunk_id = os.urandom(32)
    bad, good = _pack([chunk_id, os.urandom(32)]), _pack([chunk_id])
    index = Index(0, [Table(encode_table([bad])), Table(encode_table([good]))], frozenset([bad.id]))
    assert [place.segment.pack for place in index.places(chunk_id[:16])] == [good.id, bad.id]
    assert index.knows(chunk_id[:16])
    assert not index.knows(bad.segments[0].ids[1][:16])


def test_settled_chunks_stay_known() -> None:
    """What a session stored is known before and after its index object is written."""
    ids = [os.urandom(32) for _ in range(100)]
    index = Index(0, [])
    for chunk_id in ids:
        index.bear(chunk_id[:16], 10)
    pack = _pack(ids)
    index.settle(Table(encode_table([pack])), [pack])
    assert all(index.knows(chunk_id[:16]) for chunk_id in ids)
    assert next(index.places(ids[5][:16])).segment.pack == pack.id


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 11, struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), struct.pack("<III", 1, 1, 1) + bytes(9)],
)
def test_absurd_index_objects_are_refused(data: bytes) -> None:
    """Counts that do not fit the bytes are IndexIncomplete."""
    with pytest.raises(IndexIncomplete):
        Table(data)


def test_an_index_that_points_nowhere_is_refused() -> None:
    """A row with an impossible segment, pack or range is IndexIncomplete when it is used."""
    chunk_id = os.urandom(32)
    key = chunk_id[:16]
    good = encode_table([_pack([chunk_id])])
    segment_at, start_at, length_at = len(good) - 12, len(good) - 8, len(good) - 4
    pack_at = 12 + 25
    for at, value in ((segment_at, 1), (start_at, 1), (length_at, 101), (length_at, 0), (pack_at, 9), (pack_at + 4, 3)):
        damaged = bytearray(good)
        struct.pack_into("<I", damaged, at, value)
        with pytest.raises(IndexIncomplete):
            list(Index(0, [Table(bytes(damaged))]).places(key))


def test_index_lists_come_back_and_hostile_ones_do_not() -> None:
    """A list survives its bytes; anything else is IndexIncomplete."""
    made = IndexList(number=7, objects=("a", "b"), retired=(("c", 5),), suspect=(bytes(16),), fossils=((b"1" * 16, 6),))
    assert IndexList.decode(made.encode(), 7) == made
    empty: list[object] = [[], [], [], []]
    hostile: list[object] = [None, 5, [], [7, [], [], []], [8, *empty], [7, [1], [], [], []], [7, [], [], [b"x"], []]]
    hostile += [[7] * 5, [7, [], ["c"], [], []], [7, [], [["c", "x"]], [], []], [7, [], [], [], [[b"short", 1]]]]
    for value in hostile:
        with pytest.raises(IndexIncomplete):
            IndexList.decode(msgpack.packb(value), 7)
    with pytest.raises(IndexIncomplete):
        IndexList.decode(b"\xc1", 7)
