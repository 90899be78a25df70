"""What an object store does to us: lost answers, races, wrong keys, full buckets, silence, and a server that is killed.

Against a real SeaweedFS, except for answers that it does not give.
"""

import contextlib
import http.server
import logging
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fault_world import World, create, reopen, small_files
from seaweed import BUCKET, SECRET_KEY, Proxy, S3Server, seaweed

from strongroom.base.clock import SystemClock
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
from strongroom.base.streams import SilentMonitor
from strongroom.engine.prune import PruneReport
from strongroom.engine.store.access import S3Access
from strongroom.engine.store.base import ObjectInfo, ObjectWriter, Store
from strongroom.engine.store.open import open_store
from strongroom.engine.store.posix import PosixStore
from strongroom.engine.store.retry import RetryingStore
from strongroom.engine.store.s3 import FOREIGN_AGE_MIN_S, SORTED_MAX, S3Store
from strongroom.engine.store.s3_ahead import AHEAD_BYTES_MAX, STALE_S, Range, ReadAhead
from strongroom.engine.store.s3_multipart import MultipartClient
from strongroom.engine.store.s3_writer import PART_BYTES, SENDING_MAX
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
TWO_PARTS = random.Random(SEED).randbytes(PART_BYTES + 1000)


class LaterClock(SystemClock):
    """The time in `days` days."""

    def __init__(self, days: float) -> None:
        self._ahead = timedelta(days=days)

    def now(self) -> datetime:
        return super().now() + self._ahead


@pytest.fixture
def store(s3_server: S3Server, s3_prefix: str) -> S3Store:
    return S3Store(BUCKET, s3_prefix, s3_server.access())


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(s3_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def behind(s3_server: S3Server, s3_prefix: str, proxy: Proxy) -> RetryingStore:
    """The same place through the proxy, with retries, as the product opens it."""
    return RetryingStore(S3Store(BUCKET, s3_prefix, s3_server.access(proxy.port)), sleep=lambda _: None)


def client_of(server: S3Server) -> MultipartClient:
    """Another program at work in the same bucket."""
    return MultipartClient(server.access(), server.endpoint, BUCKET, connections=2, clock=SystemClock(), silence_s=30)


def fill(writer: ObjectWriter, whole: bytes, step: int = 1 << 20, seed: int = SEED) -> None:
    """Write pieces in random order from four threads."""
    offsets = list(range(0, len(whole), step))
    random.Random(seed).shuffle(offsets)
    errors: list[StoreError] = []

    def write(mine: list[int]) -> None:
        try:
            for offset in mine:
                writer.write_at(offset, memoryview(whole)[offset : offset + step])
        except StoreError as err:
            errors.append(err)

    threads = [threading.Thread(target=write, args=(offsets[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def leftovers(server: S3Server, prefix: str) -> list[str]:
    return [upload.key for upload in client_of(server).uploads(prefix + "/")]


# --- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 12345])
def test_parts_in_any_order_become_one_object(store: S3Store, s3_server: S3Server, s3_prefix: str, size: int):
    """Pieces written in any order by several threads come back as one object; no upload is left."""
    print(f"seed {SEED}")
    whole = random.Random(SEED).randbytes(size)
    writer = store.writer("packs/a")
    fill(writer, whole, step=700_001)
    with pytest.raises(ObjectMissing):
        store.size("packs/a")
    writer.commit()
    writer.discard()
    assert store.read("packs/a") == whole
    assert store.read("packs/a", size - 5, 5) == whole[-5:]
    assert leftovers(s3_server, s3_prefix) == []


def test_memory_is_bounded_by_back_pressure(store: S3Store):
    """A writer that is faster than the store waits: never more parts on their way than SENDING_MAX."""
    slots = store._uploads._slots
    piece = bytes(PART_BYTES)
    writer = store.writer("packs/a")
    most = 0
    for number in range(SENDING_MAX + 4):
        writer.write_at(number * PART_BYTES, piece)
        most = max(most, SENDING_MAX - slots._value)
    assert 0 < most <= SENDING_MAX
    writer.discard()
    assert slots._value == SENDING_MAX


@pytest.mark.parametrize("offset", [0, PART_BYTES - 1], ids=["in a full part", "across its end"])
def test_a_full_part_is_not_written_again(store: S3Store, offset: int):
    """What was sent cannot change: such a writer is broken and leaves nothing."""
    writer = store.writer("packs/a")
    writer.write_at(0, bytes(PART_BYTES))
    with pytest.raises(StoreError):
        writer.write_at(offset, b"xx")
    with pytest.raises(StoreError):
        writer.commit()
    writer.discard()
    assert list(store.list("")) == []


def test_a_missing_part_is_refused(store: S3Store, s3_server: S3Server, s3_prefix: str):
    """A hole of a whole part between parts that are sent is seen before anything is completed."""
    writer = store.writer("packs/a")
    writer.write_at(2 * PART_BYTES, bytes(PART_BYTES))
    writer.write_at(0, bytes(PART_BYTES))
    with pytest.raises(StoreError):
        writer.commit()
    writer.discard()
    assert list(store.list("")) == []
    assert leftovers(s3_server, s3_prefix) == []


def test_a_discarded_upload_leaves_nothing(store: S3Store, s3_server: S3Server, s3_prefix: str):
    """discard aborts the upload with the parts that are on their way."""
    writer = store.writer("packs/a")
    for number in range(4):
        writer.write_at(number * PART_BYTES, bytes(PART_BYTES))
    writer.discard()
    assert leftovers(s3_server, s3_prefix) == []
    assert store.sweep_temporary("", 0) == 0


def test_of_two_uploads_to_one_name_one_stands(store: S3Store, s3_server: S3Server, s3_prefix: str):
    """Two large writers that commit at once: one's bytes stand whole, who hears ObjectExists has left nothing.

    SeaweedFS looks at the condition before it completes an upload, not with it: in one run of seven both are told that
    they succeeded. Nobody relies on the loser's hearing of it: large objects are packs, whose names are random.
    """
    wholes = [random.Random(seed).randbytes(PART_BYTES + seed) for seed in (1, 2)]
    writers = [store.writer("packs/a") for _ in wholes]
    results: list[bytes] = []
    lost: list[int] = []
    start = threading.Barrier(2)

    def run(number: int) -> None:
        writers[number].write_at(0, wholes[number])
        start.wait()
        try:
            writers[number].commit()
            results.append(wholes[number])
        except ObjectExists:
            lost.append(number)
            writers[number].discard()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) + len(lost) == 2
    assert store.read("packs/a") in results
    assert leftovers(s3_server, s3_prefix) == []


def test_leftovers_are_swept_when_nobody_can_be_at_work(store: S3Store, s3_server: S3Server, s3_prefix: str):
    """Dropped writers of our own go at once, uploads of others after a day, of another store never."""
    dropped = store.writer("packs/dropped")
    dropped.write_at(0, TWO_PARTS)
    dropped._sent[0].result()  # type: ignore[attr-defined]
    del dropped
    other = client_of(s3_server)
    other.send(
        "x", f"{s3_prefix}/packs/foreign", other.begin("x", f"{s3_prefix}/packs/foreign", "t"), 1, memoryview(b"12345")
    )
    elsewhere = other.begin("x", f"{s3_prefix}-2/packs/x", "t")
    assert store.sweep_temporary("roots/", 0) == 0
    assert store.sweep_temporary("", 3600) == 0
    assert store.sweep_temporary("packs/", 0) == PART_BYTES
    assert leftovers(s3_server, s3_prefix) == [f"{s3_prefix}/packs/foreign"]
    later = S3Store(BUCKET, s3_prefix, s3_server.access(), clock=LaterClock(0.005))
    assert later.sweep_temporary("", 0) == 0
    assert FOREIGN_AGE_MIN_S == 86400
    sweeper = S3Store(BUCKET, s3_prefix, s3_server.access())
    sweeper._clock = LaterClock(1.01)  # signatures need the right time, ages do not
    assert sweeper.sweep_temporary("", 0) == 5
    assert leftovers(s3_server, s3_prefix) == []
    assert leftovers(s3_server, f"{s3_prefix}-2") == [f"{s3_prefix}-2/packs/x"]
    other.abort("x", f"{s3_prefix}-2/packs/x", elsewhere)


# --- lost answers -----------------------------------------------------------------------------------------------------


def test_a_put_whose_answer_was_lost_is_our_own_success(behind: RetryingStore, proxy: Proxy):
    """The server stored it, the connection broke: the retry finds the name taken, by equal bytes (RULINGS 8)."""
    proxy.lose_of, proxy.lose_answers = b"PUT", 1
    behind.put("index/7", [b"mine"])
    assert proxy.lost == 1
    assert behind.read("index/7") == b"mine"
    with pytest.raises(ObjectExists):
        behind.put("index/7", [b"mine"])


def test_a_lost_answer_does_not_make_another_writers_object_ours(behind: RetryingStore, store: S3Store, proxy: Proxy):
    """When the answer that is lost is the refusal, the retry still says ObjectExists."""
    store.put("index/7", [b"theirs"])
    proxy.lose_of, proxy.lose_answers = b"PUT", 1
    with pytest.raises(ObjectExists):
        behind.put("index/7", [b"mine"])
    assert proxy.lost == 1
    assert behind.read("index/7") == b"theirs"


@pytest.mark.parametrize(
    "request_line", [b"?uploads=", b"partNumber=1", b"POST /backups/{}?uploadId=", b"GET", b"HEAD"]
)
def test_every_lost_answer_of_an_upload_is_survived(
    behind: RetryingStore, proxy: Proxy, store: S3Store, s3_prefix: str, request_line: bytes
):
    """Whichever answer is lost, the upload goes on, and the object is there once."""
    proxy.lose_of = request_line.replace(b"{}", f"{s3_prefix}/packs/a".encode())
    proxy.lose_answers = 1
    writer = behind.writer("packs/a")
    fill(writer, TWO_PARTS)
    writer.commit()
    assert behind.read("packs/a") == TWO_PARTS
    assert behind.size("packs/a") == len(TWO_PARTS)
    assert [found.name for found in behind.list("")] == ["packs/a"]
    behind.delete("packs/a")
    assert proxy.lost == 1


def test_lost_answers_of_the_rest(behind: RetryingStore, proxy: Proxy):
    """Lists and deletes are asked again."""
    behind.put("a", [b"1"])
    proxy.lose_of, proxy.lose_answers = b"GET", 1
    assert [found.name for found in behind.list("")] == ["a"]
    proxy.lose_of, proxy.lose_answers = b"", 1
    behind.delete("a")
    assert proxy.lost == 2
    assert list(behind.list("")) == []


# --- read ahead -------------------------------------------------------------------------------------------------------


def test_expected_ranges_are_on_their_way_at_once(store: S3Store, s3_server: S3Server, s3_prefix: str):
    """Many ranges that were expected cost about one round trip together, not one each; each has its own bytes."""
    whole = random.Random(SEED).randbytes(1 << 20)
    store.put("packs/a", [whole])
    late = Proxy(s3_server.port, latency_s=0.3)
    behind = S3Store(BUCKET, s3_prefix, s3_server.access(late.port))
    step = len(whole) // 16
    begun = time.monotonic()
    for number in range(16):
        behind.expect("packs/a", number * step, step)
    for number in range(16):
        buffer = bytearray(step)
        behind.read_into("packs/a", number * step, memoryview(buffer))
        assert buffer == whole[number * step : (number + 1) * step]
    assert time.monotonic() - begun < 16 * 0.3 / 2
    assert late.requests == 16
    late.close()


def test_what_failed_ahead_is_asked_again(behind: RetryingStore, proxy: Proxy):
    """A hint never fails: a range whose early answer was lost, or that is not there, is decided by its read."""
    behind.put("packs/a", [b"0123456789"])
    proxy.lose_of, proxy.lose_answers = b"GET", 1
    buffer = bytearray(4)
    behind.expect("packs/a", 2, 4)
    behind.read_into("packs/a", 2, memoryview(buffer))
    assert (bytes(buffer), proxy.lost) == (b"2345", 1)
    behind.expect("packs/none", 0, 4)
    with pytest.raises(ObjectMissing):
        behind.read_into("packs/none", 0, memoryview(buffer))
    behind.expect("packs/a", 8, 4)
    with pytest.raises(ShortRead):
        behind.read_into("packs/a", 8, memoryview(buffer))
    behind.expect("a bad name", 0, 4)
    behind.delete("packs/a")


class _Ticks(SystemClock):
    """Seconds that the test counts."""

    seconds = 0.0

    def monotonic_s(self) -> float:
        return self.seconds


def test_read_ahead_keeps_to_its_memory():
    """More than AHEAD_BYTES_MAX is not read ahead; what nobody took makes room once it is stale."""
    clock, fetched = _Ticks(), []

    def fetch(wanted: Range) -> bytes:
        fetched.append(wanted)
        return b"x"

    ahead = ReadAhead(fetch, clock)
    large = AHEAD_BYTES_MAX // 2
    first, second, third = (Range(name, 0, large) for name in "abc")
    for wanted in (first, first, second, third, Range("d", 0, 2 * AHEAD_BYTES_MAX)):
        ahead.expect(wanted)
    taken = ahead.take(second)
    assert taken is not None
    assert ahead.take(second) is None
    assert ahead.take(third) is None
    ahead.expect(second)
    ahead.expect(third)
    assert ahead.take(third) is None
    clock.seconds = STALE_S
    ahead.expect(third)
    assert ahead.take(first) is None
    for wanted in (second, third):
        assert ahead.take(wanted) is not None
    assert fetched.count(first) <= 1


# --- a server that is killed ------------------------------------------------------------------------------------------


def test_a_killed_server_loses_nothing_it_acknowledged(tmp_path: Path):
    """Killed in the middle of a put and of an upload: errors that say try again, no half objects, then all goes on."""
    with seaweed(tmp_path) as server:
        store = S3Store(BUCKET, "here", server.access(), silence_s=5)
        store.put("index/1", [b"acknowledged"])
        whole = store.writer("packs/whole")
        whole.write_at(0, TWO_PARTS)
        whole.commit()
        writer = store.writer("packs/half")
        writer.write_at(0, TWO_PARTS)
        server.kill()
        with pytest.raises(StoreTimeout):
            store.put("index/2", [b"refused"])
        with pytest.raises(StoreTimeout):
            writer.commit()
        writer.discard()
        with pytest.raises(StoreTimeout):
            list(store.list(""))
        server.start()
        assert [found.name for found in store.list("")] == ["index/1", "packs/whole"]
        assert store.read("index/1") == b"acknowledged"
        assert store.read("packs/whole") == TWO_PARTS
        store.put("index/2", [b"accepted"])
        assert store.sweep_temporary("", 0) in (0, PART_BYTES)  # whether the part came before the kill
        assert list(client_of(server).uploads("")) == []
        again = store.writer("packs/half")
        again.write_at(0, TWO_PARTS)
        again.commit()
        assert store.read("packs/half") == TWO_PARTS


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_wrong_secret_is_refused_and_shown_nowhere(
    s3_server: S3Server, s3_prefix: str, caplog: pytest.LogCaptureFixture
):
    """StoreDenied for every call, at once, and the secret is in no error, traceback, repr or log."""
    caplog.set_level(logging.DEBUG)
    wrong = "a-wrong-secret-nobody-may-see"
    access = s3_server.access(secret_key=wrong)
    store = RetryingStore(S3Store(BUCKET, s3_prefix, access))
    writer = store.writer("packs/a")
    with contextlib.suppress(StoreDenied):  # the first part may be answered while the second is written
        writer.write_at(0, TWO_PARTS)
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", [b"1"]),
        lambda: store.read("a"),
        lambda: store.read_into("a", 0, memoryview(bytearray(1))),
        lambda: store.size("a"),
        lambda: list(store.list("")),
        lambda: store.delete("a"),
        lambda: store.sweep_temporary("", 0),
        store.check,
        writer.commit,
    ]
    shown = repr(access) + str(vars(store))
    for call in calls:
        with pytest.raises(StoreDenied) as caught:
            call()
        shown += "".join(traceback.format_exception(caught.value))
    writer.discard()
    assert wrong not in shown + caplog.text
    assert SECRET_KEY not in shown + caplog.text


def test_a_missing_bucket_is_not_a_missing_object(s3_server: S3Server):
    """An object that is missing because the bucket is means trouble, not an empty store."""
    store = S3Store("no-such-bucket", "", s3_server.access())
    with pytest.raises(StoreError) as caught:
        store.read("a")
    assert type(caught.value) is StoreError
    assert "NoSuchBucket" in caught.value.detail


class _Answers(http.server.BaseHTTPRequestHandler):
    """Gives every request the status and code of its server."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, code = self.server.answer  # type: ignore[attr-defined]
        body = b"" if self.command == "HEAD" or not code else f"<Error><Code>{code}</Code></Error>".encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("etag", '"x"')
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def answers() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server that answers everything alike: `server.answer = (status, code)`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def at(port: int, **options: float) -> S3Store:
    access = S3Access(endpoint=f"http://127.0.0.1:{port}", access_key="A", secret_key="S", allow_http=True)
    return S3Store("bucket", "", access, **options)  # type: ignore[arg-type]


def test_every_step_after_a_full_store_says_that_it_is_full(answers: http.server.ThreadingHTTPServer):
    """The first failure is told to every later step of a writer: which one a job reports is chance."""
    answers.answer = (507, "")  # type: ignore[attr-defined]
    writer = at(answers.server_address[1]).writer("packs/a")
    writer.write_at(0, TWO_PARTS)
    for _ in range(2):
        with pytest.raises(StoreFull):
            writer.commit()
    with pytest.raises(StoreFull):
        writer.write_at(len(TWO_PARTS), b"more")
    writer.discard()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (507, "", StoreFull),
        (403, "QuotaExceeded", StoreFull),
        (500, "XMinioStorageFull", StoreFull),
        (403, "AccessDenied", StoreDenied),
        (403, "RequestTimeTooSkewed", StoreDenied),
        (401, "", StoreDenied),
        (500, "InternalError", StoreTimeout),
        (502, "", StoreTimeout),
        (503, "SlowDown", StoreTimeout),
        (504, "", StoreTimeout),
        (429, "", StoreTimeout),
        (400, "RequestTimeout", StoreTimeout),
        (409, "ConditionalRequestConflict", StoreTimeout),
        (404, "NoSuchKey", ObjectMissing),
        (412, "PreconditionFailed", ObjectExists),
        (400, "InvalidRequest", StoreError),
        (501, "NotImplemented", StoreError),
        (301, "PermanentRedirect", StoreError),
    ],
)
def test_every_answer_has_its_error(
    answers: http.server.ThreadingHTTPServer, status: int, code: str, error: type[StoreError]
):
    """Requests of either client end in the same class, which says whether to try again."""
    answers.answer = (status, code)  # type: ignore[attr-defined]
    store = at(answers.server_port)
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", [b"1"]),
        lambda: store.read("a"),
        lambda: store._client.begin("a", "a", "token"),
        lambda: store._client.send("a", "a", "id", 1, memoryview(b"1")),
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is error
        assert caught.value.retryable is (error is StoreTimeout)
        assert str(status) in caught.value.detail or status == 301  # obstore does not tell more of that


def test_a_server_that_ignores_conditions_is_refused(answers: http.server.ThreadingHTTPServer):
    """check finds a server that would replace objects silently, before a backup relies on it."""
    answers.answer = (200, "")  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="ignores If-None-Match"):
        at(answers.server_port).check()


def test_a_completion_that_fails_after_200_is_an_error(answers: http.server.ThreadingHTTPServer):
    """S3 may say 200 and then put an error into the body."""
    answers.answer = (200, "InternalError")  # type: ignore[attr-defined]
    with pytest.raises(StoreTimeout):
        at(answers.server_port)._client.complete("a", "a", "id", ["tag"])


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_a_server_that_does_not_answer_is_a_timeout(kind: str):
    """No connection, and a connection without an answer, are StoreTimeout for either client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = at(listener.getsockname()[1], silence_s=0.2)
        if kind == "refused":
            listener.close()
        for call in (
            lambda: store.put("a", [b"1"]),
            lambda: store.read("a"),
            lambda: store._client.begin("a", "a", "t"),
        ):
            with pytest.raises(StoreTimeout):
                call()


class _Disordered(S3Store):
    """A server that lists many names and then one that should have come first."""

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        for number in range(SORTED_MAX + 1):
            yield ObjectInfo(f"packs/{number:08}", 1)
        yield ObjectInfo("aaa", 1)


def test_a_listing_out_of_order_is_not_passed_on():
    """More than can be put in order: an error, not a listing that its reader takes for ordered."""
    store = _Disordered("bucket", "", S3Access(access_key="A", secret_key="S"))
    with pytest.raises(StoreError, match="ascending"):
        list(store.list(""))


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://AKID:secret@bucket/prefix",
        "s3://bucket:9000/prefix",
        "s3://Bucket/prefix",
        "s3://bucket/a/../b",
        "s3://bucket/a%2F..%2Fb",
        "s3://bucket/prefix?region=x",
        "s3://bucket/.hidden",
    ],
)
def test_wrong_s3_urls_are_refused(url: str):
    """A ConfigError that does not repeat what may be a key."""
    with pytest.raises(ConfigError) as caught:
        open_store(url, S3Access(access_key="A", secret_key="S"))
    assert "secret" not in str(caught.value)


def test_an_endpoint_without_tls_or_keys_is_refused():
    """Plain HTTP only on demand, and never without keys."""
    with pytest.raises(ConfigError, match="s3_allow_http"):
        open_store("s3://bucket", S3Access(endpoint="http://127.0.0.1:1", access_key="A", secret_key="S"))
    with pytest.raises(ConfigError, match="s3_access_key"):
        open_store("s3://bucket")


def test_foreign_variables_are_not_read(s3_server: S3Server, s3_prefix: str, monkeypatch: pytest.MonkeyPatch):
    """Only the settings decide: what AWS_ variables say at the time of opening changes nothing."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "FOREIGN",
        "AWS_SECRET_ACCESS_KEY": "foreign",
        "AWS_SESSION_TOKEN": "foreign",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_REGION": "mars-1",
    }.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{BUCKET}/{s3_prefix}", s3_server.access())
    store.check()
    assert list(store.list("")) == []


# --- the whole engine -------------------------------------------------------------------------------------------------


def test_the_engine_over_s3_equals_the_engine_over_a_folder(store: S3Store, tmp_path: Path):
    """Backups, an increment, a delete and a prune give the same content and the same counts on both stores."""
    large = random.Random(SEED).randbytes(2 * PART_BYTES + 4321)

    def live(place: Store) -> tuple[object, ...]:
        world = World()
        repository = create(place)
        reports: list[PruneReport] = []
        world.backup(repository, "disk.1", large + bytes(1 << 20))
        world.backup(repository, "tree.1", {**small_files(1), (b"large",): large[: PART_BYTES + 5]})
        world.backup(repository, "disk.2", large[:-100_000] + bytes(100_000), parent="disk.1")
        world.delete(repository, "disk.1")
        reports.append(world.prune(repository))
        world.delete(repository, "tree.1")
        reports.append(world.prune(reopen(place)))
        reports.append(world.prune(reopen(place)))
        assert world.problems(reopen(place)) == []
        found = verify(reopen(place), None, deep=True, monitor=SilentMonitor())
        # Not the bytes: the order in which threads finish segments moves them a little, on either store.
        counts = [(each.packs_deleted, each.packs_rewritten, each.lists_written, each.postponed) for each in reports]
        packs = sum("/packs/" in found.name for found in place.list(""))
        return counts, found.findings, found.roots, found.objects, packs, reports[-1].bytes_freed

    of_s3, of_folder = live(RetryingStore(store)), live(PosixStore(str(tmp_path / "store")))
    assert of_s3 == of_folder
    assert of_s3[1] == ()
