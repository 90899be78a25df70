"""The server's end of an agent: its newest connection, and the session that runs over it.

One station an agent. A connection that arrives takes the place of the one before. A session is opened by a job; it goes
on over every connection whose greeting names it, and ends with the job, with an agent that does not know it any more
(it was started anew), or with one that stays away.
"""

import os
import threading
import time
from collections.abc import Callable

from strongroom.base.errors import SourceUnreachable
from strongroom.sources.hosts.channel import LOOK_S, Channel
from strongroom.sources.hosts.messages import Hello, Open, greet
from strongroom.sources.hosts.wire import Frame, Kind, Wire

CONNECT_S_MAX = 20.0  # how long a job waits for an agent that is not connected, before it is given back
CLOSED_S_MAX = 10.0  # for the agent to confirm the end of a session; else its connection is closed
SESSION_BYTES = 16


class Station:
    """One agent. All methods from any thread."""

    def __init__(self, name: str, connect_s_max: float = CONNECT_S_MAX) -> None:
        self.name = name  # of the host, for sentences
        self._connect_s_max = connect_s_max
        self.restores = False  # what its own file said at the last greeting
        self.version = ""
        self._changed = threading.Condition()
        self._wire: Wire | None = None
        self._channel: Channel | None = None
        self._ending: bytes | None = None  # a session whose end the agent has not confirmed yet

    @property
    def connected(self) -> bool:
        return self._wire is not None

    @property
    def busy(self) -> bool:
        """A session runs."""
        return self._channel is not None

    def arrive(self, wire: Wire, hello: Hello, welcome: Callable[[bytes, int], None]) -> None:
        """A greeting came over a new connection; `welcome` answers it with the session that goes on."""
        with self._changed:
            old, self._wire = self._wire, None
            channel = self._channel
        if old is not None:
            old.close()
            if channel is not None:
                channel.detach(old)
        goes_on = channel is not None and channel.session == hello.session
        if channel is not None and not goes_on:
            channel.end(
                SourceUnreachable(reason="The agent was started anew while it was at work. The task runs again.")
            )
        if goes_on and channel is not None:
            welcome(channel.session, channel.received)
            channel.attach(wire, hello.received)
        else:
            welcome(b"", 0)
        with self._changed:
            self.restores, self.version, self.name = hello.restores, hello.version, hello.host_name or self.name
            self._wire = wire
            if not goes_on:
                self._ending = None
            ended = self._ending  # its job ended it while no connection was there to say so
            self._changed.notify_all()
        if ended is not None:
            wire.send(Kind.CLOSE, greet(Open(ended)))

    def leave(self, wire: Wire) -> None:
        """That connection is gone."""
        with self._changed:
            if self._wire is wire:
                self._wire = None
            channel = self._channel
            self._changed.notify_all()
        if channel is not None:
            channel.detach(wire)

    def feed(self, wire: Wire, frame: Frame) -> None:
        """A frame of a session arrived. Raises SourceUnreachable when the connection is of no more use.

        What an earlier connection still had is dropped: it may be of an earlier session, and else it is sent again.
        """
        with self._changed:
            if wire is not self._wire:
                return
        if frame.kind == Kind.CLOSED:
            with self._changed:
                if frame.payload == self._ending:
                    self._ending = None
                self._changed.notify_all()
            return
        channel = self._channel
        if channel is not None and self._ending is None:
            channel.feed(frame)

    def drop(self) -> None:
        """Close its connection: the agent may greet again, if it still may."""
        with self._changed:
            wire = self._wire
        if wire is not None:
            wire.close()

    def open(self, check: Callable[[], None]) -> "Session":
        """Begin a session. Raises SourceUnreachable when the agent is not connected, or one runs."""
        deadline_s = time.monotonic() + self._connect_s_max
        with self._changed:
            while self._wire is None or self._channel is not None or self._ending is not None:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 and self._wire is None:
                    raise SourceUnreachable(
                        reason=f"The agent on host {self.name} is not connected. See whether it runs there "
                        "(systemctl status strongroom-agent) and reaches this server."
                    )
                if left_s <= 0:
                    # An earlier attempt may not have let go yet: it is asked again.
                    raise SourceUnreachable(reason=f"The agent on host {self.name} is at work for another task.")
                check()
                self._changed.wait(min(LOOK_S, max(0.0, left_s)))
            wire = self._wire
            channel = Channel(os.urandom(SESSION_BYTES), check)
            self._channel = channel
        try:
            wire.send(Kind.OPEN, greet(Open(channel.session)))
            channel.attach(wire, 0)
        except SourceUnreachable:
            with self._changed:
                self._channel = None
            wire.close()
            raise
        return Session(self, channel)

    def end(self, channel: Channel) -> None:
        """The job is done with its session; called by Session.close."""
        channel.end(SourceUnreachable(reason="The session has ended."))
        with self._changed:
            if self._channel is not channel:
                return
            self._channel = None
            self._ending = channel.session
            wire = self._wire
        if wire is None:
            return
        try:
            wire.send(Kind.CLOSE, greet(Open(channel.session)))
        except SourceUnreachable:
            wire.close()
            return
        deadline_s = time.monotonic() + CLOSED_S_MAX
        with self._changed:
            while self._awaits(channel, wire) and time.monotonic() < deadline_s:
                self._changed.wait(LOOK_S)
            stuck = self._awaits(channel, wire)
        if stuck:
            wire.close()

    def _awaits(self, channel: Channel, wire: Wire) -> bool:
        return self._ending == channel.session and self._wire is wire


class Session:
    """A session of a job; close it in any case."""

    def __init__(self, station: Station, channel: Channel) -> None:
        self.channel = channel
        self._station = station

    def close(self) -> None:
        """Idempotent."""
        self._station.end(self.channel)
