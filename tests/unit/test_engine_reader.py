"""A second reader, written from docs/FORMAT.md alone: it shares no line with the engine, only the libraries."""

import os
import random
import stat
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as FilePath

import msgpack
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from engine_streams import NOW_NS, MemoryDisk, MemoryTarget, MemoryTree, Node, Tree, plain

from strongroom.base.streams import SilentMonitor
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    backup,
    create_repository,
    open_repository,
    restore_block,
    restore_tree,
)
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore

Path = tuple[bytes, ...]
GOLDEN = FilePath(__file__).parent.parent / "golden" / "v1"
GOLDEN_SECRET = bytes(range(100, 132))


class Reader:
    """Reads a repository as docs/FORMAT.md says."""

    def __init__(self, objects: dict[str, bytes], secret: bytes) -> None:
        domain = objects["domain"].decode()
        prefix = f"domains/{domain}/"
        self.objects = {name.removeprefix(prefix): data for name, data in objects.items() if name.startswith(prefix)}
        self.domain = bytes.fromhex(domain)
        wrap = self.objects["keys/0"]
        assert wrap[16:18] == b"\x01\x00"
        assert wrap[18:34] == blake3(secret, derive_key_context="strongroom v1 master key id").digest()[:16]
        assert wrap[34:50] == self.domain
        self.keys = msgpack.unpackb(self.open(secret, "keys", wrap[:16], 50, wrap[50:]))
        metadata_key = blake3(self.keys["dedup_key"], derive_key_context="strongroom v1 metadata ids").digest()
        self.id_keys = (self.keys["dedup_key"], metadata_key)
        self.places = dict(self.read_index())

    def open(self, secret: bytes, kind: str, object_id: bytes, offset: int, box: bytes, more: bytes = b"") -> bytes:
        key = blake3(secret + object_id, derive_key_context=f"strongroom v1 {kind}").digest()
        aad = b"\x01\x00" + self.domain + kind.encode().ljust(16, b"\0") + object_id + more
        return AESGCM(key).decrypt(offset.to_bytes(12, "little"), box, aad)

    def small(self, kind: str, name: str, more: str) -> bytes:
        data = self.objects[name]
        return self.open(self.keys["data_key"], kind, data[:16], 16, data[16:], more.encode())

    def read_index(self) -> Iterator[tuple[bytes, tuple[bytes, int, int, int, int, int]]]:
        names = [name.removeprefix("index/") for name in self.objects if name.startswith("index/")]
        newest = max(name for name in names if "." not in name)
        plain = zstandard.decompress(self.small("index list", f"index/{newest}", str(int(newest))))
        number, listed, retired, _, _ = msgpack.unpackb(plain)
        assert number == int(newest)
        gone = {name for name, _ in retired}
        assert set(listed) <= set(names)
        for name in names:
            if "." in name and name not in gone:
                yield from self.read_table(zstandard.decompress(self.small("index", f"index/{name}", name)))

    def read_table(self, data: bytes) -> Iterator[tuple[bytes, tuple[bytes, int, int, int, int, int]]]:
        packs, segments, chunks = struct.unpack_from("<III", data)
        at = 12
        pack_ids = [data[at + 25 * i : at + 25 * i + 16] for i in range(packs)]
        at += 25 * packs
        rows = [struct.unpack_from("<IIIIB", data, at + 17 * i) for i in range(segments)]
        at += 17 * segments
        columns = []
        for code, width in zip("QQIII", (8, 8, 4, 4, 4), strict=True):
            columns.append(struct.unpack_from(f"<{chunks}{code}", data, at))
            at += width * chunks
        assert at == len(data)
        assert list(columns[0]) == sorted(columns[0])
        for first, second, segment, start, length in zip(*columns, strict=True):
            pack, offset, stored, _, codec = rows[segment]
            yield struct.pack("<QQ", first, second), (pack_ids[pack], offset, stored, codec, start, length)

    def chunk(self, chunk_id: bytes, *, metadata: bool) -> bytes:
        pack, offset, stored, codec, start, length = self.places[chunk_id[:16]]
        data = self.objects[f"packs/{pack.hex()}"]
        assert data[:16] == pack
        box = data[offset : offset + stored]
        payload = self.open(self.keys["data_key"], "segment", pack, offset, box)
        whole = zstandard.decompress(payload) if codec else payload
        chunk = whole[start : start + length]
        assert blake3(chunk, key=self.id_keys[metadata]).digest() == chunk_id
        return chunk

    def metadata(self, chunk_id: bytes) -> bytes:
        return self.chunk(chunk_id, metadata=True)

    def root(self, name: str) -> dict[str, object]:
        found = msgpack.unpackb(self.small("root", f"roots/{name}", name))
        assert isinstance(found, dict)
        return found

    def content(self, value: object) -> bytes:
        layout, level, rows = (0, 0, value) if isinstance(value, bytes) else value  # type: ignore[misc]
        return b"".join(self.rows(layout, level, rows))

    def rows(self, layout: int, level: int, rows: bytes) -> Iterator[bytes]:
        for row_id, length in struct.iter_unpack("<32sQ", rows):
            if row_id == bytes(32):
                yield bytes(length)
            elif level == 0:
                yield self.chunk(row_id, metadata=False)
            elif layout == 1 and level == 1:
                page = self.metadata(row_id)
                for at in range(0, len(page), 32):
                    block = page[at : at + 32]
                    size = min(65536, length - at * 2048)
                    yield bytes(size) if block == bytes(32) else self.chunk(block, metadata=False)
            else:
                yield from self.rows(layout, level - 1, self.metadata(row_id))

    def stream(self, level: int, rows: list[list[object]]) -> Iterator[bytes]:
        for row_id, *_ in rows:
            assert isinstance(row_id, bytes)
            chunk = self.metadata(row_id)
            if level:
                yield from self.stream(level - 1, msgpack.unpackb(chunk))
            else:
                yield chunk

    def tree(self, name: str) -> Tree:
        (level, rows), (top, _), _, _ = self.root(name)["body"]  # type: ignore[misc]
        data = b"".join(self.stream(level, rows))
        tree: Tree = {(): self.node(top, [[], 0, b""], None)}
        at = 0
        while at < len(data):
            length, size = struct.unpack_from("<IQ", data, at)
            record = msgpack.unpackb(data[at + 12 : at + 4 + length], use_list=False, strict_map_key=False)
            path, _, stats, _, attributes, contents = record
            entries = msgpack.unpackb(stats)
            assert size == sum(entry[5] for entry in entries)
            for position, (entry, content) in enumerate(zip(entries, contents, strict=True)):
                tree[(*path, entry[0])] = self.node(entry, attributes.get(position, [(), 0, b""]), content)
            at += 4 + length
        return tree

    def node(self, entry: list[object], attributes: list[object], content: object) -> Node:
        _, mode, uid, gid, mtime_ns, _, ctime_ns, ino, dev, nlink, _, sparse = entry
        xattrs, _, target = attributes
        return Node(
            data=None if content is None else self.content(content), target=target, mode=stat.S_IMODE(mode), uid=uid,
            gid=gid, mtime_ns=mtime_ns, ctime_ns=ctime_ns, ino=ino, dev=dev, nlink=nlink, sparse=sparse,
            xattrs=tuple(tuple(pair) for pair in xattrs),  # type: ignore[attr-defined]
        )  # type: ignore[arg-type]  # fmt: skip


def tree_of(seed: int, large: int) -> Tree:
    rng = random.Random(seed)
    tree: Tree = {
        (b"empty",): Node(data=b""),
        (b"small",): Node(data=b"small text " * 20, xattrs=((b"user.k", b"v"),)),
        (b"zeros",): Node(data=bytes(200_000)),
        (b"link",): Node(target=b"small"),
        (b"d", b"\xff", b"deep"): Node(data=b"deep"),
        (b"large",): Node(data=rng.randbytes(large) + bytes(700_000) + b"end", mtime_ns=NOW_NS + seed),
        **{(b"many", b"%03d" % i): Node(data=b"%d" % i) for i in range(150)},
    }
    return {path: replace(node, ino=10 + i) for i, (path, node) in enumerate(sorted(tree.items()))}


def disk_of(seed: int) -> bytes:
    return b"block of disk %d. " % seed * 5000 + bytes(300_000) + b"end of disk" * 100


def fill(store: Store, large: int) -> None:
    """The same backups in every store: two of a tree, one of a disk, labels put later."""
    pool = Pool(threads=1)
    repository = create_repository(store, "", MasterKey(GOLDEN_SECRET), DomainSettings(), pool=pool)

    def commit(stream: MemoryTree | MemoryDisk, backup_id: str, parent: str | None = None) -> None:
        request = BackupRequest(backup_id=backup_id, generation=1, parent=parent, labels={"name": backup_id})
        backup(repository, stream, request, SilentMonitor(), lambda: None)

    commit(MemoryTree(tree_of(1, large)), "tree-1")
    commit(MemoryTree(tree_of(2, large)), "tree-2", "tree-1.1")
    commit(MemoryDisk(disk_of(1)), "disk-1")
    repository.put_labels("disk-1", {"name": "renamed"})
    pool.close()


def check(reader: Reader, large: int) -> None:
    assert reader.tree("tree-1.1") == plain(tree_of(1, large))
    assert reader.tree("tree-2.1") == plain(tree_of(2, large))
    body = reader.root("disk-1.1")["body"]
    assert isinstance(body, list)
    assert reader.content(body[0]) == disk_of(1)
    assert msgpack.unpackb(reader.root("disk-1.1")["labels"]) == {"name": "disk-1"}
    assert msgpack.unpackb(reader.small("labels", "labels/disk-1.000001", "disk-1.000001")) == {"name": "renamed"}


def test_a_reader_written_from_the_page_reads_what_the_engine_wrote() -> None:
    """docs/FORMAT.md is enough: trees with pages of rows, disks, holes, attributes and labels come out equal."""
    store = MemoryStore()
    large = 14_000_000  # more than 64 rows, so the content has pages
    fill(store, large)
    check(Reader({info.name: store.read(info.name) for info in store.list("")}, GOLDEN_SECRET), large)


GOLDEN_LARGE = 3000


def golden_store() -> MemoryStore:
    store = MemoryStore()
    for path in sorted(GOLDEN.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(GOLDEN)), [path.read_bytes()])
    return store


def test_the_first_repository_ever_written_still_reads() -> None:
    """A repository of format version 1, kept in the tests, is read by the engine and by the reader of the page."""
    store = golden_store()
    check(Reader({info.name: store.read(info.name) for info in store.list("")}, GOLDEN_SECRET), GOLDEN_LARGE)
    repository = open_repository(store, "", MasterKey(GOLDEN_SECRET), pool=Pool(threads=1))
    assert sorted(repository.root_names()) == ["disk-1.1", "tree-1.1", "tree-2.1"]
    for number in (1, 2):
        target = MemoryTarget()
        restore_tree(repository, f"tree-{number}.1", target)
        assert target.tree == plain(tree_of(number, GOLDEN_LARGE))
    disk = MemoryDisk(bytes(len(disk_of(1))))
    restore_block(repository, "disk-1.1", disk)
    assert disk.data == disk_of(1)
    assert repository.load_labels(repository.load_root("disk-1.1")) == {"name": "renamed"}
    repository.close()


@pytest.mark.skipif("STRONGROOM_MAKE_GOLDEN" not in os.environ, reason="writes tests/golden/v1, once a format version")
def test_make_the_golden_repository() -> None:
    """Writes the repository that the test above reads; an existing one is never overwritten."""
    from strongroom.engine.store.posix import PosixStore

    GOLDEN.mkdir(parents=True)
    fill(PosixStore(str(GOLDEN)), GOLDEN_LARGE)
