"""Passwords as a proof: logins, and the change of one's own password. Guessing is braked (control/passwords).

An unknown name costs as much time as a wrong password, and both read alike.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from strongroom.base.clock import Clock
from strongroom.base.errors import InvalidRequest, Unauthenticated
from strongroom.control.access import Caller
from strongroom.control.account_changes import change_user
from strongroom.control.accounts import DEFAULT_DOMAIN, digest_of
from strongroom.control.callers import Callers, IssuedToken, Scope
from strongroom.control.db import Database
from strongroom.control.passwords import LoginBrake, Passwords

SOURCE_KEPT = timedelta(days=90)  # how long an address that a user logged in from is known
_SOURCES_MAX = 20  # known addresses of a user; the oldest is forgotten first
_SOURCE_FRESH = timedelta(days=1)  # written again not more often than this

_USER = """
    SELECT u.id, u.password_hash,
           (SELECT s.seen_at FROM login_sources s
            WHERE s.user_id = u.id AND s.source = %(source)s AND s.seen_at > %(since)s)
    FROM users u JOIN domains d ON d.id = u.domain_id
    WHERE u.enabled
      AND CASE WHEN %(id)s::text IS NOT NULL THEN u.id = %(id)s
               WHEN %(domain_id)s::text IS NOT NULL THEN u.name = %(name)s AND d.id = %(domain_id)s
               ELSE u.name = %(name)s AND d.name = %(domain_name)s END
"""
_SEE_SOURCE = """
    INSERT INTO login_sources (user_id, source, seen_at)
    SELECT id, %(source)s, %(now)s FROM users WHERE id = %(user)s FOR KEY SHARE  -- it may just be deleted
    ON CONFLICT (user_id, source) DO UPDATE SET seen_at = %(now)s
"""
_FORGET_SOURCES = """
    DELETE FROM login_sources WHERE user_id = %(user)s AND source NOT IN
        (SELECT source FROM login_sources WHERE user_id = %(user)s ORDER BY seen_at DESC, source LIMIT %(limit)s)
"""


@dataclass(frozen=True, kw_only=True)
class Login:
    """A password login: the user by id, or by name in a domain named by id or name (None: the default domain)."""

    password: str = field(repr=False)
    user_id: str | None = None
    user_name: str | None = None
    domain_id: str | None = None
    domain_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """known_since: when the user last logged in from this address; None: never, or too long ago."""

    user_id: str
    encoded: str
    known_since: datetime | None


class Logins:
    """One per process. All methods may be called by many tasks at once."""

    def __init__(self, *, database: Database, callers: Callers, passwords: Passwords, clock: Clock) -> None:
        self._database = database
        self._callers = callers
        self._passwords = passwords
        self._clock = clock
        self._brake = LoginBrake(clock)

    async def log_in(self, login: Login, scope: Scope | None, source: str = "") -> IssuedToken:
        """A token for a right password. `source`: the address it comes from. `scope` as in Callers.issue.

        Raises Unauthenticated, or Throttled after too many failures.
        """
        user_id = await self._prove(login, source)
        return await self._callers.issue(user_id, scope, ("password",))

    async def change_password(self, caller: Caller, original: str, new: str, source: str = "") -> None:
        """Replace one's own password. Every token of before is void, the one of this call too; access keys go on.

        Raises Unauthenticated, Throttled, or InvalidRequest for a password that will not do.
        """
        await self._prove(Login(password=original, user_id=caller.user_id), source)
        if original == new:
            raise InvalidRequest(reason="The new password is the old one. Choose another one.")
        await change_user(self._database, self._passwords, caller.user_id, self._clock.now(), password=new)
        self._callers.forget(caller.user_id)

    async def _prove(self, login: Login, source: str) -> str:
        """The id of the enabled user whose password it is."""
        now, digest = self._clock.now(), digest_of(source)
        async with self._database.read() as conn:
            found = await _find_user(conn, login, digest, now - SOURCE_KEPT)
        name = found.user_id if found is not None else _name_of_nobody(login)
        self._brake.require_free(name, source, known=found is not None and found.known_since is not None)
        matches = await self._passwords.verify(found.encoded if found is not None else None, login.password)
        if found is None or not matches:
            self._brake.failed(name, source)
            raise Unauthenticated(reason="the user name or the password is wrong, or the user is disabled")
        self._brake.succeeded(name, source)
        if found.known_since is None or found.known_since < now - _SOURCE_FRESH:
            values = {"user": found.user_id, "source": digest, "now": now, "limit": _SOURCES_MAX}
            async with self._database.transaction() as conn:
                await conn.execute(_SEE_SOURCE, values)
                await conn.execute(_FORGET_SOURCES, values)
        return found.user_id


def _name_of_nobody(login: Login) -> str:
    """A name of bounded length for a user that does not exist: it is braked like one that does."""
    text = repr((login.user_id, login.user_name, login.domain_id, login.domain_name))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


async def _find_user(conn: AsyncConnection[TupleRow], login: Login, source: bytes, since: datetime) -> _Found | None:
    texts = (login.user_id, login.user_name, login.domain_id, login.domain_name)
    if not all(text is None or text.isprintable() for text in texts):  # NUL cannot even be asked for
        return None
    values = {
        "id": login.user_id,
        "name": login.user_name,
        "domain_id": login.domain_id,
        "domain_name": login.domain_name if login.domain_name is not None else DEFAULT_DOMAIN,
        "source": source,
        "since": since,
    }
    row = await (await conn.execute(_USER, values)).fetchone()
    return _Found(user_id=row[0], encoded=row[1], known_since=row[2]) if row is not None else None
