"""The story of making restore points go: one backup, all of a resource, or a whole vault.

    before   rows are `deleting`: nobody may restore from them, and they do not count as parents any more
    1 start  rows: which roots go, which stay
    2 roots  the root objects are deleted: from here on the backups do not exist, whatever crashes
    3 rows   one transaction: rows removed, live bytes of the vault, task success, and a prune task that frees the space

Deleting runs against the order of writing (root first), so a crash leaves garbage, never a root without its chunks.
Each step can run twice. A vault goes wholly: after its roots the keys, so that what is left cannot be read by anybody,
then every other object, and the copies of its index that are kept beside the store.
"""

from strongroom.base.errors import StrongroomError
from strongroom.control import deletions
from strongroom.control.deletions import DeleteJob
from strongroom.engine.prune import live_bytes
from strongroom.operations.job import Job, vault_prefix
from strongroom.operations.watched_store import WatchedStore


def run(job: Job) -> None:
    """One attempt of `delete`, `remove_resource` or `vault_delete`."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(deletions.start_delete(tools.database, task))
    if task.operation_type == "vault_delete":
        _erase_vault(job, plan)
        used = None
    else:
        used = _delete_roots(job, plan)
    outcome: dict[str, object] = {"total_count": len(plan.backups), "fail_count": 0}
    tools.portal.call(
        deletions.finish_delete(tools.database, task, used_bytes=used, outcome=outcome, clock=tools.clock)
    )


def fail(job: Job, error: StrongroomError) -> None:
    """What could not be deleted stays deletable: its status tells, and the same request may be made again."""
    tools = job.tools
    tools.portal.call(deletions.fail_delete(tools.database, job.task, error, tools.clock))


def _delete_roots(job: Job, plan: DeleteJob) -> int:
    """Live sealed bytes of the vault after the roots are gone."""
    repository = job.tools.repository(plan.vault, job.task.id)
    gone = {backup_id for backup_id, _ in plan.backups}
    for name in repository.root_names():
        # Every generation: an attempt that lost its lease may have left a root beside the one in the row.
        if name.rpartition(".")[0] in gone:
            job.monitor.check()
            repository.delete_root(name)
    return live_bytes(repository, plan.keep)


def _erase_vault(job: Job, plan: DeleteJob) -> None:
    store = WatchedStore(job.tools.store)
    names = [info.name for info in store.list(vault_prefix(plan.vault.project_id, plan.vault.id) + "/")]

    def rank(name: str) -> int:
        kind = name.split("/")[-2]
        return {"roots": 0, "keys": 1}.get(kind, 2)

    total = len(names)
    for done, name in enumerate(sorted(names, key=rank)):
        job.monitor.check()
        store.delete(name)
        job.monitor.advance(done + 1, total, done + 1)
    job.tools.forget_index(plan.vault)
