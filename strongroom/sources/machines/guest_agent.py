"""The guest's agent (qemu-ga): asks the guest to hold its file systems still, and lets them go.

The other end is inside the guest, so nothing it says is trusted beyond "frozen" and "thawed": lines are bounded, every
wait has an end, and bytes that an earlier client left are skipped by a number only we know (guest-sync-delimited).
"""

import base64
import binascii
import contextlib
import json
import os
import secrets
import socket
import time
from typing import Any

from strongroom.base.errors import SourceError
from strongroom.base.units import KIB
from strongroom.sources.machines.qmp import parse_object

SYNC_S_MAX = 3.0  # an agent that runs answers in milliseconds, in a busy guest in a second
ANSWER_S_MAX = 5.0
LINE_BYTES_MAX = 256 * KIB
_HOOK_OPTION = ("-F", "--fsfreeze-hook")


class GuestAgent:
    """One connection. Every method raises SourceError with a sentence that can be a point's `consistency_reason`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = bytearray()

    @classmethod
    def connect(cls, path: str, *, within_s: float = SYNC_S_MAX) -> "GuestAgent":
        """Connect, and see that an agent is there."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(within_s)
            sock.connect(path)
            agent = cls(sock)
            agent.sync(within_s)
        except OSError as err:
            sock.close()
            raise SourceError(reason="The guest's agent cannot be reached.", detail=f"{path}: {err!r}") from err
        except SourceError:
            sock.close()
            raise
        return agent

    def __enter__(self) -> "GuestAgent":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def sync(self, within_s: float = SYNC_S_MAX) -> None:
        """Skip whatever was under way. Raises SourceError when no agent answers."""
        number = secrets.randbits(31)
        self._rest.clear()
        deadline_s = time.monotonic() + within_s
        self._send("guest-sync-delimited", {"id": number}, before=b"\xff")
        while True:
            with contextlib.suppress(SourceError):
                if self._receive(deadline_s).get("return") == number:
                    return
            if time.monotonic() >= deadline_s:
                raise SourceError(reason="The guest's agent does not answer: it is not installed, or does not run.")

    def call(self, command: str, arguments: dict[str, Any] | None = None, *, within_s: float = ANSWER_S_MAX) -> Any:
        deadline_s = time.monotonic() + within_s
        self._send(command, arguments)
        answer = self._receive(deadline_s)
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        said = str(error.get("desc", ""))[:400] if isinstance(error, dict) else ""
        raise SourceError(
            reason="The guest's agent refused to hold the file systems still.", detail=f"{command}: {said}"
        )

    def freeze(self, within_s: float) -> int:
        """File systems that hold still now. Raises SourceError; some may be frozen then: thaw in any case."""
        frozen = self.call("guest-fsfreeze-freeze", within_s=within_s)
        return frozen if isinstance(frozen, int) else 0

    def thaw(self, within_s: float = ANSWER_S_MAX) -> int:
        thawed = self.call("guest-fsfreeze-thaw", within_s=within_s)
        return thawed if isinstance(thawed, int) else 0

    def is_frozen(self) -> bool:
        return bool(self.call("guest-fsfreeze-status") == "frozen")

    def runs_hooks(self) -> bool:
        """Whether freezing tells applications too: VSS writers on Windows, else the agent's freeze hook (-F), which
        must exist. Asked of the agent's own command line; where it may not be read the answer is no."""
        with contextlib.suppress(SourceError):
            system = self.call("guest-get-osinfo")
            if isinstance(system, dict) and system.get("id") == "mswindows":
                return True
        with contextlib.suppress(SourceError):
            words = self.read_file("/proc/self/cmdline").split(b"\0")
            hook = _hook_of([os.fsdecode(word) for word in words])
            return hook is not None and bool(self.read_file(hook))
        return False

    def read_file(self, path: str) -> bytes:
        """The first 4096 bytes of a file of the guest."""
        handle = self.call("guest-file-open", {"path": path, "mode": "r"})
        try:
            got = self.call("guest-file-read", {"handle": handle, "count": 4096})
            return base64.b64decode(str(got.get("buf-b64", "")) if isinstance(got, dict) else "", validate=True)
        except binascii.Error as err:
            raise SourceError(reason="The guest's agent sent something that is no file.") from err
        finally:
            with contextlib.suppress(SourceError):
                self.call("guest-file-close", {"handle": handle})

    def _send(self, command: str, arguments: dict[str, Any] | None, before: bytes = b"") -> None:
        line = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})}).encode()
        try:
            self._sock.settimeout(SYNC_S_MAX)
            self._sock.sendall(before + line + b"\n")
        except OSError as err:
            raise SourceError(reason="The guest's agent cannot be reached.", detail=repr(err)) from err

    def _receive(self, deadline_s: float) -> dict[str, Any]:
        while (end := self._rest.find(b"\n")) < 0:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or len(self._rest) > LINE_BYTES_MAX:
                raise SourceError(reason="The guest's agent did not answer in time.")
            try:
                self._sock.settimeout(left_s)
                got = self._sock.recv(64 * KIB)
            except TimeoutError:
                continue
            except OSError as err:
                raise SourceError(reason="The guest's agent cannot be reached.", detail=repr(err)) from err
            if not got:
                raise SourceError(reason="The guest's agent closed the connection.")
            self._rest += got
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return parse_object(line)


def _hook_of(words: list[str]) -> str | None:
    """The freeze hook that an agent started with these words runs; None for none."""
    for word in words:
        option, equals, value = word.partition("=")
        if option == "--fsfreeze-hook":
            return value if equals else "/etc/qemu/fsfreeze-hook"
        if word.startswith("-F"):
            return word[2:] or "/etc/qemu/fsfreeze-hook"
    return None
