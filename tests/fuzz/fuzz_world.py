"""A small repository with everything in it, and the plain bytes of each of its parts: where a fuzzer begins."""

import random
import stat
from functools import cache

import msgpack
import zstandard

from strongroom.base.streams import Attributes, Entry, SilentMonitor
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    Repository,
    backup,
    create_repository,
)
from strongroom.engine.content import BLOCKS, CHUNKS, ROW, Content
from strongroom.engine.manifest import Item, pack_records
from strongroom.engine.pack import MAGIC, load_pack, pack_name
from strongroom.engine.seal import FOOTER, INDEX, INDEX_LIST, LABELS, ROOT, Box, open_object
from strongroom.engine.store.memory import MemoryStore

MASTER = MasterKey(bytes(range(32)))
LARGE_ROWS = 70  # more than lie beside their owner, so that a content has a page


def entry(name: bytes, mode: int, size: int = 0, number: int = 1, links: int = 1) -> Entry:
    return Entry(
        name, mode, 1000, 1000, 1_700_000_000_000_000_000 + number, size, 1_700_000_000, number, 7, links, 0, False
    )


@cache
def rows(count: int, length: int = 5000) -> bytes:
    return b"".join(ROW.pack(random.Random(i).randbytes(32), length) for i in range(count))


def items() -> list[Item]:
    """One entry of each kind, with each form of content."""
    xattrs = ((b"user.k", b"v"), (b"security.capability", bytes(20)))
    file = stat.S_IFREG | 0o644
    block, page = ROW.pack(bytes([7] * 32), 1 << 17), ROW.pack(bytes([8] * 32), 80_000)
    return [
        Item(entry(b"block", file, 1 << 17, 2), Attributes(), Content(BLOCKS, 1, block)),
        Item(entry(b"deep", file, 80_000, 3), Attributes(), Content(CHUNKS, 1, page)),
        Item(entry(b"dir", stat.S_IFDIR | 0o755, 0, 4), Attributes(flags=0x20), None),
        Item(entry(b"hard", file, 5000, 5, 2), Attributes(), Content(CHUNKS, 0, rows(1)), 1),
        Item(entry(b"hole", file, 900, 6), Attributes(), Content(CHUNKS, 0, ROW.pack(bytes(32), 900))),
        Item(entry(b"link", stat.S_IFLNK | 0o777, 4, 7), Attributes(xattrs, 0, b"hard"), None),
        Item(entry(b"null", stat.S_IFCHR | 0o666, 0, 8), Attributes(xattrs), None),
    ]


@cache
def record_stream() -> bytes:
    """Framed records of two folders."""
    stream = b""
    for path in ((), (b"dir",)):
        for _, data in pack_records(path, b"", items()):
            stream += len(data).to_bytes(4, "little") + data
    return stream


@cache
def repository() -> Repository:
    from engine_streams import MemoryDisk, MemoryTree, Node

    made = create_repository(MemoryStore(), "", MASTER, DomainSettings(), pool=Pool(threads=1))
    tree = {
        (b"d", b"%d" % i): Node(data=random.Random(i).randbytes(2000), ino=10 + i, xattrs=((b"user.a", b"b"),))
        for i in range(5)
    } | {(b"link",): Node(target=b"d/1", ino=90), (b"zeros",): Node(data=bytes(300_000), ino=91)}
    labels = {"name": "daily", "project": "p", "size": 7, "tags": ["a", {"k": b"v"}]}
    for number, stream in enumerate(
        (MemoryTree(tree), MemoryDisk(random.Random(3).randbytes(200_000) + bytes(100_000)))
    ):
        request = BackupRequest(backup_id=f"b-{number}", generation=1, labels=labels)
        backup(made, stream, request, SilentMonitor(), lambda: None)
    made.put_labels("b-0", {"name": "renamed", "lock_until": None})
    return made


def payloads(kind: str) -> list[bytes]:
    """The plain bytes of every small object of a kind."""
    made = repository()
    folder = {ROOT: "roots/", LABELS: "labels/", INDEX: "index/", INDEX_LIST: "index/"}[kind]
    found = []
    for info in made.store.list(made.prefix + folder):
        name = info.name.rpartition("/")[2]
        if folder == "index/" and (kind == INDEX) != ("." in name):
            continue
        more = str(int(name)) if kind == INDEX_LIST else name
        data = open_object(made.domain.data_key, made.domain.id, kind, made.store.read(info.name), more.encode())
        found.append(zstandard.decompress(data) if folder == "index/" else data)
    assert found
    return found


def footer_frames() -> list[tuple[bytes, int]]:
    """(zstd frame of a footer, where its box lies) of every pack."""
    made = repository()
    found = []
    for info in made.store.list(f"{made.prefix}packs/"):
        pack = bytes.fromhex(info.name.rpartition("/")[2])
        data = made.store.read(pack_name(made.prefix, pack))
        assert data.endswith(MAGIC)
        length = int.from_bytes(data[-12:-8], "little")
        offset = len(data) - 12 - length
        load_pack(made.store, made.prefix, made.domain, pack)
        box = Box(made.domain.data_key, made.domain.id, FOOTER, pack)
        found.append((box.open(offset, data[offset : offset + length]), offset))
    return found


def stream_pages() -> list[bytes]:
    """Pages of the index of a stream whose chunks are all `record_stream`."""
    size = len(record_stream())
    first = [bytes([9] * 32), size, 0, [], b""]
    later = [bytes([8] * 32), size, 0, [b"e", b"f"], b"first"]
    return [bytes(msgpack.packb(page)) for page in ([first], [first, later, later])]
