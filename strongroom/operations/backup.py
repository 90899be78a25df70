"""The story of a backup of one resource.

    before   rows of checkpoint, backup and task are written; the backup is waiting_protect
    1 start  rows: backup and resource `protecting`; the parent is the newest available backup of the resource
    2 adopt  a root that an earlier attempt of this task left complete is taken over; nothing is read again
    3 point  the source opens a state to read from
    4 write  the engine stores packs, then the index, then (after one last look that the task is still ours) the root
    5 commit rows, one transaction WHERE generation = mine: sizes, statuses, root name, token, task success
    6 clean  the source frees what the point held (idempotent)

Death before the root leaves orphans that prune removes; between root and rows the next attempt adopts the root; after
the rows only the clean-up of the source is missing, which `recover` or the next point makes good.

A machine has several disks, so from 2 on it has a story of its own (machine_backup.py).
"""

from strongroom.base.errors import StrongroomError
from strongroom.control import backups
from strongroom.control.backups import CommittedBackup
from strongroom.engine import BackupReport, BackupRequest
from strongroom.engine import backup as engine_backup
from strongroom.operations import measures
from strongroom.operations.backup_labels import backup_labels, report_row, token_of
from strongroom.operations.job import Job, driver_of, source_ref
from strongroom.operations.locking import retain_root, tell_lock, tell_promises
from strongroom.operations.machine_backup import back_up_machine, settle
from strongroom.operations.machine_record import MACHINE
from strongroom.operations.watched_store import Room
from strongroom.sources.base import PointWanted


def run(job: Job) -> None:
    """One attempt. Raises what stops it; the worker decides between another attempt and `fail`."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(backups.start_backup(tools.database, task))
    job.monitor.expected_bytes = plan.resource.size_bytes
    room = Room(
        used_bytes=plan.vault.used_bytes,
        size_bytes=plan.vault.size_bytes,
        project_left_bytes=plan.project_left_bytes,
    )
    started_s = tools.clock.monotonic_s()
    repository = tools.repository(plan.vault, task.id, room.spend)
    tell_lock(tools, plan.vault)
    tell_promises(tools, plan.vault, repository, None)
    if plan.resource.type == MACHINE:
        back_up_machine(job, plan, repository, started_s)
        return
    left = repository.find_root(plan.backup_id)
    if left is not None:
        if plan.promised_until and not left.labels.get("lock_until"):
            repository.put_labels(
                left.backup_id, backup_labels(plan, token_of(left), str(left.labels.get("consistency")))
            )
        retain_root(job, plan.vault, repository, left.name, plan)
        _commit(job, left.report, left.size, token_of(left), {"adopted": True, "kind": left.kind})
        return
    full = not plan.incremental or plan.parent is None
    wanted = PointWanted(
        parent_token=plan.parent.point_token if plan.parent else None, full=full, check=job.monitor.check
    )
    driver = driver_of(job, plan.resource)
    with driver.open_point(source_ref(plan.resource), wanted) as point:
        request = BackupRequest(
            backup_id=plan.backup_id,
            generation=task.generation,
            parent=plan.parent.root if plan.parent and point.full_reason is None else None,
            full=not plan.incremental,
            labels=backup_labels(plan, point.token, point.consistency),
        )
        report = engine_backup(repository, point.stream, request, job.monitor, job.fence)
        extra: dict[str, object] = {
            "seconds": round(tools.clock.monotonic_s() - started_s, 3),
            "full_reason": point.full_reason or report.full_reason,
            "source": dict(point.metadata),
            "consistency": point.consistency,
            "kind": point.kind,
        }
        retain_root(job, plan.vault, repository, report.root, plan)
        _commit(job, report, report.bytes_total, point.token, extra)
        point.commit()


def fail(job: Job, error: StrongroomError) -> None:
    """The resource is skipped with its reason; the other resources of the checkpoint go on."""
    tools = job.tools
    if job.task.resource_type == MACHINE and (unsettled := settle(job)):
        error.detail = f"{error.detail}; {unsettled}".lstrip("; ")
    tools.portal.call(backups.fail_backup(tools.database, job.task, error, tools.clock))


def _commit(job: Job, report: BackupReport, size_bytes: int, token: bytes, extra: dict[str, object]) -> None:
    committed = CommittedBackup(
        root=report.root,
        resource_size_bytes=size_bytes,
        stored_bytes=report.bytes_stored,
        used_bytes=None,
        point_token=token,
        report=report_row(report) | extra,
    )
    tools = job.tools
    tools.portal.call(backups.commit_backup(tools.database, job.task, committed, tools.clock))
    measures.backup_made(report.bytes_read, report.bytes_new, report.bytes_stored)
