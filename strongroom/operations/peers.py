"""The way to other regions: signed requests to their servers, and their answers as values or errors.

Every request is signed with the secret that the two regions share and names both of them, so that neither another
region nor a request of ours that comes back to us passes. Answers are trusted as far as TLS is; what is read of a store
is opened with keys that only the two have. No redirect is followed, no proxy is asked, and no answer is read beyond
what was asked for.
"""

import ssl
import threading
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

from strongroom.base.clock import Clock
from strongroom.base.errors import (
    NotFound,
    PeerObjectNotFound,
    RecordNotFound,
    RegionRefused,
    RegionUnreachable,
    StrongroomError,
)
from strongroom.base.regions import REGION_HEADER, Region
from strongroom.base.signing import DATE_FORMAT, authorization, sign
from strongroom.base.units import MIB

PATH = "/ext/v1/peer"
ANSWER_BYTES_MAX = 8 * MIB  # of JSON: a page of a listing has 0.2 MB
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
LIMITS = httpx.Limits(max_connections=32, max_keepalive_connections=32, keepalive_expiry=30.0)
BODY_PIECE = 1 * MIB
SENTENCE_CHARS_MAX = 500  # of what another server says, before it is shown here


UNKNOWN: dict[str, type[NotFound]] = {kind.code: kind for kind in (RecordNotFound, PeerObjectNotFound)}


class Peer:
    """One other region, spoken to from any thread. `own`: the name of this one."""

    def __init__(self, region: Region, own: str, clock: Clock) -> None:
        self.region = region
        self.name = region.name
        self._own = own
        self._clock = clock
        context = ssl.create_default_context(cafile=None if region.ca_file is None else str(region.ca_file))
        self._http = httpx.Client(
            base_url=region.endpoint, verify=context, timeout=TIMEOUT, limits=LIMITS, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, /, **query: Any) -> Any:
        return self._json("GET", path, query, None)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._json("PUT", path, {}, body)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._json("POST", path, {}, body)

    def delete(self, path: str) -> None:
        self._send("DELETE", path, {}, b"", ANSWER_BYTES_MAX)

    def read(self, path: str, bytes_max: int, /, **query: Any) -> tuple[Mapping[str, str], bytes]:
        """(headers, body) of an answer that is no JSON. Raises RegionUnreachable for a longer body."""
        return self._send("GET", path, query, b"", bytes_max)

    def _json(self, method: str, path: str, query: Mapping[str, Any], body: Mapping[str, Any] | None) -> Any:
        data = b"" if body is None else msgspec.json.encode(body)
        _, answer = self._send(method, path, query, data, ANSWER_BYTES_MAX)
        try:
            return msgspec.json.decode(answer)
        except msgspec.DecodeError as err:
            raise RegionUnreachable(region=self.name, reason="its answer is no JSON.") from err

    def _send(
        self, method: str, path: str, query: Mapping[str, Any], body: bytes, bytes_max: int
    ) -> tuple[Mapping[str, str], bytes]:
        params = {name: value for name, value in query.items() if value is not None}
        request = self._http.build_request(method, PATH + path, params=params, content=body or None)
        if body:
            request.headers["Content-Type"] = "application/json"
        self._sign(request, body)
        try:
            response = self._http.send(request, stream=True)
            try:
                data = self._body(response, bytes_max if response.status_code < 300 else ANSWER_BYTES_MAX)
            finally:
                response.close()
        except httpx.TransportError as err:
            raise RegionUnreachable(region=self.name, reason=_reason(err), detail=repr(err)) from err
        if response.status_code >= 300:
            raise self._refusal(response.status_code, data, path)
        return response.headers, data

    def _body(self, response: httpx.Response, bytes_max: int) -> bytes:
        parts, size = [], 0
        for part in response.iter_raw(BODY_PIECE):
            size += len(part)
            if size > bytes_max:
                raise RegionUnreachable(region=self.name, reason="its answer is longer than what was asked for.")
            parts.append(part)
        return b"".join(parts)

    def _sign(self, request: httpx.Request, body: bytes) -> None:
        request.headers["Accept-Encoding"] = "identity"
        request.headers["X-Sdk-Date"] = self._clock.now().strftime(DATE_FORMAT)
        request.headers[REGION_HEADER] = self.name
        names = ("host", "x-sdk-date", REGION_HEADER.lower())
        signed = {name: request.headers[name].strip() for name in names}
        signature = sign(self.region.signing_key, request.method, request.url.raw_path, signed, body)
        request.headers["Authorization"] = authorization(self._own, signed, signature)

    def _refusal(self, status: int, data: bytes, path: str) -> StrongroomError:
        try:
            body = msgspec.json.decode(data)
        except msgspec.DecodeError:
            body = None
        if not isinstance(body, dict) or "error_code" not in body:
            reason = f"it answered {status} without a reason. Is the endpoint right?"
            return RegionUnreachable(region=self.name, reason=reason)
        reason = str(body.get("error_msg", ""))[:SENTENCE_CHARS_MAX]
        if status in (408, 429) or status >= 500:
            return RegionUnreachable(region=self.name, reason=f"it answered {status}: {reason}")
        if status == 404 and str(body["error_code"]) in UNKNOWN:
            return UNKNOWN[str(body["error_code"])](id=path.rpartition("/")[2])
        return RegionRefused(region=self.name, reason=reason, status=status, error_code=str(body["error_code"])[:64])


def _reason(err: httpx.TransportError) -> str:
    text = str(err) or type(err).__name__
    if "certificate" in text.lower() or "SSL" in text:
        return f"its certificate is not trusted ({text}). Name its authority as ca_file in regions.toml."
    if isinstance(err, httpx.TimeoutException):
        return f"it does not answer in time ({type(err).__name__})."
    return f"{text.rstrip('.')}."


class Peers:
    """Every other region of this server, by name; connections are made at the first use."""

    def __init__(self, regions: Mapping[str, Region], own: str, clock: Clock) -> None:
        self.regions = regions
        self.own = own
        self._clock = clock
        self._lock = threading.Lock()
        self._made: dict[str, Peer] = {}

    def to(self, name: str) -> Peer:
        """Raises RegionUnreachable for one that the settings do not name."""
        region = self.regions.get(name)
        if region is None:
            raise RegionUnreachable(region=name, reason="this server's regions.toml does not name it.")
        with self._lock:
            if name not in self._made:
                self._made[name] = Peer(region, self.own, self._clock)
            return self._made[name]

    def close(self) -> None:
        for peer in self._made.values():
            peer.close()
