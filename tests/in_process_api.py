"""The real application on a real database, called in-process: two tenants, an operator, and their tokens.

    api = await InProcessApi.start(database)
    response = await api.alice.post("/vaults", json={...})     # /v3/{alice's project} is put in front
    resource = await api.register(folder)                      # what the operator would do, through the API

alice and bob are administrators of two projects, rita only reads alice's, oscar is the operator, nobody has no token.
"""

import os
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from ext_schema import check_ours
from psycopg.rows import dict_row
from starlette.requests import Request

from strongroom.api.app import Application
from strongroom.api.services import Services
from strongroom.api.table import OPERATIONS
from strongroom.base.browsing import EntryView
from strongroom.base.clock import SystemClock
from strongroom.base.errors import EntryNotFound, Unauthenticated
from strongroom.control.access import ROLE_OPERATOR, ROLE_READER, ROLE_TENANT_ADMIN, Caller
from strongroom.control.db import Database
from strongroom.control.resource_binding import Look

PROJECT_A = "a" * 32
PROJECT_B = "b" * 32
DOMAIN = "d" * 32


def _caller(name: str, project_id: str, *roles: str) -> Caller:
    return Caller(
        user_id=name.encode().hex().ljust(32, "0"),
        user_name=name,
        domain_id=DOMAIN,
        domain_name="tests",
        project_id=project_id,
        project_name=project_id[:1],
        roles=frozenset(roles),
    )


CALLERS = {
    "token-of-alice": _caller("alice", PROJECT_A, ROLE_TENANT_ADMIN),
    "token-of-bob": _caller("bob", PROJECT_B, ROLE_TENANT_ADMIN),
    "token-of-rita": _caller("rita", PROJECT_A, ROLE_READER),
    "token-of-oscar": _caller("oscar", "", ROLE_OPERATOR),
}


async def authenticate(request: Request, body: bytes, request_id: str) -> Caller:
    """Known tokens name their callers; everybody else is refused."""
    caller = CALLERS.get(request.headers.get("x-auth-token", ""))
    if caller is None:
        raise Unauthenticated(reason="x-auth-token not found")
    return caller


class FileSystemInspector:
    """Looks at real paths of the test's folder."""

    async def inspect(self, resource_id: str, resource_type: str, path: bytes, options: dict[str, object]) -> Look:
        wanted = stat.S_ISDIR if resource_type == "OS::Sfs::Turbo" else stat.S_ISREG
        try:
            found = os.stat(path)
        except OSError as err:
            return Look(size_bytes=0, obstacle=f"{os.fsdecode(path)!a}: {err.strerror}")
        if not wanted(found.st_mode):
            return Look(size_bytes=0, obstacle=f"{os.fsdecode(path)!a} is of another kind.")
        if stat.S_ISREG(found.st_mode):
            return Look(size_bytes=found.st_size, obstacle=None)
        files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
        return Look(size_bytes=sum(os.lstat(name).st_size for name in files), obstacle=None)


class EmptyBrowser:
    """No restore point of these tests holds anything."""

    async def entries(
        self, project_id: str, backup_id: str, path: bytes, after: bytes | None, limit: int
    ) -> Sequence[EntryView]:
        raise EntryNotFound(id=os.fsdecode(path))

    async def open_file(self, project_id: str, backup_id: str, path: bytes) -> tuple[EntryView, AsyncIterator[bytes]]:
        raise EntryNotFound(id=os.fsdecode(path))


class Person:
    """Sends requests with one token. Paths that begin with `/v3` or `/ext` are taken as they are."""

    def __init__(self, client: httpx.AsyncClient, token: str | None, project_id: str) -> None:
        self._client = client
        self._headers = {"X-Auth-Token": token} if token else {}
        self.project_id = project_id

    async def request(self, method: str, path: str, **members: Any) -> httpx.Response:
        url = path if path.startswith(("/v3", "/ext")) else f"/v3/{self.project_id}{path}"
        headers = self._headers | members.pop("headers", {})
        return await self._client.request(method, url, headers=headers, **members)

    async def get(self, path: str, **members: Any) -> httpx.Response:
        return await self.request("GET", path, **members)

    async def post(self, path: str, **members: Any) -> httpx.Response:
        return await self.request("POST", path, **members)

    async def put(self, path: str, **members: Any) -> httpx.Response:
        return await self.request("PUT", path, **members)

    async def delete(self, path: str, **members: Any) -> httpx.Response:
        return await self.request("DELETE", path, **members)


@dataclass(frozen=True, kw_only=True)
class InProcessApi:
    """What a test holds. `rows` and `execute` look behind the API, for what only jobs write."""

    database: Database
    services: Services
    client: httpx.AsyncClient
    alice: Person
    bob: Person
    rita: Person
    oscar: Person
    nobody: Person

    @classmethod
    async def start(cls, database: Database, **services: Any) -> "InProcessApi":
        """Write the accounts and build the application; `services` replaces members of Services."""
        async with database.transaction() as conn:
            await conn.execute("INSERT INTO domains (id, name, created_at) VALUES (%s, 'tests', now())", [DOMAIN])
            for project_id in (PROJECT_A, PROJECT_B):
                await conn.execute(
                    "INSERT INTO projects (id, domain_id, name, created_at) VALUES (%s, %s, %s, now())",
                    [project_id, DOMAIN, project_id[:1]],
                )
        wired: dict[str, Any] = {
            "database": database,
            "clock": SystemClock(),
            "region": "eu-de",
            "authenticate": authenticate,
            "browser": EmptyBrowser(),
            "inspector": FileSystemInspector(),
        }
        made = Services(**(wired | services))
        # Failures inside the application must arrive as its own answer, not as an exception of the test.
        transport = httpx.ASGITransport(Application(OPERATIONS, made), raise_app_exceptions=False)
        client = httpx.AsyncClient(
            transport=transport, base_url="http://cbr.test", event_hooks={"response": [check_ours]}
        )
        people = {
            name: Person(client, f"token-of-{name}", project_id)
            for name, project_id in (("alice", PROJECT_A), ("bob", PROJECT_B), ("rita", PROJECT_A), ("oscar", ""))
        }
        nobody = Person(client, None, PROJECT_A)
        return cls(database=database, services=made, client=client, nobody=nobody, **people)

    async def __aenter__(self) -> "InProcessApi":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.aclose()

    async def register(
        self, path: Path, *, project_id: str = PROJECT_A, type: str = "turbo", name: str | None = None, **members: Any
    ) -> str:
        """The id of a folder ("turbo") or image file ("disk"), registered by the operator."""
        body = {"project_id": project_id, "type": type, "name": name or path.name, "path": str(path), **members}
        response = await self.oscar.post("/ext/v1/admin/protectables", json={"protectable": body})
        assert response.status_code == 201, response.text
        return str(response.json()["protectable"]["id"])

    async def execute(self, statement: str, *values: Any) -> None:
        async with self.database.transaction() as conn:
            await conn.execute(statement.encode(), values)

    async def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        async with self.database.read(dict_row) as conn:
            return await (await conn.execute(query.encode(), values)).fetchall()
