"""What operators change of accounts: domains, roles, passwords, on and off. Each is one transaction under one lock.

The lock makes the one rule that spans rows hold: an operator is left. Whoever is turned off here is stopped within
callers.FRESH_S in every process.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from strongroom.base.errors import AccountNotFound, Conflict, InvalidRequest
from strongroom.base.ids import is_hex_id, new_hex_id
from strongroom.control.access import ROLE_OPERATOR
from strongroom.control.accounts import AccountDomain, domain_of_project, require_account_name, require_role
from strongroom.control.db import Database
from strongroom.control.passwords import Passwords

_LOCK = 0x6163636F756E74
_SHOWN_CHARS_MAX = 64
_OPERATORS = """
    SELECT 1 FROM users u JOIN role_assignments a ON a.user_id = u.id
    WHERE u.enabled AND u.domain_id = 'default' AND a.project_id IS NULL AND a.role = 'admin' LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class Role:
    """A role of a user. project_id and project_name are None for the operator's."""

    project_id: str | None
    project_name: str | None
    role: str


async def domains(database: Database) -> list[AccountDomain]:
    """Every domain, by name."""
    async with database.read(class_row(AccountDomain)) as conn:
        return await (await conn.execute("SELECT id, name FROM domains ORDER BY name")).fetchall()


async def create_domain(database: Database, name: str, now: datetime) -> AccountDomain:
    """Raises InvalidRequest, or Conflict when the name is taken."""
    require_account_name("domain", name)
    made = AccountDomain(id=new_hex_id(), name=name)
    async with database.transaction() as conn:
        try:
            await conn.execute(
                "INSERT INTO domains (id, name, created_at) VALUES (%s, %s, %s)", (made.id, made.name, now)
            )
        except psycopg.errors.UniqueViolation as err:
            raise Conflict(
                conflict_code="9900", reason=f"There is a domain {name} already. Choose another name."
            ) from err
    return made


async def set_project_enabled(database: Database, project_id: str, *, enabled: bool) -> None:
    """Off: nobody works in it; what is in it stays, and its policies go on. Raises AccountNotFound."""
    async with _changing(database) as conn:
        await domain_of_project(conn, project_id)
        await conn.execute("UPDATE projects SET enabled = %s WHERE id = %s", (enabled, project_id))


async def change_user(
    database: Database,
    passwords: Passwords,
    user_id: str,
    now: datetime,
    *,
    password: str | None = None,
    enabled: bool | None = None,
    log_out: bool = False,
) -> None:
    """A new password voids every token of before, and so does log_out; a user turned off has nothing that counts.

    Raises AccountNotFound, InvalidRequest for the password, Conflict when no operator would be left.
    """
    encoded = await passwords.hash(password) if password is not None else None
    async with _changing(database) as conn:
        await _require_user(conn, user_id)
        if encoded is not None:
            await conn.execute("UPDATE users SET password_hash = %s WHERE id = %s", (encoded, user_id))
        if encoded is not None or log_out:
            await conn.execute("UPDATE users SET tokens_not_before = %s WHERE id = %s", (now, user_id))
        if enabled is not None:
            await conn.execute("UPDATE users SET enabled = %s WHERE id = %s", (enabled, user_id))


async def delete_user(database: Database, user_id: str) -> None:
    """With its access keys and roles; what it made in projects stays. Raises AccountNotFound, or Conflict."""
    async with _changing(database) as conn:
        await _require_user(conn, user_id)
        await conn.execute("DELETE FROM users WHERE id = %s", (user_id,))


async def roles_of(database: Database, user_id: str) -> list[Role]:
    """Raises AccountNotFound."""
    async with database.read() as conn:
        await _require_user(conn, user_id)
        cursor = await conn.execute(
            "SELECT a.project_id, p.name, a.role FROM role_assignments a LEFT JOIN projects p ON p.id = a.project_id "
            "WHERE a.user_id = %s ORDER BY p.name NULLS FIRST, p.id, a.role",
            (user_id,),
        )
        return [Role(project_id=row[0], project_name=row[1], role=row[2]) for row in await cursor.fetchall()]


async def give_role(database: Database, user_id: str, role: str, project_id: str) -> None:
    """Idempotent. `admin` makes an operator and needs no project (""); every other role is on one of the user's domain.

    Raises InvalidRequest, AccountNotFound.
    """
    require_role(role)
    async with _changing(database) as conn:
        domain_id = await _require_user(conn, user_id)
        if role == ROLE_OPERATOR:
            if domain_id != "default":
                raise InvalidRequest(reason="Operators are users of the domain default. Make the user there.")
        elif await domain_of_project(conn, project_id) != domain_id:
            raise InvalidRequest(reason="The project is of another domain than the user. Make a user in its domain.")
        await conn.execute(
            "INSERT INTO role_assignments (user_id, project_id, role) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (user_id, None if role == ROLE_OPERATOR else project_id, role),
        )


async def take_role(database: Database, user_id: str, role: str, project_id: str) -> None:
    """Raises AccountNotFound when the user has no such role there, Conflict when no operator would be left."""
    require_role(role)
    async with _changing(database) as conn:
        await _require_user(conn, user_id)
        cursor = await conn.execute(
            "DELETE FROM role_assignments WHERE user_id = %s AND project_id IS NOT DISTINCT FROM %s AND role = %s",
            (user_id, project_id if role != ROLE_OPERATOR and is_hex_id(project_id) else None, role),
        )
        if cursor.rowcount == 0:
            raise AccountNotFound(id=f"role {role}")


async def set_key_enabled(database: Database, access_key: str, *, enabled: bool) -> None:
    """Raises AccountNotFound."""
    if not access_key.isprintable():
        raise AccountNotFound(id="access key")
    async with _changing(database) as conn:
        cursor = await conn.execute("UPDATE access_keys SET enabled = %s WHERE access_key = %s", (enabled, access_key))
        if cursor.rowcount == 0:
            raise AccountNotFound(id=access_key[:_SHOWN_CHARS_MAX])


@asynccontextmanager
async def _changing(database: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """One change of accounts after the other; it is undone when it would leave no operator."""
    async with database.transaction() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        had = await (await conn.execute(_OPERATORS)).fetchone()
        yield conn
        if had is not None and await (await conn.execute(_OPERATORS)).fetchone() is None:  # undoes what was done
            raise Conflict(
                conflict_code="9900",
                reason="This is the last operator, and nobody could manage accounts any more. Make another one first.",
            )


async def _require_user(conn: AsyncConnection[TupleRow], user_id: str) -> str:
    """The domain of the user. Raises AccountNotFound."""
    row = None
    if is_hex_id(user_id):
        row = await (await conn.execute("SELECT domain_id FROM users WHERE id = %s", (user_id,))).fetchone()
    if row is None:
        raise AccountNotFound(id=user_id[:_SHOWN_CHARS_MAX])
    return str(row[0])
