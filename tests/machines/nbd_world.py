"""Real NBD servers for tests: qemu-nbd on an image, and one that says whatever a test wants it to."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lifeline import end_with_starter

from strongroom.sources.machines.nbd_wire import Address, TcpAddress, UnixAddress

START_S_MAX = 60.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = START_S_MAX) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        threading.Event().wait(0.02)


def answers(address: Address) -> bool:
    """Whether somebody listens."""
    try:
        if isinstance(address, UnixAddress):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(address.path)
        else:
            socket.create_connection((address.host, address.port), timeout=5).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def qemu_nbd(image: Path, *options: str, address: Address, fmt: str = "qcow2") -> Iterator[subprocess.Popen[bytes]]:
    """`image` served as export "disk" until the block ends."""
    where = (
        ["--socket", address.path]
        if isinstance(address, UnixAddress)
        else ["--bind", address.host, "--port", str(address.port)]
    )
    command = ["qemu-nbd", "--persistent", "--shared=8", "--export-name=disk", f"--format={fmt}", *where, *options]
    process = subprocess.Popen([*command, str(image)], preexec_fn=end_with_starter)  # noqa: PLW1509 -- as lifeline says
    try:
        wait_until(lambda: process.poll() is not None or answers(address), "qemu-nbd listens")
        assert process.poll() is None, "qemu-nbd did not start"
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def answering(script: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A connected socket whose other end runs `script`, in a thread that ends with the block."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            script(theirs)
        except OSError:
            pass  # the client left, as it should
        finally:
            theirs.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(START_S_MAX)
        assert not thread.is_alive()


def tcp() -> TcpAddress:
    return TcpAddress(host="127.0.0.1", port=free_port())
