"""Programs of the host's own file, run around a backup: bounded in time and output, and gone with their children.

A program has a session of its own, so that what it started ends with it when it hangs, or when the job it belongs to is
over. Nobody reads its output but the host's log, and of that the end.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO

import structlog

from strongroom.agent.policy import Policy
from strongroom.base.errors import SourceError

log = structlog.get_logger("agent")

OUTPUT_BYTES_MAX = 2000  # kept, from its end
LOOK_S = 0.5  # how soon it ends with its job
READ_BYTES = 65_536


def run_hook(policy: Policy, name: str, check: Callable[[], None] = lambda: None) -> None:
    """Run one, if the file names it. Raises SourceError when it fails or hangs, and what `check` raises meanwhile."""
    words = policy.hooks.get(name)
    if words is None:
        return
    log.info("hook begins", hook=name)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "STRONGROOM_HOOK": name},
            start_new_session=True,
        )
    except OSError as err:
        raise SourceError(reason=f"The host's {name} command could not be run: {os.strerror(err.errno or 0)}.") from err
    assert process.stdout is not None
    output = bytearray()
    reader = threading.Thread(target=_keep_end, args=(process.stdout, output), name="hook", daemon=True)
    reader.start()
    try:
        code = _wait(process, policy.hook_s, check)
        if code is None:
            raise SourceError(reason=f"The host's {name} command did not end in {policy.hook_s:.0f} s and was killed.")
    except BaseException:
        _kill(process)
        raise
    if code != 0:
        reader.join(LOOK_S)  # what it left running may hold the pipe open for ever
        log.warning("hook failed", hook=name, output=bytes(output).decode(errors="replace"))
        raise SourceError(
            reason=f"The host's {name} command ended with {code}. Its output is in the agent's log there."
        )


def _wait(process: "subprocess.Popen[bytes]", hook_s: float, check: Callable[[], None]) -> int | None:
    """Its exit code; None when it is late."""
    deadline_s = time.monotonic() + hook_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        check()
        try:
            return process.wait(min(LOOK_S, left_s))
        except subprocess.TimeoutExpired:
            continue
    return None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """With all that it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _keep_end(stream: IO[bytes], output: bytearray) -> None:
    with stream:
        while data := os.read(stream.fileno(), READ_BYTES):
            output += data
            del output[:-OUTPUT_BYTES_MAX]
