"""A check of a vault on a real server: damage is found and named, and a backup of the live source mends it."""

from pathlib import Path
from typing import Any

from harness import Client, Server, contents, make_tree, wait_until

from strongroom.cli.main import run


def test_damage_is_seen_named_and_mended(tmp_path: Path) -> None:
    """A bit flips in the store: scrub and verify say so, the backup is `error`, and after another backup it is back."""
    source = tmp_path / "source"
    make_tree(source, seed=7)
    server = Server(tmp_path / "state").start()
    try:
        with server.client() as client:
            story(client, tmp_path, source)
    finally:
        server.stop()


def story(client: Client, tmp_path: Path, source: Path) -> None:
    resource = client.register("turbo", "files", source)
    vault = client.vault("v", "turbo", [resource])
    client.settled(client.checkpoint(vault))
    (first,) = client.backups(vault_id=vault)
    assert checked(client, vault, deep=True)["status"] == "success"
    state = str(tmp_path / "state")
    assert run(["scrub", "--store", f"{state}/store"]) == 0
    pack = max((tmp_path / "state" / "store").rglob("packs/*"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[200] ^= 1
    pack.unlink()
    pack.write_bytes(data)
    assert run(["scrub", "--store", f"{state}/store"]) == 1

    assert run(["verify", "v", "--deep", "--wait", "--state", state]) == 1
    (row,) = client.backups(vault_id=vault)
    assert row["status"] == "error"
    task = checked(client, vault, deep=True)
    assert task["status"] == "failed"
    assert task["outcome"]["damaged_backups"] == [first["id"]]
    (finding,) = task["outcome"]["findings"]
    assert finding["object"].endswith(pack.name)
    assert finding["paths_count"] > 0
    known = set(contents(source))
    assert {hit["path"] for hit in finding["paths"]} <= known

    what_is_whole_comes_back(client, tmp_path, first["id"], {hit["path"] for hit in finding["paths"]}, source)

    client.settled(client.checkpoint(vault))
    mended = checked(client, vault, deep=True)
    assert mended["status"] == "success", mended["outcome"]
    assert {row["status"] for row in client.backups(vault_id=vault)} == {"available"}
    before = contents(source)
    next(path for path in sorted(source.rglob("*")) if path.is_file() and not path.is_symlink()).unlink()
    assert contents(source) != before
    assert client.restore(first["id"])["status"] == "success"
    assert contents(source) == before


def what_is_whole_comes_back(client: Client, tmp_path: Path, backup: str, hit: set[str], source: Path) -> None:
    """Only when it is asked for, only beside the source, and with a list of all that is missing."""
    place = tmp_path / "whole"
    place.mkdir()
    target = client.register("turbo", "whole", place)
    path = f"/ext/v1/{client.project}/backups/{backup}/restore"
    status, answer = client.call("POST", path, {"restore": {"target_resource_id": target}})
    assert (status, answer["error_code"]) == (400, "BackupService.2005")
    assert "skip_damaged" in answer["error_msg"]
    status, answer = client.call("POST", path, {"restore": {"skip_damaged": True}})
    assert (status, "Name another target" in answer["error_msg"]) == (400, True), answer
    state = str(tmp_path / "state")
    assert run(["restore", backup, "--to", "whole", "--skip-damaged", "--wait", "--yes", "--state", state]) == 0
    task = client.ok("GET", f"/ext/v1/{client.project}/tasks", backup_id=backup, limit="1")["tasks"][0]
    outcome = task["outcome"]
    assert outcome["lost_count"] == outcome["left_out_count"] == len(outcome["left_out"]) > 0
    assert {one["path"] for one in outcome["left_out"]} == hit
    assert "lost in the store" in outcome["warnings"][0]
    everything, whole = contents(source), contents(place)
    assert set(everything) - set(whole) == hit
    assert all(whole[name][1] == everything[name][1] for name in whole)
    assert client.ok("GET", f"backups/{backup}")["backup"]["status"] == "error", "it is as damaged as before"


def checked(client: Client, vault: str, **members: object) -> dict[str, Any]:
    task = client.ok("POST", f"/ext/v1/{client.project}/vaults/{vault}/verify", {"verify": members})["task_id"]
    path = f"/ext/v1/{client.project}/tasks/{task}"
    found: dict[str, Any] = wait_until(
        lambda: (t := client.ok("GET", path)["task"])["ended_at"] is not None and t, f"task {task} ended"
    )
    return found
