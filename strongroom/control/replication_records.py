"""Records of replicas: one on each side under the same id. The source's says what was asked for and how far it is, the
destination's where its replica came from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

from strongroom.control.db import Database

OPEN = ("waiting_replicate", "replicating")


@dataclass(frozen=True, kw_only=True)
class ReplicationRecord:
    """One row. project_id, vault_id, backup_id and task_id are of this region.

    side                    source, or destination
    source_created_at       when the restore point was asked for over there
    destination_backup_id   and those like it: None until the destination has answered
    wrapped                 of a destination that has not ended: the domain's keys, wrapped for the two regions
    """

    id: str
    side: str
    project_id: str
    vault_id: str
    backup_id: str
    task_id: str
    status: str
    progress: int
    fail_code: str
    fail_reason: str
    auto_trigger: bool
    source_region: str
    source_project_id: str
    source_vault_id: str
    source_checkpoint_id: str
    source_backup_id: str
    source_backup_name: str
    source_created_at: datetime
    destination_region: str
    destination_project_id: str
    destination_vault_id: str
    destination_checkpoint_id: str | None
    destination_backup_id: str | None
    destination_backup_name: str | None
    details: dict[str, Any]
    wrapped: bytes | None = field(repr=False)
    created_at: datetime
    ended_at: datetime | None

    @property
    def open(self) -> bool:
        return self.status in OPEN


COLUMNS: LiteralString = """id, side, project_id, vault_id, backup_id, task_id, status, progress, fail_code,
    fail_reason, auto_trigger, source_region, source_project_id, source_vault_id, source_checkpoint_id,
    source_backup_id, source_backup_name, source_created_at, destination_region, destination_project_id,
    destination_vault_id, destination_checkpoint_id, destination_backup_id, destination_backup_name, details, wrapped,
    created_at, ended_at"""


async def insert_records(conn: AsyncConnection[Any], records: Sequence[dict[str, Any]]) -> None:
    """Rows of one statement; each a map of the table's columns, all with the same ones.

    Raises psycopg's UniqueViolation when a backup has a replica in that region already, or one on its way.
    """
    columns = [column for column in records[0] if column != "project_id"]
    marks = ", ".join([f"(%s, {', '.join(['%s'] * len(columns))})"] * len(records))
    await conn.execute(
        f"INSERT INTO replication_records (project_id, {', '.join(columns)}) VALUES {marks}".encode(),  # noqa: S608 -- ours
        [record[column] for record in records for column in ("project_id", *columns)],
    )


async def record_of_task(
    conn: AsyncConnection[Any], project_id: str, task_id: str, side: str
) -> ReplicationRecord | None:
    """The record that a task works on; None: its backup is gone, and the record with it."""
    async with conn.cursor(row_factory=class_row(ReplicationRecord)) as cursor:
        await cursor.execute(
            f"SELECT {COLUMNS} FROM replication_records "  # noqa: S608 -- the columns are ours
            "WHERE project_id = %s AND task_id = %s AND side = %s FOR UPDATE",
            [project_id, task_id, side],
        )
        return await cursor.fetchone()


async def find_of_region(
    database: Database,
    *,
    side: str,
    source_region: str,
    destination_region: str,
    record_id: str,
    project_ids: Sequence[str],
) -> ReplicationRecord | None:
    """The record that two regions share. project_ids: those of here that the other region is told about at all."""
    async with database.read(class_row(ReplicationRecord)) as conn:
        found = await conn.execute(
            f"SELECT {COLUMNS} FROM replication_records "  # noqa: S608 -- the columns are ours
            "WHERE side = %s AND source_region = %s AND destination_region = %s AND id = %s "
            "AND project_id = ANY(%s)",
            [side, source_region, destination_region, record_id, list(project_ids)],
        )
        return await found.fetchone()


async def records_of(
    database: Database, project_id: str, backup_ids: Sequence[str]
) -> dict[str, list[ReplicationRecord]]:
    """By backup, oldest first; a backup without any is not in it."""
    found: dict[str, list[ReplicationRecord]] = {}
    if not backup_ids:
        return found
    async with database.read(class_row(ReplicationRecord)) as conn:
        rows = await conn.execute(
            f"SELECT {COLUMNS} FROM replication_records "  # noqa: S608 -- the columns are ours
            "WHERE project_id = %s AND backup_id = ANY(%s) ORDER BY created_at, id",
            [project_id, list(backup_ids)],
        )
        for record in await rows.fetchall():
            found.setdefault(record.backup_id, []).append(record)
    return found
