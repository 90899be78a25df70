"""Who is who: domains, projects, users, roles and access keys, as rows. Proofs are in control/callers."""

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from strongroom.base.clock import Clock
from strongroom.base.errors import AccountNotFound, Conflict, InvalidRequest
from strongroom.base.ids import is_hex_id, new_hex_id
from strongroom.control.access import ACTIONS_OF, ROLE_OPERATOR, ROLE_TENANT_ADMIN
from strongroom.control.db import Database
from strongroom.control.passwords import Passwords
from strongroom.control.tokens import Ring

DEFAULT_DOMAIN = "default"  # id and name of the first domain; its operators may use /ext/v1/admin
_NAME_CHARS_MAX = 64
_DESCRIPTION_CHARS_MAX = 255
_BOOTSTRAP_LOCK = 0x5374726F6E68
_FIRST_USER = "admin"
_ACCESS_KEY_LETTERS = string.ascii_uppercase + string.digits

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
    """An access key as operators see it: whose it is, never its secret."""

    access_key: str
    user_id: str
    enabled: bool


@dataclass(frozen=True, kw_only=True)
class AccessKey:
    """A new key with its secret, shown once."""

    access_key: str
    secret_key: str = field(repr=False)


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
        """Every project of the default domain, by name."""
        async with self._database.read(class_row(Project)) as conn:
            cursor = await conn.execute(_PROJECTS + "WHERE p.domain_id = %s ORDER BY p.name", (DEFAULT_DOMAIN,))
            return await cursor.fetchall()

    async def users(self) -> list[User]:
        """Every user of the default domain, by name."""
        async with self._database.read(class_row(User)) as conn:
            cursor = await conn.execute(
                "SELECT id, name, domain_id, enabled FROM users WHERE domain_id = %s ORDER BY name", (DEFAULT_DOMAIN,)
            )
            return await cursor.fetchall()

    async def create_project(self, name: str, description: str = "") -> Project:
        """Raises InvalidRequest, or Conflict when the name is taken."""
        _require_name("project", name)
        if len(description) > _DESCRIPTION_CHARS_MAX or not description.isprintable():
            raise InvalidRequest(reason=f"A description has at most {_DESCRIPTION_CHARS_MAX} printable characters.")
        async with self._database.transaction() as conn:
            project_id = await _insert_project(conn, name, description, self._clock.now())
        return Project(
            id=project_id,
            name=name,
            domain_id=DEFAULT_DOMAIN,
            domain_name=DEFAULT_DOMAIN,
            description=description,
            enabled=True,
        )

    async def create_user(self, *, name: str, password: str, project_id: str, role: str) -> User:
        """A user with one role on one project; the role `admin` makes an operator instead and needs no project.

        Raises InvalidRequest, AccountNotFound for the project, Conflict when the name is taken.
        """
        _require_name("user", name)
        _require_role(role)
        encoded = await self._passwords.hash(password)
        async with self._database.transaction() as conn:
            if role != ROLE_OPERATOR:
                await _require_project(conn, project_id)
            user_id = await _insert_user(conn, name, encoded, self._clock.now())
            await _assign(conn, user_id, project_id, role)
        return User(id=user_id, name=name, domain_id=DEFAULT_DOMAIN, enabled=True)

    async def create_access_key(self, user_id: str) -> AccessKey:
        """A new key; its secret is shown this once. Raises AccountNotFound."""
        if not is_hex_id(user_id):
            raise AccountNotFound(id=user_id[:_NAME_CHARS_MAX])
        key = _new_access_key()
        async with self._database.transaction() as conn:
            cursor = await conn.execute("SELECT 1 FROM users WHERE id = %s", (user_id,))
            if await cursor.fetchone() is None:
                raise AccountNotFound(id=user_id)
            await self._insert_key(conn, user_id, key)
        return key

    async def access_keys(self) -> list[KeyOwner]:
        """Every access key of the default domain's users, oldest first."""
        async with self._database.read(class_row(KeyOwner)) as conn:
            cursor = await conn.execute(
                "SELECT k.access_key, k.user_id, k.enabled FROM access_keys k JOIN users u ON u.id = k.user_id "
                "WHERE u.domain_id = %s ORDER BY k.created_at, k.access_key",
                (DEFAULT_DOMAIN,),
            )
            return await cursor.fetchall()

    async def delete_access_key(self, access_key: str) -> None:
        """It signs nothing any more within callers.FRESH_S. Raises AccountNotFound."""
        if not access_key.isprintable():
            raise AccountNotFound(id="access key")
        async with self._database.transaction() as conn:
            cursor = await conn.execute(
                "DELETE FROM access_keys k USING users u "
                "WHERE u.id = k.user_id AND u.domain_id = %s AND k.access_key = %s",
                (DEFAULT_DOMAIN, access_key),
            )
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
            project_id = await _insert_project(conn, region, "", now)
            user_id = await _insert_user(conn, _FIRST_USER, await self._passwords.hash(password), now)
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
        await conn.execute(
            "INSERT INTO access_keys (access_key, user_id, secret_sealed, created_at) VALUES (%s, %s, %s, %s)",
            (key.access_key, user_id, self._ring.seal_secret(key.secret_key), self._clock.now()),
        )


def _new_access_key() -> AccessKey:
    return AccessKey(
        access_key="".join(secrets.choice(_ACCESS_KEY_LETTERS) for _ in range(20)),
        secret_key="".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40)),
    )


def _require_name(what: str, name: str) -> None:
    if not 1 <= len(name) <= _NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise InvalidRequest(reason=f"The name of a {what} has 1 to {_NAME_CHARS_MAX} printable characters.")


def _require_role(role: str) -> None:
    if role not in ACTIONS_OF:
        raise InvalidRequest(
            reason=f"There is no role {role[:_NAME_CHARS_MAX]!r}. Choose one of: {', '.join(ACTIONS_OF)}."
        )


async def _require_project(conn: AsyncConnection[TupleRow], project_id: str) -> None:
    if not is_hex_id(project_id):
        raise AccountNotFound(id=project_id[:_NAME_CHARS_MAX])
    cursor = await conn.execute("SELECT 1 FROM projects WHERE id = %s", (project_id,))
    if await cursor.fetchone() is None:
        raise AccountNotFound(id=project_id)


async def _insert_project(conn: AsyncConnection[TupleRow], name: str, description: str, now: datetime) -> str:
    project_id = new_hex_id()
    try:
        await conn.execute(
            "INSERT INTO projects (id, domain_id, name, description, created_at) VALUES (%s, %s, %s, %s, %s)",
            (project_id, DEFAULT_DOMAIN, name, description, now),
        )
    except psycopg.errors.UniqueViolation as err:
        raise Conflict(conflict_code="9900", reason=f"There is a project {name} already. Choose another name.") from err
    return project_id


async def _insert_user(conn: AsyncConnection[TupleRow], name: str, encoded: str, now: datetime) -> str:
    user_id = new_hex_id()
    try:
        await conn.execute(
            "INSERT INTO users (id, domain_id, name, password_hash, created_at) VALUES (%s, %s, %s, %s, %s)",
            (user_id, DEFAULT_DOMAIN, name, encoded, now),
        )
    except psycopg.errors.UniqueViolation as err:
        raise Conflict(conflict_code="9900", reason=f"There is a user {name} already. Choose another name.") from err
    return user_id


async def _assign(conn: AsyncConnection[TupleRow], user_id: str, project_id: str, role: str) -> None:
    await conn.execute(
        "INSERT INTO role_assignments (user_id, project_id, role) VALUES (%s, %s, %s)",
        (user_id, None if role == ROLE_OPERATOR else project_id, role),
    )
