"""A worker that is frozen past its lease and wakes up when another has done its work changes nothing (RULINGS 1, 7)."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from harness import Client, contents, make_tree, wait_until
from many_world import Many, WorkerProcess, empty, many

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def frozen(worker: WorkerProcess) -> bool:
    """Whether all of it is stopped."""
    assert worker.process is not None
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return "\nState:\tT" in status


def thaw(worker: WorkerProcess) -> None:
    assert worker.process is not None
    os.kill(worker.process.pid, signal.SIGCONT)


def roots(store: Path) -> set[str]:
    """Names of the commit objects in the store: one an attempt that committed."""
    return {path.name for path in store.rglob("roots/*")}


def freeze(world: Many, operation: str, point: str, begin: Callable[[], object]) -> tuple[WorkerProcess, WorkerProcess]:
    """Only one worker is there when the work begins, and it freezes in the middle; then there is another one."""
    victim = world.worker(kill_at=f"{operation}:{point}:stop")
    begin()
    wait_until(lambda: frozen(victim), f"the worker is frozen in {operation}")
    return victim, world.worker()


def woken_up_too_late(victim: WorkerProcess, other: WorkerProcess) -> None:
    """Thaw it, and wait until it has seen that its work is somebody else's."""
    thaw(victim)
    wait_until(lambda: "task left to a newer attempt" in victim.log_path.read_text(), "the worker noticed")
    assert victim.stop() == 0 and other.stop() == 0


def generation(url: str, operation: str) -> int:
    """The highest attempt of this kind of task."""
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT coalesce(max(generation), 0) FROM operation_logs WHERE operation_type = %s", [operation]
        ).fetchone()
    assert row is not None
    return int(row[0])


def restores_to(client: Client, backup: str, target: str, place: Path, wanted: object) -> None:
    log = client.restore(backup, resource_id=target)
    assert log["status"] == "success", log
    assert contents(place) == wanted


class Story:
    """A vault with one restore point, made by a worker that has ended since; a second folder to restore into."""

    def __init__(self, world: Many, folder: Path) -> None:
        self.world = world
        self.source, self.place = folder / "source", folder / "target"
        self.place.mkdir()
        make_tree(self.source, 1)
        self.first = contents(self.source)
        world.api(api_drain_s="0")
        self.client = world.client()
        self.target = self.client.register("turbo", "target", self.place)
        self.resource = self.client.register("turbo", "source", self.source)
        self.vault = self.client.vault("v", "turbo", [self.resource])
        worker = world.worker()
        assert self.client.settled(self.client.checkpoint(self.vault))["status"] == "available"
        (self.backup,) = self.client.backups()
        self.client.quiet()
        assert worker.stop() == 0


@pytest.mark.parametrize("point", [6, pytest.param(14, marks=pytest.mark.long)])
def test_a_frozen_backup(tmp_path: Path, postgres_url: str, point: int) -> None:
    """The other worker makes the restore point; what the sleeper does afterwards leaves no second root."""
    with many(tmp_path, postgres_url) as world:
        story = Story(world, tmp_path)
        make_tree(story.source, 2)
        client, store = story.client, tmp_path / "store"
        victim, other = freeze(world, "backup", f"store:{point}", lambda: client.checkpoint(story.vault))
        client.quiet()
        made = [b for b in client.backups() if b["id"] != story.backup["id"]]
        assert [b["status"] for b in made] == ["available"]
        before = roots(store)
        assert generation(postgres_url, "backup") == 2 and len(before) == 2
        woken_up_too_late(victim, other)
        assert roots(store) == before
        world.worker()
        restores_to(client, made[0]["id"], story.target, story.place, contents(story.source))
        restores_to(client, story.backup["id"], story.target, story.place, story.first)


@pytest.mark.parametrize("point", [pytest.param("store:1", marks=pytest.mark.long), "files:6"])
def test_a_frozen_restore(tmp_path: Path, postgres_url: str, point: str) -> None:
    """A sleeper that had not begun at the target does nothing there any more. One that holds its staging place makes
    the other attempt come again, until, thawed, it lets go."""
    with many(tmp_path, postgres_url) as world:
        story = Story(world, tmp_path)
        empty(story.source)
        (story.source / "kept until the swap").write_bytes(b"x")
        client = story.client
        job: list[str] = []
        path = f"backups/{story.backup['id']}/restore"
        body = {"restore": {"resource_id": story.resource}}
        victim, other = freeze(world, "restore", point, lambda: job.append(client.ok("POST", path, body)["job_id"]))
        wait_until(lambda: generation(postgres_url, "restore") >= 2, "another worker took over")
        if point == "files:6":
            wait_until(lambda: generation(postgres_url, "restore") >= 4, "it comes again")
            assert (story.source / "kept until the swap").exists(), "changed while another attempt holds it"
            thaw(victim)
        ended = client.ended(job[0])
        assert ended["status"] == "success", ended["error_info"]
        assert contents(story.source) == story.first
        thaw(victim)
        wait_until(lambda: "task left to a newer attempt" in victim.log_path.read_text(), "the worker noticed")
        assert victim.stop() == 0 and other.stop() == 0
        assert contents(story.source) == story.first


@pytest.mark.long
@pytest.mark.parametrize("operation", ["delete", "prune"])
@pytest.mark.parametrize("point", [3, 9])
def test_a_frozen_delete_or_prune(tmp_path: Path, postgres_url: str, operation: str, point: int) -> None:
    """The restore point goes once, its bytes go once; those that stay restore, and so does one that was made while the
    sleeper slept."""
    with many(tmp_path, postgres_url) as world:
        story = Story(world, tmp_path)
        client = story.client
        worker = world.worker()
        make_tree(story.source, 3)
        assert client.settled(client.checkpoint(story.vault))["status"] == "available"
        (second,) = [b for b in client.backups() if b["id"] != story.backup["id"]]
        wanted = contents(story.source)
        client.quiet()
        assert worker.stop() == 0
        path = f"backups/{story.backup['id']}"
        victim, other = freeze(world, operation, f"store:{point}", lambda: client.ok("DELETE", path))
        wait_until(lambda: generation(postgres_url, operation) >= 2, "another worker took over")
        client.quiet()
        make_tree(story.source, 4)
        assert client.settled(client.checkpoint(story.vault))["status"] == "available"
        (third,) = [b for b in client.backups() if b["id"] not in (story.backup["id"], second["id"])]
        woken_up_too_late(victim, other)
        world.worker()
        restores_to(client, second["id"], story.target, story.place, wanted)
        restores_to(client, third["id"], story.target, story.place, contents(story.source))
