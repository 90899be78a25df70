"""Whole disks of a host with our agent: a block device is a file of its restore points, and comes back onto itself."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_world import BARE_METAL, World
from harness import contents, make_tree, wait_until
from source_mounts import loop_device

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an agent obeys a file of root's only")

MIB = 1 << 20
DISK_BYTES = 24 * MIB


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.end()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Noise, zeros in its middle, and a last piece that is no whole MiB."""
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(8 * MIB) + bytes(8 * MIB) + os.urandom(8 * MIB - 4096) + bytes(4096))
    with loop_device(image) as device:
        yield device


def held(device: Path) -> bytes:
    return device.read_bytes()


def write(device: Path, offset: int, data: bytes) -> None:
    with device.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_a_disk_beside_folders_is_kept_whole_and_comes_back_onto_itself(
    world: World, tmp_path: Path, disk: Path
) -> None:
    """Of a changed disk only new chunks travel; zeros come back as zeros over what was there; aside it is an image."""
    data = tmp_path / "host" / "data"
    make_tree(data, seed=1, files=8)
    (tmp_path / "host" / "aside").mkdir()
    host = world.registered("metal", data, disk)
    agent = world.agent("agent", host, tmp_path / "host", disk, restore=True, kind=BARE_METAL)
    vault = world.client.vault("v", "server", [])
    body = {"resources": [{"id": host, "type": BARE_METAL}]}
    world.client.ok("POST", f"vaults/{vault}/addresources", body)
    before, files = held(disk), contents(data)
    first = world.backup(vault, host)
    assert f"{disk}: " in first["source"]["disks"], first["source"]
    write(disk, 5 * MIB, b"changed")
    second = world.backup(vault, host)
    assert 0 < second["source"]["sent_bytes"] < 2 * MIB, second["source"]

    write(disk, 0, b"\xff" * DISK_BYTES)
    (data / "big").write_bytes(b"spoilt")
    ended = world.client.restore(first["id"], server_id=host)
    assert ended["status"] == "success", (ended, agent.log(), world.server.log())
    assert held(disk) == before
    assert contents(data) == files

    aside = {"server_id": host, "details": {"destination_path": str(tmp_path / "host" / "aside")}}
    ended = world.client.restore(second["id"], **aside)
    assert ended["status"] == "success", (ended, agent.log())
    image = tmp_path / "host" / "aside" / str(disk).lstrip("/")
    assert image.is_file()
    assert image.read_bytes() == before[: 5 * MIB] + b"changed" + before[5 * MIB + 7 :]


def test_a_disk_that_is_in_use_too_small_or_gone_is_not_written(world: World, tmp_path: Path, disk: Path) -> None:
    """Each is refused with a sentence, and what is there stays, whatever was asked for."""
    host = world.registered("web", disk)
    world.agent("agent", host, tmp_path / "host", disk, restore=True)
    vault = world.vault("hosts", host)
    kept = world.backup(vault, host)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    point = tmp_path / "mounted"
    point.mkdir()
    subprocess.run(["mount", str(disk), str(point)], check=True)
    try:
        (point / "new").write_text("in use")
        for more in ({}, {"force": True}):
            ended = world.client.restore(kept["id"], resource_id=host, **more)
            assert ended["status"] == "failed" and "is in use" in ended["error_info"]["message"], ended
        assert (point / "new").read_text() == "in use"
    finally:
        subprocess.run(["umount", str(point)], check=True)

    backing = tmp_path / "disk.img"
    os.truncate(backing, DISK_BYTES - MIB)
    subprocess.run(["losetup", "-c", str(disk)], check=True)
    now = held(disk)
    told: list[str] = []

    def refused() -> bool:
        """Whoever looks at a device that has just changed has it open for a moment: then it is in use."""
        told.append(world.client.restore(kept["id"], resource_id=host)["error_info"]["message"])
        return "Choose a larger one" in told[-1]

    wait_until(refused, f"a disk that is too small is refused as such: {told}")
    assert held(disk) == now


def test_only_devices_below_dev_are_disks(world: World, tmp_path: Path, disk: Path) -> None:
    """A node elsewhere, or a link to a device from elsewhere, is nobody's way around the host's own file; and that has
    to name disks: allowing `/` means files."""
    node = tmp_path / "host" / "node"
    node.parent.mkdir(exist_ok=True)
    info = disk.stat()
    os.mknod(node, 0o600 | 0o060000, info.st_rdev)
    link = tmp_path / "host" / "link"
    link.symlink_to(disk)
    refusals = (
        (node, tmp_path / "host", "no folder, file or disk"),
        (link, tmp_path / "host", "symbolic link"),
        (disk, Path("/"), "Add it to `paths`"),
    )
    for path, allowed, told in refusals:
        host = world.registered(path.name, path)
        world.agent(f"agent-{path.name}", host, allowed)
        vault = world.vault("hosts", host)
        made = world.client.checkpoint(vault)
        assert world.client.settled(made)["status"] == "error"
        logs = world.client.ok("GET", "operation-logs", vault_id=vault)["operation_logs"]
        assert any(told in (log["error_info"] or {}).get("message", "") for log in logs), logs
