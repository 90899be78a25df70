"""One consistent point of a domain that is switched off: its images, read as they lie there.

libvirt makes and deletes no checkpoint of a machine that is off. So the disk's bitmap, which qcow2 keeps in the image,
tells what changed since the last checkpoint, and that checkpoint stays the parent: its bitmap goes on counting, and the
next backup holds what changed since then, these changes included. Without one everything is read.

Nothing keeps the machine from being started meanwhile; each read is checked to be of an image that stood still.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from strongroom.base.clock import Clock
from strongroom.base.errors import SourceError
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import Consistency, Disk, DiskPoint, MachineWanted
from strongroom.sources.machines.libvirt.chain import DiskRead, Token, dump_token, plan_reads
from strongroom.sources.machines.libvirt.definition import Definition, DiskDefinition
from strongroom.sources.machines.libvirt.reading import MachineDisk, StillStream
from strongroom.sources.machines.libvirt.serving import image_node, run_tool, served
from strongroom.sources.oserrors import source_error
from strongroom.sources.pace import Pace
from strongroom.sources.tokens import nanoseconds


class OfflinePoint:
    """MachinePoint of a domain that is off."""

    def __init__(
        self,
        ref: SourceRef,
        wanted: MachineWanted,
        definition: Definition,
        disks: Sequence[tuple[Disk, DiskDefinition]],
        left_out: Sequence[tuple[Disk, DiskDefinition]],
        facts: Mapping[str, object],
        xml: bytes,
        checkpoints: frozenset[str],
        *,
        shut_down: bool,
        clock: Clock,
    ) -> None:
        self.consistency: Consistency = "filesystem_consistent" if shut_down else "crash_consistent"
        self.consistency_reason = None if shut_down else "The machine is off, and it is not known that it shut down."
        self.definition = xml
        self.metadata: Mapping[str, object] = facts
        self.left_out: Sequence[Disk] = tuple(disk for disk, _ in left_out)
        self.taken_at_ns = nanoseconds(clock.now())
        self._closing = contextlib.ExitStack()
        pace = Pace(ref.options.read_limit_bytes_s)
        try:
            images = {found.device: image_info(found) for _, found in disks}
            broken = {device: reason for device, info in images.items() if (reason := _distrust(info)) is not None}
            reads = plan_reads(definition.uuid, disks, wanted, checkpoints, broken)
            self.disks: Sequence[DiskPoint] = [
                self._open(definition.uuid, read, images[read.disk.name], pace) for read in reads
            ]
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> "OfflinePoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    def commit(self) -> None:
        self.abort()  # parents stay what they are

    def abort(self) -> None:
        self._closing.close()

    def _open(self, machine: str, read: DiskRead, info: Mapping[str, Any], pace: Pace) -> MachineDisk:
        parent, reason = read.parent, read.reason
        if parent is not None and not _counts(info, parent):
            parent, reason = None, "The image has no list of the blocks that changed since the last backup."
        place = read.definition.place
        try:
            opened = os.stat(place)
        except OSError as err:
            raise source_error(err, os.fsencode(place), "read") from err
        node = image_node(place, read.definition.format, share=True)
        client = self._closing.enter_context(served(node, bitmap=parent)).client
        token = Token(machine=machine, checkpoint=parent or "", size=read.disk.size_bytes)
        stream = StillStream(client, pace, place, opened)
        return MachineDisk(read.disk, stream, dump_token(token), reason)


def image_info(definition: DiskDefinition) -> Mapping[str, Any]:
    """What qemu-img says of an image, never guessing its format. Raises SourceError."""
    if definition.kind != "file" or not definition.place.startswith("/"):
        raise SourceError(
            reason=f"The disk {definition.device} is no image file: it can be read only while the machine runs. "
            "Start the machine, or leave the disk out."
        )
    node = image_node(definition.place, definition.format, share=True)
    try:
        found = json.loads(run_tool(["qemu-img", "info", "--output=json", node]))
    except ValueError as err:
        raise SourceError(reason=f"qemu-img tells nothing about {definition.place}.") from err
    if not isinstance(found, dict) or not isinstance(found.get("virtual-size"), int):
        raise SourceError(reason=f"qemu-img says nothing of the size of {definition.place}.")
    return found


def _distrust(info: Mapping[str, Any]) -> str | None:
    if info.get("backing-filename"):
        return "The image lies on another one, and its own list of changed blocks does not tell of that."
    return None


def _counts(info: Mapping[str, Any], bitmap: str) -> bool:
    """The bitmap is there, was counting all the time, and was put down cleanly."""
    data = info.get("format-specific", {}).get("data", {})
    return any(
        found.get("name") == bitmap and found.get("flags") == ["auto"]
        for found in (data.get("bitmaps") or ())
        if isinstance(found, dict)
    )
