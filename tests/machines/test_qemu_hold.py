"""Guests are let go, whoever dies. A real QEMU; the agent's end of the line says what a test wants it to."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from nbd_world import wait_until
from qemu_world import Machine, read_point, tokens, wanted
from worker_world import worker

from strongroom.base.errors import SourceError
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.guest_agent import GuestAgent
from strongroom.sources.machines.qemu import QemuDriver
from strongroom.sources.open import driver_for

DRIVER = QemuDriver(partial(driver_for, "OS::Cinder::Volume"))
Reply = Callable[[str, dict[str, object]], bytes | None]


class Agent:
    """A guest's agent, one client at a time as behind a character device; it knows whether it is frozen."""

    def __init__(self, path: Path, reply: Reply | None = None) -> None:
        self.path = path
        self.heard: list[str] = []
        self.frozen = False
        self._reply = reply
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                try:
                    for line in lines:
                        answer = self._answer(json.loads(line.strip(b"\xff\n")))
                        if answer is not None:
                            client.sendall(answer)
                except OSError:
                    pass

    def _answer(self, message: dict[str, object]) -> bytes | None:
        command = str(message["execute"])
        self.heard.append(command)
        if self._reply is not None:
            return self._reply(command, message)
        return self.honest(command, message)

    def honest(self, command: str, message: dict[str, object]) -> bytes:
        arguments = message.get("arguments")
        if command == "guest-sync-delimited":
            assert isinstance(arguments, dict)
            return b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n"
        if command == "guest-fsfreeze-freeze":
            self.frozen = True
            return b'{"return": 2}\n'
        if command == "guest-fsfreeze-thaw":
            self.frozen = False
            return b'{"return": 2}\n'
        if command == "guest-fsfreeze-status":
            return b'{"return": "frozen"}\n' if self.frozen else b'{"return": "thawed"}\n'
        return b'{"error": {"class": "CommandNotFound", "desc": "disabled"}}\n'


@contextmanager
def agent_at(path: Path, reply: Reply | None = None) -> Iterator[Agent]:
    agent = Agent(path, reply)
    try:
        yield agent
    finally:
        agent.close()
        path.unlink()


@pytest.fixture
def machine(short_path: Path) -> Iterator[Machine]:
    with Machine.with_noise(short_path, "qcow2") as machine:
        yield machine


def ref(machine: Machine) -> SourceRef:
    path = machine.ref().path + f"&agent={machine.folder / 'agent'}".encode()
    return SourceRef(resource_id=machine.ref().resource_id, type="OS::Nova::Server", path=path)


def test_a_guest_is_frozen_for_the_moment_of_the_point(machine: Machine) -> None:
    """Frozen before, thawed after, and the point says what it reached."""
    with agent_at(machine.folder / "agent") as agent, DRIVER.open_machine(ref(machine), wanted()) as point:
        assert not agent.frozen
        assert point.consistency == "filesystem_consistent" and "no hooks" in str(point.consistency_reason)
        order = [name for name in agent.heard if name.startswith("guest-fsfreeze")]
        assert order == ["guest-fsfreeze-freeze", "guest-fsfreeze-status", "guest-fsfreeze-thaw"]
        assert read_point(point)["vd0"] == bytes(machine.content["vd0"])


@pytest.mark.parametrize("end", ["worker", "both"])
def test_a_guest_that_a_dead_worker_held_is_let_go(machine: Machine, end: str) -> None:
    """By the process beside it; when that is dead too, by the next look at the machine. Never is it left frozen."""
    with agent_at(machine.folder / "agent") as agent:
        with worker(ref(machine), "held") as at_work:
            assert agent.frozen and machine.status() == "paused"
            if end == "both":
                os.kill(at_work.helper, signal.SIGKILL)
            at_work.end()
            if end == "both":
                assert agent.frozen and machine.status() == "paused"
                DRIVER.recover(ref(machine), frozenset())
            wait_until(lambda: not agent.frozen and machine.status() == "running", "the guest is let go")
        with DRIVER.open_machine(ref(machine), wanted()) as point:
            assert read_point(point)["vd0"] == bytes(machine.content["vd0"]) and tokens(point)
    assert machine.ours() == []


def test_a_machine_without_agent_that_a_dead_worker_paused_runs_again(machine: Machine) -> None:
    """The process beside it hangs up only when QEMU has heard: what was not read by then, QEMU drops."""
    for _ in range(3):
        with worker(machine.ref(), "held") as at_work:
            assert machine.status() == "paused"
            at_work.end()
            wait_until(lambda: machine.status() == "running", "the machine runs again")


def test_a_silent_agent_keeps_nobody_from_the_monitor(machine: Machine) -> None:
    """The worker is dead, the process beside it goes on asking for the thaw, and the next backup begins."""
    silent = threading.Event()

    def reply(command: str, message: dict[str, object]) -> bytes | None:
        if silent.is_set():
            return None
        if command == "guest-fsfreeze-freeze":
            silent.set()
        return Agent.honest(Agent.__new__(Agent), command, message)

    with agent_at(machine.folder / "agent", reply) as agent:
        with worker(ref(machine), "held") as at_work:
            helper = at_work.helper
            at_work.end()
        try:
            wait_until(lambda: agent.heard.count("guest-fsfreeze-thaw") > 1, "it asks again and again")
            with DRIVER.open_machine(machine.ref(), wanted(application=False)) as point:
                assert read_point(point)["vd0"] == bytes(machine.content["vd0"])
        finally:
            os.kill(helper, signal.SIGKILL)
    assert machine.status() == "running" and machine.ours() == []


def refuses(command: str, message: dict[str, object]) -> bytes | None:
    if "sync" in command or "thaw" in command:
        return Agent.honest(Agent.__new__(Agent), command, message)
    return b'{"error": {"desc": "no"}}\n'


def floods(command: str, message: dict[str, object]) -> bytes | None:
    return b"x" * (1 << 20)


def lies(command: str, message: dict[str, object]) -> bytes | None:
    if "sync" in command:
        return Agent.honest(Agent.__new__(Agent), command, message)
    return b'{"return": {"return": [[[]]]}}\n'


@pytest.mark.parametrize("reply", [refuses, floods, lies])
def test_an_agent_that_does_not_do_it_makes_the_point_say_less(machine: Machine, reply: Reply) -> None:
    """The backup goes on, crash-consistent, with the reason; and thawing was asked for whenever freezing was."""
    with agent_at(machine.folder / "agent", reply) as agent, DRIVER.open_machine(ref(machine), wanted()) as point:
        assert point.consistency == "crash_consistent" and point.consistency_reason
        assert read_point(point)["vd0"] == bytes(machine.content["vd0"])
        assert ("guest-fsfreeze-thaw" in agent.heard) == ("guest-fsfreeze-freeze" in agent.heard)
    assert machine.status() == "running"


def test_no_agent_is_no_reason_to_fail(machine: Machine) -> None:
    """Nobody listens; and without being asked nothing is frozen and no reason is given."""
    with DRIVER.open_machine(ref(machine), wanted()) as point:
        assert point.consistency == "crash_consistent" and "cannot be reached" in str(point.consistency_reason)
    with agent_at(machine.folder / "agent") as agent:
        with DRIVER.open_machine(ref(machine), wanted(application=False)) as point:
            assert point.consistency == "crash_consistent" and point.consistency_reason is None
        assert agent.heard == []


@pytest.mark.parametrize(
    "line", [b"\n", b"{", b"[1]\n", b"\xff\xff\n", b"null\n", b"{" * 9999 + b"\n", b"\0" * 300_000]
)
def test_bytes_of_an_agent_that_mean_nothing(short_path: Path, line: bytes) -> None:
    """One error, in time."""
    with agent_at(short_path / "agent", lambda command, message: line), pytest.raises(SourceError):
        GuestAgent.connect(str(short_path / "agent"), within_s=0.3)
