"""Random requests over every operation of the table, each checked: status, envelope, and rows when it was refused.

Paths, queries and bodies come from the operations' own types and from the query parameters of the contract; then some
places are given odd values. Other bodies are sound ones of which one member, or some bytes, are changed: they come
further before they are refused. What the operations do not implement of the contract is asked for too.
"""

import http.client
import json
import random
from collections import Counter
from importlib import resources
from typing import Any
from urllib.parse import quote, quote_from_bytes, urlsplit

import msgspec
from every_operation import every_operation
from harness import Client
from hostile_world import MISSING, Rows, World, envelope
from tenant_matrix import Tenant, sound_bodies

from strongroom.api.operation import Operation
from strongroom.api.table import OPERATIONS

CONTRACT = json.loads(resources.files("strongroom.api").joinpath("openapi.json").read_text())
REFUSALS = {400, 401, 403, 404, 405, 413, 429}

TEXTS = (
    *("", "a", "null", "true", "-1", "0", "1", "1.5", "1e400", "9" * 400, "0x10", "٣", "²"),
    *(
        "n" * 300,
        "n" * 5000,
        "<script>",
        "'; DROP TABLE vaults; --",
        "%s%n{0}",
        "$(id)",
        "a\x00b",
        "a\nb",
        "\ud7ff\uffff",
    ),
    *(
        "..",
        "../..",
        "/",
        "/etc/passwd",
        "a/../b",
        "\u202e",
        "é",
        "漢字",
        "\U0001f4a9",
        "ALL",
        "available",
        "OS::Sfs::Turbo",
    ),
    *(
        "crash_consistent",
        "backup",
        "turbo",
        "disk",
        "2020-02-05T10:38:34Z",
        "9999-12-31T23:59:59Z",
        "AAAA",
        "!!",
        "0" * 32,
    ),
)
NUMBERS = (
    0,
    1,
    -1,
    10,
    100,
    1000,
    1001,
    10485760,
    10485761,
    2**31,
    2**31 - 1,
    2**63,
    2**63 - 1,
    -(2**63),
    2**64,
    10**40,
)
RAW = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 2000,
    b'{"vault":' * 2000,
    b'{"a":1,"a":2}',
    b"{}" * 5,
    b"NaN",
    b"0",
)


AUTHORIZATIONS = (
    *("", "Basic YTpi", "Bearer x", "SDK-HMAC-SHA256", "SDK-HMAC-SHA256 Access=x, SignedHeaders=;, Signature=0"),
    f"SDK-HMAC-SHA256 Access={'A' * 20}, SignedHeaders=host;x-sdk-date, Signature={'0' * 64}",
    f"SDK-HMAC-SHA256 Access={'A' * 20}, SignedHeaders=host;host;x-sdk-date, Signature={'0' * 64}",
    f"SDK-HMAC-SHA256 Credential={'A' * 20}/20260101/r/cbr/sdk_request, SignedHeaders=x-sdk-date, Signature={'f' * 64}",
    f"V11-HMAC-SHA256 Credential=x, SignedHeaders=x-sdk-date, Signature={'0' * 64}",
    "SDK-HMAC-SHA256 Access=\xe9, SignedHeaders=x-sdk-date, Signature=" + "é" * 64,
)
ODD_HEADERS = ("", "x", "é", "a" * 5000, "f" * 32, "text/plain", "multipart/form-data; boundary=x", "%00", "\t")


ENDLESS = frozenset({"stream_events"})  # its answer ends with its credentials; tests/contract/test_api_events.py


class Attacker:
    """One random walk. `refused` and `accepted` count the answers.

    The attacker has every role there is, the operator's too, and logs in again when a request of its own logged it out.
    """

    def __init__(self, world: World, rows: Rows, rng: random.Random) -> None:
        self._rng, self._rows, self._world = rng, rows, world
        place = urlsplit(world.server.endpoint)
        self._connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        with world.server.client() as alice:
            self._token = alice.http.headers["X-Auth-Token"]
            self._accounts = _victims(world, alice)
        self._old_tokens = [self._token]
        self._sound = sound_bodies(_tenant_of(world))
        self._operations = [row for row in every_operation() if row.name not in ENDLESS]
        self._unknown = [
            (method.upper(), path)
            for path, methods in CONTRACT["paths"].items()
            for method in methods
            if (method.upper(), path) not in {(o.method, o.path) for o in self._operations}
        ]
        self._parameters = {
            (method.upper(), path): [p["name"] for p in made.get("parameters", []) if p.get("in") == "query"]
            for path, methods in CONTRACT["paths"].items()
            for method, made in methods.items()
        }
        self._ids = [world.share, world.spare, world.disk, world.vault, world.checkpoint, world.first, world.second]
        self._ids += [world.log, MISSING]
        self._counts: Counter[tuple[str, int]] = Counter()
        self.refused = self.accepted = self.left_rows = 0
        rows.keep()
        self._before = rows.marks()

    def __enter__(self) -> "Attacker":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def answers(self, least: int) -> int:
        """How many answers had this status or a greater one."""
        return sum(count for (_, status), count in self._counts.items() if status >= least)

    def summary(self) -> str:
        statuses: Counter[int] = Counter()
        for (_, status), count in self._counts.items():
            statuses[status] += count
        accepted = sorted({name for name, status in self._counts if status < 300})
        return f"statuses {dict(statuses)}, accepted: {', '.join(accepted)}"

    def begin_again(self) -> None:
        """Everything is there again that was deleted, taken or occupied: no worker ends what was begun."""
        self._rows.bring_back()
        self._before = self._rows.marks()

    def step(self) -> None:
        """One request, and what must hold after it."""
        rng = self._rng
        operation = rng.choice(self._operations)
        if operation.name == "create_token" and rng.random() < 0.8:  # each costs a password hash
            operation = rng.choice([row for row in OPERATIONS if row.name not in ENDLESS])
        method, pattern, body = operation.method, operation.path, self._body(operation)
        if rng.random() < 0.05:
            method, pattern = rng.choice(self._unknown)
        elif rng.random() < 0.05:
            method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
        path = "/".join(self._segment(part) for part in pattern.split("/"))
        names = self._parameters.get((operation.method, operation.path), [])
        if operation.query is not None:
            names = [*names, *(f.encode_name for f in msgspec.structs.fields(operation.query))]
        query = self._query(names)
        headers = self._headers(operation)
        sent = (method, path + query, body, headers)
        answer, text = self._send(*sent)
        self._check(f"{method} {path}{query} {body[:600]!r} {headers}", path, answer, text, operation.name, sent)

    def _send(
        self, method: str, url: str, body: bytes, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self._connection.request(method, url, body=body, headers=headers)
        answer = self._connection.getresponse()
        return answer, answer.read()

    def _headers(self, operation: Operation) -> dict[str, str]:
        rng = self._rng
        headers = {"X-Auth-Token": self._token, "Content-Type": "application/json"}
        if rng.random() < 0.05:
            headers["X-Auth-Token"] = rng.choice(["", "x", "é", "a" * 9000, *self._old_tokens])
        elif rng.random() < 0.03:
            del headers["X-Auth-Token"]
            headers["Authorization"] = rng.choice(AUTHORIZATIONS)
            headers["X-Sdk-Date"] = rng.choice(["20260101T000000Z", "20261399T999999Z", "now", ""])
            headers["X-Security-Token"] = rng.choice(["", "x", "é"])
        if operation.path == "/v3/auth/tokens" and rng.random() < 0.9:
            headers["X-Subject-Token"] = rng.choice(["", "x", "é", "a" * 9000, *self._old_tokens])
        if rng.random() < 0.03:
            headers[rng.choice(["X-Project-Id", "X-Domain-Id", "Content-Type", "Accept", "Host"])] = rng.choice(
                ODD_HEADERS
            )
        return headers

    def _check(
        self,
        what: str,
        path: str,
        answer: http.client.HTTPResponse,
        text: bytes,
        name: str,
        sent: tuple[str, str, bytes, dict[str, str]],
    ) -> None:
        self._counts[(name, answer.status)] += 1
        assert answer.status < 500, (what, answer.status, text, self._world.server.log())
        assert answer.getheader("X-Request-Id"), what
        if answer.status < 400:
            self.accepted += 1
            self._learn(text, answer.getheader("Content-Type") or "")
            self._before = self._rows.marks()
            return
        self.refused += 1
        assert answer.status in REFUSALS, (what, answer.status, text)
        envelope(path, answer.status, dict(answer.getheaders()) | _titled(answer), text)
        if answer.status == 401 and sent[3].get("X-Auth-Token") == self._token:
            self._log_in()  # the token was given back, or everybody was logged out
        left = self._rows.marks()
        for _ in range(3):
            if left == self._before:
                return
            # The service may have worked on its own just now. A request that leaves rows leaves them again.
            self._before = self._rows.marks()
            self._send(*sent)
            left = self._rows.marks()
        self.left_rows += 1
        raise AssertionError((what, answer.status, text, self._before, left))

    def _log_in(self) -> None:
        client = self._world.server.client()
        client.http.close()
        self._token = client.http.headers["X-Auth-Token"]
        self._old_tokens = [*self._old_tokens[-5:], self._token]
        self._before = self._rows.marks()

    def _learn(self, text: bytes, kind: str) -> None:
        """Remember ids of what was made, so that later requests meet it."""
        if not kind.startswith("application/json") or not text:
            return
        body = json.loads(text)
        for member in body.values() if isinstance(body, dict) else ():
            if isinstance(member, dict) and isinstance(member.get("id"), str) and len(member["id"]) == 36:
                self._ids.append(member["id"])
        del self._ids[60:]

    # --- parts of a request -------------------------------------------------------------------------------------------

    def _segment(self, part: str) -> str:
        rng = self._rng
        if part == "{project_id}":
            choices = [self._world.alice.project] * 12 + [self._world.bob.project, "x", "f" * 32, "%ff"]
            return rng.choice(choices)
        if part in ("{user_id}", "{account_id}"):
            return rng.choice(self._accounts) if rng.random() < 0.8 else self._odd_segment()
        if part == "{protectable_type}":
            return rng.choice(["turbo", "disk", "server", "floppy", "%00"])
        if part.startswith("{"):
            return self._id() if rng.random() < 0.8 else self._odd_segment()
        return part

    def _odd_segment(self) -> str:
        if self._rng.random() < 0.2:
            return quote_from_bytes(self._rng.randbytes(self._rng.randrange(1, 20)), safe="")
        return quote(self._rng.choice(TEXTS), safe="")[:3000] or "%20"

    def _query(self, names: list[str]) -> str:
        rng = self._rng
        if not names or rng.random() < 0.2:
            return ""
        pairs = []
        for name in rng.choices(names, k=rng.choice([1, 1, 1, 2, 3])):
            value = self._id() if rng.random() < 0.3 else quote(rng.choice(TEXTS), safe="")[:3000]
            if rng.random() < 0.3:
                value = str(rng.choice(NUMBERS))
            if rng.random() < 0.05:
                value = rng.choice(["%zz", "%", "%ff", "%00", "+", "&&", "=", "%ed%a0%80"])
            pairs.append(f"{name}={value}")
        return "?" + "&".join(pairs)

    def _id(self) -> str:
        return self._rng.choice(self._ids)

    def _body(self, operation: Operation) -> bytes:
        rng = self._rng
        if operation.body is None:
            return b"" if rng.random() < 0.9 else rng.choice(RAW)
        if rng.random() < 0.08:
            return rng.choice(RAW)
        if operation.name in self._sound and rng.random() < 0.5:
            return self._nearly_sound(rng.choice(self._sound[operation.name]))
        value = self._value(msgspec.inspect.type_info(operation.body), operation.body.__name__)
        return json.dumps(value).encode()

    def _nearly_sound(self, body: Any) -> bytes:
        """A body that works, but for one member, or for some bytes."""
        rng = self._rng
        if rng.random() < 0.3:
            data = bytearray(json.dumps(body).encode())
            for _ in range(rng.choice([1, 1, 2, 5])):
                at = rng.randrange(len(data))
                data[at : at + rng.choice([0, 1, 1, 4])] = rng.choice(
                    [b"", rng.randbytes(1), b'"', b"{", b"\\ud800", b"9" * 30]
                )
            return bytes(data)
        changed = inner = json.loads(json.dumps(body))
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                return json.dumps(changed).encode()
            key = rng.choice(keys)
            if isinstance(inner[key], dict | list) and rng.random() < 0.85:
                inner = inner[key]
                continue
            odd = [None, True, [], {}, "", self._id(), rng.choice(TEXTS), rng.choice(NUMBERS), [rng.choice(TEXTS)]]
            inner[key] = rng.choice([*odd, [inner[key]] * 300])
            return json.dumps(changed).encode()

    def _value(self, kind: Any, name: str) -> Any:
        """A value for a type, mostly of the type and mostly plausible for the member's name."""
        rng = self._rng
        if rng.random() < 0.04:
            return rng.choice([None, True, [], {}, [[]], {"id": 1}, 1.5, rng.choice(TEXTS), rng.choice(NUMBERS)])
        match kind:
            case msgspec.inspect.UnionType(types=types):
                options = [t for t in types if not isinstance(t, msgspec.inspect.NoneType)]
                return None if rng.random() < 0.3 else self._value(rng.choice(options), name)
            case msgspec.inspect.StructType(fields=fields):
                return {
                    field.encode_name: self._value(field.type, field.encode_name)
                    for field in fields
                    if rng.random() < (0.98 if field.required else 0.4)
                }
            case msgspec.inspect.ListType(item_type=item) | msgspec.inspect.VarTupleType(item_type=item):
                return [self._value(item, name) for _ in range(rng.choice([0, 1, 1, 2]))]
            case msgspec.inspect.BoolType():
                return rng.random() < 0.5
            case msgspec.inspect.IntType():
                return 100 if rng.random() < 0.6 else rng.choice(NUMBERS)
            case msgspec.inspect.LiteralType(values=values):
                return rng.choice(values)
            case msgspec.inspect.StrType():
                return self._text(name)
            case _:
                return rng.choice([rng.choice(TEXTS), rng.choice(NUMBERS), {}, []])

    def _text(self, name: str) -> str:
        rng, base = self._rng, str(self._world.base)
        if rng.random() < 0.2 and name != "path":
            return rng.choice(TEXTS)
        match name:
            case "name" | "backup_name_prefix" | "key":
                return f"n{rng.randrange(100)}"
            case "object_type":
                return rng.choice(["turbo", "turbo", "disk", "server"])
            case "protect_type" | "operation_type":
                return rng.choice(["backup", "backup", "replication", "hybrid"])
            case "consistent_level":
                return rng.choice(["crash_consistent", "crash_consistent", "app_consistent"])
            case "cloud_type":
                return "public"
            case "charging_mode":
                return "post_paid"
            case "type":
                return rng.choice(["OS::Sfs::Turbo", "OS::Sfs::Turbo", "OS::Cinder::Volume", "turbo", "disk"])
            case "project_id":
                return rng.choice([self._world.alice.project, self._world.bob.project, "f" * 32])
            case "user_id":
                return rng.choice(self._accounts)
            case "role":
                return rng.choice(["CBR FullAccess", "CBR ReadOnlyAccess", "te_admin", "admin", "root"])
            case "path":  # also of registrations: never something large
                return rng.choice(
                    [f"{base}/share", f"{base}/spare", f"{base}/disk.raw", f"{base}/no", "big", "d0", "..", "a\x00"]
                )
            case "path_b64" | "target_path_b64":
                return rng.choice(["Li4vLi4=", "YmlnAA==", "Ymln", "!!", "/w=="])
            case _ if name.endswith(("_id", "_ids", "id", "resources", "volumes")):
                return self._id()
            case _:
                return rng.choice(TEXTS)


def _titled(answer: http.client.HTTPResponse) -> dict[str, str]:
    return {name.title(): value for name, value in answer.getheaders()}


def _victims(world: World, alice: Client) -> list[str]:
    """Ids that stand for accounts: a user made to be harmed, a project, and what nobody has. Never the attacker's."""
    user = {"name": f"victim-{random.randrange(10**9)}", "password": "correct horse battery staple"}
    made = alice.ok("POST", "/ext/v1/admin/users", {"user": {**user, "project_id": world.bob.project}})
    return [made["user"]["id"], world.bob.project, "f" * 32, MISSING]


def _tenant_of(world: World) -> Tenant:
    return Tenant(
        project=world.alice.project,
        user="f" * 32,
        vault=world.vault,
        spare_vault=MISSING,
        resource=world.share,
        spare=world.spare,
        other=world.spare,
        disk=world.disk,
        checkpoint=world.checkpoint,
        backup=world.first,
        log=world.log,
        policy=MISSING,
        agent=MISSING,
        notification=MISSING,
        lent=world.second,
        receivers=(world.bob.project, "f" * 32),
        names=(),
    )
