"""Damage counted: each object of many repositories in ten ways; what a read finds, what verify finds, what neither.

A restore gives the right bytes or an error, whatever happens to one object. What hits a restore point is found by the
read and by verify, which names it. What hits none is found by verify, unless the object is not in force: a list of the
index that a newer one replaced, or labels and lists whose removal leaves the ones before in force, as a rollback does.
"""

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest
from fault_store import copy_of
from fault_world import World
from reliability import report
from test_damage import cut, damaged_world, flip, foreign, outcomes, swap, verified, write

from strongroom.engine.store.memory import MemoryStore

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
TRIALS_LONG = 10_500
HOLE_BYTES = 4096  # a page that the file system lost

Damage = Callable[[MemoryStore, str], None]


def earlier(store: MemoryStore, name: str) -> None:
    """The bytes of an older object of the same kind in the same vault: right keys, right kind, another name."""
    folder = name.rpartition("/")[0] + "/"
    others = [info.name for info in store.list(folder if folder != "/" else "") if info.name != name]
    others = [other for other in others if "/" not in other[len(folder) :]] or [
        info.name for info in store.list("") if info.name != name
    ]
    write(store, name, store.read(random.choice(others)))


def hole(store: MemoryStore, name: str) -> None:
    """A page of zeros where bytes were."""
    data = bytearray(store.read(name))
    at = random.randrange(len(data)) // HOLE_BYTES * HOLE_BYTES
    length = min(HOLE_BYTES, len(data) - at)
    data[at : at + length] = bytes(length)
    write(store, name, bytes(data))


KINDS: dict[str, Damage] = {
    "bit flipped": flip(lambda size: random.randrange(max(size, 1))),
    "byte at an end flipped": flip(lambda size: random.choice((0, size - 1))),
    "cut off": cut(lambda size: random.randrange(max(size, 1))),
    "of no length": cut(lambda _: 0),
    "made longer": lambda store, name: write(store, name, store.read(name) + random.randbytes(random.randint(1, 99))),
    "gone": lambda store, name: store.delete(name),
    "swapped with another": swap,
    "an earlier one's bytes": earlier,
    "another vault's bytes": foreign,
    "a page of zeros": hole,
}


def in_force(store: MemoryStore, name: str) -> bool:
    """Whether anybody reads this object: not a list that a newer list replaced."""
    folder, _, last = name.rpartition("/")
    if not folder.endswith("/index") or "." in last:
        return True
    return last == max(info.name.rpartition("/")[2] for info in store.list(folder + "/") if "." not in info.name[-11:])


def is_rollback(kind: str, name: str) -> bool:
    """Without the newest of these the one before stands, as it did before it was written."""
    return kind == "gone" and ("/labels/" in name or ("/index/" in name and "." not in name.rpartition("/")[2]))


def examine(world: World, store: MemoryStore, name: str, kind: str) -> str:
    """How this damage was found: `read and verify`, `verify`, or why it was not: `not in force`, `rolled back`."""
    broken = copy_of(store)
    KINDS[kind](broken, name)
    if [broken.read(info.name) for info in broken.list("")] == [store.read(info.name) for info in store.list("")]:
        return "no change"
    result = outcomes(world, broken)
    assert "wrong" not in result.values(), (name, kind, result)
    hit = {root for root, outcome in result.items() if outcome != "right"}
    found = verified(world, broken, deep=True)
    if found is None:
        assert hit == world.kept.keys(), (name, kind, result)
        return "read and verify"
    named = {root for finding in found.findings for root in finding.roots}
    assert hit <= named, (name, kind, result, found.findings)
    if hit:
        return "read and verify"
    if found.findings:
        return "verify"
    if is_rollback(kind, name):
        return "rolled back"
    assert not in_force(store, name), (name, kind)
    return "not in force"


def sweep(trials_min: int) -> Counter[tuple[str, str]]:
    """(kind, how it was found) -> count, over as many repositories as it takes."""
    random.seed(SEED)
    counts: Counter[tuple[str, str]] = Counter()
    seed = SEED
    while sum(counts.values()) < trials_min:
        world, store = damaged_world(seed)
        for info in store.list(""):
            if "/digests/" in info.name:
                continue  # an aid that verify makes anew; what a scrub finds of them is counted in test_scrub.py
            for kind in KINDS:
                counts[kind, examine(world, store, info.name, kind)] += 1
        seed += 1
    return counts


def show(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    """Print a line a kind; the sums of all kinds."""
    sums: Counter[str] = Counter()
    for kind in KINDS:
        of_kind = {how: count for (one, how), count in sorted(counts.items()) if one == kind}
        sums.update(of_kind)
        print(f"{kind}: {sum(of_kind.values())} objects, {of_kind}")
    print(f"{sum(sums.values())} damaged objects, seed {SEED}: {dict(sums)}")
    return dict(sums)


def test_each_kind_of_damage_is_found() -> None:
    """Every object of a repository in ten ways: found by a read or by verify, or not in force; wrong bytes never."""
    sums = show(sweep(1))
    assert sums["read and verify"] > sum(sums.values()) // 2


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_damaged_objects() -> None:
    """The same over many repositories."""
    sums = show(sweep(TRIALS_LONG))
    total = sum(sums.values()) - sums.get("no change", 0)
    assert total >= 10_000
    report(
        "damage",
        count=total,
        seed=SEED,
        found_on_read_and_by_verify=sums["read and verify"],
        found_by_verify_alone=sums["verify"],
        of_objects_not_in_force=sums.get("not in force", 0),
        rolled_back=sums.get("rolled back", 0),
        wrong_bytes=0,  # asserted for each
    )
