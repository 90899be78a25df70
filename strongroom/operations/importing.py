"""The story of a sync: restore points that lie in a vault's place of the store, and of which no row tells, get rows.

    before    a task written by a request: for whatever there is, or for one backup that the request names
    1 start   rows: the roots that rows name
    2 pin     a session in every domain of the vault, so that no prune that begins from now on takes a root; one that
              runs already is waited for
    3 find    roots that no row names, and that no operation log has known: what an attempt left is nobody's
    4 adopt   those with labels of another vault were copied here by somebody: they get labels of this one, and if they
              come from another project a new id (RULINGS 12)
    5 judge   whether all their chunks are there; one that lacks some comes in `error`, as in a rebuild
    6 end     rows, one transaction: restore points, backups, usage, task success

Death anywhere: the next attempt begins again, and finds the labels that were put. What the store does not say, as a
name that was given later, does not come back.
"""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from strongroom.base.errors import (
    BackupNotFound,
    Corrupt,
    FormatUnknown,
    InvalidRequest,
    KeyWrong,
    ObjectMissing,
    StrongroomError,
)
from strongroom.base.ids import new_id
from strongroom.control import deletions, importing, sessions
from strongroom.control.importing import Imported, ImportJob
from strongroom.control.rebuilding import PROTECTABLE_TYPES, LostBackup
from strongroom.control.vault_keys import save_vault_keys
from strongroom.engine.catalogue import Point, list_points
from strongroom.engine.open import load_wraps
from strongroom.engine.prune import live_bytes
from strongroom.engine.repository import Repository
from strongroom.operations.job import Job
from strongroom.operations.lost_points import lost_backup, lost_backups, parent_of

PROBLEMS_MAX = 100  # kept in the task's row; the counts are exact


@dataclass(kw_only=True)
class _Found:
    """What came of the domains so far. problems: (root or domain, sentence)."""

    backups: list[LostBackup] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    gained: int = 0
    known: bool = False  # the one that was asked for has a row


def run(job: Job) -> None:
    """One attempt."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(importing.start_import(tools.database, task))
    found = _Found()
    with ExitStack() as pins:
        repositories: dict[str | None, Repository] = {}
        for domain_id in tools.domains(plan.vault):
            try:
                repository = tools.repository(plan.vault, task.id, domain_id=domain_id)
                pins.enter_context(repository.session("copy"))
            except (KeyWrong, FormatUnknown, Corrupt, ObjectMissing) as err:
                found.problems.append((f"domain {domain_id or 'of the vault'}", err.message))
                continue
            repositories[domain_id] = repository
        tools.portal.call(importing.require_no_prune(tools.database, task))
        checkpoints: dict[str, str] = {}
        for domain_id, repository in repositories.items():
            job.monitor.check()
            _look(job, plan, domain_id, repository, found, checkpoints)
        _require_wanted(plan, found)
        outcome: dict[str, Any] = {
            "imported": sum(b.status == "available" and b.parent_id is None for b in found.backups),
            "failed": len(found.problems),
            "problems": [{"object": name, "reason": reason} for name, reason in found.problems[:PROBLEMS_MAX]],
        }
        job.monitor.check()
        job.fence()
        result = Imported(backups=found.backups, gained=found.gained, outcome=outcome)
        tools.portal.call(importing.commit_import(tools.database, task, result, tools.clock))


def fail(job: Job, error: StrongroomError) -> None:
    """Nothing was brought in."""
    tools = job.tools
    tools.portal.call(sessions.fail_alone(tools.database, job.task, error, tools.clock))


def _look(
    job: Job,
    plan: ImportJob,
    domain_id: str | None,
    repository: Repository,
    found: _Found,
    checkpoints: dict[str, str],
) -> None:
    """One domain. checkpoints: new ids of those that came with labels of another vault, by old one."""
    if plan.wanted.get("domain") not in (None, repository.domain.id.hex()):
        return
    named = plan.roots.get(domain_id, frozenset())
    candidates = [name for name in repository.root_names() if name not in named]
    points = [point for point in list_points(repository, check=False, only=candidates) if _is_wanted(plan, point)]
    found.known |= any(point in named for point in _wanted_roots(plan))
    strangers = _strangers(job, plan, repository, points)
    for point in strangers:
        _adopt(job, plan, domain_id, repository, point, found, checkpoints)
    checked = list_points(repository, check=True, only={point.name for point in strangers}, monitor=job.monitor)
    brought = []
    rows, problems = lost_backups(repository, checked, plan.vault.project_id, plan.vault.id, domain_id)
    found.problems += [(point.name, reason) for point, reason in problems]
    for backup, point in rows:
        if backup.parent_id is None and PROTECTABLE_TYPES[backup.resource_type] != plan.object_type:
            found.problems.append((point.name, "It is not of a kind that this vault can hold."))
        else:
            brought.append(_as_asked(plan, backup, job))
    there = {backup.id for backup in brought if backup.parent_id is None}
    brought = [backup for backup in brought if backup.parent_id is None or backup.parent_id in there]
    if brought:
        wrapped = load_wraps(repository.store, repository.prefix)[0][1]
        place = (plan.vault.project_id, plan.vault.id)
        job.tools.portal.call(save_vault_keys(job.tools.database, *place, wrapped, domain_id))
        more = {backup.root for backup in brought if backup.status == "available"}
        found.gained += live_bytes(repository, named | more) - live_bytes(repository, named)
    found.backups += brought


def _wanted_roots(plan: ImportJob) -> Collection[str]:
    return [plan.wanted["root"]] if plan.wanted else []


def _is_wanted(plan: ImportJob, point: Point) -> bool:
    """Who asks for a machine's gets its disks with it."""
    return not plan.wanted or point.name == plan.wanted["root"] or parent_of(point) == plan.wanted["backup"]


def _strangers(job: Job, plan: ImportJob, repository: Repository, points: Collection[Point]) -> list[Point]:
    """Those that neither a backup's row nor an operation log of the vault has ever known, by either of their ids. A
    machine's disk is known by the machine's backup too."""
    of = {point.name: {point.backup_id, _own_id(plan, point), parent_of(point)} - {""} for point in points}
    ids = frozenset[str]().union(*of.values())
    unknown = job.tools.portal.call(deletions.unknown_backups(job.tools.database, job.task, ids))
    return [point for point in points if of[point.name] <= unknown]


def _own_id(plan: ImportJob, point: Point) -> str:
    """The id that its labels give it in this vault, else that of its root."""
    own = point.labels.get("backup")
    return own if _is_own(plan, point) and isinstance(own, str) else point.backup_id


def _is_own(plan: ImportJob, point: Point) -> bool:
    labels = point.labels
    return labels.get("project") == plan.vault.project_id and labels.get("vault") == plan.vault.id


def _adopt(
    job: Job,
    plan: ImportJob,
    domain_id: str | None,
    repository: Repository,
    point: Point,
    found: _Found,
    checkpoints: dict[str, str],
) -> None:
    """Labels of this vault for a root that has those of another one. One whose labels say too little stays as it is."""
    if _is_own(plan, point) or point.state == "unreadable":
        return
    old = point.labels.get("checkpoint")
    ours = point.labels.get("project") == plan.vault.project_id
    if plan.wanted and not ours:
        raise InvalidRequest(
            reason="The restore point is of another project, so it gets a new id here: sync the vault as a whole."
        )
    labels = {
        **point.labels,
        "project": plan.vault.project_id,
        "vault": plan.vault.id,
        "vault_name": plan.vault.name,
        "backup": point.backup_id if ours else new_id(),
        "checkpoint": checkpoints.setdefault(old, new_id()) if isinstance(old, str) else None,
        "lock_until": None,  # another vault's promise
    }
    adopted = replace(point, labels=labels)
    if lost_backup(repository, adopted, plan.vault.project_id, plan.vault.id, domain_id) is not None:
        job.fence()
        repository.put_labels(point.backup_id, labels)


def _as_asked(plan: ImportJob, backup: LostBackup, job: Job) -> LostBackup:
    """With the name of the request. A time that is over is dropped: who asks for a backup does not want it to go.

    Raises InvalidRequest when the request tells of another resource than the restore point."""
    now = job.tools.clock.now()
    if backup.expired_at is not None and backup.expired_at <= now:
        backup = replace(backup, expired_at=None)
    wanted = plan.wanted
    if not wanted or backup.parent_id is not None:
        return backup
    if (backup.resource_id, backup.resource_type) != (wanted["resource"], wanted["resource_type"]):
        raise InvalidRequest(
            reason=f"The restore point is of resource {backup.resource_id}, a {backup.resource_type}. Name that one."
        )
    return replace(backup, name=wanted["name"])


def _require_wanted(plan: ImportJob, found: _Found) -> None:
    """Raises BackupNotFound when the one that was asked for is not there."""
    if plan.wanted and not found.backups and not found.problems and not found.known:
        raise BackupNotFound(id=plan.wanted["backup"])
