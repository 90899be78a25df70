"""Two tenants on a real server, and what an attacker needs: raw sockets, row counts, the envelope of every refusal."""

import hashlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
from harness import Client, Server, make_tree

MISSING = "00000000-0000-4000-8000-000000000000"
# Written by signed requests themselves, by readers that come and go, by a clock, by refusals; no request of a tenant is
# about them.
PASSING_TABLES = frozenset(
    {"seen_signatures", "sessions", "alembic_version", "promise_clock", "audit_log", "programs", "notification_outbox"}
)
IDENTITY_PATHS = ("/v3/auth/", "/v3/projects", "/v3/users/")


@dataclass(kw_only=True)
class World:
    """alice is the first administrator, and the operator; bob administers a second project.

    shares: alice's vault with `share`, backed up twice; `first` is the older backup; `spare` is registered, not bound.
    """

    server: Server
    base: Path
    alice: Client
    bob: Client
    share: str
    spare: str
    disk: str
    vault: str
    checkpoint: str
    first: str
    second: str
    log: str

    @classmethod
    def build(cls, base: Path, **settings: str) -> "World":
        server = Server(base / "state", **settings).start()
        alice = server.client()
        paths = {name: base / name for name in ("share", "spare", "bobs")}
        for number, path in enumerate(paths.values()):
            make_tree(path, number, files=12)
        (base / "disk.raw").write_bytes(bytes(1 << 20))
        share, spare = (alice.register("turbo", name, paths[name]) for name in ("share", "spare"))
        disk = alice.register("disk", "disk", base / "disk.raw")
        vault = alice.vault("shares", "turbo", [share])
        checkpoint = alice.checkpoint(vault)
        assert alice.settled(checkpoint)["status"] == "available", server.log()
        first = alice.backups()[0]["id"]
        (paths["share"] / "big").write_bytes(b"changed")
        assert alice.settled(alice.checkpoint(vault))["status"] == "available", server.log()
        second = next(b["id"] for b in alice.backups() if b["id"] != first)
        return cls(
            server=server,
            base=base,
            alice=alice,
            bob=second_tenant(server, alice),
            share=share,
            spare=spare,
            disk=disk,
            vault=vault,
            checkpoint=checkpoint,
            first=first,
            second=second,
            log=alice.ok("GET", "operation-logs")["operation_logs"][0]["id"],
        )

    def close(self) -> None:
        self.alice.http.close()
        self.bob.http.close()
        assert self.server.stop() == 0, self.server.log()


def second_tenant(server: Server, operator: Client) -> Client:
    """A client of a new project with one user, te_admin of it."""
    project = operator.ok("POST", "/ext/v1/admin/projects", {"project": {"name": "second"}})["project"]["id"]
    user = {"name": "bob", "password": "correct horse battery staple", "project_id": project}
    operator.ok("POST", "/ext/v1/admin/users", {"user": user})
    given = server.credentials
    return Client(
        server.endpoint,
        {"project_id": project, "username": "bob", "password": user["password"], "domain_name": given["domain_name"]},
    )


# --- looking behind the API -------------------------------------------------------------------------------------------


def connect(state: Path) -> psycopg.Connection[Any]:
    """A connection to the embedded PostgreSQL of a running server."""
    data = state / "postgres"
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    places = (state / "postgres.socket", runtime / f"strongroom-{digest}", Path("/tmp") / f"strongroom-{digest}")
    folder = next(place for place in places if (place / ".s.PGSQL.5432").exists())
    return psycopg.connect(f"postgresql://strongroom@/strongroom?host={quote(str(folder), safe='')}", autocommit=True)


class Rows:
    """How many rows each table has."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        found = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
        tables = [name for (name,) in found if name not in PASSING_TABLES]
        assert "vaults" in tables
        self._tables = tables
        self._query = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in tables)
        # What was seen of a resource is kept whatever becomes of the request: its size and whether it is there.
        marks = (
            f"(SELECT (count(*){'' if table == 'protectables' else ', sum(xmin::text::bigint)'})::text FROM {table})"
            for table in tables
        )
        self._marks_query = "SELECT " + ", ".join(marks)

    def count(self) -> tuple[Any, ...]:
        row = self._conn.execute(self._query.encode()).fetchone()
        assert row is not None
        return row

    def marks(self) -> tuple[Any, ...]:
        """As count, with the transactions that wrote the rows: an update shows as well."""
        row = self._conn.execute(self._marks_query.encode()).fetchone()
        assert row is not None
        return row

    def keep(self) -> None:
        """Remember every row, for `bring_back`."""
        self._conn.execute("CREATE SCHEMA IF NOT EXISTS kept")
        for table in self._tables:
            self._conn.execute(f"CREATE TABLE IF NOT EXISTS kept.{table} AS TABLE public.{table}".encode())

    def bring_back(self) -> None:
        """The rows of `keep` and no others."""
        with self._conn.transaction():
            self._conn.execute("SET LOCAL session_replication_role = replica")  # no order among tables
            for table in self._tables:
                self._conn.execute(f"DELETE FROM public.{table}".encode())
                self._conn.execute(f"INSERT INTO public.{table} OVERRIDING SYSTEM VALUE TABLE kept.{table}".encode())

    def contents(self, project_id: str) -> list[Any]:
        """Every row of a tenant, as text."""
        tables = ("vaults", "vault_tags", "vault_resources", "protectables", "checkpoints", "checkpoint_resources")
        found = []
        for table in (*tables, "backups", "operation_logs"):
            query = f"SELECT t::text FROM {table} t WHERE project_id = %s ORDER BY 1"
            found += self._conn.execute(query.encode(), [project_id]).fetchall()
        return found


def processes_of(state: Path) -> list[str]:
    """Command lines of processes that work in the folder or name it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            inside = Path(os.readlink(entry / "cwd")).is_relative_to(state)
        except OSError:
            continue
        if inside or any(os.fsencode(state) in word for word in words if word):
            found.append(b" ".join(words).decode(errors="replace"))
    return found


# --- refusals ---------------------------------------------------------------------------------------------------------


def envelope(path: str, status: int, headers: Any, text: bytes) -> tuple[str, str]:
    """(code, sentence) of a refusal, after its form was checked."""
    assert headers["Content-Type"] == "application/json", (path, status, dict(headers))
    assert len(headers["X-Request-Id"]) == 36, (path, status, dict(headers))
    body = json.loads(text)
    if path.startswith(IDENTITY_PATHS) and "error" in body:
        error = body["error"]
        assert error["code"] == status and error["title"], body
        code, sentence = str(status), error["message"]
    else:
        assert set(body) <= {"error_code", "error_msg", "request_id"}, body
        code, sentence = body["error_code"], body["error_msg"]
        assert code.startswith(("BackupService.", "APIGW.")), body
    assert len(sentence) > 10, body
    for odd in ("Traceback", "psycopg", "/site-packages/", "None", "<class"):
        assert odd not in sentence, body
    return code, sentence


def refused(answer: httpx.Response, status: int, code: str, *words: str) -> str:
    """The sentence of a refusal with this status and code that says these words."""
    assert answer.status_code == status, (answer.request.method, str(answer.url), answer.status_code, answer.text)
    found, sentence = envelope(answer.url.path, status, answer.headers, answer.content)
    assert found == code, answer.text
    for word in words:
        assert word in sentence, answer.text
    return sentence


class Raw:
    """One connection, spoken byte by byte. `answer` reads one answer: (status, headers, body)."""

    def __init__(self, endpoint: str, timeout_s: float = 30) -> None:
        host, _, port = endpoint.partition("://")[2].partition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.settimeout(timeout_s)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """False when the server had enough."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.socket.recv(65536)
            assert piece, "closed without an answer"
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.title(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["Content-Length"])
        while len(body) < length:
            piece = self.socket.recv(65536)
            assert piece, "the answer was cut off"
            body += piece
        return int(status_line.split()[1]), headers, body

    def refusal(self, path: str = "/") -> tuple[int, str, str]:
        """(status, code, sentence), the envelope checked."""
        status, headers, body = self.answer()
        return status, *envelope(path, status, headers, body)
