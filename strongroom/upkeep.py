"""Work on an installation whose server is stopped: schema, keys, and rows that were lost."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from strongroom.base.clock import SystemClock
from strongroom.base.errors import ConfigError, Unavailable
from strongroom.config import Settings
from strongroom.control import migrate as schema
from strongroom.control import programs, self_rows
from strongroom.control.accounts import Accounts
from strongroom.control.db import Database
from strongroom.control.embedded_postgres import EmbeddedPostgres
from strongroom.control.installation import find_master_key_id
from strongroom.control.passwords import Passwords
from strongroom.control.self_rows import KnownRoot
from strongroom.control.table_copies import holds_nobody
from strongroom.control.tokens import Ring
from strongroom.engine import MasterKey
from strongroom.engine.catalogue import find_domains
from strongroom.engine.key_files import open_domain, vault_key_text
from strongroom.engine.pool import Pool
from strongroom.engine.self_copies import Listed, SelfCopy, drop_unreadable, list_copies
from strongroom.engine.store.base import Store
from strongroom.engine.store.open import open_store
from strongroom.operations import rotation, trace
from strongroom.operations.rebuild import Rebuilt, rebuild_rows
from strongroom.operations.self_backup import Restored, copy_self, find_copy, load_copy, save_newer, settle_with_store
from strongroom.state import (
    configure_logging,
    export_mark,
    load_master_key,
    prepare_state,
    require_settled,
    running_database,
    state_lock,
    write_credentials,
    write_new,
)


def migrate(settings: Settings) -> int:
    """Bring the database to this version's schema."""
    configure_logging(settings)
    prepare_state(settings)
    many = settings.database_url is not None
    with state_lock(settings, shared=many), running_database(settings) as url:
        schema.upgrade(settings.database_direct_url or url, alone=not many)
    return 0


def export_key(settings: Settings, out_path: Path) -> int:
    """Copy the master key into a new file (0600) that is to be kept elsewhere, and note that it was done."""
    key = MasterKey.load(settings.master_key_file)
    _export(out_path, settings.master_key_file.read_bytes())
    mark = export_mark(settings)
    try:
        mark.unlink(missing_ok=True)
        write_new(mark, key.key_id.hex().encode())
    except OSError as err:
        raise ConfigError(
            reason=f"{out_path} is written and complete, but {mark} is not, so servers go on warning: {err.strerror}. "
            "Run this as the owner of the key's folder."
        ) from err
    return 0


def export_vault_key(settings: Settings, out_path: Path, vault_id: str) -> int:
    """Write the keys of one vault's domains into a new file (0600): for who shall read this vault and no other."""
    store = open_store(settings.store_url, settings.s3)
    key = MasterKey.load(settings.master_key_file)
    places = [place for place in find_domains(store, "vaults/") if place.prefix.endswith(f"/{vault_id}/")]
    if not places:
        raise ConfigError(reason=f"The store holds nothing of a vault with the id {vault_id}.")
    domains = [open_domain(store, place.prefix, place.id, key).domain for place in places]
    _export(out_path, vault_key_text(domains))
    return 0


def rotate_key(settings: Settings) -> rotation.Rotation:
    """Replace the master key (operations/rotation.py tells the story). The server is not running."""
    configure_logging(settings)
    prepare_state(settings)
    if settings.kill_at is not None:
        trace.arm(settings.kill_at)
    with state_lock(settings), running_database(settings) as url:
        schema.upgrade(url)
        return asyncio.run(_rotate_key(settings, url))


async def _rotate_key(settings: Settings, url: str) -> rotation.Rotation:
    async with await Database.open(url, max_size=2) as database:
        if settings.database_url is not None:  # one in the state folder is used by nobody else: its lock is ours
            await programs.require_none(database)
        export_mark(settings).unlink(missing_ok=True)  # before: a warning too many costs nothing
        return await rotation.rotate(database, open_store(settings.store_url, settings.s3), settings.master_key_file)


def forget_old_keys(settings: Settings) -> int:
    """Remove what earlier master keys open; gives the number of wraps. Refused until the present key was exported."""
    configure_logging(settings)
    prepare_state(settings)
    with state_lock(settings):
        require_settled(settings)
        mark = export_mark(settings)
        if not mark.exists() or mark.read_text() != MasterKey.load(settings.master_key_file).key_id.hex():
            raise ConfigError(
                reason="The present master key was never exported, and after this no other one opens the store. "
                "Run `strongroom export-key FILE` first and keep the file on another machine."
            )
        store = open_store(settings.store_url, settings.s3)
        removed = rotation.drop_old(store, settings.master_key_file)
        drop_unreadable(store, MasterKey.load(settings.master_key_file))  # copies of the database by earlier keys
        return removed


def backup_self(settings: Settings) -> SelfCopy:
    """Copy the database, sealed, into the store (operations/self_backup.py). The server may run or not."""
    configure_logging(settings)
    prepare_state(settings)
    if settings.kill_at is not None:
        trace.arm(settings.kill_at)
    require_settled(settings)
    master, store = MasterKey.load(settings.master_key_file), open_store(settings.store_url, settings.s3)
    with _database_at_work(settings) as url:
        asyncio.run(_require_own_key(url, master))
        copy = copy_self(url, store, master, keep=settings.self_backup_keep, clock=SystemClock())
        if copy is None:
            raise Unavailable(reason="The server is making a copy at this moment. Nothing is left to do.")
        asyncio.run(_note_copied(url, copy))
        return copy


def self_copies(settings: Settings) -> list[Listed]:
    """The copies of the database in the store, newest first, with the reason for those that are of no use."""
    return list_copies(open_store(settings.store_url, settings.s3), MasterKey.load(settings.master_key_file))


def restore_self(settings: Settings, *, number: int | None, registrations: bool) -> tuple[Restored, Rebuilt]:
    """Make an empty database what the newest copy in the store says, or that of `number`, and what came after it."""
    with _lost_database(settings) as (url, store, master):
        if not holds_nobody(url):
            raise ConfigError(
                reason="The database is not empty, and nothing in it is overwritten. Name another one, or an empty "
                "state folder; to bring in what the store has beyond it, run `strongroom rebuild`."
            )
        found = find_copy(store, master, number)
        if found is None:
            raise ConfigError(
                reason="The store holds no copy of the database. `strongroom rebuild` makes restore points and vaults "
                "again from the store alone."
            )
        load_copy(url, store, master, found.copy)
        return found, asyncio.run(_rebuild(settings, url, registrations))


def rebuild(settings: Settings, *, registrations: bool, with_copy: bool) -> tuple[Restored | None, Rebuilt]:
    """Make the rows of a lost database again from the store (operations/rebuild.py). The server is not running.

    with_copy: an empty database begins with the newest copy that the store has of it.
    """
    with _lost_database(settings) as (url, store, master):
        found = find_copy(store, master, None) if with_copy and holds_nobody(url) else None
        if found is not None:
            load_copy(url, store, master, found.copy)
        schema.upgrade(url)
        return found, asyncio.run(_rebuild(settings, url, registrations))


@contextmanager
def _lost_database(settings: Settings) -> Iterator[tuple[str, Store, MasterKey]]:
    """What a database is made again with: its URL, the store, the master key. The server is not running."""
    configure_logging(settings)
    prepare_state(settings)
    if settings.kill_at is not None:
        trace.arm(settings.kill_at)
    if not settings.master_key_file.exists():
        raise ConfigError(
            reason=f"Put the file that `strongroom export-key` wrote at {settings.master_key_file} (mode 0600) first."
        )
    with state_lock(settings):
        require_settled(settings)
        with running_database(settings) as url:
            yield url, open_store(settings.store_url, settings.s3), MasterKey.load(settings.master_key_file)


@contextmanager
def _database_at_work(settings: Settings) -> Iterator[str]:
    """URL of the database, whether a server of this machine has it or not."""
    url = settings.database_direct_url or settings.database_url
    if url is None:
        url = EmbeddedPostgres(settings.state_dir / "postgres", runtime_dir=settings.runtime_dir).running_url()
    if url is not None:
        yield url
        return
    with state_lock(settings), running_database(settings) as url:
        yield url


async def _require_own_key(url: str, master: MasterKey) -> None:
    async with await Database.open(url, max_size=1) as database:
        if await find_master_key_id(database) != master.key_id.hex():
            raise ConfigError(reason="The master key file is not the one this database was made with.")


async def _note_copied(url: str, copy: SelfCopy) -> None:
    async with await Database.open(url, max_size=1) as database:
        await self_rows.note_copied(database, copy.created_at)


async def _rebuild(settings: Settings, url: str, registrations: bool) -> Rebuilt:
    clock, passwords, pool = SystemClock(), Passwords(), Pool(budget_bytes=settings.worker_memory_bytes)
    async with await Database.open(url, max_size=2) as database:
        store = open_store(settings.store_url, settings.s3)
        master = await load_master_key(settings, database, store)
        ring = Ring([settings.master_key_file.read_bytes()])
        accounts = Accounts(database=database, ring=ring, passwords=passwords, clock=clock)
        endpoint = settings.endpoint or f"http://{settings.listen}"
        try:
            # First the operator's account: the projects that come back are given to it.
            await accounts.bootstrap(settings.region, lambda first: write_credentials(settings, endpoint, first))
            gone: Mapping[str, KnownRoot] = {}
            if await self_rows.is_loaded(database):
                gone = await settle_with_store(database, store, clock.now())
            done = await rebuild_rows(
                store,
                master,
                pool,
                lambda vault: save_newer(database, vault, gone, clock.now(), registrations=registrations),
            )
            await self_rows.note_settled(database)
            return replace(done, gone=len(gone))
        finally:
            pool.close()
            passwords.close()


def _export(out_path: Path, data: bytes) -> None:
    try:
        write_new(out_path, data)
    except FileExistsError as err:
        raise ConfigError(reason=f"{out_path} exists. Name a new file; nothing is overwritten.") from err
    except OSError as err:
        raise ConfigError(reason=f"{out_path} cannot be written: {err.strerror}.") from err
