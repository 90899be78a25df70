"""The monitor's client: what a socket that is no monitor, or a busy one, leads to."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from qemu_world import Machine

from strongroom.base.errors import MachineBusy, SourceError, SourceGone
from strongroom.sources.machines.qemu_point import dump_token, load_token
from strongroom.sources.machines.qmp import QmpClient, QmpRefused

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}\r\n'


@contextmanager
def saying(path: Path, *lines: bytes) -> Iterator[str]:
    """A socket on which each client hears this, and then the end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            try:
                for line in lines:
                    client.sendall(line)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass  # it hung up, as it should

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield str(path)
    thread.join(30)
    listener.close()


@pytest.mark.parametrize(
    "lines",
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n",),
        (b'{"QMP": 7}\n',),
        (b"[" * 100_000 + b"\n",),
        (b"x" * (1 << 20),) * 17,
        (GREETING[:40],),
        (GREETING, b"nonsense\n"),
        (GREETING, b'{"return": {}}\n'),
        (GREETING,),
    ],
    ids=["ssh", "no version", "deep", "endless", "half", "nonsense", "another answer", "the end"],
)
def test_what_is_no_monitor_is_an_error_in_time(short_path: Path, lines: tuple[bytes, ...]) -> None:
    """One SourceError, in bounded memory."""
    with saying(short_path / "s", *lines) as path, pytest.raises(SourceError):
        QmpClient.connect(path)


def test_commands_answers_and_the_end(short_path: Path) -> None:
    """Refusals have QEMU's own words, late answers are passed over, and an end is noticed by all that follows."""
    with pytest.raises(SourceGone):
        QmpClient.connect(str(short_path / "qmp"))
    with Machine.with_noise(short_path, "qcow2") as machine:
        client = QmpClient.connect(str(machine.path))
        assert client.version >= (7, 1, 0) and client.pid == machine.pid
        with pytest.raises(QmpRefused) as caught:
            client.execute("blockdev-del", {"node-name": "nothing"})
        assert "nothing" in caught.value.said and caught.value.command == "blockdev-del"
        os.kill(machine.pid, signal.SIGSTOP)  # it cannot answer in time
        try:
            with pytest.raises(SourceError, match="did not answer"):
                client.execute("query-status", within_s=0.1)
        finally:
            os.kill(machine.pid, signal.SIGCONT)
        assert client.execute("query-version")["qemu"]["major"] == client.version[0]
        with pytest.raises(MachineBusy):
            QmpClient.connect(str(machine.path))
        machine.kill()
        for _ in range(2):
            with pytest.raises(SourceGone):
                client.execute("query-status")
        client.close()
        client.close()


def test_tokens_that_are_none_are_not_trusted() -> None:
    """Whatever the row holds."""
    assert load_token(dump_token("strongroom.b.x", 5)) == ("strongroom.b.x", 5)
    for raw in (None, b"", b"{", b"[" * 1000, b"7", b'{"kind": "image"}', b'{"kind": "qemu"}', b"x" * 2000):
        assert load_token(raw) is None
    assert load_token(b'{"kind": "qemu", "bitmap": 1, "size_bytes": 5}') is None
