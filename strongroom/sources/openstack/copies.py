"""Volumes that hold what a snapshot holds, attached here to be read; and what a dead job left of them.

What is made carries a name of ours with the resource's id and a mark, and only one job works on a resource at a time:
what is found so when a point is opened was left by a dead one, and is removed first.
"""

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any

from strongroom.base.errors import SourceError
from strongroom.base.units import GIB
from strongroom.sources.base import Check, SourceRef
from strongroom.sources.disk import DiskStream
from strongroom.sources.machines.base import PREFIX
from strongroom.sources.openstack.attachment import Attachment, delete_attachment
from strongroom.sources.openstack.cloud import errors
from strongroom.sources.openstack.waiting import MADE_S_MAX, delete, wait
from strongroom.sources.oserrors import source_error, target_error
from strongroom.sources.pace import Pace
from strongroom.sources.tokens import Values, load_token

READABLE = ("available", "in-use")
READ_WHOLE = "Cinder keeps no list of changed blocks: all is read, only what is new is stored."
MARK = "strongroom"  # in the metadata of what is made for a backup: the resource


class Undo:
    """What has to be taken back, in the other order. What cannot be now is when the resource is opened next."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        self._steps.append(step)

    def run(self) -> None:
        """Idempotent."""
        while self._steps:
            with contextlib.suppress(SourceError, OSError):
                self._steps.pop()()


class Copy:
    """A volume made of a snapshot and attached to be read. stream: a DiskStream of the size of `volume`."""

    def __init__(self, storage: Any, ref: SourceRef, volume: Any, snapshot_id: str, pace: Pace, check: Check) -> None:
        """Raises SourceError, and what check raises; then nothing is left."""
        self._undo = Undo()
        try:
            self.stream = self._open(storage, ref, volume, snapshot_id, pace, check)
        except BaseException:
            self.close()
            raise

    def _open(
        self, storage: Any, ref: SourceRef, volume: Any, snapshot_id: str, pace: Pace, check: Check
    ) -> DiskStream:
        with errors(f"a copy of volume {volume.id}"):
            copy = storage.create_volume(
                size=volume.size, snapshot_id=snapshot_id, name=name_of(ref), metadata={MARK: ref.resource_id}
            )
            self._undo.add(lambda: delete(storage.get_volume, storage.delete_volume, copy.id))
            wait(storage.get_volume, copy.id, "available", MADE_S_MAX, check)
        attachment = Attachment(storage, copy.id, writable=False)
        self._undo.add(attachment.detach)
        fd = open_attached(attachment.path, os.O_RDONLY)
        self._undo.add(lambda: os.close(fd))
        size = volume.size * GIB
        if os.lseek(fd, 0, os.SEEK_END) < size:
            raise SourceError(reason="The copy of the volume is smaller than the volume. Tell the operator.")
        holes = stat.S_ISREG(os.fstat(fd).st_mode)  # a back end that gives files (NFS)
        return DiskStream(fd, os.fsencode(attachment.path), size, pace, same=False, holes=holes)

    def close(self) -> None:
        """Detached and deleted; idempotent."""
        self._undo.run()


def begin_snapshot(storage: Any, ref: SourceRef, volume_id: str) -> str:
    """The id of a snapshot in the making, forced, so that a server may go on writing."""
    with errors(f"a snapshot of volume {volume_id}"):
        made = storage.create_snapshot(
            volume_id=volume_id, name=name_of(ref), is_forced=True, metadata={MARK: ref.resource_id}
        )
        return str(made.id)


def await_snapshot(storage: Any, snapshot_id: str, check: Check) -> None:
    with errors(f"snapshot {snapshot_id}"):
        wait(storage.get_snapshot, snapshot_id, "available", MADE_S_MAX, check)


def delete_snapshot(storage: Any, snapshot_id: str) -> None:
    delete(storage.get_snapshot, storage.delete_snapshot, snapshot_id)


def remove_leftovers(storage: Any, ref: SourceRef) -> None:
    """Volumes and snapshots of ours that a dead job left. Raises SourceError."""
    with errors("what an earlier backup left"):
        for copy in [one for one in storage.volumes(details=True, name=name_of(ref)) if _is_ours(one, ref)]:
            for held in copy.attachments:
                if held.get("attachment_id"):
                    delete_attachment(storage, held["attachment_id"])
            delete(storage.get_volume, storage.delete_volume, copy.id)
        for snapshot in [one for one in storage.snapshots(details=True, name=name_of(ref)) if _is_ours(one, ref)]:
            delete_snapshot(storage, snapshot.id)


def name_of(ref: SourceRef) -> str:
    return f"{PREFIX}{ref.resource_id}"


def _is_ours(found: Any, ref: SourceRef) -> bool:
    """Name and mark, so that nothing of a user's is ever removed."""
    return bool(found.name == name_of(ref) and (found.metadata or {}).get(MARK) == ref.resource_id)


def open_attached(path: str, flags: int) -> int:
    translate = target_error if flags & os.O_RDWR else source_error
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as err:
        raise translate(err, os.fsencode(path), "open") from err


def why_whole(own: Values, parent_token: bytes | None, *, full: bool) -> str | None:
    """Why the parent must not be trusted; None when it may."""
    if full:
        return "A full backup was asked for."
    parent = load_token("cinder", parent_token)
    if parent is None:
        return "It is the first backup of this volume in the vault."
    if parent.get("size") != own["size"]:
        return "The volume had another size at the last backup."
    return None
