"""Many clients, jobs, vaults and restore points at once: p50 and p99, memory, connections, and what is lost.

    python -m bench.scale.load [--clients 1000] [--jobs 100] [--vaults 10000] [--points 1M] [--seconds 60]

Real processes on this machine: `strongroom api`, four `strongroom worker`, a PostgreSQL, a store in a folder. Ten
tenants read what is seeded and ask for backups of small folders, whose reading is held back so that as many jobs as
wanted run at once; one vault has 256 resources. Then the workers finish what was taken in, and rows are compared with
answers: each restore point that was acknowledged is there and has ended, none that was refused has left a row. Ends
with 1 when that is not so. Writes load.json, from which `bench.scale.report` makes its part of docs/SCALE.md.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import parse_count
from bench.api.load import family_cpu_seconds
from bench.ending import end_on_sigterm
from bench.many_workers import Installation
from bench.scale import catalogue as seeded
from bench.scale.catalogue import PASSWORD, Catalogue, Tenant
from bench.scale.clients import Ask, Seen, run

WORKERS = 4
WIDE = 256  # resources of one vault, the most
SLOW_BYTES_S, SLOW_BYTES = 64 << 10, 6 << 20  # a minute and a half each, so that a hundred are at work at once
SHARES = {"show": 45, "list backups": 15, "list tasks": 10, "list vaults": 4, "show vault": 11, "create": 15}


class Mix:
    """What clients ask for, drawn with a fixed seed."""

    def __init__(self, host: str, tenants: list["Working"]) -> None:
        self._host, self._tenants = host, tenants
        self.prefix = f"load-{time.time_ns():x}-"  # of the names that this run makes
        self._random = random.Random(1)
        self._numbers = itertools.count()

    def next(self, client: int) -> Ask:
        """The next request of a client; clients are the tenants' in turn."""
        tenant = self._tenants[client % len(self._tenants)]
        kind = self._random.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "create":
            number = next(self._numbers)
            vaults = tenant.wide if tenant.wide and number % 40 == 0 else tenant.vaults
            name = f"{self.prefix}{number}"
            body = {"vault_id": self._random.choice(vaults), "parameters": {"name": name}}
            kind = "create, 256 resources" if vaults is tenant.wide else "create"
            return self._ask(tenant, kind, "POST", "checkpoints", {"checkpoint": body}, name)
        path = {
            "show": f"checkpoints/{self._random.choice(tenant.points)}",
            "list backups": f"backups?limit=50&offset={self._random.randrange(1000)}",
            "list tasks": "operation-logs?limit=50",
            "list vaults": "vaults?limit=50",
            "show vault": f"vaults/{self._random.choice(tenant.all_vaults)}",
        }[kind]
        return self._ask(tenant, kind, "GET", path)

    def _ask(
        self, tenant: "Working", kind: str, method: str, path: str, body: object = None, name: str | None = None
    ) -> Ask:
        text = json.dumps(body).encode() if body is not None else b""
        lines = [
            f"{method} /v3/{tenant.project}/{path} HTTP/1.1",
            f"Host: {self._host}",
            f"X-Auth-Token: {tenant.token}",
            *([f"Content-Type: application/json\r\nContent-Length: {len(text)}"] if text else []),
        ]
        return Ask(kind=kind, data="\r\n".join(lines).encode() + b"\r\n\r\n" + text, name=name)


class Working:
    """A tenant at work: its token, its vaults with real folders, and what of the seeded rows it asks for."""

    def __init__(self, bench: Installation, url: str, tenant: Tenant) -> None:
        self.project = tenant.project
        self.token = seeded.token(bench.endpoint, tenant.name, PASSWORD, tenant.project)
        self.vaults: list[str] = []
        self.wide: list[str] = []
        statement = "SELECT id FROM {} WHERE project_id = %s AND {} ORDER BY right(id, 12) LIMIT 5000"
        self.points = [r[0] for r in seeded.rows(url, statement.format("checkpoints", "auto_trigger"), self.project)]
        self.all_vaults = [r[0] for r in seeded.rows(url, statement.format("vaults", "true"), self.project)]


class Sampler(threading.Thread):
    """Looks once a second at what the processes hold. peaks: name -> the most that was seen."""

    def __init__(self, bench: Installation, made: Catalogue) -> None:
        super().__init__(daemon=True)
        self._bench, self._made = bench, made
        self._end = threading.Event()
        self.peaks: Counter[str] = Counter()
        self.running: list[int] = []

    def run(self) -> None:
        while not self._end.wait(1.0):
            self._look()

    def end(self) -> None:
        self._end.set()
        self.join()

    def _look(self) -> None:
        apis = len(self._bench.endpoints)
        for number, process in enumerate(self._bench.processes):
            name = f"api {number + 1}" if number < apis else f"worker {number - apis + 1}"
            self._note(f"MiB of {name}", _resident_kib(process.pid) >> 10)
        self._note("MiB of PostgreSQL", _family_kib(self._made.postgres_pid) >> 10)
        ((connections, running, waiting),) = seeded.rows(
            self._made.url,
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
            "(SELECT count(*) FROM operation_logs WHERE status = 'running'), "
            "(SELECT count(*) FROM operation_logs WHERE status = 'waiting')",
        )
        self._note("connections to PostgreSQL", connections - 1)
        self._note("jobs running", running)
        self._note("jobs waiting", waiting)
        self.running.append(running)

    def _note(self, name: str, value: int) -> None:
        self.peaks[name] = max(self.peaks[name], value)


def _resident_kib(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/status"), "VmRSS:")


def _family_kib(parent: int) -> int:
    """Proportional share of memory of a process and its children: shared buffers count once."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sum(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in [parent, *children])


def _field(path: Path, name: str) -> int:
    try:
        return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name)), 0)
    except OSError:  # ended meanwhile
        return 0


def prepare(bench: Installation, made: Catalogue, jobs: int) -> list[Working]:
    """Tenants with folders and vaults: one slow folder a job, and one vault of 256."""
    sources = made.folder / f"sources-{time.time_ns():x}"  # a path is registered once
    working = [Working(bench, made.url, tenant) for tenant in made.tenants]
    with seeded.operator(bench) as admin:
        for number in range(max(jobs, len(working))):
            at = number % len(working)
            resource = seeded.register(
                admin,
                made.tenants[at],
                sources / f"slow-{number}",
                size_bytes=SLOW_BYTES,
                read_limit_bytes_s=SLOW_BYTES_S,
            )
            working[at].vaults.append(seeded.make_vault(bench, made.tenants[at], working[at].token, [resource]))
        wide = [seeded.register(admin, made.tenants[0], sources / f"wide-{number}") for number in range(WIDE)]
        working[0].wide.append(seeded.make_vault(bench, made.tenants[0], working[0].token, wide))
    return working


def compare(url: str, seen: Seen, prefix: str) -> dict[str, Any]:
    """Answers beside rows. `problems` is empty when nothing was lost."""
    found = dict(seeded.rows(url, "SELECT name, status FROM checkpoints WHERE name LIKE %s", f"{prefix}%"))
    unknown = set(seen.lost)
    ended = Counter(found.values())
    problems = [
        *(f"{name} was acknowledged and is not there" for name in seen.made - found.keys()),
        *(f"{name} was refused and is there" for name in seen.refused & found.keys()),
        *(f"{name} is there, and nobody asked" for name in found.keys() - seen.made - unknown),
        *(f"{count} restore points are {status}" for status, count in ended.items() if status != "available"),
    ]
    return {
        "acknowledged": len(seen.made),
        "ended": dict(ended),
        "refused": len(seen.refused),
        "no answer": len(seen.lost),
        "problems": problems,
    }


def quantiles_ms(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    return {"n": len(seconds), "p50": cuts[49] * 1000, "p99": cuts[98] * 1000, "max": max(seconds) * 1000}


def measure(options: argparse.Namespace, made: Catalogue) -> dict[str, Any]:
    """The whole run on a catalogue that is there."""
    with seeded.installation(made.folder, made.url, apis=options.apis) as bench:
        working = prepare(bench, made, options.jobs)
        bench.workers(WORKERS, -(-(options.jobs + 4) // WORKERS))
        mix = Mix(urlsplit(bench.endpoint).netloc, working)
        sampler = Sampler(bench, made)
        sampler.start()
        cpu = family_cpu_seconds(made.postgres_pid)
        seen = run(bench.endpoints, options.clients, mix.next, seconds=options.seconds)
        cpu = family_cpu_seconds(made.postgres_pid) - cpu
        drained_s = seeded.drain(made.url)
        sampler.end()
        dead = [process.pid for process in bench.processes if process.poll() is not None]
    told = compare(made.url, seen, mix.prefix)
    told["problems"] += [f"{len(dead)} processes ended by themselves"] if dead else []
    told["problems"] += [f"{seen.graceless} refusals without Retry-After"] if seen.graceless else []
    return {
        "kinds": {kind: quantiles_ms(seconds) for kind, seconds in sorted(seen.seconds.items())},
        "refusals": quantiles_ms(seen.refused_s) if seen.refused_s else {},
        "answers": {f"{kind} {status}": n for (kind, status), n in sorted(seen.answers.items())},
        "wrong": dict(seen.wrong.most_common(20)),
        "closed_idle": seen.closed_idle,
        "requests_s": sum(seen.answers.values()) / options.seconds,
        "postgres_cpu_s": cpu,
        "peaks": dict(sampler.peaks),
        "running_median": statistics.median(sampler.running or [0]),
        "drained_s": drained_s,
        "result": told,
    }


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=100, help="at least one of each tenant")
    parser.add_argument("--vaults", type=parse_count, default=10_000)
    parser.add_argument("--points", type=parse_count, default=10**6)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--apis", type=int, default=1)
    parser.add_argument("--dir", type=Path, default=Path(".bench"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--keep", action="store_true", help="use the data of an earlier run, and leave it there")
    options = parser.parse_args()
    told = {name: getattr(options, name) for name in ("clients", "jobs", "vaults", "points", "seconds", "apis")}
    with seeded.catalogue(options.dir, options.points, options.vaults, keep=options.keep) as made:
        found = {
            "command": os.environ.get("BENCH_COMMAND") or "python -m bench.scale.load " + " ".join(sys.argv[1:]),
            "machine": seeded.machine(),
            "asked": told,
            "seeded_s": made.seconds,
            **measure(options, made),
        }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "load.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 1 if found["result"]["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
