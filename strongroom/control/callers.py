"""Who is calling: a token or a signature leads to a Caller of control/access. Passwords are in control/logins.

A proof says who somebody is; what they may do is read from the database when they call, at most `FRESH_S` old: a user
who is disabled or loses a role, and a token that is revoked, are stopped within seconds, in every process. Failed
proofs of a kind read alike.
"""

import hmac
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from strongroom.base.clock import Clock
from strongroom.base.errors import TokenNotFound, Unauthenticated
from strongroom.base.ids import is_hex_id
from strongroom.control.access import ROLE_OPERATOR, Caller
from strongroom.control.accounts import Accounts, digest_of
from strongroom.control.db import Database
from strongroom.control.signatures import Signature, SignedRequest, parse_signature, verify_signature
from strongroom.control.token_keys import TokenKeys
from strongroom.control.tokens import Ring, Token, new_audit_id

FRESH_S = 3.0  # how old a remembered role or key may be
_REMEMBERED_MAX = 10_000  # callers and keys remembered each
_REPLAY_AFTER = timedelta(seconds=5)  # RULINGS 20: honest equal calls within whole seconds exist
_SIGNATURE_KEPT = timedelta(minutes=31)  # the clock window both ways, and a margin
_PURGE_EVERY = 256  # signatures remembered by this process between two purges
_PURGE_ROWS_MAX = 4096
_CLOCKS_APART = timedelta(minutes=5)  # a revoked token is kept so much longer than it could be used
_NOBODYS_SECRET = "of an access key that does not exist"  # noqa: S105
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

Key = TypeVar("Key")
Value = TypeVar("Value")

# The project is joined only where the user has a role on it and it is enabled. The operator's role counts from a row
# without project, and in the default domain alone.
_CALLER = """
    SELECT u.name, u.domain_id, d.name, coalesce(p.id, ''), coalesce(p.name, ''),
           ARRAY(SELECT r.role FROM role_assignments r
                 WHERE r.user_id = u.id
                   AND (r.project_id = p.id AND r.role <> 'admin'
                        OR r.project_id IS NULL AND r.role = 'admin' AND u.domain_id = 'default')),
           u.tokens_not_before, EXISTS (SELECT 1 FROM revoked_tokens t WHERE t.audit_id = %(audit)s)
    FROM users u
    JOIN domains d ON d.id = u.domain_id
    LEFT JOIN projects p ON p.id = %(project)s AND p.enabled
         AND EXISTS (SELECT 1 FROM role_assignments a WHERE a.user_id = u.id AND a.project_id = p.id)
    WHERE u.id = %(user)s AND u.enabled
"""
_SEE_SIGNATURE = """
    WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
    INSERT INTO seen_signatures (signature, seen_at) SELECT %(signature)s, %(now)s FROM quick
    ON CONFLICT DO NOTHING RETURNING true
"""
_PURGE_SIGNATURES = """
    DELETE FROM seen_signatures WHERE signature IN
        (SELECT signature FROM seen_signatures WHERE seen_at < %s ORDER BY seen_at LIMIT %s)
"""
_PURGE_REVOKED = """
    DELETE FROM revoked_tokens WHERE audit_id IN
        (SELECT audit_id FROM revoked_tokens WHERE expires_at < %s ORDER BY expires_at LIMIT %s)
"""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The project a token is asked for, by id or by name in a domain (None: the user's). All None: no project."""

    project_id: str | None = None
    project_name: str | None = None
    domain_id: str | None = None
    domain_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class IssuedToken:
    """A token and what the answer of POST /v3/auth/tokens tells about it."""

    text: str = field(repr=False)
    caller: Caller
    methods: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime
    audit_id: str


@dataclass(frozen=True, kw_only=True)
class _Key:
    """expires_at and security_token_digest: of a temporary key, else None."""

    user_id: str
    secret_key: str = field(repr=False)
    expires_at: datetime | None
    security_token_digest: bytes | None


class Callers:
    """One per process. All methods may be called by many tasks at once."""

    def __init__(
        self,
        *,
        database: Database,
        accounts: Accounts,
        ring: Ring,
        keys: TokenKeys,
        clock: Clock,
        token_ttl_s: int,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._ring = ring
        self._token_keys = keys
        self._clock = clock
        self._token_ttl = timedelta(seconds=token_ttl_s)
        self._callers: dict[tuple[str, str, str], tuple[float, Caller]] = {}
        self._keys: dict[str, tuple[float, _Key]] = {}
        self._signatures_since_purge = 0

    async def issue(self, user_id: str, scope: Scope | None, methods: tuple[str, ...]) -> IssuedToken:
        """A token for a user who has proved who it is. `scope` None: the only project, or none if there are several.

        Raises Unauthenticated for a project that is not the user's.
        """
        now = self._clock.now()
        return await self._issue(user_id, scope, methods, now, now + self._token_ttl)

    async def exchange_token(self, text: str, scope: Scope | None) -> IssuedToken:
        """A token of another scope for the same user; it ends when the first one does. Raises Unauthenticated."""
        token = await self._open(text)
        await self._caller(token.user_id, token.project_id, token)  # it counts until now
        methods = tuple(dict.fromkeys([*token.methods, "token"]))
        return await self._issue(token.user_id, scope, methods, self._clock.now(), token.expires_at)

    async def inspect_token(self, text: str, caller: Caller) -> IssuedToken:
        """What a valid token of this caller says, with the roles of now. Raises TokenNotFound for any other."""
        try:
            token = await self._open(text)
            found = await self._caller(token.user_id, token.project_id, token)
        except Unauthenticated as err:
            raise TokenNotFound(detail=str(err)) from err
        if token.user_id != caller.user_id:
            raise TokenNotFound(detail="it is of another user")
        return IssuedToken(
            text=text, caller=found, methods=token.methods, issued_at=token.issued_at, expires_at=token.expires_at,
            audit_id=token.audit_id,
        )  # fmt: skip

    async def revoke_token(self, text: str, caller: Caller) -> None:
        """The token counts no more: here at once, in other processes within FRESH_S. Those made from it go on.

        Its owner may do it, and an operator. Raises TokenNotFound for what is no valid token, or somebody else's.
        """
        try:
            token = await self._open(text)
            await self._caller(token.user_id, token.project_id, token)
        except Unauthenticated as err:
            raise TokenNotFound(detail=str(err)) from err
        if token.user_id != caller.user_id and ROLE_OPERATOR not in caller.roles:
            raise TokenNotFound(detail="it is of another user")
        now = self._clock.now()
        async with self._database.transaction() as conn:
            await conn.execute(
                "INSERT INTO revoked_tokens (audit_id, expires_at) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (token.audit_id, token.expires_at),
            )
            await conn.execute(_PURGE_REVOKED, (now - _CLOCKS_APART, _PURGE_ROWS_MAX))
        self._callers.pop((token.user_id, token.project_id, token.audit_id), None)

    async def caller_of_token(self, text: str) -> Caller:
        """Who sent this X-Auth-Token. Raises Unauthenticated."""
        token = await self._open(text)
        return await self._caller(token.user_id, token.project_id, token)

    async def caller_of_signature(
        self, authorization: str, request: SignedRequest, project_id: str, security_token: str | None = None
    ) -> Caller:
        """Who signed this request, scoped to `project_id` if that user has roles there ("" : no project).

        security_token: goes with a temporary key, and with no other. Raises Unauthenticated; for a changing request
        that is a replay as well (RULINGS 20).
        """
        signature = parse_signature(authorization)
        key = await self._key(signature.access_key)
        now = self._clock.now()
        signed_at = verify_signature(request, signature, key.secret_key if key else _NOBODYS_SECRET, now)
        if key is None or not _security_token_fits(key, security_token):
            raise Unauthenticated(reason="verify aksk signature fail")
        if key.expires_at is not None and now >= key.expires_at:
            raise Unauthenticated(reason="verify aksk signature fail, the temporary access key has expired")
        if request.method.upper() not in _READING_METHODS:
            await self._refuse_replay(signature, signed_at, now)
        return await self._caller(key.user_id, project_id if is_hex_id(project_id) else "", None)

    def forget(self, user_id: str) -> None:
        """Nothing remembered of this user is used again by this process."""
        for key in [key for key in self._callers if key[0] == user_id]:
            del self._callers[key]
        for access_key in [name for name, (_, key) in self._keys.items() if key.user_id == user_id]:
            del self._keys[access_key]

    async def _open(self, text: str) -> Token:
        token = (await self._token_keys.current()).open(text, self._clock.now())
        if token.audit_id:
            return token
        # Of an earlier version: what it says names it well enough.
        said = repr((token.user_id, token.project_id, token.issued_at.timestamp()))
        return msgspec.structs.replace(token, audit_id=digest_of(said).hex())

    async def _issue(
        self, user_id: str, scope: Scope | None, methods: tuple[str, ...], now: datetime, expires_at: datetime
    ) -> IssuedToken:
        project_id = await self._scoped_project(user_id, scope)
        caller = await self._caller(user_id, project_id, None)
        if caller.project_id != project_id:
            raise Unauthenticated(reason="the user has no role on the project of the scope")
        token = Token(
            user_id=user_id, project_id=project_id, methods=methods, issued_at=now, expires_at=expires_at,
            audit_id=new_audit_id(),
        )  # fmt: skip
        text = (await self._token_keys.current()).seal(token)
        return IssuedToken(
            text=text, caller=caller, methods=methods, issued_at=now, expires_at=expires_at, audit_id=token.audit_id
        )

    async def _scoped_project(self, user_id: str, scope: Scope | None) -> str:
        """The project's id, "" for none. Raises Unauthenticated for one that is not the user's."""
        if scope is not None and scope.project_id is None and scope.project_name is None:
            return ""
        projects = [project for project in await self._accounts.projects_of(user_id) if project.enabled]
        if scope is None:
            return projects[0].id if len(projects) == 1 else ""
        for project in projects:
            if scope.project_id is not None:
                matches = project.id == scope.project_id
            else:
                matches = (
                    project.name == scope.project_name
                    and scope.domain_id in (None, project.domain_id)
                    and scope.domain_name in (None, project.domain_name)
                )
            if matches:
                return project.id
        raise Unauthenticated(reason="the user has no role on the project of the scope")

    async def _caller(self, user_id: str, project_id: str, token: Token | None) -> Caller:
        """The enabled user with the roles of now, and the token (if that is the proof) not revoked.

        project_id is "" in it where the user has no role. Raises Unauthenticated.
        """
        now_s = self._clock.monotonic_s()
        key = (user_id, project_id, token.audit_id if token is not None else "")
        remembered = self._callers.get(key)
        if remembered is not None and now_s - remembered[0] < FRESH_S:
            return remembered[1]
        async with self._database.read() as conn:
            cursor = await conn.execute(_CALLER, {"user": user_id, "project": project_id, "audit": key[2]})
            row = await cursor.fetchone()
        if row is None:
            self._callers.pop(key, None)
            raise Unauthenticated(reason="the user is disabled or was deleted")
        name, domain_id, domain_name, project, project_name, roles, not_before, revoked = row
        if token is not None and (revoked or (not_before is not None and token.issued_at < not_before)):
            self._callers.pop(key, None)
            raise Unauthenticated(reason="the token was revoked. Log in again")
        caller = Caller(
            user_id=user_id,
            user_name=name,
            domain_id=domain_id,
            domain_name=domain_name,
            project_id=project,
            project_name=project_name,
            roles=frozenset(roles),
        )
        _remember(self._callers, key, now_s, caller)
        return caller

    async def _key(self, access_key: str) -> _Key | None:
        now_s = self._clock.monotonic_s()
        remembered = self._keys.get(access_key)
        if remembered is not None and now_s - remembered[0] < FRESH_S:
            return remembered[1]
        async with self._database.read() as conn:
            cursor = await conn.execute(
                "SELECT user_id, secret_sealed, expires_at, security_token_digest FROM access_keys "
                "WHERE access_key = %s AND enabled",
                (access_key,),
            )
            row = await cursor.fetchone()
        if row is None:
            self._keys.pop(access_key, None)
            return None
        key = _Key(
            user_id=row[0],
            secret_key=self._ring.open_secret(row[1]),
            expires_at=row[2],
            security_token_digest=row[3],
        )
        _remember(self._keys, access_key, now_s, key)
        return key

    async def _refuse_replay(self, signature: Signature, signed_at: datetime, now: datetime) -> None:
        """Remember the signature; refuse one seen before when it comes late, by its own date or by our first sight.

        A client whose clock is ahead dates its calls later than now: our first sight is the fence there. A crash of the
        database may forget the last instant of sightings (synchronous_commit off): a commit a request is worth more.
        """
        async with self._database.read() as conn:
            cursor = await conn.execute(_SEE_SIGNATURE, {"signature": signature.signature, "now": now})
            if await cursor.fetchone() is None:
                cursor = await conn.execute(
                    "SELECT seen_at FROM seen_signatures WHERE signature = %s", (signature.signature,)
                )
                row = await cursor.fetchone()
                first_seen_at = row[0] if row is not None else now
                if now - min(signed_at, first_seen_at) > _REPLAY_AFTER:
                    raise Unauthenticated(reason="verify aksk signature fail, this request was received before")
            self._signatures_since_purge += 1
            if self._signatures_since_purge >= _PURGE_EVERY:
                self._signatures_since_purge = 0
                await conn.execute(_PURGE_SIGNATURES, (now - _SIGNATURE_KEPT, _PURGE_ROWS_MAX))


def _remember(memory: dict[Key, tuple[float, Value]], key: Key, now_s: float, value: Value) -> None:
    memory.pop(key, None)
    memory[key] = (now_s, value)
    if len(memory) > _REMEMBERED_MAX:
        del memory[next(iter(memory))]  # the oldest


def _security_token_fits(key: _Key, security_token: str | None) -> bool:
    if key.security_token_digest is None:
        return not security_token
    return hmac.compare_digest(digest_of(security_token or ""), key.security_token_digest)
