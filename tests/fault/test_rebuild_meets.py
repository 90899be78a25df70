"""Rebuild meets a backup, a prune, a restore or another rebuild at every one of its store calls."""

import threading
from collections.abc import Callable

import pytest
from fault_store import copy_of
from fault_world import MONITOR, NEW, World, base, reopen
from test_prune_meets import View, watched
from test_rebuild_fault import flip_all_objects, index_names, lose_everything

from strongroom.base.errors import IndexIncomplete
from strongroom.engine import ProcessSessions, Repository
from strongroom.engine.catalogue import list_points
from strongroom.engine.rebuild import rebuild
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify

Other = Callable[[World, Repository], object]


def run_backup(world: World, repository: Repository) -> None:
    world.backup(repository, "new.1", NEW, parent="tree.1")


def run_prune(world: World, repository: Repository) -> None:
    world.prune(repository)
    world.prune(repository)


def run_delete_and_prune(world: World, repository: Repository) -> None:
    world.delete(repository, "disk.1")
    run_prune(world, repository)


def run_restore(world: World, repository: Repository) -> None:
    assert world.problems(repository) == []


def run_rebuild(world: World, repository: Repository) -> None:
    rebuild(repository)


OTHERS: dict[str, Other] = {
    function.__name__: function for function in (run_backup, run_prune, run_delete_and_prune, run_restore, run_rebuild)
}


def lose_needed_object(store: MemoryStore) -> None:
    """An index object that no list names, and that restore points need: sessions open, chunks are unknown."""
    for name in index_names(store)[1]:
        without = copy_of(store)
        without.delete(name)
        if any(point.state != "complete" for point in list_points(reopen(without), check=True)):
            store.delete(name)
            return
    raise AssertionError("every index object can be spared")


class Once:
    """Calls `work` ahead of the N-th call, and counts."""

    def __init__(self, at: int, work: Callable[[], None]) -> None:
        self._at = at
        self._work = work
        self._lock = threading.Lock()
        self.count = 0

    def __call__(self, kind: str, name: str) -> None:
        with self._lock:
            self.count += 1
            mine = self.count == self._at
        if mine:
            self._work()


@pytest.mark.parametrize("damage", [lose_needed_object, flip_all_objects, lose_everything], ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", OTHERS)
def test_at_every_call_of_a_rebuild(other: str, damage: Callable[[MemoryStore], None]) -> None:
    """The other one works or says that the index is incomplete; then all that was acknowledged comes back."""
    met = failed = 0
    at = 0
    while True:
        at += 1
        kept, disk = base()
        world, store, sessions = kept.copy(), copy_of(disk), ProcessSessions()
        damage(store)

        def meet(world: World = world, store: MemoryStore = store, sessions: ProcessSessions = sessions) -> None:
            nonlocal failed
            try:
                OTHERS[other](world, reopen(View(store, lambda *_: None), sessions))
            except IndexIncomplete:
                failed += 1  # nothing was acknowledged

        before = Once(at, meet)
        rebuild(watched(store, sessions, before))
        if before.count < at:
            break
        met += 1
        repository = reopen(store, sessions)
        assert world.problems(repository) == [], at
        rebuild(repository)
        assert verify(repository, None, deep=True, monitor=MONITOR).findings == (), at
        run_prune(world, repository)
        assert world.problems(reopen(store)) == [], at
    print(f"rebuild after {damage.__name__} meets {other}: {met} times, {failed} told of the index")
    assert met > 5
