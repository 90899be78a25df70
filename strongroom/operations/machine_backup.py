"""The story of a backup of a machine: several disks, each with a root of its own, in one consistent point.

    before    as of any backup (backup.py): rows, repository, promises
    1 adopt   the machine's own root is put last. One that an earlier attempt left stands for all disks: they are taken
              over as they are, nothing is read again
    2 settle  without it that attempt's point is gone, and what it held at the machine is given up
    3 point   the hypervisor opens one state of all disks; frozen and thawed inside
    4 rows    one a disk, below the backup's own, before any root of theirs can be
    5 stale   roots that an earlier attempt put for its own point go: disks of two moments are never one backup
    6 disks   one after another: packs, index, root
    7 record  the machine's own root, with its definition and the names of the disks' backups: from here on it is whole
    8 commit  rows, one transaction WHERE generation = mine: the machine's and its disks', sizes, tokens, task success
    9 clean   the hypervisor frees what the point held: parents are not needed any more (idempotent)

Death before 7 leaves roots of disks that belong to nothing: the next attempt deletes them, or prune when there is none.
Between 7 and 8 the next attempt adopts. After 8 only the clean-up is missing, which the next point makes good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Conflict, Corrupt, InvalidRequest, SourceError
from strongroom.base.ids import is_id
from strongroom.control import backups, machines
from strongroom.control.backups import BackupJob, CommittedBackup
from strongroom.control.machines import CommittedDisk, MachineDisk, MachinePlan
from strongroom.engine import BackupReport, BackupRequest, Repository, Root
from strongroom.engine import backup as engine_backup
from strongroom.operations.backup_labels import backup_labels, report_row, token_of
from strongroom.operations.job import Job, source_ref
from strongroom.operations.locking import retain_root
from strongroom.operations.machine_record import (
    DEFINITION,
    FACTS,
    RecordStream,
    disk_facts,
    facts_file,
    row_facts,
)
from strongroom.sources.machines.base import DiskPoint, MachinePoint, MachineWanted
from strongroom.sources.open import machine_driver_for

DISKS_MAX = 128  # of one machine: their backups' ids are labels of its root, which have 16 KiB


@dataclass(kw_only=True)
class _DiskMonitor:
    """Progress of one disk as a part of the whole."""

    job: Job
    before_bytes: int
    total_bytes: int

    def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
        self.job.monitor.advance(self.before_bytes + bytes_done, self.total_bytes, entries_done)

    def check(self) -> None:
        self.job.monitor.check()


def back_up_machine(job: Job, plan: BackupJob, repository: Repository, started_s: float) -> None:
    """One attempt, after what every backup begins with. Raises what stops it."""
    left = repository.find_root(plan.backup_id)
    if left is not None:
        _adopt(job, plan, repository, left)
        return
    tools = job.tools
    driver, ref = machine_driver_for(plan.resource.path), source_ref(plan.resource)
    if job.task.generation > 1:
        driver.recover(ref, frozenset({job.task.id}))
    chosen = tools.portal.call(machines.plan_machine(tools.database, job.task))
    wanted = MachineWanted(
        parent_tokens={id_: parent.point_token for id_, parent in chosen.parents.items() if parent.point_token},
        full=not plan.incremental,
        included=chosen.included,
        excluded=chosen.excluded,
        application=chosen.application,
        check=job.monitor.check,
    )
    with driver.open_machine(ref, wanted) as point:
        ids = _rows(job, repository, point)
        total = sum(disk.disk.size_bytes for disk in point.disks)
        made: list[CommittedDisk] = []
        for disk in point.disks:
            monitor = _DiskMonitor(job=job, before_bytes=sum(d.size_bytes for d in made), total_bytes=total)
            made.append(_disk(job, plan, repository, point, disk, ids[disk.disk.id], chosen, monitor))
        record = _record(job, plan, repository, point, made, chosen)
        seconds = round(tools.clock.monotonic_s() - started_s, 3)
        extra = _facts(point, made) | {"seconds": seconds, "kind": "machine", "application_wanted": chosen.application}
        _commit(job, plan, repository, record, made, extra, _seen(point))
        point.commit()


def settle(job: Job) -> str:
    """What the attempts of a backup that failed left at the machine is given up. Why that did not work; "" when it did.

    For a machine that is gone there is nothing to settle."""
    tools, task = job.tools, job.task
    resource = tools.portal.call(machines.find_machine(tools.database, task))
    if resource is None:
        return ""
    try:
        machine_driver_for(resource.path).recover(source_ref(resource), frozenset({task.id}))
    except (SourceError, InvalidRequest) as err:  # the latter: no driver serves its address any more
        return f"leftovers at the machine not settled: {err}"
    return ""


def _rows(job: Job, repository: Repository, point: MachinePoint) -> dict[str, str]:
    """Ids of the disks' backups, by disk; no root of an earlier point is left. Raises Conflict 7108."""
    disks = [disk.disk for disk in point.disks]
    if not 0 < len(disks) <= DISKS_MAX:
        reason = f"It has more than {DISKS_MAX} disks." if disks else "No disk of it is to be backed up."
        raise Conflict(conflict_code="7108", reason=f"The server cannot be backed up: {reason}")
    assert all(is_id(disk.id) for disk in disks), "a rebuild takes ids of resources for UUIDs"
    tools = job.tools
    rows = [MachineDisk(id=disk.id, name=disk.name, size_bytes=disk.size_bytes) for disk in disks]
    ids, every = tools.portal.call(machines.write_disks(tools.database, job.task, rows))
    if job.task.generation > 1:
        for name in repository.root_names():
            if name.rpartition(".")[0] in every:
                job.monitor.check()
                repository.delete_root(name)
    return ids


def _disk(
    job: Job,
    plan: BackupJob,
    repository: Repository,
    point: MachinePoint,
    disk: DiskPoint,
    backup_id: str,
    chosen: MachinePlan,
    monitor: _DiskMonitor,
) -> CommittedDisk:
    parent = chosen.parents.get(disk.disk.id) if disk.full_reason is None else None
    labels = backup_labels(plan, disk.token, point.consistency) | {
        "parent": plan.backup_id,
        "machine": plan.resource.id,
        "resource": disk.disk.id,
        "resource_type": "OS::Cinder::Volume",
        "resource_name": f"{plan.resource.name}-{disk.disk.name}"[: machines.RESOURCE_NAME_CHARS_MAX],
        "name": f"{plan.backup_name}_{disk.disk.name}"[: machines.NAME_CHARS_MAX],
        "path": disk.disk.place.encode("utf-8", "surrogateescape"),
        "disk": {"name": disk.disk.name, "is_boot": disk.disk.is_boot},
    }
    request = BackupRequest(
        backup_id=backup_id,
        generation=job.task.generation,
        parent=parent.root if parent is not None and plan.incremental else None,
        full=not plan.incremental,
        labels=labels,
    )
    report = engine_backup(repository, disk.stream, request, monitor, job.fence)
    return _committed(backup_id, report, disk.stream.size, disk.token, labels, disk.full_reason, dict(disk.metadata))


def _committed(
    backup_id: str,
    report: BackupReport,
    size_bytes: int,
    token: bytes,
    labels: Mapping[str, object],
    full_reason: str | None,
    source: Mapping[str, object],
) -> CommittedDisk:
    row = report_row(report) | {
        "kind": "block",
        "disk": labels["disk"],
        "full_reason": full_reason or report.full_reason,
        "source": dict(source),
    }
    return CommittedDisk(
        backup_id=backup_id,
        root=report.root,
        size_bytes=size_bytes,
        stored_bytes=report.bytes_stored,
        point_token=token,
        report=row,
    )


def _record(
    job: Job,
    plan: BackupJob,
    repository: Repository,
    point: MachinePoint,
    made: Sequence[CommittedDisk],
    chosen: MachinePlan,
) -> BackupReport:
    """The machine's own root. Labels say which disks' backups are its, and what was reached."""
    facts = {
        "machine": {"id": plan.resource.id, "name": plan.resource.name},
        "taken_at_ns": point.taken_at_ns,
        "consistency": point.consistency,
        "consistency_reason": point.consistency_reason,
        "disks": [
            disk_facts(disk.disk) | {"place": disk.disk.place, "backup": d.backup_id, "root": d.root}
            for disk, d in zip(point.disks, made, strict=True)
        ],
        "left_out": [disk_facts(disk) for disk in point.left_out],
        "metadata": dict(point.metadata),
    }
    labels = backup_labels(plan, b"", point.consistency) | {
        "children": [disk.backup_id for disk in made],
        "consistency_reason": point.consistency_reason,
        "application_wanted": chosen.application,
    }
    request = BackupRequest(
        backup_id=plan.backup_id, generation=job.task.generation, full=not plan.incremental, labels=labels
    )
    stream = RecordStream({DEFINITION: point.definition, FACTS: facts_file(facts)}, point.taken_at_ns)
    total = sum(disk.size_bytes for disk in made)
    monitor = _DiskMonitor(job=job, before_bytes=total, total_bytes=total)
    return engine_backup(repository, stream, request, monitor, job.fence)


def _seen(point: MachinePoint) -> dict[str, Any]:
    every = [*(disk.disk for disk in point.disks), *point.left_out]
    return {
        "disks": sorted((disk_facts(disk) for disk in every), key=lambda disk: str(disk["name"])),
        **({"power": point.metadata["power"]} if "power" in point.metadata else {}),
    }


def _facts(point: MachinePoint, made: Sequence[CommittedDisk]) -> dict[str, Any]:
    """What the row tells of the machine beside the counts."""
    return {
        "consistency": point.consistency,
        "consistency_reason": point.consistency_reason,
        "left_out": [disk_facts(disk) for disk in point.left_out],
        "has_boot_disk": any(disk.disk.is_boot for disk in point.disks),
        "full_reason": next((str(d.report["full_reason"]) for d in made if d.report["full_reason"]), None),
        "machine": row_facts(point.metadata),
    }


def _adopt(job: Job, plan: BackupJob, repository: Repository, left: Root) -> None:
    """Everything an earlier attempt put stands: its last root does. Raises Corrupt when one of its disks' does not."""
    made = []
    children = left.labels.get("children", ())
    for backup_id in children if isinstance(children, list | tuple) else ():
        root = repository.find_root(str(backup_id), left.generation)
        if root is None:
            raise Corrupt(reason="the root of a disk is missing beside that of its machine", detail=str(backup_id))
        made.append(
            _committed(root.backup_id, root.report, root.size, token_of(root), root.labels, None, {"adopted": True})
        )
    for root in (*(repository.load_root(disk.root) for disk in made), left):
        if plan.promised_until and not root.labels.get("lock_until"):
            repository.put_labels(
                root.backup_id, dict(root.labels) | {"lock_until": api_timestamp(plan.promised_until)}
            )
    extra = {
        "adopted": True,
        "kind": "machine",
        **{name: left.labels.get(name) for name in ("consistency", "consistency_reason", "application_wanted")},
        "has_boot_disk": any(disk.report["disk"].get("is_boot") for disk in made),
    }
    _commit(job, plan, repository, left.report, made, extra, {})


def _commit(
    job: Job,
    plan: BackupJob,
    repository: Repository,
    record: BackupReport,
    made: Sequence[CommittedDisk],
    extra: Mapping[str, Any],
    seen: Mapping[str, Any],
) -> None:
    for root in (*(disk.root for disk in made), record.root):
        retain_root(job, plan.vault, repository, root, plan)
    own = report_row(record)
    sums = {
        name: sum(int(disk.report[name]) for disk in made) + (int(str(own[name])) if name != "bytes_total" else 0)
        for name in ("bytes_total", "bytes_read", "bytes_new", "bytes_stored")
    }
    committed = CommittedBackup(
        root=record.root,
        resource_size_bytes=sum(disk.size_bytes for disk in made),
        stored_bytes=record.bytes_stored + sum(disk.stored_bytes for disk in made),
        point_token=b"",
        report=own | sums | dict(extra),
        disks=tuple(made),
        machine=seen,
    )
    tools = job.tools
    tools.portal.call(backups.commit_backup(tools.database, job.task, committed, tools.clock))
