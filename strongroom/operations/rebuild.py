"""The story of an installation whose database is lost. The server is stopped; the store and the master key are there.

    1 find    every domain in the store: vaults/<project>/<vault>/domains/<domain>, of each vault its own one first
    2 index   what is lost of it is rebuilt from packs
    3 judge   every root: complete or not; of each backup the highest complete generation counts (RULINGS 7)
    4 rows    one transaction a vault: project, vault, restore points, backups, copies of wrapped keys

Death anywhere: run it again; rows that are there stay. What is not in the store cannot come back this way: users, their
keys and passwords, names of projects, sizes and tags of vaults, names that were given after a backup, logs of
operations. A copy of the database in the store has them (self_backup.py), and this brings what is newer than it. A
backup of which no generation is complete gets a row in `error`, so that no prune takes its root away unasked.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import groupby
from typing import Any

from strongroom.base.errors import Corrupt, FormatUnknown, KeyWrong, ObjectMissing
from strongroom.base.ids import is_hex_id, is_id
from strongroom.base.units import GIB
from strongroom.control.rebuilding import PROTECTABLE_TYPES, LostBackup, LostVault, RowsMade
from strongroom.engine import MasterKey
from strongroom.engine.catalogue import DomainPlace, Point, find_domains, is_own_domain, list_points
from strongroom.engine.open import load_wraps, open_repository
from strongroom.engine.pool import Pool
from strongroom.engine.prune import live_bytes
from strongroom.engine.rebuild import rebuild
from strongroom.engine.repository import Repository
from strongroom.engine.store.base import Store
from strongroom.operations.lost_points import NAME_CHARS_MAX, lost_backups, text_label

ROOM_GB = 100  # a vault's size is not in the store: what it uses, and room to go on
SIZE_GB_MAX = 10485760

Save = Callable[[LostVault], Coroutine[Any, Any, RowsMade]]


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What a rebuild did.

    made      rows                         indexes   vaults whose index had to be rebuilt
    gone      restore points that a copy of the database knows and the store does not have any more
    problems  (place or root, sentence): what could not be brought back, or only in part
    """

    made: RowsMade = field(default_factory=RowsMade)
    gone: int = 0
    indexes: int = 0
    problems: tuple[tuple[str, str], ...] = ()


async def rebuild_rows(store: Store, master: MasterKey, pool: Pool, save: Save) -> Rebuilt:
    """Everything in the store, vault by vault. `save` writes the rows of one vault."""
    done, taken = Rebuilt(), dict[str, str]()
    for _, places in groupby(find_domains(store, "vaults/"), key=lambda place: place.prefix):
        vaults = []
        for place in sorted(places, key=lambda place: not is_own_domain(store, place)):
            try:
                vault, indexed, problems = _read(store, place, master, pool)
            except (KeyWrong, FormatUnknown, Corrupt, ObjectMissing) as err:
                done = replace(done, problems=(*done.problems, (place.prefix, str(err))))
                continue
            vaults += [vault] if vault is not None else []
            done = replace(done, indexes=done.indexes + indexed, problems=(*done.problems, *problems))
        if vaults:
            vault, problems = _once(reduce(_joined, vaults), taken)
            done = replace(done, made=done.made.plus(await save(vault)), problems=(*done.problems, *problems))
    return done


def _once(vault: LostVault, taken: dict[str, str]) -> tuple[LostVault, list[tuple[str, str]]]:
    """The vault without backups that an earlier one has: they were moving from one to the other. taken: id -> vault."""
    problems = [
        (
            f"vaults/{vault.project_id}/{vault.id}/",
            f"Backup {backup.id} lies in vault {taken[backup.id]} too; it is there.",
        )
        for backup in vault.backups
        if backup.id in taken
    ]
    backups = [backup for backup in vault.backups if backup.id not in taken]
    taken |= {backup.id: vault.id for backup in backups}
    return replace(vault, backups=backups), problems


def _joined(vault: LostVault, more: LostVault) -> LostVault:
    """The same vault with what it holds of another domain."""
    used = vault.used_bytes + more.used_bytes
    return replace(
        vault,
        size_gb=_size_gb(used),
        used_bytes=used,
        wrapped={**vault.wrapped, **more.wrapped},
        created_at=min(vault.created_at, more.created_at),
        backups=sorted([*vault.backups, *more.backups], key=lambda backup: backup.created_at),
    )


def _size_gb(used_bytes: int) -> int:
    return min(-(-used_bytes // GIB) + ROOM_GB, SIZE_GB_MAX)


def _read(
    store: Store, place: DomainPlace, master: MasterKey, pool: Pool
) -> tuple[LostVault | None, bool, list[tuple[str, str]]]:
    """(what the vault has of this domain, whether its index was rebuilt, problems). None: no point that reads."""
    parts = place.prefix.split("/")
    if len(parts) != 4 or not is_hex_id(parts[1]) or not is_id(parts[2]):
        return None, False, [(place.prefix, "This is not the place of a vault.")]
    domain_id = None if is_own_domain(store, place) else place.id.hex()
    repository = open_repository(store, place.prefix, master, domain_id=place.id, pool=pool)
    report = rebuild(repository)
    problems = [(f"{place.prefix}packs/{pack}", reason) for pack, reason in report.packs_damaged]
    points = list_points(repository, check=True)
    backups, why = lost_backups(repository, points, parts[1], parts[2], domain_id)
    problems += [(f"{place.prefix}{point.name}", reason) for point, reason in why]
    if not backups:
        return None, report.list_written, problems
    return _vault(repository, parts[1], parts[2], backups), report.list_written, problems


def _vault(
    repository: Repository, project_id: str, vault_id: str, backups: list[tuple[LostBackup, Point]]
) -> LostVault:
    newest, point = max((pair for pair in backups if pair[0].parent_id is None), key=lambda pair: pair[0].created_at)
    used = live_bytes(repository, [backup.root for backup, _ in backups if backup.status == "available"])
    name = text_label(point.labels.get("vault_name"), NAME_CHARS_MAX) or f"recovered-{vault_id[-8:]}"
    return LostVault(
        id=vault_id,
        project_id=project_id,
        name=name,
        object_type=PROTECTABLE_TYPES[newest.resource_type],
        size_gb=_size_gb(used),
        used_bytes=used,
        wrapped={newest.domain_id: load_wraps(repository.store, repository.prefix)[0][1]},
        created_at=min(backup.created_at for backup, _ in backups),
        backups=sorted((backup for backup, _ in backups), key=lambda backup: backup.created_at),
    )
