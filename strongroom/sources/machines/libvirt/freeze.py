"""Holding a guest's file systems still through its agent, and letting go whatever happens to us.

    start guard -> mark -> freeze -> (the point is opened) -> thaw -> unmark -> guard ends

Who froze a guest and dies leaves it frozen for ever. So a process of its own, the guard, is there before: it thaws
when the pipe to us ends, or when the guest was held for longer than it may be, which also bounds a call that hangs.
The mark in the scratch folder is for `recover`, should both be killed. What was reached is decided by the thaw: a guest
that had to be let go before was not held when the point was opened.
"""

import contextlib
import os
import select
import subprocess
import sys
import time

from strongroom.base.errors import SourceError
from strongroom.sources.machines.base import FREEZE_SECONDS_MAX, Consistency
from strongroom.sources.machines.libvirt.binding import Domain, call, connected, library, require_domain
from strongroom.sources.machines.libvirt.scratch import Scratch

AGENT_ANSWER_S = 5
GUARD_START_S = 15.0  # a new Python on a busy machine
THAW_TRIES_S = 600.0
_READY, _HELD, _LET_GO = b"!", b"F", b"T"


class Hold:
    """A context in which the guest holds still, if it can. `reached` and `reason` are valid after it."""

    reached: Consistency = "crash_consistent"
    reason: str | None = None

    def __init__(self, uri: str, domain: Domain, scratch: Scratch, *, asked: bool, agent: bool | None) -> None:
        self._uri = uri
        self._domain = domain
        self._scratch = scratch
        self._frozen = 0
        self._guard: subprocess.Popen[bytes] | None = None
        if not asked:
            self.reason = "Holding the guest still was switched off for this backup."
        elif not agent:
            self.reason = (
                "The guest's agent is not connected: start qemu-guest-agent in the guest."
                if agent is False
                else "The machine has no channel for a guest's agent."
            )

    def __enter__(self) -> "Hold":
        if self.reason is None:
            try:
                self._freeze()
            except SourceError as err:
                self.reason = f"The guest could not be held still: {err.message}"
                self._let_go()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._frozen:
            return
        thawed = self._let_go()
        if thawed >= self._frozen:
            self.reached = "filesystem_consistent"
            self.reason = "libvirt does not tell whether the guest's applications were told by a freeze hook."
        else:
            self.reason = f"The guest was let go after {FREEZE_SECONDS_MAX:.0f} s, before the point stood."

    def _freeze(self) -> None:
        self._guard = _start_guard(self._uri, self._domain.UUIDString())
        self._scratch.mark_frozen(True)
        self._tell(_HELD)
        call("set a time-out for the guest's agent", self._domain.agentSetResponseTimeout, AGENT_ANSWER_S)
        self._frozen = call("freeze the guest's file systems", self._domain.fsFreeze)

    def _let_go(self) -> int:
        """Thaw, or leave it to the guard, which goes on trying. Returns how many file systems it were."""
        thawed = 0
        try:
            thawed = call("thaw the guest's file systems", self._domain.fsThaw)
        except SourceError:
            self._end_guard(thawed=False)
            return 0
        finally:
            with contextlib.suppress(library().libvirtError):
                self._domain.agentSetResponseTimeout(library().VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
        self._scratch.mark_frozen(False)
        self._end_guard(thawed=True)
        return thawed

    def _tell(self, letter: bytes) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(letter)
                self._guard.stdin.flush()

    def _end_guard(self, *, thawed: bool) -> None:
        """Without `thawed` it thaws at once, and goes on when that fails."""
        guard, self._guard = self._guard, None
        if guard is None or guard.stdin is None or guard.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            if thawed:
                guard.stdin.write(_LET_GO)
            guard.stdin.close()
        guard.stdout.close()
        if thawed:
            guard.wait()


def thaw(uri: str, name: str) -> bool:
    """Once, on a connection of its own; False when the agent did not answer. Raises SourceError without the domain."""
    lib = library()
    with connected(uri) as connection:
        domain = require_domain(connection, name)
        with contextlib.suppress(lib.libvirtError):
            domain.agentSetResponseTimeout(AGENT_ANSWER_S)
        try:
            domain.fsThaw()
        except lib.libvirtError:
            return not domain.isActive()
        finally:
            with contextlib.suppress(lib.libvirtError):
                domain.agentSetResponseTimeout(lib.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
    return True


def _start_guard(uri: str, name: str) -> "subprocess.Popen[bytes]":
    """Its working folder and its pipes are all it has of ours; a signal to our group does not reach it."""
    command = [sys.executable, "-m", __name__, uri, name, str(FREEZE_SECONDS_MAX)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    if guard.stdout is not None:
        ready, _, _ = select.select([guard.stdout], [], [], GUARD_START_S)
        if ready and guard.stdout.read(1) == _READY:
            return guard
    guard.kill()
    guard.wait()
    raise SourceError(reason="The process that would let the guest go did not start. Look at the worker's log.")


def main(arguments: list[str]) -> int:
    """The guard. Arguments: URI, UUID of the domain, seconds that a guest may be held."""
    uri, name, held_s_max = arguments[0], arguments[1], float(arguments[2])
    library()
    os.write(1, _READY)
    due_s: float | None = None
    while True:
        left_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        ready, _, _ = select.select([0], [], [], left_s)
        said = os.read(0, 64) if ready else b""
        if _LET_GO in said or (not said and due_s is None):
            return 0
        if not said:
            break
        due_s = time.monotonic() + held_s_max
    give_up_s = time.monotonic() + THAW_TRIES_S
    while time.monotonic() < give_up_s:
        try:
            if thaw(uri, name):
                return 0
        except SourceError:
            pass  # libvirt's daemon may be starting anew
        time.sleep(1.0)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
