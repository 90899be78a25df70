"""The store as a job sees it: every call passes a trace point, and what a backup writes is counted against its vault.

engine -> WatchedStore -> the real store
"""

import threading
from collections.abc import Callable, Iterator, Sequence

from strongroom.base.errors import Conflict
from strongroom.base.units import GIB, human_bytes
from strongroom.control.quotas import bytes_exceeded
from strongroom.engine.store.base import Buffer, ObjectInfo, ObjectWriter, Store
from strongroom.engine.store.retention import Kept, keeps_deleted, retain, retains
from strongroom.operations import trace

Spend = Callable[[int], None]


class Room:
    """Bytes a vault and its project still take. A backup that passes them fails, others go on (RULINGS 19).

    size_bytes of the vault, 0: no limit; project_left_bytes: of its quota, None: no limit
    """

    def __init__(self, *, used_bytes: int, size_bytes: int, project_left_bytes: int | None) -> None:
        self._left = max(0, size_bytes - used_bytes) if size_bytes else None
        self._project_left = project_left_bytes
        self._size = size_bytes
        self._spent = 0
        self._lock = threading.Lock()

    def spend(self, count: int) -> None:
        """Called for sealed bytes before they are written to a pack. Raises Conflict 6114, QuotaExceeded 6142."""
        with self._lock:
            self._spent += count
            spent = self._spent
        if self._left is not None and spent > self._left:
            raise Conflict(
                conflict_code="6114",
                reason=f"The vault became full ({self._size // GIB} GB) while the backup ran. "
                "Delete restore points or enlarge the vault, then back up again.",
                detail=f"short by {human_bytes(spent - self._left)} at least",
            )
        if self._project_left is not None and spent > self._project_left:
            raise bytes_exceeded(None)


def free(_: int) -> None:
    """Spend of jobs that are not limited: deletes and prune always go through."""


class _WatchedWriter:
    def __init__(self, inner: ObjectWriter, spend: Spend) -> None:
        self._inner, self._spend = inner, spend

    def write_at(self, offset: int, data: Buffer) -> None:
        trace.point("store")
        self._spend(memoryview(data).nbytes)
        self._inner.write_at(offset, data)

    def commit(self) -> None:
        trace.point("store")
        self._inner.commit()
        trace.point("store")

    def discard(self) -> None:
        self._inner.discard()


class WatchedStore:
    """Implements engine.store.base.Store; adds nothing to what the inner store promises."""

    def __init__(self, inner: Store, spend: Spend = free) -> None:
        self._inner, self._spend = inner, spend

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        trace.point("store")
        self._inner.put(name, data)
        trace.point("store")

    def writer(self, name: str) -> ObjectWriter:
        trace.point("store")
        return _WatchedWriter(self._inner.writer(name), self._spend)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        trace.point("store")
        return self._inner.read(name, offset, length)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        trace.point("store")
        self._inner.read_into(name, offset, buffer)

    def expect(self, name: str, offset: int, length: int) -> None:
        self._inner.expect(name, offset, length)

    def size(self, name: str) -> int:
        trace.point("store")
        return self._inner.size(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        trace.point("store")
        return self._inner.list(prefix)

    def delete(self, name: str) -> None:
        trace.point("store")
        self._inner.delete(name)
        trace.point("store")

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        return self._inner.sweep_temporary(prefix, older_than_s)

    def check(self) -> None:
        self._inner.check()

    def retains(self) -> bool:
        return retains(self._inner)

    def retain(self, name: str, seconds: float) -> Kept:
        trace.point("store")
        return retain(self._inner, name, seconds)

    def keeps_deleted(self) -> bool:
        return keeps_deleted(self._inner)
