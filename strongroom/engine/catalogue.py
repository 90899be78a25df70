"""What a store holds, from its objects alone: the domains in it, and the restore points of each.

    find_domains   one LIST of the store: <prefix>domains/<domain id>/...
    list_points    every root of a domain with its labels, and with `check` whether all its chunks are there

Of the roots of one backup the highest complete generation is the backup (RULINGS 7); the others are listed with the
reason why they are not. A root that does not open is listed too, by its name. Whether the chunks are what they were is
a question for verify.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from strongroom.base.errors import Corrupt, ObjectMissing
from strongroom.base.streams import Monitor, SilentMonitor
from strongroom.engine.chunker import ID_BYTES, KEY_BYTES
from strongroom.engine.mark import Marks, root_ids
from strongroom.engine.model import Labels, Root, StreamKind
from strongroom.engine.repository import Repository, Session
from strongroom.engine.roots import parse_root_name
from strongroom.engine.store.base import Store
from strongroom.engine.usage import Usage

_DOMAIN = re.compile(r"((?:[^/]+/)*?)domains/([0-9a-f]{32})/(keys|packs|roots|index|labels|digests|checks)/[^/]+")

State = Literal["complete", "incomplete", "unreadable", "unchecked"]


@dataclass(frozen=True, kw_only=True)
class DomainPlace:
    """One domain in a store.

    prefix   of whom it belongs to, empty or with a slash at the end: `vaults/<project>/<vault>/`
    objects  by kind of object: how many        bytes  of all of them
    """

    prefix: str
    id: bytes
    objects: Mapping[str, int]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """One root.

    state       unreadable: the root does not open, and what follows `reason` is unknown
                incomplete: chunks are missing, or its metadata does not read        unchecked: nobody looked
    reason      why it is not complete, or why another generation of the backup counts; "" for a backup to rely on
    counts      this is the generation that is the backup: no higher one is complete
    size        bytes of the disk, or the sum of the files
    missing     number of chunks that no pack in the store holds
    """

    name: str
    backup_id: str
    generation: int
    state: State
    reason: str = ""
    counts: bool = False
    kind: StreamKind = "tree"
    created_at: datetime | None = None
    size: int = 0
    entries: int = 0
    bytes_stored: int = 0
    missing: int = 0
    labels: Labels = field(default_factory=dict)


def find_domains(store: Store, prefix: str = "") -> list[DomainPlace]:
    """Every domain below `prefix`, by place. One LIST, so it takes as long as the store is large."""
    places: dict[tuple[str, str], tuple[dict[str, int], list[int]]] = {}
    for info in store.list(prefix):
        found = _DOMAIN.fullmatch(info.name)
        if found:
            objects, total = places.setdefault((found[1], found[2]), ({}, [0]))
            objects[found[3]] = objects.get(found[3], 0) + 1
            total[0] += info.size
    return [
        DomainPlace(prefix=where, id=bytes.fromhex(domain), objects=objects, bytes=total[0])
        for (where, domain), (objects, total) in sorted(places.items())
    ]


def own_domain_id(store: Store, prefix: str) -> str:
    """In hex, of the vault at `prefix` (with a slash at the end). Raises ObjectMissing for one that has none yet."""
    return store.read(f"{prefix}domain").decode(errors="replace")


def is_own_domain(store: Store, place: DomainPlace) -> bool:
    """Whether it is the vault's own, and did not come from elsewhere (RULINGS 11)."""
    try:
        return own_domain_id(store, place.prefix) == place.id.hex()
    except ObjectMissing:
        return False


def list_points(
    repository: Repository, *, check: bool, only: Collection[str] | None = None, monitor: Monitor | None = None
) -> list[Point]:
    """Every root, or those named, oldest first, the unreadable ones last. `check` needs an index that loads.

    Unchecked, every root that opens is taken for complete when the generation that counts is chosen. Raises StoreError,
    IndexIncomplete, and what `monitor` raises.
    """
    monitor = monitor or SilentMonitor()
    names = [name for name in repository.root_names() if only is None or name in only]
    numbers = repository.label_numbers() if names else {}
    points = [_point(repository, name, numbers) for name in sorted(names)]
    if check:
        points = _checked(repository, points, monitor)
    points = _with_counts(points)
    return sorted(points, key=lambda point: (point.created_at is None, point.created_at, point.name))


def _point(repository: Repository, name: str, numbers: Mapping[str, int]) -> Point:
    parsed = parse_root_name(name)
    assert parsed is not None  # root_names gives no others
    backup_id, generation = parsed
    try:
        root = repository.load_root(name)
    except (Corrupt, ObjectMissing) as err:
        return Point(name=name, backup_id=backup_id, generation=generation, state="unreadable", reason=str(err))
    labels, reason = root.labels, ""
    try:
        labels = repository.load_labels(root, numbers.get(backup_id, 0))
    except (Corrupt, ObjectMissing) as err:
        reason = f"its newest labels do not read, those of its first hour are shown: {err}"
    return Point(
        name=name,
        backup_id=backup_id,
        generation=generation,
        state="unchecked",
        reason=reason,
        kind=root.kind,
        created_at=root.created_at,
        size=root.size,
        entries=root.report.entries,
        bytes_stored=root.report.bytes_stored,
        labels=labels,
    )


def _checked(repository: Repository, points: list[Point], monitor: Monitor) -> list[Point]:
    """With `complete` or `incomplete` in place of `unchecked`."""
    with repository.session("verify") as session:
        # Suspects and fossils still hold their chunks; only what is not there is missing.
        absent = repository.bad_packs(session.index.tables)
        session.index.bad = absent
        readable = [point.name for point in points if point.state == "unchecked"]
        lost = _lost(session, absent, (repository.load_root(name) for name in readable), monitor)
        if lost is not None and not lost:
            return [replace(p, state="complete") if p.state == "unchecked" else p for p in points]
        return [
            _judged(session, point, repository.load_root(point.name), lost or set(), monitor)
            if point.state == "unchecked"
            else point
            for point in points
        ]


def _lost(session: Session, absent: frozenset[bytes], roots: Iterable[Root], monitor: Monitor) -> set[bytes] | None:
    """Keys of needed chunks that no pack in the store holds. Empty: every root is whole. Each record is read once."""
    marks, unread = Marks(), False
    for root in roots:
        try:
            marks.add(session, root, monitor)
        except (Corrupt, ObjectMissing):
            unread = True  # of which roots is found out one by one: they share pages
    usage = Usage(session.index, marks)
    lost = usage.unknown.as_bytes()
    for pack in usage.packs:
        if pack in absent:
            lost |= usage.needed_keys(pack)
    return lost or (None if unread else set())


def _judged(session: Session, point: Point, root: Root, lost: set[bytes], monitor: Monitor) -> Point:
    missing: set[bytes] = set()
    try:
        for ids in root_ids(session, root, monitor):
            keys = {ids[at : at + KEY_BYTES] for at in range(0, len(ids), ID_BYTES)}
            missing |= keys & lost
    except (Corrupt, ObjectMissing) as err:
        return replace(point, state="incomplete", reason=f"its metadata does not read: {err}", missing=len(missing))
    if missing:
        reason = f"{len(missing)} chunks are in no pack of the store"
        return replace(point, state="incomplete", reason=reason, missing=len(missing))
    return replace(point, state="complete")


def _with_counts(points: list[Point]) -> list[Point]:
    """Mark the highest generation of each backup that is complete, or that nobody checked."""
    best: dict[str, int] = {}
    for point in points:
        if point.state in ("complete", "unchecked"):
            best[point.backup_id] = max(best.get(point.backup_id, point.generation), point.generation)
    marked = []
    for point in points:
        counted = best.get(point.backup_id)
        if point.state in ("complete", "unchecked") and point.generation == counted:
            marked.append(replace(point, counts=True))
        elif point.state in ("complete", "unchecked"):
            marked.append(replace(point, reason=point.reason or f"generation {counted} took its place"))
        else:
            marked.append(point)
    return marked
