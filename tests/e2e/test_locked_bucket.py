"""Two regions whose restore points lie in a bucket with object lock: the service works as anywhere, what is
locked outlives its owner, and what the bucket does not give back is told."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness import Client, contents, make_tree, wait_until
from locked_bucket import client_of, kept_until, locked_bucket, remove_versions_after_a_day
from regions_world import Regions, destination, replicated, replication_vault
from seaweed import ACCESS_KEY, SECRET_KEY, S3Server

from strongroom.base.errors import StoreDenied
from strongroom.engine.store.s3 import S3Store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

FREES_NOTHING = "Give it a lifecycle rule"
DAYS = 30


class World:
    """East keeps its points below `p/`, west below `west/` of one bucket."""

    def __init__(self, seaweed: S3Server, base: Path) -> None:
        self.seaweed, self.bucket = seaweed, locked_bucket(seaweed)
        access = {
            "s3_endpoint": seaweed.endpoint,
            "s3_allow_http": "true",
            "s3_access_key": ACCESS_KEY,
            "s3_secret_key": SECRET_KEY,
        }
        places = [{**access, "store_url": f"s3://{self.bucket}/{prefix}"} for prefix in ("p", "west")]
        self.regions = Regions(base, east=places[0], west=places[1])

    def objects(self, kind: str, prefix: str = "p") -> set[str]:
        """Names of objects of a kind (`packs`, `roots`, ...) that are there and not deleted, without the prefix."""
        store = S3Store(self.bucket, prefix, self.seaweed.access())
        return {info.name for info in store.list("") if f"/{kind}/" in info.name}

    def versions(self, marks: bool = False) -> dict[str, list[str]]:
        """Key -> ids of the versions that hold data, deleted or not; or of the marks that hide them."""
        client, kind = client_of(self.seaweed, self.bucket), "DeleteMarker" if marks else "Version"
        found: dict[str, list[str]] = {}
        page = client.request("GET", "versions", "", {"versions": "", "max-keys": "1000"}).body.decode()
        assert "<IsTruncated>true" not in page
        for one in re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL):
            key, version = (re.search(f"<{part}>([^<]+)<", one) for part in ("Key", "VersionId"))
            assert key and version
            found.setdefault(key[1], []).append(version[1])
        return found

    def kept(self, kind: str, prefix: str = "p") -> dict[str, datetime | None]:
        names = self.objects(kind, prefix)
        return {name: kept_until(self.seaweed, self.bucket, f"{prefix}/{name}") for name in names}


@pytest.fixture
def world(s3_server: S3Server, tmp_path: Path) -> Iterator[World]:
    made = World(s3_server, tmp_path)
    yield made
    made.regions.stop()


def available(client: Client, vault: str) -> str:
    checkpoint = client.checkpoint(vault)
    assert client.settled(checkpoint)["status"] == "available"
    return client.backups(checkpoint_id=checkpoint)[0]["id"]


def restores(client: Client, backup: str, folder: Path, expected: dict) -> None:
    folder.mkdir()
    target = client.register("turbo", folder.name, folder)
    assert client.restore(backup, resource_id=target)["status"] == "success"
    assert contents(folder) == expected


def test_a_locked_vault_on_a_bucket_with_object_lock(world: World, tmp_path: Path) -> None:
    """Backup, delete, prune, lock, refusals, extension, replication; then everything is deleted with the keys of the
    bucket, and comes back."""
    regions = world.regions
    east = regions.start(regions.east)
    source = tmp_path / "source"
    make_tree(source, 1)
    with east.client() as client:
        vault = client.vault("v", "turbo", [client.register("turbo", "source", source)])
        gone = _a_delete_hides_and_frees_nothing(world, client, vault, source)
        kept, expected = available(client, vault), contents(source)
        _what_is_locked_is_kept(world, client, vault, kept)
        (source / "big").write_bytes(b"changed")
        newer, newest = available(client, vault), contents(source)
        assert client.ok("GET", f"backups/{newer}")["backup"]["expired_at"] is None
        _what_has_no_time_is_kept_for_a_month(world, newer)
        client.quiet()
        assert gone not in {b["id"] for b in client.backups()}
        _is_copied_to_the_west(world, client, newer, tmp_path / "in-the-west", newest)
    east.stop()
    _deleted_with_the_keys_of_the_bucket(world)
    regions.start(east)
    with east.client() as client:
        restores(client, kept, tmp_path / "kept", expected)
        restores(client, newer, tmp_path / "newer", newest)
        report = client.ok("POST", f"/ext/v1/{client.project}/vaults/{vault}/verify", {"verify": {"deep": True}})
        path = f"/ext/v1/{client.project}/tasks/{report['task_id']}"
        wait_until(lambda: client.ok("GET", path)["task"]["status"] == "success", "a deep check of all that is left")
    east.stop()
    remove_versions_after_a_day(client_of(world.seaweed, world.bucket))
    before = len(east.log_path.read_text())
    regions.start(east)
    assert FREES_NOTHING not in east.log_path.read_text()[before:]


def _a_delete_hides_and_frees_nothing(world: World, client: Client, vault: str, source: Path) -> str:
    """Before the lock a delete works as anywhere, and the server has said that the bucket frees nothing by it."""
    assert FREES_NOTHING in world.regions.east.log_path.read_text()
    available(client, vault)
    (source / "only-here").write_bytes(random.Random(2).randbytes(400_000))
    gone = available(client, vault)
    packs = world.objects("packs")
    (source / "only-here").unlink()
    assert client.ok("DELETE", f"backups/{gone}") is None
    client.quiet()
    assert not any(gone in name for name in world.objects("roots"))
    wait_until(lambda: packs - world.objects("packs"), "the prune took what only the deleted restore point needed")
    assert all(f"p/{name}" in world.versions() for name in packs), "and the bucket has it still"
    return gone


def _what_is_locked_is_kept(world: World, client: Client, vault: str, kept: str) -> None:
    day = (datetime.now(UTC) + timedelta(days=DAYS)).strftime("%Y-%m-%d")
    until = {"expect_expiration_date": day, "time_zone": "UTC+00:00"}
    client.ok("PUT", f"vaults/{vault}/update-backup-expiration-time", until)
    client.quiet()
    assert set(world.kept("packs").values()) == {None}
    lock = f"/ext/v1/{client.project}/vaults/{vault}/lock"
    told = client.ok("PUT", lock, {"lock": {"locked": True, "keep_manual": True}})["lock"]
    assert told["kept_by_store"] is True
    wait_until(lambda: all(world.kept("roots").values()), "the prune that the lock queued has told the store", 30)
    for kind in ("packs", "roots", "keys"):
        times = [at for at in world.kept(kind).values() if at is not None]
        assert times, kind
        assert min(times) > datetime.now(UTC) + timedelta(days=DAYS - 2), kind
    for path, code in ((f"backups/{kept}", 6220), (f"vaults/{vault}", 6111)):
        status, answer = client.call("DELETE", path)
        assert (status, answer["error_code"]) == (400, f"BackupService.{code}"), answer


def _what_has_no_time_is_kept_for_a_month(world: World, backup: str) -> None:
    """From the moment it is reported: nobody has to wait for a prune."""
    ((root, until),) = [(name, at) for name, at in world.kept("roots").items() if f"/{backup}." in name]
    assert until, root
    assert timedelta(days=29) < until - datetime.now(UTC) < timedelta(days=34)


def _is_copied_to_the_west(world: World, client: Client, backup: str, folder: Path, expected: dict) -> None:
    regions = world.regions
    west = regions.start(regions.west)
    with west.client() as there:
        vault = replication_vault(there)
        lock = f"/ext/v1/{there.project}/vaults/{vault}/lock"
        there.ok("PUT", lock, {"lock": {"locked": True, "keep_manual": True}})
        body = {"replicate": destination(regions, vault)}
        record = client.ok("POST", f"backups/{backup}/replicate", body)["replication"]["replication_record_id"]
        replica = replicated(client, backup, record)["destination_backup_id"]
        for kind in ("packs", "roots", "keys"):
            assert all(world.kept(kind, "west").values()), "a replica is kept from the moment it is reported"
        restores(there, replica, folder, expected)


def _deleted_with_the_keys_of_the_bucket(world: World) -> None:
    """Every version of every object, as far as the bucket allows it; then every name. What was kept is enough: without
    the marks that hide it, and with an index made again from packs, it is a repository."""
    client = client_of(world.seaweed, world.bucket)
    promised = {f"p/{name}" for kind in ("packs", "roots", "keys") for name, at in world.kept(kind).items() if at}
    assert promised
    refused = set()
    for key, versions in world.versions().items():
        for version in versions:
            try:
                client.request("DELETE", key, key, {"versionId": version})
            except StoreDenied:
                refused.add(key)
    assert promised <= refused
    for key in refused:
        client.request("DELETE", key, key, {})
    assert world.objects("packs") == world.objects("roots") == set()
    for key, marks in world.versions(marks=True).items():
        for mark in marks:
            client.request("DELETE", key, key, {"versionId": mark})
    assert {f"p/{name}" for kind in ("packs", "roots", "keys") for name in world.objects(kind)} == promised
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    environ |= {"STRONGROOM_S3_ENDPOINT": world.seaweed.endpoint, "STRONGROOM_S3_ALLOW_HTTP": "true"}
    key = str(world.regions.east.state / "master.key")
    command = [sys.executable, "-m", "strongroom", "recover", "--store", f"s3://{world.bucket}/p", "--key", key]
    done = subprocess.run([*command, "reindex"], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.stdout, done.stderr)
