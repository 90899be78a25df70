"""Policies: create, read, change and delete them, and apply them to vaults. Rules are in policy_rules.

Locks: vault, then policy, then the row of policy_vaults. A change of a policy takes the last two, whatever its vaults
do; applying one takes all three, and so does a firing. So each sees the others before or after, never half.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, Forbidden, InvalidRequest, PolicyNotApplied, PolicyNotFound
from strongroom.base.ids import new_id
from strongroom.control import policy_rules, retention
from strongroom.control.db import Database
from strongroom.control.names import require_id
from strongroom.control.policy_rules import (
    CUSTOM,
    ORGANIZATION,
    POLICIES_MAX,
    Association,
    Definition,
    NewPolicy,
    Policy,
    PolicyChange,
    Trigger,
    check_new_policy,
    check_operation_type,
    next_run_at,
)
from strongroom.control.replications import Destination
from strongroom.control.retention import RetentionRules
from strongroom.control.subjects import VaultRef, lock_vault
from strongroom.control.vault_kinds import VAULT_KINDS
from strongroom.control.vault_resources import require_available

APPLIED_AT_ONCE_MAX = 10  # contract, of add_policy_ids

_COLUMNS: LiteralString = """id, project_id, name, operation_type, enabled, trigger_id, patterns, time_zone,
    start_window_minutes, start_at, definition, retention_changed_at, policy_type, organization_policy_id"""


# --- policies ---------------------------------------------------------------------------------------------------------


async def create_policy(database: Database, project_id: str, new: NewPolicy, *, region: str, clock: Clock) -> Policy:
    """Make a policy; it fires for the vaults it is applied to. Raises InvalidRequest, Conflict 6001 (too many)."""
    now = clock.now()
    check_new_policy(new, region=region, now=now)
    async with database.transaction() as conn:
        await _require_room(conn, project_id, new.operation_type)
        return await insert_policy(conn, project_id, new, now)


async def insert_policy(
    conn: AsyncConnection[Any],
    project_id: str,
    new: NewPolicy,
    now: datetime,
    *,
    organization_policy_id: str | None = None,
) -> Policy:
    """The row of a policy that was checked; of an organization's policy the project's copy."""
    policy = Policy(
        id=new_id(),
        project_id=project_id,
        name=new.name,
        operation_type=new.operation_type,
        enabled=new.enabled,
        trigger_id=new_id(),
        trigger=new.trigger,
        start_at=now,
        definition=new.definition,
        retention_changed_at=now,
        policy_type=CUSTOM if organization_policy_id is None else ORGANIZATION,
        organization_policy_id=organization_policy_id,
    )
    await conn.execute(
        "INSERT INTO policies (id, project_id, name, operation_type, enabled, trigger_id, patterns, time_zone, "
        "start_window_minutes, start_at, definition, retention_changed_at, policy_type, organization_policy_id, "
        "created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            *(policy.id, project_id, policy.name, policy.operation_type, policy.enabled, policy.trigger_id),
            *(list(policy.trigger.patterns), policy.trigger.time_zone, policy.trigger.start_window_minutes),
            *(policy.start_at, Jsonb(policy.definition.given()), policy.retention_changed_at),
            *(policy.policy_type, organization_policy_id, now),
        ],
    )
    return policy


async def show_policy(database: Database, project_id: str, policy_id: str) -> Policy:
    """Raises PolicyNotFound."""
    async with database.transaction() as conn:
        return await _require_policy(conn, project_id, policy_id)


async def list_policies(
    database: Database, project_id: str, *, operation_type: str | None = None, vault_id: str | None = None
) -> list[Policy]:
    """All policies of the project, newest first; with vault_id those applied to it. Raises InvalidRequest."""
    check_operation_type(operation_type, "operation_type")
    if vault_id is not None:
        require_id(vault_id, "vault_id")
    async with database.transaction() as conn:
        return await _load(
            conn,
            project_id,
            "AND (%(kind)s::text IS NULL OR operation_type = %(kind)s) AND (%(vault)s::text IS NULL OR id IN (SELECT "
            "policy_id FROM policy_vaults WHERE project_id = %(project)s AND vault_id = %(vault)s))",
            {"kind": operation_type, "vault": vault_id},
        )


async def update_policy(
    database: Database, project_id: str, policy_id: str, change: PolicyChange, *, region: str, clock: Clock
) -> Policy:
    """Change a policy and when it fires next, and return it. What is under way goes on as it began.

    Raises PolicyNotFound, Forbidden (the organization's), InvalidRequest, Conflict: 6003 (another region while it is
    applied to a vault), 6110 (keeps less than a locked vault has promised).
    """
    async with database.transaction() as conn:
        before = await _require_policy(conn, project_id, policy_id, lock="FOR UPDATE")
        _refuse_owned(before)
        return await change_policy(conn, before, change, region=region, now=clock.now())


async def change_policy(
    conn: AsyncConnection[Any], before: Policy, change: PolicyChange, *, region: str, now: datetime
) -> Policy:
    """The same for a policy whose row is locked, whoever owns it. Raises as above."""
    project_id, policy_id = before.project_id, before.id
    after = policy_rules.changed(before, change, region=region)
    if before.vaults and after.definition.destination_region != before.definition.destination_region:
        raise Conflict(
            conflict_code="6003",
            reason="The policy is applied to a vault, so its destination region is fixed. Remove it there first.",
        )
    rules = [policy_rules.rules_of(policy) for policy in (before, after)]
    await conn.execute(
        "UPDATE policies SET name = %s, enabled = %s, patterns = %s, time_zone = %s, start_window_minutes = %s, "
        "definition = %s, retention_changed_at = %s, updated_at = %s WHERE project_id = %s AND id = %s",
        [
            *(after.name, after.enabled, list(after.trigger.patterns), after.trigger.time_zone),
            *(after.trigger.start_window_minutes, Jsonb(after.definition.given())),
            *(before.retention_changed_at if rules[0] == rules[1] else now, now, project_id, policy_id),
        ],
    )
    if retention.shortens(*rules):
        await _refuse_locked(conn, project_id, [association.vault_id for association in before.vaults])
    # Otherwise a run that is due stays due: a new name is no reason to miss one.
    if (after.trigger, after.enabled) != (before.trigger, before.enabled):
        for association in after.vaults:
            await conn.execute(
                "UPDATE policy_vaults SET next_fire_at = %s WHERE project_id = %s AND vault_id = %s AND policy_id = %s",
                [next_run_at(after, association.vault_id, now), project_id, association.vault_id, policy_id],
            )
    return after


async def delete_policy(database: Database, project_id: str, policy_id: str) -> None:
    """Delete a policy; vaults it was applied to lose it, backups stay. Raises PolicyNotFound, Forbidden."""
    async with database.transaction() as conn:
        _refuse_owned(await _require_policy(conn, project_id, policy_id, lock="FOR UPDATE"))
        await conn.execute("DELETE FROM policies WHERE project_id = %s AND id = %s", [project_id, policy_id])


async def lock_copies(conn: AsyncConnection[Any], project_id: str, organization_policy_id: str) -> list[Policy]:
    """The project's copy of an organization's policy, locked; none or one."""
    return await _load(
        conn, project_id, "AND organization_policy_id = %(owner)s FOR UPDATE", {"owner": organization_policy_id}
    )


def _refuse_owned(policy: Policy) -> None:
    if policy.policy_type == ORGANIZATION:
        raise Forbidden(
            reason=f"Policy {policy.name} is your organization's: its administrator changes it for all projects. "
            "You may apply it to your vaults, and take it from them."
        )


# --- applied to vaults ------------------------------------------------------------------------------------------------


async def associate_policies(
    database: Database,
    project_id: str,
    vault_id: str,
    policy_ids: Sequence[str],
    destination: Destination | None,
    clock: Clock,
) -> None:
    """Apply policies to a vault, each in turn, all or none: one of a kind, so a second one takes the first one's place.

    destination  of replicas, as it was checked over there; None: not given

    Raises VaultNotFound, PolicyNotFound, InvalidRequest, Conflict: 6112 (vault status), 6127, 6136 (of another kind
    than the vault), 6120 (destination), 6110 (keeps less than a locked vault has promised).
    """
    if not 1 <= len(policy_ids) <= APPLIED_AT_ONCE_MAX:
        raise InvalidRequest(reason=f"Invalid add_policy_ids: give 1 to {APPLIED_AT_ONCE_MAX} ids.")
    for policy_id in policy_ids:
        require_id(policy_id, "policy_id")
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault, "lock", "error")
        for policy_id in policy_ids:
            await apply_policy(conn, vault, policy_id, clock.now(), destination=destination)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where a replication policy wants replicas of a vault of this object type to go."""

    region: str
    project_id: str
    object_type: str


async def destination_wanted(
    database: Database, project_id: str, vault_id: str, policy_ids: Sequence[str]
) -> Wanted | None:
    """What has to be checked over there before these policies are applied; None: none of them replicates.

    Raises VaultNotFound, PolicyNotFound, Conflict 6127 (not of this vault).
    """
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        for policy_id in policy_ids:
            policy = await _require_policy(conn, project_id, require_id(policy_id, "policy_id"))
            if policy.operation_type == "replication":
                object_type = await _require_replicable(conn, vault)
                region, project = destination_of(policy)
                return Wanted(region=region, project_id=project, object_type=object_type)
    return None


async def apply_policy(
    conn: AsyncConnection[Any],
    vault: VaultRef,
    policy_id: str,
    now: datetime,
    *,
    destination: Destination | None = None,
) -> None:
    """Apply one policy to a vault whose lock is held. Applied again it changes nothing, a due run included."""
    policy = await _require_policy(conn, vault.project_id, policy_id, lock="FOR SHARE", with_vaults=False)
    await _require_fit(conn, vault, policy, destination)
    destination_vault_id = destination.vault_id if destination and policy.operation_type == "replication" else None
    if vault.locked and policy.operation_type == "backup":
        present = await lock_policy_of(conn, vault)
        if present is None or present[0].id != policy.id:
            before = RetentionRules() if present is None else policy_rules.rules_of(present[0])
            if retention.shortens(before, policy_rules.rules_of(policy)):
                await _refuse_locked(conn, vault.project_id, [vault.id])
    await conn.execute(
        "INSERT INTO policy_vaults AS a (project_id, vault_id, operation_type, policy_id, destination_vault_id, "
        "next_fire_at, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (vault_id, operation_type) "
        "DO UPDATE SET policy_id = excluded.policy_id, destination_vault_id = excluded.destination_vault_id, "
        "next_fire_at = excluded.next_fire_at, created_at = excluded.created_at "
        "WHERE a.project_id = excluded.project_id AND (a.policy_id, a.destination_vault_id) "
        "IS DISTINCT FROM (excluded.policy_id, excluded.destination_vault_id)",
        [
            *(vault.project_id, vault.id, policy.operation_type, policy.id, destination_vault_id),
            *(next_run_at(policy, vault.id, now), now),
        ],
    )


async def dissociate_policy(database: Database, project_id: str, vault_id: str, policy_id: str) -> None:
    """Take a policy from a vault; backups stay. Raises VaultNotFound, PolicyNotFound, PolicyNotApplied (6002)."""
    require_id(policy_id, "policy_id")
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        await _require_policy(conn, project_id, policy_id, lock="FOR SHARE")
        done = await conn.execute(
            "DELETE FROM policy_vaults WHERE project_id = %s AND vault_id = %s AND policy_id = %s",
            [project_id, vault.id, policy_id],
        )
        if done.rowcount == 0:
            raise PolicyNotApplied(id=policy_id, vault=vault.name)


async def lock_policy_of(
    conn: AsyncConnection[Any], vault: VaultRef, operation_type: str = "backup"
) -> tuple[Policy, datetime] | None:
    """The policy of a kind applied to a vault whose lock is held, and since when; None: there is none.

    Neither changes until the transaction ends. Its vaults are not read: each of ten thousand would read all of them.
    """
    found = await conn.execute(
        "SELECT a.policy_id, a.created_at FROM policy_vaults a JOIN policies p ON p.id = a.policy_id "
        "WHERE a.project_id = %s AND a.vault_id = %s AND a.operation_type = %s FOR SHARE OF p",
        [vault.project_id, vault.id, operation_type],
    )
    row = await found.fetchone()
    if row is None:
        return None
    return await _require_policy(conn, vault.project_id, row[0], with_vaults=False), row[1]


async def unbind_vault(conn: AsyncConnection[Any], vault: VaultRef) -> None:
    """A vault that goes away fires no more. Its lock MUST be held."""
    await conn.execute(
        "DELETE FROM policy_vaults WHERE project_id = %s AND vault_id = %s", [vault.project_id, vault.id]
    )


async def _refuse_locked(conn: AsyncConnection[Any], project_id: str, vault_ids: Sequence[str]) -> None:
    """Raises Conflict 6110 when one of the vaults is locked and holds restore points that a rule by count could end."""
    found = await conn.execute(
        "SELECT v.name FROM vaults v WHERE v.project_id = %s AND v.id = ANY(%s) AND v.locked AND EXISTS (SELECT 1 "
        "FROM backups b WHERE b.project_id = v.project_id AND b.vault_id = v.id AND b.auto_trigger "
        "AND b.root IS NOT NULL) LIMIT 1",
        [project_id, list(vault_ids)],
    )
    row = await found.fetchone()
    if row is not None:
        raise Conflict(
            conflict_code="6110",
            reason=f"Vault {row[0]} is locked: its restore points may not go sooner than they were promised to. Keep "
            "at least what the policy keeps now.",
        )


async def _require_fit(
    conn: AsyncConnection[Any], vault: VaultRef, policy: Policy, destination: Destination | None
) -> None:
    if policy.operation_type == "backup":
        if "hybrid" in (vault.protect_type, (await _kind_of(conn, vault))[1]):
            raise Conflict(conflict_code="6136", reason=f"Vault {vault.name} is hybrid: it takes no backup policy.")
        if vault.protect_type != "backup":
            raise Conflict(
                conflict_code="6127",
                reason=f"Vault {vault.name} is a {vault.protect_type} vault. Backup policies are for backup vaults.",
            )
        return
    await _require_replicable(conn, vault)
    if destination is None:
        raise InvalidRequest(reason="Invalid destination_vault_id: a replication policy needs it.")
    if (destination.region, destination.project_id) != destination_of(policy):
        raise Conflict(conflict_code="6120", reason="The policy names another destination by now. Apply it again.")


async def _kind_of(conn: AsyncConnection[Any], vault: VaultRef) -> tuple[str, str]:
    """(object type, cloud type) of a vault whose lock is held."""
    found = await conn.execute(
        "SELECT object_type, cloud_type FROM vaults WHERE project_id = %s AND id = %s", [vault.project_id, vault.id]
    )
    row = await found.fetchone()
    assert row is not None, "the caller holds the vault's lock"
    return row[0], row[1]


async def _require_replicable(conn: AsyncConnection[Any], vault: VaultRef) -> str:
    """The vault's object type. Raises Conflict 6127."""
    object_type, _ = await _kind_of(conn, vault)
    if vault.protect_type != "backup" or not VAULT_KINDS[object_type].replicable:
        raise Conflict(
            conflict_code="6127",
            reason=f"Vault {vault.name} holds {object_type} and is of type {vault.protect_type}. Replication policies "
            "are for backup vaults of servers and shares.",
        )
    return object_type


def destination_of(policy: Policy) -> tuple[str, str]:
    """Region and project that a replication policy names."""
    definition = policy.definition
    return definition.destination_region or "", definition.destination_project_id or ""


# --- rows -------------------------------------------------------------------------------------------------------------


async def _require_policy(
    conn: AsyncConnection[Any], project_id: str, policy_id: str, *, lock: LiteralString = "", with_vaults: bool = True
) -> Policy:
    values: dict[str, object] = {"policy": policy_id}
    found = await _load(conn, project_id, f"AND id = %(policy)s {lock}", values, with_vaults=with_vaults)
    if not found:
        raise PolicyNotFound(id=policy_id)
    return found[0]


async def _load(
    conn: AsyncConnection[Any],
    project_id: str,
    condition: str,
    values: dict[str, object],
    *,
    with_vaults: bool = True,
) -> list[Policy]:
    """Policies, with their vaults if those are wanted; `condition` is ours."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        tail = condition if "FOR " in condition else f"{condition} ORDER BY created_at DESC, id DESC"
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM policies WHERE project_id = %(project)s {tail}".encode(),  # noqa: S608
            {"project": project_id, **values},
        )
        rows = await cursor.fetchall()
        if not with_vaults:
            return [_policy(row, ()) for row in rows]
        await cursor.execute(
            "SELECT policy_id, vault_id, destination_vault_id FROM policy_vaults WHERE project_id = %s "
            "AND policy_id = ANY(%s) ORDER BY created_at, vault_id",
            [project_id, [row["id"] for row in rows]],
        )
        vaults: dict[str, list[Association]] = {row["id"]: [] for row in rows}
        for row in await cursor.fetchall():
            vaults[row.pop("policy_id")].append(Association(**row))
    return [_policy(row, vaults[row["id"]]) for row in rows]


def _policy(row: dict[str, Any], vaults: Sequence[Association]) -> Policy:
    return Policy(
        trigger=Trigger(
            patterns=tuple(row.pop("patterns")),
            time_zone=row.pop("time_zone"),
            start_window_minutes=row.pop("start_window_minutes"),
        ),
        definition=Definition(**row.pop("definition")),
        vaults=tuple(vaults),
        **row,
    )


async def _require_room(conn: AsyncConnection[Any], project_id: str, operation_type: str) -> None:
    """Policies of one project are made one after the other, so that the quota holds for two creations at once."""
    await conn.execute("SELECT 1 FROM projects WHERE id = %s FOR NO KEY UPDATE", [project_id])
    found = await conn.execute(
        "SELECT count(*) FROM policies WHERE project_id = %s AND operation_type = %s AND policy_type <> %s",
        [project_id, operation_type, ORGANIZATION],
    )
    row = await found.fetchone()
    if row is not None and row[0] >= POLICIES_MAX:
        raise Conflict(
            conflict_code="6001",
            reason=f"The quota of {POLICIES_MAX} {operation_type} policies is used up. Delete one first.",
        )
