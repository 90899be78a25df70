"""Power cuts under whole verbs on the folder store: one run, written down call by call, then cut at any of them.

What the disk may hold after the cut is opened by the engine: everything acknowledged before it comes back byte for
byte, everything else that is visible is whole, a verify finds nothing, and a backup and a prune run to their end.
"""

import os
import random
from pathlib import Path

import pytest
from fault_filesystem import Event, Recorder, acknowledged, disk_after_crash
from fault_streams import random_files
from fault_world import MONITOR, World, create, reopen, restored
from reliability import report

from strongroom.base.errors import ObjectMissing
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.posix import PosixStore
from strongroom.engine.verify import verify

SEEDS_LONG = 50
SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))


def story(folder: Path, patch: pytest.MonkeyPatch) -> tuple[list[Event], World]:
    """A repository is made, backups, deletes, prunes; each acknowledgement is a mark. The events, and every content."""
    root = str(folder / "store")
    store = PosixStore(root)
    recorder = Recorder(root)
    world = World()
    every = World()
    files = random_files(SEED, count=8, bytes_max=40_000)
    kept = random.Random(5).randbytes(20_000)
    with recorder.recording(patch):
        repository = create(store)
        recorder.mark(("made", ""))

        def backup(name: str, content: dict[tuple[bytes, ...], bytes] | bytes, parent: str | None = None) -> None:
            every.kept[name] = content
            world.backup(repository, name, content, parent=parent)
            recorder.mark(("put", name))

        def delete(name: str) -> None:
            recorder.mark(("deleting", name))
            world.delete(repository, name)
            recorder.mark(("deleted", name))

        backup("half.1", {(b"kept",): kept, (b"big",): random.Random(6).randbytes(90_000)})
        backup("tree.1", files)
        backup("rest.1", {(b"kept",): kept}, "half.1")
        delete("half.1")
        world.prune(repository)
        backup("disk.1", random.Random(8).randbytes(128 * 1024) + bytes(128 * 1024))
        backup("tree.2", {**files, (b"new",): random.Random(9).randbytes(50_000)}, "tree.1")
        delete("tree.1")
        world.prune(repository)
    return recorder.events, every


def state_at(events: list[Event]) -> tuple[bool, set[str], set[str]]:
    """(was the repository acknowledged, roots that must be there, roots that must not)."""
    made, there, gone = False, set(), set()
    for mark in acknowledged(events):
        assert isinstance(mark, tuple)
        what, name = mark
        if what == "made":
            made = True
        elif what == "put":
            there.add(name)
        else:
            there.discard(name)
            gone |= {name} if what == "deleted" else set()
    return made, there, gone


def check(disk: MemoryStore, events: list[Event], every: World) -> list[str]:
    made, there, gone = state_at(events)
    try:
        repository = reopen(disk)
    except ObjectMissing:
        return ["the repository is lost"] if made else []
    names = set(repository.root_names())
    found = [f"{name} is lost" for name in there - names] + [f"{name} is back" for name in gone & names]
    found += [f"{name} is wrong" for name in names if restored(repository, name) != every.kept[name]]
    found += [str(finding) for finding in verify(repository, None, deep=True, monitor=MONITOR).findings]
    world = World({name: every.kept[name] for name in there})
    world.backup(repository, "after.1", every.kept["tree.1"], parent="rest.1" if "rest.1" in there else None)
    world.prune(repository)
    found += world.problems(repository)
    again = world.prune(repository)
    if again.packs_deleted or again.packs_waiting:
        found.append(f"the prune before left something: {again}")
    return found


def sweep(events: list[Event], every: World, cuts: list[int], seeds: int) -> int:
    trials = 0
    for cut in cuts:
        for seed in range(seeds):
            found = check(disk_after_crash(events[:cut], seed), events[:cut], every)
            assert not found, (cut, seed, found)
            trials += 1
    print(f"{trials} power cuts in {len(events)} events, seed {SEED}")
    if seeds >= SEEDS_LONG:
        report("power cuts", count=trials, seed=SEED, calls=len(events))
    return trials


def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut at every call, in one way each."""
    events, every = story(tmp_path, monkeypatch)
    assert sweep(events, every, list(range(len(events) + 1)), seeds=1) > 230


@pytest.mark.long
def test_a_power_cut_in_many_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut at every call, in many ways each."""
    events, every = story(tmp_path, monkeypatch)
    assert sweep(events, every, list(range(len(events) + 1)), seeds=SEEDS_LONG) > 10_000


def test_the_power_cut_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fsyncs of folders left out of the record, acknowledged backups get lost: the suite would notice."""
    events, every = story(tmp_path, monkeypatch)
    folders = {0} | {event.child for event in events if event.kind == "folder"}
    careless = [Event("none") if event.kind == "sync" and event.node in folders else event for event in events]
    with pytest.raises(AssertionError):
        sweep(careless, every, list(range(len(events) // 2, len(events), 25)), seeds=2)
