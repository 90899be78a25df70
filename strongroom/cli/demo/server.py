"""A server process of the demo's own: started, waited for, and gone afterwards whatever happens."""

import contextlib
import ctypes
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from strongroom.cli.errors import CommandRefused

READY_LINE = re.compile(rb"Strongroom listens on (https?://\S+)")
START_S = 60.0  # initdb on a slow disk takes some seconds; the first start of a container's layer more
STOP_S = 20.0  # a drain and the database's checkpoint
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def running_server(state: Path, log: Path, *, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """A server on any free port of this machine, or the one named; yields its endpoint.

    Raises CommandRefused with the log's last lines.

    It runs in a session of its own, so that Ctrl-C reaches the demo first, which then ends it in order; and it is told
    to end should the demo be killed.
    """
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "strongroom", "serve", "--state", str(state), "--listen", listen],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_clean_environment(),
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 -- no thread runs yet, and there is no other way
        )
    try:
        yield _wait_until_ready(process, log)
    finally:
        _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + START_S
    seen = b""
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not ready.select(left):
                break
            piece = os.read(process.stdout.fileno(), 4096)
            seen += piece
            if found := READY_LINE.search(seen):
                return found[1].decode("ascii")
            if not piece:
                break
    last = log.read_text(errors="replace").strip().splitlines()[-15:]
    raise CommandRefused(reason="The server did not start. Its last words:\n" + "\n".join(last))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, insist. Signals of the keyboard wait until it is done: what we started must not stay behind."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        process.terminate()
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _clean_environment() -> dict[str, str]:
    """Without settings meant for another server: the demo shows the defaults."""
    return {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
