"""Protectables: what an operator registered for a project, and whether a tenant can put it into a vault.

A registration is never erased while restore points may name it: `removed_at` ends it. What inspections saw (size,
status) is kept with the row, because a list must not walk file systems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.errors import ForeignKeyViolation, UniqueViolation
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import (
    AccountNotFound,
    Conflict,
    DiskNotFound,
    InvalidRequest,
    NotFound,
    ResourceNotFound,
    ServerNotFound,
)
from strongroom.base.ids import is_hex_id, new_id
from strongroom.control.db import Database
from strongroom.control.listing import Filters, Page, fetch_page
from strongroom.control.names import (
    ENTERPRISE_PROJECT_ALL,
    ENTERPRISE_PROJECT_DEFAULT,
    require_enterprise_project,
    require_id,
    require_label,
)
from strongroom.control.vault_kinds import DISK, RESOURCE_KINDS, TURBO
from strongroom.control.vault_resources import Look
from strongroom.control.vault_rules import Vault
from strongroom.control.vaults import load_vaults

PROTECTABLE_TYPES = ("server", "disk", "turbo", "workspace", "workspace_v2")  # of the contract's path
REGISTERABLE_TYPES = {"turbo": TURBO.type_name, "disk": DISK.type_name}  # what this version has drivers for
PATH_BYTES_MAX = 4096  # PATH_MAX of Linux
PATTERNS_MAX = 1000
PATTERN_LENGTH_MAX = 4096
READ_LIMIT_MIN = 64 * 1024  # a slower read would not finish a point within a day even for a small disk

AVAILABLE, ERROR = "available", "error"
_NOT_FOUND: dict[str, type[NotFound]] = {"server": ServerNotFound, "disk": DiskNotFound}
_UNFIT = "At the last look it was missing or not readable. Put it right, then bind it: binding looks again."

_COLUMNS: LiteralString = (
    "id, project_id, type, resource_type, name, path, worker_group, options, size_bytes, status, created_at"
)


@dataclass(frozen=True, kw_only=True)
class Protectable:
    """A registered resource. type: the API's protectable_type; path: bytes on the worker's host, not for tenants."""

    id: str
    project_id: str
    type: str
    resource_type: str
    name: str
    path: bytes
    worker_group: str
    options: dict[str, Any]
    size_bytes: int
    status: str
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


@dataclass(frozen=True, kw_only=True)
class NewProtectable:
    """A registration as the operator asks for it. read_limit_bytes_s None: no limit."""

    project_id: str
    type: str
    name: str
    path: bytes
    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    read_limit_bytes_s: int | None = None
    privileged: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """As the row keeps them and a source driver reads them."""
        return {
            "exclude": list(self.exclude),
            "one_file_system": self.one_file_system,
            "read_limit_bytes_s": self.read_limit_bytes_s,
            "privileged": self.privileged,
        }


# --- the tenant's side ------------------------------------------------------------------------------------------------


async def list_protectables(
    database: Database, project_id: str, protectable_type: str, query: ProtectableQuery, page: Page
) -> tuple[list[tuple[Protectable, Verdict]], int]:
    """One page of a type, newest first, and the count of all that match. Raises InvalidRequest."""
    filters = _filters(project_id, protectable_type, query)
    async with database.transaction() as conn:
        rows, count = await fetch_page(conn, columns=_COLUMNS, table="protectables", filters=filters, page=page)
        found = [_protectable(row) for row in rows]
        verdicts = await _verdicts(conn, project_id, found)
    return [(protectable, verdicts[protectable.id]) for protectable in found], count


async def require_protectable(
    database: Database, project_id: str, protectable_type: str, protectable_id: str
) -> tuple[Protectable, Verdict]:
    """One of this project and type. Raises InvalidRequest for a bad type, else the type's NotFound."""
    filters = _filters(project_id, protectable_type, ProtectableQuery(id=protectable_id))
    async with database.transaction() as conn:
        rows, _ = await fetch_page(conn, columns=_COLUMNS, table="protectables", filters=filters, page=Page(limit=1))
        if not rows:
            raise _NOT_FOUND.get(protectable_type, ResourceNotFound)(id=protectable_id)
        found = _protectable(rows[0])
        return found, (await _verdicts(conn, project_id, [found]))[found.id]


async def find_registered(database: Database, project_id: str, ids: Sequence[str]) -> list[Protectable]:
    """Those of the ids that are registered for this project now."""
    async with database.read(dict_row) as conn:
        rows = await conn.execute(
            f"SELECT {_COLUMNS} FROM protectables "  # noqa: S608 -- the columns are ours
            "WHERE project_id = %s AND id = ANY(%s) AND removed_at IS NULL",
            [project_id, list(ids)],
        )
        return [_protectable(row) for row in await rows.fetchall()]


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
                size_bytes = CASE WHEN l.status = 'available' THEN l.size_bytes ELSE p.size_bytes END
            FROM unnest(%s::text[], %s::bigint[], %s::text[]) AS l(id, size_bytes, status)
            WHERE p.project_id = %s AND p.id = l.id
            """,
            [
                ids,
                [looks[i].size_bytes for i in ids],
                [AVAILABLE if looks[i].obstacle is None else ERROR for i in ids],
                project_id,
            ],
        )


# --- the operator's side ----------------------------------------------------------------------------------------------


def check_new_protectable(new: NewProtectable) -> str:
    """The resource type it becomes. Raises InvalidRequest."""
    if not is_hex_id(new.project_id):
        raise InvalidRequest(reason="Invalid project_id provided.")
    if new.type not in REGISTERABLE_TYPES:
        raise InvalidRequest(reason=f"Invalid type: use one of {', '.join(REGISTERABLE_TYPES)}.")
    require_label(new.name, "name")
    if not new.path.startswith(b"/") or len(new.path) > PATH_BYTES_MAX or b"\x00" in new.path:
        raise InvalidRequest(reason=f"Invalid path: give an absolute path of at most {PATH_BYTES_MAX} bytes.")
    if b".." in new.path.split(b"/"):
        raise InvalidRequest(reason="Invalid path: write it without `..`.")
    if len(new.exclude) > PATTERNS_MAX or any(not 0 < len(text) <= PATTERN_LENGTH_MAX for text in new.exclude):
        raise InvalidRequest(
            reason=f"Invalid exclude: give at most {PATTERNS_MAX} patterns of 1 to {PATTERN_LENGTH_MAX} characters."
        )
    if new.read_limit_bytes_s is not None and not READ_LIMIT_MIN <= new.read_limit_bytes_s < 1 << 62:
        raise InvalidRequest(reason=f"Invalid read_limit_bytes_s: give at least {READ_LIMIT_MIN}, or leave it out.")
    return REGISTERABLE_TYPES[new.type]


async def register_protectable(database: Database, new: NewProtectable, look: Look, clock: Clock) -> Protectable:
    """Write a registration whose inspection found no obstacle; durable on return.

    Raises Conflict 6215 (7003 for a disk) with the obstacle, InvalidRequest for a path that is registered already,
    AccountNotFound for a project that does not exist.
    """
    resource_type = check_new_protectable(new)
    if look.obstacle is not None:
        raise Conflict(
            reason=f"It cannot be protected: {look.obstacle}", conflict_code=RESOURCE_KINDS[resource_type].unfit_code
        )
    async with database.transaction() as conn:
        try:
            async with conn.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(
                    f"""
                    INSERT INTO protectables (id, project_id, type, resource_type, name, path, options, size_bytes,
                                              status, created_at)
                    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING {_COLUMNS}
                    """,  # noqa: S608 -- the columns are ours
                    [
                        new_id(),
                        new.project_id,
                        new.type,
                        resource_type,
                        new.name,
                        _normal(new.path),
                        Jsonb(new.options),
                        look.size_bytes,
                        AVAILABLE,
                        clock.now(),
                    ],
                )
                row = await cursor.fetchone()
        except UniqueViolation as err:
            raise InvalidRequest(
                reason="Invalid path: it is registered for this project already. Use that one, or remove it first.",
                detail=str(err),
            ) from err
        except ForeignKeyViolation as err:
            raise AccountNotFound(id=new.project_id, detail=str(err)) from err
    assert row is not None
    return _protectable(row)


async def list_registered(database: Database, project_id: str | None, page: Page) -> tuple[list[Protectable], int]:
    """Registrations of one project, or with None of all (the operator's list), newest first, and the count."""
    if project_id is not None and not is_hex_id(project_id):
        raise InvalidRequest(reason="Invalid project_id provided.")
    async with database.transaction(dict_row) as conn:
        found = await conn.execute(
            f"SELECT {_COLUMNS}, count(*) OVER () AS n FROM protectables "  # noqa: S608 -- the columns are ours
            "WHERE project_id = coalesce(%s, project_id) AND removed_at IS NULL "
            "ORDER BY created_at DESC, id DESC LIMIT %s OFFSET %s",
            [project_id, page.limit, page.offset],
        )
        rows = await found.fetchall()
        if rows:
            return [_protectable(row) for row in rows], rows[0]["n"]
        counted = await conn.execute(
            "SELECT count(*) AS n FROM protectables WHERE project_id = coalesce(%s, project_id) AND removed_at IS NULL",
            [project_id],
        )
        row = await counted.fetchone()
    return [], row["n"] if row else 0


async def remove_protectable(database: Database, protectable_id: str, clock: Clock) -> None:
    """End a registration. Raises ResourceNotFound, Conflict 6103 (a vault has it), 2010 (a restore writes it)."""
    async with database.transaction() as conn:
        found = await conn.execute(
            "SELECT project_id FROM protectables WHERE id = %s AND removed_at IS NULL FOR UPDATE", [protectable_id]
        )
        row = await found.fetchone()
        if row is None:
            raise ResourceNotFound(id=protectable_id)
        bound = await conn.execute(
            "SELECT vault_id FROM vault_resources WHERE project_id = %s AND resource_id = %s",
            [row[0], protectable_id],
        )
        vault = await bound.fetchone()
        if vault is not None:
            raise Conflict(
                reason=f"It is in vault {vault[0]}. Remove it there first (removeresources deletes its backups).",
                conflict_code="6103",
            )
        restores = await conn.execute(
            "SELECT 1 FROM operation_logs WHERE project_id = %s AND target_resource_id = %s "
            "AND status IN ('waiting', 'running')",
            [row[0], protectable_id],
        )
        if await restores.fetchone() is not None:
            raise Conflict(reason="A restore writes to it. Remove it when that is done.", conflict_code="2010")
        await conn.execute(
            "UPDATE protectables SET removed_at = %s WHERE project_id = %s AND id = %s",
            [clock.now(), row[0], protectable_id],
        )


# --- parts ------------------------------------------------------------------------------------------------------------


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


def _normal(path: bytes) -> bytes:
    """One spelling of a path, so that the same folder is not registered twice: no empty or `.` parts."""
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))


def _protectable(row: Mapping[str, Any]) -> Protectable:
    return Protectable(**{name: row[name] for name in Protectable.__dataclass_fields__} | {"path": bytes(row["path"])})
