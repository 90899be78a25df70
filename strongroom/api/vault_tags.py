"""Tags of vaults on the wire, and vaults found by their tags. These paths say `vault`, all others `vaults`."""

from typing import Annotated, Any, Literal

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.api.vault_views import TagView, VaultView, vault_view
from strongroom.base.errors import Forbidden, InvalidRequest
from strongroom.control import vault_tags, vaults
from strongroom.control.names import Tag
from strongroom.control.tag_search import TagChoice, TagQuery

# --- requests ---------------------------------------------------------------------------------------------------------


class TagPart(msgspec.Struct):
    key: str
    value: str | None = None


class NewTagBody(msgspec.Struct):
    tag: TagPart


class TagsActionBody(msgspec.Struct):
    action: Literal["create", "delete"]
    tags: list[TagPart] | None = None
    sys_tags: list[TagPart] | None = None


class TagChoicePart(msgspec.Struct):
    key: str
    values: list[str] | None = None


class MatchPart(msgspec.Struct):
    key: Literal["resource_name"]
    value: str


class FindBody(msgspec.Struct):
    """limit and offset are texts in the contract; numbers are understood."""

    action: Literal["filter", "count"]
    tags: list[TagChoicePart] | None = None
    tags_any: list[TagChoicePart] | None = None
    not_tags: list[TagChoicePart] | None = None
    not_tags_any: list[TagChoicePart] | None = None
    sys_tags: list[TagChoicePart] | None = None
    without_any_tag: bool | None = None
    matches: Annotated[list[MatchPart], msgspec.Meta(max_length=1)] | None = None
    object_type: str | None = None
    cloud_type: str | None = None
    limit: str | int | None = None
    offset: str | int | None = None


class FindQuery(msgspec.Struct):
    """One client sends the enterprise project in the address."""

    enterprise_project_id: str | None = None


# --- answers ----------------------------------------------------------------------------------------------------------


class TagsAnswer(msgspec.Struct):
    tags: list[TagView]


class ProjectTagView(msgspec.Struct):
    key: str
    values: list[str]


class ProjectTagsAnswer(msgspec.Struct):
    tags: list[ProjectTagView]


class DetailView(msgspec.Struct):
    vault: VaultView


class FoundView(msgspec.Struct):
    resource_id: str
    resource_name: str
    resource_detail: DetailView
    tags: list[TagView]


class FoundAnswer(msgspec.Struct):
    resources: list[FoundView]
    total_count: int


# --- handlers ---------------------------------------------------------------------------------------------------------


async def show_vault_tag(call: Call) -> TagsAnswer:
    found = await vault_tags.show_tags(call.services.database, call.project_id, call.path["vault_id"])
    return TagsAnswer(tags=[TagView(key=tag.key, value=tag.value) for tag in found])


async def show_vault_project_tag(call: Call) -> ProjectTagsAnswer:
    found = await vault_tags.project_tags(call.services.database, call.project_id)
    return ProjectTagsAnswer(tags=[ProjectTagView(key=tag.key, values=tag.values) for tag in found])


async def create_vault_tags(call: Call) -> None:
    await vault_tags.set_tags(call.services.database, call.project_id, call.path["vault_id"], _tags([call.body.tag]))


async def batch_create_and_delete_vault_tags(call: Call) -> None:
    body: TagsActionBody = call.body
    if body.sys_tags:
        raise Forbidden(reason="System tags are set by services of the operator only. Leave sys_tags out.")
    place = (call.services.database, call.project_id, call.path["vault_id"])
    if body.action == "create":
        await vault_tags.set_tags(*place, _tags(body.tags))
    else:
        await vault_tags.delete_tags(*place, [tag.key for tag in body.tags or ()])


async def delete_vault_tag(call: Call) -> None:
    await vault_tags.delete_tag(call.services.database, call.project_id, call.path["vault_id"], call.path["key"])


async def show_vault_resource_instances(call: Call) -> FoundAnswer | dict[str, Any]:
    body: FindBody = call.body
    query = TagQuery(
        tags=_choices(body.tags),
        tags_any=_choices(body.tags_any),
        not_tags=_choices(body.not_tags),
        not_tags_any=_choices(body.not_tags_any),
        sys_tags=_choices(body.sys_tags),
        without_any_tag=body.without_any_tag or False,
        name=body.matches[0].value if body.matches else None,
        object_type=body.object_type,
        cloud_type=body.cloud_type,
        enterprise_project_id=call.query.enterprise_project_id,
    )
    counting = body.action == "count"
    page = None if counting else page_of(_number(body.limit, "limit"), _number(body.offset, "offset"), None)
    found, count = await vaults.find_by_tags(call.services.database, call.project_id, query, page)
    if counting:
        return {"total_count": count}
    views = [vault_view(vault) for vault in found]
    return FoundAnswer(
        resources=[
            FoundView(
                resource_id=view.id,
                resource_name=view.name,
                resource_detail=DetailView(vault=view),
                tags=view.tags,
            )
            for view in views
        ],
        total_count=count,
    )


def _tags(parts: list[TagPart] | None) -> tuple[Tag, ...]:
    return tuple(Tag(key=part.key, value=part.value or "") for part in parts or ())


def _choices(parts: list[TagChoicePart] | None) -> tuple[TagChoice, ...]:
    return tuple(TagChoice(key=part.key, values=tuple(part.values or ())) for part in parts or ())


def _number(given: str | int | None, member: str) -> int | None:
    """`"100"` as 100. Raises InvalidRequest."""
    if given is None or isinstance(given, int):
        return given
    if not (given.isascii() and given.isdigit() and len(given) <= 10):
        raise InvalidRequest(reason=f"Invalid {member}: give a number.")
    return int(given)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="show_vault_tag",
        method="GET",
        path="/v3/{project_id}/vault/{vault_id}/tags",
        action="cbr:vaults:getTags",
        handler=show_vault_tag,
    ),
    Operation(
        name="create_vault_tags",
        method="POST",
        path="/v3/{project_id}/vault/{vault_id}/tags",
        action="cbr:vaults:setTags",
        handler=create_vault_tags,
        body=NewTagBody,
        status=204,
    ),
    Operation(
        name="batch_create_and_delete_vault_tags",
        method="POST",
        path="/v3/{project_id}/vault/{vault_id}/tags/action",
        action="cbr:vaults:bulkCreateOrDeleteTags",
        handler=batch_create_and_delete_vault_tags,
        body=TagsActionBody,
        status=204,
    ),
    Operation(
        name="delete_vault_tag",
        method="DELETE",
        path="/v3/{project_id}/vault/{vault_id}/tags/{key}",
        action="cbr:vaults:deleteTags",
        handler=delete_vault_tag,
        status=204,
    ),
    Operation(
        name="show_vault_project_tag",
        method="GET",
        path="/v3/{project_id}/vault/tags",
        action="cbr:vaults:listProjectTags",
        handler=show_vault_project_tag,
    ),
    Operation(
        name="show_vault_resource_instances",
        method="POST",
        path="/v3/{project_id}/vault/resource_instances/action",
        action="cbr:vaults:listResourceInstances",
        handler=show_vault_resource_instances,
        body=FindBody,
        query=FindQuery,
    ),
)
