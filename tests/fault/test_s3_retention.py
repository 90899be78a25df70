"""Object lock of a real S3 server: what is promised outlives who has the keys of the store."""

import re
import secrets
from datetime import UTC, datetime, timedelta

import pytest
from fault_world import MASTER, MONITOR, POOL, World, reopen, small_files
from seaweed import BUCKET, Seaweed

from strongroom.base.clock import SystemClock
from strongroom.base.errors import ObjectMissing, StoreDenied, StoreError
from strongroom.engine import DomainSettings, Repository, create_repository
from strongroom.engine.prune import prune
from strongroom.engine.retain import retain_roots
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.retention import retains
from strongroom.engine.store.retry import RetryingStore
from strongroom.engine.store.s3 import S3Store
from strongroom.engine.store.s3_multipart import MultipartClient
from strongroom.engine.store.s3_retention import SLACK_SHARE, UNTIL_HEADER

DAY = 86400.0


def client_of(server: Seaweed, bucket: str) -> MultipartClient:
    return MultipartClient(server.access(), server.endpoint, bucket, connections=2, clock=SystemClock(), silence_s=20.0)


@pytest.fixture
def bucket(seaweed_server: Seaweed) -> str:
    """A bucket of the test's own, with object lock."""
    name = f"locked-{secrets.token_hex(4)}"
    client_of(seaweed_server, name).request(
        "PUT", "bucket", "", {}, headers={"x-amz-bucket-object-lock-enabled": "true"}
    )
    return name


@pytest.fixture
def store(seaweed_server: Seaweed, bucket: str) -> S3Store:
    return S3Store(bucket, "p", seaweed_server.access())


def kept_until(server: Seaweed, bucket: str, name: str) -> datetime | None:
    found = client_of(server, bucket).request("HEAD", name, f"p/{name}", {}).headers.get(UNTIL_HEADER)
    return datetime.fromisoformat(found) if found else None


def versions(server: Seaweed, bucket: str, key: str) -> list[str]:
    """Ids of all versions of an object that hold data."""
    page = client_of(server, bucket).request("GET", key, "", {"versions": "", "prefix": key}).body.decode()
    return re.findall(r"<Version>.*?<VersionId>([^<]+)</VersionId>", page, re.DOTALL)


def test_a_bucket_says_whether_it_keeps(seaweed_server: Seaweed, store: S3Store) -> None:
    """With object lock yes, without it no; a folder and memory keep nothing, also behind retries."""
    assert retains(store)
    assert retains(RetryingStore(store))
    assert not retains(S3Store(BUCKET, "x", seaweed_server.access()))
    assert not retains(MemoryStore())
    assert not retains(RetryingStore(MemoryStore()))


def test_what_is_kept_cannot_be_destroyed(seaweed_server: Seaweed, bucket: str, store: S3Store) -> None:
    """With the store's own keys: a delete hides the object, its bytes stay; the kept version itself is refused."""
    store.put("a", [b"promised"])
    store.put("b", [b"free"])
    store.retain("a", DAY)
    client = client_of(seaweed_server, bucket)
    (version,) = versions(seaweed_server, bucket, "p/a")
    with pytest.raises(StoreDenied):
        client.request("DELETE", "a", "p/a", {"versionId": version})
    store.delete("a")
    with pytest.raises(ObjectMissing):
        store.read("a")
    assert versions(seaweed_server, bucket, "p/a") == [version]
    (free,) = versions(seaweed_server, bucket, "p/b")
    client.request("DELETE", "b", "p/b", {"versionId": free})


def test_time_is_extended_and_never_shortened(seaweed_server: Seaweed, bucket: str, store: S3Store) -> None:
    """Counted by the server's clock; a little more than asked for, so that tomorrow's question changes nothing."""
    store.put("a", [b"x"])
    assert kept_until(seaweed_server, bucket, "a") is None
    now = datetime.now(UTC)
    store.retain("a", DAY)
    first = kept_until(seaweed_server, bucket, "a")
    assert first is not None
    wanted = timedelta(seconds=DAY)
    assert wanted <= first - now + timedelta(seconds=5)
    assert first - now <= wanted * (1 + SLACK_SHARE) + timedelta(minutes=5)
    for seconds in (DAY, DAY / 2, 1.0):
        store.retain("a", seconds)
        assert kept_until(seaweed_server, bucket, "a") == first
    store.retain("a", 3 * DAY)
    later = kept_until(seaweed_server, bucket, "a")
    assert later is not None
    assert later > first + wanted
    with pytest.raises(ObjectMissing):
        store.retain("nothing", DAY)
    with pytest.raises(StoreError):
        S3Store(BUCKET, "p", seaweed_server.access()).retain("a", DAY)


def test_everything_a_restore_point_needs_is_kept(seaweed_server: Seaweed, bucket: str, store: S3Store) -> None:
    """A newer restore point extends the packs it relies on; what only others need is not kept; a prune goes on."""
    world = World()
    repository: Repository = create_repository(store, "vaults/v/", MASTER, DomainSettings(), pool=POOL)
    world.backup(repository, "old.1", small_files(1))
    assert retain_roots(repository, {"old.1": DAY}, MONITOR) > 3
    below = repository.prefix
    packs = {info.name for info in store.list(f"{below}packs/")}
    before = {name: kept_until(seaweed_server, bucket, name) for name in packs}
    assert None not in before.values()
    for name in (f"{below}roots/old.1", f"{below}keys/0", "vaults/v/domain"):
        assert kept_until(seaweed_server, bucket, name) is not None, name
    world.backup(repository, "free.1", small_files(2))
    world.backup(repository, "new.1", {**small_files(1), (b"more",): b"m" * 50_000}, parent="old.1")
    retain_roots(repository, {"new.1": 9 * DAY, "old.1": DAY, "free.1": 0.0}, MONITOR)
    extended = [name for name in packs if kept_until(seaweed_server, bucket, name) != before[name]]
    assert extended, "packs of the first run that the newer restore point relies on"
    free = {info.name for info in store.list(f"{below}packs/")}
    assert any(kept_until(seaweed_server, bucket, name) is None for name in free - packs)
    world.delete(repository, "free.1")
    prune(repository, dead=(), monitor=MONITOR)
    assert world.problems(reopen(store)) == []  # type: ignore[arg-type]
