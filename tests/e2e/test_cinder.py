"""Volumes of a real Cinder: backed up while in use, restored in place, nothing left behind, each project its own."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server, wait_until
from real_cinder import Cinder
from recorded import recording

from strongroom.base.errors import SourceDenied, SourceError, SourceGone
from strongroom.base.streams import BlockStream, ExtentKind
from strongroom.sources.base import PointWanted, RestoreWanted, SourceRef
from strongroom.sources.openstack.cinder import CinderDriver

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),  # the first run installs Cinder
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

GIB = 1 << 30
RECORD = Path(__file__).parent.parent / "contract" / "cinder_answers.json"


@pytest.fixture(scope="module")
def cinder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cinder]:
    made = Cinder(tmp_path_factory.mktemp("openstack") / "cinder")
    try:
        for name in ("ours", "theirs"):
            project = made.keystone.project(name)
            made.keystone.user(name, project, "member")
        yield made
    finally:
        made.stop()


@pytest.fixture
def clouds(cinder: Cinder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = cinder.clouds(tmp_path / "clouds.yaml", ours="ours", theirs="theirs")
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    return path


def volume(cinder: Cinder, name: str, size_gib: int = 1) -> str:
    body = {"volume": {"name": name, "size": size_gib}}
    made = cinder.call("POST", "/volumes", body, project="ours", user="ours")["volume"]["id"]
    wait_until(lambda: status_of(cinder, made) == "available", "the volume is there")
    return made


def status_of(cinder: Cinder, volume_id: str) -> str:
    return cinder.call("GET", f"/volumes/{volume_id}", project="ours", user="ours")["volume"]["status"]


def place(cinder: Cinder, volume_id: str) -> Path:
    return cinder.volumes / f"volume-{volume_id}"


def ref(volume_id: str, cloud: str = "ours") -> SourceRef:
    return SourceRef(resource_id=volume_id, type="OS::Cinder::Volume", path=f"cinder:{cloud}/{volume_id}".encode())


def everything(stream: BlockStream) -> dict[int, bytes]:
    """Data by offset, in pieces of 1 MiB without zeros."""
    found = {}
    for offset, length, kind in stream.extents():
        if kind is not ExtentKind.DATA:
            continue
        for at in range(offset, offset + length, 1 << 20):
            buffer = bytearray(min(1 << 20, offset + length - at))
            assert stream.read_into(at, memoryview(buffer)) == len(buffer)
            if any(buffer):
                found[at // (1 << 20)] = bytes(buffer)
    return found


def left(cinder: Cinder, volume_id: str) -> list[Any]:
    """Names of the volumes and snapshots of ours that were made for a volume, which is its own resource here."""
    found = [
        *cinder.call("GET", "/volumes/detail", project="ours", user="ours")["volumes"],
        *cinder.call("GET", "/snapshots/detail", project="ours", user="ours")["snapshots"],
    ]
    return [one["name"] for one in found if one["name"] == f"strongroom.{volume_id}"]


def test_a_volume_in_use_is_read_as_it_was_and_written_back(cinder: Cinder, clouds: Path) -> None:
    """A server writes on; the point holds what was there; the restore refuses the volume in use, then gives it back."""
    driver, volume_id = CinderDriver(), volume(cinder, "data")
    path = place(cinder, volume_id)
    content = os.urandom(3 << 20)
    with path.open("r+b") as file:
        file.seek(5 << 20)
        file.write(content)
    held = {"attachment": {"volume_uuid": volume_id, "connector": {"host": "server"}, "mode": "rw"}}
    attached = cinder.call("POST", "/attachments", held, project="ours", user="ours")["attachment"]["id"]
    cinder.call("POST", f"/attachments/{attached}/action", {"os-complete": {}}, project="ours", user="ours")
    assert status_of(cinder, volume_id) == "in-use"
    seen = driver.inspect(ref(volume_id))
    assert (seen.reason, seen.readable, seen.size_bytes) == (None, True, GIB)

    with driver.open_point(ref(volume_id), PointWanted()) as point:
        with path.open("r+b") as file:
            file.seek(5 << 20)
            file.write(b"written by the server while we read")
        read = everything(point.stream)
        token = point.token
        assert "first backup" in str(point.metadata["read_whole"])
        point.commit()
    assert b"".join(read[number] for number in sorted(read)) == content and sorted(read) == [5, 6, 7]
    assert left(cinder, volume_id) == []
    with driver.open_point(ref(volume_id), PointWanted(parent_token=token)) as point:
        assert point.full_reason is None and "no list of changed blocks" in str(point.metadata["read_whole"])
    assert left(cinder, volume_id) == []

    wanted = RestoreWanted(task_id="t", target=ref(volume_id), same_resource=True, kind="block", size_bytes=GIB)
    assert "Detach it from its server" in driver.plan_restore(wanted).conflicts[0]
    with pytest.raises(SourceError, match="Detach it from its server"):
        driver.open_target(driver.plan_restore(wanted))
    cinder.call("DELETE", f"/attachments/{attached}", project="ours", user="ours")
    wait_until(lambda: status_of(cinder, volume_id) == "available", "detached")
    plan = driver.plan_restore(wanted)
    assert plan.conflicts == ()
    with driver.open_target(plan) as target:
        assert status_of(cinder, volume_id) == "in-use"
        for number, data in read.items():
            target.stream.write(number << 20, memoryview(data))
        target.finish()
    assert path.read_bytes()[5 << 20 : 8 << 20] == content
    assert status_of(cinder, volume_id) == "available"


def test_what_a_dead_job_left_is_removed_by_the_next(cinder: Cinder, clouds: Path) -> None:
    """A point and a target that were never closed: their copies, snapshots and attachments go, a user's stay."""
    driver, volume_id = CinderDriver(), volume(cinder, "left")
    own = {"snapshot": {"volume_id": volume_id, "name": f"strongroom.{volume_id}", "force": True}}
    users = cinder.call("POST", "/snapshots", own, project="ours", user="ours")["snapshot"]["id"]
    dead = driver.open_point(ref(volume_id), PointWanted())
    assert len(left(cinder, volume_id)) == 3
    with driver.open_point(ref(volume_id), PointWanted()) as point:
        assert everything(point.stream) == {}
        assert len(left(cinder, volume_id)) == 3, "the dead one's are gone"
    assert left(cinder, volume_id) == [f"strongroom.{volume_id}"], "a snapshot that only has our name is a user's"
    dead.abort()
    cinder.call("DELETE", f"/snapshots/{users}", project="ours", user="ours")

    wanted = RestoreWanted(task_id="t", target=ref(volume_id), same_resource=True, kind="block", size_bytes=GIB)
    half = driver.open_target(driver.plan_restore(wanted))
    assert status_of(cinder, volume_id) == "in-use"
    with driver.open_target(driver.plan_restore(wanted)) as target:
        target.finish()
    assert status_of(cinder, volume_id) == "available"
    half.__exit__(None, None, None)


def test_a_project_sees_its_own_volumes_only(cinder: Cinder, clouds: Path) -> None:
    """Another project's volume is not there; an unknown cloud, a wrong password and a bad address are sentences."""
    driver, volume_id = CinderDriver(), volume(cinder, "private")
    seen = driver.inspect(ref(volume_id, "theirs"))
    assert not seen.exists and "OpenStack has no volume" in str(seen.reason)
    with pytest.raises(SourceGone):
        driver.open_point(ref(volume_id, "theirs"), PointWanted())
    assert "knows no OpenStack named nobody" in str(driver.inspect(ref(volume_id, "nobody")).reason)
    clouds.write_text(clouds.read_text().replace("password:", "password: wrong #"))
    with pytest.raises(SourceDenied):
        driver.open_point(ref(volume_id), PointWanted())
    assert not driver.inspect(ref(volume_id)).readable


def test_the_service_keeps_volumes_of_an_openstack(cinder: Cinder, tmp_path: Path) -> None:
    """Registered by its address, backed up, damaged, restored, through the API; the clouds are in the state folder."""
    volume_id = volume(cinder, "served")
    path = place(cinder, volume_id)
    content = os.urandom(1 << 20)
    with path.open("r+b") as file:
        file.write(content)
    state = tmp_path / "state"
    server = Server(state)
    server.ready_database.copy_to(state)
    cinder.clouds(state / "clouds.yaml", ours="ours")
    server.start()
    try:
        with server.client() as client:
            words = {"project_id": client.project, "type": "disk", "name": "d", "path": f"cinder:ours/{volume_id}"}
            disk = client.ok("POST", "/ext/v1/admin/protectables", {"protectable": words})["protectable"]["id"]
            vault = client.vault("v", "disk", [disk])
            assert client.settled(client.checkpoint(vault))["status"] == "available", server.log()
            (backup,) = client.backups()
            assert backup["resource_size"] == 1
            with path.open("r+b") as file:
                file.write(bytes(1 << 20))
            assert client.restore(backup["id"], volume_id=disk)["status"] == "success", server.log()
            nowhere = words | {"path": "cinder:nowhere/" + volume_id, "name": "n"}
            status, told = client.call("POST", "/ext/v1/admin/protectables", {"protectable": nowhere})
            assert status == 400 and "knows no OpenStack named nowhere" in str(told)
        assert path.read_bytes()[: 1 << 20] == content
        assert server.stop() == 0
    finally:
        server.kill()
    assert status_of(cinder, volume_id) == "available" and left(cinder, volume_id) == []


def test_the_record_of_the_short_tests_is_what_a_cinder_answers(cinder: Cinder, clouds: Path, tmp_path: Path) -> None:
    """The same story, recorded anew: kept when STRONGROOM_RECORD is set, else compared with what is kept."""
    driver, volume_id = CinderDriver(), volume(cinder, "recorded")
    answers = tmp_path / "answers.json"
    words = {"PLACE-OF-VOLUME": str(place(cinder, volume_id)), "THE-VOLUME": volume_id}
    with recording(answers, words):
        driver.inspect(ref(volume_id))
        with driver.open_point(ref(volume_id), PointWanted()) as point:
            point.commit()
        wanted = RestoreWanted(task_id="t", target=ref(volume_id), same_resource=True, kind="block", size_bytes=GIB)
        with driver.open_target(driver.plan_restore(wanted)) as target:
            target.finish()
    copies = str(cinder.volumes / "volume-")
    text = answers.read_text()
    (copy,) = {text[at : at + len(copies) + 36] for at in _places(text, copies)}
    text = text.replace(copy, "PLACE-OF-COPY")
    if os.environ.get("STRONGROOM_RECORD"):
        RECORD.write_text(text)
    shape = [re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}", "ID", key) for key in json.loads(text)]
    kept = [re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}", "ID", key) for key in json.loads(RECORD.read_text())]
    assert sorted(set(shape)) == sorted(set(kept))


def _places(text: str, word: str) -> list[int]:
    return [found.start() for found in re.finditer(re.escape(word), text)]
