"""Lets a guest go when the worker that held it is dead or hangs: a process of its own, started before that.

It has copies of the worker's connections to the guest's agent and to QEMU's monitor, because both serve one client at a
time, and a pipe on which the worker says what it does:

    F  the file systems are about to be frozen     T  they were thawed
    S  the machine is about to be paused           R  it runs again

The end of the pipe means that the worker is gone. Then, and when something is held for longer than it may be, the guest
is let go: thaw until the agent says so, `cont` to the monitor. Nothing is imported but the standard library, so that it
starts in a few hundredths of a second, and it is told nothing that it could be made to do something else with.
"""

import json
import os
import select
import sys
import time

THAW_AGAIN_S = 1.0
ANSWER_S_MAX = 30.0  # to `cont`: QEMU may be finishing what the dead worker had asked for
GIVE_UP_S = 600.0  # an agent that says nothing for so long has ended; a guest that starts anew is not frozen


def main(arguments: list[str]) -> int:
    """Arguments: descriptor of the pipe, of the agent or -1, of the monitor or -1, seconds that a guest may be held."""
    pipe, agent_fd, monitor_fd = (int(word) for word in arguments[:3])
    held_s_max = float(arguments[3])
    held: dict[str, float] = {}  # what is held, and since when
    os.write(pipe, b"!")
    alive = True
    while alive:
        now = time.monotonic()
        due = min((since + held_s_max for since in held.values()), default=None)
        ready, _, _ = select.select([pipe], [], [], None if due is None else max(0.0, due - now))
        if not ready:
            break  # it hangs
        said = os.read(pipe, 64)
        alive = bool(said)
        for letter in said.decode("ascii", "replace"):
            if letter in "FS":
                held[letter] = time.monotonic()
            else:
                held.pop({"T": "F", "R": "S"}.get(letter, ""), None)
    if "S" in held and monitor_fd >= 0:
        _say(monitor_fd, {"execute": "cont", "id": "watchdog"})
        if not alive:
            _hear(monitor_fd, b'"watchdog"', ANSWER_S_MAX)  # QEMU drops what it has not read when we hang up
    if monitor_fd >= 0:
        os.close(monitor_fd)  # thawing may take long, and who comes next needs the monitor
    if "F" in held and agent_fd >= 0:
        _thaw(agent_fd, pipe if alive else -1)
    return 0


def _thaw(agent_fd: int, pipe: int) -> None:
    """Say it until it is heard, or until the worker says that it has thawed."""
    give_up_s = time.monotonic() + GIVE_UP_S
    while time.monotonic() < give_up_s:
        if not _say(agent_fd, {"execute": "guest-fsfreeze-thaw"}):
            return
        if pipe < 0:
            if _hear(agent_fd, b'"return"', THAW_AGAIN_S):
                return
            continue
        ready, _, _ = select.select([pipe], [], [], THAW_AGAIN_S)
        if ready:
            said = os.read(pipe, 64)
            if b"T" in said:
                return
            if not said:
                pipe = -1


def _hear(fd: int, word: bytes, within_s: float) -> bool:
    """Whether the word came in time, or nothing can come any more. Only for who is the only one that listens."""
    until = time.monotonic() + within_s
    heard = b""
    while (left_s := until - time.monotonic()) > 0:
        ready, _, _ = select.select([fd], [], [], left_s)
        if not ready:
            return False
        try:
            got = os.read(fd, 65536)
        except BlockingIOError:
            continue
        except OSError:
            return True
        heard = heard[-1024:] + got
        if not got or word in heard:
            return True
    return False


def _say(fd: int, message: dict[str, str]) -> bool:
    """One command, after the byte that makes the other end forget what was half said. False: nobody is there."""
    try:
        os.write(fd, b"\xff" + json.dumps(message).encode() + b"\n")
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
