"""The story of a prune: the bytes of deleted restore points go back to the store.

    before   a task of its own, at most one a vault, written by the deletion that made it useful
    1 roots  the names in the store, then the rows: a root counts when a backup's row names it, or when its backup's
             task is open (RULINGS 7); the others are dead
    2 prune  the engine deletes dead roots, writes the next index, deletes what no session can need
    3 end    rows: task success

A death anywhere leaves everything restorable, and the next prune finishes. Tenants do not see it in their log.
"""

from dataclasses import asdict

from strongroom.base.errors import StrongroomError
from strongroom.control import deletions
from strongroom.engine.prune import prune
from strongroom.operations.job import Job


def run(job: Job) -> None:
    """One attempt."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(deletions.start_prune(tools.database, task))
    repository = tools.repository(plan.vault, task.id)
    names = repository.root_names()
    # Rows are read after the names: a root that a backup commits meanwhile is in neither list and therefore stays.
    plan = tools.portal.call(deletions.start_prune(tools.database, task))
    dead = {n for n in names if n not in plan.keep and n.rpartition(".")[0] not in plan.open_backups}
    report = prune(repository, dead=dead, monitor=job.monitor)
    tools.portal.call(deletions.finish_prune(tools.database, task, asdict(report), tools.clock))


def fail(job: Job, error: StrongroomError) -> None:
    """Nothing is lost by a prune that did not run; the next deletion brings another."""
    tools = job.tools
    tools.portal.call(deletions.fail_prune(tools.database, job.task, error, tools.clock))
