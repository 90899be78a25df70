"""Registrations: the operator says which folders, disks and machines a project may protect.

A registration is never erased while restore points may name it: `removed_at` ends it.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from psycopg.errors import ForeignKeyViolation, UniqueViolation
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import AccountNotFound, Conflict, InvalidRequest, ResourceNotFound
from strongroom.base.ids import is_hex_id, new_id
from strongroom.base.ssh_address import SCHEME, parse_ssh_address
from strongroom.control.db import Database
from strongroom.control.listing import Page, require_offset
from strongroom.control.names import require_label
from strongroom.control.protectables import AVAILABLE, COLUMNS, Protectable, protectable_of
from strongroom.control.resource_binding import Look
from strongroom.control.vault_kinds import BARE_METAL, DISK, RESOURCE_KINDS, SERVER, TURBO

# What this version has drivers for.
REGISTERABLE_TYPES = {"turbo": TURBO.type_name, "disk": DISK.type_name, "server": SERVER.type_name}
PATH_BYTES_MAX = 4096  # PATH_MAX of Linux
PATTERNS_MAX = 1000
PATTERN_LENGTH_MAX = 4096
_GROUP = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_ADDRESS = re.compile(rb"[a-z]+:[\x21-\x7e]+")  # how a machine or disk is reached, and what its driver goes by
READ_LIMIT_MIN = 64 * 1024  # a slower read would not finish a point within a day even for a small disk


@dataclass(frozen=True, kw_only=True)
class NewProtectable:
    """A registration as the operator asks for it.

    path                absolute; of a server its address, `qemu:/run/web.qmp`, `libvirt:qemu:///system#web`, or
                        `ssh:root@web?path=/srv`, which makes it a bare metal server with these paths; of a disk that
                        is no file one too, `rbd:pool/image` or `cinder:cloud/volume`
    read_limit_bytes_s  None: no limit
    worker_group        whose workers reach the path
    source_host         the host it lies on, which has a limit of tasks at once; "": none
    """

    project_id: str
    type: str
    name: str
    path: bytes
    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    read_limit_bytes_s: int | None = None
    privileged: bool = False
    worker_group: str = "default"
    source_host: str = ""
    id: str = field(default_factory=new_id)

    @property
    def options(self) -> dict[str, Any]:
        """As the row keeps them and a source driver reads them."""
        return {
            "exclude": list(self.exclude),
            "one_file_system": self.one_file_system,
            "read_limit_bytes_s": self.read_limit_bytes_s,
            "privileged": self.privileged,
        }


def check_new_protectable(new: NewProtectable) -> str:
    """The resource type it becomes. Raises InvalidRequest."""
    if not is_hex_id(new.project_id):
        raise InvalidRequest(reason="Invalid project_id provided.")
    if new.type not in REGISTERABLE_TYPES:
        raise InvalidRequest(reason=f"Invalid type: use one of {', '.join(REGISTERABLE_TYPES)}.")
    require_label(new.name, "name")
    if _is_address(new):
        if not _ADDRESS.fullmatch(new.path) or len(new.path) > PATH_BYTES_MAX:
            raise InvalidRequest(
                reason="Invalid path: give an absolute path, or the address of the server or disk, as "
                "qemu:/run/web.qmp, libvirt:qemu:///system#web, nova:cloud/server, ssh:root@web?path=/srv, "
                "rbd:pool/image or cinder:cloud/volume, with %20 for a blank."
            )
    elif not new.path.startswith(b"/") or len(new.path) > PATH_BYTES_MAX or b"\x00" in new.path:
        raise InvalidRequest(reason=f"Invalid path: give an absolute path of at most {PATH_BYTES_MAX} bytes.")
    elif b".." in new.path.split(b"/"):
        raise InvalidRequest(reason="Invalid path: write it without `..`.")
    if len(new.exclude) > PATTERNS_MAX or any(not 0 < len(text) <= PATTERN_LENGTH_MAX for text in new.exclude):
        raise InvalidRequest(
            reason=f"Invalid exclude: give at most {PATTERNS_MAX} patterns of 1 to {PATTERN_LENGTH_MAX} characters."
        )
    if not _GROUP.fullmatch(new.worker_group):
        raise InvalidRequest(reason="Invalid worker_group: give 1 to 64 lower-case letters, digits, - and _.")
    if new.source_host and not _HOST.fullmatch(new.source_host):
        raise InvalidRequest(reason="Invalid source_host: give 1 to 64 letters, digits, dots, colons, - and _.")
    if new.read_limit_bytes_s is not None and not READ_LIMIT_MIN <= new.read_limit_bytes_s < 1 << 62:
        raise InvalidRequest(reason=f"Invalid read_limit_bytes_s: give at least {READ_LIMIT_MIN}, or leave it out.")
    if new.type == "server" and new.path.startswith(SCHEME):
        parse_ssh_address(new.path)
        return BARE_METAL.type_name
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
                                              status, machine, created_at, worker_group, source_host)
                    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING {COLUMNS}
                    """,  # noqa: S608 -- the columns are ours
                    [
                        new.id,
                        new.project_id,
                        new.type,
                        resource_type,
                        new.name,
                        new.path if _is_address(new) else _normal(new.path),
                        Jsonb(new.options),
                        look.size_bytes,
                        AVAILABLE,
                        Jsonb(dict(look.machine)),
                        clock.now(),
                        new.worker_group,
                        new.source_host,
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
    return protectable_of(row)


async def list_registered(database: Database, project_id: str | None, page: Page) -> tuple[list[Protectable], int]:
    """Registrations of one project, or with None of all (the operator's list), newest first, and the count."""
    if project_id is not None and not is_hex_id(project_id):
        raise InvalidRequest(reason="Invalid project_id provided.")
    require_offset(page.offset)
    async with database.transaction(dict_row) as conn:
        found = await conn.execute(
            f"SELECT {COLUMNS}, count(*) OVER () AS n FROM protectables "  # noqa: S608 -- the columns are ours
            "WHERE project_id = coalesce(%s, project_id) AND removed_at IS NULL "
            "ORDER BY created_at DESC, id DESC LIMIT %s OFFSET %s",
            [project_id, page.limit, page.offset],
        )
        rows = await found.fetchall()
        if rows:
            return [protectable_of(row) for row in rows], rows[0]["n"]
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


def _is_address(new: NewProtectable) -> bool:
    """Whether its path is no path of a host."""
    return new.type == "server" or (new.type == "disk" and not new.path.startswith(b"/"))


def _normal(path: bytes) -> bytes:
    """One spelling of a path, so that the same folder is not registered twice: no empty or `.` parts."""
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
