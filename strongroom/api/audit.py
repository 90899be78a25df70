"""The audit log under /ext: of a project for its administrator, of all for the operator."""

from typing import Literal

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.base.clock import api_timestamp
from strongroom.control import audit
from strongroom.control.access import ACTION_ADMIN, ACTION_AUDIT
from strongroom.control.audit import Record, RecordFilters


class ListQuery(msgspec.Struct):
    """user: id or name. operation: an operationId of /openapi.json or /openapi/cbr.json."""

    limit: int | None = None
    marker: str | None = None
    operation: str | None = None
    user: str | None = None
    outcome: Literal["done", "refused"] | None = None
    start_time: str | None = None
    end_time: str | None = None


class AdminListQuery(ListQuery):
    project_id: str | None = None


class RecordView(msgspec.Struct, kw_only=True):
    """Who did what from where. objects: names and ids in the path. left_out: refusals before it that were too many.

    user_id ""  nobody who could prove it: user_name is then what a failed login claimed
    status      of the answer; of `done` the status of a success
    """

    id: str
    at: str
    project_id: str
    user_id: str
    user_name: str
    address: str
    operation: str
    objects: dict[str, str]
    outcome: Literal["done", "refused"]
    status: int
    error_code: str
    request_id: str
    left_out: int


class AuditAnswer(msgspec.Struct):
    """Newest first. next_marker: of the next page; null on the last one."""

    audit: list[RecordView]
    next_marker: str | None


async def list_audit(call: Call) -> AuditAnswer:
    return await _listed(call, call.project_id)


async def admin_list_audit(call: Call) -> AuditAnswer:
    return await _listed(call, call.query.project_id)


async def _listed(call: Call, project_id: str | None) -> AuditAnswer:
    query: ListQuery = call.query
    limit = page_of(query.limit, None, None).limit
    asked = RecordFilters(
        operation=query.operation,
        user=query.user,
        outcome=query.outcome,
        start_time=query.start_time,
        end_time=query.end_time,
    )
    found = await audit.list_records(call.services.database, project_id, asked, limit=limit + 1, marker=query.marker)
    page = [_view(record) for record in found[:limit]]
    return AuditAnswer(audit=page, next_marker=page[-1].id if len(found) > limit else None)


def _view(record: Record) -> RecordView:
    return RecordView(
        id=str(record.id),
        at=api_timestamp(record.at),
        project_id=record.project_id,
        user_id=record.user_id,
        user_name=record.user_name,
        address=record.address,
        operation=record.operation,
        objects=record.objects,
        outcome="done" if record.outcome == "done" else "refused",
        status=record.status,
        error_code=record.error_code,
        request_id=record.request_id,
        left_out=record.left_out,
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_audit",
        method="GET",
        path="/ext/v1/{project_id}/audit",
        action=ACTION_AUDIT,
        handler=list_audit,
        answer=AuditAnswer,
        query=ListQuery,
    ),
    Operation(
        name="admin_list_audit",
        method="GET",
        path="/ext/v1/admin/audit",
        action=ACTION_ADMIN,
        handler=admin_list_audit,
        answer=AuditAnswer,
        query=AdminListQuery,
    ),
)
