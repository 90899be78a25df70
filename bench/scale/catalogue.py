"""An installation with a catalogue of the wanted size: what `bench.scale.load` and `bench.scale.growth` work on.

Ten tenants share vaults and restore points; a restore point has two backups, each with its operation log. Made once
for a folder (--keep) and size: a million takes some ten minutes and four gigabytes.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from bench.api import seed, servers
from bench.many_workers import Installation
from strongroom.control import migrate
from strongroom.control.embedded_postgres import EmbeddedPostgres

TENANTS = 10
PASSWORD = "load-and-growth-1"
CONNECTIONS = 400
FOLDER_BYTES = 256 << 10
DRAIN_S_MAX = 900


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """A project with an operator of its own."""

    project: str
    user: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A PostgreSQL that runs, with the rows. seconds: of making them; 0 with --keep, when they were there."""

    folder: Path
    url: str
    postgres_pid: int
    tenants: tuple[Tenant, ...]
    points: int
    seconds: float


@contextmanager
def catalogue(folder: Path, points: int, vaults: int, *, keep: bool) -> Iterator[Catalogue]:
    """The catalogue in `folder`/scale-<points>, made when it is not there; removed at the end unless it is kept."""
    place = folder.resolve() / f"scale-{points}"
    if not keep:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    settings = {"max_connections": str(CONNECTIONS)}
    postgres = EmbeddedPostgres(place / "postgres", settings=settings)
    url = postgres.start()
    try:
        migrate.upgrade(url)
        assert postgres.pid is not None
        known = place / "seeded.json"
        seconds = 0.0 if known.exists() else _make(place, url, points, vaults)
        tenants = tuple(Tenant(**row) for row in json.loads(known.read_text()))
        yield Catalogue(
            folder=place, url=url, postgres_pid=postgres.pid, tenants=tenants, points=points, seconds=seconds
        )
    finally:
        postgres.stop()
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def of_api(folder: Path, points: int) -> Iterator[Catalogue]:
    """That of one project, without logs of ended tasks, which `python -m bench.api --points N --seed-only` has made."""
    place = folder.resolve() / f"api-{points}"
    if not (place / "seeded.json").exists():
        raise SystemExit(f"{place} is not there: make it with `python -m bench.api --points {points} --seed-only`.")
    postgres = EmbeddedPostgres(place / "postgres", settings={"max_connections": str(CONNECTIONS)})
    url = postgres.start()
    try:
        migrate.upgrade(url)
        assert postgres.pid is not None
        account = servers.credentials(place)
        # What `bench.api` asked of its wide vaults waits for workers that never come.
        seed.reset_wide_vaults(url, account["project_id"], json.loads((place / "seeded.json").read_text())["wide"])
        tenant = Tenant(project=account["project_id"], user="", name="")
        yield Catalogue(folder=place, url=url, postgres_pid=postgres.pid, tenants=(tenant,), points=points, seconds=0.0)
    finally:
        postgres.stop()


def _make(place: Path, url: str, points: int, vaults: int) -> float:
    """The tenants, by the API, and their rows; returns the seconds that the rows took."""
    with installation(place, url) as bench, operator(bench) as admin:
        tenants = [_tenant(admin, number) for number in range(TENANTS)]
        _first_point(bench, admin, tenants[0])
    begun = time.monotonic()
    with seed.unindexed(url):
        for tenant in tenants:
            seed.seed(url, tenant.project, tenant.user, points // TENANTS, vaults=max(vaults // TENANTS, 1), whole=True)
    seconds = time.monotonic() - begun
    (place / "seeded.json").write_text(json.dumps([asdict(tenant) for tenant in tenants]))
    return seconds


def _tenant(admin: httpx.Client, number: int) -> Tenant:
    project = _posted(admin, "projects", {"project": {"name": f"load-{number}"}})["project"]["id"]
    new = {"name": f"load-{number}", "password": PASSWORD, "project_id": project, "role": "CBR FullAccess"}
    user = _posted(admin, "users", {"user": new})["user"]["id"]
    return Tenant(project=project, user=user, name=str(new["name"]))


def _posted(admin: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = admin.post(f"/ext/v1/admin/{path}", json=body)
    if answer.status_code >= 300:
        raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
    found: dict[str, Any] = answer.json()
    return found


def _first_point(bench: Installation, admin: httpx.Client, tenant: Tenant) -> None:
    """One real restore point: a process refuses an empty store whose database knows of some."""
    key = token(bench.endpoint, tenant.name, PASSWORD, tenant.project)
    vault = make_vault(bench, tenant, key, [register(admin, tenant, bench.folder / "first")])
    answer = httpx.post(
        f"{bench.endpoint}/v3/{tenant.project}/checkpoints",
        json={"checkpoint": {"vault_id": vault}},
        headers={"X-Auth-Token": key},
    )
    answer.raise_for_status()
    bench.workers(1)
    drain(bench.url)


def register(admin: httpx.Client, tenant: Tenant, path: Path, size_bytes: int = FOLDER_BYTES, **options: object) -> str:
    """Id of a new folder with one file of that size that a tenant may protect."""
    path.mkdir(parents=True)
    (path / "file").write_bytes(os.urandom(size_bytes))
    new = {"project_id": tenant.project, "type": "turbo", "name": path.name, "path": str(path), **options}
    return str(_posted(admin, "protectables", {"protectable": new})["protectable"]["id"])


def make_vault(bench: Installation, tenant: Tenant, key: str, resources: list[str]) -> str:
    """A vault with these folders."""
    new = {
        "name": "load",
        "billing": {"object_type": "turbo", "protect_type": "backup", "consistent_level": "crash_consistent",
                    "size": 1000},
        "resources": [{"id": resource, "type": "OS::Sfs::Turbo"} for resource in resources],
    }  # fmt: skip
    answer = httpx.post(
        f"{bench.endpoint}/v3/{tenant.project}/vaults", json={"vault": new}, headers={"X-Auth-Token": key}, timeout=60
    )
    answer.raise_for_status()
    return str(answer.json()["vault"]["id"])


def drain(url: str) -> float:
    """Until no job waits or runs; seconds of it."""
    begun = time.monotonic()
    query = "SELECT count(*) FROM operation_logs WHERE status IN ('waiting', 'running') AND listed"
    while left := rows(url, query)[0][0]:
        if time.monotonic() > begun + DRAIN_S_MAX:
            raise SystemExit(f"{left} jobs did not end in {DRAIN_S_MAX} s")
        time.sleep(0.25)
    return time.monotonic() - begun


@contextmanager
def installation(place: Path, url: str, *, apis: int = 1, **settings: str) -> Iterator[Installation]:
    """`strongroom api` on that database, until the block ends; workers are started by who wants them."""
    bench = Installation(place, url, apis=apis, **settings)
    try:
        yield bench
    finally:
        bench.end()


def token(endpoint: str, name: str, password: str, project: str) -> str:
    """A token of a user for its project."""
    body = {
        "auth": {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"name": name, "password": password, "domain": {"name": "default"}}},
            },
            "scope": {"project": {"id": project}},
        }
    }
    answer = httpx.post(f"{endpoint}/v3/auth/tokens", json=body, timeout=60)
    answer.raise_for_status()
    return str(answer.headers["X-Subject-Token"])


@contextmanager
def operator(bench: Installation) -> Iterator[httpx.Client]:
    """A client of the first account."""
    given = json.loads((bench.folder / "api" / "credentials.json").read_text())
    headers = {"X-Auth-Token": token(bench.endpoint, given["username"], given["password"], given["project_id"])}
    with httpx.Client(base_url=bench.endpoint, headers=headers, timeout=60) as found:
        yield found


def rows(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """All rows of one statement."""
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(statement.encode(), values).fetchall()


def machine() -> str:
    """The machine, for the pages."""
    return (
        f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, load "
        f"average before: {os.getloadavg()[0]:.1f}"
    )
