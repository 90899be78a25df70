"""The story of a prune: the bytes of deleted restore points go back to the store.

    before   a task of its own, at most one a vault, written by the deletion that made it useful
    1 start  rows: roots that count (RULINGS 7): those of backup rows, and any of a backup whose task is open
    2 prune  the engine plans from the roots, writes the next index, deletes what no session can need
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
    of_open_tasks = {name for name in repository.root_names() if name.rpartition(".")[0] in plan.open_backups}
    report = prune(repository, plan.keep | of_open_tasks, job.monitor)
    tools.portal.call(deletions.finish_prune(tools.database, task, asdict(report), tools.clock))


def fail(job: Job, error: StrongroomError) -> None:
    """Nothing is lost by a prune that did not run; the next deletion brings another."""
    tools = job.tools
    tools.portal.call(deletions.fail_prune(tools.database, job.task, error, tools.clock))
