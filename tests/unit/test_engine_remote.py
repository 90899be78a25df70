"""A store behind a network: what can be asked at once is, and being asked at once changes nothing of what is true."""

import os
import random
import threading
from collections.abc import Iterator

import pytest
from engine_streams import MemoryDisk

from strongroom.base.errors import Corrupt, ObjectMissing, StoreTimeout
from strongroom.base.streams import SilentMonitor
from strongroom.base.units import MIB
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    ProcessSessions,
    Repository,
    backup,
    create_repository,
    open_repository,
    restore_block,
)
from strongroom.engine.roots import ROOT_BYTES_MAX
from strongroom.engine.store.base import ObjectInfo
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.remote import at_once, read_whole, together
from strongroom.engine.store.retry import RetryingStore

MASTER = MasterKey(bytes(range(32)))
POOL = Pool(threads=1)
WAIT_S = 20  # bound of every wait
DATA = random.Random(1).randbytes(3 * MIB)


class RemoteMemory(MemoryStore):
    """A store in memory that takes many requests at once; requests of `kinds` wait until so many of them are there."""

    at_once = 16

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str]] = []
        self.meeting: threading.Barrier | None = None
        self.late: dict[str, str] = {}  # packs that a listing does not show the first time

    def _asked(self, kind: str, name: str) -> None:
        known = (kind, name.rpartition("/")[0].rpartition("/")[2])
        self.requests.append(known)
        if self.meeting is not None and (self.requests.count(("list", "index")) > 1 or known != ("list", "index")):
            self.meeting.wait(WAIT_S)

    def read_whole(self, name: str, bytes_max: int) -> tuple[int, bytes]:
        self._asked("whole", name)
        size = super().size(name)
        return size, super().read(name) if size <= bytes_max else b""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._asked("list", prefix)
        hidden, self.late = self.late, {} if "/packs/" in prefix else self.late
        for info in super().list(prefix):
            if info.name not in hidden:
                yield info


def filled() -> tuple[Repository, RemoteMemory]:
    store = RemoteMemory()
    repository = create_repository(store, "", MASTER, DomainSettings(), pool=POOL, sessions=ProcessSessions())
    request = BackupRequest(backup_id="disk", generation=1)
    backup(repository, MemoryDisk(DATA), request, SilentMonitor(), lambda: None)
    return repository, store


def test_a_session_asks_for_what_it_begins_with_at_once() -> None:
    """After its pin, the list, both listings and the root are on their way together, and are asked for once."""
    repository, store = filled()
    store.requests.clear()
    store.meeting = threading.Barrier(4, action=lambda: setattr(store, "meeting", None))
    with repository.session("restore", "disk.1") as session:
        assert session.load_root("disk.1").size == len(DATA)
        assert not session.index.bad
    assert sorted(store.requests) == [
        ("list", "index"), ("list", "index"), ("list", "packs"), ("whole", "index"), ("whole", "roots"),
    ]  # fmt: skip


def test_what_comes_back_is_the_same() -> None:
    """A backup and a restore over a store of many requests at once give back every byte."""
    repository, store = filled()
    again = open_repository(store, "", MASTER, pool=POOL)
    target = MemoryDisk(bytes(len(DATA)))
    restore_block(again, "disk.1", target)
    assert target.data == DATA
    with pytest.raises(ObjectMissing):
        restore_block(repository, "none.1", target)


def test_a_pack_that_comes_between_the_listings_is_not_taken_for_lost() -> None:
    """The packs are listed beside the index; one that only a later listing shows is relied on all the same."""
    repository, store = filled()
    name = next(info.name for info in MemoryStore.list(store, "") if "/packs/" in info.name)
    store.late = {name: name}
    with repository.session("backup") as session:
        assert not session.index.bad
    store.delete(name)
    with repository.session("backup") as session:
        assert {pack.hex() for pack in session.index.bad} == {name.rpartition("/")[2]}


def test_what_is_too_large_for_its_kind_is_not_taken() -> None:
    """A small object that is larger than any of its kind is damage, and its bytes are never asked for."""
    repository, store = filled()
    name = next(info.name for info in MemoryStore.list(store, "") if "/roots/" in info.name)
    store._objects[name] = bytes(ROOT_BYTES_MAX + MIB)
    assert read_whole(store, name, 10) == (ROOT_BYTES_MAX + MIB, b"")
    for other in (repository, open_repository(RetryingStore(store), "", MASTER, pool=POOL)):
        with pytest.raises(Corrupt, match="larger than any"):
            other.load_root("disk.1")


def test_a_rotated_key_opens_at_once_too() -> None:
    """With several wraps the newest that opens counts, whatever was read ahead."""
    repository, store = filled()
    newer = MasterKey(os.urandom(32))
    store.put(f"{repository.prefix}keys/1", [newer.wrap(repository.domain)])
    for master in (newer, MASTER):
        assert open_repository(store, "", master, pool=POOL).domain == repository.domain


def test_together_keeps_order_and_tells_the_first_error() -> None:
    """Results stand in the order of the calls; an error is raised; on a store without a network nothing is threaded."""
    slow, fast = RemoteMemory(), MemoryStore()
    assert (at_once(slow), at_once(RetryingStore(slow)), at_once(fast), at_once(RetryingStore(fast))) == (16, 16, 1, 1)
    assert together(slow, *[lambda n=n: n for n in range(40)]) == list(range(40))

    def fail() -> int:
        raise StoreTimeout(name="x", detail="no answer")

    for store in (slow, fast):
        with pytest.raises(StoreTimeout):
            together(store, lambda: 1, fail, lambda: 2)
    assert set(together(fast, threading.get_ident, threading.get_ident)) == {threading.get_ident()}
