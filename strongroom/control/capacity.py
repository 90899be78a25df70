"""How full a vault is, and what follows when that changes: it grows, or its owner hears of it (RULINGS 19).

auto_expand: the transaction that fills a vault makes it a quarter larger. So one that is full all the same was filled
before it was switched on; that one stays as it is until somebody enlarges it (contract/behaviour.md section 1).
"""

from typing import Any

import structlog
from psycopg import AsyncConnection

from strongroom.base.units import GIB
from strongroom.control.subjects import VaultRef
from strongroom.control.vault_rules import SIZE_GB_MAX

log = structlog.get_logger("capacity")


def expanded_gb(size_gb: int, used_bytes: int) -> int:
    """The size of a vault that grows by a quarter, rounded up, until it is not full, or cannot grow any more."""
    while size_gb * GIB <= used_bytes and size_gb < SIZE_GB_MAX:
        size_gb = min(SIZE_GB_MAX, (size_gb * 5 + 3) // 4)
    return size_gb


async def set_used(conn: AsyncConnection[Any], vault: VaultRef, used_bytes: int) -> None:
    """Write what a vault holds now, and its new size if that fills it. The vault's lock MUST be held."""
    found = await conn.execute(
        "SELECT size_gb, used_bytes, auto_expand, threshold, smn_notify FROM vaults WHERE project_id = %s AND id = %s",
        [vault.project_id, vault.id],
    )
    row = await found.fetchone()
    assert row is not None, "the caller holds the vault's lock"
    size_gb, before, auto_expand, threshold, notify = row
    was_full = size_gb * GIB <= before
    new_gb = expanded_gb(size_gb, used_bytes) if auto_expand and not was_full else size_gb
    await conn.execute(
        "UPDATE vaults SET used_bytes = %s, size_gb = %s WHERE project_id = %s AND id = %s",
        [used_bytes, new_gb, vault.project_id, vault.id],
    )
    if new_gb != size_gb:
        log.info("vault expanded", vault=vault.id, project=vault.project_id, size_gb=new_gb, before_gb=size_gb)
    mark = size_gb * GIB * threshold // 100
    if notify and before < mark <= used_bytes:
        log.warning(
            "vault filled above its threshold",
            vault=vault.id,
            project=vault.project_id,
            threshold_percent=threshold,
            used_bytes=used_bytes,
        )


async def vaults_filled(conn: AsyncConnection[Any], project_id: str, percent: int) -> list[str]:
    """Ids of the vaults that use at least so much of their size."""
    found = await conn.execute(
        "SELECT id FROM vaults WHERE project_id = %s AND used_bytes::numeric * 100 >= size_gb::numeric * %s * %s",
        [project_id, GIB, percent],
    )
    return [row[0] for row in await found.fetchall()]
