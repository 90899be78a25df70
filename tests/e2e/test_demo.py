"""The demo itself: it ends well, and it leaves nothing behind, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

GONE_S_MAX = 30


def start_demo(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # A test run in the background of a script ignores Ctrl-C, and so would what it starts.
        ["env", "--default-signal=INT", sys.executable, "-m", "strongroom", "demo", "--json", "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_naming(folder: Path) -> list[str]:
    """Command lines of all processes that name the folder: the server and its database do."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
    return found


def nothing_is_left(folder: Path) -> None:
    deadline = time.monotonic() + GONE_S_MAX
    while left := processes_naming(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert os.listdir(folder) == []


def test_demo_finds_no_difference_and_leaves_nothing(tmp_path: Path) -> None:
    """Real data through a real server and back: exit code 0, nothing differs, an increment costs little."""
    demo = start_demo(tmp_path)
    out, err = demo.communicate(timeout=240)
    assert demo.returncode == 0, out[-3000:] + err[-3000:]
    summary = json.loads(out.splitlines()[-1])
    assert summary["message_type"] == "summary"
    assert summary["differences"] == 0
    assert summary["checkpoint"]["checkpoint"]["status"] == "available"
    assert len(summary["restores"]) == 5
    stored = {(run["what"], run["run"]): run["bytes_stored"] for run in summary["backups"]}
    for what in ("folder", "disk image"):
        assert 0 < stored[what, "increment"] < stored[what, "first"] / 2
    nothing_is_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_interrupted_demo_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C and a polite kill in the middle of a backup: exit code 130, no process, no folder."""
    demo = start_demo(tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if '"operation_type"' in line:
            break
    demo.send_signal(number)
    out, err = demo.communicate(timeout=120)
    assert demo.returncode == 130, out[-3000:] + err[-3000:]
    nothing_is_left(tmp_path)
