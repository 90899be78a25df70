"""A real Keystone: OpenStack's own package in an environment of its own, SQLite, on a free port of loopback."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
from harness import wait_until
from lifeline import end_with_starter
from private_environment import environment

PASSWORD = "correct horse battery staple"
REGION = "RegionOne"

CONFIG = """
[database]
connection = sqlite:///{folder}/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = {folder}/fernet
[fernet_receipts]
key_repository = {folder}/receipts
[credential]
key_repository = {folder}/credential
"""


class Keystone:
    """`admin` administers it; `member` gives tokens of any user. Stop it and start it again as often as wanted."""

    def __init__(self, folder: Path) -> None:
        self._programs = environment("keystone") / "bin"
        self._folder = folder
        folder.mkdir()
        self._config = folder / "keystone.conf"
        self._config.write_text(CONFIG.format(folder=folder))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v3"
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = [f"--keystone-user={os.getuid()}", f"--keystone-group={os.getgid()}"]
        self._manage("db_sync")
        self._manage("fernet_setup", *self._owner)
        self._manage("receipt_setup", *self._owner)
        self._manage("credential_setup", *self._owner)
        place = [f"--bootstrap-{kind}-url={self.url}" for kind in ("admin", "internal", "public")]
        self._manage("bootstrap", f"--bootstrap-password={PASSWORD}", f"--bootstrap-region-id={REGION}", *place)

    def _manage(self, *words: str) -> None:
        command = [str(self._programs / "keystone-manage"), "--config-file", str(self._config), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr[-3000:])

    def rotate_keys(self) -> None:
        """One step of three: after those, what the first key sealed does not open any more."""
        self._manage("fernet_rotate", *self._owner)

    def start(self) -> "Keystone":
        script = Path(__file__).with_name("keystone_wsgi.py")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "python"), str(script), str(self._config), str(self.port)],
                stdout=log,
                stderr=log,
                preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
            )
        wait_until(self._answers, "Keystone answers")
        return self

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self._folder / "log").read_text()[-3000:]
        try:
            return httpx.get(self.url).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    # --- what an administrator of it does -----------------------------------------------------------------------------

    def token(self, user: str, *, project: str | None = None, system: bool = False) -> str:
        """Of a user of its domain Default, for a project by name, for the whole system, or for nothing."""
        who = {"name": user, "password": PASSWORD, "domain": {"id": "default"}}
        auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": who}}}
        if project is not None:
            auth["scope"] = {"project": {"name": project, "domain": {"id": "default"}}}
        elif system:
            auth["scope"] = {"system": {"all": True}}
        answer = httpx.post(f"{self.url}/auth/tokens", json={"auth": auth}, timeout=60)
        assert answer.status_code == 201, answer.text
        return answer.headers["X-Subject-Token"]

    def call(self, method: str, path: str, body: object = None) -> Any:
        headers = {"X-Auth-Token": self.token("admin", project="admin")}
        answer = httpx.request(method, self.url + path, json=body, headers=headers, timeout=60)
        assert answer.status_code < 300, (method, path, answer.text)
        return answer.json() if answer.content else None

    def project(self, name: str) -> str:
        return self.call("POST", "/projects", {"project": {"name": name, "domain_id": "default"}})["project"]["id"]

    def project_id(self, name: str) -> str:
        return self.call("GET", f"/projects?name={name}")["projects"][0]["id"]

    def service(self, name: str, kind: str, url: str) -> None:
        """In the catalog, at the same address for everybody."""
        made = self.call("POST", "/services", {"service": {"name": name, "type": kind}})["service"]["id"]
        for interface in ("public", "internal", "admin"):
            place = {"interface": interface, "service_id": made, "url": url, "region_id": REGION}
            self.call("POST", "/endpoints", {"endpoint": place})

    def user(self, name: str, project_id: str, *roles: str) -> str:
        body = {"user": {"name": name, "password": PASSWORD, "domain_id": "default"}}
        user_id = self.call("POST", "/users", body)["user"]["id"]
        for role in roles:
            self.call("PUT", f"/projects/{project_id}/users/{user_id}/roles/{self.role(role)}")
        return user_id

    def role(self, name: str) -> str:
        found = self.call("GET", f"/roles?name={name}")["roles"]
        return found[0]["id"] if found else self.call("POST", "/roles", {"role": {"name": name}})["role"]["id"]
