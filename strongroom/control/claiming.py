"""Which waiting task a worker takes next: fair to tenants, within limits, at a cost that no queue's length changes.

    1 lapsed   a task whose worker is gone goes first: it has waited once already
    2 idle     of the tenants with nothing running, the next one after the tenant that this worker served last
    3 busy     else of the tenants with something running, the one with the least
    of a tenant, over up to VAULTS_LOOKED_AT of its vaults that have waiting tasks: the oldest task first

What runs is counted before (a few rows: all workers together have not more threads) and again under locks, so that two
workers never both take the last place of a vault, a host or a tenant. The walks go from tenant to tenant and from vault
to vault by steps through the index `operation_logs_waiting`: ten thousand tasks of one vault are one step.
docs/SCALE.md has the cost by length of the queue.
"""

import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from strongroom.control.db import Database
from strongroom.control.tasks import ANY_GROUP, ATTEMPTS_MAX, CLAIMED, LEASE_S, Task

VAULTS_LOOKED_AT = 64  # of one tenant; of more, a window that begins anywhere
_OF_VAULT = 4  # candidates of one vault, since others may just be taking the first ones
_CANDIDATES = 32  # of one tenant
_TRIES = 4  # for a worker that finds the last place taken; then it looks again later


@dataclass(frozen=True, kw_only=True)
class RunningLimits:
    """Tasks that run at once, the same in all workers.

    vault     so that one vault cannot take every thread of a worker
    host      from or to one source host, where a registration names it: backups shall not bring it down
    project   of one tenant
    """

    vault: int = 4
    host: int = 4
    project: int = 64


@dataclass(kw_only=True)
class _Running:
    """Tasks with a living lease, and who has no place left."""

    projects: Counter[str] = field(default_factory=Counter)
    full_projects: set[str] = field(default_factory=set)
    full_vaults: set[str] = field(default_factory=set)
    full_hosts: set[str] = field(default_factory=set)


# What may begin: there is a place for it, and what it waits for is done.
_READY = """
    t.attempts < %(attempts)s AND NOT coalesce(t.vault_id, '') = ANY(%(full_vaults)s)
    AND NOT t.source_host = ANY(%(full_hosts)s)
    AND (t.operation_type NOT IN ('vault_delete', 'remove_resource') OR NOT EXISTS (
          SELECT 1 FROM operation_logs o WHERE o.vault_id = t.vault_id AND o.id <> t.id
             AND o.operation_type <> 'prune' AND o.status IN ('waiting', 'running')
             AND (o.created_at, o.id) < (t.created_at, t.id)
             AND (t.operation_type = 'vault_delete' OR o.resource_id = t.resource_id)))
    AND (t.operation_type <> 'vault_delete' OR NOT EXISTS (  -- others read there until they notice
          SELECT 1 FROM operation_logs o WHERE o.lender_vault_id = t.vault_id AND o.status = 'running'
             AND o.lease_until >= now()))"""

# Whether there is anything to look for: what a worker without work asks, every two seconds and at every new task. The
# walks below would say the same, but PostgreSQL plans them for milliseconds each time. The first name from a group's on
# is a step through `operation_logs_waiting`: asked for any task of the group, PostgreSQL reads those of all others,
# because where so many wait it believes to find one at once.
_ANYTHING = """
    SELECT EXISTS (SELECT FROM unnest(%(groups)s::text[]) g WHERE g = (
            SELECT t.worker_group FROM operation_logs t WHERE t.status = 'waiting' AND t.worker_group >= g
            ORDER BY t.worker_group LIMIT 1))
        OR EXISTS (SELECT 1 FROM operation_logs t WHERE t.status = 'running' AND t.lease_until < now()
            AND t.worker_group = ANY(%(groups)s))
"""

_LAPSED = f"""
    SELECT t.id, t.project_id, t.vault_id, t.source_host FROM operation_logs t
    WHERE t.status = 'running' AND t.lease_until < now() AND t.worker_group = ANY(%(groups)s)
      AND NOT t.project_id = ANY(%(full_projects)s) AND {_READY}
    ORDER BY t.lease_until LIMIT 1 FOR UPDATE OF t SKIP LOCKED
"""  # noqa: S608 -- the texts are ours

# One step of a walk round a ring: the next name after the row's, else (wrapped) the first one up to where it began.
# The walks are read row by row: what stands behind the task that is taken is never looked for.
_RING = """
    ring (project_id, wrapped, n) AS (
        SELECT %(after)s::text, false, 0
        UNION ALL
        SELECT s.project_id, s.wrapped, r.n + 1 FROM ring r CROSS JOIN LATERAL (
            SELECT x.project_id, r.wrapped FROM unnest(%(groups)s::text[]) g CROSS JOIN LATERAL (
                SELECT t.project_id FROM operation_logs t WHERE t.status = 'waiting' AND t.worker_group = g
                   AND t.project_id > r.project_id AND (NOT r.wrapped OR t.project_id <= %(after)s)
                   ORDER BY t.project_id LIMIT 1) x
            UNION ALL
            SELECT x.project_id, true FROM unnest(%(groups)s::text[]) g CROSS JOIN LATERAL (
                SELECT t.project_id FROM operation_logs t WHERE t.status = 'waiting' AND t.worker_group = g
                   AND NOT r.wrapped AND t.project_id <= %(after)s ORDER BY t.project_id LIMIT 1) x
            ORDER BY wrapped, project_id LIMIT 1) s)"""

_OLDEST_OF_PROJECT = f"""
    CROSS JOIN LATERAL (
        WITH RECURSIVE ring (worker_group, vault, wrapped, n) AS (
            SELECT g, %(lot)s::text, false, 0 FROM unnest(%(groups)s::text[]) g
            UNION ALL
            SELECT r.worker_group, s.vault, s.wrapped, r.n + 1 FROM ring r CROSS JOIN LATERAL (
                (SELECT coalesce(t.vault_id, '') AS vault, r.wrapped FROM operation_logs t
                 WHERE t.status = 'waiting' AND t.worker_group = r.worker_group AND t.project_id = p.project_id
                   AND coalesce(t.vault_id, '') > r.vault AND (NOT r.wrapped OR coalesce(t.vault_id, '') <= %(lot)s)
                 ORDER BY coalesce(t.vault_id, '') LIMIT 1)
                UNION ALL
                (SELECT coalesce(t.vault_id, ''), true FROM operation_logs t
                 WHERE t.status = 'waiting' AND t.worker_group = r.worker_group AND t.project_id = p.project_id
                   AND NOT r.wrapped AND coalesce(t.vault_id, '') <= %(lot)s
                 ORDER BY coalesce(t.vault_id, '') LIMIT 1)
                ORDER BY wrapped LIMIT 1) s
            WHERE r.n < {VAULTS_LOOKED_AT})
        SELECT c.id FROM ring r CROSS JOIN LATERAL (
            SELECT t.id, coalesce(t.not_before, '-infinity') AS delayed_to, t.created_at FROM operation_logs t
            WHERE t.status = 'waiting' AND t.worker_group = r.worker_group AND t.project_id = p.project_id
              AND coalesce(t.vault_id, '') = r.vault AND coalesce(t.not_before, '-infinity') <= now() AND {_READY}
            ORDER BY coalesce(t.not_before, '-infinity'), t.created_at, t.id LIMIT {_OF_VAULT}) c
        WHERE r.n > 0 AND NOT r.vault = ANY(%(full_vaults)s)
        ORDER BY c.delayed_to, c.created_at, c.id LIMIT {_CANDIDATES}) c
    CROSS JOIN LATERAL (
        SELECT t.id, t.project_id, t.vault_id, t.source_host FROM operation_logs t
        WHERE t.id = c.id AND t.status = 'waiting' FOR UPDATE SKIP LOCKED) t
    LIMIT 1
"""  # noqa: S608 -- the texts are ours

_IDLE = f"""
    WITH RECURSIVE {_RING}
    SELECT t.* FROM (SELECT project_id FROM ring WHERE n > 0 AND NOT project_id = ANY(%(busy)s)) p {_OLDEST_OF_PROJECT}
"""  # noqa: S608 -- the texts are ours
_BUSY = f"SELECT t.* FROM unnest(%(busy)s::text[]) p (project_id) {_OLDEST_OF_PROJECT}"  # noqa: S608 -- the texts are ours


async def claim(
    database: Database, worker: str, group: str, *, limits: RunningLimits | None = None, after: str = ""
) -> Task | None:
    """Take one claimable task and make it ours for LEASE_S. None: nothing to do now.

    after   the project that was served last: the turn goes on behind it
    """
    limits, running, groups = limits or RunningLimits(), None, [group, ANY_GROUP]
    if not (await database.fetch(_ANYTHING, {"groups": groups}))[0][0]:
        return None
    for _ in range(_TRIES):
        # A transaction each: locks of a try that failed are none of the next one's.
        async with database.transaction() as conn, conn.cursor(row_factory=dict_row) as cursor:
            running = running or await _count_running(cursor, limits)
            found = await _find(cursor, running, groups, after)
            if found is None:
                return None
            if await _has_place(cursor, found, limits, running):
                return await _take(cursor, worker, found["id"])
    return None


async def _count_running(cursor: AsyncCursor[DictRow], limits: RunningLimits) -> _Running:
    await cursor.execute(
        "SELECT project_id, vault_id, source_host, count(*) AS n FROM operation_logs "
        "WHERE status = 'running' AND lease_until >= now() GROUP BY project_id, vault_id, source_host"
    )
    projects, vaults, hosts = Counter[str](), Counter[str](), Counter[str]()
    for row in await cursor.fetchall():
        projects[row["project_id"]] += row["n"]
        vaults[row["vault_id"] or ""] += row["n"]
        hosts[row["source_host"]] += row["n"]
    return _Running(
        projects=projects,
        full_projects={name for name, n in projects.items() if n >= limits.project},
        full_vaults={name for name, n in vaults.items() if name and n >= limits.vault},
        full_hosts={name for name, n in hosts.items() if name and n >= limits.host},
    )


async def _find(cursor: AsyncCursor[DictRow], running: _Running, groups: list[str], after: str) -> DictRow | None:
    """A task that may begin, its row locked."""
    values: dict[str, Any] = {
        "groups": groups,
        "attempts": ATTEMPTS_MAX,
        "after": after,
        "lot": secrets.token_hex(4),
        "full_projects": sorted(running.full_projects),
        "full_vaults": sorted(running.full_vaults),
        "full_hosts": sorted(running.full_hosts),
    }
    await cursor.execute(_LAPSED.encode(), values)
    if (found := await cursor.fetchone()) is not None:
        return found
    await cursor.execute(_IDLE.encode(), values | {"busy": sorted(running.projects)})
    if (found := await cursor.fetchone()) is not None:
        return found
    least_first = sorted(set(running.projects) - running.full_projects, key=lambda name: (running.projects[name], name))
    if not least_first:
        return None
    await cursor.execute(_BUSY.encode(), values | {"busy": least_first})
    return await cursor.fetchone()


async def _has_place(cursor: AsyncCursor[DictRow], found: DictRow, limits: RunningLimits, running: _Running) -> bool:
    """Whether its vault, host and tenant have a place, under the locks that all claims of theirs take in this order;
    what has none is noted as full."""
    if found["vault_id"] is not None:
        await cursor.execute("SELECT 1 FROM vaults WHERE id = %s FOR UPDATE", [found["vault_id"]])
    names = [f"project {found['project_id']}", *([f"host {found['source_host']}"] if found["source_host"] else [])]
    for name in names:
        await cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"strongroom claim {name}"])
    await cursor.execute(
        "SELECT count(*) FILTER (WHERE vault_id = %(vault_id)s) AS vault, "
        "count(*) FILTER (WHERE project_id = %(project_id)s) AS project, "
        "count(*) FILTER (WHERE source_host = %(source_host)s) AS host FROM operation_logs "
        "WHERE status = 'running' AND lease_until >= now() AND id <> %(id)s",
        found,
    )
    counted = await cursor.fetchone()
    assert counted is not None
    if found["vault_id"] is not None and counted["vault"] >= limits.vault:
        running.full_vaults.add(found["vault_id"])
        return False
    if counted["project"] >= limits.project:
        running.full_projects.add(found["project_id"])
        running.projects[found["project_id"]] = counted["project"]
        return False
    if found["source_host"] and counted["host"] >= limits.host:
        running.full_hosts.add(found["source_host"])
        return False
    return True


async def _take(cursor: AsyncCursor[DictRow], worker: str, task_id: str) -> Task | None:
    await cursor.execute(
        f"""
        UPDATE operation_logs SET status = 'running', generation = generation + 1, attempts = attempts + 1,
            worker = %s, lease_until = now() + make_interval(secs => %s), not_before = NULL,
            started_at = coalesce(started_at, now()), updated_at = now()
        WHERE id = %s RETURNING {CLAIMED}
        """.encode(),  # noqa: S608 -- the columns are ours
        [worker, LEASE_S, task_id],
    )
    row = await cursor.fetchone()
    return Task(**row) if row is not None else None
