"""A client that costs little: keep-alive connections that each ask again as soon as they were answered.

Requests are bytes made beforehand. Every answer is looked at: its status, its whole body, and that it speaks of the
object that was asked for. A run has a fixed number of seconds and stops by itself.
"""

import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONNECTIONS = 16  # asked at once: more than enough to keep one Python process busy
_ANSWER_BYTES_MAX = 1 << 20
_SILENCE_S_MAX = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one run counted. Times in seconds; cpu of the server's process, database_cpu of PostgreSQL's, all of it."""

    requests: int
    seconds: float
    cpu_s: float
    database_cpu_s: float
    latencies_s: list[float] = field(repr=False)

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


class _Asker:
    """One connection: the request it waits for, and what came of the answer so far."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.expected = b""
        self.asked_at = 0.0
        self._received = b""

    def ask(self, request: bytes, expected: bytes) -> None:
        self.expected, self._received = expected, b""
        self.asked_at = time.perf_counter()
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Take what is there; True when the answer is whole. Raises RuntimeError for any but the expected one."""
        part = self.socket.recv(1 << 16)
        self._received += part
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not part or len(self._received) > _ANSWER_BYTES_MAX:
            raise RuntimeError(f"the server hung up or talks without end: {self._received[:300]!r}")
        if not found or len(body) < _length(head):
            return False
        if not head.startswith(b"HTTP/1.1 200") or self.expected not in body:
            raise RuntimeError(f"wrong answer: {self._received[:600]!r}")
        return True


def run(
    port: int,
    requests: Sequence[tuple[bytes, bytes]],
    *,
    seconds: float,
    server_pid: int,
    database_pid: int,
    connections: int = CONNECTIONS,
) -> Load:
    """Ask for `requests` (bytes, what the body must hold) in turn, again and again, for that long."""
    askers = [_Asker(port) for _ in range(connections)]
    by_fd = {asker.socket.fileno(): asker for asker in askers}
    poll = select.epoll()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    latencies: list[float] = []
    number = 0
    cpu, database_cpu = cpu_seconds(server_pid), family_cpu_seconds(database_pid)
    begun = time.perf_counter()
    end = begun + seconds
    for asker in askers:
        asker.ask(*requests[number % len(requests)])
        number += 1
    open_ = len(askers)
    while open_:
        ready = poll.poll(_SILENCE_S_MAX)
        if not ready:
            raise RuntimeError(f"no answer for {_SILENCE_S_MAX:.0f} s")
        for fd, _ in ready:
            asker = by_fd[fd]
            if not asker.answered():
                continue
            now = time.perf_counter()
            latencies.append(now - asker.asked_at)
            if now < end:
                asker.ask(*requests[number % len(requests)])
                number += 1
            else:
                open_ -= 1
    taken = time.perf_counter() - begun
    load = Load(
        requests=len(latencies),
        seconds=taken,
        cpu_s=cpu_seconds(server_pid) - cpu,
        database_cpu_s=family_cpu_seconds(database_pid) - database_cpu,
        latencies_s=latencies,
    )
    poll.close()
    for asker in askers:
        asker.socket.close()
    return load


def _length(head: bytes) -> int:
    lower = head.lower()
    at = lower.index(b"content-length:") + len(b"content-length:")
    return int(lower[at:].split(b"\r\n", 1)[0])


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process with all its threads."""
    return _times(Path(f"/proc/{pid}/stat").read_text())[1]


def family_cpu_seconds(parent: int) -> float:
    """Those of a process and of its children: PostgreSQL has one a connection."""
    total = cpu_seconds(parent)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                its_parent, seconds = _times((folder / "stat").read_text())
            except OSError:
                continue
            if its_parent == parent:
                total += seconds
    return total


def _times(stat: str) -> tuple[int, float]:
    """(parent's pid, seconds) of a line of /proc/pid/stat; fields after the name in brackets, proc(5)."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS
