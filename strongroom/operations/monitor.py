"""How a running job tells where it is, and learns that it must stop.

The engine calls `advance` and `check` from the job's thread; the worker's renewal reads the numbers once a second and
sets `stop`. Nobody waits for anybody: a number that is a moment old does no harm.
"""

import math
import threading
from collections import deque
from dataclasses import dataclass, field

from strongroom.base.clock import Clock
from strongroom.base.errors import Fenced, StrongroomError
from strongroom.control.tasks import Progress

RATE_S = 10.0  # a rate is of about so many seconds: steady enough to read, quick enough to show a stall


@dataclass(kw_only=True)
class JobMonitor:
    """Implements base.streams.Monitor.

    expected_bytes  what the work is thought to be before it knows: size of the resource at the last look; 0: no idea
    stop            the error that `check` raises once it is set
    clock           with `lease_ends_s`, by its monotonic seconds: after that `check` raises Fenced by itself. A process
                    that was frozen does not wait for its renewal to hear that others have its work
    """

    expected_bytes: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    entries_done: int = 0
    stop: StrongroomError | None = None
    clock: Clock | None = None
    lease_ends_s: float = math.inf
    _seen: deque[tuple[float, int]] = field(default_factory=deque)  # (seconds, bytes done), of the last RATE_S
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
        self.bytes_done, self.bytes_total, self.entries_done = bytes_done, bytes_total, entries_done

    def check(self) -> None:
        if self.stop is not None:
            raise self.stop
        if self.clock is not None and self.clock.monotonic_s() >= self.lease_ends_s:
            raise Fenced(reason="its lease ran out")

    def progress(self, now_s: float) -> Progress:
        """Where the work is; for who looks every few seconds, in any thread."""
        done, exact = self.bytes_done, self.bytes_total > 0
        total = self.bytes_total
        if not exact and self.expected_bytes > done:
            total = self.expected_bytes  # more than that is done: then nobody knows how much there is
        percent = min(99, done * 100 // total) if total else 0
        return Progress(
            bytes_done=done,
            bytes_total=total,
            total_exact=exact,
            entries_done=self.entries_done,
            percent=percent,
            rate_bytes_s=self._rate(now_s, done),
        )

    def _rate(self, now_s: float, done: int) -> int | None:
        with self._lock:
            self._seen.append((now_s, done))
            while len(self._seen) > 2 and now_s - self._seen[1][0] >= RATE_S:
                self._seen.popleft()
            since_s, before = self._seen[0]
        return max(0, round((done - before) / (now_s - since_s))) if now_s > since_s else None
