"""`strongroom source`: what it says of a libvirt's machines, without any server."""

import json

import pytest
from libvirt_world import Hypervisor, guest

from strongroom.cli.main import run

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_a_machine_is_checked_before_its_first_backup(
    hypervisor: Hypervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Disks, what works and why; nothing is changed."""
    with guest(hypervisor, {"vda": "qcow2", "vdb": "raw"}) as made:
        assert run(["source", "check", made.ref().path.decode(), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["readable"] and found["power"] == "running"
        assert [disk["name"] for disk in found["disks"]] == ["vda", "vdb"]
        works = {ability["name"]: ability["works"] for ability in found["abilities"]}
        assert works == {
            "libvirt": True,
            "own": True,
            "idle": True,
            "disks": True,
            "incremental": False,
            "consistency": False,
            "scratch": True,
        }
        assert run(["source", "check", made.ref().path.decode()]) == 0
        shown = capsys.readouterr().out
        assert "vdb (raw)" in shown and "A backup can be made." in shown
        assert made.domain.listAllCheckpoints() == []
        assert sorted(path.name for path in made.folder.iterdir()) == ["vda.qcow2", "vdb.raw"]


def test_a_machine_that_cannot_be_backed_up_ends_with_1(
    hypervisor: Hypervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    with guest(hypervisor, {"vda": "qcow2"}, start=False) as made:
        address = made.ref().path.decode()
        assert run(["source", "check", address.replace(made.name, "nobody")]) == 1
        assert "does not exist" in capsys.readouterr().out
        made.image("vda").rename(made.folder / "elsewhere")
        assert run(["source", "check", address]) == 1
        assert "No backup can be made" in capsys.readouterr().out


def test_machines_are_listed_with_their_addresses(hypervisor: Hypervisor, capsys: pytest.CaptureFixture[str]) -> None:
    with guest(hypervisor, {"vda": "qcow2"}) as made:
        assert run(["source", "list", hypervisor.uri, "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows[made.name]["power"] == "running"
        assert run(["source", "check", rows[made.name]["address"], "--json"]) == 0
