"""A host that has no agent: the agent is sent to it over ssh for one job, runs there, and is gone.

    folder/id            private key, mode 0600          folder/known_hosts   keys of hosts, as OpenSSH writes them

Nothing is believed at first sight: a host whose key is not in known_hosts is refused. ssh is told to ask nobody, to
forward nothing and to read no other file. A connection that ends takes its session along, and the task runs again: what
was stored by then does not travel again.
"""

import contextlib
import json
import os
import re
import select
import shlex
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from strongroom.base.errors import SourceDenied, SourceError, SourceUnreachable
from strongroom.base.ssh_address import SshAddress
from strongroom.sources.hosts import bundle
from strongroom.sources.hosts.channel import Channel
from strongroom.sources.hosts.link import Session, Station
from strongroom.sources.hosts.messages import PROTOCOL, Hello, Welcome, greet, greeting
from strongroom.sources.hosts.wire import GREETING_BYTES_MAX, Kind, Wire

KEY, KNOWN_HOSTS = "id", "known_hosts"
CONNECT_S_MAX: Final = 20
ANSWER_S_MAX = 60.0  # for the login, and for the host's Python to begin
SEND_S_MAX = 300.0  # for the agent to be sent: 10 MB
GREETING_S_MAX = 60.0  # for the agent to be loaded
END_S_MAX = 5.0  # for ssh to end when its connection has
NOISE_BYTES_MAX = 64 * 1024  # of a shell's start files, before our line
LOOK_S = 0.5  # how soon a cancel is seen
LINES_MAX, LINE_CHARS_MAX = 8, 300  # of what ssh and the host said, for a sentence
_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "GlobalKnownHostsFile": "/dev/null",
    "UpdateHostKeys": "no",
    "VerifyHostKeyDNS": "no",
    "IdentitiesOnly": "yes",
    "IdentityAgent": "none",
    "PreferredAuthentications": "publickey",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ConnectTimeout": str(CONNECT_S_MAX),
    "ConnectionAttempts": "1",
    "ServerAliveInterval": "20",
    "ServerAliveCountMax": "4",
    "Compression": "no",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}


class SshStation(Station):
    """One host, for one job: it dials when a session is opened, and hangs up with it."""

    def __init__(self, address: SshAddress, folder: Path, name: str = "") -> None:
        super().__init__(name or address.host)
        self._address = address
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._said: deque[str] = deque(maxlen=LINES_MAX)
        self._ear: threading.Thread | None = None

    @property
    def connected(self) -> bool:
        """It is called when somebody asks."""
        return True

    def open(self, check: Callable[[], None]) -> Session:
        """Begin a session. Raises SourceError: SourceUnreachable when another attempt may reach the host."""
        self._dial(check)
        try:
            return super().open(check)
        except BaseException:
            self._hang_up()
            raise

    def end(self, channel: Channel) -> None:
        super().end(channel)
        self._hang_up()

    def _dial(self, check: Callable[[], None]) -> None:
        near, far = socket.socketpair()
        try:
            self._start(far)
        except BaseException:
            near.close()
            raise
        finally:
            far.close()
        try:
            self._require_fit(self._facts(near, check))
            _send(near, bundle.bundle(), check)
            wire = Wire(near)
            self._greet(wire)
        except (OSError, SourceUnreachable) as err:
            near.close()
            raise self._failure(err) from err
        except BaseException:
            near.close()
            self._hang_up()
            raise
        threading.Thread(target=self._listen, args=(wire,), name="ssh", daemon=True).start()

    def _start(self, pipe: socket.socket) -> None:
        self._said.clear()
        try:
            self._process = subprocess.Popen(
                arguments(self._address, self._folder),
                stdin=pipe.fileno(),
                stdout=pipe.fileno(),
                stderr=subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                start_new_session=True,
            )
        except FileNotFoundError as err:
            raise SourceError(reason="There is no ssh where this worker runs. Install openssh-client.") from err
        self._ear = threading.Thread(target=self._overhear, args=(self._process,), daemon=True)
        self._ear.start()

    def _overhear(self, process: "subprocess.Popen[bytes]") -> None:
        """What ssh and the agent say on stderr; the last lines are kept."""
        assert process.stderr is not None
        with process.stderr as stream, contextlib.suppress(OSError, ValueError):
            while line := stream.readline(4096):
                text = re.sub(r"[^\x20-\x7e]", "", line.decode("ascii", "replace"))[:LINE_CHARS_MAX].strip()
                if text:
                    self._said.append(text)

    def _facts(self, near: socket.socket, check: Callable[[], None]) -> dict[str, Any]:
        """What the host's Python says of itself."""
        deadline_s = time.monotonic() + ANSWER_S_MAX
        said = b""
        while len(said) < NOISE_BYTES_MAX:
            _wait(near, select.POLLIN, deadline_s, check)
            got = near.recv(4096)  # nothing follows our line before we answer it
            if not got:
                raise SourceUnreachable(reason="The connection ended.")
            said += got
            _, mark, line = said.rpartition(bundle.MARK)
            if mark and line.endswith(b"\n"):
                try:
                    return dict(json.loads(line))
                except ValueError:
                    break
        raise SourceError(reason=f"Host {self.name} says something else than Python does. See its shell's start files.")

    def _require_fit(self, facts: dict[str, Any]) -> None:
        wanted = bundle.needs()
        if all(facts.get(name) == value for name, value in wanted.items()):
            return
        raise SourceError(
            reason=f"The agent that is sent needs {_described(wanted)}, as this server has them, and host {self.name} "
            f"has {_described(facts)}. Install that Python there (it may stand beside another one), or the agent."
        )

    def _greet(self, wire: Wire) -> None:
        frame = wire.receive(GREETING_BYTES_MAX, GREETING_S_MAX)
        if frame.kind != Kind.HELLO:
            raise SourceUnreachable(reason="The agent did not greet.")
        hello: Hello = greeting(frame.payload, Hello)
        if hello.protocol != PROTOCOL:
            raise SourceUnreachable(reason="The agent is of another version than this server.")

        def welcome(session: bytes, received: int) -> None:
            wire.send(Kind.WELCOME, greet(Welcome(session, received, renew=False)))

        self.arrive(wire, hello, welcome)

    def _listen(self, wire: Wire) -> None:
        try:
            while True:
                frame = wire.receive()
                if frame.kind not in (Kind.DATA, Kind.ACK, Kind.CLOSED):
                    raise SourceUnreachable(reason="The agent sent a frame of no known kind.")
                self.feed(wire, frame)
        except SourceUnreachable as err:
            channel = self._channel
            self.leave(wire)
            if channel is not None:
                channel.end(self._failure(err))
        finally:
            wire.close()

    def _failure(self, err: Exception) -> SourceError:
        """Why a connection ended, as ssh tells it."""
        status = self._hang_up()
        if self._ear is not None:
            self._ear.join(END_S_MAX)  # its last words may still be on their way
        said = list(self._said)
        last = next((line for line in reversed(said) if line.startswith("strongroom: ")), None)
        text = "\n".join(said)
        host = f"{self._address.user}@{self._address.host}"
        if "Host key verification failed" in text or "HOST IDENTIFICATION HAS CHANGED" in text:
            made: SourceError = SourceDenied(
                reason=f"The key that host {self._address.host} shows is not the one in {KNOWN_HOSTS} of this server. "
                "Find out why, and write the right one there (docs/AGENT.md)."
            )
        elif "Permission denied" in text and status == 255:
            made = SourceDenied(reason=f"{host} does not accept this server's key. Add it to authorized_keys there.")
        elif last is not None:
            made = SourceError(reason=last.removeprefix("strongroom: ").capitalize() + ".")
        elif status == 127:
            made = SourceError(
                reason=f"Host {self.name} has no python3 that a login by ssh finds. The agent needs "
                f"{_described(bundle.needs())}, as this server has them."
            )
        else:
            why = f": {said[-1]}" if said else ""
            made = SourceUnreachable(reason=f"The connection by ssh to {host} ended{why}.")
        made.detail = f"{err!r}; ssh ended with {status}; {text}"[:2000]
        return made

    def _hang_up(self) -> int | None:
        """Its connection closes, and ssh ends by itself or is ended. Returns its exit status."""
        self.drop()
        process = self._process
        if process is None:
            return None
        try:
            return process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def arguments(address: SshAddress, folder: Path) -> list[str]:
    """The command line of ssh. Raises SourceError when key or known_hosts are missing, or others may read the key."""
    key, known = folder / KEY, folder / KNOWN_HOSTS
    try:
        mode = key.stat().st_mode
    except OSError as err:
        raise SourceError(
            reason=f"There is no key to log in with. Make one: ssh-keygen -t ed25519 -N '' -f {shlex.quote(str(key))}"
        ) from err
    if mode & 0o077:
        raise SourceError(reason=f"Others may read {key}. Run: chmod 600 {key}")
    if not known.exists():
        raise SourceError(
            reason=f"No key of a host is known. Write it to {known}, after comparing its fingerprint with what the "
            "host itself shows (docs/AGENT.md)."
        )
    options = {**_OPTIONS, "UserKnownHostsFile": f'"{known}"', "IdentityFile": f'"{key}"'}
    return [
        *("ssh", "-T", "-F", "none"),
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
        *("-p", str(address.port), "-l", address.user, "--", address.host, bundle.command()),
    ]


def _send(near: socket.socket, data: bytes, check: Callable[[], None]) -> None:
    """The agent, with its length before it."""
    deadline_s = time.monotonic() + SEND_S_MAX
    near.setblocking(False)
    view = memoryview(len(data).to_bytes(8, "big") + data)
    while view:
        _wait(near, select.POLLOUT, deadline_s, check)
        with contextlib.suppress(BlockingIOError):
            view = view[near.send(view) :]


def _wait(near: socket.socket, event: int, deadline_s: float, check: Callable[[], None]) -> None:
    poller = select.poll()
    poller.register(near, event)
    while not poller.poll(LOOK_S * 1000):
        check()
        if time.monotonic() > deadline_s:
            raise SourceUnreachable(reason="The host did not answer in time.")


def _described(facts: dict[str, Any]) -> str:
    version = ".".join(str(part) for part in facts.get("python", ()))
    return f"{facts.get('kind')} {version} on {facts.get('machine')} with {facts.get('libc') or 'another C library'}"
