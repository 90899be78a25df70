"""Sharing a backup with other projects: the owner offers and revokes, the receiver accepts into a vault or rejects.

A member is one receiver of one backup. The owner's calls bind project_id, the receiver's dest_project_id; for everybody
else the backup does not exist. A share ends with its row, and with it every read through it (control/received.py). What
is on its way out loses its shares in the database, by triggers of 0007_sharing.sql.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.clock import Clock
from strongroom.base.errors import BackupNotFound, Conflict, InvalidRequest, MemberNotFound
from strongroom.base.ids import is_hex_id, new_id
from strongroom.control.db import Database
from strongroom.control.listing import NEWEST_FIRST, Filters, Order, Page, fetch_page
from strongroom.control.names import require_id
from strongroom.control.received import READABLE, require_own
from strongroom.control.subjects import VaultRef, lock_vault, vault_full_sentence
from strongroom.control.vault_kinds import BARE_METAL, DISK, SERVER

MEMBERS_MAX = 10  # of one backup (contract)
# The contract's list says servers only, its manual and a client's own test say disks too.
SHAREABLE = frozenset({SERVER.type_name, BARE_METAL.type_name, DISK.type_name})
STATUSES = ("pending", "accepted", "rejected")
SORT_KEYS: dict[str, LiteralString] = {key: key for key in ("created_at", "updated_at", "status", "id")}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One receiver. vault_id: the receiver's, while the status is `accepted`."""

    id: str
    backup_id: str
    dest_project_id: str
    status: str
    vault_id: str | None
    created_at: datetime
    updated_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class MemberFilters:
    """Conditions of a list, joined by AND; None: not asked for. image_id: no backup here is an image."""

    dest_project_id: str | None = None
    image_id: str | None = None
    status: str | None = None
    vault_id: str | None = None


_COLUMNS: LiteralString = "id, backup_id, dest_project_id, status, vault_id, created_at, updated_at"


# --- the owner ------------------------------------------------------------------------------------------------------


async def add_members(
    database: Database, project_id: str, backup_id: str, receivers: Sequence[str], clock: Clock
) -> list[Member]:
    """Offer a backup to projects, all or none; in the order asked for.

    Raises InvalidRequest (none named), BackupNotFound, Conflict: 6701 (too many), 6704 (no such project, or the own
    one), 6714 (one stands twice), 6703 (shared with it already), 6707 (not the owner), 6712 (vault), 6702 (status),
    6700 (type).
    """
    _check_receivers(project_id, receivers)
    now = clock.now()
    async with database.transaction() as conn:
        place = await require_own(conn, project_id, backup_id, code="6707", what="share it")
        vault = await lock_vault(conn, project_id, place)
        await _require_shareable(conn, vault, backup_id)
        await _require_new(conn, project_id, backup_id, receivers)
        members = [
            Member(
                id=new_id(),
                backup_id=backup_id,
                dest_project_id=receiver,
                status="pending",
                vault_id=None,
                created_at=now,
                updated_at=None,
            )
            for receiver in receivers
        ]
        await conn.execute(
            "INSERT INTO backup_members (id, project_id, backup_id, dest_project_id, status, created_at) "
            "SELECT i, %s, %s, d, 'pending', %s FROM unnest(%s::text[], %s::text[]) AS u(i, d)",
            [project_id, backup_id, now, [m.id for m in members], [m.dest_project_id for m in members]],
        )
    return members


async def revoke(database: Database, project_id: str, backup_id: str, receiver: str) -> None:
    """End a share: the receiver no longer sees the backup, and a restore that reads through it stops.

    Raises BackupNotFound, MemberNotFound, Conflict 6707 (not the owner).
    """
    _require_project_id(receiver)
    async with database.transaction() as conn:
        await require_own(conn, project_id, backup_id, code="6707", what="revoke it. Reject it instead")
        done = await conn.execute(
            "DELETE FROM backup_members WHERE project_id = %s AND backup_id = %s AND dest_project_id = %s",
            [project_id, backup_id, receiver],
        )
        if done.rowcount == 0:
            raise MemberNotFound(id=receiver)


def _check_receivers(project_id: str, receivers: Sequence[str]) -> None:
    if not receivers:
        raise InvalidRequest(reason="Invalid members: name the ids of 1 to 10 projects.")
    if len(receivers) > MEMBERS_MAX:
        raise _too_many()
    for receiver in receivers:
        if not is_hex_id(receiver):
            raise _no_such_project("A member is named by the id of its project, 32 hexadecimal digits.")
        if receiver == project_id:
            raise _no_such_project("The backup belongs to this project; share it with another one.")
    if len(set(receivers)) < len(receivers):
        raise Conflict(conflict_code="6714", reason="A project stands twice among the members. Name each once.")


async def _require_shareable(conn: AsyncConnection[Any], vault: VaultRef, backup_id: str) -> None:
    """As the backup is under its vault's lock."""
    found = await conn.execute(
        """
        SELECT b.status, b.resource_type, b.parent_id, EXISTS (
            SELECT 1 FROM vault_resources r WHERE r.project_id = b.project_id AND r.vault_id = b.vault_id
            AND r.resource_id = b.resource_id AND r.protect_status = 'removing')
        FROM backups b WHERE b.project_id = %s AND b.vault_id = %s AND b.id = %s
        """,
        [vault.project_id, vault.id, backup_id],
    )
    row = await found.fetchone()
    if row is None:
        raise BackupNotFound(id=backup_id)
    status, kind, parent, removing = row
    if vault.status != "available":
        raise Conflict(
            conflict_code="6712",
            reason=f"Vault {vault.name} is {vault.status}; backups of an available vault can be shared.",
        )
    if kind not in SHAREABLE or parent is not None:
        raise Conflict(conflict_code="6700", reason="Only whole backups of servers and of disks can be shared.")
    if status != "available" or removing:
        raise Conflict(
            conflict_code="6702",
            reason=f"The backup is {'being removed' if removing else status}; only an available one can be shared.",
        )


async def _require_new(conn: AsyncConnection[Any], project_id: str, backup_id: str, receivers: Sequence[str]) -> None:
    """The vault's lock is held, so the count stays."""
    found = await conn.execute(
        "SELECT dest_project_id, status FROM backup_members WHERE project_id = %s AND backup_id = %s",
        [project_id, backup_id],
    )
    members = dict(await found.fetchall())
    for receiver in receivers:
        if receiver in members:
            raise Conflict(
                conflict_code="6703",
                reason=f"The backup is shared with project {receiver} already ({members[receiver]}). "
                "To offer it again, revoke that share first.",
            )
    if len(members) + len(receivers) > MEMBERS_MAX:
        raise _too_many()
    known = await conn.execute("SELECT id FROM projects WHERE enabled AND id = ANY(%s)", [list(receivers)])
    there = {row[0] for row in await known.fetchall()}
    for receiver in receivers:
        if receiver not in there:
            raise _no_such_project(f"There is no project {receiver} to share with.")


def _too_many() -> Conflict:
    return Conflict(
        conflict_code="6701",
        reason=f"A backup can be shared with at most {MEMBERS_MAX} projects. Revoke other shares first.",
    )


def _no_such_project(reason: str) -> Conflict:
    return Conflict(conflict_code="6704", reason=reason)


# --- the receiver ---------------------------------------------------------------------------------------------------


async def decide(
    database: Database,
    project_id: str,
    backup_id: str,
    receiver: str,
    *,
    status: str,
    vault_id: str | None,
    clock: Clock,
) -> Member:
    """Accept a shared backup into a vault (an accepted one moves there), reject it, or leave it open again.

    Raises InvalidRequest, BackupNotFound, MemberNotFound, VaultNotFound, Conflict: 6706 (status), 6708 (not the
    receiver, or the backup is no longer whole), 6712 (vault status), 6713 (vault type), 6114 (vault full).
    """
    _require_project_id(receiver)
    if status not in STATUSES:
        raise Conflict(conflict_code="6706", reason=f"Invalid status: use one of {', '.join(STATUSES)}.")
    target = require_id(vault_id or "", "vault_id") if status == "accepted" else None
    async with database.transaction() as conn:
        owner = await _require_receiver(conn, project_id, backup_id, receiver)
        if target is not None:
            vault = await lock_vault(conn, project_id, target)
            await _require_fit(conn, project_id, backup_id, vault)
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "UPDATE backup_members SET status = %s, vault_id = %s, updated_at = %s "  # noqa: S608 -- ours
                f"WHERE project_id = %s AND dest_project_id = %s AND backup_id = %s RETURNING {_COLUMNS}",
                [status, target, clock.now(), owner, project_id, backup_id],
            )
            row = await cursor.fetchone()
    if row is None:  # revoked at this moment
        raise BackupNotFound(id=backup_id)
    return _member(row)


async def _require_receiver(conn: AsyncConnection[Any], project_id: str, backup_id: str, receiver: str) -> str:
    """The backup's owner, when it shares the backup with the project that asks and that is named."""
    owner = await _owner_of(conn, project_id, backup_id)
    if owner is None:
        raise BackupNotFound(id=backup_id)
    if owner == project_id:
        if await _find(conn, owner, backup_id, receiver) is None:
            raise MemberNotFound(id=receiver)
        raise Conflict(
            conflict_code="6708", reason="The project it is shared with accepts or rejects; you may revoke the share."
        )
    if receiver != project_id:
        raise MemberNotFound(id=receiver)
    return owner


async def _require_fit(conn: AsyncConnection[Any], project_id: str, backup_id: str, vault: VaultRef) -> None:
    """Whether the locked vault of the receiver can take the backup."""
    if vault.status != "available":
        raise Conflict(
            conflict_code="6712",
            reason=f"Vault {vault.name} is {vault.status}; a backup is accepted into an available vault.",
        )
    found = await conn.execute(
        """
        SELECT b.status, b.provider_id FROM backup_members m
        JOIN backups b ON b.project_id = m.project_id AND b.id = m.backup_id
        WHERE m.dest_project_id = %s AND m.backup_id = %s
        """,
        [project_id, backup_id],
    )
    row = await found.fetchone()
    if row is None:
        raise BackupNotFound(id=backup_id)
    status, provider_id = row
    if provider_id != vault.provider_id or vault.protect_type == "replication":
        raise Conflict(
            conflict_code="6713",
            reason=f"Vault {vault.name} takes other things. Accept the backup into a backup vault of its kind.",
        )
    if status not in READABLE:
        raise Conflict(conflict_code="6708", reason=f"The backup is {status}; only an available one can be accepted.")
    if vault.full:
        raise Conflict(conflict_code="6114", reason=vault_full_sentence(vault))


# --- both -----------------------------------------------------------------------------------------------------------


async def list_members(
    database: Database,
    project_id: str,
    backup_id: str,
    asked: MemberFilters,
    page: Page,
    order: Sequence[Order] = NEWEST_FIRST,
) -> tuple[list[Member], int]:
    """One page, and how many match; a receiver sees itself only. Raises InvalidRequest, BackupNotFound."""
    async with database.read() as conn:
        owner = await _owner_of(conn, project_id, backup_id)
        if owner is None:
            raise BackupNotFound(id=backup_id)
        filters = Filters(project_id=owner)
        filters.add("backup_id = %s", backup_id)
        if owner != project_id:
            filters.add("dest_project_id = %s", project_id)
        exact: tuple[tuple[LiteralString, str | None], ...] = (
            ("dest_project_id = %s", asked.dest_project_id),
            ("status = %s", asked.status),
            ("vault_id = %s", asked.vault_id),
        )
        for text, value in exact:
            if value is not None:
                filters.add(text, value)
        if asked.image_id is not None:
            filters.add("false")
        rows, count = await fetch_page(
            conn, columns=_COLUMNS, table="backup_members", filters=filters, page=page, order=order
        )
    return [_member(row) for row in rows], count


async def show_member(database: Database, project_id: str, backup_id: str, receiver: str) -> Member:
    """Raises InvalidRequest, BackupNotFound, MemberNotFound."""
    _require_project_id(receiver)
    async with database.read() as conn:
        owner = await _owner_of(conn, project_id, backup_id)
        if owner is None:
            raise BackupNotFound(id=backup_id)
        found = await _find(conn, owner, backup_id, receiver) if project_id in (owner, receiver) else None
    if found is None:
        raise MemberNotFound(id=receiver)
    return found


async def _owner_of(conn: AsyncConnection[Any], project_id: str, backup_id: str) -> str | None:
    """The backup's owner, when that is the project or it shares the backup with it; else None."""
    found = await conn.execute(
        """
        SELECT project_id FROM backups WHERE project_id = %(project)s AND id = %(backup)s
        UNION ALL
        SELECT project_id FROM backup_members WHERE dest_project_id = %(project)s AND backup_id = %(backup)s
        """,
        {"project": project_id, "backup": backup_id},
    )
    row = await found.fetchone()
    return None if row is None else row[0]


async def _find(conn: AsyncConnection[Any], owner: str, backup_id: str, receiver: str) -> Member | None:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM backup_members "  # noqa: S608 -- the columns are ours
            "WHERE project_id = %s AND backup_id = %s AND dest_project_id = %s",
            [owner, backup_id, receiver],
        )
        row = await cursor.fetchone()
    return None if row is None else _member(row)


def _member(row: dict[str, Any]) -> Member:
    return Member(**{name: row[name] for name in Member.__dataclass_fields__})


def _require_project_id(receiver: str) -> None:
    if not is_hex_id(receiver):
        raise InvalidRequest(reason="Invalid member_id provided. A member is named by the id of its project.")
