"""The compressors, the syncers and the segment buffers of one process, shared by its jobs (RULINGS 3).

A job leases all the buffers it will ever hold at once, and waits for them: holding some while waiting for more is how
two jobs stop each other. Its buffers are its back-pressure: when all are on their way to the store, the reader waits.
Readers of restore points share one cache (segment_cache.py), which borrows what no job needs and gives it back to one
that waits. Threads start with the first task, so that a run that finds nothing to store starts none.
"""

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from strongroom.base.errors import ConfigError
from strongroom.base.units import GIB, MIB
from strongroom.engine.model import SEGMENT_BYTES_MAX

if TYPE_CHECKING:  # loaded by the first task: 5 ms that a run without one does not need
    from concurrent.futures import Future, ThreadPoolExecutor

    from strongroom.engine.segment_cache import SegmentCache

BUDGET_BYTES = GIB  # STRONGROOM_WORKER_MEMORY's default
SCRATCH_PER_THREAD_BYTES = 4 * SEGMENT_BYTES_MAX  # box, plain, what zstd makes, zstd's own tables
THREADS_MAX = 16  # one reader feeds about four; more only serve several jobs, and each costs its scratch
SYNCERS = 4  # they wait for the store, not for a core: two keep a queue at a disk, a bucket takes 0.4 s a commit
READ_THREADS_MAX = 4  # they decrypt for readers, who copy: more than the cores only wait
READ_SCRATCH_BYTES = 2 * SEGMENT_BYTES_MAX  # of a reading thread: box and frame
LEASE_WAIT_S = 1.0  # how often a job that waits for buffers asks whether it should stop

Result = TypeVar("Result")


class Pool:
    """One a process: `threads` compressors (default: one a core, at most 16), as many buffers as the budget allows."""

    def __init__(self, *, budget_bytes: int = BUDGET_BYTES, threads: int | None = None) -> None:
        self.threads = threads or min(len(os.sched_getaffinity(0)), THREADS_MAX)
        self.lease_buffers = self.threads + 3  # one filling for data, one for metadata, one between two threads
        self._read_threads = min(self.threads, READ_THREADS_MAX)
        self.read_floor_bytes = self._read_threads * SEGMENT_BYTES_MAX  # of cached segments that no job can claim
        fixed = self.threads * SCRATCH_PER_THREAD_BYTES
        fixed += self._read_threads * READ_SCRATCH_BYTES + self.read_floor_bytes
        self._buffers_max = (budget_bytes - fixed) // SEGMENT_BYTES_MAX
        if self._buffers_max < self.lease_buffers:
            least = (self.lease_buffers * SEGMENT_BYTES_MAX + fixed) // MIB
            raise ConfigError(reason=f"The memory of a worker must be at least {least} MiB for {self.threads} threads.")
        self._changed = threading.Condition()
        self._free: list[bytearray] = []
        self._made = 0
        self._borrowed = 0  # bytes of the cache
        self._waiting = 0  # jobs that wait for a lease: the cache gets nothing more
        self._cache: SegmentCache | None = None
        self._executors: dict[str, ThreadPoolExecutor] = {}

    def lease(self, check: Callable[[], None]) -> list[bytearray]:
        """`lease_buffers` buffers of SEGMENT_BYTES_MAX; blocks until they are free. `check` may raise meanwhile."""
        with self._changed:
            self._waiting += 1
        try:
            while True:
                with self._changed:
                    lacking = self._lacking()
                    if lacking <= 0:
                        return self._take()
                    cache = self._cache if self._borrowed else None
                if cache is not None:  # not under our lock: the cache has its own, and repays with it held
                    cache.shrink(lacking * SEGMENT_BYTES_MAX)
                with self._changed:
                    if self._lacking() > 0:
                        self._changed.wait(LEASE_WAIT_S)
                check()
        finally:
            with self._changed:
                self._waiting -= 1

    def _lacking(self) -> int:
        """Buffers that are not there for a lease. Called with the lock, as is `_take`."""
        lent = -(-self._borrowed // SEGMENT_BYTES_MAX)
        return self.lease_buffers - (len(self._free) + self._buffers_max - self._made - lent)

    def _take(self) -> list[bytearray]:
        while len(self._free) < self.lease_buffers:
            self._free.append(bytearray(SEGMENT_BYTES_MAX))
            self._made += 1
        taken, self._free = self._free[: self.lease_buffers], self._free[self.lease_buffers :]
        return taken

    def give_back(self, buffers: list[bytearray]) -> None:
        with self._changed:
            self._free.extend(buffers)
            self._changed.notify_all()

    @property
    def cache(self) -> "SegmentCache":
        """The segments that readers share, made at first use."""
        from strongroom.engine.segment_cache import SegmentCache

        with self._changed:
            if self._cache is None:
                self._cache = SegmentCache(self)
            return self._cache

    def borrow(self, size: int) -> bool:
        """`size` more bytes for the cache, unless a job needs them. Buffers that lie about make room."""
        with self._changed:
            if self._waiting:
                return False
            used = (self._made - len(self._free)) * SEGMENT_BYTES_MAX + self._borrowed + size
            if used > self._buffers_max * SEGMENT_BYTES_MAX:
                return False
            self._borrowed += size
            while (
                self._free and self._made * SEGMENT_BYTES_MAX + self._borrowed > self._buffers_max * SEGMENT_BYTES_MAX
            ):
                self._free.pop()
                self._made -= 1
            return True

    def repay(self, size: int) -> None:
        with self._changed:
            self._borrowed -= size
            self._changed.notify_all()

    def compute(self, task: Callable[[], None]) -> "Future[None]":
        """Run on a compressor's thread."""
        return self._executor("compute", self.threads).submit(task)

    def sync(self, task: Callable[[], None]) -> "Future[None]":
        """Run on a thread that may wait for the disk."""
        return self._executor("sync", SYNCERS).submit(task)

    def read(self, task: Callable[[], Result]) -> "Future[Result]":
        """Run on a thread that decrypts for readers, and may wait for the store."""
        return self._executor("read", self._read_threads).submit(task)

    def close(self) -> None:
        """Wait for what runs; nothing may be submitted any more."""
        with self._changed:
            executors = list(self._executors.values())
        for executor in executors:
            executor.shutdown()

    def _executor(self, kind: str, threads: int) -> "ThreadPoolExecutor":
        from concurrent.futures import ThreadPoolExecutor

        with self._changed:
            executor = self._executors.get(kind)
            if executor is None:
                executor = ThreadPoolExecutor(threads, thread_name_prefix=f"engine-{kind}")
                self._executors[kind] = executor
            return executor
