"""The repository of format version 1 that is kept in tests/golden: whole, damaged, and without its index."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fault_store import copy_of
from fault_world import MONITOR, POOL, restored

from strongroom.base.errors import (
    Corrupt,
    FormatUnknown,
    IndexIncomplete,
    KeyWrong,
    ManifestCorrupt,
    ObjectMissing,
    PackCorrupt,
    RepositoryError,
)
from strongroom.engine import MasterKey, Repository, open_repository
from strongroom.engine.catalogue import list_points
from strongroom.engine.rebuild import rebuild
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify

FOLDER = Path(__file__).parent.parent / "golden" / "v1"
MASTER = MasterKey(bytes(range(100, 132)))
ROOTS = ("disk-1.1", "tree-1.1", "tree-2.1")

# By the folder of the damaged object: what whoever meets the damage is told. A lost wrap is a missing object.
EXPECTED: dict[str, tuple[type[Exception], ...]] = {
    "domain": (FormatUnknown, ObjectMissing),
    "keys": (Corrupt, FormatUnknown, KeyWrong, ObjectMissing),
    "roots": (ManifestCorrupt,),
    "labels": (Corrupt,),
    "index": (Corrupt, IndexIncomplete),
    "packs": (PackCorrupt,),
}


@cache
def golden() -> MemoryStore:
    store = MemoryStore()
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(FOLDER)), [path.read_bytes()])
    return store


NAMES = [info.name for info in golden().list("")]


def opened(store: MemoryStore) -> Repository:
    return open_repository(store, "", MASTER, pool=POOL)


def everything(store: MemoryStore) -> dict[str, object]:
    """Every restore point with its labels."""
    repository = opened(store)
    found: dict[str, object] = {name: restored(repository, name) for name in ROOTS}
    return found | {"labels": repository.load_labels(repository.load_root("disk-1.1"))}


def test_it_is_whole() -> None:
    """A deep verify finds nothing, the catalogue calls every root complete, and its index needs no rebuild."""
    store = copy_of(golden())
    report = verify(opened(store), None, deep=True, monitor=MONITOR)
    assert report.findings == ()
    assert report.roots == 3
    assert {(p.name, p.state) for p in list_points(opened(store), check=True)} == {(r, "complete") for r in ROOTS}
    assert rebuild(opened(store)).was_sound
    assert sum(info.size for info in golden().list("")) < 300_000


def test_it_comes_back_without_its_index() -> None:
    """Packs of version 1 describe themselves."""
    store = copy_of(golden())
    for name in NAMES:
        if "/index/" in name:
            store.delete(name)
    assert rebuild(opened(store)).packs_read == sum("/packs/" in name for name in NAMES)
    assert everything(store) == everything(golden())


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flip": flip,
    "cut": lambda data: data[: len(data) * 2 // 3],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_refused_with_the_right_error(name: str, damage: str) -> None:
    """A flipped bit, a cut, nothing left: an error of the right class and no wrong content, or the object is spare."""
    store = copy_of(golden())
    store.delete(name)
    store.put(name, [DAMAGES[damage](golden().read(name))])
    kind = name.rpartition("/")[0].rpartition("/")[2] or "domain"
    try:
        found = everything(store)
    except (RepositoryError, ObjectMissing) as err:
        assert isinstance(err, EXPECTED[kind]), (name, err)
    else:
        assert found == everything(golden())
        assert kind == "packs", f"{name} was damaged, and nobody noticed"
        if kind == "packs":
            assert verify(opened(store), None, deep=True, monitor=MONITOR).findings


def test_a_later_format_is_refused() -> None:
    """The version stands in the wrapped keys, in clear text: an older program says what it cannot read."""
    store = copy_of(golden())
    (name,) = [name for name in NAMES if "/keys/" in name]
    data = bytearray(store.read(name))
    data[16] = 2
    store.delete(name)
    store.put(name, [bytes(data)])
    with pytest.raises(FormatUnknown, match="format 2"):
        opened(store)


def test_another_key_is_refused() -> None:
    """By the key's id, before anything is decrypted."""
    with pytest.raises(KeyWrong):
        open_repository(copy_of(golden()), "", MasterKey(bytes(32)))
