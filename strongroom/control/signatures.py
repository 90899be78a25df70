"""Verifies requests signed with SDK-HMAC-SHA256 (contract/identity.md section 3). Pure: bytes in, nothing looked up.

Two forms are in use, told apart by their Authorization header:

    SDK-HMAC-SHA256 Access=AK, SignedHeaders=a;b, Signature=HEX                              plain: key = secret key
    SDK-HMAC-SHA256 Credential=AK/DAY/REGION/SERVICE/sdk_request, SignedHeaders=a;b, ...     derived: key = HMAC chain

Everything is rebuilt from the bytes that came in, so what is verified is what will be parsed. The body is always hashed
here: a hash that the client states is compared, never believed. Replays are the caller's business (RULINGS 20).
"""

import functools
import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, quote_plus, unquote_to_bytes

from strongroom.base.errors import Unauthenticated

ALGORITHM = "SDK-HMAC-SHA256"
WINDOW = timedelta(minutes=15)  # how far the clocks of client and server may be apart

_AUTHORIZATION_CHARS_MAX = 4096
_SIGNED_HEADERS_MAX = 64
_ACCESS_KEY = r"[A-Za-z0-9_-]{1,64}"
_HEAD = re.compile(
    rf"SDK-HMAC-SHA256 (?:Access=(?P<plain>{_ACCESS_KEY})"
    rf"|Credential=(?P<derived>{_ACCESS_KEY})/(?P<scope>\d{{8}}/[A-Za-z0-9._-]{{0,64}}/[A-Za-z0-9._-]{{0,64}}/sdk_request))"
    r", ?SignedHeaders=(?P<headers>[A-Za-z0-9._;-]+), ?"
)
_HEX = re.compile(r"[0-9a-f]{64}")
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9._~/-]*")  # what encoding leaves as it is, and nothing to decode
_DATE = re.compile(r"\d{8}T\d{6}Z")
_EMPTY_HASH = hashlib.sha256(b"").hexdigest().encode()
_UNSIGNED_PAYLOAD = b"UNSIGNED-PAYLOAD"


@dataclass(frozen=True, kw_only=True)
class SignedRequest:
    """A request as it came over the wire.

    target   raw path, percent signs as sent, without the query
    query    raw query, without the question mark
    headers  (lower-case name, value) in their order
    """

    method: str
    target: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What the Authorization header says.

    scope  "DAY/REGION/SERVICE/sdk_request" of the derived form, None for the plain form
    """

    access_key: str
    signed_headers: tuple[str, ...]
    signature: bytes
    scope: str | None


def parse_signature(authorization: str) -> Signature:
    """Read the header. Raises Unauthenticated for anything else than the two forms."""
    head, found, text = authorization.rpartition("Signature=")
    if len(authorization) > _AUTHORIZATION_CHARS_MAX or not found or not _HEX.fullmatch(text):
        raise _malformed()
    access_key, signed_headers, scope = _parsed_head(head)
    return Signature(access_key=access_key, signed_headers=signed_headers, signature=bytes.fromhex(text), scope=scope)


@functools.lru_cache(maxsize=1024)  # a client signs the same headers with the same key, request after request
def _parsed_head(head: str) -> tuple[str, tuple[str, ...], str | None]:
    """(access key, signed headers, scope) of an Authorization header up to its signature. Raises Unauthenticated."""
    found = _HEAD.fullmatch(head)
    if found is None:
        raise _malformed()
    names = tuple(name.lower() for name in found["headers"].split(";"))
    if len(names) > _SIGNED_HEADERS_MAX or len(set(names)) != len(names) or "x-sdk-date" not in names:
        raise Unauthenticated(reason="verify aksk signature fail, SignedHeaders must name X-Sdk-Date, each header once")
    return found["plain"] or found["derived"], names, found["scope"]


def _malformed() -> Unauthenticated:
    return Unauthenticated(
        reason="verify aksk signature fail, the Authorization header is not a well-formed SDK-HMAC-SHA256 signature"
    )


def verify_signature(request: SignedRequest, signature: Signature, secret_key: str, now: datetime) -> datetime:
    """Return the time the client signed at, aware UTC. Raises Unauthenticated if anything does not hold.

    All mismatches read alike; only the clock is named, because its owner can mend it.
    """
    headers = _signed_values(request, signature)
    date_text = headers["x-sdk-date"].decode("latin-1")
    signed_at = _signed_at(date_text)
    if abs(now - signed_at) > WINDOW:
        raise Unauthenticated(
            reason=f"verify aksk signature fail, X-Sdk-Date is {date_text} and this server's clock "
            f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}. Set the clock of your machine."
        )
    key = secret_key.encode()
    lines = [ALGORITHM, date_text]
    if signature.scope is not None:
        if signature.scope[:8] != date_text[:8]:
            raise _mismatch()
        key = _derived_key(key, signature.scope)
        lines.append(signature.scope)
    matches = False
    for canonical in _canonical_requests(request, signature, headers):
        text = "\n".join([*lines, hashlib.sha256(canonical).hexdigest()]).encode()
        matches |= hmac.compare_digest(hmac.digest(key, text, "sha256"), signature.signature)
    if not matches:
        raise _mismatch()
    return signed_at


def _mismatch() -> Unauthenticated:
    return Unauthenticated(reason="verify aksk signature fail")


def _signed_values(request: SignedRequest, signature: Signature) -> dict[str, bytes]:
    """Values of the signed headers, each of which came exactly once."""
    values: dict[str, bytes] = {}
    wanted = {name.encode(): name for name in signature.signed_headers}
    for raw_name, value in request.headers:
        name = wanted.get(raw_name)
        if name is None:
            continue
        if name in values:
            raise Unauthenticated(reason=f"verify aksk signature fail, the signed header {name} came twice")
        values[name] = value.strip(b" \t")
    missing = [name for name in signature.signed_headers if name not in values]
    if missing:
        raise Unauthenticated(reason=f"verify aksk signature fail, the signed header {missing[0]} did not come")
    return values


@functools.lru_cache(maxsize=256)  # many requests are signed in the same second
def _signed_at(text: str) -> datetime:
    try:
        if _DATE.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass  # the 31st of February
    raise Unauthenticated(reason="verify aksk signature fail, X-Sdk-Date is not like 20260131T235959Z")


def _derived_key(secret_key: bytes, scope: str) -> bytes:
    key = b"SDK" + secret_key
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


# --- the canonical request ------------------------------------------------------------------------------------------


def _canonical_requests(request: SignedRequest, signature: Signature, headers: dict[str, bytes]) -> Iterator[bytes]:
    """The canonical request, in one or two readings of a query that repeats a key (see _canonical_queries)."""
    derived = signature.scope is not None
    body_hash = _body_hash(request, derived=derived)
    block = b"".join(
        name.encode() + b":" + _folded(headers[name], derived) + b"\n" for name in signature.signed_headers
    )
    for query in _canonical_queries(request, derived=derived):
        yield b"\n".join(
            [
                request.method.upper().encode(),
                _canonical_path(request.target),
                query,
                block,
                ";".join(signature.signed_headers).encode(),
                body_hash,
            ]
        )


def _folded(value: bytes, derived: bool) -> bytes:
    """The derived form writes any run of white space as one space."""
    return re.sub(rb"\s+", b" ", value) if derived else value


def _canonical_path(target: bytes) -> bytes:
    """Every byte decoded once, then encoded but for unreserved characters and slashes; always ends in a slash."""
    path = target if _PLAIN_PATH.fullmatch(target) else quote(unquote_to_bytes(target), safe="/~").encode()
    return path if path.endswith(b"/") else path + b"/"


def _pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    pairs = []
    for part in query.split(b"&"):
        if part:
            key, _, value = part.replace(b"+", b" ").partition(b"=")
            pairs.append((unquote_to_bytes(key), unquote_to_bytes(value)))
    return pairs


def _joined(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    return "&".join(f"{quote(key, safe='~')}={quote(value, safe='~')}" for key, value in pairs).encode()


def _canonical_queries(request: SignedRequest, *, derived: bool) -> list[bytes]:
    """Sorted by key. A repeated key has two readings in the plain form: by value, or as sent.

    The SDK sorts the values of a list before it makes texts of them (9 before 10) and sends them in that order; others
    sort the texts and send what they had. Both are covered by the signature. The derived form signs the first value of
    a key only: there a repeated key is refused, because the rest would be anybody's.
    """
    if not request.query:
        return [b""]
    pairs = _pairs(request.query)
    if derived:
        if len({key for key, _ in pairs}) != len(pairs):
            raise Unauthenticated(
                reason="verify aksk signature fail, this form of signature covers no query that repeats a key"
            )
        if _query_is_payload(request):
            return [b""]
        return [_joined(sorted(pairs, key=lambda pair: quote(pair[0], safe="~").lower()))]
    by_value, as_sent = sorted(pairs), sorted(pairs, key=lambda pair: pair[0])
    return [_joined(by_value)] if by_value == as_sent else [_joined(by_value), _joined(as_sent)]


def _query_is_payload(request: SignedRequest) -> bool:
    """The derived form hashes the query in place of the body of a POST that has none."""
    return request.method.upper() == "POST" and not request.body


def _body_hash(request: SignedRequest, *, derived: bool) -> bytes:
    """Hex SHA-256 of the body as it came; a header that states another one is refused."""
    if derived and _query_is_payload(request):
        form = "&".join(
            f"{quote_plus(key, safe='~')}={quote_plus(value, safe='~')}" for key, value in sorted(_pairs(request.query))
        )
        return hashlib.sha256(form.encode()).hexdigest().encode()
    if not request.body:
        return _EMPTY_HASH
    actual = hashlib.sha256(request.body).hexdigest().encode()
    stated = [value.strip(b" \t") for name, value in request.headers if name.lower() == b"x-sdk-content-sha256"]
    if stated:
        if stated[0] == _UNSIGNED_PAYLOAD:
            raise Unauthenticated(
                reason="verify aksk signature fail, the body must be signed too (Content-Type application/json)"
            )
        if stated != [actual]:
            raise _mismatch()
    return actual
