"""Restore points that lie in a vault's place of the store and that the database does not know: they are made rows.

They are there after an older copy of the database was put back, or when somebody brought them with a copy of the
repository. What a vault-wide `sync` finds by itself, an import of single backups names: the vault as the bucket, the
root as the path of the image.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg import AsyncConnection

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, InvalidRequest, Unavailable
from strongroom.base.ids import new_id
from strongroom.control import checkpoints, tasks
from strongroom.control.capacity import set_used
from strongroom.control.db import Database
from strongroom.control.locking import tell_store
from strongroom.control.names import require_id, require_name
from strongroom.control.promises import promise
from strongroom.control.rebuilding import PROTECTABLE_TYPES, LostBackup, LostVault, insert_points
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import VaultRef, lock_all_vaults, lock_vault
from strongroom.control.tasks import NewTask, Task
from strongroom.control.vault_resources import require_available
from strongroom.control.vault_work import refuse_open_work

ENTRIES_MAX = 50  # contract, of one call
_IMAGE = re.compile(r"(?:domains/([0-9a-f]{32})/)?roots/([0-9a-f-]{36})\.(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, kw_only=True)
class ImportEntry:
    """One backup to bring in, as a request names it.

    bucket_name   id of the vault            image_path   `[domains/<domain>/]roots/<backup id>.<generation>`
    """

    backup_id: str
    backup_name: str
    bucket_name: str
    image_path: str
    resource_id: str
    resource_type: str


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """What to look for. roots: those that rows name, by domain; wanted: the parameters of one entry, {} for all."""

    vault: VaultRef
    object_type: str
    roots: Mapping[str | None, frozenset[str]]
    wanted: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was found. gained: live sealed bytes it adds."""

    backups: Sequence[LostBackup] = ()
    gained: int = 0
    outcome: dict[str, Any] = field(default_factory=dict)


# --- request side ---------------------------------------------------------------------------------------------------


async def request_sync(
    database: Database, project_id: str, vault_id: str, *, auto_trigger: bool, request_id: str, clock: Clock
) -> str:
    """Begin to bring in whatever a vault's store holds beyond its rows. Returns the id of the operation log.

    Raises InvalidRequest, VaultNotFound; Conflict 6112 (status, other work), 7300 (the vault can hold none), 7302.
    """
    require_id(vault_id, "vault_id")
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        await _require_ready(conn, vault)
        task = _task(vault, request_id, {"auto_trigger": auto_trigger})
        await tasks.insert(conn, [task], clock.now())
    return task.id


async def request_imports(
    database: Database, project_id: str, entries: Sequence[ImportEntry], *, request_id: str, clock: Clock
) -> list[str]:
    """Begin to bring in single backups, all or none; ids of the operation logs in the order of the entries.

    Raises InvalidRequest, VaultNotFound (a bucket that is no vault of the project), Conflict as above.
    """
    if not 1 <= len(entries) <= ENTRIES_MAX:
        raise InvalidRequest(reason=f"Invalid sync: give 1 to {ENTRIES_MAX} backups.")
    for entry in entries:
        _check(entry)
    if len({entry.backup_id for entry in entries}) < len(entries):
        raise InvalidRequest(reason="Invalid sync: a backup_id stands twice. Name each once.")
    async with database.transaction() as conn:
        vaults = await lock_all_vaults(conn, project_id, *dict.fromkeys(entry.bucket_name for entry in entries))
        for vault in vaults.values():
            await _require_ready(conn, vault)
        made = [_task(vaults[entry.bucket_name], request_id, _wanted(entry)) for entry in entries]
        await tasks.insert(conn, made, clock.now())
    return [task.id for task in made]


def _check(entry: ImportEntry) -> None:
    require_id(entry.backup_id, "sync.backup_id")
    require_name(entry.backup_name, "sync.backup_name")
    require_id(entry.resource_id, "sync.resource_id")
    require_id(entry.bucket_name, "sync.bucket_name")
    found = _IMAGE.fullmatch(entry.image_path)
    if found is None or found[2] != entry.backup_id:
        raise InvalidRequest(
            reason="Invalid sync.image_path: give roots/<backup id>.<number>, as it lies in the store below the vault, "
            "with domains/<domain>/ in front where the vault has several."
        )
    if entry.resource_type not in PROTECTABLE_TYPES:
        raise InvalidRequest(reason=f"Invalid sync.resource_type: backups here are of {', '.join(PROTECTABLE_TYPES)}.")


def _wanted(entry: ImportEntry) -> dict[str, Any]:
    found = _IMAGE.fullmatch(entry.image_path)
    assert found is not None  # checked
    return {
        "domain": found[1],
        "root": f"{found[2]}.{found[3]}",
        "backup": entry.backup_id,
        "name": entry.backup_name,
        "resource": entry.resource_id,
        "resource_type": entry.resource_type,
    }


async def _require_ready(conn: AsyncConnection[Any], vault: VaultRef) -> None:
    require_available(vault, "lock", "error")
    if await _object_type(conn, vault) not in PROTECTABLE_TYPES.values():
        raise Conflict(
            conflict_code="7300",
            reason=f"Vault {vault.name} is of a kind that holds no restore points here: there is nothing to bring in.",
        )
    await refuse_open_work(conn, vault, "sync", "migrate", "expiration", "copy")


async def _object_type(conn: AsyncConnection[Any], vault: VaultRef) -> str:
    found = await conn.execute(
        "SELECT object_type FROM vaults WHERE project_id = %s AND id = %s", [vault.project_id, vault.id]
    )
    row = await found.fetchone()
    assert row is not None, "the caller holds the vault's lock"
    return str(row[0])


def _task(vault: VaultRef, request_id: str, parameters: dict[str, Any]) -> NewTask:
    """backup_id stays empty: a log that names a backup tells a prune that the database has known it (prune.py)."""
    return NewTask(
        project_id=vault.project_id,
        operation_type="sync",
        request_id=request_id,
        vault_id=vault.id,
        vault_name=vault.name,
        provider_id=vault.provider_id,
        parameters=parameters,
    )


# --- job side -------------------------------------------------------------------------------------------------------


async def start_import(database: Database, task: Task) -> ImportJob:
    """What to look for. Raises Fenced, VaultNotFound, Conflict 6112."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        require_available(vault, "lock", "error")
        found = await conn.execute(
            "SELECT domain_id, root FROM backups WHERE project_id = %s AND vault_id = %s AND root IS NOT NULL",
            [task.project_id, vault.id],
        )
        roots: dict[str | None, set[str]] = {}
        for domain_id, root in await found.fetchall():
            roots.setdefault(domain_id, set()).add(root)
        object_type = await _object_type(conn, vault)
    return ImportJob(
        vault=vault,
        object_type=object_type,
        roots={domain_id: frozenset(names) for domain_id, names in roots.items()},
        wanted=task.parameters if "backup" in task.parameters else {},
    )


async def require_no_prune(database: Database, task: Task) -> None:
    """Raises Unavailable, which is tried again, while a prune of the vault runs: it may have condemned what is wanted.

    One that begins later sees the sessions of this task, which MUST be open by now.
    """
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT 1 FROM operation_logs WHERE project_id = %s AND vault_id = %s AND operation_type = 'prune' "
            "AND status = 'running' AND lease_until >= now()",
            [task.project_id, task.vault_id],
        )
        if await found.fetchone() is not None:
            raise Unavailable(reason="The vault is being cleaned up. Bring the restore points in when that has ended.")


async def commit_import(database: Database, task: Task, imported: Imported, clock: Clock) -> None:
    """Rows of what was found, usage and the task in one transaction. What has a row by now stays as it is.

    A second call raises Fenced. Raises VaultNotFound, Conflict 6112.
    """
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        vault = await lock_vault(conn, task.project_id, task.vault_id)
        require_available(vault, "lock", "error")
        lost = LostVault(
            id=vault.id,
            project_id=vault.project_id,
            name=vault.name,
            object_type=await _object_type(conn, vault),
            size_gb=0,
            used_bytes=0,
            wrapped={},
            created_at=now,
            backups=await _with_free_checkpoints(conn, vault, imported.backups),
        )
        made, rows = await insert_points(conn, lost, now)
        await checkpoints.settle(conn, vault.project_id, sorted({b.checkpoint_id for b in lost.backups}), now)
        if rows:
            await set_used(conn, vault, vault.used_bytes + imported.gained)
        if vault.locked:
            await promise(conn, vault, now)
            await tell_store(conn, vault, clock)
        await close_sessions_of(conn, task)
        outcome = {**imported.outcome, "checkpoints": made, "backups": rows}
        await tasks.finish(conn, task, clock, outcome=outcome)


async def _with_free_checkpoints(
    conn: AsyncConnection[Any], vault: VaultRef, backups: Sequence[LostBackup]
) -> list[LostBackup]:
    """A restore point that went to another vault with the rest of it gets a new id for what is left here."""
    found = await conn.execute(
        "SELECT id FROM checkpoints WHERE project_id = %s AND vault_id <> %s AND id = ANY(%s)",
        [vault.project_id, vault.id, [backup.checkpoint_id for backup in backups]],
    )
    taken = {row[0]: new_id() for row in await found.fetchall()}
    return [replace(backup, checkpoint_id=taken.get(backup.checkpoint_id, backup.checkpoint_id)) for backup in backups]
