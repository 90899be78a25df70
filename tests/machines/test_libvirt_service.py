"""A domain through the whole service: backed up while it writes, put back as it ran, made anew, disk by disk."""

from pathlib import Path
from typing import Any

import pytest
from harness import Client, Server
from libvirt_world import DISK_BYTES, Guest, Hypervisor, guest, remove_domain

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def disks_of(client: Client, backup: dict[str, Any]) -> dict[str, bytes]:
    """What a backup holds, by device, as verified downloads give it."""
    found = {}
    for child in client.ok("GET", f"backups/{backup['id']}")["backup"]["children"]:
        answer = client.http.get(f"/ext/v1/{client.project}/backups/{child['id']}/download")
        assert answer.status_code == 200, answer.text
        found[child["resource_name"].removeprefix(backup["resource_name"] + "-")] = answer.content
    return found


def content(made: Guest) -> dict[str, bytes]:
    return {device: bytes(data) for device, data in made.content.items()}


def back_up(client: Client, vault: str) -> dict[str, Any]:
    checkpoint = client.checkpoint(vault)
    settled = client.settled(checkpoint)
    assert settled["status"] == "available", settled
    (backup,) = client.backups(checkpoint_id=checkpoint)
    return backup


def test_a_domain_is_backed_up_and_comes_back(hypervisor: Hypervisor, tmp_path: Path) -> None:
    """Full, increments of each disk, one disk onto an image, the machine onto itself with its power, and a new one."""
    server = Server(tmp_path / "state", from_nothing=True).start()
    try:
        with guest(hypervisor, {"vda": "qcow2", "vdb": "qcow2"}) as made, server.client() as client:
            web = client.register("server", "web", made.ref().path.decode())
            vault = client.vault("servers", "server", [web])
            assert disks_of(client, back_up(client, vault)) == content(made)
            made.write_some()
            point, good = back_up(client, vault), content(made)
            assert disks_of(client, point) == good
            children = client.ok("GET", f"backups/{point['id']}")["backup"]["children"]
            for child in children:
                told = client.ok("GET", f"/ext/v1/{client.project}/backups/{child['id']}")["backup"]
                assert told["full_reason"] is None and told["bytes_read"] < DISK_BYTES // 4, told
            image = tmp_path / "vdb.img"
            image.write_bytes(bytes(DISK_BYTES))
            disk = client.register("disk", "copy", image)
            assert client.restore(children[1]["id"], volume_id=disk)["status"] == "success"
            assert image.read_bytes() == good["vdb"]
            made.write_some(10)
            log = client.restore(point["id"], server_id=web, mappings=[])
            assert log["status"] == "failed", "it runs, and nobody said that it may be stopped"
            log = client.restore(point["id"], server_id=web, power_on=True, force=True)
            assert log["status"] == "success", log
            assert made.domain.isActive()
            made.content = {device: bytearray(data) for device, data in good.items()}
            assert disks_of(client, back_up(client, vault)) == good
            name = f"{made.name}-2"
            path = f"/ext/v1/{client.project}/backups/{point['id']}/restore"
            answer = client.ok("POST", path, {"restore": {"new_name": name, "power_on": False}})
            log = client.ended(answer["job_id"])
            assert log["status"] == "success", log
            assert not hypervisor.connection.lookupByName(name).isActive()
            remove_domain(hypervisor, name)
    finally:
        server.stop()


def test_a_domain_whose_qemu_was_killed_is_read_whole_and_deleted_whole(hypervisor: Hypervisor, tmp_path: Path) -> None:
    """The reason stands in the report; a new machine of the point runs; removed, every disk's backup goes."""
    server = Server(tmp_path / "state", from_nothing=True).start()
    try:
        with guest(hypervisor, {"vda": "qcow2", "vdb": "qcow2"}) as made, server.client() as client:
            web = client.register("server", "web", made.ref(f"?images={tmp_path}").path.decode())
            vault = client.vault("servers", "server", [web])
            back_up(client, vault)
            made.write_some()
            for device in made.content:
                made.qemu_io(device, "flush")  # what a guest did not flush dies with its QEMU
            made.kill()
            made.domain.create()
            point = back_up(client, vault)
            assert disks_of(client, point) == content(made)
            told = client.ok("GET", f"/ext/v1/{client.project}/backups/{point['id']}")["backup"]
            assert "missing or broken" in told["full_reason"]
            path = f"/ext/v1/{client.project}/backups/{point['id']}/restore"
            answer = client.ok("POST", path, {"restore": {"new_name": f"{made.name}-3", "power_on": True}})
            log = client.ended(answer["job_id"])
            assert log["status"] == "success", log
            assert hypervisor.connection.lookupByName(f"{made.name}-3").isActive()
            remove_domain(hypervisor, f"{made.name}-3")
            client.ok("POST", f"vaults/{vault}/removeresources", {"resource_ids": [web]})
            client.quiet()
            assert client.backups() == []
    finally:
        server.stop()
