"""The story of a restore of a machine: disks of one restore point onto those of a server, or onto a new one.

    before   as of any restore (restore.py): rows of task, backup and target; which disk goes where was decided
    1 plan   the hypervisor looks at the target and names conflicts; nothing is touched
    2 open   the target is stopped, or the disks of a new one are made beside it
    3 pour   one disk after another, every chunk checked against its id; done ranges of disks written in place are kept
    4 finish durable, moved into place, defined, and in the power state that was asked for
    5 commit rows, one transaction WHERE generation = mine

Death in 3 or 4: the next attempt goes on with what is not done; if there is none, a target that was written in place,
or of which disks had begun to move, stands in error, "half restored", until the same restore has run to its end. A new
server appears in 4 or not at all.
"""

import threading

from strongroom.base.errors import Corrupt, ObjectMissing
from strongroom.control import restores, tasks
from strongroom.control.restores import RestoreJob
from strongroom.engine import restore_block
from strongroom.engine.repository import Repository
from strongroom.operations.job import Job, source_ref
from strongroom.operations.machine_record import load_definition
from strongroom.operations.ranges import STATE_INTERVAL_S, merged
from strongroom.sources.machines.base import DiskWanted, MachineRestoreWanted
from strongroom.sources.open import machine_driver_for

Ranges = list[tuple[int, int]]  # (offset, length) in bytes


def restore_machine(job: Job, plan: RestoreJob) -> None:
    """One attempt. Raises what stops it."""
    tools, task = job.tools, job.task
    driver = machine_driver_for(plan.target.path)
    started_s = tools.clock.monotonic_s()
    repository = tools.repository(plan.vault, task.id, domain_id=plan.domain_id)
    done = _Done(job)
    definition, unread = _definition(plan, repository)
    prepared = driver.plan_restore(_wanted(job, plan, definition, done))
    on_done = {disk.backup.resource_id: done.of(disk.backup.resource_id) for disk in plan.disks}
    total = sum(disk.backup.size_bytes for disk in plan.disks)
    restored = before = 0
    warnings = [*unread, *prepared.warnings]
    replaces = plan.new_name is None
    with driver.open_target(prepared, on_done) as target:
        if replaces and prepared.in_place:
            done.begin()
        for disk in plan.disks:
            monitor = _DiskMonitor(job, before, total)
            report = restore_block(repository, disk.backup.root, target.disks[disk.backup.resource_id], monitor=monitor)
            warnings += report.warnings
            restored += report.bytes
            before += disk.backup.size_bytes
        job.fence()
        if replaces and len(plan.disks) > 1:
            done.begin()  # disks move into place one after another
        finished = target.finish()
    outcome: dict[str, object] = {
        "warnings": list(dict.fromkeys([*warnings, *finished.warnings])),
        "left_out_count": len(finished.left_out),
        "left_out": [],
        "bytes": restored,
        "entries": len(plan.disks),
        "disks": [{"backup_id": d.backup.id, "name": d.backup.disk_name, "volume_id": d.target_id} for d in plan.disks],
        "seconds": round(tools.clock.monotonic_s() - started_s, 3),
    }
    tools.portal.call(restores.commit_restore(tools.database, task, outcome, tools.clock))


def _definition(plan: RestoreJob, repository: Repository) -> tuple[bytes, list[str]]:
    """(the machine's definition, warnings). Disks go back without it; a new server is made of it.

    Raises Corrupt, ObjectMissing when a new one is asked for."""
    try:
        return load_definition(repository, plan.root), []
    except (Corrupt, ObjectMissing) as err:
        if plan.new_name is not None:
            raise
        return b"", [f"The definition of the server cannot be read: {err.message}"]


def _wanted(job: Job, plan: RestoreJob, definition: bytes, done: "_Done") -> MachineRestoreWanted:
    return MachineRestoreWanted(
        task_id=job.task.id,
        target=source_ref(plan.target),
        same_resource=plan.same_resource,
        disks=tuple(
            DiskWanted(
                source_id=disk.backup.resource_id,
                name=disk.backup.disk_name,
                size_bytes=disk.backup.size_bytes,
                target_id=disk.target_id,
                done_ranges=tuple(done.ranges.get(disk.backup.resource_id, ())),
            )
            for disk in plan.disks
        ),
        definition=definition,
        new_name=plan.new_name,
        power_on=plan.power_on,
        force=plan.force,
        check=job.monitor.check,
    )


class _DiskMonitor:
    """Progress of one disk as a part of the whole."""

    def __init__(self, job: Job, before_bytes: int, total_bytes: int) -> None:
        self._job, self._before, self._total = job, before_bytes, total_bytes

    def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
        self._job.monitor.advance(self._before + bytes_done, self._total, entries_done)

    def check(self) -> None:
        self._job.monitor.check()


class _Done:
    """Ranges of each disk that are durable in place, saved in the task's row at most once a second."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        saved = job.task.state.get("done_of", {})
        self.ranges: dict[str, Ranges] = {disk: [(int(o), int(n)) for o, n in found] for disk, found in saved.items()}
        self._saved_s = job.tools.clock.monotonic_s()

    def begin(self) -> None:
        """From here on the target is neither old nor new, whatever ends this attempt."""
        with self._lock:
            self._save()

    def of(self, disk: str) -> "_DoneOfDisk":
        return _DoneOfDisk(self, disk)

    def add(self, disk: str, offset: int, length: int) -> None:
        """A range is durable and was read back. Called from writing threads."""
        with self._lock:
            self.ranges[disk] = merged([*self.ranges.get(disk, ()), (offset, length)])
            now_s = self._job.tools.clock.monotonic_s()
            if now_s - self._saved_s >= STATE_INTERVAL_S:
                self._saved_s = now_s
                self._save()

    def _save(self) -> None:
        tools = self._job.tools
        ranges = {disk: [list(pair) for pair in found] for disk, found in self.ranges.items()}
        tools.portal.call(tasks.save_state(tools.database, self._job.task, {"in_place": True, "done_of": ranges}))


class _DoneOfDisk:
    def __init__(self, done: _Done, disk: str) -> None:
        self._done, self._disk = done, disk

    def __call__(self, offset: int, length: int) -> None:
        self._done.add(self._disk, offset, length)
