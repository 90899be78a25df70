"""Policies on the wire: create, list, show, update, delete, and what applies one to a vault or takes it away."""

from datetime import datetime
from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.replication import checked_destination
from strongroom.base.errors import InvalidRequest
from strongroom.control import policies
from strongroom.control.policy_rules import Definition, NewPolicy, Policy, PolicyChange, Trigger

# --- requests: absent and null are the same, unknown members are ignored ----------------------------------------------


class TriggerPropertiesBody(msgspec.Struct):
    """time_zone is ours: the wall clock that the patterns speak of. Absent: UTC, as the published API has it."""

    pattern: list[str]
    start_window_minutes: int | None = None
    time_zone: str | None = None


class TriggerBody(msgspec.Struct):
    properties: TriggerPropertiesBody


class NewPolicyBody(msgspec.Struct):
    name: str
    operation_type: str
    trigger: TriggerBody
    operation_definition: Definition
    enabled: bool | None = None


class CreatePolicyBody(msgspec.Struct):
    policy: NewPolicyBody


class PolicyChangeBody(msgspec.Struct):
    name: str | None = None
    enabled: bool | None = None
    trigger: TriggerBody | None = None
    operation_definition: Definition | None = None


class UpdatePolicyBody(msgspec.Struct):
    policy: PolicyChangeBody


class ListPoliciesQuery(msgspec.Struct):
    operation_type: str | None = None
    vault_id: str | None = None


class AssociateBody(msgspec.Struct):
    """Exactly one of policy_id and add_policy_ids."""

    policy_id: str | None = None
    add_policy_ids: list[str] | None = None
    destination_vault_id: str | None = None


class DissociateBody(msgspec.Struct):
    policy_id: str


# --- answers ----------------------------------------------------------------------------------------------------------


class AssociationView(msgspec.Struct):
    vault_id: str
    destination_vault_id: str | None


class TriggerView(msgspec.Struct):
    id: str
    properties: dict[str, Any]
    name: str = "default"
    type: str = "time"


class PolicyView(msgspec.Struct):
    id: str
    name: str
    enabled: bool
    operation_type: str
    trigger: TriggerView
    operation_definition: dict[str, Any]
    associated_vaults: list[AssociationView]
    policy_type: str


class PolicyAnswer(msgspec.Struct):
    policy: PolicyView


class PoliciesAnswer(msgspec.Struct):
    policies: list[PolicyView]
    count: int


class AppliedView(msgspec.Struct):
    vault_id: str
    policy_id: str
    destination_vault_id: str | None = None


class AssociateAnswer(msgspec.Struct):
    associate_policy: AppliedView


class DissociateAnswer(msgspec.Struct):
    dissociate_policy: AppliedView


def policy_view(policy: Policy) -> PolicyView:
    """A policy with its patterns word for word, and of its definition what was given."""
    properties = trigger_view(policy.trigger) | {"start_time": _start_time(policy.start_at)}
    return PolicyView(
        id=policy.id,
        name=policy.name,
        enabled=policy.enabled,
        operation_type=policy.operation_type,
        trigger=TriggerView(id=policy.trigger_id, properties=properties),
        operation_definition=policy.definition.given(),
        associated_vaults=[
            AssociationView(vault_id=vault.vault_id, destination_vault_id=vault.destination_vault_id)
            for vault in policy.vaults
        ],
        policy_type=policy.policy_type,
    )


def trigger_view(trigger: Trigger) -> dict[str, Any]:
    """The members that were given."""
    properties: dict[str, Any] = {"pattern": list(trigger.patterns)}
    if trigger.start_window_minutes is not None:
        properties["start_window_minutes"] = trigger.start_window_minutes
    if trigger.time_zone is not None:
        properties["time_zone"] = trigger.time_zone
    return properties


def _start_time(at: datetime) -> str:
    """`2019-05-08T06:57:05.000+00:00`: of the two forms of the published examples the one that says its zone."""
    return at.isoformat(timespec="milliseconds")


# --- handlers ---------------------------------------------------------------------------------------------------------


async def create_policy(call: Call) -> PolicyAnswer:
    body: NewPolicyBody = call.body.policy
    new = NewPolicy(
        name=body.name,
        operation_type=body.operation_type,
        enabled=body.enabled is not False,
        trigger=trigger_of(body.trigger),
        definition=body.operation_definition,
    )
    made = await policies.create_policy(
        call.services.database, call.project_id, new, region=call.services.region, clock=call.services.clock
    )
    return PolicyAnswer(policy=policy_view(made))


async def list_policies(call: Call) -> PoliciesAnswer:
    """The whole list: the contract knows no pages here, and a project has at most 64."""
    query: ListPoliciesQuery = call.query
    found = await policies.list_policies(
        call.services.database, call.project_id, operation_type=query.operation_type, vault_id=query.vault_id
    )
    return PoliciesAnswer(policies=[policy_view(policy) for policy in found], count=len(found))


async def show_policy(call: Call) -> PolicyAnswer:
    found = await policies.show_policy(call.services.database, call.project_id, call.path["policy_id"])
    return PolicyAnswer(policy=policy_view(found))


async def update_policy(call: Call) -> PolicyAnswer:
    body: PolicyChangeBody = call.body.policy
    change = PolicyChange(
        name=body.name,
        enabled=body.enabled,
        trigger=None if body.trigger is None else trigger_of(body.trigger),
        definition=body.operation_definition,
    )
    after = await policies.update_policy(
        call.services.database,
        call.project_id,
        call.path["policy_id"],
        change,
        region=call.services.region,
        clock=call.services.clock,
    )
    return PolicyAnswer(policy=policy_view(after))


async def delete_policy(call: Call) -> None:
    await policies.delete_policy(call.services.database, call.project_id, call.path["policy_id"])


async def associate_vault_policy(call: Call) -> AssociateAnswer:
    body: AssociateBody = call.body
    if (body.policy_id is None) == (body.add_policy_ids is None):
        raise InvalidRequest(reason="Invalid policy_id: give either policy_id or add_policy_ids.")
    ids = body.add_policy_ids if body.policy_id is None else [body.policy_id]
    assert ids is not None
    destination = None
    if body.destination_vault_id is not None:
        vault_id = call.path["vault_id"]
        wanted = await policies.destination_wanted(call.services.database, call.project_id, vault_id, ids)
        if wanted is not None:
            destination = await checked_destination(
                call, wanted.region, wanted.project_id, body.destination_vault_id, wanted.object_type
            )
    await policies.associate_policies(
        call.services.database, call.project_id, call.path["vault_id"], ids, destination, call.services.clock
    )
    applied = AppliedView(
        vault_id=call.path["vault_id"], policy_id=ids[-1], destination_vault_id=body.destination_vault_id
    )
    return AssociateAnswer(associate_policy=applied)


async def disassociate_vault_policy(call: Call) -> DissociateAnswer:
    policy_id: str = call.body.policy_id
    await policies.dissociate_policy(call.services.database, call.project_id, call.path["vault_id"], policy_id)
    return DissociateAnswer(dissociate_policy=AppliedView(vault_id=call.path["vault_id"], policy_id=policy_id))


def trigger_of(body: TriggerBody) -> Trigger:
    """A request's trigger as a value, unchecked."""
    properties = body.properties
    return Trigger(
        patterns=tuple(properties.pattern),
        time_zone=properties.time_zone,
        start_window_minutes=properties.start_window_minutes,
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="create_policy",
        method="POST",
        path="/v3/{project_id}/policies",
        action="cbr:policies:create",
        handler=create_policy,
        body=CreatePolicyBody,
    ),
    Operation(
        name="list_policies",
        method="GET",
        path="/v3/{project_id}/policies",
        action="cbr:policies:list",
        handler=list_policies,
        query=ListPoliciesQuery,
    ),
    Operation(
        name="show_policy",
        method="GET",
        path="/v3/{project_id}/policies/{policy_id}",
        action="cbr:policies:get",
        handler=show_policy,
    ),
    Operation(
        name="update_policy",
        method="PUT",
        path="/v3/{project_id}/policies/{policy_id}",
        action="cbr:policies:update",
        handler=update_policy,
        body=UpdatePolicyBody,
    ),
    Operation(
        name="delete_policy",
        method="DELETE",
        path="/v3/{project_id}/policies/{policy_id}",
        action="cbr:policies:delete",
        handler=delete_policy,
        status=204,
    ),
    Operation(
        name="associate_vault_policy",
        method="POST",
        path="/v3/{project_id}/vaults/{vault_id}/associatepolicy",
        action="cbr:vaults:associatePolicy",
        handler=associate_vault_policy,
        body=AssociateBody,
    ),
    Operation(
        name="disassociate_vault_policy",
        method="POST",
        path="/v3/{project_id}/vaults/{vault_id}/dissociatepolicy",
        action="cbr:vaults:dissociatePolicy",
        handler=disassociate_vault_policy,
        body=DissociateBody,
    ),
)
