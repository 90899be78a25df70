"""Object lock of a real S3 server: what is promised outlives who has the keys of the store."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fault_world import MASTER, MONITOR, POOL, World, reopen, small_files
from locked_bucket import client_of, kept_until, locked_bucket, remove_versions_after_a_day, versions
from seaweed import BUCKET, Proxy, S3Server

from strongroom.base.errors import ConfigError, ObjectMissing, StoreDenied, StoreError
from strongroom.engine import DomainSettings, Repository, create_repository, open_repository
from strongroom.engine.prune import prune
from strongroom.engine.retain import retain_roots
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.retention import keeps_deleted, retains
from strongroom.engine.store.retry import RetryingStore
from strongroom.engine.store.s3 import S3Store
from strongroom.engine.store.s3_retention import SLACK_SHARE

DAY = 86400.0


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A bucket of the test's own, with object lock."""
    return locked_bucket(s3_server)


@pytest.fixture
def store(s3_server: S3Server, bucket: str) -> S3Store:
    return S3Store(bucket, "p", s3_server.access())


def test_a_bucket_says_whether_it_keeps(s3_server: S3Server, store: S3Store) -> None:
    """With object lock yes, without it no; a folder and memory keep nothing, also behind retries."""
    assert retains(store)
    assert retains(RetryingStore(store))
    assert not retains(S3Store(BUCKET, "x", s3_server.access()))
    assert not retains(MemoryStore())
    assert not retains(RetryingStore(MemoryStore()))


def test_a_server_proves_that_it_replaces_nothing_in_such_a_bucket(s3_server: S3Server, store: S3Store) -> None:
    """Or the check refuses it, also where the same server obeys in other buckets."""
    if s3_server.obeys_among_versions:
        store.check()
    else:
        with pytest.raises(ConfigError, match="would replace objects"):
            store.check()
        S3Store(BUCKET, "plain", s3_server.access()).check()


def test_a_bucket_that_frees_nothing_is_known(s3_server: S3Server, bucket: str, store: S3Store) -> None:
    """Versions that no rule removes take room for ever; with the rule, and without versions, nothing does."""
    assert keeps_deleted(store)
    assert keeps_deleted(RetryingStore(store))
    remove_versions_after_a_day(client_of(s3_server, bucket))
    assert not keeps_deleted(store)
    assert not keeps_deleted(S3Store(BUCKET, "x", s3_server.access()))
    assert not keeps_deleted(RetryingStore(MemoryStore()))


def test_what_is_kept_cannot_be_destroyed(s3_server: S3Server, bucket: str, store: S3Store) -> None:
    """With the store's own keys: a delete hides the object, its bytes stay; the kept version itself is refused."""
    store.put("a", [b"promised"])
    store.put("b", [b"free"])
    store.retain("a", DAY)
    client = client_of(s3_server, bucket)
    (version,) = versions(s3_server, bucket, "p/a")
    with pytest.raises(StoreDenied):
        client.request("DELETE", "a", "p/a", {"versionId": version})
    store.delete("a")
    with pytest.raises(ObjectMissing):
        store.read("a")
    assert versions(s3_server, bucket, "p/a") == [version]
    (free,) = versions(s3_server, bucket, "p/b")
    client.request("DELETE", "b", "p/b", {"versionId": free})


def test_time_is_extended_and_never_shortened(s3_server: S3Server, bucket: str, store: S3Store) -> None:
    """Counted by the server's clock; a little more than asked for, so that tomorrow's question changes nothing."""
    store.put("a", [b"x"])
    assert kept_until(s3_server, bucket, "p/a") is None
    now = datetime.now(UTC)
    store.retain("a", DAY)
    first = kept_until(s3_server, bucket, "p/a")
    assert first is not None
    wanted = timedelta(seconds=DAY)
    assert wanted <= first - now + timedelta(seconds=5)
    assert first - now <= wanted * (1 + SLACK_SHARE) + timedelta(minutes=5)
    for seconds in (DAY, DAY / 2, 1.0):
        store.retain("a", seconds)
        assert kept_until(s3_server, bucket, "p/a") == first
    store.retain("a", 3 * DAY)
    later = kept_until(s3_server, bucket, "p/a")
    assert later is not None
    assert later > first + wanted
    with pytest.raises(ObjectMissing):
        store.retain("nothing", DAY)
    with pytest.raises(StoreError):
        S3Store(BUCKET, "p", s3_server.access()).retain("a", DAY)


def test_everything_a_restore_point_needs_is_kept(s3_server: S3Server, bucket: str, store: S3Store) -> None:
    """A newer restore point extends the packs it relies on; what only others need is not kept; a prune goes on."""
    world = World()
    repository: Repository = create_repository(store, "vaults/v/", MASTER, DomainSettings(), pool=POOL)
    world.backup(repository, "old.1", small_files(1))
    assert retain_roots(repository, {"old.1": DAY}, MONITOR) > 3
    below = repository.prefix
    packs = {info.name for info in store.list(f"{below}packs/")}
    before = {name: kept_until(s3_server, bucket, f"p/{name}") for name in packs}
    assert None not in before.values()
    for name in (f"{below}roots/old.1", f"{below}keys/0", "vaults/v/domain"):
        assert kept_until(s3_server, bucket, f"p/{name}") is not None, name
    world.backup(repository, "free.1", small_files(2))
    world.backup(repository, "new.1", {**small_files(1), (b"more",): b"m" * 50_000}, parent="old.1")
    retain_roots(repository, {"new.1": 9 * DAY, "old.1": DAY, "free.1": 0.0}, MONITOR)
    extended = [name for name in packs if kept_until(s3_server, bucket, f"p/{name}") != before[name]]
    assert extended, "packs of the first run that the newer restore point relies on"
    free = {info.name for info in store.list(f"{below}packs/")}
    assert any(kept_until(s3_server, bucket, f"p/{name}") is None for name in free - packs)
    world.delete(repository, "free.1")
    prune(repository, dead=(), monitor=MONITOR)
    assert world.problems(reopen(store)) == []  # type: ignore[arg-type]


def test_a_restore_point_costs_requests_for_what_is_new(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    """What was told of a pack is remembered: a next restore point asks about its own packs. Without the memory, with a
    damaged one, and for a prune, each pack is asked about, and nothing is kept for less."""
    proxy = Proxy(s3_server.port)
    try:
        store = S3Store(bucket, "p", s3_server.access(proxy.port))
        cache = str(tmp_path / "cache")
        world, content = World(), dict[tuple[bytes, ...], bytes]()
        repository = create_repository(store, "vaults/v/", MASTER, DomainSettings(), pool=POOL)
        for number in range(1, 13):
            content |= {(b"%d" % number,): random.Random(number).randbytes(40_000)}
            world.backup(repository, f"b{number}.1", content, parent=f"b{number - 1}.1" if number > 1 else None)

        def asked(root: str, seconds: float, *, ask_all: bool = False) -> int:
            opened = open_repository(store, "vaults/v/", MASTER, pool=POOL, cache=cache)
            proxy.methods.clear()
            assert retain_roots(opened, {root: seconds}, MONITOR, ask_all=ask_all) >= 12
            return proxy.methods["HEAD"]

        first = asked("b12.1", 10 * DAY)
        assert first >= 12
        again = asked("b12.1", 10 * DAY)
        assert again <= first - 12
        world.backup(repository, "b13.1", content | {(b"13",): b"new"}, parent="b12.1")
        assert asked("b13.1", 10 * DAY) <= again + 3
        assert asked("b13.1", 10 * DAY, ask_all=True) >= first
        assert asked("b13.1", 30 * DAY) >= first, "their time is too short now"
        (memory,) = (tmp_path / "cache").glob("*.kept")
        sound = memory.read_bytes()
        for damaged in (b"", sound[:-1], sound[:20] + bytes([sound[20] ^ 1]) + sound[21:], sound[:-56] + sound[-32:]):
            memory.write_bytes(damaged)
            assert asked("b13.1", 30 * DAY) >= first
        packs = [info.name for info in store.list(f"{repository.prefix}packs/")]
        kept = [kept_until(s3_server, bucket, f"p/{name}") for name in packs]
        assert sum(at is not None and at > datetime.now(UTC) + timedelta(days=29) for at in kept) >= 12
    finally:
        proxy.close()
