"""The database's copy of a vault's wrapped keys. The store's own keys/<n> is the truth; this row says that they exist,
so that a store that lost them, or is not mounted, is never taken for a vault without backups."""

from strongroom.control.db import Database


async def find_vault_keys(database: Database, project_id: str, vault_id: str) -> bytes | None:
    """The copy, or None for a vault that never had a backup."""
    async with database.read() as conn:
        cursor = await conn.execute(
            "SELECT wrapped FROM vault_keys WHERE project_id = %s AND vault_id = %s", [project_id, vault_id]
        )
        row = await cursor.fetchone()
    return bytes(row[0]) if row is not None else None


async def save_vault_keys(database: Database, project_id: str, vault_id: str, wrapped: bytes) -> None:
    """Keep the copy; the first one stays. A vault that is gone by now gets none."""
    async with database.transaction() as conn:
        await conn.execute(
            "INSERT INTO vault_keys (project_id, vault_id, wrapped) SELECT project_id, id, %s FROM vaults "
            "WHERE project_id = %s AND id = %s ON CONFLICT (vault_id) DO NOTHING",
            [wrapped, project_id, vault_id],
        )
