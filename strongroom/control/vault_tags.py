"""Tags of vaults: read, set and take away; each change is one transaction under the vault's lock.

Rules of contract/behaviour.md section 9: a key that is there gets the new value; to take away what is not there is
refused for one key, and is nothing for a list of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row

from strongroom.base.errors import Conflict, InvalidRequest, TagNotFound, VaultNotFound
from strongroom.control.db import Database
from strongroom.control.names import TAG_KEY_LENGTH_MAX, TAGS_MAX, Tag, is_tag_key, require_tags
from strongroom.control.subjects import VaultRef, lock_vault
from strongroom.control.vault_resources import require_available

DELETED_AT_ONCE_MAX = 100  # a vault has at most TAGS_MAX; beyond this a list is abuse
DELETED_KEY_LENGTH_MAX = 127  # contract: longer than any key that can be set


@dataclass(frozen=True, kw_only=True)
class ProjectTag:
    """A key that vaults of the project carry, with its distinct values in their order."""

    key: str
    values: list[str]


async def show_tags(database: Database, project_id: str, vault_id: str) -> list[Tag]:
    """Tags of one vault by key. Raises VaultNotFound."""
    async with database.transaction() as conn:
        found = await conn.execute("SELECT 1 FROM vaults WHERE project_id = %s AND id = %s", [project_id, vault_id])
        if await found.fetchone() is None:
            raise VaultNotFound(id=vault_id)
        async with conn.cursor(row_factory=class_row(Tag)) as cursor:
            await cursor.execute(
                "SELECT key, value FROM vault_tags WHERE project_id = %s AND vault_id = %s ORDER BY key",
                [project_id, vault_id],
            )
            return await cursor.fetchall()


async def project_tags(database: Database, project_id: str) -> list[ProjectTag]:
    """All tags that vaults of the project carry, by key."""
    async with database.read(class_row(ProjectTag)) as conn:
        found = await conn.execute(
            "SELECT key, array_agg(DISTINCT value ORDER BY value) AS values FROM vault_tags WHERE project_id = %s "
            "GROUP BY key ORDER BY key",
            [project_id],
        )
        return await found.fetchall()


async def set_tags(database: Database, project_id: str, vault_id: str, tags: Sequence[Tag]) -> None:
    """Give a vault these tags beside those it has. Raises VaultNotFound, InvalidRequest, Conflict 6600 or 6112."""
    if not tags:
        raise InvalidRequest(reason="Invalid tags: give at least one tag.")
    require_tags(tags, "tags")
    async with database.transaction() as conn:
        vault = await _lock(conn, project_id, vault_id)
        keys, values = [tag.key for tag in tags], [tag.value for tag in tags]
        await conn.execute(
            "INSERT INTO vault_tags (project_id, vault_id, key, value) "
            "SELECT %s, %s, t.* FROM unnest(%s::text[], %s::text[]) AS t "
            "ON CONFLICT (vault_id, key) DO UPDATE SET value = excluded.value",
            [project_id, vault.id, keys, values],
        )
        counted = await conn.execute(
            "SELECT count(*) FROM vault_tags WHERE project_id = %s AND vault_id = %s", [project_id, vault.id]
        )
        row = await counted.fetchone()
        assert row is not None
        if row[0] > TAGS_MAX:
            raise Conflict(
                reason=f"A vault can have at most {TAGS_MAX} tags. Delete some before you add others.",
                conflict_code="6600",
            )


async def delete_tags(database: Database, project_id: str, vault_id: str, keys: Sequence[str]) -> None:
    """Take tags away; keys that are not there are passed over. Raises VaultNotFound, InvalidRequest, Conflict 6112."""
    if not 0 < len(keys) <= DELETED_AT_ONCE_MAX:
        raise InvalidRequest(reason=f"Invalid tags: give 1 to {DELETED_AT_ONCE_MAX} tags.")
    if any(not 0 < len(key) <= DELETED_KEY_LENGTH_MAX for key in keys):
        raise InvalidRequest(reason=f"Invalid tags: a key has 1 to {DELETED_KEY_LENGTH_MAX} characters.")
    if len(set(keys)) < len(keys):
        raise InvalidRequest(reason="Invalid tags: a key stands twice. Send each key once.")
    async with database.transaction() as conn:
        vault = await _lock(conn, project_id, vault_id)
        await conn.execute(
            "DELETE FROM vault_tags WHERE project_id = %s AND vault_id = %s AND key = ANY(%s)",
            [project_id, vault.id, list(keys)],
        )


async def delete_tag(database: Database, project_id: str, vault_id: str, key: str) -> None:
    """Take one tag away. Raises VaultNotFound, TagNotFound, Conflict 6112."""
    async with database.transaction() as conn:
        vault = await _lock(conn, project_id, vault_id)
        gone = 0
        if is_tag_key(key):
            done = await conn.execute(
                "DELETE FROM vault_tags WHERE project_id = %s AND vault_id = %s AND key = %s",
                [project_id, vault.id, key],
            )
            gone = done.rowcount
        if not gone:
            raise TagNotFound(id=key[:TAG_KEY_LENGTH_MAX])


async def _lock(conn: AsyncConnection[Any], project_id: str, vault_id: str) -> VaultRef:
    """The vault's lock keeps the number of its tags for two changes at once."""
    vault = await lock_vault(conn, project_id, vault_id)
    require_available(vault, "error", "lock", "frozen")
    return vault
