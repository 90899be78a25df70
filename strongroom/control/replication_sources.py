"""What another region may read while it makes a replica."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from strongroom.control.db import Database


@dataclass(frozen=True, kw_only=True)
class OfferedSource:
    """A root, with those of its disks when it is a machine's. domain_id: where they lie, in hex; None: the vault's own
    domain."""

    project_id: str
    vault_id: str
    roots: list[str]
    domain_id: str | None


async def find_offered(
    database: Database, *, own_region: str, region: str, record_id: str, project_ids: Sequence[str]
) -> OfferedSource | None:
    """What an open record offers to `region`. project_ids: those of here that the region is told about at all."""
    async with database.read(class_row(OfferedSource)) as conn:
        found = await conn.execute(
            "SELECT r.project_id, r.vault_id, ARRAY(SELECT f.root FROM backups f WHERE f.project_id = b.project_id "
            "AND (f.id = b.id OR f.parent_id = b.id) AND f.root IS NOT NULL) AS roots, b.domain_id "
            "FROM replication_records r JOIN backups b ON b.project_id = r.project_id AND b.id = r.backup_id "
            "WHERE r.side = 'source' AND r.source_region = %s AND r.destination_region = %s AND r.id = %s "
            "AND r.ended_at IS NULL AND r.project_id = ANY(%s) AND b.root IS NOT NULL",
            [own_region, region, record_id, list(project_ids)],
        )
        return await found.fetchone()
