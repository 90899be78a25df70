"""What a vault uses: the live sealed bytes of its restore points (RULINGS 19)."""

import random
from collections.abc import Iterator

import pytest
from engine_streams import MemoryDisk

from strongroom.base.streams import SilentMonitor
from strongroom.engine import (
    BackupReport,
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    Repository,
    backup,
    create_repository,
)
from strongroom.engine.prune import live_bytes, prune
from strongroom.engine.store.memory import MemoryStore

DISK = random.Random(1).randbytes(1 << 20)


@pytest.fixture
def repository() -> Iterator[Repository]:
    pool = Pool(threads=2)
    yield create_repository(MemoryStore(), "v/", MasterKey(bytes(32)), DomainSettings(), pool=pool)
    pool.close()


def back_up(repository: Repository, name: str, data: bytes) -> BackupReport:
    request = BackupRequest(backup_id=name, generation=1)
    return backup(repository, MemoryDisk(data), request, SilentMonitor(), lambda: None)


def test_live_bytes_are_what_was_stored_less_footers(repository: Repository) -> None:
    """One backup: nearly all sealed bytes it added; the same content again adds almost nothing."""
    stored = back_up(repository, "a", DISK).bytes_stored
    live = live_bytes(repository, ["a.1"])
    assert len(DISK) < live <= stored < live + 4096
    back_up(repository, "b", DISK)
    assert live_bytes(repository, ["a.1", "b.1"]) == live


def test_live_bytes_drop_with_the_delete_and_not_with_the_prune(repository: Repository) -> None:
    """They follow the restore points that are kept; prune changes what is physically there, and at most moves them."""
    back_up(repository, "a", DISK)
    back_up(repository, "b", DISK[: 1 << 19] + random.Random(2).randbytes(1 << 19))
    both, one = live_bytes(repository, ["a.1", "b.1"]), live_bytes(repository, ["b.1"])
    assert both > one > 1 << 20
    assert both - one >= 1 << 19
    repository.delete_root("a.1")
    assert live_bytes(repository, ["b.1"]) == one
    report = prune(repository, dead=[], monitor=SilentMonitor())
    assert abs(live_bytes(repository, ["b.1"]) - one) < 1024
    assert report.live_bytes == live_bytes(repository, ["b.1"])


def test_a_damaged_root_does_not_stop_the_accounting(repository: Repository) -> None:
    """Deleting other restore points must go through: what cannot be read counts as nothing, verify tells of it."""
    back_up(repository, "a", DISK)
    live = live_bytes(repository, ["a.1"])
    assert live_bytes(repository, ["a.1", "lost.1"]) == live
    assert live_bytes(repository, ["lost.1"]) == 0
    assert live_bytes(repository, []) == 0
