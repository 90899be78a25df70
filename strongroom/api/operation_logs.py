"""List and show operation logs: each type of operation has its own part in extra_info."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.base.clock import api_timestamp
from strongroom.control import operation_logs
from strongroom.control.operation_logs import LogFilters, OperationLog, shown_status

_REPLICATION = (
    *("source_region", "source_project_id", "source_checkpoint_id", "source_backup_id", "source_backup_name"),
    *("destination_region", "destination_project_id", "destination_checkpoint_id", "destination_backup_id"),
    "destination_backup_name",
)

# What an operation is called here that the published list has no word for: its part in extra_info tells more.
PUBLISHED_TYPES = {"migrate": "copy", "expiration": "sync"}

LogStatus = Literal["success", "skipped", "failed", "running", "timeout", "waiting"]


class ListQuery(msgspec.Struct):
    """Query of list_op_logs."""

    limit: int | None = None
    offset: int | None = None
    marker: str | None = None
    operation_type: (
        Literal["backup", "copy", "replication", "delete", "restore", "vault_delete", "remove_resource", "sync"] | None
    ) = None
    provider_id: str | None = None
    resource_id: str | None = None
    resource_name: str | None = None
    status: LogStatus | None = None
    vault_id: str | None = None
    vault_name: str | None = None
    enterprise_project_id: str | None = None
    start_time: str | None = None
    end_time: str | None = None


async def list_op_logs(call: Call) -> dict[str, Any]:
    query: ListQuery = call.query
    page = page_of(query.limit, query.offset, query.marker)
    asked = LogFilters(
        operation_types=_stored_types(query.operation_type),
        provider_id=query.provider_id or None,
        resource_id=query.resource_id or None,
        resource_name=query.resource_name or None,
        status=query.status,
        vault_id=query.vault_id or None,
        vault_name=query.vault_name or None,
        enterprise_project_id=query.enterprise_project_id or None,
        start_time=query.start_time or None,
        end_time=query.end_time or None,
    )
    found, count = await operation_logs.list_logs(call.services.database, call.project_id, asked, page)
    return {
        "operation_logs": [wire_log(log) for log in found],
        "count": count,
        "limit": page.limit,
        "offset": page.offset,
    }


async def show_op_log(call: Call) -> dict[str, Any]:
    found = await operation_logs.show_log(call.services.database, call.project_id, call.path["operation_log_id"])
    return {"operation_log": wire_log(found)}


def wire_log(log: OperationLog) -> dict[str, Any]:
    """The published shape. started_at must be a time: while a task waits it is the time it was asked for."""
    return {
        "id": log.id,
        "project_id": log.project_id,
        "operation_type": PUBLISHED_TYPES.get(log.operation_type, log.operation_type),
        "status": shown_status(log),
        "vault_id": log.vault_id,
        "vault_name": log.vault_name,
        "provider_id": log.provider_id,
        "checkpoint_id": log.checkpoint_id,
        "policy_id": log.policy_id,
        "created_at": api_timestamp(log.created_at),
        "started_at": api_timestamp(log.started_at or log.created_at),
        "ended_at": _time(log.ended_at),
        "updated_at": api_timestamp(log.updated_at),
        "error_info": {"code": log.error_code, "message": log.error_message},
        "extra_info": _extra_info(log),
    }


def _stored_types(published: str | None) -> tuple[str, ...]:
    if published is None:
        return ()
    return (published, *(stored for stored, name in PUBLISHED_TYPES.items() if name == published))


def _extra_info(log: OperationLog) -> dict[str, Any]:
    return {
        "common": {"progress": log.progress, "request_id": f"req-{log.request_id}", "task_id": log.id},
        "resource": _resource(log),
        "backup": _backup(log) if log.operation_type == "backup" and log.backup_id else None,
        "delete": (
            {"backup_id": log.backup_id, "backup_name": log.backup_name} if log.operation_type == "delete" else None
        ),
        "restore": _restore(log) if log.operation_type == "restore" else None,
        "remove_resources": _removed(log) if log.operation_type == "remove_resource" else None,
        "vault_delete": _vault_delete(log) if log.operation_type == "vault_delete" else None,
        "replication": _replication(log) if log.operation_type in ("replication", "copy") else None,
        "sync": _sync(log) if log.operation_type == "sync" else None,
        "update_expiration_time": _expiration(log) if log.operation_type == "expiration" else None,
    }


def _resource(log: OperationLog) -> dict[str, Any]:
    """The one resource of the operation; the first of several; the vault itself where it is the object."""
    if log.resource_id is not None:
        return {"id": log.resource_id, "type": log.resource_type or "", "name": log.resource_name or ""}
    if log.removed:
        first = log.removed[0]
        return {"id": first.id, "type": first.type, "name": first.name}
    return {"id": log.vault_id or "", "type": "", "name": log.vault_name or ""}


def _backup(log: OperationLog) -> dict[str, Any]:
    return {
        "backup_id": log.backup_id,
        "backup_name": log.backup_name,
        "incremental": "true" if log.parameters.get("incremental", True) else "false",
        "app_consistency_status": "0",
        "app_consistency_error_code": "",
        "app_consistency_error_message": "",
    }


def _restore(log: OperationLog) -> dict[str, Any]:
    return {
        "backup_id": log.backup_id,
        "backup_name": log.backup_name,
        "target_resource_id": log.target_resource_id,
        "target_resource_name": log.target_resource_name,
    }


def _replication(log: OperationLog) -> dict[str, Any]:
    """Both sides; of the destination what is known yet."""
    return {name: log.outcome.get(name) or log.parameters.get(name) for name in _REPLICATION}


def _removed(log: OperationLog) -> dict[str, Any]:
    return {
        "fail_count": log.outcome.get("fail_count", 0),
        "total_count": log.outcome.get("total_count", len(log.removed)),
        "resources": [{"id": r.id, "type": r.type, "name": r.name} for r in log.removed],
    }


def _vault_delete(log: OperationLog) -> dict[str, Any]:
    """Under both names that clients read."""
    failed, total = log.outcome.get("fail_count", 0), log.outcome.get("total_count", 0)
    return {"fail_count": failed, "total_count": total, "fail_delete_count": failed, "total_delete_count": total}


def _sync(log: OperationLog) -> dict[str, Any]:
    """delete_backup_num: a restore point that is no longer in the store is for verify to tell, not to delete."""
    return {
        "sync_backup_num": log.outcome.get("imported", 0),
        "delete_backup_num": 0,
        "err_sync_backup_num": log.outcome.get("failed", 0),
    }


def _expiration(log: OperationLog) -> dict[str, Any]:
    return {"affected_backups_count": log.parameters["affected"], "expiration_day": log.parameters["day"]}


def _time(at: datetime | None) -> str | None:
    return None if at is None else api_timestamp(at)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_op_logs",
        method="GET",
        path="/v3/{project_id}/operation-logs",
        action="cbr:tasks:list",
        handler=list_op_logs,
        query=ListQuery,
    ),
    Operation(
        name="show_op_log",
        method="GET",
        path="/v3/{project_id}/operation-logs/{operation_log_id}",
        action="cbr:tasks:get",
        handler=show_op_log,
    ),
)
