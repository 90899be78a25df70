"""Requests signed with an access key.

A signature needs no request before it and never expires during a long watch, which is why the command line uses it
and not a token.
"""

from collections.abc import Generator

import httpx

from strongroom.base.clock import Clock
from strongroom.base.signing import DATE_FORMAT, authorization, sign
from strongroom.cli.credentials import Credentials


class RequestSigner(httpx.Auth):
    """Signs each request that is sent, a repeated one anew."""

    requires_request_body = True

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials = credentials
        self._clock = clock

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-Sdk-Date"] = self._clock.now().strftime(DATE_FORMAT)
        request.headers["X-Project-Id"] = self._credentials.project_id
        signed = {name: request.headers[name].strip() for name in ("host", "x-project-id", "x-sdk-date")}
        signature = sign(self._credentials.secret_key, request.method, request.url.raw_path, signed, request.content)
        request.headers["Authorization"] = authorization(self._credentials.access_key, signed, signature)
        yield request
