"""A real server process for a test, and a small client of its HTTP API. Nothing of the product is imported."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
from lifeline import end_with_starter
from ready_database import ReadyDatabase

START_S_MAX = 60
WAIT_S_MAX = 90
OUT_OF_REACH = 100_000  # a trace point that no run comes to: it only counts


class Server:
    """`strongroom serve` on a state folder and a free port. Start, kill and start again as often as wanted.

    A state folder that is not there yet gets an empty, migrated database (ready_database); with `from_nothing`, and
    under a `prefix`, the server makes that too.
    """

    ready_database: ReadyDatabase  # of this run, set by conftest
    ready = "Strongroom listens on "  # begins the line whose last word is the endpoint

    def words(self) -> tuple[str, ...]:
        """The command and its options."""
        return ("serve", "--state", str(self.state), "--listen", "127.0.0.1:0")

    def __init__(self, state: Path, *, from_nothing: bool = False, **settings: str) -> None:
        self.state = state
        self.from_nothing = from_nothing
        self.settings = settings
        self.prefix: tuple[str, ...] = ()  # words before the command, such as setpriv and its options
        self.process: subprocess.Popen[str] | None = None
        self.endpoint = ""
        self.output: list[str] = []
        self.log_path = state.with_name(state.name + ".log")

    def start(self, **settings: str) -> Self:
        """Returns when it is ready."""
        self.spawn(**settings)
        return self.until_ready()

    def spawn(self, **settings: str) -> None:
        """Begin to start it. It ends with the thread that called this."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}
        environ |= {f"STRONGROOM_{k.upper()}": v for k, v in {**self.settings, **settings}.items()}
        if not (self.state.exists() or self.from_nothing or self.prefix or "STRONGROOM_DATABASE_URL" in environ):
            self.ready_database.copy_to(self.state)
        log = self.log_path.open("ab")
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "strongroom", *self.words()],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
        )
        log.close()

    def until_ready(self) -> Self:
        """Wait for the line that says so. It fails the test when the process ends instead."""
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith(self.ready):
                self.endpoint = line.split()[-1]
                break
        else:
            self.process.stdout.close()
            raise AssertionError(f"the server ended with {self.process.wait()}:\n{self.log()}")
        threading.Thread(target=self._drain, args=(self.process.stdout,), daemon=True).start()
        return self

    def _drain(self, stream: Any) -> None:
        for line in stream:
            self.output.append(line)
        stream.close()

    def log(self) -> str:
        return self.log_path.read_text()[-6000:]

    def trace_points(self) -> int:
        """How many points the last run passed; it must have been started with kill_at and stopped."""
        return int(re.findall(r"trace points passed\s+count=(\d+)", self.log_path.read_text())[-1])

    @property
    def credentials(self) -> dict[str, str]:
        return json.loads((self.state / "credentials.json").read_text())

    def wait_dead(self) -> int:
        """Exit code of a process that is expected to end by itself."""
        assert self.process is not None
        return self.process.wait(WAIT_S_MAX)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM and a clean end."""
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process else 0
        self.process.terminate()
        return self.process.wait(WAIT_S_MAX)

    def client(self) -> "Client":
        return Client(self.endpoint, self.credentials)

    def openstack(self, *words: str, as_json: bool = True) -> Any:
        """`openstack cbr WORDS`, as a user types it; what it printed, decoded when it is JSON. It must succeed."""
        given = self.credentials
        environ = {k: v for k, v in os.environ.items() if not k.startswith("OS_")} | {
            "OS_AUTH_URL": f"{given['endpoint']}/v3",
            "OS_USERNAME": given["username"],
            "OS_PASSWORD": given["password"],
            "OS_USER_DOMAIN_NAME": given["domain_name"],
            "OS_PROJECT_NAME": given["project_name"],
            "OS_PROJECT_DOMAIN_NAME": given["domain_name"],
            "OS_REGION_NAME": given["region"],
            "OS_IDENTITY_API_VERSION": "3",
        }
        command = [str(Path(sys.executable).with_name("openstack")), "cbr", *words]
        command += ["-f", "json"] if as_json else []
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout, done.stderr, self.log())
        return json.loads(done.stdout) if as_json else done.stdout


class Client:
    """Calls with a token. `call` returns (status, body)."""

    def __init__(self, endpoint: str, credentials: dict[str, str]) -> None:
        self.project = credentials["project_id"]
        self.http = httpx.Client(base_url=endpoint, timeout=30)
        body = {
            "auth": {
                "identity": {
                    "methods": ["password"],
                    "password": {
                        "user": {
                            "name": credentials["username"],
                            "password": credentials["password"],
                            "domain": {"name": credentials["domain_name"]},
                        }
                    },
                },
                "scope": {"project": {"id": self.project}},
            }
        }
        answer = self.http.post("/v3/auth/tokens", json=body)
        assert answer.status_code == 201, answer.text
        self.http.headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def call(self, method: str, path: str, body: object = None, **params: Any) -> tuple[int, Any]:
        url = path if path.startswith("/") else f"/v3/{self.project}/{path}"
        answer = self.http.request(method, url, json=body, params=params)
        return answer.status_code, answer.json() if answer.content else None

    def ok(self, method: str, path: str, body: object = None, **params: Any) -> Any:
        status, answer = self.call(method, path, body, **params)
        assert status < 300, (method, path, status, answer)
        return answer

    # --- the steps of most stories ---------------------------------------------------------------------------------

    def register(self, kind: str, name: str, path: Path | str, **options: Any) -> str:
        body = {"protectable": {"project_id": self.project, "type": kind, "name": name, "path": str(path), **options}}
        return self.ok("POST", "/ext/v1/admin/protectables", body)["protectable"]["id"]

    def vault(self, name: str, object_type: str, resource_ids: list[str], size: int = 100) -> str:
        type_ = {"turbo": "OS::Sfs::Turbo", "disk": "OS::Cinder::Volume", "server": "OS::Nova::Server"}[object_type]
        body = {
            "vault": {
                "name": name,
                "billing": {
                    "object_type": object_type,
                    "protect_type": "backup",
                    "consistent_level": "crash_consistent",
                    "size": size,
                },
                "resources": [{"id": id_, "type": type_} for id_ in resource_ids],
            }
        }
        return self.ok("POST", "vaults", body)["vault"]["id"]

    def checkpoint(self, vault_id: str, **parameters: Any) -> str:
        body = {"checkpoint": {"vault_id": vault_id, "parameters": parameters}}
        return self.ok("POST", "checkpoints", body)["checkpoint"]["id"]

    def settled(self, checkpoint_id: str) -> dict[str, Any]:
        """The checkpoint once it is not protecting any more."""
        return wait_until(
            lambda: (c := self.ok("GET", f"checkpoints/{checkpoint_id}")["checkpoint"])["status"] != "protecting" and c,
            f"checkpoint {checkpoint_id} settled",
        )

    def backups(self, **params: Any) -> list[dict[str, Any]]:
        return self.ok("GET", "backups", **params)["backups"]

    def restore(self, backup_id: str, **what: Any) -> dict[str, Any]:
        """Restore and wait; the ended operation log."""
        job = self.ok("POST", f"backups/{backup_id}/restore", {"restore": what})["job_id"]
        return self.ended(job)

    def ended(self, log_id: str) -> dict[str, Any]:
        return wait_until(
            lambda: (
                (o := self.ok("GET", f"operation-logs/{log_id}")["operation_log"])["status"]
                not in ("waiting", "running")
                and o
            ),
            f"task {log_id} ended",
        )

    def quiet(self) -> None:
        """Every task has ended."""
        path = f"/ext/v1/{self.project}/tasks"
        wait_until(lambda: not self.ok("GET", path, open="true")["tasks"], "no open task")


def spread(total: int, count: int) -> list[int]:
    """`count` numbers over 1..total, the first and the last among them; a single one is in the middle."""
    assert total >= count, f"only {total} trace points; the work is too small for this test"
    if count == 1:
        return [(1 + total) // 2]
    return sorted({1 + (total - 1) * i // (count - 1) for i in range(count)})


def wait_until(condition: Callable[[], Any], what: str, seconds: float = WAIT_S_MAX) -> Any:
    """The first truthy value of `condition`; fails the test when it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"timed out: {what}"
        threading.Event().wait(0.05)


def contents(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Every entry below a folder: mode, and bytes, link target or None."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            content: bytes | str | None = os.readlink(path)
        else:
            content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (mode, content)
    return found


def make_tree(folder: Path, seed: int, files: int = 40) -> None:
    """A small tree with folders, links, an empty file and a file of several chunks; the bytes follow from the seed."""
    import random

    rng = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i in range(files):
        place = folder / f"d{i % 4}" / f"e{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{i}").write_bytes(rng.randbytes(rng.choice([0, 10, 5000, 70_000])))
    (folder / "big").write_bytes(rng.randbytes(3_000_000))
    (folder / "link").symlink_to("big")
    os.link(folder / "big", folder / "d0" / "hard")
