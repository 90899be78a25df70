"""Decrypted segments that the readers of one process share: a bounded LRU under the pool's budget (RULINGS 3).

    claim     a reader wants a segment: it is here, on its way, or its load begins; held until `release`
    prefetch  a reader will want it soon: it is loaded if there is room, and nobody waits for it

Loads run on the pool's reading threads, whose scratch the budget counts. A segment that several threads want is read
once. Each open reader allows so many bytes; the cache holds at most their sum, and gives back to the jobs what they
need, down to a floor that is always there: so neither can stop the other. A thread holds one segment at a time, and
only while it copies, so whoever waits for room gets it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from strongroom.engine.model import SEGMENT_BYTES_MAX
from strongroom.engine.pack import SegmentPlace, SegmentReader

AHEAD_MAX = 16  # segments on their way that nobody waits for: what a store of 100 ms a request needs for 600 MB/s

_Key = tuple[bytes, SegmentPlace]  # the domain: equal bytes of a place mean equal plain bytes in one domain only


class Held:
    """One segment. `plain` may be read between `claim` and `release`; `checked` has the ids that were compared.

    The buffer below `plain` is used again when the segment is dropped: large ones are all of one size.
    """

    __slots__ = ("buffer", "checked", "key", "load", "loaded", "plain", "users")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.buffer = bytearray()
        self.plain = memoryview(b"")
        self.checked: dict[tuple[int, int], bytes] = {}  # (start, length) -> id
        self.users = 0
        self.loaded = False
        self.load: Future[bool]  # False: it was given up for want of room


class Budget(Protocol):
    """What the cache asks of its pool."""

    @property
    def read_floor_bytes(self) -> int:
        """What is always there, and need not be borrowed."""
        ...

    def borrow(self, size: int) -> bool: ...

    def repay(self, size: int) -> None: ...

    def read(self, task: Callable[[], bool]) -> Future[bool]:
        """Run on a thread that may wait for the store."""
        ...


class SegmentCache:
    """One a pool. Methods from any thread."""

    def __init__(self, pool: Budget) -> None:
        self._pool = pool
        self._floor = pool.read_floor_bytes
        self._changed = threading.Condition()  # guards all below
        self._held: OrderedDict[_Key, Held] = OrderedDict()  # the least recently used first
        self._readers = 0
        self._allowed = 0
        self._used = 0
        self._borrowed = 0
        self._ahead = 0

    # --- readers come and go ---

    def enter(self, allowed_bytes: int) -> None:
        """A reader that may make the cache so much larger. At least one segment is always held."""
        with self._changed:
            self._readers += 1
            self._allowed += allowed_bytes

    def leave(self, allowed_bytes: int) -> None:
        with self._changed:
            self._readers -= 1
            self._allowed -= allowed_bytes
            self._trim()

    @property
    def used_bytes(self) -> int:
        with self._changed:
            return self._used

    def shrink(self, wanted_bytes: int) -> None:
        """A job needs that much: give back what is borrowed, as far as nobody is copying from it."""
        with self._changed:
            least = max(self._borrowed - wanted_bytes, 0)
            while self._borrowed > least and self._drop_oldest():
                pass

    # --- segments ---

    def claim(self, source: SegmentReader, place: SegmentPlace) -> Held:
        """The segment, loaded; `release` it soon. Raises PackCorrupt, or StoreError when the pack cannot be read."""
        key = (source.domain_id, place)
        while True:
            with self._changed:
                held = self._held.get(key)
                if held is None:
                    held = self._begin(source, Held(key), ahead=False)
                else:
                    self._held.move_to_end(key)
                held.users += 1
            if held.loaded:
                return held
            found = False
            try:
                found = held.load.result()
            finally:
                if not found:
                    self.release(held)
            if found:
                return held

    def release(self, held: Held) -> None:
        with self._changed:
            held.users -= 1
            if not held.users:
                self._changed.notify_all()

    def prefetch(self, source: SegmentReader, place: SegmentPlace) -> bool:
        """Begin to load it; False when enough is on its way that nobody waits for. Never blocks."""
        key = (source.domain_id, place)
        with self._changed:
            if key in self._held:
                self._held.move_to_end(key)
            elif self._ahead >= AHEAD_MAX:
                return False
            else:
                self._begin(source, Held(key), ahead=True)
                self._ahead += 1
            return True

    def _begin(self, source: SegmentReader, held: Held, *, ahead: bool) -> Held:
        """Called with the lock."""
        source.expect(held.key[1])
        held.load = self._pool.read(lambda: self._load(source, held, ahead=ahead))
        self._held[held.key] = held
        return held

    def _load(self, source: SegmentReader, held: Held, *, ahead: bool) -> bool:
        buffer = None
        try:
            buffer = self._room(held)
            if buffer is not None:
                self._fill(source, held, buffer)
        finally:
            with self._changed:
                self._ahead -= ahead
                if not held.loaded:
                    self._held.pop(held.key, None)
                    self._give_back(len(buffer or b""))
                self._trim()
                self._changed.notify_all()
        return held.loaded

    def _fill(self, source: SegmentReader, held: Held, buffer: bytearray) -> None:
        """Ids are compared by who reads: a hash a chunk here would take the interpreter's lock from him each time."""
        plain = memoryview(buffer)[: held.key[1].raw]
        source.read_into(held.key[1], plain)
        held.buffer, held.plain = buffer, plain
        held.loaded = True

    # --- room; called with the lock unless said otherwise ---

    def _room(self, held: Held) -> bytearray | None:
        """A buffer for it that is counted, others dropped for it. None, and `held` is forgotten, when there is no room
        and nobody waits. Takes the lock."""
        size = _buffer_bytes(held.key[1])
        dropped = None
        with self._changed:
            while not self._grow(size):
                last = self._drop_oldest()
                if last is not None:
                    dropped = last
                elif held.users:
                    self._changed.wait()
                else:
                    self._held.pop(held.key, None)
                    return None
        if dropped is not None and len(dropped.buffer) == size:
            return dropped.buffer  # 4 MiB from the system cost a third of what it costs to fill them
        return bytearray(size)

    def _limit(self) -> int:
        return max(self._allowed, SEGMENT_BYTES_MAX) if self._readers else 0

    def _grow(self, size: int) -> bool:
        if self._used + size > max(self._limit(), size if not self._used else 0):
            return False
        lacking = self._used + size - self._floor - self._borrowed
        if lacking > 0:
            if not self._pool.borrow(lacking):
                return False
            self._borrowed += lacking
        self._used += size
        return True

    def _drop_oldest(self) -> Held | None:
        """The one that nobody has used for longest; None when all are in use."""
        for held in self._held.values():
            if not held.users and held.loaded:
                del self._held[held.key]
                self._give_back(len(held.buffer))
                return held
        return None

    def _trim(self) -> None:
        while self._used > self._limit() and self._drop_oldest():
            pass

    def _give_back(self, size: int) -> None:
        self._used -= size
        surplus = self._borrowed - max(self._used - self._floor, 0)
        if surplus > 0:
            self._borrowed -= surplus
            self._pool.repay(surplus)


def _buffer_bytes(place: SegmentPlace) -> int:
    return SEGMENT_BYTES_MAX if place.raw > SEGMENT_BYTES_MAX // 2 else place.raw
