"""Binding resources to vaults: what a request may name, looks at the resources, and the rows.

Everything is decided under the lock of the vault's row; two vaults that bind one resource at once meet at the lock of
the registered resource, and at the UNIQUE of vault_resources behind it. Locks: vault first, then registrations by id.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, InvalidRequest
from strongroom.control.db import Database
from strongroom.control.names import require_id, require_label
from strongroom.control.subjects import VaultRef, lock_vault
from strongroom.control.vault_kinds import RESOURCE_KINDS, VAULT_KINDS, WITH_VOLUMES, ResourceKind, require_fit
from strongroom.control.vault_resources import RESOURCES_PER_VAULT_MAX, refuse_repeated, require_available

VOLUMES_MAX = 128  # of one extra_info list: more than any server can have attached


@dataclass(frozen=True, kw_only=True)
class NewResource:
    """A resource as a request names it. name: the tenant's own, None takes the registered one."""

    id: str
    type: str
    name: str | None = None
    exclude_volumes: tuple[str, ...] = ()
    include_volumes: tuple[Mapping[str, str], ...] = ()  # id, and os_version where known


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an inspection saw just now. obstacle: why it cannot be protected, None when it can.

    machine  of a server: {"disks": [{"id", "name", "size_bytes", "is_boot"}], "power", "abilities", "detail"}
    """

    size_bytes: int
    obstacle: str | None
    machine: Mapping[str, Any] = field(default_factory=dict)


# Looks at those of the ids that are registered for the caller; others are missing in the answer.
LookAt = Callable[[Sequence[str]], Awaitable[Mapping[str, Look]]]


def check_new_resources(resources: Sequence[NewResource]) -> None:
    """Form of a request's list. Raises InvalidRequest, or Conflict 6100 (too many), 6104 (one stands twice)."""
    if len(resources) > RESOURCES_PER_VAULT_MAX:
        raise _too_many()
    for resource in resources:
        require_id(resource.id, "resource id")
        if resource.name:
            require_label(resource.name, "resource name")
        volumes = [*resource.exclude_volumes, *(volume["id"] for volume in resource.include_volumes)]
        if volumes and resource.type in RESOURCE_KINDS and resource.type not in WITH_VOLUMES:
            raise InvalidRequest(
                reason=f"Invalid extra_info: volumes can be chosen for servers only, not for {resource.type}."
            )
        if len(volumes) > VOLUMES_MAX:
            raise InvalidRequest(reason=f"Invalid extra_info: name at most {VOLUMES_MAX} volumes.")
        for volume_id in volumes:
            require_id(volume_id, "volume id")
    refuse_repeated([resource.id for resource in resources])


async def bind(
    conn: AsyncConnection[Any],
    vault: VaultRef,
    resources: Sequence[NewResource],
    looks: Mapping[str, Look],
    now: datetime,
) -> None:
    """Associate resources with a vault that this transaction made or locked.

    A server that is in this vault already gets the request's list of volumes. Raises Conflict with the published code,
    or the resource's NotFound.
    """
    check_new_resources(resources)
    if not resources:
        return
    kinds = await _require_kinds(conn, vault, resources)
    registered = await _lock_registered(conn, vault.project_id, resources, kinds)
    mine = await _check_bindings(conn, vault, resources, kinds)
    for resource in resources:
        look = looks.get(resource.id)
        if look is not None and look.obstacle is not None:
            raise Conflict(
                reason=f"Resource {resource.id} cannot be protected now: {look.obstacle}",
                conflict_code=kinds[resource.id].unfit_code,
            )
    rows = [
        (
            resource.id,
            resource.type,
            resource.name or registered[resource.id]["name"],
            looks[resource.id].size_bytes if resource.id in looks else registered[resource.id]["size_bytes"],
            Jsonb(_extra_info(resource)),
        )
        for resource in resources
    ]
    await _write(conn, vault, [row for row in rows if row[0] not in mine], now)
    for row in rows:
        if row[0] in mine:
            await conn.execute(
                "UPDATE vault_resources SET extra_info = %s "
                "WHERE project_id = %s AND vault_id = %s AND resource_id = %s",
                [row[4], vault.project_id, vault.id, row[0]],
            )


async def add_resources(
    database: Database,
    project_id: str,
    vault_id: str,
    resources: Sequence[NewResource],
    look_at: LookAt,
    clock: Clock,
) -> None:
    """Associate resources with a vault, all or none. Raises VaultNotFound, and what `bind` raises.

    What can be refused without looking at resources is refused first; then looks, which may take long; then one
    transaction that decides.
    """
    if not resources:
        raise InvalidRequest(reason="Invalid resources: name at least one resource.")
    check_new_resources(resources)
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault)
        await _require_kinds(conn, vault, resources)
    looks = await look_at([resource.id for resource in resources])
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault)
        await bind(conn, vault, resources, looks, clock.now())


async def _require_kinds(
    conn: AsyncConnection[Any], vault: VaultRef, resources: Sequence[NewResource]
) -> dict[str, ResourceKind]:
    found = await conn.execute(
        "SELECT object_type, cloud_type FROM vaults WHERE project_id = %s AND id = %s", [vault.project_id, vault.id]
    )
    row = await found.fetchone()
    assert row is not None, "the caller holds the vault's lock"
    return {resource.id: require_fit(VAULT_KINDS[row[0]], row[1], resource.type) for resource in resources}


async def _lock_registered(
    conn: AsyncConnection[Any], project_id: str, resources: Sequence[NewResource], kinds: Mapping[str, ResourceKind]
) -> dict[str, dict[str, Any]]:
    """Rows of the registered resources, locked by id. Raises the NotFound of the first that is not there as such."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id, resource_type, name, size_bytes FROM protectables "
            "WHERE project_id = %s AND id = ANY(%s) AND removed_at IS NULL ORDER BY id FOR UPDATE",
            [project_id, [resource.id for resource in resources]],
        )
        rows = {row["id"]: row for row in await cursor.fetchall()}
    for resource in resources:
        if resource.id not in rows or rows[resource.id]["resource_type"] != resource.type:
            await _refuse_host(conn, project_id, resource)
            raise kinds[resource.id].not_found(id=resource.id)
    return rows


async def _refuse_host(conn: AsyncConnection[Any], project_id: str, resource: NewResource) -> None:
    """A registered host is known, and nothing of it can be read until its agent is. Raises Conflict 7403."""
    found = await conn.execute(
        "SELECT host_name FROM agents WHERE project_id = %s AND id = %s", [project_id, resource.id]
    )
    row = await found.fetchone()
    if row is not None:
        raise Conflict(
            reason=f"Host {row[0]} is registered, but no agent of it is connected that could be asked for data.",
            conflict_code="7403",
        )


async def _check_bindings(
    conn: AsyncConnection[Any],
    vault: VaultRef,
    resources: Sequence[NewResource],
    kinds: Mapping[str, ResourceKind],
) -> set[str]:
    """Ids of servers that are in this vault already. Raises Conflict where a binding forbids another, or too many."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT vault_id, resource_id, protect_status FROM vault_resources "
            "WHERE project_id = %s AND protect_type = %s AND resource_id = ANY(%s)",
            [vault.project_id, vault.protect_type, [resource.id for resource in resources]],
        )
        bound = {row["resource_id"]: row for row in await cursor.fetchall()}
        await cursor.execute(
            "SELECT count(*) AS n FROM vault_resources WHERE project_id = %s AND vault_id = %s",
            [vault.project_id, vault.id],
        )
        counted = await cursor.fetchone()
    assert counted is not None
    for resource in resources:
        if resource.id in bound:
            _refuse_bound(vault, resource, bound[resource.id], kinds[resource.id])
    if counted["n"] + len(resources) - len(bound) > RESOURCES_PER_VAULT_MAX:
        raise _too_many()
    return set(bound)


def _refuse_bound(vault: VaultRef, resource: NewResource, row: Mapping[str, Any], kind: ResourceKind) -> None:
    if row["protect_status"] == "removing":
        raise Conflict(
            reason=f"Resource {resource.id} is being removed from vault {row['vault_id']}. Try again when it is gone.",
            conflict_code="6134",
        )
    if row["vault_id"] != vault.id or resource.type not in WITH_VOLUMES:
        raise Conflict(
            reason=f"Resource {resource.id} is in vault {row['vault_id']} already. Remove it there first.",
            conflict_code=kind.bound_code,
        )


async def _write(conn: AsyncConnection[Any], vault: VaultRef, rows: Sequence[tuple[Any, ...]], now: datetime) -> None:
    if not rows:
        return
    try:
        await conn.execute(
            """
            INSERT INTO vault_resources (project_id, vault_id, protect_type, created_at,
                                         resource_id, type, name, size_bytes, extra_info)
            SELECT %s, %s, %s, %s, r.* FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::jsonb[]) AS r
            """,
            [
                vault.project_id,
                vault.id,
                vault.protect_type,
                now,
                *(list(column) for column in zip(*rows, strict=True)),
            ],
        )
    except UniqueViolation as err:
        raise Conflict(
            reason="One of the resources was put into another vault at the same moment. Look there, then try again.",
            conflict_code="6103",
            detail=str(err),
        ) from err


def _extra_info(resource: NewResource) -> dict[str, Any]:
    info: dict[str, Any] = {}
    if resource.exclude_volumes:
        info["exclude_volumes"] = list(resource.exclude_volumes)
    if resource.include_volumes:
        info["include_volumes"] = [dict(volume) for volume in resource.include_volumes]
    return info


def _too_many() -> Conflict:
    return Conflict(
        reason=f"A vault can have at most {RESOURCES_PER_VAULT_MAX} resources. Use another vault for the rest.",
        conflict_code="6100",
    )
