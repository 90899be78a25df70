"""The event stream of a real server: a backup is heard from its row to its end, also by who was away for a while."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Server, make_tree, wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("events") / "state").start()
    try:
        yield started
    finally:
        started.stop()


def events(lines: Iterator[str]) -> Iterator[tuple[str, str, Any]]:
    """(kind, id, data), one after the other."""
    kind, position = "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "id":
            position = value
        elif name == "data":
            yield kind, position, json.loads(value)


def until(told: Iterator[tuple[str, str, Any]], kind: str, **members: Any) -> tuple[str, Any]:
    """Position and object of the first event like that; a stream that ends before is a failure."""
    for found, position, data in told:
        inner = data.get(kind, data)
        if found == kind and all(inner.get(name) == value for name, value in members.items()):
            return position, inner
    raise AssertionError(f"the stream ended without {kind} {members}")


def prepared(client: Client, folder: Path, name: str) -> str:
    make_tree(folder, seed=7, files=10)
    return client.vault(name, "turbo", [client.register("turbo", name, folder)])


def test_a_backup_is_heard_and_a_gap_is_closed(server: Server, tmp_path: Path) -> None:
    """Waiting, running, done with exact numbers; after a break the stream goes on where it was."""
    with server.client() as client:
        vault = prepared(client, tmp_path / "files", "heard")
        path = f"/ext/v1/{client.project}/events"
        with client.http.stream("GET", path) as stream:
            told = events(stream.iter_lines())
            until(told, "ready")
            point = client.checkpoint(vault)
            _, task = until(told, "task", operation_type="backup", status="success")
            assert task["bytes_done"] == task["bytes_total"] > 3_000_000
            assert task["bytes_total_exact"] is True
            position, _ = until(told, "restore_point", id=point, status="available")
        second = client.checkpoint(vault)
        client.settled(second)
        with client.http.stream("GET", path, headers={"Last-Event-ID": position}) as stream:
            until(events(stream.iter_lines()), "restore_point", id=second, status="available")


def test_a_stopping_server_ends_its_streams(tmp_path: Path) -> None:
    """A listener hears why, and the server's end does not wait for it."""
    server = Server(tmp_path / "state").start()
    try:
        with server.client() as client, client.http.stream("GET", f"/ext/v1/{client.project}/events") as stream:
            told = events(stream.iter_lines())
            until(told, "ready")
            assert server.process is not None
            server.process.terminate()
            _, end = until(told, "end")
            assert "stopping" in end["error_msg"]
            assert list(told) == []
        wait_until(lambda: server.process is not None and server.process.poll() is not None, "the server ended")
        assert server.stop() == 0
    finally:
        server.stop()
