"""A real Nova (API, scheduler, conductor, compute with Nova's own fake hypervisor) with its Placement, SQLite, beside a
real Cinder: what is asked of Nova's API and of its volumes is real, the machines are rows, the networks pretended."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
from harness import wait_until
from pretended_neutron import PretendedNeutron
from private_environment import environment
from real_cinder import PATIENT, Cinder
from real_keystone import PASSWORD, REGION

MICROVERSION = "2.89"

LOGIN = """
auth_url = {keystone}
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
region_name = {region}
username = nova
password = {password}
"""
SECTIONS = ("keystone_authtoken", "placement", "neutron", "service_user")
CONFIG = """
[DEFAULT]
host = a-compute-host
compute_driver = fake.FakeDriver
transport_url = {rabbit}
state_path = {folder}/state
my_ip = 127.0.0.1
vif_plugging_is_fatal = false
vif_plugging_timeout = 0
report_interval = 60
service_down_time = 600
[conductor]
workers = 1
[api_database]
connection = sqlite:///{folder}/api.db?timeout=60
sqlite_synchronous = false
[database]
connection = sqlite:///{folder}/cell.db?timeout=60
sqlite_synchronous = false
[scheduler]
discover_hosts_in_cells_interval = 2
[oslo_concurrency]
lock_path = {folder}/lock
[cinder]
catalog_info = block-storage::publicURL
"""
PLACEMENT = """
[placement_database]
connection = sqlite:///{folder}/placement.db?timeout=60
sqlite_synchronous = false
sync_on_startup = true
"""


class Nova:
    """Started beside a Cinder, whose `stop` ends its processes too; `stop` ends the rest."""

    def __init__(self, folder: Path, cinder: Cinder) -> None:
        folder.mkdir()
        self._folder = folder
        self._home = environment("nova")
        self._cinder = cinder
        self.port, placement = _free_port(), _free_port()
        (folder / "state").mkdir()
        login = LOGIN.format(keystone=cinder.keystone.url, password=PASSWORD, region=REGION)
        logins = "".join(f"[{name}]{login}" for name in SECTIONS)
        words = {"folder": folder, "rabbit": cinder.transport}
        (folder / "nova.conf").write_text(
            CONFIG.format(**words) + logins + "send_service_user_token = true\n[cinder]" + login
        )
        (folder / "placement.conf").write_text(PLACEMENT.format(**words) + "[keystone_authtoken]" + login)
        (folder / "api-paste.ini").write_bytes((self._home / "etc" / "nova" / "api-paste.ini").read_bytes())
        keystone = cinder.keystone
        keystone.user("nova", keystone.project_id("service"), "admin", "service")
        keystone.service("nova", "compute", f"http://127.0.0.1:{self.port}/v2.1")
        keystone.service("placement", "placement", f"http://127.0.0.1:{placement}")
        self.neutron = PretendedNeutron()
        keystone.service("neutron", "network", self.neutron.url)
        keystone.service("glance", "image", self.neutron.url)  # Nova names its address, and asks it nothing
        self._seed()
        environ = self._environ()
        script = [str(self._home / "bin" / "python"), str(Path(__file__).with_name("nova_wsgi.py"))]
        cinder.run("placement", [*script, "placement.wsgi.api", str(placement)], environ)
        wait_until(lambda: _answers(placement), "Placement answers", seconds=120)
        for name in ("nova-conductor", "nova-scheduler", "nova-compute"):
            cinder.run(name, [str(self._home / "bin" / name), "--config-file", str(folder / "nova.conf")], environ)
        cinder.run("nova-api", [*script, "nova.wsgi.osapi_compute", str(self.port)], environ)
        wait_until(self._is_up, "Nova's services are up", seconds=180)

    def stop(self) -> None:
        self.neutron.stop()

    def _environ(self) -> dict[str, str]:
        return os.environ | {
            "OS_NOVA_CONFIG_DIR": str(self._folder),
            "OS_PLACEMENT_CONFIG_DIR": str(self._folder),
            "PYTHONPATH": str(PATIENT),
            "PATH": f"{self._home}/bin:{os.environ['PATH']}",
        }

    def _seed(self) -> None:
        self._manage("api_db", "sync")
        self._manage("cell_v2", "map_cell0", "--database_connection", f"sqlite:///{self._folder}/cell0.db?timeout=60")
        self._manage("db", "sync")
        self._manage("cell_v2", "create_cell", "--name", "cell1")

    def _manage(self, *words: str) -> None:
        command = [str(self._home / "bin" / "nova-manage"), "--config-file", str(self._folder / "nova.conf"), *words]
        done = subprocess.run(command, env=self._environ(), capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])

    def _is_up(self) -> bool:
        self._cinder.require_alive()
        try:
            up = {
                one["binary"]
                for one in self.call("GET", "/os-services", user="admin")["services"]
                if one["state"] == "up"
            }
            hosts = self.call("GET", "/os-hypervisors", user="admin")["hypervisors"]
        except (httpx.TransportError, AssertionError):
            return False
        return up >= {"nova-scheduler", "nova-conductor", "nova-compute"} and bool(hosts)

    def call(self, method: str, path: str, body: object = None, user: str = "ours") -> Any:
        """One request as a user sends it, in the project of the same name."""
        answer = httpx.request(
            method,
            f"http://127.0.0.1:{self.port}/v2.1{path}",
            json=body,
            headers={
                "X-Auth-Token": self._cinder.keystone.token(user, project=user),
                "OpenStack-API-Version": f"compute {MICROVERSION}",
            },
            timeout=60,
        )
        assert answer.status_code < 300, (method, path, answer.text, self._cinder.log())
        return answer.json() if answer.content else None

    def flavor(self, name: str, **more: int) -> str:
        body = {"flavor": {"name": name, "ram": 64, "vcpus": 1, "disk": 0} | more}
        return self.call("POST", "/flavors", body, user="admin")["flavor"]["id"]

    def server(self, name: str, flavor: str, volumes: list[str], network: str | None = None) -> str:
        """It boots from the first of these volumes, and has the others too; running on return."""
        disks = [
            {"uuid": id_, "source_type": "volume", "destination_type": "volume", "boot_index": number or 0}
            | ({"boot_index": -1} if number else {})
            for number, id_ in enumerate(volumes)
        ]
        networks = [{"uuid": network}] if network else "none"
        words = {"name": name, "flavorRef": flavor, "networks": networks, "block_device_mapping_v2": disks}
        made = self.call("POST", "/servers", {"server": words})["server"]["id"]
        self.await_status(made, "ACTIVE")
        return made

    def show(self, server_id: str) -> dict[str, Any]:
        return self.call("GET", f"/servers/{server_id}")["server"]

    def await_status(self, server_id: str, status: str) -> None:
        def reached() -> bool:
            found = self.show(server_id)
            assert found["status"] != "ERROR", (found, self._cinder.log())
            return found["status"] == status and found["OS-EXT-STS:task_state"] is None

        wait_until(reached, f"the server is {status}", seconds=120)

    def act(self, server_id: str, action: str, words: object = None) -> None:
        self.call("POST", f"/servers/{server_id}/action", {action: words})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    except httpx.TransportError:
        return False
