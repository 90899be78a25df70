"""The shred and erase verbs: the end of a vault.

    shred    every wrapped key below a prefix, of each of its domains: from here on nothing there opens any more
    erase    that first, then everything else

Whatever crashes in between leaves what nobody can read, and the next attempt removes it. Keys go before roots and packs
for that reason, against the order of deleting one backup. What was copied to another vault has its own wraps there and
is not touched. A key file that was exported for this vault before still opens what is not erased yet.
"""

import re

from strongroom.base.streams import Monitor
from strongroom.engine.digests import delete_object
from strongroom.engine.locks import require_no_locked_roots
from strongroom.engine.store.base import Store

ROUNDS_MAX = 8  # of looking again: what an attempt that was given up wrote meanwhile goes too

_WRAP = re.compile(r"((?:.*/)?domains/[0-9a-f]{32}/)(keys/[^/]+)")


def shred(store: Store, prefix: str, monitor: Monitor) -> int:
    """Drop the wraps of every domain below `prefix`, which ends with a slash or is empty; gives their number.

    Idempotent; durable on return, when it has seen that none is left. Raises Conflict 6111, with nothing dropped, for a
    locked vault that holds roots; StoreError, and what `monitor` raises.
    """
    require_no_locked_roots(store, prefix)
    dropped = 0
    for _ in range(ROUNDS_MAX):
        wraps = [found for info in store.list(prefix) if (found := _WRAP.fullmatch(info.name))]
        if not wraps:
            break
        for found in wraps:
            monitor.check()
            delete_object(store, found[1], found[2])
            dropped += 1
    return dropped


def erase(store: Store, prefix: str, monitor: Monitor) -> int:
    """Shred, then delete everything below `prefix`; gives the number of objects. Idempotent. Raises as `shred`.

    `prefix` belongs to the vault alone, and nobody works on it any more.
    """
    erased = shred(store, prefix, monitor)
    store.sweep_temporary(prefix, 0)
    for _ in range(ROUNDS_MAX):
        names = [info.name for info in store.list(prefix)]
        if not names:
            break
        # Roots next: a restore point without its keys is none, and says so wherever roots are listed.
        for number, name in enumerate(sorted(names, key=lambda name: "/roots/" not in name), 1):
            monitor.check()
            store.delete(name)
            erased += 1
            monitor.advance(number, len(names), number)
    return erased
