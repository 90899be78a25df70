"""Multipart uploads of S3: begin, send parts in any order, complete, abort, list. Signed requests (Signature V4).

obstore makes all other requests. It has none for these: its own multipart begins and completes by itself, overwrites
what is there, cannot be aborted, and does not list what others left behind.

Every body is hashed and the hash is signed, so the server refuses a part that changed on its way.
"""

import hashlib
import hmac
import weakref
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

import httpx

from strongroom.base.clock import Clock
from strongroom.base.errors import StoreError, StoreTimeout
from strongroom.base.units import KIB, MIB
from strongroom.engine.store.access import S3Access
from strongroom.engine.store.s3_errors import code_of, refused

TOKEN_HEADER = "x-amz-meta-strongroom-upload"  # noqa: S105  # tells our upload from another's under the same name
CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 60.0  # servers answer a completion late: they put the parts together first
ANSWER_BYTES_MAX = 8 * MIB  # a page of a listing has 1000 entries of about 1 KiB
PAGES_MAX = 10_000
SEND_BYTES = 256 * KIB  # the client copies what one send did not take: small slices keep that small


class Upload(NamedTuple):
    """An upload that was begun and neither completed nor aborted. `key` is the full key in the bucket."""

    key: str
    id: str
    begun_at: datetime


class Parts(NamedTuple):
    """What an upload holds so far. `written_at` is None when there is no part yet."""

    bytes: int
    written_at: datetime | None


class Answer(NamedTuple):
    headers: httpx.Headers
    body: bytes


class MultipartClient:
    """Requests about uploads in one bucket. Safe for several threads. Nothing here is retried."""

    def __init__(
        self, access: S3Access, endpoint: str, bucket: str, *, connections: int, clock: Clock, silence_s: float
    ) -> None:
        self._access = access
        self._base = f"{endpoint}/{bucket}"
        url = httpx.URL(self._base)
        self._host = url.netloc.decode()
        self._path = url.path
        self._clock = clock
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.Client(timeout=httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S), limits=limits)
        weakref.finalize(self, self._http.close)

    def begin(self, name: str, key: str, token: str) -> str:
        """The id of a new upload whose object will answer `token` to `token_of`."""
        answer = self.request("POST", name, key, {"uploads": ""}, headers={TOKEN_HEADER: token})
        return _text(_parse(answer.body, name), "UploadId", name)

    def send(self, name: str, key: str, upload: str, number: int, data: memoryview) -> str:
        """Send part `number` (from 1) and return its tag. A part that is sent again replaces the first."""
        query = {"partNumber": str(number), "uploadId": upload}
        tag = self.request("PUT", name, key, query, data).headers.get("etag")
        if not tag:
            raise StoreError(name=name, detail="a part was answered without its tag")
        return str(tag)

    def complete(self, name: str, key: str, upload: str, tags: Sequence[str]) -> None:
        """Make the object of parts 1, 2, ... Raises ObjectExists, or ObjectMissing when the upload is no more."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{_escaped(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = self.request("POST", name, key, {"uploadId": upload}, memoryview(body), {"if-none-match": "*"})
        if _name(_parse(answer.body, name)) != "CompleteMultipartUploadResult":  # it may fail after it said 200
            raise refused(name, 500, code_of(answer.body.decode(errors="replace")))

    def abort(self, name: str, key: str, upload: str) -> None:
        """Free the parts. Raises ObjectMissing when there is no such upload."""
        self.request("DELETE", name, key, {"uploadId": upload})

    def token_of(self, name: str, key: str) -> str:
        """The token that the object under `key` was begun with, `` if none. Raises ObjectMissing."""
        return str(self.request("HEAD", name, key, {}).headers.get(TOKEN_HEADER, ""))

    def uploads(self, prefix: str) -> Iterator[Upload]:
        """Every unfinished upload whose key begins with `prefix`, page by page."""
        markers: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            page = _parse(self.request("GET", prefix, "", {"uploads": "", "prefix": prefix, **markers}).body, prefix)
            for child in page:
                if _name(child) == "Upload":
                    begun_at = datetime.fromisoformat(_text(child, "Initiated", prefix))
                    yield Upload(_text(child, "Key", prefix), _text(child, "UploadId", prefix), begun_at)
            if _find(page, "IsTruncated") != "true":
                return
            markers = {
                "key-marker": _text(page, "NextKeyMarker", prefix),
                "upload-id-marker": _text(page, "NextUploadIdMarker", prefix),
            }
        raise StoreError(name=prefix, detail=f"a listing of uploads has more than {PAGES_MAX} pages")

    def parts(self, name: str, key: str, upload: str) -> Parts:
        """Size of all parts and time of the last. Raises ObjectMissing when there is no such upload."""
        total, last, marker = 0, None, "0"
        for _ in range(PAGES_MAX):
            page = _parse(self.request("GET", name, key, {"uploadId": upload, "part-number-marker": marker}).body, name)
            for child in page:
                if _name(child) == "Part":
                    total += int(_text(child, "Size", name))
                    at = datetime.fromisoformat(_text(child, "LastModified", name))
                    last = at if last is None else max(last, at)
            if _find(page, "IsTruncated") != "true":
                return Parts(total, last)
            marker = _text(page, "NextPartNumberMarker", name)
        raise StoreError(name=name, detail=f"an upload has more than {PAGES_MAX} pages of parts")

    def request(
        self,
        method: str,
        name: str,
        key: str,
        query: Mapping[str, str],
        body: memoryview = memoryview(b""),  # noqa: B008  # immutable
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer of a request that succeeded. `name` is only for errors."""
        path = f"{self._path}/{key}" if key else self._path
        text = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(query.items()))
        signed = self._signed(method, path, text, body, headers or {})
        url = httpx.URL(self._base).copy_with(raw_path=f"{path}?{text}".encode() if text else path.encode())
        try:
            with self._http.stream(
                method, url, headers={**signed, "content-length": str(body.nbytes)}, content=_slices(body)
            ) as answer:
                received = _received(answer, name)
        except httpx.TransportError as err:
            raise StoreTimeout(name=name, detail=f"no answer: {type(err).__name__}") from err
        if answer.status_code >= 300:
            raise refused(name, answer.status_code, code_of(received.decode(errors="replace")))
        return Answer(answer.headers, received)

    def _signed(
        self, method: str, path: str, query: str, body: memoryview, headers: Mapping[str, str]
    ) -> dict[str, str]:
        """The headers with the signature. AWS General Reference, "Signature Version 4"; header names in lower case."""
        at = self._clock.now().strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        signed = {**headers, "host": self._host, "x-amz-content-sha256": digest, "x-amz-date": at}
        names = sorted(signed)
        canonical = "\n".join(
            (method, path, query, *(f"{name}:{signed[name]}" for name in names), "", ";".join(names), digest)
        )
        scope = f"{at[:8]}/{self._access.region}/s3/aws4_request"
        text = "\n".join(("AWS4-HMAC-SHA256", at, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        key = f"AWS4{self._access.secret_key or ''}".encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._access.access_key}/{scope}, "
            f"SignedHeaders={';'.join(names)}, Signature={signature}"
        )
        return signed


def _slices(body: memoryview) -> Iterator[bytes]:
    for start in range(0, body.nbytes, SEND_BYTES):
        yield bytes(body[start : start + SEND_BYTES])


def _received(answer: httpx.Response, name: str) -> bytes:
    pieces, size = [], 0
    for piece in answer.iter_bytes():
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise StoreError(name=name, detail=f"an answer is longer than {ANSWER_BYTES_MAX} bytes")
        pieces.append(piece)
    return b"".join(pieces)


# --- XML of answers: small documents, without any declaration of a type -----------------------------------------------


def _parse(body: bytes, name: str) -> ElementTree.Element:
    try:
        if b"<!" in body:  # no entities, so nothing expands
            raise ValueError("a declaration")
        return ElementTree.fromstring(body)  # noqa: S314
    except (ElementTree.ParseError, ValueError) as err:
        raise StoreError(name=name, detail=f"an answer is not the XML it should be: {err}") from err


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _find(element: ElementTree.Element, name: str) -> str:
    return next((child.text or "" for child in element if _name(child) == name), "")


def _text(element: ElementTree.Element, child: str, name: str) -> str:
    found = _find(element, child)
    if not found:
        raise StoreError(name=name, detail=f"an answer has no {child}")
    return found


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
