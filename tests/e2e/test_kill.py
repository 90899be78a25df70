"""SIGKILL at trace points of real work, then a restart: what was acknowledged is there, what was not is settled."""

import shutil
from pathlib import Path

import pytest
from harness import OUT_OF_REACH, Client, Server, contents, make_tree, spread, wait_until
from reliability import report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

BACKUP_LONG, RESTORE_LONG = (6, 9), (4, 4, 8)  # points of the database, the store, the files


def _check_every_point(client: Client, target: str, target_path: Path, known: dict[str, dict]) -> None:
    """Every backup that is reported available restores to exactly what was there when it was made."""
    available = {b["id"] for b in client.backups(status="available")}
    assert set(known) <= available, "an acknowledged restore point is gone"
    for backup_id, expected in known.items():
        log = client.restore(backup_id, resource_id=target)
        assert log["status"] == "success", log
        assert contents(target_path) == expected


@pytest.mark.parametrize("counts", [(2, 2), pytest.param(BACKUP_LONG, marks=pytest.mark.long)], ids=str)
def test_a_killed_backup_loses_nothing_and_ends(tmp_path: Path, counts: tuple[int, int]) -> None:
    """Killed at points spread over a backup: what was acknowledged stays whole, what was killed ends."""
    server = Server(tmp_path / "state")
    source, target_path = tmp_path / "source", tmp_path / "target"
    make_tree(source, 0)
    target_path.mkdir()
    server.start()
    try:
        with server.client() as client:
            resource = client.register("turbo", "source", source)
            target = client.register("turbo", "target", target_path)
            vault = client.vault("v", "turbo", [resource])
            assert client.settled(client.checkpoint(vault))["status"] == "available"
            known = {client.backups()[0]["id"]: contents(source)}
        server.stop()
        points = []
        for kind, count in zip(("database", "store"), counts, strict=True):
            server.start(kill_at=f"backup:{kind}:{OUT_OF_REACH}")
            make_tree(source, 100 + count)
            with server.client() as client:
                client.settled(client.checkpoint(vault))
            server.stop()
            points += [f"backup:{kind}:{n}" for n in spread(server.trace_points(), count)]
        for number, point in enumerate(points, 1):
            make_tree(source, number)
            server.start(kill_at=point)
            with server.client() as client:
                checkpoint = client.checkpoint(vault)
            assert server.wait_dead() == -9, f"{point} was not reached"
            server.start()
            with server.client() as client:
                settled = client.settled(checkpoint)
                client.quiet()
                assert settled["status"] == "available", (point, settled, server.log())
                made = client.backups(checkpoint_id=checkpoint)
                assert [b["status"] for b in made] == ["available"], point
                known[made[0]["id"]] = contents(source)
                _check_every_point(client, target, target_path, dict(list(known.items())[-2:]))
            server.stop()
        server.start()
        with server.client() as client:
            _check_every_point(client, target, target_path, known)
    finally:
        server.stop()
    if counts == BACKUP_LONG:
        report("worker kills, backup and restore", count=len(points), seed=0)


@pytest.mark.parametrize("counts", [(1, 1, 3), pytest.param(RESTORE_LONG, marks=pytest.mark.long)], ids=str)
def test_a_killed_restore_leaves_the_old_or_the_new(tmp_path: Path, counts: tuple[int, int, int]) -> None:
    """Killed at points spread over a restore: after a restart the same restore ends by itself with the new content,
    nothing of the staging is left and nothing runs for ever."""
    server = Server(tmp_path / "state")
    source = tmp_path / "source"
    make_tree(source, 0)
    server.start()
    try:
        with server.client() as client:
            resource = client.register("turbo", "source", source)
            vault = client.vault("v", "turbo", [resource])
            client.settled(client.checkpoint(vault))
            backup = client.backups()[0]["id"]
            wanted = contents(source)
        server.stop()
        points = []
        for kind, count in zip(("database", "store", "files"), counts, strict=True):
            server.start(kill_at=f"restore:{kind}:{OUT_OF_REACH}")
            shutil.rmtree(source / "d1")
            with server.client() as client:
                assert client.restore(backup, resource_id=resource)["status"] == "success"
            server.stop()
            points += [f"restore:{kind}:{n}" for n in spread(server.trace_points(), count)]
        for number, point in enumerate(points, 1):
            shutil.rmtree(source / "d1")
            (source / "big").write_bytes(b"damaged %d" % number)
            (source / "later").write_bytes(b"made after the restore point")
            server.start(kill_at=point)
            with server.client() as client:
                job = client.ok("POST", f"backups/{backup}/restore", {"restore": {"resource_id": resource}})["job_id"]
            assert server.wait_dead() == -9, f"{point} was not reached"
            server.start()
            with server.client() as client:
                log = client.ended(job)
                assert log["status"] == "success", (point, log, server.log())
                assert contents(source) == wanted, point
                assert not list(source.glob(".strongroom-*")), point
                wait_until(lambda: client.backups()[0]["status"] == "available", "the backup is available again")
                client.quiet()
            server.stop()
    finally:
        server.stop()
    if counts == RESTORE_LONG:
        report("worker kills, backup and restore", count=len(points), seed=0)
