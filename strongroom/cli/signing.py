"""Requests signed with an access key: SDK-HMAC-SHA256, as the SDK does it (contract/identity section 3).

A signature needs no request before it and never expires during a long watch, which is why the command line uses it
and not a token. It is written from the contract, apart from the server's verifier, so that one checks the other.
"""

import hashlib
import hmac
from collections.abc import Generator
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import httpx

from strongroom.base.clock import Clock
from strongroom.cli.credentials import Credentials

ALGORITHM = "SDK-HMAC-SHA256"


class RequestSigner(httpx.Auth):
    """Signs each request that is sent, a repeated one anew."""

    requires_request_body = True

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials = credentials
        self._clock = clock

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-Sdk-Date"] = self._clock.now().strftime("%Y%m%dT%H%M%SZ")
        request.headers["X-Project-Id"] = self._credentials.project_id
        signed = {name: request.headers[name].strip() for name in ("host", "x-project-id", "x-sdk-date")}
        signature = sign(self._credentials.secret_key, request.method, request.url, signed, request.content)
        request.headers["Authorization"] = (
            f"{ALGORITHM} Access={self._credentials.access_key}, "
            f"SignedHeaders={';'.join(sorted(signed))}, Signature={signature}"
        )
        yield request


def sign(secret_key: str, method: str, url: httpx.URL, signed: dict[str, str], body: bytes) -> str:
    """Hex signature of one request. `signed`: lower-case header name -> trimmed value, X-Sdk-Date among them."""
    names = sorted(signed)
    canonical = "\n".join(
        [
            method,
            _canonical_path(url),
            _canonical_query(url),
            "".join(f"{name}:{signed[name]}\n" for name in names),
            ";".join(names),
            hashlib.sha256(body).hexdigest(),
        ]
    )
    text = f"{ALGORITHM}\n{signed['x-sdk-date']}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return hmac.new(secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()


def _canonical_path(url: httpx.URL) -> str:
    path = url.raw_path.partition(b"?")[0].decode("ascii")
    encoded = "/".join(quote(unquote_to_bytes(part), safe="-_.~") for part in path.split("/"))
    return encoded if encoded.endswith("/") else encoded + "/"


def _canonical_query(url: httpx.URL) -> str:
    pairs = parse_qsl(url.query.decode("ascii"), keep_blank_values=True, errors="surrogateescape")
    encoded = sorted(
        (quote(name, safe="-_.~", errors="surrogateescape"), quote(value, safe="-_.~", errors="surrogateescape"))
        for name, value in pairs
    )
    return "&".join(f"{name}={value}" for name, value in encoded)
