"""A store that breaks on request: the N-th operation fails, or everything from the N-th on, or the machine dies at it.

A crash is not kind: of the writes that had not returned, each is kept or lost on its own, so a later one may survive an
earlier one (STYLE 7). To give a writer that does not wait the chance to be caught, each write stays in flight until
another operation begins or a moment has passed. After a crash every call raises Crashed and `survivors` is the disk.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from strongroom.base.errors import StoreError
from strongroom.engine.store.base import Buffer, ObjectInfo, ObjectWriter
from strongroom.engine.store.memory import MemoryStore

IN_FLIGHT_S = 0.002  # enough for another thread that does not wait to come by; a run has a few dozen writes
T = TypeVar("T")


class Crashed(StoreError):
    """The machine is off."""

    template = "The machine crashed at {name}."


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens at operation number `at` (from 1).

    crash    the machine dies; else the operation fails with `error`
    onwards  every later operation fails too
    late     a write takes effect and is reported as failed all the same
    seed     decides what a crash keeps
    """

    at: int
    crash: bool = False
    onwards: bool = False
    late: bool = False
    error: type[StoreError] = StoreError
    seed: int = 0


class FaultStore:
    """`inner` is the disk. Without a fault it only counts."""

    def __init__(self, inner: MemoryStore | None = None, fault: Fault | None = None) -> None:
        self.inner = inner or MemoryStore()
        self.fault = fault
        self.operations: list[tuple[str, str]] = []
        self.crashed = False
        self.open_writers = 0  # neither committed nor discarded
        self._pending: dict[int, Callable[[], object]] = {}
        self._changed = threading.Condition()

    @property
    def reached(self) -> bool:
        """True when the fault was met."""
        return self.fault is not None and len(self.operations) >= self.fault.at

    def survivors(self) -> MemoryStore:
        """The disk after the crash, to be opened by the next process."""
        return self.inner

    def copy(self) -> MemoryStore:
        """The disk as it is now."""
        return copy_of(self.inner)

    # --- Store ---

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        whole = b"".join(data)
        self._write("put", name, lambda: self.inner.put(name, [whole]))

    def writer(self, name: str) -> ObjectWriter:
        inner = self._read("writer", name, lambda: self.inner.writer(name))
        self.opened(1)
        return FaultWriter(self, name, inner)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._read("read", name, lambda: self.inner.read(name, offset, length))

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self._read("read_into", name, lambda: self.inner.read_into(name, offset, buffer))

    def expect(self, name: str, offset: int, length: int) -> None:
        self.inner.expect(name, offset, length)

    def size(self, name: str) -> int:
        return self._read("size", name, lambda: self.inner.size(name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._read("list", prefix, lambda: [*self.inner.list(prefix)])

    def delete(self, name: str) -> None:
        self._write("delete", name, lambda: self.inner.delete(name))

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        return self._read("sweep", prefix, lambda: self.inner.sweep_temporary(prefix, older_than_s))

    def check(self) -> None:
        self._read("check", "", self.inner.check)

    # --- faults ---

    def opened(self, count: int) -> None:
        with self._changed:
            self.open_writers += count

    def _read(self, kind: str, name: str, call: Callable[[], T]) -> T:
        with self._changed:
            if self._enter(kind, name):
                self._fail(name)
            return call()

    def _write(self, kind: str, name: str, effect: Callable[[], object]) -> None:
        with self._changed:
            self._pending[ticket := len(self.operations)] = effect
            if self._enter(kind, name):
                del self._pending[ticket]
                assert self.fault is not None
                if self.fault.late:
                    effect()
                self._fail(name)
            if self.fault is not None and self.fault.crash:
                self._changed.wait(IN_FLIGHT_S)
            if self.crashed:
                raise Crashed(name=name)
            del self._pending[ticket]
            effect()

    def _enter(self, kind: str, name: str) -> bool:
        """Count the operation. True when it has to fail."""
        if self.crashed:
            raise Crashed(name=name)
        self.operations.append((kind, name))
        self._changed.notify_all()
        fault = self.fault
        if fault is None or len(self.operations) < fault.at:
            return False
        if fault.crash:
            self._crash(fault, name)
        return fault.onwards or len(self.operations) == fault.at

    def _crash(self, fault: Fault, name: str) -> None:
        self.crashed = True
        fate = random.Random(fault.seed)
        in_flight = list(self._pending.values())
        fate.shuffle(in_flight)
        for effect in in_flight:
            if fate.random() < 0.5:
                try:
                    effect()
                except StoreError:
                    continue  # it would have been refused
        raise Crashed(name=name)

    def _fail(self, name: str) -> None:
        assert self.fault is not None
        raise self.fault.error(name=name, detail=f"injected at operation {len(self.operations)}")


class FaultWriter:
    """A writer whose every step counts as an operation. discard never fails: it must not (base.py)."""

    def __init__(self, store: FaultStore, name: str, inner: ObjectWriter) -> None:
        self._store = store
        self._name = name
        self._inner = inner
        self._closed = False

    def write_at(self, offset: int, data: Buffer) -> None:
        self._store._read("write_at", self._name, lambda: self._inner.write_at(offset, data))

    def commit(self) -> None:
        self._store._write("commit", self._name, self._inner.commit)
        self._close()

    def discard(self) -> None:
        self._inner.discard()
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.opened(-1)


def copy_of(store: MemoryStore) -> MemoryStore:
    """A second disk with the same objects."""
    copy = MemoryStore()
    for found in store.list(""):
        copy.put(found.name, [store.read(found.name)])
    return copy
