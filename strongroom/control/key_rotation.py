"""The database's share of a new master key: secrets sealed again, copies of wrapped keys, and the key it is bound to.

One transaction, so the database belongs to one master key at every instant. It may run again.
"""

from collections.abc import Mapping

from strongroom.control.db import Database
from strongroom.control.installation import MASTER_KEY_ID
from strongroom.control.self_rows import COPIED_AT
from strongroom.control.tokens import Ring


async def adopt_master_key(
    database: Database, key_id: str, ring: Ring, wrapped: Mapping[tuple[str, str, str | None], bytes]
) -> int:
    """Bind the database to the master key `key_id`; gives the number of secrets sealed again.

    ring     of the new key and the old one, in this order
    wrapped  by (project, vault, domain; None: the vault's own): the domain's keys, wrapped by the new key

    Raises Corrupt, with nothing changed, when a secret opens with neither key.
    """
    async with database.transaction() as conn:
        cursor = await conn.execute("SELECT access_key, secret_sealed FROM access_keys ORDER BY access_key FOR UPDATE")
        rows = await cursor.fetchall()
        for access_key, sealed in rows:
            again = ring.seal_secret(ring.open_secret(bytes(sealed)))
            await conn.execute("UPDATE access_keys SET secret_sealed = %s WHERE access_key = %s", [again, access_key])
        found = await conn.execute(
            "SELECT id, secret_sealed FROM notifications WHERE secret_sealed IS NOT NULL FOR UPDATE"
        )
        for notification_id, sealed in await found.fetchall():
            again = ring.seal_secret(ring.open_secret(bytes(sealed)))
            await conn.execute("UPDATE notifications SET secret_sealed = %s WHERE id = %s", [again, notification_id])
        # Copies of the database in the store are sealed by the old key: the next start makes one by the new.
        await conn.execute("DELETE FROM installation WHERE name = %s", [COPIED_AT])
        # The authority of agents is known by their hosts: its key stays, sealed anew.
        authorities = await (await conn.execute("SELECT sealed_key FROM agent_authority FOR UPDATE")).fetchall()
        for (sealed,) in authorities:
            again = ring.seal_secret(ring.open_secret(bytes(sealed)))
            await conn.execute("UPDATE agent_authority SET sealed_key = %s", [again])
        # Who had the old master key could make tokens: the next start makes a key for them from the new one.
        await conn.execute("DELETE FROM token_keys")
        for (project_id, vault_id, domain_id), data in wrapped.items():
            await conn.execute(
                "UPDATE vault_keys SET wrapped = %s WHERE project_id = %s AND vault_id = %s "
                "AND domain_id IS NOT DISTINCT FROM %s AND wrapped <> ''",  # what was shredded stays so
                [data, project_id, vault_id, domain_id],
            )
        await conn.execute(
            "INSERT INTO installation (name, value) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = %s",
            [MASTER_KEY_ID, key_id, key_id],
        )
    return len(rows) + len(authorities)
