"""What tests start does not outlive them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STARTER = """
import subprocess, sys
from lifeline import end_with_starter
child = subprocess.Popen(["sleep", "600"], preexec_fn=end_with_starter)
print(child.pid, flush=True)
sys.stdin.read()
"""
ENDS_WITHIN_S = 30


def is_running(pid: int) -> bool:
    """False for one that has ended and waits for its end to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_ends_with_a_starter_that_is_killed() -> None:
    """The starter gets no chance to end it."""
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    ) as starter:
        assert starter.stdout is not None
        program = int(starter.stdout.readline())
        assert is_running(program)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    end = time.monotonic() + ENDS_WITHIN_S
    while is_running(program):
        assert time.monotonic() < end
        time.sleep(0.01)
