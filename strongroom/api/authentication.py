"""From the headers of a request to its caller: a token, else an AK/SK signature over the whole request.

When both arrive the token counts: the SDK with a preset token header also sends a signature made with dummy keys
(contract/identity.md section 2).
"""

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import replace

from starlette.requests import Request

from strongroom.base.clock import Clock
from strongroom.base.errors import Unauthenticated
from strongroom.base.ids import is_hex_id
from strongroom.base.regions import REGION_HEADER, Region
from strongroom.control.access import ANONYMOUS, Caller
from strongroom.control.callers import Callers
from strongroom.control.signatures import SignedRequest, parse_signature, verify_signature

TOKEN_HEADER = "X-Auth-Token"  # noqa: S105 -- the name of a header
SECURITY_TOKEN_HEADER = "X-Security-Token"  # noqa: S105
_IPV6_PREFIX = 64  # what one customer of a network has at least
_NOBODYS_KEY = secrets.token_hex(32)  # a name that is not known takes as long as one that is
_TOKEN = TOKEN_HEADER.lower().encode()
_SECURITY_TOKEN = SECURITY_TOKEN_HEADER.lower().encode()


class Authenticator:
    """Callable: (request, whole body, request id) -> Caller. Raises Unauthenticated."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    async def __call__(self, request: Request, body: bytes, request_id: str) -> Caller:
        scope = request.scope
        # The first of a name counts. ASGI gives names in lower case, values as latin-1.
        headers = dict(reversed(scope["headers"]))
        token = headers.get(_TOKEN)
        if token is not None:
            return await self._callers.caller_of_token(token.decode("latin-1"))
        authorization = headers.get(b"authorization")
        if authorization is None:
            raise Unauthenticated(reason="x-auth-token not found")
        security_token = headers.get(_SECURITY_TOKEN)
        signed = SignedRequest(
            method=scope["method"],
            target=scope["raw_path"],
            query=scope["query_string"],
            headers=scope["headers"],
            body=body,
        )
        return await self._callers.caller_of_signature(
            authorization.decode("latin-1"),
            signed,
            _project(request),
            security_token.decode("latin-1") if security_token is not None else None,
        )


def source_of(request: Request) -> str:
    """The address that logins are counted by: of the client, or of its network where one has many (IPv6).

    Behind a trusted proxy it is what that says (X-Forwarded-For), as uvicorn reads it.
    """
    host = request.client.host if request.client is not None else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:64]
    if address.version == 6:
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return host


def _project(request: Request) -> str:
    """The project a signed request is about: that of its path, else the X-Project-Id header; "" for none."""
    path: str = request.scope["path"]
    parts = path.strip("/").split("/")
    place = 2 if parts[:2] == ["ext", "v1"] else 1
    if len(parts) > place and is_hex_id(parts[place]):
        return parts[place]
    header = request.headers.get("X-Project-Id", "")
    return header if is_hex_id(header) else ""


class RegionAuthenticator:
    """Callable: (request, whole body, request id) -> Caller of another region's server. Raises Unauthenticated.

    The signature covers whom the request is for, so what was meant for another region is refused here. A request that
    comes twice is no trouble: every operation of a region may be repeated.
    """

    def __init__(self, regions: Mapping[str, Region], *, own: str, clock: Clock) -> None:
        self._regions = regions
        self._own = own
        self._clock = clock

    async def __call__(self, request: Request, body: bytes, request_id: str) -> Caller:
        authorization = request.headers.get("Authorization")
        if authorization is None:
            raise Unauthenticated(reason="the request is not signed by a region")
        signature = parse_signature(authorization)
        region = self._regions.get(signature.access_key)
        signed = SignedRequest(
            method=request.method,
            target=request.scope["raw_path"],
            query=request.scope["query_string"],
            headers=request.scope["headers"],
            body=body,
        )
        key = region.signing_key if region is not None else _NOBODYS_KEY
        verify_signature(signed, signature, key, self._clock.now())
        if region is None:
            raise Unauthenticated(reason="verify aksk signature fail")
        meant_for = request.headers.get(REGION_HEADER, "")
        if meant_for != self._own or REGION_HEADER.lower() not in signature.signed_headers:
            raise Unauthenticated(reason=f"the request is for region {meant_for[:64]}, and this is {self._own}")
        return replace(ANONYMOUS, region=region.name)
