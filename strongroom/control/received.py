"""Backups that others share with a project, as the project sees them and as its restores read them.

Nothing is copied: their bytes stay in the owner's vault, and every read looks first whether the share still stands. So
the texts here bind two projects: the receiver's, which asks, and the owner's, joined by the share's own row.
"""

from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.errors import BackupNotFound, Conflict
from strongroom.control.tasks import Task

READABLE = frozenset({"available", "restoring", "waiting_restore"})

# As columns of `backups`, with the receiver as project_id. Until it is accepted a backup shows the owner's vault. Its
# status is the receiver's own business: what the owner restores meanwhile does not show, a restore of its own does.
RECEIVED: LiteralString = """(SELECT b.id, m.dest_project_id AS project_id, b.project_id AS owner_project_id,
    m.status AS member_status, coalesce(m.vault_id, b.vault_id) AS vault_id, b.checkpoint_id, b.resource_id,
    b.resource_type, b.resource_name, b.resource_size_bytes, b.name, b.description, b.provider_id, b.image_type,
    b.parent_id, coalesce(
        (SELECT CASE o.status WHEN 'running' THEN 'restoring' ELSE 'waiting_restore' END FROM operation_logs o
         WHERE o.project_id = m.dest_project_id AND o.member_id = m.id AND o.status IN ('waiting', 'running') LIMIT 1),
        CASE WHEN b.status IN ('restoring', 'waiting_restore') THEN 'available' ELSE b.status END) AS status,
    b.incremental, b.auto_trigger, b.enterprise_project_id, b.stored_bytes, b.report, b.created_at, b.protected_at,
    b.updated_at, b.expired_at, b.damage, b.root
    FROM backup_members m JOIN backups b ON b.project_id = m.project_id
        AND (b.id = m.backup_id OR b.parent_id = m.backup_id)) AS backups"""


@dataclass(frozen=True, kw_only=True)
class Loan:
    """An accepted share, and the vault its bytes are read from."""

    member_id: str
    lender_project_id: str
    lender_vault_id: str


async def find_received(conn: AsyncConnection[Any], project_id: str, backup_id: str) -> dict[str, Any] | None:
    """A backup that is shared with the project: what a restore asks of an own one, and the Loan's members.

    vault_id: the receiver's; None until it is accepted. root_status: the backup's own, whatever the receiver does.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT m.id AS member_id, m.project_id AS lender_project_id, b.vault_id AS lender_vault_id,
                   m.status AS member_status, m.vault_id, b.checkpoint_id, b.provider_id, b.name, b.resource_id,
                   b.resource_type, b.resource_name, b.parent_id, b.machine_id, b.root, b.domain_id,
                   b.status AS root_status, false AS removing,
                   EXISTS (SELECT 1 FROM operation_logs o WHERE o.project_id = m.dest_project_id
                           AND o.member_id = m.id AND o.status IN ('waiting', 'running')) AS restoring
            FROM backups b JOIN backup_members m ON m.project_id = b.project_id
                AND m.backup_id = coalesce(b.parent_id, b.id)  -- the disks of a machine are shared with it
            WHERE m.dest_project_id = %s AND b.id = %s
            """,
            [project_id, backup_id],
        )
        return await cursor.fetchone()


async def require_own(conn: AsyncConnection[Any], project_id: str, backup_id: str, *, code: str, what: str) -> str:
    """The vault of an own backup. Raises Conflict with `code` where another project shares it, and BackupNotFound."""
    found = await conn.execute(
        "SELECT vault_id FROM backups WHERE project_id = %s AND id = %s", [project_id, backup_id]
    )
    row = await found.fetchone()
    if row is not None:
        return str(row[0])
    if await find_received(conn, project_id, backup_id) is None:
        raise BackupNotFound(id=backup_id)
    raise Conflict(conflict_code=code, reason=f"The backup is shared with your project; only its owner may {what}.")


def require_accepted(member_status: str) -> None:
    """Contents of a shared backup are for who accepted it. Raises Conflict 2005."""
    if member_status != "accepted":
        raise Conflict(
            conflict_code="2005",
            reason="The backup is shared with your project, which has not accepted it. "
            "Accept it into one of your vaults first.",
        )


async def begin_loan(conn: AsyncConnection[Any], task: Task) -> dict[str, Any] | None:
    """What a restore reads, when its share stands and the backup is whole: the row a RestoreJob is made of, and the
    owner's vault. None: the share has ended."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT b.id AS backup_id, b.vault_id, b.root, b.domain_id, b.report ->> 'kind' AS kind,
                   b.resource_size_bytes, b.resource_id
            FROM backup_members m JOIN backups b ON b.project_id = m.project_id
                AND m.backup_id = coalesce(b.parent_id, b.id)
            WHERE m.id = %s AND m.project_id = %s AND m.dest_project_id = %s AND m.status = 'accepted'
              AND b.id = %s AND b.root IS NOT NULL AND b.status = ANY(%s)
            """,
            [task.member_id, task.lender_project_id, task.project_id, task.backup_id, sorted(READABLE)],
        )
        return await cursor.fetchone()


async def loan_stands(conn: AsyncConnection[Any], task: Task) -> bool:
    """Whether a restore that reads through a share may still do so."""
    found = await conn.execute(
        "SELECT 1 FROM backup_members WHERE id = %s AND project_id = %s AND dest_project_id = %s "
        "AND status = 'accepted'",
        [task.member_id, task.lender_project_id, task.project_id],
    )
    return await found.fetchone() is not None
