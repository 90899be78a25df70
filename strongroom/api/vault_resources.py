"""Resources of vaults on the wire: added, removed and suspended, and how a bound resource looks in answers."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.base.units import gigabytes, megabytes
from strongroom.control import moving, protectables, resource_binding, vault_resources
from strongroom.control.protectables import Protectable
from strongroom.control.resource_binding import Look, LookAt, NewResource
from strongroom.control.vault_resources import VaultResource

INSPECTIONS_AT_ONCE = 4  # each holds a thread and walks a file system


class IncludedVolumeBody(msgspec.Struct):
    id: str
    os_version: str | None = None


class ExtraInfoBody(msgspec.Struct):
    exclude_volumes: list[str] | None = None
    include_volumes: list[IncludedVolumeBody] | None = None


class ResourceBody(msgspec.Struct):
    id: str
    type: str
    name: str | None = None
    extra_info: ExtraInfoBody | None = None


class AddResourcesBody(msgspec.Struct):
    resources: list[ResourceBody]


class RemoveResourcesBody(msgspec.Struct):
    resource_ids: list[str]


class MigrateResourcesBody(msgspec.Struct):
    destination_vault_id: str
    resource_ids: list[str]


class SetResourcesBody(msgspec.Struct):
    resource_ids: list[str]
    action: Literal["suspend", "unsuspend"]


class ResourceView(msgspec.Struct):
    """A resource inside a vault: numbers here, while a checkpoint's resources carry the same as strings."""

    id: str
    name: str
    type: str
    size: int  # GB
    protect_status: str
    backup_size: int  # MB
    backup_count: int
    auto_protect: bool
    extra_info: dict[str, Any]


class AddedAnswer(msgspec.Struct):
    add_resource_ids: list[str]


class RemovedAnswer(msgspec.Struct):
    remove_resource_ids: list[str]


class MigratedAnswer(msgspec.Struct):
    """operation_log_id is ours: what tells when they have arrived."""

    migrated_resources: list[str]
    operation_log_id: str


class SetAnswer(msgspec.Struct):
    set_resource_ids: list[str]


def resource_view(resource: VaultResource) -> ResourceView:
    """A bound resource in the units of the API."""
    return ResourceView(
        id=resource.id,
        name=resource.name,
        type=resource.type,
        size=gigabytes(resource.size_bytes),
        protect_status=resource.protect_status,
        backup_size=megabytes(resource.backup_bytes),
        backup_count=resource.backup_count,
        auto_protect=resource.auto_protect,
        extra_info=resource.extra_info,
    )


def new_resources(bodies: Iterable[ResourceBody]) -> tuple[NewResource, ...]:
    """A request's list of resources as values, unchecked."""
    return tuple(
        NewResource(
            id=body.id,
            type=body.type,
            name=body.name or None,
            exclude_volumes=tuple((body.extra_info.exclude_volumes if body.extra_info else None) or ()),
            include_volumes=tuple(
                {"id": volume.id} | ({"os_version": volume.os_version} if volume.os_version else {})
                for volume in (body.extra_info.include_volumes if body.extra_info else None) or ()
            ),
        )
        for body in bodies
    )


def looker(call: Call) -> LookAt:
    """How this request looks at resources: through the service's inspector, keeping what was seen. Those that only the
    workers of another process reach are not looked at: their first backup tells."""

    async def look_at(resource_ids: Sequence[str]) -> dict[str, Look]:
        if not resource_ids:
            return {}
        database, project_id = call.services.database, call.caller.project_id
        registered = await protectables.find_registered(database, project_id, resource_ids)
        registered = [found for found in registered if call.services.reaches_group(found.worker_group)]
        places = asyncio.Semaphore(INSPECTIONS_AT_ONCE)

        async def look(protectable: Protectable) -> Look:
            async with places:
                return await call.services.inspector.inspect(
                    protectable.id, protectable.resource_type, protectable.path, protectable.options
                )

        looks = await asyncio.gather(*(look(protectable) for protectable in registered))
        seen = {protectable.id: look for protectable, look in zip(registered, looks, strict=True)}
        await protectables.record_looks(database, project_id, seen)
        return seen

    return look_at


async def add_vault_resource(call: Call) -> AddedAnswer:
    resources = new_resources(call.body.resources)
    await resource_binding.add_resources(
        call.services.database,
        call.caller.project_id,
        call.path["vault_id"],
        resources,
        looker(call),
        call.services.clock,
    )
    return AddedAnswer(add_resource_ids=[resource.id for resource in resources])


async def remove_vault_resource(call: Call) -> RemovedAnswer:
    await vault_resources.remove_resources(
        call.services.database,
        call.caller.project_id,
        call.path["vault_id"],
        call.body.resource_ids,
        call.request_id,
        call.services.clock,
    )
    return RemovedAnswer(remove_resource_ids=call.body.resource_ids)


async def migrate_vault_resource(call: Call) -> MigratedAnswer:
    """Accepted: a task moves them; until it has ended they show `removing` in the old vault."""
    task_id = await moving.request_move(
        call.services.database,
        call.project_id,
        call.path["vault_id"],
        call.body.destination_vault_id,
        call.body.resource_ids,
        request_id=call.request_id,
        clock=call.services.clock,
    )
    return MigratedAnswer(migrated_resources=call.body.resource_ids, operation_log_id=task_id)


async def set_vault_resource(call: Call) -> SetAnswer:
    await vault_resources.set_auto_protect(
        call.services.database,
        call.project_id,
        call.path["vault_id"],
        call.body.resource_ids,
        auto_protect=call.body.action == "unsuspend",
    )
    return SetAnswer(set_resource_ids=call.body.resource_ids)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="add_vault_resource",
        method="POST",
        path="/v3/{project_id}/vaults/{vault_id}/addresources",
        action="cbr:vaults:addResources",
        handler=add_vault_resource,
        body=AddResourcesBody,
    ),
    Operation(
        name="remove_vault_resource",
        method="POST",
        path="/v3/{project_id}/vaults/{vault_id}/removeresources",
        action="cbr:vaults:removeResources",
        handler=remove_vault_resource,
        body=RemoveResourcesBody,
    ),
    Operation(
        name="migrate_vault_resource",
        method="POST",
        path="/v3/{project_id}/vaults/{vault_id}/migrateresources",
        action="cbr:vaults:migrateResources",
        handler=migrate_vault_resource,
        body=MigrateResourcesBody,
    ),
    Operation(
        name="set_vault_resource",
        method="PUT",
        path="/v3/{project_id}/vaults/{vault_id}/set-resources",
        action="cbr:vaults:update",
        handler=set_vault_resource,
        body=SetResourcesBody,
    ),
)
