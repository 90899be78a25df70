"""Vaults on the wire: create, list, show, update, delete."""

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.api.vault_resources import ResourceBody, looker, new_resources
from strongroom.api.vault_views import VaultView, vault_view
from strongroom.base.errors import Conflict, InvalidRequest
from strongroom.base.ids import is_hex_id
from strongroom.control import vaults
from strongroom.control.names import Tag
from strongroom.control.vault_rules import NewVault, VaultChange
from strongroom.control.vaults import VaultQuery

# --- requests: absent and null are the same, unknown members are ignored ----------------------------------------------


class TagBody(msgspec.Struct):
    key: str
    value: str | None = None


class BindRulesBody(msgspec.Struct):
    tags: list[TagBody] | None = None


class BillingBody(msgspec.Struct):
    """operation_type is a client's alias of protect_type; members of orders are read for their type only."""

    consistent_level: str
    object_type: str
    size: int
    protect_type: str | None = None
    operation_type: str | None = None
    cloud_type: str | None = None
    charging_mode: str | None = None
    is_multi_az: bool | None = None
    period_type: str | None = None
    period_num: int | None = None
    is_auto_renew: bool | None = None
    is_auto_pay: bool | None = None
    console_url: str | None = None


class NewVaultBody(msgspec.Struct):
    billing: BillingBody
    name: str
    resources: list[ResourceBody]
    description: str | None = None
    backup_policy_id: str | None = None
    tags: list[TagBody] | None = None
    enterprise_project_id: str | None = None
    auto_bind: bool | None = None
    bind_rules: BindRulesBody | None = None
    auto_expand: bool | None = None
    threshold: int | None = None
    smn_notify: bool | None = None
    backup_name_prefix: str | None = None
    demand_billing: bool | None = None
    sys_lock_source_service: str | None = None
    locked: bool | None = None
    availability_zone: str | None = None


class CreateVaultBody(msgspec.Struct):
    vault: NewVaultBody


class BillingChangeBody(msgspec.Struct):
    consistent_level: str | None = None
    size: int | None = None


class VaultChangeBody(msgspec.Struct):
    billing: BillingChangeBody | None = None
    name: str | None = None
    auto_bind: bool | None = None
    bind_rules: BindRulesBody | None = None
    auto_expand: bool | None = None
    smn_notify: bool | None = None
    threshold: int | None = None
    locked: bool | None = None


class UpdateVaultBody(msgspec.Struct):
    vault: VaultChangeBody


class ListVaultQuery(msgspec.Struct):
    limit: int | None = None
    offset: int | None = None
    marker: str | None = None
    name: str | None = None
    id: list[str] = []
    policy_id: str | None = None
    status: str | None = None
    object_type: str | None = None
    protect_type: str | None = None
    cloud_type: str | None = None
    enterprise_project_id: str | None = None
    resource_ids: str | None = None


class ListExternalQuery(msgspec.Struct):
    """`objcet_type` is how one client spells object_type."""

    region_id: str
    external_project_id: str
    limit: int | None = None
    offset: int | None = None
    vault_id: str | None = None
    object_type: str | None = None
    objcet_type: str | None = None
    protect_type: str | None = None
    cloud_type: str | None = None


# --- answers ----------------------------------------------------------------------------------------------------------


class VaultAnswer(msgspec.Struct):
    vault: VaultView


class VaultsAnswer(msgspec.Struct):
    vaults: list[VaultView]
    count: int
    limit: int
    offset: int


class ExternalVaultsAnswer(msgspec.Struct):
    vaults: list[VaultView]
    count: int


# --- handlers ---------------------------------------------------------------------------------------------------------


async def create_vault(call: Call) -> VaultAnswer:
    new = new_vault(call.body.vault)
    vault = await vaults.create_vault(call.services.database, call.caller, new, looker(call), call.services.clock)
    return VaultAnswer(vault=vault_view(vault))


async def list_vault(call: Call) -> VaultsAnswer:
    query: ListVaultQuery = call.query
    page = page_of(query.limit, query.offset, query.marker)
    found, count = await vaults.list_vaults(
        call.services.database,
        call.caller.project_id,
        VaultQuery(
            name=query.name,
            ids=tuple(query.id),
            policy_id=query.policy_id,
            status=query.status,
            object_type=query.object_type,
            protect_type=query.protect_type,
            cloud_type=query.cloud_type,
            enterprise_project_id=query.enterprise_project_id,
            resource_ids=tuple(query.resource_ids.split(",")) if query.resource_ids else (),
        ),
        page,
    )
    return VaultsAnswer(
        vaults=[vault_view(vault) for vault in found], count=count, limit=page.limit, offset=page.offset
    )


async def list_external_vault(call: Call) -> ExternalVaultsAnswer:
    """Vaults of another project in this region, or of the caller's own in another region that take replicas."""
    query: ListExternalQuery = call.query
    if not is_hex_id(query.external_project_id):
        raise InvalidRequest(reason="Invalid external_project_id provided.")
    wanted = VaultQuery(
        ids=(query.vault_id,) if query.vault_id else (),
        object_type=query.object_type or query.objcet_type or None,
        protect_type=query.protect_type or None,
        cloud_type=query.cloud_type or None,
    )
    page = page_of(query.limit, query.offset, None)
    if query.region_id != call.services.region:
        return await _vaults_of_region(call, query, wanted)
    found, count = await vaults.list_external(
        call.services.database, call.caller, query.external_project_id, wanted, page
    )
    return ExternalVaultsAnswer(vaults=[vault_view(vault) for vault in found], count=count)


async def _vaults_of_region(call: Call, query: ListExternalQuery, wanted: VaultQuery) -> ExternalVaultsAnswer:
    """None, as if there were none, for a project that the caller's has nothing to do with."""
    regions = call.services.regions
    mapped = dict(regions.destinations(call.project_id)) if regions is not None else {}
    if regions is None or mapped.get(query.region_id) != query.external_project_id:
        return ExternalVaultsAnswer(vaults=[], count=0)
    found = await regions.external_vaults(
        call.project_id,
        query.region_id,
        object_type=wanted.object_type,
        protect_type=wanted.protect_type,
        cloud_type=wanted.cloud_type,
        vault_id=query.vault_id or None,
        limit=query.limit,
        offset=query.offset,
    )
    try:
        return msgspec.convert(found, ExternalVaultsAnswer)
    except msgspec.ValidationError as err:
        raise Conflict(
            conflict_code="6118", reason=f"Region {query.region_id} does not answer as agreed.", detail=str(err)
        ) from err


async def show_vault(call: Call) -> VaultAnswer:
    async with call.services.database.transaction() as conn:
        vault = await vaults.require_vault(conn, call.caller.project_id, call.path["vault_id"])
    return VaultAnswer(vault=vault_view(vault))


async def update_vault(call: Call) -> VaultAnswer:
    body: VaultChangeBody = call.body.vault
    billing = body.billing or BillingChangeBody()
    change = VaultChange(
        name=body.name,
        size_gb=billing.size,
        consistent_level=billing.consistent_level,
        auto_bind=body.auto_bind,
        bind_rules=None if body.bind_rules is None else _bind_rules(body.bind_rules),
        auto_expand=body.auto_expand,
        threshold=body.threshold,
        smn_notify=body.smn_notify,
        locked=body.locked,
    )
    vault = await vaults.update_vault(
        call.services.database, call.caller.project_id, call.path["vault_id"], change, call.services.clock
    )
    return VaultAnswer(vault=vault_view(vault))


async def delete_vault(call: Call) -> None:
    await vaults.delete_vault(
        call.services.database,
        call.caller.project_id,
        call.path["vault_id"],
        call.request_id,
        call.services.clock,
    )


def new_vault(body: NewVaultBody) -> NewVault:
    """A request's vault as a value, unchecked but for what its kind needs. Raises InvalidRequest."""
    billing = body.billing
    protect_type = billing.protect_type or billing.operation_type
    if protect_type is None:
        raise InvalidRequest(reason="Invalid vault.billing: Object missing required field `protect_type`.")
    return NewVault(
        name=body.name,
        description=body.description,
        object_type=billing.object_type,
        protect_type=protect_type,
        consistent_level=billing.consistent_level,
        size_gb=billing.size,
        cloud_type=billing.cloud_type or "public",
        charging_mode=billing.charging_mode or "post_paid",
        is_multi_az=billing.is_multi_az or False,
        resources=new_resources(body.resources),
        backup_policy_id=body.backup_policy_id,
        tags=_tags(body.tags),
        enterprise_project_id=body.enterprise_project_id,
        auto_bind=body.auto_bind or False,
        bind_rules=_bind_rules(body.bind_rules),
        auto_expand=body.auto_expand or False,
        threshold=80 if body.threshold is None else body.threshold,
        smn_notify=body.smn_notify is not False,
        backup_name_prefix=body.backup_name_prefix,
        demand_billing=body.demand_billing or False,
        locked=body.locked or False,
        availability_zone=body.availability_zone,
        sys_lock_source_service=body.sys_lock_source_service,
    )


def _tags(bodies: list[TagBody] | None) -> tuple[Tag, ...]:
    return tuple(Tag(key=tag.key, value=tag.value or "") for tag in bodies or ())


def _bind_rules(body: BindRulesBody | None) -> tuple[Tag, ...]:
    return _tags(body.tags) if body is not None else ()


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="create_vault",
        method="POST",
        path="/v3/{project_id}/vaults",
        action="cbr:vaults:create",
        handler=create_vault,
        body=CreateVaultBody,
    ),
    Operation(
        name="list_vault",
        method="GET",
        path="/v3/{project_id}/vaults",
        action="cbr:vaults:list",
        handler=list_vault,
        query=ListVaultQuery,
    ),
    Operation(
        name="list_external_vault",
        method="GET",
        path="/v3/{project_id}/vaults/external",
        action="cbr:vaults:list",
        handler=list_external_vault,
        query=ListExternalQuery,
    ),
    Operation(
        name="show_vault",
        method="GET",
        path="/v3/{project_id}/vaults/{vault_id}",
        action="cbr:vaults:get",
        handler=show_vault,
    ),
    Operation(
        name="update_vault",
        method="PUT",
        path="/v3/{project_id}/vaults/{vault_id}",
        action="cbr:vaults:update",
        handler=update_vault,
        body=UpdateVaultBody,
    ),
    Operation(
        name="delete_vault",
        method="DELETE",
        path="/v3/{project_id}/vaults/{vault_id}",
        action="cbr:vaults:delete",
        handler=delete_vault,
        status=204,
    ),
)
