"""Our NBD client: BlockStream and BlockTarget over one connection, for any number of threads.

Requests of all callers are in flight together; one thread per connection receives, straight into the callers' buffers,
and wakes them. When anything is wrong (a broken rule, a time-out, the server gone) the connection is broken as a whole:
the receiver has ended before a caller gets its error, so nothing is written into a buffer that somebody uses again.

    caller A  read_into --+                                      +--> filled --> wakes A
    caller B  read_into --+--> lock, send --> server --> receiver +--> filled --> wakes B
    caller C  extents   --+                                      +--> status --> wakes C
"""

import contextlib
import errno
import itertools
import os
import socket
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from strongroom.base.errors import SourceDenied, SourceError, SourceShort
from strongroom.base.streams import Extent, ExtentKind
from strongroom.base.units import GIB, MIB
from strongroom.sources.machines import nbd_wire as wire
from strongroom.sources.machines.nbd_wire import Address, Channel, Export, broken_rules

TIMEOUT_S = 30.0  # without a byte from the server, while something is asked
REQUEST_S_MAX = 600.0  # of one request, also from a server that sends a byte now and then
STATUS_STEP_BYTES = GIB  # asked for at once; 4 GiB is the most that the protocol's number holds
ZERO_STEP_BYTES = 128 * MIB  # a server that must write them has them written before the time-out
PIECES_MAX = 4096  # of the answer to one read: a fragment for each sector of 2 MiB

_ZEROS = bytes(MIB)


class _Request:
    """One in flight. `done` is a lock that is held until the answer is whole."""

    __slots__ = ("buffer", "command", "done", "ends", "error", "is_answered", "length", "offset", "starts", "status")

    def __init__(self, command: int, offset: int, length: int, buffer: memoryview | None = None) -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.buffer = buffer
        self.status: dict[int, bytes] = {}  # by context: pairs of length and flags, as they came
        self.error: SourceError | None = None
        self.is_answered = False  # whoever waited has seen it
        self.starts: list[int] = []  # of what was answered of a read, sorted
        self.ends: list[int] = []
        self.done = threading.Lock()
        self.done.acquire()

    def claim(self, offset: int, length: int) -> memoryview:
        """Where an answer's bytes go. A server may send a read in pieces of any order, each byte once."""
        at = offset - self.offset
        if self.buffer is None or length <= 0 or at < 0 or at + length > self.length:
            raise broken_rules(f"{length} bytes at {offset} in answer to {self.length} at {self.offset}")
        index = bisect_left(self.starts, at)
        if (index and self.ends[index - 1] > at) or (index < len(self.starts) and self.starts[index] < at + length):
            raise broken_rules(f"bytes at {offset} were sent twice")
        if len(self.starts) == PIECES_MAX:
            raise broken_rules(f"more than {PIECES_MAX} pieces in answer to one read")
        self.starts.insert(index, at)
        self.ends.insert(index, at + length)
        return self.buffer[at : at + length]

    def require_whole(self) -> None:
        """The last chunk has come: is everything there?"""
        got = sum(self.ends) - sum(self.starts)
        if self.error is None and self.command == wire.READ and got != self.length:
            raise broken_rules(f"{got} bytes in answer to a read of {self.length}")


class Reading(NamedTuple):
    """A read under way."""

    requests: Sequence[_Request]


class NbdClient:
    """An export of an NBD server; BlockStream and BlockTarget. `size` in bytes.

    extents() says SAME where the dirty bitmap that was asked for at `connect` says clean, ZERO where the allocation
    says so, else DATA. All methods but `close` may be called from several threads.
    """

    def __init__(
        self, channel: Channel, sock: socket.socket, export: Export, dirty: str | None, timeout_s: float
    ) -> None:
        self.size = export.size
        self.read_only = bool(export.flags & wire.FLAG_READ_ONLY)
        self.told_bytes = 0  # how far extents() has been answered: the next question of it begins there
        self._export = export
        self._numbers = {name: number for number, name in export.contexts.items()}
        self._dirty = dirty
        self._channel = channel
        self._sock = sock
        self._timeout_s = timeout_s
        self._cookies = itertools.count(1)
        self._sending = threading.Lock()
        self._lock = threading.Lock()  # of the two below
        self._pending: dict[int, _Request] = {}
        self._broken: SourceError | None = None
        self._receiver = threading.Thread(target=self._receive, name="nbd", daemon=True)
        self._receiver.start()

    @classmethod
    def connect(
        cls, address: Address, export: str, *, bitmap: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> "NbdClient":
        """Open `export`. bitmap: name of the dirty bitmap whose clean ranges are SAME.

        Raises SourceGone when nobody listens or there is no such export, SourceError for anything else.
        """
        where = wire.shown_address(address)
        try:
            sock = wire.open_socket(address, timeout_s)
        except OSError as err:
            raise wire.socket_error(err, where) from err
        return cls.over(sock, export, bitmap=bitmap, timeout_s=timeout_s, where=where)

    @classmethod
    def over(
        cls,
        sock: socket.socket,
        export: str,
        *,
        bitmap: str | None = None,
        timeout_s: float = TIMEOUT_S,
        where: str = "its socket",
    ) -> "NbdClient":
        """The same over a connected socket, which is the client's from now on, also when this raises."""
        dirty = None if bitmap is None else wire.DIRTY_BITMAP + bitmap
        contexts = [wire.BASE_ALLOCATION] + ([dirty] if dirty is not None else [])
        channel = Channel(sock, where)
        try:
            channel.until(time.monotonic() + timeout_s)
            found = wire.negotiate(channel, export, contexts)
            if dirty is not None and dirty not in found.contexts.values():
                raise SourceError(
                    reason=f"The NBD server at {where} does not tell what changed. Run a full backup.",
                    detail=f"export {export!r} has no context {dirty}",
                )
            channel.until(None)
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *_split_time(timeout_s)))
        except OSError as err:
            sock.close()
            raise wire.socket_error(err, where) from err
        except SourceError:
            sock.close()
            raise
        return cls(channel, sock, found, dirty, timeout_s)

    def __enter__(self) -> "NbdClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- reading ---

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer`; what it takes is asked for at once, in requests of a size that the server likes."""
        self.finish_read(self.begin_read(offset, buffer))
        return len(buffer)

    def begin_read(self, offset: int, buffer: memoryview) -> Reading:
        """The same in two steps. The buffer is the receiver's until `is_read`, or until the connection is closed."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise SourceShort(reason=f"The disk has {self.size} bytes, {offset + len(buffer)} were asked for.")
        step = self._export.request_bytes_max
        requests = []
        for at in range(0, len(buffer), step):
            view = buffer[at : at + step]
            requests.append(self._send(_Request(wire.READ, offset + at, len(view), view)))
        return Reading(requests)

    def finish_read(self, reading: Reading) -> None:
        """Wait for it. May be called again."""
        self._await(reading.requests)

    def is_read(self, reading: Reading) -> bool:
        """Whether it was waited for."""
        return all(request.is_answered for request in reading.requests)

    def extents(self) -> Iterator[Extent]:
        """Ranges in order, covering [0, size), neighbours of one kind joined. In memory is one answer at a time."""
        last: Extent | None = None
        for found in self._extents():
            if last is not None and last.kind == found.kind:
                last = Extent(last.offset, last.length + found.length, last.kind)
                continue
            if last is not None:
                yield last
            last = found
        if last is not None:
            yield last

    def _extents(self) -> Iterator[Extent]:
        allocation = self._numbers.get(wire.BASE_ALLOCATION)
        dirty = self._numbers.get(self._dirty) if self._dirty is not None else None
        offset = 0
        while offset < self.size and (allocation is not None or dirty is not None):
            length = min(STATUS_STEP_BYTES, self.size - offset)
            request = self._send(_Request(wire.BLOCK_STATUS, offset, length))
            self._await([request])
            found = _merged(
                iter([(length, 0)]) if allocation is None else _ranges_of(request, allocation),
                iter([(length, wire.DIRTY)]) if dirty is None else _ranges_of(request, dirty),
                offset,
                offset + length,
            )
            extents = list(found)
            if not extents:
                raise broken_rules(f"a status that says nothing of {length} bytes at {offset}")
            offset = self.told_bytes = extents[-1].offset + extents[-1].length
            yield from extents
        self.told_bytes = self.size
        if offset < self.size:
            yield Extent(offset, self.size - offset, ExtentKind.DATA)

    # --- writing ---

    def write(self, offset: int, data: memoryview) -> None:
        self._require_writable(offset, len(data))
        step = self._export.request_bytes_max
        requests = []
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            requests.append(self._send(_Request(wire.WRITE, offset + at, len(piece)), piece))
        self._await(requests)

    def zero(self, offset: int, length: int) -> None:
        """Zeros, as holes where the server can make some."""
        self._require_writable(offset, length)
        if not self._export.flags & wire.FLAG_ZEROES:
            zeros = memoryview(_ZEROS)
            for at in range(offset, offset + length, len(_ZEROS)):
                self.write(at, zeros[: offset + length - at])
            return
        for at in range(offset, offset + length, ZERO_STEP_BYTES):
            step = min(ZERO_STEP_BYTES, offset + length - at)
            self._await([self._send(_Request(wire.WRITE_ZEROES, at, step))])

    def flush(self) -> None:
        """What was written is durable on return, as far as the server says the truth."""
        if self._export.flags & wire.FLAG_FLUSH:
            self._await([self._send(_Request(wire.FLUSH, 0, 0))])

    def close(self) -> None:
        """Say goodbye and free the socket. Idempotent; who still waits gets an error."""
        if self._sending.acquire(blocking=False):  # else somebody waits for a server that does not listen
            with contextlib.suppress(OSError):
                wire.say_goodbye(self._channel)
            self._sending.release()
        self._give_up(SourceError(reason="The connection to the NBD server was closed."))
        self._sock.close()

    # --- requests ---

    def _require_writable(self, offset: int, length: int) -> None:
        if self.read_only:
            raise SourceDenied(reason=f"The NBD server at {self._channel.where} gives this disk for reading only.")
        if offset < 0 or offset + length > self.size:
            raise SourceShort(reason=f"The disk has {self.size} bytes, {offset + length} were to be written.")

    def _send(self, request: _Request, data: memoryview | None = None) -> _Request:
        with self._lock:
            broken = self._broken
            cookie = next(self._cookies)
            if broken is None:
                self._pending[cookie] = request
        if broken is not None:
            raise self._give_up(broken)
        header = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, request.command, cookie, request.offset, request.length)
        try:
            with self._sending:
                self._channel.send(header) if data is None else self._channel.send(header, data)
        except OSError as err:
            raise self._give_up(wire.socket_error(err, self._channel.where)) from err
        return request

    def _await(self, requests: Sequence[_Request]) -> None:
        """Wait for all. The first error is raised when none of them can touch a buffer any more."""
        for request in requests:
            if not request.is_answered:
                self._await_one(request)
                request.is_answered = True
        for request in requests:
            if request.error is not None:
                raise request.error

    def _await_one(self, request: _Request) -> None:
        give_up_s = time.monotonic() + REQUEST_S_MAX
        seen = self._channel.received_bytes
        while not request.done.acquire(timeout=self._timeout_s):
            now = self._channel.received_bytes
            if now == seen or time.monotonic() > give_up_s:
                raise self._give_up(
                    SourceError(
                        reason=f"The NBD server at {self._channel.where} does not answer. Run the task again.",
                        detail=f"request {request.command} for {request.length} bytes at {request.offset}",
                    )
                )
            seen = now

    def _give_up(self, error: SourceError) -> SourceError:
        """Break the connection and wait until nothing is received any more; what to raise."""
        with self._lock:
            broken = self._broken = self._broken or error
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._receiver.join()
        return broken

    # --- the receiver's thread ---

    def _receive(self) -> None:
        try:
            while True:
                self._receive_one()
        except SourceError as err:
            error: SourceError = err
        except OSError as err:
            error = wire.socket_error(err, self._channel.where)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # who sends must not wait for a server that is not listened to
        with self._lock:
            self._broken = self._broken or error
            pending = list(self._pending.values())
            self._pending.clear()
        for request in pending:
            request.error = self._broken
            request.done.release()

    def _receive_one(self) -> None:
        channel = self._channel
        magic = int.from_bytes(channel.exact(4), "big")
        if magic == wire.CHUNK_MAGIC and self._export.structured:
            flags, kind, cookie, length = wire.CHUNK.unpack(channel.exact(wire.CHUNK.size))
            self._receive_chunk(self._find(cookie), kind, length)
            if flags & wire.CHUNK_DONE:
                self._finish(cookie)
            return
        if magic != wire.SIMPLE_MAGIC:
            raise broken_rules(f"a reply with magic {magic:#x}")
        error, cookie = wire.SIMPLE_REPLY.unpack(channel.exact(wire.SIMPLE_REPLY.size))
        request = self._find(cookie)
        if error:
            request.error = _server_error(request, error, "")
        elif request.command == wire.READ:
            if self._export.structured:
                raise broken_rules("a simple reply to a read")
            channel.fill(request.claim(request.offset, request.length))
        self._finish(cookie)

    def _receive_chunk(self, request: _Request, kind: int, length: int) -> None:
        channel = self._channel
        if kind & wire.CHUNK_ERROR:
            if not 6 <= length <= wire.ERROR_BYTES_MAX:
                raise broken_rules(f"an error described in {length} bytes")
            body = channel.exact(length)
            text = body[6 : 6 + int.from_bytes(body[4:6], "big")]
            request.error = request.error or _server_error(
                request, int.from_bytes(body[:4], "big") or errno.EIO, wire.shown_text(text)
            )
        elif kind == wire.CHUNK_DATA and 8 < length <= 8 + wire.REQUEST_BYTES_MAX:
            channel.fill(request.claim(int.from_bytes(channel.exact(8), "big"), length - 8))
        elif kind == wire.CHUNK_HOLE and length == 12:
            offset, size = struct.unpack(">QI", channel.exact(12))
            view = request.claim(offset, size)
            for at in range(0, size, len(_ZEROS)):
                view[at : at + len(_ZEROS)] = _ZEROS[: size - at]
        elif kind == wire.CHUNK_STATUS and 12 <= length <= wire.STATUS_BYTES_MAX and length % 8 == 4:
            self._take_status(request, channel.exact(length))
        elif kind != wire.CHUNK_NONE or length:
            raise broken_rules(f"a chunk of kind {kind} with {length} bytes")

    def _take_status(self, request: _Request, body: bytes) -> None:
        context = int.from_bytes(body[:4], "big")
        if request.command != wire.BLOCK_STATUS or context not in self._export.contexts or context in request.status:
            raise broken_rules(f"a status of context {context} in answer to request {request.command}")
        request.status[context] = body[4:]

    def _find(self, cookie: int) -> _Request:
        with self._lock:
            request = self._pending.get(cookie)
        if request is None:
            raise broken_rules(f"an answer to request {cookie}, which is not open")
        return request

    def _finish(self, cookie: int) -> None:
        request = self._find(cookie)
        request.require_whole()
        with self._lock:
            del self._pending[cookie]
        request.done.release()


def _ranges_of(request: _Request, context: int) -> Iterator[tuple[int, int]]:
    """(length, flags) of one context's answer."""
    body = request.status.get(context)
    if body is None:
        raise broken_rules(f"no status of context {context}")
    return struct.iter_unpack(">II", body)


def _merged(
    allocation: Iterator[tuple[int, int]], dirty: Iterator[tuple[int, int]], offset: int, end: int
) -> Iterator[Extent]:
    """What two contexts say together, as far as both say something; the last range may go beyond `end`.

    allocation |---data---|-----zero-----|--data--
    dirty      |-----1------|-----0----|---1---
    extents    |---DATA---|Z|---SAME---|-Z-|-D-
    """
    have_length = have_flags = changed_length = changed_flags = 0
    while offset < end:
        if not have_length:
            have_length, have_flags = next(allocation, (0, 0))
        if not changed_length:
            changed_length, changed_flags = next(dirty, (0, 0))
        length = min(have_length, changed_length, end - offset)
        if not length:
            return  # one of them told less: the rest is asked for again
        if not changed_flags & wire.DIRTY:
            kind = ExtentKind.SAME
        else:
            kind = ExtentKind.ZERO if have_flags & wire.ALLOCATION_ZERO else ExtentKind.DATA
        yield Extent(offset, length, kind)
        offset += length
        have_length -= length
        changed_length -= length


def _server_error(request: _Request, code: int, text: str) -> SourceError:
    """What the server answered to one request; the connection goes on."""
    doing = "read from" if request.command in (wire.READ, wire.BLOCK_STATUS) else "write to"
    detail = f"request {request.command} for {request.length} bytes at {request.offset}: error {code} {text}".rstrip()
    if code == errno.ENOSPC:
        return SourceError(
            reason="There is no room left behind the NBD server. Free space, then run it again.", detail=detail
        )
    why = os.strerror(code) if code in errno.errorcode else f"error {code}"
    return SourceError(
        reason=f"The NBD server could not {doing} the disk: {why}. Run the task again.",
        detail=detail,
    )


def _split_time(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * 1_000_000)
