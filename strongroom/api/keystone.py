"""`identity = keystone`: tokens are those of another Keystone, asked by the protocol of OpenStack's own services.

    GET KEYSTONE/auth/tokens   X-Auth-Token: ours, of a service user   X-Subject-Token: the client's
    200 the token's body       404 no valid token                      401 ours has ended: a new one, once

An answer is used for `cache_s` seconds, counted from before Keystone was asked: so long, at most, does a revoked token,
a lost role or a disabled user count. When Keystone does not answer, or answers strangely, the request is refused with
503: a token is never taken on trust. Access keys stay ours: they are what the operator of this installation has.
"""

import asyncio
import hashlib
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import msgspec
from starlette.requests import Request

from strongroom.api.authentication import TOKEN_HEADER
from strongroom.api.services import Authenticate
from strongroom.base.clock import Clock
from strongroom.base.errors import Unauthenticated, Unavailable
from strongroom.base.ids import is_hex_id
from strongroom.control.access import ROLE_OPERATOR, Caller
from strongroom.control.db import Database
from strongroom.control.foreign_projects import adopt_project
from strongroom.control.keystone_access import KeystoneAccess
from strongroom.control.tokens import TOKEN_CHARS_MAX

ANSWER_BYTES_MAX = 1 << 20  # without a catalog a token's body has a few KB
ASK_S_MAX = 5.0  # a Keystone that takes longer is down for our callers
CONNECTIONS_MAX = 16
REMEMBERED_MAX = 10_000  # of either kind: invented tokens push no real one out
REFUSED_KEPT_S = 5.0  # an invalid token that is sent again and again is not asked for each time
_RENEW_S = 60.0  # our own token is renewed so long before it ends
_SYSTEM_ROLE = "admin"  # on the whole system: who may do what only our operators may
_ID_CHARS_MAX = 64

_DOWN = "The identity service does not answer. Try again in a moment; if it stays so, tell the operator."


class _Named(msgspec.Struct, kw_only=True):
    id: str
    name: str = ""


class _User(msgspec.Struct, kw_only=True):
    id: str
    name: str
    domain: _Named


class _System(msgspec.Struct, kw_only=True):
    all: bool = False


class _Token(msgspec.Struct, kw_only=True):
    expires_at: datetime
    user: _User
    project: _User | None = None  # has the members of one
    roles: list[_Named] = []
    system: _System | None = None


class _Answer(msgspec.Struct, kw_only=True):
    token: _Token


@dataclass(frozen=True, kw_only=True)
class _Known:
    """caller None: Keystone does not know the token."""

    asked_at_s: float
    caller: Caller | None
    expires_at: datetime


class KeystoneAuthenticator:
    """Callable: (request, whole body, request id) -> Caller. Raises Unauthenticated, or Unavailable (503)."""

    def __init__(
        self,
        access: KeystoneAccess,
        *,
        own: Authenticate,
        database: Database,
        clock: Clock,
        ask_s_max: float = ASK_S_MAX,
    ) -> None:
        self._access = access
        self._ask_s_max = ask_s_max
        self._own = own
        self._database = database
        self._clock = clock
        trusted = ssl.create_default_context(cafile=access.ca)
        self._http = httpx.AsyncClient(
            verify=trusted,
            timeout=ask_s_max,
            trust_env=False,
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
        )
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._refused: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Known]] = {}
        self._own_token: tuple[str, datetime] | None = None
        self._logging_in = asyncio.Lock()
        self._refused_at_s: float | None = None

    async def close(self) -> None:
        await self._http.aclose()

    async def __call__(self, request: Request, body: bytes, request_id: str) -> Caller:
        text = request.headers.get(TOKEN_HEADER)
        if text is None:
            return await self._own(request, body, request_id)
        if not text or len(text) > TOKEN_CHARS_MAX or not (text.isascii() and text.isprintable()):
            raise Unauthenticated(reason="decrypt token fail")
        known = await self._find(text)
        if known.caller is None:
            raise Unauthenticated(reason="the identity service does not know this token, or it was revoked")
        if self._clock.now() >= known.expires_at:
            raise Unauthenticated(reason="token expires")
        return known.caller

    async def _find(self, text: str) -> _Known:
        """What is known, or asked now; many requests with one token ask once."""
        digest = hashlib.sha256(text.encode()).digest()
        known = self._known.get(digest) or self._refused.get(digest)
        if known is not None:
            kept_s = self._access.cache_s if known.caller is not None else min(self._access.cache_s, REFUSED_KEPT_S)
            if self._clock.monotonic_s() - known.asked_at_s < kept_s:
                return known
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.create_task(self._ask(text))
            asking.add_done_callback(lambda task: self._keep(digest, task))
        return await asyncio.shield(asking)  # a client that leaves takes the answer from nobody else

    def _keep(self, digest: bytes, task: asyncio.Task[_Known]) -> None:
        del self._asking[digest]
        if task.cancelled() or task.exception() is not None:
            return
        for memory in (self._known, self._refused):
            memory.pop(digest, None)
        memory = self._known if task.result().caller is not None else self._refused
        memory[digest] = task.result()
        if len(memory) > REMEMBERED_MAX:
            memory.popitem(last=False)

    async def _ask(self, text: str) -> _Known:
        asked_at_s = self._clock.monotonic_s()
        for last in (False, True):
            headers = {TOKEN_HEADER: await self._service_token(), "X-Subject-Token": text}
            status, body, _ = await self._send("GET", "/auth/tokens?nocatalog=1", headers)
            if status == 404:
                return _Known(asked_at_s=asked_at_s, caller=None, expires_at=datetime.max.replace(tzinfo=UTC))
            if status == 401 and not last:
                self._own_token = None  # it ended before its time: Keystone was set up anew, or revoked it
                continue
            if status == 200:
                token = _decoded(body)
                return _Known(asked_at_s=asked_at_s, caller=await self._caller(token), expires_at=token.expires_at)
            break
        raise Unavailable(reason=_DOWN, detail=f"Keystone answered {status} when asked for a token")

    async def _service_token(self) -> str:
        """Our own token, renewed when it ends. Raises Unavailable."""
        async with self._logging_in:
            if self._own_token is not None:
                text, expires_at = self._own_token
                if (expires_at - self._clock.now()).total_seconds() > _RENEW_S:
                    return text
            now_s = self._clock.monotonic_s()
            if self._refused_at_s is not None and now_s - self._refused_at_s < REFUSED_KEPT_S:
                raise Unavailable(reason=_DOWN, detail="Keystone does not take keystone_user and its password")
            access = self._access
            user = {"name": access.user, "password": access.password, "domain": {"name": access.user_domain}}
            scope = {"project": {"name": access.project, "domain": {"name": access.project_domain}}}
            wanted = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}
            status, body, headers = await self._send("POST", "/auth/tokens?nocatalog=1", {}, wanted)
            text = str(headers.get("X-Subject-Token", ""))
            self._refused_at_s = now_s if status in (401, 403) else None  # guessed passwords lock users out there
            if status != 201 or not text:
                raise Unavailable(
                    reason=_DOWN, detail=f"Keystone answered {status} to the login of keystone_user {access.user}"
                )
            self._own_token = (text, _decoded(body).expires_at)
            return text

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: object = None
    ) -> tuple[int, bytes, httpx.Headers]:
        """Status, body and headers, within bounds. Raises Unavailable."""
        content = msgspec.json.encode(body) if body is not None else None
        sent = {**headers, "Accept": "application/json", "Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self._ask_s_max):
                async with self._http.stream(method, self._access.url + path, headers=sent, content=content) as answer:
                    parts, size = [], 0
                    async for part in answer.aiter_bytes():
                        size += len(part)
                        if size > ANSWER_BYTES_MAX:
                            raise Unavailable(reason=_DOWN, detail=f"Keystone sent more than {ANSWER_BYTES_MAX} bytes")
                        parts.append(part)
                    return answer.status_code, b"".join(parts), answer.headers
        except (httpx.HTTPError, TimeoutError) as err:
            raise Unavailable(reason=_DOWN, detail=f"Keystone: {type(err).__name__} {err}") from err

    async def _caller(self, token: _Token) -> Caller:
        """Roles of ours for those of the token; the project's row is made for the first caller who has any."""
        names = [role.name.lower() for role in token.roles]
        roles = {self._access.roles[name] for name in names if name in self._access.roles}
        project, project_id = token.project, ""
        if token.system is not None and token.system.all:
            roles = {ROLE_OPERATOR} if _SYSTEM_ROLE in names else set()
        elif project is not None and roles and is_hex_id(project.id) and await self._enabled(project):
            project_id = project.id
        else:
            roles = set()
        return Caller(
            user_id=token.user.id[:_ID_CHARS_MAX],
            user_name=token.user.name,
            domain_id=token.user.domain.id,
            domain_name=token.user.domain.name,
            project_id=project_id,
            project_name=project.name if project is not None and project_id else "",
            roles=frozenset(roles),
        )

    async def _enabled(self, project: _User) -> bool:
        if not (is_hex_id(project.domain.id) or project.domain.id == "default"):
            return False
        return await adopt_project(
            self._database,
            project_id=project.id,
            name=project.name,
            domain_id=project.domain.id,
            domain_name=project.domain.name,
            now=self._clock.now(),
        )


def _decoded(body: bytes) -> _Token:
    try:
        return msgspec.json.decode(body, type=_Answer).token
    except msgspec.MsgspecError as err:
        raise Unavailable(reason=_DOWN, detail=f"Keystone's answer is no token: {err}") from err
