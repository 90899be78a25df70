"""Many clients of one process: each a connection that asks, waits for the answer, and asks again.

A client that is told to come later (429, 503) does so after the seconds that `Retry-After` names; without that header
the answer counts as one without grace. Nothing is sent twice by itself: what came of each request is known, or the
request counts as lost.
"""

import heapq
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

ANSWER_S_MAX = 60.0  # then the request is lost
_AFTER = b"retry-after:"
_LENGTH = b"content-length:"


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request as bytes. name: of what it makes; None: it only reads."""

    kind: str
    data: bytes
    name: str | None = None


@dataclass(kw_only=True)
class Seen:
    """What came of all requests. Seconds from the first byte sent to the last received.

    answers        (kind, status) -> how many
    seconds        kind -> of the answers with 200
    refused_s      kind -> of the answers with 429 and 503
    made, refused  names of what the server said that it makes, and that it does not
    lost           names of requests that got no answer
    graceless      429 and 503 without Retry-After
    closed_idle    connections that the server closed while their clients waited to come back
    """

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    refused_s: list[float] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    graceless: int = 0
    closed_idle: int = 0
    wrong: Counter[str] = field(default_factory=Counter)


class _Client:
    """One connection and the request that it waits for."""

    def __init__(self, number: int, address: tuple[str, int]) -> None:
        self.number, self._address = number, address
        self.asked: Ask | None = None
        self.asked_at = 0.0
        self.received = b""
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(self._address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, ask: Ask) -> None:
        self.asked, self.received, self.asked_at = ask, b"", time.perf_counter()
        self.socket.sendall(ask.data)

    def answer(self) -> tuple[int, float | None, bytes] | None:
        """(status, seconds of Retry-After, body) when it is whole. Raises ConnectionError when the server hung up."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionResetError
        self.received += part
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < int(_header(head, _LENGTH) or 0):
            return None
        after = _header(head, _AFTER)
        return int(head[9:12]), float(after) if after else None, body


def _header(head: bytes, name: bytes) -> bytes | None:
    lower = head.lower()
    at = lower.find(b"\n" + name)
    return lower[at + 1 + len(name) :].split(b"\r\n", 1)[0].strip() if at >= 0 else None


def run(endpoints: Sequence[str], count: int, next_ask: Callable[[int], Ask], *, seconds: float) -> Seen:
    """So many clients ask for that long what `next_ask(client's number)` says; returns when the last was answered."""
    addresses = [(str(urlsplit(url).hostname), int(urlsplit(url).port or 80)) for url in endpoints]
    clients = [_Client(number, addresses[number % len(addresses)]) for number in range(count)]
    by_fd = {client.socket.fileno(): client for client in clients}
    poll, seen = select.epoll(), Seen()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    end = time.perf_counter() + seconds
    later: list[tuple[float, int]] = []  # (when, client) of those that were told to come again
    for client in clients:
        client.ask(next_ask(client.number))
    open_ = count
    while open_:
        now = time.perf_counter()
        if now > end + ANSWER_S_MAX:
            break
        while later and (later[0][0] <= now or now >= end):
            client = clients[heapq.heappop(later)[1]]
            if now < end:
                client.ask(next_ask(client.number))
            else:
                open_ -= 1
        for fd, _ in poll.poll(min(0.5, max(0.0, later[0][0] - now)) if later else 0.5):
            client = by_fd[fd]
            before = client.socket
            wait_s = _take(client, seen)
            if client.socket is not before:  # connected anew
                by_fd[client.socket.fileno()] = client
                poll.register(client.socket.fileno(), select.EPOLLIN)
            if wait_s is None:
                continue
            if wait_s > 0:
                heapq.heappush(later, (time.perf_counter() + wait_s, client.number))
            elif time.perf_counter() < end:
                client.ask(next_ask(client.number))
            else:
                open_ -= 1
    for client in clients:
        if client.asked is not None:
            seen.lost.append(client.asked.name or client.asked.kind)
        client.socket.close()
    poll.close()
    return seen


def _take(client: _Client, seen: Seen) -> float | None:
    """Take what came; None: the answer is not whole; else in how many seconds the client asks again."""
    ask = client.asked
    try:
        answer = client.answer()
    except ConnectionError:
        client.socket.close()
        client.connect()
        if ask is None:  # it was idle, and comes back at its time
            seen.closed_idle += 1
            return None
        seen.lost.append(ask.name or ask.kind)
        client.asked = None
        return 0.0
    if answer is None or ask is None:
        return None
    status, after_s, body = answer
    took_s, client.asked = time.perf_counter() - client.asked_at, None
    seen.answers[ask.kind, status] += 1
    if status == 200:
        seen.seconds.setdefault(ask.kind, []).append(took_s)
    if ask.name is not None:
        (seen.made if status == 200 else seen.refused).add(ask.name)
    if status in (429, 503):
        seen.refused_s.append(took_s)
        seen.graceless += after_s is None
        return after_s or 1.0
    if status != 200:
        seen.wrong[f"{ask.kind} {status} {body[:200].decode(errors='replace')}"] += 1
    return 0.0
