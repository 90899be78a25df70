"""Tasks under /ext: the operation log with what v3 has no member for, and cancel."""

from typing import Literal

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.operation_logs import LogStatus
from strongroom.api.paging import page_of
from strongroom.api.task_views import TaskView, task_view
from strongroom.control import canceling, operation_logs
from strongroom.control.operation_logs import LogFilters

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


class TaskListAnswer(msgspec.Struct):
    tasks: list[TaskView]
    count: int
    limit: int
    offset: int


class TaskAnswer(msgspec.Struct):
    task: TaskView


async def list_tasks(call: Call) -> TaskListAnswer:
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
    return TaskListAnswer(tasks=[task_view(task) for task in found], count=count, limit=page.limit, offset=page.offset)


async def show_task(call: Call) -> TaskAnswer:
    found = await operation_logs.show_task(call.services.database, call.project_id, call.path["task_id"])
    return TaskAnswer(task=task_view(found))


async def cancel_task(call: Call) -> TaskAnswer:
    """Accepted: what waits has ended with the answer, what runs stops between two segments; both as failed."""
    task_id = call.path["task_id"]
    await canceling.cancel_task(call.services.database, call.project_id, task_id, call.services.clock)
    found = await operation_logs.show_task(call.services.database, call.project_id, task_id)
    return TaskAnswer(task=task_view(found))


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_tasks",
        method="GET",
        path="/ext/v1/{project_id}/tasks",
        action="cbr:tasks:list",
        handler=list_tasks,
        answer=TaskListAnswer,
        query=ListQuery,
    ),
    Operation(
        name="show_task",
        method="GET",
        path="/ext/v1/{project_id}/tasks/{task_id}",
        action="cbr:tasks:get",
        handler=show_task,
        answer=TaskAnswer,
    ),
    Operation(
        name="cancel_task",
        method="POST",
        path="/ext/v1/{project_id}/tasks/{task_id}/cancel",
        action="strongroom:tasks:cancel",
        handler=cancel_task,
        answer=TaskAnswer,
        status=202,
    ),
)
