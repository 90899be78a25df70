"""The story of a prune: the bytes of deleted restore points go back to the store.

    before   a task of its own, at most one a vault, written by the deletion that made it useful
    for each domain of the vault, its own and those that came from other vaults:
    1 roots  the names in the store, then the rows: a root counts when a backup's row names it, or when its backup's
             task is open (RULINGS 7), or while a task copies into the domain; the others are dead
    2 prune  the engine deletes dead roots, writes the next index, deletes what no session can need
    3 end    rows: task success

A death anywhere leaves everything restorable, and the next prune finishes. Tenants do not see it in their log.
"""

from dataclasses import asdict
from typing import Any

from strongroom.base.errors import StrongroomError
from strongroom.control import deletions
from strongroom.engine.prune import prune
from strongroom.operations.job import Job


def run(job: Job) -> None:
    """One attempt."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(deletions.start_prune(tools.database, task))
    total: dict[str, Any] = {}
    for domain_id in tools.domains(plan.vault):
        repository = tools.repository(plan.vault, task.id, domain_id=domain_id)
        names = repository.root_names()
        # Rows are read after the names: a root that is committed or copied meanwhile is in neither, and so it stays.
        plan = tools.portal.call(deletions.start_prune(tools.database, task))
        dead = {name for name in names if plan.is_dead(domain_id, name)}
        total = _sum(total, asdict(prune(repository, dead=dead, monitor=job.monitor)))
    tools.portal.call(deletions.finish_prune(tools.database, task, total, tools.clock))


def fail(job: Job, error: StrongroomError) -> None:
    """Nothing is lost by a prune that did not run; the next deletion brings another."""
    tools = job.tools
    tools.portal.call(deletions.fail_prune(tools.database, job.task, error, tools.clock))


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Reports of two domains as one: numbers add up, of the reasons the first stands."""
    if not one:
        return other
    return {name: one[name] or value if isinstance(value, str) else one[name] + value for name, value in other.items()}
