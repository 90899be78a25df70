"""Which root to read for a restore point of a project."""

from dataclasses import dataclass

from psycopg.rows import dict_row

from strongroom.base.errors import BackupNotFound, Conflict, Unsupported
from strongroom.control.db import Database
from strongroom.control.received import READABLE, find_received, require_accepted
from strongroom.control.subjects import VaultRef, load_vault
from strongroom.control.vault_kinds import SERVER


@dataclass(frozen=True, kw_only=True)
class Readable:
    """A backup whose content may be read.

    vault      where its bytes are; of another project when that shares the backup
    domain_id  where its root is, in hex; None: the vault's own domain
    shared     it may cease to be readable at any moment
    """

    vault: VaultRef
    root: str
    domain_id: str | None
    shared: bool


async def find_readable(database: Database, project_id: str, backup_id: str) -> Readable:
    """A backup of the project, or one it accepted from another. Raises BackupNotFound, Conflict 2005 by its state, and
    Unsupported for the backup of a whole server."""
    async with database.read() as conn:
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT vault_id, root, domain_id, status, resource_type FROM backups "
                "WHERE project_id = %s AND id = %s",
                [project_id, backup_id],
            )
            row = await cursor.fetchone()
        owner = project_id
        if row is None:
            received = await find_received(conn, project_id, backup_id)
            if received is None:
                raise BackupNotFound(id=backup_id)
            require_accepted(received["member_status"])
            owner = received["lender_project_id"]
            row = received | {"vault_id": received["lender_vault_id"], "status": received["root_status"]}
        if row["status"] not in READABLE or row["root"] is None:
            raise Conflict(
                conflict_code="2005",
                reason=f"The backup is {row['status']}; only an available one can be read. "
                "Wait until it is available, or choose another restore point.",
            )
        if row["resource_type"] == SERVER.type_name:
            # Its own root has the definition, which names places of the host and whatever stands in a command line.
            raise Unsupported(reason="The backup of a server is read disk by disk: name one of its children.")
        vault = await load_vault(conn, owner, row["vault_id"])
        return Readable(vault=vault, root=row["root"], domain_id=row["domain_id"], shared=owner != project_id)
