"""The story of a new master key. Nobody else works on this installation meanwhile: the caller holds the state lock.

    before   master.key wraps every domain and seals the secrets of access keys
    1 make   master.key.next, durable under its name only when it is whole
    2 wrap   every domain of the store gets a wrap by the new key; the old ones stay
    3 rows   one transaction: secrets sealed by the new key, copies of the wraps, the database is bound to the new key
    4 keep   master.key gets a second name, master.key.<its id>
    5 switch master.key.next is renamed to master.key

While master.key.next exists the server does not start, and the same command goes on where it was: death in 1 leaves a
temporary file, in 2 domains that open with both keys, after 3 a database that knows the new key, which is there.
Nothing that the old key opens is removed: `drop_old` is a command of its own, for when the new key is kept elsewhere.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from strongroom.base.errors import ConfigError
from strongroom.base.streams import SilentMonitor
from strongroom.control.db import Database
from strongroom.control.installation import find_master_key_id
from strongroom.control.key_rotation import adopt_master_key
from strongroom.control.tokens import Ring
from strongroom.engine.catalogue import DomainPlace, is_own_domain
from strongroom.engine.keys import MasterKey
from strongroom.engine.rotate import RotationReport, drop_wraps, find_closed, rewrap
from strongroom.engine.store.base import Store
from strongroom.operations import trace
from strongroom.operations.watched_store import WatchedStore

NEXT = ".next"  # after the name of the master key file


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """What a rotation did: ids of the keys in hex, domains that were wrapped, secrets that were sealed again."""

    old_key_id: str
    new_key_id: str
    old_file: Path
    domains: int
    secrets: int


def next_file(master_key_file: Path) -> Path:
    """The new key while a rotation is under way; absent otherwise."""
    return master_key_file.with_name(master_key_file.name + NEXT)


async def rotate(database: Database, store: Store, master_key_file: Path) -> Rotation:
    """Replace the master key. Raises ConfigError when a domain cannot be wrapped; what was done stays, harmless."""
    with trace.running("rotate"):
        try:
            return await _rotate(database, WatchedStore(store), master_key_file)
        except OSError as err:
            raise ConfigError(
                reason=f"The master key file {master_key_file} cannot be replaced: {err.strerror}. "
                "Make its folder writable, then run the command again.",
                detail=str(err),
            ) from err


async def _rotate(database: Database, store: Store, master_key_file: Path) -> Rotation:
    old = MasterKey.load(master_key_file)
    if not next_file(master_key_file).exists():
        _require_all(find_closed(store, old))  # what cannot end must not begin
    new = _new_key(master_key_file)
    bound = await find_master_key_id(database)
    if bound not in (None, old.key_id.hex(), new.key_id.hex()):
        raise ConfigError(
            reason="The master key file is not the one this installation was made with. "
            "Put the exported key of this installation in its place, then rotate it."
        )
    report = rewrap(store, old, new, SilentMonitor())
    _require_all(report.failed)
    ring = Ring([file.read_bytes() for file in (next_file(master_key_file), master_key_file)])
    trace.point("database")
    secrets = await adopt_master_key(database, new.key_id.hex(), ring, _copies(store, report))
    trace.point("database")
    kept = master_key_file.with_name(f"{master_key_file.name}.{old.key_id.hex()}")
    with contextlib.suppress(FileExistsError):
        os.link(master_key_file, kept)
    _sync(master_key_file.parent)
    next_file(master_key_file).rename(master_key_file)
    _sync(master_key_file.parent)
    return Rotation(
        old_key_id=old.key_id.hex(),
        new_key_id=new.key_id.hex(),
        old_file=kept,
        domains=len(report.wrapped),
        secrets=secrets,
    )


def drop_old(store: Store, master_key_file: Path) -> int:
    """Remove every wrap by another master key; gives their number. The old keys open nothing of this store any more."""
    report = drop_wraps(store, MasterKey.load(master_key_file), SilentMonitor())
    _require_all(report.failed)
    return report.removed


def _new_key(master_key_file: Path) -> MasterKey:
    """That of an earlier, unfinished run, else a new one: whole and durable before it has its name."""
    path = next_file(master_key_file)
    if path.exists():
        return MasterKey.load(path)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    MasterKey.create(temporary)
    temporary.rename(path)
    _sync(path.parent)
    return MasterKey.load(path)


def _copies(store: Store, report: RotationReport) -> dict[tuple[str, str, str | None], bytes]:
    """By (project, vault, domain), of the places that vaults have; the vault's own domain is None."""
    found: dict[tuple[str, str, str | None], bytes] = {}
    for place, data in report.wrapped:
        parts = place.prefix.split("/")
        if len(parts) == 4 and parts[0] == "vaults":
            own = is_own_domain(store, place)
            found[parts[1], parts[2], None if own else place.id.hex()] = data
    return found


def _require_all(closed: Sequence[tuple[DomainPlace, str]]) -> None:
    if closed:
        raise ConfigError(
            reason=f"{len(closed)} domains in the store do not open with the master key, so nothing was switched. "
            "Move what does not belong to this installation out of the store, then run the command again.",
            detail="; ".join(f"{_name(place)}: {reason}" for place, reason in closed[:10]),
        )


def _name(place: DomainPlace) -> str:
    return f"{place.prefix}domains/{place.id.hex()}"


def _sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
