"""A server that agents dial, and agents as real processes, each with folders of its own."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from harness import WAIT_S_MAX, Client, Server, wait_until
from lifeline import end_with_starter

from strongroom.base.ids import new_id


def strongroom(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command line, as a person types it."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}
    done = subprocess.run(
        [sys.executable, "-m", "strongroom", *words], env=environ, capture_output=True, text=True, timeout=WAIT_S_MAX
    )
    assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
    return done


NATIVE, BARE_METAL = "OS::Native::Server", "OS::Ironic::BareMetalServer"


class Agent:
    """`strongroom agent run`; its files are in `base`."""

    def __init__(self, base: Path) -> None:
        base.mkdir(parents=True, exist_ok=True)
        self.base = base
        self.home, self.config, self.log_path = base / "home", base / "agent.toml", base / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def allow(self, *paths: Path, restore: bool = False, more: str = "") -> None:
        """Write the host's own file."""
        listed = ", ".join(json.dumps(str(path)) for path in paths)
        self.config.write_text(f"paths = [{listed}]\nrestore = {str(restore).lower()}\n{more}")
        self.config.chmod(0o644)

    def enroll(self, server: str, token: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        words = ("--server", server, "--token", token, "--config", str(self.config), "--home", str(self.home))
        return strongroom("agent", "enroll", *words, check=check)

    def start(self) -> "Agent":
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "strongroom", "agent", "run"),
                    *("--config", str(self.config), "--home", str(self.home)),
                ],
                stdout=log,
                stderr=log,
                preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
            )
        return self

    def dial(self, address: str) -> None:
        """Dial another address from the next start on."""
        file = self.home / "current" / "agent.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"server": address}))

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(WAIT_S_MAX)

    def log(self) -> str:
        return self.log_path.read_text()[-6000:] if self.log_path.exists() else ""


class World:
    """One server, its client, and its agents."""

    def __init__(self, base: Path) -> None:
        self.base = base
        with socket.create_server(("127.0.0.1", 0)) as free:  # the same after a restart: hosts know it
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.server = Server(base / "state", agent_listen=self.address).start()
        self.client: Client = self.server.client()
        self.agents: list[Agent] = []

    def end(self) -> None:
        for agent in self.agents:
            agent.stop()
        self.client.http.close()
        self.server.stop()

    def restart(self) -> None:
        """kill -9 of the server, and another one on its state."""
        self.server.kill()
        self.client.http.close()
        self.server.start()
        self.client = self.server.client()

    def registered(self, name: str, *paths: Path, excluded: dict[str, list[str]] | None = None) -> str:
        """A host as the API knows it; its id."""
        agent_id = new_id()
        body = {"agent_id": agent_id, "host_name": name, "host_ip": "127.0.0.1", "host_os": "Linux"}
        self.client.ok("POST", "agents", {"agent": body})
        if paths:
            body = {"add_path": [str(path) for path in paths]}
            if excluded:
                body["exclude_path"] = [{"path_name": k, "exclude_path_name": v} for k, v in excluded.items()]
            self.client.ok("POST", f"agents/{agent_id}/add-path", body)
        return agent_id

    def token(self, agent_id: str, kind: str = NATIVE) -> dict[str, str]:
        path = f"/ext/v1/{self.client.project}/agents/{agent_id}/enrolments"
        return self.client.ok("POST", path, {"resource_type": kind})["enrolment"]

    def agent(
        self, name: str, agent_id: str, *paths: Path, restore: bool = False, more: str = "", kind: str = NATIVE
    ) -> Agent:
        """Enrolled and running, and known to be."""
        agent = Agent(self.base / f"{name}-{agent_id[-8:]}")
        agent.allow(*paths, restore=restore, more=more)
        made = self.token(agent_id, kind)
        agent.enroll(made["server"], made["token"])
        self.agents.append(agent.start())
        self.wait_active(agent_id, agent)
        return agent

    def wait_active(self, agent_id: str, agent: Agent) -> None:
        wait_until(
            lambda: self.client.ok("GET", f"agents/{agent_id}")["agent"]["status"] == "normal",
            f"agent {agent_id} is there: {agent.log()}",
        )

    def vault(self, name: str, *agent_ids: str) -> str:
        body = {
            "vault": {
                "name": name,
                "billing": {
                    "object_type": "file",
                    "cloud_type": "hybrid",
                    "protect_type": "backup",
                    "consistent_level": "crash_consistent",
                    "size": 100,
                },
                "resources": [{"id": id_, "type": NATIVE} for id_ in agent_ids],
            }
        }
        return self.client.ok("POST", "vaults", body)["vault"]["id"]

    def backup(self, vault_id: str, resource_id: str, **parameters: Any) -> dict[str, Any]:
        """A backup of the vault, ended; its row with its report."""
        made = self.client.checkpoint(vault_id, **parameters)
        settled = self.client.settled(made)
        found = [b for b in self.client.backups(checkpoint_id=made) if b["resource_id"] == resource_id]
        assert settled["status"] == "available", (settled, self.server.log())
        return self.client.ok("GET", f"/ext/v1/{self.client.project}/backups/{found[0]['id']}")["backup"]


class Proxy:
    """A TCP proxy that cuts its connections, again and again: each after so many bytes from the agent, or seconds.

    from_far: what counts comes from the target. cuts_max: then it cuts no more. seed: how many bytes is by chance, half
    of `cut_every_bytes` to one and a half of them.
    """

    def __init__(
        self,
        target: str,
        cut_every_bytes: int | None = None,
        *,
        cut_every_s: float | None = None,
        from_far: bool = False,
        cuts_max: int | None = None,
        seed: int | None = None,
    ) -> None:
        host, _, port = target.rpartition(":")
        self.target = (host, int(port))
        self.cut_every_bytes, self.cut_every_s = cut_every_bytes, cut_every_s
        self._chance = random.Random(seed) if seed is not None else None
        self.cuts = 0
        self.passed = 0  # bytes that counted
        self.cuts_max = cuts_max
        self.from_far = from_far
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: Any) -> None:
        try:
            far = socket.create_connection(self.target)
        except OSError:
            near.close()
            return
        limit = self.cut_every_bytes
        if limit is not None and self._chance is not None:
            limit = self._chance.randint(limit // 2, limit * 3 // 2)
        near_limit, far_limit = (None, limit) if self.from_far else (limit, None)
        threading.Thread(target=self._copy, args=(far, near, far_limit, self.from_far), daemon=True).start()
        self._copy(near, far, near_limit, not self.from_far)

    def _copy(self, source: Any, sink: Any, limit: int | None, counts: bool) -> None:
        passed = 0
        begun_s = time.monotonic()
        try:
            while data := source.recv(16_384):
                passed += len(data)
                self.passed += len(data) if counts else 0
                late = counts and self.cut_every_s is not None and time.monotonic() - begun_s > self.cut_every_s
                if (late or (limit is not None and passed > limit)) and self.cuts != self.cuts_max:
                    self.cuts += 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def past_doubt(*folders: Path) -> None:
    """Wait until what was written last is old enough to be believed unchanged (RULINGS 15: two seconds)."""
    newest = max(path.lstat().st_ctime for folder in folders for path in (folder, *folder.rglob("*")))
    wait_until(lambda: time.time() - newest > 3, "change times in the past")
