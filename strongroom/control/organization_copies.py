"""The copies of an organization's policy: an ordinary policy in every project that it is for, which only follows.

Locks: the domain's row first, then copies project by project. The domain's row is what a new project refers to, so
whoever makes a project and whoever makes a policy for all see each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.errors import Conflict, InvalidRequest
from strongroom.control.policies import change_policy, insert_policy, lock_copies
from strongroom.control.policy_rules import ORGANIZATION, REMOVED, Definition, NewPolicy, PolicyChange, Trigger

ALL_PROJECTS = "all"  # of effective_scope


@dataclass(frozen=True, kw_only=True)
class OrganizationPolicy:
    """A policy of a domain. policy: what each copy is; effective_scope: `all`, or ids of projects with commas."""

    id: str
    domain_id: str
    domain_name: str
    name: str
    description: str | None
    effective_scope: str
    policy: NewPolicy


_COLUMNS: LiteralString = """o.id, o.domain_id, d.name AS domain_name, o.name, o.description, o.effective_scope,
    o.operation_type, o.policy_name, o.enabled, o.patterns, o.time_zone, o.start_window_minutes, o.definition"""


async def load(
    conn: AsyncConnection[Any], domain_id: str, policy_id: str | None = None, *, lock: bool = False
) -> list[OrganizationPolicy]:
    """Those of the domain, newest first, or the one with this id. lock: for a change, with the domain's row before."""
    if lock:
        await lock_domain(conn, domain_id)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM organization_policies o JOIN domains d ON d.id = o.domain_id "  # noqa: S608
            "WHERE o.domain_id = %(domain)s AND (%(policy)s::text IS NULL OR o.id = %(policy)s) "
            "ORDER BY o.created_at DESC, o.id DESC".encode(),
            {"domain": domain_id, "policy": policy_id},
        )
        return [_organization_policy(row) for row in await cursor.fetchall()]


async def lock_domain(conn: AsyncConnection[Any], domain_id: str) -> None:
    """No project joins, and no other policy of the organization changes, until the transaction ends."""
    await conn.execute("SELECT 1 FROM domains WHERE id = %s FOR UPDATE", [domain_id])


def _organization_policy(row: dict[str, Any]) -> OrganizationPolicy:
    return OrganizationPolicy(
        id=row["id"],
        domain_id=row["domain_id"],
        domain_name=row["domain_name"],
        name=row["name"],
        description=row["description"],
        effective_scope=row["effective_scope"],
        policy=NewPolicy(
            name=row["policy_name"],
            operation_type=row["operation_type"],
            enabled=row["enabled"],
            trigger=Trigger(
                patterns=tuple(row["patterns"]),
                time_zone=row["time_zone"],
                start_window_minutes=row["start_window_minutes"],
            ),
            definition=Definition(**row["definition"]),
        ),
    )


async def projects_of(conn: AsyncConnection[Any], policy: OrganizationPolicy) -> list[str]:
    """Ids of the projects that it is for. Raises InvalidRequest for a scope that names no project of the domain."""
    found = await conn.execute("SELECT id FROM projects WHERE domain_id = %s ORDER BY id", [policy.domain_id])
    there = [row[0] for row in await found.fetchall()]
    if policy.effective_scope == ALL_PROJECTS:
        return there
    wanted = {part.strip() for part in policy.effective_scope.split(",")}
    if not wanted <= set(there):
        raise InvalidRequest(
            reason=f"Invalid policy.effective_scope: give {ALL_PROJECTS}, or ids of projects of your domain with "
            "commas between them."
        )
    return [project_id for project_id in there if project_id in wanted]


async def settle(conn: AsyncConnection[Any], policy: OrganizationPolicy, *, region: str, now: datetime) -> None:
    """Every project in scope has its copy as the policy is now, no other has one. The domain's lock MUST be held.

    Raises InvalidRequest; Conflict 6003 and 6110 when a project's vaults do not let its copy change: nothing is then.
    """
    wanted = await projects_of(conn, policy)
    for project_id in wanted:
        copies = await lock_copies(conn, project_id, policy.id)
        if not copies:
            await insert_policy(conn, project_id, policy.policy, now, organization_policy_id=policy.id)
            continue
        new = policy.policy
        change = PolicyChange(name=new.name, enabled=new.enabled, trigger=new.trigger, definition=new.definition)
        try:
            await change_policy(conn, copies[0], change, region=region, now=now)
        except Conflict as err:
            raise Conflict(
                conflict_code=err.conflict_code,
                reason=f"A vault of project {project_id} does not let the policy change like this: it is locked and "
                "has promised more, or the destination is fixed while the policy is applied. Nothing was changed.",
                detail=str(err),
            ) from err
    await let_go(conn, policy.id, except_for=wanted)


async def let_go(conn: AsyncConnection[Any], policy_id: str, *, except_for: Sequence[str] = ()) -> None:
    """Copies that no vault uses go; one that is in use goes on protecting it, as the project's own policy."""
    found = await conn.execute(
        "SELECT project_id, id FROM policies WHERE organization_policy_id = %s AND project_id <> ALL(%s) "
        "ORDER BY project_id, id FOR UPDATE",
        [policy_id, list(except_for)],
    )
    for project_id, copy_id in await found.fetchall():
        await conn.execute(
            "DELETE FROM policies WHERE project_id = %(project)s AND id = %(policy)s AND NOT EXISTS (SELECT 1 "
            "FROM policy_vaults WHERE project_id = %(project)s AND policy_id = %(policy)s)",
            {"project": project_id, "policy": copy_id},
        )
        await conn.execute(
            "UPDATE policies SET organization_policy_id = NULL, policy_type = %s WHERE project_id = %s AND id = %s",
            [REMOVED, project_id, copy_id],
        )


async def give_policies(conn: AsyncConnection[Any], domain_id: str, project_id: str, now: datetime) -> None:
    """A project that joins the domain gets a copy of each policy that is for all. Its row is in this transaction."""
    for policy in await load(conn, domain_id):
        if policy.effective_scope == ALL_PROJECTS:
            await insert_policy(conn, project_id, policy.policy, now, organization_policy_id=policy.id)


async def list_copies(conn: AsyncConnection[Any], policy_id: str) -> list[tuple[str, str]]:
    """(id of the copy, its project), by project."""
    found = await conn.execute(
        "SELECT id, project_id FROM policies WHERE organization_policy_id = %s AND policy_type = %s "
        "ORDER BY project_id",
        [policy_id, ORGANIZATION],
    )
    return [(row[0], row[1]) for row in await found.fetchall()]
