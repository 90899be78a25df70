"""What a project's vaults hold in all, and what each resource takes up in them."""

from dataclasses import dataclass

from psycopg.rows import class_row, dict_row

from strongroom.control.db import Database
from strongroom.control.listing import Page, require_offset
from strongroom.control.vault_resources import COUNTED_STATUSES


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Of all vaults of a project: size_gb as ordered, used_bytes live sealed bytes (RULINGS 19)."""

    size_gb: int
    used_bytes: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the restore points of one resource take up, in all vaults together. Bytes are sealed bytes.

    multi_az_bytes  those in vaults that were made with is_multi_az
    """

    resource_id: str
    resource_name: str
    resource_type: str
    backup_count: int
    backup_bytes: int
    multi_az_bytes: int


async def show_totals(database: Database, project_id: str) -> Totals:
    """Sums over every vault that is there, whatever its status."""
    async with database.read(class_row(Totals)) as conn:
        found = await conn.execute(
            "SELECT coalesce(sum(size_gb), 0)::bigint AS size_gb, coalesce(sum(used_bytes), 0)::bigint AS used_bytes "
            "FROM vaults WHERE project_id = %s",
            [project_id],
        )
        row = await found.fetchone()
        assert row is not None
        return row


async def list_usage(
    database: Database, project_id: str, resource_id: str | None, resource_type: str | None, page: Page
) -> tuple[list[Usage], int]:
    """One page of the resources that have restore points, by id, and how many there are. Raises InvalidRequest.

    The name is that of the newest restore point.
    """
    require_offset(page.offset)
    wanted = {
        "project": project_id,
        "resource": resource_id,
        "type": resource_type,
        "counted": COUNTED_STATUSES,
        "limit": page.limit,
        "offset": page.offset,
    }
    async with database.transaction() as conn, conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT count(DISTINCT resource_id) AS n FROM backups WHERE project_id = %(project)s "
            "AND status = ANY(%(counted)s) AND parent_id IS NULL "
            "AND (%(resource)s::text IS NULL OR resource_id = %(resource)s) "
            "AND (%(type)s::text IS NULL OR resource_type = %(type)s)",
            wanted,
        )
        counted = await cursor.fetchone()
        assert counted is not None
        await cursor.execute(
            """
            SELECT b.resource_id, (array_agg(b.resource_name ORDER BY b.created_at DESC, b.id))[1] AS resource_name,
                   max(b.resource_type) AS resource_type, count(*) AS backup_count,
                   sum(b.stored_bytes)::bigint AS backup_bytes,
                   coalesce(sum(b.stored_bytes) FILTER (WHERE v.is_multi_az), 0)::bigint AS multi_az_bytes
            FROM backups b JOIN vaults v ON v.project_id = b.project_id AND v.id = b.vault_id
            WHERE b.project_id = %(project)s AND b.status = ANY(%(counted)s) AND b.parent_id IS NULL
              AND (%(resource)s::text IS NULL OR b.resource_id = %(resource)s)
              AND (%(type)s::text IS NULL OR b.resource_type = %(type)s)
            GROUP BY b.resource_id ORDER BY b.resource_id LIMIT %(limit)s OFFSET %(offset)s
            """,
            wanted,
        )
        return [Usage(**row) for row in await cursor.fetchall()], counted["n"]
