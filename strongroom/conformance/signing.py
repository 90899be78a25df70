"""Signs as the SDK of the Go clients does: four headers, and the project's id is added when the signature is made."""

from collections.abc import Generator

import httpx

from strongroom.base.clock import Clock
from strongroom.base.signing import DATE_FORMAT, authorization, sign
from strongroom.conformance.target import Party

SIGNED = ("accept", "content-type", "user-agent", "x-sdk-date")


class GoSigner(httpx.Auth):
    """SDK-HMAC-SHA256 with the party's access key."""

    requires_request_body = True

    def __init__(self, party: Party, clock: Clock) -> None:
        self._party = party
        self._clock = clock

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-Sdk-Date"] = self._clock.now().strftime(DATE_FORMAT)
        signed = {name: request.headers[name].strip() for name in SIGNED}
        signature = sign(self._party.secret_key, request.method, request.url.raw_path, signed, request.content)
        request.headers["Authorization"] = authorization(self._party.access_key, signed, signature)
        request.headers["X-Project-Id"] = self._party.project_id
        yield request
