"""The database's copy of a vault's wrapped keys; the store's own copy decides (RULINGS 12)."""

import asyncio
from collections.abc import Callable

from strongroom.control.db import Database
from strongroom.control.subjects import lock_vault

_SELECT = "SELECT wrapped FROM vault_keys WHERE project_id = %s AND vault_id = %s"


async def find_vault_keys(database: Database, project_id: str, vault_id: str) -> bytes | None:
    """The wrapped keys, or None before the first backup of the vault."""
    async with database.read() as conn:
        found = await conn.execute(_SELECT, [project_id, vault_id])
        row = await found.fetchone()
    return None if row is None else bytes(row[0])


async def ensure_vault_keys(database: Database, project_id: str, vault_id: str, make: Callable[[], bytes]) -> bytes:
    """The wrapped keys; at the first use of the vault `make` is called for them, in a thread, under the vault's lock,
    so two first backups make one domain. Raises VaultNotFound."""
    kept = await find_vault_keys(database, project_id, vault_id)
    if kept is not None:
        return kept
    async with database.transaction() as conn:
        await lock_vault(conn, project_id, vault_id)
        found = await conn.execute(_SELECT, [project_id, vault_id])
        row = await found.fetchone()
        if row is not None:
            return bytes(row[0])
        wrapped = await asyncio.to_thread(make)
        await conn.execute(
            "INSERT INTO vault_keys (project_id, vault_id, wrapped) VALUES (%s, %s, %s)",
            [project_id, vault_id, wrapped],
        )
    return wrapped


async def save_vault_keys(database: Database, project_id: str, vault_id: str, wrapped: bytes) -> None:
    """Keep what the store holds now, after a rotation or a rebuild; the last call wins. Raises VaultNotFound."""
    async with database.transaction() as conn:
        await lock_vault(conn, project_id, vault_id)
        await conn.execute(
            "INSERT INTO vault_keys (project_id, vault_id, wrapped) VALUES (%s, %s, %s) "
            "ON CONFLICT (vault_id) DO UPDATE SET wrapped = excluded.wrapped",
            [project_id, vault_id, wrapped],
        )
