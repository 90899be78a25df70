"""POST and GET of checkpoints (restore points). Numbers of a checkpoint's resources are strings on the wire."""

from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.base.clock import api_timestamp
from strongroom.base.errors import InvalidRequest
from strongroom.base.ids import is_id
from strongroom.base.units import gigabytes, megabytes
from strongroom.control import checkpoints, policies
from strongroom.control.checkpoint_views import Checkpoint, CheckpointResource, show_checkpoint
from strongroom.control.checkpoints import KEEP_FOR_EVER, NewCheckpoint


class Volume(msgspec.Struct):
    """A disk of a server that is to be backed up."""

    id: str
    os_version: str | None = None


class ResourceExtraInfo(msgspec.Struct, omit_defaults=True):
    """Which disks of a server are left out, or taken alone."""

    exclude_volumes: list[str] | None = None
    include_volumes: list[Volume] | None = None


class ResourceDetail(msgspec.Struct):
    """The richer form of an entry of `resources`."""

    id: str
    type: str
    name: str | None = None
    extra_info: ResourceExtraInfo | None = None


class Parameters(msgspec.Struct):
    """What a run covers and how. null is the same as absent."""

    name: str | None = None
    description: str | None = None
    incremental: bool | None = None
    auto_trigger: bool | None = None
    resources: list[str] | None = None
    resource_details: list[ResourceDetail] | None = None
    policy_id: str | None = None
    retention_duration_days: int | None = None


class CheckpointBody(msgspec.Struct):
    vault_id: str
    parameters: Parameters | None = None


class CreateCheckpoint(msgspec.Struct):
    checkpoint: CheckpointBody


async def create_checkpoint(call: Call) -> dict[str, Any]:
    """Answers at once; the work goes on in the background."""
    body: CheckpointBody = call.body.checkpoint
    asked = body.parameters or Parameters()
    details = asked.resource_details or []
    ids = _resource_ids(asked.resources or [], details)
    new = NewCheckpoint(
        vault_id=body.vault_id,
        name=asked.name,
        description=asked.description,
        incremental=asked.incremental is not False,
        auto_trigger=bool(asked.auto_trigger),
        resource_ids=ids or None,
        extra_infos={
            detail.id: msgspec.json.encode(detail.extra_info).decode() for detail in details if detail.extra_info
        },
        policy_id=asked.policy_id,
        retention_days=KEEP_FOR_EVER if asked.retention_duration_days is None else asked.retention_duration_days,
    )
    if asked.policy_id is not None and is_id(asked.policy_id):  # a malformed one is refused with the others below
        await policies.show_policy(call.services.database, call.project_id, asked.policy_id)
    checkpoint = await checkpoints.create_checkpoint(
        call.services.database, call.project_id, new, request_id=call.request_id, clock=call.services.clock
    )
    return {"checkpoint": wire_checkpoint(checkpoint)}


def _resource_ids(ids: list[str], details: list[ResourceDetail]) -> tuple[str, ...]:
    """Both lists may name the same resources, or one of them all."""
    detailed = [detail.id for detail in details]
    if ids and detailed and set(ids) != set(detailed):
        raise InvalidRequest(reason="Invalid resource_details: it names other resources than `resources`. Send one.")
    return tuple(ids or detailed)


async def show(call: Call) -> dict[str, Any]:
    found = await show_checkpoint(call.services.database, call.project_id, call.path["checkpoint_id"])
    return {"checkpoint": wire_checkpoint(found)}


def wire_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """The published shape."""
    return {
        "id": checkpoint.id,
        "project_id": checkpoint.project_id,
        "status": checkpoint.status,
        "created_at": api_timestamp(checkpoint.created_at),
        "vault": {
            "id": checkpoint.vault_id,
            "name": checkpoint.vault_name,
            "provider_id": checkpoint.provider_id,
            "resources": [_wire_resource(resource) for resource in checkpoint.resources],
            "skipped_resources": [
                {"id": s.id, "type": s.type, "name": s.name, "code": s.code, "reason": s.reason}
                for s in checkpoint.skipped_resources
            ],
        },
        "extra_info": {
            "name": checkpoint.name,
            "description": checkpoint.description,
            "retention_duration": checkpoint.retention_days,
        },
    }


def _wire_resource(resource: CheckpointResource) -> dict[str, Any]:
    return {
        "id": resource.id,
        "type": resource.type,
        "name": resource.name,
        "extra_info": resource.extra_info,
        "protect_status": resource.protect_status,
        "resource_size": str(gigabytes(resource.size_bytes)),
        "backup_size": str(megabytes(resource.stored_bytes)),
        "backup_count": str(resource.backup_count),
    }


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="create_checkpoint",
        method="POST",
        path="/v3/{project_id}/checkpoints",
        action="cbr:vaults:backup",
        handler=create_checkpoint,
        body=CreateCheckpoint,
    ),
    Operation(
        name="show_checkpoint",
        method="GET",
        path="/v3/{project_id}/checkpoints/{checkpoint_id}",
        action="cbr:vaults:get",
        handler=show,
    ),
)
