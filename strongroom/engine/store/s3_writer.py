"""Large objects for S3: what is written in any order by several threads becomes parts of one upload.

    write_at, any order  ->  parts of PART_BYTES, each in its own buffer
    a part is full       ->  it is sent at once by a thread of the store; SENDING_MAX parts are on their way at most,
                             then the writer waits: that is the back-pressure
    commit               ->  the rest is sent, then the upload is completed on condition that the name is free

An object of one part is a plain put if absent: no upload, no leftovers. Memory: the parts on their way, and of every
open writer those that are begun, at most what was written to it.

A completion whose answer was lost is made again and meets itself. The upload carries a random token that the finished
object shows: with our token under the name it is our own success (RULINGS 8), without reading it back.
"""

import contextlib
import secrets
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn

from strongroom.base.errors import ObjectExists, ObjectMissing, StoreError
from strongroom.base.units import MIB
from strongroom.engine.store.base import Buffer
from strongroom.engine.store.retry import attempts
from strongroom.engine.store.s3_multipart import MultipartClient

PART_BYTES = 8 * MIB  # S3 wants 5 MiB at least; a slow uplink of 1 MB/s sends one in 8 s
PARTS_MAX = 10_000  # of S3: an object has 80 GB at most
SENDING_MAX = 16  # 128 MiB: at 100 ms a request, with what a part takes itself, they carry about 200 MB/s


class Uploads:
    """What all writers of one store share: the threads that send, and the ids of uploads that are not finished."""

    def __init__(self, client: MultipartClient) -> None:
        self.client = client
        self._threads = ThreadPoolExecutor(SENDING_MAX, thread_name_prefix="s3-send")
        self._slots = threading.BoundedSemaphore(SENDING_MAX)
        self._lock = threading.Lock()
        self._writers: weakref.WeakValueDictionary[str, S3Writer] = weakref.WeakValueDictionary()
        self._begun: set[str] = set()

    def send(self, task: Callable[[], str]) -> Future[str]:
        """Run on a thread of ours; blocks while SENDING_MAX parts are on their way."""
        self._slots.acquire()
        try:
            future = self._threads.submit(task)
        except RuntimeError:  # the interpreter ends
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())
        return future

    def add(self, upload: str, writer: "S3Writer") -> None:
        with self._lock:
            self._begun.add(upload)
            self._writers[upload] = writer

    def forget(self, upload: str) -> None:
        """It is completed or aborted."""
        with self._lock:
            self._begun.discard(upload)
            self._writers.pop(upload, None)

    def is_alive(self, upload: str) -> bool:
        """Somebody in this process may still write to it."""
        with self._lock:
            writer = self._writers.get(upload)
        return writer is not None and not writer.is_closed

    def is_ours(self, upload: str) -> bool:
        """It was begun in this process."""
        with self._lock:
            return upload in self._begun


class _Part:
    """A part that is not full yet."""

    __slots__ = ("buffer", "filled")

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(PART_BYTES))
        self.filled = 0


class S3Writer:
    """One object of any size. `put` stores small ones: (name, pieces), put if absent, with retries."""

    def __init__(self, name: str, key: str, uploads: Uploads, put: Callable[[str, list[Buffer]], None]) -> None:
        self._name = name
        self._key = key
        self._uploads = uploads
        self._put = put
        self._token = secrets.token_hex(16)
        self._lock = threading.Lock()  # guards all below
        self._parts: dict[int, _Part] = {}  # by number from 0, not full
        self._full: set[int] = set()  # numbers of parts that were handed over to be sent
        self._sent: dict[int, Future[str]] = {}
        self._written = 0
        self._end = 0
        self._failure: StoreError | None = None  # the first one; every later step fails as it did
        self._closed = False
        self._beginning = threading.Lock()  # guards the one below
        self._upload: str | None = None

    @property
    def is_closed(self) -> bool:
        return self._closed

    def write_at(self, offset: int, data: Buffer) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            number, start = divmod(offset, PART_BYTES)
            piece = rest[: PART_BYTES - start]
            part = self._part(number)
            part.buffer[start : start + piece.nbytes] = piece
            with self._lock:
                part.filled += piece.nbytes
                self._written += piece.nbytes
                self._end = max(self._end, offset + piece.nbytes)
                full = part.filled >= PART_BYTES and self._parts.pop(number, None) is part
                if full:
                    self._full.add(number)
            if full:
                self._send(number, part.buffer)
            offset += piece.nbytes
            rest = rest[piece.nbytes :]

    def commit(self) -> None:
        with self._lock:
            self._require_open()
            rest, self._parts = self._parts, {}
            self._require_whole(rest)
        try:
            if self._end <= PART_BYTES and not self._full:
                self._put(self._name, [part.buffer[: self._end] for part in rest.values()])
            else:
                for number, part in rest.items():
                    self._send(number, part.buffer[: part.filled])
                self._complete([self._sent[number].result() for number in sorted(self._sent)])
        except StoreError as err:
            self._failure = err
            raise
        self._closed = True

    def discard(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._parts.clear()
            sent = list(self._sent.values())
        for future in sent:  # a part that comes after the abort would be kept by some servers
            future.cancel()
        for future in sent:
            if not future.cancelled():
                future.exception()
        if self._upload is not None:
            with contextlib.suppress(StoreError):  # what cannot be aborted now is aborted by the next sweep
                self._abort(self._upload)

    def _part(self, number: int) -> _Part:
        with self._lock:
            self._require_open()
            if number in self._full or number >= PARTS_MAX:
                self._fail(f"part {number} of the object is full, or beyond the last")
            for future in self._sent.values():
                if future.done():
                    try:
                        future.result()
                    except StoreError as err:
                        self._failure = err
                        raise
            return self._parts.setdefault(number, _Part())

    def _require_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StoreError(name=self._name, detail="the writer is closed")

    def _fail(self, detail: str) -> NoReturn:
        self._failure = StoreError(name=self._name, detail=detail)
        raise self._failure

    def _require_whole(self, rest: dict[int, _Part]) -> None:
        """Every part is full but the last, which ends at the end. Called with the lock."""
        count = -(-self._end // PART_BYTES)
        filled = {**dict.fromkeys(self._full, PART_BYTES), **{number: part.filled for number, part in rest.items()}}
        whole = {number: min(self._end - number * PART_BYTES, PART_BYTES) for number in range(count)}
        if filled != whole:
            self._fail(f"{self._written} bytes written up to {self._end}")

    def _send(self, number: int, data: memoryview) -> None:
        client = self._uploads.client

        def task() -> str:
            upload = self._begun()
            return attempts(lambda: client.send(self._name, self._key, upload, number + 1, data))

        future = self._uploads.send(task)
        with self._lock:
            self._sent[number] = future

    def _begun(self) -> str:
        """The id of the upload, which the first part that is sent begins."""
        with self._beginning:
            if self._upload is None:
                # An upload begun twice because an answer was lost leaves an empty one, which a sweep finds.
                self._upload = attempts(lambda: self._uploads.client.begin(self._name, self._key, self._token))
                self._uploads.add(self._upload, self)
            return self._upload

    def _complete(self, tags: list[str]) -> None:
        upload = self._begun()
        client = self._uploads.client
        try:
            attempts(lambda: client.complete(self._name, self._key, upload, tags))
        except (ObjectExists, ObjectMissing) as err:  # the name is taken, or the upload is no more: by our first try?
            try:
                token = attempts(lambda: client.token_of(self._name, self._key))
            except ObjectMissing:
                token = ""
            if token != self._token:
                if isinstance(err, ObjectMissing):
                    raise StoreError(name=self._name, detail=f"the upload is gone: {err.detail}") from err
                raise
        self._uploads.forget(upload)

    def _abort(self, upload: str) -> None:
        with contextlib.suppress(ObjectMissing):
            attempts(lambda: self._uploads.client.abort(self._name, self._key, upload))
        self._uploads.forget(upload)
