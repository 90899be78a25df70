"""Power cuts under the folder store, and proof that the fault doubles themselves bite."""

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_filesystem import Event, Recorder, acknowledged, disk_after_crash
from fault_store import Crashed, Fault, FaultStore, copy_of

from strongroom.base.errors import ObjectExists, StoreError
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.posix import PosixStore

SEEDS = range(20)


def recorded(folder: Path, patch: pytest.MonkeyPatch, run: Callable[[PosixStore, Recorder], None]) -> list[Event]:
    root = str(folder / "store")
    store = PosixStore(root)
    recorder = Recorder(root)
    with recorder.recording(patch):
        run(store, recorder)
    return recorder.events


def violations(events: list[Event], contents: dict[str, bytes]) -> list[str]:
    """Crash at every event in many ways: what was acknowledged is there, whole; what was not is whole or absent."""
    found = []
    for cut in range(len(events) + 1):
        last: dict[str, str] = {}
        for mark in acknowledged(events[:cut]):
            assert isinstance(mark, tuple)
            last[mark[1]] = mark[0]
        for seed in SEEDS:
            disk = disk_after_crash(events[:cut], seed)
            there = {info.name: disk.read(info.name) for info in disk.list("")}
            found += [f"{cut}/{seed}: {name} is torn" for name, data in there.items() if data != contents[name]]
            found += [
                f"{cut}/{seed}: {name} is lost" for name, what in last.items() if what == "put" and name not in there
            ]
            found += [
                f"{cut}/{seed}: {name} is back" for name, what in last.items() if what == "delete" and name in there
            ]
    return found


CONTENTS = {name: os.urandom(300) for name in ("packs/3f/a", "packs/3f/b", "packs/40/c", "index/1", "roots/r.1")}


def write_all(store: PosixStore, recorder: Recorder) -> None:
    for name, data in CONTENTS.items():
        if name.startswith("packs"):
            writer = store.writer(name)
            writer.write_at(100, data[100:])
            writer.write_at(0, data[:100])
            writer.commit()
        else:
            store.put(name, [data[:50], data[50:]])
        recorder.mark(("put", name))
    recorder.mark(("deleting", "packs/3f/a"))
    store.delete("packs/3f/a")
    recorder.mark(("delete", "packs/3f/a"))


def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """put, commit and delete hold after a cut at any system call, whatever subset of unsynced calls the disk kept."""
    events = recorded(tmp_path, monkeypatch, write_all)
    assert len(events) > 50
    assert violations(events, CONTENTS) == []


def test_concurrent_writers_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with several threads making the same new folders."""
    contents = {f"packs/{number % 2}/{number}": os.urandom(50) for number in range(8)}

    def run(store: PosixStore, recorder: Recorder) -> None:
        start = threading.Barrier(4)

        def write(names: list[str]) -> None:
            start.wait()
            for name in names:
                store.put(name, [contents[name]])
                recorder.mark(("put", name))

        threads = [threading.Thread(target=write, args=(sorted(contents)[number::4],)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert violations(recorded(tmp_path, monkeypatch, run), contents) == []


def test_who_meets_a_name_may_rely_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first writer dies between link and the fsync of the folder: the second's ObjectExists makes it durable."""
    contents = {"index/7": b"mine"}

    def run(store: PosixStore, recorder: Recorder) -> None:
        with monkeypatch.context() as patch:
            real = os.unlink

            def die(*_args: object, **_keywords: object) -> None:
                raise OSError(5, "killed")

            patch.setattr(os, "unlink", die)
            with pytest.raises(StoreError):
                store.put("index/7", [b"mine"])
            patch.setattr(os, "unlink", real)
        with pytest.raises(ObjectExists):
            PosixStore(recorder.root).put("index/7", [b"mine"])
        recorder.mark(("put", "index/7"))

    assert violations(recorded(tmp_path, monkeypatch, run), contents) == []


@pytest.mark.parametrize("lost", ["file", "folder", "all but the last"])
def test_the_power_cut_finds_a_missing_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """A store that leaves out one kind of fsync, or syncs once at the end, is caught: the model has teeth."""

    def careless(events: list[Event]) -> list[Event]:
        folders = {0} | {event.child for event in events if event.kind == "folder"}
        syncs = [number for number, event in enumerate(events) if event.kind == "sync"]
        dropped = {
            "file": {number for number in syncs if events[number].node not in folders},
            "folder": {number for number in syncs if events[number].node in folders},
            "all but the last": set(syncs[:-1]),
        }[lost]
        return [Event("none") if number in dropped else event for number, event in enumerate(events)]

    assert violations(careless(recorded(tmp_path, monkeypatch, write_all)), CONTENTS)


# --- the faulty store -----------------------------------------------------------------------------------------------


def two_writes(store: Store, *, wait: bool) -> None:
    """Pack, then index: with `wait` in the right order, without it both at once."""
    writer = store.writer("packs/a")
    writer.write_at(0, b"1234")
    if wait:
        writer.commit()
        store.put("index/1", [b"a"])
        return

    def commit() -> None:
        try:
            writer.commit()
        except StoreError:
            return

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        store.put("index/1", [b"a"])
    finally:
        thread.join()


@pytest.mark.parametrize("wait", [True, False])
def test_a_crash_may_keep_the_later_write(wait: bool) -> None:
    """An index without its pack is seen only for a writer that did not wait for the pack."""
    orphans = 0
    for seed in range(100):
        store = FaultStore(fault=Fault(at=random.Random(seed).randint(1, 5), crash=True, seed=seed))
        try:
            two_writes(store, wait=wait)
        except Crashed:
            pass
        there = [info.name for info in store.survivors().list("")]
        orphans += there == ["index/1"]
    assert (orphans == 0) is wait


def test_faults_come_where_they_were_ordered() -> None:
    """Once, from N on, and late failures."""
    once = FaultStore(fault=Fault(at=2))
    once.put("a", [b""])
    with pytest.raises(StoreError):
        once.put("b", [b""])
    once.put("b", [b""])
    onwards = FaultStore(fault=Fault(at=2, onwards=True))
    onwards.put("a", [b""])
    for _ in range(2):
        with pytest.raises(StoreError):
            onwards.read("a")
    late = FaultStore(fault=Fault(at=1, late=True))
    with pytest.raises(StoreError):
        late.put("a", [b"x"])
    assert late.read("a") == b"x"
    assert late.operations == [("put", "a"), ("read", "a")]


def test_a_copy_is_another_disk() -> None:
    """What is written to a copy is not on the first."""
    first = MemoryStore()
    first.put("a", [b"1"])
    second = copy_of(first)
    second.delete("a")
    assert first.read("a") == b"1"
