"""An older copy of the database is put back: what was made since is in the store only, and no prune takes it away."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Server, wait_until

pytestmark = pytest.mark.e2e


def roots(base: Path) -> set[str]:
    return {path.name for path in (base / "store").rglob("roots/*")}


def delete(client: Client, backup_id: str) -> None:
    client.ok("DELETE", f"backups/{backup_id}")
    wait_until(lambda: backup_id not in {b["id"] for b in client.backups()}, "the backup is deleted")
    client.quiet()


def last_prune(client: Client) -> dict[str, Any]:
    """The newest prune, once it has ended."""

    def ended() -> dict[str, Any] | None:
        found = client.ok("GET", f"/ext/v1/{client.project}/tasks", operation_type="prune")["tasks"]
        newest = max(found, key=lambda task: task["created_at"])
        return newest if newest["ended_at"] else None

    found: dict[str, Any] = wait_until(ended, "the prune has ended")
    return found


def protect(client: Client, vault: str) -> str:
    """Back up; the id of the newest backup."""
    assert client.settled(client.checkpoint(vault))["status"] == "available"
    return client.backups(vault_id=vault, sort="created_at:desc")[0]["id"]


def test_an_old_copy_of_the_database_frees_nothing(tmp_path: Path) -> None:
    """Prune refuses with the sentence that says what to do; after `rebuild` the newer restore points are back, a root
    that a failed task left is still cleaned, and prune frees what was deleted."""
    disk = tmp_path / "disk"
    disk.write_bytes(random.Random(1).randbytes(600_000))
    server = Server(tmp_path / "state", store_url=f"file://{tmp_path / 'store'}").start()
    with server.client() as client:
        vault = client.vault("vault", "disk", [client.register("disk", "disk", disk)])
        first, second = protect(client, vault), protect(client, vault)
        client.quiet()
    assert server.stop() == 0
    shutil.copytree(server.state / "postgres", tmp_path / "older", symlinks=True)
    server.start()
    with server.client() as client:
        disk.write_bytes(random.Random(2).randbytes(600_000))
        newer = protect(client, vault)
        client.quiet()
    assert server.stop() == 0
    shutil.rmtree(server.state / "postgres")
    os.rename(tmp_path / "older", server.state / "postgres")

    server.start()
    with server.client() as client:
        assert {row["id"] for row in client.backups()} == {first, second}
        folder = next((tmp_path / "store").rglob("roots"))
        root_of_first = (folder / f"{first}.1").read_bytes()
        delete(client, first)
        refused = last_prune(client)
        assert refused["status"] == "failed"
        assert "strongroom rebuild" in refused["error_message"]
        assert f"{newer}.1" in roots(tmp_path)
    assert server.stop() == 0
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", "rebuild", "--json", "--state", str(server.state)],
        env={**os.environ, "STRONGROOM_STORE_URL": f"file://{tmp_path / 'store'}"},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["backups"] == 1

    # As an attempt leaves it that lost its lease at the last moment: the database knows of that backup, so it goes.
    (folder / f"{first}.1").write_bytes(root_of_first)
    server.start()
    with server.client() as client:
        assert {row["id"] for row in client.backups()} == {second, newer}
        content = disk.read_bytes()
        disk.write_bytes(bytes(len(content)))
        assert client.restore(newer)["status"] == "success"
        assert disk.read_bytes() == content
        delete(client, second)
        pruned = last_prune(client)
        assert pruned["status"] == "success", pruned
        assert pruned["outcome"]["bytes_freed"] > 500_000
        assert pruned["outcome"]["roots_removed"] == 1
        assert roots(tmp_path) == {f"{newer}.1"}
        assert client.restore(newer)["status"] == "success"
    assert server.stop() == 0
