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
"""

from dataclasses import asdict

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Conflict, StrongroomError
from strongroom.base.streams import Path, Skipped
from strongroom.control import backups
from strongroom.control.backups import BackupJob, CommittedBackup
from strongroom.engine import BackupReport, BackupRequest, Root
from strongroom.engine import backup as engine_backup
from strongroom.operations.job import Job, require_foreign, source_ref
from strongroom.operations.locking import retain_root, tell_lock, tell_promises
from strongroom.operations.watched_store import Room
from strongroom.sources.base import PointWanted
from strongroom.sources.open import driver_for

REPORT_NAMES_MAX = 100  # names of odd entries kept in the row; the counts are exact and the root has more


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
    left = repository.find_root(plan.backup_id)
    if left is not None:
        if plan.promised_until and not left.labels.get("lock_until"):
            repository.put_labels(left.backup_id, _labels(plan, _token_of(left), str(left.labels.get("consistency"))))
        retain_root(job, plan.vault, repository, left.name, plan)
        _commit(job, left.report, left.size, _token_of(left), {"adopted": True, "kind": left.kind})
        return
    full = not plan.incremental or plan.parent is None
    wanted = PointWanted(parent_token=plan.parent.point_token if plan.parent else None, full=full)
    require_foreign(tools, plan.resource.path)
    driver = driver_for(plan.resource.type, plan.resource.path)
    with driver.open_point(source_ref(plan.resource), wanted) as point:
        request = BackupRequest(
            backup_id=plan.backup_id,
            generation=task.generation,
            parent=plan.parent.root if plan.parent and point.full_reason is None else None,
            full=not plan.incremental,
            labels=_labels(plan, point.token, point.consistency),
        )
        report = engine_backup(repository, point.stream, request, job.monitor, job.fence)
        extra: dict[str, object] = {
            "seconds": round(tools.clock.monotonic_s() - started_s, 3),
            "full_reason": point.full_reason or report.full_reason,
            "source": dict(point.metadata),
            "kind": point.kind,
        }
        retain_root(job, plan.vault, repository, report.root, plan)
        _commit(job, report, report.bytes_total, point.token, extra)
        point.commit()


def fail(job: Job, error: StrongroomError) -> None:
    """The resource is skipped with its reason; the other resources of the checkpoint go on."""
    tools = job.tools
    tools.portal.call(backups.fail_backup(tools.database, job.task, error, tools.clock))


def _commit(job: Job, report: BackupReport, size_bytes: int, token: bytes, extra: dict[str, object]) -> None:
    committed = CommittedBackup(
        root=report.root,
        resource_size_bytes=size_bytes,
        stored_bytes=report.bytes_stored,
        used_bytes=None,
        point_token=token,
        report=_report_row(report) | extra,
    )
    tools = job.tools
    tools.portal.call(backups.commit_backup(tools.database, job.task, committed, tools.clock))


def _labels(plan: BackupJob, token: bytes, consistency: str) -> dict[str, object]:
    """What a restore point says about itself when the database is lost (RULINGS 12)."""
    return {
        "project": plan.vault.project_id,
        "vault": plan.vault.id,
        "vault_name": plan.vault.name,
        "resource": plan.resource.id,
        "resource_type": plan.resource.type,
        "resource_name": plan.resource.name,
        "path": plan.resource.path,
        "options": plan.resource.options,
        "checkpoint": plan.checkpoint_id,
        "name": plan.backup_name,
        "created_at": api_timestamp(plan.created_at),
        "expires_at": api_timestamp(plan.expired_at) if plan.expired_at else None,
        "lock_until": api_timestamp(plan.promised_until) if plan.promised_until else None,
        "trigger": "policy" if plan.auto_trigger else "manual",
        "consistency": consistency,
        "token": token,
    }


def _token_of(root: Root) -> bytes:
    token = root.labels.get("token", b"")
    if not isinstance(token, bytes):
        raise Conflict(conflict_code="6215", reason="The restore point left by an earlier attempt carries no token.")
    return token


def _report_row(report: BackupReport) -> dict[str, object]:
    """The report as JSON: names as text, bytes that are not UTF-8 as `\\xe9`."""
    row = asdict(report)
    row.pop("root")
    row["changed_while_read"] = [_text(path) for path in report.changed_while_read[:REPORT_NAMES_MAX]]
    row["skipped"] = [_skipped(s) for s in report.skipped[:REPORT_NAMES_MAX]]
    return row


def _skipped(skipped: Skipped) -> dict[str, str]:
    return {"path": _text(skipped.path), "reason": skipped.reason}


def _text(path: Path) -> str:
    return b"/".join(path).decode("utf-8", "backslashreplace").replace("\x00", "")
