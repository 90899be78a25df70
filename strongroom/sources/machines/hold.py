"""Holding a guest still for the moment of a point: file systems frozen by its agent, the machine paused by QEMU.

    freeze  ->  pause  ->  the point's switch  ->  run again  ->  still frozen?  ->  thaw

Whatever happens in between, the guest is let go: here in `finally`; by the watchdog process, when this one is killed or
hangs; and by the next client of the monitor, which finds the marker node that lies in QEMU as long as something is held
(`qemu_leftovers.py`).
"""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from strongroom.base.errors import SourceError
from strongroom.sources.machines import watchdog
from strongroom.sources.machines.base import FREEZE_SECONDS_MAX, PREFIX, Consistency
from strongroom.sources.machines.guest_agent import GuestAgent
from strongroom.sources.machines.qmp import QmpClient

MARKER = PREFIX + "held"  # a node that says: a guest is held by us, or was when we died
SWITCH_S_MAX = 2.0  # of FREEZE_SECONDS_MAX, for what comes after the freezing
_STARTS_S_MAX = 20.0
_ENDS_S_MAX = 2.0
_NO_CHANNEL = "The machine has no channel to a guest's agent (a virtserialport named org.qemu.guest_agent.0)."
_NO_HOOKS = "The guest's agent runs no hooks for applications: databases go through their own recovery."


@dataclass(kw_only=True)
class Held:
    """What came of it; to be read when the guest was let go. reason: why no more was reached than `consistency`."""

    consistency: Consistency = "crash_consistent"
    reason: str | None = None


class Watchdog:
    """The process of `watchdog.py`, as a context. It is given copies of both connections."""

    def __init__(self, agent: GuestAgent | None, monitor: QmpClient, held_s_max: float) -> None:
        self._ours, theirs = socket.socketpair()
        fds = [theirs.fileno(), -1 if agent is None else agent.fileno(), monitor.fileno()]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", watchdog.__file__, *map(str, fds), str(held_s_max)],
                    pass_fds=[fd for fd in fds if fd >= 0],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # a signal to our terminal or group is not for it
                )
            self._ours.settimeout(_STARTS_S_MAX)
            ready = self._ours.recv(1)
        except OSError as err:
            self._ours.close()
            raise SourceError(reason=_NO_WATCHDOG, detail=repr(err)) from err
        if not ready:
            self._ours.close()
            raise SourceError(reason=_NO_WATCHDOG, detail=f"exit code {self._process.wait()}")

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """What was not said to be let go is let go by the process, which then ends by itself."""
        self._ours.close()
        try:
            self._process.wait(_ENDS_S_MAX)
        except subprocess.TimeoutExpired:  # it goes on asking the guest; somebody has to take note of its end
            threading.Thread(target=self._process.wait, name="watchdog", daemon=True).start()

    def say(self, letter: Literal["F", "T", "S", "R"]) -> None:
        with contextlib.suppress(OSError):
            self._ours.send(letter.encode())


_NO_WATCHDOG = "The guest was not held still, because the process that would let it go could not be started."


@contextmanager
def hold_guest(monitor: QmpClient, agent_path: str | None, *, freeze: bool) -> Iterator[Held]:
    """Inside the block nothing writes to the disks. Raises SourceError when the machine cannot be paused.

    A guest that does not hold still is no reason to fail: the point is crash-consistent then, and says why.
    """
    held = Held()
    with contextlib.ExitStack() as closing:
        agent = None
        if freeze:
            agent = _open_agent(agent_path, held)
            if agent is not None:
                closing.callback(agent.close)
        pause = bool(monitor.execute("query-status")["running"])
        if agent is None and not pause:
            yield held
            return
        dog = closing.enter_context(Watchdog(agent, monitor, FREEZE_SECONDS_MAX))
        monitor.execute("blockdev-add", {"driver": "null-co", "node-name": MARKER, "size": 0})
        try:
            with _frozen(agent, dog, held) if agent is not None else contextlib.nullcontext():
                with _paused(monitor, dog) if pause else contextlib.nullcontext():
                    yield held
        finally:
            with contextlib.suppress(SourceError):  # the next client of the monitor removes it
                monitor.execute("blockdev-del", {"node-name": MARKER})


def _open_agent(path: str | None, held: Held) -> GuestAgent | None:
    if path is None:
        held.reason = _NO_CHANNEL
        return None
    try:
        return GuestAgent.connect(path)
    except SourceError as err:
        held.reason = err.message
        return None


@contextmanager
def _paused(monitor: QmpClient, dog: Watchdog) -> Iterator[None]:
    dog.say("S")
    try:
        monitor.execute("stop")
        yield
        if monitor.execute("query-status")["running"]:  # the watchdog, or somebody else
            raise SourceError(
                reason="The machine went on before all its disks were at one moment. Run the task again.",
            )
    finally:
        monitor.execute("cont")
        dog.say("R")


@contextmanager
def _frozen(agent: GuestAgent, dog: Watchdog, held: Held) -> Iterator[None]:
    """The agent's errors end here, except that they make `held` say less."""
    hooks = agent.runs_hooks()
    until_s = time.monotonic() + FREEZE_SECONDS_MAX
    count = 0
    dog.say("F")
    try:
        try:
            count = agent.freeze(FREEZE_SECONDS_MAX - SWITCH_S_MAX)
            if not count:
                held.reason = "The guest's agent found no file system that can hold still."
        except SourceError as err:
            held.reason = err.message
        yield
        if count:
            _judge(agent, held, hooks=hooks, in_time=time.monotonic() < until_s)
    finally:
        with contextlib.suppress(SourceError):  # then the watchdog goes on thawing
            agent.sync()
            agent.thaw()
            dog.say("T")


def _judge(agent: GuestAgent, held: Held, *, hooks: bool, in_time: bool) -> None:
    """Only a guest that is still frozen after the switch was frozen while it happened."""
    try:
        agent.sync()
        still = in_time and agent.is_frozen()
    except SourceError as err:
        held.reason = err.message
        return
    if not still:
        held.reason = "The guest did not hold still long enough: it was let go before the point was made."
        return
    held.consistency = "application_consistent" if hooks else "filesystem_consistent"
    held.reason = None if hooks else _NO_HOOKS
