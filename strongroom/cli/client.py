"""The HTTP side of a command: paths, pages, and answers turned into values or errors.

It knows the public API only. Every answer that is not a success becomes RequestRefused with the server's own sentence.
"""

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from strongroom.base.clock import SystemClock
from strongroom.cli.credentials import Credentials
from strongroom.cli.errors import AnswerStrange, RequestRefused, ServerUnreachable, TransportUntrusted
from strongroom.cli.signing import RequestSigner

Json = dict[str, Any]

PAGE_LIMIT = 1000  # the most a list answers at once (contract/behaviour section 0)
PAGES_MAX = 1000  # a million rows: a server that never answers an empty page must not hold us for ever
TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # registering a large folder is the slowest call


class Client:
    """One caller on one server; use it as a context manager."""

    def __init__(self, credentials: Credentials, *, transport: httpx.BaseTransport | None = None) -> None:
        self.project_id = credentials.project_id
        self.endpoint = credentials.endpoint
        self._http = httpx.Client(
            base_url=credentials.endpoint,
            auth=RequestSigner(credentials, SystemClock()),
            timeout=TIMEOUT,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def v3(self, path: str) -> str:
        """A path of the CBR API, below the caller's project."""
        return f"/v3/{self.project_id}/{path}"

    def ext(self, path: str) -> str:
        """A path of ours, below the caller's project."""
        return f"/ext/v1/{self.project_id}/{path}"

    def get(self, path: str, /, **query: Any) -> Json:
        """The decoded answer. Query values that are None are left out; lists become repeated keys."""
        return self._json(self._send("GET", path, query=query))

    def get_text(self, path: str) -> str:
        """The answer's body as it came, for showing it to somebody."""
        return self._send("GET", path).text

    def post(self, path: str, body: Json) -> Json:
        return self._json(self._send("POST", path, body=body))

    def put(self, path: str, body: Json) -> Json:
        return self._json(self._send("PUT", path, body=body))

    def delete(self, path: str) -> None:
        self._send("DELETE", path)

    def pages(self, path: str, member: str, /, *, limit: int | None = None, **query: Any) -> list[Json]:
        """All rows of a list, or the first `limit`, in the server's order."""
        rows: list[Json] = []
        for _ in range(PAGES_MAX):
            size = PAGE_LIMIT if limit is None else min(PAGE_LIMIT, limit - len(rows))
            page = self.get(path, **query, limit=size, offset=len(rows))[member]
            rows.extend(page)
            if len(page) < size or len(rows) == limit:
                break
        return rows

    @contextlib.contextmanager
    def stream(self, path: str, /, **query: Any) -> Iterator[httpx.Response]:
        """An answer whose body is read piece by piece."""
        with self._reaching(), self._http.stream("GET", path, params=_present(query)) as response:
            if response.status_code >= 400:
                response.read()
                raise self._refusal(response)
            yield response

    def _send(self, method: str, path: str, *, query: Json | None = None, body: Json | None = None) -> httpx.Response:
        with self._reaching():
            response = self._http.request(method, path, params=_present(query or {}), json=body)
        if response.status_code >= 400:
            raise self._refusal(response)
        return response

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as err:
            if "SSL" in str(err) or "certificate" in str(err):
                raise TransportUntrusted(endpoint=self.endpoint, reason=str(err)) from err
            raise ServerUnreachable(endpoint=self.endpoint, detail=str(err)) from err
        except httpx.TransportError as err:
            reason = str(err).rstrip(".") or type(err).__name__
            raise AnswerStrange(endpoint=self.endpoint, reason=reason) from err

    def _json(self, response: httpx.Response) -> Json:
        if not response.content:
            return {}
        try:
            value = response.json()
        except ValueError as err:
            raise AnswerStrange(endpoint=self.endpoint, reason="not JSON") from err
        if not isinstance(value, dict):
            raise AnswerStrange(endpoint=self.endpoint, reason="not a JSON object")
        return value

    def _refusal(self, response: httpx.Response) -> RequestRefused | AnswerStrange:
        """The CBR envelope `error_code, error_msg`, or Keystone's `error{code, message}`."""
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return AnswerStrange(endpoint=self.endpoint, reason=f"status {response.status_code} without a reason")
        keystone = body.get("error")
        inner = keystone if isinstance(keystone, dict) else {}
        return RequestRefused(
            reason=str(body.get("error_msg") or inner.get("message") or f"The server answered {response.status_code}."),
            status=response.status_code,
            error_code=str(body.get("error_code") or inner.get("code") or response.status_code),
            request_id=response.headers.get("X-Request-Id", ""),
        )


def _present(query: Json) -> Json:
    return {name: _spelled(value) for name, value in query.items() if value is not None}


def _spelled(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
