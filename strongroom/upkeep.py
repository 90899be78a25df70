"""Work on an installation whose server is stopped: schema, keys, and rows that were lost."""

import asyncio
from pathlib import Path

from strongroom.base.clock import SystemClock
from strongroom.base.errors import ConfigError
from strongroom.config import Settings
from strongroom.control import migrate as schema
from strongroom.control.accounts import Accounts
from strongroom.control.db import Database
from strongroom.control.passwords import Passwords
from strongroom.control.rebuilding import restore_rows
from strongroom.control.tokens import Ring
from strongroom.engine import MasterKey
from strongroom.engine.catalogue import find_domains
from strongroom.engine.key_files import open_domain, vault_key_text
from strongroom.engine.pool import Pool
from strongroom.engine.store.open import open_store
from strongroom.operations import rotation, trace
from strongroom.operations.rebuild import Rebuilt, rebuild_rows
from strongroom.state import (
    EXPORT_MARK,
    configure_logging,
    load_master_key,
    prepare_state,
    require_no_rotation,
    running_database,
    state_lock,
    write_credentials,
    write_new,
)


def migrate(settings: Settings) -> int:
    """Bring the database to this version's schema."""
    configure_logging(settings)
    prepare_state(settings)
    with state_lock(settings), running_database(settings) as url:
        schema.upgrade(url)
    return 0


def export_key(settings: Settings, out_path: Path) -> int:
    """Copy the master key into a new file (0600) that is to be kept elsewhere, and note that it was done."""
    key = MasterKey.load(settings.master_key_file)
    _export(out_path, settings.master_key_file.read_bytes())
    mark = settings.state_dir / EXPORT_MARK
    mark.unlink(missing_ok=True)
    write_new(mark, key.key_id.hex().encode())
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
        (settings.state_dir / EXPORT_MARK).unlink(missing_ok=True)  # before: a warning too many costs nothing
        return await rotation.rotate(database, open_store(settings.store_url, settings.s3), settings.master_key_file)


def forget_old_keys(settings: Settings) -> int:
    """Remove what earlier master keys open; gives the number of wraps. Refused until the present key was exported."""
    configure_logging(settings)
    prepare_state(settings)
    with state_lock(settings):
        require_no_rotation(settings)
        mark = settings.state_dir / EXPORT_MARK
        if not mark.exists() or mark.read_text() != MasterKey.load(settings.master_key_file).key_id.hex():
            raise ConfigError(
                reason="The present master key was never exported, and after this no other one opens the store. "
                "Run `strongroom export-key FILE` first and keep the file on another machine."
            )
        return rotation.drop_old(open_store(settings.store_url, settings.s3), settings.master_key_file)


def rebuild(settings: Settings, *, registrations: bool) -> Rebuilt:
    """Make the rows of a lost database again from the store (operations/rebuild.py). The server is not running."""
    configure_logging(settings)
    prepare_state(settings)
    if not settings.master_key_file.exists():
        raise ConfigError(
            reason=f"Put the file that `strongroom export-key` wrote at {settings.master_key_file} (mode 0600) first."
        )
    with state_lock(settings):
        require_no_rotation(settings)
        with running_database(settings) as url:
            schema.upgrade(url)
            return asyncio.run(_rebuild(settings, url, registrations))


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
            return await rebuild_rows(
                store,
                master,
                pool,
                lambda vault: restore_rows(database, vault, clock.now(), registrations=registrations),
            )
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
