"""The driver of Ceph RBD images (OS::Cinder::Volume): `rbd:POOL/IMAGE`, see `snapshots/rbd.py`.

Point: a snapshot, served by `qemu-nbd` (which speaks librbd; 450 MB/s where `rbd export` gave 140), by what is
allocated in it; an increment reads what `rbd diff` names since the snapshot of the last committed point, which stays
until the next one is committed.
Restore: in place, as into a block device: blocks that differ are written, read back, and reported as done. Refused
while a client has the image open, unless forced.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceError, SourceGone, TargetBusy
from strongroom.base.streams import Extent
from strongroom.base.units import human_bytes
from strongroom.sources.base import (
    Detail,
    DoneCallback,
    Inspection,
    Kind,
    PointWanted,
    Recovered,
    ResourceType,
    RestorePlan,
    RestoreWanted,
    SourceRef,
    TargetReport,
)
from strongroom.sources.device_target import DeviceWriter, look_in_place
from strongroom.sources.disk import only_changed
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.oserrors import shown
from strongroom.sources.pace import Pace
from strongroom.sources.qemu_tools import served
from strongroom.sources.snapshots.base import Hold, Ranges, snapshot_of, snapshot_values
from strongroom.sources.snapshots.rbd import Rbd, RbdAddress, allocated, has_watchers, image_facts, parse_address
from strongroom.sources.tokens import Values, dump_token, load_token, nanoseconds
from strongroom.sources.tools import tool

CLEAN_UP_S_MAX, CLEAN_UP_STEP_S = 5.0, 0.2
SNAPSHOT_REASON = "A snapshot of the RBD image is read, so all of it is of one moment."


class RbdStream:
    """BlockStream of a snapshot. changed: what differs from the parent; None: not known."""

    def __init__(self, client: NbdClient, data: Sequence[Extent], changed: Ranges | None, pace: Pace) -> None:
        self.size = client.size
        self._client = client
        self._data = data
        self._changed = changed
        self._pace = pace

    def extents(self) -> Iterator[Extent]:
        yield from self._data if self._changed is None else only_changed(self._data, self._changed)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._pace.take(len(buffer))
        return self._client.read_into(offset, buffer)


class RbdPoint:
    """A snapshot of an image, served to this process alone; Point."""

    kind: Final[Kind] = "block"
    consistency: Final = "crash_consistent"

    def __init__(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        self._serving = contextlib.ExitStack()
        self._hold: Hold | None = None
        try:
            self._open(ref, wanted, clock)
        except BaseException:
            self.abort()
            raise

    def _open(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        address, provider = parse_address(ref.path), Rbd()
        image_facts(address)
        self.taken_at_ns = nanoseconds(clock.now())
        parent = load_token("rbd", wanted.parent_token)
        known = snapshot_of(parent, provider)
        self._hold = hold = Hold(provider, ref.path, ref.resource_id, self.taken_at_ns, known)
        client = self._serving.enter_context(served(address.disk(hold.snapshot.name))).client
        own: Values = {"size": client.size, **snapshot_values(provider, hold.snapshot)}
        self.token = dump_token("rbd", own)
        self.full_reason = _full_reason(own, parent, wanted)
        changed, reason = hold.changes if self.full_reason is None else (None, self.full_reason)
        self._read_whole = reason
        self._changed_bytes = None if changed is None else sum(length for _, length in changed)
        data = allocated(address, hold.snapshot.name, client.size)
        self.stream = RbdStream(client, data, changed, Pace(ref.options.read_limit_bytes_s))

    def __enter__(self) -> "RbdPoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {
            "format": "rbd",
            "size_bytes": self.stream.size,
            "read_whole": self._read_whole,
            "changed_bytes": self._changed_bytes,
            "changed_while_read": False,
            "snapshot": self._hold.name if self._hold is not None else None,
            "snapshot_reason": SNAPSHOT_REASON,
        }

    def commit(self) -> None:
        self._serving.close()
        if self._hold is not None:
            self._hold.commit()

    def abort(self) -> None:
        self._serving.close()
        if self._hold is not None:
            self._hold.abort()


class _Image:
    """An image that is written in place; DiskInPlace."""

    def __init__(self, client: NbdClient) -> None:
        self._client = client

    def read(self, offset: int, buffer: memoryview) -> int:
        return self._client.read_into(offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        self._client.write(offset, data)

    def sync(self) -> None:
        self._client.flush()

    def forget(self, offset: int, length: int) -> None:
        return None  # it was opened past all caches


class RbdTarget:
    """An image to write, served to this process alone; Target."""

    kind: Final[Kind] = "block"

    def __init__(self, plan: RestorePlan, on_done: DoneCallback | None) -> None:
        wanted = plan.wanted
        self._serving = contextlib.ExitStack()
        address = parse_address(wanted.target.path)
        self._served = self._serving.enter_context(served(address.disk(), writable=True, direct=True))
        size = self._served.client.size
        self._rest = size - wanted.size_bytes
        self.stream = DeviceWriter(_Image(self._served.client), wanted.target.path, size, wanted.done_ranges, on_done)

    def __enter__(self) -> "RbdTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._serving.close()

    def finish(self) -> TargetReport:
        self.stream.flush()
        self._served.finish()
        warnings: tuple[str, ...] = ()
        if self._rest:
            warnings = (f"The image is {human_bytes(self._rest)} larger than the backup; that rest was not touched.",)
        return TargetReport(written_bytes=self.stream.written_bytes, warnings=warnings)


class RbdDriver:
    """Driver of RBD images."""

    type: Final[ResourceType] = "OS::Cinder::Volume"
    kind: Final[Kind] = "block"

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def inspect(self, ref: SourceRef, *, measure: bool = False) -> Inspection:
        try:
            facts = image_facts(parse_address(ref.path))
            tool("qemu-nbd")
        except SourceGone as err:
            return Inspection(exists=False, readable=False, reason=f"{err.message} ({shown(ref.path)})")
        except SourceError as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        detail: Mapping[str, Detail] = {"format": "rbd", "features": json.dumps(facts.get("features", []))}
        return Inspection(exists=True, readable=True, size_bytes=int(facts["size"]), detail=detail)

    def open_point(self, ref: SourceRef, wanted: PointWanted) -> RbdPoint:
        return RbdPoint(ref, wanted, self._clock)

    def plan_restore(self, wanted: RestoreWanted) -> RestorePlan:
        return _look(wanted)[0]

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> RbdTarget:
        _, conflicts = _look(plan.wanted)  # what the plan saw may be long ago
        if conflicts:
            raise conflicts[0]
        return RbdTarget(plan, on_done)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        return ()  # snapshots are released by the next point, which knows the one to keep


def _look(wanted: RestoreWanted) -> tuple[RestorePlan, list[SourceError]]:
    address = parse_address(wanted.target.path)
    size = int(image_facts(address)["size"])
    in_use: SourceError | None = None
    if not wanted.force and _stays_open(address):
        in_use = TargetBusy(
            reason=f"{shown(wanted.target.path)} is in use. Stop what uses the disk, or force the restore.",
            detail="the image has watchers",
        )
    return look_in_place(wanted, "image", size, in_use)


def _stays_open(address: RbdAddress) -> bool:
    """Whether somebody uses the image for longer than our own clean-up after a backup does, which comes after the
    restore point is reported."""
    give_up_s = time.monotonic() + CLEAN_UP_S_MAX
    while has_watchers(address):
        if time.monotonic() > give_up_s:
            return True
        time.sleep(CLEAN_UP_STEP_S)
    return False


def _full_reason(own: Values, parent: Values | None, wanted: PointWanted) -> str | None:
    if wanted.full:
        return "A full backup was asked for."
    if parent is None:
        return "It is the first backup of this disk in the vault."
    if parent.get("size") != own["size"]:
        return "The disk had another size at the last backup."
    return None
