"""What a claim costs as the queue grows: a table of docs/SCALE.md.

    python -m bench.claim_scale [--rows 1000,10000,100000,1000000]

Claims: tasks wait in a PostgreSQL of its own (embedded, the settings of an installation), in three shapes: all of them
of one vault; of one tenant with a hundred vaults; of a thousand tenants with ten vaults each. A worker claims and ends
tasks; the median and the 99th percentile of the claim alone. `blocked` is the worst case: the vault with all the tasks
has no place left, and the claim finds that out.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg

from strongroom.base.clock import SystemClock
from strongroom.control import claiming, migrate, tasks
from strongroom.control.db import Database
from strongroom.control.embedded_postgres import EmbeddedPostgres

CLAIMS = 100  # measured, after WARM
WARM = 10  # a prepared statement has its plan by then


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many tenants, and vaults of each, the waiting tasks are spread over."""

    name: str
    projects: int
    vaults: int


SHAPES = (
    Shape(name="one vault", projects=1, vaults=1),
    Shape(name="one tenant, 100 vaults", projects=1, vaults=100),
    Shape(name="1000 tenants, 10 vaults each", projects=1000, vaults=10),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Milliseconds of a claim."""

    shape: str
    rows: int
    median_ms: float
    p99_ms: float


def fill(url: str, shape: Shape, rows: int) -> None:
    """Empty the tables and make the waiting tasks."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("TRUNCATE operation_logs, vaults, projects, domains CASCADE")
        conn.execute("INSERT INTO domains VALUES ('default', 'default', now())")
        conn.execute(
            "INSERT INTO projects (id, domain_id, name, created_at) "
            "SELECT md5(p::text), 'default', p::text, now() FROM generate_series(1, %s) p",
            [shape.projects],
        )
        conn.execute(
            "INSERT INTO vaults (id, project_id, user_id, name, provider_id, object_type, protect_type, "
            "consistent_level, size_gb, created_at) SELECT md5(p || '-' || v), md5(p::text), 'u', 'v', 'p', 'turbo', "
            "'backup', 'crash_consistent', 1, now() FROM generate_series(1, %s) p, generate_series(1, %s) v",
            [shape.projects, shape.vaults],
        )
        conn.execute(
            "INSERT INTO operation_logs (id, project_id, vault_id, operation_type, status, request_id, worker_group, "
            "created_at, updated_at) SELECT md5('task' || n), md5((1 + n %% %s)::text), "
            "md5((1 + n %% %s) || '-' || (1 + n / %s %% %s)), 'verify_none', 'waiting', 'r', '*', "
            "now() - interval '1 hour' + n * interval '1 us', now() FROM generate_series(0, %s - 1) n".replace(
                "'verify_none'", "'delete'"
            ),
            [shape.projects, shape.projects, shape.projects, shape.vaults, rows],
        )
        conn.execute("VACUUM ANALYZE operation_logs")


async def measure(url: str, shape: Shape, rows: int, *, blocked: bool) -> Cost:
    """Claim and end tasks one by one; with `blocked`, claim when the places of every vault are taken."""
    clock, spent = SystemClock(), []
    limits = claiming.RunningLimits(vault=1 if blocked else 4, project=10**6)
    async with await Database.open(url, max_size=2) as database:
        if blocked:
            assert await claiming.claim(database, "other", "default", limits=limits) is not None
        after = ""
        for number in range(WARM + CLAIMS):
            started = time.perf_counter()
            task = await claiming.claim(database, "bench", "default", limits=limits, after=after)
            if number >= WARM:
                spent.append((time.perf_counter() - started) * 1000)
            assert (task is None) == blocked
            if task is not None:
                after = task.project_id
                async with database.transaction() as conn:
                    await tasks.still_mine(conn, task)
                    await tasks.finish(conn, task, clock)
    name = f"{shape.name}, blocked" if blocked else shape.name
    return Cost(
        shape=name, rows=rows, median_ms=statistics.median(spent), p99_ms=statistics.quantiles(spent, n=100)[98]
    )


def claims(rows: list[int]) -> list[Cost]:
    """Every shape at every length."""
    found = []
    with tempfile.TemporaryDirectory(prefix="claims-") as folder:
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        url = postgres.start()
        try:
            migrate.upgrade(url)
            for count in rows:
                for shape in SHAPES:
                    fill(url, shape, count)
                    found.append(asyncio.run(measure(url, shape, count, blocked=False)))
                    print(found[-1], flush=True)
                    if shape.vaults == 1:
                        found.append(asyncio.run(measure(url, shape, count, blocked=True)))
                        print(found[-1], flush=True)
        finally:
            postgres.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    options = parser.parse_args()
    claims([int(text) for text in options.rows.split(",")])


if __name__ == "__main__":
    main()
