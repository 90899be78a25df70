"""The story of a prune: the bytes of deleted restore points go back to the store.

    before   a task of its own, at most one a vault, written by the deletion that made it useful
    for each domain of the vault, its own and those that came from other vaults:
    1 roots  the names in the store, then the rows: a root counts when a backup's row names it, or when its backup's
             task is open (RULINGS 7), or while a task copies into the domain; the others are dead
    2 guard  a dead root of the own domain is what an attempt left that the database knows of. One it has never heard of
             means that the database is older than the store: nothing is removed, `rebuild` brings the rows back
    3 lock   what was promised a time that is not over stays, whatever the rows say (control/promises.py); promises that
             the store has not heard of are written there first (locking.py)
    4 prune  the engine deletes dead roots, writes the next index, deletes what no session can need
    5 end    rows: task success, with the bytes freed and moved

A death anywhere leaves everything restorable, and the next prune finishes. Tenants do not see it in their log.
"""

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

import structlog

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import DatabaseBehind, StrongroomError
from strongroom.control import deletions, promises, sessions
from strongroom.control.subjects import VaultRef
from strongroom.engine.catalogue import list_points
from strongroom.engine.prune import prune
from strongroom.engine.repository import Repository
from strongroom.engine.roots import parse_root_name
from strongroom.operations import measures
from strongroom.operations.job import Job
from strongroom.operations.locking import retain_promised, tell_lock, tell_promises
from strongroom.operations.lost_points import lost_backup, parent_of

log = structlog.get_logger("prune")


def run(job: Job) -> None:
    """One attempt. Raises DatabaseBehind, with nothing changed."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(deletions.start_prune(tools.database, task))
    tell_lock(tools, plan.vault)
    total: dict[str, Any] = {}
    for domain_id in tools.domains(plan.vault):
        repository = tools.repository(plan.vault, task.id, domain_id=domain_id)
        tell_promises(tools, plan.vault, repository, domain_id)
        names = repository.root_names()
        # Rows are read after the names: a root that is committed or copied meanwhile is in neither, and so it stays.
        plan = tools.portal.call(deletions.start_prune(tools.database, task))
        dead = {name for name in names if plan.is_dead(domain_id, name)}
        if domain_id is None:  # rows of what is copied are written last, so in other domains no row may be right
            _require_known(job, repository, plan.vault, dead)
        dead = _without_promised(job, repository, dead)
        total = _sum(total, asdict(prune(repository, dead=dead, monitor=job.monitor)))
        retain_promised(job, plan.vault, repository, domain_id)
    log.info("pruned", task=task.id, vault=plan.vault.id, **total)
    tools.portal.call(deletions.finish_prune(tools.database, task, total, tools.clock))
    measures.GC_FREED.inc(total.get("bytes_freed", 0))


def _without_promised(job: Job, repository: Repository, dead: set[str]) -> set[str]:
    """What was promised a time that is not over stays, though no row names it: somebody took the row away."""
    if not dead:
        return dead
    at = job.tools.portal.call(promises.show_promise_time(job.tools.database))
    kept = set()
    for point in list_points(repository, check=False, only=dead):
        until = point.labels.get("lock_until")
        if isinstance(until, str) and until > api_timestamp(at):
            log.warning("kept, though no row names it: its time is promised", root=point.name, until=until)
            kept.add(point.name)
    return dead - kept


def _backup_of(root: str) -> str:
    parsed = parse_root_name(root)
    assert parsed is not None  # root_names gives no others
    return parsed[0]


def _require_known(job: Job, repository: Repository, vault: VaultRef, dead: Collection[str]) -> None:
    """Raise DatabaseBehind when `rebuild` would make a row of a root that is taken for dead."""
    if not dead:
        return
    tools = job.tools
    backups = {_backup_of(name) for name in dead}
    unknown = tools.portal.call(deletions.unknown_backups(tools.database, job.task, backups))
    if not unknown:
        return
    points = list_points(repository, check=False, only={name for name in dead if _backup_of(name) in unknown})
    # What an attempt left of a machine's disks is known by the machine's backup.
    machines = {parent_of(point) for point in points} - {""}
    lost = tools.portal.call(deletions.unknown_backups(tools.database, job.task, machines)) if machines else machines
    points = [point for point in points if not parent_of(point) or parent_of(point) in lost]
    found = [point for point in points if lost_backup(repository, point, vault.project_id, vault.id, None) is not None]
    if found:
        names = ", ".join(point.name for point in found[:10])
        raise DatabaseBehind(count=len({point.backup_id for point in found}), detail=names)


def fail(job: Job, error: StrongroomError) -> None:
    """Nothing is lost by a prune that did not run; the next deletion brings another."""
    tools = job.tools
    tools.portal.call(sessions.fail_alone(tools.database, job.task, error, tools.clock))


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Reports of two domains as one: numbers add up, of the reasons the first stands."""
    if not one:
        return other
    return {name: one[name] or value if isinstance(value, str) else one[name] + value for name, value in other.items()}
