"""A libvirt's machine through the whole service: registered, backed up while it writes, restored to itself and anew."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Server
from libvirt_world import Guest, Hypervisor, guest, remove_domain
from ready_database import ReadyDatabase

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(600)]


def disks_of(client: Client, backup: dict[str, Any]) -> dict[str, bytes]:
    """What a backup holds, disk by disk, as a download gives it, verified."""
    found = {}
    for child in client.ok("GET", f"backups/{backup['id']}")["backup"]["children"]:
        answer = client.http.get(f"/ext/v1/{client.project}/backups/{child['id']}/download")
        assert answer.status_code == 200, answer.text
        found[child["resource_name"].rpartition("-")[2]] = answer.content
    return found


def back_up(client: Client, vault: str) -> dict[str, Any]:
    checkpoint = client.checkpoint(vault)
    settled = client.settled(checkpoint)
    assert settled["status"] == "available", settled
    (backup,) = client.backups(checkpoint_id=checkpoint)
    return backup


def content(made: Guest) -> dict[str, bytes]:
    return {device: bytes(data) for device, data in made.content.items()}


def test_a_machine_goes_through_the_whole_service(
    hypervisor: Hypervisor, tmp_path: Path, ready_database: ReadyDatabase
) -> None:
    """Full, incremental, killed QEMU; back to itself by force, and as a new machine; the next backup is right."""
    Server.ready_database = ready_database
    server = Server(tmp_path / "state").start()
    new_name = f"n{uuid.uuid4().hex[:8]}"
    try:
        with server.client() as client, guest(hypervisor, {"vda": "qcow2", "vdb": "qcow2"}) as made:
            web = client.register("server", "web", made.ref(f"?images={tmp_path}").path.decode())
            vault = client.vault("servers", "server", [web])
            back_up(client, vault)
            made.write_some()
            point, good = back_up(client, vault), content(made)
            assert disks_of(client, point) == good
            for child in client.ok("GET", f"backups/{point['id']}")["backup"]["children"]:
                told = client.ok("GET", f"/ext/v1/{client.project}/backups/{child['id']}")["backup"]
                assert told["full_reason"] is None and told["bytes_read"] < len(good["vda"]) // 2
            made.write_some()
            for device in made.content:
                made.qemu_io(device, "flush")  # what a guest did not flush dies with its QEMU
            made.kill()
            made.domain.create()
            assert disks_of(client, back_up(client, vault)) == content(made)
            log = client.restore(point["id"], server_id=web)
            assert log["status"] == "failed" and "runs" in log["error_info"]["message"], log
            path = f"/ext/v1/{client.project}/backups/{point['id']}/restore"
            answer = client.ok("POST", path, {"restore": {"server_id": web, "power_on": True, "force": True}})
            log = client.ended(answer["job_id"])
            assert log["status"] == "success", log
            assert made.domain.isActive()
            made.content = {device: bytearray(data) for device, data in good.items()}
            made.write_some()
            assert disks_of(client, back_up(client, vault)) == content(made)
            answer = client.ok("POST", path, {"restore": {"new_name": new_name, "power_on": True}})
            log = client.ended(answer["job_id"])
            assert log["status"] == "success", log
            assert hypervisor.connection.lookupByName(new_name).isActive()
            remove_domain(hypervisor, new_name)
            client.ok("POST", f"vaults/{vault}/removeresources", {"resource_ids": [web]})
            client.quiet()
            assert client.backups() == []
    finally:
        server.stop()
