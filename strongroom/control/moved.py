"""The job side of a move: what has to be copied, and the one transaction that makes it true.

Until that transaction the backups belong to the old vault, whatever lies in the new one's place of the store; from it
on to the new one, and what the old place still holds is dead and goes with its next prune. A restore point of several
resources of which only some move is split: those get a restore point of their own in the new vault.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import StrongroomError, Unavailable
from strongroom.base.ids import new_id
from strongroom.control import checkpoints, tasks
from strongroom.control.capacity import set_used
from strongroom.control.db import Database
from strongroom.control.deletions import queue_prune, removed_resources
from strongroom.control.moving import refuse_locked, require_room
from strongroom.control.sessions import close_sessions_of
from strongroom.control.subjects import VaultRef, lock_all_vaults
from strongroom.control.tasks import Task
from strongroom.control.vault_resources import require_available
from strongroom.control.vault_roots import foreign_roots, own_roots


@dataclass(frozen=True, kw_only=True)
class MovingPoint:
    """A backup that moves. checkpoint_id: its restore point in the new vault."""

    backup_id: str
    root: str
    checkpoint_id: str


@dataclass(frozen=True, kw_only=True)
class MoveJob:
    """What moves, by the domain it is in (id in hex; None: the old vault's own), and what stays in these domains.

    there   roots that rows of the new vault name, by domain
    begun   an earlier attempt may have put roots there already (note_begun)
    """

    source: VaultRef
    destination: VaultRef
    points: Mapping[str | None, Sequence[MovingPoint]]
    keep: Mapping[str | None, frozenset[str]]
    there: Mapping[str | None, frozenset[str]]
    begun: bool


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What a move has made durable. domains: where the points of each old domain are now.

    gained, freed   live sealed bytes that the new vault has more, and the old one less
    """

    roots: frozenset[str]
    domains: Mapping[str | None, str | None]
    gained: int
    freed: int
    outcome: dict[str, Any] = field(default_factory=dict)


async def start_move(database: Database, task: Task) -> MoveJob:
    """What an attempt has to do. May run again. Raises Fenced, VaultNotFound, Conflict 6112."""
    moving = removed_resources(task.parameters)
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        source, destination = await _lock(conn, task)
        here = await _points(conn, source)
        there = await _points(conn, destination)
        going = [row for row in here if row["resource_id"] in moving]
        staying = [row for row in here if row["resource_id"] not in moving]
        found = await conn.execute(
            "SELECT state FROM operation_logs WHERE project_id = %s AND id = %s", [task.project_id, task.id]
        )
        noted = await found.fetchone()
        state: dict[str, Any] = noted[0] if noted is not None else {}
        divided = {row["checkpoint_id"] for row in going} & {row["checkpoint_id"] for row in staying}
        split = {**{old: new_id() for old in sorted(divided)}, **state.get("split", {})}
        await conn.execute(
            "UPDATE operation_logs SET state = state || %s WHERE project_id = %s AND id = %s",
            [Jsonb({"split": split}), task.project_id, task.id],
        )
    points: dict[str | None, list[MovingPoint]] = {}
    for row in going:
        if row["root"] is not None:
            checkpoint_id = split.get(row["checkpoint_id"], row["checkpoint_id"])
            point = MovingPoint(backup_id=row["id"], root=row["root"], checkpoint_id=checkpoint_id)
            points.setdefault(row["domain_id"], []).append(point)
    return MoveJob(
        source=source,
        destination=destination,
        points=points,
        keep=_roots(staying),
        there=_roots(there),
        begun=bool(state.get("begun")),
    )


async def note_begun(database: Database, task: Task) -> None:
    """Before the first root is put: from here on those at the destination are this task's own. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        await conn.execute(
            "UPDATE operation_logs SET state = state || %s WHERE project_id = %s AND id = %s",
            [Jsonb({"begun": True}), task.project_id, task.id],
        )


async def commit_move(database: Database, task: Task, moved: Moved, clock: Clock) -> None:
    """The resources and their backups belong to the new vault: rows, usage of both and the task in one transaction,
    and a prune of what the old one still holds. A second call raises Fenced. Raises Conflict 6100, 6112, 6129 for what
    changed meanwhile, Unavailable when the rows are not those that were copied."""
    ids = removed_resources(task.parameters)
    now = clock.now()
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        source, destination = await _lock(conn, task)
        await require_room(conn, source, destination, ids)
        going = [row for row in await _points(conn, source) if row["resource_id"] in ids]
        if {row["root"] for row in going if row["root"]} != moved.roots:
            raise Unavailable(reason="The backups changed while they were moved. Try again.")
        found = await conn.execute(
            "SELECT state -> 'split' FROM operation_logs WHERE project_id = %s AND id = %s", [task.project_id, task.id]
        )
        state = await found.fetchone()
        split: dict[str, str] = state[0] if state is not None else {}
        await _move_checkpoints(conn, source, destination, going, split, ids)
        await _move_backups(conn, source, destination, moved, split, ids, now)
        touched = sorted({*(row["checkpoint_id"] for row in going), *split.values()})
        await conn.execute(
            "DELETE FROM checkpoints c WHERE c.project_id = %s AND c.id = ANY(%s) AND NOT EXISTS "
            "(SELECT 1 FROM backups b WHERE b.project_id = c.project_id AND b.checkpoint_id = c.id)",
            [task.project_id, touched],
        )
        await checkpoints.settle(conn, task.project_id, touched, now)
        await conn.execute(
            "UPDATE vault_resources SET vault_id = %s, protect_status = CASE WHEN status_reason IS NULL "
            "THEN 'available' ELSE 'error' END WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s)",
            [destination.id, task.project_id, source.id, ids],
        )
        await _follow_loans(conn, destination, ids)
        await set_used(conn, destination, destination.used_bytes + moved.gained)
        await set_used(conn, source, max(0, source.used_bytes - moved.freed))
        await close_sessions_of(conn, task)
        outcome = {**moved.outcome, "resources": len(ids), "backups": sum(row["parent_id"] is None for row in going)}
        await tasks.finish(conn, task, clock, outcome=outcome)
        if moved.roots:
            await queue_prune(conn, source, request_id=task.request_id, clock=clock)


async def _follow_loans(conn: AsyncConnection[Any], destination: VaultRef, resource_ids: Sequence[str]) -> None:
    """Restores of projects that share these backups find them in the new vault, and its deletion waits for them."""
    await conn.execute(
        # SKIP LOCKED: who has a task's row locked may be waiting for a vault's, which is ours.
        "UPDATE operation_logs SET lender_vault_id = %s WHERE id IN (SELECT o.id FROM operation_logs o "
        "JOIN backups b ON b.id = o.backup_id WHERE o.lender_project_id = %s AND b.project_id = %s "
        "AND b.vault_id = %s AND coalesce(b.machine_id, b.resource_id) = ANY(%s) AND o.status = 'waiting' "
        "FOR UPDATE OF o SKIP LOCKED)",
        [destination.id, destination.project_id, destination.project_id, destination.id, list(resource_ids)],
    )


async def fail_move(
    database: Database, task: Task, error: StrongroomError, clock: Clock, *, status: str = "failed"
) -> None:
    """Nothing has moved: the resources are free where they were, and a prune takes what was copied. Raises Fenced."""
    async with database.transaction() as conn:
        await tasks.still_mine(conn, task)
        source, destination = await lock_pair(conn, task)
        await conn.execute(
            "UPDATE vault_resources SET protect_status = CASE WHEN status_reason IS NULL THEN 'available' "
            "ELSE 'error' END WHERE project_id = %s AND vault_id = %s AND resource_id = ANY(%s) "
            "AND protect_status = 'removing'",
            [task.project_id, source.id, removed_resources(task.parameters)],
        )
        await close_sessions_of(conn, task)
        await queue_prune(conn, destination, request_id=task.request_id, clock=clock)
        await tasks.finish(conn, task, clock, status=status, error=error)


async def lock_pair(conn: AsyncConnection[Any], task: Task) -> tuple[VaultRef, VaultRef]:
    """(old vault, new vault), locked. Both are there while the task is open: their deletion is refused."""
    assert task.vault_id is not None
    destination_id = str(task.parameters["destination"])
    vaults = await lock_all_vaults(conn, task.project_id, task.vault_id, destination_id)
    return vaults[task.vault_id], vaults[destination_id]


async def _lock(conn: AsyncConnection[Any], task: Task) -> tuple[VaultRef, VaultRef]:
    """The same, while both may be moved from and to. Raises Conflict 6112."""
    source, destination = await lock_pair(conn, task)
    for vault in (source, destination):
        require_available(vault, "lock")
        refuse_locked(vault)
    return source, destination


def _roots(rows: Sequence[dict[str, Any]]) -> dict[str | None, frozenset[str]]:
    """By domain."""
    found: dict[str | None, frozenset[str]] = {None: own_roots(rows)}
    found.update(foreign_roots(rows))
    return found


async def _points(conn: AsyncConnection[Any], vault: VaultRef) -> list[dict[str, Any]]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id, parent_id, root, domain_id, checkpoint_id, coalesce(machine_id, resource_id) AS resource_id "
            "FROM backups WHERE project_id = %s "
            "AND vault_id = %s ORDER BY created_at, id",
            [vault.project_id, vault.id],
        )
        return await cursor.fetchall()


async def _move_checkpoints(
    conn: AsyncConnection[Any],
    source: VaultRef,
    destination: VaultRef,
    going: Sequence[Mapping[str, Any]],
    split: Mapping[str, str],
    resource_ids: Sequence[str],
) -> None:
    """Those of which every backup moves go along; of the others the new vault gets one with what moves."""
    for old, new in split.items():
        await conn.execute(
            "INSERT INTO checkpoints (id, project_id, vault_id, vault_name, provider_id, status, name, description, "
            "retention_days, auto_trigger, created_at) SELECT %s, project_id, %s, %s, provider_id, status, name, "
            "description, retention_days, auto_trigger, created_at FROM checkpoints WHERE project_id = %s AND id = %s",
            [new, destination.id, destination.name, source.project_id, old],
        )
        await conn.execute(
            "UPDATE checkpoint_resources SET checkpoint_id = %s "
            "WHERE project_id = %s AND checkpoint_id = %s AND resource_id = ANY(%s)",
            [new, source.project_id, old, list(resource_ids)],
        )
    whole = {row["checkpoint_id"] for row in going} - split.keys()
    await conn.execute(
        "UPDATE checkpoints SET vault_id = %s, vault_name = %s WHERE project_id = %s AND id = ANY(%s)",
        [destination.id, destination.name, source.project_id, sorted(whole)],
    )


async def _move_backups(
    conn: AsyncConnection[Any],
    source: VaultRef,
    destination: VaultRef,
    moved: Moved,
    split: Mapping[str, str],
    resource_ids: Sequence[str],
    now: datetime,
) -> None:
    """One statement a domain; backups that failed have no root and no domain, and go along."""
    for old_domain, new_domain in {None: None, **moved.domains}.items():
        await conn.execute(
            "UPDATE backups SET vault_id = %(there)s, updated_at = %(now)s, "
            "domain_id = CASE WHEN root IS NULL THEN NULL ELSE %(domain)s::text END, "
            "checkpoint_id = coalesce(%(split)s::jsonb ->> checkpoint_id, checkpoint_id) "
            # The disks of a machine follow it.
            "WHERE project_id = %(project)s AND vault_id = %(here)s AND resource_id = ANY(%(ids)s) "
            "AND parent_id IS NULL AND domain_id IS NOT DISTINCT FROM %(old)s::text",
            {
                "there": destination.id,
                "now": now,
                "domain": new_domain,
                "split": Jsonb(split),
                "project": source.project_id,
                "here": source.id,
                "ids": list(resource_ids),
                "old": old_domain,
            },
        )
    # What the regions have of it goes with it: the old vault's end must not take the record along.
    await conn.execute(
        "UPDATE replication_records r SET vault_id = %s FROM backups b WHERE r.project_id = %s AND r.vault_id = %s "
        "AND b.project_id = r.project_id AND b.id = r.backup_id AND b.vault_id = %s",
        [destination.id, source.project_id, source.id, destination.id],
    )
