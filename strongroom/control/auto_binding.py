"""auto_bind: at its next run a vault takes in what nobody protects yet (contract/behaviour.md section 1).

Only what a run finds is bound, never at the moment of registration, and the vault that runs first gets it. A vault
whose bind_rules name tags takes what carries one of them; nothing that is registered here carries tags, so such a vault
takes nothing in.
"""

from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from strongroom.base.errors import StrongroomError
from strongroom.base.units import GIB
from strongroom.control.resource_binding import NewResource, bind
from strongroom.control.subjects import VaultRef
from strongroom.control.vault_kinds import VAULT_KINDS
from strongroom.control.vault_resources import RESOURCES_PER_VAULT_MAX

ROOM_BYTES_MIN = 40 * GIB  # contract: a vault with less takes in nothing


async def bind_matching(conn: AsyncConnection[Any], vault: VaultRef, now: datetime) -> list[str]:
    """Bind unprotected resources that fit, oldest registration first, while there is room; their ids.

    The vault's lock MUST be held. What another transaction has locked just now is left for the next run.
    """
    found = await conn.execute(
        "SELECT object_type FROM vaults WHERE project_id = %s AND id = %s AND auto_bind AND bind_rules = '{}' "
        "AND status = 'available' AND protect_type = 'backup'",
        [vault.project_id, vault.id],
    )
    row = await found.fetchone()
    if row is None:
        return []
    counted = await conn.execute(
        "SELECT count(*) FROM vault_resources WHERE project_id = %s AND vault_id = %s", [vault.project_id, vault.id]
    )
    held = await counted.fetchone()
    assert held is not None
    candidates = await conn.execute(
        "SELECT p.id, p.resource_type, p.size_bytes FROM protectables p WHERE p.project_id = %s "
        "AND p.removed_at IS NULL AND p.resource_type = ANY(%s) AND NOT EXISTS (SELECT 1 FROM vault_resources r "
        "WHERE r.project_id = p.project_id AND r.resource_id = p.id AND r.protect_type = 'backup') "
        "ORDER BY p.created_at, p.id LIMIT %s FOR UPDATE OF p SKIP LOCKED",
        [vault.project_id, list(VAULT_KINDS[row[0]].resource_types), RESOURCES_PER_VAULT_MAX - held[0]],
    )
    bound: list[str] = []
    room = vault.size_bytes - vault.used_bytes if vault.size_bytes else None
    for resource_id, resource_type, size_bytes in await candidates.fetchall():
        if room is not None and room < max(ROOM_BYTES_MIN, size_bytes):
            continue
        try:
            async with conn.transaction():
                await bind(conn, vault, [NewResource(id=resource_id, type=resource_type)], {}, now)
        except StrongroomError:
            continue  # somebody else was first, or it does not fit after all
        bound.append(resource_id)
    return bound
