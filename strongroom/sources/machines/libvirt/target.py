"""Restoring disks of a domain onto its own: images are put together beside the old ones and moved over them.

    1 plan    which disk goes where, room, what stands against it; nothing is touched
    2 open    staged images; block devices are written in place, so for them the machine is stopped here
    3 seal    everything durable, owner and mode of the old images
    4 stop    the machine, if it runs: only when the restore is forced
    5 mark    durable: from here on it goes forward, whoever dies
    6 move    image by image; between two of them the machine is neither old nor new, and off
    7 clear   checkpoints and a saved state are void now; the mark goes
    8 power   as it was asked for

Before 5 `recover` removes what was staged, after it it moves the rest. Block devices know no way back: the same restore
run again goes on with the ranges that are not done.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from strongroom.base.errors import SourceDenied, SourceError, SourceGone, TargetBusy, TargetDenied, TargetTooSmall
from strongroom.base.streams import BlockTarget
from strongroom.base.units import human_bytes
from strongroom.sources.base import DoneCallback, Recovered, TargetReport
from strongroom.sources.device_target import DeviceWriter, OpenDevice
from strongroom.sources.disk import open_image
from strongroom.sources.machines.base import DiskWanted, MachineRestorePlan, MachineRestoreWanted
from strongroom.sources.machines.libvirt.binding import Domain, call, connected, library, parse_address, require_domain
from strongroom.sources.machines.libvirt.definition import Definition, DiskDefinition, read_definition
from strongroom.sources.machines.libvirt.domain import find_disks, require_own
from strongroom.sources.machines.libvirt.staged import (
    FORMATS,
    StagedImage,
    mark_path,
    remove_staged,
    require_unused,
)
from strongroom.sources.machines.moves import move, read_mark, remove_mark, write_mark
from strongroom.sources.openers import find_openers
from strongroom.sources.oserrors import target_error


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one wanted disk goes. size: of what is written there, in bytes."""

    wanted: DiskWanted
    definition: DiskDefinition
    size: int

    @property
    def folder(self) -> str:
        return os.path.dirname(self.definition.place)


@dataclass(frozen=True, kw_only=True)
class _Look:
    places: tuple[_Place, ...]
    conflicts: tuple[SourceError, ...]
    warnings: tuple[str, ...]
    needed_bytes: int
    free_bytes: int

    @property
    def in_place(self) -> bool:
        return any(place.definition.kind == "block" for place in self.places)


def plan(wanted: MachineRestoreWanted) -> MachineRestorePlan:
    look = _look(wanted)
    return MachineRestorePlan(
        wanted=wanted,
        needed_bytes=look.needed_bytes,
        free_bytes=look.free_bytes,
        in_place=look.in_place,
        warnings=look.warnings,
        conflicts=tuple(conflict.message for conflict in look.conflicts),
    )


def open_target(prepared: MachineRestorePlan, on_done: Mapping[str, DoneCallback]) -> "DomainTarget":
    wanted = prepared.wanted
    address = parse_address(wanted.target.path)
    with connected(address.uri) as connection:
        domain = require_domain(connection, address.domain)
        recover(domain, _definition(domain), frozenset({wanted.task_id}))
    look = _look(wanted)  # what the plan saw may be long ago
    if look.conflicts:
        raise look.conflicts[0]
    return DomainTarget(wanted, look, on_done)


class DomainTarget:
    """MachineTarget of a machine that exists."""

    def __init__(self, wanted: MachineRestoreWanted, look: _Look, on_done: Mapping[str, DoneCallback]) -> None:
        self._wanted = wanted
        self._places = look.places
        self._warnings = list(look.warnings)
        self._staged: dict[str, StagedImage] = {}
        self._devices: dict[str, DeviceWriter] = {}
        self._closing = contextlib.ExitStack()
        self._finished = False
        try:
            if look.in_place:
                self._with_domain(_stop)
            for place in look.places:
                self._open(place, on_done.get(place.wanted.source_id))
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "DomainTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    @property
    def disks(self) -> Mapping[str, BlockTarget]:
        staged: dict[str, BlockTarget] = {id_: image.client for id_, image in self._staged.items()}
        return staged | self._devices

    def finish(self) -> TargetReport:
        for place in self._places:
            if place.definition.kind == "block":
                self._devices[place.wanted.source_id].flush()
            else:
                self._staged[place.wanted.source_id].seal(place.definition.place)
        self._with_domain(self._swap)
        self._finished = True
        return TargetReport(
            written_bytes=sum(place.wanted.size_bytes for place in self._places), warnings=tuple(self._warnings)
        )

    def _open(self, place: _Place, on_done: DoneCallback | None) -> None:
        source_id, item = place.wanted.source_id, place.definition
        if item.kind == "block":
            path = os.fsencode(item.place)
            try:
                fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)  # refused while it is mounted
                self._closing.callback(os.close, fd)
                if not stat.S_ISBLK(os.fstat(fd).st_mode):
                    raise TargetDenied(reason=f"{item.place} is no block device any more.")
                ranges = place.wanted.done_ranges
                self._devices[source_id] = DeviceWriter(
                    OpenDevice(fd), path, os.lseek(fd, 0, os.SEEK_END), ranges, on_done
                )
            except OSError as err:
                raise target_error(err, path, "write") from err
            return
        self._staged[source_id] = StagedImage(place.folder, self._wanted.task_id, item.device, item.format, place.size)

    def _swap(self, domain: Domain) -> None:
        if domain.isActive():
            if not self._wanted.force:
                raise _running(domain.name())
            _stop(domain)
        images = [place for place in self._places if place.definition.kind != "block"]
        if not self._wanted.force:
            for place in images:
                _require_unused(place.definition.place)
        if images:
            moves = [(self._staged[p.wanted.source_id].path, p.definition.place) for p in images]
            write_mark(mark_path(_mark_folder(moves), self._wanted.task_id), moves)
            _go_forward(domain, self._wanted.task_id, moves)
        _clear(domain)
        if self._wanted.power_on:
            lib = library()
            try:
                domain.create()
            except lib.libvirtError as err:
                self._warnings.append(f"The machine is restored, but libvirt could not start it: {err}.")

    def _with_domain(self, work: Callable[[Domain], None]) -> None:
        address = parse_address(self._wanted.target.path)
        with connected(address.uri) as connection:
            work(require_domain(connection, address.domain))

    def _close(self) -> None:
        for image in self._staged.values():
            if self._finished:
                image.close()
            else:
                image.discard()  # what was moved has its staging name no more
        self._closing.close()


def recover(domain: Domain, definition: Definition, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
    """Forward where all was staged and marked, back where it was not. A machine that runs waits for another time."""
    places = {item.place for item in definition.disks if item.kind == "file" and item.place.startswith("/")}
    folders = sorted({os.path.dirname(place) for place in places})
    settled = []
    for task_id in sorted(finished_tasks):
        marks = [mark for mark in (read_mark(mark_path(folder, task_id)) for folder in folders) if mark is not None]
        for moves in marks:
            if any(os.path.dirname(a) != os.path.dirname(b) or b not in places for a, b in moves):
                raise TargetDenied(reason="The mark of a restore beside the images names other places. Remove it.")
            if domain.isActive():
                raise TargetBusy(
                    reason=f"A restore of {definition.name} was cut short and the machine runs. Switch it off."
                )
            _go_forward(domain, task_id, moves)
            _clear(domain)
            settled.append(Recovered(task_id=task_id, outcome="forward"))
        removed = [folder for folder in folders if remove_staged(folder, task_id, new=False)]
        if removed and not marks:
            settled.append(Recovered(task_id=task_id, outcome="back"))
    return tuple(settled)


def _go_forward(domain: Domain, task_id: str, moves: Sequence[tuple[str, str]]) -> None:
    """From the mark to its removal; may be run again at any point."""
    try:
        move(moves)
    except OSError as err:
        raise target_error(err, os.fsencode(moves[0][1]), "replace") from err
    remove_mark(mark_path(_mark_folder(moves), task_id))


def _clear(domain: Domain) -> None:
    """What was known of the old content: it must not be applied to the new. Raises SourceError."""
    lib = library()
    if call("look for a saved state", domain.hasManagedSaveImage):
        call("remove the saved state", domain.managedSaveRemove)
    for checkpoint in call("list the machine's checkpoints", domain.listAllCheckpoints):
        call("forget a checkpoint", checkpoint.delete, lib.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _stop(domain: Domain) -> None:
    """As pulling the plug: what it holds is about to be replaced. Raises SourceError."""
    if domain.isActive():
        call("stop the machine", domain.destroy)


def _look(wanted: MachineRestoreWanted) -> _Look:
    address = parse_address(wanted.target.path)
    conflicts: list[SourceError] = []
    try:
        with connected(address.uri) as connection:
            domain = require_domain(connection, address.domain)
            definition = _definition(domain)
            require_own(definition, address)
            places = _match(
                wanted, [(d.id, d.size_bytes, item) for d, item in find_disks(domain, definition)], conflicts
            )
            warnings = _warnings(domain)
            if domain.isActive() and not wanted.force:
                conflicts.append(_running(definition.name))
    except SourceError as err:
        return _Look(places=(), conflicts=(err,), warnings=(), needed_bytes=0, free_bytes=0)
    staged = [place for place in places if place.definition.kind == "file"]
    needed = sum(place.size for place in staged)
    free = min((_free(place.folder, conflicts) for place in staged), default=0)
    if needed > free and staged:
        warnings.append(
            f"The disks have {human_bytes(needed)}, beside the old images {human_bytes(free)} are free: the restore "
            "fails if they are not sparse enough."
        )
    return _Look(
        places=tuple(places),
        conflicts=tuple(conflicts),
        warnings=tuple(warnings),
        needed_bytes=needed,
        free_bytes=free,
    )


def _match(
    wanted: MachineRestoreWanted, found: Sequence[tuple[str, int, DiskDefinition]], conflicts: list[SourceError]
) -> list[_Place]:
    by_id = {id_: (size, item) for id_, size, item in found}
    places = []
    for disk in wanted.disks:
        size, item = by_id.get(disk.target_id or "", (0, None))
        if item is None:
            conflicts.append(SourceGone(reason=f"The machine has no disk any more for {disk.name}. Choose another."))
            continue
        if item.kind not in ("file", "block") or not item.place.startswith("/"):
            conflicts.append(TargetDenied(reason=f"The disk {item.device} is neither an image file nor a device."))
        elif item.format not in FORMATS or (item.kind == "block" and item.format != "raw"):
            conflicts.append(TargetDenied(reason=f"The disk {item.device} is of format {item.format}: not supported."))
        elif size < disk.size_bytes and (item.kind == "block" or not wanted.same_resource) and not wanted.force:
            conflicts.append(
                TargetTooSmall(
                    reason=f"The backup of {disk.name} has {human_bytes(disk.size_bytes)}, the disk {item.device} "
                    f"{human_bytes(size)}. Choose a larger one."
                )
            )
        own = disk.size_bytes if wanted.same_resource else max(disk.size_bytes, size)
        places.append(_Place(wanted=disk, definition=item, size=own))
    if len({place.definition.device for place in places}) != len(places):
        conflicts.append(TargetDenied(reason="Two disks of the backup are to go onto one. Choose another mapping."))
    return places


def _warnings(domain: Domain) -> list[str]:
    warnings = []
    if call("count the machine's snapshots", domain.snapshotNum):
        warnings.append("The machine has snapshots: those of the replaced disks are void after the restore.")
    if call("look for a saved state", domain.hasManagedSaveImage):
        warnings.append("The machine's saved state fits the old disks only: it is removed.")
    return warnings


def _definition(domain: Domain) -> Definition:
    return read_definition(call("read the machine's definition", domain.XMLDesc))


def _running(name: str) -> TargetBusy:
    return TargetBusy(reason=f"The machine {name} runs. Switch it off, or force the restore, which stops it.")


def _require_unused(place: str) -> None:
    try:
        fd = open_image(os.fsencode(place))
    except SourceGone:
        return
    try:
        require_unused(find_openers(fd).holders, place)
    finally:
        os.close(fd)


def _mark_folder(moves: Sequence[tuple[str, str]]) -> str:
    return os.path.dirname(moves[0][1])


def _free(folder: str, conflicts: list[SourceError]) -> int:
    try:
        space = os.statvfs(folder)
    except OSError as err:
        conflicts.append(target_error(err, os.fsencode(folder), "look at"))
        return 0
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        conflicts.append(SourceDenied(reason=f"The service may not write to {folder}, beside the images."))
    return (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize
