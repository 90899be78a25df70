"""Tasks under /ext: the operation log with what v3 has no member for, and cancel."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.operation_logs import LogStatus, shown_status
from strongroom.api.paging import page_of
from strongroom.base.clock import api_timestamp
from strongroom.control import operation_logs
from strongroom.control.operation_logs import LogFilters, OperationLog

TaskType = Literal[
    "backup",
    "restore",
    "delete",
    "vault_delete",
    "remove_resource",
    "prune",
    "verify",
    "expiration",
    "migrate",
    "sync",
    "replication",
    "copy",
]


class ListQuery(msgspec.Struct):
    """open: only what waits or runs, or only what is final. operation_type `prune` or `verify`: housekeeping."""

    limit: int | None = None
    offset: int | None = None
    marker: str | None = None
    open: bool | None = None
    operation_type: TaskType | None = None
    status: LogStatus | None = None
    vault_id: str | None = None
    checkpoint_id: str | None = None
    backup_id: str | None = None
    resource_id: str | None = None


async def list_tasks(call: Call) -> dict[str, Any]:
    query: ListQuery = call.query
    page = page_of(query.limit, query.offset, query.marker)
    asked = LogFilters(
        open=query.open,
        operation_types=(query.operation_type,) if query.operation_type else (),
        status=query.status,
        vault_id=query.vault_id or None,
        checkpoint_id=query.checkpoint_id or None,
        backup_id=query.backup_id or None,
        resource_id=query.resource_id or None,
    )
    found, count = await operation_logs.list_logs(call.services.database, call.project_id, asked, page)
    return {"tasks": [wire_task(task) for task in found], "count": count, "limit": page.limit, "offset": page.offset}


async def show_task(call: Call) -> dict[str, Any]:
    found = await operation_logs.show_task(call.services.database, call.project_id, call.path["task_id"])
    return {"task": wire_task(found)}


async def cancel_task(call: Call) -> dict[str, Any]:
    """Accepted: the job stops between two segments and ends as failed."""
    task_id = call.path["task_id"]
    await operation_logs.cancel_task(call.services.database, call.project_id, task_id)
    found = await operation_logs.show_task(call.services.database, call.project_id, task_id)
    return {"task": wire_task(found)}


def wire_task(task: OperationLog) -> dict[str, Any]:
    """Bytes and counts as numbers; started_at and ended_at null until they are known."""
    return {
        "id": task.id,
        "project_id": task.project_id,
        "operation_type": task.operation_type,
        "status": shown_status(task),
        "progress": task.progress,
        "bytes_done": task.bytes_done,
        "bytes_total": task.bytes_total,
        "entries_done": task.entries_done,
        "attempts": task.attempts,
        "created_at": api_timestamp(task.created_at),
        "started_at": _time(task.started_at),
        "ended_at": _time(task.ended_at),
        "updated_at": api_timestamp(task.updated_at),
        "vault_id": task.vault_id,
        "vault_name": task.vault_name,
        "checkpoint_id": task.checkpoint_id,
        "backup_id": task.backup_id,
        "backup_name": task.backup_name,
        "resource_id": task.resource_id,
        "resource_name": task.resource_name,
        "target_resource_id": task.target_resource_id,
        "target_resource_name": task.target_resource_name,
        "outcome": task.outcome,
        "error_code": task.error_code,
        "error_message": task.error_message,
        "cancel_requested": task.cancel_requested,
        "request_id": task.request_id,
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else api_timestamp(at)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_tasks",
        method="GET",
        path="/ext/v1/{project_id}/tasks",
        action="cbr:tasks:list",
        handler=list_tasks,
        query=ListQuery,
    ),
    Operation(
        name="show_task",
        method="GET",
        path="/ext/v1/{project_id}/tasks/{task_id}",
        action="cbr:tasks:get",
        handler=show_task,
    ),
    Operation(
        name="cancel_task",
        method="POST",
        path="/ext/v1/{project_id}/tasks/{task_id}/cancel",
        action="strongroom:tasks:cancel",
        handler=cancel_task,
        status=202,
    ),
)
