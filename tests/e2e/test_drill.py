"""The drill of docs/OPERATIONS.md: the database is lost; its copy in the store and the master key bring it back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import Client, Server, contents, make_tree, wait_until

pytestmark = pytest.mark.e2e

KEPT = (
    "id",
    "name",
    "description",
    "checkpoint_id",
    "vault_id",
    "resource_id",
    "resource_name",
    "resource_size",
    "status",
)


def strongroom(*argv: str, store: Path, code: int = 0, **settings: str) -> Any:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    environ |= {"STRONGROOM_STORE_URL": f"file://{store}"}
    environ |= {f"STRONGROOM_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run([sys.executable, "-m", "strongroom", *argv], env=environ, capture_output=True, timeout=120)
    assert done.returncode == code, (argv, done.returncode, done.stdout.decode(), done.stderr.decode())
    return json.loads(done.stdout) if "--json" in argv and done.stdout else done


class Lost(NamedTuple):
    """What is left, and what the API told before. gone: the backup that was deleted after the copy."""

    base: Path
    credentials: dict[str, str]
    backups: list[dict[str, Any]]
    vaults: dict[str, dict[str, Any]]
    policies: list[dict[str, Any]]
    gone: str
    newest: str
    tree: dict[str, Any]


def vaults_of(client: Client) -> dict[str, dict[str, Any]]:
    told = client.ok("GET", "vaults")["vaults"]
    return {v["id"]: {"name": v["name"], "tags": v["tags"], "used": v["billing"]["used"]} for v in told}


def kept(backups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(({name: row[name] for name in KEPT} for row in backups), key=lambda row: str(row["id"]))


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    base = tmp_path_factory.mktemp("drill")
    make_tree(base / "tree", 7)
    (base / "disk").write_bytes(os.urandom(1_500_000))
    server = Server(base / "first", store_url=f"file://{base / 'store'}").start()
    state = str(server.state)
    with server.client() as client:
        tree = client.vault("vault-tree", "turbo", [client.register("turbo", "tree", base / "tree")])
        first = client.settled(client.checkpoint(tree, name="first"))
        second = client.settled(client.checkpoint(tree, name="second"))
        assert {first["status"], second["status"]} == {"available"}
        client.ok("POST", f"vault/{tree}/tags/action", {"action": "create", "tags": [{"key": "team", "value": "blue"}]})
        trigger = {"properties": {"pattern": ["FREQ=DAILY;BYHOUR=3;BYMINUTE=0"]}}
        keep = {"max_backups": 9, "timezone": "UTC+00:00"}
        policy = {"name": "nightly", "operation_type": "backup", "operation_definition": keep, "trigger": trigger}
        client.ok("POST", "policies", {"policy": policy})
        client.quiet()
        # The copy is made beside the running server; what follows is newer than it.
        copied = strongroom("backup-self", "--state", state, "--json", store=base / "store")
        assert copied["copy"] == 1 and copied["rows"] > 10
        deleted = next(b for b in client.backups() if b["checkpoint_id"] == first["id"])["id"]
        client.ok("DELETE", f"backups/{deleted}")
        wait_until(lambda: deleted not in {b["id"] for b in client.backups()}, "the backup is deleted")
        (base / "tree" / "later").write_bytes(os.urandom(50_000))
        third = client.settled(client.checkpoint(tree, name="third"))
        assert third["status"] == "available"
        disk = client.vault("vault-disk", "disk", [client.register("disk", "disk", base / "disk")])
        assert client.settled(client.checkpoint(disk))["status"] == "available"
        client.quiet()
        backups = client.backups()
        newest = next(b for b in backups if b["checkpoint_id"] == third["id"])["id"]
        found = Lost(
            base,
            server.credentials,
            backups,
            vaults_of(client),
            client.ok("GET", "policies")["policies"],
            deleted,
            newest,
            contents(base / "tree"),
        )
    strongroom("export-key", str(base / "kept.key"), "--state", state, store=base / "store")
    server.kill()
    shutil.rmtree(server.state, ignore_errors=True)  # its PostgreSQL may still be dying
    return found


def new_state(lost: Lost, tmp_path: Path) -> tuple[Path, Path]:
    """A new state folder with the exported key in it, and a copy of the store."""
    state, store = tmp_path / "state", tmp_path / "store"
    shutil.copytree(lost.base / "store", store)
    state.mkdir(mode=0o700)
    shutil.copy(lost.base / "kept.key", state / "master.key")
    return state, store


def require_all(lost: Lost, state: Path, store: Path) -> None:
    """Every restore point is there and restores, of before the copy and after it; what the copy knew is as it was."""
    server = Server(state, store_url=f"file://{store}").start()
    with Client(server.endpoint, lost.credentials) as client:
        told = {row["id"]: row for row in client.backups()}
        gone = told.pop(lost.gone)
        assert gone["status"] == "error"
        assert kept(list(told.values())) == kept(lost.backups)
        assert client.ok("GET", "policies")["policies"] == lost.policies
        vaults = vaults_of(client)
        assert {v["used"] for v in vaults.values()} == {v["used"] for v in lost.vaults.values()}
        tree = next(id_ for id_, v in lost.vaults.items() if v["name"] == "vault-tree")
        assert vaults[tree] == lost.vaults[tree]
        (lost.base / "tree" / "big").write_bytes(b"damaged")
        assert client.restore(lost.newest)["status"] == "success"
        assert contents(lost.base / "tree") == lost.tree
        made = client.settled(client.checkpoint(tree))
        assert made["status"] == "available"
        client.ok("DELETE", f"backups/{lost.gone}")
        wait_until(lambda: lost.gone not in {b["id"] for b in client.backups()}, "the lost backup is cleared away")
        client.quiet()
        tasks = client.ok("GET", f"/ext/v1/{client.project}/tasks")["tasks"]
        assert {task["status"] for task in tasks} == {"success"}
    assert server.stop() == 0


def test_every_restore_point_comes_back(lost: Lost, tmp_path: Path) -> None:
    """From the store and the key alone: accounts, policies, tags and names of the copy, and what is newer than it."""
    state, store = new_state(lost, tmp_path)
    done = strongroom("restore-self", "--registrations", "--state", str(state), "--json", store=store)
    assert (done["copy"], done["gone"], done["vaults"], done["backups"], done["problems"]) == (1, 1, 1, 2, [])
    again = strongroom("restore-self", "--state", str(state), store=store, code=1)
    assert b"not empty" in again.stderr
    more = strongroom("rebuild", "--state", str(state), "--json", store=store)
    assert (more["backups"], more["gone"]) == (0, 0)
    require_all(lost, state, store)


@pytest.mark.parametrize("point", [1, 2, 3, 4])
def test_killed_between_any_two_steps_it_ends_the_same(lost: Lost, tmp_path: Path, point: int) -> None:
    """Before the rows are loaded the same command begins again; after that `rebuild` goes on."""
    state, store = new_state(lost, tmp_path)
    strongroom("restore-self", "--state", str(state), store=store, code=-9, kill_at=f"self_restore:database:{point}")
    done = strongroom("rebuild", "--registrations", "--state", str(state), "--json", store=store)
    assert (done["gone"], done["vaults"], done["backups"]) == (1, 1, 2)
    assert ("copy" in done) is (point <= 2)
    if point == 3:
        require_all(lost, state, store)


def test_rebuild_uses_the_copy_unless_told_otherwise(lost: Lost, tmp_path: Path) -> None:
    """An empty database begins with the newest copy; without it, restore points and vaults alone come back."""
    state, store = new_state(lost, tmp_path)
    bare = strongroom("rebuild", "--without-copy", "--state", str(state), "--json", store=store)
    assert "copy" not in bare and (bare["projects"], bare["vaults"], bare["backups"]) == (1, 2, 3)
    shutil.rmtree(state / "postgres")
    full = strongroom("rebuild", "--state", str(state), "--json", store=store)
    assert (full["copy"], full["vaults"], full["backups"]) == (1, 1, 2)


def test_with_another_key_or_without_a_copy_nothing_is_begun(lost: Lost, tmp_path: Path) -> None:
    """The sentence says what to do, and the database stays empty."""
    state, store = new_state(lost, tmp_path)
    shutil.rmtree(store / "self")
    done = strongroom("restore-self", "--state", str(state), store=store, code=1)
    assert b"strongroom rebuild" in done.stderr
    shutil.copytree(lost.base / "store" / "self", store / "self")
    (state / "master.key").unlink()
    (state / "master.key").write_text(f"strongroom-master-key-v1 {os.urandom(32).hex()}\n")
    (state / "master.key").chmod(0o600)
    done = strongroom("restore-self", "--state", str(state), store=store, code=1)
    assert b"No copy of the database" in done.stderr
