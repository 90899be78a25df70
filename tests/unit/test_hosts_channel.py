"""The channel between server and agent: every message once and in its order, whatever is cut."""

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest

from strongroom.base import certificates
from strongroom.base.clock import SystemClock
from strongroom.base.errors import SourceUnreachable
from strongroom.sources.hosts.channel import WINDOW_BYTES, Channel
from strongroom.sources.hosts.link import Station
from strongroom.sources.hosts.messages import PROTOCOL, Hello
from strongroom.sources.hosts.wire import Frame, Kind, Wire


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server and of an agent, with an authority of their own."""
    base, now = tmp_path_factory.mktemp("tls"), SystemClock().now()
    key, own, hosts = (certificates.new_key() for _ in range(3))
    authority = certificates.make_authority(key, now)
    made = certificates.make_server(authority, key, own, now)
    leaf, _ = certificates.make_agent(authority, key, certificates.new_request(hosts), "p" * 32, "agent", now)
    server, agent = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, certificate, its_key, name in ((server, made, own, "server"), (agent, leaf, hosts, "agent")):
        file = base / f"{name}.pem"
        file.write_text(ssl.DER_cert_to_PEM_cert(certificate) + certificates.dump_key(its_key).decode())
        context.load_cert_chain(file)
        context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(authority))
    server.verify_mode = ssl.CERT_REQUIRED
    return server, agent


def connection(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> tuple[Wire, Wire]:
    near, far = socket.socketpair()
    made: list[Wire] = []
    shaking = threading.Thread(target=lambda: made.append(Wire(contexts[0].wrap_socket(near, server_side=True))))
    shaking.start()
    agent = Wire(contexts[1].wrap_socket(far, server_hostname=certificates.SERVER_NAME))
    shaking.join()
    return made[0], agent


def carry(wire: Wire, channel: Channel, frames_max: int | None) -> None:
    """Hand frames to a channel until the connection ends, or was cut after so many."""
    frames = 0
    try:
        while frames_max is None or frames < frames_max:
            channel.feed(wire.receive())
            frames += 1
    except SourceUnreachable:
        pass
    wire.close()
    channel.detach(wire)


@pytest.mark.parametrize("frames_max", [1, 2, 3, 7])
def test_messages_arrive_once_and_in_order_over_connections_that_are_cut(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], frames_max: int
) -> None:
    """Both directions at once; each connection carries only so many frames before it is cut."""
    ends = Channel(b"s"), Channel(b"s")
    messages = [bytes([i]) * (1 + i * 137 % 5000) for i in range(60)]
    got: tuple[list[bytes], list[bytes]] = ([], [])

    def take(channel: Channel, into: list[bytes]) -> None:
        while len(into) < len(messages):
            payload = channel.take(20)
            assert payload is not None
            into.append(payload)

    workers = [threading.Thread(target=take, args=pair) for pair in zip(ends, got, strict=True)]
    workers += [threading.Thread(target=lambda end=end: [end.send(each) for each in messages]) for end in ends]
    for worker in workers:
        worker.start()
    connections = 0
    while any(worker.is_alive() for worker in workers) and connections < 500:
        connections += 1
        wires = connection(contexts)
        received = [end.received for end in ends]
        carriers = [
            threading.Thread(target=carry, args=(wire, end, frames_max)) for wire, end in zip(wires, ends, strict=True)
        ]
        for carrier in carriers:
            carrier.start()
        for end, wire, has in zip(ends, wires, reversed(received), strict=True):
            end.attach(wire, has)
        done = threading.Timer(5.0, lambda wires=wires: [wire.close() for wire in wires])
        done.start()
        for carrier in carriers:
            carrier.join()
        done.cancel()
    for worker in workers:
        worker.join(20)
    assert got == (messages, messages)
    assert connections >= 60 // frames_max


def test_a_connection_that_is_closed_under_its_reader_gives_it_nothing_but_what_was_sent(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """Between the end of the connection and that of its socket a reader may look once more: never at ciphertext.

    `SSLSocket.shutdown` ends TLS on the socket, and what had arrived was then read as if it had been sent so: a piece
    of a file, completed with ciphertext.
    """
    near, far = connection(contexts)
    payload = bytes(1_500_000)  # more than sockets hold

    def send() -> None:
        with pytest.raises(SourceUnreachable):
            while True:
                far.send(Kind.DATA, payload)

    sending = threading.Thread(target=send)
    with near._lock:  # as the reader holds it while it looks; who closes has to wait for it
        sending.start()
        closing = threading.Thread(target=near.close)
        closing.start()
        sending.join(20)
        assert not sending.is_alive()
        seen = bytearray()
        with contextlib.suppress(OSError):
            while got := near._sock.recv(65_536):
                seen += got
        with pytest.raises(OSError):
            near._sock.send(b"in the clear")
    closing.join(20)
    assert not any(seen[25:]), "ciphertext was taken for what was sent"
    far.close()


def test_a_frame_that_arrives_spoilt_is_given_to_nobody() -> None:
    """Any byte of it, its head too: the connection ends, and the message comes again over the next."""
    near, far = socket.socketpair()
    Wire(near).send(Kind.DATA, b"a piece of a file", seq=1, ack=0)
    frame = far.recv(4096)
    for at in range(len(frame)):
        sender, reader = socket.socketpair()
        sender.sendall(frame[:at] + bytes([frame[at] ^ 0x10]) + frame[at + 1 :])
        sender.shutdown(socket.SHUT_WR)
        wire = Wire(reader)
        with pytest.raises(SourceUnreachable):
            wire.receive()
        wire.close()
        sender.close()
    near.close()
    far.close()


def test_who_does_not_take_stops_who_sends() -> None:
    """The window is the back-pressure; it opens when the other side has taken."""
    sender = Channel(b"s")
    big = bytes(WINDOW_BYTES // 4)
    for _ in range(3):
        sender.send(big)
    stuck = threading.Thread(target=lambda: [sender.send(big) for _ in range(2)])
    stuck.start()
    stuck.join(0.3)
    assert stuck.is_alive()
    sender.feed(Frame(Kind.ACK, 0, 3, b""))
    stuck.join(20)
    assert not stuck.is_alive()


def test_an_agent_at_work_is_asked_again_later(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """An attempt that begins while an earlier one still holds the host's session is no failure of the backup."""
    near, far = connection(contexts)
    station = Station("web", connect_s_max=0.1)
    station.arrive(near, Hello(PROTOCOL, "1", "web", b"", 0, False), lambda session, received: None)
    held = station.open(lambda: None)
    with pytest.raises(SourceUnreachable, match="at work for another task") as busy:
        station.open(lambda: None)
    assert busy.value.retryable
    near.close()
    held.close()
    far.close()


def test_a_session_that_ends_while_its_agent_greets_anew_is_closed_there_too(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """Else nobody tells the agent, and the host is "at work for another task" until its next cut."""
    first, gone = connection(contexts)
    station = Station("web", connect_s_max=5)
    station.arrive(first, Hello(PROTOCOL, "1", "web", b"", 0, False), lambda session, received: None)
    held = station.open(lambda: None)
    name = held.channel.session
    near, far = connection(contexts)
    station.arrive(near, Hello(PROTOCOL, "1", "web", name, 0, False), lambda session, received: held.close())
    told = far.receive(timeout_s=20)
    assert told.kind == Kind.CLOSE
    station.feed(near, Frame(Kind.CLOSED, 0, 0, name))
    station.open(lambda: None)
    for wire in (gone, near, far):
        wire.close()


def test_what_an_earlier_connection_still_had_reaches_no_session_of_a_later_one(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """Frames name no session: a message of an agent that was killed must not begin the next agent's session."""
    old, gone = connection(contexts)
    new, far = connection(contexts)
    station = Station("web")
    for wire in (old, new):
        station.arrive(wire, Hello(PROTOCOL, "1", "web", b"", 0, False), lambda session, received: None)
    channel = station.open(lambda: None).channel
    station.feed(old, Frame(Kind.DATA, 1, 0, b"of another life"))
    assert channel.take(0) is None
    station.feed(new, Frame(Kind.DATA, 1, 0, b"of this one"))
    assert channel.take(0) == b"of this one"
    for wire in (gone, new, far):
        wire.close()


def test_a_policy_that_others_could_change_is_refused(tmp_path: Path) -> None:
    """Writable by others, of another user, behind a link, or missing: the agent does nothing."""
    import os

    from strongroom.agent.policy import load_policy
    from strongroom.base.errors import ConfigError, SourceDenied, TargetDenied

    if os.geteuid() != 0:
        pytest.skip("only root can make files of root")
    file = tmp_path / "agent.toml"
    file.write_text('paths = ["/srv"]\n')
    file.chmod(0o644)
    policy = load_policy(file)
    policy.require_readable(b"/srv/data")
    for path in (b"/srvother", b"/", b"/etc"):
        with pytest.raises(SourceDenied):
            policy.require_readable(path)
    with pytest.raises(TargetDenied, match="restore = true"):
        policy.require_writable(b"/srv/data")
    with pytest.raises(TargetDenied, match="agent itself"):
        policy.require_foreign(os.fsencode(file))
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    for spoil in (
        lambda: file.chmod(0o666),
        lambda: (file.chmod(0o644), os.chown(file, 1234, 0)),
        lambda: (os.chown(file, 0, 0), tmp_path.chmod(0o777)),
    ):
        spoil()
        with pytest.raises(ConfigError):
            load_policy(file)
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="symbolic link"):
        load_policy(link)
    for text in ('paths = "/srv"', 'paths = ["srv"]', "restore = 1", "unknown = 1", '[hooks]\nbefore-backup = ["ls"]'):
        file.write_text(text)
        with pytest.raises(ConfigError):
            load_policy(file)
