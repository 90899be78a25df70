"""The database is lost, the store and the exported key are not: `rebuild` brings the service back."""

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

KEPT = ("id", "name", "checkpoint_id", "vault_id", "resource_id", "resource_name", "resource_size", "status")


class Lost(NamedTuple):
    """What is left, and what the API told before."""

    base: Path
    project: str
    backups: list[dict[str, Any]]
    tree_vault: str


def strongroom(*argv: str, store: Path, code: int = 0) -> Any:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    environ["STRONGROOM_STORE_URL"] = f"file://{store}"
    done = subprocess.run([sys.executable, "-m", "strongroom", *argv], env=environ, capture_output=True, timeout=120)
    assert done.returncode == code, (argv, done.returncode, done.stdout.decode(), done.stderr.decode())
    return json.loads(done.stdout) if "--json" in argv and done.stdout else done


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    base = tmp_path_factory.mktemp("rebuild")
    make_tree(base / "tree", 4)
    (base / "disk").write_bytes(os.urandom(1_500_000))
    server = Server(base / "first", store_url=f"file://{base / 'store'}").start()
    with server.client() as client:
        vaults = {}
        for kind, name in (("turbo", "tree"), ("disk", "disk")):
            vaults[name] = client.vault(f"vault-{name}", kind, [client.register(kind, name, base / name)])
            assert client.settled(client.checkpoint(vaults[name]))["status"] == "available"
        (base / "tree" / "later").write_bytes(os.urandom(50_000))
        assert client.settled(client.checkpoint(vaults["tree"]))["status"] == "available"
        client.quiet()
        found = Lost(base, client.project, client.backups(), vaults["tree"])
    strongroom("export-key", str(base / "kept.key"), "--state", str(server.state), store=base / "store")
    busy = strongroom("rebuild", "--state", str(server.state), store=base / "store", code=1)
    assert b"in use by process" in busy.stderr
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


def client_of(server: Server, project: str) -> Client:
    return Client(server.endpoint, server.credentials | {"project_id": project})


def kept(backups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(({name: row[name] for name in KEPT} for row in backups), key=lambda row: row["id"])


def test_the_service_goes_on_where_it_was(lost: Lost, tmp_path: Path) -> None:
    """Ids, names and sizes are the same; restores work, the next backup is an increment, a delete frees its bytes."""
    state, store = new_state(lost, tmp_path)
    done = strongroom("rebuild", "--registrations", "--state", str(state), "--json", store=store)
    made = {name: done[name] for name in ("projects", "vaults", "checkpoints", "backups", "registrations")}
    assert made == {"projects": 1, "vaults": 2, "checkpoints": 3, "backups": 3, "registrations": 2}
    assert done["problems"] == []
    again = strongroom("rebuild", "--registrations", "--state", str(state), "--json", store=store)
    assert {again[name] for name in made} == {0}
    server = Server(state, store_url=f"file://{store}").start()
    with client_of(server, lost.project) as client:
        assert kept(client.backups()) == kept(lost.backups)
        newest = client.backups(vault_id=lost.tree_vault, sort="created_at:desc")[0]
        before = contents(lost.base / "tree")
        (lost.base / "tree" / "big").write_bytes(b"damaged")
        assert client.restore(newest["id"])["status"] == "success"
        assert contents(lost.base / "tree") == before
        assert client.settled(client.checkpoint(lost.tree_vault))["status"] == "available"
        made_now = client.backups(vault_id=lost.tree_vault, sort="created_at:desc")[0]
        shown = client.ok("GET", f"/ext/v1/{lost.project}/backups/{made_now['id']}")["backup"]
        assert shown["full_reason"] is None
        assert shown["bytes_new"] == 0
        client.ok("DELETE", f"backups/{newest['id']}")
        wait_until(lambda: newest["id"] not in {b["id"] for b in client.backups()}, "the backup is deleted")
        client.quiet()
        assert client.restore(made_now["id"])["status"] == "success"
        assert contents(lost.base / "tree") == before
    server.stop()


def test_without_registrations_nothing_of_the_machine_is_touched(lost: Lost, tmp_path: Path) -> None:
    """Restore points are there and can be read; what may be protected is the operator's to say."""
    state, store = new_state(lost, tmp_path)
    assert strongroom("rebuild", "--state", str(state), "--json", store=store)["registrations"] == 0
    server = Server(state, store_url=f"file://{store}").start()
    with client_of(server, lost.project) as client:
        assert kept(client.backups()) == kept(lost.backups)
        assert client.ok("GET", f"vaults/{lost.tree_vault}")["vault"]["resources"] == []
        status, _ = client.call("POST", f"backups/{lost.backups[0]['id']}/restore", {"restore": {}})
        assert status >= 400
    server.stop()


def test_what_is_damaged_comes_back_in_error(lost: Lost, tmp_path: Path) -> None:
    """A lost index is rebuilt; a backup whose pack is lost is told, in `error`, and its root stays; others work."""
    state, store = new_state(lost, tmp_path)
    for folder in store.rglob("index"):
        shutil.rmtree(folder)
    disk_vault = next(row["vault_id"] for row in lost.backups if row["resource_name"] == "disk")
    for pack in (store / "vaults" / lost.project / disk_vault).rglob("packs/*"):
        pack.unlink()
    done = strongroom("rebuild", "--state", str(state), "--json", store=store, code=3)
    assert (done["indexes"], done["backups"], len(done["problems"])) == (2, 3, 1)
    server = Server(state, store_url=f"file://{store}").start()
    with client_of(server, lost.project) as client:
        states = {row["resource_name"]: row["status"] for row in client.backups()}
    assert states == {"tree": "available", "disk": "error"}
    server.stop()


def test_without_the_key_nothing_is_begun(lost: Lost, tmp_path: Path) -> None:
    """A new key is never made where an old one is needed."""
    done = strongroom("rebuild", "--state", str(tmp_path / "empty"), store=lost.base / "store", code=1)
    assert b"export-key" in done.stderr
    assert not (tmp_path / "empty" / "master.key").exists()
