"""Protectables: what an operator registered for a project, and whether a tenant can put it into a vault.

A registration is never erased while restore points may name it: `removed_at` ends it. What inspections saw (size,
status) is kept with the row, because a list must not walk file systems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.errors import (
    DiskNotFound,
    InvalidRequest,
    NotFound,
    ResourceNotFound,
    ServerNotFound,
)
from strongroom.control.db import Database
from strongroom.control.listing import Filters, Page, fetch_page
from strongroom.control.names import (
    ENTERPRISE_PROJECT_ALL,
    ENTERPRISE_PROJECT_DEFAULT,
    require_enterprise_project,
    require_id,
)
from strongroom.control.resource_binding import Look
from strongroom.control.vault_kinds import RESOURCE_KINDS
from strongroom.control.vault_rules import Vault
from strongroom.control.vaults import load_vaults

PROTECTABLE_TYPES = ("server", "disk", "turbo", "workspace", "workspace_v2")  # of the contract's path

AVAILABLE, ERROR = "available", "error"
_NOT_FOUND: dict[str, type[NotFound]] = {"server": ServerNotFound, "disk": DiskNotFound}
_UNFIT = "At the last look it was missing or not readable. Put it right, then bind it: binding looks again."

COLUMNS: LiteralString = (
    "id, project_id, type, resource_type, name, path, worker_group, source_host, options, size_bytes, status, machine, "
    "created_at"
)


@dataclass(frozen=True, kw_only=True)
class Protectable:
    """A registered resource. type: the API's protectable_type; path: bytes on the worker's host, not for tenants.

    machine  what the last look at a server showed, as resource_binding.Look has it; else empty
    """

    id: str
    project_id: str
    type: str
    resource_type: str
    name: str
    path: bytes
    worker_group: str
    source_host: str
    options: dict[str, Any]
    size_bytes: int
    status: str
    machine: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether it can be put into a vault now; else the published code, the reason, and the vault that has it."""

    protectable: bool
    code: str | None = None
    reason: str | None = None
    vault: Vault | None = None


@dataclass(frozen=True, kw_only=True)
class ProtectableQuery:
    """Filters of the tenant's list, joined by AND; None: no filter."""

    id: str | None = None
    name: str | None = None
    status: str | None = None
    server_id: str | None = None
    enterprise_project_id: str | None = None


async def list_protectables(
    database: Database, project_id: str, protectable_type: str, query: ProtectableQuery, page: Page
) -> tuple[list[tuple[Protectable, Verdict]], int]:
    """One page of a type, newest first, and the count of all that match. Raises InvalidRequest."""
    filters = _filters(project_id, protectable_type, query)
    whole = f"protectables/{protectable_type}" if query == ProtectableQuery() else None
    async with database.transaction() as conn:
        rows, count = await fetch_page(
            conn, columns=COLUMNS, table="protectables", filters=filters, page=page, whole=whole
        )
        found = [protectable_of(row) for row in rows]
        verdicts = await _verdicts(conn, project_id, found)
    return [(protectable, verdicts[protectable.id]) for protectable in found], count


async def require_protectable(
    database: Database, project_id: str, protectable_type: str, protectable_id: str
) -> tuple[Protectable, Verdict]:
    """One of this project and type. Raises InvalidRequest for a bad type, else the type's NotFound."""
    filters = _filters(project_id, protectable_type, ProtectableQuery(id=protectable_id))
    async with database.transaction() as conn:
        rows, _ = await fetch_page(conn, columns=COLUMNS, table="protectables", filters=filters, page=Page(limit=1))
        if not rows:
            raise _NOT_FOUND.get(protectable_type, ResourceNotFound)(id=protectable_id)
        found = protectable_of(rows[0])
        return found, (await _verdicts(conn, project_id, [found]))[found.id]


async def find_registered(database: Database, project_id: str, ids: Sequence[str]) -> list[Protectable]:
    """Those of the ids that are registered for this project now."""
    async with database.read(dict_row) as conn:
        rows = await conn.execute(
            f"SELECT {COLUMNS} FROM protectables "  # noqa: S608 -- the columns are ours
            "WHERE project_id = %s AND id = ANY(%s) AND removed_at IS NULL",
            [project_id, list(ids)],
        )
        return [protectable_of(row) for row in await rows.fetchall()]


async def record_looks(database: Database, project_id: str, looks: Mapping[str, Look]) -> None:
    """Keep what inspections saw; a resource that is gone keeps its last size."""
    ids = sorted(looks)
    async with database.transaction() as conn:
        # The update alone would lock rows in whatever order its join finds them, against that of other requests.
        await conn.execute(
            "SELECT 1 FROM protectables WHERE project_id = %s AND id = ANY(%s) ORDER BY id FOR UPDATE",
            [project_id, ids],
        )
        await conn.execute(
            """
            UPDATE protectables p SET status = l.status,
                size_bytes = CASE WHEN l.status = 'available' THEN l.size_bytes ELSE p.size_bytes END,
                machine = CASE WHEN l.status = 'available' THEN l.machine ELSE p.machine END
            FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::jsonb[]) AS l(id, size_bytes, status, machine)
            WHERE p.project_id = %s AND p.id = l.id
            """,
            [
                ids,
                [looks[i].size_bytes for i in ids],
                [AVAILABLE if looks[i].obstacle is None else ERROR for i in ids],
                [Jsonb(dict(looks[i].machine)) for i in ids],
                project_id,
            ],
        )


def _filters(project_id: str, protectable_type: str, query: ProtectableQuery) -> Filters:
    if protectable_type not in PROTECTABLE_TYPES:
        raise InvalidRequest(reason=f"Invalid protectable_type: use one of {', '.join(PROTECTABLE_TYPES)}.")
    filters = Filters(project_id=project_id)
    filters.add("type = %s", protectable_type)
    filters.add("removed_at IS NULL")
    if query.id is not None:
        filters.add("id = %s", require_id(query.id, "id"))
    if query.name is not None:
        filters.add("name = %s", query.name)
    if query.status is not None:
        filters.add("status = %s", query.status)
    if query.server_id is not None:
        # Sent with type server by one client, which wants that server; disks of a server are not registered as such.
        server_id = require_id(query.server_id, "server_id")
        filters.add("type = 'server' AND id = %s", server_id)
    if query.enterprise_project_id not in (None, ENTERPRISE_PROJECT_ALL):
        project = require_enterprise_project(query.enterprise_project_id, "enterprise_project_id")
        filters.add("%s = %s", project, ENTERPRISE_PROJECT_DEFAULT)  # every registration is of the default one
    return filters


async def _verdicts(conn: AsyncConnection[Any], project_id: str, found: Sequence[Protectable]) -> dict[str, Verdict]:
    bound = await conn.execute(
        "SELECT resource_id, vault_id FROM vault_resources WHERE project_id = %s AND resource_id = ANY(%s) "
        "ORDER BY resource_id, protect_type DESC",  # `backup` last: it is the vault people ask for
        [project_id, [protectable.id for protectable in found]],
    )
    vault_of = dict(await bound.fetchall())
    vaults = await load_vaults(conn, project_id, sorted(set(vault_of.values())))
    return {
        protectable.id: _verdict(protectable, vaults.get(vault_of.get(protectable.id, ""))) for protectable in found
    }


def _verdict(protectable: Protectable, vault: Vault | None) -> Verdict:
    kind = RESOURCE_KINDS[protectable.resource_type]
    if vault is not None:
        return Verdict(
            protectable=False,
            code=f"BackupService.{kind.bound_code}",
            reason=f"It is in vault {vault.name} ({vault.id}) already.",
            vault=vault,
        )
    if protectable.status != AVAILABLE:
        return Verdict(protectable=False, code=f"BackupService.{kind.unfit_code}", reason=_UNFIT)
    return Verdict(protectable=True)


def protectable_of(row: Mapping[str, Any]) -> Protectable:
    return Protectable(**{name: row[name] for name in Protectable.__dataclass_fields__} | {"path": bytes(row["path"])})
