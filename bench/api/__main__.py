"""Measure the API beside what could be written by hand, in one run on one machine.

    python -m bench.api [--points 1M] [--rounds 7] [--seconds 3] [--dir .bench] [--out docs/benchmarks]

Makes a project with that many restore points (kept for the next run with --keep), starts the real server and the two it
is compared with, and asks all of them in turns. Writes the page and ends with 1 when a promise was missed.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg

from bench import parse_count
from bench.api import filters, load, report, seed, servers
from bench.api.report import Figures
from bench.ending import end_on_sigterm
from strongroom.control import migrate
from strongroom.control.embedded_postgres import EmbeddedPostgres

WIDE_VAULTS = 200  # one create each: the second slowest of 200 is the 99th percentile
WARM_VAULTS = 5  # creates before these: statements prepared, plans made
CONNECTIONS = 200  # of PostgreSQL: several servers with a pool each
LIST_LIMIT = 50
LIST_S = 1.0  # of one depth in one round
LIST_ROUNDS = 5
COMPARED = 100  # answers that are compared between the servers before anything is measured
_DEPTHS = ("first", "middle", "last")
_LISTS = {"backups": "parent_id IS NULL", "operation_logs": "listed", "vaults": "true"}
_PATHS = {"backups": "backups", "operation_logs": "operation-logs", "vaults": "vaults"}

Ask = Callable[[], load.Load]


class Bench:
    """What the parts of a run share."""

    def __init__(self, options: argparse.Namespace, url: str, database_pid: int, folder: Path) -> None:
        self.options = options
        self.url = url
        self.database_pid = database_pid
        self.folder = folder
        self.account: dict[str, str] = {}
        self.token = ""
        self.ids: list[str] = []

    def path(self, rest: str) -> str:
        return f"/v3/{self.account['project_id']}/{rest}"

    def run(
        self, server: servers.Running, requests: list[tuple[bytes, bytes]], seconds: float, width: int
    ) -> load.Load:
        return load.run(
            server.port,
            requests,
            seconds=seconds,
            server_pid=server.pid,
            database_pid=self.database_pid,
            connections=width,
        )


def measure_reads(bench: Bench, product: servers.Running, peers: dict[str, servers.Running], figures: Figures) -> None:
    """Rounds of GET checkpoint; who begins changes from round to round."""
    paths = [bench.path(f"checkpoints/{id_}") for id_ in bench.ids]
    wanted = [f'"id":"{id_}"'.encode() for id_ in bench.ids]
    asked: dict[str, tuple[servers.Running, list[tuple[bytes, bytes]]]] = {}
    for name, server in {"token": product, "signature": product, **peers}.items():
        headers = {"X-Auth-Token": bench.token}
        made = (
            [servers.signed(server.port, path, bench.account) for path in paths]
            if name == "signature"
            else [servers.plain("GET", server.port, path, headers) for path in paths]
        )
        asked[name] = server, list(zip(made, wanted, strict=True))
    _compare(bench, product, peers)
    figures.reads = {name: [] for name in asked}
    for server, requests in asked.values():
        bench.run(server, requests, 1.0, load.CONNECTIONS)  # warm: pools filled, statements prepared
    names = list(asked)
    for round_ in range(bench.options.rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            server, requests = asked[name]
            figures.reads[name].append(bench.run(server, requests, bench.options.seconds, load.CONNECTIONS))


def _compare(bench: Bench, product: servers.Running, peers: dict[str, servers.Running]) -> None:
    """All servers answer the same. Raises RuntimeError."""
    with httpx.Client(headers={"X-Auth-Token": bench.token}) as client:
        for id_ in bench.ids[:COMPARED]:
            path = bench.path(f"checkpoints/{id_}")
            answers = [
                client.get(f"http://127.0.0.1:{server.port}{path}").json() for server in (product, *peers.values())
            ]
            if any(answer != answers[0] for answer in answers) or not answers[0]["checkpoint"]["vault"]["resources"]:
                raise RuntimeError(f"the servers do not answer alike: {answers}")


def measure_lists(bench: Bench, product: servers.Running, figures: Figures) -> None:
    """Pages at three depths of each list, in turns; and what a count costs, beside counting rows."""
    requests: dict[str, dict[str, list[tuple[bytes, bytes]]]] = {}
    with psycopg.connect(bench.url, autocommit=True) as conn:
        for table, shown in _LISTS.items():
            begun = time.perf_counter()
            found = conn.execute(
                f"SELECT count(*) FROM {table} WHERE project_id = %s AND {shown}".encode(),
                [bench.account["project_id"]],
            ).fetchone()
            figures.counts[f"{table}: rows counted"] = time.perf_counter() - begun
            assert found is not None
            total = found[0]
            times = []
            for _ in range(9):
                begun = time.perf_counter()
                kept = conn.execute(
                    "SELECT coalesce(sum(n), 0) FROM list_counts WHERE project_id = %s AND list = %s",
                    [bench.account["project_id"], table],
                ).fetchone()
                times.append(time.perf_counter() - begun)
            if kept is None or kept[0] != total:
                raise RuntimeError(f"the list of {table} has {total} rows, its count says {kept}")
            figures.counts[f"{table}: as the API does it"] = sorted(times)[len(times) // 2]
            if total >= 10 * LIST_LIMIT:
                requests[table] = {
                    depth: _pages(bench, conn, product.port, table, shown, offset, total)
                    for depth, offset in zip(_DEPTHS, (0, total // 2, total - 4 * LIST_LIMIT), strict=True)
                }
    figures.lists = {table: {depth: [] for depth in _DEPTHS} for table in requests}
    for round_ in range(LIST_ROUNDS + 1):
        for table, depths in requests.items():
            for depth, asked in depths.items():
                taken = bench.run(product, asked, LIST_S, 1)
                if round_:  # the first one warms
                    figures.lists[table][depth].append(taken)


def _pages(
    bench: Bench, conn: psycopg.Connection[Any], port: int, table: str, shown: str, offset: int, total: int
) -> list[tuple[bytes, bytes]]:
    """Requests for full pages around a depth."""
    markers = conn.execute(
        f"SELECT id FROM {table} WHERE project_id = %s AND {shown} ORDER BY created_at DESC, id DESC "
        "OFFSET %s LIMIT %s".encode(),
        [bench.account["project_id"], offset, 3 * LIST_LIMIT],
    ).fetchall()
    headers = {"X-Auth-Token": bench.token}
    paths = [bench.path(f"{_PATHS[table]}?limit={LIST_LIMIT}&marker={row[0]}") for row in markers]
    return [(servers.plain("GET", port, path, headers), f'"count":{total}'.encode()) for path in paths]


def measure_creates(bench: Bench, product: servers.Running, vaults: list[str], figures: Figures) -> None:
    """One checkpoint in each vault, one after the other; the first ones warm."""
    connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=30)
    headers = {"X-Auth-Token": bench.token, "Content-Type": "application/json"}
    for vault in vaults:
        body = json.dumps({"checkpoint": {"vault_id": vault}})
        begun = time.perf_counter()
        connection.request("POST", bench.path("checkpoints"), body, headers)
        answer = connection.getresponse()
        text = answer.read()
        figures.creates.append(time.perf_counter() - begun)
        made = json.loads(text)
        if answer.status != 200 or len(made["checkpoint"]["vault"]["resources"]) != seed.WIDE_RESOURCES:
            raise RuntimeError(f"not created: {answer.status} {text[:500]!r}")
    del figures.creates[:WARM_VAULTS]
    figures.create_resources = seed.WIDE_RESOURCES
    connection.close()


def prepare(bench: Bench, product: servers.Running, figures: Figures) -> list[str]:
    """Make the data unless it is there from an earlier run; ids of the wide vaults, fit to be backed up."""
    bench.account = servers.credentials(bench.folder)
    bench.token, user_id = servers.token(product.port, bench.account)
    made = bench.folder / "seeded.json"
    if not made.exists():
        begun = time.monotonic()
        with seed.unindexed(bench.url):
            seeded = seed.seed(bench.url, bench.account["project_id"], user_id, bench.options.points)
        print(f"made {seeded.points:,} restore points in {time.monotonic() - begun:.0f} s", flush=True)
        wide = seed.seed_wide_vaults(bench.url, bench.account["project_id"], user_id, WARM_VAULTS + WIDE_VAULTS)
        made.write_text(json.dumps({"backups": seeded.backups, "ids": seeded.ids, "wide": wide}))
    known = json.loads(made.read_text())
    bench.ids, figures.backups = known["ids"], known["backups"]
    seed.reset_wide_vaults(bench.url, bench.account["project_id"], known["wide"])
    wide_vaults: list[str] = known["wide"]
    return wide_vaults


def run(options: argparse.Namespace, folder: Path, figures: Figures) -> None:
    """The whole run, on a PostgreSQL of its own."""
    postgres = EmbeddedPostgres(folder / "postgres", settings={"max_connections": str(CONNECTIONS)})
    url = postgres.start()
    try:
        migrate.upgrade(url)
        assert postgres.pid is not None
        bench = Bench(options, url, postgres.pid, folder)
        with contextlib.ExitStack() as stack:
            product = stack.enter_context(servers.strongroom(url, folder))
            wide = prepare(bench, product, figures)
            if options.seed_only:
                return
            peers = {name: stack.enter_context(servers.peer(name, url, folder)) for name in options.peers}
            for name, source in options.versions:
                peers[name] = stack.enter_context(servers.strongroom(url, folder, source=Path(source), name=name))
            figures.load_before = os.getloadavg()[0]
            if "reads" in options.parts:
                measure_reads(bench, product, peers, figures)
            if "lists" in options.parts:
                measure_lists(bench, product, figures)
            if "filters" in options.parts:
                figures.filters = filters.measure(product, url, bench.account["project_id"], bench.token)
            if "creates" in options.parts:
                measure_creates(bench, product, wide, figures)
    finally:
        postgres.stop()


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(
        prog="bench.api", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=parse_count, default=parse_count("1M"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one server in one round")
    parser.add_argument("--parts", nargs="*", default=["reads", "lists", "filters", "creates"])
    parser.add_argument("--peers", nargs="*", default=["minimal", "orm"])
    parser.add_argument(
        "--versions",
        type=lambda text: text.split("=", 1),
        nargs="*",
        default=[],
        help="NAME=FOLDER: other versions of the program, of the same schema, to be asked as well",
    )
    parser.add_argument("--dir", type=Path, default=Path(".bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--page", default="api.md", help="its name in --out")
    parser.add_argument("--keep", action="store_true", help="use the data of an earlier run, and leave it there")
    parser.add_argument("--seed-only", action="store_true", help="make the data and end; implies --keep")
    options = parser.parse_args()
    folder = options.dir.resolve() / f"api-{options.points}"
    if not (options.keep or options.seed_only):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    figures = Figures(
        points=options.points,
        backups=0,
        command=os.environ.get("BENCH_COMMAND") or "python -m bench.api " + " ".join(sys.argv[1:]),
        machine=f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
    )
    try:
        run(options, folder, figures)
    finally:
        if not (options.keep or options.seed_only):
            shutil.rmtree(folder, ignore_errors=True)
    if options.seed_only:
        return 0
    print(report.write(figures, options.out / options.page))
    for miss in (missed := report.misses(figures)):
        print(f"missed: {miss}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
