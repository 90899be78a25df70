"""Checkpoints (restore points): one run over one vault, one backup per resource (RULINGS 18).

A request becomes rows in one transaction under the vault's lock: the checkpoint, its resources, their backups and one
task each. Whoever comes second finds the first one's tasks and skips those resources, with code and reason.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, InvalidRequest, ResourceNotFound
from strongroom.base.ids import new_id
from strongroom.control import quotas, tasks
from strongroom.control.checkpoint_views import Checkpoint, checkpoint_of
from strongroom.control.db import Database
from strongroom.control.names import require_description, require_id, require_name
from strongroom.control.promises import promise
from strongroom.control.subjects import VaultRef, lock_vault, vault_full_sentence
from strongroom.control.tasks import NewTask
from strongroom.control.vault_resources import COUNTED_STATUSES, RESOURCES_PER_VAULT_MAX

RETENTION_DAYS_MAX = 36500  # contract
KEEP_FOR_EVER = -1


@dataclass(frozen=True, kw_only=True)
class NewCheckpoint:
    """What a request or a schedule asks for.

    name               None: made up, `manualbk_<4 hex>` or `autobk_<4 hex>`
    resource_ids       None: all of the vault
    extra_infos        resource id -> text kept with it
    retention_days     -1: keep until deleted
    full_resource_ids  those whose backup is full, also in an incremental run
    """

    vault_id: str
    name: str | None = None
    description: str | None = None
    incremental: bool = True
    auto_trigger: bool = False
    resource_ids: tuple[str, ...] | None = None
    extra_infos: Mapping[str, str] = field(default_factory=dict)
    policy_id: str | None = None
    retention_days: int = KEEP_FOR_EVER
    full_resource_ids: frozenset[str] = frozenset()


class _Member(msgspec.Struct, frozen=True, kw_only=True):
    """A resource of the run, planned. skip: (code, reason), or None: it is backed up as `backup_id`."""

    resource_id: str
    type: str
    name: str
    size_bytes: int
    worker_group: str
    source_host: str
    enterprise_project_id: str
    protect_status: str
    status_reason: str | None
    backup_count: int
    backup_id: str = msgspec.field(default_factory=new_id)
    skip: tuple[str, str] | None = None


# --- create ---------------------------------------------------------------------------------------------------------


async def create_checkpoint(
    database: Database, project_id: str, new: NewCheckpoint, *, request_id: str, clock: Clock
) -> Checkpoint:
    """Write the rows of a run; workers do the rest. All rows or none.

    Raises VaultNotFound, ResourceNotFound, InvalidRequest, QuotaExceeded and Conflict: 6124 (vault type), 6113 (vault
    status), 6114 (full), 0001 (nothing to back up), 6135 (resource not of the vault), 6104 (twice), 6125 (met a run).
    """
    _check(new)
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, new.vault_id)
        return await begin_checkpoint(conn, vault, new, request_id=request_id, now=clock.now())


async def begin_checkpoint(
    conn: AsyncConnection[Any], vault: VaultRef, new: NewCheckpoint, *, request_id: str, now: datetime
) -> Checkpoint:
    """The rows of a run, whoever asks for it, in a transaction that holds the vault's lock. Raises as above."""
    checkpoint_id = new_id()
    _require_ready(vault)
    members = await _choose(conn, vault, new.resource_ids)
    busy = await _busy(conn, vault.project_id, [member.resource_id for member in members])
    members = [_planned(member, busy.get(member.resource_id)) for member in members]
    if all(member.skip for member in members):
        reasons = " ".join(dict.fromkeys(member.skip[1] for member in members if member.skip))
        raise Conflict(conflict_code="0001", reason=f"Nothing to back up in vault {vault.name}. {reasons}".strip())
    new = replace(new, name=new.name or await _made_up_name(conn, vault, new.auto_trigger))
    await _write_point(conn, vault, new, checkpoint_id, now)
    await quotas.require_point(conn, vault.project_id)
    try:
        async with conn.pipeline():  # the database writes rows of one table while we put together those of the next
            await _write_members(conn, vault, new, members, checkpoint_id, now)
            await _write_tasks(conn, vault, new, members, checkpoint_id, request_id, now)
    except UniqueViolation as err:
        raise Conflict(
            conflict_code="6125",
            reason="Another backup of one of the resources began at the same moment. Try again.",
            detail=str(err),
        ) from err
    if vault.locked:
        await promise(conn, vault, now)
    return _begun(vault, new, members, checkpoint_id, now)


def _begun(
    vault: VaultRef, new: NewCheckpoint, members: Sequence[_Member], checkpoint_id: str, now: datetime
) -> Checkpoint:
    """What a read of these rows gives, without the read, which takes 8 ms of 256 resources."""
    assert new.name is not None
    point = (checkpoint_id, vault.project_id, "protecting", now, vault.id, vault.name, vault.provider_id, new.name,
             new.description, new.retention_days)  # fmt: skip
    return checkpoint_of(
        [
            (*point, m.resource_id, m.type, m.name, m.size_bytes, new.extra_infos.get(m.resource_id))
            + ((None, None, "waiting_protect", 0, m.backup_count) if m.skip is None else (*m.skip, None, None, None))
            for m in members
        ],
        checkpoint_id,
    )


def _check(new: NewCheckpoint) -> None:
    require_id(new.vault_id, "vault_id")
    if new.name is not None:
        require_name(new.name, "name")
    require_description(new.description, "description")
    days = new.retention_days
    if days != KEEP_FOR_EVER and not 1 <= days <= RETENTION_DAYS_MAX:
        raise InvalidRequest(
            reason=f"Invalid retention_duration_days: give 1 to {RETENTION_DAYS_MAX}, or {KEEP_FOR_EVER} to keep."
        )
    if days != KEEP_FOR_EVER and new.auto_trigger:
        raise InvalidRequest(
            reason="Invalid retention_duration_days: automatic backups expire by their policy. Leave one of both out."
        )
    if new.policy_id is not None:
        require_id(new.policy_id, "policy_id")
    ids = new.resource_ids or ()
    if len(ids) > RESOURCES_PER_VAULT_MAX:
        raise InvalidRequest(reason=f"Invalid resources: name at most {RESOURCES_PER_VAULT_MAX}.")
    for resource_id in ids:
        require_id(resource_id, "resource id")
    if len(set(ids)) < len(ids):
        raise Conflict(conflict_code="6104", reason="The request names a resource twice. Name each once.")


def _require_ready(vault: VaultRef) -> None:
    if vault.protect_type != "backup":
        raise Conflict(
            conflict_code="6124",
            reason=f"Vault {vault.name} is a {vault.protect_type} vault. Back up to a vault of type backup.",
        )
    if vault.status != "available":
        raise Conflict(
            conflict_code="6113", reason=f"Vault {vault.name} is {vault.status}. Backups need an available vault."
        )
    if vault.full:
        raise Conflict(conflict_code="6114", reason=vault_full_sentence(vault))


async def _choose(conn: AsyncConnection[Any], vault: VaultRef, resource_ids: tuple[str, ...] | None) -> list[_Member]:
    """Resources of the vault that the run covers, in the order of the request. Raises Conflict, ResourceNotFound."""
    async with conn.cursor(row_factory=class_row(_Member)) as cursor:
        await cursor.execute(
            "SELECT r.resource_id, r.type, r.name, r.size_bytes, r.protect_status, r.status_reason, p.worker_group, "
            "p.source_host, v.enterprise_project_id, (SELECT count(*) FROM backups b WHERE b.vault_id = r.vault_id AND "
            "b.resource_id = r.resource_id AND b.project_id = r.project_id AND b.status = ANY(%s)) AS backup_count "
            "FROM vault_resources r JOIN protectables p ON p.id = r.resource_id JOIN vaults v ON v.id = r.vault_id "
            "WHERE r.project_id = %s AND r.vault_id = %s AND p.project_id = %s ORDER BY r.created_at, r.resource_id",
            [COUNTED_STATUSES, vault.project_id, vault.id, vault.project_id],
        )
        bound = {member.resource_id: member for member in await cursor.fetchall()}
    foreign = [resource_id for resource_id in resource_ids or () if resource_id not in bound]
    if foreign:
        found = await conn.execute(
            "SELECT id FROM protectables WHERE project_id = %s AND id = ANY(%s) AND removed_at IS NULL",
            [vault.project_id, foreign],
        )
        registered = {row[0] for row in await found.fetchall()}
        for resource_id in foreign:
            if resource_id not in registered:
                raise ResourceNotFound(id=resource_id)
        raise Conflict(
            conflict_code="6135",
            reason=f"Resource {foreign[0]} is not in vault {vault.name}. Add it to the vault first.",
        )
    if not bound:
        raise Conflict(
            conflict_code="0001", reason=f"Vault {vault.name} holds no resources. Add one, then back up again."
        )
    return [bound[resource_id] for resource_id in resource_ids] if resource_ids else list(bound.values())


async def _busy(conn: AsyncConnection[Any], project_id: str, resource_ids: Sequence[str]) -> dict[str, str]:
    """resource id -> `backup` or `restore`, for those that an open task works on; a backup's reason wins."""
    # Looked up one by one, in the two unique indexes of open tasks: a join reads all that wait, however many they are.
    found = await conn.execute(
        """
        SELECT i.id, t.operation_type FROM unnest(%(ids)s::text[]) AS i(id) CROSS JOIN LATERAL (
            SELECT operation_type FROM operation_logs WHERE target_resource_id = i.id AND operation_type = 'restore'
                AND status IN ('waiting', 'running') AND project_id = %(project)s LIMIT 1) t
        UNION ALL
        SELECT i.id, t.operation_type FROM unnest(%(ids)s::text[]) AS i(id) CROSS JOIN LATERAL (
            SELECT operation_type FROM operation_logs WHERE resource_id = i.id AND operation_type = 'backup'
                AND status IN ('waiting', 'running') AND project_id = %(project)s LIMIT 1) t
        """,
        {"project": project_id, "ids": list(resource_ids)},
    )
    return {row[0]: row[1] for row in await found.fetchall()}


def _planned(member: _Member, busy: str | None) -> _Member:
    skip = _skip(member, busy)
    return member if skip is None else msgspec.structs.replace(member, skip=skip)


def _skip(member: _Member, busy: str | None) -> tuple[str, str] | None:
    if busy == "backup":
        return "BackupService.6125", "The resource is being backed up."
    if busy == "restore":
        return "BackupService.2010", "The resource is being restored."
    if member.protect_status == "removing":
        return "BackupService.6134", "The resource is being removed from the vault."
    if member.status_reason is not None:
        return "BackupService.6215", member.status_reason
    return None


async def _made_up_name(conn: AsyncConnection[Any], vault: VaultRef, auto_trigger: bool) -> str:
    if not auto_trigger:
        return f"manualbk_{secrets.token_hex(2)}"
    found = await conn.execute(
        "SELECT coalesce(backup_name_prefix, '') FROM vaults WHERE project_id = %s AND id = %s",
        [vault.project_id, vault.id],
    )
    row = await found.fetchone()
    return f"{row[0] if row else ''}autobk_{secrets.token_hex(2)}"


async def _write_point(
    conn: AsyncConnection[Any], vault: VaultRef, new: NewCheckpoint, checkpoint_id: str, now: datetime
) -> None:
    await conn.execute(
        "INSERT INTO checkpoints (id, project_id, vault_id, vault_name, provider_id, status, name, description, "
        "retention_days, auto_trigger, created_at) VALUES (%s, %s, %s, %s, %s, 'protecting', %s, %s, %s, %s, %s)",
        [checkpoint_id, vault.project_id, vault.id, vault.name, vault.provider_id, new.name, new.description,
         new.retention_days, new.auto_trigger, now],
    )  # fmt: skip


async def _write_members(
    conn: AsyncConnection[Any],
    vault: VaultRef,
    new: NewCheckpoint,
    members: Sequence[_Member],
    checkpoint_id: str,
    now: datetime,
) -> None:
    """One statement a table (RULINGS 4)."""
    # Rows as one document, as tasks.insert does it: 256 rows as arrays cost the driver 10 ms more.
    described = [
        {
            "resource_id": m.resource_id,
            "position": position,
            "type": m.type,
            "name": m.name,
            "size_bytes": m.size_bytes,
            "extra_info": new.extra_infos.get(m.resource_id),
            "skipped_code": m.skip[0] if m.skip else None,
            "skipped_reason": m.skip[1] if m.skip else None,
        }
        for position, m in enumerate(members)
    ]
    await conn.execute(
        "INSERT INTO checkpoint_resources (project_id, checkpoint_id, resource_id, position, type, name, size_bytes, "
        "extra_info, skipped_code, skipped_reason) SELECT %s, %s, r.* FROM json_to_recordset(%s) AS r(resource_id "
        "text, position int, type text, name text, size_bytes bigint, extra_info text, skipped_code text, "
        "skipped_reason text)",
        [vault.project_id, checkpoint_id, msgspec.json.encode(described).decode()],
    )
    ready = [m for m in members if m.skip is None]
    planned = [
        {
            "backup_id": m.backup_id,
            "id": m.resource_id,
            "type": m.type,
            "name": m.name,
            "size": m.size_bytes,
            "eps": m.enterprise_project_id,
        }
        for m in ready
    ]
    expired_at = None if new.retention_days == KEEP_FOR_EVER else now + timedelta(days=new.retention_days)
    await conn.execute(
        "INSERT INTO backups (project_id, vault_id, checkpoint_id, provider_id, status, name, description, "
        "incremental, auto_trigger, created_at, expired_at, id, resource_id, resource_type, resource_name, "
        "resource_size_bytes, enterprise_project_id) SELECT %s, %s, %s, %s, 'waiting_protect', %s, %s, "
        "%s AND r.id <> ALL(%s), %s, %s, %s::timestamptz, r.* FROM json_to_recordset(%s) AS r(backup_id text, id text, "
        "type text, name text, size bigint, eps text)",
        [
            *(vault.project_id, vault.id, checkpoint_id, vault.provider_id, new.name, new.description),
            *(new.incremental, list(new.full_resource_ids), new.auto_trigger, now, expired_at),
            msgspec.json.encode(planned).decode(),
        ],
    )
    await conn.execute(
        "UPDATE vault_resources SET protect_status = 'protecting' "
        "WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s)",
        [vault.project_id, vault.id, [m.resource_id for m in ready]],
    )


async def _write_tasks(
    conn: AsyncConnection[Any],
    vault: VaultRef,
    new: NewCheckpoint,
    members: Sequence[_Member],
    checkpoint_id: str,
    request_id: str,
    now: datetime,
) -> None:
    """One waiting log a backup, one skipped log a skipped resource."""
    ready = [
        NewTask(
            project_id=vault.project_id,
            operation_type="backup",
            request_id=request_id,
            vault_id=vault.id,
            vault_name=vault.name,
            provider_id=vault.provider_id,
            checkpoint_id=checkpoint_id,
            policy_id=new.policy_id,
            backup_id=member.backup_id,
            backup_name=new.name,
            resource_id=member.resource_id,
            resource_type=member.type,
            resource_name=member.name,
            parameters={"incremental": new.incremental and member.resource_id not in new.full_resource_ids},
            worker_group=member.worker_group,
            source_host=member.source_host,
        )
        for member in members
        if member.skip is None
    ]
    await tasks.insert(conn, ready, now)
    skipped = [member for member in members if member.skip is not None]
    if skipped:
        await conn.execute(
            "INSERT INTO operation_logs (project_id, operation_type, status, vault_id, vault_name, provider_id, "
            "checkpoint_id, policy_id, request_id, parameters, created_at, started_at, ended_at, updated_at, id, "
            "resource_id, resource_type, resource_name, error_code, error_message) "
            "SELECT %s, 'backup', 'skipped', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, r.* FROM unnest(%s::text[], "
            "%s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) AS r",
            [
                *(vault.project_id, vault.id, vault.name, vault.provider_id, checkpoint_id, new.policy_id, request_id),
                *(Jsonb({"incremental": new.incremental}), now, now, now, now),
                [new_id() for _ in skipped],
                [m.resource_id for m in skipped],
                [m.type for m in skipped],
                [m.name for m in skipped],
                [m.skip[0] for m in skipped if m.skip],
                [m.skip[1] for m in skipped if m.skip],
            ],
        )


# --- job side -------------------------------------------------------------------------------------------------------


async def settle(
    conn: AsyncConnection[Any],
    project_id: str,
    checkpoint_ids: Sequence[str | None],
    now: datetime,
    *,
    without: str = "error",
) -> None:
    """Derive the status of checkpoints from their backups: protecting while one runs, else available while one is,
    else deleting while one is being deleted, else `without`. The vault's lock MUST be held."""
    await conn.execute(
        """
        UPDATE checkpoints c SET updated_at = %(now)s, status = coalesce((
            SELECT CASE WHEN bool_or(b.status IN ('waiting_protect', 'protecting')) THEN 'protecting'
                        WHEN bool_or(b.status IN ('available', 'waiting_restore', 'restoring')) THEN 'available'
                        WHEN bool_or(b.status IN ('waiting_delete', 'deleting')) THEN 'deleting' END
            FROM backups b WHERE b.project_id = %(project)s AND b.checkpoint_id = c.id AND b.parent_id IS NULL),
            %(without)s)
        WHERE c.project_id = %(project)s AND c.id = ANY(%(ids)s)
        """,
        {"now": now, "project": project_id, "ids": [c for c in checkpoint_ids if c], "without": without},
    )
