"""Protectables on the wire: what a tenant may put into vaults."""

from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.api.vault_views import VaultView, vault_view
from strongroom.base.units import gigabytes
from strongroom.control import protectables
from strongroom.control.protectables import Protectable, ProtectableQuery, Verdict
from strongroom.control.vault_kinds import DISK

INSTANCES_LIMIT_MAX = 50  # contract: the page of this list


class ListProtectableQuery(msgspec.Struct):
    limit: int | None = None
    offset: int | None = None
    marker: str | None = None
    id: str | None = None
    name: str | None = None
    status: str | None = None
    server_id: str | None = None
    enterprise_project_id: str | None = None


class VerdictView(msgspec.Struct):
    result: bool
    code: str | None
    reason: str | None
    message: str | None
    vault: VaultView | None


class InstanceView(msgspec.Struct):
    """children: the disks of a server. detail: what its hypervisor says of it; of other resources nothing."""

    id: str
    name: str
    type: str
    size: int  # GB
    status: str
    protectable: VerdictView
    children: list["DiskView"] = []
    detail: dict[str, Any] = {}


class DiskView(msgspec.Struct):
    """A disk of a server: its id is what exclude_volumes, include_volumes and mappings name."""

    id: str
    name: str
    size: int  # GB
    status: str
    detail: dict[str, Any]
    type: str = DISK.type_name
    children: list[Any] = []


class InstancesAnswer(msgspec.Struct):
    instances: list[InstanceView]
    count: int


class InstanceAnswer(msgspec.Struct):
    instance: InstanceView


async def list_protectable(call: Call) -> InstancesAnswer:
    query: ListProtectableQuery = call.query
    page = page_of(query.limit, query.offset, query.marker, INSTANCES_LIMIT_MAX)
    found, count = await protectables.list_protectables(
        call.services.database,
        call.caller.project_id,
        call.path["protectable_type"],
        ProtectableQuery(
            id=query.id,
            name=query.name,
            status=query.status,
            server_id=query.server_id,
            enterprise_project_id=query.enterprise_project_id,
        ),
        page,
    )
    return InstancesAnswer(
        instances=[_instance_view(protectable, verdict) for protectable, verdict in found], count=count
    )


async def show_protectable(call: Call) -> InstanceAnswer:
    protectable, verdict = await protectables.require_protectable(
        call.services.database, call.caller.project_id, call.path["protectable_type"], call.path["instance_id"]
    )
    return InstanceAnswer(instance=_instance_view(protectable, verdict))


def _instance_view(protectable: Protectable, verdict: Verdict) -> InstanceView:
    return InstanceView(
        id=protectable.id,
        name=protectable.name,
        type=protectable.resource_type,
        size=gigabytes(protectable.size_bytes),
        status=protectable.status,
        protectable=VerdictView(
            result=verdict.protectable,
            code=verdict.code,
            reason=verdict.reason,
            message=verdict.reason,
            vault=vault_view(verdict.vault) if verdict.vault is not None else None,
        ),
        children=[_disk_view(disk, protectable.status) for disk in protectable.machine.get("disks", ())],
        detail=_detail(protectable.machine),
    )


def _disk_view(disk: dict[str, Any], status: str) -> DiskView:
    return DiskView(
        id=disk["id"],
        name=disk["name"],
        size=gigabytes(disk["size_bytes"]),
        status=status,
        detail={"size_bytes": disk["size_bytes"], "bootable": "true" if disk.get("is_boot") else "false"},
    )


def _detail(machine: dict[str, Any]) -> dict[str, Any]:
    """Not where anything lies on the host: reasons name folders there, and are for who registers it."""
    abilities = [{"name": ability["name"], "works": ability["works"]} for ability in machine.get("abilities", ())]
    return {name: machine[name] for name in ("power",) if name in machine} | (
        {"abilities": abilities} if abilities else {}
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_protectable",
        method="GET",
        path="/v3/{project_id}/protectables/{protectable_type}/instances",
        action="cbr:vaults:listProtectables",
        handler=list_protectable,
        query=ListProtectableQuery,
    ),
    Operation(
        name="show_protectable",
        method="GET",
        path="/v3/{project_id}/protectables/{protectable_type}/instances/{instance_id}",
        action="cbr:vaults:getProtectables",
        handler=show_protectable,
    ),
)
