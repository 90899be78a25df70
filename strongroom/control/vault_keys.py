"""The database's copies of a vault's wrapped keys: of its own domain, and of those it holds of other vaults.

The store's own keys/<n> is the truth; a row says that they exist, so that a store that lost them, or is not mounted, is
never taken for a vault without backups. A vault that is being deleted keeps its rows to the end, but without the wraps.
"""

from typing import Any

from psycopg import AsyncConnection

from strongroom.control.db import Database


async def find_vault_keys(
    database: Database, project_id: str, vault_id: str, domain_id: str | None = None
) -> bytes | None:
    """The copy, empty for one that was shredded, or None for a domain the vault never had. None: its own domain."""
    async with database.read() as conn:
        cursor = await conn.execute(
            "SELECT wrapped FROM vault_keys WHERE project_id = %s AND vault_id = %s "
            "AND domain_id IS NOT DISTINCT FROM %s",
            [project_id, vault_id, domain_id],
        )
        row = await cursor.fetchone()
    return bytes(row[0]) if row is not None else None


async def save_vault_keys(
    database: Database, project_id: str, vault_id: str, wrapped: bytes, domain_id: str | None = None
) -> None:
    """Keep the copy; the first one stays. A vault that is gone by now gets none."""
    async with database.transaction() as conn:
        await conn.execute(
            "INSERT INTO vault_keys (project_id, vault_id, domain_id, wrapped) SELECT project_id, id, %s, %s "
            "FROM vaults WHERE project_id = %s AND id = %s ON CONFLICT (vault_id, coalesce(domain_id, '')) DO NOTHING",
            [domain_id, wrapped, project_id, vault_id],
        )


async def shred_vault_keys(conn: AsyncConnection[Any], project_id: str, vault_id: str) -> None:
    """Drop the copies, of every domain. Idempotent. The rows stay, and keep anybody from making the vault new keys."""
    await conn.execute(
        "UPDATE vault_keys SET wrapped = '' WHERE project_id = %s AND vault_id = %s", [project_id, vault_id]
    )
