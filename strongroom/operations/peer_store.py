"""What another region offers of a vault, as a store that can only be read (engine.store.base.Store).

Names are those of the domain that is offered, below its place; the record says which domain that is, and whoever is
asked gives nothing else. Ranges that are expected are read ahead, because each request takes a way there and back.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from strongroom.base.clock import Clock
from strongroom.base.errors import (
    ObjectMissing,
    PeerObjectNotFound,
    RegionSilent,
    RegionUnreachable,
    ShortRead,
    StoreError,
)
from strongroom.base.units import MIB
from strongroom.engine.store.base import Buffer, ObjectInfo, ObjectWriter
from strongroom.engine.store.s3_ahead import Range, ReadAhead
from strongroom.operations.peers import Peer

T = TypeVar("T")

OBJECT_BYTES_MAX = 128 * MIB  # of one read: the largest objects, of packs and indexes, have less
PIECE_BYTES_MAX = 8 * MIB  # of one request: a segment, or a part of something longer
SIZE_HEADER = "X-Object-Size"
SIZE_DIGITS_MAX = 15
READ_ONLY = "another region's store can only be read"


class _ListPage(msgspec.Struct):
    """objects: (name, size) in order. next: the last name when there are more, else empty."""

    objects: list[tuple[str, int]]
    next: str


class PeerStore:
    """One domain of one record. at_once: requests that may be on their way together (RemoteStore)."""

    at_once = 8

    def __init__(self, peer: Peer, record_id: str, clock: Clock) -> None:
        self._peer = peer
        self._path = f"/sources/{record_id}/objects"
        self._ahead = ReadAhead(lambda wanted: self._range(*wanted), clock)
        self.bytes_read = 0  # of bodies, for who wants to know; not exact while threads read

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is None:
            length = max(0, self.size(name) - offset)
        return self._range(name, offset, length)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        early = self._ahead.take(Range(name, offset, buffer.nbytes))
        if early is not None and not early.cancelled() and early.exception() is None:
            buffer[:] = early.result()
        else:  # what failed early is asked again, by who can tell what to do then
            buffer[:] = self._range(name, offset, buffer.nbytes)

    def read_whole(self, name: str, bytes_max: int) -> tuple[int, bytes]:
        size, first = self._piece(name, 0, min(bytes_max, PIECE_BYTES_MAX))
        if size > bytes_max:
            return size, b""
        if size < len(first):
            raise StoreError(name=name, detail="the other region does not tell the size")
        return size, first + self._range(name, len(first), size - len(first))

    def expect(self, name: str, offset: int, length: int) -> None:
        self._ahead.expect(Range(name, offset, length))

    def size(self, name: str) -> int:
        size, _ = self._piece(name, 0, 0)
        if size < 0:
            raise StoreError(name=name, detail="the other region does not tell the size")
        return size

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        after = ""
        while True:
            page = self._call(prefix, partial(self._page, prefix, after))
            for name, size in page.objects:
                yield ObjectInfo(name, size)
            if not page.next:
                return
            after = page.next

    def _page(self, prefix: str, after: str) -> _ListPage:
        """What follows `after`. Raises RegionUnreachable for an answer that would not come to an end, or is none."""
        found = self._peer.get(self._path, prefix=prefix, after=after)
        try:
            page = msgspec.convert(found, _ListPage)
        except msgspec.ValidationError as err:
            raise RegionUnreachable(
                region=self._peer.name, reason=f"its list is not of the form agreed: {err}."
            ) from err
        if page.next and page.next <= after:
            raise RegionUnreachable(region=self._peer.name, reason="its list of objects goes in a circle.")
        return page

    def _range(self, name: str, offset: int, length: int) -> bytes:
        if length > OBJECT_BYTES_MAX:
            raise StoreError(name=name, detail=f"{length} bytes are more than an object can have")
        parts = []
        while length:
            size, piece = self._piece(name, offset, min(length, PIECE_BYTES_MAX))
            if not piece:
                raise ShortRead(name=name, wanted=length, got=max(0, size - offset))
            parts.append(piece)
            offset += len(piece)
            length -= len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _piece(self, name: str, offset: int, length: int) -> tuple[int, bytes]:
        """(size of the object, -1 when it is not told; its bytes from `offset`, fewer when it ends)."""
        path = f"{self._path}/content"
        headers, body = self._call(
            name,
            partial(self._peer.read, path, length, name=name, offset=offset, length=length),
        )
        text = headers.get(SIZE_HEADER, "")
        self.bytes_read += len(body)
        return int(text) if text.isdigit() and len(text) <= SIZE_DIGITS_MAX else -1, body

    def _call(self, name: str, call: Callable[[], T]) -> T:
        """Errors as a store's: what may pass is tried again by RetryingStore, then by the task."""
        try:
            return call()
        except RegionUnreachable as err:
            raise RegionSilent(name=name, detail=str(err)) from err
        except PeerObjectNotFound as err:
            raise ObjectMissing(name=name) from err

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        raise StoreError(name=name, detail=READ_ONLY)

    def writer(self, name: str) -> ObjectWriter:
        raise StoreError(name=name, detail=READ_ONLY)

    def delete(self, name: str) -> None:
        raise StoreError(name=name, detail=READ_ONLY)

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        raise StoreError(name=prefix, detail=READ_ONLY)

    def check(self) -> None:
        self._peer.get("")
