"""What goes wrong around a backup takes nothing with it: full disks, unreadable and vanishing sources, dying processes.

Each story ends with every acknowledged restore point restored and compared, and no process left behind.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Client, Server, contents, make_tree, wait_until
from hostile_world import processes_of

from strongroom.base.ids import new_id

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SLOW = {"read_limit_bytes_s": 1 << 20}  # a backup of some megabytes that lasts some seconds
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("lost") / "state").start()
    yield running
    assert running.stop() == 0, running.log()
    assert processes_of(running.state) == []


class Tenant(Client):
    """A project of its own on the shared server, so that a test sees its own things alone."""

    def __init__(self, server: Server) -> None:
        self.operator = server.client()
        name = new_id()
        admin = "/ext/v1/admin"
        project = self.operator.ok("POST", f"{admin}/projects", {"project": {"name": name}})["project"]["id"]
        user = {"name": name, "password": name, "project_id": project}
        self.operator.ok("POST", f"{admin}/users", {"user": user})
        super().__init__(
            server.endpoint,
            server.credentials | {"project_id": project, "username": name, "password": name},
        )

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.operator.http.close()

    def register(self, kind: str, name: str, path: Path, **options: Any) -> str:
        body = {"protectable": {"project_id": self.project, "type": kind, "name": name, "path": str(path), **options}}
        return self.operator.ok("POST", "/ext/v1/admin/protectables", body)["protectable"]["id"]


@contextmanager
def mounted(point: Path, *options: str) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(point)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def random_file(path: Path, size: int, seed: int) -> bytes:
    data = random.Random(seed).randbytes(size)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def stored_bytes(store: Path) -> int:
    """Bytes of all files below a store."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def used_mb(client: Client, vault: str) -> int:
    return client.ok("GET", f"vaults/{vault}")["vault"]["billing"]["used"]


def pruned(client: Client) -> None:
    """No task is open, and no prune, which lists show only when they are asked for it."""
    client.quiet()
    path = f"/ext/v1/{client.project}/tasks"
    wait_until(lambda: not client.ok("GET", path, open="true", operation_type="prune")["tasks"], "no open prune")


def slow_tree(client: Client, source: Path) -> str:
    """A registered folder of 6 MB that takes six seconds to read."""
    for number in range(40):
        random_file(source / f"d{number % 8}" / f"f{number}", 150_000, number)
    return client.register("turbo", "source", source, **SLOW)


def skipped(point: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {s["id"]: (s["code"], s["reason"]) for s in point["vault"]["skipped_resources"]}


def delete(client: Client, backup_id: str) -> None:
    """Delete, and wait until it is gone."""
    client.ok("DELETE", f"backups/{backup_id}")
    log = client.ok("GET", "operation-logs", operation_type="delete")["operation_logs"][0]
    assert client.ended(log["id"])["status"] == "success", log


def running(client: Client) -> dict[str, Any]:
    """The backup task that runs and has begun to read."""
    path = f"/ext/v1/{client.project}/tasks"

    def begun() -> Any:
        tasks = client.ok("GET", path, open="true", operation_type="backup")["tasks"]
        return tasks and tasks[0]["status"] == "running" and tasks[0]["bytes_done"] and tasks[0]

    return wait_until(begun, "a backup reads")


# --- the store --------------------------------------------------------------------------------------------------------


@needs_root
def test_a_full_disk_costs_the_backup_that_met_it_and_nothing_else(tmp_path: Path) -> None:
    """6107 with what to do; earlier points stay whole; deletes and prunes work without a free byte; then it goes on."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=80m,mode=0700", "tmpfs") as disk:
        server = Server(tmp_path / "state", store_url=(disk / "store").as_uri()).start()
        try:
            with server.client() as client:
                _fill_and_go_on(client, tmp_path, disk)
        finally:
            assert server.stop() == 0, server.log()
    assert processes_of(tmp_path / "state") == []


def _fill_and_go_on(client: Client, base: Path, disk: Path) -> None:
    source = base / "source"
    make_tree(source, 1, files=12)
    random_file(source / "first", 8 << 20, 1)
    resource = client.register("turbo", "source", source)
    vault = client.vault("v", "turbo", [resource])
    assert client.settled(client.checkpoint(vault))["status"] == "available"
    kept, wanted = client.backups()[0]["id"], contents(source)
    used = used_mb(client, vault)

    random_file(source / "too-large", 100 << 20, 2)
    point = client.settled(client.checkpoint(vault))
    assert point["status"] == "error"
    code, reason = skipped(point)[resource]
    assert code == "BackupService.6107" and "Free space" in reason
    failed = client.ok("GET", "operation-logs", status="failed")["operation_logs"]
    assert [log["error_info"]["code"] for log in failed] == ["BackupService.6107"]
    assert used_mb(client, vault) == used
    pruned(client)
    assert stored_bytes(disk) < 20 << 20, "what the failed backup wrote is not kept"
    assert client.restore(kept)["status"] == "success"
    shutil.rmtree(base / "aside", ignore_errors=True)
    assert {k: v for k, v in contents(source).items() if k != "too-large"} == wanted

    # Not one byte left: a delete still works, and its prune gives the space back.
    (source / "too-large").unlink(missing_ok=True)
    random_file(source / "first", 8 << 20, 3)
    assert client.settled(client.checkpoint(vault))["status"] == "available", client.backups()
    second = next(b["id"] for b in client.backups(status="available") if b["id"] != kept)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as out:
        try:
            while out.write(bytes(4096)):
                pass
        except OSError:
            pass
    before = stored_bytes(disk / "store")
    delete(client, second)
    pruned(client)
    assert stored_bytes(disk / "store") < before - (6 << 20), "the prune freed nothing"
    (source / "link").unlink()
    assert client.restore(kept)["status"] == "success"
    assert contents(source) == wanted
    filler.unlink()
    random_file(source / "third", 4 << 20, 4)
    point = client.settled(client.checkpoint(vault))
    assert point["status"] == "available" and not skipped(point), point


def test_used_falls_with_the_delete_and_the_store_with_the_prune(server: Server, tmp_path: Path) -> None:
    """Live bytes fall when a point is deleted, bytes on disk after the prune; all deleted, almost nothing is left."""
    source = tmp_path / "source"
    with Tenant(server) as client:
        store = server.state / "store" / "vaults" / client.project
        random_file(source / "f", 6 << 20, 1)
        resource = client.register("turbo", "source", source)
        vault = client.vault("v", "turbo", [resource])
        client.settled(client.checkpoint(vault))
        first = client.backups()[0]["id"]
        assert used_mb(client, vault) == pytest.approx(6, abs=1)
        random_file(source / "f", 6 << 20, 2)
        client.settled(client.checkpoint(vault))
        second = next(b["id"] for b in client.backups() if b["id"] != first)
        assert used_mb(client, vault) == pytest.approx(12, abs=1)
        both = stored_bytes(store)
        delete(client, first)
        assert used_mb(client, vault) == pytest.approx(6, abs=1)
        pruned(client)
        assert stored_bytes(store) < both - (5 << 20)
        wanted = contents(source)
        (source / "f").unlink()
        assert client.restore(second)["status"] == "success"
        assert contents(source) == wanted
        delete(client, second)
        pruned(client)
        assert used_mb(client, vault) == 0
        assert stored_bytes(store) < 64 << 10
        client.settled(client.checkpoint(vault))
        assert len(client.backups(status="available")) == 1
        prefix = store / vault
        assert stored_bytes(prefix) > 5 << 20
        client.ok("DELETE", f"vaults/{vault}")
        wait_until(lambda: client.call("GET", f"vaults/{vault}")[0] == 404, "the vault is gone")
        pruned(client)
        assert [path for path in prefix.rglob("*") if path.is_file()] == []
        assert client.backups() == []


# --- the sources ------------------------------------------------------------------------------------------------------


def test_a_source_that_vanished_is_skipped_and_the_others_go_on(server: Server, tmp_path: Path) -> None:
    """6215 with the path in the reason; the checkpoint is available; when the source is back so are its backups."""
    with Tenant(server) as client:
        paths = {name: tmp_path / name for name in ("stays", "goes", "turns")}
        ids = {}
        for number, (name, path) in enumerate(paths.items()):
            make_tree(path, number, files=6)
            ids[name] = client.register("turbo", name, path)
        vault = client.vault("v", "turbo", list(ids.values()))
        assert not skipped(client.settled(client.checkpoint(vault)))
        client.quiet()
        paths["goes"].rename(tmp_path / "away")
        shutil.rmtree(paths["turns"])
        paths["turns"].write_bytes(b"a file now")
        point = client.settled(client.checkpoint(vault))
        assert point["status"] == "available"
        assert [r["id"] for r in point["vault"]["resources"] if r["protect_status"] == "available"] == [ids["stays"]]
        found = skipped(point)
        assert set(found) == {ids["goes"], ids["turns"]}
        for name in ("goes", "turns"):
            code, reason = found[ids[name]]
            assert code == "BackupService.6215" and str(paths[name]) in reason, reason
        (tmp_path / "away").rename(paths["goes"])
        paths["turns"].unlink()
        for name in ("goes", "turns"):
            backup = client.backups(resource_id=ids[name], status="available")[0]["id"]
            paths[name].mkdir(exist_ok=True)
            assert client.restore(backup)["status"] == "success"
            make_tree(tmp_path / "model", list(paths).index(name), files=6)
            assert contents(paths[name]) == contents(tmp_path / "model")
        assert not skipped(client.settled(client.checkpoint(vault)))


@needs_root
def test_a_file_the_disk_cannot_read_fails_its_resource_with_the_reason(server: Server, tmp_path: Path) -> None:
    """EIO in the middle of a file (a loop image that lost its end): no success is claimed, the older point is whole."""
    image, point = tmp_path / "bad.img", tmp_path / "bad"
    with image.open("wb") as out:
        out.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image)], check=True)
    with Tenant(server) as client:
        make_tree(tmp_path / "good", 1, files=6)
        good = client.register("turbo", "good", tmp_path / "good")
        with mounted(point, "-o", "loop", str(image)):
            random_file(point / "early", 1 << 20, 1)
            bad = client.register("turbo", "bad", point)
            vault = client.vault("v", "turbo", [bad, good])
            assert not skipped(client.settled(client.checkpoint(vault)))
            client.quiet()
            kept = client.backups(resource_id=bad)[0]["id"]
            wanted = contents(point)
            random_file(point / "large", 40 << 20, 2)
        with mounted(point, "-o", "loop,ro", str(image)):
            os.truncate(image, 32 << 20)
            with pytest.raises(OSError, match="Input/output"):
                (point / "large").read_bytes()
            settled = client.settled(client.checkpoint(vault))
            assert settled["status"] == "available", "the other resource goes on"
            code, reason = skipped(settled)[bad]
            assert code == "BackupService.6215" and "large" in reason and "Input/output" in reason, reason
            assert len(client.backups(resource_id=bad, status="available")) == 1
        target = tmp_path / "target"
        target.mkdir()
        target_id = client.register("turbo", "target", target)
        assert client.restore(kept, resource_id=target_id)["status"] == "success"
        assert contents(target) == wanted


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv takes root's right to read everything")
def test_a_file_the_server_may_not_read_is_never_left_out_silently(tmp_path: Path) -> None:
    """Without the right to read it, the resource fails with 6215 and the file's name; with it, the backup works."""
    server = Server(tmp_path / "state")
    server.prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    server.start()
    try:
        with server.client() as client:
            source = tmp_path / "source"
            make_tree(source, 1, files=6)
            resource = client.register("turbo", "source", source)
            vault = client.vault("v", "turbo", [resource])
            for blocked in (source / "closed", source / "d0"):
                if blocked.name == "closed":
                    blocked.write_bytes(b"secret")
                blocked.chmod(0)
                point = client.settled(client.checkpoint(vault))
                assert point["status"] == "error"
                code, reason = skipped(point)[resource]
                assert code == "BackupService.6215" and blocked.name in reason and "may not" in reason, reason
                blocked.chmod(0o700)
            assert client.settled(client.checkpoint(vault))["status"] == "available"
    finally:
        assert server.stop() == 0, server.log()


def test_a_file_that_grows_while_it_is_read_is_marked(server: Server, tmp_path: Path) -> None:
    """The backup ends, the file is named as changed while read, what was still is exact."""
    source, stop = tmp_path / "source", threading.Event()
    random_file(source / "log", 3 << 20, 1)
    still = random_file(source / "still", 100_000, 2)

    def write() -> None:
        with (source / "log").open("ab", buffering=0) as out:
            while not stop.wait(0.002):
                out.write(b"one more line\n")

    writer = threading.Thread(target=write)
    with Tenant(server) as client:
        resource = client.register("turbo", "source", source, read_limit_bytes_s=4 << 20)
        vault = client.vault("v", "turbo", [resource])
        writer.start()
        try:
            assert client.settled(client.checkpoint(vault))["status"] == "available"
        finally:
            stop.set()
            writer.join()
        backup = client.backups()[0]["id"]
        report = client.ok("GET", f"/ext/v1/{client.project}/backups/{backup}")["backup"]
        assert report["changed_while_read"] == ["log"]
        entries = client.ok("GET", f"/ext/v1/{client.project}/backups/{backup}/entries")["entries"]
        assert {e["name"]: e["changed_while_read"] for e in entries} == {"log": True, "still": False}
        answer = client.http.get(f"/ext/v1/{client.project}/backups/{backup}/download", params={"path": "still"})
        assert answer.content == still


def test_a_folder_removed_under_a_running_backup_fails_with_a_reason(server: Server, tmp_path: Path) -> None:
    """Removed while it is read: what is missing is said, never an exception without a sentence."""
    source = tmp_path / "source"
    with Tenant(server) as client:
        resource = slow_tree(client, source)
        vault = client.vault("v", "turbo", [resource])
        checkpoint = client.checkpoint(vault)
        running(client)
        source.rename(tmp_path / "gone")
        shutil.rmtree(tmp_path / "gone")
        point = client.settled(checkpoint)
        log = client.ok("GET", "operation-logs")["operation_logs"][0]
        if point["status"] == "error":
            code, reason = skipped(point)[resource]
            assert code == "BackupService.6215" and "source" in reason
            assert log["status"] == "failed" and log["error_info"]["message"] == reason
        else:
            backup = client.backups()[0]["id"]
            report = client.ok("GET", f"/ext/v1/{client.project}/backups/{backup}")["backup"]
            assert report["vanished"] or report["changed_while_read"], report


# --- the processes ----------------------------------------------------------------------------------------------------


def postmaster(state: Path) -> int:
    return int((state / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])


def test_a_stopped_server_gives_its_backup_back(tmp_path: Path) -> None:
    """SIGTERM in the middle: a prompt end, no process left, and after a restart the same backup ends, once."""
    server, source = Server(tmp_path / "state").start(), tmp_path / "source"
    with server.client() as client:
        resource = slow_tree(client, source)
        vault = client.vault("v", "turbo", [resource])
        checkpoint = client.checkpoint(vault)
        task = running(client)
    assert server.stop() == 0
    assert processes_of(server.state) == []
    server.start()
    try:
        with server.client() as client:
            assert client.settled(checkpoint)["status"] == "available"
            again = client.ok("GET", f"/ext/v1/{client.project}/tasks/{task['id']}")["task"]
            assert (again["status"], again["attempts"]) == ("success", 1)
            _is_reported_once(client, checkpoint, source)
    finally:
        server.kill()
    wait_until(lambda: not processes_of(server.state), "nothing of the killed server is left", 20)


def test_a_killed_database_does_not_cost_the_backup(server: Server, tmp_path: Path) -> None:
    """SIGKILL of the postmaster under a running backup: it comes back, the backup ends and is reported once."""
    source = tmp_path / "source"
    with Tenant(server) as client:
        resource = slow_tree(client, source)
        vault = client.vault("v", "turbo", [resource])
        checkpoint = client.checkpoint(vault)
        running(client)
        before = postmaster(server.state)
        os.kill(before, signal.SIGKILL)
        # Its backends may answer for a moment longer than it lives: what counts is the successor.
        wait_until(lambda: _has_successor(server.state, before) and _answers(client), "the database is back")
        wait_until(
            lambda: (
                client.call("GET", f"checkpoints/{checkpoint}")[1].get("checkpoint", {}).get("status") == "available"
            ),
            "the backup ends",
        )
        _is_reported_once(client, checkpoint, source)


def _has_successor(state: Path, before: int) -> bool:
    try:
        return postmaster(state) != before
    except (OSError, ValueError):
        return False  # between two of them


def _answers(client: Client) -> bool:
    try:
        return client.call("GET", "/readyz")[0] == 200
    except httpx.TransportError:
        return False


def _is_reported_once(client: Client, checkpoint: str, source: Path) -> None:
    client.quiet()
    (backup,) = client.backups(checkpoint_id=checkpoint)
    logs = client.ok("GET", "operation-logs", operation_type="backup")["operation_logs"]
    assert [(log["status"], log["extra_info"]["backup"]["backup_id"]) for log in logs] == [("success", backup["id"])]
    wanted = contents(source)
    (source / "d0" / "f0").write_bytes(b"damaged")
    assert client.restore(backup["id"])["status"] == "success"
    assert contents(source) == wanted
