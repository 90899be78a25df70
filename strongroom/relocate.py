"""Moving a stopped installation to another database, another store, or both (operations/relocation.py)."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from strongroom.base.clock import SystemClock
from strongroom.base.errors import ConfigError
from strongroom.base.ids import new_id
from strongroom.config import Settings
from strongroom.control.db import Database
from strongroom.control.relocation import keep_promises_anew, release_database
from strongroom.engine.store.open import open_store
from strongroom.operations import relocation, trace
from strongroom.operations.relocation import MovedObjects, MovedRows
from strongroom.state import (
    Move,
    configure_logging,
    find_move,
    forget_move,
    named_database,
    prepare_state,
    running_database,
    save_move,
    state_lock,
    without_password,
)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What a move did. settings: what is to be changed, by name. before: an earlier run had ended it."""

    settings: Mapping[str, str]
    rows: MovedRows | None = None
    objects: MovedObjects | None = None
    before: bool = False
    places: list[str] = field(default_factory=list)


def relocate(
    settings: Settings, *, to_database: str | None, to_store: str | None, tell: Callable[[str], None]
) -> Moved:
    """Move, or go on with the move that was begun. Raises ConfigError, Corrupt, StoreError, Unavailable."""
    configure_logging(settings)
    prepare_state(settings)
    if settings.kill_at is not None:
        trace.arm(settings.kill_at)
    with state_lock(settings):
        move = _begin(settings, to_database, to_store)
        wanted = {
            name: value
            for name, value in (("database_url", move.to_database), ("store_url", move.to_store))
            if value is not None
        }
        if move.done:
            return Moved(settings=wanted, before=True)
        with trace.running("migrate"), running_database(settings) as url:
            done = _carry(settings, move, url, to_database, to_store, tell)
            save_move(settings, replace(move, done=True))
            return replace(done, settings=wanted)


def _begin(settings: Settings, to_database: str | None, to_store: str | None) -> Move:
    """The move to these places: that of an earlier run, else a new one, which is noted before anything is written."""
    wanted = Move(
        id=new_id(),
        from_database=named_database(settings),
        to_database=without_password(to_database) if to_database is not None else None,
        from_store=settings.store_url,
        to_store=to_store,
    )
    for old, new in ((wanted.from_database, wanted.to_database), (wanted.from_store, wanted.to_store)):
        if old == new:
            raise ConfigError(reason=f"This installation is at {new} already. Name another place.")
    begun = find_move(settings)
    if begun is not None and replace(wanted, id=begun.id, done=begun.done) == begun:
        return begun
    if begun is not None and not begun.done:
        raise ConfigError(
            reason=f"A move to {', '.join(filter(None, (begun.to_database, begun.to_store)))} has begun and not ended. "
            f"Finish it, or give it up: remove {settings.state_dir / 'migrate.json'} and what it wrote there."
        )
    save_move(settings, wanted)
    return wanted


def _carry(
    settings: Settings,
    move: Move,
    url: str,
    to_database: str | None,
    to_store: str | None,
    tell: Callable[[str], None],
) -> Moved:
    target = open_store(to_store, settings.s3) if to_store is not None else None
    if target is not None:
        target.check()
    try:
        relocation.claim(move.id, to_database=to_database, to_store=target)
    except ConfigError:
        forget_move(settings)  # a place that is not empty never was this move's
        raise
    rows = objects = None
    if to_database is not None:
        tell("moving the database")
        rows = relocation.move_rows(url, to_database, move.id)
    if target is not None:
        tell("moving the store")
        objects = relocation.move_objects(open_store(settings.store_url, settings.s3), target, tell)
    if to_database is not None and rows is not None:
        relocation.prove_rows(url, to_database, rows)
        release_database(to_database)
    if target is not None:
        asyncio.run(_promise_anew(to_database or url))
    return Moved(settings={}, rows=rows, objects=objects)


async def _promise_anew(url: str) -> None:
    """The new store hears of what locked vaults promised."""
    async with await Database.open(url, max_size=1) as database:
        await keep_promises_anew(database, SystemClock())
