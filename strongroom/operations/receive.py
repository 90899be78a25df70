"""The story of a replica, told by the destination.

    before   rows: restore point, backup (image_type replication), record and task, as the source offered them
    1 start  rows: the backup is `protecting`
    2 adopt  a root that an earlier attempt left complete is taken over; nothing is read again
    3 keys   the domain's keys are opened with the key of the two regions and wrapped by this installation's own
    4 copy   what is missing here comes from the source, segment by segment: opened, compared with its ids, sealed again
             under new names, durable; then the index; then, after one last look that the task is ours, the root, under
             this backup's own id and with labels of this vault. Of a machine the roots of its disks first, its own last
    5 lock   a locked vault is told to the store, which keeps what the replica needs, where it can (locking.py)
    6 commit rows, one transaction WHERE generation = mine: backup available, sizes, usage, record and task success

Death before the root leaves chunks that the next attempt knows, or prune removes; after it the next attempt adopts. A
source that does not answer is waited for. After 4 nothing of the source is needed any more.
"""

from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import ComeAgain, Corrupt, ObjectMissing, RegionSilent, RegionUnreachable, StrongroomError
from strongroom.base.ids import is_id
from strongroom.control import quotas, replicas, tasks
from strongroom.control.machines import ReplicaDisk
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
from strongroom.operations.lost_points import (
    COUNTS,
    NAME_CHARS_MAX,
    RESOURCE_NAME_CHARS_MAX,
    disk_label,
    machine_facts,
    names_of_disks,
    text_label,
)
from strongroom.operations.peer_store import PeerStore
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
    _commit(job, plan, repository.load_root(_root_name(job, plan.backup_id)), copied)


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


def _root_name(job: Job, backup_id: str) -> str:
    """Never that of the source: a root that was deleted here must not come back under the name it had."""
    return f"{backup_id}.{job.task.generation}"


def _disk_id(plan: ReplicaJob, source_id: str) -> str:
    """Of the replica of a machine's disk: the same in every attempt."""
    return str(uuid5(UUID(plan.backup_id), source_id))


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
        [*record.details.get("disks", ()), record.details["root"]],
        job.monitor,
        job.fence,
        sessions=RowSessions(tools, plan.vault, task.id, domain_id),
        cache=tools.index_cache(plan.vault),
        far=True,
        rename=lambda root, labels: _renamed(job, plan, root, labels),
    )
    return None if begun_before else report.bytes_copied


def _renamed(job: Job, plan: ReplicaJob, root: Root, labels: Labels) -> Root:
    """The machine's root names its disks by their ids of here, and theirs name the machine's."""
    own = _labels(plan, labels)
    if root.name == plan.record.details["root"]:
        backup_id = plan.backup_id
        if children := names_of_disks(labels):
            own["children"] = [_disk_id(plan, child) for child in children]
    else:
        backup_id = _disk_id(plan, root.backup_id)
        own |= {"parent": plan.backup_id, "name": f"{plan.backup_name}_{_disk_name(labels)}"[:NAME_CHARS_MAX]}
    name = _root_name(job, backup_id)
    return replace(
        root,
        name=name,
        backup_id=backup_id,
        generation=job.task.generation,
        labels=own,
        report=replace(root.report, root=name),
    )


def _disk_name(labels: Labels) -> str:
    return str(disk_label(labels).get("name") or "disk")


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
    disk_roots = _disk_roots(repository, root)
    for name in (*(disk.name for disk in disk_roots), root.name):
        retain_root(job, vault, repository, name, plan)
    used = None
    if copied is None:
        kept = tools.portal.call(replicas.roots_by_domain(tools.database, vault))
        arrived = {root.name, *(disk.name for disk in disk_roots)}
        kept[domain_id] = kept.get(domain_id, frozenset()) | arrived
        used = sum(
            live_bytes(tools.repository(vault, job.task.id, domain_id=domain), roots) for domain, roots in kept.items()
        )
        copied = max(0, used - vault.used_bytes)
    disks = [_replica_disk(disk) for disk in disk_roots]
    report = _report(root) | ({"kind": "machine"} | machine_facts(repository, root.name, root.labels) if disks else {})
    committed = CommittedReplica(
        root=root.name,
        domain_id=domain_id,
        size_bytes=sum(disk.size_bytes for disk in disks) if disks else root.size,
        stored_bytes=copied,
        used_bytes=used,
        point_token=_token(root),
        report=report,
        disks=tuple(disks),
    )
    tools.portal.call(replicas.commit_replica(tools.database, job.task, committed, tools.clock))


def _disk_roots(repository: Repository, root: Root) -> list[Root]:
    """Of a machine, all of which this attempt or the one it adopts has put. Raises ObjectMissing."""
    return [repository.load_root(f"{disk}.{root.generation}") for disk in names_of_disks(root.labels)]


def _replica_disk(root: Root) -> ReplicaDisk:
    """Its labels come from another region. Raises Corrupt."""
    labels = root.labels
    resource_id = text_label(labels.get("resource"), 36)
    if not is_id(resource_id):
        raise Corrupt(reason="the restore point of a disk does not say of which disk it is", detail=root.name)
    return ReplicaDisk(
        backup_id=root.backup_id,
        root=root.name,
        resource_id=resource_id,
        resource_name=text_label(labels.get("resource_name"), RESOURCE_NAME_CHARS_MAX) or resource_id,
        name=text_label(labels.get("name"), NAME_CHARS_MAX) or resource_id,
        size_bytes=root.size,
        point_token=_token(root) or b"",
        report=_report(root) | {"disk": disk_label(labels)},
    )


def _report(root: Root) -> dict[str, Any]:
    found = asdict(root.report)
    return {name: found[name] for name in COUNTS} | {"full_reason": found["full_reason"], "kind": root.kind}


def _token(root: Root) -> bytes | None:
    token = root.labels.get("token")
    return token if isinstance(token, bytes) else None
