"""Replicas as another region offers them: which it may, and the rows of what is made here of an offer.

A replica is a backup of this region, of image_type `replication`, whose root lies in the domain that it brought along.
Which region asks is known by its signature; which project of here it may give replicas to says this server's own file.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict
from strongroom.base.ids import new_id
from strongroom.control import checkpoints, quotas, tasks
from strongroom.control.db import Database
from strongroom.control.policy_rules import Definition, Trigger, retention_rules
from strongroom.control.promises import promise
from strongroom.control.replication_records import OPEN, ReplicationRecord, insert_records
from strongroom.control.retention import RetentionRules
from strongroom.control.subjects import VaultRef, lock_vaults
from strongroom.control.tasks import NewTask

# A restore point over there is one restore point here, whichever of its backups comes first.
_CHECKPOINTS = uuid.UUID("8a0f3f0e-2c1d-5b7e-9c55-6f2b1e0d4a37")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A backup that another region offers.

    project_id, vault_id  of here            name   of the replica; None: as the backup's
    root, disks           names of its root object over there, and of those of a machine's disks
    domain_id             in hex             wrapped   the domain's keys, wrapped for the two regions
    retention             rules of a policy's replicas, as `operation_definition` has them; empty: none
    """

    record_id: str
    region: str
    own_region: str
    project_id: str
    vault_id: str
    name: str | None
    description: str | None
    auto_trigger: bool
    policy_id: str | None
    retention: Mapping[str, Any]
    source_project_id: str
    source_vault_id: str
    source_checkpoint_id: str
    source_backup_id: str
    source_backup_name: str
    source_created_at: datetime
    object_type: str
    resource_id: str
    resource_type: str
    resource_name: str
    resource_size_bytes: int
    incremental: bool
    root: str
    domain_id: str
    wrapped: bytes = field(repr=False)
    disks: tuple[str, ...] = ()

    @property
    def backup_name(self) -> str:
        return self.name or self.source_backup_name

    @property
    def checkpoint_id(self) -> str:
        return str(uuid.uuid5(_CHECKPOINTS, f"{self.vault_id}/{self.region}/{self.source_checkpoint_id}"))


def check_destination(
    vault: VaultRef | None, object_type_here: str | None, *, vault_id: str, object_type: str, own_region: str
) -> None:
    """Raises Conflict: 6120 (no such vault), 6119 (takes no replicas of this kind), 6118 (status), 6129 (full)."""
    if vault is None:
        raise Conflict(conflict_code="6120", reason=f"No vault {vault_id} is known in region {own_region}.")
    if vault.protect_type != "replication" or object_type_here != object_type:
        raise Conflict(
            conflict_code="6119",
            reason=f"Vault {vault.name} of region {own_region} is a {vault.protect_type} vault of type "
            f"{object_type_here}. Replicas of {object_type} need a replication vault of that type.",
        )
    if vault.status != "available":
        raise Conflict(
            conflict_code="6118",
            reason=f"Vault {vault.name} of region {own_region} is {vault.status}; it takes no replicas now.",
        )
    if vault.full:
        raise Conflict(
            conflict_code="6129", reason=f"Vault {vault.name} of region {own_region} is full. Enlarge it there."
        )


async def require_destination(
    database: Database, project_id: str, vault_id: str, *, object_type: str, own_region: str
) -> None:
    """The check of a vault of here that replicas are to come to. Raises as above."""
    async with database.transaction() as conn:
        await _lock_destination(conn, project_id, vault_id, object_type, own_region)


async def offer_replica(database: Database, offer: Offer, *, request_id: str, clock: Clock) -> None:
    """Rows of a replica, and the task that fetches it. All rows or none.

    Offered again it changes nothing while that is under way or done; one that failed begins anew. Raises as above, and
    Conflict 6118 for another replica of the same backup.
    """
    now = clock.now()
    async with database.transaction() as conn:
        vault = await _lock_destination(conn, offer.project_id, offer.vault_id, offer.object_type, offer.own_region)
        found = await conn.execute(
            "SELECT status, backup_id, task_id FROM replication_records WHERE project_id = %s AND side = 'destination' "
            "AND source_region = %s AND id = %s FOR UPDATE",
            [offer.project_id, offer.region, offer.record_id],
        )
        row = await found.fetchone()
        if row is not None and row[0] != "fail":
            return
        task = _task(vault, offer, row[1] if row else new_id(), request_id)
        try:
            if row is None:
                await _write_rows(conn, vault, offer, task, now)
            else:
                await _begin_again(conn, vault, offer, task, now)
        except UniqueViolation as err:
            raise Conflict(
                conflict_code="6118",
                reason=f"Region {offer.own_region} has another replica of the backup; one is enough.",
                detail=str(err),
            ) from err
        await tasks.insert(conn, [task], now)


async def cancel_replica(database: Database, record: ReplicationRecord) -> None:
    """The source gave it up: what is under way stops. Idempotent."""
    async with database.transaction() as conn:
        await tasks.request_cancel(conn, record.project_id, record.task_id)


async def stored_bytes(database: Database, record: ReplicationRecord) -> int:
    """What the replica added to its vault."""
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT stored_bytes FROM backups WHERE project_id = %s AND id = %s", [record.project_id, record.backup_id]
        )
        row = await found.fetchone()
    return int(row[0]) if row is not None else 0


async def _lock_destination(
    conn: AsyncConnection[Any], project_id: str, vault_id: str, object_type: str, own_region: str
) -> VaultRef:
    vault = (await lock_vaults(conn, project_id, vault_id)).get(vault_id)
    found = await conn.execute(
        "SELECT object_type FROM vaults WHERE project_id = %s AND id = %s", [project_id, vault_id]
    )
    row = await found.fetchone()
    check_destination(vault, row[0] if row else None, vault_id=vault_id, object_type=object_type, own_region=own_region)
    assert vault is not None
    return vault


def _task(vault: VaultRef, offer: Offer, backup_id: str, request_id: str) -> NewTask:
    return NewTask(
        project_id=offer.project_id,
        operation_type="copy",
        request_id=request_id,
        vault_id=vault.id,
        vault_name=vault.name,
        provider_id=vault.provider_id,
        checkpoint_id=offer.checkpoint_id,
        backup_id=backup_id,
        backup_name=offer.backup_name,
        resource_id=offer.resource_id,
        resource_type=offer.resource_type,
        resource_name=offer.resource_name,
        parameters={
            "source_region": offer.region,
            "source_project_id": offer.source_project_id,
            "source_checkpoint_id": offer.source_checkpoint_id,
            "source_backup_id": offer.source_backup_id,
            "source_backup_name": offer.source_backup_name,
            "destination_region": offer.own_region,
            "destination_project_id": offer.project_id,
            "destination_checkpoint_id": offer.checkpoint_id,
            "destination_backup_id": backup_id,
            "destination_backup_name": offer.backup_name,
        },
    )


async def _write_rows(conn: AsyncConnection[Any], vault: VaultRef, offer: Offer, task: NewTask, now: datetime) -> None:
    await conn.execute(
        "INSERT INTO checkpoints (id, project_id, vault_id, vault_name, provider_id, status, name, auto_trigger, "
        "created_at) VALUES (%s, %s, %s, %s, %s, 'protecting', %s, %s, %s) ON CONFLICT (id) DO NOTHING",
        [offer.checkpoint_id, vault.project_id, vault.id, vault.name, vault.provider_id, offer.backup_name,
         offer.auto_trigger, now],
    )  # fmt: skip
    await conn.execute(
        "INSERT INTO checkpoint_resources (project_id, checkpoint_id, resource_id, position, type, name, size_bytes) "
        "SELECT %s, %s, %s, count(*), %s, %s, %s FROM checkpoint_resources WHERE project_id = %s "
        "AND checkpoint_id = %s ON CONFLICT DO NOTHING",
        [vault.project_id, offer.checkpoint_id, offer.resource_id, offer.resource_type, offer.resource_name,
         offer.resource_size_bytes, vault.project_id, offer.checkpoint_id],
    )  # fmt: skip
    await conn.execute(
        "INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, resource_name, "
        "resource_size_bytes, name, description, provider_id, image_type, status, incremental, auto_trigger, "
        "created_at, protected_at, expired_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'replication', "
        "'waiting_protect', %s, %s, %s, %s, %s)",
        [
            *(task.backup_id, vault.project_id, vault.id, offer.checkpoint_id, offer.resource_id, offer.resource_type),
            *(offer.resource_name, offer.resource_size_bytes, offer.backup_name, offer.description),
            *(vault.provider_id, offer.incremental, offer.auto_trigger, now, offer.source_created_at),
            sent_retention(offer.retention).expires_at(now),
        ],
    )
    await insert_records(conn, [_record(vault, offer, task, now)])
    await checkpoints.settle(conn, vault.project_id, [offer.checkpoint_id], now)
    if vault.locked:
        await promise(conn, vault, now)
    await quotas.require_point(conn, vault.project_id)


async def _begin_again(conn: AsyncConnection[Any], vault: VaultRef, offer: Offer, task: NewTask, now: datetime) -> None:
    done = await conn.execute(
        "UPDATE backups SET status = 'waiting_protect', expired_at = %s, updated_at = %s WHERE project_id = %s "
        "AND vault_id = %s AND id = %s AND status = 'error' AND root IS NULL",
        [sent_retention(offer.retention).expires_at(now), now, vault.project_id, vault.id, task.backup_id],
    )
    if done.rowcount != 1:
        raise Conflict(
            conflict_code="6118", reason=f"The replica is being deleted in region {offer.own_region}. Try again later."
        )
    await conn.execute(
        "UPDATE replication_records SET status = 'waiting_replicate', progress = 0, fail_code = '', fail_reason = '', "
        "ended_at = NULL, created_at = %s, wrapped = %s, task_id = %s WHERE project_id = %s AND side = 'destination' "
        "AND source_region = %s AND id = %s",
        [now, offer.wrapped, task.id, vault.project_id, offer.region, offer.record_id],
    )
    await checkpoints.settle(conn, vault.project_id, [offer.checkpoint_id], now)


def _record(vault: VaultRef, offer: Offer, task: NewTask, now: datetime) -> dict[str, Any]:
    return {
        "id": offer.record_id,
        "side": "destination",
        "project_id": vault.project_id,
        "vault_id": vault.id,
        "backup_id": task.backup_id,
        "task_id": task.id,
        "status": "waiting_replicate",
        "auto_trigger": offer.auto_trigger,
        "source_region": offer.region,
        "source_project_id": offer.source_project_id,
        "source_vault_id": offer.source_vault_id,
        "source_checkpoint_id": offer.source_checkpoint_id,
        "source_backup_id": offer.source_backup_id,
        "source_backup_name": offer.source_backup_name,
        "source_created_at": offer.source_created_at,
        "destination_region": offer.own_region,
        "destination_project_id": vault.project_id,
        "destination_vault_id": vault.id,
        "destination_checkpoint_id": offer.checkpoint_id,
        "destination_backup_id": task.backup_id,
        "destination_backup_name": offer.backup_name,
        "details": Jsonb(
            {
                "root": offer.root,
                "disks": list(offer.disks),
                "domain_id": offer.domain_id,
                "retention": dict(offer.retention),
                "policy_id": offer.policy_id,
            }
        ),
        "wrapped": offer.wrapped,
        "created_at": now,
    }


def sent_retention(retention: Mapping[str, Any]) -> RetentionRules:
    """Raises InvalidRequest for a time zone that is none."""
    given = dict(retention)
    zone = given.pop("time_zone", None)
    return retention_rules(Definition(**given), Trigger(patterns=(), time_zone=zone))


async def progress_of(database: Database, record: ReplicationRecord) -> int:
    """0-100 of what fetches the replica, as its task says."""
    if record.status not in OPEN:
        return record.progress
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT progress FROM operation_logs WHERE project_id = %s AND id = %s", [record.project_id, record.task_id]
        )
        row = await found.fetchone()
    return int(row[0]) if row is not None else 0
