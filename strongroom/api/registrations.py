"""Registrations on the wire: the operator's folders and disks, under /ext/v1/admin."""

import base64
import binascii
from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.base.clock import api_timestamp
from strongroom.base.errors import InvalidRequest
from strongroom.base.paths import readable_path
from strongroom.base.units import gigabytes
from strongroom.control import registrations
from strongroom.control.access import ACTION_ADMIN
from strongroom.control.protectables import Protectable
from strongroom.control.registrations import NewProtectable
from strongroom.control.resource_binding import Look


class NewProtectableBody(msgspec.Struct):
    """path as text, or path_b64 for bytes that are not UTF-8; exactly one of them."""

    project_id: str
    type: str
    name: str
    path: str | None = None
    path_b64: str | None = None
    exclude: list[str] | None = None
    one_file_system: bool | None = None
    read_limit_bytes_s: int | None = None
    privileged: bool | None = None
    worker_group: str | None = None
    source_host: str | None = None


class RegisterProtectableBody(msgspec.Struct):
    protectable: NewProtectableBody


class ListRegisteredQuery(msgspec.Struct):
    project_id: str | None = None
    limit: int | None = None
    offset: int | None = None


class RegisteredView(msgspec.Struct):
    id: str
    project_id: str
    type: str
    resource_type: str
    name: str
    path: str
    path_b64: str
    size: int  # GB
    size_bytes: int
    status: str
    worker_group: str
    source_host: str
    options: dict[str, Any]
    machine: dict[str, Any]  # of a server: disks and what its driver can do, at the last look
    created_at: str


class RegisteredAnswer(msgspec.Struct):
    protectable: RegisteredView


class RegisteredListAnswer(msgspec.Struct):
    protectables: list[RegisteredView]
    count: int


async def register_protectable(call: Call) -> RegisteredAnswer:
    new = _new_protectable(call.body.protectable)
    resource_type = registrations.check_new_protectable(new)
    look = Look(size_bytes=0, obstacle=None)  # where nobody here can look, the first backup does
    if call.services.reaches_group(new.worker_group):
        look = await call.services.inspector.inspect(new.id, resource_type, new.path, new.options)
    registered = await registrations.register_protectable(call.services.database, new, look, call.services.clock)
    return RegisteredAnswer(protectable=_registered_view(registered))


async def list_registered(call: Call) -> RegisteredListAnswer:
    query: ListRegisteredQuery = call.query
    page = page_of(query.limit, query.offset, None)
    found, count = await registrations.list_registered(call.services.database, query.project_id, page)
    return RegisteredListAnswer(protectables=[_registered_view(protectable) for protectable in found], count=count)


async def remove_protectable(call: Call) -> None:
    await registrations.remove_protectable(call.services.database, call.path["protectable_id"], call.services.clock)


def _new_protectable(body: NewProtectableBody) -> NewProtectable:
    return NewProtectable(
        project_id=body.project_id,
        type=body.type,
        name=body.name,
        path=_path_bytes(body.path, body.path_b64),
        exclude=tuple(body.exclude or ()),
        one_file_system=body.one_file_system or False,
        read_limit_bytes_s=body.read_limit_bytes_s,
        privileged=body.privileged or False,
        worker_group=body.worker_group or "default",
        source_host=body.source_host or "",
    )


def _path_bytes(path: str | None, path_b64: str | None) -> bytes:
    if (path is None) == (path_b64 is None):
        raise InvalidRequest(reason="Invalid protectable: give path, or path_b64 for a path that is not UTF-8.")
    if path is not None:
        return path.encode()
    assert path_b64 is not None
    try:
        return base64.b64decode(path_b64, validate=True)
    except (binascii.Error, ValueError) as err:
        raise InvalidRequest(reason="Invalid path_b64: it is not Base64.", detail=str(err)) from err


def _registered_view(registered: Protectable) -> RegisteredView:
    return RegisteredView(
        id=registered.id,
        project_id=registered.project_id,
        type=registered.type,
        resource_type=registered.resource_type,
        name=registered.name,
        path=readable_path(registered.path),
        path_b64=base64.b64encode(registered.path).decode("ascii"),
        size=gigabytes(registered.size_bytes),
        size_bytes=registered.size_bytes,
        status=registered.status,
        worker_group=registered.worker_group,
        source_host=registered.source_host,
        options=registered.options,
        machine=registered.machine,
        created_at=api_timestamp(registered.created_at),
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="register_protectable",
        method="POST",
        path="/ext/v1/admin/protectables",
        action=ACTION_ADMIN,
        handler=register_protectable,
        answer=RegisteredAnswer,
        body=RegisterProtectableBody,
        status=201,
    ),
    Operation(
        name="list_registered_protectables",
        method="GET",
        path="/ext/v1/admin/protectables",
        action=ACTION_ADMIN,
        handler=list_registered,
        answer=RegisteredListAnswer,
        query=ListRegisteredQuery,
    ),
    Operation(
        name="remove_protectable",
        method="DELETE",
        path="/ext/v1/admin/protectables/{protectable_id}",
        action=ACTION_ADMIN,
        handler=remove_protectable,
        status=204,
    ),
)
