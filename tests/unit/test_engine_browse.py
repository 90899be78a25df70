"""Browsing a restore point, and the parts of the manifest it relies on."""

import os
import random
import stat

import msgpack
import pytest
from engine_streams import MemoryTree, Node, Tree, with_parents
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.base.errors import Corrupt, EntryNotFound, InvalidRequest, ManifestCorrupt
from strongroom.base.streams import NO_ATTRIBUTES, Entry, Path, SilentMonitor
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    Repository,
    backup,
    create_repository,
    entry,
    list_entries,
    read_file,
)
from strongroom.engine.chunker import HOLE, Chunker
from strongroom.engine.content import (
    BLOCKS,
    CHUNKS,
    PAGE_ROWS_MAX,
    ROW,
    ROWS_INLINE_MAX,
    Content,
    ContentWriter,
    iter_ids,
    iter_pages,
    iter_rows,
    parse_content,
)
from strongroom.engine.keys import Domain
from strongroom.engine.manifest import (
    RACY,
    Item,
    Key,
    Stream,
    StreamRow,
    StreamWriter,
    pack_records,
    parse_attributes,
    parse_entry,
    parse_record,
    parse_stream_rows,
)
from strongroom.engine.model import BLOCK_BYTES
from strongroom.engine.store.memory import MemoryStore

ROOT = "b.1"


class CountingStore(MemoryStore):
    """Counts the bytes read from packs."""

    def __init__(self) -> None:
        super().__init__()
        self.pack_bytes = 0

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.pack_bytes += len(buffer)
        super().read_into(name, offset, buffer)


def repository_of(tree: Tree, part: int = 4096) -> tuple[Repository, CountingStore]:
    store = CountingStore()
    repository = create_repository(store, "", MasterKey(os.urandom(32)), DomainSettings(), pool=Pool(threads=1))
    backup(
        repository,
        MemoryTree(tree, part=part),
        BackupRequest(backup_id="b", generation=1),
        SilentMonitor(),
        lambda: None,
    )
    repository.close()
    return repository, store


def test_every_folder_lists_what_it_holds() -> None:
    """Each folder of a tree, in pages of any size, gives its names in order with what they are."""
    tree = with_parents(
        {
            (b"a",): Node(data=b"x"),
            (b"l",): Node(target=b"a"),
            **{(b"d", b"f%03d" % i): Node(data=b"%d" % i) for i in range(100)},
            (b"d", b"sub", b"x"): Node(data=b""),
            (b"empty",): Node(),
        }
    )
    repository, _ = repository_of(tree, part=7)
    for path in (path for path, node in tree.items() if node.data is None and not node.target):
        names = sorted(other[-1] for other in tree if other and other[:-1] == path)
        for limit in (1, 3, 1000):
            found: list[bytes] = []
            while page := list_entries(repository, ROOT, path, found[-1] if found else None, limit):
                assert len(page) <= limit
                found += [item.name for item in page]
            assert found == names
    by_name = {item.name: item for item in list_entries(repository, ROOT, ())}
    kinds = {name: item.kind for name, item in by_name.items()}
    assert kinds == {b"a": "file", b"l": "link", b"d": "folder", b"empty": "folder"}
    assert by_name[b"l"].target == b"a"
    assert entry(repository, ROOT, (b"d", b"f007")).entry.size == 1
    for missing in ((b"none",), (b"a", b"x"), (b"d", b"none", b"x")):
        with pytest.raises(EntryNotFound):
            entry(repository, ROOT, missing)
        with pytest.raises(EntryNotFound):
            list_entries(repository, ROOT, missing)
    with pytest.raises(EntryNotFound):
        list_entries(repository, ROOT, (b"a",))
    for limit in (0, 10**9):
        with pytest.raises(InvalidRequest):
            list_entries(repository, ROOT, (), None, limit)


def test_files_are_read_in_any_range() -> None:
    """Any range of a file with data, zeros and holes is what the file holds there."""
    data = random.Random(5).randbytes(2_000_000) + bytes(3_000_000) + random.Random(6).randbytes(500_001)
    repository, _ = repository_of({(b"f",): Node(data=data), (b"s",): Node(data=b"small"), (b"e",): Node(data=b"")})
    assert b"".join(read_file(repository, ROOT, (b"f",))) == data
    assert b"".join(read_file(repository, ROOT, (b"e",))) == b""
    rng = random.Random(1)
    for _ in range(40):
        offset = rng.randrange(len(data) + 10)
        length = rng.choice([0, 1, 1000, 4_000_000, None])
        end = None if length is None else offset + length
        assert b"".join(read_file(repository, ROOT, (b"f",), offset, length)) == data[offset:end]
    for path in ((), (b"none",)):
        with pytest.raises(EntryNotFound):
            next(read_file(repository, ROOT, path))


def test_one_folder_of_many_is_found_without_reading_the_others() -> None:
    """Listing one folder of a large tree reads a small part of the manifest."""
    rng = random.Random(3)
    tree = {
        (b"%04d" % folder, rng.randbytes(20).hex().encode()): Node(data=b"", xattrs=((b"user.x", rng.randbytes(300)),))
        for folder in range(4000)
        for _ in range(6)
    }
    repository, store = repository_of(tree)
    whole = sum(info.size for info in store.list("") if "/packs/" in info.name)
    store.pack_bytes = 0
    assert len(list_entries(repository, ROOT, (b"2000",))) == 6
    assert 0 < store.pack_bytes < whole / 2
    assert whole > 7_000_000


# --- contents and records ---


class Chunks(dict[bytes, bytes]):
    """A store of metadata chunks."""

    def put(self, chunk: bytes) -> bytes:
        chunk_id = random.Random(chunk).randbytes(32)
        self[chunk_id] = chunk
        return chunk_id


@pytest.mark.parametrize("rows", [0, 1, ROWS_INLINE_MAX, ROWS_INLINE_MAX + 1, 129, 1000, 60_000])
def test_a_content_of_any_length_is_a_tree_of_bounded_pages(rows: int) -> None:
    """Every row comes back at its offset; what stays beside the owner and every page are bounded."""
    rng = random.Random(rows)
    chunks = Chunks()
    writer = ContentWriter(CHUNKS, chunks.put)
    want, at = [], 0
    for number in range(rows):
        chunk_id = HOLE if number % 50 == 7 else rng.randbytes(32)
        writer.add(chunk_id, 1000 + number)
        want.append((chunk_id, 1000 + number, at))
        at += 1000 + number
    content = writer.finish()
    assert len(content.rows) <= ROWS_INLINE_MAX * ROW.size
    assert all(len(page) <= PAGE_ROWS_MAX * ROW.size for page in chunks.values())
    assert list(iter_rows(content, chunks.__getitem__)) == want
    assert parse_content(list(content)) == content
    for number in (0, rows // 2, rows - 1):
        if rows:
            assert list(iter_rows(content, chunks.__getitem__, want[number][2])) == want[number:]
    ids = b"".join(ids for is_page, ids in iter_ids(content, chunks.__getitem__, lambda _: False) if not is_page)
    assert ids == b"".join(chunk_id for chunk_id, _, _ in want if chunk_id != HOLE)


def test_an_inserted_row_changes_few_pages() -> None:
    """Pages are cut by ids, so a row put into a long content leaves nearly all pages as they were."""
    rows = [random.Random(i).randbytes(32) for i in range(30_000)]
    stores = []
    for own in (rows, [*rows[:9000], b"new".ljust(32, b"!"), *rows[9000:]]):
        chunks = Chunks()
        writer = ContentWriter(CHUNKS, chunks.put)
        for chunk_id in own:
            writer.add(chunk_id, 100)
        writer.finish()
        stores.append(set(chunks))
    assert len(stores[0]) > 15
    assert len(stores[1] - stores[0]) <= 3


def _bad_get(chunk_id: bytes) -> bytes:
    return {b"odd": b"123", b"blk": bytes(32)}.get(chunk_id[:3], b"")


@pytest.mark.parametrize(
    "content",
    [
        Content(CHUNKS, 0, b"123"),
        Content(CHUNKS, 0, ROW.pack(b"x" * 32, 0)),
        Content(CHUNKS, 0, ROW.pack(b"x" * 32, 1 << 40)),
        Content(CHUNKS, 1, ROW.pack(b"odd".ljust(32), 100)),
        Content(BLOCKS, 1, ROW.pack(b"blk".ljust(32), 2 * BLOCK_BYTES)),
        Content(BLOCKS, 1, ROW.pack(b"blk".ljust(32), 1 << 50)),
        Content(BLOCKS, 2, ROW.pack(b"odd".ljust(32), 100)),
    ],
)
def test_absurd_contents_are_refused(content: Content) -> None:
    """Rows that no writer makes are ManifestCorrupt when they are walked."""
    with pytest.raises(ManifestCorrupt):
        list(iter_rows(content, _bad_get))


@pytest.mark.parametrize(
    "value", [None, 5, "x", [], [0, 0], [2, 0, b""], [0, 9, b""], [0, -1, b""], [1, 0, b""], [0, 0, 5]]
)
def test_malformed_contents_are_refused(value: object) -> None:
    """What is no content is ManifestCorrupt when it is parsed."""
    with pytest.raises(ManifestCorrupt):
        parse_content(value)
    with pytest.raises(ManifestCorrupt):
        iter_pages(Content(CHUNKS, 0, b""), _bad_get)


def make_entry(name: bytes, **more: int) -> Entry:
    return Entry(name, stat.S_IFREG | 0o644, 0, 0, -5, 0, 7, 1 << 63, 9, 1, 0, False)._replace(**more)


def test_records_come_back_and_large_ones_are_split() -> None:
    """A record gives back every item; one above the limit becomes several with ascending keys."""
    items = [Item(make_entry(b"%05d" % i), NO_ATTRIBUTES, Content(CHUNKS, 0, b""), RACY * (i % 2)) for i in range(10)]
    ((key, data),) = pack_records((b"p",), b"", items)
    record = parse_record(data)
    assert (record.key, key) == (((b"p",), b""), ((b"p",), b""))
    assert list(record.items()) == items
    heavy = NO_ATTRIBUTES._replace(xattrs=((b"user.big", bytes(60_000)),))
    items = [Item(make_entry(b"%05d" % i), heavy, None) for i in range(400)]
    parts = list(pack_records((), b"", items))
    assert len(parts) > 2
    assert [key for key, _ in parts] == sorted(key for key, _ in parts)
    assert [item for _, data in parts for item in parse_record(data).items()] == items


GOOD = [[b"p"], b"", msgpack.packb([make_entry(b"a")]), {}, {}, [b""]]


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, [b".."]), (0, [b"a/b"]), (0, b"p"), (0, ["p"]), (0, [b""]), (1, None), (2, b"\xc1"),
        (2, msgpack.packb([1])),
        (2, msgpack.packb([])), (2, msgpack.packb([make_entry(b"..")])), (2, msgpack.packb([make_entry(b"a\0")])),
        (2, msgpack.packb([make_entry(b"a", size=-1)])), (2, msgpack.packb([[b"a"] * 12])), (3, 5), (4, 5),
        (4, {0: [1, 2]}), (4, {0: [[[b"n"]], 0, b""]}), (5, []), (5, [5]), (5, [[0, 99, b""]]),
    ],
)  # fmt: skip
def test_absurd_records_are_refused(position: int, value: object) -> None:
    """Paths that leave the tree, entries that cannot be and shapes that do not fit are ManifestCorrupt."""
    assert [item.entry.name for item in parse_record(bytes(8) + msgpack.packb(GOOD)).items()] == [b"a"]
    row = list(GOOD)
    row[position] = value
    with pytest.raises(ManifestCorrupt):
        list(parse_record(bytes(8) + msgpack.packb(row)).items())


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_corrupt_and_nothing_else(data: bytes) -> None:
    """Any bytes at all, where a record or a row is expected, raise a class of Corrupt or parse."""
    for parse in (parse_record, lambda data: parse_stream_rows(msgpack.unpackb(data))):
        try:
            parse(data)
        except (Corrupt, ValueError):
            continue
    for value in (data, [data], [[data] * 5], [data] * 12):
        for parse_value in (parse_entry, parse_attributes, parse_stream_rows):
            with pytest.raises(ManifestCorrupt):
                parse_value(value)


DOMAIN = Domain.create(3)


def stream_of(paths: list[Path], chunks: Chunks) -> Stream:
    writer = StreamWriter(Chunker(DOMAIN), chunks.put)
    for path in paths:
        filler = random.Random(repr(path)).randbytes(900)
        entries = [Item(make_entry(b"n"), NO_ATTRIBUTES._replace(target=filler), None)]
        for key, data in pack_records(path, b"", entries):
            writer.add(key, data)
    return Stream(*writer.finish(), chunks.__getitem__)


def test_a_stream_is_searched_at_every_key() -> None:
    """From any key, present or not, reading begins at or before it, and never far before."""
    paths: list[Path] = sorted((b"%03d" % (i // 7), b"%d" % (i % 7))[: 1 + i % 2] for i in range(2600))
    paths = sorted({(), *paths})
    chunks = Chunks()
    stream = stream_of(paths, chunks)
    assert [record.path for record, _ in stream.records()] == paths
    for path in [*paths[::97], (b"000", b"00"), (b"zzz",), (b"",)]:
        key: Key = (path, b"")
        found = [record.path for record, _ in stream.records(key)]
        assert found == paths[len(paths) - len(found) :]
        assert found[0] <= path or found == paths
        below = sum(1 for other in found if other < path)
        assert below < 600


def test_many_chunks_of_a_stream_make_pages() -> None:
    """A stream of more chunks than a root holds has pages, found and walked like the rest."""
    chunks = Chunks()
    writer = StreamWriter(Chunker(DOMAIN), chunks.put)
    keys = []
    for number in range(1500):
        filler = random.Random(number).randbytes(9000)
        items = [Item(make_entry(b"n"), NO_ATTRIBUTES._replace(target=filler), None)]
        for key, data in pack_records((b"%05d" % number,), b"", items):
            writer.add(key, data)
            keys.append(key)
    level, rows = writer.finish()
    assert level >= 1
    stream = Stream(level, rows, chunks.__getitem__)
    assert [record.key for record, _ in stream.records()] == keys
    assert {chunk_id for _, chunk_id in stream.pages()} == set(chunks)
    item = stream.find((b"00777", b"n"))
    assert item is not None
    assert stream.find((b"00777", b"m")) is None
    assert stream.find((b"x", b"n")) is None


def test_damaged_streams_are_refused() -> None:
    """A stream that ends early, a chunk of another length, a record that claims gigabytes: ManifestCorrupt."""
    chunks = Chunks()
    broken = b"\xff\xff\xff\xff", b"\x10\0\0\0abc", b"\x05"
    cases = [[StreamRow(chunks.put(data), len(data), 0, (), b"")] for data in broken]
    cases.append([StreamRow(chunks.put(b"12345"), 4, 0, (), b"")])
    for rows in cases:
        with pytest.raises(ManifestCorrupt):
            list(Stream(0, rows, chunks.__getitem__).records())
    with pytest.raises(ManifestCorrupt):
        list(Stream(1, [StreamRow(chunks.put(b"\xc1"), 4, 0, (), b"")], chunks.__getitem__).records())
    with pytest.raises(ManifestCorrupt):
        Stream(99, [], chunks.__getitem__)
