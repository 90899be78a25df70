"""Members of a backup on the wire: the projects it is shared with."""

from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Unsupported
from strongroom.control import sharing
from strongroom.control.listing import sort_order
from strongroom.control.sharing import Member, MemberFilters


class AddMembers(msgspec.Struct):
    """Ids of projects. domains: newer clients may name whole domains."""

    members: list[str] | None = None
    domains: list[str] | None = None


class ListMembersQuery(msgspec.Struct):
    limit: int | None = None
    offset: int | None = None
    marker: str | None = None
    sort: str | None = None
    dest_project_id: str | None = None
    image_id: str | None = None
    status: str | None = None
    vault_id: str | None = None


class UpdateMember(msgspec.Struct):
    """Flat: this body has no envelope."""

    status: str
    vault_id: str | None = None


async def add_member(call: Call) -> dict[str, Any]:
    body: AddMembers = call.body
    if body.domains:
        raise Unsupported(
            reason="Invalid domains: a backup is shared with projects here. Name their ids in members instead."
        )
    members = await sharing.add_members(
        call.services.database,
        call.project_id,
        call.path["backup_id"],
        body.members or (),
        call.services.clock,
    )
    return {"members": [wire_member(member) for member in members], "count": len(members)}


async def show_members_detail(call: Call) -> dict[str, Any]:
    query: ListMembersQuery = call.query
    asked = MemberFilters(
        dest_project_id=query.dest_project_id or None,
        image_id=query.image_id or None,
        status=query.status or None,
        vault_id=query.vault_id or None,
    )
    members, count = await sharing.list_members(
        call.services.database,
        call.project_id,
        call.path["backup_id"],
        asked,
        page_of(query.limit, query.offset, query.marker),
        sort_order(query.sort, sharing.SORT_KEYS),
    )
    return {"members": [wire_member(member) for member in members], "count": count}


async def show_member_detail(call: Call) -> dict[str, Any]:
    member = await sharing.show_member(
        call.services.database, call.project_id, call.path["backup_id"], call.path["member_id"]
    )
    return {"member": wire_member(member)}


async def update_member_status(call: Call) -> dict[str, Any]:
    body: UpdateMember = call.body
    member = await sharing.decide(
        call.services.database,
        call.project_id,
        call.path["backup_id"],
        call.path["member_id"],
        status=body.status,
        vault_id=body.vault_id,
        clock=call.services.clock,
    )
    return {"member": wire_member(member)}


async def delete_member(call: Call) -> None:
    await sharing.revoke(call.services.database, call.project_id, call.path["backup_id"], call.path["member_id"])


def wire_member(member: Member) -> dict[str, Any]:
    """The published shape. No image can be registered from a backup here."""
    return {
        "id": member.id,
        "backup_id": member.backup_id,
        "dest_project_id": member.dest_project_id,
        "status": member.status,
        "vault_id": member.vault_id,
        "image_id": None,
        "created_at": api_timestamp(member.created_at),
        "updated_at": None if member.updated_at is None else api_timestamp(member.updated_at),
    }


_MEMBERS = "/v3/{project_id}/backups/{backup_id}/members"
_MEMBER = _MEMBERS + "/{member_id}"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="add_member",
        method="POST",
        path=_MEMBERS,
        action="cbr:member:create",
        handler=add_member,
        body=AddMembers,
    ),
    Operation(
        name="show_members_detail",
        method="GET",
        path=_MEMBERS,
        action="cbr:member:list",
        handler=show_members_detail,
        query=ListMembersQuery,
    ),
    Operation(
        name="show_member_detail",
        method="GET",
        path=_MEMBER,
        action="cbr:member:get",
        handler=show_member_detail,
    ),
    Operation(
        name="update_member_status",
        method="PUT",
        path=_MEMBER,
        action="cbr:member:update",
        handler=update_member_status,
        body=UpdateMember,
    ),
    Operation(
        name="delete_member",
        method="DELETE",
        path=_MEMBER,
        action="cbr:member:delete",
        handler=delete_member,
        status=204,
    ),
)
