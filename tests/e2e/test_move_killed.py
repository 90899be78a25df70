"""SIGKILL at trace points of a move between vaults, then a restart: every backup is whole, and in one vault only."""

from pathlib import Path

import pytest
from harness import OUT_OF_REACH, Client, Server, contents, make_tree, spread
from reliability import report
from test_kill import _check_every_point

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]


def _move(client: Client, resource: str, here: str, there: str) -> str:
    body = {"destination_vault_id": there, "resource_ids": [resource]}
    answer = client.ok("POST", f"vaults/{here}/migrateresources", body)
    return str(answer["operation_log_id"])


def test_a_killed_move_loses_nothing_and_ends(tmp_path: Path) -> None:
    """Killed at 11 points spread over a move, there and back: the restarted server ends it, and both backups restore
    to what was there when they were made."""
    server = Server(tmp_path / "state")
    source, target_path = tmp_path / "source", tmp_path / "target"
    make_tree(source, 0)
    target_path.mkdir()
    known: dict[str, dict] = {}
    server.start()
    try:
        with server.client() as client:
            resource = client.register("turbo", "source", source)
            target = client.register("turbo", "target", target_path)
            here, there = client.vault("here", "turbo", [resource]), client.vault("there", "turbo", [])
            for seed in (0, 1):
                make_tree(source, seed)
                checkpoint = client.checkpoint(here)
                assert client.settled(checkpoint)["status"] == "available"
                known[client.backups(checkpoint_id=checkpoint)[0]["id"]] = contents(source)
        server.stop()
        points = []
        for kind, count in (("database", 5), ("store", 6)):
            server.start(kill_at=f"migrate:{kind}:{OUT_OF_REACH}")
            with server.client() as client:
                _move(client, resource, here, there)
                client.quiet()
            server.stop()
            points += [f"migrate:{kind}:{n}" for n in spread(server.trace_points(), count)]
            here, there = there, here
        for point in points:
            server.start(kill_at=point)
            with server.client() as client:
                log = _move(client, resource, here, there)
            assert server.wait_dead() == -9, f"{point} was not reached"
            server.start()
            with server.client() as client:
                client.quiet()
                ended = client.ok("GET", f"operation-logs/{log}")["operation_log"]
                assert ended["status"] == "success", (point, ended, server.log())
                assert {b["vault_id"] for b in client.backups()} == {there}, point
                _check_every_point(client, target, target_path, known)
            server.stop()
            here, there = there, here
    finally:
        server.stop()
    report("worker kills, migration", count=len(points), seed=0)
