"""A store that tries again, for errors whose class says that this may help (STYLE 5), and for no others.

A put that is tried again may meet its own first attempt: equal bytes under the name are then its success (RULINGS 8).
Writers of large objects are not retried here: a store whose writers speak to a network retries their requests itself,
with `attempts`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from strongroom.base.errors import ObjectExists, StoreError
from strongroom.engine.store.base import Buffer, ObjectInfo, ObjectWriter, Store
from strongroom.engine.store.remote import at_once, read_whole
from strongroom.engine.store.retention import Kept, keeps_deleted, retain, retains

# Four tries over 0.7 s: longer troubles belong to the task, which is run again by its worker.
DELAYS_S = (0.1, 0.2, 0.4)

T = TypeVar("T")


def attempts(call: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """The result of `call`, which is made again after an error that says this may help. Raises the last error."""
    for delay in DELAYS_S:
        try:
            return call()
        except StoreError as err:
            if not err.retryable:
                raise
        sleep(delay)
    return call()


class RetryingStore:
    """Any store, with short troubles hidden. `sleep` is handed in so that tests do not wait."""

    def __init__(self, store: Store, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._sleep = sleep
        self.at_once = at_once(store)

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        retried = False

        def attempt() -> None:
            nonlocal retried
            first, retried = not retried, True
            try:
                self._store.put(name, data)
            except ObjectExists:
                if first or self._store.read(name) != b"".join(data):
                    raise

        self._attempts(attempt)

    def writer(self, name: str) -> ObjectWriter:
        return self._attempts(lambda: self._store.writer(name))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._attempts(lambda: self._store.read(name, offset, length))

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self._attempts(lambda: self._store.read_into(name, offset, buffer))

    def read_whole(self, name: str, bytes_max: int) -> tuple[int, bytes]:
        return self._attempts(lambda: read_whole(self._store, name, bytes_max))

    def retains(self) -> bool:
        return self._attempts(lambda: retains(self._store))

    def retain(self, name: str, seconds: float) -> Kept:
        return self._attempts(lambda: retain(self._store, name, seconds))

    def keeps_deleted(self) -> bool:
        return self._attempts(lambda: keeps_deleted(self._store))

    def expect(self, name: str, offset: int, length: int) -> None:
        self._store.expect(name, offset, length)

    def size(self, name: str) -> int:
        return self._attempts(lambda: self._store.size(name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """A listing that breaks begins again behind the last name it gave: names ascend."""
        last = ""
        delays = iter(DELAYS_S)
        while True:
            try:
                for found in self._store.list(prefix):
                    if found.name > last:
                        yield found
                        last = found.name
                return
            except StoreError as err:
                delay = next(delays, None)
                if not err.retryable or delay is None:
                    raise
            self._sleep(delay)

    def delete(self, name: str) -> None:
        self._attempts(lambda: self._store.delete(name))

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        return self._attempts(lambda: self._store.sweep_temporary(prefix, older_than_s))

    def check(self) -> None:
        """Tried once: it is asked how things are now."""
        self._store.check()

    def _attempts(self, call: Callable[[], T]) -> T:
        return attempts(call, self._sleep)
