"""Requests with ids of another tenant in every place where an id can stand, made from the table of operations.

Path and query parameters, and the id members of bodies, are found in the operation's own types and in the contract.
What cannot be found is in the tables here: a sound body for each operation that has one, a value for each parameter.
An operation that is missing in them fails the test with a sentence that says what to add.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from strongroom.api.operation import PUBLIC, Operation

CONTRACT = json.loads(resources.files("strongroom.api").joinpath("openapi.json").read_text())
TURBO = "OS::Sfs::Turbo"

_PARAMETER = re.compile(r"\{(\w+)\}")
_ID_NAME = re.compile(r"(?:.*_)?ids?|marker|resources|volumes|resourceId")
_ID_VALUE = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")

# Members of bodies that look like ids of ours and are none.
NOT_OURS = {
    "provider_id": "one of a published list",
    "enterprise_project_id": "a label of the tenant's own, stored and given back",
    "destination_project_id": "a project of the other region, which decides",
    "resource_size_measure_id": "a number of the order form",
    "resourceSizeMeasureId": "a number of the order form",
    "id of include_volumes": "a disk of the cloud's, inside a server",
    "exclude_volumes": "disks of the cloud's, inside a server",
    "members": "projects that a tenant shares its own backup with",
    "agent_id": "chosen by the client, unique in its project",
}
# Members that an operation reads only for sources that there are none of, or that decide nothing here.
IGNORED = {
    ("restore_backup", "backup_id"): "of the mappings of a server's disks",
    ("restore_part", "backup_id"): "of the mappings of a server's disks",
    ("restore_part", "volume_id"): "of the mappings of a server's disks",
    ("associate_vault_policy", "destination_vault_id"): "a vault of the other region, which decides",
    ("import_backup", "resource_id"): "compared with what the restore point says of itself",
}
# Parameters of a query that take a text which is no id, and whose answer says it in another form.
NO_IDS = {
    "path_b64": "a place inside one backup",
    "after": "a place in the order of names inside one backup",
}


# Nothing is ever sent there: it is a name that leads to this machine.
HOOK = {"name": "hook", "kind": "webhook", "target": "https://localhost:1/"}


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """Ids of one tenant, by what they are of. names: texts that lists can be asked for.

    lent: a backup that is shared with the first of `receivers`, projects of others
    """

    project: str
    user: str
    vault: str
    spare_vault: str
    resource: str
    spare: str
    other: str
    disk: str
    checkpoint: str
    backup: str
    log: str
    policy: str
    agent: str
    notification: str
    lent: str
    receivers: tuple[str, str]
    names: tuple[str, ...]

    def ids(self) -> tuple[str, ...]:
        """Every id but the project's and the user's."""
        return (
            *(self.vault, self.spare_vault, self.resource, self.spare, self.other, self.disk),
            *(self.checkpoint, self.backup, self.log, self.policy, self.agent, self.notification, self.lent),
        )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request. place: where `value` stands that is not the caller's own, such as `path vault_id`."""

    operation: Operation
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    place: str = ""
    value: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        path = _PARAMETER.sub(lambda found: quote(self.path[found[1]], safe=""), self.operation.path)
        return path + ("?" + urlencode(self.query) if self.query else "")

    def __str__(self) -> str:
        return f"{self.operation.name}, {self.place}: {self.operation.method} {self.url} {self.body}"


# --- the tables -------------------------------------------------------------------------------------------------------


def path_values(own: Tenant) -> dict[str, str]:
    """A value of the tenant's own for each parameter of a path."""
    return {
        "project_id": own.project,
        "source_project_id": own.project,
        "domain_name": "default",
        "feature_key": "replication.enable",
        "organization_policy_id": own.policy,
        "user_id": own.user,
        "vault_id": own.vault,
        "checkpoint_id": own.checkpoint,
        "backup_id": own.backup,
        "operation_log_id": own.log,
        "task_id": own.log,
        "policy_id": own.policy,
        "protectable_id": own.spare,
        "instance_id": own.resource,
        "order_id": own.vault,
        "agent_id": own.agent,
        "notification_id": own.notification,
        "member_id": own.receivers[0],
        "protectable_type": "turbo",
        "key": "team",
        "region": "west",
        "access_key": "A" * 20,
    }


def required_queries(own: Tenant) -> dict[str, dict[str, str]]:
    """Query parameters without which an operation answers nothing."""
    return {
        "list_external_vault": {"region_id": "local", "external_project_id": own.project},
        "download_entry": {"path": "big"},
    }


def sound_bodies(own: Tenant) -> dict[str, tuple[Any, ...]]:
    """Bodies with an id of the tenant's own in every place for one; the first of each is one that is carried out."""
    billing = {"object_type": "turbo", "protect_type": "backup", "consistent_level": "crash_consistent", "size": 100}
    vault = {
        "name": "another",
        "billing": billing,
        "resources": [{"id": own.spare, "type": TURBO}],
        "backup_policy_id": own.policy,
    }
    trigger = {"properties": {"pattern": ["FREQ=DAILY;INTERVAL=1;BYHOUR=3;BYMINUTE=0"]}}
    policy = {
        "name": "another",
        "operation_type": "backup",
        "trigger": trigger,
        "operation_definition": {"max_backups": 3},
    }
    organization = {
        "name": "for-all",
        "operation_type": "backup",
        "policy_name": "for-all",
        "policy_enabled": True,
        "policy_trigger": trigger,
        "policy_operation_definition": {"max_backups": 3},
    }
    imported = {
        "backup_id": own.backup,
        "backup_name": "imported",
        "bucket_name": own.vault,
        "image_path": f"roots/{own.backup}.1",
        "resource_id": own.resource,
        "resource_name": "share",
        "resource_type": TURBO,
        "created_at": 1767225600,
    }
    product = {"resource_size": 200, "resource_spec_code": "vault.backup.turbo.normal"}
    orders = ({"resource_id": own.vault, "product_info": product}, {"resourceId": own.vault, "productInfo": product})
    far = {
        "destination_region": "west",
        "destination_project_id": own.project,
        "destination_vault_id": own.spare_vault,
    }
    checkpoint = {"vault_id": own.vault, "parameters": {"resources": [own.resource]}}
    host = {"host_name": "web", "host_ip": "10.0.0.1", "host_os": "Debian"}
    details = {"resource_details": [{"id": own.resource, "type": TURBO}], "policy_id": own.policy}
    return {
        "create_vault": ({"vault": vault},),
        "create_post_paid_vault": (
            {"vault": vault | {"name": "ordered", "resources": []}},
            {"vault": vault | {"name": "ordered"}},
        ),
        "update_vault": ({"vault": {"name": "renamed"}},),
        "add_vault_resource": ({"resources": [{"id": own.other, "type": TURBO}]},),
        "remove_vault_resource": ({"resource_ids": [own.resource]},),
        "set_vault_resource": ({"resource_ids": [own.resource], "action": "suspend"},),
        "set_vault_lock": ({"lock": {"locked": False}},),
        "verify_vault": ({"verify": {"deep": False}},),
        "create_vault_tags": ({"tag": {"key": "a", "value": "b"}},),
        "batch_create_and_delete_vault_tags": ({"action": "create", "tags": [{"key": "c", "value": "d"}]},),
        "show_vault_resource_instances": ({"action": "filter", "tags": [{"key": "team", "values": ["red"]}]},),
        "batch_update_vault": ({"vault": {"threshold": 70}},),
        "change_order": orders,
        "update_order": orders,
        "change_vault_charge_mode": (
            {"vault_ids": [own.vault], "charging_mode": "pre_paid", "period_type": "month", "period_num": 1},
        ),
        "create_notification": ({"notification": HOOK},),
        "update_notification": ({"notification": {"name": "renamed"}},),
        "create_policy": ({"policy": policy},),
        "update_policy": ({"policy": {"name": "renamed"}},),
        "create_organization_policy": ({"policy": organization},),
        "update_organization_policy": ({"policy": {"name": "renamed"}},),
        "update_expiration_time": ({"expect_expiration_date": "2099-12-31", "time_zone": "UTC+00:00"},),
        "migrate_vault_resource": ({"destination_vault_id": own.spare_vault, "resource_ids": [own.resource]},),
        "migrate_domain": ({"all_regions": True, "reservation": 0.2},),
        "import_checkpoint": ({"sync": {"vault_id": own.spare_vault, "auto_trigger": False}},),
        "import_backup": ({"sync": [imported]},),
        "associate_vault_policy": (
            {"policy_id": own.policy},
            {"add_policy_ids": [own.policy]},
            {"policy_id": own.policy, "destination_vault_id": own.spare_vault},
        ),
        "disassociate_vault_policy": ({"policy_id": own.policy},),
        "create_checkpoint": (
            {"checkpoint": checkpoint},
            {"checkpoint": {"vault_id": own.vault, "parameters": details}},
        ),
        "change_password": ({"user": {"original_password": "not the right one", "password": "a long enough one"}},),
        "add_member": ({"members": [own.receivers[1]]},),
        "update_member_status": ({"status": "accepted", "vault_id": own.vault},),
        "register_agent": ({"agent": host | {"agent_id": own.agent}},),
        "update_agent": ({"agent": {"status": "uninstall"}},),
        "add_agent_path": ({"add_path": ["/srv"]},),
        "remove_agent_path": ({"remove_path": ["/srv"]},),
        "new_agent_enrolment": ({}, {"resource_type": "OS::Ironic::BareMetalServer"}),
        "check_agent": ({"agent_status": [{"resource_id": own.agent, "resource_type": "OS::Nova::Server"}]},),
        "copy_backup": ({"replicate": far},),
        "copy_checkpoint": (
            {"replicate": {"vault_id": own.vault, **far}},
            {"checkpoint": {"replicate": {"vault_id": own.vault, **far}}},
        ),
        "update_backup": ({"backup": {"name": "renamed"}},),
        "restore_backup": (
            {"restore": {"resource_id": own.spare}},
            {"restore": {"server_id": own.resource}},
            {"restore": {"volume_id": own.disk}},
        ),
        "restore_part": ({"restore": {"path": "big", "target_resource_id": own.other}},),
    }


# --- from an operation to its requests --------------------------------------------------------------------------------


def asked_soundly(operation: Operation, own: Tenant) -> list[Asked]:
    """The operation with ids of the caller's own everywhere, once for each of its bodies."""
    values = path_values(own)
    names = _PARAMETER.findall(operation.path)
    unknown = [name for name in names if name not in values]
    assert not unknown, f"{operation.name}: say in tenant_matrix.path_values what {{{unknown[0]}}} may be"
    if "member_id" in names or operation.path.endswith("/members"):
        values["backup_id"] = own.lent
    path, query = {name: values[name] for name in names}, required_queries(own).get(operation.name, {})
    return [Asked(operation=operation, path=path, query=query, body=body) for body in _bodies(operation, own)]


def _bodies(operation: Operation, own: Tenant) -> tuple[Any, ...]:
    """Those of the table, which together have every member of the type that takes an id."""
    if operation.body is None:
        return (None,)
    bodies = sound_bodies(own).get(operation.name, ())
    assert bodies, f"{operation.name}: give a body that is carried out in tenant_matrix.sound_bodies"
    given = {name for body in bodies for name, _ in _leaves(body)}
    for name in _id_members(msgspec.inspect.type_info(operation.body)):
        left_out = name in NOT_OURS or (operation.name, name) in IGNORED
        assert left_out or name in given, f"{operation.name}: no body in tenant_matrix.sound_bodies has {name}"
    return bodies


def places(sound: Asked, other: Tenant, *, missing: bool) -> Iterator[Asked]:
    """The request with each id of `other` in each place of its own.

    missing: with ids that nobody has instead, one for each of the other's, in the same order.
    """
    ids = [_missing(value) if missing else value for value in other.ids()]
    texts = [_missing(value) if missing else value for value in (other.project, other.user, *other.names)]
    for name in sound.path:
        if name.endswith("_id") and name != "project_id":
            for value in (*ids, texts[0]):
                yield replace(sound, path={**sound.path, name: value}, place=f"path {name}", value=value)
        elif name in ("key", "access_key"):
            for value in (*ids, *texts):
                yield replace(sound, path={**sound.path, name: value}, place=f"path {name}", value=value)
    for name in set(_text_parameters(sound.operation)) - set(NO_IDS):
        for value in (*ids, *texts):
            yield replace(sound, query={**sound.query, name: value}, place=f"query {name}", value=value)
    for name, where in _leaves(sound.body):
        if name not in NOT_OURS and (sound.operation.name, name) not in IGNORED:
            for value in (*ids, texts[0]):
                yield replace(sound, body=_with(sound.body, where, value), place=f"body {name}", value=value)


def of_project(sound: Asked, project: str) -> Asked:
    """The request in somebody else's project."""
    return replace(sound, path={**sound.path, "project_id": project}, place="path project_id", value=project)


def needs_credentials(operation: Operation) -> bool:
    return operation.action != PUBLIC


def _missing(value: str) -> str:
    """Of the same form and length, and nobody's."""
    return re.sub(r"[0-9a-f]", "e", value) if _ID_VALUE.fullmatch(value) else re.sub(r"\w", "z", value)


def _text_parameters(operation: Operation) -> list[str]:
    """Names of the query parameters that take a text: those of the type, and those of the contract."""
    found = []
    if operation.query is not None:
        found = [
            part.encode_name
            for part in msgspec.structs.fields(operation.query)
            if _takes_text(msgspec.inspect.type_info(part.type))
        ]
    made = CONTRACT["paths"].get(operation.path, {}).get(operation.method.lower(), {})
    found += [
        part["name"]
        for part in made.get("parameters", [])
        if part.get("in") == "query" and part.get("schema", {}).get("type") in ("string", "array")
    ]
    return list(dict.fromkeys(found))


def _takes_text(kind: Any) -> bool:
    match kind:
        case msgspec.inspect.UnionType(types=types):
            return any(_takes_text(one) for one in types)
        case msgspec.inspect.ListType(item_type=item) | msgspec.inspect.VarTupleType(item_type=item):
            return _takes_text(item)
        case _:
            return isinstance(kind, msgspec.inspect.StrType)


def _id_members(kind: Any, name: str = "") -> Iterator[str]:
    """Names of the members of a body that take an id."""
    match kind:
        case msgspec.inspect.UnionType(types=types):
            for one in types:
                yield from _id_members(one, name)
        case msgspec.inspect.StructType(fields=fields):
            for part in fields:
                inner = part.encode_name
                yield from _id_members(part.type, f"id of {name}" if inner == "id" else inner)
        case msgspec.inspect.ListType(item_type=item) | msgspec.inspect.VarTupleType(item_type=item):
            yield from _id_members(item, name)
        case msgspec.inspect.StrType() if _ID_NAME.fullmatch(name) or name.startswith("id of "):
            yield name


def _leaves(
    value: Any, name: str = "", where: tuple[str | int, ...] = ()
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """(name of the member, way to it) of every id in a body."""
    match value:
        case dict():
            for key, member in value.items():
                yield from _leaves(member, f"id of {name}" if key == "id" else key, (*where, key))
        case list():
            for number, member in enumerate(value):
                yield from _leaves(member, name, (*where, number))
        case str() if _ID_VALUE.fullmatch(value):
            yield name, where


def _with(body: Any, where: tuple[str | int, ...], value: str) -> Any:
    changed = copy.deepcopy(body)
    inner = changed
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = value
    return changed
