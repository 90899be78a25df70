"""QEMU's monitor protocol: one JSON line out, one back, events in between. Our own client, synchronous.

A QMP socket serves one client at a time. Whoever holds it is therefore the only one at work there, and holds it as long
as a backup lasts: what a client finds on it with our PREFIX was left by a process that is dead.

A thread receives, so that events never pile up in QEMU and a QEMU that ends is noticed at once. Descriptors travel
with commands (SCM_RIGHTS): QEMU needs no right to any folder of ours, and nothing of ours has a name there.
"""

import array
import contextlib
import json
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.base.errors import MachineBusy, SourceDenied, SourceError, SourceGone
from strongroom.base.units import KIB, MIB

COMMAND_S_MAX = 60.0  # QEMU drains all requests of a disk within some commands
GREETING_S_MAX = 8.0  # a free monitor greets at once, on a host that swaps in seconds; a busy one never
LINE_BYTES_MAX = 16 * MIB  # the schema of QEMU 9 has 0.3 MiB; a hundred disks with snapshots some more
PEER = struct.Struct("3i")  # pid, uid, gid

Answer = Mapping[str, Any]


@dataclass(kw_only=True, eq=False)
class QmpRefused(SourceError):
    """QEMU answered a command with an error. Whoever sent it may know better. said: QEMU's own words."""

    command: str
    said: str


class QmpClient:
    """One connection; commands of several threads wait for each other. Raises SourceError of its kind everywhere.

    version  (major, minor, micro)      pid  of the process that listens: QEMU's, unless a starter made the socket
    """

    def __init__(self, sock: socket.socket, where: str) -> None:
        self.where = where
        self._sock = sock
        self._lines = _Lines(sock)
        self._one = threading.Lock()
        self._next_id = 0
        self._answers: queue.SimpleQueue[Answer | SourceError] = queue.SimpleQueue()
        greeting = self._lines.receive()
        try:
            version = greeting["QMP"]["version"]["qemu"]
            self.version = (int(version["major"]), int(version["minor"]), int(version["micro"]))
        except (KeyError, TypeError, ValueError) as err:
            raise SourceError(reason=f"What listens at {where} is not a QMP monitor. Check the address.") from err
        self.pid = PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))[0]
        sock.settimeout(None)
        self._receiver = threading.Thread(target=self._receive, name="qmp", daemon=True)
        self._receiver.start()

    @classmethod
    def connect(cls, path: str) -> "QmpClient":
        """Connect and leave the negotiation. Raises SourceGone where no QEMU runs, MachineBusy while another client is
        connected, SourceDenied."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(GREETING_S_MAX)
            sock.connect(path)
            client = cls(sock, path)
        except TimeoutError as err:
            sock.close()
            raise MachineBusy(reason=_BUSY.format(path=path)) from err
        except OSError as err:
            sock.close()
            raise _connect_error(err, path) from err
        except SourceError:
            sock.close()
            raise
        try:
            client.execute("qmp_capabilities")
        except SourceError:
            client.close()
            raise
        return client

    def __enter__(self) -> "QmpClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def execute(
        self, command: str, arguments: Answer | None = None, *, fds: Sequence[int] = (), within_s: float = COMMAND_S_MAX
    ) -> Any:
        """What QEMU returns. Raises QmpRefused with QEMU's own words, SourceGone when it has ended."""
        with self._one:
            self._next_id += 1
            number = self._next_id
            line = json.dumps({"execute": command, "arguments": arguments or {}, "id": number}).encode() + b"\n"
            try:
                if fds:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())
                    sent = self._sock.sendmsg([line], [rights])
                    line = line[sent:]
                self._sock.sendall(line)
                answer = self._answer_to(number, within_s)
            except OSError as err:
                raise _gone(self.where, repr(err)) from err
            except queue.Empty as err:
                raise SourceError(
                    reason=f"QEMU at {self.where} did not answer within {within_s:.0f} s. Run the task again.",
                    detail=command,
                ) from err
        if "error" in answer:
            raise QmpRefused(reason="QEMU refused a step of the work. Tell the operator.", **_refusal(command, answer))
        return answer.get("return")

    def close(self) -> None:
        """Idempotent. QEMU serves the next client."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._receiver.join()
        self._sock.close()

    def _answer_to(self, number: int, within_s: float) -> Answer:
        """Answers to commands that were given up may come late: they are passed over."""
        while True:
            answer = self._answers.get(timeout=within_s)
            if isinstance(answer, SourceError):
                self._answers.put(answer)  # for whoever asks next
                raise answer
            if answer.get("id") == number:
                return answer

    def _receive(self) -> None:
        try:
            while True:
                line = self._lines.receive()
                if "event" not in line:
                    self._answers.put(line)
        except SourceError as err:
            self._answers.put(err)
        except OSError as err:
            self._answers.put(_gone(self.where, repr(err)))


class _Lines:
    """JSON objects, one a line, of a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = bytearray()

    def receive(self) -> dict[str, Any]:
        """The next one. Raises SourceGone at the end, SourceError for what is no object, OSError."""
        looked_at = 0
        while (end := self._rest.find(b"\n", looked_at)) < 0:
            looked_at = len(self._rest)
            if looked_at > LINE_BYTES_MAX:
                raise SourceError(reason="The monitor answered with more than anybody can mean. Tell the operator.")
            got = self._sock.recv(64 * KIB)
            if not got:
                raise SourceGone(reason="The machine was stopped: its monitor closed the connection. Start it again.")
            self._rest += got
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return parse_object(line)


def parse_object(line: bytes) -> dict[str, Any]:
    """One JSON object. Raises SourceError."""
    try:
        value = json.loads(line.strip(b"\xff\r\n "))
    except (ValueError, RecursionError) as err:
        raise SourceError(reason="The monitor did not answer in JSON. Check the address.", detail=repr(err)) from err
    if not isinstance(value, dict):
        raise SourceError(reason="The monitor did not answer with an object. Check the address.")
    return value


_BUSY = (
    "Another client is connected to the machine's monitor at {path}: a backup of it may be running. Wait for its end, "
    "or give QEMU a monitor of its own for the service (a second -qmp)."
)


def undoing(call: Callable[..., object], *arguments: object) -> None:
    """Do one step of a clean-up, whatever became of the others. What does not go is settled by the next client."""
    with contextlib.suppress(SourceError):
        call(*arguments)


def _refusal(command: str, answer: Answer) -> dict[str, str]:
    error = answer["error"] if isinstance(answer["error"], dict) else {}
    said = str(error.get("desc", ""))[:1000]
    return {"command": command, "said": said, "detail": f"{command}: {error.get('class', '')} {said}"[:1200]}


def _gone(where: str, detail: str) -> SourceGone:
    return SourceGone(
        reason=f"The QEMU at {where} has ended. Start the machine, then run the task again.", detail=detail
    )


def _connect_error(err: OSError, path: str) -> SourceError:
    if isinstance(err, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return SourceGone(reason=f"The machine does not run: no QEMU answers at {path}. Start it.", detail=repr(err))
    if isinstance(err, PermissionError):
        return SourceDenied(reason=f"The service may not connect to {path}. Give it the right to.", detail=repr(err))
    if isinstance(err, BlockingIOError):
        return MachineBusy(reason=_BUSY.format(path=path))
    why = os.strerror(err.errno) if err.errno else str(err)
    return SourceError(reason=f"Could not connect to the monitor at {path}: {why}.", detail=repr(err))
