"""The story of a replica, told by the destination.

    before   rows: restore point, backup (image_type replication), record and task, as the source offered them
    1 start  rows: the backup is `protecting`
    2 adopt  a root that an earlier attempt left complete is taken over; nothing is read again
    3 keys   the domain's keys are opened with the key of the two regions and wrapped by this installation's own
    4 copy   what is missing here comes from the source, segment by segment: opened, compared with its ids, sealed again
             under new names, durable; then the index; then, after one last look that the task is ours, the root, under
             this backup's own id and with labels of this vault
    5 lock   a locked vault is told to the store, which keeps what the replica needs, where it can (locking.py)
    6 commit rows, one transaction WHERE generation = mine: backup available, sizes, usage, record and task success

Death before the root leaves chunks that the next attempt knows, or prune removes; after it the next attempt adopts. A
source that does not answer is waited for. After 4 nothing of the source is needed any more.
"""

from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import ComeAgain, Corrupt, ObjectMissing, RegionSilent, RegionUnreachable, StrongroomError
from strongroom.control import quotas, replicas, tasks
from strongroom.control.replicas import CommittedReplica, ReplicaJob
from strongroom.control.vault_keys import save_vault_keys
from strongroom.engine import MasterKey, Root
from strongroom.engine.copy import copy
from strongroom.engine.model import Labels
from strongroom.engine.open import load_wraps
from strongroom.engine.prune import live_bytes
from strongroom.engine.repository import Repository
from strongroom.engine.store.retry import RetryingStore
from strongroom.operations.job import Job, RowSessions, vault_prefix
from strongroom.operations.locking import retain_root, tell_lock
from strongroom.operations.peer_store import PeerStore
from strongroom.operations.rebuild import COUNTS
from strongroom.operations.watched_store import Room, WatchedStore

SILENT_AGAIN_S = 5.0
GIVE_UP = timedelta(days=1)  # as the source does


def run(job: Job) -> None:
    """One attempt. Raises ComeAgain while the source does not answer."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(replicas.start_replica(tools.database, task))
    job.monitor.expected_bytes = 0
    left = _find_left(job, plan)
    if left is not None:
        _commit(job, plan, left, None)
        return
    try:
        copied = _copy(job, plan)
    except (RegionSilent, RegionUnreachable):
        if tools.clock.now() - plan.record.created_at > GIVE_UP:
            raise
        raise ComeAgain(delay_s=SILENT_AGAIN_S) from None
    repository = _here(job, plan)
    _commit(job, plan, repository.load_root(_root_name(job, plan)), copied)


def fail(job: Job, error: StrongroomError) -> None:
    """The backup is `error` with its reason in the record; what came of it is pruned."""
    tools = job.tools
    tools.portal.call(replicas.fail_replica(tools.database, job.task, error, tools.clock))


def _here(job: Job, plan: ReplicaJob) -> Repository:
    return job.tools.repository(plan.vault, job.task.id, domain_id=plan.record.details["domain_id"])


def _find_left(job: Job, plan: ReplicaJob) -> Root | None:
    try:
        return _here(job, plan).find_root(plan.backup_id)
    except ObjectMissing:
        return None  # the first of this domain here: it has no keys yet


def _root_name(job: Job, plan: ReplicaJob) -> str:
    """Never that of the source: a root that was deleted here must not come back under the name it had."""
    return f"{plan.backup_id}.{job.task.generation}"


def _copy(job: Job, plan: ReplicaJob) -> int | None:
    """Sealed bytes that came; None when an earlier attempt may have brought some of them."""
    tools, task, record = job.tools, job.task, plan.record
    peer = tools.peers.to(record.source_region)
    domain_id: str = record.details["domain_id"]
    domain = MasterKey(peer.region.wrapping_key).unwrap(record.wrapped or b"")
    if domain.id.hex() != domain_id:
        raise Corrupt(reason="the keys that came are those of another domain", detail=domain.id.hex())
    begun_before = bool(task.state.get("begun"))
    if not begun_before:
        tools.portal.call(tasks.save_state(tools.database, task, {"begun": True}))
    source = Repository(
        RetryingStore(PeerStore(peer, record.id, tools.clock)),
        "",
        domain,
        pool=tools.pool,
        sessions=None,
        clock=tools.clock,
        cache=f"{tools.index_cache(plan.vault)}/source",
    )
    room = Room(
        used_bytes=plan.vault.used_bytes,
        size_bytes=plan.vault.size_bytes,
        project_left_bytes=tools.portal.call(quotas.show_bytes_left(tools.database, task.project_id)),
    )
    report = copy(
        source,
        WatchedStore(tools.store, room.spend),
        vault_prefix(plan.vault.project_id, plan.vault.id),
        tools.master,
        [record.details["root"]],
        job.monitor,
        job.fence,
        sessions=RowSessions(tools, plan.vault, task.id, domain_id),
        cache=tools.index_cache(plan.vault),
        far=True,
        rename=lambda root, labels: _renamed(job, plan, root, labels),
    )
    return None if begun_before else report.bytes_copied


def _renamed(job: Job, plan: ReplicaJob, root: Root, labels: Labels) -> Root:
    name = _root_name(job, plan)
    return replace(
        root,
        name=name,
        backup_id=plan.backup_id,
        generation=job.task.generation,
        labels=_labels(plan, labels),
        report=replace(root.report, root=name),
    )


def _labels(plan: ReplicaJob, labels: Labels) -> dict[str, Any]:
    """What the replica says of itself when this region's database is lost. Resource and token are the source's."""
    record = plan.record
    return {
        **{name: value for name, value in labels.items() if name != "backup"},
        "project": plan.vault.project_id,
        "vault": plan.vault.id,
        "vault_name": plan.vault.name,
        "checkpoint": plan.checkpoint_id,
        "name": plan.backup_name,
        "created_at": api_timestamp(plan.created_at),
        "expires_at": api_timestamp(plan.expired_at) if plan.expired_at else None,
        "lock_until": api_timestamp(plan.promised_until) if plan.promised_until else None,
        "trigger": "policy" if record.auto_trigger else "manual",
        "image_type": "replication",
        "source_region": record.source_region,
        "source_backup": record.source_backup_id,
    }


def _commit(job: Job, plan: ReplicaJob, root: Root, copied: int | None) -> None:
    tools, vault, domain_id = job.tools, plan.vault, plan.record.details["domain_id"]
    repository = _here(job, plan)
    _, wrapped = load_wraps(repository.store, repository.prefix)[0]
    tools.portal.call(save_vault_keys(tools.database, vault.project_id, vault.id, wrapped, domain_id))
    tell_lock(tools, vault)
    retain_root(job, vault, repository, root.name, plan)
    used = None
    if copied is None:
        kept = tools.portal.call(replicas.roots_by_domain(tools.database, vault))
        kept[domain_id] = kept.get(domain_id, frozenset()) | {root.name}
        used = sum(
            live_bytes(tools.repository(vault, job.task.id, domain_id=domain), roots) for domain, roots in kept.items()
        )
        copied = max(0, used - vault.used_bytes)
    found = asdict(root.report)
    token = root.labels.get("token")
    committed = CommittedReplica(
        root=root.name,
        domain_id=domain_id,
        size_bytes=root.size,
        stored_bytes=copied,
        used_bytes=used,
        point_token=token if isinstance(token, bytes) else None,
        report={name: found[name] for name in COUNTS} | {"full_reason": found["full_reason"], "kind": root.kind},
    )
    tools.portal.call(replicas.commit_replica(tools.database, job.task, committed, tools.clock))
