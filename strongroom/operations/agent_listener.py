"""The port that agents dial: who may come in, and which station their connection belongs to.

    accept    a thread; each connection gets one of its own, so that a slow handshake holds up nobody
    no certificate   it may show a one-time token, and gets a certificate for it; then it has to come again
    certificate      TLS has checked that it is of our authority and in its time; the row says whether it counts
    look      every LOOK_S: who is connected is active; whose certificate ended, or who was uninstalled, is cut off

Nothing but a greeting of at most GREETING_BYTES_MAX is read of a stranger. A connection belongs to one resource, and
says nothing about any other: there is no message that names one.
"""

import contextlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from strongroom.base import certificates
from strongroom.base.clock import Clock
from strongroom.base.errors import ConfigError, Conflict, Forbidden, InvalidRequest, SourceUnreachable, StrongroomError
from strongroom.control import agent_identity
from strongroom.control.agent_identity import Authority, Known
from strongroom.operations.job import Tools
from strongroom.sources.hosts.link import Station
from strongroom.sources.hosts.messages import PROTOCOL, Enroll, Hello, Issued, Refused, Welcome, greet, greeting
from strongroom.sources.hosts.wire import GREETING_BYTES_MAX, Frame, Kind, Wire, keep_alive

log = structlog.get_logger("agents")

CONNECTIONS_MAX = 2000  # a thread each
STRANGERS_MAX = 64  # of them that have not greeted yet
HANDSHAKE_S_MAX = 10.0
LOOK_S = 20.0
CONNECTION_S_MAX = 86_400.0  # then an idle agent dials again, and renews its certificate if it should
BACKLOG = 128
_VERSION = re.compile(r"(\d{1,3}\.){2}\d{1,3}")


@dataclass(kw_only=True)
class _Connected:
    known: Known
    wire: Wire
    since_s: float


class AgentListener:
    """Start it once, stop it once. group: whose workers get the tasks of agents that dial here."""

    def __init__(self, *, address: tuple[str, int], group: str, tools: Tools, authority: Authority) -> None:
        self._address = address
        self._group = group
        self._database = tools.database
        self._portal = tools.portal
        self._stations = tools.stations
        self._clock = tools.clock
        self._authority = authority
        self._context: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._wires: set[Wire] = set()
        self._connected: dict[str, _Connected] = {}
        self._strangers = threading.BoundedSemaphore(STRANGERS_MAX)
        self._stopping = threading.Event()

    def start(self, folder: Path) -> None:
        """folder: for the server's own certificate. Raises ConfigError when the address cannot be had."""
        self._context = _server_context(self._authority, folder, self._clock)
        host, port = self._address
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as err:
            raise ConfigError(
                reason=f"Cannot listen for agents on {host}:{port}: {err.strerror}. Choose another agent_listen."
            ) from err
        self._listener = listener
        threading.Thread(target=self._accept, name="agents", daemon=True).start()
        threading.Thread(target=self._look, name="agents-look", daemon=True).start()

    def stop(self) -> None:
        """Take no more, and close every connection. Agents dial again when a server is there."""
        self._stopping.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            wires = list(self._wires)
        for wire in wires:
            wire.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._stopping.is_set():
            try:
                plain, _ = self._listener.accept()
            except OSError as err:
                if not self._stopping.wait(0.1):
                    log.warning("cannot accept", error=str(err))
                continue
            if len(self._wires) >= CONNECTIONS_MAX or not self._strangers.acquire(blocking=False):
                plain.close()
                continue
            threading.Thread(target=self._serve, args=(plain,), name="agent", daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        """One connection, to its end."""
        greeted = threading.Event()

        def known() -> None:
            if not greeted.is_set():
                greeted.set()
                self._strangers.release()

        try:
            wire = self._shake(plain)
            if wire is None:
                return
            try:
                certificate = wire.peer_certificate()
                if certificate is None:
                    self._enroll(wire)
                else:
                    self._run(wire, certificate, known)
            finally:
                wire.close()
                with self._lock:
                    self._wires.discard(wire)
        except SourceUnreachable as error:
            log.debug("agent connection ended", error=str(error))
        finally:
            known()

    def _shake(self, plain: socket.socket) -> Wire | None:
        assert self._context is not None
        try:
            keep_alive(plain)
            plain.settimeout(HANDSHAKE_S_MAX)
            wire = Wire(self._context.wrap_socket(plain, server_side=True))
        except (OSError, ValueError) as err:
            log.info("agent handshake failed", error=str(err))
            plain.close()
            return None
        with self._lock:
            self._wires.add(wire)
        return wire

    # --- those without a certificate ---

    def _enroll(self, wire: Wire) -> None:
        authority = self._authority
        wire.send(Kind.AUTHORITY, authority.certificate)
        frame = wire.receive(GREETING_BYTES_MAX, HANDSHAKE_S_MAX)
        if frame.kind != Kind.ENROLL:
            return _refuse(wire, "A host without a certificate may only enroll.")
        asked: Enroll = greeting(frame.payload, Enroll)
        try:
            certificate, agent_id = self._call(
                agent_identity.enroll(self._database, authority, asked.token, asked.request, self._clock)
            )
        except (Forbidden, InvalidRequest, Conflict) as error:
            log.warning("enrolment refused", host=asked.host_name[:255], address=wire.peer_address, error=str(error))
            return _refuse(wire, error.message)
        log.info("host enrolled", agent=agent_id, host=asked.host_name[:255], address=wire.peer_address)
        wire.send(Kind.ISSUED, greet(Issued(certificate, agent_id)))
        return None

    # --- those with one ---

    def _run(self, wire: Wire, certificate: bytes, greeted: Callable[[], None]) -> None:
        hello: Hello = greeting(self._first(wire), Hello)
        if hello.protocol != PROTOCOL:
            return _refuse(
                wire, f"The agent speaks protocol {hello.protocol}, this server {PROTOCOL}. Install the same version."
            )
        try:
            project_id, agent_id, serial = certificates.agent_of(certificate)
            version = hello.version if _VERSION.fullmatch(hello.version) else None
            known = self._call(
                agent_identity.admit(self._database, project_id, agent_id, serial, version, self._group, self._clock)
            )
        except ValueError:
            return _refuse(wire, "The certificate names no agent.")
        except Forbidden as error:
            log.warning("agent refused", address=wire.peer_address, error=str(error))
            return _refuse(wire, error.message)
        greeted()
        station = self._stations.at(agent_id, known.name)
        bound = log.bind(agent=agent_id, host=known.name)

        def welcome(session: bytes, received: int) -> None:
            wire.send(Kind.WELCOME, greet(Welcome(session, received, known.renew)))

        with self._lock:
            self._connected[agent_id] = _Connected(known=known, wire=wire, since_s=self._clock.monotonic_s())
        try:
            station.arrive(wire, hello, welcome)
            bound.info("agent connected", address=wire.peer_address, version=hello.version)
            while True:
                self._hear(wire, station, known, wire.receive())
        finally:
            station.leave(wire)
            with self._lock:
                mine = self._connected.get(agent_id)
                if mine is not None and mine.wire is wire:
                    del self._connected[agent_id]
            bound.info("agent disconnected")

    def _first(self, wire: Wire) -> bytes:
        frame = wire.receive(GREETING_BYTES_MAX, HANDSHAKE_S_MAX)
        if frame.kind != Kind.HELLO:
            raise SourceUnreachable(reason="The agent did not greet.")
        return frame.payload

    def _hear(self, wire: Wire, station: Station, known: Known, frame: Frame) -> None:
        if frame.kind in (Kind.DATA, Kind.ACK, Kind.CLOSED):
            station.feed(wire, frame)
        elif frame.kind == Kind.RENEW and len(frame.payload) <= GREETING_BYTES_MAX:
            try:
                made = self._call(
                    agent_identity.renew(self._database, self._authority, known, frame.payload, self._clock)
                )
            except (Forbidden, InvalidRequest) as error:
                return _refuse(wire, error.message)
            wire.send(Kind.ISSUED, greet(Issued(made, known.agent_id)))
        else:
            raise SourceUnreachable(reason="The agent sent a frame of no known kind.", detail=str(frame.kind))
        return None

    # --- who may stay ---

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_S):
            with self._lock:
                connected = dict(self._connected)
            try:
                admitted = self._call(
                    agent_identity.still_admitted(
                        self._database, {agent_id: one.known for agent_id, one in connected.items()}
                    )
                )
            except StrongroomError as error:
                log.warning("cannot look after the agents", error=str(error))
                continue
            now_s = self._clock.monotonic_s()
            for agent_id, one in connected.items():
                if agent_id not in admitted:
                    log.warning("agent is cut off: it is not admitted any more", agent=agent_id)
                    one.wire.close()
                elif now_s - one.since_s > CONNECTION_S_MAX and not self._stations.at(agent_id).busy:
                    one.wire.close()

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._portal.call(coroutine)


def _refuse(wire: Wire, reason: str) -> None:
    wire.send(Kind.REFUSED, greet(Refused(reason)))


def _server_context(authority: Authority, folder: Path, clock: Clock) -> ssl.SSLContext:
    """TLS 1.3; who shows a certificate must show one of ours. The key is new with every start."""
    key = certificates.new_key()
    made = certificates.make_server(authority.certificate, authority.key, key, clock.now())
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / "listener.pem"  # OpenSSL reads files only
    file.unlink(missing_ok=True)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(ssl.DER_cert_to_PEM_cert(made).encode() + certificates.dump_key(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(file)
    context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(authority.certificate))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # no session resumption: a certificate is looked at with every connection
    return context
