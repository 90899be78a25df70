"""Frames over one connection, of TLS or of a pair of sockets before ssh: bounded, whole or not at all.

    length u32 | kind u8 | seq u64 | ack u64 | CRC-32 of all of it u32 | payload of `length` bytes

The sum is not against attackers, whom TLS keeps out, but against errors of ours: what a restore writes at a host is
looked at by nobody after this. A frame that fails it ends the connection, and is sent again over the next.

One thread reads, any thread sends. OpenSSL allows one call at a time on a connection, so the socket is non-blocking and
a lock is held for each call only; waiting happens outside of it.
"""

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
import zlib
from enum import IntEnum
from typing import NamedTuple

from strongroom.base.errors import SourceUnreachable
from strongroom.base.units import KIB, MIB

FRAME_BYTES_MAX = 2 * MIB  # folders of one part, packed, are the longest
GREETING_BYTES_MAX = 32 * KIB  # before we know who it is
READ_BYTES = 256 * KIB
SEND_S_MAX = 120.0  # for one frame: a peer that takes nothing for so long is gone
KEEP_ALIVE_S = 20  # idle connections: seen dead after four missed probes, and kept open in address translations
_HEADER = struct.Struct(">IBQQ")
_SUM = struct.Struct(">I")


class Kind(IntEnum):
    """HELLO, WELCOME, ENROLL, ISSUED, RENEW, REFUSED belong to the connection; the others to a session on it."""

    HELLO = 1
    WELCOME = 2
    ENROLL = 3
    ISSUED = 4
    RENEW = 5
    REFUSED = 6
    AUTHORITY = 7
    OPEN = 16
    DATA = 17
    ACK = 18
    CLOSE = 19
    CLOSED = 20


class Frame(NamedTuple):
    kind: int
    seq: int
    ack: int
    payload: bytes


class Wire:
    """A connection after its TLS handshake, or one that ssh carries. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._buffer = bytearray()
        self._closed = False

    def send(self, kind: int, payload: bytes | bytearray = b"", *, seq: int = 0, ack: int = 0) -> None:
        """Raises SourceUnreachable; the connection is of no use then."""
        assert len(payload) <= FRAME_BYTES_MAX, "the other side would close the connection, again and again"
        head = _HEADER.pack(len(payload), kind, seq, ack)
        head += _SUM.pack(zlib.crc32(payload, zlib.crc32(head)))
        # One call, one TLS record for what is small; what is large is not copied.
        parts = (head + payload,) if len(payload) < 16 * KIB else (head, payload)
        deadline_s = time.monotonic() + SEND_S_MAX
        with self._sending:
            for part in parts:
                self._send_all(memoryview(part), deadline_s)

    def _send_all(self, view: memoryview, deadline_s: float) -> None:
        while view:
            try:
                with self._lock:
                    done = self._sock.send(view)
                view = view[done:]
            except (ssl.SSLWantWriteError, BlockingIOError):
                self._wait(select.POLLOUT, deadline_s)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline_s)
            except (OSError, ValueError) as err:
                raise _lost(err) from err

    def receive(self, bytes_max: int = FRAME_BYTES_MAX, timeout_s: float | None = None) -> Frame:
        """The next frame. Raises SourceUnreachable for the end, for silence of `timeout_s`, and for what is none."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        head = self._take(_HEADER.size, deadline_s)
        length, kind, seq, ack = _HEADER.unpack(head)
        if length > bytes_max:
            raise SourceUnreachable(reason="The connection is closed: a frame was too long.", detail=f"{length} bytes")
        (checksum,) = _SUM.unpack(self._take(_SUM.size, deadline_s))
        payload = self._take(length, deadline_s)
        if zlib.crc32(payload, zlib.crc32(head)) != checksum:
            raise SourceUnreachable(
                reason="The connection is closed: a frame arrived spoilt.", detail=f"{length} bytes"
            )
        return Frame(kind, seq, ack, payload)

    def _take(self, length: int, deadline_s: float | None) -> bytes:
        buffer = self._buffer
        while len(buffer) < length:
            try:
                with self._lock:
                    got = self._sock.recv(max(READ_BYTES, length - len(buffer)))
                if not got:
                    raise SourceUnreachable(reason="The connection to the agent was closed.")
                buffer += got
            except (ssl.SSLWantReadError, BlockingIOError):
                self._wait(select.POLLIN, deadline_s)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline_s)
            except (OSError, ValueError) as err:
                raise _lost(err) from err
        data = bytes(memoryview(buffer)[:length])
        del buffer[:length]
        return data

    def _wait(self, event: int, deadline_s: float | None) -> None:
        poller = select.poll()
        try:
            poller.register(self._sock, event)
        except (OSError, ValueError) as err:
            raise _lost(err) from err
        left_ms = None if deadline_s is None else max(0.0, (deadline_s - time.monotonic()) * 1000)
        if not poller.poll(left_ms):
            raise SourceUnreachable(reason="The connection to the agent fell silent.")

    def peer_certificate(self) -> bytes | None:
        """Of the other side, DER; None without one."""
        if not isinstance(self._sock, ssl.SSLSocket):
            return None
        with self._lock:
            return self._sock.getpeercert(binary_form=True)

    @property
    def peer_address(self) -> str:
        try:
            return str(self._sock.getpeername()[0])
        except OSError:
            return ""

    def close(self) -> None:
        """Idempotent; wakes the thread that reads."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            # Of the socket below TLS: `SSLSocket.shutdown` takes TLS off first, and then a reader would take ciphertext
            # for what was sent, and a sender send in the clear.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        with self._lock, contextlib.suppress(OSError):
            self._sock.close()


def keep_alive(sock: socket.socket) -> None:
    """The kernel notices when the other side is gone, also while nothing is sent."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEP_ALIVE_S * 4 * 1000)


def _lost(err: Exception) -> SourceUnreachable:
    return SourceUnreachable(reason="The connection to the agent was lost.", detail=repr(err))
