"""What a session sees when it begins: its index list, both listings and the root it came for, in one round of requests.

The pin is set before. What is listed beside the index may miss a pack that an index object names: who finds one missing
lists again.
"""

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import Protocol

from strongroom.base.errors import Corrupt, InvalidRequest, ObjectMissing
from strongroom.engine.index import NUMBER_DIGITS, IndexList
from strongroom.engine.store.base import ObjectInfo, Store
from strongroom.engine.store.remote import at_once, together

PACKS_SEEN_MAX = 1 << 14  # 300 bytes each as they are listed, 24 in arrays: half a terabyte of data


class Place(Protocol):
    """A repository."""

    store: Store
    prefix: str

    def read_index_list(self, number: int) -> IndexList: ...

    def list_index(self) -> dict[str, int]: ...

    def read_root(self, name: str) -> bytes: ...


@dataclass
class Seen:
    """What a session sees when it begins.

    runs    files of the cache, seen before the index was listed
    sizes   names and sizes of what is in the folder `index/`
    packs   what `packs/` held, when that was listed in the same round
    roots   bytes of a root by its name, when it was read in the same round
    """

    runs: list[str]
    index_list: IndexList
    sizes: dict[str, int]
    packs: list[ObjectInfo] | None = None
    roots: dict[str, bytes] = field(default_factory=dict)


def look(place: Place, runs: list[str], number: int, root: str | None) -> Seen | None:
    """List `number` and what goes with it; None when it is not the newest any more. `runs` were looked at before."""
    seen = Seen(runs, IndexList(number=number), {})
    lists: list[IndexList] = []

    def read_list() -> None:
        with contextlib.suppress(ObjectMissing):  # a prune has written newer ones, and deleted this
            lists.append(place.read_index_list(number))

    def list_index() -> None:
        seen.sizes = place.list_index()

    def list_packs() -> None:
        found = list(itertools.islice(place.store.list(f"{place.prefix}packs/"), PACKS_SEEN_MAX + 1))
        seen.packs = found if len(found) <= PACKS_SEEN_MAX else None  # more are listed when they are compared

    def read_root() -> None:
        if root is not None:
            with contextlib.suppress(ObjectMissing, Corrupt, InvalidRequest):  # who needs it asks again, and is told
                seen.roots[root] = place.read_root(root)

    ahead = [list_packs, read_root] if at_once(place.store) > 1 else []
    together(place.store, read_list, list_index, *ahead)
    newest = max((int(name) for name in seen.sizes if len(name) == NUMBER_DIGITS and name.isdigit()), default=number)
    if not lists or newest != number:
        return None
    seen.index_list = lists[0]
    return seen
