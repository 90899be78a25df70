"""Servers of a recorded cloud: what is asked for, in which order, and that all of it is taken back.

The answers are of a real Nova 34 and Cinder 29: tests/e2e/test_nova.py, which runs against them, records them again.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from recorded import BASE, played

from strongroom.base.errors import Canceled, SourceDenied, SourceError
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import DiskWanted, MachineRestoreWanted, MachineWanted
from strongroom.sources.openstack.cloud import errors
from strongroom.sources.openstack.nova import NovaDriver
from strongroom.sources.openstack.servers import Server, ServerAddress, local_disks, not_covered, obstacle

pytestmark = [
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

ANSWERS = Path(__file__).with_name("nova_answers.json")
GIB = 1 << 30
SERVER, ROOT, DATA = (f"00000000-0000-4000-8000-00000000000{number}" for number in (1, 2, 3))


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    clouds = tmp_path / "clouds.yaml"
    who = {"username": "ours", "password": "p", "project_name": "ours"} | dict.fromkeys(
        ("user_domain_id", "project_domain_id"), "default"
    )
    entry = {"auth": who | {"auth_url": f"{BASE}/v3"}, "region_name": "RegionOne"}
    clouds.write_text(json.dumps({"clouds": {"ours": entry}}))  # JSON is YAML
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
    monkeypatch.setattr("strongroom.sources.openstack.waiting.POLL_S", 0.01)
    for name in ("COPY", "ROOT", "DATA"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(GIB)
    places = {f"PLACE-OF-{name}": str(tmp_path / name) for name in ("COPY", "ROOT", "DATA")}
    return places | {"THE-SERVER": SERVER, "THE-ROOT": ROOT, "THE-DATA": DATA}


def ref() -> SourceRef:
    return SourceRef(resource_id=SERVER, type="OS::Nova::Server", path=f"nova:ours/{SERVER}".encode())


def changes(asked: list[str]) -> list[str]:
    """What was asked for that changes something: kinds of objects, in their order."""
    done = [key.split("?")[0] for key in asked if key[:3] in ("POS", "DEL") and not key.endswith("/auth/tokens")]
    return [
        f"{key.split()[0]} {kind}"
        for key in done
        for kind in ("snapshots", "volumes", "attachments", "servers")
        if f"/{kind}" in key and not (kind == "volumes" and "/servers" in key)
    ]


def test_a_backup_and_a_restore_take_back_all_they_made(words: dict[str, str], tmp_path: Path) -> None:
    """One disk read through a copy of its snapshot; the other written while the server is locked, beside it."""
    driver = NovaDriver()
    with (tmp_path / "COPY").open("r+b") as file:
        file.write(b"as it was")
    with played(ANSWERS, words) as asked:
        seen = driver.inspect(ref())
        assert [(disk.name, disk.is_boot) for disk in seen.disks] == [("sda", True), ("sdb", False)]
        with driver.open_machine(ref(), MachineWanted(included=frozenset({DATA}))) as point:
            buffer = bytearray(9)
            (read,) = point.disks
            read.stream.read_into(0, memoryview(buffer))
            assert [left.id for left in point.left_out] == [ROOT]
            point.commit()
        assert bytes(buffer) == b"as it was"
        assert changes(asked) == [
            *("POST snapshots", "POST volumes", "POST attachments", "POST attachments"),
            *("DELETE attachments", "DELETE volumes", "DELETE snapshots"),
        ]
        asked.clear()
        disk = DiskWanted(source_id=ROOT, name="sda", size_bytes=GIB, target_id=ROOT)
        wanted = MachineRestoreWanted(task_id="t", target=ref(), same_resource=True, disks=(disk,))
        with driver.open_target(driver.plan_restore(wanted), {}) as target:
            target.disks[ROOT].write(0, memoryview(b"as it was"))
            assert target.finish().written_bytes == 9
    assert (tmp_path / "ROOT").read_bytes()[:9] == b"as it was"
    kept = ["POST attachments", "POST attachments", "DELETE attachments"]
    assert changes(asked) == ["POST servers", *kept, "POST servers"], asked


def test_a_cancel_is_heard_while_snapshots_are_made_and_none_is_left(words: dict[str, str]) -> None:
    """The point is given up in the wait for its first snapshot; that is deleted, no copy is begun."""

    def canceled() -> None:
        raise Canceled

    with played(ANSWERS, words) as asked, pytest.raises(Canceled):
        NovaDriver().open_machine(ref(), MachineWanted(included=frozenset({DATA}), check=canceled))
    assert changes(asked) == ["POST snapshots", "DELETE snapshots"]


@pytest.mark.parametrize("path", ["nova:", "nova:a/b", f"nova:../x/{SERVER}", f"nova:a/{SERVER}?local=yes", "/x"])
def test_an_address_is_a_cloud_and_a_server(path: str) -> None:
    """Anything else is refused before a request is made of it."""
    with pytest.raises(SourceError, match="nova:CLOUD/SERVER-ID"):
        ServerAddress.parse(path.encode())


def facts(**more: Any) -> dict[str, Any]:
    """As the API reference shows a server of 2.89, what matters of it."""
    flavor = {"vcpus": 1, "ram": 512, "disk": 20, "ephemeral": 5, "swap": 1024, "original_name": "m1.tiny"}
    return {"status": "ACTIVE", "image": "", "flavor": flavor} | more


def test_a_root_disk_that_is_no_volume_refuses_a_backup_unless_that_is_known() -> None:
    """A server without its root disk is no server; what nobody can read is named in either case."""
    image = {"id": "70a599e0-31e7-49b7-b260-868f441e862b"}
    server = Server(id=SERVER, facts=facts(image=image), disks=(), local=local_disks(SERVER, facts(image=image)))
    assert [(disk.name, disk.size_bytes, disk.is_boot) for disk in server.local] == [
        ("local-root", 20 * GIB, True),
        ("local-ephemeral", 5 * GIB, False),
        ("local-swap", GIB, False),
    ]
    assert "root disk" in str(obstacle(server, leave_out_local=False))
    assert "has no volumes" in str(obstacle(server, leave_out_local=True))
    assert "local-root (20 GiB), local-ephemeral (5 GiB), local-swap (1 GiB)" in str(not_covered(server))
    assert [disk.name for disk in local_disks(SERVER, facts())] == ["local-ephemeral", "local-swap"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (403, "Quota exceeded for instances: Requested 1, but already used 10 of 10 instances"),
        (413, "VolumeLimitExceeded: Maximum number of volumes allowed (10) exceeded for quota 'volumes'."),
        (409, "Quota exceeded for resources: ['port']."),
    ],
)
def test_a_quota_that_is_used_up_was_told_as_a_right_that_is_missing(status: int, told: str) -> None:
    """Nova says it with 403, Cinder with 413, Neutron with 409: one sentence for all; other refusals keep theirs."""
    from openstack.exceptions import HttpException

    with pytest.raises(SourceError, match=r"^A quota of the project is used up") as raised, errors("server new"):
        raise HttpException(told, http_status=status)
    assert not isinstance(raised.value, SourceDenied) and told in str(raised.value.detail)
    with pytest.raises(SourceDenied), errors("server new"):
        raise HttpException("Policy doesn't allow it", http_status=403)
    with pytest.raises(SourceError, match="it is busy"), errors("server new"):
        raise HttpException("Cannot 'start' instance", http_status=409)


def test_no_secret_is_kept_in_the_record() -> None:
    """Tokens are replaced, and requests, with their passwords, are not recorded at all."""
    text = ANSWERS.read_text()
    assert "gAAAA" not in text and "password" not in json.loads(text)
