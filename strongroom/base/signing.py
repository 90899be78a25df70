"""Signs requests with SDK-HMAC-SHA256, as the SDK does it (contract/identity section 3).

It is written from the contract, apart from the server's verifier, so that one checks the other.
"""

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, unquote_to_bytes

ALGORITHM = "SDK-HMAC-SHA256"
DATE_FORMAT = "%Y%m%dT%H%M%SZ"


def sign(secret_key: str, method: str, target: bytes, signed: Mapping[str, str], body: bytes) -> str:
    """Hex signature of one request.

    target   raw path and query as they are sent
    signed   lower-case header name -> trimmed value, X-Sdk-Date among them
    """
    path, _, query = target.partition(b"?")
    names = sorted(signed)
    canonical = "\n".join(
        [
            method,
            _canonical_path(path),
            _canonical_query(query),
            "".join(f"{name}:{signed[name]}\n" for name in names),
            ";".join(names),
            hashlib.sha256(body).hexdigest(),
        ]
    )
    text = f"{ALGORITHM}\n{signed['x-sdk-date']}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return hmac.new(secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()


def authorization(access_key: str, signed: Mapping[str, str], signature: str) -> str:
    """The header that carries it."""
    return f"{ALGORITHM} Access={access_key}, SignedHeaders={';'.join(sorted(signed))}, Signature={signature}"


def _canonical_path(path: bytes) -> str:
    encoded = "/".join(quote(unquote_to_bytes(part), safe="-_.~") for part in path.split(b"/"))
    return encoded if encoded.endswith("/") else encoded + "/"


def _canonical_query(query: bytes) -> str:
    pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="surrogateescape")
    encoded = sorted(
        (quote(name, safe="-_.~", errors="surrogateescape"), quote(value, safe="-_.~", errors="surrogateescape"))
        for name, value in pairs
    )
    return "&".join(f"{name}={value}" for name, value in encoded)
