"""Ranges read ahead of their readers, so that many requests wait for the network at once while few threads compute.

A restore tells which ranges come next (`expect`) and reads them soon after (`take`). What is not taken, because the
restore ended early, is dropped when it is stale and room is needed; what has no room is simply not read ahead.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from strongroom.base.clock import Clock
from strongroom.base.units import MIB
from strongroom.engine.store.base import Buffer

READERS = 16  # 4 MiB each: at 100 ms a request they carry 600 MB/s
AHEAD_BYTES_MAX = 128 * MIB  # two restores with all their readers' ranges
STALE_S = 60.0


class Range(NamedTuple):
    name: str
    offset: int
    length: int


class _Expected(NamedTuple):
    body: Future[Buffer]
    since_s: float


class ReadAhead:
    """`fetch` reads one range; it runs on READERS threads."""

    def __init__(self, fetch: Callable[[Range], Buffer], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="s3-read")
        self._lock = threading.Lock()
        self._expected: dict[Range, _Expected] = {}  # in the order they were expected
        self._bytes = 0

    def expect(self, wanted: Range) -> None:
        """Begin to read it, if there is room. Does not block."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            if wanted in self._expected:
                return
            while self._bytes + wanted.length > AHEAD_BYTES_MAX and self._expected:
                oldest = next(iter(self._expected))
                if now_s - self._expected[oldest].since_s < STALE_S:
                    return
                self._remove(oldest)
            if wanted.length > AHEAD_BYTES_MAX:
                return
            self._expected[wanted] = _Expected(self._threads.submit(self._fetch, wanted), now_s)
            self._bytes += wanted.length

    def take(self, wanted: Range) -> Future[Buffer] | None:
        """What `expect` began; each is given once."""
        with self._lock:
            return self._remove(wanted) if wanted in self._expected else None

    def _remove(self, wanted: Range) -> Future[Buffer]:
        self._bytes -= wanted.length
        body = self._expected.pop(wanted).body
        body.cancel()  # one that has not begun is read by its reader itself, or by nobody
        return body
