"""Mail and webhooks arrive at real receivers: signed, once or again, and nowhere they must not go."""

import hashlib
import hmac
import json
import shutil
import socketserver
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Server, make_tree, wait_until

pytestmark = pytest.mark.e2e
SECRET = "canary-of-the-webhook"


class Hook(BaseHTTPRequestHandler):
    """Keeps what it gets; refuses the first call of each id."""

    got: list[tuple[dict[str, str], bytes]]
    lock: threading.Lock

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            seen = {headers["x-strongroom-id"] for headers, _ in self.got}
            self.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(200 if self.headers["X-Strongroom-Id"] in seen else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


class Smtp(socketserver.StreamRequestHandler):
    """A server of RFC 5321 as small as it can be."""

    mails: list[tuple[str, Message]]

    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        receiver = ""
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"RCPT":
                receiver = line.decode().partition("<")[2].partition(">")[0]
            if verb != b"DATA":
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
                continue
            self.wfile.write(b"354 go on\r\n")
            data = b""
            while not data.endswith(b"\r\n.\r\n"):
                data += self.rfile.readline()
            self.mails.append((receiver, message_from_bytes(data)))
            self.wfile.write(b"250 kept\r\n")


@pytest.fixture
def receivers() -> Iterator[tuple[int, list[Any], int, list[Any]]]:
    """Ports and what arrived: webhook, mail."""
    got: list[Any] = []
    mails: list[Any] = []
    hook = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHook", (Hook,), {"got": got, "lock": threading.Lock()}))
    smtp = socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("OwnSmtp", (Smtp,), {"mails": mails}))
    for server in (hook, smtp):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hook.server_address[1], got, smtp.server_address[1], mails
    for server in (hook, smtp):
        server.shutdown()
        server.server_close()


def create(client: Client, **asked: object) -> tuple[int, Any]:
    return client.call("POST", f"/ext/v1/{client.project}/notifications", {"notification": asked})


def test_a_failed_backup_is_told_by_mail_and_webhook(tmp_path: Path, receivers: Any) -> None:
    """Each receiver hears of it; a webhook that refused gets the same id again, signed anew; nobody else hears."""
    port, got, smtp_port, mails = receivers
    make_tree(tmp_path / "tree", 1)
    settings = {"smtp_host": f"127.0.0.1:{smtp_port}", "smtp_tls": "none", "webhook_allow": "127.0.0.1/32"}
    server = Server(tmp_path / "state", **settings).start()
    with server.client() as client:
        url = f"http://127.0.0.1:{port}/hook"
        status, made = create(client, name="hook", kind="webhook", target=url, events=["failed"], secret=SECRET)
        assert status == 201 and "secret" not in made["notification"]
        assert create(client, name="mail", kind="mail", target="ops@example.org", events=["failed"])[0] == 201
        assert create(client, name="other", kind="mail", target="no@example.org", events=["nearly_full"])[0] == 201
        vault = client.vault("vault", "turbo", [client.register("turbo", "tree", tmp_path / "tree")])
        assert client.settled(client.checkpoint(vault))["status"] == "available"
        shutil.rmtree(tmp_path / "tree")
        assert client.settled(client.checkpoint(vault))["status"] == "error"
        wait_until(lambda: len(got) >= 2 and mails, "both were told, the webhook twice")
        (first, body), (again, body_again) = got[:2]
        assert first["x-strongroom-id"] == again["x-strongroom-id"]
        for headers, raw in ((first, body), (again, body_again)):
            signed = headers["x-strongroom-timestamp"].encode() + b"." + raw
            wanted = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
            assert headers["x-strongroom-signature"] == f"v1={wanted}"
        told = json.loads(body)
        assert (told["event"], told["data"]["operation"], told["data"]["vault_id"]) == ("failed", "backup", vault)
        assert told["project_id"] == client.project and told["data"]["error_message"]
        ((receiver, mail),) = mails
        assert receiver == "ops@example.org" and mail["Subject"].startswith("Strongroom: A task failed")
        path = f"/ext/v1/{client.project}/notifications/{made['notification']['id']}"

        def delivered() -> Any:
            (last,) = client.ok("GET", path)["notification"]["deliveries"]
            return last["status"] == "sent" and last

        assert wait_until(delivered, "the delivery is noted")["attempts"] == 2
        assert client.call("DELETE", path)[0] == 204
        assert client.call("GET", path)[0] == 404
    assert server.stop() == 0
    assert SECRET not in server.log_path.read_text()


@pytest.mark.parametrize(
    "target",
    [
        *(
            "http://example.org/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://10.0.0.1/",
            "https://169.254.169.254/",
        ),
        *("https://[::ffff:127.0.0.1]/", "https://user@example.org/", "ftp://example.org/", "https://", "not a url"),
    ],
)
def test_no_webhook_leads_into_the_operators_network(shared: Client, target: str) -> None:
    """Refused at once where the URL says it."""
    status, answer = create(shared, name="x", kind="webhook", target=target)
    assert status == 400, answer


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    server = Server(tmp_path_factory.mktemp("targets") / "state").start()
    with server.client() as client:
        yield client
    server.stop()


def test_a_name_that_leads_there_is_refused_when_it_is_called(shared: Client) -> None:
    """localhost is a name like any other; the reason stands with the notification, and tells no address."""
    _, made = create(shared, name="x", kind="webhook", target="https://localhost:1/", events=["failed"])
    path = f"/ext/v1/{shared.project}/notifications/{made['notification']['id']}"
    assert len(made["notification"]["secret"]) > 30
    assert shared.call("POST", f"{path}/test", {})[0] == 204
    told = wait_until(
        lambda: (d := shared.ok("GET", path)["notification"]["deliveries"]) and d[0]["last_error"], "it was tried"
    )
    assert "not a public address" in told and "127." not in told


def test_mail_needs_a_server_and_an_address(shared: Client) -> None:
    """The sentence says what is missing."""
    status, answer = create(shared, name="x", kind="mail", target="ops@example.org")
    assert status == 400 and "smtp_host" in answer["error_msg"]
    assert create(shared, name="x", kind="mail", target="a@b.org\nBcc: c@d.org")[0] == 400
