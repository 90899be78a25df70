"""Copy backups to another region, and say where to: the published shapes, and regions below /ext."""

from collections.abc import Sequence
from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.services import Regions
from strongroom.base.clock import api_timestamp
from strongroom.base.errors import BackupNotFound, Conflict, InvalidRequest, Unsupported
from strongroom.control import backups, replications
from strongroom.control.names import require_description, require_id, require_name
from strongroom.control.replication_records import ReplicationRecord, records_of
from strongroom.control.replications import Destination, NewReplication


class ReplicateBackupBody(msgspec.Struct):
    """cross_account_urn and enable_acceleration are of the public cloud's network."""

    destination_project_id: str
    destination_region: str
    destination_vault_id: str
    name: str | None = None
    description: str | None = None
    enable_acceleration: bool | None = None
    cross_account_urn: str | None = None


class ReplicateBackup(msgspec.Struct):
    replicate: ReplicateBackupBody


class ReplicateVaultBody(msgspec.Struct):
    vault_id: str
    destination_project_id: str
    destination_region: str
    destination_vault_id: str
    auto_trigger: bool | None = None
    enable_acceleration: bool | None = None
    cross_account_urn: str | None = None


class Wrapped(msgspec.Struct):
    replicate: ReplicateVaultBody


class ReplicateVault(msgspec.Struct):
    """gophertelekomcloud sends its body inside `checkpoint`."""

    replicate: ReplicateVaultBody | None = None
    checkpoint: Wrapped | None = None


async def copy_backup(call: Call) -> dict[str, Any]:
    """Answers at once; the record tells how far it is."""
    body: ReplicateBackupBody = call.body.replicate
    _require_plain(body)
    if body.name is not None:
        require_name(body.name, "name")
    require_description(body.description, "description")
    backup_id, database = call.path["backup_id"], call.services.database
    backup = await backups.show_backup(database, call.project_id, backup_id)
    if backup.member_status is not None:
        raise BackupNotFound(id=backup_id)  # shared by another project, which alone copies it
    replications.require_replicable_backup(
        {"image_type": backup.image_type, "resource_type": backup.resource_type, "status": backup.status}
    )
    object_type = await replications.find_object_type(database, call.project_id, backup.vault_id)
    destination = await checked_destination(
        call, body.destination_region, body.destination_project_id, body.destination_vault_id, object_type
    )
    await _forget_gone(call, backup_id, destination.region)
    new = NewReplication(
        destination=destination, source_region=call.services.region, name=body.name, description=body.description
    )
    begun, provider_id = await replications.replicate_backup(
        database, call.project_id, backup_id, new, request_id=call.request_id, clock=call.services.clock
    )
    return {
        "replication": {
            "backup_id": backup_id,
            "destination_project_id": destination.project_id,
            "destination_region": destination.region,
            "destination_vault_id": destination.vault_id,
            "project_id": call.project_id,
            "provider_id": provider_id,
            "replication_record_id": begun.record_id,
            "source_region": call.services.region,
        }
    }


async def copy_checkpoint(call: Call) -> dict[str, Any]:
    """Copies every backup of the vault that the region lacks: one record and one operation log each."""
    asked: ReplicateVault = call.body
    if (asked.replicate is None) == (asked.checkpoint is None):
        raise InvalidRequest(reason="Invalid replicate: give it once.")
    body = asked.replicate if asked.checkpoint is None else asked.checkpoint.replicate
    assert body is not None
    _require_plain(body)
    require_id(body.vault_id, "vault_id")
    object_type = await replications.find_object_type(call.services.database, call.project_id, body.vault_id)
    destination = await checked_destination(
        call, body.destination_region, body.destination_project_id, body.destination_vault_id, object_type
    )
    new = NewReplication(
        destination=destination, source_region=call.services.region, auto_trigger=bool(body.auto_trigger)
    )
    begun, provider_id = await replications.replicate_vault(
        call.services.database,
        call.project_id,
        body.vault_id,
        new,
        request_id=call.request_id,
        clock=call.services.clock,
    )
    return {
        "replication": {
            "backups": [{"backup_id": one.backup_id, "replication_record_id": one.record_id} for one in begun],
            "destination_project_id": destination.project_id,
            "destination_region": destination.region,
            "destination_vault_id": destination.vault_id,
            "project_id": call.project_id,
            "provider_id": provider_id,
            "source_region": call.services.region,
            "vault_id": body.vault_id,
        }
    }


async def show_replication_capabilities(call: Call) -> dict[str, Any]:
    """Where this project's backups can go: the regions that the operator named for it."""
    names = [region for region, _ in _destinations(call)]
    return {"regions": [{"name": call.services.region, "replication_destinations": names}]}


class RegionView(msgspec.Struct):
    """project_id: the project's counterpart over there."""

    name: str
    project_id: str


class RegionsAnswer(msgspec.Struct):
    regions: list[RegionView]


class RegionStep(msgspec.Struct):
    """reason: why it does not work, else empty."""

    what: str
    works: bool
    reason: str


class RegionStepsAnswer(msgspec.Struct):
    steps: list[RegionStep]


async def list_regions(call: Call) -> dict[str, Any]:
    """The same with the project over there, which requests have to name."""
    return {"regions": [{"name": region, "project_id": there} for region, there in _destinations(call)]}


async def check_region(call: Call) -> dict[str, Any]:
    """Try everything that replication to a region needs; what does not work says why."""
    steps = await require_regions(call).probe(call.project_id, call.path["region"])
    return {"steps": [{"what": what, "works": not why, "reason": why} for what, why in steps]}


def require_regions(call: Call) -> Regions:
    """Raises InvalidRequest when this server has no other region."""
    if call.services.regions is None:
        raise InvalidRequest(reason="This server knows no other region. Its operator names them in regions.toml.")
    return call.services.regions


def _destinations(call: Call) -> Sequence[tuple[str, str]]:
    return call.services.regions.destinations(call.project_id) if call.services.regions is not None else ()


def _require_plain(body: ReplicateBackupBody | ReplicateVaultBody) -> None:
    if body.enable_acceleration or body.cross_account_urn:
        raise Unsupported(
            reason="Invalid replicate: enable_acceleration and cross_account_urn are not available here. Leave them "
            "out."
        )


async def checked_destination(call: Call, region: str, project_id: str, vault_id: str, object_type: str) -> Destination:
    """Asked over there, before anything is written. Raises Conflict, InvalidRequest."""
    require_id(vault_id, "destination_vault_id")
    if call.services.regions is None:
        raise Conflict(conflict_code="6120", reason=f"No vault {vault_id} is known in region {region[:64]}.")
    await call.services.regions.require_destination(call.project_id, region, project_id, vault_id, object_type)
    return Destination(region=region, project_id=project_id, vault_id=vault_id)


async def _forget_gone(call: Call, backup_id: str, region: str) -> None:
    """A replica that was deleted over there stands in nobody's way."""
    database = call.services.database
    records = await records_of(database, call.project_id, [backup_id])
    for record in records.get(backup_id, ()):
        done = record.side == "source" and record.destination_region == region and record.status == "success"
        if done and not await require_regions(call).has_replica(region, record.id):
            await replications.forget_replica(database, call.project_id, record.id)


def wire_record(record: ReplicationRecord) -> dict[str, Any]:
    """The published shape; the misspelt member is what one client reads."""
    return {
        "id": record.id,
        "status": record.status,
        "vault_id": record.vault_id,
        "created_at": api_timestamp(record.created_at),
        "source_backup_id": record.source_backup_id,
        "source_checkpoint_id": record.source_checkpoint_id,
        "source_project_id": record.source_project_id,
        "source_region": record.source_region,
        "destination_backup_id": record.destination_backup_id,
        "destination_checkpoint_id": record.destination_checkpoint_id,
        "destination_project_id": record.destination_project_id,
        "destination_region": record.destination_region,
        "destination_vault_id": record.destination_vault_id,
        "extra_info": {
            "progress": record.progress,
            "fail_code": record.fail_code,
            "fail_reason": record.fail_reason,
            "auto_trigger": record.auto_trigger,
            "destination_vault_id": record.destination_vault_id,
            "destinatio_vault_id": record.destination_vault_id,
        },
    }


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="copy_backup",
        method="POST",
        path="/v3/{project_id}/backups/{backup_id}/replicate",
        action="cbr:backups:replicate",
        handler=copy_backup,
        body=ReplicateBackup,
    ),
    Operation(
        name="copy_checkpoint",
        method="POST",
        path="/v3/{project_id}/checkpoints/replicate",
        action="cbr:vaults:replicate",
        handler=copy_checkpoint,
        body=ReplicateVault,
    ),
    Operation(
        name="show_replication_capabilities",
        method="GET",
        path="/v3/{project_id}/replication-capabilities",
        action="cbr:backups:queryReplicationCapability",
        handler=show_replication_capabilities,
    ),
    Operation(
        name="list_regions",
        method="GET",
        path="/ext/v1/{project_id}/regions",
        action="cbr:backups:queryReplicationCapability",
        handler=list_regions,
        answer=RegionsAnswer,
    ),
    Operation(
        name="check_region",
        method="POST",
        path="/ext/v1/{project_id}/regions/{region}/check",
        action="cbr:vaults:replicate",
        handler=check_region,
        answer=RegionStepsAnswer,
    ),
)
