"""A token bucket that keeps the reads of one source below a rate, so that a backup does not starve what it protects."""

import threading
import time
from collections.abc import Callable

BURST_S = 0.25  # what may be read at once after a pause: short, so that a disk's queue is never flooded


class Pace:
    """Shared by all readers of one stream; no limit when `limit_bytes_s` is None."""

    def __init__(
        self,
        limit_bytes_s: int | None,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limit = limit_bytes_s
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at_s = 0.0  # when everything taken so far has been paid for

    def take(self, size_bytes: int) -> None:
        """Block until `size_bytes` may be read: what they cost at the limit, after those that asked before."""
        if self._limit is None:
            return
        with self._lock:
            now_s = self._monotonic_s()
            start_s = max(self._free_at_s, now_s - BURST_S)
            self._free_at_s = start_s + size_bytes / self._limit
            wait_s = self._free_at_s - now_s
        if wait_s > 0:
            self._sleep(wait_s)
