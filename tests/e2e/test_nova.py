"""Servers of a real Nova with the volumes of a real Cinder: all disks in one backup, restored in place and anew.

The machines are rows of Nova's fake hypervisor: what their guests would write, the tests write into the volumes' files.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from harness import Server, wait_until
from real_cinder import Cinder
from real_nova import Nova
from recorded import recording

from strongroom.base.errors import Canceled, SourceGone
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import DiskWanted, MachineRestoreWanted, MachineWanted
from strongroom.sources.openstack.nova import NovaDriver

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(2400),  # the first run installs Cinder and Nova
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

MIB = 1 << 20
TASK = "11111111-1111-4111-8111-111111111111"
RECORD = Path(__file__).parent.parent / "contract" / "nova_answers.json"


@dataclass(frozen=True)
class Cloud:
    cinder: Cinder
    nova: Nova
    flavor: str
    network: str

    def volume(self, name: str, *, boots: bool = False, **more: str) -> str:
        body = {"volume": {"name": name, "size": 1} | more}
        made = self.ask("POST", "/volumes", body)["volume"]["id"]
        wait_until(lambda: self.status_of(made) == "available", "the volume is there", seconds=120)
        if boots:
            self.ask("POST", f"/volumes/{made}/action", {"os-set_bootable": {"bootable": True}})
        return str(made)

    def ask(self, method: str, path: str, body: object = None) -> dict:  # type: ignore[type-arg]
        return self.cinder.call(method, path, body, project="ours", user="ours") or {}

    def status_of(self, volume_id: str) -> str:
        return str(self.ask("GET", f"/volumes/{volume_id}")["volume"]["status"])

    def server(self, name: str) -> tuple[str, str, str]:
        """(server, root volume, data volume), running."""
        root, data = self.volume(f"{name}-root", boots=True), self.volume(f"{name}-data")
        return self.nova.server(name, self.flavor, [root, data], self.network), root, data

    def stop(self, server: str) -> None:
        self.nova.act(server, "os-stop")
        self.nova.await_status(server, "SHUTOFF")

    def write(self, volume_id: str, data: bytes) -> None:
        with (self.cinder.volumes / f"volume-{volume_id}").open("r+b") as file:
            file.seek(5 * MIB)
            file.write(data)

    def read(self, volume_id: str, length: int) -> bytes:
        with (self.cinder.volumes / f"volume-{volume_id}").open("rb") as file:
            file.seek(5 * MIB)
            return file.read(length)

    def ours(self, server: str) -> list[str]:
        """Names of volumes, snapshots and group snapshots that a backup of the server made."""
        found = [
            *self.ask("GET", "/volumes/detail")["volumes"],
            *self.ask("GET", "/snapshots/detail")["snapshots"],
            *self.ask("GET", "/group_snapshots/detail")["group_snapshots"],
        ]
        return [one["name"] for one in found if one["name"] == f"strongroom.{server}"]

    def attachments(self, volume_id: str) -> int:
        return len(self.ask("GET", f"/attachments?volume_id={volume_id}")["attachments"])


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("openstack")
    cinder = Cinder(folder / "cinder")
    try:
        for name in ("ours", "theirs"):
            project = cinder.keystone.project(name)
            cinder.keystone.user(name, project, "member")
        nova = Nova(folder / "nova", cinder)
        network = nova.neutron.network("net", cinder.keystone.project_id("ours"))
        yield Cloud(cinder, nova, nova.flavor("small"), network)
        nova.stop()
    finally:
        cinder.stop()


@pytest.fixture
def clouds(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = cloud.cinder.clouds(tmp_path / "clouds.yaml", ours="ours", theirs="theirs", admin="admin")
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    return path


def ref(server: str, entry: str = "ours", more: str = "") -> SourceRef:
    return SourceRef(resource_id=server, type="OS::Nova::Server", path=f"nova:{entry}/{server}{more}".encode())


def wanted(
    server: str,
    disks: tuple[str, ...],
    *,
    definition: bytes = b"",
    new_name: str | None = None,
    force: bool = False,
    power_on: bool = False,
) -> MachineRestoreWanted:
    return MachineRestoreWanted(
        task_id=TASK,
        target=ref(server),
        same_resource=True,
        disks=tuple(
            DiskWanted(source_id=id_, name=f"sd{'ab'[n]}", size_bytes=1 << 30, target_id=None if new_name else id_)
            for n, id_ in enumerate(disks)
        ),
        definition=definition,
        new_name=new_name,
        force=force,
        power_on=power_on,
    )


def test_a_running_server_is_kept_whole_and_comes_back_onto_its_own_volumes(cloud: Cloud, clouds: Path) -> None:
    """Both disks as they were, crash-consistent disk by disk and no more; a restore is refused while it runs, and stops
    and starts it when forced. Nothing is left, and the server keeps its attachments."""
    driver = NovaDriver()
    server, root, data = cloud.server("web")
    seen = driver.inspect(ref(server))
    assert seen.readable and seen.power == "running"
    assert [(disk.id, disk.name, disk.is_boot) for disk in seen.disks] == [(root, "sda", True), (data, "sdb", False)]
    for volume in (root, data):
        cloud.write(volume, b"as it was")
    with driver.open_machine(ref(server), MachineWanted()) as point:
        for volume in (root, data):
            cloud.write(volume, b"while we read")
        for disk in point.disks:
            buffer = bytearray(9)
            disk.stream.read_into(5 * MIB, memoryview(buffer))
            assert bytes(buffer) == b"as it was" and "first backup" in str(disk.full_reason)
        assert point.consistency == "crash_consistent"
        assert "not with each other" in str(point.consistency_reason) and "not in one group" in str(
            point.consistency_reason
        )
        assert "hold the guest still" in str(point.consistency_reason)
        point.commit()
    assert cloud.ours(server) == []
    with driver.open_machine(ref(server), MachineWanted(excluded=frozenset({data}), application=False)) as point:
        assert [disk.disk.id for disk in point.disks] == [root] and [disk.id for disk in point.left_out] == [data]
        assert point.consistency_reason is None, "one disk is of one moment"
    assert cloud.ours(server) == []

    assert "Shut it off" in driver.plan_restore(wanted(server, (root, data))).conflicts[0]
    plan = driver.plan_restore(wanted(server, (root, data), force=True, power_on=True))
    assert plan.conflicts == () and plan.in_place
    with driver.open_target(plan, {}) as target:
        assert cloud.nova.show(server)["status"] == "SHUTOFF" and cloud.nova.show(server)["locked"]
        for volume in (root, data):
            target.disks[volume].write(5 * MIB, memoryview(b"as it was"))
        assert target.finish().warnings == ()
    assert [cloud.read(volume, 9) for volume in (root, data)] == [b"as it was"] * 2
    shown = cloud.nova.show(server)
    assert (shown["status"], shown["locked"]) == ("ACTIVE", False)
    assert [cloud.attachments(volume) for volume in (root, data)] == [1, 1]


def test_a_restore_that_dies_leaves_a_server_that_can_be_given_back(cloud: Cloud, clouds: Path) -> None:
    """Nobody starts the server under the restore; the next attempt takes over, and without one `recover` lets it go. A
    server that is shut off is of one moment over all disks."""
    driver = NovaDriver()
    server, root, data = cloud.server("dies")
    cloud.stop(server)
    with driver.open_machine(ref(server), MachineWanted(application=False)) as point:
        assert point.consistency_reason is None and len(point.disks) == 2
    dead = driver.open_target(driver.plan_restore(wanted(server, (root, data))), {})
    assert [cloud.attachments(volume) for volume in (root, data)] == [2, 2]
    with pytest.raises(AssertionError, match="locked"):
        cloud.nova.act(server, "os-start")
    with driver.open_target(driver.plan_restore(wanted(server, (root, data))), {}) as target:
        target.disks[data].write(5 * MIB, memoryview(b"again"))
        target.finish()
    assert cloud.read(data, 5) == b"again" and cloud.nova.show(server)["status"] == "SHUTOFF"
    dead.__exit__(None, None, None)
    driver.open_target(driver.plan_restore(wanted(server, (root, data))), {})
    driver.recover(ref(server), frozenset({TASK}))
    assert not cloud.nova.show(server)["locked"]
    assert [cloud.attachments(volume) for volume in (root, data)] == [1, 1]
    cloud.nova.act(server, "lock", {"locked_reason": "mine"})
    assert "Unlock it" in driver.plan_restore(wanted(server, (root, data))).conflicts[0]
    cloud.nova.act(server, "unlock")


def test_a_new_server_is_made_of_a_restore_point(cloud: Cloud, clouds: Path) -> None:
    """New volumes, the old flavor and network; where Nova cannot make it the volumes stand, with the command that can;
    a restore that is given up leaves no volumes."""
    driver = NovaDriver()
    server, root, data = cloud.server("old")
    with driver.open_machine(ref(server), MachineWanted()) as point:
        definition = point.definition
    before = {volume["id"] for volume in cloud.ask("GET", "/volumes")["volumes"]}

    def made() -> list[str]:
        return [volume["id"] for volume in cloud.ask("GET", "/volumes")["volumes"] if volume["id"] not in before]

    plan = driver.plan_restore(wanted(server, (root, data), definition=definition, new_name="new", power_on=True))
    with driver.open_target(plan, {}):
        assert len(made()) == 2
    assert made() == []
    driver.open_target(plan, {})  # dies
    driver.recover(ref(server), frozenset({TASK}))
    assert made() == []
    with driver.open_target(plan, {}) as target:
        for volume in (root, data):
            target.disks[volume].write(5 * MIB, memoryview(volume.encode()))
        (told,) = target.finish().warnings
    found = re.search(r"The new server is ([0-9a-f-]{36})\.", told)
    assert found, told
    shown = cloud.nova.show(found[1])
    assert (shown["name"], shown["status"], shown["flavor"]["original_name"]) == ("new", "ACTIVE", "small")
    assert [nic["net_id"] for nic in driver_nics(cloud, found[1])] == [cloud.network]
    volumes = [one["id"] for one in shown["os-extended-volumes:volumes_attached"]]
    assert sorted(cloud.read(volume, 36).decode() for volume in volumes) == sorted([root, data])

    gone = definition.replace(b'"original_name": "small"', b'"original_name": "gone"')
    by_hand = wanted(server, (root, data), definition=gone, new_name="by-hand")
    plan = driver.plan_restore(replace(by_hand, task_id="by-hand"))
    with driver.open_target(plan, {}) as target:
        (told,) = target.finish().warnings
    assert "no flavor gone any more" in told and "openstack server create --flavor gone --volume" in told
    assert len(made()) == 4, "what another task made is never removed"
    driver.recover(ref(server), frozenset({"another"}))
    assert len(made()) == 4


def test_a_new_server_that_nobody_was_told_of_goes_with_its_volumes(cloud: Cloud, clouds: Path) -> None:
    """A cancel while Nova makes it takes it back. An attempt whose end nobody wrote down is undone by the next one of
    the same task, which waits until its server is gone, or by the end of a task that did not succeed."""
    driver = NovaDriver()
    server, root, _ = cloud.server("told")
    with driver.open_machine(ref(server), MachineWanted(included=frozenset({root}))) as point:
        definition = point.definition
    before = {volume["id"] for volume in cloud.ask("GET", "/volumes")["volumes"]}
    name = "new (1) a+b."

    def made() -> list[str]:
        return [volume["id"] for volume in cloud.ask("GET", "/volumes")["volumes"] if volume["id"] not in before]

    def servers() -> list[str]:
        found = cloud.nova.call("GET", "/servers")["servers"]
        return [one["id"] for one in found if one["name"] == name]

    def canceled() -> None:
        if servers():
            raise Canceled

    asked = wanted(server, (root,), definition=definition, new_name=name, power_on=True)
    with (
        pytest.raises(Canceled),
        driver.open_target(driver.plan_restore(replace(asked, check=canceled)), {}) as target,
    ):
        target.finish()
    assert (servers(), made()) == ([], [])

    with driver.open_target(driver.plan_restore(asked), {}) as target:
        target.finish()
    (first,) = servers()
    with driver.open_target(driver.plan_restore(asked), {}) as target:
        assert servers() == [] and len(made()) == 1
        target.finish()
    (second,) = servers()
    assert first != second and len(made()) == 1
    driver.recover(ref(server), frozenset({TASK}))  # it was canceled after its worker had died
    assert (servers(), made()) == ([], [])


def driver_nics(cloud: Cloud, server: str) -> list[dict[str, str]]:
    return cloud.nova.call("GET", f"/servers/{server}/os-interface")["interfaceAttachments"]  # type: ignore[no-any-return]


def test_volumes_in_one_consistent_group_are_of_one_moment(cloud: Cloud, clouds: Path) -> None:
    """One group snapshot has them all. It is claimed only where the group's type promises it and the account may see
    that; a member of the project may not, so there the reason stays."""
    nova, driver = cloud.nova, NovaDriver()
    specs = {"group_specs": {"consistent_group_snapshot_enabled": "<is> True"}}
    kind = cloud.cinder.call("POST", "/group_types", {"group_type": {"name": "together"}})["group_type"]["id"]
    cloud.cinder.call("POST", f"/group_types/{kind}/group_specs", specs)
    types = cloud.cinder.call("GET", "/types")["volume_types"]
    (usual,) = [one["id"] for one in types if one["name"] == "__DEFAULT__"]
    words = {"group": {"name": "g", "group_type": kind, "volume_types": [usual]}}
    group = cloud.ask("POST", "/groups", words)["group"]["id"]
    wait_until(lambda: cloud.ask("GET", f"/groups/{group}")["group"]["status"] == "available", "the group is there")
    more = {"group_id": group, "volume_type": usual}
    root, data = cloud.volume("g-root", boots=True, **more), cloud.volume("g-data", **more)
    server = nova.server("grouped", cloud.flavor, [root, data], cloud.network)
    cloud.write(data, b"grouped")
    with driver.open_machine(ref(server), MachineWanted(application=False)) as point:
        assert len(cloud.ask("GET", "/group_snapshots")["group_snapshots"]) == 1
        buffer = bytearray(7)
        point.disks[1].stream.read_into(5 * MIB, memoryview(buffer))
        assert bytes(buffer) == b"grouped"
        assert "the account may not see it" in str(point.consistency_reason)
    assert cloud.ours(server) == []
    dead = driver.open_machine(ref(server), MachineWanted(application=False))
    project = cloud.cinder.keystone.project_id("ours")
    users = cloud.cinder.keystone.call("GET", "/users?name=ours")["users"][0]["id"]
    role = cloud.cinder.keystone.role("admin")
    cloud.cinder.keystone.call("PUT", f"/projects/{project}/users/{users}/roles/{role}")
    try:
        with driver.open_machine(ref(server), MachineWanted(application=False)) as point:
            assert point.consistency_reason is None
    finally:
        cloud.cinder.keystone.call("DELETE", f"/projects/{project}/users/{users}/roles/{role}")
    dead.abort()
    assert cloud.ours(server) == []


def test_what_is_no_volume_is_never_left_out_silently(cloud: Cloud, clouds: Path) -> None:
    """Ephemeral and swap disks stand in the point's reason and among what was left out."""
    driver = NovaDriver()
    root = cloud.volume("e-root", boots=True)
    flavor = cloud.nova.flavor("ephemeral", **{"OS-FLV-EXT-DATA:ephemeral": 1, "swap": 512})
    server = cloud.nova.server("ephemeral", flavor, [root], cloud.network)
    coverage = {ability.name: ability for ability in driver.inspect(ref(server)).abilities}["coverage"]
    assert not coverage.works and "local-ephemeral (1 GiB)" in coverage.reason
    with driver.open_machine(ref(server), MachineWanted(application=False)) as point:
        assert [disk.name for disk in point.left_out] == ["local-ephemeral", "local-swap"]
        assert "Not in the backup" in str(point.consistency_reason)


def test_a_project_sees_its_own_servers_only(cloud: Cloud, clouds: Path) -> None:
    """Another project's server is not there, also for an account that Nova would show it to."""
    server, _, _ = cloud.server("private")
    for entry in ("theirs", "admin"):
        seen = NovaDriver().inspect(ref(server, entry))
        assert not seen.exists and "OpenStack has no server" in str(seen.reason), entry
        with pytest.raises(SourceGone):
            NovaDriver().open_machine(ref(server, entry), MachineWanted())


def test_the_service_keeps_servers_of_an_openstack(cloud: Cloud, tmp_path: Path) -> None:
    """Registered by its address, backed up with a child a disk, damaged, restored, through the API."""
    server_id, root, data = cloud.server("served")
    for volume in (root, data):
        cloud.write(volume, volume.encode())
    state = tmp_path / "state"
    server = Server(state)
    server.ready_database.copy_to(state)
    cloud.cinder.clouds(state / "clouds.yaml", ours="ours")
    server.start()
    try:
        with server.client() as client:
            words = {"project_id": client.project, "type": "server", "name": "s", "path": f"nova:ours/{server_id}"}
            machine = client.ok("POST", "/ext/v1/admin/protectables", {"protectable": words})["protectable"]["id"]
            vault = client.vault("v", "server", [machine])
            assert client.settled(client.checkpoint(vault))["status"] == "available", server.log()
            (backup,) = client.backups()
            assert sorted(child["resource_id"] for child in backup["children"]) == sorted([root, data])
            cloud.stop(server_id)
            for volume in (root, data):
                cloud.write(volume, bytes(36))
            assert client.restore(backup["id"], server_id=machine, power_on=True)["status"] == "success", server.log()
        assert server.stop() == 0
    finally:
        server.kill()
    assert [cloud.read(volume, 36).decode() for volume in (root, data)] == [root, data]
    assert cloud.nova.show(server_id)["status"] == "ACTIVE" and cloud.ours(server_id) == []


def test_the_record_of_the_short_tests_is_what_a_nova_answers(cloud: Cloud, clouds: Path, tmp_path: Path) -> None:
    """The same story, recorded anew: kept when STRONGROOM_RECORD is set, else compared with what is kept."""
    driver = NovaDriver()
    server, root, data = cloud.server("recorded")
    cloud.stop(server)
    answers = tmp_path / "answers.json"
    places = {"PLACE-OF-ROOT": root, "PLACE-OF-DATA": data}
    words = {word: str(cloud.cinder.volumes / f"volume-{id_}") for word, id_ in places.items()}
    words |= {"THE-SERVER": server, "THE-ROOT": root, "THE-DATA": data}
    with recording(answers, words, whole=True):
        driver.inspect(ref(server))
        with driver.open_machine(ref(server), MachineWanted(included=frozenset({data}))) as point:
            assert point.disks[0].stream.size == 1 << 30
            point.commit()
        with driver.open_target(driver.plan_restore(wanted(server, (root, data))), {}) as target:
            target.finish()
    text = answers.read_text()
    copies = set(re.findall(re.escape(str(cloud.cinder.volumes / "volume-")) + r"[0-9a-f-]{36}", text))
    (copy,) = copies
    text = text.replace(copy, "PLACE-OF-COPY")
    for port in (cloud.cinder.port, cloud.nova.port):
        text = text.replace(f"http://127.0.0.1:{port}", "http://recorded")
    if os.environ.get("STRONGROOM_RECORD"):
        RECORD.write_text(text)
    assert shape(text) == shape(RECORD.read_text())


def shape(text: str) -> list[str]:
    ids = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}")
    return sorted({ids.sub("ID", key) for key in json.loads(text)})
