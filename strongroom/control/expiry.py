"""Backups whose time is over are deleted, by the same path as when somebody asks for it.

    time    a backup carries the end of its time since it was made; whatever has passed it goes
    count   when an automatic backup has ended, its resource is marked in the same transaction; the rules of the vault's
            policy are then applied to that resource once, and the mark goes in the transaction of the deletes

A rule by count that was changed, or a policy that was applied anew, waits for a backup that ended after it
(contract/behaviour.md section 5). What cannot be deleted now (being restored, or the parent of a backup that runs) is
tried again a minute later.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict
from strongroom.base.ids import new_id
from strongroom.control.db import Database
from strongroom.control.deletions import Expiry, begin_delete
from strongroom.control.policies import lock_policy_of
from strongroom.control.policy_rules import rules_of
from strongroom.control.retention import Point, RetentionRules, verdicts
from strongroom.control.subjects import VaultRef, lock_vault_if_free

LOOKED_AT_ONCE_MAX = 50  # of one round; the next round takes the next ones
BACKUPS_AT_ONCE_MAX = 256  # of one vault in one transaction
AGAIN_AFTER = timedelta(minutes=1)

# Restore points, whatever is done with them just now; a backup on its way out is none any more.
_RESTORABLE = ["available", "waiting_restore", "restoring"]


@dataclass(frozen=True, kw_only=True)
class Overdue:
    """A vault with backups that passed their time, or (resource_id) a resource that is marked."""

    project_id: str
    vault_id: str
    resource_id: str | None


@dataclass(frozen=True, kw_only=True)
class _Applied:
    """The rules that hold for a resource, and whose they are."""

    policy_id: str
    rules: RetentionRules


async def overdue(database: Database, clock: Clock) -> list[Overdue]:
    """What is to be looked at now. Raises Unavailable."""
    async with database.read(class_row(Overdue)) as conn:
        over = await conn.execute(
            "SELECT DISTINCT b.project_id, b.vault_id, NULL AS resource_id FROM backups b JOIN vaults v "
            "ON v.project_id = b.project_id AND v.id = b.vault_id AND v.status <> 'deleting' "
            "WHERE b.expired_at <= %s AND b.status IN ('available', 'error') AND b.parent_id IS NULL LIMIT %s",
            [clock.now(), LOOKED_AT_ONCE_MAX],
        )
        vaults = await over.fetchall()
        marked = await conn.execute(
            "SELECT project_id, vault_id, resource_id FROM vault_resources WHERE retention_due_at <= %s "
            "ORDER BY retention_due_at LIMIT %s",
            [clock.now(), LOOKED_AT_ONCE_MAX],
        )
        return [*vaults, *await marked.fetchall()]


async def expire(database: Database, found: Overdue, clock: Clock) -> int:
    """Begin to delete what is over; how many deletions began. A vault whose lock is held is left for the next round."""
    async with database.transaction() as conn:
        vault = await lock_vault_if_free(conn, found.project_id, found.vault_id)
        if vault is None:
            return 0
        if found.resource_id is None:
            return await _expire_by_time(conn, vault, clock.now())
        return await _expire_by_count(conn, vault, found.resource_id, clock.now())


async def _expire_by_time(conn: AsyncConnection[Any], vault: VaultRef, now: datetime) -> int:
    found = await conn.execute(
        "SELECT id, expired_at FROM backups WHERE project_id = %s AND vault_id = %s AND expired_at <= %s "
        "AND status IN ('available', 'error') AND parent_id IS NULL ORDER BY expired_at, id LIMIT %s",
        [vault.project_id, vault.id, now, BACKUPS_AT_ONCE_MAX],
    )
    begun = 0
    for backup_id, expired_at in await found.fetchall():
        begun += await _begin(conn, vault, backup_id, Expiry(reason=f"expired {expired_at:%Y-%m-%d %H:%M}"), now)
    return begun


async def _expire_by_count(conn: AsyncConnection[Any], vault: VaultRef, resource_id: str, now: datetime) -> int:
    """Apply the rules of the vault's policy to one marked resource."""
    applied = await _rules_of(conn, vault, resource_id)
    begun, left = 0, 0
    if applied is not None:
        for verdict in verdicts(await _points(conn, vault, resource_id), applied.rules, now):
            if verdict.keep:
                continue
            expiry = Expiry(reason=", ".join(verdict.reasons), policy_id=applied.policy_id)
            done = begun < BACKUPS_AT_ONCE_MAX and await _begin(conn, vault, verdict.point.id, expiry, now)
            begun, left = begun + done, left + (not done)
    await conn.execute(
        "UPDATE vault_resources SET retention_due_at = %s WHERE project_id = %s AND vault_id = %s "
        "AND resource_id = %s AND retention_due_at <= %s",
        [now + AGAIN_AFTER if left else None, vault.project_id, vault.id, resource_id, now],
    )
    return begun


async def _begin(conn: AsyncConnection[Any], vault: VaultRef, backup_id: str, expiry: Expiry, now: datetime) -> bool:
    """Begin one deletion. False: not now; nothing was written."""
    try:
        await begin_delete(conn, vault, backup_id, request_id=new_id(), now=now, expiry=expiry)
    except Conflict:
        return False
    return True


async def _rules_of(conn: AsyncConnection[Any], vault: VaultRef, resource_id: str) -> _Applied | None:
    """The rules to apply now; None: no policy is applied to the vault. Rules that no backup has met yet keep all."""
    found = await lock_policy_of(conn, vault)
    if found is None:
        return None
    policy, applied_at = found
    since = max(policy.retention_changed_at, applied_at)
    met = await conn.execute(
        "SELECT 1 FROM backups WHERE project_id = %s AND vault_id = %s AND resource_id = %s AND auto_trigger "
        "AND status = ANY(%s) AND protected_at >= %s LIMIT 1",
        [vault.project_id, vault.id, resource_id, _RESTORABLE, since],
    )
    rules = rules_of(policy)
    return _Applied(
        policy_id=policy.id, rules=rules if await met.fetchone() is not None else RetentionRules(tz=rules.tz)
    )


async def _points(conn: AsyncConnection[Any], vault: VaultRef, resource_id: str) -> list[Point]:
    """The resource's own backups in this vault; replicas are not a policy's."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id, created_at, expired_at, auto_trigger, status FROM backups WHERE project_id = %s "
            "AND vault_id = %s AND resource_id = %s AND image_type = 'backup' AND status = ANY(%s)",
            [vault.project_id, vault.id, resource_id, [*_RESTORABLE, "error"]],
        )
        rows = await cursor.fetchall()
    return [
        Point(
            id=row["id"],
            created_at=row["created_at"],
            expires_at=row["expired_at"],
            automatic=row["auto_trigger"],
            restorable=row["status"] != "error",
        )
        for row in rows
    ]
