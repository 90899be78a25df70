"""Restore points brought to another vault: they come back there, only what is missing moves, and keys stay apart."""

import random
from dataclasses import replace

import pytest
from fault_store import copy_of
from fault_world import MASTER, MONITOR, POOL, PREFIX, World, create, no_fence, reopen, restored, small_files

from strongroom.base.errors import ChunkCorrupt, Conflict, Corrupt, IndexIncomplete, KeyWrong, ObjectMissing
from strongroom.engine import DomainSettings, MasterKey, Repository, create_repository, open_repository
from strongroom.engine.copy import CopyReport, copy
from strongroom.engine.keys import KEY_BYTES
from strongroom.engine.model import Labels, Root
from strongroom.engine.pack import DATA, METADATA, compress_segment, load_pack, pack_name
from strongroom.engine.prune import prune
from strongroom.engine.segments import PackWriter
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify

OTHER = MasterKey(b"o" * KEY_BYTES)
THERE = "vaults/w/"
FIRST = small_files(1)
SECOND = {**FIRST, (b"new",): random.Random(2).randbytes(50_000)}


def copied(source: Repository, store: Store, roots: list[str] | None = None) -> CopyReport:
    return copy(source, store, THERE, OTHER, roots, MONITOR, no_fence)


def received(store: Store, source: Repository) -> Repository:
    """The domain at the receiver, as its own server opens it."""
    return open_repository(store, THERE, OTHER, domain_id=source.domain.id, pool=POOL)


def source_with(*contents: object) -> tuple[World, Repository]:
    world, repository = World(), create(MemoryStore())
    for number, content in enumerate(contents):
        parent = f"tree.{number - 1}" if number else None
        world.backup(repository, f"tree.{number}", content, parent=parent)  # type: ignore[arg-type]
    return world, repository


def test_a_copy_comes_back_under_another_master_key() -> None:
    """In another store, with another key and beside another domain; the source may be lost altogether."""
    world, source = source_with(FIRST, SECOND, random.Random(3).randbytes(200_000) + bytes(128 * 1024))
    store = MemoryStore()
    own = create_repository(store, THERE, OTHER, DomainSettings(), pool=POOL)
    World().backup(own, "own.1", FIRST)
    report = copied(source, store)
    assert report.roots_copied == ("tree.0", "tree.1", "tree.2")
    there = received(store, source)
    assert world.problems(there) == []
    assert verify(there, None, deep=True, monitor=MONITOR).findings == ()
    assert restored(open_repository(store, THERE, OTHER, pool=POOL), "own.1") == FIRST
    with pytest.raises(KeyWrong):
        open_repository(store, THERE, MASTER, domain_id=source.domain.id)


def test_the_next_copy_moves_only_what_is_new() -> None:
    """An increment costs its own bytes; a copy of what is there costs nothing."""
    world, source = source_with(FIRST, SECOND)
    store = MemoryStore()
    first = copied(source, store, ["tree.0"])
    second = copied(source, store, ["tree.0", "tree.1"])
    assert second.roots_present == ("tree.0",)
    assert 50_000 < second.bytes_copied < 60_000 < first.bytes_copied
    before = {info.name for info in store.list("")}
    assert copied(source, store) == CopyReport(roots_present=("tree.0", "tree.1"))
    assert {info.name for info in store.list("")} == before
    assert world.problems(received(store, source)) == []


def test_of_a_mostly_dead_pack_only_the_live_chunks_move() -> None:
    """What the roots do not need stays behind, although it lies in the same segment."""
    kept = {(b"kept",): random.Random(5).randbytes(20_000)}
    world, source = source_with({**kept, (b"big",): random.Random(6).randbytes(400_000)}, kept)
    report = copied(source, store := MemoryStore(), ["tree.1"])
    assert 20_000 < report.bytes_copied < 30_000
    world.kept.pop("tree.0")
    assert world.problems(received(store, source)) == []
    assert verify(received(store, source), None, deep=True, monitor=MONITOR).findings == ()


def test_a_pack_id_never_comes_twice() -> None:
    """What was pruned at the receiver and is copied again lies in new packs: a late delete cannot hit them."""
    world, source = source_with(FIRST)
    store = MemoryStore()
    copied(source, store)
    there = received(store, source)
    before = {pack.id for pack in there.load_index(there.load_index_list()).packs()}
    prune(there, dead=there.root_names(), monitor=MONITOR)
    copied(source, store)
    after = {pack.id for pack in there.load_index(there.load_index_list()).packs()}
    own = {pack.id for pack in source.load_index(source.load_index_list()).packs()}
    assert after
    assert not after & (before | own)
    assert world.problems(there) == []


def test_a_backup_moves_back_to_its_own_vault() -> None:
    """Deleted and pruned at home, it comes back from the copy; what is still known there does not move."""
    world, source = source_with(FIRST, SECOND)
    store = MemoryStore()
    copied(source, store)
    prune(source, dead=["tree.1"], monitor=MONITOR)
    report = copy(received(store, source), source.store, PREFIX, MASTER, None, MONITOR, no_fence)
    assert report.roots_copied == ("tree.1",)
    assert report.bytes_copied < 60_000
    assert world.problems(reopen(source.store)) == []


def test_labels_come_along_and_newer_ones_stay() -> None:
    """The newest labels of the source replace older ones; labels the receiver has changed since then stand."""
    _, source = source_with(FIRST)
    source.put_labels("tree", {"name": "one"})
    store = MemoryStore()
    copied(source, store)
    there = received(store, source)
    root = there.load_root("tree.0")
    assert there.load_labels(root) == {"name": "one"}
    source.put_labels("tree", {"name": "two"})
    copied(source, store)
    assert there.load_labels(root) == {"name": "two"}
    there.put_labels("tree", {"name": "theirs"})
    copied(source, store)
    assert there.load_labels(root) == {"name": "theirs"}


def test_what_the_receiver_lost_is_mended() -> None:
    """A pack that is gone at the receiver comes again with the next copy of a root that is there already."""
    world, source = source_with(FIRST)
    store = MemoryStore()
    copied(source, store)
    there = received(store, source)
    lost = [pack.id for pack in there.load_index(there.load_index_list()).packs() if pack.kind != METADATA]
    for pack in lost:
        store.delete(f"{there.prefix}packs/{pack.hex()}")
    assert verify(there, None, deep=True, monitor=MONITOR).findings
    assert copied(source, store).chunks_copied > 0
    assert world.problems(received(store, source)) == []
    assert verify(received(store, source), None, deep=True, monitor=MONITOR).findings == ()


@pytest.mark.parametrize("how", ["gone", "cut off", "flipped"])
def test_damage_at_the_source_is_never_copied(how: str) -> None:
    """A pack that is gone, cut off or flipped ends the copy with an error, and no root stands at the receiver."""
    _, source = source_with(FIRST)
    store = source.store
    largest = max((info for info in store.list("") if "/packs/" in info.name), key=lambda info: info.size)
    data = bytearray(store.read(largest.name))
    store.delete(largest.name)
    if how != "gone":
        data[len(data) // 2] ^= 1
        store.put(largest.name, [data[:-100] if how == "cut off" else data])
    there = MemoryStore()
    with pytest.raises(Corrupt):
        copied(source, there)
    assert received(there, source).root_names() == []


def test_a_second_place_serves_when_the_first_is_damaged() -> None:
    """A damaged source is mended by copying back, and from then on the sound packs are copied, not the damaged ones."""
    world, source = source_with(FIRST)
    store = MemoryStore()
    copied(source, store)
    for pack in source.load_index(source.load_index_list()).packs():
        if pack.kind != METADATA:
            name = pack_name(source.prefix, pack.id)
            data = bytearray(source.store.read(name))
            data[len(data) // 2] ^= 1
            source.store.delete(name)
            source.store.put(name, [data])
    with pytest.raises(Corrupt):
        copied(source, MemoryStore())
    # What verify finds is suspect from then on, so nothing relies on it.
    assert verify(source, None, deep=True, monitor=MONITOR).findings
    copy(received(store, source), source.store, PREFIX, MASTER, None, MONITOR, no_fence)
    assert world.problems(reopen(source.store)) == []
    assert copied(reopen(source.store), MemoryStore()).roots_copied


def test_a_root_that_is_not_there_is_an_error() -> None:
    """Named and not there: an error; of all that are there, none is missed."""
    _, source = source_with(FIRST)
    with pytest.raises(ObjectMissing):
        copied(source, MemoryStore(), ["tree.7"])


def test_a_strange_receiver_is_refused() -> None:
    """Keys wrapped by another master key, or another restore point of the same name: nothing is changed there."""
    _, source = source_with(FIRST)
    store = MemoryStore()
    copy(source, store, THERE, MASTER, None, MONITOR, no_fence)
    with pytest.raises(KeyWrong):
        copied(source, store)
    store = copy_of(source.store)  # type: ignore[arg-type]
    source.delete_root("tree.0")
    World().backup(source, "tree.0", SECOND)
    before = {info.name for info in store.list("")}
    with pytest.raises(Conflict):
        copy(source, store, PREFIX, MASTER, None, MONITOR, no_fence)
    assert {info.name for info in store.list("")} == before


def test_a_source_without_the_chunks_is_told() -> None:
    """An index that lacks what a root needs ends the copy before anything is put."""
    _, source = source_with(FIRST)
    for info in [*source.store.list(f"{source.prefix}packs/")]:
        source.store.delete(info.name)
    with pytest.raises((IndexIncomplete, Corrupt)):
        copied(source, MemoryStore())


def test_a_fence_stops_it_before_the_root() -> None:
    """A newer attempt exists: the packs have arrived, the restore point has not."""
    _, source = source_with(FIRST)
    store = MemoryStore()

    def fenced() -> None:
        raise Conflict(reason="fenced", conflict_code="9900")

    with pytest.raises(Conflict):
        copy(source, store, THERE, OTHER, None, MONITOR, fenced)
    assert received(store, source).root_names() == []
    assert copied(source, store).bytes_copied == 0


def test_from_afar_the_same_arrives_under_another_name_and_metadata_stay_at_home() -> None:
    """far: roots get the receiver's names and labels, and what has arrived is not read from the source again."""
    world, source = source_with(FIRST, SECOND)
    store, reads = MemoryStore(), []

    class Counting(MemoryStore):
        def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
            reads.append(buffer.nbytes)
            super().read_into(name, offset, buffer)

    counting = Counting()
    for info in source.store.list(""):
        counting.put(info.name, [source.store.read(info.name)])
    afar = reopen(counting)

    def copied_far(root: str, name: str) -> CopyReport:
        def renamed(found: Root, labels: Labels) -> Root:
            backup, _, generation = name.rpartition(".")
            return replace(
                found,
                name=name,
                backup_id=backup,
                generation=int(generation),
                labels={**labels, "here": name},
                report=replace(found.report, root=name),
            )

        return copy(afar, store, THERE, OTHER, [root], MONITOR, no_fence, far=True, rename=renamed)

    copied_far("tree.0", "replica.7")
    first = sum(reads)
    reads.clear()
    report = copied_far("tree.1", "second.3")
    assert report.roots_copied == ("second.3",)
    assert sum(reads) < 60_000 < first
    there = received(store, source)
    assert restored(there, "replica.7") == FIRST
    assert restored(there, "second.3") == SECOND
    assert there.load_root("second.3").labels["here"] == "second.3"
    assert sorted(there.root_names()) == ["replica.7", "second.3"]
    assert verify(there, None, deep=True, monitor=MONITOR).findings == ()
    assert world.problems(source) == []


def test_from_afar_a_segment_with_wrong_chunks_is_not_taken() -> None:
    """A source that errs, or lies: its segments authenticate, and hold other bytes than the ids say. No root comes."""
    text = {(b"text",): b"".join(b"%d lines of text that compress\n" % i for i in range(9000))}
    _, source = source_with(text)
    known = source.load_index_list()
    packs = [
        load_pack(source.store, source.prefix, source.domain, pack.id) for pack in source.load_index(known).packs()
    ]
    honest = next(pack for pack in packs if pack.kind != METADATA)
    made = [pack for pack in packs if pack.kind == METADATA]
    writer = PackWriter(source.store, source.prefix, source.domain, DATA, POOL, made.append)
    for segment in honest.segments:
        codec, payload = compress_segment(memoryview(b"lies" * (segment.raw // 4 + 1))[: segment.raw], 3)
        writer.store_payload(codec, payload, segment.raw, segment.ids, segment.lengths)
    writer.finish()
    for name in source.index_object_names(known):
        source.store.delete(f"{source.prefix}index/{name}")
    source.put_index_object(made, 0)
    store = MemoryStore()
    with pytest.raises(ChunkCorrupt):
        copy(reopen(source.store), store, THERE, OTHER, ["tree.0"], MONITOR, no_fence, far=True)
    assert received(store, source).root_names() == []
    # Of our own store, where a segment that authenticates is what was sealed, nobody looks inside.
    assert copied(reopen(source.store), MemoryStore()).roots_copied == ("tree.0",)
