"""How a running job tells where it is, and learns that it must stop.

The engine calls `advance` and `check` from the job's thread; the worker's renewal reads the numbers once a second and
sets `stop`. Nobody waits for anybody: a number that is a moment old does no harm.
"""

from dataclasses import dataclass

from strongroom.base.errors import StrongroomError


@dataclass(kw_only=True)
class JobMonitor:
    """Implements base.streams.Monitor.

    expected_bytes  what the work is thought to be before it knows: size of the resource at the last look; 0: no idea
    stop            the error that `check` raises once it is set
    """

    expected_bytes: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    entries_done: int = 0
    stop: StrongroomError | None = None

    def advance(self, bytes_done: int, bytes_total: int, entries_done: int) -> None:
        self.bytes_done, self.bytes_total, self.entries_done = bytes_done, bytes_total, entries_done

    def check(self) -> None:
        if self.stop is not None:
            raise self.stop

    @property
    def progress(self) -> int:
        """Per cent for people, 99 at most: 100 is said by the transaction that ends the task."""
        total = self.bytes_total or self.expected_bytes
        return min(99, self.bytes_done * 100 // total) if total else 0
