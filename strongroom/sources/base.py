"""What a source driver is: values that go in and out, and the protocols that `operations` works with.

A driver knows one kind of resource (a folder, an image file, a block device). It opens a **point** to read from and a
**target** to restore into, and never sees chunks, hashes, the store or the database. Everything is synchronous; streams
may be read and written from several threads.

Order of a backup:  inspect -> open_point -> read the stream -> (root, row) -> commit.
Order of a restore: plan_restore -> open_target -> write the stream -> finish. Nothing live is touched before finish,
except on block devices, which have no room beside them.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from strongroom.base.streams import BlockStream, BlockTarget, Path, Skipped, TreeStream, TreeTarget

ResourceType = Literal[
    "OS::Sfs::Turbo", "OS::Cinder::Volume", "OS::Nova::Server", "OS::Native::Server", "OS::Ironic::BareMetalServer"
]
Kind = Literal["tree", "block"]
Detail = str | int | bool | None
DoneCallback = Callable[[int, int], None]  # (offset, length) in bytes: durable and read back
Check = Callable[[], None]  # raises when the job must stop: Canceled, Fenced, WorkerStops

STAGING_PREFIX = b".strongroom-"  # names of ours at a source; walkers leave them out


def go_on() -> None:
    """A Check where nobody can cancel."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How a resource was registered.

    exclude            gitignore-like patterns, see `sources/patterns.py`
    one_file_system    do not enter folders on other file systems
    read_limit_bytes_s bytes a second of content read from the source; None: no limit
    privileged         device nodes, setuid and trusted attributes may be restored here from another resource
    """

    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    read_limit_bytes_s: int | None = None
    privileged: bool = False


DEFAULT_OPTIONS = SourceOptions()


@dataclass(frozen=True, kw_only=True)
class SourceRef:
    """One registered resource: `path` is absolute, of bytes.

    roots  of a host with an agent: (path, absolute paths below it that are left out)
    """

    resource_id: str
    type: ResourceType
    path: bytes
    options: SourceOptions = DEFAULT_OPTIONS
    roots: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a look at the resource shows, without reading its content.

    size_bytes  of a disk; of a folder the sum of its files when it was measured; None: not known
    readable    a backup may start; else `reason` is a sentence for the tenant
    detail      for operators: file system, mode, format
    """

    exists: bool
    readable: bool
    size_bytes: int | None = None
    reason: str | None = None
    detail: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PointWanted:
    """parent_token: token of the last committed point, None without one. full: trust no parent, read everything.
    check: asked while a storage is waited for."""

    parent_token: bytes | None = None
    full: bool = False
    check: Check = field(default=go_on, compare=False, repr=False)


class Point(AbstractContextManager["Point"], Protocol):
    """An opened state of a resource. Leaving it without commit() aborts it.

    consistency  "crash_consistent"
    taken_at_ns  nanoseconds since 1970 of the moment the point stands for
    token        opaque, known from open: store it in the row, hand it back as `parent_token`
    full_reason  why the parent must not be trusted: pass none to the engine. None: the parent may be passed. A disk may
                 have to be read whole all the same; metadata["read_whole"] then tells why
    metadata     read it AFTER the stream: it tells whether the resource changed while it was read
    """

    token: bytes
    taken_at_ns: int
    full_reason: str | None

    @property
    def kind(self) -> Kind: ...

    @property
    def consistency(self) -> str: ...

    @property
    def stream(self) -> TreeStream | BlockStream:
        """What is to be read; a TreeStream when kind is "tree"."""
        ...

    @property
    def metadata(self) -> Mapping[str, Detail]:
        """Facts for the restore point's record: sizes, file system, changed_while_read."""
        ...

    def commit(self) -> None:
        """The backup stands: free what the point holds. Idempotent."""
        ...

    def abort(self) -> None:
        """The backup does not stand: give the changes back to the parent. Idempotent; after commit: nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class RestoreWanted:
    """What shall be written where.

    task_id       of the restore: names the staging place, so that a later attempt and `recover` find it
    target        resource that is written to
    same_resource it is the resource the backup was made of
    size_bytes    content to be written: of a disk its size, of a tree the sum of its files
    entries       number of entries of a tree, 0 when not known
    selection     trees only: paths of the restore point to be restored, () for all. The stream hands over their full
                  paths; folders above them may be handed over too and only matter where the live ones are missing
    sub_path      trees only: put the selected entries into this folder below the root, under their last name;
                  None: back to their place
    force         go on although another process has the target open or the target is smaller
    done_ranges   block devices only: ranges an earlier attempt reported as done, sorted (offset, length)
    roots         hosts only: the paths that the restore point was made of
    check         asked while a storage is waited for
    """

    task_id: str
    target: SourceRef
    same_resource: bool
    kind: Kind
    size_bytes: int
    entries: int = 0
    selection: tuple[Path, ...] = ()
    sub_path: Path | None = None
    force: bool = False
    done_ranges: tuple[tuple[int, int], ...] = ()
    roots: tuple[bytes, ...] = ()
    check: Check = field(default=go_on, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class RestorePlan:
    """What a restore would do, before anything is written.

    staging         where it is put together first; None: in place
    needed_bytes    room it takes there       free_bytes  room there is
    target_size     bytes of the disk or image as it is now, None for folders
    warnings        sentences for the tenant; none of them stops the restore
    conflicts       sentences for the tenant; any of them makes `open_target` refuse
    """

    wanted: RestoreWanted
    staging: bytes | None
    needed_bytes: int
    free_bytes: int
    target_size: int | None = None
    warnings: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """left_out: what could not or may not be restored, with the reason (RULINGS 17). written_bytes: content written."""

    left_out: tuple[Skipped, ...] = ()
    written_bytes: int = 0
    warnings: tuple[str, ...] = ()


class Target(AbstractContextManager["Target"], Protocol):
    """An opened target. Leaving it without finish() rolls back: folders and image files stay as they were."""

    @property
    def kind(self) -> Kind: ...

    @property
    def stream(self) -> TreeTarget | BlockTarget:
        """Where the content goes; a TreeTarget when kind is "tree"."""
        ...

    def finish(self) -> TargetReport:
        """Make everything durable and move it into place; calls the stream's own finish or flush. Once."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """One leftover that `recover` settled: "forward": the new state stands, "back": the old state stands."""

    task_id: str
    outcome: Literal["forward", "back"]


class Driver(Protocol):
    """One kind of resource. Stateless: one instance serves all jobs of a process."""

    @property
    def type(self) -> ResourceType: ...

    @property
    def kind(self) -> Kind: ...

    def inspect(self, ref: SourceRef, *, measure: bool = False) -> Inspection:
        """MUST NOT raise for a missing or unreadable resource. `measure` sums a folder's files too (bounded)."""
        ...

    def open_point(self, ref: SourceRef, wanted: PointWanted) -> Point:
        """Raises SourceGone, SourceDenied, SourceError naming the path."""
        ...

    def plan_restore(self, wanted: RestoreWanted) -> RestorePlan:
        """Touches nothing. Raises SourceGone, SourceDenied when the target cannot even be looked at."""
        ...

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> Target:
        """Settles leftovers of the same task first. Raises TargetBusy, TargetTooSmall, TargetDenied on a conflict.

        on_done is called for block devices, from writing threads.
        """
        ...

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        """Settle what crashed restores of `finished_tasks` left at the resource. Idempotent.

        Nobody works on those tasks any more, and none of them succeeded. Leftovers of others, and those a living
        process holds, stay.
        """
        ...
