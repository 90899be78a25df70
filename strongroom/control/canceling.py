"""Cancel a task: what waits ends at once, what runs is told to stop, what deletes goes on to its end."""

from collections.abc import Awaitable, Callable

from strongroom.base.clock import Clock
from strongroom.base.errors import Canceled, Conflict, Fenced, StrongroomError
from strongroom.control import backups, restores, sessions, tasks
from strongroom.control.db import Database
from strongroom.control.operation_logs import show_task
from strongroom.control.tasks import Task

End = Callable[[Database, Task, StrongroomError, Clock], Awaitable[None]]

# How a task that never began ends. What deletes has no place here: half a deletion helps nobody.
ENDS: dict[str, End] = {
    "backup": backups.fail_backup,
    "restore": restores.fail_restore,
    "verify": sessions.fail_alone,
    "prune": sessions.fail_alone,
    "sync": sessions.fail_alone,
    "expiration": sessions.fail_alone,
}
# What two regions or two vaults do together is ended by a job, which settles the other side.
TOGETHER = frozenset({"replication", "copy", "migrate"})


async def cancel_task(database: Database, project_id: str, task_id: str, clock: Clock) -> None:
    """Stop what does not delete; it ends as failed, `Canceled on request.` A time that was changed stays changed, of
    which a canceled task has not told the store; of a sync that is canceled nothing comes in.

    A task that waits and never began has ended when this returns. One that runs, or that waits for another attempt
    after a first one, is told: it ends when its worker looks, within seconds. Idempotent while it is open.

    Raises TaskNotFound, and Conflict 6112 for a task that has ended or that deletes.
    """
    task = await show_task(database, project_id, task_id)
    end = ENDS.get(task.operation_type)
    if end is None and task.operation_type not in TOGETHER:
        raise Conflict(conflict_code="6112", reason=f"A {task.operation_type} task cannot be canceled. Let it end.")
    async with database.transaction() as conn:
        # After a first attempt there may be something at the target of a restore that only a job can settle.
        waiting = await tasks.take_waiting(conn, project_id, task_id) if end is not None else None
        if waiting is None and not await tasks.request_cancel(conn, project_id, task_id):
            raise Conflict(conflict_code="6112", reason="The task has ended already; there is nothing to cancel.")
    if waiting is None or end is None:
        return
    try:
        await end(database, waiting, Canceled(), clock)
    except Fenced:
        return  # this process was away for longer than the lease: a worker ends it
