"""An installation moves to another database and another store; killed anywhere, nothing is lost."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import Client, Server, contents, make_tree
from seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

pytestmark = pytest.mark.e2e


class Old(NamedTuple):
    """A state folder whose server is stopped, with what its API told."""

    base: Path
    backups: list[dict[str, Any]]
    policies: list[dict[str, Any]]
    tasks: int
    tree: dict[str, Any]


def refused(state: Path, sentence: str, **settings: str) -> None:
    """`serve` ends at once, with the sentence."""
    environ = os.environ | {f"STRONGROOM_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "strongroom", "serve", "--state", str(state), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, text=True)
    assert done.returncode == 1 and sentence in " ".join(done.stderr.split()), done.stderr


def migrate(state: Path, *argv: str, code: int = 0, **settings: str) -> Any:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    environ |= {f"STRONGROOM_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "strongroom", "migrate", "--state", str(state), "--json", *argv]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=120)
    assert done.returncode == code, (argv, done.returncode, done.stdout.decode(), done.stderr.decode())
    return json.loads(done.stdout) if code == 0 else done.stderr.decode()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    base = tmp_path_factory.mktemp("relocation")
    make_tree(base / "tree", 3)
    (base / "tree" / "large").write_bytes(os.urandom(20_000_000))  # a pack of several pieces
    server = Server(base / "state").start()
    with server.client() as client:
        vault = client.vault("vault", "turbo", [client.register("turbo", "tree", base / "tree")])
        for _ in range(2):
            (base / "tree" / "more").write_bytes(os.urandom(100_000))
            assert client.settled(client.checkpoint(vault))["status"] == "available"
        trigger = {"properties": {"pattern": ["FREQ=DAILY;BYHOUR=3;BYMINUTE=0"]}}
        keep = {"max_backups": 9, "timezone": "UTC+00:00"}
        policy = {"name": "nightly", "operation_type": "backup", "operation_definition": keep, "trigger": trigger}
        client.ok("POST", "policies", {"policy": policy})
        client.quiet()
        tasks = len(client.ok("GET", f"/ext/v1/{client.project}/tasks")["tasks"])
        backups, policies = client.backups(), client.ok("GET", "policies")["policies"]
    assert server.stop() == 0
    return Old(base, backups, policies, tasks, contents(base / "tree"))


def copy_of(old: Old, tmp_path: Path) -> Path:
    """A state folder of the test's own. The credentials in it are valid: the database is the same."""
    state = tmp_path / "state"
    subprocess.run(["cp", "-a", str(old.base / "state"), str(state)], check=True)
    return state


def untouched(state: Path) -> str:
    """A digest of every file of the old store."""
    digest = hashlib.sha256()
    for path in sorted((state / "store").rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(state)).encode() + path.read_bytes())
    return digest.hexdigest()


def require_all(old: Old, server: Server) -> None:
    """At the new place all is as it was: rows, restore points byte for byte, and the next backup is an increment."""
    server.start()
    with Client(server.endpoint, server.credentials) as client:
        assert client.backups() == old.backups
        assert client.ok("GET", "policies")["policies"] == old.policies
        assert len(client.ok("GET", f"/ext/v1/{client.project}/tasks")["tasks"]) == old.tasks
        vault = old.backups[0]["vault_id"]
        settled = client.settled(client.checkpoint(vault))
        assert settled["status"] == "available"
        made = next(b for b in client.backups() if b["checkpoint_id"] == settled["id"])
        shown = client.ok("GET", f"/ext/v1/{client.project}/backups/{made['id']}")["backup"]
        assert (shown["full_reason"], shown["bytes_new"]) == (None, 0)
        (old.base / "tree" / "big").write_bytes(b"damaged")
        assert client.restore(made["id"])["status"] == "success"
        assert contents(old.base / "tree") == old.tree
        client.quiet()
    assert server.stop() == 0


def test_to_postgresql_and_s3(
    old: Old, tmp_path: Path, empty_postgres_url: str, s3_server: S3Server, s3_prefix: str
) -> None:
    """Both at once; then the old place serves no more, the new one as the old one did."""
    state = copy_of(old, tmp_path)
    before = untouched(state)
    access = {
        "s3_endpoint": s3_server.endpoint,
        "s3_access_key": ACCESS_KEY,
        "s3_secret_key": SECRET_KEY,
        "s3_allow_http": "true",
    }
    url = f"s3://{BUCKET}/{s3_prefix}"
    done = migrate(state, "--to-database", empty_postgres_url, "--to-store", url, **access)
    assert done["copied"] == done["objects"] > 5 and done["tables"]["backups"] == 2
    assert done["settings"]["store_url"] == url
    again = migrate(state, "--to-database", empty_postgres_url, "--to-store", url, **access)
    assert again == {"settings": done["settings"], "before": True}
    assert untouched(state) == before
    refused(state, "has moved: set database_url and store_url")
    require_all(old, Server(state, store_url=url, database_url=empty_postgres_url, **access))


def test_each_alone(old: Old, tmp_path: Path, empty_postgres_url: str) -> None:
    """First the store, then the database, to places that are not empty and to empty ones."""
    state, store = copy_of(old, tmp_path), tmp_path / "new-store"
    (store / "vaults").mkdir(parents=True)
    (store / "vaults" / "somebody").write_bytes(b"else's")
    assert "not empty" in migrate(state, "--to-store", f"file://{store}", code=1)
    shutil.rmtree(store)
    store.mkdir()
    assert not (state / "migrate.json").exists()  # of a move that never began
    assert migrate(state, "--to-store", f"file://{store}")["settings"] == {"store_url": f"file://{store}"}
    moved = {"store_url": f"file://{store}"}
    assert "already" in migrate(state, "--to-store", f"file://{store}", code=1, **moved)
    assert migrate(state, "--to-database", empty_postgres_url, **moved)["rows"] > 10
    require_all(old, Server(state, database_url=empty_postgres_url, **moved))
    (tmp_path / "b").mkdir()
    other = copy_of(old, tmp_path / "b")
    assert "not empty" in migrate(other, "--to-database", empty_postgres_url, code=1)


_LONG = [
    pytest.param(point, marks=pytest.mark.long) for point in ("database:2", "database:3", "database:6", "store:30")
]


@pytest.mark.parametrize("point", ["database:5", "store:9", *_LONG])
def test_killed_anywhere_it_goes_on(old: Old, tmp_path: Path, empty_postgres_url: str, point: str) -> None:
    """And no server starts on the half of it; what the old server did in between comes along."""
    state, store = copy_of(old, tmp_path), tmp_path / "new"
    store.mkdir()
    to = ("--to-database", empty_postgres_url, "--to-store", f"file://{store}")
    migrate(state, *to, code=-9, kill_at=f"migrate:{point}")
    if point in ("database:5", "store:9"):
        refused(state, "has not ended", database_url=empty_postgres_url, store_url=f"file://{store}")
    between = Server(state).start()
    with between.client() as client:
        client.ok("PUT", f"backups/{old.backups[0]['id']}", {"backup": {"name": "named-in-between"}})
        assert client.settled(client.checkpoint(old.backups[0]["vault_id"]))["status"] == "available"
        client.quiet()
        told = client.backups()
    assert between.stop() == 0
    done = migrate(state, *to)
    assert done["tables"]["backups"] == 3
    server = Server(state, database_url=empty_postgres_url, store_url=f"file://{store}").start()
    with Client(server.endpoint, server.credentials) as client:
        assert client.backups() == told
        assert client.restore(told[0]["id"])["status"] == "success"
        client.quiet()
    assert server.stop() == 0


def test_an_object_that_differs_is_noticed(old: Old, tmp_path: Path) -> None:
    """What an earlier run copied and somebody damaged: told by name, and nothing is called done."""
    state, store = copy_of(old, tmp_path), tmp_path / "new"
    store.mkdir()
    migrate(state, "--to-store", f"file://{store}", code=-9, kill_at="migrate:store:60")
    victim = next(path for path in sorted(store.rglob("packs/**/*")) if path.is_file())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o600)
    victim.write_bytes(bytes(data))
    assert victim.name in migrate(state, "--to-store", f"file://{store}", code=1)
    victim.unlink()
    assert migrate(state, "--to-store", f"file://{store}")["copied"] >= 1
