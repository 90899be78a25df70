"""Checkpoints (restore points): one run over one vault, one backup per resource (RULINGS 18)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection


async def settle(
    conn: AsyncConnection[Any],
    project_id: str,
    checkpoint_ids: Sequence[str | None],
    now: datetime,
    *,
    without: str = "error",
) -> None:
    """Derive the status of checkpoints from their backups: protecting while one runs, else available while one is,
    else deleting while one is being deleted, else `without`. The vault's lock MUST be held."""
    await conn.execute(
        """
        UPDATE checkpoints c SET updated_at = %(now)s, status = coalesce((
            SELECT CASE WHEN bool_or(b.status IN ('waiting_protect', 'protecting')) THEN 'protecting'
                        WHEN bool_or(b.status IN ('available', 'waiting_restore', 'restoring')) THEN 'available'
                        WHEN bool_or(b.status IN ('waiting_delete', 'deleting')) THEN 'deleting' END
            FROM backups b WHERE b.project_id = %(project)s AND b.checkpoint_id = c.id), %(without)s)
        WHERE c.project_id = %(project)s AND c.id = ANY(%(ids)s)
        """,
        {"now": now, "project": project_id, "ids": [c for c in checkpoint_ids if c], "without": without},
    )
