"""The story of the catalogue's copies in the store, and of a database that is made again from the newest of them.

    copy     1 one snapshot of all tables, while the service works on; one process at a time
             2 parts into the store, table by table; then the head, which makes them a copy
             3 the newest few stay, older ones go

    restore  0 the database is empty, nobody else works on it; the store and the master key are all there is
             1 find   the newest copy that opens and is whole; what is wrong with newer ones is told
             2 prove  every part of it is opened once, before anything is written
             3 load   schema of the copy's time; one transaction with all tables; then the schema of today
             4 keys   copies of wrapped keys as the store has them: a vault that was shredded stays shredded
             5 gone   restore points whose root is not in the store any more are put in error
             6 newer  those made since come from the store, as in a rebuild (rebuild.py)

Death in 1 to 3 leaves an empty database; after that one whose copy was loaded: `rebuild` goes on with 4 to 6, which do
nothing a second time.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from strongroom import __version__
from strongroom.base.clock import Clock
from strongroom.base.errors import (
    ConfigError,
    Corrupt,
    FormatUnknown,
    KeyWrong,
    ObjectMissing,
    StrongroomError,
    WorkerStops,
)
from strongroom.control import migrate as schema
from strongroom.control import self_rows
from strongroom.control.db import Database
from strongroom.control.rebuilding import LostVault, RowsMade, restore_rows
from strongroom.control.self_rows import KnownRoot
from strongroom.control.table_copies import Counted, Loading, Snapshot, Table, load, snapshot
from strongroom.engine import MasterKey
from strongroom.engine.catalogue import find_domains, is_own_domain, own_domain_id
from strongroom.engine.open import load_wraps
from strongroom.engine.self_copies import SelfCopy, TableCopy, drop_copies, list_copies, read_table, write_copy
from strongroom.engine.store.base import Buffer, Store
from strongroom.operations import measures, trace
from strongroom.operations.job import Tools
from strongroom.operations.watched_store import WatchedStore

log = structlog.get_logger("self_backup")


@dataclass(frozen=True, kw_only=True)
class SelfBackups:
    """How often a worker copies the database into the store (0: never), and how many copies are kept."""

    every: timedelta = timedelta(0)
    keep: int = 7


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A copy that was put back. skipped: (number, sentence) of newer ones that are of no use."""

    copy: SelfCopy
    skipped: tuple[tuple[int, str], ...] = ()


class _Tables:
    """The tables of a snapshot as the engine takes them. stopping: asked between pieces whether the process ends."""

    def __init__(self, taken: Snapshot, stopping: Callable[[], bool]) -> None:
        self._taken = taken
        self._stopping = stopping

    def __iter__(self) -> Iterator[tuple[TableCopy, Iterable[Buffer]]]:
        for table in self._taken.tables(self_rows.LEFT_OUT):
            counted = self._taken.count(table)
            copied = TableCopy(name=table.name, columns=table.columns, rows=counted.rows, checksum=counted.checksum)
            yield copied, self._pieces(table)

    def _pieces(self, table: Table) -> Iterator[Buffer]:
        for piece in self._taken.rows(table):
            if self._stopping():
                raise WorkerStops
            yield piece


def copy_self(
    url: str,
    store: Store,
    master: MasterKey,
    *,
    keep: int,
    clock: Clock,
    stopping: Callable[[], bool] = lambda: False,
) -> SelfCopy | None:
    """Copy the catalogue into the store and drop all but the newest `keep` copies. None: another process is at it.

    The copy is durable on return. Raises StoreError, Unavailable; WorkerStops when `stopping` says so.
    """
    watched = WatchedStore(store)
    with trace.running("self_backup"), snapshot(url, blanked=self_rows.BLANKED) as taken:
        if not taken.alone(self_rows.ALONE):
            return None
        at = clock.now()
        tables = _Tables(taken, stopping)
        copy = write_copy(watched, master, tables, created_at=at, program=__version__, revision=taken.revision)
        drop_copies(watched, master, keep)
    return copy


async def copy_when_due(
    wanted: SelfBackups, database: Database, url: str, tools: Tools, stopping: Callable[[], bool]
) -> None:
    """One look of a worker: whether a copy is due, and then that copy, in a thread."""
    if not wanted.every or not await self_rows.is_due(database, wanted.every, tools.clock):
        return
    try:
        made = await asyncio.to_thread(
            copy_self, url, tools.store, tools.master, keep=wanted.keep, clock=tools.clock, stopping=stopping
        )
    except StrongroomError:
        measures.SELF_BACKUPS.labels("failed").inc()
        raise
    if made is not None:
        await self_rows.note_copied(database, made.created_at)
        measures.SELF_BACKUPS.labels("success").inc()
        log.info("copied the database into the store", copy=made.number, bytes=made.bytes, tables=len(made.tables))


def find_copy(store: Store, master: MasterKey, number: int | None) -> Restored | None:
    """The copy of that number, or the newest whole one, every part proven; None: the store has never had any.

    Raises ConfigError when there are copies and none of them can be used, or not the one that was named.
    """
    skipped: list[tuple[int, str]] = []
    listed = [each for each in list_copies(store, master) if number in (None, each.number)]
    for each in listed:
        if each.copy is None:
            skipped.append((each.number, each.reason))
            continue
        try:
            for table in each.copy.tables:
                for _ in read_table(store, master, each.copy, table.name):
                    pass
        except (Corrupt, ObjectMissing, KeyWrong, FormatUnknown) as err:
            skipped.append((each.number, str(err)))
            continue
        return Restored(copy=each.copy, skipped=tuple(skipped))
    if number is not None or skipped:
        raise ConfigError(
            reason=f"The store has no copy of the database with the number {number}."
            if number is not None and not skipped
            else "No copy of the database in the store can be used with this master key.",
            detail="; ".join(f"{found}: {reason}" for found, reason in skipped[:10]),
        )
    return None


def load_copy(url: str, store: Store, master: MasterKey, copy: SelfCopy) -> None:
    """Put the rows of a copy into an empty database, all or none, and bring it to today's schema."""
    with trace.running("self_restore"):
        trace.point("database")
        schema.upgrade(url, copy.revision)
        trace.point("database")
        tables = [_loading(store, master, copy, table) for table in copy.tables]
        load(url, tables, after=lambda conn: self_rows.settle_loaded(conn, copy.number))
        trace.point("database")
        schema.upgrade(url)
        trace.point("database")


def _loading(store: Store, master: MasterKey, copy: SelfCopy, table: TableCopy) -> Loading:
    return Loading(
        table=Table(name=table.name, columns=table.columns),
        counted=Counted(rows=table.rows, checksum=table.checksum),
        rows=read_table(store, master, copy, table.name),
    )


async def settle_with_store(database: Database, store: Store, now: datetime) -> Mapping[str, KnownRoot]:
    """Steps 4 and 5. Gives what is gone, by the id of the backup: it may be found elsewhere (`save_newer`)."""
    for project_id, vault_id in await self_rows.vaults_with_keys(database):
        await self_rows.fill_keys(database, project_id, vault_id, _wraps(store, f"vaults/{project_id}/{vault_id}/"))
    gone = _without_root(store, await self_rows.known_roots(database))
    await self_rows.mark_gone(database, gone, now)
    return {each.backup_id: each for each in gone}


async def save_newer(
    database: Database, vault: LostVault, gone: Mapping[str, KnownRoot], now: datetime, *, registrations: bool
) -> RowsMade:
    """Step 6 for one vault: rows of what the copy does not know, or knows in another place than it is now."""
    moved = [gone[backup.id] for backup in vault.backups if backup.id in gone]
    await self_rows.forget(database, moved)
    return await restore_rows(database, vault, now, registrations=registrations)


def _wraps(store: Store, prefix: str) -> dict[str | None, bytes]:
    """The newest wrap of each domain below the place of a vault."""
    found: dict[str | None, bytes] = {}
    for place in find_domains(store, prefix):
        if place.prefix == prefix and "keys" in place.objects:
            below = f"{prefix}domains/{place.id.hex()}/"
            found[None if is_own_domain(store, place) else place.id.hex()] = load_wraps(store, below)[0][1]
    return found


def _without_root(store: Store, known: Iterable[KnownRoot]) -> list[KnownRoot]:
    """Those whose root is not there: one LIST a domain."""
    there: dict[tuple[str, str, str | None], set[str]] = {}
    gone = []
    for each in known:
        place = (each.project_id, each.vault_id, each.domain_id)
        if place not in there:
            there[place] = _root_names(store, f"vaults/{each.project_id}/{each.vault_id}/", each.domain_id)
        if each.root not in there[place]:
            gone.append(each)
    return gone


def _root_names(store: Store, prefix: str, domain_id: str | None) -> set[str]:
    try:
        domain = domain_id or own_domain_id(store, prefix)
    except ObjectMissing:
        return set()
    return {info.name.rpartition("/")[2] for info in store.list(f"{prefix}domains/{domain}/roots/")}
