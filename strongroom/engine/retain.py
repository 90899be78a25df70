"""The retain verb: objects that restore points need are kept by the store itself, where it can do that.

Of a restore point these are its root and labels, the wraps of its domain, and every pack with a chunk of it; an index
is made again from packs. A pack that several restore points need is kept for the one with the most time: they are taken
in the order of their time, in steps, because each step counts the whole index.

The store is asked about each pack once, and again when its time has become too short: the answers are remembered
(kept.py), so that a backup costs requests for what is new. A prune asks about all of them.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from strongroom.base.errors import ObjectMissing
from strongroom.base.streams import Monitor
from strongroom.engine.locks import vault_of
from strongroom.engine.mark import Marks
from strongroom.engine.pack import pack_name
from strongroom.engine.repository import Repository, Session
from strongroom.engine.roots import parse_root_name
from strongroom.engine.store.remote import at_once
from strongroom.engine.store.retention import Kept, retain, retains
from strongroom.engine.usage import Usage

STEPS_MAX = 16


def retain_roots(
    repository: Repository, seconds: Mapping[str, float], monitor: Monitor, *, ask_all: bool = False
) -> int:
    """Keep what these roots need, each for so many seconds from now; gives the number of objects, 0 when the store
    keeps nothing. `ask_all`: believe no earlier answer. Idempotent. Raises StoreError, Corrupt classes, and what
    `monitor` raises."""
    wanted = {name: left for name, left in seconds.items() if left > 0}
    if not wanted or not retains(repository.store):
        return 0
    small = _small(repository, wanted)
    now = max(kept.now for kept in _retain(repository, small, monitor).values())
    with repository.session("verify") as session:
        packs = _packs(session, wanted, monitor)
    known = {} if ask_all else repository.kept.load()
    short = {pack: left for pack, left in packs.items() if known.get(pack, 0) < now + left}
    names = {pack_name(repository.prefix, pack): pack for pack in short}
    told = _retain(repository, {name: short[pack] for name, pack in names.items()}, monitor)
    repository.kept.add({names[name]: kept.until for name, kept in told.items()}, now)
    return len(small) + len(packs)


def _retain(repository: Repository, objects: Mapping[str, float], monitor: Monitor) -> dict[str, Kept]:
    with ThreadPoolExecutor(at_once(repository.store), thread_name_prefix="retain") as threads:
        asked = {name: threads.submit(retain, repository.store, name, left) for name, left in objects.items()}
        answers = {}
        for name, done in asked.items():
            monitor.check()
            answers[name] = done.result()
    return answers


def _small(repository: Repository, wanted: Mapping[str, float]) -> dict[str, float]:
    below, longest = repository.prefix, max(wanted.values())
    objects = {f"{below}roots/{name}": left for name, left in wanted.items()}
    of_backup: dict[str, float] = {}
    for name, left in wanted.items():
        parsed = parse_root_name(name)
        assert parsed is not None
        of_backup[parsed[0]] = max(left, of_backup.get(parsed[0], 0.0))
    for info in repository.store.list(f"{below}labels/"):
        backup_id = info.name.rpartition("/")[2].rpartition(".")[0]
        if backup_id in of_backup:
            objects[info.name] = of_backup[backup_id]
    for info in repository.store.list(f"{below}keys/"):
        objects[info.name] = longest
    own = f"{vault_of(below)}domain"
    try:
        repository.store.size(own)
    except ObjectMissing:
        return objects
    return objects | {own: longest}


def _packs(session: Session, wanted: Mapping[str, float], monitor: Monitor) -> dict[bytes, float]:
    """Packs with chunks of the roots, each with the most time of those."""
    found: dict[bytes, float] = {}
    marks = Marks()
    for step in _steps(sorted(wanted.items(), key=lambda pair: -pair[1])):
        for name, _ in step:
            marks.add(session, session.load_root(name), monitor)
        usage = Usage(session.index, marks)
        for pack in usage.packs:
            if pack not in found and usage.of(pack)[1]:
                found[pack] = step[0][1]
    return found


def _steps(roots: Sequence[tuple[str, float]]) -> list[Sequence[tuple[str, float]]]:
    """At most STEPS_MAX groups, in order."""
    size = -(-len(roots) // STEPS_MAX)
    return [roots[at : at + size] for at in range(0, len(roots), size)]
