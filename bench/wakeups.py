"""What a new task costs when many workers are idle, for NOTIFY wakes all of them: docs/SCALE.md.

    python -m bench.wakeups [--workers 1,2,4,8] [--tasks 30] [--pause 0.5]

Real processes: one `strongroom api` and so many `strongroom worker --concurrency 2`, all idle. A backup of a small
folder is asked for every `pause` seconds. PostgreSQL counts transactions and blocks looked at; what idle workers do in
the same time without tasks is taken off. Request to claim: by the database's clock.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from bench.ending import end_on_sigterm
from bench.many_workers import Installation, back_up, client, make_vaults, settle
from strongroom.control import migrate
from strongroom.control.embedded_postgres import EmbeddedPostgres

TOLD_S = 1.5  # a backend tells its counts a second later


def counted(bench: Installation) -> tuple[int, int]:
    """(transactions, blocks looked at) since the start."""
    time.sleep(TOLD_S)
    query = (
        "SELECT xact_commit + xact_rollback, blks_hit + blks_read FROM pg_stat_database WHERE datname = 'strongroom'"
    )
    ((transactions, blocks),) = bench.rows(query)
    return int(transactions), int(blocks)


def measure(bench: Installation, api: httpx.Client, vaults: list[str], pause_s: float) -> tuple[float, float, float]:
    """(transactions a task, blocks a task, median ms from commit to claim), without what idle workers do anyway."""
    before = counted(bench)
    time.sleep(pause_s * len(vaults))
    idle = counted(bench)
    begun = time.monotonic()
    for vault in vaults:
        back_up(api, [vault])
        time.sleep(max(0.0, pause_s - (time.monotonic() - begun) % pause_s))
    settle(bench)
    after = counted(bench)
    waits = bench.rows(
        "SELECT extract(epoch FROM started_at - created_at)::float8 FROM operation_logs "
        "WHERE operation_type = 'backup' ORDER BY created_at DESC LIMIT %s",
        len(vaults),
    )
    a_task = [(a - i - (i - b)) / len(vaults) for b, i, a in zip(before, idle, after, strict=True)]
    return a_task[0], a_task[1], 1000 * statistics.median(float(row[0]) for row in waits)


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4,8")
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--pause", type=float, default=0.5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="wakeups-"))
    postgres = EmbeddedPostgres(folder / "postgres", settings={"max_connections": "200"})
    url = postgres.start()
    migrate.upgrade(url)
    bench = Installation(folder, url)
    try:
        (folder / "sources").mkdir()
        api = client(bench)
        vaults = make_vaults(bench, api, options.tasks)
        print("| workers | transactions a task | blocks a task | request to claim, ms |\n| --- | --- | --- | --- |")
        for count in map(int, options.workers.split(",")):
            bench.workers(count)
            transactions, blocks, wait_ms = measure(bench, api, vaults, options.pause)
            print(f"| {count} | {transactions:.0f} | {blocks:.0f} | {wait_ms:.0f} |", flush=True)
        api.close()
    finally:
        bench.end()
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
