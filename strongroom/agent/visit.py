"""The agent where nothing is installed: one connection over ssh, its jobs, and the end.

The same jobs and limits as of an installed one. What is allowed says /etc/strongroom/agent.toml, when the host has it;
without it everything that the user may read is read, and nothing is written.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
from pathlib import Path

from strongroom.agent.policy import Policy, load_policy
from strongroom.agent.run import Agent
from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceUnreachable, TargetBusy
from strongroom.sources.hosts.channel import Channel
from strongroom.sources.hosts.messages import RecoverJob, RestoreJob
from strongroom.sources.hosts.wire import Wire

CONFIG = Path("/etc/strongroom/agent.toml")
HOME = Path("/var/lib/strongroom-agent")  # made by the first restore: what settles one that was cut off
RELAY_BYTES = 256 * 1024
LOCK_S_MAX = 15.0  # for a connection before this one to see its end, and to roll back


class Visitor(Agent):
    """An agent without identity: whoever may log in by ssh is believed."""

    def __init__(self, *, home: Path, config: Path, clock: Clock) -> None:
        super().__init__(home=home, config=config, clock=clock)
        self._lock = threading.Lock()

    def _policy(self) -> Policy:
        if not os.path.lexists(self._config):
            return Policy(paths=(b"/",), restore=False, restore_paths=(), own=(os.fsencode(self._home),))
        return load_policy(self._config, own=(self._home,))

    def _do(self, channel: Channel, job: object) -> None:
        if not isinstance(job, RestoreJob | RecoverJob):
            return super()._do(channel, job)
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _locked(fd):
                return super()._do(channel, job)
            return self._fail(channel, TargetBusy(reason="An earlier restore is still at work on this host."))
        finally:
            os.close(fd)


def _locked(fd: int) -> bool:
    """Two connections never restore at once: the one before may not have noticed that it was cut."""
    deadline_s = time.monotonic() + LOCK_S_MAX
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.2)
        else:
            return True


def visit(read_fd: int, write_fd: int, *, home: Path = HOME, config: Path = CONFIG) -> None:
    """Do what the other end of the two descriptors asks for; returns when they end."""
    near, far = socket.socketpair()
    for move in (lambda: _relay_in(read_fd, far), lambda: _relay_out(far, write_fd)):
        threading.Thread(target=move, daemon=True).start()
    with contextlib.suppress(SourceUnreachable):
        Visitor(home=home, config=config, clock=SystemClock()).serve(Wire(near))


def _relay_in(fd: int, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(fd, RELAY_BYTES):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def _relay_out(source: socket.socket, fd: int) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(RELAY_BYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
    with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RDWR)
