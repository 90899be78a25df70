"""Projects as their own people see them: those on which somebody has a role. Others are as if they were not there.

With a Keystone of the operator's own only the project of the token is known to be the caller's.

An administrator of the domain knows the names of all its projects; what is in them, only with a role there.
"""

from dataclasses import dataclass

from psycopg.rows import class_row

from strongroom.base.errors import AccountNotFound
from strongroom.control.access import Caller, administers_domain
from strongroom.control.db import Database

_SEEN = """
    SELECT p.id, p.name, p.description, p.enabled, p.domain_id, d.name AS domain_name
    FROM projects p JOIN domains d ON d.id = p.domain_id
    WHERE (EXISTS (SELECT 1 FROM role_assignments a WHERE a.user_id = %(user)s AND a.project_id = p.id)
           OR p.id = %(own)s OR (%(admin)s AND p.domain_id = %(domain)s))
      AND (%(project)s::text IS NULL OR p.id = %(project)s)
      AND (%(name)s::text IS NULL OR d.name = %(name)s)
    ORDER BY p.name, p.id
"""


@dataclass(frozen=True, kw_only=True)
class SeenProject:
    """A project that the caller may know of, and the domain it belongs to."""

    id: str
    name: str
    description: str
    enabled: bool
    domain_id: str
    domain_name: str


async def list_seen(database: Database, caller: Caller) -> list[SeenProject]:
    """By name."""
    return await _select(database, caller)


async def list_of_domain(database: Database, caller: Caller, domain_name: str) -> list[SeenProject]:
    """Those of one domain, by name. Raises AccountNotFound for a domain that has none for the caller."""
    found = await _select(database, caller, name=domain_name) if domain_name.isprintable() else []
    if not found and domain_name != caller.domain_name:
        raise AccountNotFound(id="domain")
    return found


async def show_seen(database: Database, caller: Caller, project_id: str) -> SeenProject:
    """Raises AccountNotFound."""
    found = await _select(database, caller, project_id=project_id)
    if not found:
        raise AccountNotFound(id=project_id)
    return found[0]


async def _select(
    database: Database, caller: Caller, *, project_id: str | None = None, name: str | None = None
) -> list[SeenProject]:
    async with database.read(class_row(SeenProject)) as conn:
        found = await conn.execute(
            _SEEN,
            {
                "user": caller.user_id,
                "own": caller.project_id,
                "domain": caller.domain_id,
                "admin": administers_domain(caller),
                "project": project_id,
                "name": name,
            },
        )
        return await found.fetchall()
