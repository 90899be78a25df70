"""Repair from another copy: whatever was damaged or lost here comes back, as far as it is there."""

import random

import pytest
from fault_store import copy_of
from fault_world import MASTER, MONITOR, POOL, PREFIX, World, create, reopen
from test_damage import DAMAGES, SEED, damaged_world, flip
from test_suspects import packs_of

from strongroom.base.errors import InvalidRequest
from strongroom.engine import Repository, open_repository
from strongroom.engine.copy import copy
from strongroom.engine.repair import repair
from strongroom.engine.store.memory import MemoryStore


def copied(store: MemoryStore) -> Repository:
    """Another vault with a copy of the domain, as `copy` makes it: other packs, other keys objects."""
    other = MemoryStore()
    source = reopen(copy_of(store))
    copy(source, other, "vaults/w/", MASTER, None, MONITOR, lambda: None)
    return open_repository(other, "vaults/w/", MASTER, domain_id=source.domain.id, pool=POOL)


@pytest.mark.parametrize("damage", ["flip box", "flip middle", "flip footer", "cut half", "delete", "swap", "foreign"])
def test_each_object_comes_back(damage: str) -> None:
    """Packs, index objects, lists, labels and roots, each damaged: after a repair every restore point is whole."""
    world, store = damaged_world()
    other = copied(store)
    random.seed(SEED)
    names = [info.name for info in store.list("") if info.name.split("/")[-2] in ("packs", "index", "labels", "roots")]
    for name in names:
        if damage == "delete" and "/roots/" in name:
            continue  # that is how a backup is deleted
        if damage == "swap" and "/labels/" in name:
            continue  # alone in its folder: the swap would be with what makes it a repository
        broken = copy_of(store)
        DAMAGES[damage](broken, name)
        report = repair(reopen(broken), other, MONITOR)
        assert not [finding for finding in report.after.findings if finding.roots], (name, report.after.findings)
        assert world.problems(reopen(broken)) == [], name
        again = repair(reopen(broken), other, MONITOR)
        assert (again.chunks, again.roots) == (0, ())


def test_what_the_other_copy_lost_too_stays_lost_and_the_rest_comes() -> None:
    """Both sides are damaged in different packs: all comes back that one of them has, and the rest is named."""
    world, store = _three_disks()
    other = copied(store)
    for name in packs_of(store):
        store.delete(name)  # metadata and data of all
    victim = max(packs_of(other.store), key=other.store.size)  # type: ignore[arg-type]
    flip(lambda _: 20)(other.store, victim)  # type: ignore[arg-type]
    report = repair(reopen(store), other, MONITOR)
    assert report.chunks > 0
    hit = {root for finding in report.after.findings for root in finding.roots}
    assert hit
    assert hit < set(world.kept)
    world.kept = {name: content for name, content in world.kept.items() if name not in hit}
    for name in hit:
        reopen(store).delete_root(name)
    assert world.problems(reopen(store)) == []


def _three_disks() -> tuple[World, MemoryStore]:
    store, world = MemoryStore(), World()
    repository = create(store)
    for number in range(3):
        world.backup(repository, f"disk{number}.1", random.Random(number).randbytes(5 << 20))
    return world, store


def test_another_domain_is_no_copy() -> None:
    """A repository of other keys is refused, with nothing changed."""
    _, store = damaged_world()
    _, stranger = damaged_world()
    before = list(store.list(""))
    with pytest.raises(InvalidRequest):
        repair(reopen(store), open_repository(stranger, PREFIX, MASTER, pool=POOL), MONITOR)
    assert list(store.list("")) == before
