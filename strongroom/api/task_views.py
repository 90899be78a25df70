"""Tasks and restore points on the wire of /ext: in answers and in events."""

from datetime import datetime
from typing import Any

import msgspec

from strongroom.base.clock import api_timestamp
from strongroom.control.changes import RestorePoint
from strongroom.control.operation_logs import OperationLog, shown_status


class TaskView(msgspec.Struct, kw_only=True):
    """A task. Bytes and counts are numbers; started_at and ended_at null until they are known.

    bytes_total   null: nobody knows how much there is; bytes_total_exact false: it is what there was at the last look
    rate_bytes_s  of the last seconds, and remaining_s by it: null unless it runs and they are known
    """

    id: str
    project_id: str
    operation_type: str
    status: str
    progress: int
    bytes_done: int
    bytes_total: int | None
    bytes_total_exact: bool
    entries_done: int
    rate_bytes_s: int | None
    remaining_s: int | None
    attempts: int
    created_at: str
    started_at: str | None
    ended_at: str | None
    updated_at: str
    vault_id: str | None
    vault_name: str | None
    checkpoint_id: str | None
    backup_id: str | None
    backup_name: str | None
    resource_id: str | None
    resource_name: str | None
    target_resource_id: str | None
    target_resource_name: str | None
    outcome: dict[str, Any]
    error_code: str
    error_message: str
    cancel_requested: bool
    request_id: str


class RestorePointView(msgspec.Struct, kw_only=True):
    """A restore point as an event tells it; the API of CBR calls it a checkpoint and has the rest."""

    id: str
    project_id: str
    vault_id: str
    vault_name: str
    name: str
    status: str
    auto_trigger: bool
    created_at: str
    updated_at: str | None


class TaskEvent(msgspec.Struct):
    task: TaskView


class RestorePointEvent(msgspec.Struct):
    restore_point: RestorePointView


def task_view(task: OperationLog) -> TaskView:
    """One row of the operation log."""
    total = task.bytes_total or None
    rate = task.rate_bytes_s
    return TaskView(
        id=task.id,
        project_id=task.project_id,
        operation_type=task.operation_type,
        status=shown_status(task),
        progress=task.progress,
        bytes_done=task.bytes_done,
        bytes_total=total,
        bytes_total_exact=task.total_exact,
        entries_done=task.entries_done,
        rate_bytes_s=rate,
        remaining_s=round(max(0, total - task.bytes_done) / rate) if total and rate else None,
        attempts=task.attempts,
        created_at=api_timestamp(task.created_at),
        started_at=_time(task.started_at),
        ended_at=_time(task.ended_at),
        updated_at=api_timestamp(task.updated_at),
        vault_id=task.vault_id,
        vault_name=task.vault_name,
        checkpoint_id=task.checkpoint_id,
        backup_id=task.backup_id,
        backup_name=task.backup_name,
        resource_id=task.resource_id,
        resource_name=task.resource_name,
        target_resource_id=task.target_resource_id,
        target_resource_name=task.target_resource_name,
        outcome=task.outcome,
        error_code=task.error_code,
        error_message=task.error_message,
        cancel_requested=task.cancel_requested,
        request_id=task.request_id,
    )


def point_view(point: RestorePoint) -> RestorePointView:
    """One row of checkpoints."""
    return RestorePointView(
        id=point.id,
        project_id=point.project_id,
        vault_id=point.vault_id,
        vault_name=point.vault_name,
        name=point.name,
        status=point.status,
        auto_trigger=point.auto_trigger,
        created_at=api_timestamp(point.created_at),
        updated_at=_time(point.updated_at),
    )


def _time(at: datetime | None) -> str | None:
    return None if at is None else api_timestamp(at)
