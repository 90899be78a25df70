"""What a second job table costs: the task row alone, against the task row plus a procrastinate job that carries its id.

    pip install procrastinate==3.10.0 && python bench/task_delivery.py [--tasks 256] [--rounds 9]

Both ways run in turns in one PostgreSQL (started for the occasion). Enqueue: one transaction that writes N task rows
(and, for the second way, one batch defer on the same connection). Take: N times, claim one task and end it; the second
way fetches and finishes its job around the same claim, because the row decides either way (RULINGS 1). Medians.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
from procrastinate.schema import SchemaManager

from strongroom.base.clock import SystemClock
from strongroom.base.ids import new_hex_id, new_id
from strongroom.control import claiming, migrate, tasks
from strongroom.control.db import Database
from strongroom.control.embedded_postgres import EmbeddedPostgres


async def _project(database: Database) -> str:
    domain, project = new_hex_id(), new_hex_id()
    async with database.transaction() as conn:
        await conn.execute("INSERT INTO domains VALUES (%s, %s, now())", [domain, domain])
        await conn.execute(
            "INSERT INTO projects (id, domain_id, name, created_at) VALUES (%s, %s, 'p', now())", [project, domain]
        )
    return project


async def _measure(url: str, count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    clock = SystemClock()
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    @app.task(name="run")
    async def run(task_id: str) -> None: ...

    seconds: dict[str, dict[str, list[float]]] = {
        "row": {"enqueue": [], "take": []},
        "row and job": {"enqueue": [], "take": []},
    }
    async with app.open_async(), await Database.open(url, min_size=2) as database:
        manager = app.job_manager
        worker_id = await manager.register_worker()
        project = await _project(database)
        for round_ in range(rounds):
            for way in sorted(seconds, reverse=bool(round_ % 2)):
                new = [
                    tasks.NewTask(project_id=project, operation_type="backup", request_id="r", resource_id=new_id())
                    for _ in range(count)
                ]
                begun = time.perf_counter()
                async with database.transaction() as conn:
                    await tasks.insert(conn, new, clock.now())
                    if way != "row":
                        await run.configure(connection=conn).batch_defer_async(*({"task_id": t.id} for t in new))
                seconds[way]["enqueue"].append(time.perf_counter() - begun)
                begun = time.perf_counter()
                for _ in range(count):
                    job: Any = await manager.fetch_job(None, worker_id) if way != "row" else None
                    task = await claiming.claim(database, "w", "default")
                    assert task is not None
                    async with database.transaction() as conn:
                        await tasks.still_mine(conn, task)
                        await tasks.finish(conn, task, clock)
                    if job is not None:
                        await manager.finish_job(job, procrastinate.jobs.Status.SUCCEEDED, delete_job=True)
                seconds[way]["take"].append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        postgres = EmbeddedPostgres(Path(folder) / "pg")
        url = postgres.start()
        try:
            migrate.upgrade(url)
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute(SchemaManager.get_schema())  # type: ignore[arg-type]
            seconds = asyncio.run(_measure(url, options.tasks, options.rounds))
        finally:
            postgres.stop()
    for way, steps in seconds.items():
        for step, values in steps.items():
            low, high = min(values) * 1000, max(values) * 1000
            middle = statistics.median(values) * 1000
            print(f"{way:12} {step:8} {options.tasks} tasks: median {middle:7.1f} ms ({low:.1f}-{high:.1f})")
    for step in ("enqueue", "take"):
        ratio = statistics.median(
            b / a for a, b in zip(seconds["row"][step], seconds["row and job"][step], strict=True)
        )
        print(f"{step}: row and job costs {ratio:.2f} of row alone (median of pairs)")


if __name__ == "__main__":
    main()
