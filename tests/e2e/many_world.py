"""Many processes of one installation for a test: `strongroom api` and `strongroom worker` on one PostgreSQL and store.

All of them run on this machine, each with a state folder of its own, as if each were a machine.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from harness import WAIT_S_MAX, Client, Server
from lifeline import end_with_starter


class Api(Server):
    """`strongroom api` on a free port, or where the settings say."""

    def words(self) -> tuple[str, ...]:
        return ("api", "--state", str(self.state), "--listen", self.settings.get("listen", "127.0.0.1:0"))


class WorkerProcess(Server):
    """`strongroom worker`; its endpoint answers health only."""

    ready = "Strongroom worker "

    def __init__(self, state: Path, group: str = "default", concurrency: int = 2, **settings: str) -> None:
        super().__init__(state, **settings)
        self.group, self.concurrency = group, concurrency

    def words(self) -> tuple[str, ...]:
        health = ("--health", self.settings.get("health_listen", "127.0.0.1:0"))
        return (
            "worker",
            "--group",
            self.group,
            "--concurrency",
            str(self.concurrency),
            *health,
            "--state",
            str(self.state),
        )

    @property
    def health(self) -> str:
        """Base URL of its health listener."""
        return next(line.split()[-1] for line in self.output if line.startswith("Health: ")).removesuffix("/readyz")


class Many:
    """An installation. `settings` are those of every process."""

    def __init__(self, folder: Path, url: str, **settings: str) -> None:
        self.folder = folder
        self.settings = {"database_url": url, "store_url": (folder / "store").as_uri(), **settings}
        self.key = folder / "api-0" / "master.key"
        self.apis: list[Api] = []
        self.workers: list[WorkerProcess] = []
        self.clients: list[Client] = []
        (folder / "store").mkdir(parents=True, exist_ok=True)

    def api(self, *, ready: bool = True, **settings: str) -> Api:
        """One more; the first makes the master key and the credentials. ready: wait until it is."""
        key = {"master_key_file": str(self.key)} if self.apis else {}
        server = Api(self.folder / f"api-{len(self.apis)}", **{**self.settings, **key, **settings})
        self.apis.append(server)
        server.spawn()
        return server.until_ready() if ready else server

    def worker(
        self, group: str = "default", concurrency: int = 2, *, ready: bool = True, **settings: str
    ) -> WorkerProcess:
        """One more. ready: wait until it is."""
        state = self.folder / f"worker-{len(self.workers)}"
        key = {"master_key_file": str(self.key)}
        worker = WorkerProcess(state, group, concurrency, **{**self.settings, **key, **settings})
        self.workers.append(worker)
        worker.spawn()
        return worker.until_ready() if ready else worker

    def client(self, number: int = 0) -> Client:
        """A client of one of the APIs; closed with the installation at the latest."""
        self.clients.append(Client(self.apis[number].endpoint, self.apis[0].credentials))
        return self.clients[-1]

    def run(self, *words: str, prefix: tuple[str, ...] = (), **settings: str) -> "subprocess.CompletedProcess[str]":
        """A command of an operator, with the settings of the processes."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}
        environ |= {f"STRONGROOM_{k.upper()}": v for k, v in {**self.settings, **settings}.items() if v}
        command = [*prefix, sys.executable, "-m", "strongroom", *words]
        return subprocess.run(
            command,
            env=environ,
            capture_output=True,
            text=True,
            timeout=WAIT_S_MAX,
            preexec_fn=end_with_starter,
        )

    def end(self) -> None:
        """Kill what is left."""
        for client in self.clients:
            client.http.close()
        for process in (*self.workers, *self.apis):
            if process.process is not None and process.process.poll() is None:
                process.kill()


@contextmanager
def many(folder: Path, url: str, **settings: str) -> Iterator[Many]:
    """An installation without processes; what a test starts ends with the block."""
    with ExitStack() as stack:
        world = Many(folder, url, **settings)
        stack.callback(world.end)
        yield world


def ready(base: str) -> tuple[int, dict[str, str]]:
    """Status and parts of /readyz; 0 when nothing answers."""
    try:
        answer = httpx.get(f"{base}/readyz", timeout=10)
    except httpx.TransportError:
        return 0, {}
    return answer.status_code, answer.json()["parts"]


def empty(folder: Path) -> None:
    """Remove what a folder holds."""
    for name in os.listdir(folder):
        path = folder / name
        (shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink)(path)
