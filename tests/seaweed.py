"""A real S3 server for tests: SeaweedFS on loopback ports, and a proxy in front of it that makes trouble.

One server serves the tests of one pytest process; each test has a bucket prefix of its own.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lifeline import end_with_starter

from strongroom.engine.store.access import S3Access

BUCKET = "backups"
ACCESS_KEY = "AKIDFORTESTS"
SECRET_KEY = "secret-of-the-tests"
STARTED_WITHIN_S = 60


def weed_program() -> str | None:
    """Where the server's program is: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in held]


class S3Server:
    """An S3 server at a port of the loopback, with the keys above and a bucket that the first start makes.

    obeys_among_versions   it honours If-None-Match in buckets with versions too, as those with object lock are
    """

    port: int
    obeys_among_versions = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def access(self, port: int | None = None, **changes: object) -> S3Access:
        """How to reach it, or the proxy at `port` in front of it."""
        values = {
            "endpoint": f"http://127.0.0.1:{port or self.port}",
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
            "allow_http": True,
        }
        return S3Access(**{**values, **changes})  # type: ignore[arg-type]


class Seaweed(S3Server):
    """One server; `start` again after `kill` brings the same data back on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        names = ("s3", "filer", "master", "volume")
        ports = _free_ports(2 * len(names))
        self.port = ports[0]
        self._grpc_ports = ports[len(names) :]
        (folder / "data").mkdir(parents=True)
        (folder / "keys.json").write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "tests",
                            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                            "actions": ["Admin", "Read", "Write", "List"],
                        }
                    ]
                }
            )
        )
        self._arguments = [
            "server",
            f"-dir={folder}/data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            f"-filer.localSocket={folder}/filer.sock",
            "-s3",
            f"-s3.config={folder}/keys.json",
            f"-s3.localSocket={folder}/s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.resumeState=false",  # one node has nobody to agree with; with it a restart takes up to 17 s
            "-master.volumeSizeLimitMB=256",
            "-volume.max=100",
            "-volume.preStopSeconds=0",
            *(f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)),
            *(f"-{name}.port.grpc={port}" for name, port in zip(names, self._grpc_ports, strict=True)),
        ]

    def start(self) -> None:
        """Returns when objects can be written. The server ends with this process, however that ends."""
        program = weed_program()
        assert program, "the tests need the `weed` program of requirements/test.txt"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, *self._arguments],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
            )
        self._wait()

    def kill(self) -> None:
        """As a power cut of the server's process."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            for port in self._grpc_ports:  # sockets that it puts there whatever it is told
                for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                    left.unlink(missing_ok=True)

    def _wait(self) -> None:
        """Until an object can be written: the gate answers before the volumes do."""
        from strongroom.base.errors import StoreError
        from strongroom.engine.store.s3 import S3Store

        store = S3Store(BUCKET, "", self.access())
        end = time.monotonic() + STARTED_WITHIN_S
        while True:
            try:
                store.check()
                return
            except StoreError as err:
                assert self._process is not None
                assert self._process.poll() is None, "the server ended: " + self._tail()
                assert time.monotonic() < end, f"{err}: {self._tail()}"
                time.sleep(0.05)  # the condition is the server's

    def _tail(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """A running server below `folder`, killed at the end."""
    server = Seaweed(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


_SLOW_DOWN = b"<Error><Code>SlowDown</Code></Error>"
_BUSY = b"HTTP/1.1 503 Slow Down\r\ncontent-length: %d\r\n\r\n%s" % (len(_SLOW_DOWN), _SLOW_DOWN)


class Proxy:
    """A TCP proxy for HTTP requests that are sent one after the other on a connection.

    latency_s      added to every request, before its first byte goes on
    lose_answers   drop that many answers of requests whose first line contains `lose_of`: the server did the work,
                   the client's connection is reset
    busy           answer 503 SlowDown instead
    """

    def __init__(self, port: int, *, latency_s: float = 0.0) -> None:
        self._target = port
        self.latency_s = latency_s
        self.busy = False
        self.lose_answers = 0
        self.lose_of = b""
        self.lost = 0
        self.requests = 0
        self.methods: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """End every connection that is open now."""
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._connection, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _connection(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            try:
                while self._request(client, server):
                    pass
            finally:
                with self._lock:
                    self._sockets -= {client, server}

    def _request(self, client: socket.socket, server: socket.socket) -> bool:
        head, rest = _head(client)
        if not head:
            return False
        with self._lock:
            self.requests += 1
            self.methods[head.split(b" ", 1)[0].decode()] += 1
            lose = self.lose_answers > 0 and self.lose_of in head.split(b"\r\n", 1)[0]
            if lose:
                self.lose_answers -= 1
        if self.latency_s:
            time.sleep(self.latency_s)  # this is what the proxy is for
        if self.busy:
            _relay(client, None, rest, _length(head))
            client.sendall(_BUSY)
            return True
        server.sendall(head)
        _relay(client, server, rest, _length(head))
        answer, rest = _head(server)
        if not answer:
            return False
        length = 0 if head.startswith(b"HEAD") or answer.split()[1] in (b"204", b"304") else _length(answer)
        if lose:
            _relay(server, None, rest, length)
            with self._lock:
                self.lost += 1
            return False  # closes both
        client.sendall(answer)
        _relay(server, client, rest, length)
        return True


def _head(source: socket.socket) -> tuple[bytes, bytes]:
    """(head with the empty line, first bytes of the body); empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = source.recv(65536)
        if not piece:
            return b"", b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _length(head: bytes) -> int:
    """Bytes of the body; -1 when it comes in chunks."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
        if name.lower() == b"transfer-encoding":
            return -1
    return 0


def _relay(source: socket.socket, target: socket.socket | None, first: bytes, length: int) -> None:
    piece = first
    left = length
    tail = b""
    while True:
        if piece and target is not None:
            target.sendall(piece)
        if length < 0:
            tail = (tail + piece)[-5:]
            if tail == b"0\r\n\r\n":
                return
        else:
            left -= len(piece)
            if left <= 0:
                return
        piece = source.recv(1 << 18)
        if not piece:
            return
