"""Which root to read for a restore point of a project."""

from psycopg.rows import dict_row

from strongroom.base.errors import BackupNotFound, Conflict
from strongroom.control.db import Database
from strongroom.control.subjects import VaultRef, load_vault

READABLE = frozenset({"available", "restoring", "waiting_restore"})


async def find_readable(database: Database, project_id: str, backup_id: str) -> tuple[VaultRef, str]:
    """Vault and root of a backup whose content may be read. Raises BackupNotFound, or Conflict 2005 by its state."""
    async with database.read() as conn:
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT vault_id, root, status FROM backups WHERE project_id = %s AND id = %s", [project_id, backup_id]
            )
            row = await cursor.fetchone()
        if row is None:
            raise BackupNotFound(id=backup_id)
        if row["status"] not in READABLE or row["root"] is None:
            raise Conflict(
                conflict_code="2005",
                reason=f"The backup is {row['status']}; only an available one can be read. "
                "Wait until it is available, or choose another restore point.",
            )
        return await load_vault(conn, project_id, row["vault_id"]), row["root"]
