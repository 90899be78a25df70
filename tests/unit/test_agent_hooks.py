"""Programs of the host around a backup: what fails is said, what hangs is killed with its children."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import wait_until

from strongroom.agent.hooks import run_hook
from strongroom.agent.policy import Policy
from strongroom.base.errors import SourceError, SourceUnreachable

LONG = "sleep 1000 & echo $! > {pid}; wait"


@pytest.fixture
def pid(tmp_path: Path) -> Iterator[Path]:
    """Where a program says which child it has; what is left of it in the end is killed."""
    file = tmp_path / "pid"
    yield file
    if is_alive(file):
        os.kill(int(file.read_text()), signal.SIGKILL)


def hook(script: str, hook_s: float = 60) -> Policy:
    words = {"before-backup": ("/bin/sh", "-c", script)}
    return Policy(paths=(), restore=False, restore_paths=(), hooks=words, hook_s=hook_s)


def is_alive(file: Path) -> bool:
    try:
        return Path(f"/proc/{file.read_text().strip()}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_environment_and_the_outcome_of_a_hook(tmp_path: Path) -> None:
    """It is told which one it is, and nothing else; success is silent, a failure is a sentence with its exit code."""
    run_hook(hook(f"env > {tmp_path}/env; pwd >> {tmp_path}/env"), "before-backup")
    told = (tmp_path / "env").read_text().split()
    assert "STRONGROOM_HOOK=before-backup" in told and "/" in told
    assert not any(word.startswith("HOME=") for word in told)
    run_hook(hook("exit 1"), "after-backup")  # none of that name
    with pytest.raises(SourceError, match="ended with 3"):
        run_hook(hook("echo no; exit 3"), "before-backup")
    gone = Policy(paths=(), restore=False, restore_paths=(), hooks={"before-backup": ("/nowhere/at-all",)})
    with pytest.raises(SourceError, match="could not be run"):
        run_hook(gone, "before-backup")


def test_a_hook_that_writes_without_end_is_read_and_not_kept() -> None:
    """Its output fills no pipe and no memory."""
    with pytest.raises(SourceError, match="ended with 4"):
        run_hook(hook("head -c 50000000 /dev/zero; exit 4"), "before-backup")


def test_a_hook_that_hangs_is_killed_with_what_it_started(pid: Path) -> None:
    """A shell that is killed alone leaves the dump it waits for running."""
    with pytest.raises(SourceError, match="did not end in 1 s and was killed"):
        run_hook(hook(LONG.format(pid=pid), hook_s=1), "before-backup")
    assert pid.exists()
    wait_until(lambda: not is_alive(pid), "its child is dead")


def test_a_hook_ends_with_its_job(pid: Path) -> None:
    """A canceled backup does not hold up the next job of the host until its command is done."""

    def check() -> None:
        if pid.exists() and pid.read_text():
            raise SourceUnreachable(reason="The session has ended.")

    with pytest.raises(SourceUnreachable):
        run_hook(hook(LONG.format(pid=pid)), "before-backup", check)
    wait_until(lambda: not is_alive(pid), "its child is dead")


def test_what_a_hook_leaves_running_is_not_waited_for(pid: Path) -> None:
    """A service that it restarted holds its output open, and lives."""
    run_hook(hook(f"sleep 1000 & echo $! > {pid}"), "before-backup")
    assert is_alive(pid)
