"""The lock of a vault: read it, set it, and see that the store hears of it.

What the lock promises is in promises.py. A store that outlives its database has to know it too: a prune writes what is
missing there (operations/locking.py).
"""

from datetime import timedelta
from typing import Any

from psycopg import AsyncConnection

from strongroom.base.clock import Clock
from strongroom.base.errors import InvalidRequest
from strongroom.base.ids import new_id
from strongroom.control import deletions
from strongroom.control.db import Database
from strongroom.control.promises import promise
from strongroom.control.subjects import VaultRef, lock_vault, lock_vault_if_free
from strongroom.control.vault_resources import require_available

# What the store keeps by itself for a vault is asked of it anew at least this often: a month at a time (promises.py).
TOLD_AGAIN_AFTER = timedelta(days=7)
VAULTS_AT_ONCE_MAX = 50  # of one round; the next round takes the next ones


async def show_lock(database: Database, project_id: str, vault_id: str) -> tuple[bool, bool]:
    """(locked, keep_manual) of a vault. Raises VaultNotFound."""
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        return vault.locked, vault.keep_manual


async def set_lock(
    database: Database, project_id: str, vault_id: str, *, locked: bool, keep_manual: bool, clock: Clock
) -> None:
    """Lock a vault, and say whether it keeps manual backups too. Neither is taken back while it is locked.

    Raises VaultNotFound, InvalidRequest, Conflict 6112 (vault status).
    """
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault, "lock", "error")
        if vault.locked and not (locked and keep_manual >= vault.keep_manual):
            raise InvalidRequest(
                reason="vault not support to modify locked attribute from true to false. What a locked vault keeps "
                "can only become more."
            )
        await conn.execute(
            "UPDATE vaults SET locked = %s, keep_manual = %s, updated_at = %s WHERE project_id = %s AND id = %s",
            [locked, keep_manual, clock.now(), project_id, vault.id],
        )
        await promise(conn, vault, clock.now())
        await tell_store(conn, vault, clock)


async def due_again(database: Database, clock: Clock) -> list[tuple[str, str]]:
    """(project, vault) of locked vaults that hold something and that no prune has visited for TOLD_AGAIN_AFTER."""
    async with database.read() as conn:
        found = await conn.execute(
            "SELECT v.project_id, v.id FROM vaults v WHERE v.locked AND v.status <> 'deleting' AND EXISTS (SELECT 1 "
            "FROM backups b WHERE b.project_id = v.project_id AND b.vault_id = v.id AND b.root IS NOT NULL) "
            "AND NOT EXISTS (SELECT 1 FROM operation_logs o WHERE o.project_id = v.project_id AND o.vault_id = v.id "
            "AND o.operation_type = 'prune' AND o.created_at > %s) LIMIT %s",
            [clock.now() - TOLD_AGAIN_AFTER, VAULTS_AT_ONCE_MAX],
        )
        return await found.fetchall()


async def tell_again(database: Database, project_id: str, vault_id: str, clock: Clock) -> bool:
    """Queue a prune of such a vault, unless its lock is held: then the next round does."""
    async with database.transaction() as conn:
        vault = await lock_vault_if_free(conn, project_id, vault_id)
        if vault is None:
            return False
        await tell_store(conn, vault, clock)
        return True


async def tell_store(conn: AsyncConnection[Any], vault: VaultRef, clock: Clock) -> None:
    """After a vault was locked: queue a prune, unless it holds nothing. The vault's lock MUST be held."""
    found = await conn.execute(
        "SELECT 1 FROM backups WHERE project_id = %s AND vault_id = %s AND root IS NOT NULL LIMIT 1",
        [vault.project_id, vault.id],
    )
    if await found.fetchone() is not None:
        await deletions.queue_prune(conn, vault, request_id=new_id(), clock=clock)
