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

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
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

NAME_CHARS_MAX = 64
RESOURCE_NAME_CHARS_MAX = 255
ROOM_GB = 100  # a vault's size is not in the store: what it uses, and room to go on
SIZE_GB_MAX = 10485760
COUNTS = ("bytes_total", "bytes_read", "bytes_new", "bytes_stored", "entries", "folders", "changed_while_read_count",
          "skipped_count", "vanished")  # fmt: skip

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
    backups = []
    for point in one_a_backup(points):
        backup = lost_backup(repository, point, parts[1], parts[2], domain_id)
        if point.state != "complete" or backup is None:
            reason = point.reason or "Its labels are not those of a backup of this vault."
            problems.append((f"{place.prefix}{point.name}", reason))
        if backup is not None:
            backups.append((backup, point))
    if not backups:
        return None, report.list_written, problems
    return _vault(repository, parts[1], parts[2], backups), report.list_written, problems


def one_a_backup(points: list[Point]) -> list[Point]:
    """The generation that counts; the highest one where none does."""
    best: dict[str, Point] = {}
    for point in sorted(points, key=lambda point: (point.counts, point.generation)):
        best[point.backup_id] = point
    return [point for point in points if best[point.backup_id] is point]


def _vault(
    repository: Repository, project_id: str, vault_id: str, backups: list[tuple[LostBackup, Point]]
) -> LostVault:
    newest, point = max(backups, key=lambda pair: pair[0].created_at)
    used = live_bytes(repository, [backup.root for backup, _ in backups if backup.status == "available"])
    name = _text(point.labels.get("vault_name"), NAME_CHARS_MAX) or f"recovered-{vault_id[:8]}"
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


def lost_backup(
    repository: Repository, point: Point, project_id: str, vault_id: str, domain_id: str | None
) -> LostBackup | None:
    """The row that a root gives. None when it does not open, or its labels are not those of a backup in this place.

    What came from another vault got labels of this one, with its id here as `backup`: the root has that of its origin.
    """
    labels = point.labels
    backup_id = _text(labels.get("backup"), 36) or point.backup_id
    checkpoint, resource = (_text(labels.get(key), 36) for key in ("checkpoint", "resource"))
    kind, path, token = labels.get("resource_type"), labels.get("path"), labels.get("token")
    created_at = _time(labels.get("created_at")) or point.created_at
    own = labels.get("project") == project_id and labels.get("vault") == vault_id
    if not own or not is_id(backup_id) or not is_id(checkpoint) or not is_id(resource) or created_at is None:
        return None
    if kind not in PROTECTABLE_TYPES or not isinstance(path, bytes) or not isinstance(token, bytes):
        return None
    options = labels.get("options")
    return LostBackup(
        id=backup_id,
        checkpoint_id=checkpoint,
        status="available" if point.counts else "error",
        root=point.name,
        domain_id=domain_id,
        name=_text(labels.get("name"), NAME_CHARS_MAX) or f"recovered-{backup_id[:8]}",
        resource_id=resource,
        resource_type=str(kind),
        resource_name=_text(labels.get("resource_name"), RESOURCE_NAME_CHARS_MAX) or resource,
        path=path,
        options=options if isinstance(options, Mapping) else {},
        size_bytes=point.size,
        stored_bytes=point.bytes_stored,
        incremental=repository.load_root(point.name).parent is not None,
        auto_trigger=labels.get("trigger") == "policy",
        token=token,
        report=_report(repository, point) | {"rebuilt": True, "kind": point.kind},
        created_at=created_at,
        expired_at=_time(labels.get("expires_at")),
        promised_until=_time(labels.get("lock_until")),
        image_type="replication" if labels.get("image_type") == "replication" else "backup",
    )


def _report(repository: Repository, point: Point) -> dict[str, Any]:
    found = asdict(repository.load_root(point.name).report)
    return {name: found[name] for name in COUNTS} | {"full_reason": found["full_reason"]}


def _text(value: object, chars_max: int) -> str:
    """A label that is a text as a row may hold it, else ''."""
    return value if isinstance(value, str) and len(value) <= chars_max and "\0" not in value else ""


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else None
    except ValueError:
        return None
