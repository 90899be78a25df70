"""The servers that are measured, each a process of its own on a port of its own, all on one PostgreSQL.

strongroom is the real command with its defaults, its log going to a file; the other two are this folder's.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from strongroom.base.signing import DATE_FORMAT, authorization, sign

_START_S_MAX = 60.0
_STOP_S_MAX = 30.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers."""

    pid: int
    port: int


@contextmanager
def strongroom(url: str, folder: Path, *, source: Path | None = None, name: str = "strongroom") -> Iterator[Running]:
    """`strongroom serve` until the block ends. source: a folder with another version of the program, which gets a state
    folder of its own with the same master key."""
    port = _free_port()
    state = folder / "state"
    if source is not None:
        state = folder / f"state-{name}"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(mode=0o700)
        shutil.copy(folder / "state" / "master.key", state)
    command = [sys.executable, "-m", "strongroom", "serve", "--state", str(state), "--listen", f"127.0.0.1:{port}"]
    environ = {
        "STRONGROOM_DATABASE_URL": url,
        "STRONGROOM_STORE_URL": f"file://{folder / 'store'}",
    }
    with _process(command, port, folder / f"{name}.log", environ, source) as running:
        yield running


@contextmanager
def peer(module: str, url: str, folder: Path) -> Iterator[Running]:
    """bench.api.minimal or bench.api.orm until the block ends."""
    port = _free_port()
    command = [sys.executable, "-m", f"bench.api.{module}", url, str(port)]
    with _process(command, port, folder / f"{module}.log", {}, None) as running:
        yield running


@contextmanager
def _process(
    command: list[str], port: int, log: Path, environ: Mapping[str, str], source: Path | None
) -> Iterator[Running]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**clean, **environ}, stdout=file, stderr=file, cwd=source)
    try:
        end = time.monotonic() + _START_S_MAX
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[2]} does not answer:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.05)
        yield Running(pid=process.pid, port=port)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


# --- a client's credentials -----------------------------------------------------------------------------------------


def credentials(folder: Path) -> dict[str, str]:
    """Those of the first account."""
    found: dict[str, str] = json.loads((folder / "state" / "credentials.json").read_bytes())
    return found


def token(port: int, account: Mapping[str, str]) -> tuple[str, str]:
    """(a token as `openstack` gets it, id of its user)."""
    user = {"name": account["username"], "password": account["password"], "domain": {"name": account["domain_name"]}}
    body: dict[str, Any] = {
        "auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"id": account["project_id"]}},
        }
    }
    answer = httpx.post(f"http://127.0.0.1:{port}/v3/auth/tokens", json=body, timeout=30)
    answer.raise_for_status()
    return answer.headers["X-Subject-Token"], answer.json()["token"]["user"]["id"]


def plain(method: str, port: int, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of a request, with the headers that every client sends."""
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "User-Agent: bench",
        "Accept: */*",
        *(f"{name}: {value}" for name, value in headers.items()),
        *([f"Content-Type: application/json\r\nContent-Length: {len(body)}"] if body else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def signed(port: int, path: str, account: Mapping[str, str]) -> bytes:
    """A GET signed with the account's access key, as `huaweicloudsdkcbr` does it."""
    headers = {
        "host": f"127.0.0.1:{port}",
        "x-project-id": account["project_id"],
        "x-sdk-date": datetime.now(UTC).strftime(DATE_FORMAT),
    }
    signature = sign(account["secret_key"], "GET", path.encode(), headers, b"")
    sent = {
        "X-Project-Id": headers["x-project-id"],
        "X-Sdk-Date": headers["x-sdk-date"],
        "Authorization": authorization(account["access_key"], headers, signature),
    }
    return plain("GET", port, path, sent)
