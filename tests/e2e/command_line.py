"""`strongroom ARGV`, in the test's own process: a start of Python takes longer than nearly every command."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest
from harness import Server

from strongroom.cli.main import run as entrance

PROCESS: dict[str, Any] = {"process": True}  # for a command of each kind: progress, bytes in names, stdin, exit codes


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int
    stdout: bytes
    stderr: bytes


class _Captured(io.TextIOWrapper):
    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, "utf-8", write_through=True)

    def written(self) -> bytes:
        return self._bytes.getvalue()


def strongroom(*argv: str | bytes, code: int | None = 0, given: bytes = b"", process: bool = False) -> Done:
    """How it ended, with nothing that the user of this machine has set.

    code: how it must end; None: no matter. given: what stands on stdin. process: in one of its own, as a user does.
    """
    words = [os.fsdecode(word) for word in argv]
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("STRONGROOM_")]:
            patch.delenv(name)
        done = (_in_a_process if process else _here)(words, given)
    assert code in (None, done.code), (argv, done.code, done.stdout.decode(), done.stderr.decode())
    return done


def _in_a_process(words: list[str], given: bytes) -> Done:
    command = [sys.executable, "-m", "strongroom", *words]
    done = subprocess.run(command, input=given, capture_output=True, timeout=120)
    return Done(code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def _here(words: list[str], given: bytes) -> Done:
    out, err = _Captured(), _Captured()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
        code = entrance(words)
    return Done(code=code, stdout=out.written(), stderr=err.written())


def run(server: Server, *argv: str | bytes, code: int = 0, given: bytes = b"", process: bool = False) -> Done:
    """The same on the server's state folder."""
    return strongroom(*argv, "--state", str(server.state), code=code, given=given, process=process)
