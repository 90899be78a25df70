"""Every MUST of strongroom/engine/store/base.py, on every store."""

import errno
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from descriptors import open_paths
from fault_store import FaultStore
from seaweed import BUCKET, S3Server

from strongroom.base.errors import (
    ConfigError,
    ObjectExists,
    ObjectMissing,
    ShortRead,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreTimeout,
)
from strongroom.engine.store.base import NAME_BYTES_MAX, PART_BYTES_MAX, Buffer, ObjectInfo, Store
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.open import open_store
from strongroom.engine.store.overlay import OverlayStore
from strongroom.engine.store.posix import TEMPORARY_PREFIX, PosixStore
from strongroom.engine.store.retry import DELAYS_S, RetryingStore
from strongroom.engine.store.s3 import S3Store


def no_sleep(_seconds: float) -> None:
    return None


STORES: dict[str, Callable[[Path], Store]] = {
    "faulty": lambda _: FaultStore(),  # the double of tests/fault, when nothing is to fail
    "memory": lambda _: MemoryStore(),
    "posix": lambda folder: PosixStore(str(folder / "store")),
    "retrying": lambda folder: RetryingStore(PosixStore(str(folder / "store")), sleep=no_sleep),
    "overlay": lambda _: OverlayStore(MemoryStore()),
}


@pytest.fixture(params=[*sorted(STORES), "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str) -> Store:
    if request.param != "s3":
        return STORES[request.param](tmp_path)
    server: S3Server = request.getfixturevalue("s3_server")  # only now: it takes seconds to start
    return S3Store(BUCKET, s3_prefix, server.access())


@pytest.fixture
def posix(tmp_path: Path) -> PosixStore:
    return PosixStore(str(tmp_path / "store"))


def names(store: Store, prefix: str = "") -> list[str]:
    return [found.name for found in store.list(prefix)]


# --- put ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [[], [b""], [b"one"], [b"one", bytearray(b"two"), memoryview(b"three")], [bytes(3_000_000), b"x"]],
    ids=["nothing", "empty", "one", "three kinds", "large"],
)
def test_what_was_put_is_read(store: Store, data: Sequence[Buffer]) -> None:
    """The object is the concatenation of the pieces, of whatever buffer type."""
    store.put("a/b/c", data)
    whole = b"".join(data)
    assert store.read("a/b/c") == whole
    assert store.size("a/b/c") == len(whole)


def test_put_never_replaces(store: Store) -> None:
    """A put to a taken name raises ObjectExists and changes nothing."""
    store.put("roots/one", [b"first"])
    with pytest.raises(ObjectExists):
        store.put("roots/one", [b"second"])
    assert store.read("roots/one") == b"first"
    assert names(store) == ["roots/one"]


def test_one_of_many_puts_wins(store: Store) -> None:
    """Of many writers of one name exactly one succeeds, the others hear ObjectExists, and its bytes are there."""
    results: list[bytes] = []
    start = threading.Barrier(8)

    def write(text: bytes) -> None:
        start.wait()
        try:
            store.put("index/7", [text])
        except ObjectExists:
            return
        results.append(text)

    threads = [threading.Thread(target=write, args=(b"writer %d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [store.read("index/7")]


BAD_NAMES = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/./b",
    ".hidden",
    "a/.tmp-1",
    "a b",
    "a\0b",
    "a\n",
    "ä",
    "a\\b",
    "a:b",
    "x" * (PART_BYTES_MAX + 1),
    "/".join(["x" * 100] * 6),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_illegal_names_are_refused(store: Store, name: str) -> None:
    """No name leads out of the store, hides in it, or is too long; every method refuses."""
    calls: list[Callable[[], object]] = [
        lambda: store.put(name, [b""]),
        lambda: store.writer(name),
        lambda: store.read(name),
        lambda: store.read_into(name, 0, memoryview(bytearray(1))),
        lambda: store.size(name),
        lambda: store.delete(name),
        lambda: list(store.list(name + "/")),
        lambda: store.sweep_temporary(name + "/", 0),
    ]
    for call in calls:
        with pytest.raises(StoreError):
            call()
    assert names(store) == []


def test_a_prefix_ends_with_a_slash(store: Store) -> None:
    """`packs` would also mean `packs-old/`: a prefix is empty or names folders."""
    store.put("packs/a", [b""])
    with pytest.raises(StoreError):
        list(store.list("packs"))


def test_the_longest_name_works(store: Store) -> None:
    """A name of NAME_BYTES_MAX, in parts of PART_BYTES_MAX, can be stored."""
    part = "x" * (PART_BYTES_MAX - 1)
    name = "/".join([part] * 4)
    assert len(name) == NAME_BYTES_MAX - 1
    store.put(name + "y", [b"far"])
    assert names(store) == [name + "y"]


# --- read -----------------------------------------------------------------------------------------------------------


def test_ranges(store: Store) -> None:
    """read and read_into give exactly the range asked for, to the last byte."""
    store.put("a", [b"0123456789"])
    assert store.read("a", 3) == b"3456789"
    assert store.read("a", 3, 4) == b"3456"
    assert store.read("a", 10) == b""
    assert store.read("a", 10, 0) == b""
    buffer = bytearray(b"..........")
    store.read_into("a", 6, memoryview(buffer)[2:6])
    assert buffer == b"..6789...."
    store.read_into("a", 10, memoryview(buffer)[:0])


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (10, 1), (9, 2), (11, 1), (0, 1 << 60)])
def test_a_range_beyond_the_end_is_a_short_read(store: Store, offset: int, length: int) -> None:
    """Never fewer bytes than asked for, and no memory for a length that a damaged object claims."""
    store.put("a", [b"0123456789"])
    with pytest.raises(ShortRead) as caught:
        store.read("a", offset, length)
    assert caught.value.wanted == length
    if length < 100:
        with pytest.raises(ShortRead):
            store.read_into("a", offset, memoryview(bytearray(length)))


def test_what_is_not_there_is_missing(store: Store) -> None:
    """A missing object and the folder of another one are ObjectMissing, not an empty object."""
    store.put("packs/a", [b"x"])
    for name in ("packs/b", "packs", "other/a", "packs/a/b"):
        for call in (store.read, store.size):
            with pytest.raises(ObjectMissing):
                call(name)
        with pytest.raises(ObjectMissing):
            store.read_into(name, 0, memoryview(bytearray(1)))


def test_concurrent_reads(store: Store) -> None:
    """Threads reading different ranges of one object do not disturb each other."""
    whole = os.urandom(1 << 20)
    store.put("packs/a", [whole])
    wrong: list[int] = []

    def read(start: int) -> None:
        buffer = bytearray(4096)
        for offset in range(start, len(whole) - 4096, 32768):
            store.read_into("packs/a", offset, memoryview(buffer))
            if buffer != whole[offset : offset + 4096]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(number * 4096,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- list and delete ------------------------------------------------------------------------------------------------


def test_listing_is_ordered_and_deep(store: Store) -> None:
    """Names ascend as whole strings, folders included, with sizes; a prefix is a folder, not the start of a name."""
    put = ["a0", "a.b", "a/z/deep", "a/b", "packs/2", "packs/10", "packs-old/1", "b"]
    for number, name in enumerate(put):
        store.put(name, [b"x" * number])
    expected = sorted(ObjectInfo(name, number) for number, name in enumerate(put))
    assert list(store.list("")) == expected
    assert names(store, "packs/") == ["packs/10", "packs/2"]
    assert names(store, "a/") == ["a/b", "a/z/deep"]
    assert names(store, "nothing/here/") == []


def test_deleting_is_idempotent(store: Store) -> None:
    """After delete the name is free again; deleting what is not there is fine."""
    store.put("packs/a", [b"one"])
    store.delete("packs/a")
    store.delete("packs/a")
    store.delete("never/was")
    assert names(store) == []
    with pytest.raises(ObjectMissing):
        store.read("packs/a")
    store.put("packs/a", [b"two"])
    assert store.read("packs/a") == b"two"


def test_deleting_while_listing(store: Store) -> None:
    """A listing survives that its objects vanish: each name comes at most once, the rest still comes."""
    for number in range(20):
        store.put(f"packs/{number:02d}", [b""])
    seen = []
    for found in store.list(""):
        seen.append(found.name)
        store.delete(f"packs/{len(seen) + 4:02d}")
    assert seen == sorted(set(seen))
    assert "packs/00" in seen


# --- writers --------------------------------------------------------------------------------------------------------


def test_a_writer_is_invisible_until_commit(store: Store) -> None:
    """Nothing is listed or read before commit, everything is after it, and discard then changes nothing."""
    writer = store.writer("packs/a")
    writer.write_at(4, b"5678")
    writer.write_at(0, b"1234")
    assert names(store) == []
    with pytest.raises(ObjectMissing):
        store.size("packs/a")
    writer.commit()
    writer.discard()
    assert store.read("packs/a") == b"12345678"
    assert names(store) == ["packs/a"]


def test_a_discarded_writer_leaves_nothing(store: Store) -> None:
    """discard is idempotent and leaves neither an object nor a temporary one; the writer is of no use then."""
    writer = store.writer("packs/a")
    writer.write_at(0, b"1234")
    writer.discard()
    writer.discard()
    with pytest.raises(StoreError):
        writer.write_at(0, b"1")
    with pytest.raises(StoreError):
        writer.commit()
    assert names(store) == []
    assert store.sweep_temporary("", 0) == 0


def test_commit_never_replaces(store: Store) -> None:
    """commit to a taken name raises ObjectExists, changes nothing and leaves nothing once discarded."""
    writer = store.writer("packs/a")
    writer.write_at(0, b"late")
    store.put("packs/a", [b"early"])
    with pytest.raises(ObjectExists):
        writer.commit()
    writer.discard()
    assert store.read("packs/a") == b"early"
    assert store.sweep_temporary("", 0) == 0


@pytest.mark.parametrize("ranges", [[(1, b"x")], [(0, b"ab"), (3, b"c")]], ids=["no start", "hole"])
def test_a_writer_with_a_gap_is_refused(store: Store, ranges: list[tuple[int, bytes]]) -> None:
    """An object whose pieces do not cover it would be zeros where data should be: commit refuses."""
    writer = store.writer("packs/a")
    for offset, data in ranges:
        writer.write_at(offset, data)
    with pytest.raises(StoreError):
        writer.commit()
    writer.discard()
    assert names(store) == []


def test_concurrent_writes(store: Store) -> None:
    """Threads write different ranges of one object at once."""
    whole = os.urandom(1 << 20)
    writer = store.writer("packs/a")
    step = 1 << 16

    def write(start: int) -> None:
        for offset in range(start, len(whole), 4 * step):
            writer.write_at(offset, memoryview(whole)[offset : offset + step])

    threads = [threading.Thread(target=write, args=(number * step,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.commit()
    assert store.read("packs/a") == whole


@pytest.mark.parametrize("seed", range(4))
def test_large_and_small_ranges_in_any_order(store: Store, seed: int) -> None:
    """What goes past the page cache and what goes through it meet at any offset; the object is as long as its bytes."""
    rng = random.Random(seed)
    whole = rng.randbytes(3_000_000 + rng.randrange(5000))
    borders = sorted(
        {0, len(whole), *(rng.randrange(len(whole)) for _ in range(6)), *(rng.randrange(9000) for _ in "ab")}
    )
    pieces = list(itertools.pairwise(borders))
    rng.shuffle(pieces)
    writer = store.writer("packs/a")
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda piece: writer.write_at(piece[0], memoryview(whole)[piece[0] : piece[1]]), pieces))
    writer.commit()
    assert store.read("packs/a") == whole
    assert store.size("packs/a") == len(whole)


def test_a_sweep_spares_living_writers(store: Store) -> None:
    """sweep_temporary, even of age 0, does not hurt a writer that is still at work."""
    writer = store.writer("packs/a")
    writer.write_at(0, b"12")
    assert store.sweep_temporary("", 0) == 0
    writer.write_at(2, b"34")
    writer.commit()
    assert store.read("packs/a") == b"1234"


def test_check_leaves_nothing(store: Store) -> None:
    """check proves the store and leaves no object and no temporary one."""
    store.check()
    assert names(store) == []
    assert store.sweep_temporary("", 0) == 0


# --- the folder store -----------------------------------------------------------------------------------------------


def test_objects_are_private(posix: PosixStore, tmp_path: Path) -> None:
    """Folders are 0700 and files 0600, whatever the umask is."""
    old = os.umask(0)
    try:
        posix.put("a/b/c", [b"secret"])
    finally:
        os.umask(old)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"store": 0o700, "store/a": 0o700, "store/a/b": 0o700, "store/a/b/c": 0o600}


def test_links_are_not_followed(posix: PosixStore, tmp_path: Path) -> None:
    """A symbolic link in place of an object is neither read, nor listed, nor written through."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"not ours")
    posix.put("packs/a", [b"x"])
    link = tmp_path / "store/packs/b"
    link.symlink_to(outside)
    with pytest.raises(StoreDenied):
        posix.read("packs/b")
    with pytest.raises(ObjectMissing):
        posix.size("packs/b")
    with pytest.raises(StoreError):
        posix.put("packs/b", [b"y"])
    assert names(posix) == ["packs/a"]
    posix.delete("packs/b")
    assert outside.read_bytes() == b"not ours"
    assert not link.is_symlink()


def test_foreign_files_are_left_alone(posix: PosixStore, tmp_path: Path) -> None:
    """What cannot be one of our names (lost+found, dot files) is neither listed nor swept."""
    for name in ("lost+found", ".snapshot"):
        (tmp_path / "store" / name).mkdir()
        (tmp_path / "store" / name / "file").write_bytes(b"x")
    (tmp_path / "store/.note").write_bytes(b"x")
    os.mkfifo(tmp_path / "store/pipe")
    assert names(posix) == []
    assert posix.sweep_temporary("", 0) == 0
    assert (tmp_path / "store/.note").exists()


def test_reading_a_fifo_does_not_block(posix: PosixStore, tmp_path: Path) -> None:
    """A fifo in place of an object is an error at once, not a process that hangs."""
    os.mkfifo(tmp_path / "store/pipe")
    with pytest.raises(StoreError):
        posix.read("pipe", 0, 1)


CHILD = """
import sys, time
from strongroom.engine.store.overlay import OverlayStore
from strongroom.engine.store.posix import PosixStore
writer = PosixStore(sys.argv[1]).writer("packs/a")
writer.write_at(0, b"x" * 1000)
print("written", flush=True)
time.sleep(60)
"""


def test_leftovers_of_a_killed_writer_are_swept(posix: PosixStore, tmp_path: Path) -> None:
    """A writer in another process is spared while it lives; after a kill its temporary file goes, and only then."""
    folder = tmp_path / "store"
    with subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        assert names(posix) == []
        assert posix.sweep_temporary("", 0) == 0
        child.send_signal(signal.SIGKILL)
    assert len(list(folder.rglob(f"{TEMPORARY_PREFIX}*"))) == 1
    assert posix.sweep_temporary("roots/", 0) == 0
    assert posix.sweep_temporary("", 3600) == 0
    assert posix.sweep_temporary("packs/", 0) == 1000
    assert list(folder.rglob(f"{TEMPORARY_PREFIX}*")) == []


def test_a_leftover_second_name_frees_nothing(posix: PosixStore, tmp_path: Path) -> None:
    """Killed between link and unlink: the temporary name goes, the object stays."""
    posix.put("packs/a", [b"12345"])
    os.link(tmp_path / "store/packs/a", tmp_path / f"store/packs/{TEMPORARY_PREFIX}x")
    assert posix.sweep_temporary("", 0) == 0
    assert sorted(path.name for path in (tmp_path / "store/packs").iterdir()) == ["a"]
    assert posix.read("packs/a") == b"12345"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EACCES, StoreDenied),
        (errno.EROFS, StoreDenied),
        (errno.ETIMEDOUT, StoreTimeout),
        (errno.EIO, StoreError),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "link", "unlink"])
def test_every_failure_has_its_error(
    posix: PosixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[StoreError]
) -> None:
    """A failing system call becomes the right StoreError, and the name is not taken unless the object is whole."""
    posix.put("packs/warm", [b""])

    def fail(*_args: object, **_keywords: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(error) as caught:
            posix.put("packs/a", [b"12345"])
    assert type(caught.value) is error
    assert caught.value.retryable is (error is StoreTimeout)
    if call == "unlink":
        assert posix.read("packs/a") == b"12345"
    else:
        assert names(posix) == ["packs/warm"]
    posix.sweep_temporary("", 0)
    assert list((tmp_path / "store").rglob(f"{TEMPORARY_PREFIX}*")) == []


def test_a_writer_that_failed_once_is_of_no_use(posix: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports lost write-back to one fsync only: a second commit must not succeed."""
    writer = posix.writer("packs/a")
    writer.write_at(0, b"12345")
    real = os.fsync

    def fail(_file: int) -> None:
        monkeypatch.setattr(os, "fsync", real)
        raise OSError(errno.EIO, "lost write-back")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError):
        writer.commit()
    with pytest.raises(StoreError):
        writer.commit()
    writer.discard()
    assert names(posix) == []


def test_all_who_write_to_a_full_store_hear_that_it_is_full(posix: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first failure is told to every later step, after a discard too: which one a job reports is chance."""
    writer = posix.writer("packs/a")

    def full(_file: int, _data: Buffer, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreFull):
            writer.write_at(0, b"12345")
    with pytest.raises(StoreFull):
        writer.write_at(5, b"67890")
    with pytest.raises(StoreFull):
        writer.commit()
    writer.discard()
    with pytest.raises(StoreFull):
        writer.write_at(5, b"67890")
    assert names(posix) == []


def test_short_writes_are_continued(posix: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes only part of the data is not the end of it."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, memoryview(data)[:3], offset))
    posix.put("a", [b"0123456789", b"abc"])
    monkeypatch.undo()
    assert posix.read("a") == b"0123456789abc"


def test_descriptors_do_not_leak(posix: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, writes, failures and listings that are dropped half way close what they opened."""
    for number in range(5):
        posix.put(f"a/{number}", [b"x"])
    gc.collect()
    before = open_paths()
    for _ in range(10):
        posix.read("a/1")
        next(posix.list(""))
        writer = posix.writer("a/new")
        writer.discard()
        with pytest.raises(ObjectExists):
            posix.put("a/1", [b"y"])
        with pytest.raises(ObjectMissing):
            posix.read("a/none")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda _file: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(StoreError):
            posix.put("a/other", [b"y"])
    gc.collect()
    assert not open_paths() - before


# --- open and retry -------------------------------------------------------------------------------------------------


def test_opening(tmp_path: Path) -> None:
    """A file URL opens (and makes) its folder; what is stored there is there for the next who opens it."""
    url = f"file://{tmp_path}/with%20space/deep"
    open_store(url).put("a", [b"1"])
    assert open_store(url).read("a") == b"1"
    assert (tmp_path / "with space/deep/a").read_bytes() == b"1"


@pytest.mark.parametrize("url", ["", "relative/path", "s4://bucket", "file:relative", "file://host/x", "file:///x?y=1"])
def test_wrong_urls_are_refused(url: str) -> None:
    """A URL that means no store is a ConfigError with a sentence, not a folder somewhere."""
    with pytest.raises(ConfigError):
        open_store(url)


class Flaky(MemoryStore):
    """Fails the first `failures` calls of the given kinds, after the effect if `late`."""

    def __init__(self, failures: int, *, late: bool = False) -> None:
        super().__init__()
        self.failures = failures
        self.late = late
        self.calls = 0

    def _maybe_fail(self, name: str) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise StoreTimeout(name=name)

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        if not self.late:
            self._maybe_fail(name)
        super().put(name, data)
        if self.late:
            self._maybe_fail(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if not self.late:
            self._maybe_fail(name)
        return super().read(name, offset, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for found in super().list(prefix):
            yield found
            self._maybe_fail(found.name)


def test_a_short_trouble_is_hidden() -> None:
    """Retryable errors are tried again after growing pauses."""
    slept: list[float] = []
    store = RetryingStore(Flaky(len(DELAYS_S)), sleep=slept.append)
    store.put("a", [b"1"])
    assert slept == list(DELAYS_S)
    assert store.read("a") == b"1"


def test_a_long_trouble_is_shown() -> None:
    """After the last try the error comes out, with its class."""
    store = RetryingStore(Flaky(len(DELAYS_S) + 1), sleep=no_sleep)
    with pytest.raises(StoreTimeout):
        store.read("a")


def test_a_put_that_meets_itself_succeeds() -> None:
    """The first try stored the object and then timed out: equal bytes under the name are our own success."""
    store = RetryingStore(Flaky(1, late=True), sleep=no_sleep)
    store.put("a", [b"1", b"2"])
    assert store.read("a") == b"12"


def test_a_put_that_meets_another_fails() -> None:
    """ObjectExists after a retry with other bytes there is somebody else's object; without a retry it always is."""
    flaky = Flaky(1)
    store = RetryingStore(flaky, sleep=no_sleep)
    MemoryStore.put(flaky, "a", [b"other"])
    with pytest.raises(ObjectExists):
        store.put("a", [b"mine"])
    with pytest.raises(ObjectExists):
        store.put("a", [b"other"])


def test_a_listing_that_breaks_goes_on() -> None:
    """After a trouble the listing continues behind the last name: none twice, none left out."""
    flaky = Flaky(2)
    for name in "abcde":
        MemoryStore.put(flaky, name, [b""])
    assert names(RetryingStore(flaky, sleep=no_sleep)) == list("abcde")


def test_other_errors_are_not_retried() -> None:
    """What a retry cannot help comes out at the first try."""
    slept: list[float] = []
    with pytest.raises(ObjectMissing):
        RetryingStore(MemoryStore(), sleep=slept.append).read("a")
    assert slept == []
