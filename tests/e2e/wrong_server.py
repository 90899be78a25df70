"""A proxy that makes a right server wrong: it changes the answers of chosen operations, and nothing else.

It passes on the Host header as it came, so that signatures and the token's catalog stay true.
"""

import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from strongroom.conformance.contract import operation_of

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes back to the client. `body` is the decoded JSON, None for none."""

    status: int
    headers: dict[str, str]
    body: Any

    def with_body(self, change: Callable[[Any], object]) -> "Answer":
        """`change` alters a copy of the body in place."""
        body = json.loads(json.dumps(self.body))
        change(body)
        return replace(self, body=body)


Wrong = Callable[[Answer], Answer]


class WrongServer:
    """`wrong`: operationId -> what becomes of its answers. It may be set anew at any time."""

    def __init__(self, endpoint: str) -> None:
        self.wrong: dict[str, Wrong] = {}
        target = urlsplit(endpoint)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, target.hostname or "", target.port or 0))
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()


def _handler(proxy: WrongServer, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            behind = http.client.HTTPConnection(host, port, timeout=60)
            try:
                behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "accept-encoding"):
                        behind.putheader(name, value)
                behind.endheaders(body)
                response = behind.getresponse()
                content = response.read()
                headers = {k: v for k, v in response.getheaders() if k.lower() not in HOP_BY_HOP}
                answer = Answer(status=response.status, headers=headers, body=json.loads(content) if content else None)
            finally:
                behind.close()
            wrong = proxy.wrong.get(operation_of(self.command, self.path.partition("?")[0]) or "")
            self._answer(wrong(answer) if wrong else answer)

        def _answer(self, answer: Answer) -> None:
            content = json.dumps(answer.body).encode() if answer.body is not None else b""
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _pass_on

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the server behind has its own log."""

    return Handler
