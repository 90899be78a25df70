"""Sessions: who pins which index number, across processes, and what a pin is worth."""

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from strongroom.base.errors import ConfigError, IndexIncomplete
from strongroom.engine import DomainSettings, FlockSessions, MasterKey, Pool, ProcessSessions, Repository, Sessions
from strongroom.engine.index import IndexList
from strongroom.engine.model import SEGMENT_BYTES_MAX, SessionKind
from strongroom.engine.open import create_repository
from strongroom.engine.store.base import ObjectInfo
from strongroom.engine.store.memory import MemoryStore


@pytest.fixture(params=["process", "flock"])
def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> Sessions:
    return ProcessSessions() if request.param == "process" else FlockSessions(tmp_path / "sessions")


def test_the_oldest_pin_counts(sessions: Sessions) -> None:
    """Pins are given back in any order; closing twice is fine."""
    assert sessions.oldest_pinned() is None
    tokens = {number: sessions.open("backup", number) for number in (7, 3, 12)}
    assert sessions.oldest_pinned() == 3
    sessions.close(tokens[3])
    sessions.close(tokens[3])
    assert sessions.oldest_pinned() == 7
    second = sessions.open("restore", 7)
    sessions.close(tokens[7])
    assert sessions.oldest_pinned() == 7
    for token in (second, tokens[12]):
        sessions.close(token)
    assert sessions.oldest_pinned() is None


def _pin_and_wait(folder: str, number: int, connection: Connection) -> None:
    FlockSessions(folder).open("backup", number)
    connection.send("pinned")
    connection.recv()
    os._exit(1)  # dies with its pin


def test_a_pin_of_another_process_counts_until_it_dies(tmp_path: Path) -> None:
    """A living process's pin is seen by others; a dead one's is removed by who looks."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_pin_and_wait, args=(str(tmp_path), 5, theirs))
    child.start()
    assert ours.poll(60)
    assert ours.recv() == "pinned"
    sessions = FlockSessions(tmp_path)
    own = sessions.open("restore", 9)
    assert sessions.oldest_pinned() == 5
    ours.send("die")
    child.join(60)
    assert sessions.oldest_pinned() == 9
    assert os.listdir(tmp_path) == [own]
    sessions.close(own)
    (tmp_path / "note").touch()
    assert sessions.oldest_pinned() is None
    assert os.listdir(tmp_path) == ["note"]


class MovingStore(MemoryStore):
    """A new list appears each time the lists are looked at, `moves` times."""

    def __init__(self) -> None:
        super().__init__()
        self.repository: Repository | None = None
        self.moves = 0
        self.number = 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = list(super().list(prefix))
        if prefix.endswith("/index/") and self.moves and self.repository is not None:
            self.moves -= 1
            self.number += 1
            self.repository.put_index_list(IndexList(number=self.number))
        yield from found


class NotingSessions(ProcessSessions):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[int] = []

    def open(self, kind: SessionKind, index_number: int) -> str:
        self.opened.append(index_number)
        return super().open(kind, index_number)


def test_a_pin_that_came_too_late_is_taken_anew() -> None:
    """A list that appears between reading and pinning makes the session begin again at it; no pin is left behind."""
    store, sessions = MovingStore(), NotingSessions()
    repository = create_repository(store, "", MasterKey(bytes(32)), DomainSettings(), sessions=sessions)
    store.repository = repository
    store.moves = 1
    with repository.session("backup") as session:
        assert session.index.number == 1
        assert sessions.oldest_pinned() == 1
    assert sessions.opened == [0, 1]
    assert sessions.oldest_pinned() is None
    store.moves = 1000
    with pytest.raises(IndexIncomplete, match="keeps changing"), repository.session("backup"):
        raise AssertionError("a session began")
    assert sessions.oldest_pinned() is None


def test_a_pool_leases_all_or_nothing() -> None:
    """A lease waits until all its buffers are free, and asks meanwhile whether it should stop."""
    pool = Pool(budget_bytes=12 * SEGMENT_BYTES_MAX, threads=1)  # seven for the threads, five to lease, four a lease
    first = pool.lease(lambda: None)
    assert len(first) == pool.lease_buffers == 4

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pool.lease(stop)
    pool.give_back(first)
    assert len(pool.lease(stop)) == 4
    pool.close()
    with pytest.raises(ConfigError, match="MiB"):
        Pool(budget_bytes=8 << 20, threads=2)


def test_a_repository_closes_only_its_own_pool() -> None:
    """A pool that was given serves others; one of its own ends with the repository and may begin again."""
    pool = Pool(threads=1)
    create_repository(MemoryStore(), "", MasterKey(bytes(32)), DomainSettings(), pool=pool).close()
    done: list[int] = []
    pool.compute(lambda: done.append(1)).result()
    pool.close()
    assert done == [1]
    own = create_repository(MemoryStore(), "", MasterKey(bytes(32)), DomainSettings())
    for _ in range(2):
        own.pool.compute(lambda: done.append(2)).result()
        own.close()
    assert done == [1, 2, 2]
