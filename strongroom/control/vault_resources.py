"""Resources of vaults: read them with what their backups hold, suspend them, and start their removal.

Binding is resource_binding's. A removal deletes backups, so it is a task; the request decides under the vault's lock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, InvalidRequest
from strongroom.control import tasks
from strongroom.control.db import Database
from strongroom.control.names import require_id
from strongroom.control.subjects import VaultRef, lock_vault

RESOURCES_PER_VAULT_MAX = 256  # contract, also the most of one call

# Backups that hold data of the tenant: what failed, runs or goes away is not counted (RULINGS 19: the numbers drop
# when a delete is accepted, not when space is free).
COUNTED_STATUSES = ["available", "restoring", "waiting_restore"]


@dataclass(frozen=True, kw_only=True)
class VaultResource:
    """A bound resource. size_bytes: logical, of the last backup or of binding; backup_bytes: stored, of all backups."""

    vault_id: str
    id: str
    type: str
    name: str
    size_bytes: int
    protect_status: str
    auto_protect: bool
    extra_info: dict[str, Any] = field(default_factory=dict)
    backup_count: int
    backup_bytes: int


async def load_resources(
    conn: AsyncConnection[Any], project_id: str, vault_ids: Sequence[str]
) -> dict[str, list[VaultResource]]:
    """Resources of these vaults by vault id, in the order they were bound."""
    found: dict[str, list[VaultResource]] = {vault_id: [] for vault_id in vault_ids}
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT r.vault_id, r.resource_id AS id, r.type, r.name, r.size_bytes, r.protect_status, r.auto_protect,
                   r.extra_info, coalesce(b.n, 0) AS backup_count, coalesce(b.bytes, 0)::bigint AS backup_bytes
            FROM vault_resources r LEFT JOIN (
                SELECT vault_id, resource_id, count(*) AS n, sum(stored_bytes) AS bytes FROM backups
                WHERE project_id = %(project)s AND vault_id = ANY(%(vaults)s) AND status = ANY(%(counted)s)
                GROUP BY vault_id, resource_id
            ) b ON b.vault_id = r.vault_id AND b.resource_id = r.resource_id
            WHERE r.project_id = %(project)s AND r.vault_id = ANY(%(vaults)s)
            ORDER BY r.created_at, r.resource_id
            """,
            {"project": project_id, "vaults": list(vault_ids), "counted": COUNTED_STATUSES},
        )
        for row in await cursor.fetchall():
            found[row["vault_id"]].append(VaultResource(**row))
    return found


async def remove_resources(
    database: Database, project_id: str, vault_id: str, resource_ids: Sequence[str], request_id: str, clock: Clock
) -> None:
    """Start the removal of resources with all their backups in this vault: their rows say `removing`, one task exists.

    Raises VaultNotFound, or Conflict: 6112 (vault deleting or locked), 6135 (not in it), 6134 (already on the way),
    6125 (a backup runs), 2010 (a restore runs). A refused call changes nothing.
    """
    check_ids(resource_ids)
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault, "error")
        if vault.locked:
            raise Conflict(
                reason="The vault is locked: backups leave it only by expiry, so no resource can be removed.",
                conflict_code="6112",
            )
        rows = await rows_of(conn, vault, resource_ids)
        await refuse_busy(conn, vault, resource_ids, rows)
        await conn.execute(
            "UPDATE vault_resources SET protect_status = 'removing' "
            "WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s)",
            [project_id, vault_id, list(resource_ids)],
        )
        # A log names one resource; the task of several names them in its parameters only.
        alone = rows[resource_ids[0]] if len(resource_ids) == 1 else None
        task = tasks.NewTask(
            project_id=project_id,
            operation_type="remove_resource",
            request_id=request_id,
            vault_id=vault.id,
            vault_name=vault.name,
            provider_id=vault.provider_id,
            resource_id=alone["resource_id"] if alone else None,
            resource_type=alone["type"] if alone else None,
            resource_name=alone["name"] if alone else None,
            parameters={"resources": list(resource_ids)},
        )
        await tasks.insert(conn, [task], clock.now())


async def set_auto_protect(
    database: Database, project_id: str, vault_id: str, resource_ids: Sequence[str], *, auto_protect: bool
) -> None:
    """Suspend resources (False: schedules pass over them) or take them back. All or none; idempotent.

    Raises VaultNotFound, InvalidRequest, or Conflict: 6112 (vault deleting), 6135 (not in it), 6134 (being removed).
    """
    check_ids(resource_ids)
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault, "lock", "error")
        for row in (await rows_of(conn, vault, resource_ids)).values():
            if row["protect_status"] == "removing":
                raise Conflict(reason=f"Resource {row['resource_id']} is being removed.", conflict_code="6134")
        await conn.execute(
            "UPDATE vault_resources SET auto_protect = %s "
            "WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s)",
            [auto_protect, project_id, vault.id, list(resource_ids)],
        )


def check_ids(resource_ids: Sequence[str]) -> None:
    """Form of a request's list of ids. Raises InvalidRequest, or Conflict 6104 (one stands twice)."""
    if not 0 < len(resource_ids) <= RESOURCES_PER_VAULT_MAX:
        raise InvalidRequest(reason=f"Invalid resource_ids: give 1 to {RESOURCES_PER_VAULT_MAX} ids.")
    for resource_id in resource_ids:
        require_id(resource_id, "resource id")
    refuse_repeated(resource_ids)


def require_available(vault: VaultRef, *others: str) -> None:
    """Raises Conflict 6112 unless the vault is available, or in one of the other statuses given."""
    if vault.status not in ("available", *others):
        raise Conflict(reason=f"The vault is {vault.status}; wait until it is available.", conflict_code="6112")


async def rows_of(
    conn: AsyncConnection[Any], vault: VaultRef, resource_ids: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Rows of resources of the vault, locked, by id. Raises Conflict 6135 for one that is not in it."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT resource_id, type, name, protect_status FROM vault_resources "
            "WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s) ORDER BY resource_id FOR UPDATE",
            [vault.project_id, vault.id, list(resource_ids)],
        )
        rows = {row["resource_id"]: row for row in await cursor.fetchall()}
    for resource_id in resource_ids:
        if resource_id not in rows:
            raise Conflict(reason=f"Resource {resource_id} is not in vault {vault.id}.", conflict_code="6135")
    return rows


async def refuse_busy(
    conn: AsyncConnection[Any], vault: VaultRef, resource_ids: Sequence[str], rows: Mapping[str, Mapping[str, Any]]
) -> None:
    """A waiting task counts as much as a running one: the status of the resource changes only when it starts."""
    found = await conn.execute(
        "SELECT resource_id, target_resource_id, operation_type FROM operation_logs WHERE project_id = %s "
        "AND status IN ('waiting', 'running') AND operation_type IN ('backup', 'restore', 'replication') "
        "AND (target_resource_id = ANY(%s) OR (vault_id = %s AND resource_id = ANY(%s)))",
        [vault.project_id, list(resource_ids), vault.id, list(resource_ids)],
    )
    coming = {
        resource_id: {"backup": "protecting", "restore": "restoring"}.get(operation, "replicating")
        for source, target, operation in await found.fetchall()
        for resource_id in (source, target)
    }
    for resource_id in resource_ids:
        status = rows[resource_id]["protect_status"]
        match coming.get(resource_id, status) if status != "removing" else status:
            case "removing":
                raise Conflict(reason=f"Resource {resource_id} is being removed already.", conflict_code="6134")
            case "protecting":
                raise Conflict(
                    reason=f"Resource {resource_id} is being backed up. Try again when that is done.",
                    conflict_code="6125",
                )
            case "replicating":
                raise Conflict(
                    reason=f"Backups of resource {resource_id} are being copied to another region. Remove it when that "
                    "is done, or cancel the tasks.",
                    conflict_code="6130",
                )
            case "restoring":
                raise Conflict(
                    reason=f"Resource {resource_id} is part of a running restore. Try again when that is done.",
                    conflict_code="2010",
                )


def refuse_repeated(ids: Sequence[str]) -> None:
    """Raises Conflict 6104 when an id stands twice."""
    if len(set(ids)) < len(ids):
        raise Conflict(reason="The request names a resource twice. Name each once.", conflict_code="6104")
