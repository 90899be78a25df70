"""Operation logs as tenants read them, and the same rows as tasks for /ext. Nothing here changes a row.

Housekeeping (prune) is not a tenant's operation: it stands in no list unless asked for by its type.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.errors import TaskNotFound
from strongroom.control.db import Database
from strongroom.control.deletions import removed_resources
from strongroom.control.listing import Filters, Page, fetch_page, require_time
from strongroom.control.names import ENTERPRISE_PROJECT_ALL, ENTERPRISE_PROJECT_DEFAULT


@dataclass(frozen=True, kw_only=True)
class RemovedResource:
    """A resource that a remove_resource task removes, with the name it was registered by."""

    id: str
    type: str
    name: str


@dataclass(frozen=True, kw_only=True)
class OperationLog:
    """One row: what was asked, how far it is, what came of it.

    started_at  None while it waits      ended_at  None until it is final
    removed     resources of a remove_resource
    error_code  `BackupService.nnnn`, "" when nothing went wrong
    bytes_total 0: not known        total_exact  False: an estimate, of the resource as it was at the last look
    """

    id: str
    project_id: str
    operation_type: str
    status: str
    vault_id: str | None
    vault_name: str | None
    provider_id: str | None
    checkpoint_id: str | None
    policy_id: str | None
    backup_id: str | None
    backup_name: str | None
    resource_id: str | None
    resource_type: str | None
    resource_name: str | None
    target_resource_id: str | None
    target_resource_name: str | None
    request_id: str
    parameters: dict[str, Any]
    outcome: dict[str, Any]
    error_code: str
    error_message: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    updated_at: datetime
    attempts: int
    cancel_requested: bool
    progress: int
    bytes_done: int
    bytes_total: int
    total_exact: bool
    entries_done: int
    rate_bytes_s: int | None
    removed: tuple[RemovedResource, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LogFilters:
    """Conditions of a list, joined by AND; None or empty: not asked for. Names match by part, everything else exactly.

    start_time  of the begin of work   end_time  of its end; inclusive
    open        True: only what is waiting or running; False: only what is final
    """

    operation_types: tuple[str, ...] = ()
    provider_id: str | None = None
    resource_id: str | None = None
    resource_name: str | None = None
    status: str | None = None
    vault_id: str | None = None
    vault_name: str | None = None
    enterprise_project_id: str | None = None
    start_time: str | None = None
    end_time: str | None = None
    backup_id: str | None = None
    checkpoint_id: str | None = None
    open: bool | None = None


def shown_status(log: OperationLog) -> str:
    """A replication waits between two looks at the other region; for its tenant it runs."""
    began = log.operation_type in ("replication", "copy") and log.started_at is not None
    return "running" if log.status == "waiting" and began else log.status


COLUMNS: LiteralString = """id, project_id, operation_type, status, vault_id, vault_name, provider_id, checkpoint_id,
    policy_id, backup_id, backup_name, resource_id, resource_type, resource_name, target_resource_id,
    target_resource_name, request_id, parameters, outcome, error_code, error_message, created_at, started_at, ended_at,
    updated_at, attempts, cancel_requested, progress, bytes_done, bytes_total, total_exact, entries_done,
    rate_bytes_s"""


async def list_logs(
    database: Database, project_id: str, asked: LogFilters, page: Page
) -> tuple[list[OperationLog], int]:
    """One page, newest first, and how many match in all. Raises InvalidRequest for a time or marker that is none."""
    async with database.read() as conn:
        rows, count = await fetch_page(
            conn,
            columns=COLUMNS,
            table="operation_logs",
            filters=_filters(project_id, asked),
            page=page,
            whole="operation_logs" if asked == LogFilters() else None,
        )
        return await _with_removed(conn, project_id, [OperationLog(**row) for row in rows]), count


async def show_log(database: Database, project_id: str, log_id: str) -> OperationLog:
    """A tenant's operation. Raises TaskNotFound, also for housekeeping."""
    return await _show(database, project_id, log_id, listed_only=True)


async def show_task(database: Database, project_id: str, task_id: str) -> OperationLog:
    """Any task of the project. Raises TaskNotFound."""
    return await _show(database, project_id, task_id, listed_only=False)


def _filters(project_id: str, asked: LogFilters) -> Filters:
    filters = Filters(project_id=project_id)
    if asked.operation_types:
        filters.add("operation_type = ANY(%s)", list(asked.operation_types))
    else:
        filters.add("listed")
    exact: tuple[tuple[LiteralString, object], ...] = (
        ("provider_id = %s", asked.provider_id),
        ("strpos(resource_name, %s) > 0", asked.resource_name),
        ("status = %s", asked.status),
        ("vault_id = %s", asked.vault_id),
        ("strpos(vault_name, %s) > 0", asked.vault_name),
        ("backup_id = %s", asked.backup_id),
        ("checkpoint_id = %s", asked.checkpoint_id),
    )
    for text, value in exact:
        if value is not None:
            filters.add(text, value)
    if asked.resource_id is not None:
        # A removal of several resources names them in its parameters only.
        filters.add("resource_id = %s OR parameters -> 'resources' ? %s", asked.resource_id, asked.resource_id)
    if asked.enterprise_project_id not in (None, ENTERPRISE_PROJECT_ALL):
        # Logs do not keep the enterprise project; their vault's row does, and without one it is the default.
        filters.add(
            "coalesce((SELECT v.enterprise_project_id FROM vaults v WHERE v.project_id = %s AND v.id = vault_id), %s) "
            "= %s",
            project_id,
            ENTERPRISE_PROJECT_DEFAULT,
            asked.enterprise_project_id,
        )
    if asked.start_time is not None:
        filters.add("coalesce(started_at, created_at) >= %s", require_time(asked.start_time, "start_time"))
    if asked.end_time is not None:
        filters.add("ended_at <= %s", require_time(asked.end_time, "end_time"))
    if asked.open is not None:
        filters.add("(status IN ('waiting', 'running')) = %s", asked.open)
    return filters


async def _show(database: Database, project_id: str, log_id: str, *, listed_only: bool) -> OperationLog:
    async with database.read() as conn:
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                f"SELECT {COLUMNS} FROM operation_logs "  # noqa: S608 -- the columns are ours
                "WHERE project_id = %s AND id = %s AND (listed OR NOT %s)",
                [project_id, log_id, listed_only],
            )
            row = await cursor.fetchone()
        if row is None:
            raise TaskNotFound(id=log_id)
        return (await _with_removed(conn, project_id, [OperationLog(**row)]))[0]


async def _with_removed(
    conn: AsyncConnection[Any], project_id: str, logs: Sequence[OperationLog]
) -> list[OperationLog]:
    """Add what remove_resource logs removed: their registrations are kept, so the names are known for good."""
    wanted = {
        resource_id
        for log in logs
        if log.operation_type == "remove_resource"
        for resource_id in removed_resources(log.parameters)
    }
    if not wanted:
        return list(logs)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id, resource_type AS type, name FROM protectables WHERE project_id = %s AND id = ANY(%s)",
            [project_id, sorted(wanted)],
        )
        known = {row["id"]: RemovedResource(**row) for row in await cursor.fetchall()}
    return [
        replace(log, removed=tuple(known[i] for i in removed_resources(log.parameters) if i in known))
        if log.operation_type == "remove_resource"
        else log
        for log in logs
    ]
