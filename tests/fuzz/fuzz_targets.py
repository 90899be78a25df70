"""Every parser of stored bytes, with what may come out of it: a value that a reader can use to its end, or one error.

A target does not stop where the parser returns. It goes on as restore, prune and verify do with the value, so that a
number which is believed too early is noticed here.
"""

import json
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

import fuzz_mutation as mutation
import fuzz_world as world
import msgpack
import zstandard

from strongroom.base.errors import (
    ConfigError,
    Corrupt,
    FormatUnknown,
    IndexIncomplete,
    InvalidRequest,
    KeyWrong,
    ManifestCorrupt,
    PackCorrupt,
    SourceError,
    TargetDenied,
)
from strongroom.cli import engine as engine_command
from strongroom.engine import keys, pack, restore
from strongroom.engine.chunker import HOLE
from strongroom.engine.content import ROW, Content, iter_ids, iter_pages, iter_rows, parse_content
from strongroom.engine.digests import Digest, PackDigests, decode_digest, encode_digest, whole_digest
from strongroom.engine.index import Index, IndexList
from strongroom.engine.index_merge import merge_tables
from strongroom.engine.index_table import Table
from strongroom.engine.key_files import load_key, vault_key_text
from strongroom.engine.keys import LEVELS, Domain
from strongroom.engine.manifest import Stream, StreamRow, open_stream, parse_stream_rows
from strongroom.engine.mark import Marks
from strongroom.engine.pack import DATA, FOOTER_BYTES_MAX, decompress_bounded
from strongroom.engine.roots import parse_labels, parse_root
from strongroom.engine.seal import INDEX, INDEX_LIST, KEYS, LABELS, ROOT, Box, open_object
from strongroom.engine.usage import Usage
from strongroom.sources.journal import load_journal
from strongroom.sources.tokens import dump_token, load_token

NAME = "b-0.1"
WALK_ROWS_MAX = 20_000  # of a content that says it is long: what is beyond is more of the same
PACK_END = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Target:
    """seeds: sound inputs. mutate: how they are damaged. run: raises nothing but `errors`."""

    seeds: Sequence[bytes]
    mutate: mutation.Mutation
    run: Callable[[bytes], None]
    errors: tuple[type[Exception], ...]


# --- packs and index ---


def footer(data: bytes) -> None:
    kind, segments = pack._parse_footer(data, PACK_END)
    assert kind >= DATA
    assert all(sum(segment.lengths) == segment.raw and len(segment.ids) == len(segment.lengths) for segment in segments)
    assert all(segment.offset + segment.stored <= PACK_END for segment in segments)


def frame(data: bytes) -> None:
    assert len(decompress_bounded(data, FOOTER_BYTES_MAX)) <= FOOTER_BYTES_MAX


def bombs() -> list[bytes]:
    """Small frames that say they are large, and do not say how large they are."""
    plain = bytes(FOOTER_BYTES_MAX + 1)
    sized = zstandard.ZstdCompressor(level=19).compress(plain)
    unsized = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(plain[:100_000])
    return [sized, unsized, zstandard.compress(b""), zstandard.compress(b"small" * 40)]


def index_object(data: bytes) -> None:
    table = Table(data)
    index, marks = Index(0, [table]), Marks(slots=1)
    usable = 0
    for row in range(min(table.chunk_count, 40)):
        key = table.first[row].to_bytes(8, "little") + table.second[row].to_bytes(8, "little")
        index.knows(key)
        marks.add_ids(index, key + bytes(16))
        usable += sum(1 for _ in islice(index.places(key), 100))
    merged = merge_tables([table, table])
    assert merged.chunk_count == 2 * table.chunk_count
    Usage(index, marks)


def index_list(data: bytes) -> None:
    found = IndexList.decode(data, 0)
    assert IndexList.decode(found.encode(), 0) == found


DIGESTED = "index/0000000003." + "ab" * 16


def digest(data: bytes) -> None:
    """What stands in a digest, with a sum that fits: anybody who can write to the store can make one."""
    plain = b"SRDIGST1" + data
    found = decode_digest(plain + whole_digest(plain), DIGESTED)
    assert all(sum(pack.lengths) == pack.size for pack in found.packs)
    assert decode_digest(encode_digest(found), DIGESTED) == found


def digests() -> list[bytes]:
    pack = PackDigests(id=bytes(range(16)), size=700, lengths=(16, 600, 84), digests=bytes(48))
    whole = Digest(
        name=DIGESTED, size=900, digest=bytes(32), packs=(pack, pack), fossils=(bytes(16),), retired=("a", "b")
    )
    return [encode_digest(found)[8:-32] for found in (whole, replace(whole, packs=(), fossils=(), retired=()))]


# --- roots and labels ---


def root(data: bytes) -> None:
    found = parse_root(NAME, data)
    found.report.bytes_total + found.size + found.body.index_number + found.body.unchanged_before_ns
    assert found.parent is None or found.parent.encode() is not None
    dict(found.labels)
    if found.kind == "block":
        content = parse_content(found.body.stream)
        walk_content(content, lambda _: bytes(range(160)))
        return
    restore._root_folder(found)
    stream = open_stream(found, no_page)
    list(islice(stream.pages(), WALK_ROWS_MAX))


def labels(data: bytes) -> None:
    dict(parse_labels(data))


# --- the manifest ---


def no_page(_: bytes) -> bytes:
    raise ManifestCorrupt(reason="there is no page")


def pages_of_records(page_id: bytes) -> bytes:
    """The pages to which the sound records refer."""
    found = {bytes([7] * 32): bytes(range(64)), bytes([8] * 32): world.rows(16)}.get(page_id)
    return found or no_page(page_id)


def walk_content(content: Content, get: Callable[[bytes], bytes]) -> None:
    """As restore, browse and prune do."""
    end = 0
    for chunk_id, length, offset in islice(iter_rows(content, get), WALK_ROWS_MAX):
        assert length > 0
        assert offset >= end or chunk_id == HOLE
        end = offset + length
    seen: set[bytes] = set()
    for _, ids in islice(iter_ids(content, get, lambda page: page in seen or bool(seen.add(page))), WALK_ROWS_MAX):
        assert ids is not None


def records(data: bytes) -> None:
    """A whole stream: framed records, decoded to the last attribute."""
    stream = Stream(0, [StreamRow(HOLE, len(data), 0, (), b"")], lambda _: data)
    for record, _ in stream.records():
        assert record.key is not None
        for item in record.items():
            stat.S_ISDIR(item.entry.mode), stat.S_ISREG(item.entry.mode), stat.S_IMODE(item.entry.mode)
            assert b"/" not in item.entry.name
            dict(item.attributes.xattrs)
            assert item.doubts & 3 >= 0
            if item.content is not None:
                walk_content(item.content, pages_of_records)
    stream.find((b"dir", b"hard"))


def pages_of_stream(data: bytes) -> None:
    """A page of the stream's index, reached from a root; its leaves are the sound records."""
    top = bytes(range(32))
    rows = parse_stream_rows([[top, 10_000, 0, [], b""]])
    stream = Stream(1, rows, lambda page: data if page == top else world.record_stream())
    list(islice(stream.pages(), WALK_ROWS_MAX))
    stream.find((b"dir", b"hard"))
    stream.find((b"d", b"x"))


def content(data: bytes) -> None:
    """[a content as a record holds it, a page]: every page it refers to is this one."""
    try:
        value, page = msgpack.unpackb(data, use_list=False)
    except (ValueError, TypeError):
        value, page = data, b""
    if not isinstance(page, bytes):
        page = b""
    found = parse_content(value)
    walk_content(found, lambda _: page)
    if found.layout:
        list(islice(iter_pages(found, lambda _: page), WALK_ROWS_MAX))


def contents() -> list[bytes]:
    """Chunks alone, a page of rows, pages of blocks: all of the lengths they say."""
    page = world.rows(3)
    two = ROW.pack(bytes([1] * 32), 15_000) + ROW.pack(bytes([2] * 32), 15_000)
    blocks = ROW.pack(bytes([3] * 32), 100_000) + ROW.pack(HOLE, 1 << 29)
    found = (world.rows(3), b""), ([0, 1, two], page), ([1, 1, blocks], bytes(range(64))), ([0, 0, world.rows(70)], b"")
    return [bytes(msgpack.packb(value)) for value in found]


# --- keys ---


def unwrapped(data: bytes) -> None:
    """The plain map in a key wrap."""
    check_domain(keys._domain(bytes(16), data))


def check_domain(domain: Domain) -> None:
    assert len(domain.data_key) == len(domain.dedup_key) == 32
    assert domain.level in LEVELS
    assert 0 < domain.chunker_seed < 1 << 62


def key_wrap(data: bytes) -> None:
    check_domain(world.MASTER.unwrap(data))


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Where the inputs lie that are read from files; `remove_folder` ends it."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


@cache
def folder_fd() -> int:
    return os.open(folder().name, os.O_RDONLY | os.O_DIRECTORY)


def remove_folder() -> None:
    """When no input is read any more, in this process."""
    if folder_fd.cache_info().currsize:
        os.close(folder_fd())
        folder_fd.cache_clear()
    if folder.cache_info().currsize:
        folder().cleanup()
        folder.cache_clear()


def file_of(name: str, data: bytes) -> Path:
    path = Path(folder().name, name)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)
    return path


def key_file(data: bytes) -> None:
    load_key(file_of("key", data))


# --- JSON ---


def changed_blocks(data: bytes) -> None:
    found = engine_command._load_changed_blocks(str(file_of("changed", data)))
    assert all(offset >= 0 and length >= 0 for offset, length in found.extents)


def journal(data: bytes) -> None:
    file_of("journal", data)
    found = load_journal(folder_fd())
    assert found is not None
    for move in found.moves:
        assert all(b"/" not in name and name not in (b"", b".", b"..") for name in (*move.unit.live, *move.unit.staged))


def token(data: bytes) -> None:
    load_token("folder", data)


# --- sealed ---


def sealed(data: bytes) -> None:
    """A small object as it lies in the store: what was changed anywhere does not open."""
    made = world.repository()
    opened = 0
    for kind, more in ((ROOT, NAME), (ROOT, "b-1.1"), (LABELS, "b-0.000001"), (INDEX_LIST, "0")):
        try:
            open_object(made.domain.data_key, made.domain.id, kind, data, more.encode())
            opened += 1
        except Corrupt as err:
            failure = err
    if not opened:
        raise failure
    assert opened == 1
    assert data in sealed_objects()


@cache
def sealed_objects() -> list[bytes]:
    made = world.repository()
    names = [info.name for folder in ("roots/", "labels/", "index/") for info in made.store.list(made.prefix + folder)]
    return [made.store.read(name) for name in names if "index/" not in name or "." not in name]


def wraps() -> list[bytes]:
    made = world.repository()
    return [made.store.read(f"{made.prefix}keys/0")]


def plain_keys() -> list[bytes]:
    made, wrap = world.repository(), wraps()[0]
    return [Box(bytes(range(32)), made.domain.id, KEYS, wrap[:16]).open(50, wrap[50:])]


def journals() -> list[bytes]:
    entry = ["61", 33188, 0, 0, 1, 5, 1, 2, 3, 1, 0, False]
    record = {"path": ["a"], "entry": entry, "xattrs": [["6b", "76"]], "flags": 0}
    moves = [[0, ["a"], None, True, 493, 0, None, 0], [1, ["b", "c"], ["x"], False, None, 0, 448, 16]]
    whole = {"format": 1, "state": "swapping", "trusted": False, "exclude": ["cache/"], "missing": [["a", "b"]]}
    return [json.dumps({**whole, "moves": moves, "parents": [record], "root": record}).encode()]


CHANGED = [b'{"base": "b-0.1", "size": 1048576, "extents": [[0, 65536], [131072, 4096]]}', b'{"extents": []}']
BINARY = mutation.either(mutation.damage_bytes, mutation.damage_numbers)
PACKED = mutation.either(
    mutation.damage_msgpack, mutation.damage_msgpack, mutation.damage_msgpack, mutation.damage_bytes
)
JSON = mutation.either(mutation.damage_json, mutation.damage_json, mutation.damage_bytes)


def framed(chance: mutation.random.Random, data: bytes) -> bytes:
    """One record of a stream damaged inside, with its frame and size around it; or the bytes as they lie."""
    if not data or chance.getrandbits(1):
        return BINARY(chance, data)
    parts, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    hit = chance.randrange(len(parts))
    parts[hit] = parts[hit][:8] + mutation.damage_msgpack(chance, parts[hit][8:])
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


@cache
def targets() -> dict[str, Target]:
    """By name. Made at first use: the seeds come from a repository that the engine wrote."""
    frames = [found for found, _ in world.footer_frames()]
    domain = world.repository().domain
    key_files = [vault_key_text([domain, domain]), b"strongroom-master-key-v1 " + b"ab" * 32 + b"\n"]
    return {
        "pack footer": Target(
            seeds=[zstandard.decompress(f) for f in frames], mutate=BINARY, run=footer, errors=(PackCorrupt,)
        ),
        "compressed frame": Target(seeds=[*frames, *bombs()], mutate=BINARY, run=frame, errors=(Corrupt,)),
        "index object": Target(seeds=world.payloads(INDEX), mutate=BINARY, run=index_object, errors=(IndexIncomplete,)),
        "index list": Target(
            seeds=[*world.payloads(INDEX_LIST), full_list()], mutate=PACKED, run=index_list, errors=(IndexIncomplete,)
        ),
        "digest": Target(seeds=digests(), mutate=PACKED, run=digest, errors=(Corrupt,)),
        "root": Target(seeds=world.payloads(ROOT), mutate=PACKED, run=root, errors=(ManifestCorrupt,)),
        "labels": Target(seeds=world.payloads(LABELS), mutate=PACKED, run=labels, errors=(ManifestCorrupt,)),
        "directory records": Target(
            seeds=[world.record_stream()], mutate=framed, run=records, errors=(ManifestCorrupt,)
        ),
        "page of the stream": Target(
            seeds=world.stream_pages(), mutate=PACKED, run=pages_of_stream, errors=(ManifestCorrupt,)
        ),
        "content": Target(
            seeds=contents(), mutate=mutation.either(PACKED, BINARY), run=content, errors=(ManifestCorrupt,)
        ),
        "wrapped keys, plain": Target(seeds=plain_keys(), mutate=PACKED, run=unwrapped, errors=(FormatUnknown,)),
        "wrapped keys, sealed": Target(
            seeds=wraps(), mutate=BINARY, run=key_wrap, errors=(Corrupt, FormatUnknown, KeyWrong)
        ),
        "sealed object": Target(seeds=sealed_objects(), mutate=BINARY, run=sealed, errors=(Corrupt,)),
        "key file": Target(seeds=key_files, mutate=mutation.damage_bytes, run=key_file, errors=(ConfigError,)),
        "changed blocks": Target(seeds=CHANGED, mutate=JSON, run=changed_blocks, errors=(InvalidRequest,)),
        "journal": Target(seeds=journals(), mutate=JSON, run=journal, errors=(SourceError, TargetDenied)),
        "token": Target(
            seeds=[dump_token("folder", {"taken_at_ns": 5, "whole": True})], mutate=JSON, run=token, errors=()
        ),
    }


def full_list() -> bytes:
    name = "0000000003." + "ab" * 16
    return IndexList(
        number=0, objects=(name,), retired=((name, 2),), suspect=(bytes(16),), fossils=((b"f" * 16, 1), (b"g" * 16, 2))
    ).encode()
