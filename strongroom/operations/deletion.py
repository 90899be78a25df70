"""The story of making restore points go: one backup, all of a resource, or a whole vault.

    before   rows are `deleting`: nobody may restore from them, and they do not count as parents any more
    1 start  rows: which roots go, which stay
    2 roots  the root objects are deleted: from here on the backups do not exist, whatever crashes
    3 rows   one transaction: rows removed, live bytes of the vault, task success, and a prune task that frees the space

Deleting runs against the order of writing (root first), so a crash leaves garbage, never a root without its chunks.
Each step can run twice. A vault goes wholly, and its keys first: the database's copies with the rows of step 1, then
the wraps of every domain in the store, so that whatever is left after a crash cannot be read by anybody; then
everything else, and the copies of its index that are kept beside the store. What was copied to other vaults has wraps
of its own there and stays.
"""

from strongroom.base.errors import StrongroomError
from strongroom.control import deletions
from strongroom.control.vault_roots import DeleteJob
from strongroom.engine.prune import live_bytes
from strongroom.engine.shred import erase
from strongroom.operations.job import Job, vault_prefix
from strongroom.operations.locking import release_roots, tell_lock
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
    outcome: dict[str, object] = {"total_count": plan.count, "fail_count": 0}
    tools.portal.call(
        deletions.finish_delete(tools.database, task, used_bytes=used, outcome=outcome, clock=tools.clock)
    )


def fail(job: Job, error: StrongroomError) -> None:
    """What could not be deleted stays deletable: its status tells, and the same request may be made again."""
    tools = job.tools
    tools.portal.call(deletions.fail_delete(tools.database, job.task, error, tools.clock))


def _delete_roots(job: Job, plan: DeleteJob) -> int:
    """Live sealed bytes of the vault, of all its domains, after the roots are gone."""
    tools, task = job.tools, job.task
    gone = {backup_id for backup_id, _ in plan.backups}
    foreign = frozenset().union(*plan.foreign.values())
    own = {root for _, root in plan.backups if root is not None} - foreign
    tell_lock(tools, plan.vault)
    used = 0
    for domain_id in tools.domains(plan.vault) or [None]:
        repository = tools.repository(plan.vault, task.id, domain_id=domain_id)
        doomed = own if domain_id is None else plan.foreign.get(domain_id, frozenset())
        for name in repository.root_names():
            # Of its own domain every generation: an attempt that lost its lease may have left a root beside the one in
            # the row. What came from another vault, or back from one, has the id that its backup had there.
            if name in doomed or (domain_id is None and name.rpartition(".")[0] in gone):
                job.monitor.check()
                repository.delete_root(name)
        used += live_bytes(repository, plan.keep if domain_id is None else plan.keep_foreign.get(domain_id, ()))
    return used


def _erase_vault(job: Job, plan: DeleteJob) -> None:
    release_roots(job.tools, plan.vault)
    prefix = vault_prefix(plan.vault.project_id, plan.vault.id) + "/"
    erase(WatchedStore(job.tools.store), prefix, job.monitor)
    job.tools.forget_index(plan.vault)
