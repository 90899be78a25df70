"""Backups: what tenants see and change of them, and the job side of making one.

The job side changes rows only under `tasks.still_mine` and the vault's lock; an attempt whose lease ran out raises
Fenced and leaves everything as it was. A root makes a backup restorable, `commit_backup` makes it reported (RULINGS 7).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import (
    BackupNotFound,
    Conflict,
    QuotaExceeded,
    ResourceNotFound,
    StoreFull,
    StrongroomError,
)
from strongroom.control import checkpoints, deletions, quotas, tasks
from strongroom.control.capacity import set_used, vaults_filled
from strongroom.control.db import Database
from strongroom.control.listing import NEWEST_FIRST, Filters, Order, Page, fetch_page, require_time
from strongroom.control.machines import CommittedDisk, commit_disks
from strongroom.control.names import ENTERPRISE_PROJECT_ALL, require_name
from strongroom.control.received import RECEIVED, require_own
from strongroom.control.retention import FAILED_DAYS_MAX
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import ResourceRef as ResourceRef
from strongroom.control.subjects import VaultRef as VaultRef
from strongroom.control.subjects import (
    load_resource,
    lock_vault,
    lock_vaults,
    release_resource,
    vault_full_sentence,
)
from strongroom.control.tasks import Task
from strongroom.control.vault_kinds import SERVER


@dataclass(frozen=True, kw_only=True)
class Backup:
    """One backup as tenants see it.

    incremental, is_multi_az  as requested: a first backup reads everything all the same; of its vault
    progress             0-100 of the task that works on it; None: no task does
    owner_project_id     whose it is; another project's than the one that looks, when that shares it
    member_status        of such a share: pending, accepted, rejected; None: an own backup
    """

    id: str
    project_id: str
    vault_id: str
    checkpoint_id: str
    resource_id: str
    resource_type: str
    resource_name: str
    resource_size_bytes: int
    name: str
    description: str | None
    provider_id: str
    image_type: str
    parent_id: str | None
    status: str
    incremental: bool
    auto_trigger: bool
    enterprise_project_id: str
    stored_bytes: int
    report: dict[str, Any]
    created_at: datetime
    protected_at: datetime | None
    updated_at: datetime | None
    expired_at: datetime | None
    is_multi_az: bool
    progress: int | None
    damage: dict[str, Any] | None
    owner_project_id: str
    member_status: str | None


@dataclass(frozen=True, kw_only=True)
class BackupFilters:
    """Conditions of a list, joined by AND; None: not asked for. Times are inclusive, on creation.

    own_type      private: own backups; shared: those received from others; all_granted: both
    member_status of received ones; None: all that were not rejected
    used_percent  backups whose vault is filled at least this much
    """

    name: str | None = None
    resource_name: str | None = None
    checkpoint_id: str | None = None
    resource_id: str | None = None
    vault_id: str | None = None
    parent_id: str | None = None
    image_type: str | None = None
    resource_type: str | None = None
    resource_az: str | None = None
    enterprise_project_id: str | None = None
    statuses: tuple[str, ...] = ()
    own_type: str = "private"
    member_status: str | None = None
    used_percent: int | None = None
    start_time: str | None = None
    end_time: str | None = None
    incremental: bool | None = None


# --- request side ---------------------------------------------------------------------------------------------------

_COLUMNS: LiteralString = """id, project_id, vault_id, checkpoint_id, resource_id, resource_type, resource_name,
    resource_size_bytes, name, description, provider_id, image_type, parent_id, status, incremental, auto_trigger,
    enterprise_project_id, stored_bytes, report, created_at, protected_at, updated_at, expired_at,
    coalesce((SELECT v.is_multi_az FROM vaults v WHERE v.project_id = backups.project_id
        AND v.id = backups.vault_id), false) AS is_multi_az,
    CASE WHEN status NOT IN ('available', 'error') THEN (
        SELECT max(o.progress) FROM operation_logs o WHERE o.project_id = backups.project_id
        AND o.vault_id = backups.vault_id AND o.backup_id = backups.id AND o.status IN ('waiting', 'running'))
    END AS progress, damage, owner_project_id, member_status"""
# The same columns of own backups, of those received from others, and of both.
_OWN: LiteralString = "(SELECT *, project_id AS owner_project_id, NULL::text AS member_status FROM backups) AS backups"
_COMMON: LiteralString = """id, project_id, owner_project_id, member_status, vault_id, checkpoint_id, resource_id,
    resource_type, resource_name, resource_size_bytes, name, description, provider_id, image_type, parent_id, status,
    incremental, auto_trigger, enterprise_project_id, stored_bytes, report, created_at, protected_at, updated_at,
    expired_at, damage"""
_TABLES: dict[str, LiteralString] = {
    "private": _OWN,
    "shared": RECEIVED,
    "all_granted": f"(SELECT {_COMMON} FROM {_OWN} UNION ALL SELECT {_COMMON} FROM {RECEIVED}) AS backups",  # noqa: S608
}

SORT_KEYS: dict[str, LiteralString] = {
    key: key for key in ("created_at", "updated_at", "name", "status", "protected_at", "id")
}


async def show_backup(database: Database, project_id: str, backup_id: str) -> Backup:
    """An own backup, or one that another project shares. Raises BackupNotFound."""
    async with database.read(class_row(Backup)) as conn:
        found = await conn.execute(
            f"SELECT {_COLUMNS} FROM {_TABLES['all_granted']} "  # noqa: S608 -- the texts are ours
            "WHERE project_id = %s AND id = %s",
            [project_id, backup_id],
        )
        backup = await found.fetchone()
    if backup is None:
        raise BackupNotFound(id=backup_id)
    return backup


async def list_children(
    database: Database, project_id: str, found: Sequence[Backup], own_type: str = "all_granted"
) -> dict[str, list[Backup]]:
    """The backups of the disks of those that are of machines, by parent, each list by name."""
    parents = [backup.id for backup in found if backup.resource_type == SERVER.type_name]
    if not parents:
        return {}
    async with database.read(class_row(Backup)) as conn:
        rows = await conn.execute(
            f"SELECT {_COLUMNS} FROM {_TABLES[own_type]} "  # noqa: S608 -- the texts are ours
            "WHERE project_id = %s AND parent_id = ANY(%s) ORDER BY resource_name, id",
            [project_id, parents],
        )
        children = await rows.fetchall()
    return {parent: [child for child in children if child.parent_id == parent] for parent in parents}


async def list_backups(
    database: Database, project_id: str, asked: BackupFilters, page: Page, order: Sequence[Order] = NEWEST_FIRST
) -> tuple[list[Backup], int]:
    """One page, and how many match in all. Raises InvalidRequest for a time or marker that is none."""
    async with database.read() as conn:
        filters = _filters(project_id, asked)
        if asked.used_percent is not None:
            # Asked for by themselves: a list of names that is not known while planning has all backups read.
            full = await vaults_filled(conn, project_id, asked.used_percent)
            filters.add("vault_id = ANY(%s)", full) if full else filters.add("false")
        rows, count = await fetch_page(
            conn,
            columns=_COLUMNS,
            table=_TABLES[asked.own_type],
            filters=filters,
            page=page,
            order=order,
            whole="backups" if asked == BackupFilters() else None,
        )
    return [Backup(**row) for row in rows], count


def _filters(project_id: str, asked: BackupFilters) -> Filters:
    filters = Filters(project_id=project_id)
    exact: tuple[tuple[LiteralString, object], ...] = (
        ("name = %s", asked.name),
        ("strpos(resource_name, %s) > 0", asked.resource_name),
        ("checkpoint_id = %s", asked.checkpoint_id),
        ("resource_id = %s", asked.resource_id),
        ("vault_id = %s", asked.vault_id),
        ("image_type = %s", asked.image_type),
        ("resource_type = %s", asked.resource_type),
        ("incremental = %s", asked.incremental),
    )
    for text, value in exact:
        if value is not None:
            filters.add(text, value)
    # Children of a backup are listed only when their parent is named.
    if asked.parent_id is None:
        filters.add("parent_id IS NULL")
    else:
        filters.add("parent_id = %s", asked.parent_id)
    if asked.enterprise_project_id not in (None, ENTERPRISE_PROJECT_ALL):
        filters.add("enterprise_project_id = %s", asked.enterprise_project_id)
    if asked.statuses:
        filters.add("status = ANY(%s)", list(asked.statuses))
    if asked.own_type != "private":
        # A rejected share is still there, so that the receiver may think again, but in nobody's way.
        statuses = [asked.member_status] if asked.member_status is not None else ["pending", "accepted"]
        filters.add("member_status IS NULL OR member_status = ANY(%s)", statuses)
    if asked.resource_az is not None:
        filters.add("false")  # no resource lies in a named zone
    if asked.start_time is not None:
        filters.add("created_at >= %s", require_time(asked.start_time, "start_time"))
    if asked.end_time is not None:
        filters.add("created_at <= %s", require_time(asked.end_time, "end_time"))
    return filters


async def rename_backup(database: Database, project_id: str, backup_id: str, name: str, clock: Clock) -> Backup:
    """Give a backup another name. Raises InvalidRequest, BackupNotFound, Conflict 6707 (another project shares it)."""
    require_name(name, "name")
    async with database.transaction() as conn:
        await require_own(conn, project_id, backup_id, code="6707", what="rename it")
        await conn.execute(
            "UPDATE backups SET name = %s, updated_at = %s WHERE project_id = %s AND id = %s",
            [name, clock.now(), project_id, backup_id],
        )
    return await show_backup(database, project_id, backup_id)


# --- job side -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ParentRef:
    """The backup a new one is compared with: name of its root object, and the token of its source's point."""

    backup_id: str
    root: str
    point_token: bytes | None


@dataclass(frozen=True, kw_only=True)
class BackupJob:
    """One backup to make.

    incremental  False: trust no parent, read and hash everything
    parent       newest restorable backup of this resource in this vault; None: there is none
    project_left_bytes   what the project's quota leaves; None: no limit
    expired_at   None: kept until deleted
    promised_until   by the clock of promises; None: nothing is promised
    """

    vault: VaultRef
    resource: ResourceRef
    backup_id: str
    backup_name: str
    checkpoint_id: str
    incremental: bool
    auto_trigger: bool
    created_at: datetime
    expired_at: datetime | None
    promised_until: datetime | None
    parent: ParentRef | None
    project_left_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CommittedBackup:
    """What a finished backup reports.

    root, stored_bytes  name of its root object, durable in the store; sealed bytes this backup added
    used_bytes    live sealed bytes of the whole vault when measured; None: grown by stored_bytes
    point_token   the source's token for the next run
    report        JSON: bytes read and new, entries, changed while read, skipped, full_reason, ...
    disks         of a machine; what they stored is part of stored_bytes. machine: its disks and power as just seen
    """

    root: str
    resource_size_bytes: int
    stored_bytes: int
    used_bytes: int | None = None
    point_token: bytes | None = None
    report: dict[str, Any] = field(default_factory=dict)
    disks: tuple[CommittedDisk, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)


async def start_backup(database: Database, task: Task) -> BackupJob:
    """Everything an attempt needs; backup and resource show `protecting` from here on. May run again.

    Raises Fenced, VaultNotFound, BackupNotFound, ResourceNotFound (unbound or unregistered since the request),
    Conflict 6113 (vault status) and 6114 (vault full).
    """
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        if vault.status != "available":
            raise Conflict(
                conflict_code="6113",
                reason=f"Vault {vault.name} is {vault.status}; backups run only in an available vault.",
            )
        if vault.full:
            raise Conflict(conflict_code="6114", reason=vault_full_sentence(vault))
        resource = await load_resource(conn, task.project_id, task.resource_id)
        bound = await conn.execute(
            "UPDATE vault_resources SET protect_status = 'protecting' "
            "WHERE project_id = %s AND vault_id = %s AND resource_id = %s",
            [task.project_id, vault.id, resource.id],
        )
        if bound.rowcount != 1:
            raise ResourceNotFound(id=resource.id, detail="no longer bound to the vault")
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "UPDATE backups SET status = 'protecting', promise_told = promised_until, updated_at = now() "
                "WHERE project_id = %s AND id = %s "
                "AND status IN ('waiting_protect', 'protecting') "
                "RETURNING name, checkpoint_id, incremental, auto_trigger, created_at, expired_at, promised_until",
                [task.project_id, task.backup_id],
            )
            row = await cursor.fetchone()
        if row is None or task.backup_id is None:
            raise BackupNotFound(id=task.backup_id or "(none)")
        parent = await _find_parent(conn, task.project_id, vault.id, resource.id)
        left = await quotas.bytes_left(conn, task.project_id)
    return BackupJob(
        vault=vault,
        resource=resource,
        backup_id=task.backup_id,
        backup_name=row.pop("name"),
        parent=parent,
        project_left_bytes=left,
        **row,
    )


async def _find_parent(
    conn: AsyncConnection[Any], project_id: str, vault_id: str, resource_id: str
) -> ParentRef | None:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id AS backup_id, root, point_token FROM backups "
            "WHERE project_id = %s AND vault_id = %s AND resource_id = %s AND root IS NOT NULL "
            "AND domain_id IS NULL "  # what came from another vault shares no chunks with this one's own
            "AND status IN ('available', 'waiting_restore', 'restoring') ORDER BY created_at DESC, id DESC LIMIT 1",
            [project_id, vault_id, resource_id],
        )
        row = await cursor.fetchone()
    return None if row is None else ParentRef(**row)


async def commit_backup(database: Database, task: Task, committed: CommittedBackup, clock: Clock) -> None:
    """Report a backup whose root is durable: its row, the vault's usage, the checkpoint, the resource and the task end
    in one transaction. A second call raises Fenced. Raises BackupNotFound when the row is not waiting for this, and
    QuotaExceeded when the project may not store so much."""
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        await commit_disks(conn, task, committed.disks, committed.machine, now)
        done = await conn.execute(
            "UPDATE backups SET status = 'available', root = %s, resource_size_bytes = %s, stored_bytes = %s, "
            "report = %s, point_token = %s, protected_at = %s, updated_at = %s "
            "WHERE project_id = %s AND id = %s AND status IN ('waiting_protect', 'protecting') "
            "RETURNING incremental, auto_trigger, created_at",
            [
                committed.root,
                committed.resource_size_bytes,
                committed.stored_bytes,
                Jsonb(committed.report),
                committed.point_token,
                now,
                now,
                task.project_id,
                task.backup_id,
            ],
        )
        row = await done.fetchone()
        if row is None:
            raise BackupNotFound(id=task.backup_id or "(none)")
        used = vault.used_bytes + committed.stored_bytes if committed.used_bytes is None else committed.used_bytes
        await set_used(conn, vault, used)
        await quotas.require_bytes(conn, task.project_id)  # others may have used it up meanwhile: then prune takes ours
        await _note_size(conn, task, committed.resource_size_bytes)
        await _note_for_policy(conn, task, incremental=row[0], automatic=row[1], created_at=row[2], now=now)
        await release_resource(conn, task.project_id, task.resource_id, "protecting")
        await checkpoints.settle(conn, task.project_id, [task.checkpoint_id], now)
        await close_sessions_of(conn, task)
        await tasks.finish(conn, task, clock, outcome={"stored_bytes": committed.stored_bytes})


async def _note_size(conn: AsyncConnection[Any], task: Task, size_bytes: int) -> None:
    """The run knows the resource's size better than the last inspection."""
    values = [size_bytes, task.project_id, task.resource_id]
    await conn.execute("UPDATE protectables SET size_bytes = %s WHERE project_id = %s AND id = %s", values)
    await conn.execute("UPDATE vault_resources SET size_bytes = %s WHERE project_id = %s AND resource_id = %s", values)
    await conn.execute(
        "UPDATE checkpoint_resources SET size_bytes = %s WHERE project_id = %s AND resource_id = %s "
        "AND checkpoint_id = %s",
        [*values, task.checkpoint_id],
    )


async def _note_for_policy(
    conn: AsyncConnection[Any], task: Task, *, incremental: bool, automatic: bool, created_at: datetime, now: datetime
) -> None:
    """What the next scheduled run and retention go by. The first backup is full, whatever was asked for."""
    await conn.execute(
        """
        WITH made AS (SELECT NOT %(incremental)s OR NOT EXISTS (
            SELECT 1 FROM backups b WHERE b.project_id = %(project)s AND b.vault_id = %(vault)s AND b.domain_id IS NULL
            AND b.resource_id = %(resource)s AND b.id <> %(backup)s AND b.root IS NOT NULL) AS entire)
        UPDATE vault_resources SET
            retention_due_at = CASE WHEN %(automatic)s THEN %(now)s ELSE retention_due_at END,
            last_full_at = CASE WHEN made.entire THEN %(created)s ELSE last_full_at END,
            incrementals = CASE WHEN made.entire THEN 0 WHEN %(automatic)s THEN incrementals + 1 ELSE incrementals END
        FROM made WHERE project_id = %(project)s AND vault_id = %(vault)s AND resource_id = %(resource)s
        """,
        {"incremental": incremental, "automatic": automatic, "created": created_at, "now": now,
         "project": task.project_id, "vault": task.vault_id, "resource": task.resource_id, "backup": task.backup_id},
    )  # fmt: skip


async def fail_backup(
    database: Database, task: Task, error: StrongroomError, clock: Clock, *, status: str = "failed"
) -> None:
    """End a backup that cannot be made: row `error`, the resource skipped in its checkpoint with code and reason
    (RULINGS 18) and free again, the task ended with `status` (failed, skipped or timeout), and a prune queued when
    there was no room. Works without the vault's row. Raises Fenced."""
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        found = (await lock_vaults(conn, task.project_id, task.vault_id)).get(task.vault_id or "")
        # A scheduled run that failed is shown for a month; of many, retention leaves the newest (retention.py).
        await conn.execute(
            "UPDATE backups SET status = 'error', updated_at = %s, "
            "expired_at = CASE WHEN auto_trigger THEN least(expired_at, %s) ELSE expired_at END "
            "WHERE project_id = %s AND id = %s AND status IN ('waiting_protect', 'protecting')",
            [now, now + timedelta(days=FAILED_DAYS_MAX), task.project_id, task.backup_id],
        )
        await conn.execute(
            "UPDATE vault_resources r SET retention_due_at = %s WHERE r.project_id = %s AND r.vault_id = %s "
            "AND r.resource_id = %s AND EXISTS (SELECT 1 FROM backups b WHERE b.project_id = r.project_id "
            "AND b.id = %s AND b.auto_trigger)",
            [now, task.project_id, task.vault_id, task.resource_id, task.backup_id],
        )
        await conn.execute(
            "UPDATE checkpoint_resources SET skipped_code = %s, skipped_reason = %s "
            "WHERE project_id = %s AND checkpoint_id = %s AND resource_id = %s",
            [error.published_code, error.message, task.project_id, task.checkpoint_id, task.resource_id],
        )
        await release_resource(conn, task.project_id, task.resource_id, "protecting")
        await checkpoints.settle(conn, task.project_id, [task.checkpoint_id], now)
        await close_sessions_of(conn, task)
        if found is not None and _lacked_room(error):
            # Packs that were finished before the failure belong to nobody: the disk gets their room back at once.
            await deletions.queue_prune(conn, found, request_id=task.request_id, clock=clock)
        await tasks.finish(conn, task, clock, status=status, error=error)


def _lacked_room(error: StrongroomError) -> bool:
    return isinstance(error, StoreFull | QuotaExceeded) or error.published_code == "BackupService.6114"
