"""Two real servers that know each other as regions east and west, each reached by the other through a wire that counts
what goes over it and that can be cut."""

import contextlib
import secrets
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import Client, Server, wait_until

TURBO = "OS::Sfs::Turbo"


class Wire:
    """A TCP way to a server, on one port for good: the server behind it may start again on another one.

    down   bytes that came from the server       cut_after  bytes of `down` after which every connection breaks; None
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.target = ""
        self.down = 0
        self.cut_after: int | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self._break()

    @property
    def is_cut(self) -> bool:
        return self.cut_after is not None and self.down >= self.cut_after

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                assert not self.is_cut
                place = urlsplit(self.target)
                far = socket.create_connection((place.hostname, place.port), timeout=5)
            except (OSError, AssertionError, TypeError):
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if counted:
                    with self._lock:
                        self.down += len(data)
                    if self.is_cut:
                        self._break()
                        return
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _break(self) -> None:
        with self._lock:
            broken, self._open = self._open, set()
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


class Regions:
    """East and west. to_east is the wire by which west reaches east, and so on."""

    def __init__(self, base: Path, *, east: dict[str, str] | None = None, west: dict[str, str] | None = None) -> None:
        """`east`, `west`: settings of each."""
        self.base = base
        self.east = Server(base / "east", region="east", **(east or {}))
        self.west = Server(base / "west", region="west", **(west or {}))
        self.to_east, self.to_west = Wire(), Wire()
        self.secret = secrets.token_hex(32)
        for server in (self.east, self.west):  # the first start makes the projects that regions.toml names
            server.start().stop()
        self.write(self.east, "west", self.to_west)
        self.write(self.west, "east", self.to_east)

    def write(self, server: Server, other: str, wire: Wire, *, scheme: str = "http", more: str = "") -> None:
        here, there = (s.credentials["project_id"] for s in self.pair(server))
        endpoint = wire.endpoint.replace("http:", f"{scheme}:")
        lines = [f"[{other}]", f'endpoint = "{endpoint}"', f'secret = "{self.secret}"', more]
        lines += [f"[{other}.projects]", f'"{here}" = "{there}"']
        path = server.state / "regions.toml"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")

    def pair(self, server: Server) -> tuple[Server, Server]:
        """A server and the other one."""
        return (self.east, self.west) if server is self.east else (self.west, self.east)

    def start(self, server: Server, **settings: str) -> Server:
        server.start(**settings)
        (self.to_east if server is self.east else self.to_west).target = server.endpoint
        return server

    def stop(self) -> None:
        for server in (self.west, self.east):
            server.stop()
        for wire in (self.to_east, self.to_west):
            wire.close()

    @property
    def west_project(self) -> str:
        return self.west.credentials["project_id"]


def replication_vault(
    client: Client, name: str = "replicas", size: int = 100, object_type: str = "turbo", **more: Any
) -> str:
    billing = {
        "object_type": object_type,
        "protect_type": "replication",
        "consistent_level": "crash_consistent",
        "size": size,
    }
    return client.ok("POST", "vaults", {"vault": {"name": name, "billing": billing, "resources": [], **more}})["vault"][
        "id"
    ]


def destination(regions: Regions, vault: str) -> dict[str, str]:
    return {
        "destination_region": "west",
        "destination_project_id": regions.west_project,
        "destination_vault_id": vault,
    }


def record_of(client: Client, backup: str, record: str) -> dict[str, Any]:
    found = client.ok("GET", f"backups/{backup}")["backup"]["replication_records"]
    return next(r for r in found if r["id"] == record)


def replicated(client: Client, backup: str, record: str, status: str = "success") -> dict[str, Any]:
    """The record when it has ended, in this status."""
    ended = wait_until(
        lambda: (r := record_of(client, backup, record))["status"] not in ("waiting_replicate", "replicating") and r,
        f"replication {record} ended",
    )
    assert ended["status"] == status, ended
    return ended
