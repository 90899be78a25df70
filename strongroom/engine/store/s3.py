"""Objects in a bucket of S3, or of a server that speaks its protocol, below a prefix.

The put-if-absent is the server's: `If-None-Match: *`. `check` proves once a process that the server obeys it, for some
do not and would replace silently (RULINGS 8), as Ceph 16 does in a bucket with versions. An object is durable when the
server has answered; that is its promise, not ours. obstore makes the requests, multipart uploads excepted
(s3_multipart). It is told not to try again: only retry.py does, which knows what an "exists" after a lost answer means.

Temporary things are multipart uploads that nobody finished, and the objects of `check`, whose names begin with a dot.
"""

import contextlib
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote

import obstore
from obstore.store import S3Store as Bucket

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import ConfigError, ObjectExists, ObjectMissing, ShortRead, StoreError
from strongroom.engine.store.access import S3Access
from strongroom.engine.store.base import NAME_BYTES_MAX, Buffer, ObjectInfo, is_part, require_name, require_prefix
from strongroom.engine.store.retention import Kept
from strongroom.engine.store.retry import RetryingStore
from strongroom.engine.store.s3_ahead import Range, ReadAhead
from strongroom.engine.store.s3_errors import VENDOR_ERRORS, is_beyond_end, translated
from strongroom.engine.store.s3_multipart import CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S, MultipartClient
from strongroom.engine.store.s3_retention import Retention
from strongroom.engine.store.s3_writer import SENDING_MAX, S3Writer, Uploads

REQUEST_TIMEOUT_S = 600.0  # a whole request, the largest puts of an index on a slow uplink included
FOREIGN_AGE_MIN_S = 24 * 3600.0  # an upload of another process may live as long as its source is slow
SORTED_MAX = 10_000  # objects that are put in order in memory: 2 MB
CHECK_PREFIX = ".check-"
CHECK_AGE_MIN_S = 3600.0  # another process may be in the middle of one

if TYPE_CHECKING:
    from obstore.store import S3Credential

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


AT_ONCE = 16  # small requests of one caller: what the threads of reads and parts are, too


class S3Store:
    """A store in `bucket` below `prefix` (without slashes around it, may be empty). The bucket has to be there.

    `silence_s` is how long a server may send nothing before a request counts as lost.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        access: S3Access,
        *,
        clock: Clock | None = None,
        silence_s: float = SILENCE_TIMEOUT_S,
    ) -> None:
        if not access.access_key or not access.secret_key:
            raise ConfigError(reason="An S3 store needs the settings s3_access_key and s3_secret_key.")
        endpoint = (access.endpoint or f"https://s3.{access.region}.amazonaws.com").rstrip("/")
        if not endpoint.startswith("https://") and not access.allow_http:
            raise ConfigError(reason="The S3 endpoint is without TLS. Use https://, or set s3_allow_http for a lab.")
        self.at_once = AT_ONCE
        self._name = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._clock = clock or SystemClock()
        self._bucket = _connect(bucket, endpoint, access, silence_s)
        self._client = MultipartClient(
            access, endpoint, bucket, connections=SENDING_MAX * 2, clock=self._clock, silence_s=silence_s
        )
        self._uploads = Uploads(self._client)
        self._retention = Retention(self._client)
        self._ahead = ReadAhead(lambda wanted: self._read(*wanted), self._clock)
        self._proved = threading.Event()  # that the server obeys If-None-Match

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self._put(name, self._key(name), data)

    def writer(self, name: str) -> S3Writer:
        return S3Writer(name, self._key(name), self._uploads, RetryingStore(self).put)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is None:
            return self._get_rest(name, self._key(name), offset)
        return bytes(self._read(name, offset, length))

    def read_whole(self, name: str, bytes_max: int) -> tuple[int, bytes]:
        """Implements RemoteStore: one request, whose head tells the size before the body is taken."""
        try:
            found = obstore.get(self._bucket, self._key(name))
            size = found.meta["size"]
            body = bytes(found.bytes()) if size <= bytes_max else b""
        except VENDOR_ERRORS as err:
            raise translated(err, name) from err
        if size <= bytes_max and len(body) != size:
            raise ShortRead(name=name, wanted=size, got=len(body))
        return size, body

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        early = self._ahead.take(Range(name, offset, buffer.nbytes))
        if early is not None and not early.cancelled() and early.exception() is None:
            buffer[:] = early.result()
        else:  # what failed early is asked again, by who can tell what to do then
            buffer[:] = self._read(name, offset, buffer.nbytes)

    def expect(self, name: str, offset: int, length: int) -> None:
        self._ahead.expect(Range(name, offset, length))

    def size(self, name: str) -> int:
        key = self._key(name)
        try:
            return obstore.head(self._bucket, key)["size"]
        except VENDOR_ERRORS as err:
            raise translated(err, name) from err

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        require_prefix(prefix)
        found = self._list(prefix)
        head = [info for info, _ in zip(found, range(SORTED_MAX), strict=False)]
        if head != sorted(head):
            # Some servers go folder by folder, where S3 orders whole names: `a/b` comes before `a-b` there.
            yield from sorted(chain(head, found))
            return
        last = ""
        for info in chain(head, found):
            if info.name <= last:
                raise StoreError(name=info.name, detail="the server does not list names in ascending order")
            yield info
            last = info.name

    def delete(self, name: str) -> None:
        self._delete(name, self._key(name))

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        require_prefix(prefix)
        freed = self._sweep_uploads(prefix, older_than_s)
        if not prefix:
            freed += self._sweep_checks(older_than_s)
        return freed

    def check(self) -> None:
        name = f"{CHECK_PREFIX}{secrets.token_hex(16)}"
        key = self._prefix + name
        self._put("check", key, [b"check"])
        try:
            if not self._proved.is_set():
                self._prove_condition(key)
            if self._get("check", key, 0, 5) != b"check":
                raise StoreError(name="check", detail="other bytes came back than were put")
        except (StoreError, ConfigError):
            with contextlib.suppress(StoreError):  # the first error is the one to tell
                self._delete("check", key)
            raise
        self._delete("check", key)

    def retains(self) -> bool:
        """Implements RetainingStore."""
        return self._retention.enabled()

    def retain(self, name: str, seconds: float) -> Kept:
        return self._retention.keep(name, self._key(name), seconds)

    def keeps_deleted(self) -> bool:
        return self._retention.keeps_deleted()

    # --- requests ---

    def _key(self, name: str) -> str:
        require_name(name)
        return self._prefix + name

    def _put(self, name: str, key: str, data: Sequence[Buffer]) -> None:
        whole = data[0] if len(data) == 1 else b"".join(data)
        try:
            obstore.put(self._bucket, key, whole, mode="create", use_multipart=False)
        except VENDOR_ERRORS as err:
            raise translated(err, name) from err

    def _read(self, name: str, offset: int, length: int) -> Buffer:
        key = self._key(name)
        if offset < 0 or length < 0:
            raise StoreError(name=name, detail="a range begins at 0 or later and is not negative")
        if length == 0:  # HTTP has no empty range; that the object is there still counts
            self.size(name)
            return b""
        return self._get(name, key, offset, length)

    def _get(self, name: str, key: str, offset: int, length: int) -> Buffer:
        try:
            found = obstore.get(self._bucket, key, options={"range": (offset, offset + length)})
            start, end = found.range
            if (start, end) != (offset, offset + length):  # before the body: a wrong length must not cost memory
                raise ShortRead(name=name, wanted=length, got=max(end - offset, 0))
            body = memoryview(found.bytes())
        except VENDOR_ERRORS as err:
            if is_beyond_end(err):
                raise ShortRead(name=name, wanted=length, got=0) from err
            raise translated(err, name) from err
        if body.nbytes != length:
            raise ShortRead(name=name, wanted=length, got=body.nbytes)
        return body

    def _get_rest(self, name: str, key: str, offset: int) -> bytes:
        if offset < 0:
            raise StoreError(name=name, detail="a range begins at 0 or later")
        try:
            found = obstore.get(self._bucket, key, options={"range": {"offset": offset}} if offset else None)
            size = found.meta["size"]
            body = bytes(found.bytes())
        except VENDOR_ERRORS as err:
            if is_beyond_end(err):
                return b""
            raise translated(err, name) from err
        if len(body) != size - offset:
            raise ShortRead(name=name, wanted=size - offset, got=len(body))
        return body

    def _delete(self, name: str, key: str) -> None:
        try:
            obstore.delete(self._bucket, key)
        except FileNotFoundError:
            return
        except VENDOR_ERRORS as err:
            raise translated(err, name) from err

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As the server orders them. What has no legal name is not ours."""
        try:
            for page in obstore.list(self._bucket, self._prefix + prefix):
                for found in page:
                    name = found["path"].removeprefix(self._prefix)
                    if len(name) <= NAME_BYTES_MAX and all(map(is_part, name.split("/"))):
                        yield ObjectInfo(name, found["size"])
        except VENDOR_ERRORS as err:
            raise translated(err, prefix) from err

    # --- temporary things ---

    def _sweep_uploads(self, prefix: str, older_than_s: float) -> int:
        freed = 0
        for upload in list(self._client.uploads(self._prefix + prefix)):
            if self._uploads.is_alive(upload.id):
                continue
            name = upload.key.removeprefix(self._prefix)
            age_min_s = older_than_s if self._uploads.is_ours(upload.id) else max(older_than_s, FOREIGN_AGE_MIN_S)
            try:
                parts = self._client.parts(name, upload.key, upload.id)
                if self._age_s(parts.written_at or upload.begun_at) < age_min_s:
                    continue
                self._client.abort(name, upload.key, upload.id)
            except ObjectMissing:  # completed or aborted meanwhile
                continue
            self._uploads.forget(upload.id)
            freed += parts.bytes
        return freed

    def _sweep_checks(self, older_than_s: float) -> int:
        freed = 0
        try:
            found = obstore.list_with_delimiter(self._bucket, self._prefix or None)["objects"]
        except VENDOR_ERRORS as err:
            raise translated(err, CHECK_PREFIX) from err
        for info in found:
            name = info["path"].removeprefix(self._prefix)
            if name.startswith(CHECK_PREFIX) and self._age_s(info["last_modified"]) >= max(
                older_than_s, CHECK_AGE_MIN_S
            ):
                self._delete(name, info["path"])
                freed += info["size"]
        return freed

    def _age_s(self, at: datetime) -> float:
        return (self._clock.now() - at.astimezone(UTC)).total_seconds()

    def _prove_condition(self, key: str) -> None:
        try:
            self._put("check", key, [b"other"])
        except ObjectExists:
            self._proved.set()
            return
        raise ConfigError(
            reason=f"The S3 server would replace objects in the bucket {self._name}: it ignores If-None-Match there. "
            "Name a bucket without versions (object lock has them), or a server that obeys in those too."
        )


def open_s3(url: SplitResult, access: S3Access) -> S3Store:
    """The store at s3://bucket or s3://bucket/prefix. Raises ConfigError."""
    prefix = unquote(url.path).strip("/")
    legal = not prefix or (len(prefix) <= NAME_BYTES_MAX and all(map(is_part, prefix.split("/"))))
    if not _BUCKET.fullmatch(url.netloc) or not legal or url.query or url.fragment:
        # Not the URL itself: who puts keys into one would find them in a log.
        raise ConfigError(reason="The store is not of the form s3://bucket/prefix, without keys and without a port.")
    return S3Store(url.netloc, prefix, access)


def _connect(bucket: str, endpoint: str, access: S3Access, silence_s: float) -> Bucket:
    """By the values given and nothing else: obstore would also read AWS_* variables, our settings do that."""

    def credential() -> "S3Credential":
        return {
            "access_key_id": access.access_key or "",
            "secret_access_key": access.secret_key or "",
            "token": None,
            "expires_at": None,
        }

    return Bucket(
        bucket,
        endpoint=endpoint,
        region=access.region,
        virtual_hosted_style_request=False,
        disable_bulk_delete=True,  # one object is one DELETE: not every server knows the request for many
        credential_provider=credential,
        client_options={
            "allow_http": access.allow_http,
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=silence_s),
            "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
            "user_agent": "strongroom",
        },
        retry_config={"max_retries": 0},
    )
