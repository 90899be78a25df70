"""Rows of an installation, made again from what its restore points say about themselves.

What exists stays as it is: a row that is there is never changed, so a rebuild may run again, or beside rows that were
not lost. Nobody else works on the database meanwhile. One transaction a vault.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from strongroom.control.access import ROLE_OPERATOR, ROLE_TENANT_ADMIN
from strongroom.control.accounts import DEFAULT_DOMAIN
from strongroom.control.db import Database
from strongroom.control.organization_copies import give_policies
from strongroom.control.vault_kinds import VAULT_KINDS

PROTECTABLE_TYPES = {"OS::Sfs::Turbo": "turbo", "OS::Cinder::Volume": "disk", "OS::Nova::Server": "server"}


@dataclass(frozen=True, kw_only=True)
class LostBackup:
    """One backup, and the resource it was made of.

    status   available, or error for one that is not complete: its root stays until the tenant deletes it
    root     name of its root object                  options  of the registration, as they were then
    domain_id  where the root is, in hex; None: the vault's own domain
    image_type  backup, or replication for a replica, whose source is in another region
    parent_id, machine_id  of a machine's disk: the machine's backup, and the machine; resource_id is the disk
    """

    id: str
    checkpoint_id: str
    status: str
    root: str
    domain_id: str | None
    name: str
    resource_id: str
    resource_type: str
    resource_name: str
    path: bytes
    options: Mapping[str, Any]
    size_bytes: int
    stored_bytes: int
    incremental: bool
    auto_trigger: bool
    token: bytes = field(repr=False)
    report: Mapping[str, Any]
    created_at: datetime
    expired_at: datetime | None
    promised_until: datetime | None
    image_type: str = "backup"
    parent_id: str | None = None
    machine_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class LostVault:
    """One vault with its backups, oldest first.

    object_type  of VAULT_KINDS
    wrapped      the keys of each of its domains, by id in hex; None: its own
    """

    id: str
    project_id: str
    name: str
    object_type: str
    size_gb: int
    used_bytes: int
    wrapped: Mapping[str | None, bytes] = field(repr=False)
    created_at: datetime
    backups: Sequence[LostBackup]

    @property
    def protect_type(self) -> str:
        """A vault holds its own backups, or replicas."""
        return "replication" if all(backup.image_type == "replication" for backup in self.backups) else "backup"


@dataclass(frozen=True, kw_only=True)
class RowsMade:
    """How many rows were not there and are now."""

    projects: int = 0
    vaults: int = 0
    checkpoints: int = 0
    backups: int = 0
    registrations: int = 0

    def plus(self, other: "RowsMade") -> "RowsMade":
        return RowsMade(
            projects=self.projects + other.projects,
            vaults=self.vaults + other.vaults,
            checkpoints=self.checkpoints + other.checkpoints,
            backups=self.backups + other.backups,
            registrations=self.registrations + other.registrations,
        )


async def restore_rows(database: Database, vault: LostVault, now: datetime, *, registrations: bool) -> RowsMade:
    """The rows of one vault. `registrations`: its resources may be protected again, at the paths they had."""
    async with database.transaction() as conn:
        projects = await _insert_project(conn, vault.project_id, now)
        vaults = await _insert_vault(conn, vault)
        checkpoints, backups = await insert_points(conn, vault, now)
        if backups and not vaults:
            await conn.execute(
                "UPDATE vaults SET used_bytes = %s WHERE project_id = %s AND id = %s",
                [vault.used_bytes, vault.project_id, vault.id],
            )
        made = 0
        for resource in _newest_of_each_resource(vault) if registrations else ():
            made += await _insert_registration(conn, vault, resource, now)
    return RowsMade(projects=projects, vaults=vaults, checkpoints=checkpoints, backups=backups, registrations=made)


async def insert_points(conn: AsyncConnection[Any], vault: LostVault, now: datetime) -> tuple[int, int]:
    """Rows of restore points and of backups that were not there: how many of each. The vault's row is there.

    A machine's counts as one with its disks."""
    made = await _insert_checkpoints(conn, vault)
    whole = [backup for backup in vault.backups if backup.parent_id is None]
    backups = sum([await _insert_backup(conn, vault, backup, now) for backup in whole])
    for disk in vault.backups:
        if disk.parent_id is not None:
            await _insert_backup(conn, vault, disk, now)
    # A backup that stands elsewhere by now leaves the restore point that was made for it here without any.
    empty = await conn.execute(
        "DELETE FROM checkpoints c WHERE c.project_id = %s AND c.vault_id = %s AND c.id = ANY(%s) AND NOT EXISTS "
        "(SELECT 1 FROM backups b WHERE b.project_id = c.project_id AND b.checkpoint_id = c.id)",
        [vault.project_id, vault.id, list(made)],
    )
    return len(made) - empty.rowcount, backups


async def _insert_project(conn: AsyncConnection[Any], project_id: str, now: datetime) -> int:
    """Its name is not in the store; the operators may act in it, so that they can give it users."""
    done = await conn.execute(
        "INSERT INTO projects (id, domain_id, name, description, created_at) VALUES (%s, %s, %s, %s, %s) "
        "ON CONFLICT (id) DO NOTHING",
        [project_id, DEFAULT_DOMAIN, f"recovered-{project_id}", "rebuilt from the backup store", now],
    )
    if done.rowcount:
        await conn.execute(
            "INSERT INTO role_assignments (user_id, project_id, role) SELECT user_id, %s, %s FROM role_assignments "
            "WHERE role = %s AND project_id IS NULL ON CONFLICT DO NOTHING",
            [project_id, ROLE_TENANT_ADMIN, ROLE_OPERATOR],
        )
        await give_policies(conn, DEFAULT_DOMAIN, project_id, now)
    return done.rowcount


async def _insert_vault(conn: AsyncConnection[Any], vault: LostVault) -> int:
    done = await conn.execute(
        "INSERT INTO vaults (id, project_id, user_id, name, description, provider_id, object_type, protect_type, "
        "consistent_level, size_gb, used_bytes, created_at, locked) VALUES (%s, %s, '', %s, %s, %s, %s, %s, "
        "'crash_consistent', %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
        [vault.id, vault.project_id, vault.name, "rebuilt from the backup store",
         VAULT_KINDS[vault.object_type].provider_id, vault.object_type, vault.protect_type, vault.size_gb,
         vault.used_bytes,
         vault.created_at, any(backup.promised_until for backup in vault.backups)],
    )  # fmt: skip
    for domain_id, wrapped in vault.wrapped.items():
        await conn.execute(
            "INSERT INTO vault_keys (project_id, vault_id, domain_id, wrapped) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (vault_id, coalesce(domain_id, '')) DO NOTHING",
            [vault.project_id, vault.id, domain_id, wrapped],
        )
    return done.rowcount


async def _insert_checkpoints(conn: AsyncConnection[Any], vault: LostVault) -> list[str]:
    """A restore point is available when one of its backups is. Its name is not in the store: that of a backup.

    Returns those that were not there.
    """
    made = []
    whole = [backup for backup in vault.backups if backup.parent_id is None]
    for checkpoint_id in dict.fromkeys(backup.checkpoint_id for backup in whole):
        own = [backup for backup in whole if backup.checkpoint_id == checkpoint_id]
        status = "available" if any(backup.status == "available" for backup in own) else "error"
        done = await conn.execute(
            "INSERT INTO checkpoints (id, project_id, vault_id, vault_name, provider_id, status, name, auto_trigger, "
            "created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
            [checkpoint_id, vault.project_id, vault.id, vault.name, VAULT_KINDS[vault.object_type].provider_id, status,
             own[0].name, own[0].auto_trigger, min(backup.created_at for backup in own)],
        )  # fmt: skip
        made += [checkpoint_id] if done.rowcount else []
        for position, backup in enumerate(own):
            await conn.execute(
                "INSERT INTO checkpoint_resources (project_id, checkpoint_id, resource_id, position, type, name, "
                "size_bytes) VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [vault.project_id, checkpoint_id, backup.resource_id, position, backup.resource_type,
                 backup.resource_name, backup.size_bytes],
            )  # fmt: skip
    return made


async def _insert_backup(conn: AsyncConnection[Any], vault: LostVault, backup: LostBackup, now: datetime) -> int:
    done = await conn.execute(
        "INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, resource_name, "
        "resource_size_bytes, name, provider_id, status, incremental, auto_trigger, stored_bytes, report, root, "
        "domain_id, point_token, created_at, protected_at, updated_at, expired_at, promised_until, image_type, "
        "parent_id, machine_id) SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, "
        "%s, %s, %s, %s, %s, %s WHERE %s::text IS NULL OR EXISTS (SELECT 1 FROM backups b WHERE b.project_id = %s "
        "AND b.id = %s) ON CONFLICT (id) DO NOTHING",
        [backup.id, vault.project_id, vault.id, backup.checkpoint_id, backup.resource_id, backup.resource_type,
         backup.resource_name, backup.size_bytes, backup.name, VAULT_KINDS[vault.object_type].provider_id,
         backup.status, backup.incremental, backup.auto_trigger, backup.stored_bytes, Jsonb(dict(backup.report)),
         backup.root, backup.domain_id, backup.token, backup.created_at, backup.created_at, now, backup.expired_at,
         backup.promised_until, backup.image_type, backup.parent_id, backup.machine_id,
         backup.parent_id, vault.project_id, backup.parent_id],
    )  # fmt: skip
    return done.rowcount


async def _insert_registration(conn: AsyncConnection[Any], vault: LostVault, backup: LostBackup, now: datetime) -> int:
    """A path that somebody registered meanwhile stays theirs."""
    done = await conn.execute(
        "INSERT INTO protectables (id, project_id, type, resource_type, name, path, options, size_bytes, machine, "
        "created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [backup.resource_id, vault.project_id, PROTECTABLE_TYPES[backup.resource_type], backup.resource_type,
         backup.resource_name, backup.path, Jsonb(dict(backup.options)), backup.size_bytes,
         Jsonb(_machine(vault, backup)), now],
    )  # fmt: skip
    await conn.execute(
        "INSERT INTO vault_resources (project_id, vault_id, resource_id, protect_type, type, name, size_bytes, "
        "created_at) SELECT project_id, %s, id, 'backup', resource_type, name, size_bytes, %s FROM protectables "
        "WHERE project_id = %s AND id = %s AND removed_at IS NULL ON CONFLICT DO NOTHING",
        [vault.id, now, vault.project_id, backup.resource_id],
    )
    return done.rowcount


def _newest_of_each_resource(vault: LostVault) -> list[LostBackup]:
    """What a replica was made of is in another region: its path here would be somebody else's."""
    own = [b for b in vault.backups if b.image_type == "backup" and b.parent_id is None]
    return list({b.resource_id: b for b in own}.values())


def _machine(vault: LostVault, backup: LostBackup) -> dict[str, Any]:
    """What a look would show: the disks that a server had in its newest backup, so that it can be restored at once."""
    return {
        "disks": [
            {"id": disk.resource_id, "size_bytes": disk.size_bytes, "name": "", "is_boot": False}
            | dict(disk.report.get("disk", {}))
            for disk in vault.backups
            if disk.parent_id == backup.id
        ]
    }
