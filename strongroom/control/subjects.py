"""What jobs and requests work on: a vault and a resource as values, and the locks in their fixed order.

Order of locks, the same everywhere: the task's own row (job side only), then vaults by id, then rows below them. A
request that holds a vault's lock never waits for a task's row, so the two sides cannot wait for each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from strongroom.base.errors import ResourceNotFound, VaultNotFound
from strongroom.base.ssh_address import SCHEME, parse_ssh_address
from strongroom.base.units import GIB
from strongroom.control.vault_kinds import HOST_TYPES


@dataclass(frozen=True, kw_only=True)
class VaultRef:
    """A vault as a job sees it.

    size_bytes  capacity; 0: no limit (demand_billing, or auto_expand, unless it was full before: control/capacity.py)
    used_bytes  live sealed bytes of its restore points (RULINGS 19)
    """

    id: str
    project_id: str
    name: str
    provider_id: str
    protect_type: str
    status: str
    size_bytes: int
    used_bytes: int
    consistent_level: str
    locked: bool
    keep_manual: bool

    def keeps(self, *, auto_trigger: bool) -> bool:
        """Whether a backup of this kind leaves the vault by its own time only."""
        return self.locked and (auto_trigger or self.keep_manual)

    @property
    def full(self) -> bool:
        """True when no further backup may begin (RULINGS 19)."""
        return 0 < self.size_bytes <= self.used_bytes


@dataclass(frozen=True, kw_only=True)
class ResourceRef:
    """A registered resource: what a source driver needs to open it. size_bytes is of the last look at it.

    roots  of a host with an agent: (path, paths below it that are left out)
    """

    id: str
    type: str
    name: str
    path: bytes
    options: dict[str, Any]
    worker_group: str
    size_bytes: int
    source_host: str = ""
    roots: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()


def vault_full_sentence(vault: VaultRef) -> str:
    """The text of 6114."""
    return f"Vault {vault.name} is full. Enlarge it, or delete backups, then back up again."


async def lock_vault(conn: AsyncConnection[Any], project_id: str, vault_id: str | None) -> VaultRef:
    """Lock the vault's row until the transaction ends. Raises VaultNotFound."""
    found = await lock_vaults(conn, project_id, vault_id)
    return require_vault(found, vault_id)


async def lock_vault_if_free(conn: AsyncConnection[Any], project_id: str, vault_id: str) -> VaultRef | None:
    """As lock_vault, but None at once when somebody holds the lock, or the vault is gone: for who may come again."""
    rows = await _select_vaults(
        conn,
        "WHERE project_id = %(project)s AND id = %(vault)s FOR UPDATE SKIP LOCKED",
        {"project": project_id, "vault": vault_id},
    )
    return rows[0] if rows else None


async def lock_vaults(
    conn: AsyncConnection[Any], project_id: str, vault_id: str | None, *, binding: str | None = None
) -> dict[str, VaultRef]:
    """Lock this vault and every vault that binds the resource `binding`, in the order of ids; those that exist."""
    rows = await _select_vaults(
        conn,
        "WHERE project_id = %(project)s AND (id = %(vault)s OR id IN (SELECT vault_id FROM vault_resources "
        "WHERE project_id = %(project)s AND resource_id = %(binding)s)) ORDER BY id FOR UPDATE",
        {"project": project_id, "vault": vault_id, "binding": binding},
    )
    return {vault.id: vault for vault in rows}


async def lock_all_vaults(conn: AsyncConnection[Any], project_id: str, *vault_ids: str) -> dict[str, VaultRef]:
    """Lock several vaults in the order of ids. Raises VaultNotFound for the first that is not there."""
    rows = await _select_vaults(
        conn,
        "WHERE project_id = %(project)s AND id = ANY(%(vaults)s) ORDER BY id FOR UPDATE",
        {"project": project_id, "vaults": list(vault_ids)},
    )
    found = {vault.id: vault for vault in rows}
    for vault_id in vault_ids:
        require_vault(found, vault_id)
    return found


def require_vault(vaults: Mapping[str, VaultRef], vault_id: str | None) -> VaultRef:
    """The vault among those that were locked. Raises VaultNotFound."""
    found = vaults.get(vault_id or "")
    if found is None:
        raise VaultNotFound(id=vault_id or "(none)")
    return found


async def load_vault(conn: AsyncConnection[Any], project_id: str, vault_id: str | None) -> VaultRef:
    """The vault as it is now, without a lock. Raises VaultNotFound."""
    rows = await _select_vaults(
        conn, "WHERE project_id = %(project)s AND id = %(vault)s", {"project": project_id, "vault": vault_id}
    )
    if not rows:
        raise VaultNotFound(id=vault_id or "(none)")
    return rows[0]


async def _select_vaults(
    conn: AsyncConnection[Any], condition: LiteralString, values: dict[str, object]
) -> list[VaultRef]:
    async with conn.cursor(row_factory=class_row(VaultRef)) as cursor:
        await cursor.execute(
            f"""
            SELECT id, project_id, name, provider_id, protect_type, status, used_bytes, consistent_level, locked,
                   keep_manual,
                   CASE WHEN demand_billing OR (auto_expand AND used_bytes < size_gb::bigint * {GIB}) THEN 0
                        ELSE size_gb::bigint * {GIB} END AS size_bytes
            FROM vaults {condition}
            """.encode(),  # noqa: S608 -- texts are ours, and each binds the project_id
            values,
        )
        return await cursor.fetchall()


async def load_resource(conn: AsyncConnection[Any], project_id: str, resource_id: str | None) -> ResourceRef:
    """The registration of a resource of this project. Raises ResourceNotFound, also when it was removed."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id, resource_type AS type, name, path, options, worker_group, size_bytes, source_host "
            "FROM protectables WHERE project_id = %s AND id = %s AND removed_at IS NULL",
            [project_id, resource_id],
        )
        row = await cursor.fetchone()
        if row is None:
            raise ResourceNotFound(id=resource_id or "(none)")
        roots: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
        if row["type"] in HOST_TYPES and bytes(row["path"]).startswith(SCHEME):
            roots = tuple((path, ()) for path in parse_ssh_address(bytes(row["path"])).paths)
        elif row["type"] in HOST_TYPES:
            await cursor.execute(
                "SELECT path, excluded FROM agent_paths WHERE project_id = %s AND agent_id = %s ORDER BY path",
                [project_id, resource_id],
            )
            roots = tuple(
                (path["path"].encode(), tuple(text.encode() for text in path["excluded"]))
                for path in await cursor.fetchall()
            )
    return ResourceRef(**{**row, "path": bytes(row["path"]), "roots": roots})


async def release_resource(conn: AsyncConnection[Any], project_id: str, resource_id: str | None, busy: str) -> None:
    """End the busy status of a resource in its vaults: available, or error while an older reason stands."""
    await conn.execute(
        "UPDATE vault_resources SET protect_status = CASE WHEN status_reason IS NULL THEN 'available' ELSE 'error' END "
        "WHERE project_id = %s AND resource_id = %s AND protect_status = %s",
        [project_id, resource_id, busy],
    )
