"""One client's connection: what happens before the application sees a request, bounded in bytes and in time.

uvicorn's parser takes heads of any length and waits for them for ever, and answers what is no HTTP in plain text. Here
a head has a size and a deadline, and every refusal carries the gateway's envelope and a request id.
"""

import asyncio
import http
from typing import Any, NamedTuple, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from strongroom.base.ids import new_id

HEAD_BYTES_MAX = 64 << 10  # request line and headers; real tokens have up to 8 KB (contract/identity.md)
_HELD_BYTES_MAX = 4 << 10  # of an answer's first bytes: a head has some hundreds
HEAD_S_MAX = 20.0  # from the first byte, or from the connection; an honest head is one packet


class _Refusal(NamedTuple):
    status: int
    sentence: str


_NO_HTTP = _Refusal(400, "This is no valid HTTP request.")
_CUT_OFF = _Refusal(400, "The request was cut off. Send it again, as long as its Content-Length says.")
_LONG_HEAD = _Refusal(431, f"Address and headers of the request are larger than {HEAD_BYTES_MAX} bytes. Send less.")
_SLOW_HEAD = _Refusal(408, f"The request did not arrive within {HEAD_S_MAX:.0f} seconds. Send it again.")


class _Joined:
    """A transport that sends the head of an answer together with its body: uvicorn writes them apart, and each write is
    a system call here and a wake-up there. What is held goes out with the next write, or at the loop's next turn.

    Everything else is the transport's own.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        held, self._held = self._held, b""
        if held:
            self._transport.writelines((held, data))
        elif len(data) > _HELD_BYTES_MAX:
            self._transport.write(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds. The body's size and time are the application's (app._read_body)."""

    _head_began = False  # the first byte of a request came, the end of its headers did not
    _head_bytes = 0  # parsed of the head under way
    _unparsed_bytes = 0  # received for it, with what the parser still collects
    _refusal = _NO_HTTP
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Joined(transport, self.loop))
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._head_began and self._unparsed_bytes > HEAD_BYTES_MAX:
            self._refuse(_LONG_HEAD)
        elif self._deadline is None and (self._head_began or self._current is None):
            # Idle and yet here: blank lines, or the rest of a body that was refused. Neither may come for ever.
            self._set_deadline()

    def eof_received(self) -> None:
        current = self._current
        if self._head_began or (current is not None and current.more_body):
            self._refuse(_CUT_OFF)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_began, self._head_bytes = True, 0
        self.scope["state"]["abort"] = self.transport.abort  # for an answer whose client does not read (api/events.py)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._head_began, self._unparsed_bytes = False, 0
        self._clear_deadline()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._unparsed_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what its parser refuses; `msg` is its own text."""
        self._refuse(self._refusal)

    @property
    def _current(self) -> RequestResponseCycle | None:
        """The request that waits for its answer, if one does."""
        latest = cast("RequestResponseCycle | None", self.cycle)  # None before the first
        return None if latest is None or latest.response_complete else latest

    def _count(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refusal = _LONG_HEAD
            raise ValueError(_LONG_HEAD.sentence)  # the parser turns it into its own error, uvicorn into a refusal

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S_MAX, self._late)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self._current is not None:
            self._set_deadline()  # an answer is under way; what came behind it waits
        elif self._head_began:
            self._refuse(_SLOW_HEAD)
        else:
            self.transport.close()

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer unless an earlier request's answer is under way, and close."""
        current = self._current
        if current is None or not current.response_started:
            request_id = new_id()
            body = msgspec.json.encode(
                {"error_code": "APIGW.0201", "error_msg": refusal.sentence, "request_id": request_id}
            )
            head = (
                f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[refusal.status] + head.encode("ascii") + body)
            self.logger.warning("refused %s: %s", http.HTTPStatus(refusal.status), request_id)
        self.transport.close()
