"""The agent's life: dial, greet, do one job after the other, dial again. It opens no port and takes no command line.

this thread    reads the connection, hands frames to the session that runs
job thread     one at a time; it outlives a cut of the connection, and ends when the server does not know it any more
"""

import random
import socket
import threading
from pathlib import Path

import structlog

from strongroom import __version__
from strongroom.agent.backup import run_backup
from strongroom.agent.host_tree import places_of
from strongroom.agent.identity import Identity, client_context, connect, load_identity, replace
from strongroom.agent.policy import Policy, load_policy
from strongroom.agent.restore import Restorer
from strongroom.base.certificates import Key, new_key, new_request
from strongroom.base.clock import Clock
from strongroom.base.errors import ConfigError, SourceError, SourceUnreachable, StrongroomError
from strongroom.sources.hosts.channel import Channel
from strongroom.sources.hosts.messages import (
    PROTOCOL,
    BackupJob,
    Hello,
    Issued,
    Looked,
    LookJob,
    Open,
    Recovered,
    RecoverJob,
    Refused,
    RestoreJob,
    Welcome,
    failure_of,
    from_server,
    greet,
    greeting,
    pack,
)
from strongroom.sources.hosts.wire import GREETING_BYTES_MAX, Frame, Kind, Wire

log = structlog.get_logger("agent")

DIAL_S_FIRST, DIAL_S_MAX = 0.2, 60.0  # doubled with every failure, and a part of it by chance
REFUSED_S = 60.0  # who was refused comes back rarely: somebody has to do something first
GREETING_S_MAX = 30.0


class Agent:
    """One process on a host. `run` returns after `stop`."""

    def __init__(self, *, home: Path, config: Path, clock: Clock) -> None:
        self._home = home
        self._config = config
        self._clock = clock
        self._stopping = threading.Event()
        self._wire: Wire | None = None
        self._channel: Channel | None = None
        self._job: threading.Thread | None = None
        self._welcomed = False
        self._new_key: Key | None = None  # waits for its certificate

    def run(self) -> None:
        """Raises ConfigError when it cannot even begin."""
        load_identity(self._home)
        self._policy()
        wait_s = DIAL_S_FIRST
        while not self._stopping.is_set():
            self._welcomed = False
            try:
                self._once(load_identity(self._home))
            except SourceUnreachable as error:
                if not self._stopping.is_set():
                    log.warning("not connected", error=str(error))
            except ConfigError as error:
                log.error("refused", error=str(error))
                self._stopping.wait(REFUSED_S)
            if self._welcomed:
                wait_s = DIAL_S_FIRST
            self._stopping.wait(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 -- only that not all come at once
            wait_s = min(DIAL_S_MAX, wait_s * 2)
        self._end_session("The agent was stopped.")

    def stop(self) -> None:
        """From a signal handler or another thread."""
        self._stopping.set()
        wire = self._wire
        if wire is not None:
            wire.close()

    def _policy(self) -> Policy:
        return load_policy(self._config, own=(self._home,))

    def _once(self, identity: Identity) -> None:
        """One connection, until it ends. Raises SourceUnreachable, ConfigError."""
        self._talk(connect(identity.server, client_context(identity)), identity)

    def serve(self, wire: Wire) -> None:
        """One connection that somebody else made, until it ends, and the job on it. Raises SourceUnreachable."""
        try:
            self._talk(wire, None)
        finally:
            self._end_session("The connection has ended.")
            if self._job is not None:
                self._job.join()  # it takes its staging place away

    def _talk(self, wire: Wire, identity: Identity | None) -> None:
        """identity: None where the connection itself says who this is."""
        self._wire = wire
        try:
            if self._stopping.is_set():
                return
            channel = self._channel
            hello = Hello(
                PROTOCOL,
                __version__,
                socket.gethostname()[:255],
                channel.session if channel is not None else b"",
                channel.received if channel is not None else 0,
                self._policy().restore,
            )
            wire.send(Kind.HELLO, greet(hello))
            self._take_welcome(wire, identity)
            while not self._stopping.is_set():
                self._hear(wire, identity, wire.receive())
        finally:
            wire.close()
            if self._channel is not None:
                self._channel.detach(wire)

    def _take_welcome(self, wire: Wire, identity: Identity | None) -> None:
        answer = wire.receive(GREETING_BYTES_MAX, GREETING_S_MAX)
        if answer.kind == Kind.REFUSED:
            raise ConfigError(reason=greeting(answer.payload, Refused).reason)
        if answer.kind != Kind.WELCOME:
            raise SourceUnreachable(reason="The server answered something else than a welcome.")
        welcome: Welcome = greeting(answer.payload, Welcome)
        self._welcomed = True
        if identity is not None:
            log.info("connected", server=identity.server, agent=identity.agent_id)
        channel = self._channel
        if channel is not None and channel.session == welcome.session:
            channel.attach(wire, welcome.received)
            return
        if channel is not None:
            self._end_session("The server does not know this session any more.")
        if welcome.renew and identity is not None:
            self._new_key = new_key()
            wire.send(Kind.RENEW, new_request(self._new_key))

    def _hear(self, wire: Wire, identity: Identity | None, frame: Frame) -> None:
        if frame.kind == Kind.OPEN:
            self._end_session("The server began another session.")
            session = greeting(frame.payload, Open).session
            channel = Channel(session)
            channel.attach(wire, 0)
            self._channel = channel
            self._job = threading.Thread(target=self._work, args=(channel, self._job), name="job", daemon=True)
            self._job.start()
        elif frame.kind == Kind.CLOSE:
            self._end_session("The server ended the session.")
            wire.send(Kind.CLOSED, greeting(frame.payload, Open).session)
        elif frame.kind in (Kind.DATA, Kind.ACK):
            if self._channel is not None:
                self._channel.feed(frame)
        elif frame.kind == Kind.ISSUED and self._new_key is not None and identity is not None:
            replace(self._home, identity, self._new_key, greeting(frame.payload, Issued).certificate)
            self._new_key = None
            log.info("certificate renewed")
        elif frame.kind == Kind.REFUSED:
            raise ConfigError(reason=greeting(frame.payload, Refused).reason)
        else:
            raise SourceUnreachable(reason="The server sent a frame of no known kind.", detail=str(frame.kind))

    def _end_session(self, why: str) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.end(SourceUnreachable(reason=why))

    def _work(self, channel: Channel, before: threading.Thread | None) -> None:
        """The jobs of a session, to its end."""
        if before is not None:
            before.join()  # it may still be taking its staging place away
        failed = True
        try:
            while True:
                payload = channel.take()
                assert payload is not None
                self._do(channel, from_server(payload).head)
        except SourceUnreachable as error:
            failed = False
            log.info("session ended", reason=error.message)
        finally:
            if failed:  # what it was is on its way to the log; the server must not wait for us
                self._fail(channel, SourceError(reason="The agent failed unexpectedly. Its log on the host says how."))

    def _do(self, channel: Channel, job: object) -> None:
        log.info("job begins", job=type(job).__name__)
        try:
            policy = self._policy()
            restorer = Restorer(policy, self._home, self._clock)
            if isinstance(job, BackupJob):
                run_backup(channel, job, policy, self._clock)
            elif isinstance(job, RestoreJob):
                restorer.run(channel, job)
            elif isinstance(job, LookJob):
                places_of(job.roots, (), policy)
                channel.send(pack(Looked(0)))
            elif isinstance(job, RecoverJob):
                channel.send(pack(Recovered(restorer.recover(job.tasks))))
            else:
                raise SourceError(reason="The server sent what is no job.")
            log.info("job done", job=type(job).__name__)
        except SourceUnreachable:
            raise
        except StrongroomError as error:
            log.warning("job failed", job=type(job).__name__, error=str(error))
            known = error if isinstance(error, SourceError) else SourceError(reason=error.message, detail=error.detail)
            self._fail(channel, known)

    def _fail(self, channel: Channel, error: SourceError) -> None:
        try:
            channel.send(pack(failure_of(error)))
        except SourceUnreachable:
            return
