"""NBD on the wire: numbers, sockets, the handshake. From the protocol's text: fixed newstyle, structured replies.

The server is not trusted: QEMU's speaks for a guest's disks, another may be anybody's. Every length is checked before
anything is allocated, every loop has an end, and what breaks the rules raises SourceError. `Channel` is the only thing
that touches the socket.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from strongroom.base.errors import SourceDenied, SourceError, SourceGone
from strongroom.base.units import KIB, MIB

HELLO = struct.Struct(">8s8sH")
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
SIMPLE_REPLY = struct.Struct(">IQ")  # error, cookie; after the magic
CHUNK = struct.Struct(">HHQI")  # flags, type, cookie, length; after the magic

REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_ABORT, _OPT_GO, _OPT_STRUCTURED, _OPT_SET_META = 2, 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META, _REP_ERROR = 1, 3, 4, 1 << 31
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 6, 7
FLAG_READ_ONLY, FLAG_FLUSH, FLAG_ZEROES = 2, 4, 64
CHUNK_DONE = 1
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_ERROR = 0, 1, 2, 5, 1 << 15

BASE_ALLOCATION = "base:allocation"
DIRTY_BITMAP = "qemu:dirty-bitmap:"  # and the bitmap's name
ALLOCATION_ZERO, DIRTY = 2, 1  # bits of what a block status says

NAME_BYTES_MAX = 4096  # of exports and contexts, by the protocol
CONTEXTS_MAX = 8
OPTION_REPLY_BYTES_MAX = 64 * KIB
OPTION_REPLIES_MAX = 64  # to one option: an export has a handful of facts
SIZE_MAX = (1 << 63) - 1
REQUEST_BYTES_MAX = 2 * MIB  # more in flight beats larger ones
REQUEST_BYTES_FLOOR = 64 * KIB  # a server that takes less at once is not worth talking to
STATUS_BYTES_MAX = 4 + 8 * 256 * KIB  # QEMU answers with up to 128 Ki extents
ERROR_BYTES_MAX = 4 + 2 + NAME_BYTES_MAX + 8
SHOWN_CHARS_MAX = 200  # of what a server says


@dataclass(frozen=True, kw_only=True)
class UnixAddress:
    path: str


@dataclass(frozen=True, kw_only=True)
class TcpAddress:
    host: str
    port: int


Address = UnixAddress | TcpAddress


@dataclass(frozen=True, kw_only=True)
class Export:
    """What a server said of an export. contexts: by the number it answers with."""

    size: int
    flags: int
    structured: bool
    request_bytes_max: int = REQUEST_BYTES_MAX
    contexts: Mapping[int, str] = field(default_factory=dict)


def open_socket(address: Address, timeout_s: float) -> socket.socket:
    """A connected socket whose calls end after `timeout_s`. Raises OSError."""
    if isinstance(address, TcpAddress):
        sock = socket.create_connection((address.host, address.port), timeout=timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address.path)
    except OSError:
        sock.close()
        raise
    return sock


def socket_error(err: OSError, where: str) -> SourceError:
    if isinstance(err, TimeoutError | BlockingIOError):
        return SourceError(reason=f"The NBD server at {where} does not answer. Run the task again.", detail=repr(err))
    if isinstance(err, FileNotFoundError | ConnectionRefusedError):
        return SourceGone(reason=f"No NBD server listens at {where}. Check that it runs.", detail=repr(err))
    if isinstance(err, BrokenPipeError | ConnectionResetError):
        return closed(where)
    if isinstance(err, PermissionError):
        return SourceDenied(reason=f"The service may not connect to {where}. Give it the right to.", detail=repr(err))
    why = os.strerror(err.errno) if err.errno else str(err)
    return SourceError(reason=f"The connection to the NBD server at {where} broke: {why}.", detail=repr(err))


def shown_address(address: Address) -> str:
    return address.path if isinstance(address, UnixAddress) else f"{address.host}:{address.port}"


def closed(where: str) -> SourceError:
    """The other end hung up: the server was stopped, or has ended."""
    return SourceGone(reason=f"The NBD server at {where} closed the connection. Run the task again.")


def broken_rules(what: str) -> SourceError:
    """The server said something that it must not; nothing more is believed of this connection."""
    return SourceError(reason="The NBD server does not keep to the protocol. Tell the operator.", detail=what)


def shown_text(raw: bytes) -> str:
    """What a server wrote, for operators: printable, short."""
    text = raw[: 4 * SHOWN_CHARS_MAX].decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else "?" for char in text)[:SHOWN_CHARS_MAX]


class Channel:
    """A connected stream socket. `received_bytes` only grows: who waits sees by it whether the server is alive."""

    def __init__(self, sock: socket.socket, where: str) -> None:
        self.received_bytes = 0
        self.where = where
        self._sock = sock
        self._deadline_s: float | None = None

    def until(self, deadline_s: float | None) -> None:
        """Everything has to be done before this monotonic time. None: receiving may wait for ever."""
        self._deadline_s = deadline_s

    def exact(self, length: int) -> bytes:
        """`length` bytes; the caller has checked that they may be so many."""
        data = bytearray(length)
        self.fill(memoryview(data))
        return bytes(data)

    def fill(self, view: memoryview) -> None:
        while len(view):
            self._arm()
            got = self._sock.recv_into(view)
            if not got:
                raise closed(self.where)
            self.received_bytes += got
            view = view[got:]

    def send(self, *parts: bytes | memoryview) -> None:
        self._arm()
        for part in parts:
            self._sock.sendall(part)

    def _arm(self) -> None:
        if self._deadline_s is not None:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._sock.settimeout(left_s)


def negotiate(channel: Channel, export: str, contexts: Sequence[str]) -> Export:
    """Shake hands and open `export`. Contexts the server does not have are left out. Raises SourceError, OSError."""
    magic, have_option, flags = HELLO.unpack(channel.exact(HELLO.size))
    if magic != b"NBDMAGIC" or have_option != b"IHAVEOPT" or not flags & _NEWSTYLE:
        raise SourceError(
            reason=f"What listens at {channel.where} is not an NBD server of this time. Check the address.",
            detail=shown_text(magic + have_option),
        )
    channel.send(struct.pack(">I", flags & (_NEWSTYLE | _NO_ZEROES)))
    structured = _option(channel, _OPT_STRUCTURED, b"").accepted
    granted = _set_contexts(channel, export, contexts) if structured and contexts else {}
    name = _named(export)
    answer = _option(channel, _OPT_GO, name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE))
    if not answer.accepted:
        raise SourceGone(
            reason=f"The NBD server at {channel.where} has no export {export!r} for us. Run the task again.",
            detail=answer.error,
        )
    size, export_flags, most = _parse_infos(answer.infos)
    return Export(size=size, flags=export_flags, structured=structured, request_bytes_max=most, contexts=granted)


def say_goodbye(channel: Channel) -> None:
    """End what has begun, so that the server writes no warning. The socket may be gone."""
    channel.send(REQUEST.pack(REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))


@dataclass(kw_only=True)
class _Answer:
    accepted: bool = False
    error: str = ""
    infos: list[bytes] = field(default_factory=list)


def _option(channel: Channel, option: int, data: bytes) -> _Answer:
    """Send one option and collect its replies up to the last one."""
    channel.send(struct.pack(">8sII", b"IHAVEOPT", option, len(data)), data)
    answer = _Answer()
    for _ in range(OPTION_REPLIES_MAX):
        magic, replied, kind, length = OPTION_REPLY.unpack(channel.exact(OPTION_REPLY.size))
        if magic != _OPTION_REPLY_MAGIC or replied != option:
            raise broken_rules(f"a reply to option {replied} with magic {magic:#x}, {option} was asked")
        if length > OPTION_REPLY_BYTES_MAX:
            raise broken_rules(f"a reply of {length} bytes to option {option}")
        body = channel.exact(length)
        if kind & _REP_ERROR:
            answer.error = f"{kind:#x} {shown_text(body)}"
            return answer
        if kind == _REP_ACK:
            answer.accepted = True
            return answer
        if kind in (_REP_INFO, _REP_META):
            answer.infos.append(body)
    raise broken_rules(f"more than {OPTION_REPLIES_MAX} replies to option {option}")


def _named(name: str) -> bytes:
    raw = name.encode()
    if len(raw) > NAME_BYTES_MAX:
        raise SourceError(reason=f"An NBD name has at most {NAME_BYTES_MAX} bytes.")
    return struct.pack(">I", len(raw)) + raw


def _set_contexts(channel: Channel, export: str, contexts: Sequence[str]) -> dict[int, str]:
    if len(contexts) > CONTEXTS_MAX:
        raise SourceError(reason=f"At most {CONTEXTS_MAX} meta contexts of an export are read at once.")
    query = _named(export) + struct.pack(">I", len(contexts)) + b"".join(map(_named, contexts))
    answer = _option(channel, _OPT_SET_META, query)
    granted: dict[int, str] = {}
    for body in answer.infos if answer.accepted else ():
        if len(body) <= 4:
            raise broken_rules("a meta context without a name")
        name = body[4:].decode("utf-8", "backslashreplace")
        number = int.from_bytes(body[:4], "big")
        if name not in contexts or number in granted or name in granted.values():
            raise broken_rules(f"the meta context {shown_text(body[4:])}, twice or not asked for")
        granted[number] = name
    return granted


def _parse_infos(infos: Sequence[bytes]) -> tuple[int, int, int]:
    """(size, flags, most bytes of a request) of the replies to GO."""
    size, flags, most = -1, 0, REQUEST_BYTES_MAX
    for body in infos:
        kind = int.from_bytes(body[:2], "big") if len(body) >= 2 else -1
        if kind == _INFO_EXPORT:
            if len(body) != 12:
                raise broken_rules(f"an export described in {len(body)} bytes")
            size, flags = struct.unpack(">QH", body[2:])
        elif kind == _INFO_BLOCK_SIZE:
            if len(body) != 14:
                raise broken_rules(f"block sizes in {len(body)} bytes")
            smallest, preferred, largest = struct.unpack(">III", body[2:])
            if not 0 < smallest <= REQUEST_BYTES_FLOOR or smallest & (smallest - 1) or largest < REQUEST_BYTES_FLOOR:
                raise broken_rules(f"block sizes of {smallest}, {preferred} and {largest} bytes")
            most = min(REQUEST_BYTES_MAX, largest - largest % REQUEST_BYTES_FLOOR)
    if not 0 <= size <= SIZE_MAX:
        raise broken_rules(f"an export of {size} bytes")
    return size, flags, most
