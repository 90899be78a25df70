"""Two regions, two real servers: restore points that are copied survive their first region, and nothing else moves."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import certificate
from contract_schema import check_answer, check_error
from harness import Client, Server, contents, make_tree, wait_until
from regions_world import Regions, destination, record_of, replicated, replication_vault

from strongroom.base.regions import REGION_HEADER, Region
from strongroom.base.signing import authorization, sign

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

OUT_OF_REACH = 100_000
UNKNOWN = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    pair = Regions(tmp_path_factory.mktemp("regions"))
    pair.start(pair.east)
    pair.start(pair.west)
    yield pair
    pair.stop()


@pytest.fixture
def east(regions: Regions) -> Iterator[Client]:
    with regions.east.client() as client:
        yield client


@pytest.fixture
def door(regions: Regions) -> Iterator[httpx.Client]:
    """The east's own, not over the wire."""
    with httpx.Client(base_url=regions.east.endpoint, trust_env=False) as client:
        yield client


@pytest.fixture
def west(regions: Regions) -> Iterator[Client]:
    with regions.west.client() as client:
        yield client


def backed_up(client: Client, source: Path, name: str) -> tuple[str, str]:
    """(vault, backup) of a folder that is registered, bound and backed up."""
    vault = client.vault(name, "turbo", [client.register("turbo", name, source)])
    return vault, again(client, vault)


def again(client: Client, vault: str) -> str:
    checkpoint = client.checkpoint(vault)
    assert client.settled(checkpoint)["status"] == "available"
    return client.backups(checkpoint_id=checkpoint)[0]["id"]


def copy(client: Client, backup: str, where: dict[str, str], **more: str) -> str:
    body = {"replicate": {**where, **more}}
    return client.ok("POST", f"backups/{backup}/replicate", body)["replication"]["replication_record_id"]


def restored(client: Client, backup: str, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    target = client.register("turbo", folder.name, folder)
    ended = client.restore(backup, resource_id=target)
    assert ended["status"] == "success", ended
    return contents(folder)


# Warnings of the SDK itself are not ours to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_sdk_copies_a_backup_that_outlives_its_source(
    regions: Regions, east: Client, west: Client, tmp_path: Path
) -> None:
    """huaweicloudsdkcbr: capability, copy_backup, records and logs on both sides; the source's backup is deleted, and
    the replica restores byte for byte."""
    from huaweicloudsdkcbr.v1 import (
        BackupReplicateReq,
        BackupReplicateReqBody,
        CbrClient,
        CopyBackupRequest,
        ListBackupsRequest,
        ListOpLogsRequest,
        ShowBackupRequest,
        ShowReplicationCapabilitiesRequest,
    )
    from huaweicloudsdkcore.auth.credentials import BasicCredentials

    source = tmp_path / "sdk-source"
    make_tree(source, 1)
    expected = contents(source)
    _, backup = backed_up(east, source, "sdk")
    target = replication_vault(west)
    given = regions.east.credentials
    sdk = (
        CbrClient.new_builder()
        .with_credentials(BasicCredentials(given["access_key"], given["secret_key"], given["project_id"]))
        .with_endpoints([regions.east.endpoint])
        .build()
    )
    found = sdk.show_replication_capabilities(ShowReplicationCapabilitiesRequest()).regions
    assert [(r.name, r.replication_destinations) for r in found] == [("east", ["west"])]
    body = BackupReplicateReqBody(name="copy-of-sdk", description="kept elsewhere", **destination(regions, target))
    answer = sdk.copy_backup(CopyBackupRequest(backup, BackupReplicateReq(body))).replication
    assert (answer.backup_id, answer.source_region, answer.destination_region) == (backup, "east", "west")
    record = replicated(east, backup, answer.replication_record_id)

    shown = sdk.show_backup(ShowBackupRequest(backup)).backup
    assert [r.id for r in shown.replication_records] == [record["id"]]
    assert shown.replication_records[0].extra_info.progress == 100
    listed = sdk.list_backups(ListBackupsRequest(show_replication=True, resource_id=shown.resource_id)).backups
    assert [r.status for b in listed for r in b.replication_records] == ["success"]
    log = sdk.list_op_logs(ListOpLogsRequest(operation_type="replication")).operation_logs[0]
    assert (log.status, log.extra_info.replication.source_backup_id) == ("success", backup)
    assert log.extra_info.replication.destination_backup_id == record["destination_backup_id"]

    replica = west.ok("GET", f"backups/{record['destination_backup_id']}")["backup"]
    assert (replica["image_type"], replica["name"], replica["vault_id"]) == ("replication", "copy-of-sdk", target)
    assert replica["status"] == "available"
    assert replica["replication_records"][0]["source_backup_id"] == backup
    assert west.backups(image_type="replication", vault_id=target)[0]["id"] == replica["id"]
    for client in (east, west):
        for path, operation in ((f"backups/{shown.id}", "show_backup"), ("operation-logs", "list_op_logs")):
            if client is east or operation == "list_op_logs":
                check_answer(operation, client.http.get(f"/v3/{client.project}/{path}"))
    checkpoint = check_answer(
        "show_checkpoint", west.http.get(f"/v3/{west.project}/checkpoints/{replica['checkpoint_id']}")
    )["checkpoint"]
    assert checkpoint["status"] == "available"

    assert east.call("DELETE", f"backups/{backup}")[0] == 204
    wait_until(lambda: east.call("GET", f"backups/{backup}")[0] == 404, "the source's backup is gone")
    assert restored(west, replica["id"], tmp_path / "sdk-target") == expected
    assert west.call("DELETE", f"backups/{replica['id']}")[0] == 204
    wait_until(lambda: west.call("GET", f"backups/{replica['id']}")[0] == 404, "the replica is gone")
    west.quiet()
    assert west.ok("GET", f"vaults/{target}")["vault"]["billing"]["used"] == 0


def test_a_second_copy_sends_what_changed(regions: Regions, east: Client, west: Client, tmp_path: Path) -> None:
    """Bytes on the wire: the first copy about what the vault stores, the second a small part of that; both whole."""
    source = tmp_path / "grows"
    source.mkdir()
    for i in range(12):
        (source / f"f{i}").write_bytes(random.Random(i).randbytes(1 << 20))
    vault, first = backed_up(east, source, "grows")
    target = replication_vault(west, "grown")
    before = regions.to_east.down
    record = copy(east, first, destination(regions, target))
    replicated(east, first, record)
    whole = regions.to_east.down - before
    (source / "f3").write_bytes(random.Random(99).randbytes(1 << 20))
    second = again(east, vault)
    expected = contents(source)
    before = regions.to_east.down
    done = replicated(east, second, copy(east, second, destination(regions, target)))
    increment = regions.to_east.down - before
    print(f"wire: first {whole} bytes, second {increment} bytes")
    assert 12 << 20 < whole < 14 << 20
    assert 1 << 20 < increment < 3 << 19, "the second copy sent more than what changed"
    assert restored(west, done["destination_backup_id"], tmp_path / "grown-target") == expected


def test_a_cut_wire_and_both_deaths_lose_nothing(regions: Regions, east: Client, west: Client, tmp_path: Path) -> None:
    """Cut in the middle of a copy, then the destination killed, then the source: when they are back it goes on by
    itself, and the replica is whole."""
    source = tmp_path / "cut"
    source.mkdir()
    for i in range(16):
        (source / f"f{i}").write_bytes(random.Random(500 + i).randbytes(1 << 20))
    expected = contents(source)
    _, backup = backed_up(east, source, "cut")
    target = replication_vault(west, "cut-replicas")
    start = regions.to_east.down
    regions.to_east.cut_after = start + (5 << 20)
    record = copy(east, backup, destination(regions, target))
    wait_until(lambda: regions.to_east.is_cut, "the wire is cut")
    assert record_of(east, backup, record)["status"] in ("waiting_replicate", "replicating")
    status, answer = east.call("DELETE", f"backups/{backup}")
    assert (status, answer["error_code"]) == (400, "BackupService.6216")
    regions.west.kill()
    regions.start(regions.west)
    regions.east.kill()
    regions.start(regions.east)
    regions.to_east.cut_after = None
    with regions.east.client() as back, regions.west.client() as there:
        done = replicated(back, backup, record)
        assert restored(there, done["destination_backup_id"], tmp_path / "cut-target") == expected


def test_refusals_have_the_published_codes(regions: Regions, east: Client, west: Client, tmp_path: Path) -> None:
    """Each thing that cannot be copied, and each place that takes no replicas; nothing is written by any of it."""
    source, image = tmp_path / "refused", tmp_path / "disk.img"
    make_tree(source, 4, files=3)
    image.write_bytes(b"d" * 100_000)
    vault, backup = backed_up(east, source, "refused")
    disk_vault = east.vault("disks", "disk", [east.register("disk", "disk", image)])
    disk = again(east, disk_vault)
    target = replication_vault(west, "target")
    plain = west.vault("plain", "turbo", [])
    where = destination(regions, target)

    def refused(operation: str, path: str, body: object, status: int, code: str) -> str:
        answer = east.http.post(f"/v3/{east.project}/{path}", json=body)
        return check_error(operation, answer, status, code)["error_msg"]

    def one(code: str, status: int = 400, backup_id: str = backup, **change: object) -> str:
        body = {"replicate": {**where, **change}}
        return refused("copy_backup", f"backups/{backup_id}/replicate", body, status, code)

    assert "does not exist" in one("6200", 404, backup_id=UNKNOWN)
    assert "replicas" in one("6122", backup_id=disk)
    assert "No vault" in one("6120", destination_region="north")
    assert "another region" in one("9900", destination_region="east")
    assert "takes no replicas" in one("1011", destination_project_id="0" * 32)
    assert "No vault" in one("6120", destination_vault_id=UNKNOWN)
    assert "replication vault" in one("6119", destination_vault_id=plain)
    one("9900", destination_vault_id="x")
    one("9900", enable_acceleration=True)
    one("9900", name="a b")
    turbo = {"vault_id": vault, **where}
    path = "checkpoints/replicate"
    refused("copy_checkpoint", path, {"replicate": {**turbo, "vault_id": UNKNOWN}}, 404, "6105")
    refused("copy_checkpoint", path, {"replicate": {**turbo, "vault_id": disk_vault}}, 400, "6128")
    refused("copy_checkpoint", path, {}, 400, "9900")

    answer = east.http.post(f"/v3/{east.project}/{path}", json={"checkpoint": {"replicate": turbo}})
    begun = check_answer("copy_checkpoint", answer)["replication"]["backups"]
    assert [b["backup_id"] for b in begun] == [backup]
    record = replicated(east, backup, begun[0]["replication_record_id"])
    refused("copy_checkpoint", path, {"replicate": turbo}, 400, "0001")
    assert "one is enough" in one("6118")
    replica = record["destination_backup_id"]
    status, error = west.call(
        "POST", f"backups/{replica}/replicate", {"replicate": {**where, "destination_region": "east"}}
    )
    assert (status, error["error_code"]) == (400, "BackupService.6128")
    assert east.call("GET", "replication-capabilities")[0] == 200
    # A replica that is gone over there may be made again.
    assert west.call("DELETE", f"backups/{replica}")[0] == 204
    wait_until(lambda: west.call("GET", f"backups/{replica}")[0] == 404, "the replica is gone")
    second = replicated(east, backup, copy(east, backup, where))
    assert second["destination_backup_id"] != replica
    # A resource whose replicas are kept elsewhere can be removed here.
    assert west.ok("GET", f"backups/{second['destination_backup_id']}")["backup"]["status"] == "available"


def test_a_region_gets_what_it_is_offered_and_nothing_else(
    regions: Regions, east: Client, west: Client, door: httpx.Client, tmp_path: Path
) -> None:
    """The peer's door: unsigned, wrongly signed, meant for another region, people's tokens, closed records, other
    names: refused; while a record is open its domain's objects can be read and no key."""
    real = Region(name="east", endpoint=regions.east.endpoint, secret=bytes.fromhex(regions.secret))
    wrong = Region(name="east", endpoint=regions.east.endpoint, secret=bytes(32))

    def ask(path: str, *, region: Region = real, who: str = "west", to: str = "east", **query: Any) -> httpx.Response:
        request = door.build_request("GET", f"/ext/v1/peer{path}", params=query)
        request.headers["X-Sdk-Date"] = _now()
        request.headers[REGION_HEADER] = to
        signed = {name: request.headers[name] for name in ("host", "x-sdk-date", REGION_HEADER.lower())}
        signature = sign(region.signing_key, "GET", request.url.raw_path, signed, b"")
        request.headers["Authorization"] = authorization(who, signed, signature)
        return door.send(request)

    assert ask("").json()["region"] == "east"
    assert door.get("/ext/v1/peer").status_code == 401
    assert door.get("/ext/v1/peer", headers={"X-Auth-Token": east.http.headers["X-Auth-Token"]}).status_code == 401
    assert ask("", region=wrong).status_code == 401
    assert ask("", who="north").status_code == 401
    assert ask("", to="west").status_code == 401
    assert ask("", who="east").status_code == 401  # one of our own requests, sent back
    # A region's signature opens no tenant's door.
    signed = ask("").request.headers["Authorization"]
    assert door.get(f"/v3/{east.project}/vaults", headers={"Authorization": signed}).status_code == 401

    source = tmp_path / "offered"
    make_tree(source, 9, files=3)
    _, backup = backed_up(east, source, "offered")
    target = replication_vault(west, "offered-replicas")
    regions.to_west.cut_after = 0  # nobody over there hears of it: the record stays open
    try:
        status, error = east.call("POST", f"backups/{backup}/replicate", {"replicate": destination(regions, target)})
        assert (status, error["error_code"]) == (400, "BackupService.6118"), "west cannot be asked, and nothing began"
        assert "cannot be reached" in error["error_msg"]
    finally:
        regions.to_west.cut_after = None
    regions.to_east.cut_after = regions.to_east.down
    try:
        record = copy(east, backup, destination(regions, target))
        objects = f"/sources/{record}/objects"
        names = [name for name, _ in ask(objects, prefix="packs/").json()["objects"]]
        assert names
        assert len(ask(f"{objects}/content", name=names[0], offset=0, length=100).content) == 100
        assert ask(objects, prefix="keys/").status_code == 400
        for name in ("keys/0", "roots/x.1", "../domain", "index/../keys/0", "packs/", ""):
            assert ask(f"{objects}/content", name=name, length=10).status_code == 404, name
        for length in (1 << 40, (8 << 20) + 1):  # a request costs this region a piece, not an object
            assert ask(f"{objects}/content", name=names[0], offset=0, length=length).status_code == 400
        assert ask(f"/sources/{UNKNOWN}/objects", prefix="packs/").status_code == 404
    finally:
        regions.to_east.cut_after = None
    replicated(east, backup, record)
    assert ask(objects, prefix="packs/").status_code == 404, "the record is closed"
    for log in (regions.east.log_path, regions.west.log_path):
        assert regions.secret not in log.read_text()


def test_a_policy_sends_what_is_missing_and_keeps_what_it_says(
    regions: Regions, east: Client, west: Client, tmp_path: Path
) -> None:
    """A replication policy applied to a vault: destination checked, runs by the clock, replicas are automatic, and of
    three restore points the newest two stay over there."""
    source = tmp_path / "policy"
    make_tree(source, 12, files=3)
    vault, first = backed_up(east, source, "policy")
    target = replication_vault(west, "policy-replicas")
    rule = _soon()
    definition = {
        "max_backups": 2,
        "destination_region": "west",
        "destination_project_id": regions.west_project,
        "timezone": "UTC+00:00",
    }
    body = {"name": "send", "operation_type": "replication", "operation_definition": definition,
            "trigger": {"properties": {"pattern": [rule]}}}  # fmt: skip
    policy = east.ok("POST", "policies", {"policy": body})["policy"]["id"]
    apply = f"vaults/{vault}/associatepolicy"
    assert east.call("POST", apply, {"policy_id": policy, "destination_vault_id": UNKNOWN})[1]["error_code"].endswith(
        "6120"
    )
    assert east.call("POST", apply, {"policy_id": policy})[0] == 400
    others = [again(east, vault) for _ in range(2)]
    answer = east.ok("POST", apply, {"policy_id": policy, "destination_vault_id": target})
    assert answer["associate_policy"]["policy_id"] == policy
    shown = east.ok("GET", f"policies/{policy}")["policy"]["associated_vaults"]
    assert shown == [{"vault_id": vault, "destination_vault_id": target}]
    wait_until(
        lambda: (
            sum(
                r["status"] == "success"
                for b in east.backups(vault_id=vault, show_replication="true")
                for r in b["replication_records"]
            )
            == 3
        ),
        "three replicas",
    )
    logs = east.ok("GET", "operation-logs", vault_id=vault, operation_type="replication")["operation_logs"]
    assert {log["policy_id"] for log in logs} == {policy}
    left = wait_until(
        lambda: len(found := west.backups(vault_id=target)) == 2 and found, "the oldest replica has expired", 60
    )
    sources = {
        r["source_backup_id"]
        for b in west.backups(vault_id=target, show_replication="true")
        for r in b["replication_records"]
    }
    assert sources == set(others), (first, left)
    assert all(b["extend_info"]["auto_trigger"] for b in left)
    assert east.call("POST", f"vaults/{vault}/dissociatepolicy", {"policy_id": policy})[0] == 200


def test_the_command_line_checks_the_way_and_copies(
    regions: Regions, east: Client, west: Client, tmp_path: Path
) -> None:
    """region list, region check with a sentence for what does not work, vault and backup replicate."""
    source = tmp_path / "cli"
    make_tree(source, 21, files=3)
    vault, backup = backed_up(east, source, "cli")
    target = _cli(regions.west, "vault", "create", "cli-replicas", "--type", "turbo", "--replicas")["id"]
    assert _cli(regions.east, "region", "list") == [{"name": "west", "project_id": regions.west_project}]
    assert target in [vault["id"] for vault in _cli(regions.east, "region", "vaults", "west")]
    external = f"/v3/{east.project}/vaults/external"
    asked = {"region_id": "west", "external_project_id": regions.west_project}
    plain = west.vault("takes-none", "turbo", [])
    found = check_answer("list_external_vault", east.http.get(external, params=asked))["vaults"]
    assert target in {vault["id"] for vault in found}
    assert plain not in {vault["id"] for vault in found}
    assert {vault["billing"]["protect_type"] for vault in found} == {"replication"}
    features = check_answer("list_features", east.http.get(f"/v3/{east.project}/cbr-features"))
    assert (features["replication.enable"], features["replication.destination_regions"]) == (True, ["west"])
    for change in ({"external_project_id": "0" * 32}, {"region_id": "north"}, {"protect_type": "backup"}):
        assert east.http.get(external, params=asked | change).json() == {"vaults": [], "count": 0}
    steps = _cli(regions.east, "region", "check", "west")["steps"]
    assert [step["works"] for step in steps] == [True] * 4, steps
    regions.to_east.cut_after = regions.to_east.down
    try:
        steps = _cli(regions.east, "region", "check", "west", code=1)["steps"]
    finally:
        regions.to_east.cut_after = None
    assert [step["works"] for step in steps] == [True, True, True, False]
    assert "east cannot be reached" in steps[3]["reason"]
    options = ["--region", "west", "--to-vault", target]
    _cli(regions.east, "backup", "replicate", backup, *options, "--wait")
    assert west.backups(vault_id=target)[0]["status"] == "available"
    second = again(east, vault)
    _cli(regions.east, "vault", "replicate", vault, *options, "--wait")
    assert len(west.backups(vault_id=target)) == 2
    assert record_of(east, second, _only_record(east, second))["status"] == "success"
    assert "no region north" in _cli_error(
        regions.east, "backup", "replicate", backup, "--region", "north", "--to-vault", target
    )


def test_the_store_of_the_second_region_is_enough(tmp_path: Path) -> None:
    """Both servers are gone, and the first region wholly: with the second one's store and key `recover` restores, and
    `rebuild` brings replicas back as replicas."""
    pair = Regions(tmp_path)
    source = tmp_path / "source"
    make_tree(source, 33)
    expected = contents(source)
    try:
        for server in (pair.east, pair.west):
            pair.start(server)
        with pair.east.client() as east, pair.west.client() as west:
            _, backup = backed_up(east, source, "last")
            target = replication_vault(west, "last-replicas")
            replica = replicated(east, backup, copy(east, backup, destination(pair, target)))["destination_backup_id"]
            project = west.project
    finally:
        pair.stop()
    shutil.rmtree(pair.east.state)
    store, kept = tmp_path / "kept", tmp_path / "kept.key"
    (pair.west.state / "store").rename(store)
    (pair.west.state / "master.key").rename(kept)
    shutil.rmtree(pair.west.state)
    done = _run_bare(
        "recover", "--store", f"file://{store}", "--key", str(kept), "restore", replica, str(tmp_path / "out")
    )
    assert done.returncode in (0, 3), done.stderr
    assert contents(tmp_path / "out") == expected

    again_there = Server(tmp_path / "again", store_url=f"file://{store}")
    again_there.state.mkdir(mode=0o700)
    shutil.copy(kept, again_there.state / "master.key")
    (again_there.state / "strongroom.toml").write_text(f'store_url = "file://{store}"\n')
    done = _run_bare("rebuild", "--registrations", "--state", str(again_there.state))
    assert done.returncode == 0, done.stderr
    again_there.start()
    try:
        with again_there.client() as client:
            given = again_there.credentials
            token = Client(again_there.endpoint, {**given, "project_id": project})
            with token as there:
                found = there.ok("GET", f"backups/{replica}")["backup"]
                assert (found["image_type"], found["status"]) == ("replication", "available")
                vault = there.ok("GET", f"vaults/{target}")["vault"]
                assert vault["billing"]["protect_type"] == "replication"
                assert vault["resources"] == [], "a replica's resource is in another region"
                assert restored(there, replica, tmp_path / "rebuilt") == expected
            assert client.call("GET", "vaults")[0] == 200
    finally:
        assert again_there.stop() == 0


@pytest.mark.long
def test_a_certificate_that_is_not_trusted_stops_everything(tmp_path: Path) -> None:
    """TLS: without the authority's file nothing is sent and the check says what to do; with it everything works."""
    pair = Regions(tmp_path)
    cert, key = certificate(tmp_path)
    try:
        pair.write(pair.east, "west", pair.to_west, scheme="https")
        pair.start(pair.east)
        pair.start(pair.west, tls_cert=str(cert), tls_key=str(key))
        steps = _cli(pair.east, "region", "check", "west", code=1)["steps"]
        assert not steps[0]["works"]
        assert "certificate is not trusted" in steps[0]["reason"], steps
        assert "ca_file" in steps[0]["reason"]
        pair.east.stop()
        pair.write(pair.east, "west", pair.to_west, scheme="https", more=f'ca_file = "{cert}"')
        pair.start(pair.east)
        assert all(step["works"] for step in _cli(pair.east, "region", "check", "west")["steps"])
    finally:
        pair.stop()


def _run_bare(*argv: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    command = [sys.executable, "-m", "strongroom", *argv]
    return subprocess.run(command, env=environ, capture_output=True, timeout=120, text=True)


def _only_record(client: Client, backup: str) -> str:
    return client.ok("GET", f"backups/{backup}")["backup"]["replication_records"][0]["id"]


def _run(server: Server, *argv: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    command = [sys.executable, "-m", "strongroom", *argv, "--state", str(server.state), "--json"]
    return subprocess.run(command, env=environ, capture_output=True, timeout=120, text=True)


def _cli(server: Server, *argv: str, code: int = 0) -> Any:
    done = _run(server, *argv)
    assert done.returncode == code, (argv, done.stdout, done.stderr)
    text = done.stdout
    if '"message_type"' in text:
        text = text.splitlines()[-1]
    return json.loads(text) if text else None


def _cli_error(server: Server, *argv: str) -> str:
    done = _run(server, *argv)
    assert done.returncode == 1, done
    return done.stderr + done.stdout


def _now() -> str:
    from strongroom.base.clock import SystemClock
    from strongroom.base.signing import DATE_FORMAT

    return SystemClock().now().strftime(DATE_FORMAT)


def _soon() -> str:
    """The rule that fires in a minute that begins in 5 to 65 seconds."""
    from datetime import UTC, datetime, timedelta

    at = (datetime.now(UTC) + timedelta(seconds=65)).replace(second=0, microsecond=0)
    return f"FREQ=DAILY;INTERVAL=1;BYHOUR={at.hour};BYMINUTE={at.minute:02}"
