"""The database's copy of a vault's wrapped keys; the store's own copy decides (RULINGS 12)."""

from strongroom.control.db import Database


async def find_vault_keys(database: Database, project_id: str, vault_id: str) -> bytes | None:
    """The wrapped keys, or None before the first backup of the vault."""
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT wrapped FROM vault_keys WHERE project_id = %s AND vault_id = %s", [project_id, vault_id]
        )
        row = await found.fetchone()
    return None if row is None else bytes(row[0])


async def save_vault_keys(database: Database, project_id: str, vault_id: str, wrapped: bytes) -> None:
    """Keep what the store holds; the last call wins. Nothing is kept for a vault that is not of this project."""
    async with database.transaction() as conn:
        await conn.execute(
            "INSERT INTO vault_keys (project_id, vault_id, wrapped) "
            "SELECT project_id, id, %s FROM vaults WHERE project_id = %s AND id = %s "
            "ON CONFLICT (vault_id) DO UPDATE SET wrapped = excluded.wrapped",
            [wrapped, project_id, vault_id],
        )
