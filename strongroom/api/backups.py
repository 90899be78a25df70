"""List, show, rename, delete and restore backups, in the published shapes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.api.replication import wire_record
from strongroom.base.clock import api_timestamp
from strongroom.base.errors import InvalidRequest
from strongroom.base.units import gigabytes
from strongroom.control import backups, deletions, restores
from strongroom.control.backups import Backup, BackupFilters
from strongroom.control.listing import sort_order
from strongroom.control.machine_restores import DiskMapping, MachineWish
from strongroom.control.replication_records import ReplicationRecord, records_of
from strongroom.control.restores import NewRestore

ResourceType = Literal[
    "OS::Nova::Server",
    "OS::Cinder::Volume",
    "OS::Ironic::BareMetalServer",
    "OS::Native::Server",
    "OS::Sfs::Turbo",
    "OS::Workspace::DesktopV2",
]
Status = Literal[
    "available", "protecting", "deleting", "restoring", "error", "waiting_protect", "waiting_delete", "waiting_restore"
]
BACKUP_VERSION = 3  # of the CBR API; clients show it


class ListQuery(msgspec.Struct):
    """Query of list_backups. `member_status` is about received backups only, `dec` about another cloud."""

    limit: int | None = None
    offset: int | None = None
    marker: str | None = None
    sort: str | None = None
    name: str | None = None
    resource_name: str | None = None
    checkpoint_id: str | None = None
    resource_id: str | None = None
    vault_id: str | None = None
    parent_id: str | None = None
    image_type: Literal["backup", "replication"] | None = None
    resource_type: ResourceType | None = None
    resource_az: str | None = None
    enterprise_project_id: str | None = None
    status: list[Status] | None = None
    own_type: Literal["all_granted", "private", "shared"] | None = None
    member_status: Literal["pending", "accepted", "rejected"] | None = None
    used_percent: int | None = None
    start_time: str | None = None
    end_time: str | None = None
    show_replication: bool | None = None
    incremental: bool | None = None
    dec: bool | None = None


class BackupName(msgspec.Struct):
    name: str | None = None


class UpdateBackup(msgspec.Struct):
    backup: BackupName


class MappingBody(msgspec.Struct):
    """Disk of a server backup -> disk of the target; disk backups ignore it."""

    backup_id: str
    volume_id: str


class RestoreDetails(msgspec.Struct):
    """Of a host with an agent: the folder there that gets everything."""

    destination_path: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class RestoreTarget(msgspec.Struct):
    """Body of a restore. `force` is ours: write although somebody has the target open."""

    volume_id: str | None = None
    resource_id: str | None = None
    server_id: str | None = None
    mappings: list[MappingBody] | None = None
    power_on: bool | None = None
    force: bool | None = None
    details: RestoreDetails | None = None


class RestoreBackup(msgspec.Struct):
    restore: RestoreTarget


async def list_backups(call: Call) -> dict[str, Any]:
    query: ListQuery = call.query
    page = page_of(query.limit, query.offset, query.marker)
    if query.used_percent is not None and not 1 <= query.used_percent <= 100:
        raise InvalidRequest(reason="Invalid used_percent: give 1 to 100.")
    asked = BackupFilters(
        name=query.name or None,
        resource_name=query.resource_name or None,
        checkpoint_id=query.checkpoint_id or None,
        resource_id=query.resource_id or None,
        vault_id=query.vault_id or None,
        parent_id=query.parent_id or None,
        image_type=query.image_type,
        resource_type=query.resource_type,
        resource_az=query.resource_az or None,
        enterprise_project_id=query.enterprise_project_id or None,
        statuses=tuple(query.status or ()),
        own_type=query.own_type or "private",
        member_status=query.member_status,
        used_percent=query.used_percent,
        start_time=query.start_time or None,
        end_time=query.end_time or None,
        incremental=query.incremental,
    )
    found, count = await backups.list_backups(
        call.services.database, call.project_id, asked, page, sort_order(query.sort, backups.SORT_KEYS)
    )
    ids = [backup.id for backup in found] if query.show_replication else []
    records = await records_of(call.services.database, call.project_id, ids)
    children = await backups.list_children(call.services.database, call.project_id, found, asked.own_type)
    return {
        "backups": [wire_backup(b, records.get(b.id, ()), children.get(b.id, ())) for b in found],
        "count": count,
        "limit": page.limit,
        "offset": page.offset,
    }


async def show_backup(call: Call) -> dict[str, Any]:
    found = await backups.show_backup(call.services.database, call.project_id, call.path["backup_id"])
    return await _with_records(call, found)


async def update_backup(call: Call) -> dict[str, Any]:
    name = call.body.backup.name
    if name is None:
        raise InvalidRequest(reason="Invalid backup.name: give the new name; nothing else of a backup can be changed.")
    renamed = await backups.rename_backup(
        call.services.database, call.project_id, call.path["backup_id"], name, call.services.clock
    )
    return await _with_records(call, renamed)


async def _with_records(call: Call, backup: Backup) -> dict[str, Any]:
    records = await records_of(call.services.database, call.project_id, [backup.id])
    children = await backups.list_children(call.services.database, call.project_id, [backup])
    return {"backup": wire_backup(backup, records.get(backup.id, ()), children.get(backup.id, ()))}


async def delete_backup(call: Call) -> None:
    await deletions.request_delete_backup(
        call.services.database,
        call.project_id,
        call.path["backup_id"],
        request_id=call.request_id,
        clock=call.services.clock,
    )


async def restore_backup(call: Call) -> dict[str, Any]:
    """Answers with the id of the operation log, which terraform polls as its job."""
    body: RestoreTarget = call.body.restore
    job_id = await restores.request_restore(
        call.services.database,
        call.project_id,
        call.path["backup_id"],
        NewRestore(
            volume_id=body.volume_id,
            resource_id=body.resource_id,
            server_id=body.server_id,
            target_path=body.details.destination_path.encode() if body.details is not None else None,
            force=bool(body.force),
            machine=machine_wish(body.mappings, body.power_on),
        ),
        request_id=call.request_id,
        clock=call.services.clock,
    )
    return {"job_id": job_id}


def machine_wish(
    mappings: Sequence[MappingBody] | None, power_on: bool | None, new_name: str | None = None
) -> MachineWish:
    """power_on: a server is started unless it is said otherwise."""
    return MachineWish(
        mappings=tuple(DiskMapping(backup_id=m.backup_id, volume_id=m.volume_id) for m in mappings or ()),
        power_on=power_on is not False,
        new_name=new_name,
    )


def wire_backup(
    backup: Backup, records: Sequence[ReplicationRecord] = (), children: Sequence[Backup] = ()
) -> dict[str, Any]:
    """The published shape; members that self-hosted backups cannot have are null, never missing."""
    return {
        "id": backup.id,
        "project_id": backup.owner_project_id,
        "member_status": backup.member_status,
        "vault_id": backup.vault_id,
        "checkpoint_id": backup.checkpoint_id,
        "resource_id": backup.resource_id,
        "resource_type": backup.resource_type,
        "resource_name": backup.resource_name,
        "resource_size": gigabytes(backup.resource_size_bytes),
        "resource_az": None,
        "name": backup.name,
        "description": backup.description,
        "provider_id": backup.provider_id,
        "image_type": backup.image_type,
        "parent_id": backup.parent_id,
        "status": backup.status,
        "incremental": backup.incremental,
        "version": BACKUP_VERSION,
        "enterprise_project_id": backup.enterprise_project_id,
        "scheduled_operation_id": None,
        "created_at": api_timestamp(backup.created_at),
        "protected_at": _time(backup.protected_at),
        "updated_at": _time(backup.updated_at),
        "expired_at": _time(backup.expired_at),
        "children": [wire_backup(child) for child in children],
        "replication_records": [wire_record(record) for record in records],
        "extend_info": _extend_info(backup),
    }


def _extend_info(backup: Backup) -> dict[str, Any]:
    is_boot = bool(backup.report.get("disk", {}).get("is_boot"))
    return {
        "auto_trigger": backup.auto_trigger,
        "bootable": is_boot,
        "snapshot_id": None,
        "support_lld": False,
        "supported_restore_mode": "backup" if backup.status == "available" else "na",
        "os_images_data": None,
        "contain_system_disk": bool(backup.report.get("has_boot_disk")),
        "encrypted": False,  # of the source disk; what is stored always is
        "system_disk": is_boot,
        "is_multi_az": backup.is_multi_az,
        "incremental": backup.incremental,
        "architecture": None,
        "progress": 100 if backup.status == "available" else backup.progress,
        "app_consistency": _app_consistency(backup.report),
    }


def _app_consistency(report: dict[str, Any]) -> dict[str, str]:
    """Whether it was asked for, and reached. The message says what was, when it is less."""
    reached = report.get("consistency") == "application_consistent"
    wanted = bool(report.get("application_wanted"))
    why = ""
    if wanted and not reached and "consistency" in report:
        what = str(report["consistency"]).replace("_", " ")
        why = f"The backup is {what}. {report.get('consistency_reason') or ''}".strip()
    return {
        "app_consistency": "1" if wanted else "0",
        "app_consistency_status": "1" if reached else "0",
        "app_consistency_error_code": "",
        "app_consistency_error_message": why,
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else api_timestamp(at)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_backups",
        method="GET",
        path="/v3/{project_id}/backups",
        action="cbr:backups:list",
        handler=list_backups,
        query=ListQuery,
    ),
    Operation(
        name="show_backup",
        method="GET",
        path="/v3/{project_id}/backups/{backup_id}",
        action="cbr:backups:get",
        handler=show_backup,
    ),
    Operation(
        name="update_backup",
        method="PUT",
        path="/v3/{project_id}/backups/{backup_id}",
        action="cbr:backups:update",
        handler=update_backup,
        body=UpdateBackup,
    ),
    Operation(
        name="delete_backup",
        method="DELETE",
        path="/v3/{project_id}/backups/{backup_id}",
        action="cbr:backups:delete",
        handler=delete_backup,
        status=204,
    ),
    Operation(
        name="restore_backup",
        method="POST",
        path="/v3/{project_id}/backups/{backup_id}/restore",
        action="cbr:backups:restore",
        handler=restore_backup,
        body=RestoreBackup,
        status=202,
    ),
)
