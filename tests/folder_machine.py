"""Machines that are folders of disk images: a driver of sources/machines/base.py without a hypervisor.

    <folder>/machine.json          {"power": "running", "disks": {"vda": "<disk id>", ...}}
    <folder>/<name>.img            a disk
    <folder>/points/<token>/       what a point holds: copies of the disks; `open` in it until it is committed

A point is a copy of all disks; what changed since its parent is found by comparing with the parent's copy, whose name
is the token. So it knows all that the real ones know, and a dead process leaves at it what it leaves at them.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.base.errors import SourceGone, TargetBusy
from strongroom.base.ids import new_id
from strongroom.base.streams import BlockTarget, Extent, ExtentKind
from strongroom.sources.base import Detail, DoneCallback, Recovered, SourceRef, TargetReport
from strongroom.sources.machines.base import (
    Ability,
    Consistency,
    Disk,
    MachineInspection,
    MachineRestorePlan,
    MachineRestoreWanted,
    MachineWanted,
)

BLOCK = 65536
dead: set[Path] = set()  # folders whose user was killed: nothing is cleaned up there any more


def make_machine(folder: Path, disks: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in disks.items():
        (folder / f"{name}.img").write_bytes(data)
    _save(folder, {"power": "running", "disks": {name: new_id() for name in disks}})
    return folder


def address(folder: Path) -> bytes:
    return b"folder:" + os.fsencode(folder)


def facts(folder: Path) -> dict[str, object]:
    return json.loads((folder / "machine.json").read_text())  # type: ignore[no-any-return]


def _save(folder: Path, known: Mapping[str, object]) -> None:
    (folder / "machine.json").write_text(json.dumps(known))


class ImageStream:
    """A disk of a point: SAME where the parent's copy is equal."""

    def __init__(self, path: Path, parent: Path | None) -> None:
        self._data = path.read_bytes()
        self._parent = parent.read_bytes() if parent is not None else None
        self.size = len(self._data)
        self.bytes_read = 0

    def extents(self) -> Iterator[Extent]:
        for at in range(0, self.size, BLOCK):
            end = min(self.size, at + BLOCK)
            piece = self._data[at:end]
            if self._parent is not None and self._parent[at:end] == piece:
                kind = ExtentKind.SAME
            else:
                kind = ExtentKind.DATA if any(piece) else ExtentKind.ZERO
            yield Extent(at, end - at, kind)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        piece = self._data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self.bytes_read += len(piece)
        return len(piece)


@dataclass(kw_only=True)
class FolderDisk:
    disk: Disk
    stream: ImageStream
    token: bytes
    full_reason: str | None
    metadata: Mapping[str, Detail] = field(default_factory=dict)


class FolderPoint:
    """A copy of all disks."""

    def __init__(self, folder: Path, wanted: MachineWanted, consistency: Consistency, reason: str | None) -> None:
        known = facts(folder)
        self._folder = folder
        self._name = new_id()
        self._place = folder / "points" / self._name
        self._place.mkdir(parents=True)
        (self._place / "open").touch()
        every = _disks(folder)
        chosen = [d for d in every if (wanted.included is None or d.id in wanted.included)]
        chosen = [d for d in chosen if d.id not in wanted.excluded]
        for disk in chosen:
            shutil.copyfile(folder / f"{disk.name}.img", self._place / f"{disk.name}.img")
        self.disks = [self._open(disk, wanted) for disk in chosen]
        self.left_out = [disk for disk in every if disk not in chosen]
        self.taken_at_ns = 1_700_000_000_000_000_000
        self.consistency: Consistency = consistency
        self.consistency_reason = reason
        self.definition = b"<folder-machine/>"
        self.metadata: Mapping[str, object] = {"power": known["power"], "nics": [{"mac": "52:54:00:00:00:01"}]}

    def _open(self, disk: Disk, wanted: MachineWanted) -> FolderDisk:
        token = wanted.parent_tokens.get(disk.id)
        parent, reason = None, "It is the first backup of the disk."
        if wanted.full:
            reason = "A full backup was asked for."
        elif token is not None:
            old = self._folder / "points" / token.decode()
            parent = old / f"{disk.name}.img"
            reason = "What changed since the last backup is not known any more."
            if not parent.exists() or (old / "open").exists():
                parent = None
        stream = ImageStream(self._place / f"{disk.name}.img", parent)
        return FolderDisk(
            disk=disk, stream=stream, token=self._name.encode(), full_reason=None if parent is not None else reason
        )

    def __enter__(self) -> "FolderPoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    def commit(self) -> None:
        if self._folder in dead:
            return
        (self._place / "open").unlink(missing_ok=True)
        for other in (self._folder / "points").iterdir():
            if other != self._place:
                shutil.rmtree(other)

    def abort(self) -> None:
        if self._folder not in dead and (self._place / "open").exists():
            shutil.rmtree(self._place)


def _disks(folder: Path) -> list[Disk]:
    known = facts(folder)["disks"]
    assert isinstance(known, dict)
    return [
        Disk(
            id=id_,
            name=name,
            size_bytes=(folder / f"{name}.img").stat().st_size,
            is_boot=name == "vda",
            place=str(folder / f"{name}.img"),
        )
        for name, id_ in sorted(known.items())
    ]


class FolderDiskTarget:
    def __init__(self, path: Path, on_done: DoneCallback | None) -> None:
        self._path = path
        self._on_done = on_done
        self.size = path.stat().st_size

    def write(self, offset: int, data: memoryview) -> None:
        with self._path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        if self._on_done is not None:
            self._on_done(offset, len(data))

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, memoryview(bytes(length)))

    def flush(self) -> None:
        return None


class FolderMachineTarget:
    """In place for a machine that is there; a new one is put together beside it and renamed at the end."""

    def __init__(self, plan: MachineRestorePlan, on_done: Mapping[str, DoneCallback]) -> None:
        wanted = plan.wanted
        self._wanted = wanted
        self._folder = _folder(wanted.target)
        self._place = self._folder
        if wanted.new_name is not None:
            self._place = self._folder.with_name(f".new-{wanted.task_id}")
            make_machine(self._place, {disk.name: bytes(disk.size_bytes) for disk in wanted.disks})
        names = {disk.id: disk.name for disk in _disks(self._place)}
        self.disks: Mapping[str, BlockTarget] = {
            disk.source_id: FolderDiskTarget(
                self._place / f"{names.get(disk.target_id or '', disk.name)}.img", on_done.get(disk.source_id)
            )
            for disk in wanted.disks
        }

    def __enter__(self) -> "FolderMachineTarget":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._place.name.startswith(".new-") and self._folder not in dead:
            shutil.rmtree(self._place, ignore_errors=True)

    def finish(self) -> TargetReport:
        _save(self._place, facts(self._place) | {"power": "running" if self._wanted.power_on else "off"})
        if self._wanted.new_name is not None:
            self._place.rename(self._folder.with_name(self._wanted.new_name))
            self._place = self._folder.with_name(self._wanted.new_name)
        return TargetReport()


def _folder(ref: SourceRef) -> Path:
    return Path(os.fsdecode(ref.path.partition(b":")[2]))


class FolderMachines:
    """`consistency` and `reason`: what the next points reach."""

    consistency: Consistency = "crash_consistent"
    reason: str | None = None

    def inspect(self, ref: SourceRef) -> MachineInspection:
        folder = _folder(ref)
        if not folder.is_dir():
            return MachineInspection(exists=False, readable=False, reason="There is no such machine.")
        return MachineInspection(
            exists=True,
            readable=True,
            disks=tuple(_disks(folder)),
            power="running",
            abilities=(Ability(name="incremental", works=True, reason="Copies are compared."),),
        )

    def open_machine(self, ref: SourceRef, wanted: MachineWanted) -> FolderPoint:
        folder = _folder(ref)
        if not folder.is_dir():
            raise SourceGone(reason="There is no such machine.")
        return FolderPoint(folder, wanted, self.consistency, self.reason)

    def plan_restore(self, wanted: MachineRestoreWanted) -> MachineRestorePlan:
        needed = sum(disk.size_bytes for disk in wanted.disks)
        there = {disk.id for disk in _disks(_folder(wanted.target))}
        missing = [disk.name for disk in wanted.disks if wanted.new_name is None and disk.target_id not in there]
        return MachineRestorePlan(
            wanted=wanted,
            needed_bytes=needed,
            free_bytes=needed,
            conflicts=tuple(f"It has no disk for {name}." for name in missing),
        )

    def open_target(self, plan: MachineRestorePlan, on_done: Mapping[str, DoneCallback]) -> FolderMachineTarget:
        if plan.conflicts:
            raise TargetBusy(reason=plan.conflicts[0])
        return FolderMachineTarget(plan, on_done)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        """Points that nobody committed go; what is half made of a new machine too."""
        folder = _folder(ref)
        for task_id in finished_tasks:
            shutil.rmtree(folder.with_name(f".new-{task_id}"), ignore_errors=True)
        if not (folder / "points").is_dir():
            return ()
        for place in (folder / "points").iterdir():
            if (place / "open").exists():
                shutil.rmtree(place)
        return ()
