"""Who is who: domains, projects, users, roles and access keys, as rows. Changes of them are in control/account_changes,
proofs in control/callers and control/logins."""

import hashlib
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from strongroom.base.clock import Clock
from strongroom.base.errors import AccountNotFound, Conflict, InvalidRequest
from strongroom.base.ids import is_hex_id, new_hex_id
from strongroom.control.access import ACTIONS_OF, ROLE_OPERATOR, ROLE_TENANT_ADMIN
from strongroom.control.db import Database
from strongroom.control.organization_copies import give_policies
from strongroom.control.passwords import Passwords
from strongroom.control.tokens import Ring

DEFAULT_DOMAIN = "default"  # id and name of the first domain; its operators may use /ext/v1/admin
_NAME_CHARS_MAX = 64
_DESCRIPTION_CHARS_MAX = 255
_BOOTSTRAP_LOCK = 0x5374726F6E68
_FIRST_USER = "admin"
_ACCESS_KEY_LETTERS = string.ascii_uppercase + string.digits

KEY_TTL_S_MIN, KEY_TTL_S_MAX = 900, 86400  # of temporary access keys, as in IAM: 15 minutes to a day

_PROJECTS = """
    SELECT p.id, p.name, p.domain_id, d.name AS domain_name, p.description, p.enabled
    FROM projects p JOIN domains d ON d.id = p.domain_id
"""
_PROJECTS_OF = f"""{_PROJECTS}
    WHERE EXISTS (SELECT 1 FROM role_assignments a WHERE a.user_id = %(user)s AND a.project_id = p.id)
      AND (%(name)s::text IS NULL OR p.name = %(name)s)
    ORDER BY p.name, p.id
"""  # noqa: S608


@dataclass(frozen=True, kw_only=True)
class Project:
    id: str
    name: str
    domain_id: str
    domain_name: str
    description: str
    enabled: bool


@dataclass(frozen=True, kw_only=True)
class AccountDomain:
    """A domain of the identity: an account that owns users and projects."""

    id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class User:
    id: str
    name: str
    domain_id: str
    enabled: bool


@dataclass(frozen=True, kw_only=True)
class KeyOwner:
    """An access key as operators see it: whose it is, never its secret. expires_at: of a temporary one."""

    access_key: str
    user_id: str
    enabled: bool
    expires_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class AccessKey:
    """A new key with its secret, shown once. The others: of a temporary key, which is sent with its token."""

    access_key: str
    secret_key: str = field(repr=False)
    security_token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class FirstAccount:
    """What the first start makes; the members of credentials.json that the identity knows."""

    domain_name: str
    project_id: str
    project_name: str
    username: str
    password: str = field(repr=False)
    access_key: str
    secret_key: str = field(repr=False)


class Accounts:
    """One per process. All methods may be called by many tasks at once."""

    def __init__(self, *, database: Database, ring: Ring, passwords: Passwords, clock: Clock) -> None:
        self._database = database
        self._ring = ring
        self._passwords = passwords
        self._clock = clock

    def on(self, database: Database) -> "Accounts":
        """The same, through another view of the database: that of one request, which records what it changes."""
        return Accounts(database=database, ring=self._ring, passwords=self._passwords, clock=self._clock)

    # --- what a user has --------------------------------------------------------------------------------------------

    async def projects_of(self, user_id: str, name: str | None = None) -> list[Project]:
        """Projects on which the user has a role, by name; `name` keeps that one."""
        if name is not None and not name.isprintable():
            return []
        async with self._database.read(class_row(Project)) as conn:
            cursor = await conn.execute(
                _PROJECTS_OF,
                {"user": user_id, "name": name},
            )
            return await cursor.fetchall()

    async def domains_of(self, user_id: str) -> list[AccountDomain]:
        """The user's own domain, as a list because the API asks for one."""
        async with self._database.read(class_row(AccountDomain)) as conn:
            cursor = await conn.execute(
                "SELECT d.id, d.name FROM users u JOIN domains d ON d.id = u.domain_id WHERE u.id = %s", (user_id,)
            )
            return await cursor.fetchall()

    # --- operators --------------------------------------------------------------------------------------------------

    async def projects(self) -> list[Project]:
        """Every project, by name."""
        async with self._database.read(class_row(Project)) as conn:
            cursor = await conn.execute(_PROJECTS + "ORDER BY p.name, p.id")
            return await cursor.fetchall()

    async def users(self) -> list[User]:
        """Every user, by name."""
        async with self._database.read(class_row(User)) as conn:
            cursor = await conn.execute("SELECT id, name, domain_id, enabled FROM users ORDER BY name, id")
            return await cursor.fetchall()

    async def create_project(self, name: str, description: str = "", domain_id: str = DEFAULT_DOMAIN) -> Project:
        """Raises InvalidRequest, AccountNotFound for the domain, Conflict when the name is taken in it."""
        require_account_name("project", name)
        if len(description) > _DESCRIPTION_CHARS_MAX or not description.isprintable():
            raise InvalidRequest(reason=f"A description has at most {_DESCRIPTION_CHARS_MAX} printable characters.")
        async with self._database.transaction() as conn:
            now = self._clock.now()
            domain = await _require_domain(conn, domain_id)
            project_id = await _insert_project(conn, domain.id, name, description, now)
            await give_policies(conn, domain.id, project_id, now)
        return Project(
            id=project_id,
            name=name,
            domain_id=domain.id,
            domain_name=domain.name,
            description=description,
            enabled=True,
        )

    async def create_user(self, *, name: str, password: str, project_id: str, role: str) -> User:
        """A user with one role on one project, in its domain; the role `admin` makes an operator instead, in the
        default domain, and needs no project.

        Raises InvalidRequest, AccountNotFound for the project, Conflict when the name is taken.
        """
        require_account_name("user", name)
        require_role(role)
        encoded = await self._passwords.hash(password)
        async with self._database.transaction() as conn:
            domain_id = DEFAULT_DOMAIN
            if role != ROLE_OPERATOR:
                domain_id = await domain_of_project(conn, project_id)
            user_id = await _insert_user(conn, domain_id, name, encoded, self._clock.now())
            await _assign(conn, user_id, project_id, role)
        return User(id=user_id, name=name, domain_id=domain_id, enabled=True)

    async def create_access_key(self, user_id: str, ttl_s: int | None = None) -> AccessKey:
        """A new key; its secret is shown this once. ttl_s: a temporary one, with a token that is sent beside it.

        Raises AccountNotFound, or InvalidRequest for a ttl_s out of range.
        """
        if not is_hex_id(user_id):
            raise AccountNotFound(id=user_id[:_NAME_CHARS_MAX])
        key = _new_access_key()
        if ttl_s is not None:
            if not KEY_TTL_S_MIN <= ttl_s <= KEY_TTL_S_MAX:
                raise InvalidRequest(reason=f"Invalid duration_seconds: give {KEY_TTL_S_MIN} to {KEY_TTL_S_MAX}.")
            expires_at = self._clock.now() + timedelta(seconds=ttl_s)
            key = replace(key, security_token=secrets.token_urlsafe(48), expires_at=expires_at)
        async with self._database.transaction() as conn:
            cursor = await conn.execute("SELECT 1 FROM users WHERE id = %s", (user_id,))
            if await cursor.fetchone() is None:
                raise AccountNotFound(id=user_id)
            await self._insert_key(conn, user_id, key)
        return key

    async def access_keys(self) -> list[KeyOwner]:
        """Every access key, oldest first."""
        async with self._database.read(class_row(KeyOwner)) as conn:
            cursor = await conn.execute(
                "SELECT access_key, user_id, enabled, expires_at FROM access_keys ORDER BY created_at, access_key"
            )
            return await cursor.fetchall()

    async def delete_access_key(self, access_key: str) -> None:
        """It signs nothing any more within callers.FRESH_S. Raises AccountNotFound."""
        if not access_key.isprintable():
            raise AccountNotFound(id="access key")
        async with self._database.transaction() as conn:
            cursor = await conn.execute("DELETE FROM access_keys WHERE access_key = %s", (access_key,))
        if cursor.rowcount == 0:
            raise AccountNotFound(id=access_key[:_NAME_CHARS_MAX])

    async def bootstrap(self, region: str, save: Callable[[FirstAccount], None]) -> bool:
        """On the first start make domain, project (named as the region), user `admin` and its key; else return False.

        `save` gets them before they are committed: a crash between the two leaves credentials of nobody, and the next
        start makes others and saves them over those, never accounts whose password nobody has.
        """
        password = secrets.token_urlsafe(18)
        key = _new_access_key()
        now = self._clock.now()
        async with self._database.transaction() as conn:
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_BOOTSTRAP_LOCK,))  # of two first starts, one
            if await (await conn.execute("SELECT 1 FROM domains LIMIT 1")).fetchone() is not None:
                return False
            await conn.execute(
                "INSERT INTO domains (id, name, created_at) VALUES (%s, %s, %s)", (DEFAULT_DOMAIN, DEFAULT_DOMAIN, now)
            )
            project_id = await _insert_project(conn, DEFAULT_DOMAIN, region, "", now)
            user_id = await _insert_user(conn, DEFAULT_DOMAIN, _FIRST_USER, await self._passwords.hash(password), now)
            await _assign(conn, user_id, project_id, ROLE_TENANT_ADMIN)
            await _assign(conn, user_id, project_id, ROLE_OPERATOR)
            await self._insert_key(conn, user_id, key)
            save(
                FirstAccount(
                    domain_name=DEFAULT_DOMAIN,
                    project_id=project_id,
                    project_name=region,
                    username=_FIRST_USER,
                    password=password,
                    access_key=key.access_key,
                    secret_key=key.secret_key,
                )
            )
        return True

    async def _insert_key(self, conn: AsyncConnection[TupleRow], user_id: str, key: AccessKey) -> None:
        now = self._clock.now()
        # Those that expired are of no use to anybody, and nobody deletes them.
        await conn.execute("DELETE FROM access_keys WHERE user_id = %s AND expires_at < %s", (user_id, now))
        digest = digest_of(key.security_token) if key.security_token is not None else None
        await conn.execute(
            "INSERT INTO access_keys (access_key, user_id, secret_sealed, created_at, expires_at, "
            "security_token_digest) VALUES (%s, %s, %s, %s, %s, %s)",
            (key.access_key, user_id, self._ring.seal_secret(key.secret_key), now, key.expires_at, digest),
        )


def _new_access_key() -> AccessKey:
    return AccessKey(
        access_key="".join(secrets.choice(_ACCESS_KEY_LETTERS) for _ in range(20)),
        secret_key="".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40)),
    )


def require_account_name(what: str, name: str) -> None:
    if not 1 <= len(name) <= _NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise InvalidRequest(reason=f"The name of a {what} has 1 to {_NAME_CHARS_MAX} printable characters.")


def require_role(role: str) -> None:
    if role not in ACTIONS_OF:
        raise InvalidRequest(
            reason=f"There is no role {role[:_NAME_CHARS_MAX]!r}. Choose one of: {', '.join(ACTIONS_OF)}."
        )


def digest_of(text: str) -> bytes:
    """32 bytes that stand for a text which is not stored: a security token, an address."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


async def domain_of_project(conn: AsyncConnection[TupleRow], project_id: str) -> str:
    """Raises AccountNotFound when there is no such project."""
    if not is_hex_id(project_id):
        raise AccountNotFound(id=project_id[:_NAME_CHARS_MAX])
    row = await (await conn.execute("SELECT domain_id FROM projects WHERE id = %s", (project_id,))).fetchone()
    if row is None:
        raise AccountNotFound(id=project_id)
    return str(row[0])


async def _require_domain(conn: AsyncConnection[TupleRow], domain_id: str) -> AccountDomain:
    row = None
    if is_hex_id(domain_id) or domain_id == DEFAULT_DOMAIN:
        row = await (await conn.execute("SELECT id, name FROM domains WHERE id = %s", (domain_id,))).fetchone()
    if row is None:
        raise AccountNotFound(id=domain_id[:_NAME_CHARS_MAX])
    return AccountDomain(id=row[0], name=row[1])


async def _insert_project(
    conn: AsyncConnection[TupleRow], domain_id: str, name: str, description: str, now: datetime
) -> str:
    project_id = new_hex_id()
    try:
        await conn.execute(
            "INSERT INTO projects (id, domain_id, name, description, created_at) VALUES (%s, %s, %s, %s, %s)",
            (project_id, domain_id, name, description, now),
        )
    except psycopg.errors.UniqueViolation as err:
        raise Conflict(conflict_code="9900", reason=f"There is a project {name} already. Choose another name.") from err
    return project_id


async def _insert_user(conn: AsyncConnection[TupleRow], domain_id: str, name: str, encoded: str, now: datetime) -> str:
    user_id = new_hex_id()
    try:
        await conn.execute(
            "INSERT INTO users (id, domain_id, name, password_hash, created_at) VALUES (%s, %s, %s, %s, %s)",
            (user_id, domain_id, name, encoded, now),
        )
    except psycopg.errors.UniqueViolation as err:
        raise Conflict(conflict_code="9900", reason=f"There is a user {name} already. Choose another name.") from err
    return user_id


async def _assign(conn: AsyncConnection[TupleRow], user_id: str, project_id: str, role: str) -> None:
    await conn.execute(
        "INSERT INTO role_assignments (user_id, project_id, role) VALUES (%s, %s, %s)",
        (user_id, None if role == ROLE_OPERATOR else project_id, role),
    )
