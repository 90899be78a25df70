"""Objects in memory: what tests and dry runs use. A whole store that passes the contract suite, only not durable."""

import threading
from collections.abc import Iterator, Sequence

from strongroom.base.errors import ObjectExists, ObjectMissing, ShortRead, StoreError
from strongroom.engine.store.base import Buffer, ObjectInfo, require_name, require_prefix


class MemoryStore:
    """Name -> bytes. Lives as long as the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        require_name(name)
        whole = b"".join(data)
        with self._lock:
            if name in self._objects:
                raise ObjectExists(name=name)
            self._objects[name] = whole

    def writer(self, name: str) -> "MemoryWriter":
        require_name(name)
        return MemoryWriter(self, name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        whole = self._require(name)
        available = max(len(whole) - offset, 0)
        wanted = available if length is None else length
        if offset < 0 or wanted < 0:
            raise StoreError(name=name, detail="a range begins at 0 or later and is not negative")
        if wanted > available:
            raise ShortRead(name=name, wanted=wanted, got=available)
        return whole[offset : offset + wanted]

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(name, offset, buffer.nbytes)

    def expect(self, name: str, offset: int, length: int) -> None:
        """It is here already."""

    def size(self, name: str) -> int:
        return len(self._require(name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        require_prefix(prefix)
        with self._lock:
            found = [ObjectInfo(name, len(whole)) for name, whole in self._objects.items() if name.startswith(prefix)]
        yield from sorted(found)

    def delete(self, name: str) -> None:
        require_name(name)
        with self._lock:
            self._objects.pop(name, None)

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        """What a dropped writer held is freed by the interpreter, so there is never anything to sweep."""
        require_prefix(prefix)
        return 0

    def check(self) -> None:
        return None

    def _require(self, name: str) -> bytes:
        require_name(name)
        with self._lock:
            whole = self._objects.get(name)
        if whole is None:
            raise ObjectMissing(name=name)
        return whole


class MemoryWriter:
    """Pieces of one object until it is committed."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._name = name
        self._lock = threading.Lock()
        self._pieces: dict[int, bytes] | None = {}  # by offset; None when committed or discarded

    def write_at(self, offset: int, data: Buffer) -> None:
        with self._lock:
            self._open_pieces()[offset] = bytes(data)

    def commit(self) -> None:
        with self._lock:
            pieces = self._open_pieces()
            end = 0
            for offset in sorted(pieces):
                if offset != end:
                    raise StoreError(name=self._name, detail=f"nothing was written at {end}")
                end += len(pieces[offset])
            self._store.put(self._name, [pieces[offset] for offset in sorted(pieces)])
            self._pieces = None

    def discard(self) -> None:
        with self._lock:
            self._pieces = None

    def _open_pieces(self) -> dict[int, bytes]:
        if self._pieces is None:
            raise StoreError(name=self._name, detail="the writer is closed")
        return self._pieces
