"""A reliable stream of messages over connections that come and go: a cut costs the time to dial again, nothing else.

Every message has a number. The sender keeps it until the other side has taken it out of the stream; on a new
connection both say what they have, and the rest is sent again. What is kept is bounded, and that is the back-pressure:
who does not take messages stops the one who sends them.

    send ->  [ sent, not taken: at most WINDOW_BYTES ]  -> connection 1, 2, ... ->  [ arrived, not taken ]  -> take
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from strongroom.base.errors import SourceUnreachable, StrongroomError
from strongroom.base.units import MIB
from strongroom.sources.hosts.wire import Frame, Kind, Wire

WINDOW_BYTES = 16 * MIB  # of one direction
MESSAGE_OVERHEAD_BYTES = 256  # what a small message counts besides its bytes, so that their number is bounded too
ACK_BYTES = 1 * MIB  # taken before it is said: far below the window
AWAY_S_MAX = 90.0  # how long a session waits for its agent to dial again
LOOK_S = 0.5  # how soon a cancel is seen by who waits


class _Kept(NamedTuple):
    seq: int
    payload: bytes
    cost: int


class Channel:
    """One end of a session. `send` and `take` from any thread; `feed` from the thread that reads the connection.

    check   called while somebody waits; what it raises ends the waiting
    """

    def __init__(self, session: bytes, check: Callable[[], None] = lambda: None) -> None:
        self.session = session
        self._check = check
        self._changed = threading.Condition()
        self._order = threading.Lock()  # messages leave in the order of their numbers
        self._wire: Wire | None = None
        self._away_since_s = time.monotonic()
        self._ended: StrongroomError | None = None
        self._sent = 0
        self._kept: deque[_Kept] = deque()
        self._kept_cost = 0
        self._arrived: deque[bytes] = deque()
        self._received = 0  # number of the newest that arrived
        self._taken = 0
        self._untold_cost = 0

    @property
    def received(self) -> int:
        """Number of the newest message that arrived: what the other side need not send again."""
        return self._received

    def attach(self, wire: Wire, received: int) -> None:
        """Go on over a new connection, whose other end has what is numbered up to `received`."""
        with self._order:
            with self._changed:
                self._wire = wire
                again = [kept for kept in self._kept if kept.seq > received]
                self._changed.notify_all()
            for kept in again:
                self._put(wire, kept)

    def detach(self, wire: Wire) -> None:
        """That connection is gone."""
        with self._changed:
            if self._wire is wire:
                self._wire = None
                self._away_since_s = time.monotonic()
                self._changed.notify_all()

    def end(self, error: StrongroomError) -> None:
        """Everybody who sends or takes gets this error from now on."""
        with self._changed:
            if self._ended is None:
                self._ended = error
            self._changed.notify_all()

    def require_open(self) -> None:
        """Raises what ended the session, for who works without sending or taking."""
        with self._changed:
            if self._ended is not None:
                raise self._ended

    def feed(self, frame: Frame) -> None:
        """A frame of this session arrived. Raises SourceUnreachable when messages are missing in between."""
        with self._changed:
            self._forget(frame.ack)
            if frame.kind == Kind.DATA and frame.seq > self._received:
                if frame.seq != self._received + 1:
                    raise SourceUnreachable(reason="The connection is closed: messages were missing in it.")
                self._received = frame.seq
                self._arrived.append(frame.payload)
            self._changed.notify_all()

    def _forget(self, ack: int) -> None:
        while self._kept and self._kept[0].seq <= ack:
            self._kept_cost -= self._kept.popleft().cost

    def send(self, payload: bytes) -> None:
        """Blocks while the other side is behind. Raises what ended the session, or what `check` raises."""
        cost = len(payload) + MESSAGE_OVERHEAD_BYTES
        while True:
            with self._order:
                with self._changed:
                    room = self._kept_cost + cost <= WINDOW_BYTES or not self._kept
                    if self._ended is not None:
                        raise self._ended
                    if room:
                        self._sent += 1
                        kept = _Kept(self._sent, payload, cost)
                        self._kept.append(kept)
                        self._kept_cost += cost
                        wire = self._wire
                if room:
                    if wire is not None:
                        self._put(wire, kept)
                    return
            with self._changed:
                if self._kept_cost + cost > WINDOW_BYTES and self._kept:
                    self._wait()

    def take(self, timeout_s: float | None = None) -> bytes | None:
        """The next message; None after `timeout_s` without one (0: do not wait)."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            tell = None
            with self._changed:
                if self._arrived:
                    payload = self._arrived.popleft()
                    self._taken += 1
                    self._untold_cost += len(payload) + MESSAGE_OVERHEAD_BYTES
                    if self._untold_cost >= ACK_BYTES:
                        self._untold_cost = 0
                        tell = self._wire
                elif self._ended is not None:
                    raise self._ended
                elif deadline_s is not None and time.monotonic() >= deadline_s:
                    return None
                else:
                    self._wait(deadline_s)
                    continue
            if tell is not None:
                self._ack(tell)
            return payload

    def _wait(self, deadline_s: float | None = None) -> None:
        """One look at what changed. The lock is held."""
        now_s = time.monotonic()
        if self._wire is None and now_s - self._away_since_s > AWAY_S_MAX:
            raise SourceUnreachable(
                reason="The agent did not come back. See whether its host runs and reaches this server."
            )
        self._check()
        self._changed.wait(LOOK_S if deadline_s is None else max(0.0, min(LOOK_S, deadline_s - now_s)))

    def _put(self, wire: Wire, kept: _Kept) -> None:
        """What cannot be sent now is sent again over the next connection."""
        try:
            wire.send(Kind.DATA, kept.payload, seq=kept.seq, ack=self._taken)
        except SourceUnreachable:
            self.detach(wire)
            wire.close()

    def _ack(self, wire: Wire) -> None:
        try:
            wire.send(Kind.ACK, ack=self._taken)
        except SourceUnreachable:
            self.detach(wire)
            wire.close()
