"""Organization policies: made, changed and deleted by who administers the domain, for all of its projects at once.

Each change is one transaction: when it is answered every copy is as it says, so the status is always `available`.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, Forbidden, PolicyNotFound
from strongroom.base.ids import new_id
from strongroom.control import organization_copies
from strongroom.control.access import Caller, administers_domain
from strongroom.control.db import Database
from strongroom.control.names import require_description, require_name
from strongroom.control.organization_copies import ALL_PROJECTS, OrganizationPolicy
from strongroom.control.policy_rules import (
    POLICIES_MAX,
    Definition,
    NewPolicy,
    Trigger,
    check_new_policy,
    check_operation_type,
)


@dataclass(frozen=True, kw_only=True)
class OrganizationChange:
    """What a PUT asks for; None leaves a member as it is. Trigger and definition are replaced whole."""

    name: str | None = None
    description: str | None = None
    effective_scope: str | None = None
    policy_name: str | None = None
    enabled: bool | None = None
    trigger: Trigger | None = None
    definition: Definition | None = None


async def create(
    database: Database,
    caller: Caller,
    *,
    name: str,
    description: str | None,
    effective_scope: str | None,
    policy: NewPolicy,
    region: str,
    clock: Clock,
) -> OrganizationPolicy:
    """Make a policy and its copies. Raises Forbidden, InvalidRequest, Conflict 6001 (too many)."""
    _require_administrator(caller)
    made = OrganizationPolicy(
        id=new_id(),
        domain_id=caller.domain_id,
        domain_name=caller.domain_name,
        name=name,
        description=description,
        effective_scope=_scope(effective_scope),
        policy=policy,
    )
    now = clock.now()
    _check(made)
    check_new_policy(policy, region=region, now=now)
    async with database.transaction() as conn:
        await organization_copies.lock_domain(conn, caller.domain_id)
        await _require_room(conn, made)
        await conn.execute(
            "INSERT INTO organization_policies (id, domain_id, operation_type, created_at, name, description, "
            "effective_scope, policy_name, enabled, patterns, time_zone, start_window_minutes, definition) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [made.id, made.domain_id, policy.operation_type, now, *_values(made)],
        )
        await organization_copies.settle(conn, made, region=region, now=now)
    return made


async def list_all(
    database: Database, caller: Caller, *, operation_type: str | None = None
) -> list[OrganizationPolicy]:
    """Those of the caller's domain, newest first. Raises Forbidden, InvalidRequest."""
    _require_administrator(caller)
    check_operation_type(operation_type, "operation_type")
    async with database.transaction() as conn:
        found = await organization_copies.load(conn, caller.domain_id)
    return [one for one in found if operation_type in (None, one.policy.operation_type)]


async def show(database: Database, caller: Caller, policy_id: str) -> OrganizationPolicy:
    """Raises Forbidden, PolicyNotFound."""
    _require_administrator(caller)
    async with database.transaction() as conn:
        return await _require(conn, caller, policy_id)


async def update(
    database: Database, caller: Caller, policy_id: str, change: OrganizationChange, *, region: str, clock: Clock
) -> OrganizationPolicy:
    """Change a policy and every copy of it, all or none.

    Raises Forbidden, PolicyNotFound, InvalidRequest, Conflict 6003 and 6110 (a project's vaults do not let it).
    """
    _require_administrator(caller)
    now = clock.now()
    async with database.transaction() as conn:
        before = await _require(conn, caller, policy_id, lock=True)
        after = _changed(before, change)
        _check(after)
        check_new_policy(after.policy, region=region, now=now)
        await conn.execute(
            "UPDATE organization_policies SET name = %s, description = %s, effective_scope = %s, policy_name = %s, "
            "enabled = %s, patterns = %s, time_zone = %s, start_window_minutes = %s, definition = %s, updated_at = %s "
            "WHERE domain_id = %s AND id = %s",
            [*_values(after), now, caller.domain_id, policy_id],
        )
        await organization_copies.settle(conn, after, region=region, now=now)
    return after


async def delete(database: Database, caller: Caller, policy_id: str) -> None:
    """Copies that no vault uses go with it; those in use become the projects' own. Raises Forbidden, PolicyNotFound."""
    _require_administrator(caller)
    async with database.transaction() as conn:
        await _require(conn, caller, policy_id, lock=True)
        await organization_copies.let_go(conn, policy_id)
        await conn.execute(
            "DELETE FROM organization_policies WHERE domain_id = %s AND id = %s", [caller.domain_id, policy_id]
        )


async def list_copies(database: Database, caller: Caller, policy_id: str) -> list[tuple[str, str]]:
    """(id of the copy, its project), by project. Raises Forbidden, PolicyNotFound."""
    _require_administrator(caller)
    async with database.transaction() as conn:
        await _require(conn, caller, policy_id)
        return await organization_copies.list_copies(conn, policy_id)


def _require_administrator(caller: Caller) -> None:
    if not administers_domain(caller):
        raise Forbidden(
            reason="Policies of the organization are for the administrator of its domain. Those that hold for your "
            "project stand among its policies."
        )


async def _require(
    conn: AsyncConnection[Any], caller: Caller, policy_id: str, *, lock: bool = False
) -> OrganizationPolicy:
    found = await organization_copies.load(conn, caller.domain_id, policy_id, lock=lock)
    if not found:
        raise PolicyNotFound(id=policy_id)
    return found[0]


async def _require_room(conn: AsyncConnection[Any], new: OrganizationPolicy) -> None:
    found = await conn.execute(
        "SELECT count(*) FROM organization_policies WHERE domain_id = %s AND operation_type = %s",
        [new.domain_id, new.policy.operation_type],
    )
    row = await found.fetchone()
    if row is not None and row[0] >= POLICIES_MAX:
        raise Conflict(
            conflict_code="6001",
            reason=f"The quota of {POLICIES_MAX} {new.policy.operation_type} policies of the organization is used up. "
            "Delete one first.",
        )


def _check(policy: OrganizationPolicy) -> None:
    require_name(policy.name, "policy.name")
    require_description(policy.description, "policy.description")
    require_description(policy.effective_scope, "policy.effective_scope")


def _scope(text: str | None) -> str:
    return text or ALL_PROJECTS


def _changed(before: OrganizationPolicy, change: OrganizationChange) -> OrganizationPolicy:
    given = {field.name: value for field in fields(change) if (value := getattr(change, field.name)) is not None}
    own = {name: given.pop(name) for name in ("name", "description", "effective_scope") if name in given}
    if "effective_scope" in own:
        own["effective_scope"] = _scope(own["effective_scope"])
    if "policy_name" in given:
        given["name"] = given.pop("policy_name")
    return replace(before, **own, policy=replace(before.policy, **given))


def _values(policy: OrganizationPolicy) -> list[Any]:
    new = policy.policy
    return [
        *(policy.name, policy.description, policy.effective_scope, new.name, new.enabled),
        *(list(new.trigger.patterns), new.trigger.time_zone, new.trigger.start_window_minutes),
        Jsonb(new.definition.given()),
    ]
