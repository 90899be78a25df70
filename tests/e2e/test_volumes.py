"""Volumes through a real server: what a snapshot or a bitmap gives is what a tenant sees, and what comes back."""

import os
import subprocess
from pathlib import Path

import pytest
from harness import Client, Server, wait_until
from source_mounts import mounted


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def use(*command: str | Path) -> None:
    """A tool on the image, when our clean-up after a backup, which comes after its report, has let go of it."""
    words = [str(part) for part in command]
    wait_until(lambda: subprocess.run(words, capture_output=True).returncode == 0, words[0])


def disk_of(image: Path) -> bytes:
    raw = image.with_suffix(".seen")
    use("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def change(image: Path, pattern: int) -> None:
    use("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 1M 64k", image)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop mounts need root")
def test_a_qcow2_disk_and_a_folder_on_btrfs_live_in_a_vault(tmp_path: Path) -> None:
    """Backed up twice, the second time only what changed; told what was used; damaged, restored, as before."""
    with mounted("btrfs", tmp_path) as place:
        image, share = place / "disk.qcow2", place / "share"
        run("qemu-img", "create", "-f", "qcow2", image, "64M")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8M", image)
        run("btrfs", "subvolume", "create", share)
        (share / "file").write_text("first")
        server = Server(tmp_path / "state").start()
        try:
            with server.client() as client:
                disk_story(client, image)
                folder_story(client, share)
        finally:
            server.stop()


def is_tidy(folder: Path) -> bool:
    """Nothing of ours is left; the source is cleaned up after the restore point is reported."""
    return not [name for name in os.listdir(folder) if name.startswith(".strongroom-")]


def disk_story(client: Client, image: Path) -> None:
    resource = client.register("disk", "disk", image)
    vault = client.vault("disks", "disk", [resource])
    client.settled(client.checkpoint(vault))
    change(image, 2)
    state = disk_of(image)
    client.settled(client.checkpoint(vault))
    second, first = client.backups(vault_id=vault, sort="created_at:desc")
    assert first["status"] == second["status"] == "available"
    assert second["extend_info"]["incremental"] is True
    told = client.ok("GET", f"/ext/v1/{client.project}/backups/{second['id']}")["backup"]
    assert told["source"]["snapshot"] == "reflink"
    assert told["source"]["read_whole"] is None
    assert told["bytes_read"] == told["source"]["changed_bytes"] == 64 << 10
    change(image, 3)
    assert client.restore(second["id"])["status"] == "success"
    assert disk_of(image) == state
    run("qemu-img", "check", image)
    wait_until(lambda: is_tidy(image.parent), "the copies are gone")


def folder_story(client: Client, share: Path) -> None:
    resource = client.register("turbo", "share", share)
    vault = client.vault("shares", "turbo", [resource])
    client.settled(client.checkpoint(vault))
    (backup,) = client.backups(vault_id=vault)
    told = client.ok("GET", f"/ext/v1/{client.project}/backups/{backup['id']}")["backup"]
    assert told["consistency"] == "filesystem_consistent"
    assert "btrfs" in told["source"]["snapshot_reason"]
    (share / "file").write_text("damaged")
    (share / "other").write_text("new")
    assert client.restore(backup["id"])["status"] == "success"
    wait_until(lambda: is_tidy(share), "the snapshot is gone")
    assert {path.name: path.read_text() for path in share.iterdir()} == {"file": "first"}
