"""Damage to every object of a repository, in every way: noticed when read, found by verify, never wrong bytes."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from fault_store import copy_of
from fault_streams import random_files
from fault_world import MONITOR, World, create, reopen, restored

from strongroom.base.errors import ChunkCorrupt, IndexIncomplete, StoreError, StrongroomError
from strongroom.engine.index_table import Table
from strongroom.engine.prune import prune
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import VerifyReport, verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))


def damaged_world(seed: int = SEED) -> tuple[World, MemoryStore]:
    """Two trees that share chunks, a disk, labels put later, and the marks of a prune."""
    store, world = MemoryStore(), World()
    repository = create(store)
    files = random_files(seed, bytes_max=300_000)
    world.backup(repository, "gone.1", random_files(seed + 1))
    world.backup(repository, "tree.1", files)
    world.delete(repository, "gone.1")
    world.prune(repository)
    world.backup(repository, "tree.2", {**files, (b"new",): random.Random(seed).randbytes(200_000)}, parent="tree.1")
    disk = random.Random(seed).randbytes(1 << 20) + bytes(1 << 20)
    world.backup(repository, "disk.1", disk)
    repository.put_labels("disk", {"name": "changed later"})
    assert world.problems(repository) == []
    return world, store


def write(store: MemoryStore, name: str, data: bytes) -> None:
    store.delete(name)
    store.put(name, [data])


def flip(at: Callable[[int], int]) -> Callable[[MemoryStore, str], None]:
    def damage(store: MemoryStore, name: str) -> None:
        data = bytearray(store.read(name))
        data[min(at(len(data)), len(data) - 1)] ^= 1 << random.randrange(8)
        write(store, name, bytes(data))

    return damage


def cut(to: Callable[[int], int]) -> Callable[[MemoryStore, str], None]:
    return lambda store, name: write(store, name, store.read(name)[: to(store.size(name))])


def swap(store: MemoryStore, name: str) -> None:
    """With the next object of its folder, else with any other: right bytes under the wrong name."""
    folder = name.rpartition("/")[0] + "/"
    names = [info.name for info in store.list(folder if folder != "/" else "")] or [name]
    other = names[(names.index(name) + 1) % len(names)]
    if other == name:
        other = next(info.name for info in store.list("") if info.name != name)
    one, two = store.read(name), store.read(other)
    write(store, name, two)
    write(store, other, one)


@cache
def neighbour() -> MemoryStore:
    """Another vault of the same installation: same master key, other keys."""
    return damaged_world()[1]


def foreign(store: MemoryStore, name: str) -> None:
    """The bytes of another vault's object of the same kind."""
    kind = name.rsplit("/", 2)[-2:-1]
    alike = [info.name for info in neighbour().list("") if info.name.rsplit("/", 2)[-2:-1] == kind]
    write(store, name, neighbour().read(random.choice(alike)))


DAMAGES: dict[str, Callable[[MemoryStore, str], None]] = {
    "flip first": flip(lambda _: 0),
    "flip id": flip(lambda _: 15),
    "flip box": flip(lambda _: 20),
    "flip middle": flip(lambda size: size // 2),
    "flip footer": flip(lambda size: size - 14),
    "flip last": flip(lambda size: size - 1),
    "cut last": cut(lambda size: size - 1),
    "cut half": cut(lambda size: size // 2),
    "cut all": cut(lambda _: 0),
    "longer": lambda store, name: write(store, name, store.read(name) + b"\0"),
    "delete": lambda store, name: store.delete(name),
    "swap": swap,
    "foreign": foreign,
}


def outcomes(world: World, store: MemoryStore) -> dict[str, str]:
    """Per root: right, wrong, or the class of the error."""
    try:
        repository = reopen(store)
    except StrongroomError as err:
        return dict.fromkeys(world.kept, type(err).__name__)
    found = {}
    for name, content in world.kept.items():
        try:
            found[name] = "right" if restored(repository, name) == content else "wrong"
        except StrongroomError as err:
            found[name] = type(err).__name__
    return found


def verified(world: World, store: MemoryStore, *, deep: bool) -> VerifyReport | None:
    """None when the repository does not even open."""
    try:
        repository = reopen(store)
    except StrongroomError:
        return None
    return verify(repository, list(world.kept), deep=deep, monitor=MONITOR)


def examine(world: World, store: MemoryStore, name: str, damage: str) -> None:
    """One object damaged in one way: right bytes or an error, and a deep verify finds what hits a root."""
    broken = copy_of(store)
    DAMAGES[damage](broken, name)
    result = outcomes(world, broken)
    assert "wrong" not in result.values(), (name, damage, result)
    report = verified(world, broken, deep=True)
    hit = sorted(root for root, outcome in result.items() if outcome != "right")
    if report is None:
        assert len(hit) == len(world.kept)
        return
    named = {root for finding in report.findings for root in finding.roots}
    assert set(hit) <= named, (name, damage, result, report.findings)
    if not report.findings and "/digests/" not in name:  # those are made anew; what a scrub finds has its own tests
        # Old lists are not read; a list or a label that is gone leaves the one before it in force.
        last = name.rpartition("/")[2]
        assert last.isdigit() or (damage == "delete" and "/labels/" in name), (name, damage)


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damage_is_noticed_and_never_restored(damage: str) -> None:
    """Each object, damaged: a restore gives the right bytes or an error, and a deep verify finds what hits a root."""
    world, store = damaged_world()
    random.seed(SEED)
    names = [info.name for info in store.list("")]
    for name in names:
        examine(world, store, name, damage)
    print(f"seed {SEED}: {len(names)} objects, {damage}")
    assert len(names) > 12


@pytest.mark.parametrize("damage", ["delete", "cut last", "flip footer", "longer"])
def test_a_shallow_verify_finds_packs_that_do_not_open(damage: str) -> None:
    """Missing, cut off, or without a footer: found without reading the data."""
    world, store = damaged_world()
    assert verified(world, store, deep=False) == VerifyReport(findings=(), roots=3, objects=6, bytes=0, packs=6)
    for info in list(store.list("")):
        if "/packs/" not in info.name:
            continue
        broken = copy_of(store)
        DAMAGES[damage](broken, info.name)
        report = verified(world, broken, deep=False)
        assert report is not None
        assert report.findings, (info.name, damage)


def test_findings_name_the_paths_they_hit() -> None:
    """A pack that holds two files of one tree and nothing else names exactly those."""
    store, world = MemoryStore(), World()
    repository = create(store)
    files = {(b"folder", b"shared"): os.urandom(500)}
    world.backup(repository, "one.1", files)
    before = {info.name for info in store.list("")}
    more = {**files, (b"a",): os.urandom(700), (b"folder", b"b"): os.urandom(900)}
    world.backup(repository, "two.1", more)
    packs = [info for info in store.list("") if info.name not in before and "/packs/" in info.name]
    data = max(packs, key=lambda info: info.size)
    store.delete(data.name)
    report = verify(repository, None, deep=False, monitor=MONITOR)
    (finding,) = report.findings
    assert (finding.kind, finding.name, finding.roots) == ("pack", data.name, ("two.1",))
    assert sorted(finding.paths) == [("two.1", (b"a",)), ("two.1", (b"folder", b"b"))]
    assert finding.paths_count == 2


def test_a_damaged_pack_is_not_relied_on_again() -> None:
    """After verify found it, a backup of the same content stores it anew, and both restore points come back."""
    store, world = MemoryStore(), World()
    repository = create(store)
    files = random_files(SEED)
    world.backup(repository, "one.1", files)
    pack = max((info for info in store.list("") if "/packs/" in info.name), key=lambda info: info.size)
    flip(lambda _: 1000)(store, pack.name)
    assert verify(repository, None, deep=False, monitor=MONITOR).findings == ()
    assert verify(repository, None, deep=True, monitor=MONITOR).findings
    assert len(repository.load_index_list().suspect) == 1
    world.backup(repository, "two.1", files, full=True)
    assert world.problems(repository) == []
    assert verify(repository, None, deep=True, monitor=MONITOR).findings == ()
    world.prune(repository)
    assert not [info for info in store.list("") if info.name == pack.name]
    assert world.problems(repository) == []


def test_a_missing_pack_is_not_relied_on() -> None:
    """Nobody ran verify: a backup of the same content still stores again what the store has lost."""
    _, store = damaged_world()
    repository = reopen(store)
    for info in list(store.list("")):
        if "/packs/" in info.name:
            store.delete(info.name)
    world = World()
    world.backup(repository, "again.1", random_files(SEED, bytes_max=300_000), parent="tree.2")
    world.backup(repository, "again.2", random.Random(SEED).randbytes(1 << 20))
    assert restored(repository, "again.1") == world.kept["again.1"]
    assert restored(repository, "again.2") == world.kept["again.2"]


def test_an_index_that_lies_is_noticed() -> None:
    """An index object that exchanges two chunks of one length: ids are compared on reading, so it is an error."""
    store, world = MemoryStore(), World()
    repository = create(store)
    world.backup(repository, "one.1", {(b"a",): os.urandom(5000), (b"b",): os.urandom(5000)})
    before = repository.load_index_list()
    (name,) = [name for name in repository.index_object_names(before) if 5000 in repository.load_table(name).length]
    table = repository.load_table(name)
    one, two = (row for row in range(table.chunk_count) if table.length[row] == 5000)
    data = bytearray(table.data)
    starts_at = len(data) - 8 * table.chunk_count
    for row, start in ((one, table.start[two]), (two, table.start[one])):
        data[starts_at + 4 * row : starts_at + 4 * row + 4] = start.to_bytes(4, "little")
    lie, _ = repository.put_table(Table(bytes(data)), 0)
    others = [other for other in repository.index_object_names(before) if other != name]
    assert lie in others
    repository.put_index_list(replace(before, number=1, objects=tuple(others), retired=((name, 1),)))
    with pytest.raises(ChunkCorrupt):
        restored(repository, "one.1")


def test_a_pack_that_is_well_again_is_trusted_again() -> None:
    """A suspect pack that passes a deep verify leaves the list."""
    _, store = damaged_world()
    repository = reopen(store)
    pack = max((info for info in store.list("") if "/packs/" in info.name), key=lambda info: info.size)
    whole = store.read(pack.name)
    flip(lambda _: 1000)(store, pack.name)
    assert verify(repository, None, deep=True, monitor=MONITOR).findings
    write(store, pack.name, whole)
    assert verify(repository, None, deep=False, monitor=MONITOR).findings == ()
    assert repository.load_index_list().suspect
    assert verify(repository, None, deep=True, monitor=MONITOR).findings == ()
    assert not repository.load_index_list().suspect


def test_rot_in_metadata_is_pinned_to_its_pack() -> None:
    """A manifest that does not read makes even a shallow verify find the pack, so that it is written anew."""
    store, world = MemoryStore(), World()
    repository = create(store)
    files = random_files(SEED)
    world.backup(repository, "one.1", files)
    pack = min((info for info in store.list("") if "/packs/" in info.name), key=lambda info: info.size)
    flip(lambda _: 30)(store, pack.name)
    report = verify(repository, None, deep=False, monitor=MONITOR)
    assert {finding.kind for finding in report.findings} == {"manifest", "pack"}
    world.backup(repository, "two.1", files, full=True)
    assert world.problems(repository) == []


def test_a_store_that_does_not_serve_is_no_damage() -> None:
    """Denied and timed out are errors of the check, not findings about packs."""
    _, store = damaged_world()

    class Denying(MemoryStore):
        def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
            if "/packs/" in name and offset:
                from strongroom.base.errors import StoreDenied

                raise StoreDenied(name=name)
            return super().read(name, offset, length)

    denying = Denying()
    for info in store.list(""):
        denying.put(info.name, [store.read(info.name)])
    with pytest.raises(StoreError):
        verify(reopen(denying), None, deep=False, monitor=MONITOR)


def test_prune_refuses_what_it_cannot_read() -> None:
    """With a manifest damaged, or an index object lost, nothing is deleted: what it needs cannot be known."""
    world, store = damaged_world()
    world.kept.pop("disk.1")
    for folder in ("/packs/", "/index/"):
        for info in list(store.list("")):
            if folder not in info.name or info.name.rpartition("/")[2].isdigit():
                continue
            broken = copy_of(store)
            broken.delete(info.name)
            repository = reopen(broken)
            before = [found.name for found in broken.list("") if "/packs/" in found.name]
            try:
                prune(repository, dead=["disk.1"], monitor=MONITOR)
            except StrongroomError as err:
                assert isinstance(err, IndexIncomplete) or "pack" in str(err)
                assert [found.name for found in broken.list("") if "/packs/" in found.name] == before
