"""The story of a changed time: the labels of a vault's restore points in the store say what the rows say.

    before   rows: the request has written the new time, which holds from then on; one task, at most one a vault
    1 start  rows: time and promise of every restore point, by domain
    2 labels of those that say something else, a new set of labels is put (RULINGS 12); what they say beside stays
    3 end    rows: task success

Death anywhere: the next attempt finds what is written already and puts the rest. A root that is gone has no labels to
put; that it is gone is for verify to tell.
"""

from collections.abc import Sequence

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Corrupt, ObjectMissing, StrongroomError
from strongroom.control import expirations, sessions
from strongroom.control.expirations import PointTime
from strongroom.engine.repository import Repository
from strongroom.operations.job import Job


def run(job: Job) -> None:
    """One attempt."""
    tools, task = job.tools, job.task
    plan = tools.portal.call(expirations.start_expiration(tools.database, task))
    written = lost = 0
    for domain_id, points in sorted(plan.points.items(), key=lambda item: item[0] or ""):
        repository = tools.repository(plan.vault, task.id, domain_id=domain_id)
        more, gone = _write(job, repository, points)
        written, lost = written + more, lost + gone
    outcome = {"labels_written": written, "roots_missing": lost}
    tools.portal.call(expirations.finish_expiration(tools.database, task, outcome, tools.clock))


def fail(job: Job, error: StrongroomError) -> None:
    """The rows keep the time; asking for it again writes the labels."""
    tools = job.tools
    tools.portal.call(sessions.fail_alone(tools.database, job.task, error, tools.clock))


def _write(job: Job, repository: Repository, points: Sequence[PointTime]) -> tuple[int, int]:
    """(labels that were put, roots that are not there or do not open)."""
    numbers = repository.label_numbers()
    written = lost = 0
    for point in points:
        job.monitor.check()
        job.fence()
        try:
            root = repository.load_root(point.root)
        except (Corrupt, ObjectMissing):
            lost += 1
            continue
        members = {
            "expires_at": api_timestamp(point.expired_at) if point.expired_at else None,
            "lock_until": api_timestamp(point.promised_until) if point.promised_until else None,
        }
        written += repository.change_labels(root, members, numbers.get(root.backup_id, 0))
    return written, lost
