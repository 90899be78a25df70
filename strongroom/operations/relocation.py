"""The story of a move: an installation whose server is stopped goes to another database, another store, or both.

    before   the state folder's lock is held; <state>/migrate.json has the id of this move
    1 claim  the new database and the new store are empty, or have this move's mark; else nothing is begun
    2 rows   one snapshot of all tables -> one transaction in the new database, compared by count and checksum
    3 objects  every object is read, written, read back and compared; what is there already is compared
    4 prove  the old rows are still those that were loaded; every table has the same number of rows; both listings of
             the stores are the same, names and sizes
    5 end    the mark of the new database goes; migrate.json says that it is done, and the old place serves no more

The old place is only read. Death anywhere: the same command goes on. A server that ran on the old place in between is
noticed: rows that changed are loaded again, objects that are new are copied, those that went are removed.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from blake3 import blake3

from strongroom.base.errors import ConfigError, Corrupt, ObjectMissing
from strongroom.base.units import MIB
from strongroom.control import migrate as schema
from strongroom.control import relocation as rows
from strongroom.control.table_copies import Loading, snapshot
from strongroom.engine.store.base import ObjectInfo, Store
from strongroom.engine.store.remote import at_once
from strongroom.operations import trace
from strongroom.operations.watched_store import WatchedStore

MARKS = "moves/"  # in the new store, before the first object: of which move it is
PIECE_BYTES = 8 * MIB
THREADS_MIN = 4

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MovedRows:
    """tables: how many rows each has. loaded: False when an earlier run had done it."""

    tables: dict[str, int]
    loaded: bool


@dataclass(frozen=True, kw_only=True)
class MovedObjects:
    """What is in the new store, and what this run did for it."""

    objects: int
    bytes: int
    copied: int
    compared: int
    removed: int


def claim(move_id: str, *, to_database: str | None, to_store: Store | None) -> None:
    """Step 1, for both places before anything is written into one. Raises ConfigError."""
    if to_store is not None:
        _claim_store(WatchedStore(to_store), move_id)
    trace.point("database")
    if to_database is not None:
        rows.claim_database(to_database, move_id)
    trace.point("database")


def move_rows(from_url: str, to_url: str, move_id: str) -> MovedRows:
    """Step 2, and its share of step 4. Raises Corrupt when something differs, with nothing loaded; Unavailable."""
    with snapshot(from_url) as taken:
        counted = rows.count_all(taken)
        found = rows.fingerprint(counted)
        there = rows.claim_database(to_url, move_id)
        trace.point("database")
        if there != found:
            if there is None:
                schema.upgrade(to_url, taken.revision)
            trace.point("database")
            tables = [Loading(table=t, counted=counted[t.name], rows=taken.rows(t)) for t in taken.tables()]
            rows.load_moved(to_url, tables, found)
            trace.point("database")
    schema.upgrade(to_url)
    trace.point("database")
    return MovedRows(tables={name: each.rows for name, each in counted.items()}, loaded=there != found)


def prove_rows(from_url: str, to_url: str, moved: MovedRows) -> None:
    """Step 4: as many rows as were compared, table by table. Raises Corrupt."""
    with snapshot(from_url) as old, snapshot(to_url) as new:
        before, after = rows.count_all(old), rows.count_all(new)
    for name, count in moved.tables.items():
        if before[name].rows != count:
            raise Corrupt(reason=f"the table {name} changed while it was moved; run the command again")
        if after[name].rows != count and name != "sessions":  # downloads of the old place have ended
            raise Corrupt(reason=f"the new table {name} has {after[name].rows} rows, the old one {count}")


def move_objects(source: Store, target: Store, tell: Tell) -> MovedObjects:
    """Steps 3 and 4 for the store. Raises StoreError; Corrupt when an object differs from the old one."""
    target = WatchedStore(target)
    target.sweep_temporary("", 0)
    there = {info.name: info.size for info in target.list("") if not info.name.startswith(MARKS)}
    wanted = [info for info in source.list("") if not info.name.startswith(MARKS)]
    removed = _remove(target, there.keys() - {info.name for info in wanted})
    work = _Objects(source=source, target=target, there=there, tell=tell, count=len(wanted))
    with ThreadPoolExecutor(max(THREADS_MIN, at_once(target)), thread_name_prefix="move") as threads:
        for done in threads.map(work.one, wanted):
            assert done
    _prove_listing(source, target)
    return MovedObjects(
        objects=len(wanted),
        bytes=sum(info.size for info in wanted),
        copied=work.copied,
        compared=len(wanted) - work.copied,
        removed=removed,
    )


class _Objects:
    """The objects of a move, one by one, from many threads."""

    def __init__(self, *, source: Store, target: Store, there: dict[str, int], tell: Tell, count: int) -> None:
        self.copied = 0
        self._source, self._target, self._there = source, target, there
        self._tell, self._count = tell, count
        self._done = 0
        self._lock = threading.Lock()

    def one(self, info: ObjectInfo) -> bool:
        """Have it in the target, equal. What is there and differs was not written by us, or was damaged since."""
        there = self._there.get(info.name)
        if there is None:
            wanted = self._copy(info)
        elif there != info.size:
            raise Corrupt(reason=f"{info.name} has {there} bytes in the new store and {info.size} in the old one")
        else:
            wanted = _digest(self._source, info)
        if _digest(self._target, info) != wanted:
            raise Corrupt(reason=f"{info.name} differs from the old one. Remove it from the new store, then run again")
        with self._lock:
            self.copied += there is None
            self._done += 1
            if self._done % 1000 == 0 or self._done == self._count:
                self._tell(f"{self._done} of {self._count} objects")
        return True

    def _copy(self, info: ObjectInfo) -> bytes:
        digest = blake3()
        if info.size <= PIECE_BYTES:
            data = self._source.read(info.name, 0, info.size)
            digest.update(data)
            self._target.put(info.name, [data])
            return digest.digest()
        writer = self._target.writer(info.name)
        try:
            for offset, data in _pieces(self._source, info):
                digest.update(data)
                writer.write_at(offset, data)
            writer.commit()
        finally:
            writer.discard()
        return digest.digest()


def _claim_store(target: Store, move_id: str) -> None:
    first = next(target.list(""), None)
    if first is None:
        target.put(f"{MARKS}{move_id}", [b"a move of Strongroom\n"])
        return
    try:
        target.size(f"{MARKS}{move_id}")
    except ObjectMissing as err:
        raise ConfigError(
            reason=f"The store to move into is not empty: it has {first.name!r}. Give an empty one; nothing was "
            "changed."
        ) from err


def _remove(target: Store, names: set[str]) -> int:
    """What an earlier run copied and the old store has no more."""
    for name in sorted(names):
        target.delete(name)
    return len(names)


def _prove_listing(source: Store, target: Store) -> None:
    old = [info for info in source.list("") if not info.name.startswith(MARKS)]
    new = [info for info in target.list("") if not info.name.startswith(MARKS)]
    if old != new:
        differ = sorted({info.name for info in set(old) ^ set(new)})
        raise Corrupt(reason=f"the two stores list different objects, {differ[0]} first; run the command again")


def _digest(store: Store, info: ObjectInfo) -> bytes:
    digest = blake3()
    for _, data in _pieces(store, info):
        digest.update(data)
    return digest.digest()


def _pieces(store: Store, info: ObjectInfo) -> Iterator[tuple[int, bytes]]:
    for offset in range(0, info.size, PIECE_BYTES):
        yield offset, store.read(info.name, offset, min(PIECE_BYTES, info.size - offset))
