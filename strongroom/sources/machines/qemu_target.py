"""Restoring a QEMU machine: its image files, by the drivers of images and devices, while no QEMU runs on them.

To the original: each disk is put together beside its image, all are made durable, then they are renamed over the old
ones, one after the other, under a mark (`moves.py`) in the folder for scratch files. After a death between two renames
the task's next attempt, or `recover`, renames the rest before anything else. Refused while the machine runs: nobody
supervises a bare QEMU, so whoever started it ends it and starts it again, with the networks, helpers and limits that
only he knows. Writing below a paused guest would be worse: it goes on with the page cache and file systems of before.

To a new machine: images, definition and command line in a folder of their own, which gets its name when all is there.
"""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from strongroom.base.errors import MachineBusy, SourceDenied, SourceError, SourceGone, TargetBusy, TargetDenied
from strongroom.base.streams import BlockTarget
from strongroom.sources.base import (
    STAGING_PREFIX,
    DoneCallback,
    Driver,
    RestorePlan,
    RestoreWanted,
    SourceRef,
    Target,
    TargetReport,
)
from strongroom.sources.image_target import ImageTarget
from strongroom.sources.machines.base import DiskWanted, MachineRestorePlan, MachineRestoreWanted
from strongroom.sources.machines.moves import move, read_mark, remove_mark, write_mark
from strongroom.sources.machines.qemu_view import QemuAddress, dump_definition, load_definition, parse_address
from strongroom.sources.machines.qmp import QmpClient
from strongroom.sources.oserrors import shown, target_error

DiskDriver = Callable[[bytes], Driver]  # which one serves an image file or device at a path
MONITOR, AGENT = "monitor.sock", "agent.sock"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_PATH_CHARACTER = r"[\w./-]"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one disk of the restore point goes."""

    wanted: DiskWanted
    path: bytes
    plan: RestorePlan
    driver: Driver


def look_at_machine(
    wanted: MachineRestoreWanted, disk_driver: DiskDriver
) -> tuple[MachineRestorePlan, list[_Place], list[SourceError]]:
    """The plan, the places of the disks, and the conflicts as errors. Touches nothing."""
    address = parse_address(wanted.target.path)
    definition = load_definition(wanted.definition)
    conflicts: list[SourceError] = []
    warnings: list[str] = []
    if wanted.new_name is None:
        conflicts += _running(address)
        if not wanted.same_resource:
            conflicts.append(TargetDenied(reason=_OTHER))
        if wanted.power_on:
            warnings.append("The machine is not started: bare QEMU has nobody who could. Start it as before.")
    else:
        folder = _new_folder(wanted, address, definition)
        conflicts += _new_conflicts(wanted, folder)
        warnings.append(f"The machine is written to {folder}. Start it with start.sh there, after a look at it.")
    places = []
    for disk in wanted.disks:
        try:
            places.append(_place(wanted, disk, address, definition, disk_driver))
        except SourceError as err:
            conflicts.append(err)
    for place in places:
        conflicts += [TargetBusy(reason=sentence) for sentence in place.plan.conflicts]
        if wanted.new_name is None:
            warnings += place.plan.warnings
    plan = MachineRestorePlan(
        wanted=wanted,
        needed_bytes=sum(place.plan.needed_bytes for place in places),
        free_bytes=min((place.plan.free_bytes for place in places), default=0),
        in_place=any(place.plan.staging is None for place in places),
        warnings=tuple(dict.fromkeys(warnings)),
        conflicts=tuple(conflict.message for conflict in conflicts),
    )
    return plan, places, conflicts


class QemuTarget:
    """MachineTarget."""

    def __init__(
        self, wanted: MachineRestoreWanted, places: Sequence[_Place], on_done: Mapping[str, DoneCallback]
    ) -> None:
        self._wanted = wanted
        self._places = places
        self._finished = False
        self._opened = contextlib.ExitStack()
        self._stage: str | None = None
        self._targets: dict[str, Target] = {}
        try:
            _complete(wanted.target, wanted.task_id)
            if wanted.new_name is not None:
                self._stage = _make_stage(os.path.dirname(os.fsdecode(places[0].path)))
            for place in places:
                target = place.driver.open_target(place.plan, on_done.get(place.wanted.source_id))
                self._targets[place.wanted.source_id] = self._opened.enter_context(target)
        except BaseException:
            self.__exit__()
            raise

    @property
    def disks(self) -> Mapping[str, BlockTarget]:
        return {name: target.stream for name, target in self._targets.items()}  # type: ignore[misc]

    def __enter__(self) -> "QemuTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._opened.close()
        finally:
            if self._stage is not None and not self._finished:
                shutil.rmtree(self._stage, ignore_errors=True)

    def finish(self) -> TargetReport:
        """What takes long comes first, for all disks: between the first and the last rename lie milliseconds."""
        for stream in self.disks.values():
            stream.flush()
        if self._wanted.new_name is None:
            for conflict in _running(parse_address(self._wanted.target.path)):
                raise conflict
        mark = self._mark_moves()
        reports = [target.finish() for target in self._targets.values()]
        if mark is not None:
            remove_mark(mark)
        warnings = [sentence for report in reports for sentence in report.warnings]
        if self._stage is not None:
            self._opened.close()
            warnings = self._name_machine(self._stage)
        self._finished = True
        return TargetReport(
            left_out=tuple(item for report in reports for item in report.left_out),
            written_bytes=sum(report.written_bytes for report in reports),
            warnings=tuple(warnings),
        )

    def _mark_moves(self) -> str | None:
        """From here on it goes forward, whoever carries it out: where the mark is. None: one rename needs none."""
        images = [target for target in self._targets.values() if isinstance(target, ImageTarget)]
        if self._stage is not None or len(images) < 2:
            return None
        for image in images:
            image.seal()
        mark = _mark_path(parse_address(self._wanted.target.path), self._wanted.task_id)
        write_mark(mark, [image.keep() for image in images])
        return mark

    def _name_machine(self, stage: str) -> list[str]:
        """Write what the machine is beside its images, and give the folder its name."""
        assert self._wanted.new_name is not None
        folder = os.path.join(os.path.dirname(stage), self._wanted.new_name)
        made, warnings = _new_definition(self._wanted, folder, {p.wanted.source_id: p.path for p in self._places})
        try:
            _write(os.path.join(stage, "machine.json"), dump_definition(made), 0o600)
            if made["command_line"]:
                script = (
                    f"#!/bin/sh\ncd {shlex.quote(made['working_folder'])}\nexec {shlex.join(made['command_line'])}\n"
                )
                _write(os.path.join(stage, "start.sh"), os.fsencode(script), 0o700)
            os.rename(stage, folder)
            fd = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as err:
            raise target_error(err, os.fsencode(folder), "make the machine in") from err
        return warnings


def disk_task(task_id: str, disk_id: str) -> str:
    """What one disk of a restore is called beside its image: several may lie in one folder."""
    return f"{task_id}-{disk_id[:24]}"


def remove_stages(address: QemuAddress, finished_tasks: frozenset[str]) -> list[str]:
    """Folders of new machines that were never finished, of these tasks; their ids."""
    gone = []
    for task_id in sorted(finished_tasks) if address.images is not None else ():
        stage = os.path.join(str(address.images), _stage_name(task_id))
        if os.path.isdir(stage) and not os.path.islink(stage):
            shutil.rmtree(stage, ignore_errors=True)
            gone.append(task_id)
    return gone


def go_forward(ref: SourceRef, finished_tasks: frozenset[str]) -> list[str]:
    """Complete restores of these tasks that died among their renames; their ids. Raises TargetBusy while the machine
    runs: it was started with disks of two moments."""
    return [task_id for task_id in sorted(finished_tasks) if _complete(ref, task_id)]


def _complete(ref: SourceRef, task_id: str) -> bool:
    address = parse_address(ref.path)
    mark = _mark_path(address, task_id)
    moves = read_mark(mark)
    if moves is None:
        return False
    for staged, place in moves:
        ours = os.path.basename(staged).startswith(_stage_name(task_id))
        if not ours or os.path.dirname(staged) != os.path.dirname(place):
            raise TargetDenied(reason=f"{mark} names files that are not of this restore. Remove it.")
    if _running(address):
        raise TargetBusy(
            reason="The machine was started before its restore had ended, with disks of two moments. Shut it down, end "
            "its QEMU, then restore again."
        )
    try:
        move(moves)
    except OSError as err:
        raise target_error(err, os.fsencode(moves[0][1]), "replace") from err
    remove_mark(mark)
    return True


def _mark_path(address: QemuAddress, task_id: str) -> str:
    return os.path.join(address.scratch, f"{_stage_name(task_id)}.ready")


_OTHER = (
    "The disks of a bare QEMU are only known while it runs, and it must not run now. Restore to a new machine, or the "
    "disks one by one into image files."
)


def _running(address: QemuAddress) -> list[SourceError]:
    try:
        QmpClient.connect(address.monitor).close()
    except SourceGone:
        return []
    except (MachineBusy, SourceDenied):
        pass
    return [TargetBusy(reason="The machine runs. Shut it down and end its QEMU, then restore again.")]


def _place(
    wanted: MachineRestoreWanted,
    disk: DiskWanted,
    address: QemuAddress,
    definition: Mapping[str, Any],
    disk_driver: DiskDriver,
) -> _Place:
    known = [each for each in definition["disks"] if each["id"] == disk.source_id]
    if not known or not known[0]["place"].startswith("/"):
        raise TargetDenied(reason=f"The restore point does not say where disk {disk.name} was. Restore it by itself.")
    if wanted.new_name is None:
        path = os.fsencode(known[0]["place"])
    else:
        kind = "qcow2" if known[0]["format"] == "qcow2" else "raw"
        stage = os.path.join(os.path.dirname(_new_folder(wanted, address, definition)), _stage_name(wanted.task_id))
        path = os.fsencode(os.path.join(stage, f"{_require_name(disk.name)}.{kind}"))
    ref = SourceRef(resource_id=disk.target_id or disk.source_id, type="OS::Cinder::Volume", path=path)
    driver = disk_driver(path)
    restore = RestoreWanted(
        task_id=disk_task(wanted.task_id, disk.source_id),
        target=ref,
        same_resource=wanted.same_resource or wanted.new_name is not None,
        kind="block",
        size_bytes=disk.size_bytes,
        force=wanted.force,
        done_ranges=disk.done_ranges,
    )
    if wanted.new_name is not None:  # the stage is made when the target is opened: until then its parent is looked at
        beside = replace(ref, path=os.path.join(os.path.dirname(os.path.dirname(path)), os.path.basename(path)))
        seen = driver.plan_restore(replace(restore, target=beside))
        return _Place(wanted=disk, path=path, plan=replace(seen, wanted=restore, conflicts=()), driver=driver)
    return _Place(wanted=disk, path=path, plan=driver.plan_restore(restore), driver=driver)


def _new_folder(wanted: MachineRestoreWanted, address: QemuAddress, definition: Mapping[str, Any]) -> str:
    """Of a new machine: beside the images of the old one, unless the address names a folder for images."""
    assert wanted.new_name is not None
    places = [disk["place"] for disk in definition["disks"]]
    parent = address.images or os.path.dirname(next((place for place in places if place.startswith("/")), "/"))
    return os.path.join(parent, _require_name(wanted.new_name))


def _require_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise TargetDenied(reason="A name of a machine or disk has letters, digits, '_', '.' and '-', at most 64.")
    return name


def _new_conflicts(wanted: MachineRestoreWanted, folder: str) -> list[SourceError]:
    parent = os.fsencode(os.path.dirname(folder))
    if os.path.lexists(folder):
        return [TargetBusy(reason=f"{shown(os.fsencode(folder))} exists already. Choose another name.")]
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        return [
            TargetDenied(
                reason=f"The service may not write to {shown(parent)}. Name a folder (images= in the address)."
            )
        ]
    return [] if wanted.disks else [TargetDenied(reason="A new machine needs at least one disk.")]


def _stage_name(task_id: str) -> str:
    return os.fsdecode(STAGING_PREFIX) + task_id


def _make_stage(stage: str) -> str:
    """An empty folder; what an earlier attempt of the same task left goes."""
    try:
        if os.path.isdir(stage) and not os.path.islink(stage):
            shutil.rmtree(stage)
        os.mkdir(stage, 0o700)
    except OSError as err:
        raise target_error(err, os.fsencode(stage), "make a machine in") from err
    return stage


def _new_definition(
    wanted: MachineRestoreWanted, folder: str, paths: Mapping[str, bytes]
) -> tuple[dict[str, Any], list[str]]:
    """The definition with the new places, and what to look at before it is started."""
    made = load_definition(wanted.definition)
    words = made["command_line"]
    warnings = []
    for disk in made["disks"]:
        path = paths.get(disk["id"])
        if path is None:
            warnings.append(f"Disk {disk['name']} was not restored: take it out of start.sh.")
            continue
        new = os.path.join(folder, os.path.basename(os.fsdecode(path)))
        words = _moved(words, disk["place"], new, made["working_folder"])
        disk["place"] = new
    old = parse_address(wanted.target.path)
    words = _moved(words, old.monitor, os.path.join(folder, MONITOR), "/")
    if made.get("agent") or old.agent:
        words = _moved(words, made.get("agent") or str(old.agent), os.path.join(folder, AGENT), "/")
    if made.get("nics"):
        warnings.append("It has the network addresses of the old machine: do not run both in one network.")
    if not words:
        warnings.append("The restore point does not hold the command line: write one for the images.")
    made |= {"command_line": words, "name": wanted.new_name}
    return made, warnings


def _moved(words: Sequence[str], old: str, new: str, working_folder: str) -> list[str]:
    """Every whole mention of a path, absolute or as it is seen from the working folder, replaced."""
    forms = {old, os.path.relpath(old, working_folder)}
    found = re.compile("|".join(rf"(?<!{_PATH_CHARACTER}){re.escape(form)}(?!{_PATH_CHARACTER})" for form in forms))
    return [found.sub(lambda _: new, word) for word in words]


def _write(path: str, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
