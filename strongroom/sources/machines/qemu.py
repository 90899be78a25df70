"""The driver of bare QEMU: a machine whose monitor is a socket on this host, with nobody above it (no libvirt).

Point: `qemu_point.py`. Restore: `qemu_target.py`. What a dead process left: `qemu_leftovers.py`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import InvalidRequest, MachineBusy, SourceError, SourceGone
from strongroom.base.units import human_bytes
from strongroom.sources.base import DoneCallback, Recovered, SourceRef
from strongroom.sources.machines.base import (
    Ability,
    MachineInspection,
    MachineRestorePlan,
    MachineRestoreWanted,
    MachineWanted,
)
from strongroom.sources.machines.guest_agent import GuestAgent
from strongroom.sources.machines.qemu_leftovers import settle
from strongroom.sources.machines.qemu_point import QemuPoint
from strongroom.sources.machines.qemu_target import (
    DiskDriver,
    QemuTarget,
    disk_task,
    go_forward,
    look_at_machine,
    remove_stages,
)
from strongroom.sources.machines.qemu_view import (
    QemuAddress,
    QemuDisk,
    find_agent,
    find_disks,
    parse_address,
    power_of,
    require_safe,
)
from strongroom.sources.machines.qmp import QmpClient

_NOT_NOW = ("inmigrate", "finish-migrate", "postmigrate", "restore-vm", "save-vm", "internal-error", "io-error")


class QemuDriver:
    """MachineDriver of addresses qemu:/folder/monitor.sock (see QemuAddress).

    disk_driver  finds the driver of an image file or device by its path: restores are written by it
    """

    def __init__(self, disk_driver: DiskDriver, clock: Clock | None = None) -> None:
        self._disk_driver = disk_driver
        self._clock = clock or SystemClock()

    def inspect(self, ref: SourceRef) -> MachineInspection:
        try:
            address = parse_address(ref.path)
            with QmpClient.connect(address.monitor) as monitor:
                return _inspect(monitor, ref, address)
        except SourceGone as err:
            return MachineInspection(exists=False, readable=False, reason=err.message)
        except (SourceError, InvalidRequest) as err:
            return MachineInspection(exists=isinstance(err, MachineBusy), readable=False, reason=err.message)

    def open_machine(self, ref: SourceRef, wanted: MachineWanted) -> QemuPoint:
        return QemuPoint(ref, parse_address(ref.path), wanted, self._clock)

    def plan_restore(self, wanted: MachineRestoreWanted) -> MachineRestorePlan:
        return look_at_machine(wanted, self._disk_driver)[0]

    def open_target(self, plan: MachineRestorePlan, on_done: Mapping[str, DoneCallback]) -> QemuTarget:
        _, places, conflicts = look_at_machine(plan.wanted, self._disk_driver)  # the plan may be old
        if conflicts:
            raise conflicts[0]
        return QemuTarget(plan.wanted, places, on_done)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        """A machine that does not run, or is being backed up by somebody who lives, has no point to settle. Images of
        restores that never ended are found where the machine's address says that new ones go."""
        address = parse_address(ref.path)
        found = [Recovered(task_id=task_id, outcome="forward") for task_id in go_forward(ref, finished_tasks)]
        try:
            with QmpClient.connect(address.monitor) as monitor:
                settle(monitor, address.agent)
                disks = [each.disk for each in find_disks(monitor, ref)]
        except (SourceGone, MachineBusy):
            disks = []
        found += [Recovered(task_id=task_id, outcome="back") for task_id in remove_stages(address, finished_tasks)]
        for disk in disks:
            place = os.fsencode(disk.place)
            if place.startswith(b"/"):
                tasks = {disk_task(task_id, disk.id): task_id for task_id in finished_tasks}
                image = SourceRef(resource_id=disk.id, type="OS::Cinder::Volume", path=place)
                gone = self._disk_driver(place).recover(image, frozenset(tasks))
                found += [replace(each, task_id=tasks[each.task_id]) for each in gone]
        return tuple(found)


def _inspect(monitor: QmpClient, ref: SourceRef, address: QemuAddress) -> MachineInspection:
    status = str(monitor.execute("query-status")["status"])
    settle(monitor, address.agent)
    disks = find_disks(monitor, ref)
    agent = address.agent or find_agent(monitor)
    reason = None
    if status in _NOT_NOW:
        reason = (
            f"The machine is in a state without a consistent view of its disks ({status}). Run the task again later."
        )
    elif not disks:
        reason = "The machine has no disk that can be backed up."
    return MachineInspection(
        exists=True,
        readable=reason is None,
        disks=tuple(each.disk for each in disks),
        power=power_of(status),
        reason=reason,
        abilities=(_incremental(disks), _consistency(agent), _scratch(monitor, address, disks)),
        detail={"qemu": ".".join(map(str, monitor.version)), "agent": agent, "status": status},
    )


def _incremental(disks: Sequence[QemuDisk]) -> Ability:
    without = [each.disk.name for each in disks if not each.persistent]
    if not without:
        return Ability(name="incremental", works=True, reason="All disks keep a list of what changed.")
    return Ability(
        name="incremental",
        works=True,
        reason=f"After QEMU was restarted these disks are read whole once: {', '.join(without)}. Only qcow2 images of "
        "version 3 keep the list of what changed.",
    )


def _consistency(agent_path: str | None) -> Ability:
    name = "consistency"
    if agent_path is None:
        reason = "Crash-consistent only: the machine has no channel to a guest's agent. Give it a virtserialport."
        return Ability(name=name, works=False, reason=reason)
    try:
        with GuestAgent.connect(agent_path) as agent:
            hooks = agent.runs_hooks()
    except SourceError as err:
        return Ability(name=name, works=False, reason=f"Crash-consistent only: {err.message}")
    if hooks:
        return Ability(name=name, works=True, reason="Application-consistent: the guest's agent runs freeze hooks.")
    reason = "File-system-consistent: the guest's agent freezes file systems, and runs no hooks for applications."
    return Ability(name=name, works=True, reason=reason)


def _scratch(monitor: QmpClient, address: QemuAddress, disks: Sequence[QemuDisk]) -> Ability:
    name = "scratch"
    try:
        require_safe(monitor, disks)
    except SourceError as err:
        return Ability(name=name, works=False, reason=err.message)
    try:
        space = os.statvfs(address.scratch)
    except OSError as err:
        return Ability(
            name=name, works=False, reason=f"{address.scratch} cannot be used: {os.strerror(err.errno or 0)}."
        )
    free, total = space.f_bavail * space.f_frsize, sum(each.disk.size_bytes for each in disks)
    reason = (
        f"{human_bytes(free)} are free in {address.scratch} for what the guest overwrites during a backup of "
        f"{human_bytes(total)}. If they run out the backup fails, and the guest takes no harm."
    )
    return Ability(name=name, works=free > 0, reason=reason)
