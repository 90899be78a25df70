"""Restores: what a tenant may ask for, and the job side of doing it.

A restore is one task with a source backup and a target resource. One target is restored once at a time, kept by the
index one_restore_per_target; the sentences here only say it better.
"""

import base64
from dataclasses import dataclass, field
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row

from strongroom.base.clock import Clock
from strongroom.base.errors import (
    BackupNotFound,
    Canceled,
    Conflict,
    InvalidRequest,
    NotFound,
    RepositoryError,
    ResourceNotFound,
    ShareEnded,
    StoreError,
    StrongroomError,
    Unsupported,
)
from strongroom.control import tasks
from strongroom.control.db import Database
from strongroom.control.machine_restores import DiskRestore, MachineWish, plan_disks, wanted_disks
from strongroom.control.names import require_id
from strongroom.control.received import begin_loan, find_received, loan_stands, require_accepted
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import (
    ResourceRef,
    VaultRef,
    load_resource,
    load_vault,
    lock_vaults,
    release_resource,
    require_vault,
)
from strongroom.control.tasks import NewTask, Task
from strongroom.control.vault_kinds import HOST_TYPES, RESOURCE_KINDS, SERVER

# The member of a v3 request that names the target, by kind of backup.
TARGET_MEMBERS = {
    "OS::Nova::Server": "server_id",
    "OS::Cinder::Volume": "volume_id",
    "OS::Sfs::Turbo": "resource_id",
    "OS::Native::Server": "resource_id",
    "OS::Ironic::BareMetalServer": "server_id",
}

# What is restored, and the backup of the machine that it belongs to where it is that of a disk.
_RESTORED: LiteralString = (
    "(id = %(backup)s OR id = (SELECT d.parent_id FROM backups d "
    "WHERE d.project_id = %(project)s AND d.id = %(backup)s)) AND status IN ('waiting_restore', 'restoring')"
)

HALF_RESTORED = "Half restored: run the restore again."
HALF_RESTORED_FOR_GOOD = "Half restored, and the share has ended: restore another backup onto it."


@dataclass(frozen=True, kw_only=True)
class NewRestore:
    """What a request asks for.

    volume_id, resource_id, server_id   the target as v3 names it, by kind of backup; all None: the source resource
    target_id    the target whatever its kind, as /ext names it
    path         only this file or folder, relative bytes; None: everything
    target_path  place inside the target, relative bytes; None: where it was. Of a host: a folder for all of it
    force        write although somebody has the target open
    machine      of a server: its disks, and the state it is left in
    skip_damaged onto another resource: restore what is whole of a backup that is damaged, and tell what is not
    """

    volume_id: str | None = None
    resource_id: str | None = None
    server_id: str | None = None
    target_id: str | None = None
    path: bytes | None = None
    target_path: bytes | None = None
    force: bool = False
    machine: MachineWish = field(default_factory=MachineWish)
    skip_damaged: bool = False


@dataclass(frozen=True, kw_only=True)
class RestoreJob:
    """One restore to do.

    vault           where the bytes are; of another project when that shares the backup
    root            name of the backup's root object
    domain_id       where it is, in hex; None: the vault's own domain
    kind            what its report calls it: "tree" or "block"; None: the report does not say
    resource_id     the resource it was made of, which may be unregistered by now
    same_resource   the target is that resource
    path            only this file or folder, relative bytes; None: everything
    target_path     where `path` goes inside the target; None: to its old place
    force           write although somebody has the target open
    disks           of a machine: what goes where; power_on, new_name: as machine_restores.MachineWish
    skip_damaged    leave out what is damaged
    """

    vault: VaultRef
    backup_id: str
    root: str
    domain_id: str | None
    kind: str | None
    resource_size_bytes: int
    resource_id: str
    target: ResourceRef
    same_resource: bool
    path: bytes | None
    target_path: bytes | None
    force: bool
    disks: tuple[DiskRestore, ...] = ()
    power_on: bool = True
    new_name: str | None = None
    skip_damaged: bool = False


# --- request side ---------------------------------------------------------------------------------------------------


async def request_restore(
    database: Database, project_id: str, backup_id: str, new: NewRestore, *, request_id: str, clock: Clock
) -> str:
    """Begin a restore of an own backup or an accepted one; backup and target show it at once. Returns the id of the
    operation log, the job id. What another project shares is read only: its row says nothing of this.

    Raises BackupNotFound, DiskNotFound or ResourceNotFound (target), InvalidRequest, and Conflict: 2005 (backup
    status), 6202 (vault status), 2010 (target is being restored), 2002 (target is being backed up), 6134.
    """
    async with database.transaction() as conn:
        backup = await _load_backup(conn, project_id, backup_id)
        target_id = _target_of(new, backup)
        vaults = await lock_vaults(conn, project_id, backup["vault_id"], binding=target_id)
        backup = await _load_backup(conn, project_id, backup_id)  # as it is now that nobody else can change it
        vault = require_vault(vaults, backup["vault_id"])
        _require_restorable(vault, backup, skip_damaged=new.skip_damaged)
        target = await _require_target(conn, project_id, target_id, backup["resource_type"])
        await _require_idle(conn, project_id, target)
        if new.skip_damaged and target.id == backup["resource_id"]:
            raise InvalidRequest(
                reason="Invalid skip_damaged: onto its own resource the restore would remove what is there of the "
                "damaged files. Name another target, and take from there what is needed."
            )
        if new.skip_damaged and target.type == SERVER.type_name:
            raise InvalidRequest(
                reason="Invalid skip_damaged: a server is restored as a whole. Restore the backups of its disks, each "
                "onto a registered disk."
            )
        if backup["status"] not in ("available", "error"):
            raise Conflict(conflict_code="2005", reason="The backup is being restored. Wait until that has ended.")
        parameters = _parameters(new)
        if target.type == SERVER.type_name:
            owner = backup.get("lender_project_id", project_id)
            parameters |= await plan_disks(conn, project_id, owner, backup, backup_id, target, new.machine)
        # A disk of a machine's backup is restored as a part of that backup: nobody deletes or restores it meanwhile.
        await conn.execute(
            "UPDATE backups SET status = 'waiting_restore', updated_at = %s WHERE project_id = %s AND id = ANY(%s) "
            "AND (status = 'available' OR (id = %s AND status = 'error' AND damage IS NOT NULL))",
            [clock.now(), project_id, [backup_id, backup["parent_id"]], backup_id],
        )
        await conn.execute(
            "UPDATE vault_resources SET protect_status = 'restoring' WHERE project_id = %s AND resource_id = %s",
            [project_id, target.id],
        )
        task = NewTask(
            project_id=project_id,
            operation_type="restore",
            request_id=request_id,
            vault_id=vault.id,
            vault_name=vault.name,
            provider_id=backup["provider_id"],
            checkpoint_id=backup["checkpoint_id"],
            backup_id=backup_id,
            backup_name=backup["name"],
            resource_id=backup["machine_id"] or backup["resource_id"],
            resource_type=SERVER.type_name if backup["machine_id"] else backup["resource_type"],
            resource_name=backup["resource_name"],
            target_resource_id=target.id,
            target_resource_name=target.name,
            parameters=parameters,
            worker_group=target.worker_group,
            source_host=target.source_host,
            **{name: backup[name] for name in ("member_id", "lender_project_id", "lender_vault_id") if name in backup},
        )
        try:
            await tasks.insert(conn, [task], clock.now())
        except UniqueViolation as err:
            raise _target_busy(target, detail=str(err)) from err
    return task.id


async def _load_backup(conn: AsyncConnection[Any], project_id: str, backup_id: str) -> dict[str, Any]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT b.vault_id, b.checkpoint_id, b.provider_id, b.name, b.status, b.resource_id, b.resource_type,
                   b.resource_name, b.parent_id, b.machine_id, b.damage IS NOT NULL AS damaged, EXISTS (
                       SELECT 1 FROM vault_resources r WHERE r.project_id = b.project_id AND r.vault_id = b.vault_id
                       AND r.resource_id = coalesce(b.machine_id, b.resource_id) AND r.protect_status = 'removing')
                   AS removing
            FROM backups b WHERE b.project_id = %s AND b.id = %s
            """,
            [project_id, backup_id],
        )
        row = await cursor.fetchone()
    if row is not None:
        return row
    received = await find_received(conn, project_id, backup_id)
    if received is None:
        raise BackupNotFound(id=backup_id)
    require_accepted(received["member_status"])
    status = received["root_status"]
    if status in ("available", "restoring", "waiting_restore"):
        # What the owner restores of it is no business of the receiver's, and the other way round.
        status = "restoring" if received["restoring"] else "available"
    return received | {"status": status}


def _target_of(new: NewRestore, backup: dict[str, Any]) -> str:
    """Id of the target. A target of another kind than the backup's is refused: it must not turn into the source."""
    kind = backup["resource_type"]
    member = TARGET_MEMBERS.get(kind)
    if member is None:
        raise Unsupported(reason=f"Backups of {kind} cannot be restored by this service.")
    given = {"volume_id": new.volume_id, "resource_id": new.resource_id, "server_id": new.server_id}
    target_id = given.pop(member)
    if target_id is None:
        target_id, member = new.target_id, "target_resource_id"
    for name, value in given.items():
        if target_id is None and value is not None:
            raise InvalidRequest(
                reason=f"Invalid {name}: the target of a backup of {kind} is named by {TARGET_MEMBERS[kind]}."
            )
    if target_id is None and backup["parent_id"] is not None:
        raise InvalidRequest(
            reason="Invalid volume_id: the backup is that of one disk of a server. Name a registered disk for it, or "
            "restore the server's backup with this disk alone in `mappings`."
        )
    if target_id is None and "member_id" in backup:
        raise InvalidRequest(
            reason=f"Invalid {TARGET_MEMBERS[kind]}: the backup is of another project. Name a target of your own."
        )
    if new.target_path is not None and new.path is None and kind not in HOST_TYPES:
        raise InvalidRequest(reason="Invalid target_path: it says where `path` goes, so name the path too.")
    if kind not in ("OS::Sfs::Turbo", *HOST_TYPES) and (new.path is not None or new.target_path is not None):
        what = "server is restored by whole disks" if kind == SERVER.type_name else "disk is restored as a whole"
        raise InvalidRequest(reason=f"Invalid path: the backup of a {what}.")
    if kind != SERVER.type_name and new.machine.new_name is not None:
        raise InvalidRequest(reason="Invalid new_name: only the backup of a server makes a new server.")
    return str(backup["resource_id"]) if target_id is None else require_id(target_id, member)


def _require_restorable(vault: VaultRef, backup: dict[str, Any], *, skip_damaged: bool) -> None:
    damaged = backup["status"] == "error" and backup.get("damaged", False)
    if damaged and not skip_damaged:
        raise Conflict(
            conflict_code="2005",
            reason="The backup is damaged. What is whole of it can be restored onto another resource, with "
            "skip_damaged; a full backup and a check mend what is still at its source.",
        )
    if not damaged and backup["status"] not in ("available", "waiting_restore", "restoring"):
        raise Conflict(
            conflict_code="2005",
            reason=f"The backup is {backup['status']}; only an available backup can be restored.",
        )
    if backup["removing"]:
        raise Conflict(
            conflict_code="6134",
            reason=f"Resource {backup['resource_name']} is being removed from the vault, and this backup with it.",
        )
    if vault.status != "available":
        raise Conflict(
            conflict_code="6202", reason=f"Vault {vault.name} is {vault.status}. Restores need an available vault."
        )


async def _require_target(conn: AsyncConnection[Any], project_id: str, target_id: str, kind: str) -> ResourceRef:
    not_found = RESOURCE_KINDS[kind].not_found(id=target_id)
    try:
        target = await load_resource(conn, project_id, target_id)
    except ResourceNotFound as err:
        raise not_found from err
    if target.type != kind:
        raise not_found
    return target


async def _require_idle(conn: AsyncConnection[Any], project_id: str, target: ResourceRef) -> None:
    found = await conn.execute(
        """
        SELECT operation_type FROM operation_logs WHERE project_id = %(project)s AND operation_type = 'restore'
            AND status IN ('waiting', 'running') AND target_resource_id = %(target)s
        UNION ALL
        SELECT operation_type FROM operation_logs WHERE project_id = %(project)s AND operation_type = 'backup'
            AND status IN ('waiting', 'running') AND resource_id = %(target)s
        UNION ALL
        SELECT 'remove_resource' FROM vault_resources WHERE project_id = %(project)s
            AND resource_id = %(target)s AND protect_status = 'removing'
        """,
        {"project": project_id, "target": target.id},
    )
    busy = {row[0] for row in await found.fetchall()}
    if "restore" in busy:
        raise _target_busy(target)
    if "backup" in busy:
        raise Conflict(
            conflict_code="2002", reason=f"Resource {target.name} is being backed up. Restore when that has ended."
        )
    if busy:
        raise Conflict(
            conflict_code="6134",
            reason=f"Resource {target.name} is being removed from its vault. Restore when that has ended.",
        )


def _target_busy(target: ResourceRef, detail: str = "") -> Conflict:
    return Conflict(
        conflict_code="2010",
        reason=f"A restore onto resource {target.name} is already running. Wait until it has ended.",
        detail=detail,
    )


def _parameters(new: NewRestore) -> dict[str, Any]:
    """What the job reads; names are bytes, so they are kept in base64."""
    asked: dict[str, Any] = {"force": new.force, "skip_damaged": new.skip_damaged}
    for name, value in (("path_b64", new.path), ("target_path_b64", new.target_path)):
        if value is not None:
            asked[name] = base64.b64encode(value).decode("ascii")
    return asked


# --- job side -------------------------------------------------------------------------------------------------------


async def start_restore(database: Database, task: Task) -> RestoreJob:
    """Everything an attempt needs; backup and target show `restoring` from here on. May run again.

    Raises Fenced, VaultNotFound, BackupNotFound (also without a root, or not shared any more) and ResourceNotFound
    (target unregistered)."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vaults = await lock_vaults(conn, task.project_id, task.vault_id, binding=task.target_resource_id)
        vault = require_vault(vaults, task.vault_id)
        row = await (_begin_own(conn, task) if task.member_id is None else begin_loan(conn, task))
        if row is None:
            raise BackupNotFound(id=task.backup_id or "(none)")
        source = row.pop("vault_id")
        if task.lender_project_id is not None:
            vault = await load_vault(conn, task.lender_project_id, source)
        target = await load_resource(conn, task.project_id, task.target_resource_id)
        await conn.execute(
            "UPDATE vault_resources SET protect_status = 'restoring' WHERE project_id = %s AND resource_id = %s "
            "AND protect_status IN ('available', 'error')",
            [task.project_id, target.id],
        )
        asked = task.parameters
        owner = task.lender_project_id or task.project_id
        disks = await wanted_disks(conn, owner, row["backup_id"], asked)
    return RestoreJob(
        vault=vault,
        target=target,
        same_resource=target.id == row["resource_id"],
        path=_bytes(asked.get("path_b64")),
        target_path=_bytes(asked.get("target_path_b64")),
        force=bool(asked.get("force", False)),
        disks=disks,
        power_on=bool(asked.get("power_on", True)),
        new_name=asked.get("new_name"),
        skip_damaged=bool(asked.get("skip_damaged", False)),
        **row,
    )


async def _begin_own(conn: AsyncConnection[Any], task: Task) -> dict[str, Any] | None:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "UPDATE backups SET status = 'restoring', updated_at = now() "  # noqa: S608 -- the text is ours
            f"WHERE project_id = %(project)s AND {_RESTORED}",
            {"project": task.project_id, "backup": task.backup_id},
        )
        await cursor.execute(
            "UPDATE backups SET status = 'restoring', updated_at = now() WHERE project_id = %s AND id = %s "
            "AND root IS NOT NULL AND status IN ('available', 'waiting_restore', 'restoring') "
            "RETURNING id AS backup_id, vault_id, root, domain_id, report ->> 'kind' AS kind, resource_size_bytes, "
            "resource_id",
            [task.project_id, task.backup_id],
        )
        return await cursor.fetchone()


async def start_settling(database: Database, task: Task) -> tuple[ResourceRef, bool]:
    """For the end of a restore that cannot be done: its target, and whether an attempt wrote into the target (its saved
    state has `in_place` or `done` ranges). The backup need not be there any more.

    Raises Fenced and ResourceNotFound (target unregistered)."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        target = await load_resource(conn, task.project_id, task.target_resource_id)
        saved = await conn.execute(
            "SELECT state ?| ARRAY['in_place', 'done'] FROM operation_logs WHERE project_id = %s AND id = %s",
            [task.project_id, task.id],
        )
        state = await saved.fetchone()
        return target, state is not None and bool(state[0])


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


async def commit_restore(database: Database, task: Task, outcome: dict[str, Any], clock: Clock) -> None:
    """The target holds what was asked for: backup and target available again, the task a success. Raises Fenced."""
    async with database.transaction() as conn:
        await _lock(conn, task)
        if not any(task.parameters.get(name) for name in ("path_b64", "target_path_b64", "partly", "new_name")):
            # Everything was written, so an earlier half of a restore is mended.
            await conn.execute(
                "UPDATE vault_resources SET status_reason = NULL WHERE project_id = %s AND resource_id = %s "
                "AND protect_status = 'restoring'",
                [task.project_id, task.target_resource_id],
            )
        await _release(conn, task, clock)
        await tasks.finish(conn, task, clock, outcome=outcome)


async def fail_restore(
    database: Database,
    task: Task,
    error: StrongroomError,
    clock: Clock,
    *,
    half_restored: bool = False,
    status: str = "failed",
) -> None:
    """End a restore that cannot be done. half_restored: the target is partly overwritten and stands in error until the
    restore is run again. Raises Fenced."""
    async with database.transaction() as conn:
        await _lock(conn, task)
        error = await _seen_from_share(conn, task, error)
        if half_restored:
            reason = HALF_RESTORED_FOR_GOOD if isinstance(error, ShareEnded) else HALF_RESTORED
            await conn.execute(
                "UPDATE vault_resources SET status_reason = %s WHERE project_id = %s AND resource_id = %s",
                [reason, task.project_id, task.target_resource_id],
            )
        await _release(conn, task, clock)
        await tasks.finish(conn, task, clock, status=status, error=error)


async def _seen_from_share(conn: AsyncConnection[Any], task: Task, error: StrongroomError) -> StrongroomError:
    """Whatever a restore met in a vault that it may no longer read, the tenant's reason is that the share has ended."""
    if task.member_id is None or not isinstance(error, Canceled | NotFound | StoreError | RepositoryError):
        return error
    if isinstance(error, ResourceNotFound) or await loan_stands(conn, task):
        return error
    return ShareEnded(id=task.backup_id or "(none)", detail=str(error))


async def _lock(conn: AsyncConnection[Any], task: Task) -> None:
    await tasks.still_mine(conn, task)
    await lock_vaults(conn, task.project_id, task.vault_id, binding=task.target_resource_id)


async def _release(conn: AsyncConnection[Any], task: Task, clock: Clock) -> None:
    await conn.execute(
        "UPDATE backups SET status = CASE WHEN damage IS NULL THEN 'available' ELSE 'error' END, "  # noqa: S608 -- ours
        f"updated_at = %(now)s WHERE project_id = %(project)s AND {_RESTORED}",
        {"now": clock.now(), "project": task.project_id, "backup": task.backup_id},
    )
    await release_resource(conn, task.project_id, task.target_resource_id, "restoring")
    await close_sessions_of(conn, task)
