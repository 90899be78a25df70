"""A store that is read through and written beside: what is put stays in memory, what lies below is never touched.

For who must look at a store without changing it (`strongroom recover`), and still wants to use verbs that write.
"""

import threading
from collections.abc import Iterator, Sequence

from strongroom.base.errors import ObjectExists, ObjectMissing
from strongroom.engine.store.base import Buffer, ObjectInfo, ObjectWriter, Store, require_name
from strongroom.engine.store.memory import MemoryStore


class OverlayStore:
    """`below` as it is, plus what was put here, minus what was deleted here. Lives as long as the process."""

    def __init__(self, below: Store) -> None:
        self._below = below
        self._own = MemoryStore()
        self._lock = threading.Lock()
        self._hidden: set[str] = set()

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self.require_free(name)
        self._own.put(name, data)

    def writer(self, name: str) -> ObjectWriter:
        return _Writer(self, name, self._own.writer(name))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._place(name).read(name, offset, length)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self._place(name).read_into(name, offset, buffer)

    def expect(self, name: str, offset: int, length: int) -> None:
        self._below.expect(name, offset, length)  # what is in memory is never slow

    def size(self, name: str) -> int:
        return self._place(name).size(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Both listings ascend, so they are merged; a name is in one of them only."""
        own = list(self._own.list(prefix))
        with self._lock:
            hidden = frozenset(self._hidden)
        at = 0
        for found in self._below.list(prefix):
            while at < len(own) and own[at].name < found.name:
                yield own[at]
                at += 1
            if found.name not in hidden:
                yield found
        yield from own[at:]

    def delete(self, name: str) -> None:
        require_name(name)
        with self._lock:
            self._hidden.add(name)
        self._own.delete(name)

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        return self._own.sweep_temporary(prefix, older_than_s)

    def check(self) -> None:
        """Whether it answers: one listing. A check of a store writes, which is what must not happen here."""
        next(self._below.list(""), None)

    def require_free(self, name: str) -> None:
        """Raises ObjectExists when an object below has the name."""
        with self._lock:
            hidden = name in self._hidden
        if hidden:
            return
        try:
            self._below.size(name)
        except ObjectMissing:
            return
        raise ObjectExists(name=name)

    def _place(self, name: str) -> Store:
        try:
            self._own.size(name)
        except ObjectMissing:
            with self._lock:
                hidden = name in self._hidden
            if hidden:
                raise
            return self._below
        return self._own


class _Writer:
    """Of a large object, in memory. It looks below for its name when it is committed."""

    def __init__(self, store: OverlayStore, name: str, inner: ObjectWriter) -> None:
        self._store = store
        self._name = name
        self._inner = inner

    def write_at(self, offset: int, data: Buffer) -> None:
        self._inner.write_at(offset, data)

    def commit(self) -> None:
        self._store.require_free(self._name)
        self._inner.commit()

    def discard(self) -> None:
        self._inner.discard()
