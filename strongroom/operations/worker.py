"""The worker: claims tasks, runs each in a thread, keeps their leases, ends them whatever happens.

It lives on a thread of its own with its own event loop and pool, so that a busy request side cannot starve the leases:

    loop     claim -> start a job's thread; LISTEN wakes it, in turns with other workers (turns.py)
             every RENEW_S: extend leases, write progress, pass on cancels; every SWEEP_S: end what is used up
             every FIRE_S: fire policies that are due; every EXPIRE_S: begin to delete what is over
             every PROMISE_S: count the time of locked vaults; every AUDIT_S: forget audits and tasks that are old
             every SELF_S: copy the database into the store when that is due
             every TELL_AGAIN_S: have the store keep what locked vaults hold
    threads  one a running job, bounded; they enter `control` through the portal

A job that cannot renew its lease is told to stop before the lease runs out, and stops by itself when it has. Draining:
no new claims; running jobs have `drain_s` to finish, then they are told to stop and their tasks are given back without
counting the attempt. What does not stop within STOP_S_MAX is given back over its head, and its thread left to the end
of the process: its generation writes nothing any more.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import structlog

from strongroom.base.clock import Clock
from strongroom.base.ending import end_tasks
from strongroom.base.errors import Canceled, ComeAgain, Fenced, StrongroomError, Unavailable, WorkerStops
from strongroom.base.ids import new_id
from strongroom.control import audit, claiming, expiry, firing, locking, sessions, tasks
from strongroom.control.claiming import RunningLimits
from strongroom.control.db import Database
from strongroom.control.outgoing import Outgoing
from strongroom.control.promises import PromiseTicker
from strongroom.control.tasks import Task
from strongroom.control.tokens import Ring
from strongroom.engine.store.base import Store
from strongroom.engine.store.retention import retains
from strongroom.operations import measures, trace
from strongroom.operations.job import Job, Tools
from strongroom.operations.monitor import JobMonitor
from strongroom.operations.notify import deliver_due, look_for_overdue
from strongroom.operations.portal import Portal
from strongroom.operations.registry import WORK
from strongroom.operations.self_backup import SelfBackups, copy_when_due
from strongroom.operations.turns import POLL_S, Turns

log = structlog.get_logger("worker")

RENEW_S = 2.0  # a fifth of the lease
SWEEP_S = 5.0
FIRE_S = 2.0  # how late a scheduled run may begin
EXPIRE_S = 10.0  # nobody waits for an expiry
AUDIT_S = 3600.0  # a log that is kept for months may keep a row an hour longer
NOTIFY_S = 3.0  # how late a message may leave
OVERDUE_S = 300.0  # how late a run that did not happen is told
SELF_S = 60.0  # how late a copy of the database may begin
PROMISE_S = 10.0  # how much of a promise's time an ended worker may leave uncounted
RETRY_S_FIRST, RETRY_S_MAX = 1.0, 60.0  # doubled with every attempt
STOP_S_MAX = 20.0  # from being told to stop to the end of a job: a segment, a store call with its retries
HURRY_S_MAX = 1.0  # the same, for who does not want to wait
GIVE_BACK_S_MAX = 5.0  # then the leases run out by themselves
TELL_AGAIN_S = 3600.0  # of locked vaults, once a week each
CONNECTIONS_EXTRA = 9  # claim, renewal, sweep, firing, expiry, promises, locks, audit, copy; each job needs one

MakeTools = Callable[[Database, Portal], Tools]


@dataclass(kw_only=True)
class _Running:
    task: Task
    monitor: JobMonitor


class Worker:
    """Start it once, stop it once.

    group    names the sources it can reach
    place    the state folder's id
    limits   of running tasks, the same in all workers
    dead     whose leases end at the start, because they are known to be dead (RULINGS 6): earlier workers of this state
             folder ("place"), of the whole installation ("all"), or of nobody ("none")
    drain_s  how long running jobs may run on when it is told to end
    """

    def __init__(
        self,
        *,
        database_url: str,
        make_tools: MakeTools,
        clock: Clock,
        group: str,
        concurrency: int,
        place: str,
        dead: Literal["none", "place", "all"],
        limits: RunningLimits | None = None,
        audit_days: int,
        operation_log_days: int,
        drain_s: float = 0.0,
        region: str = "",
        self_backups: SelfBackups | None = None,
        outgoing: Outgoing | None = None,
        ring: Ring | None = None,
    ) -> None:
        self._url = database_url
        self._make_tools = make_tools
        self._clock = clock
        self._group = group
        self._concurrency = concurrency
        self._region = region
        self._audit_days, self._log_days = audit_days, operation_log_days
        self._self_backups = self_backups or SelfBackups()
        self._outgoing, self._ring = outgoing, ring
        self._place, self._dead, self._limits = place, dead, limits
        self._served_last = ""  # the project of the last task: the turn goes on behind it
        self.drain_s = drain_s
        self.name = f"{place}/{socket.gethostname()}:{os.getpid()}:{new_id()[-8:]}"
        self._running: dict[str, _Running] = {}
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._turns = Turns(group, clock)
        self._draining = self._hurrying = False
        self._thread = threading.Thread(target=self._main, name="worker", daemon=True)

    def start(self) -> None:
        """Connect and begin to claim; returns when that works, raises when it does not."""
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed

    def drain(self) -> None:
        """Claim no more, and end when the running jobs have ended or `drain_s` is over. Returns at once; idempotent."""
        self._draining = True
        self._wake_up()

    def hurry(self) -> None:
        """Drain without waiting for jobs: their tasks are given back now."""
        self._hurrying = True
        self.drain()

    def stop(self) -> bool:
        """Drain and end. Returns when the thread is gone: True if every job has ended, False if threads of jobs are
        left whose tasks were given back over their heads."""
        self.drain()
        self.join()
        return not self._running

    def join(self) -> None:
        """Wait for the end of the worker, if it has begun."""
        if self._thread.ident is not None:
            self._thread.join()

    def _wake_up(self) -> None:
        if self._loop is not None and self._wake is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._wake.set)

    @property
    def draining(self) -> bool:
        """It was told to end."""
        return self._draining

    @property
    def running(self) -> int:
        """Tasks that it runs."""
        return len(self._running)

    @property
    def alive(self) -> bool:
        """False when the worker's thread ended although nobody asked for it: the process should end too."""
        return self._thread.is_alive()

    def _main(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:  # handed to start(), or logged: the thread has nobody else to tell
            self._failed = error
            log.error("the worker ended", error=repr(error), exc_info=True)
            raise
        finally:
            self._ready.set()

    async def _work(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        size = self._concurrency + CONNECTIONS_EXTRA
        async with await Database.open(self._url, min_size=2, max_size=size) as database:
            tools = self._make_tools(database, Portal(self._loop))
            if self._dead != "none":
                place = self._place if self._dead == "place" else None
                await tasks.end_leases(database, place)
                await sessions.close_unowned(database, place)
            jobs = ThreadPoolExecutor(self._concurrency, "job")
            beside = [
                asyncio.create_task(self._forever(RENEW_S, lambda: self._renew(database))),
                asyncio.create_task(self._forever(SWEEP_S, lambda: self._sweep(database, tools, jobs), shared=True)),
                asyncio.create_task(self._forever(FIRE_S, lambda: self._fire(database), shared=True)),
                asyncio.create_task(self._forever(EXPIRE_S, lambda: self._expire(database), shared=True)),
                asyncio.create_task(self._forever(PROMISE_S, PromiseTicker(database, self._clock).tick)),
                asyncio.create_task(self._forever(AUDIT_S, lambda: self._forget(database))),
                asyncio.create_task(self._forever(SELF_S, lambda: self._copy_self(database, tools))),
                asyncio.create_task(self._forever(NOTIFY_S, lambda: self._notify(database), shared=True)),
                asyncio.create_task(self._forever(OVERDUE_S, lambda: look_for_overdue(database, self._clock))),
                asyncio.create_task(self._forever(TELL_AGAIN_S, lambda: self._tell_again(database, tools.store))),
                asyncio.create_task(self._turns.listen(database, self._wake.set)),
            ]
            self._ready.set()
            log.info("worker ready", worker=self.name, group=self._group, concurrency=self._concurrency)
            try:
                while not self._draining:
                    if not await self._claim_one(database, tools, jobs):
                        await self._sleep()
                await self._drain()
            finally:
                await end_tasks(beside)
                await self._give_back(database)
                jobs.shutdown(wait=False, cancel_futures=True)

    async def _claim_one(self, database: Database, tools: Tools, jobs: ThreadPoolExecutor) -> bool:
        if len(self._running) >= self._concurrency:
            return False
        began_s = self._clock.monotonic_s()  # before: a lease is never longer than it is thought to be
        try:
            task = await claiming.claim(database, self.name, self._group, limits=self._limits, after=self._served_last)
        except Unavailable as error:
            log.warning("cannot claim", error=str(error))
            return False
        if task is None:
            return False
        self._served_last = task.project_id
        self._start(task, tools, jobs, _perform, began_s)
        return True

    def _start(
        self, task: Task, tools: Tools, jobs: ThreadPoolExecutor, perform: Callable[[Job], None], began_s: float
    ) -> None:
        monitor = JobMonitor(clock=self._clock, lease_ends_s=began_s + tasks.LEASE_S)
        running = _Running(task=task, monitor=monitor)
        self._running[task.id] = running
        assert self._loop is not None
        future = self._loop.run_in_executor(jobs, perform, Job(task=task, tools=tools, monitor=running.monitor))
        future.add_done_callback(lambda _: self._ended(task))

    def _ended(self, task: Task) -> None:
        self._running.pop(task.id, None)
        if self._wake is not None:
            self._wake.set()

    async def _sleep(self) -> None:
        assert self._wake is not None
        try:
            await asyncio.wait_for(self._wake.wait(), POLL_S)
        except TimeoutError:
            return
        self._wake.clear()

    async def _forever(self, interval_s: float, step: Callable[[], object], *, shared: bool = False) -> None:
        """shared: any worker may do it for all, so each does it less often where they are many."""
        while True:
            try:
                await step()  # type: ignore[misc]
            except Unavailable as error:
                log.warning("the database does not answer the worker", error=str(error))
            except StrongroomError as error:
                log.error("failed beside the jobs", **_told(error))
            except Exception:
                log.exception("unexpected failure beside the jobs")  # the next round must come all the same
            await asyncio.sleep(self._turns.interval_s(interval_s) if shared else interval_s)

    async def _fire(self, database: Database) -> None:
        """Policies whose time has come (control/firing.py)."""
        for due in await firing.due_runs(database, self._clock):
            await self._one_of_many(firing.fire(database, due, self._clock, region=self._region), due)

    async def _expire(self, database: Database) -> None:
        """Backups whose time is over (control/expiry.py)."""
        for found in await expiry.overdue(database, self._clock):
            await self._one_of_many(expiry.expire(database, found, self._clock), found)

    async def _forget(self, database: Database) -> None:
        """Rows of the audit log and of tasks whose time is over."""
        while await audit.purge(database, self._audit_days) == audit.PURGE_ROWS_MAX:
            pass
        await tasks.forget(database, self._log_days)

    async def _notify(self, database: Database) -> None:
        """Messages to tenants that are due (notify.py)."""
        if self._outgoing is not None and self._ring is not None:
            while await deliver_due(database, self._outgoing, self._ring, self._clock) and not self._draining:
                pass

    async def _copy_self(self, database: Database, tools: Tools) -> None:
        """The database itself, into the store (self_backup.py)."""
        stopping = lambda: self._draining  # noqa: E731 -- asked in another thread
        await copy_when_due(self._self_backups, database, self._url, tools, stopping)

    async def _tell_again(self, database: Database, store: Store) -> None:
        """Locked vaults, where the store keeps what they promise (control/locking.py)."""
        if not await asyncio.to_thread(retains, store):
            return
        for project_id, vault_id in await locking.due_again(database, self._clock):
            await self._one_of_many(locking.tell_again(database, project_id, vault_id, self._clock), vault_id)

    async def _one_of_many(self, work: Awaitable[object], what: object) -> None:
        """One vault's trouble is no other vault's."""
        try:
            done = await work
        except Unavailable:
            raise
        except StrongroomError as error:
            log.error("failed for one vault", what=what, **_told(error))
        except Exception:
            log.exception("unexpected failure for one vault", what=what)
        else:
            if done:
                log.info("by schedule", what=what, done=done)

    async def _renew(self, database: Database) -> None:
        """Extend, or tell to stop: a job that may have lost its lease must not write any more."""
        mine = {id_: r.task.generation for id_, r in self._running.items()}
        if not mine:
            return
        began_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(tasks.LEASE_S - RENEW_S * 2):
                ours, canceled = await tasks.renew(database, self.name, mine)
        except (StrongroomError, TimeoutError) as error:
            for id_ in mine:
                self._tell(id_, Fenced(reason="its lease could not be renewed", detail=repr(error)))
            return
        for id_, generation in mine.items():
            running = self._running.get(id_)
            if running is None or running.task.generation != generation:
                continue
            if id_ in ours:
                running.monitor.lease_ends_s = began_s + tasks.LEASE_S
            if id_ not in ours:
                self._tell(id_, Fenced(reason="its lease ran out"))
            elif id_ in canceled:
                self._tell(id_, Canceled())
            else:
                progress = running.monitor.progress(self._clock.monotonic_s())
                await tasks.note_progress(database, running.task, progress)

    def _tell(self, task_id: str, stop: StrongroomError) -> None:
        running = self._running.get(task_id)
        if running is not None and running.monitor.stop is None:
            running.monitor.stop = stop

    async def _sweep(self, database: Database, tools: Tools, jobs: ThreadPoolExecutor) -> None:
        began_s = self._clock.monotonic_s()
        for task in await tasks.exhausted(database, self.name, self._group):
            self._start(task, tools, jobs, _give_up, began_s)

    async def _drain(self) -> None:
        await self._until_idle(self.drain_s, lambda: self._hurrying)
        for id_ in list(self._running):
            self._tell(id_, WorkerStops())
        if not await self._until_idle(HURRY_S_MAX if self._hurrying else STOP_S_MAX, lambda: False):
            log.warning("jobs did not stop in time; their tasks are given back", jobs=list(self._running))

    async def _until_idle(self, seconds: float, enough: Callable[[], bool]) -> bool:
        """Wait until no job runs, for `seconds` or until `enough`. Whether none runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._running and not enough():
                    await self._sleep()
        return not self._running

    async def _give_back(self, database: Database) -> None:
        """The tasks of jobs that did not stop, so that another worker takes them over at once. Nothing renews now."""
        mine = {id_: running.task.generation for id_, running in self._running.items()}
        if not mine:
            return
        try:
            async with asyncio.timeout(GIVE_BACK_S_MAX):
                await tasks.give_back(database, self.name, mine)
        except (StrongroomError, TimeoutError) as error:
            log.warning("the tasks could not be given back; their leases run out", error=repr(error))


def _told(error: StrongroomError) -> dict[str, str]:
    """What an operator needs of an error that is ours: what it is, its sentence with the detail, its code."""
    return {"kind": type(error).__name__, "error": str(error), "code": error.published_code}


def _perform(job: Job) -> None:
    """One attempt, to one of its ends. Nothing leaves this function: it is the bottom of a job's thread."""
    task, work = job.task, WORK[job.task.operation_type]
    bound = log.bind(
        task=task.id,
        operation=task.operation_type,
        generation=task.generation,
        project=task.project_id,
        request_id=task.request_id,
    )
    began_s = job.tools.clock.monotonic_s()
    bound.info("task begins", attempt=task.attempts)
    try:
        if task.cancel_requested:
            raise Canceled
        with trace.running(task.operation_type):
            work.run(job)
        bound.info("task done")
        measures.task_ended(task.operation_type, "success", job.tools.clock.monotonic_s() - began_s)
    except Fenced as error:
        bound.warning("task left to a newer attempt", error=str(error))
    except WorkerStops:
        bound.info("task given back")
        _settle(job, lambda: job.tools.portal.call(tasks.put_back(job.tools.database, task, 0, count=False)))
    except ComeAgain as later:
        delay_s = later.delay_s
        _settle(job, lambda: job.tools.portal.call(tasks.put_back(job.tools.database, task, delay_s, count=False)))
    except StrongroomError as error:
        failure = error
        bound.warning("task failed", error=str(error), code=error.published_code)
        if error.retryable and task.attempts < tasks.ATTEMPTS_MAX:
            delay_s = min(RETRY_S_MAX, RETRY_S_FIRST * 2**task.attempts)
            _settle(job, lambda: job.tools.portal.call(tasks.put_back(job.tools.database, task, delay_s, count=True)))
        else:
            _settle(job, lambda: work.fail(job, failure))
            result = "canceled" if isinstance(error, Canceled) else "failed"
            measures.task_ended(task.operation_type, result, job.tools.clock.monotonic_s() - began_s)
    except Exception as error:  # noqa: BLE001 -- the bottom of a job: whatever it was becomes the row's reason
        bound.exception("unexpected failure")
        unexpected = StrongroomError(detail=repr(error))
        _settle(job, lambda: work.fail(job, unexpected))
        measures.task_ended(task.operation_type, "failed", job.tools.clock.monotonic_s() - began_s)


def _give_up(job: Job) -> None:
    """End a task whose attempts are used up: every one of them ended with its worker."""
    error = StrongroomError(detail=f"{job.task.attempts} attempts ended without a result")
    _settle(job, lambda: WORK[job.task.operation_type].fail(job, error))


def _settle(job: Job, end: Callable[[], None]) -> None:
    """Write the end of an attempt. If even that fails the lease runs out, and another attempt or the sweep ends it."""
    try:
        end()
    except StrongroomError as error:
        log.error("the end of a task could not be written", task=job.task.id, error=str(error))
    except Exception:
        log.exception("the end of a task could not be written", task=job.task.id)
