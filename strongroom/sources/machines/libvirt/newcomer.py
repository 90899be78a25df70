"""Restoring into a new machine: its disks are put together in a folder of images, then it is defined.

    1 plan    name, folder, room      2 open    staged images in that folder
    3 seal    everything durable      4 link    each to its own name, which must be free
    5 define  the commit: the machine has its own name, UUID and network addresses
    6 unlink  the staging names       7 power   on, when that was asked for

Death before 5 leaves images that belong to nobody: `recover` finds them by their staging names and removes both names.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Mapping

from strongroom.base.errors import SourceError, SourceGone, TargetDenied
from strongroom.base.streams import BlockTarget
from strongroom.base.units import human_bytes
from strongroom.sources.base import Recovered, TargetReport
from strongroom.sources.machines.base import DiskWanted, MachineRestorePlan, MachineRestoreWanted
from strongroom.sources.machines.libvirt.binding import (
    Address,
    Connection,
    call,
    connected,
    library,
    parse_address,
    require_domain,
)
from strongroom.sources.machines.libvirt.definition import Definition, parse_xml, read_definition, renewed
from strongroom.sources.machines.libvirt.scratch import room_in
from strongroom.sources.machines.libvirt.staged import (
    FORMATS,
    NEW,
    StagedImage,
    remove_staged,
    staged_name,
    staged_prefix,
)
from strongroom.sources.machines.moves import sync_folder
from strongroom.sources.oserrors import target_error

POOL = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_ENDINGS = {"qcow2": "qcow2", "raw": "img"}


def plan(wanted: MachineRestoreWanted) -> MachineRestorePlan:
    conflicts: list[str] = []
    warnings: list[str] = []
    needed, free = sum(disk.size_bytes for disk in wanted.disks), 0
    try:
        folder = _check(wanted, conflicts)
        free = room_in(folder) or 0
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            conflicts.append(f"The service may not write to {folder}, where the new disks would be.")
    except SourceError as err:
        conflicts.append(err.message)
    if needed > free:
        warnings.append(
            f"The disks have {human_bytes(needed)}, {human_bytes(free)} are free: the restore fails if they are not "
            "sparse enough."
        )
    return MachineRestorePlan(
        wanted=wanted,
        needed_bytes=needed,
        free_bytes=free,
        in_place=False,
        warnings=tuple(warnings),
        conflicts=tuple(conflicts),
    )


def open_target(prepared: MachineRestorePlan) -> "NewDomain":
    """Raises TargetDenied on a conflict."""
    wanted = prepared.wanted
    conflicts: list[str] = []
    folder = _check(wanted, conflicts)
    if conflicts:
        raise TargetDenied(reason=conflicts[0])
    address = parse_address(wanted.target.path)
    with connected(address.uri) as connection:
        _settle(connection, folder, wanted.task_id)
    return NewDomain(wanted, address, folder)


class NewDomain:
    """MachineTarget of a machine that does not exist yet."""

    def __init__(self, wanted: MachineRestoreWanted, address: Address, folder: str) -> None:
        self._wanted = wanted
        self._address = address
        self._definition = read_definition(wanted.definition)
        self._staged: dict[str, StagedImage] = {}
        self._files: dict[str, tuple[str, str]] = {}
        try:
            for disk in wanted.disks:
                image_format = _format(self._definition, disk)
                self._files[disk.name] = (_file(folder, wanted, disk, image_format), image_format)
                self._staged[disk.source_id] = StagedImage(
                    folder, wanted.task_id, NEW + disk.name, image_format, disk.size_bytes
                )
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "NewDomain":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    @property
    def disks(self) -> Mapping[str, BlockTarget]:
        return {source_id: image.client for source_id, image in self._staged.items()}

    def finish(self) -> TargetReport:
        for image in self._staged.values():
            image.seal(None)
        made: list[str] = []
        try:
            for disk in self._wanted.disks:
                place = self._files[disk.name][0]
                os.link(self._staged[disk.source_id].path, place)
                made.append(place)
            sync_folder(os.path.dirname(made[0]))
            warnings = self._define()
        except BaseException as err:
            for place in made:
                with contextlib.suppress(OSError):
                    os.unlink(place)
            if isinstance(err, OSError):
                raise target_error(err, os.fsencode(self._files[self._wanted.disks[0].name][0]), "make") from err
            raise
        return TargetReport(written_bytes=sum(disk.size_bytes for disk in self._wanted.disks), warnings=tuple(warnings))

    def _define(self) -> list[str]:
        lib = library()
        wanted = self._wanted
        xml = renewed(wanted.definition, name=str(wanted.new_name), new_uuid=str(uuid.uuid4()), files=self._files)
        with connected(self._address.uri) as connection:
            domain = call("define the new machine", connection.defineXML, xml)
            with contextlib.suppress(lib.libvirtError):
                connection.storagePoolLookupByName(POOL).refresh()
            if not wanted.power_on:
                return []
            try:
                domain.create()
            except lib.libvirtError as err:
                return [f"The new machine is there, but libvirt could not start it: {err}."]
        return []

    def _close(self) -> None:
        for image in self._staged.values():
            image.discard()  # the staging name only: the image has its own by now, or is nobody's


def recover(
    connection: Connection, definition: Definition, address: Address, finished_tasks: frozenset[str]
) -> tuple[Recovered, ...]:
    """Images of new machines that were never defined go; of those that were, the staging names."""
    folder = _folder(connection, address, definition)
    if folder is None or not finished_tasks:
        return ()
    return tuple(
        Recovered(task_id=task_id, outcome="back")
        for task_id in sorted(finished_tasks)
        if _settle(connection, folder, task_id)
    )


def _settle(connection: Connection, folder: str, task_id: str) -> bool:
    """Second names of staged images that no machine has as its disk go first, so that a death in between is found."""
    prefix = staged_prefix(task_id, new=True)
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
        staged = {os.stat(os.path.join(folder, n)).st_ino for n in names if n.startswith(prefix)}
        if not staged:
            return False
        used = _used_places(connection)
        for name in names:
            place = os.path.join(folder, name)
            linked = os.lstat(place)
            if linked.st_ino in staged and not name.startswith(prefix) and place not in used:
                os.unlink(place)
    return remove_staged(folder, task_id, new=True)


def _used_places(connection: Connection) -> set[str]:
    used = set()
    for domain in call("list the machines", connection.listAllDomains):
        definition = read_definition(call("read a machine's definition", domain.XMLDesc))
        used |= {item.place for item in definition.disks}
    return used


def _check(wanted: MachineRestoreWanted, conflicts: list[str]) -> str:
    """The folder of the new disks; what stands against it is added to `conflicts`. Raises SourceError."""
    address = parse_address(wanted.target.path)
    name = str(wanted.new_name)
    if not _NAME.fullmatch(name):
        conflicts.append("The name of a new machine has letters, digits, and . _ + - only, 64 at most.")
    definition = read_definition(wanted.definition)
    with connected(address.uri) as connection:
        try:
            require_domain(connection, name)
        except SourceGone:
            pass
        else:
            conflicts.append(f"There is a machine {name} already. Choose another name.")
        folder = _folder(connection, address, definition)
    if folder is None:
        raise TargetDenied(
            reason=f"No folder for the new disks: libvirt has no pool {POOL}, and the old folder is gone. Name one "
            "with images= in the address of the machine."
        )
    for disk in wanted.disks:
        staged_name(wanted.task_id, NEW + disk.name)
        place = _file(folder, wanted, disk, _format(definition, disk))
        if os.path.lexists(place):
            conflicts.append(f"There is a file {place} already. Choose another name for the machine.")
    return folder


def _folder(connection: Connection, address: Address, definition: Definition) -> str | None:
    if address.images is not None:
        return address.images
    with contextlib.suppress(library().libvirtError):
        path = parse_xml(connection.storagePoolLookupByName(POOL).XMLDesc()).findtext("./target/path")
        if path and os.path.isdir(path):
            return path
    for item in definition.disks:
        if item.kind == "file" and os.path.isdir(os.path.dirname(item.place)):
            return os.path.dirname(item.place)
    return None


def _format(definition: Definition, disk: DiskWanted) -> str:
    """As the old disk's where that was an image file of a format we write; else qcow2."""
    for item in definition.disks:
        if item.device == disk.name and item.kind == "file" and item.format in FORMATS:
            return item.format
    return "qcow2"


def _file(folder: str, wanted: MachineRestoreWanted, disk: DiskWanted, image_format: str) -> str:
    return os.path.join(folder, f"{wanted.new_name}-{disk.name}.{_ENDINGS[image_format]}")
