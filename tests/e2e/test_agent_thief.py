"""What a stolen key and certificate of one host can do: speak for that host, and nothing else."""

import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from agent_world import Agent, World
from every_operation import every_operation
from harness import make_tree, wait_until

from strongroom.agent.identity import client_context, connect, load_identity
from strongroom.api.operation import PUBLIC
from strongroom.base.errors import SourceUnreachable
from strongroom.sources.hosts.messages import PROTOCOL, Hello, Refused, Welcome, greet, greeting
from strongroom.sources.hosts.wire import FRAME_BYTES_MAX, Kind, Wire

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an agent obeys a file of root's only")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.end()


def stolen(agent: Agent, base: Path) -> Path:
    """A copy of the host's own files."""
    copy = base / "stolen"
    shutil.copytree(agent.home, copy, symlinks=True)
    return copy


def dial(home: Path) -> Wire:
    identity = load_identity(home)
    return connect(identity.server, client_context(identity))


def hello(wire: Wire, session: bytes = b"") -> Welcome | Refused:
    wire.send(Kind.HELLO, greet(Hello(PROTOCOL, "0.1.0", "thief", session, 0, True)))
    answer = wire.receive(timeout_s=20)
    return greeting(answer.payload, Welcome if answer.kind == Kind.WELCOME else Refused)


def test_a_token_counts_once_and_only_for_the_server_that_made_it(world: World, tmp_path: Path) -> None:
    host = world.registered("web", tmp_path)
    made = world.token(host)
    first, second = Agent(tmp_path / "first"), Agent(tmp_path / "second")
    for agent in (first, second):
        agent.allow(tmp_path)
    first.enroll(made["server"], made["token"])
    again = second.enroll(made["server"], made["token"], check=False)
    assert again.returncode == 1
    assert "was used before" in again.stderr
    assert not (second.home / "current").exists()
    spoilt = ("A" if made["token"][0] != "A" else "B") + made["token"][1:]
    wrong = second.enroll(made["server"], spoilt, check=False)
    assert "is not the server that made this token" in wrong.stderr
    unknown = second.enroll(made["server"], made["token"][:-4] + "AAAA", check=False)
    assert "never was one" in unknown.stderr


def test_every_frame_that_a_thief_may_send_gives_nothing(world: World, tmp_path: Path) -> None:
    """Call by call: each kind of frame, before and after the greeting, gives no byte of anybody's data."""
    make_tree(tmp_path / "one", seed=1, files=4)
    mine, other = world.registered("mine", tmp_path / "one"), world.registered("other", tmp_path / "one")
    agent = world.agent("agent", mine, tmp_path / "one")
    world.agent("agent-other", other, tmp_path / "one")
    world.backup(world.vault("hosts", mine, other), mine)
    agent.stop()
    home = stolen(agent, tmp_path)
    payload = greet(Hello(PROTOCOL, "0.1.0", "thief", b"x" * 16, 0, True))
    for kind in range(32):
        for greeted in (False, True):
            if kind in (Kind.HELLO, Kind.RENEW) and not (greeted and kind == Kind.HELLO):
                continue
            wire = dial(home)
            if greeted:
                assert isinstance(hello(wire), Welcome)
            with pytest.raises(SourceUnreachable):
                wire.send(kind, payload, seq=1)
                while True:
                    assert wire.receive(timeout_s=3).kind == Kind.REFUSED, (kind, greeted)
            wire.close()
    # Another's session, and another's name, cannot even be said: the certificate alone says who it is.
    wire = dial(home)
    assert hello(wire, session=b"y" * 16).session == b""
    wire.close()
    # The other host's agent was not disturbed.
    assert world.client.ok("GET", f"agents/{other}")["agent"]["status"] == "normal"


def test_a_stolen_certificate_opens_nothing_of_the_api(world: World, tmp_path: Path) -> None:
    """Every operation of the table, asked with the certificate alone, wants somebody to log in."""
    host = world.registered("web", tmp_path)
    agent = world.agent("agent", host, tmp_path)
    (certificate,) = [path.read_text() for path in agent.home.glob("identity-*/agent.crt")]
    project = world.client.project
    with httpx.Client(
        base_url=world.server.endpoint, headers={"X-Client-Cert": certificate.replace("\n", "")}
    ) as client:
        for operation in every_operation():
            path = operation.path.replace("{project_id}", project).replace("{agent_id}", host)
            answer = client.request(operation.method, path, json={})
            if operation.action != PUBLIC:
                assert answer.status_code in (400, 401, 403, 404), (operation.name, answer.status_code)


def test_a_renewed_certificate_ends_the_one_before(world: World, tmp_path: Path) -> None:
    """A copy and its original cannot both go on: after an enrolment the old one is refused with a sentence."""
    host = world.registered("web", tmp_path)
    agent = world.agent("agent", host, tmp_path)
    home = stolen(agent, tmp_path)
    agent.stop()
    made = world.token(host)
    again = Agent(tmp_path / "again")
    again.allow(tmp_path)
    again.enroll(made["server"], made["token"])
    wire = dial(home)
    answer = hello(wire)
    assert isinstance(answer, Refused)
    assert "does not count any more" in answer.reason
    wire.close()
    wire = dial(again.home)
    assert isinstance(hello(wire), Welcome)
    # Unregistered: cut off, and refused from then on.
    assert world.client.call("DELETE", f"agents/{host}")[0] == 200
    wire.close()
    wire = dial(again.home)
    answer = hello(wire)
    assert isinstance(answer, Refused)
    assert "not registered" in answer.reason
    wire.close()


def test_a_stranger_is_read_little_of_and_another_authority_is_refused(world: World, tmp_path: Path) -> None:
    """No certificate: only enrolment. A foreign one: TLS itself refuses. A long first frame: the end."""
    from strongroom.base import certificates
    from strongroom.base.clock import SystemClock

    now = SystemClock().now()
    host, port = world.address.split(":")
    key = certificates.new_key()
    authority = certificates.make_authority(key, now)
    own = certificates.new_key()
    leaf, _ = certificates.make_agent(authority, key, certificates.new_request(own), "p" * 32, "a", now)
    pem = tmp_path / "foreign.pem"
    pem.write_text(ssl.DER_cert_to_PEM_cert(leaf) + certificates.dump_key(own).decode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    foreign.check_hostname, foreign.verify_mode = False, ssl.CERT_NONE
    foreign.load_cert_chain(pem)
    with pytest.raises((ssl.SSLError, SourceUnreachable, OSError)):
        wire = Wire(foreign.wrap_socket(socket.create_connection((host, int(port)))))
        try:
            wire.receive(timeout_s=10)
        finally:
            wire.close()
    for kind, payload in ((Kind.HELLO, b""), (Kind.ENROLL, b"\xc1" * 40), (Kind.ENROLL, bytes(FRAME_BYTES_MAX))):
        wire = Wire(context.wrap_socket(socket.create_connection((host, int(port)))))
        assert wire.receive(timeout_s=10).kind == Kind.AUTHORITY
        with pytest.raises(SourceUnreachable):
            wire.send(kind, payload)
            while True:
                assert wire.receive(timeout_s=10).kind == Kind.REFUSED
        wire.close()
    agent_id = world.registered("web", tmp_path)
    agent = world.agent("agent", agent_id, tmp_path)
    wait_until(lambda: "connected" in agent.log(), "an honest one is served all the same")
