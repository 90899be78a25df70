"""Resources that move to another vault with their backups: what may move, and how it begins.

The request decides under the locks of both vaults. From then on the resources show `removing` where they are, so
nothing is backed up, restored, deleted or moved there until the task has ended (control/moved.py has its side).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, InvalidRequest
from strongroom.base.units import gigabytes
from strongroom.control import tasks
from strongroom.control.db import Database
from strongroom.control.names import require_id
from strongroom.control.subjects import VaultRef, lock_all_vaults
from strongroom.control.tasks import NewTask
from strongroom.control.vault_resources import (
    RESOURCES_PER_VAULT_MAX,
    check_ids,
    refuse_busy,
    require_available,
    rows_of,
)
from strongroom.control.vault_work import refuse_open_work


async def request_move(
    database: Database,
    project_id: str,
    vault_id: str,
    destination_id: str,
    resource_ids: Sequence[str],
    *,
    request_id: str,
    clock: Clock,
) -> str:
    """Begin to move resources with all their backups. Returns the id of the operation log. All or none.

    Raises InvalidRequest, VaultNotFound (either vault); Conflict 6104 (named twice), 6112 (status, locked, or other
    work), 6118 (another kind of vault), 6135 (not in the vault), 6134, 6125, 2010 (busy), 6100 (too many there) and
    6129 (no room there).
    """
    check_ids(resource_ids)
    require_id(destination_id, "destination_vault_id")
    async with database.transaction() as conn:
        vaults = await lock_all_vaults(conn, project_id, vault_id, destination_id)
        if destination_id == vault_id:
            raise InvalidRequest(reason="Invalid destination_vault_id: name another vault than the one they are in.")
        source, destination = vaults[vault_id], vaults[destination_id]
        for vault in (source, destination):
            require_available(vault, "lock")
            refuse_locked(vault)
        await _require_same_kind(conn, source, destination)
        rows = await rows_of(conn, source, resource_ids)
        await refuse_busy(conn, source, resource_ids, rows)
        await _refuse_other_work(conn, source, destination, resource_ids)
        await require_room(conn, source, destination, resource_ids)
        task = _task(source, destination, resource_ids, rows, request_id)
        await tasks.insert(conn, [task], clock.now())
        # After the task: by it the database tells a move, which keeps shares, from a removal (0011_moving.sql).
        await conn.execute(
            "UPDATE vault_resources SET protect_status = 'removing' "
            "WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s)",
            [project_id, source.id, list(resource_ids)],
        )
    return task.id


def refuse_locked(vault: VaultRef) -> None:
    """Raises Conflict 6112: what a locked vault holds leaves it by its time only, and what comes would be promised."""
    if vault.locked:
        raise Conflict(
            conflict_code="6112", reason=f"Vault {vault.name} is locked: resources move neither out of it nor into it."
        )


async def require_room(
    conn: AsyncConnection[Any], source: VaultRef, destination: VaultRef, resource_ids: Sequence[str]
) -> None:
    """By what the backups added when they were made; the task measures it before anything moves.

    Raises Conflict 6100 and 6129. Both locks MUST be held."""
    found = await conn.execute(
        "SELECT (SELECT count(*) FROM vault_resources WHERE project_id = %(project)s AND vault_id = %(there)s), "
        "(SELECT coalesce(sum(stored_bytes), 0)::bigint FROM backups WHERE project_id = %(project)s "
        "AND vault_id = %(here)s AND resource_id = ANY(%(ids)s) AND root IS NOT NULL)",
        {"project": source.project_id, "there": destination.id, "here": source.id, "ids": list(resource_ids)},
    )
    row = await found.fetchone()
    assert row is not None
    if row[0] + len(resource_ids) > RESOURCES_PER_VAULT_MAX:
        raise Conflict(
            conflict_code="6100",
            reason=f"A vault has at most {RESOURCES_PER_VAULT_MAX} resources, and {destination.name} has {row[0]}.",
        )
    require_capacity(destination, row[1])


def require_capacity(destination: VaultRef, coming_bytes: int) -> None:
    """Raises Conflict 6129."""
    if 0 < destination.size_bytes < destination.used_bytes + coming_bytes:
        raise Conflict(
            conflict_code="6129",
            reason=f"Vault {destination.name} has no room for {gigabytes(coming_bytes)} GB more. Enlarge it, or move "
            "fewer resources.",
        )


async def _require_same_kind(conn: AsyncConnection[Any], source: VaultRef, destination: VaultRef) -> None:
    found = await conn.execute(
        "SELECT object_type, protect_type, cloud_type FROM vaults WHERE project_id = %s AND id = ANY(%s)",
        [source.project_id, [source.id, destination.id]],
    )
    if len(set(await found.fetchall())) > 1:
        raise Conflict(
            conflict_code="6118",
            reason=f"Vault {destination.name} is of another kind than {source.name}: object_type, protect_type and "
            "cloud_type of both must be the same.",
        )


async def _refuse_other_work(
    conn: AsyncConnection[Any], source: VaultRef, destination: VaultRef, resource_ids: Sequence[str]
) -> None:
    """Backups and restores of other resources go on; deletes of these, and what works on all of a vault, do not."""
    for vault in (source, destination):
        await refuse_open_work(conn, vault, "expiration", "migrate", "sync", "replication", "copy")
    lent = await conn.execute(
        "SELECT 1 FROM operation_logs o JOIN backups b ON b.project_id = o.lender_project_id AND b.id = o.backup_id "
        "WHERE o.lender_project_id = %s AND b.project_id = %s AND b.vault_id = %s "
        "AND coalesce(b.machine_id, b.resource_id) = ANY(%s) "
        "AND o.status IN ('waiting', 'running') LIMIT 1",
        [source.project_id, source.project_id, source.id, list(resource_ids)],
    )
    if await lent.fetchone() is not None:
        raise Conflict(
            conflict_code="2010",
            reason="A project that shares one of the backups is restoring it. Move the resource when that has ended.",
        )
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT name, status, damage IS NOT NULL AS damaged FROM backups WHERE project_id = %s AND vault_id = %s "
            "AND coalesce(machine_id, resource_id) = ANY(%s) "
            "AND (status NOT IN ('available', 'error') OR damage IS NOT NULL) LIMIT 1",
            [source.project_id, source.id, list(resource_ids)],
        )
        row = await cursor.fetchone()
    if row is not None and row["damaged"]:
        raise Conflict(
            conflict_code="6112",
            reason=f"Backup {row['name']} is damaged. Delete it, or mend it and verify the vault, then move.",
        )
    if row is not None:
        raise Conflict(
            conflict_code="6112",
            reason=f"Backup {row['name']} is {row['status']}. Move its resource when that has ended.",
        )


def _task(
    source: VaultRef,
    destination: VaultRef,
    resource_ids: Sequence[str],
    rows: Mapping[str, Mapping[str, Any]],
    request_id: str,
) -> NewTask:
    # A log names one resource; the task of several names them in its parameters only.
    alone = rows[resource_ids[0]] if len(resource_ids) == 1 else None
    return NewTask(
        project_id=source.project_id,
        operation_type="migrate",
        request_id=request_id,
        vault_id=source.id,
        vault_name=source.name,
        provider_id=source.provider_id,
        resource_id=alone["resource_id"] if alone else None,
        resource_type=alone["type"] if alone else None,
        resource_name=alone["name"] if alone else None,
        parameters={"resources": list(resource_ids), "destination": destination.id},
    )
