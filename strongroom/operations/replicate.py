"""The story of a replication, told by the source. The destination does the work (receive.py).

    before  rows: a record `waiting_replicate` and a task for each backup
    1 pin   a session keeps what the destination is going to read, until the task is final
    2 offer to the destination: what the backup is, its root's name, its domain's keys wrapped for the two regions.
            Offered again it changes nothing, so a death anywhere repeats the offer
    3 look  how far it is there; then the task is given back, and comes again a moment later: no thread waits
    4 end   rows, one transaction WHERE generation = mine: record and task success, with the replica's ids

The destination reads at this region's API while the record is open, and nothing before or after. One that does not
answer is waited for, a day at most; one that refuses ends the task with its code and its sentence.
"""

from contextlib import suppress
from datetime import timedelta
from typing import Any

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import (
    ComeAgain,
    Conflict,
    RecordNotFound,
    RegionRefused,
    RegionUnreachable,
    StrongroomError,
)
from strongroom.control import replications, tasks
from strongroom.control.replications import ReplicationJob
from strongroom.engine import MasterKey
from strongroom.operations.job import Job
from strongroom.operations.peers import Peer

LOOK_AGAIN_S = 1.0  # while it is young: a small increment is there in a second or two
LOOK_SELDOM_S = 5.0
YOUNG = timedelta(minutes=1)
UNREACHABLE_AGAIN_S = 5.0
TEXT_CHARS_MAX = 1000  # of each text of an answer: the longest are sentences
BYTES_END = 1 << 62
GIVE_UP = timedelta(days=1)  # a region that is away longer has other worries; the next run of a policy tries again


def run(job: Job) -> None:
    """One look. Raises ComeAgain as long as the replica is under way."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(replications.start_replication(tools.database, task))
    age = tools.clock.now() - plan.record.created_at
    try:
        replica = _look(job, plan)
    except RegionUnreachable:
        if age > GIVE_UP:
            raise
        raise ComeAgain(delay_s=UNREACHABLE_AGAIN_S) from None
    match replica["status"]:
        case "success":
            tools.portal.call(replications.commit_replication(tools.database, task, replica, tools.clock))
        case "fail":
            raise RegionRefused(
                region=plan.record.destination_region,
                reason=replica["fail_reason"],
                status=400,
                error_code=replica["fail_code"],
            )
        case _:
            tools.portal.call(replications.note_replica(tools.database, task, replica))
            raise ComeAgain(delay_s=LOOK_AGAIN_S if age < YOUNG else LOOK_SELDOM_S)


def fail(job: Job, error: StrongroomError) -> None:
    """The record tells why, and the backup may be copied again. The destination is told to stop, if it can be."""
    tools, task = job.tools, job.task
    if isinstance(error, RegionUnreachable):
        error.detail = f"{error.detail}; given up after {GIVE_UP}".lstrip("; ")
    record = tools.portal.call(replications.fail_replication(tools.database, task, error, tools.clock))
    if record is not None:
        with suppress(StrongroomError):  # it finds out: what it reads here is closed to it from now on
            tools.peers.to(record.destination_region).delete(f"/replicas/{record.id}")


def _look(job: Job, plan: ReplicationJob) -> dict[str, Any]:
    """What the destination says of the replica, which it knows from now on."""
    record = plan.record
    region = job.tools.peers.regions.get(record.destination_region)
    if region is None or not region.maps(here=record.source_project_id, there=record.destination_project_id):
        raise Conflict(
            conflict_code="1011",
            reason=f"This server's regions.toml maps the project to no project {record.destination_project_id} of "
            f"region {record.destination_region} any more.",
        )
    peer = job.tools.peers.to(record.destination_region)
    if record.destination_backup_id is not None:
        with suppress(RecordNotFound):  # it lost its rows: it is offered again
            return _replica(peer.get(f"/replicas/{record.id}"), peer)
    return _replica(peer.put(f"/replicas/{record.id}", _offer(job, plan, peer)), peer)


def _replica(answer: Any, peer: Peer) -> dict[str, Any]:
    """The members that this side writes into rows, of the right kinds. Raises RegionUnreachable."""
    found = answer.get("replica") if isinstance(answer, dict) else None
    texts = ("status", "backup_id", "backup_name", "checkpoint_id", "fail_code", "fail_reason")
    if (
        not isinstance(found, dict)
        or not all(isinstance(found.get(name), str) and _is_plain(found[name]) for name in texts)
        or not all(isinstance(found.get(name), int) for name in ("progress", "stored_bytes"))
        or not 0 <= found["progress"] <= 100
        or not 0 <= found["stored_bytes"] < BYTES_END
    ):
        raise RegionUnreachable(region=peer.name, reason="its answer is not of the form that was agreed.")
    return found


def _is_plain(text: str) -> bool:
    return len(text) <= TEXT_CHARS_MAX and "\0" not in text


def _offer(job: Job, plan: ReplicationJob, peer: Peer) -> dict[str, Any]:
    tools, task, record, backup = job.tools, job.task, plan.record, plan.backup
    repository = tools.repository(plan.vault, task.id, domain_id=plan.domain_id)
    if not plan.is_pinned:
        with repository.session("copy"):
            pass  # a session of a task stays open until it is final
        tools.portal.call(tasks.save_state(tools.database, task, {"pinned": True}))
    return {
        "auto_trigger": record.auto_trigger,
        "policy_id": record.details["policy_id"],
        "retention": record.details["retention"],
        "source_project_id": record.source_project_id,
        "source_vault_id": record.source_vault_id,
        "source_checkpoint_id": record.source_checkpoint_id,
        "source_backup_id": record.source_backup_id,
        "source_backup_name": record.source_backup_name,
        "source_created_at": api_timestamp(record.source_created_at),
        "project_id": record.destination_project_id,
        "vault_id": record.destination_vault_id,
        "name": record.details["name"],
        "description": record.details["description"],
        "object_type": backup["object_type"],
        "resource_id": backup["resource_id"],
        "resource_type": backup["resource_type"],
        "resource_name": backup["resource_name"],
        "resource_size_bytes": backup["resource_size_bytes"],
        "incremental": backup["incremental"],
        "root": plan.root,
        **({"disks": list(plan.disks)} if plan.disks else {}),
        "domain_id": repository.domain.id.hex(),
        "wrapped": MasterKey(peer.region.wrapping_key).wrap(repository.domain).hex(),
    }
