"""The story of a restore: a restore point, or one path of it, onto a registered resource.

    before   rows of task, backup (restoring) and target (restoring) are written
    1 start  rows: what, from which root, onto which resource
      lost   with skip_damaged: everything is read once, and what no sound pack holds is known; it is left out of 3
    2 plan   the source looks at the target and names conflicts; nothing is touched
    3 stage  folders and image files are put together beside the live content, every chunk checked against its id;
             a block device has no room beside it: blocks that differ are written in place, done ranges kept in the row
    4 swap   the source makes the staged content durable and moves it into place, under a journal of its own
    5 commit rows, one transaction WHERE generation = mine: target and backup available, task success

Death in 3 leaves the old content and a staging place that the next attempt settles; in 4 the journal goes forward, or
back when staging was not complete; a device is `error`, "half restored", until the same restore has run to its end.
A machine has several disks and a state of its own, so it has its own story (machine_restore.py).
"""

import threading
from typing import Any

from strongroom.base.errors import AttemptAlive, ComeAgain, InvalidRequest, NotFound, SourceError, StrongroomError
from strongroom.base.streams import Path
from strongroom.control import restores, tasks
from strongroom.control.restores import RestoreJob
from strongroom.engine import RestoreReport, Root, restore_block, restore_tree
from strongroom.engine.repository import Repository
from strongroom.engine.verify import find_lost
from strongroom.operations.job import Job, driver_of, source_ref
from strongroom.operations.machine_record import MACHINE
from strongroom.operations.machine_restore import restore_machine
from strongroom.operations.ranges import STATE_INTERVAL_S, merged
from strongroom.sources.base import RestoreWanted, Target, TargetReport
from strongroom.sources.open import machine_driver_for

ALIVE_AGAIN_S = 2.0  # until an earlier attempt, frozen or slow to stop, has let go of the target
LEFT_OUT_MAX = 100  # named in the row; the count is exact


def run(job: Job) -> None:
    """One attempt. Raises what stops it; ComeAgain as long as an earlier attempt holds the target."""
    try:
        _attempt(job)
    except AttemptAlive as err:
        raise ComeAgain(delay_s=ALIVE_AGAIN_S) from err


def _attempt(job: Job) -> None:
    tools, task = job.tools, job.task
    plan = tools.portal.call(restores.start_restore(tools.database, task))
    if plan.target.type == MACHINE:
        restore_machine(job, plan)
        return
    driver = driver_of(job, plan.target)
    started_s = tools.clock.monotonic_s()
    repository = tools.repository(plan.vault, task.id, domain_id=plan.domain_id)
    root = repository.load_root(plan.root)
    lost = find_lost(repository, plan.root, job.monitor) if plan.skip_damaged else frozenset()
    wanted = RestoreWanted(
        task_id=task.id,
        target=source_ref(plan.target),
        same_resource=plan.same_resource,
        kind=root.kind,
        size_bytes=root.size,
        entries=root.report.entries,
        selection=(split(plan.path),) if plan.path else (),
        sub_path=split(plan.target_path) if plan.target_path is not None else None,
        force=plan.force,
        done_ranges=tuple((int(o), int(n)) for o, n in task.state.get("done", ())),
        roots=_roots_of(root),
        check=job.monitor.check,
    )
    prepared = driver.plan_restore(wanted)
    if prepared.staging is None:
        # From here on the target is neither old nor new, whatever ends this attempt: say so before the first write.
        state = {"in_place": True, "done": [list(r) for r in wanted.done_ranges]}
        tools.portal.call(tasks.save_state(tools.database, task, state))
    with driver.open_target(prepared, _Ranges(job).add) as target:
        report = _pour(job, plan, repository, target, lost)
        job.fence()
        finished = target.finish()
    outcome = _outcome(finished, report, (*prepared.warnings, *report.warnings, *finished.warnings)) | {
        "bytes": report.bytes,
        "entries": report.entries,
        "seconds": round(tools.clock.monotonic_s() - started_s, 3),
    }
    tools.portal.call(restores.commit_restore(tools.database, task, outcome, tools.clock))


def fail(job: Job, error: StrongroomError) -> None:
    """Settle what the attempts left at the target, then end the task; a device may stay half restored and says so."""
    tools = job.tools
    try:
        place, in_place = tools.portal.call(restores.start_settling(tools.database, job.task))
    except NotFound as gone:
        # The target is not there any more: nothing to settle, and the task must end.
        error.detail = f"{error.detail}; not settled: {gone}".lstrip("; ")
        half = "in_place" in job.task.state
        tools.portal.call(restores.fail_restore(tools.database, job.task, error, tools.clock, half_restored=half))
        return
    try:
        driver = machine_driver_for(place.path) if place.type == MACHINE else driver_of(job, place)
        driver.recover(source_ref(place), frozenset({job.task.id}))
    except (SourceError, InvalidRequest) as err:
        error.detail = f"{error.detail}; leftovers at the target not settled: {err}".lstrip("; ")
    tools.portal.call(restores.fail_restore(tools.database, job.task, error, tools.clock, half_restored=in_place))


def _roots_of(root: Root) -> tuple[bytes, ...]:
    """The paths of a host that a restore point was made of; none for anything else."""
    paths = root.labels.get("paths", ())
    return tuple(path for path in paths if isinstance(path, bytes)) if isinstance(paths, list | tuple) else ()


def split(path: bytes) -> Path:
    """`a/b` as a path of the stream; empty parts are dropped, so `/a//b/` is the same place."""
    return tuple(part for part in path.split(b"/") if part)


def _pour(job: Job, plan: RestoreJob, repository: Repository, target: Target, lost: frozenset[bytes]) -> RestoreReport:
    stream: Any = target.stream
    if target.kind == "tree":
        path = split(plan.path) if plan.path else ()
        return restore_tree(repository, plan.root, stream, path=path, monitor=job.monitor, lost=lost)
    return restore_block(repository, plan.root, stream, monitor=job.monitor, lost=lost)


def _outcome(finished: TargetReport, report: RestoreReport, warnings: tuple[str, ...]) -> dict[str, object]:
    left_out = [*report.lost, *finished.left_out]
    if report.lost_count:
        warnings = (f"{report.lost_count} parts of the backup are lost in the store and were left out.", *warnings)
    return {
        "warnings": list(dict.fromkeys(warnings)),
        "left_out_count": report.lost_count + len(finished.left_out),
        "left_out": [
            {"path": b"/".join(s.path).decode("utf-8", "backslashreplace"), "reason": s.reason}
            for s in left_out[:LEFT_OUT_MAX]
        ],
        "lost_count": report.lost_count,
    }


class _Ranges:
    """Done ranges of a device, merged, saved in the task's row at most once a second."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._done = sorted((int(o), int(n)) for o, n in job.task.state.get("done", ()))
        self._saved_s = job.tools.clock.monotonic_s()

    def add(self, offset: int, length: int) -> None:
        """A range is durable and was read back. Called from writing threads."""
        clock = self._job.tools.clock
        with self._lock:
            self._done = merged([*self._done, (offset, length)])
            if clock.monotonic_s() - self._saved_s < STATE_INTERVAL_S:
                return
            self._saved_s = clock.monotonic_s()
            state = {"in_place": True, "done": [list(r) for r in self._done]}
            self._job.tools.portal.call(tasks.save_state(self._job.tools.database, self._job.task, state))
