"""The story of a check: is everything in the store that the vault's backups need, and is it what was written.

    before   a task of its own, at most one a vault, written by a request
    1 start  rows: the roots that should be whole, by domain
    2 check  the engine reads each domain; packs that fail become suspect, so that the next backup stores them again
    3 end    rows, one transaction: backups that are hit become `error` with what was found, those that a deep check
             found whole become available again, their checkpoints follow, the findings stand in the task

Nothing is written but notes, so after a death anywhere the next attempt begins again. A root that a row names and the
store has not is damage (RULINGS 7); what is deleted meanwhile is none: the end looks at the rows as they are then.
"""

from collections.abc import Mapping
from typing import Any

from strongroom.base.errors import StrongroomError
from strongroom.base.streams import Path
from strongroom.control import sessions, verifying
from strongroom.control.verifying import Damage, Verified
from strongroom.engine.verify import Finding, VerifyReport, verify
from strongroom.operations import measures
from strongroom.operations.job import Job

FINDINGS_MAX = 100  # kept in the task's row; the counts are exact
PATHS_MAX = 100  # named of one finding, and of one backup


def run(job: Job) -> None:
    """One attempt."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(verifying.start_verify(tools.database, task))
    deep = bool(task.parameters.get("deep"))
    percent = task.parameters.get("sample_percent")
    sample = float(percent) / 100 if deep and percent is not None else None
    reports: list[tuple[VerifyReport, Mapping[str, str]]] = []
    for domain_id, backups in sorted(plan.roots.items(), key=lambda item: item[0] or ""):
        # Without the copy of the index beside the store: what the store holds is the question.
        repository = tools.repository(plan.vault, task.id, domain_id=domain_id, cached=False)
        seed = int(tools.clock.now().timestamp())
        found = verify(repository, list(backups), deep=deep, monitor=job.monitor, sample=sample, seed=seed)
        reports.append((found, backups))
    result = _result(reports, plan.machines, whole_is_proven=deep and sample is None)
    tools.portal.call(verifying.finish_verify(tools.database, task, result, tools.clock))
    measures.VERIFY_ERRORS.inc(sum(len(found.findings) for found, _ in reports))


def fail(job: Job, error: StrongroomError) -> None:
    """A check that did not run says nothing."""
    tools = job.tools
    tools.portal.call(sessions.fail_alone(tools.database, job.task, error, tools.clock))


def _result(
    reports: list[tuple[VerifyReport, Mapping[str, str]]], machines: Mapping[str, str], *, whole_is_proven: bool
) -> Verified:
    damaged: dict[str, Damage] = {}
    rows: list[dict[str, Any]] = []
    count = 0
    for report, backups in reports:
        for finding in report.findings:
            count += 1
            if len(rows) < FINDINGS_MAX:
                rows.append(_row(finding, backups))
            if finding.kind == "labels":
                continue  # it restores
            for root in finding.roots:
                if root in backups:
                    damaged[backups[root]] = _more(damaged.get(backups[root]), finding, root)
    for disk in [backup for backup in damaged if backup in machines]:  # a machine is whole when all its disks are
        damaged.setdefault(machines[disk], Damage(reason=f"A disk of it is damaged: {damaged[disk].reason}"))
    checked = {backup for _, backups in reports for backup in backups.values()}
    packs = sum(report.packs for report, _ in reports)
    recent = sum(report.packs_recent for report, _ in reports)
    outcome = {
        "findings": rows,
        "findings_count": count,
        "damaged_backups": sorted(damaged),
        "backups": len(checked - machines.keys()),
        "packs_checked": sum(report.objects for report, _ in reports),
        "bytes_read": sum(report.bytes for report, _ in reports),
        "proven_percent_30_days": 100 * recent // packs if packs else 100,
    }
    whole = checked - damaged.keys() if whole_is_proven else set()
    return Verified(damaged=damaged, whole=tuple(sorted(whole)), outcome=outcome)


def _more(before: Damage | None, finding: Finding, root: str) -> Damage:
    """Damage of one backup by one more finding. Of files the count is exact for up to what the engine names."""
    own = [path for name, path in finding.paths if name == root]
    paths = [*(before.paths if before else ()), *map(_text, own)][:PATHS_MAX]
    files = (before.files if before else 0) + len(own)
    return Damage(reason=before.reason if before else finding.reason, files=files, paths=tuple(paths))


def _row(finding: Finding, backups: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "object": finding.name,
        "reason": finding.reason,
        "backups": [backups.get(root, root) for root in finding.roots],
        "paths": [{"backup": backups.get(root, root), "path": _text(path)} for root, path in finding.paths[:PATHS_MAX]],
        "paths_count": finding.paths_count,
    }


def _text(path: Path) -> str:
    return (b"/".join(path).decode("utf-8", "backslashreplace") or "/").replace("\x00", "")
