"""A real QEMU with two disks through the whole service: backed up while it writes, restored, killed half-way."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from command_line import run
from harness import OUT_OF_REACH, Client, Server, spread, wait_until
from qemu_world import DISK_BYTES, MIB, Machine, image_bytes, writing
from regions_world import Regions, destination, replicated, replication_vault

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def machine() -> Iterator[Machine]:
    """vd0 in a qcow2 image, vd1 in a raw one; in a folder whose sockets have short names."""
    with TemporaryDirectory(prefix="sr-") as folder, Machine.with_noise(Path(folder), "qcow2", "raw") as started:
        yield started


def address(machine: Machine) -> str:
    return machine.ref().path.decode()


def content(machine: Machine) -> dict[str, bytes]:
    return {name: bytes(data) for name, data in machine.content.items()}


def disks_of(client: Client, backup: dict[str, Any]) -> dict[str, bytes]:
    """What a backup holds, disk by disk, as a download gives it, verified."""
    found = {}
    for child in client.ok("GET", f"backups/{backup['id']}")["backup"]["children"]:
        answer = client.http.get(f"/ext/v1/{client.project}/backups/{child['id']}/download")
        assert answer.status_code == 200, answer.text
        found[child["resource_name"].removeprefix(backup["resource_name"] + "-")] = answer.content
    return found


def report(client: Client, backup_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.ok("GET", f"/ext/v1/{client.project}/backups/{backup_id}")["backup"]
    return found


def back_up(client: Client, vault: str, **parameters: Any) -> dict[str, Any]:
    """The backup of the machine, which has to be available."""
    checkpoint = client.checkpoint(vault, **parameters)
    settled = client.settled(checkpoint)
    assert settled["status"] == "available", settled
    (backup,) = client.backups(checkpoint_id=checkpoint)
    return backup


def test_a_machine_is_backed_up_while_it_writes_and_comes_back(tmp_path: Path, machine: Machine) -> None:
    """Registered, bound, full and incremental with a guest that writes on; restored disk by disk, to itself, and as a
    new machine; deleted with every disk."""
    server = Server(tmp_path / "state").start()
    try:
        with server.client() as client:
            web = client.register("server", "web", address(machine))
            shown = client.ok("GET", f"protectables/server/instances/{web}")["instance"]
            assert (shown["size"], shown["type"]) == (1, "OS::Nova::Server")
            assert [disk["name"] for disk in shown["children"]] == ["vd0", "vd1"]
            vault = client.vault("servers", "server", [web])
            before = content(machine)
            thread = writing(machine, "vd0", range(40, 60))
            first = back_up(client, vault)
            thread.join()
            held = disks_of(client, first)
            at = 2 * MIB  # what the guest wrote meanwhile is in the backup as it was at one moment
            assert held["vd0"][:at] + held["vd0"][at + MIB :] == before["vd0"][:at] + before["vd0"][at + MIB :]
            assert len(set(held["vd0"][at : at + MIB])) == 1
            assert held["vd1"] == before["vd1"]
            back_up(client, vault)
            machine.write("vd0", 7 * MIB, 65536, 7)
            machine.write("vd1", 9 * MIB, 65536, 9)
            point = back_up(client, vault)
            assert disks_of(client, point) == content(machine)
            children = client.ok("GET", f"backups/{point['id']}")["backup"]["children"]
            for child in children:
                told = report(client, child["id"])
                assert told["full_reason"] is None and told["bytes_read"] <= 2.2 * 65536, told
            assert report(client, point["id"])["consistency"] == "crash_consistent"
            # One disk onto an image file, as any backup of a disk.
            image = tmp_path / "copy.img"
            image.write_bytes(bytes(DISK_BYTES))
            disk = client.register("disk", "copy", image)
            assert client.restore(children[1]["id"], volume_id=disk)["status"] == "success"
            assert image.read_bytes() == content(machine)["vd1"]
            # To itself: not while it runs.
            log = client.restore(point["id"], server_id=web)
            assert log["status"] == "failed" and "runs" in log["error_info"]["message"], log
            good = content(machine)
            machine.write("vd0", MIB, 6 * MIB, 255)
            machine.quit()
            log = client.restore(point["id"], server_id=web, mappings=[], power_on=False)
            assert log["status"] == "success", log
            assert {n: image_bytes(path, tmp_path) for n, path in machine.disks.items()} == good
            machine.content = {name: bytearray(data) for name, data in good.items()}
            machine.start()
            assert disks_of(client, back_up(client, vault)) == good
            # A new one beside it.
            path = f"/ext/v1/{client.project}/backups/{point['id']}/restore"
            answer = client.ok("POST", path, {"restore": {"new_name": "web-2", "power_on": False}})
            assert client.ended(answer["job_id"])["status"] == "success"
            made = machine.folder / "web-2"
            assert image_bytes(made / "vd0.qcow2", tmp_path) == good["vd0"]
            assert json.loads((made / "machine.json").read_text())["name"] == "web-2"
            client.ok("POST", f"vaults/{vault}/removeresources", {"resource_ids": [web]})
            client.quiet()
            assert client.backups() == []
    finally:
        server.stop()


def test_the_command_line_shows_and_restores_a_machine(tmp_path: Path, machine: Machine) -> None:
    """What an operator and a tenant type."""
    server = Server(tmp_path / "state").start()
    try:

        def told(*words: str) -> Any:
            return json.loads(run(server, *words, "--json").stdout)

        web = told("protectable", "add", "--type", "server", "--name", "web", "--path", address(machine))
        disks = told("protectable", "disks", "web")
        assert [disk["name"] for disk in disks] == ["vd0", "vd1"]
        told("vault", "create", "servers", "--type", "server", "--app-consistent")
        told("vault", "add", "servers", "web")
        run(server, "checkpoint", "create", "servers", "--name", "nightly", "--wait")
        shown = told("backup", "show", "nightly")
        assert [child["resource_name"] for child in shown["children"]] == ["web-vd0", "web-vd1"]
        assert shown["resource_id"] == web["id"]
        assert "agent" in shown["extend_info"]["app_consistency"]["app_consistency_error_message"]
        good = content(machine)
        machine.write("vd0", MIB, 4 * MIB, 255)
        machine.write("vd1", MIB, 4 * MIB, 254)
        machine.quit()
        run(server, "restore", "nightly", "--disk", "vd1=vd1", "--no-power-on", "--wait", "--yes")
        assert image_bytes(machine.disks["vd1"], tmp_path) == good["vd1"]
        assert image_bytes(machine.disks["vd0"], tmp_path) != good["vd0"]
        run(server, "restore", "nightly", "--wait", "--yes")
        assert image_bytes(machine.disks["vd0"], tmp_path) == good["vd0"]
    finally:
        server.stop()


def test_a_replica_of_a_machine_needs_nothing_of_its_region(tmp_path: Path, machine: Machine) -> None:
    """Copied with every disk, available as a whole; when the first region is gone each disk is read and restored."""
    (tmp_path / "regions").mkdir()
    regions = Regions(tmp_path / "regions")
    try:
        regions.start(regions.east)
        regions.start(regions.west)
        with regions.east.client() as east, regions.west.client() as west:
            vault = east.vault("servers", "server", [east.register("server", "web", address(machine))])
            back_up(east, vault)
            machine.write("vd1", 9 * MIB, 65536, 9)
            point, good = back_up(east, vault), content(machine)
            place = destination(regions, replication_vault(west, object_type="server"))
            record = east.ok("POST", f"backups/{point['id']}/replicate", {"replicate": place})["replication"]
            assert replicated(east, point["id"], record["replication_record_id"])["status"] == "success"
            regions.east.stop()
            (replica,) = west.backups(image_type="replication")
            assert (replica["status"], replica["resource_size"]) == ("available", 1)
            assert disks_of(west, replica) == good
            children = west.ok("GET", f"backups/{replica['id']}")["backup"]["children"]
            assert [(c["resource_name"], c["status"]) for c in children] == [
                ("web-vd0", "available"),
                ("web-vd1", "available"),
            ]
            image = tmp_path / "there.img"
            image.write_bytes(bytes(DISK_BYTES))
            disk = west.register("disk", "there", image)
            assert west.restore(children[0]["id"], volume_id=disk)["status"] == "success"
            assert image.read_bytes() == good["vd0"]
    finally:
        regions.stop()


@pytest.mark.parametrize("counts", [(1, 1), pytest.param((10, 10), marks=pytest.mark.long)], ids=str)
def test_a_killed_backup_of_a_machine_is_of_one_moment(
    tmp_path: Path, machine: Machine, counts: tuple[int, int]
) -> None:
    """The server is killed at points spread over the backup: what comes out after the restart holds both disks of one
    moment, the next increment is right, and nothing of ours stays in QEMU."""
    server = Server(tmp_path / "state").start()
    try:
        with server.client() as client:
            vault = client.vault("servers", "server", [client.register("server", "web", address(machine))])
            back_up(client, vault)
        server.stop()
        points = []
        for kind, count in zip(("database", "store"), counts, strict=True):
            server.start(kill_at=f"backup:{kind}:{OUT_OF_REACH}")
            machine.write("vd0", MIB, MIB, 90 + count)
            with server.client() as client:
                back_up(client, vault)
            server.stop()
            points += [f"backup:{kind}:{number}" for number in spread(server.trace_points(), count)]
        for number, point in enumerate(points, 1):
            for disk in ("vd0", "vd1"):
                machine.write(disk, 3 * MIB, 2 * MIB, number)
            before = content(machine)
            server.start(kill_at=point)
            with server.client() as client:
                checkpoint = client.checkpoint(vault)
            assert server.wait_dead() == -9, f"{point} was not reached"
            for disk in ("vd0", "vd1"):
                machine.write(disk, 4 * MIB, 2 * MIB, 100 + number)
            server.start()
            with server.client() as client:
                settled = client.settled(checkpoint)
                client.quiet()
                assert settled["status"] == "available", (point, settled, server.log())
                (made,) = client.backups(checkpoint_id=checkpoint)
                assert disks_of(client, made) in (before, content(machine)), point
                machine.write("vd1", 11 * MIB, 65536, number)
                after = back_up(client, vault)
                assert disks_of(client, after) == content(machine), point
                wait_until(lambda: machine.ours() == [], "QEMU is left as it was")
            server.stop()
        assert machine.failed_writes() == 0 and machine.status() == "running"
    finally:
        server.stop()
