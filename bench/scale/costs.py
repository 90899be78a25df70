"""What each step of a restore point's life costs in a catalogue of some size, and how much room its rows take.

The product's own functions, in this process, on the catalogue's PostgreSQL: what is measured is what an API or a worker
waits for. Vaults hold two resources, so a restore point is two backups and two tasks.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.scale import catalogue as seeded
from bench.scale.catalogue import Catalogue
from strongroom.base.clock import SystemClock
from strongroom.control import backups, checkpoints, claiming, expiry, figures, firing, policies, tasks
from strongroom.control.backups import BackupFilters, CommittedBackup
from strongroom.control.checkpoint_views import show_checkpoint
from strongroom.control.checkpoints import NewCheckpoint
from strongroom.control.db import Database
from strongroom.control.expiry import Overdue
from strongroom.control.firing import Due
from strongroom.control.listing import Page
from strongroom.control.policy_rules import Definition, NewPolicy, Trigger

REPEATS = 40
WARM = 5  # statements are prepared and have their plans
GROUP = "bench"  # that of what is seeded; no worker serves it
TABLES = ("backups", "operation_logs", "checkpoints", "checkpoint_resources", "audit_log", "protectables",
          "vault_resources", "vaults", "list_counts")  # fmt: skip

Cost = dict[str, float]
Step = Callable[[int], Awaitable[object]]


class Costs:
    """Milliseconds of each step: `found` maps its name to median and 99th percentile of REPEATS."""

    def __init__(self, made: Catalogue, database: Database) -> None:
        self.made, self.database, self.clock = made, database, SystemClock()
        self.found: dict[str, Cost] = {}
        statement = "SELECT project_id, id FROM vaults WHERE name LIKE 'bench-%%' ORDER BY random() LIMIT %s"
        self.vaults = seeded.rows(made.url, statement, REPEATS + WARM)

    def vault(self, number: int) -> tuple[str, str]:
        project, vault = self.vaults[number % len(self.vaults)]
        return project, vault

    async def take(self, name: str, step: Step, *, before: Step | None = None) -> None:
        """Measure a step; `before` sets the scene and does not count."""
        spent = []
        for number in range(-WARM, REPEATS):
            if before is not None:
                await before(number)
            begun = time.perf_counter()
            await step(number)
            if number >= 0:
                spent.append((time.perf_counter() - begun) * 1000)
        self.found[name] = {"p50": statistics.median(spent), "p99": statistics.quantiles(spent, n=100)[98]}

    async def all(self) -> None:
        """Every step, in the order of a restore point's life."""
        await self.take("idle look for a task", self._claim)
        await self.take("idle tickers, one round", self._idle_tickers)
        await self.take("create", self._create, before=self._settle)
        await self._settle(0)
        await self.take("claim", self._claim, before=self._something_to_claim)
        await self._settle(0)
        await self.take("end", self._end, before=self._claimed)
        await self._settle(0)
        await self.take("show", self._show)
        await self.take("list, first page", self._list)
        await self.take("list, page at 1000", lambda n: self._list(n, offset=1000))
        await self._apply_policies()
        await self.take("retention of a resource", self._retain, before=self._mark)
        await self.take("ticker, a due vault", self._fire, before=self._make_due)
        await self._settle(0)
        await self.take("metrics", lambda _: figures.read_figures(self.database, self.clock))
        await self._forget_policies()

    async def _create(self, number: int) -> None:
        project, vault = self.vault(number)
        new = NewCheckpoint(vault_id=vault, name="measured")
        await checkpoints.create_checkpoint(self.database, project, new, request_id="bench", clock=self.clock)

    async def _claim(self, _: int) -> tasks.Task | None:
        self.task = await claiming.claim(self.database, "bench", GROUP)
        return self.task

    async def _something_to_claim(self, number: int) -> None:
        if number % 2:
            await self._settle(number)
        else:
            await self._create(number)

    async def _claimed(self, number: int) -> None:
        await self._settle(number)
        await self._create(number)
        await self._claim(number)
        assert self.task is not None
        await backups.start_backup(self.database, self.task)

    async def _end(self, _: int) -> None:
        assert self.task is not None
        root = f"{self.task.backup_id}.1"
        done = CommittedBackup(root=root, resource_size_bytes=1 << 20, stored_bytes=1 << 20, report={"kind": "tree"})
        await backups.commit_backup(self.database, self.task, done, self.clock)

    async def _settle(self, _: int) -> None:
        """End whatever waits, the short way."""
        async with self.database.transaction() as conn:
            await conn.execute(
                "WITH ended AS (UPDATE operation_logs SET status = 'failed', ended_at = now(), lease_until = NULL "
                "WHERE worker_group = %s AND status IN ('waiting', 'running') RETURNING backup_id) "
                "UPDATE backups SET status = 'error' WHERE id IN (SELECT backup_id FROM ended)",
                [GROUP],
            )

    async def _show(self, number: int) -> None:
        project, vault = self.vault(number)
        async with self.database.read() as conn:
            found = await conn.execute("SELECT id FROM checkpoints WHERE vault_id = %s LIMIT 1", [vault])
            row = await found.fetchone()
            assert row is not None
        await show_checkpoint(self.database, project, row[0])

    async def _list(self, number: int, offset: int = 0) -> None:
        page = Page(limit=50, offset=offset)
        await backups.list_backups(self.database, self.vault(number)[0], BackupFilters(), page)

    async def _idle_tickers(self, _: int) -> None:
        """What each worker asks in vain, again and again, beside claims and renewals."""
        await firing.due_runs(self.database, self.clock)
        await expiry.overdue(self.database, self.clock)
        await tasks.exhausted(self.database, "bench", GROUP)

    async def _apply_policies(self) -> None:
        """One policy a tenant, applied to all its vaults; it never comes due by itself."""
        new = NewPolicy(
            name="measured",
            operation_type="backup",
            enabled=True,
            trigger=Trigger(patterns=("FREQ=DAILY;BYHOUR=3;BYMINUTE=0",)),
            definition=Definition(max_backups=99999),
        )
        for tenant in self.made.tenants:
            policy = await policies.create_policy(self.database, tenant.project, new, region="local", clock=self.clock)
            async with self.database.transaction() as conn:
                await conn.execute(
                    "INSERT INTO policy_vaults (project_id, vault_id, operation_type, policy_id, next_fire_at, "
                    "created_at) SELECT project_id, id, 'backup', %s, now() + interval '30 days', "
                    "now() - interval '30 days' FROM vaults WHERE project_id = %s AND name LIKE 'bench-%%' "
                    "ON CONFLICT DO NOTHING",
                    [policy.id, tenant.project],
                )

    async def _forget_policies(self) -> None:
        async with self.database.transaction() as conn:
            await conn.execute("DELETE FROM policy_vaults")
            await conn.execute("DELETE FROM policies")
            await conn.execute("UPDATE vault_resources SET retention_due_at = NULL WHERE retention_due_at IS NOT NULL")

    async def _mark(self, number: int) -> None:
        """A resource that retention looks at, as when its backup has just ended."""
        project, vault = self.vault(number)
        async with self.database.transaction() as conn:
            found = await conn.execute(
                "UPDATE vault_resources SET retention_due_at = now() - interval '1 s' WHERE project_id = %s "
                "AND vault_id = %s AND resource_id = (SELECT min(resource_id) FROM vault_resources WHERE vault_id = %s)"
                " RETURNING resource_id",
                [project, vault, vault],
            )
            row = await found.fetchone()
            assert row is not None
            self.marked = Overdue(project_id=project, vault_id=vault, resource_id=row[0])

    async def _retain(self, _: int) -> None:
        assert await expiry.expire(self.database, self.marked, self.clock) == 0

    async def _make_due(self, number: int) -> None:
        await self._settle(number)
        project, vault = self.vault(number)
        async with self.database.transaction() as conn:
            await conn.execute(
                "UPDATE policy_vaults SET next_fire_at = now() - interval '1 s' WHERE vault_id = %s", [vault]
            )
        self.due = Due(project_id=project, vault_id=vault)

    async def _fire(self, _: int) -> None:
        fired = await firing.fire(self.database, self.due, self.clock)
        assert fired is not None
        assert fired.checkpoint_id is not None, fired.refusal


def measure(made: Catalogue) -> dict[str, Any]:
    """{"steps": name -> ms, "tables": name -> rows and bytes}."""

    async def run() -> dict[str, Cost]:
        async with await Database.open(made.url, max_size=2) as database:
            costs = Costs(made, database)
            await costs.all()
            return costs.found

    return {"points": made.points, "steps": asyncio.run(run()), "tables": sizes(made.url)}


def sizes(url: str) -> dict[str, dict[str, int]]:
    """Rows, bytes of rows and of indexes, for each table that grows."""
    found = {}
    for table in TABLES:
        statement = f"SELECT (SELECT count(*) FROM {table}), pg_table_size('{table}'), pg_indexes_size('{table}')"
        ((count, heap, indexes),) = seeded.rows(url, statement)
        found[table] = {"rows": count, "table_bytes": heap, "index_bytes": indexes}
    ((whole,),) = seeded.rows(url, "SELECT pg_database_size(current_database())")
    found["(the whole database)"] = {"rows": 1, "table_bytes": whole, "index_bytes": 0}
    return found


def copy(made: Catalogue) -> dict[str, float]:
    """`strongroom backup-self`: seconds, and bytes in the store."""
    with seeded.installation(made.folder, made.url) as bench:
        begun = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "strongroom", "backup-self", "--state", str(made.folder / "api")],
            env=bench.environ,
            check=True,
            capture_output=True,
        )
        seconds = time.monotonic() - begun
    newest = max((made.folder / "store" / "self" / "parts").iterdir(), key=lambda path: path.stat().st_mtime)
    return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in newest.iterdir())}
