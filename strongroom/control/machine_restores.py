"""Restores of machines: which disk of the backup goes to which disk of a server.

A request names pairs, or nobody's: then every disk goes back to where it was. What the target has is known from the
last look at it; the driver looks again before anything is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from strongroom.base.errors import Conflict, DiskNotFound, InvalidRequest
from strongroom.base.ids import is_id
from strongroom.control.machines import DiskBackup, disks_of
from strongroom.control.subjects import ResourceRef

NEW_NAME_CHARS_MAX = 64


@dataclass(frozen=True, kw_only=True)
class DiskMapping:
    """As a request names it: the backup of a disk, and the disk of the server that it goes to."""

    backup_id: str
    volume_id: str


@dataclass(frozen=True, kw_only=True)
class MachineWish:
    """What a request asks of the restore of a machine.

    mappings  none: every disk to where it was      power_on  what the server is left in
    new_name  a new server of this name is made beside the target, which stays as it is
    """

    mappings: tuple[DiskMapping, ...] = ()
    power_on: bool = True
    new_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class DiskRestore:
    """One disk to write. target_id: of the target's disk; None: of a new server."""

    backup: DiskBackup
    target_id: str | None


async def plan_disks(
    conn: AsyncConnection[Any],
    project_id: str,
    owner_project_id: str,
    backup: Mapping[str, Any],
    backup_id: str,
    target: ResourceRef,
    wish: MachineWish,
) -> dict[str, Any]:
    """What the task has to know, for its parameters. owner_project_id: whose backup it is.

    Raises InvalidRequest, DiskNotFound; Conflict 2001 (the disk is too small), 2013 (data onto a system disk), 2005
    (no disk of the backup can be restored).
    """
    disks = await disks_of(conn, owner_project_id, backup_id)
    if not disks:
        raise Conflict(conflict_code="2005", reason="No disk of the backup can be restored.")
    if wish.new_name is not None:
        _check_new_name(wish)
        pairs: list[tuple[str, str | None]] = [(disk.id, None) for disk in disks]
    else:
        pairs = _pairs(disks, backup, target, wish.mappings)
        found = await conn.execute(
            "SELECT machine -> 'disks' FROM protectables WHERE project_id = %s AND id = %s AND removed_at IS NULL",
            [project_id, target.id],
        )
        row = await found.fetchone()
        _check_targets({disk.id: disk for disk in disks}, pairs, (row[0] if row else None) or [], target)
    return {
        "disks": pairs,
        "power_on": wish.power_on,
        "new_name": wish.new_name,
        "partly": len(pairs) < len(disks),
    }


def _check_new_name(wish: MachineWish) -> None:
    name = wish.new_name or ""
    if not 0 < len(name) <= NEW_NAME_CHARS_MAX or not all(char.isalnum() or char in "._-" for char in name):
        raise InvalidRequest(
            reason=f"Invalid new_name: give 1 to {NEW_NAME_CHARS_MAX} letters, digits, dots, dashes or underscores."
        )
    if wish.mappings:
        raise InvalidRequest(reason="Invalid mappings: a new server gets disks of its own. Leave them out.")


def _pairs(
    disks: Sequence[DiskBackup], backup: Mapping[str, Any], target: ResourceRef, mappings: Sequence[DiskMapping]
) -> list[tuple[str, str | None]]:
    """(backup of a disk, target's disk), each once."""
    if not mappings:
        if target.id != backup["resource_id"]:
            raise InvalidRequest(
                reason="Invalid mappings: for another server, say which disk of the backup goes to which of its disks."
            )
        return [(disk.id, disk.resource_id) for disk in disks]
    known = {disk.id for disk in disks}
    for mapping in mappings:
        if mapping.backup_id not in known:
            raise InvalidRequest(
                reason="Invalid mappings: a backup_id is not that of a disk of this backup. `children` lists them."
            )
        if not is_id(mapping.volume_id):
            raise InvalidRequest(reason="Invalid mappings: a volume_id is not an id.")
    if len({m.backup_id for m in mappings}) < len(mappings) or len({m.volume_id for m in mappings}) < len(mappings):
        raise InvalidRequest(reason="Invalid mappings: each disk of the backup and of the server stands once.")
    return [(mapping.backup_id, mapping.volume_id) for mapping in mappings]


def _check_targets(
    disks: Mapping[str, DiskBackup],
    pairs: Sequence[tuple[str, str | None]],
    there: Sequence[Mapping[str, Any]],
    target: ResourceRef,
) -> None:
    """Where nobody has looked yet the driver says what does not fit."""
    known = {disk["id"]: disk for disk in there}
    if not known:
        return
    for backup_id, volume_id in pairs:
        disk, place = disks[backup_id], known.get(volume_id or "")
        if place is None:
            raise DiskNotFound(
                id=volume_id or "(none)", detail=f"server {target.id} has no such disk since the last look at it"
            )
        if place["size_bytes"] < disk.size_bytes:
            raise Conflict(
                conflict_code="2001",
                reason=f"Disk {disk.disk_name} of the backup has {disk.size_bytes} bytes and does not fit onto "
                f"{place['name']} of {target.name} with {place['size_bytes']}.",
            )
        if place.get("is_boot") and not disk.is_boot:
            raise Conflict(
                conflict_code="2013",
                reason=f"Disk {disk.disk_name} of the backup is a data disk, and {place['name']} of {target.name} its "
                "system disk. Choose another one.",
            )


async def wanted_disks(
    conn: AsyncConnection[Any], owner_project_id: str, backup_id: str, asked: Mapping[str, Any]
) -> tuple[DiskRestore, ...]:
    """What the request named, as it is now. Raises Conflict 2005 for a disk whose backup is gone or damaged."""
    disks = {disk.id: disk for disk in await disks_of(conn, owner_project_id, backup_id)}
    chosen = []
    for disk_backup, target_id in asked.get("disks", ()):
        if disk_backup not in disks:
            raise Conflict(conflict_code="2005", reason="A disk of the backup cannot be restored any more.")
        chosen.append(DiskRestore(backup=disks[disk_backup], target_id=target_id))
    return tuple(chosen)
