"""Backups of machines: the rows of their disks, below the machine's own (docs/decisions/0009-machines.md).

Tenants see one backup with a child for each disk. Every row has one root: that of the machine's own row holds its
definition and is put last, so it stands for all of them. What is done to the machine's row the database does to its
disks (0020_machines.sql); the statements here are those that know a disk as such.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from strongroom.base.errors import ResourceNotFound
from strongroom.base.ids import new_id
from strongroom.control import tasks
from strongroom.control.db import Database
from strongroom.control.subjects import ResourceRef, load_resource
from strongroom.control.tasks import Task
from strongroom.control.vault_kinds import DISK

NAME_CHARS_MAX = 64  # of a backup
RESOURCE_NAME_CHARS_MAX = 255


@dataclass(frozen=True, kw_only=True)
class DiskParent:
    """The newest backup of a disk that a new one is compared with."""

    root: str
    point_token: bytes | None


@dataclass(frozen=True, kw_only=True)
class MachinePlan:
    """What a run takes of a machine.

    parents      by disk id; a disk without one is read whole
    included     ids of disks to be taken, None: all          excluded  ids of disks to be left out
    application  the vault wants what applications wrote to be whole: ask the guest to hold still
    """

    parents: Mapping[str, DiskParent]
    included: frozenset[str] | None
    excluded: frozenset[str]
    application: bool


@dataclass(frozen=True, kw_only=True)
class MachineDisk:
    """A disk that gets a backup. name: of the device, "vda"."""

    id: str
    name: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class CommittedDisk:
    """What the backup of one disk came to; as `backups.CommittedBackup`."""

    backup_id: str
    root: str
    size_bytes: int
    stored_bytes: int
    point_token: bytes
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReplicaDisk:
    """A disk of a machine's replica. What it added to the vault is told of the machine alone."""

    backup_id: str
    root: str
    resource_id: str
    resource_name: str
    name: str
    size_bytes: int
    point_token: bytes
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DiskBackup:
    """The backup of one disk, for who reads it. disk_name: of the device."""

    id: str
    resource_id: str
    resource_name: str
    disk_name: str
    is_boot: bool
    size_bytes: int
    root: str


# --- making one -----------------------------------------------------------------------------------------------------


async def plan_machine(database: Database, task: Task) -> MachinePlan:
    """What an attempt takes, and what it goes by. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT DISTINCT ON (resource_id) resource_id, root, point_token FROM backups WHERE project_id = %s "
                "AND vault_id = %s AND machine_id = %s AND root IS NOT NULL AND domain_id IS NULL "
                "AND status IN ('available', 'waiting_restore', 'restoring') "
                "ORDER BY resource_id, created_at DESC, id DESC",
                [task.project_id, task.vault_id, task.resource_id],
            )
            rows = await cursor.fetchall()
            await cursor.execute(
                "SELECT r.extra_info AS of_resource, v.consistent_level, (SELECT c.extra_info "
                "FROM checkpoint_resources c WHERE c.project_id = r.project_id AND c.checkpoint_id = %s "
                "AND c.resource_id = r.resource_id) AS of_run FROM vault_resources r "
                "JOIN vaults v ON v.id = r.vault_id WHERE r.project_id = %s AND r.vault_id = %s AND r.resource_id = %s",
                [task.checkpoint_id, task.project_id, task.vault_id, task.resource_id],
            )
            asked = await cursor.fetchone() or {}
    included, excluded = choice(asked.get("of_resource") or {}, asked.get("of_run"))
    return MachinePlan(
        parents={row["resource_id"]: DiskParent(root=row["root"], point_token=row["point_token"]) for row in rows},
        included=included,
        excluded=excluded,
        application=asked.get("consistent_level") == "app_consistent",
    )


def choice(of_resource: Mapping[str, Any], of_run: str | None) -> tuple[frozenset[str] | None, frozenset[str]]:
    """(disks to take, None: all; disks to leave out). A run that names disks to take means those and no others; those
    it names to leave out are left out beside the resource's own."""
    run: Mapping[str, Any] = json.loads(of_run) if of_run else {}
    excluded = frozenset(of_resource.get("exclude_volumes") or ())
    if run.get("include_volumes"):
        return frozenset(volume["id"] for volume in run["include_volumes"]), frozenset()
    included = of_resource.get("include_volumes")
    return (
        frozenset(volume["id"] for volume in included) if included else None,
        excluded | frozenset(run.get("exclude_volumes") or ()),
    )


async def write_disks(database: Database, task: Task, disks: Sequence[MachineDisk]) -> tuple[dict[str, str], list[str]]:
    """Rows of the disks' backups, `protecting` as the machine's: (backup id by disk id, ids of every disk's backup that
    any attempt wrote, those whose disk is gone included). An attempt that comes after another takes its rows over.

    They stand before the first root is put, so that a prune knows whose it is. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        found = await conn.execute(
            "SELECT resource_id, id FROM backups WHERE project_id = %s AND parent_id = %s",
            [task.project_id, task.backup_id],
        )
        there: dict[str, str] = dict(await found.fetchall())
        ids = {disk.id: there.get(disk.id) or new_id() for disk in disks}
        fresh = [disk for disk in disks if disk.id not in there]
        await conn.execute(
            "INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, resource_name, "
            "resource_size_bytes, name, provider_id, image_type, parent_id, machine_id, status, incremental, "
            "auto_trigger, enterprise_project_id, created_at, expired_at, promised_until, promise_told) "
            "SELECT d.id, b.project_id, b.vault_id, b.checkpoint_id, d.disk, %s, "
            "left(b.resource_name || '-' || d.name, %s), d.size, left(b.name || '_' || d.name, %s), b.provider_id, "
            "b.image_type, b.id, b.resource_id, b.status, b.incremental, b.auto_trigger, b.enterprise_project_id, "
            "b.created_at, b.expired_at, b.promised_until, b.promise_told FROM backups b, "
            "unnest(%s::text[], %s::text[], %s::text[], %s::bigint[]) AS d(id, disk, name, size) "
            "WHERE b.project_id = %s AND b.id = %s",
            [
                *(DISK.type_name, RESOURCE_NAME_CHARS_MAX, NAME_CHARS_MAX),
                *([ids[disk.id] for disk in fresh], [disk.id for disk in fresh]),
                *([disk.name for disk in fresh], [disk.size_bytes for disk in fresh]),
                *(task.project_id, task.backup_id),
            ],
        )
    return ids, sorted({*there.values(), *ids.values()})


async def commit_disks(
    conn: AsyncConnection[Any], task: Task, disks: Sequence[CommittedDisk], seen: Mapping[str, Any], now: datetime
) -> None:
    """Rows of the disks, in the transaction that reports the machine's backup and BEFORE its row: they become available
    with it. Those of disks that an earlier attempt had and this one has not go; their roots are gone.

    seen: the machine's disks and power, for who asks which it has; {}: nothing was looked at."""
    project_id, parent_id = task.project_id, task.backup_id
    if seen:
        await conn.execute(
            "UPDATE protectables SET machine = machine || %s WHERE project_id = %s AND id = %s",
            [Jsonb(dict(seen)), project_id, task.resource_id],
        )
    await conn.execute(
        "DELETE FROM backups WHERE project_id = %s AND parent_id = %s AND id <> ALL(%s)",
        [project_id, parent_id, [disk.backup_id for disk in disks]],
    )
    for disk in disks:
        await conn.execute(
            "UPDATE backups SET root = %s, resource_size_bytes = %s, stored_bytes = %s, report = %s, point_token = %s, "
            "protected_at = %s, updated_at = %s WHERE project_id = %s AND id = %s AND parent_id = %s",
            [
                *(disk.root, disk.size_bytes, disk.stored_bytes, Jsonb(dict(disk.report)), disk.point_token),
                *(now, now, project_id, disk.backup_id, parent_id),
            ],
        )


async def insert_replica_disks(
    conn: AsyncConnection[Any], project_id: str, parent_id: str | None, disks: Sequence[ReplicaDisk], now: datetime
) -> None:
    """Rows of the disks of a replica, in the transaction that has just made the machine's available."""
    for disk in disks:
        await conn.execute(
            "INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, resource_name, "
            "resource_size_bytes, name, provider_id, image_type, parent_id, machine_id, status, incremental, "
            "auto_trigger, enterprise_project_id, created_at, protected_at, updated_at, expired_at, promised_until, "
            "report, root, domain_id, point_token) SELECT %s, b.project_id, b.vault_id, b.checkpoint_id, %s, %s, %s, "
            "%s, %s, b.provider_id, b.image_type, b.id, b.resource_id, b.status, b.incremental, b.auto_trigger, "
            "b.enterprise_project_id, b.created_at, b.protected_at, %s, b.expired_at, b.promised_until, %s, %s, "
            "b.domain_id, %s FROM backups b WHERE b.project_id = %s AND b.id = %s",
            [
                *(disk.backup_id, disk.resource_id, DISK.type_name, disk.resource_name[:RESOURCE_NAME_CHARS_MAX]),
                *(disk.size_bytes, disk.name[:NAME_CHARS_MAX], now, Jsonb(dict(disk.report)), disk.root),
                *(disk.point_token, project_id, parent_id),
            ],
        )


# --- reading one ----------------------------------------------------------------------------------------------------


async def disks_of(conn: AsyncConnection[Any], project_id: str, backup_id: str) -> list[DiskBackup]:
    """The disks of a machine's backup that can be restored, by name. project_id: whose backup it is."""
    async with conn.cursor(row_factory=class_row(DiskBackup)) as cursor:
        await cursor.execute(
            "SELECT id, resource_id, resource_name, coalesce(report -> 'disk' ->> 'name', resource_name) AS disk_name, "
            "coalesce((report -> 'disk' ->> 'is_boot')::boolean, false) AS is_boot, resource_size_bytes AS size_bytes, "
            "root FROM backups WHERE project_id = %s AND parent_id = %s AND root IS NOT NULL "
            "AND status NOT IN ('waiting_delete', 'deleting') ORDER BY resource_name, id",
            [project_id, backup_id],
        )
        return await cursor.fetchall()


async def find_machine(database: Database, task: Task) -> ResourceRef | None:
    """For the end of a backup that cannot be made: what it is of; None: unregistered meanwhile. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        try:
            return await load_resource(conn, task.project_id, task.resource_id)
        except ResourceNotFound:
            return None
