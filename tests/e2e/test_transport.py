"""The listener and the start of a server: TLS, refusals to start with a sentence, files and logs without secrets."""

import base64
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from certificates import certificate
from harness import Server, contents, make_tree
from hostile_world import Raw, processes_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

REFUSED_EXIT = 1  # docs/CLI.md: a setting, or the state folder, cannot be used


def serve(state: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`strongroom serve` that is expected to refuse; nothing of it may run when this returns."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}
    environ |= {f"STRONGROOM_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "strongroom", "serve", "--state", str(state), *options]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode not in (0, -9), done
    assert "Traceback" not in done.stderr, done.stderr
    assert processes_of(state) == []
    return done


def test_tls_serves_httpx_and_the_sdk(tmp_path: Path) -> None:
    """A certificate of one's own: token calls, signed SDK calls, and a clean end; plain HTTP gets nothing."""
    from huaweicloudsdkcbr.v1 import CbrClient, ListVaultRequest
    from huaweicloudsdkcore.auth.credentials import BasicCredentials
    from huaweicloudsdkcore.http.http_config import HttpConfig

    cert, key = certificate(tmp_path)
    server = Server(tmp_path / "state", tls_cert=str(cert), tls_key=str(key)).start()
    try:
        given = server.credentials
        assert given["endpoint"].startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=server.endpoint, verify=trusted) as client:
            assert client.get("/v3").status_code == 300
            assert client.get("/v3").json()["versions"][0]["links"][0]["href"].startswith("https://")
            assert client.post("/v3/x/vaults", content=b"x" * (2 << 20)).status_code in (404, 413)
        with httpx.Client(base_url=server.endpoint) as stranger, pytest.raises(httpx.ConnectError):
            stranger.get("/v3")
        config = HttpConfig.get_default_config()
        config.ssl_ca_cert = str(cert)
        credentials = BasicCredentials(given["access_key"], given["secret_key"], given["project_id"])
        builder = CbrClient.new_builder().with_http_config(config).with_credentials(credentials)
        sdk = builder.with_endpoint(server.endpoint).build()
        assert sdk.list_vault(ListVaultRequest()).vaults == []
        with Raw(server.endpoint, 10) as raw:
            raw.send(b"GET /v3 HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                assert not raw.socket.recv(100).startswith(b"HTTP")
            except ConnectionResetError:
                pass
    finally:
        assert server.stop() == 0, server.log()
    assert processes_of(tmp_path / "state") == []


def test_a_server_that_cannot_listen_safely_says_why(tmp_path: Path) -> None:
    """Beyond loopback without TLS, half of TLS, a broken certificate, a port in use: one sentence, nothing started."""
    state = tmp_path / "state"
    cert, key = certificate(tmp_path)
    for address in ("0.0.0.0:0", "example.org:0"):
        done = serve(state, "--listen", address)
        assert "without TLS would show passwords and tokens" in done.stderr and "--insecure" in done.stderr
        assert not state.exists(), "a refused start leaves nothing"
    assert "both" in serve(state, "--listen", "127.0.0.1:0", tls_cert=str(cert)).stderr
    assert "does not exist" in serve(state, "--tls-cert", str(tmp_path / "no"), "--tls-key", str(key)).stderr
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    done = serve(state, "--listen", "127.0.0.1:0", "--tls-cert", str(tmp_path / "bad.pem"), "--tls-key", str(key))
    assert "certificate" in done.stderr.lower() and str(tmp_path / "bad.pem") in done.stderr, done.stderr
    other = tmp_path / "other"
    other.mkdir()
    _, foreign_key = certificate(other)
    done = serve(state, "--listen", "127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(foreign_key))
    assert str(foreign_key) in done.stderr, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve(state, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert "Cannot listen on" in done.stderr and "--listen" in done.stderr
    done = serve(tmp_path / "second", "--listen", "192.0.2.1:0", "--insecure")  # an address this machine does not have
    assert "Cannot listen on" in done.stderr


def test_only_a_trusted_proxy_says_where_a_request_is_from(tmp_path: Path) -> None:
    """The audit log has the address of the connection, whatever headers say; of a proxy that is named, the client's."""
    forged = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    server = Server(tmp_path / "state")
    for trusted, address, scheme in (("", "127.0.0.1", "http"), ("127.0.0.0/8, ::1", "203.0.113.7", "https")):
        server.start(**({"trusted_proxies": trusted} if trusted else {}))
        try:
            with server.client() as client:
                assert client.http.get("/v3/nothing/vaults", headers=forged).status_code == 404
                refused = client.http.get(f"/v3/{'0' * 32}/vaults", headers=forged)
                assert refused.status_code in (401, 403), refused.text
                rows = client.ok("GET", "/ext/v1/admin/audit")["audit"]
                assert rows[0]["address"] == address, rows[0]
                links = client.http.get("/v3", headers=forged).json()["versions"][0]["links"]
                assert links[0]["href"].startswith(f"{scheme}://"), links
        finally:
            assert server.stop() == 0, server.log()
    refused = serve(tmp_path / "other", "--listen", "127.0.0.1:0", trusted_proxies="proxy.example.org")
    assert "trusted_proxies" in refused.stderr.lower() and "none" in refused.stderr, refused.stderr


def test_one_server_a_state_folder_and_its_key_alone(tmp_path: Path) -> None:
    """A second server names the first one's pid; without its key, or with another, no server starts; 0600 and no
    secret in the log, at debug level, after a whole story."""
    state = tmp_path / "state"
    server = Server(state, from_nothing=True, log_level="debug").start()
    try:
        done = serve_beside(state)
        assert server.process is not None
        assert f"in use by process {server.process.pid}" in done, done
        _story(server, tmp_path)
    finally:
        assert server.stop() == 0, server.log()
    assert processes_of(state) == []
    for name in ("credentials.json", "master.key", "lock"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    _no_secret_in(server)
    _key_is_needed(state, tmp_path)


def serve_beside(state: Path) -> str:
    command = [sys.executable, "-m", "strongroom", "serve", "--state", str(state), "--listen", "127.0.0.1:0"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("STRONGROOM_")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == REFUSED_EXIT, done
    assert "Traceback" not in done.stderr
    return done.stderr


SECRET_TOKENS: list[str] = []  # of the story, looked for in the log


def _story(server: Server, base: Path) -> None:
    """Backup, restore, delete, and everything that goes wrong with credentials."""
    make_tree(base / "share", 1, files=8)
    with server.client() as client:
        SECRET_TOKENS.append(client.http.headers["X-Auth-Token"])
        resource = client.register("turbo", "share", base / "share")
        vault = client.vault("v", "turbo", [resource])
        assert client.settled(client.checkpoint(vault))["status"] == "available"
        wanted = contents(base / "share")
        (base / "share" / "big").unlink()
        backup = client.backups()[0]["id"]
        assert client.restore(backup)["status"] == "success"
        assert contents(base / "share") == wanted
        user = client.ok("GET", "/ext/v1/admin/users")["users"][0]["id"]
        made = client.ok("POST", "/ext/v1/admin/keys", {"key": {"user_id": user}})["key"]
        SECRET_TOKENS.append(made["secret_key"])
        new_user = {"name": "extra", "password": "a-password-to-look-for", "project_id": client.project}
        client.ok("POST", "/ext/v1/admin/users", {"user": new_user})
        SECRET_TOKENS.append(new_user["password"])
        for body in ({"auth": 1}, {"auth": {"identity": {"methods": ["password"], "password": "hunter2-to-look-for"}}}):
            assert client.call("POST", "/v3/auth/tokens", body)[0] == 400
        SECRET_TOKENS.append("hunter2-to-look-for")
        with httpx.Client(base_url=server.endpoint) as stranger:
            wrong = "wrong-token-to-look-for"
            assert stranger.get(f"/v3/{client.project}/vaults", headers={"X-Auth-Token": wrong}).status_code == 401
            SECRET_TOKENS.append(wrong)
            user_of = {"name": server.credentials["username"], "password": "wrong-password-to-look-for"}
            body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user_of}}}}
            assert stranger.post("/v3/auth/tokens", json=body).status_code == 401
            SECRET_TOKENS.append(user_of["password"])
        client.ok("DELETE", f"backups/{backup}")
        client.quiet()


def _no_secret_in(server: Server) -> None:
    given = json.loads((server.state / "credentials.json").read_text())
    key = (server.state / "master.key").read_bytes()
    secrets = [given["password"], given["secret_key"], *SECRET_TOKENS]
    text = server.log_path.read_bytes() + "".join(server.output).encode() + (server.state / "postgres.log").read_bytes()
    assert len(text) > 2000, "a log at debug level"
    for secret in secrets:
        assert secret.encode() not in text, secret[:4]
    forms = [key, key.hex().encode(), base64.b64encode(key), base64.urlsafe_b64encode(key), repr(key)[2:-1].encode()]
    for line in key.split(b"\n"):
        forms += [line.strip()] if len(line.strip()) >= 16 else []
    for form in forms:
        assert form not in text, "master key"


def _key_is_needed(state: Path, base: Path) -> None:
    kept = base / "kept.key"
    shutil.move(state / "master.key", kept)
    done = serve(state, "--listen", "127.0.0.1:0")
    assert "master key" in done.stderr and "is missing" in done.stderr and "export-key" in done.stderr, done.stderr
    assert not (state / "master.key").exists(), "a lost key is never replaced"
    other = Server(base / "elsewhere").start()
    assert other.stop() == 0
    shutil.copy(base / "elsewhere" / "master.key", state / "master.key")
    done = serve(state, "--listen", "127.0.0.1:0")
    assert "master key" in done.stderr.lower(), done.stderr
    (state / "master.key").write_bytes(b"not a key")
    (state / "master.key").chmod(0o600)
    done = serve(state, "--listen", "127.0.0.1:0")
    assert "master.key" in done.stderr or "key" in done.stderr.lower(), done.stderr
    shutil.copy(kept, state / "master.key")
    again = Server(state).start()
    with again.client() as client:
        assert client.ok("GET", "vaults")["count"] == 1
    assert again.stop() == 0
