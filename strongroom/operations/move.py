"""The story of resources that move to another vault with their backups.

    before    rows: the resources show `removing` in the old vault, so nothing else works on them or on their backups
    1 start   rows: what moves and what stays, by domain; restore points that are divided get their new ids, noted in
              the task
    2 room    what the backups need by themselves is measured: the new vault has to have room for it
    for each domain of the old vault that holds some of it:
    3 copy    the domain comes along (RULINGS 11): keys, packs, index, then the roots under their own names
    4 labels  in the new place they say where they are now; then the database's copy of the wrapped keys
    5 end     rows, one transaction WHERE generation = mine: resources, backups and restore points belong to the new
              vault, usage of both, task success, and a prune of the old vault is queued
    6 prune   takes the roots of the old place, which no row names any more, and what only they needed

Death before 5: the backups are in the old vault as before, and the next attempt goes on with what has arrived; if there
is none, what arrived is dead and the new vault's prune takes it. Death after 5: they are in the new vault. Should the
database be lost in between, both places say what they hold, and a rebuild takes each backup once.

A root that lies at the destination before the first attempt is a dead one of an earlier life there: a prune that has
seen it as dead may be about to take it. So it is never relied on: the move waits until it is gone.
"""

from collections.abc import Iterable, Sequence

from strongroom.base.errors import StrongroomError, Unavailable
from strongroom.control import moved
from strongroom.control.moved import Moved, MoveJob, MovingPoint
from strongroom.control.moving import require_capacity
from strongroom.control.vault_keys import save_vault_keys
from strongroom.engine.copy import copy
from strongroom.engine.model import Labels, Root
from strongroom.engine.open import load_wraps
from strongroom.engine.prune import live_bytes
from strongroom.engine.repository import Repository
from strongroom.operations.job import Job, vault_prefix


def run(job: Job) -> None:
    """One attempt."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(moved.start_move(tools.database, task))
    sources = {
        domain_id: tools.repository(plan.source, task.id, domain_id=domain_id)
        for domain_id in sorted(plan.points, key=lambda key: key or "")
    }
    require_capacity(plan.destination, sum(live_bytes(sources[key], _roots(plan.points[key])) for key in sources))
    places = {key: tools.receive(plan.destination, task.id, source) for key, source in sources.items()}
    if not plan.begun:
        for key, (receiver, _) in places.items():
            _refuse_remains(plan, receiver, plan.points[key])
        tools.portal.call(moved.note_begun(tools.database, task))
    gained = freed = copied = 0
    for key, (receiver, domain_id) in places.items():
        copied += _bring(job, plan, sources[key], receiver, plan.points[key])
        _save_keys(job, plan, receiver, domain_id)
        roots, kept = _roots(plan.points[key]), plan.keep.get(key, frozenset())
        before = plan.there.get(domain_id, frozenset())
        gained += live_bytes(receiver, before | roots) - live_bytes(receiver, before)
        freed += live_bytes(sources[key], kept | roots) - live_bytes(sources[key], kept)
    job.fence()
    result = Moved(
        roots=frozenset().union(*map(_roots, plan.points.values())),
        domains={key: domain_id for key, (_, domain_id) in places.items()},
        gained=gained,
        freed=freed,
        outcome={"bytes_copied": copied},
    )
    tools.portal.call(moved.commit_move(tools.database, task, result, tools.clock))


def fail(job: Job, error: StrongroomError) -> None:
    """Everything is where it was."""
    tools = job.tools
    tools.portal.call(moved.fail_move(tools.database, job.task, error, tools.clock))


def _refuse_remains(plan: MoveJob, receiver: Repository, points: Sequence[MovingPoint]) -> None:
    """Raises Unavailable, which is tried again, while dead roots of these names lie at the destination."""
    if not _roots(points).isdisjoint(receiver.root_names()):
        raise Unavailable(
            reason=f"Vault {plan.destination.name} still holds remains of these backups from before. Move them when "
            "its clean-up has ended, in some minutes."
        )


def _bring(job: Job, plan: MoveJob, source: Repository, receiver: Repository, points: Sequence[MovingPoint]) -> int:
    """Copy the roots of one domain with all they need, and say where they are now. Returns sealed bytes written."""
    tools, destination = job.tools, plan.destination
    report = copy(
        source,
        receiver.store,
        vault_prefix(destination.project_id, destination.id),
        tools.master,
        _roots(points),
        job.monitor,
        job.fence,
        sessions=receiver.sessions,
        cache=tools.index_cache(destination),
    )
    said, saying = source.label_numbers(), receiver.label_numbers()
    for point in points:
        job.fence()
        root = source.load_root(point.root)
        labels = source.readable_labels(root, said.get(root.backup_id, 0))
        _tell_place(receiver, root, point, plan, labels, saying.get(root.backup_id, 0))
    return report.bytes_copied


def _tell_place(
    receiver: Repository, root: Root, point: MovingPoint, plan: MoveJob, labels: Labels, number: int
) -> None:
    """Labels of the new place (RULINGS 12): what a rebuild goes by. number: the newest that lie there."""
    wanted = {
        **labels,
        "project": plan.destination.project_id,
        "vault": plan.destination.id,
        "vault_name": plan.destination.name,
        "backup": point.backup_id,
        "checkpoint": point.checkpoint_id,
    }
    if receiver.readable_labels(root, number) != wanted:
        receiver.put_labels(root.backup_id, wanted, number + 1)


def _save_keys(job: Job, plan: MoveJob, receiver: Repository, domain_id: str | None) -> None:
    _, wrapped = load_wraps(receiver.store, receiver.prefix)[0]
    place = (plan.destination.project_id, plan.destination.id)
    job.tools.portal.call(save_vault_keys(job.tools.database, *place, wrapped, domain_id))


def _roots(points: Iterable[MovingPoint]) -> frozenset[str]:
    return frozenset(point.root for point in points)
