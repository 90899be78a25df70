"""Whom a project tells of what: mail and webhooks as rows, and the outbox of what is still to be told.

Rows of the outbox are written by triggers in the transaction that ends a task (migrations, notifications.sql); what did
not happen, a run that is overdue, is written by a ticker. They are delivered at least once: a row is taken for CLAIM_S,
and is only `sent` when the receiver has said so.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock, api_timestamp
from strongroom.base.errors import InvalidRequest, NotificationNotFound
from strongroom.base.ids import new_id
from strongroom.control.db import Database
from strongroom.control.figures import Protected

EVENTS = ("failed", "partly", "did_not_run", "nearly_full", "damage")
KINDS = ("mail", "webhook")
PER_PROJECT_MAX = 20
CLAIM_S = 60  # longer than a delivery takes at most
AT_ONCE = 20
ATTEMPTS_MAX = 14  # the last one about half a day after the first
RETRY_S_FIRST, RETRY_S_MAX = 5, 6 * 3600
KEEP_DAYS = 7


@dataclass(frozen=True, kw_only=True)
class Notification:
    """One receiver. target: an address of mail, or a URL; secret_sealed: what a webhook is signed with."""

    id: str
    project_id: str
    name: str
    kind: str
    target: str
    events: list[str]
    enabled: bool
    created_at: datetime
    updated_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message on its way. id: the same in every attempt."""

    id: str
    project_id: str
    event: str
    payload: dict[str, Any]
    attempts: int
    created_at: datetime
    kind: str
    name: str
    target: str
    secret_sealed: bytes | None = field(repr=False)


async def list_notifications(database: Database, project_id: str) -> list[Notification]:
    """All of a project, oldest first."""
    async with database.read(class_row(Notification)) as conn:
        found = await conn.execute(
            "SELECT id, project_id, name, kind, target, events, enabled, created_at, updated_at FROM notifications "
            "WHERE project_id = %s ORDER BY created_at, id",
            [project_id],
        )
        return await found.fetchall()


async def show_notification(database: Database, project_id: str, notification_id: str) -> Notification:
    """Raises NotificationNotFound."""
    for found in await list_notifications(database, project_id):
        if found.id == notification_id:
            return found
    raise NotificationNotFound(id=notification_id)


async def add_notification(
    database: Database,
    project_id: str,
    *,
    name: str,
    kind: str,
    target: str,
    events: Sequence[str],
    secret_sealed: bytes | None,
    clock: Clock,
) -> str:
    """Id of the new one; its target was checked. Raises InvalidRequest."""
    _require(name, events)
    made = new_id()
    async with database.transaction() as conn:
        await conn.execute("SELECT 1 FROM projects WHERE id = %s FOR UPDATE", [project_id])
        found = await conn.execute("SELECT count(*) FROM notifications WHERE project_id = %s", [project_id])
        row = await found.fetchone()
        if row is not None and row[0] >= PER_PROJECT_MAX:
            raise InvalidRequest(reason=f"A project has at most {PER_PROJECT_MAX} notifications. Delete one first.")
        await conn.execute(
            "INSERT INTO notifications (id, project_id, name, kind, target, events, secret_sealed, created_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [made, project_id, name, kind, target, list(dict.fromkeys(events)), secret_sealed, clock.now()],
        )
    return made


async def change_notification(
    database: Database,
    project_id: str,
    notification_id: str,
    *,
    name: str,
    events: Sequence[str],
    enabled: bool,
    clock: Clock,
) -> None:
    """Raises NotificationNotFound, InvalidRequest."""
    _require(name, events)
    async with database.transaction() as conn:
        done = await conn.execute(
            "UPDATE notifications SET name = %s, events = %s, enabled = %s, updated_at = %s "
            "WHERE project_id = %s AND id = %s",
            [name, list(dict.fromkeys(events)), enabled, clock.now(), project_id, notification_id],
        )
        if not done.rowcount:
            raise NotificationNotFound(id=notification_id)


async def remove_notification(database: Database, project_id: str, notification_id: str) -> None:
    """With what it was still to be told. Raises NotificationNotFound."""
    async with database.transaction() as conn:
        done = await conn.execute(
            "DELETE FROM notifications WHERE project_id = %s AND id = %s", [project_id, notification_id]
        )
        if not done.rowcount:
            raise NotificationNotFound(id=notification_id)


async def send_test(database: Database, project_id: str, notification_id: str) -> None:
    """One message to try it out. Raises NotificationNotFound."""
    async with database.transaction() as conn:
        done = await conn.execute(
            "INSERT INTO notification_outbox (id, project_id, notification_id, event, payload) "
            "SELECT %s, project_id, id, 'test', '{}' FROM notifications WHERE project_id = %s AND id = %s",
            [new_id(), project_id, notification_id],
        )
        if not done.rowcount:
            raise NotificationNotFound(id=notification_id)


async def last_deliveries(database: Database, project_id: str, notification_id: str) -> list[dict[str, Any]]:
    """The newest messages and what became of them: for who asks why nothing arrives."""
    rows = await database.fetch(
        "SELECT id, event, status, attempts, last_error, created_at, ended_at FROM notification_outbox "
        "WHERE project_id = %s AND notification_id = %s ORDER BY created_at DESC, id LIMIT 20",
        [project_id, notification_id],
    )
    names = ("id", "event", "status", "attempts", "last_error", "created_at", "ended_at")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _require(name: str, events: Sequence[str]) -> None:
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise InvalidRequest(reason="Invalid name: give 1 to 64 printable characters.")
    if not events or not set(events) <= set(EVENTS):
        raise InvalidRequest(reason=f"Invalid events: give one or more of {', '.join(EVENTS)}.")


# --- delivery -------------------------------------------------------------------------------------------------------


async def claim_due(database: Database) -> list[Delivery]:
    """Messages whose time has come, ours for CLAIM_S: who dies with them leaves them to the next look."""
    async with database.transaction(class_row(Delivery)) as conn:
        found = await conn.execute(
            "UPDATE notification_outbox o SET attempts = attempts + 1, next_at = now() + make_interval(secs => %s) "
            "FROM notifications n WHERE n.id = o.notification_id AND n.project_id = o.project_id AND o.id IN ("
            "SELECT id FROM notification_outbox WHERE status = 'waiting' AND next_at <= now() ORDER BY next_at "
            "LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING o.id, o.project_id, o.event, o.payload, o.attempts, "
            "o.created_at, n.kind, n.name, n.target, n.secret_sealed",
            [CLAIM_S, AT_ONCE],
        )
        return await found.fetchall()


async def note_delivery(database: Database, delivery: Delivery, error: str) -> None:
    """It was sent (error ""), or is tried again later, each time twice as late, until its attempts are used up."""
    delay_s = min(RETRY_S_MAX, RETRY_S_FIRST * 2 ** (delivery.attempts - 1))
    ended = not error or delivery.attempts >= ATTEMPTS_MAX
    async with database.transaction() as conn:
        await conn.execute(
            "UPDATE notification_outbox SET status = %s, last_error = %s, next_at = now() + make_interval(secs => %s), "
            "ended_at = CASE WHEN %s THEN now() END WHERE project_id = %s AND id = %s AND status = 'waiting'",
            [
                *(("sent" if not error else "failed") if ended else "waiting", error[:500], delay_s, ended),
                *(delivery.project_id, delivery.id),
            ],
        )


async def purge_deliveries(database: Database) -> None:
    """Messages that ended a while ago go."""
    async with database.transaction() as conn:
        await conn.execute(
            "DELETE FROM notification_outbox WHERE status <> 'waiting' "
            "AND ended_at < now() - make_interval(days => %s)",
            [KEEP_DAYS],
        )


async def wanted_overdue(database: Database) -> set[str]:
    """Projects that want to hear of runs that did not happen."""
    rows = await database.fetch(
        "SELECT DISTINCT project_id FROM notifications WHERE enabled AND 'did_not_run' = ANY (events)"
    )
    return {row[0] for row in rows}


async def tell_overdue(database: Database, overdue: Sequence[Protected]) -> None:
    """One message a resource and newest restore point: the same silence is told once."""
    async with database.transaction() as conn:
        for each in overdue:
            await _tell_overdue(conn, each)


async def _tell_overdue(conn: AsyncConnection[Any], each: Protected) -> None:
    since = api_timestamp(each.succeeded_at or each.since)
    key = hashlib.sha256(f"{each.vault_id} {each.resource_id} {since}".encode()).hexdigest()[:32]
    payload = {
        "vault_id": each.vault_id,
        "resource_id": each.resource_id,
        "last_success_at": api_timestamp(each.succeeded_at) if each.succeeded_at is not None else None,
        "expected_interval_s": int(each.interval.total_seconds()) if each.interval is not None else None,
    }
    await conn.execute(
        "INSERT INTO notification_outbox (id, project_id, notification_id, event, payload) "
        "SELECT md5(%s || id), project_id, id, 'did_not_run', %s FROM notifications "
        "WHERE project_id = %s AND enabled AND 'did_not_run' = ANY (events) ON CONFLICT (id) DO NOTHING",
        [key, Jsonb(payload), each.project_id],
    )
