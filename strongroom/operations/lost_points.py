"""What restore points say about themselves, as the rows they get when the database does not know them.

A root is a row. That of a machine names the roots of its disks (operations/machine_backup.py): it is put last, so a
disk whose machine has no root is of a backup that never was whole, and is no backup. The names are those of the roots;
what came from another vault has other ids in its rows, which its labels tell.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from strongroom.base.errors import Corrupt, EntryNotFound, ObjectMissing
from strongroom.base.ids import is_id
from strongroom.control.rebuilding import PROTECTABLE_TYPES, LostBackup
from strongroom.engine.browse import read_file
from strongroom.engine.catalogue import Point
from strongroom.engine.model import Labels
from strongroom.engine.repository import Repository
from strongroom.operations.machine_record import FACTS, FILE_BYTES_MAX, MACHINE, row_facts

NAME_CHARS_MAX = 64
RESOURCE_NAME_CHARS_MAX = 255
COUNTS = ("bytes_total", "bytes_read", "bytes_new", "bytes_stored", "entries", "folders", "changed_while_read_count",
          "skipped_count", "vanished")  # fmt: skip
NEVER_WHOLE = "It is of one disk of a server, and that backup of the server was never whole."


def lost_backups(
    repository: Repository, points: Sequence[Point], project_id: str, vault_id: str, domain_id: str | None
) -> tuple[list[tuple[LostBackup, Point]], list[tuple[Point, str]]]:
    """(rows of what is there, those of machines before their disks', and points with why they give none, or one in
    error)."""
    found: list[tuple[LostBackup, Point]] = []
    problems: list[tuple[Point, str]] = []
    chosen = one_a_backup(list(points))
    disks = {point.name for point in chosen if parent_of(point)}
    for point in chosen:
        if point.name in disks:
            continue
        backup = lost_backup(repository, point, project_id, vault_id, domain_id)
        if point.state != "complete" or backup is None:
            problems.append((point, point.reason or "Its labels are not those of a backup of this vault."))
        if backup is None:
            continue
        if backup.resource_type != MACHINE:
            found.append((backup, point))
            continue
        family, why = _family(repository, backup, point, points, domain_id)
        found += family
        problems += why
        disks -= {member.name for _, member in family}
    problems += [(point, NEVER_WHOLE) for point in chosen if point.name in disks]
    return found, problems


def _family(
    repository: Repository, machine: LostBackup, own: Point, points: Sequence[Point], domain_id: str | None
) -> tuple[list[tuple[LostBackup, Point]], list[tuple[Point, str]]]:
    """A machine's row and those of its disks. It is available when every disk is whole, else in error: the disks that
    are can be restored each by itself."""
    rows: list[tuple[LostBackup, Point]] = []
    problems: list[tuple[Point, str]] = []
    for id_ in names_of_disks(own.labels):
        point = _disk_point(points, id_, own)
        row = lost_backup(repository, point, *_place(own), domain_id) if point is not None else None
        if point is None or row is None:
            problems.append((own, f"The restore point of its disk {id_} is missing."))
            continue
        status = "available" if point.state != "incomplete" else "error"
        rows.append((replace(row, parent_id=machine.id, machine_id=machine.resource_id, status=status), point))
        if status == "error":
            problems.append((point, point.reason))
    whole = machine.status == "available" and not problems and len(rows) > 0
    machine = replace(
        machine,
        status="available" if whole else "error",
        size_bytes=sum(row.size_bytes for row, _ in rows),
        incremental=any(row.incremental for row, _ in rows),
        stored_bytes=machine.stored_bytes + sum(row.stored_bytes for row, _ in rows),
        report=dict(machine.report) | machine_facts(repository, own.name, own.labels) | {"kind": "machine"},
    )
    return [(machine, own), *rows], problems


def _place(point: Point) -> tuple[str, str]:
    return str(point.labels.get("project")), str(point.labels.get("vault"))


def names_of_disks(labels: Labels) -> list[str]:
    """Ids in the names of the roots of a machine's disks, as the labels of its own say; of others none."""
    found = labels.get("children")
    return [id_ for id_ in found if isinstance(id_, str)] if isinstance(found, list | tuple) else []


def disk_label(labels: Labels) -> dict[str, Any]:
    """What the root of a machine's disk says of the device, as a row has it; of others nothing."""
    found = labels.get("disk")
    if not isinstance(found, Mapping):
        return {}
    return {"name": text_label(found.get("name"), NAME_CHARS_MAX), "is_boot": found.get("is_boot") is True}


def parent_of(point: Point) -> str:
    """The id in the name of the machine's root, of a root that is a disk's; else empty."""
    return text_label(point.labels.get("parent"), 36)


def _disk_point(points: Sequence[Point], id_: str, own: Point) -> Point | None:
    """That of the same attempt; a copy may have brought it in another one."""
    named = [point for point in points if point.backup_id == id_ and point.state != "unreadable"]
    same = [point for point in named if point.generation == own.generation]
    return same[0] if same else next((point for point in named if point.counts), None)


def machine_facts(repository: Repository, root: str, labels: Labels) -> dict[str, Any]:
    """What the row of a machine tells beside the counts."""
    facts: dict[str, Any] = {
        name: labels.get(name) for name in ("consistency", "consistency_reason", "application_wanted")
    }
    try:
        data = b"".join(read_file(repository, root, (FACTS,), length=FILE_BYTES_MAX))
        told = json.loads(data)
        metadata = told["metadata"]
        facts["has_boot_disk"] = any(disk["is_boot"] for disk in told["disks"])
    except (Corrupt, ObjectMissing, EntryNotFound, ValueError, KeyError, TypeError):
        return facts  # the disks are what is restored; what was known of the machine is for people
    if isinstance(metadata, dict):
        facts["machine"] = row_facts(metadata)
    return facts


def one_a_backup(points: list[Point]) -> list[Point]:
    """The generation that counts; the highest one where none does."""
    best: dict[str, Point] = {}
    for point in sorted(points, key=lambda point: (point.counts, point.generation)):
        best[point.backup_id] = point
    return [point for point in points if best[point.backup_id] is point]


def lost_backup(
    repository: Repository, point: Point, project_id: str, vault_id: str, domain_id: str | None
) -> LostBackup | None:
    """The row that a root gives. None when it does not open, or its labels are not those of a backup in this place.

    What came from another vault got labels of this one, with its id here as `backup`: the root has that of its origin.
    """
    labels = point.labels
    backup_id = text_label(labels.get("backup"), 36) or point.backup_id
    checkpoint, resource = (text_label(labels.get(key), 36) for key in ("checkpoint", "resource"))
    kind, path, token = labels.get("resource_type"), labels.get("path"), labels.get("token")
    created_at = _time(labels.get("created_at")) or point.created_at
    own = labels.get("project") == project_id and labels.get("vault") == vault_id
    if not own or not is_id(backup_id) or not is_id(checkpoint) or not is_id(resource) or created_at is None:
        return None
    if kind not in PROTECTABLE_TYPES or not isinstance(path, bytes) or not isinstance(token, bytes):
        return None
    options = labels.get("options")
    disk = disk_label(labels)
    about = {"disk": disk} if disk else {}
    return LostBackup(
        id=backup_id,
        checkpoint_id=checkpoint,
        status="available" if point.counts else "error",
        root=point.name,
        domain_id=domain_id,
        name=text_label(labels.get("name"), NAME_CHARS_MAX) or f"recovered-{backup_id[-8:]}",
        resource_id=resource,
        resource_type=str(kind),
        resource_name=text_label(labels.get("resource_name"), RESOURCE_NAME_CHARS_MAX) or resource,
        path=path,
        options=options if isinstance(options, Mapping) else {},
        size_bytes=point.size,
        stored_bytes=point.bytes_stored,
        incremental=repository.load_root(point.name).parent is not None,
        auto_trigger=labels.get("trigger") == "policy",
        token=token,
        report=_report(repository, point) | {"rebuilt": True, "kind": point.kind} | about,
        created_at=created_at,
        expired_at=_time(labels.get("expires_at")),
        promised_until=_time(labels.get("lock_until")),
        image_type="replication" if labels.get("image_type") == "replication" else "backup",
    )


def _report(repository: Repository, point: Point) -> dict[str, Any]:
    found = asdict(repository.load_root(point.name).report)
    return {name: found[name] for name in COUNTS} | {"full_reason": found["full_reason"]}


def text_label(value: object, chars_max: int) -> str:
    """A label that is a text as a row may hold it, else ''."""
    return value if isinstance(value, str) and len(value) <= chars_max and "\0" not in value else ""


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else None
    except ValueError:
        return None
