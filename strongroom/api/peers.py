"""What servers of other regions ask for, below /ext/v1/peer. Every call is signed by the region (REGION).

A region may offer backups of its projects to replication vaults of the projects that this server's regions.toml maps
them to, look at what became of its own offers, and read what an open record of this side offers to it. Nothing else.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from starlette.responses import Response

from strongroom import __version__
from strongroom.api.operation import REGION, Call, Handler, Operation
from strongroom.api.paging import page_of
from strongroom.api.services import Regions
from strongroom.api.vault_views import vault_view
from strongroom.base.errors import Conflict, InvalidRequest, RecordNotFound
from strongroom.control import replica_offers, vaults
from strongroom.control.names import require_description, require_id, require_name
from strongroom.control.policy_rules import COUNT_MAX, PERIODS_MAX
from strongroom.control.replica_offers import Offer
from strongroom.control.replication_records import ReplicationRecord, find_of_region
from strongroom.control.vault_kinds import RESOURCE_KINDS, VAULT_KINDS
from strongroom.control.vaults import VaultQuery

SIZE_HEADER = "X-Object-Size"

HexId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Count = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
Periods = Annotated[int, msgspec.Meta(ge=0, le=PERIODS_MAX)]


class Retention(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Rules of a policy's replicas, in the words of operation_definition; time_zone is the trigger's."""

    max_backups: Count | None = None
    retention_duration_days: Count | None = None
    day_backups: Periods | None = None
    week_backups: Periods | None = None
    month_backups: Periods | None = None
    year_backups: Periods | None = None
    timezone: Text | None = None
    time_zone: Text | None = None


RootName = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{36}\.[0-9]{1,9}$")]


class OfferBody(msgspec.Struct, forbid_unknown_fields=True):
    """A backup. project_id and vault_id: of here. root: name of its root object; wrapped: its domain's keys, in hex.

    disks  names of the roots of a machine's disks
    """

    auto_trigger: bool
    policy_id: str | None
    retention: Retention
    source_project_id: HexId
    source_vault_id: str
    source_checkpoint_id: str
    source_backup_id: str
    source_backup_name: Text
    source_created_at: str
    project_id: HexId
    vault_id: str
    name: str | None
    description: str | None
    object_type: Text
    resource_id: Text
    resource_type: Text
    resource_name: Text
    resource_size_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    incremental: bool
    root: RootName
    domain_id: HexId
    wrapped: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2}){1,4096}$")]
    disks: Annotated[list[RootName], msgspec.Meta(max_length=128)] = []


class CheckBody(msgspec.Struct):
    source_project_id: HexId
    project_id: HexId
    vault_id: str
    object_type: str


class ProjectBody(msgspec.Struct):
    source_project_id: HexId
    project_id: HexId


class VaultsQuery(msgspec.Struct):
    """Filters as list_external_vault has them."""

    source_project_id: HexId
    project_id: HexId
    object_type: str | None = None
    protect_type: str | None = None
    cloud_type: str | None = None
    vault_id: str | None = None
    limit: int | None = None
    offset: int | None = None


class ListQuery(msgspec.Struct):
    prefix: str = ""
    after: str = ""


class ReadQuery(msgspec.Struct):
    name: str = ""
    offset: int = 0
    length: int = 0


async def show_peer(call: Call) -> dict[str, Any]:
    """Who answers: the first question of a region."""
    return {"region": call.services.region, "version": __version__}


async def echo_peer(call: Call) -> dict[str, Any]:
    """Ask the region that asks, so that one side can try both ways."""
    await _regions(call).echo(call.caller.region)
    return {}


async def check_project(call: Call) -> dict[str, Any]:
    body: ProjectBody = call.body
    _require_mapped(call, body.source_project_id, body.project_id)
    return {}


async def check_destination(call: Call) -> dict[str, Any]:
    """Whether a vault of here takes replicas of a project of there."""
    body: CheckBody = call.body
    _require_mapped(call, body.source_project_id, body.project_id)
    require_id(body.vault_id, "vault_id")
    await replica_offers.require_destination(
        call.services.database,
        body.project_id,
        body.vault_id,
        object_type=body.object_type,
        own_region=call.services.region,
    )
    return {}


async def list_peer_vaults(call: Call) -> dict[str, Any]:
    """Vaults of here that take replicas of a project of there; no others."""
    query: VaultsQuery = call.query
    _require_mapped(call, query.source_project_id, query.project_id)
    if query.protect_type not in (None, "replication"):
        return {"vaults": [], "count": 0}
    wanted = VaultQuery(
        ids=(query.vault_id,) if query.vault_id else (),
        object_type=query.object_type,
        protect_type="replication",
        cloud_type=query.cloud_type,
    )
    page = page_of(query.limit, query.offset, None)
    found, count = await vaults.list_vaults(call.services.database, query.project_id, wanted, page)
    return {"vaults": [vault_view(vault) for vault in found], "count": count}


async def offer_replica(call: Call) -> dict[str, Any]:
    """Begin to make a replica, or go on with it: the same offer may come again and again."""
    body: OfferBody = call.body
    _require_mapped(call, body.source_project_id, body.project_id)
    for name in ("vault_id", "source_vault_id", "source_checkpoint_id", "source_backup_id"):
        require_id(getattr(body, name), name)
    if body.name is not None:
        require_name(body.name, "name")
    require_description(body.description, "description")
    if body.resource_type not in RESOURCE_KINDS or body.object_type not in VAULT_KINDS:
        raise Conflict(conflict_code="6122", reason="The kind of resource is not known here.")
    members = msgspec.structs.asdict(body)
    offer = Offer(
        **members
        | {
            "record_id": call.path["record_id"],
            "region": call.caller.region,
            "own_region": call.services.region,
            "retention": msgspec.to_builtins(body.retention),
            "source_created_at": _time(body.source_created_at),
            "source_backup_name": _shown(body.source_backup_name),
            "resource_name": _shown(body.resource_name),
            "wrapped": bytes.fromhex(body.wrapped),
            "disks": tuple(body.disks),
        }
    )
    await replica_offers.offer_replica(
        call.services.database, offer, request_id=call.request_id, clock=call.services.clock
    )
    return await _replica(call)


async def show_replica(call: Call) -> dict[str, Any]:
    return await _replica(call)


async def cancel_replica(call: Call) -> None:
    """The source gave up: what is under way stops. What is available stays."""
    await replica_offers.cancel_replica(call.services.database, await _record(call))


async def list_source_objects(call: Call) -> dict[str, Any]:
    query: ListQuery = call.query
    objects, after = await _regions(call).list_objects(
        call.caller.region, call.path["record_id"], query.prefix, query.after
    )
    return {"objects": objects, "next": after}


async def read_source_object(call: Call) -> Response:
    query: ReadQuery = call.query
    size, body = await _regions(call).read_object(
        call.caller.region, call.path["record_id"], query.name, query.offset, query.length
    )
    headers = {} if size is None else {SIZE_HEADER: str(size)}
    return Response(body, 200, headers, media_type="application/octet-stream")


async def _replica(call: Call) -> dict[str, Any]:
    record = await _record(call)
    return {
        "replica": {
            "status": record.status,
            "progress": await replica_offers.progress_of(call.services.database, record),
            "backup_id": record.backup_id,
            "backup_name": record.destination_backup_name or "",
            "checkpoint_id": record.destination_checkpoint_id or "",
            "stored_bytes": await replica_offers.stored_bytes(call.services.database, record),
            "fail_code": record.fail_code,
            "fail_reason": record.fail_reason,
        }
    }


async def _record(call: Call) -> ReplicationRecord:
    """The region's own record of this side. Raises RecordNotFound."""
    region = call.caller.region
    found = await find_of_region(
        call.services.database,
        side="destination",
        source_region=region,
        destination_region=call.services.region,
        record_id=call.path["record_id"],
        project_ids=_regions(call).projects_here(region),
    )
    if found is None:
        raise RecordNotFound(id=call.path["record_id"])
    return found


def _regions(call: Call) -> Regions:
    assert call.services.regions is not None  # the caller was authenticated by them
    return call.services.regions


def _require_mapped(call: Call, source_project_id: str, project_id: str) -> None:
    """Raises Conflict 1011: also when the project does not exist, which nobody over there is told."""
    if _regions(call).project_here(call.caller.region, source_project_id) != project_id:
        raise Conflict(
            conflict_code="1011",
            reason=f"Region {call.services.region} maps project {source_project_id} of region {call.caller.region} to "
            "another project, or to none. Its operator adds the line to regions.toml there.",
        )


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as err:
        raise InvalidRequest(reason="Invalid source_created_at: it is no time.") from err


def _shown(text: str) -> str:
    """A name of the other region as a row may hold it."""
    return re.sub(r"[\x00-\x1f\x7f]", "?", text)


_PATH = "/ext/v1/peer"


def _operation(
    name: str,
    method: Literal["GET", "PUT", "POST", "DELETE"],
    path: str,
    handler: Handler,
    *,
    body: type[msgspec.Struct] | None = None,
    query: type[msgspec.Struct] | None = None,
    status: int = 200,
) -> Operation:
    return Operation(
        name=name,
        method=method,
        path=_PATH + path,
        action=REGION,
        handler=handler,
        body=body,
        query=query,
        status=status,
    )


OPERATIONS: tuple[Operation, ...] = (
    _operation("show_peer", "GET", "", show_peer),
    _operation("echo_peer", "POST", "/echo", echo_peer),
    _operation("check_peer_project", "POST", "/project", check_project, body=ProjectBody),
    _operation("check_peer_destination", "POST", "/check", check_destination, body=CheckBody),
    _operation("list_peer_vaults", "GET", "/vaults", list_peer_vaults, query=VaultsQuery),
    _operation("offer_replica", "PUT", "/replicas/{record_id}", offer_replica, body=OfferBody),
    _operation("show_replica", "GET", "/replicas/{record_id}", show_replica),
    _operation("cancel_replica", "DELETE", "/replicas/{record_id}", cancel_replica, status=204),
    _operation("list_source_objects", "GET", "/sources/{record_id}/objects", list_source_objects, query=ListQuery),
    _operation(
        "read_source_object", "GET", "/sources/{record_id}/objects/content", read_source_object, query=ReadQuery
    ),
)
