"""A real Cinder (API, scheduler, volume) with a real Keystone and RabbitMQ, SQLite, on free ports of loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
from harness import wait_until
from lifeline import end_with_starter
from private_environment import environment
from real_keystone import PASSWORD, REGION, Keystone

MICROVERSION = "3.59"
PATIENT = Path(__file__).parent / "patient_sqlite"
RABBIT = "/usr/lib/rabbitmq/bin/rabbitmq-server"

CONFIG = """
[DEFAULT]
auth_strategy = keystone
api_paste_config = {programs}/etc/cinder/api-paste.ini
rootwrap_config = {programs}/etc/cinder/rootwrap.conf
resource_query_filters_file = {programs}/etc/cinder/resource_filters.json
state_path = {folder}/state
transport_url = {rabbit}
enabled_backends = files
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {port}
osapi_volume_workers = 1
default_volume_type = __DEFAULT__
quota_volumes = -1
quota_snapshots = -1
quota_gigabytes = -1
[database]
connection = sqlite:///{folder}/cinder.db?timeout=60
sqlite_synchronous = false
[files]
volume_driver = cinder_file_driver.FileDriver
volume_backend_name = files
[oslo_concurrency]
lock_path = {folder}/lock
[coordination]
backend_url = file://{folder}/coordination
[keystone_authtoken]
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
username = cinder
password = {password}
"""


class Cinder:
    """Everything that is needed, started; `stop` ends it. `volumes` is the folder of the volumes' files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._home = environment("cinder")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.volumes = folder / "volumes"
        self.keystone = Keystone(folder / "keystone").start()
        self.port, self._rabbit = _free_port(), _free_port()
        self.transport = f"rabbit://guest:guest@127.0.0.1:{self._rabbit}/"
        self._config = folder / "cinder.conf"
        for name in ("state", "lock", "coordination"):
            (folder / name).mkdir()
        self._config.write_text(
            CONFIG.format(
                programs=self._home,
                folder=folder,
                rabbit=self.transport,
                port=self.port,
                keystone=self.keystone.url,
                password=PASSWORD,
            )
        )
        try:
            self._seed()
            self._start_rabbit()
            self._start_cinder()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for process in reversed(self._processes):  # with what it started: RabbitMQ's program is a script
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
        self.keystone.stop()

    def clouds(self, path: Path, **users: str) -> Path:
        """A clouds.yaml: one cloud a user, named as the user, in the project of the same name or as given."""
        lines = ["clouds:"]
        for user, project in users.items():
            lines += [
                f"  {user}:",
                "    auth:",
                f"      auth_url: {self.keystone.url}",
                f"      username: {user}",
                f'      password: "{PASSWORD}"',
                f"      project_name: {project}",
                "      user_domain_id: default",
                "      project_domain_id: default",
                f"    region_name: {REGION}",
            ]
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)
        return path

    def _seed(self) -> None:
        service = self.keystone.project("service")
        self.keystone.user("cinder", service, "admin", "service")
        self.keystone.service("cinder", "block-storage", f"http://127.0.0.1:{self.port}/v3/%(project_id)s")

    def _start_rabbit(self) -> None:
        """A node of its own: its own port mapper, cookie, folders."""
        home = self._folder / "rabbit"
        home.mkdir()
        mapper, distribution = _free_port(), _free_port()
        environ = os.environ | {
            "HOME": str(home),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "tests@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._rabbit),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(home / "config"),
        }
        epmd = shutil.which("epmd")
        assert epmd, "Install the Debian package rabbitmq-server"
        self.run("epmd", [epmd, "-port", str(mapper), "-address", "127.0.0.1"], environ)
        self.run("rabbit", [RABBIT], environ)
        wait_until(lambda: _answers_tcp(self._rabbit), "RabbitMQ listens", seconds=120)

    def _start_cinder(self) -> None:
        config = ["--config-file", str(self._config)]
        environ = os.environ | {
            "FILE_DRIVER_ROOT": str(self.volumes),
            "PYTHONPATH": f"{Path(__file__).parent}:{PATIENT}",
            "PATH": f"{self._home}/bin:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [str(self._home / "bin" / "cinder-manage"), *config, "db", "sync"],
            env=environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for name in ("cinder-api", "cinder-scheduler", "cinder-volume"):
            self.run(name, [str(self._home / "bin" / name), *config], environ)
        wait_until(self._is_up, "Cinder's services are up", seconds=180)

    def run(self, name: str, command: list[str], environ: dict[str, str]) -> None:
        """A process of this cloud: `log` has what it says, `stop` ends it."""
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self._folder,  # where RabbitMQ leaves what it has to say
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
            )
        self._processes.append(process)

    def require_alive(self) -> None:
        for process in self._processes:
            assert process.poll() is None, self.log()

    def _is_up(self) -> bool:
        self.require_alive()
        try:
            answer: Any = self.call("GET", "/os-services")
        except (httpx.TransportError, AssertionError):
            return False
        up = {service["binary"] for service in answer["services"] if service["state"] == "up"}
        return up >= {"cinder-scheduler", "cinder-volume"}

    def log(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in self._folder.glob("*.log"))

    def call(self, method: str, path: str, body: object = None, project: str = "admin", user: str = "admin") -> Any:
        """One request as an administrator sends it, below the project's address."""
        token = self.keystone.token(user, project=project)
        found = self.keystone.project_id(project)
        answer = httpx.request(
            method,
            f"http://127.0.0.1:{self.port}/v3/{found}{path}",
            json=body,
            headers={"X-Auth-Token": token, "OpenStack-API-Version": f"volume {MICROVERSION}"},
            timeout=60,
        )
        assert answer.status_code < 300, (method, path, answer.text)
        return answer.json() if answer.content else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _answers_tcp(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
