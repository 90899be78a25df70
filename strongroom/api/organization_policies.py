"""Organization policies on the wire: one policy of a domain, kept in each of its projects."""

from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.paging import page_of
from strongroom.api.policies import TriggerBody, trigger_of, trigger_view
from strongroom.control import organization_policies
from strongroom.control.organization_copies import OrganizationPolicy
from strongroom.control.organization_policies import OrganizationChange
from strongroom.control.policy_rules import Definition, NewPolicy

AVAILABLE = "available"  # every copy is as it says when a change is answered


class NewBody(msgspec.Struct):
    """effective_scope: `all` (also when absent or empty), or ids of projects with commas."""

    name: str
    operation_type: str
    policy_name: str
    policy_enabled: bool
    policy_operation_definition: Definition
    policy_trigger: TriggerBody
    description: str | None = None
    effective_scope: str | None = None


class CreateBody(msgspec.Struct):
    policy: NewBody


class ChangeBody(msgspec.Struct):
    name: str | None = None
    description: str | None = None
    policy_name: str | None = None
    policy_enabled: bool | None = None
    policy_operation_definition: Definition | None = None
    policy_trigger: TriggerBody | None = None
    effective_scope: str | None = None


class UpdateBody(msgspec.Struct):
    policy: ChangeBody


class ListQuery(msgspec.Struct):
    operation_type: str | None = None
    limit: int | None = None
    offset: int | None = None


class DetailQuery(msgspec.Struct):
    limit: int | None = None
    offset: int | None = None


async def create_organization_policy(call: Call) -> dict[str, Any]:
    body: NewBody = call.body.policy
    made = await organization_policies.create(
        call.services.database,
        call.caller,
        name=body.name,
        description=body.description,
        effective_scope=body.effective_scope,
        policy=NewPolicy(
            name=body.policy_name,
            operation_type=body.operation_type,
            enabled=body.policy_enabled,
            trigger=trigger_of(body.policy_trigger),
            definition=body.policy_operation_definition,
        ),
        region=call.services.region,
        clock=call.services.clock,
    )
    return {"policy": _view(made)}


async def list_organization_policies(call: Call) -> dict[str, Any]:
    """A page of them: a domain has at most 64, so pages are cut here."""
    query: ListQuery = call.query
    page = page_of(query.limit, query.offset, None)
    found = await organization_policies.list_all(
        call.services.database, call.caller, operation_type=query.operation_type
    )
    return {
        "policies": [_view(policy) for policy in found[page.offset : page.offset + page.limit]],
        "count": len(found),
        "limit": page.limit,
        "offset": page.offset,
    }


async def show_organization_policy(call: Call) -> dict[str, Any]:
    found = await organization_policies.show(call.services.database, call.caller, call.path["organization_policy_id"])
    return {"policy": _view(found)}


async def update_organization_policy(call: Call) -> dict[str, Any]:
    body: ChangeBody = call.body.policy
    after = await organization_policies.update(
        call.services.database,
        call.caller,
        call.path["organization_policy_id"],
        OrganizationChange(
            name=body.name,
            description=body.description,
            effective_scope=body.effective_scope,
            policy_name=body.policy_name,
            enabled=body.policy_enabled,
            trigger=None if body.policy_trigger is None else trigger_of(body.policy_trigger),
            definition=body.policy_operation_definition,
        ),
        region=call.services.region,
        clock=call.services.clock,
    )
    return {"policy": _view(after)}


async def delete_organization_policy(call: Call) -> None:
    await organization_policies.delete(call.services.database, call.caller, call.path["organization_policy_id"])


async def list_organization_policy_detail(call: Call) -> dict[str, Any]:
    """One row a project that has a copy."""
    page = page_of(call.query.limit, call.query.offset, None)
    found = await organization_policies.list_copies(
        call.services.database, call.caller, call.path["organization_policy_id"]
    )
    return {
        "policies": [
            {
                "policy_id": copy_id,
                "domain_id": call.caller.domain_id,
                "project_id": project_id,
                "status": AVAILABLE,
            }
            for copy_id, project_id in found[page.offset : page.offset + page.limit]
        ],
        "count": len(found),
        "limit": page.limit,
        "offset": page.offset,
    }


def _view(policy: OrganizationPolicy) -> dict[str, Any]:
    new = policy.policy
    return {
        "id": policy.id,
        "name": policy.name,
        "description": policy.description,
        "operation_type": new.operation_type,
        "domain_id": policy.domain_id,
        "domain_name": policy.domain_name,
        "effective_scope": policy.effective_scope,
        "policy_name": new.name,
        "policy_enabled": new.enabled,
        "policy_operation_definition": new.definition.given(),
        "policy_trigger": {"properties": trigger_view(new.trigger)},
        "status": AVAILABLE,
    }


_ALL = "/v3/{project_id}/organization-policies"
_ONE = f"{_ALL}/{{organization_policy_id}}"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="create_organization_policy",
        method="POST",
        path=_ALL,
        action="cbr:policies:create",
        handler=create_organization_policy,
        body=CreateBody,
    ),
    Operation(
        name="list_organization_policies",
        method="GET",
        path=_ALL,
        action="cbr:policies:list",
        handler=list_organization_policies,
        query=ListQuery,
    ),
    Operation(
        name="show_organization_policy",
        method="GET",
        path=_ONE,
        action="cbr:policies:get",
        handler=show_organization_policy,
    ),
    Operation(
        name="update_organization_policy",
        method="PUT",
        path=_ONE,
        action="cbr:policies:update",
        handler=update_organization_policy,
        body=UpdateBody,
    ),
    Operation(
        name="delete_organization_policy",
        method="DELETE",
        path=_ONE,
        action="cbr:policies:delete",
        handler=delete_organization_policy,
        status=204,
    ),
    Operation(
        name="list_organization_policy_detail",
        method="GET",
        path=f"{_ONE}/policy-detail",
        action="cbr:policies:get",
        handler=list_organization_policy_detail,
        query=DetailQuery,
    ),
)
