"""The compressors, the syncers and the segment buffers of one process, shared by its jobs (RULINGS 3).

A job leases all the buffers it will ever hold at once, and waits for them: holding some while waiting for more is how
two jobs stop each other. Its buffers are its back-pressure: when all are on their way to the store, the reader waits.
Threads start with the first task, so that a run that finds nothing to store starts none.
"""

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from strongroom.base.errors import ConfigError
from strongroom.base.units import GIB, MIB
from strongroom.engine.model import SEGMENT_BYTES_MAX

if TYPE_CHECKING:  # loaded by the first task: 5 ms that a run without one does not need
    from concurrent.futures import Future, ThreadPoolExecutor

BUDGET_BYTES = GIB  # STRONGROOM_WORKER_MEMORY's default
SCRATCH_PER_THREAD_BYTES = 4 * SEGMENT_BYTES_MAX  # box, plain, what zstd makes, zstd's own tables
THREADS_MAX = 16  # one reader feeds about four; more only serve several jobs, and each costs its scratch
SYNCERS = 4  # they wait for the store, not for a core: two keep a queue at a disk, a bucket takes 0.4 s a commit
LEASE_WAIT_S = 1.0  # how often a job that waits for buffers asks whether it should stop


class Pool:
    """One a process: `threads` compressors (default: one a core, at most 16), as many buffers as the budget allows."""

    def __init__(self, *, budget_bytes: int = BUDGET_BYTES, threads: int | None = None) -> None:
        self.threads = threads or min(len(os.sched_getaffinity(0)), THREADS_MAX)
        self.lease_buffers = self.threads + 3  # one filling for data, one for metadata, one between two threads
        left = budget_bytes - self.threads * SCRATCH_PER_THREAD_BYTES
        self._buffers_max = left // SEGMENT_BYTES_MAX
        if self._buffers_max < self.lease_buffers:
            least = (self.lease_buffers * SEGMENT_BYTES_MAX + self.threads * SCRATCH_PER_THREAD_BYTES) // MIB
            raise ConfigError(reason=f"The memory of a worker must be at least {least} MiB for {self.threads} threads.")
        self._changed = threading.Condition()
        self._free: list[bytearray] = []
        self._made = 0
        self._executors: dict[str, ThreadPoolExecutor] = {}

    def lease(self, check: Callable[[], None]) -> list[bytearray]:
        """`lease_buffers` buffers of SEGMENT_BYTES_MAX; blocks until they are free. `check` may raise meanwhile."""
        with self._changed:
            while len(self._free) + self._buffers_max - self._made < self.lease_buffers:
                self._changed.wait(LEASE_WAIT_S)
                check()
            while len(self._free) < self.lease_buffers:
                self._free.append(bytearray(SEGMENT_BYTES_MAX))
                self._made += 1
            taken, self._free = self._free[: self.lease_buffers], self._free[self.lease_buffers :]
            return taken

    def give_back(self, buffers: list[bytearray]) -> None:
        with self._changed:
            self._free.extend(buffers)
            self._changed.notify_all()

    def compute(self, task: Callable[[], None]) -> "Future[None]":
        """Run on a compressor's thread."""
        return self._executor("compute", self.threads).submit(task)

    def sync(self, task: Callable[[], None]) -> "Future[None]":
        """Run on a thread that may wait for the disk."""
        return self._executor("sync", SYNCERS).submit(task)

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
