"""What a driver of machines is: all disks of one machine in one consistent point (OS::Nova::Server).

Beside `sources/base.py`, whose drivers know one stream each. A machine has one stream a disk, each with a token and a
reason of its own, because a disk that was added yesterday has no parent while the others have one.

Order of a backup:  inspect -> open_machine -> read every stream -> (roots, rows) -> commit.
Order of a restore: plan_restore -> open_target -> write every stream -> finish. What a driver makes at a source is
named with PREFIX, so that `recover` finds what a dead process left and nobody takes it for his own.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from strongroom.base.streams import BlockStream, BlockTarget
from strongroom.sources.base import Check, Detail, DoneCallback, Recovered, SourceRef, TargetReport, go_on

PREFIX = "strongroom."  # of bitmaps, checkpoints, nodes, exports and snapshots of ours
FREEZE_SECONDS_MAX = 10.0  # a guest's file systems are never held longer

Consistency = Literal["crash_consistent", "filesystem_consistent", "application_consistent"]
Power = Literal["running", "paused", "off"]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A disk of a machine as it is now.

    id    stable for the life of the disk: a UUID, of the volume where it has one, else made of machine and device
    name  of the device as the machine's definition has it, "vda"
    """

    id: str
    name: str
    size_bytes: int
    is_boot: bool = False
    place: str = ""  # for operators: file, device or image behind it


@dataclass(frozen=True, kw_only=True)
class Ability:
    """One line of `source check`: what will work at the next backup, and what to do when it will not."""

    name: str  # "incremental", "consistency", "scratch", ...
    works: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class MachineInspection:
    """What a look at the machine shows. readable: a backup may start; else `reason` is a sentence for the tenant."""

    exists: bool
    readable: bool
    disks: tuple[Disk, ...] = ()
    power: Power = "off"
    reason: str | None = None
    abilities: tuple[Ability, ...] = ()
    detail: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MachineWanted:
    """Which point is wanted.

    parent_tokens  by disk id, of the last committed backup of that disk; a disk without one is read whole
    full           trust no parent
    included       ids of disks to be taken, None: all      excluded  ids of disks to be left out
    application    ask the guest to hold still (freeze); what was reached is told by the point
    check          asked while a storage is waited for
    """

    parent_tokens: Mapping[str, bytes] = field(default_factory=dict)
    full: bool = False
    included: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    application: bool = True
    check: Check = field(default=go_on, compare=False, repr=False)


class DiskPoint(Protocol):
    """One disk of an opened machine. Extents are SAME only where the parent token is proven valid.

    token        opaque; store it with the disk's backup, hand it back in `parent_tokens`
    full_reason  why all of the disk is read, a sentence for the tenant; None: only what changed is
    """

    @property
    def disk(self) -> Disk: ...

    @property
    def stream(self) -> BlockStream: ...

    @property
    def token(self) -> bytes: ...

    @property
    def full_reason(self) -> str | None: ...

    @property
    def metadata(self) -> Mapping[str, Detail]:
        """Facts for the record, to be read AFTER the stream."""
        ...


class MachinePoint(AbstractContextManager["MachinePoint"], Protocol):
    """An opened state of a machine. Leaving it without commit() aborts it; both are idempotent.

    consistency         what was reached; `consistency_reason` says why no more, None when all that was asked for was
    definition          of the machine, to make it again: opaque to everybody but the driver (libvirt's XML, for one)
    metadata            JSON for the restore point: power, nics, firmware, disks
    """

    @property
    def taken_at_ns(self) -> int: ...

    @property
    def consistency(self) -> Consistency: ...

    @property
    def consistency_reason(self) -> str | None: ...

    @property
    def disks(self) -> Sequence[DiskPoint]: ...

    @property
    def left_out(self) -> Sequence[Disk]: ...

    @property
    def definition(self) -> bytes: ...

    @property
    def metadata(self) -> Mapping[str, object]: ...

    def commit(self) -> None:
        """The backups of all disks stand: the parents are not needed any more. Call it after store and rows."""
        ...

    def abort(self) -> None:
        """They do not stand: the changes go back to the parents."""
        ...


@dataclass(frozen=True, kw_only=True)
class DiskWanted:
    """One disk to be written. source_id: of the disk in the restore point; target_id: of the machine written to.

    target_id is None for a disk of a new machine.
    """

    source_id: str
    name: str
    size_bytes: int
    target_id: str | None
    done_ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class MachineRestoreWanted:
    """What shall be written where.

    same_resource  the target is the machine the restore point was made of
    definition     of the restore point
    new_name       a new machine is made of the definition under this name; None: `target` is written to
    power_on       state to leave it in; the target is stopped for the restore in any case
    check          asked while a storage or a hypervisor is waited for
    """

    task_id: str
    target: SourceRef
    same_resource: bool
    disks: tuple[DiskWanted, ...]
    definition: bytes = b""
    new_name: str | None = None
    power_on: bool = False
    force: bool = False
    check: Check = field(default=go_on, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class MachineRestorePlan:
    """What a restore would do. warnings stop nothing; any of `conflicts` makes `open_target` refuse.

    in_place  writes change the target's own disks before finish(): a restore that ends half-way says so. False: they
              are put together beside them
    """

    wanted: MachineRestoreWanted
    needed_bytes: int
    free_bytes: int
    in_place: bool = True
    warnings: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


class MachineTarget(AbstractContextManager["MachineTarget"], Protocol):
    """An opened target. Leaving it without finish() rolls back what can be rolled back."""

    @property
    def disks(self) -> Mapping[str, BlockTarget]:
        """By `source_id` of the wanted disks."""
        ...

    def finish(self) -> TargetReport:
        """Make everything durable, move it into place, define the machine, and set its power state. Once."""
        ...


class MachineDriver(Protocol):
    """One kind of hypervisor. Stateless: one instance serves all jobs of a process."""

    def inspect(self, ref: SourceRef) -> MachineInspection:
        """MUST NOT raise for a missing or unreachable machine."""
        ...

    def open_machine(self, ref: SourceRef, wanted: MachineWanted) -> MachinePoint:
        """Raises SourceGone, SourceDenied, SourceBusy or another SourceError. Freezes and thaws inside."""
        ...

    def plan_restore(self, wanted: MachineRestoreWanted) -> MachineRestorePlan:
        """Touches nothing."""
        ...

    def open_target(self, plan: MachineRestorePlan, on_done: Mapping[str, DoneCallback]) -> MachineTarget:
        """Settles leftovers of the same task first. Raises TargetBusy, TargetTooSmall, TargetDenied on a conflict."""
        ...

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        """Settle what dead processes left at the source: thaw, end jobs, remove what has our PREFIX. Idempotent.

        finished_tasks: as of `Driver.recover`
        """
        ...
