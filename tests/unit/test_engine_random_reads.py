"""Reading a restore point at random: every range is what was backed up, within the memory allowed, or an error."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from engine_streams import MemoryDisk, MemoryTree, Node, Tree, with_parents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom.base.errors import Corrupt, EntryNotFound, InvalidRequest, ManifestCorrupt, StoreTimeout
from strongroom.base.streams import ExtentKind, SilentMonitor
from strongroom.base.units import KIB, MIB
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    ProcessSessions,
    Repository,
    backup,
    create_repository,
    open_repository,
)
from strongroom.engine.chunker import HOLE
from strongroom.engine.content import CHUNKS, ROW, Content, ContentWriter
from strongroom.engine.content_map import ContentMap, Pages
from strongroom.engine.model import SEGMENT_BYTES_MAX
from strongroom.engine.prune import prune
from strongroom.engine.reader import FileReader, Reader, open_reader
from strongroom.engine.segment_cache import SegmentCache
from strongroom.engine.store.memory import MemoryStore

MASTER = MasterKey(bytes(range(32)))
POOL = Pool(threads=2)
WAIT_S = 30  # bound of every wait


class WatchedStore(MemoryStore):
    """Records the ranges read from packs; `before` is called ahead of each."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[str, int]] = []
        self.lists: list[str] = []
        self.before = lambda: None

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        if "/packs/" in name:
            self.ranges.append((name, offset))
            self.before()
        super().read_into(name, offset, buffer)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if "/index/" in name:
            self.lists.append(name)
        return super().read(name, offset, length)

    def change(self, name: str, data: bytes) -> None:
        self._objects[name] = data

    def names(self, kind: str) -> list[str]:
        return [name for name in self._objects if f"/{kind}/" in name]


def commit(repository: Repository, stream: MemoryTree | MemoryDisk, backup_id: str, parent: str | None = None) -> str:
    request = BackupRequest(backup_id=backup_id, generation=1, parent=parent)
    return backup(repository, stream, request, SilentMonitor(), lambda: None).root


def disk_bytes(seed: int, size: int) -> bytes:
    """Noise, text, zeros of all lengths, and blocks that are there before."""
    rng = random.Random(seed)
    data = bytearray()
    while len(data) < size:
        kind, length = rng.randrange(4), rng.choice([1, 4 * KIB, 64 * KIB, 300 * KIB, 2 * MIB])
        if kind == 0:
            data += rng.randbytes(length)
        elif kind == 1:
            data += b"the same words again " * (length // 21)
        elif kind == 2:
            data += bytes(length)
        elif data:
            at = rng.randrange(len(data)) & ~0xFFFF
            data += data[at : at + length]
    return bytes(data[:size])


@contextmanager
def opened(repository: Repository, root: str, cache_bytes: int = 8 * MIB) -> Iterator[Reader]:
    """A reader; when it is closed, and what it read ahead has come, nothing of it is left in memory."""
    with open_reader(repository, root, cache_bytes=cache_bytes) as reader:
        yield reader
    wait_for(lambda cache: not cache._used)


def wait_for(condition: Callable[[SegmentCache], bool]) -> None:
    cache = POOL.cache
    with cache._changed:
        assert cache._changed.wait_for(lambda: condition(cache), WAIT_S)


def check_range(file: FileReader | Reader, model: bytes, offset: int, length: int) -> None:
    buffer = bytearray(b"\xaa" * length)
    count = file.read_into(offset, memoryview(buffer))
    want = model[offset : offset + length]
    assert count == len(want)
    assert buffer[:count] == want
    assert buffer[count:] == b"\xaa" * (length - count)


def check_extents(file: FileReader | Reader, model: bytes, offset: int, length: int) -> None:
    """They cover the range in order, neighbours differ, and what is called zeros is."""
    at, last = offset, None
    for extent in file.extents(offset, length):
        assert extent.offset == at
        assert extent.length > 0
        assert extent.kind != last
        if extent.kind == ExtentKind.ZERO:
            assert not any(model[at : at + extent.length])
        at, last = at + extent.length, extent.kind
    assert at == max(min(offset + length, len(model)), offset)


DISK = disk_bytes(1, 23 * MIB + 777)
FILES: Tree = with_parents(
    {
        (b"large",): Node(data=disk_bytes(2, 9 * MIB + 5)),
        (b"noise",): Node(data=random.Random(3).randbytes(14 * MIB)),
        (b"zeros",): Node(data=bytes(3 * MIB + 1)),
        (b"empty",): Node(data=b""),
        (b"link",): Node(target=b"large"),
        **{(b"many", b"%04d" % i): Node(data=b"%d" % i * (i % 40)) for i in range(1500)},
    }
)


@pytest.fixture(scope="module")
def repository() -> Repository:
    repository = create_repository(WatchedStore(), "", MASTER, DomainSettings(), pool=POOL)
    commit(repository, MemoryDisk(DISK), "disk")
    commit(repository, MemoryTree(FILES), "tree")
    return repository


ranges = st.tuples(
    st.integers(0, 24 * MIB),
    st.one_of(st.integers(0, 5000), st.sampled_from([1, 4 * KIB, 64 * KIB, MIB, 9 * MIB])),
)


@given(wanted=st.lists(ranges, min_size=1, max_size=8), cache_bytes=st.sampled_from([0, 1, 5 * MIB, 64 * MIB]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_of_a_disk_or_file_is_what_was_backed_up(
    repository: Repository, wanted: list[tuple[int, int]], cache_bytes: int
) -> None:
    """Random ranges, beyond the end too, with caches down to nothing: the model's bytes, and extents that are true."""
    with opened(repository, "disk.1", cache_bytes) as reader:
        assert reader.size == len(DISK)
        for offset, length in wanted:
            check_range(reader, DISK, offset, length)
            check_extents(reader, DISK, offset, length)
            assert POOL.cache.used_bytes <= max(cache_bytes, SEGMENT_BYTES_MAX)
    with opened(repository, "tree.1", cache_bytes) as reader:
        for name in (b"large", b"noise", b"zeros", b"empty"):
            model, file = FILES[name,].data, reader.open((name,))
            assert model is not None
            assert file.size == len(model)
            for offset, length in wanted:
                check_range(file, model, offset // 2, length)
                check_extents(file, model, offset // 2, length)


def test_many_threads_read_within_a_tiny_cache(repository: Repository) -> None:
    """Sixteen threads with room for one segment get the right bytes, all of them, and never hold more."""
    with opened(repository, "disk.1", 0) as disk, open_reader(repository, "tree.1", cache_bytes=0) as tree:
        peaks = []

        def work(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(25):
                check_range(disk, DISK, rng.randrange(len(DISK)), rng.choice([1, 4096, 70_000, MIB]))
                number = rng.randrange(1500)
                assert tree.open((b"many", b"%04d" % number)).read(0, 10_000) == FILES[b"many", b"%04d" % number].data
                peaks.append(POOL.cache.used_bytes)

        with ThreadPoolExecutor(16) as threads:
            for done in [threads.submit(work, seed) for seed in range(16)]:
                done.result(WAIT_S * 4)
        assert max(peaks) <= SEGMENT_BYTES_MAX


def test_a_tree_is_listed_and_described(repository: Repository) -> None:
    """Folders list in pages, entries tell their kind, and what is no file cannot be opened."""
    with opened(repository, "tree.1") as reader:
        names = []
        while page := reader.list((b"many",), names[-1] if names else None, 400):
            names += [found.name for found in page]
        assert names == [b"%04d" % number for number in range(1500)]
        assert reader.stat((b"link",)).target == b"large"
        assert reader.stat((b"large",)).entry.size == 9 * MIB + 5
        for path in ((b"link",), (b"many",), (b"none",), (b"large", b"x"), ()):
            with pytest.raises(EntryNotFound):
                reader.open(path)
        with pytest.raises(InvalidRequest):
            reader.read(0, 1)
        with pytest.raises(InvalidRequest):
            reader.open((b"large",)).read(-1, 5)
    with opened(repository, "disk.1") as reader:
        assert reader.open(()).read(5, 10) == DISK[5:15]
        for path in ((), (b"x",)):
            with pytest.raises(EntryNotFound):
                reader.list(path)


def test_what_many_want_is_read_once(repository: Repository) -> None:
    """Threads that want a segment while it is on its way wait for it; the store is asked once."""
    store = repository.store
    assert isinstance(store, WatchedStore)
    waiting, go = threading.Event(), threading.Event()
    with opened(repository, "disk.1", 0) as reader:
        data_at = next(extent.offset for extent in reader.extents(0, len(DISK)) if extent.kind == ExtentKind.DATA)
        store.ranges.clear()

        def hold() -> None:
            waiting.set()
            assert go.wait(WAIT_S)

        store.before = hold
        try:
            with ThreadPoolExecutor(12) as threads:
                reads = [threads.submit(reader.read, data_at, 100 + number) for number in range(12)]
                assert waiting.wait(WAIT_S)
                go.set()
                for number, done in enumerate(reads):
                    assert done.result(WAIT_S) == DISK[data_at : data_at + 100 + number]
        finally:
            store.before = lambda: None
    segments = [found for found in store.ranges if "/packs/" in found[0]]
    assert len(segments) == len(set(segments)) <= 2  # the segment of the data, and that of its page


def test_holes_cost_nothing() -> None:
    """A disk of 1 TiB of zeros reads as zeros, and tells so, without a single segment of data."""
    store = WatchedStore()
    repository = create_repository(store, "", MASTER, DomainSettings(), pool=POOL)
    writer = ContentWriter(CHUNKS, lambda page: page)
    writer.add(HOLE, 1 << 40)
    content = writer.finish()
    commit(repository, MemoryDisk(bytes(MIB)), "zeros")
    with opened(repository, "zeros.1") as reader:
        file = reader.open_content(content, 1 << 40)
        store.ranges.clear()
        assert file.read((1 << 39) + 3, 2 * MIB) == bytes(2 * MIB)
        assert list(file.extents(0, 1 << 40)) == [(0, 1 << 40, ExtentKind.ZERO)]
        assert reader.read(0, MIB) == bytes(MIB)
    assert store.ranges == []


def test_who_reads_on_is_read_ahead_for_and_who_jumps_is_not() -> None:
    """A sequential reader finds its segments under way before it asks; a random one loads only what it reads."""
    store = WatchedStore()
    repository = create_repository(store, "", MASTER, DomainSettings(), pool=POOL)
    data = random.Random(8).randbytes(60 * MIB)
    commit(repository, MemoryDisk(data), "disk")
    with opened(repository, "disk.1", 64 * MIB) as reader:
        for at in (33 * MIB + 5, 5 * MIB, 52 * MIB):
            check_range(reader, data, at, 4 * KIB)
        assert len(store.ranges) <= 3 + 1  # and the page
    store.ranges.clear()
    with opened(repository, "disk.1", 64 * MIB) as reader:
        for at in range(0, 16 * MIB, 256 * KIB):
            check_range(reader, data, at, 256 * KIB)
        wait_for(lambda cache: not cache._ahead)
        assert len(set(store.ranges)) == len(store.ranges) > 16 // 4 + 2


def test_an_open_reader_keeps_what_it_reads_from_a_prune() -> None:
    """A restore point that is deleted and pruned reads to its end while it is open, and is freed afterwards."""
    sessions, store = ProcessSessions(), MemoryStore()
    repository = create_repository(store, "", MASTER, DomainSettings(), pool=POOL, sessions=sessions)
    data = random.Random(4).randbytes(20 * MIB)
    commit(repository, MemoryDisk(data), "gone")
    commit(repository, MemoryDisk(data[:MIB]), "kept")
    with opened(repository, "gone.1", 0) as reader:
        check_range(reader, data, 0, 4 * KIB)
        repository.delete_root("gone.1")
        for _ in range(2):
            prune(open_repository(store, "", MASTER, pool=POOL, sessions=sessions), dead=(), monitor=SilentMonitor())
        check_range(reader, data, 0, len(data))
    before = sum(info.size for info in store.list(""))
    for _ in range(2):
        prune(repository, dead=(), monitor=SilentMonitor())
    assert sum(info.size for info in store.list("")) < before - 15 * MIB
    assert sessions.oldest_pinned() is None


def stored_twice(data: bytes) -> tuple[Repository, WatchedStore, list[str], list[str]]:
    """A disk in two sets of packs: the second backup did not know of the first."""
    store = WatchedStore()
    repository = create_repository(store, "", MASTER, DomainSettings(), pool=POOL)
    commit(repository, MemoryDisk(data), "disk")
    first = store.names("packs")
    hidden = {name: store.read(name) for name in store.names("index") if name.count(".") == 1}
    for name in hidden:
        store.delete(name)
    commit(repository, MemoryDisk(data), "again")
    for name, content in hidden.items():
        store.change(name, content)
    return repository, store, first, [name for name in store.names("packs") if name not in first]


@pytest.mark.parametrize("harm", ["bit", "short", "gone"])
def test_damage_is_made_good_by_a_second_copy_or_is_an_error(harm: str) -> None:
    """With either copy damaged the right bytes come; with both damaged an error comes, and never other bytes."""
    data = random.Random(6).randbytes(9 * MIB)
    repository, store, first, second = stored_twice(data)

    def damage(names: list[str]) -> None:
        for name in names:
            content = bytearray(store.read(name))
            for at in range(100, len(content), 64 * KIB):
                content[at] ^= 1
            if harm == "gone":
                store.delete(name)
            else:
                store.change(name, bytes(content) if harm == "bit" else bytes(content[:50]))

    sound = {name: store.read(name) for name in (*first, *second)}
    for packs in (first, second):
        with opened(repository, "disk.1", 0) as reader:
            damage(packs)
            for offset in range(0, len(data), 1_100_000):
                check_range(reader, data, offset, 100_000)
            check_range(reader, data, 0, len(data))
        for name, content in sound.items():
            store.change(name, content)
    with opened(repository, "disk.1", 0) as reader:
        assert reader.read(0, 10) == data[:10]
        damage(first + second)
        with pytest.raises(Corrupt):
            reader.read(8 * MIB, 10)
    assert POOL.cache.used_bytes == 0


def test_a_pack_that_moved_is_found_in_the_newest_index_read_once() -> None:
    """What lies elsewhere since the reader was opened is found there; the index is read again a single time."""
    data = random.Random(7).randbytes(9 * MIB)
    repository, store, first, second = stored_twice(data)
    newer = {name: store.read(name) for name in store.names("index") if name.count(".") == 1}
    for name in list(newer)[1:]:
        store.delete(name)
    with opened(repository, "disk.1", 0) as reader:
        known = {pack.id.hex() for pack in reader._session.index.packs()}
        for name in (*first, *second):
            if name.rpartition("/")[2] in known:
                store.delete(name)
        for name, content in newer.items():
            store.change(name, content)
        store.lists.clear()
        check_range(reader, data, 0, len(data))
        assert len(store.lists) <= 1 + len(newer)  # the list and the index objects, once


def test_an_error_of_the_store_is_told_to_all_who_wait_and_not_remembered() -> None:
    """A store that fails once fails those reads; the next one asks again and gets the bytes."""
    store = WatchedStore()
    repository = create_repository(store, "", MASTER, DomainSettings(), pool=POOL)
    data = random.Random(9).randbytes(MIB)
    commit(repository, MemoryDisk(data), "disk")

    def fail() -> None:
        raise StoreTimeout(name="packs", detail="no answer")

    with opened(repository, "disk.1") as reader:
        store.before = fail
        with pytest.raises(StoreTimeout):
            reader.read(0, 100)
        store.before = lambda: None
        assert reader.read(0, 100) == data[:100]
    with pytest.raises(InvalidRequest, match="not open"):
        reader.read(0, 100)
    reader.close()


def test_readers_give_way_to_jobs() -> None:
    """A cache that borrowed all of the budget gives it back to a lease; readers go on with the floor."""
    pool = Pool(budget_bytes=18 * SEGMENT_BYTES_MAX, threads=1)
    repository = create_repository(MemoryStore(), "", MASTER, DomainSettings(), pool=pool)
    data = random.Random(10).randbytes(64 * MIB)
    commit(repository, MemoryDisk(data), "disk")
    with open_reader(repository, "disk.1", cache_bytes=1 << 30) as reader:
        for at in range(0, len(data), MIB):
            check_range(reader, data, at, MIB)
        held = pool.cache.used_bytes
        assert held > 6 * SEGMENT_BYTES_MAX
        first = pool.lease(lambda: None)
        second = pool.lease(lambda: None)
        assert pool.cache.used_bytes < held
        for at in range(0, len(data), 3 * MIB):
            check_range(reader, data, at, 4 * KIB)
        assert pool.cache.used_bytes <= 18 * SEGMENT_BYTES_MAX - (7 + 8) * SEGMENT_BYTES_MAX + pool.read_floor_bytes
        pool.give_back(first + second)
    assert pool.cache.used_bytes == 0
    pool.close()


def test_a_manifest_that_does_not_fit_itself_is_damage() -> None:
    """Rows that add up to another size, pages of another length, rows of impossible lengths: ManifestCorrupt."""
    page = ROW.pack(b"a" * 32, 100)
    pages = Pages(lambda _: page)
    for content, size in (
        (Content(CHUNKS, 0, page), 99),
        (Content(CHUNKS, 0, b"x"), 0),
        (Content(CHUNKS, 0, ROW.pack(b"a" * 32, 0)), 0),
        (Content(CHUNKS, 0, ROW.pack(b"a" * 32, (1 << 64) - 1) * 2), (1 << 65) - 2),
    ):
        with pytest.raises(ManifestCorrupt):
            ContentMap(content, size, pages)
    for content, size in (
        (Content(CHUNKS, 1, ROW.pack(b"p" * 32, 101)), 101),
        (Content(CHUNKS, 0, ROW.pack(b"a" * 32, 1 << 30)), 1 << 30),
        (Content(1, 1, ROW.pack(b"p" * 32, 101)), 101),
    ):
        with pytest.raises(ManifestCorrupt):
            list(ContentMap(content, size, pages).pieces(0, size))
