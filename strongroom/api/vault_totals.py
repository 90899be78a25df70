"""Sums on the wire: what all vaults hold, what each resource takes up; and one change for all vaults."""

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.base.units import gigabytes, megabytes
from strongroom.control import vault_totals, vaults
from strongroom.control.names import require_id


class UsageQuery(msgspec.Struct):
    limit: int | None = None
    offset: int | None = None
    resource_id: str | None = None
    resource_type: str | None = None


class AllVaultsPart(msgspec.Struct):
    threshold: int | None = None
    smn_notify: bool | None = None


class AllVaultsBody(msgspec.Struct):
    vault: AllVaultsPart


class SummaryAnswer(msgspec.Struct):
    """GB; used_size rounded up."""

    size: int
    used_size: int


class UsageView(msgspec.Struct):
    """backup_size and backup_size_multiaz: MB; the second is the part of it in vaults with is_multi_az."""

    resource_id: str
    resource_name: str
    resource_type: str
    backup_count: int
    backup_size: int
    backup_size_multiaz: int


class UsageAnswer(msgspec.Struct):
    storage_usage: list[UsageView]
    resource_count: int


class UpdatedAnswer(msgspec.Struct):
    updated_vaults_id: list[str]


async def show_summary(call: Call) -> SummaryAnswer:
    totals = await vault_totals.show_totals(call.services.database, call.project_id)
    return SummaryAnswer(size=totals.size_gb, used_size=gigabytes(totals.used_bytes))


async def show_storage_usage(call: Call) -> UsageAnswer:
    query: UsageQuery = call.query
    if query.resource_id:
        require_id(query.resource_id, "resource_id")
    found, count = await vault_totals.list_usage(
        call.services.database,
        call.project_id,
        query.resource_id or None,
        query.resource_type or None,
        page_of(query.limit, query.offset, None),
    )
    return UsageAnswer(
        storage_usage=[
            UsageView(
                resource_id=usage.resource_id,
                resource_name=usage.resource_name,
                resource_type=usage.resource_type,
                backup_count=usage.backup_count,
                backup_size=megabytes(usage.backup_bytes),
                backup_size_multiaz=megabytes(usage.multi_az_bytes),
            )
            for usage in found
        ],
        resource_count=count,
    )


async def batch_update_vault(call: Call) -> UpdatedAnswer:
    asked: AllVaultsPart = call.body.vault
    updated = await vaults.update_all(
        call.services.database,
        call.project_id,
        threshold=asked.threshold,
        smn_notify=asked.smn_notify,
        clock=call.services.clock,
    )
    return UpdatedAnswer(updated_vaults_id=updated)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="show_summary",
        method="GET",
        path="/v3/{project_id}/vaults/summary",
        action="cbr:vaults:list",
        handler=show_summary,
    ),
    Operation(
        name="show_storage_usage",
        method="GET",
        path="/v3/{project_id}/storage_usage",
        action="cbr:backups:list",
        handler=show_storage_usage,
        query=UsageQuery,
    ),
    Operation(
        name="batch_update_vault",
        method="PUT",
        path="/v3/{project_id}/vaults/batch-update",
        action="cbr:vaults:update",
        handler=batch_update_vault,
        body=AllVaultsBody,
    ),
)
