"""A database with projects, registered resources and vaults, the real application over it, and workers of jobs.

Seeds are rows by SQL, so that these tests stand alone; what they check is written by the functions under test.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx
from ext_schema import check_ours
from psycopg.types.json import Jsonb
from starlette.requests import Request

from strongroom.api.app import build_app
from strongroom.api.services import Services
from strongroom.api.table import OPERATIONS
from strongroom.base.browsing import EntryView
from strongroom.base.errors import EntryNotFound, Unauthenticated
from strongroom.base.ids import new_hex_id, new_id
from strongroom.base.units import GIB
from strongroom.control import backups, checkpoints, claiming, deletions, restores
from strongroom.control.access import ROLE_READER, ROLE_TENANT_ADMIN, Caller
from strongroom.control.backups import CommittedBackup
from strongroom.control.checkpoint_views import Checkpoint, show_checkpoint
from strongroom.control.checkpoints import NewCheckpoint
from strongroom.control.db import Database
from strongroom.control.resource_binding import Look
from strongroom.control.tasks import Task

DISK, TURBO, SERVER = "OS::Cinder::Volume", "OS::Sfs::Turbo", "OS::Nova::Server"
PROVIDERS = {
    DISK: "d1603440-187d-4516-af25-121250c7cc97",
    TURBO: "3f3c3220-245c-4805-b811-758870015881",
    SERVER: "0daac4c5-6707-4851-97ba-169e36266b66",
}
OBJECT_TYPES = {DISK: "disk", TURBO: "turbo", SERVER: "server"}


class StepClock:
    """A clock that moves one second a look, so that every order by time is known."""

    def __init__(self) -> None:
        self.at = datetime(2026, 5, 10, 7, 59, 12, 36982, tzinfo=UTC)

    def now(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at

    def monotonic_s(self) -> float:
        return self.at.timestamp()


@dataclass
class FolderBrowser:
    """One folder of names and contents for every restore point."""

    files: dict[bytes, bytes] = field(default_factory=dict)
    closed: int = 0

    async def entries(
        self, project_id: str, backup_id: str, path: bytes, after: bytes | None, limit: int
    ) -> Sequence[EntryView]:
        prefix = path + b"/" if path else b""
        names = sorted(name for name in self.files if name.startswith(prefix))
        if path and not names:
            raise EntryNotFound(id=path.decode(errors="replace"))
        rest = [name for name in names if after is None or name[len(prefix) :] > after]
        return [self._view(name) for name in rest[:limit]]

    async def open_file(self, project_id: str, backup_id: str, path: bytes) -> tuple[EntryView, AsyncIterator[bytes]]:
        if path not in self.files:
            raise EntryNotFound(id=path.decode(errors="replace"))
        return self._view(path), self._pieces(path)

    async def _pieces(self, path: bytes) -> AsyncIterator[bytes]:
        try:
            for start in range(0, len(self.files[path]), 1000):
                yield self.files[path][start : start + 1000]
        finally:
            self.closed += 1

    def _view(self, name: bytes) -> EntryView:
        return EntryView(
            raw_path=name,
            kind="file",
            size_bytes=len(self.files[name]),
            mode=0o644,
            uid=1,
            gid=2,
            modified_at=datetime(2026, 1, 1, tzinfo=UTC),
            target=b"",
            changed_while_read=False,
        )


class NoInspector:
    """Nothing here registers or binds through the API."""

    async def inspect(self, resource_id: str, resource_type: str, path: bytes, options: dict[str, object]) -> Look:
        raise AssertionError("not asked for in these tests")


@dataclass
class World:
    """What a test works with. `project` is the caller's; `client` sends its token."""

    database: Database
    client: httpx.AsyncClient
    clock: StepClock
    browser: FolderBrowser
    project: str
    callers: dict[str, Caller]
    worker: str = "worker-1"

    def v3(self, path: str) -> str:
        return f"/v3/{self.project}/{path}"

    def ext(self, path: str) -> str:
        return f"/ext/v1/{self.project}/{path}"

    async def add_project(self, role: str = ROLE_TENANT_ADMIN) -> tuple[str, dict[str, str]]:
        """A new project and the header of somebody with `role` on it."""
        project = new_hex_id()
        async with self.database.transaction() as conn:
            await conn.execute("INSERT INTO domains VALUES ('default', 'Default', now()) ON CONFLICT DO NOTHING")
            await conn.execute(
                "INSERT INTO projects (id, domain_id, name, created_at) VALUES (%s, 'default', %s, now())",
                [project, project],
            )
        return project, self.add_caller(project, role)

    def add_caller(self, project: str, role: str) -> dict[str, str]:
        token = new_id()
        self.callers[token] = Caller(
            user_id=new_hex_id(),
            user_name="ada",
            domain_id="default",
            domain_name="Default",
            project_id=project,
            project_name="p",
            roles=frozenset({role}),
        )
        return {"X-Auth-Token": token}

    async def add_resource(
        self, kind: str = TURBO, *, project: str | None = None, name: str = "files", size_bytes: int = 3 * GIB + 1
    ) -> str:
        resource = new_id()
        async with self.database.transaction() as conn:
            await conn.execute(
                "INSERT INTO protectables (id, project_id, type, resource_type, name, path, options, size_bytes, "
                "created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, now())",
                [
                    *(resource, project or self.project, OBJECT_TYPES[kind], kind, name, f"/srv/{resource}".encode()),
                    *(Jsonb({"exclude": ["*.tmp"]}), size_bytes),
                ],
            )
        return resource

    async def add_vault(
        self,
        resources: Sequence[str] = (),
        *,
        kind: str = TURBO,
        project: str | None = None,
        name: str = "vault-be94",
        size_gb: int = 10,
        **columns: object,
    ) -> str:
        vault, project = new_id(), project or self.project
        values = {
            "id": vault,
            "project_id": project,
            "user_id": "u",
            "name": name,
            "provider_id": PROVIDERS[kind],
            "object_type": OBJECT_TYPES[kind],
            "protect_type": "backup",
            "consistent_level": "crash_consistent",
            "size_gb": size_gb,
            "created_at": self.clock.now(),
            **columns,
        }
        marks = ", ".join(["%s"] * len(values))
        async with self.database.transaction() as conn:
            await conn.execute(
                f"INSERT INTO vaults ({', '.join(values)}) VALUES ({marks})".encode(), list(values.values())
            )
            await conn.execute(
                "INSERT INTO vault_resources (project_id, vault_id, resource_id, protect_type, type, name, size_bytes, "
                "created_at) SELECT project_id, %s, id, %s, resource_type, name, size_bytes, %s FROM protectables "
                "WHERE id = ANY(%s)",
                [vault, values["protect_type"], self.clock.now(), list(resources)],
            )
        return vault

    async def execute(self, text: str, *values: object) -> list[tuple[object, ...]]:
        """Rows of one statement; none for one that returns none."""
        async with self.database.transaction() as conn:
            found = await conn.execute(text.encode(), values)
            return await found.fetchall() if found.description else []

    async def one(self, text: str, *values: object) -> object:
        """The only value of the only row."""
        rows = await self.execute(text, *values)
        assert len(rows) == 1, rows
        return rows[0][0]

    # --- requests and jobs --------------------------------------------------------------------------------------------

    async def run(self, vault: str, **wanted: object) -> Checkpoint:
        """A checkpoint as the API makes it; nothing of it has run."""
        new = NewCheckpoint(vault_id=vault, **wanted)  # type: ignore[arg-type]
        return await checkpoints.create_checkpoint(
            self.database, self.project, new, request_id=new_id(), clock=self.clock
        )

    async def claim(self, operation_type: str | None = None) -> Task:
        task = await claiming.claim(self.database, self.worker, "default")
        assert task is not None, "nothing to claim"
        assert operation_type in (None, task.operation_type), task.operation_type
        return task

    async def commit(self, task: Task, *, stored_bytes: int = 5_000_000) -> str:
        """Start and commit a claimed backup; the name of its root."""
        await backups.start_backup(self.database, task)
        root = f"{task.backup_id}.{task.generation}"
        committed = CommittedBackup(
            root=root,
            resource_size_bytes=4 * GIB,
            stored_bytes=stored_bytes,
            point_token=b"token of " + root.encode(),
            report={"kind": "tree", "bytes_read": 7, "full_reason": None},
        )
        await backups.commit_backup(self.database, task, committed, self.clock)
        return root

    async def backed_up(self, vault: str, **wanted: object) -> tuple[Checkpoint, list[str]]:
        """A checkpoint whose backups are all committed, and their ids in the order of its resources."""
        checkpoint = await self.run(vault, **wanted)
        for _ in checkpoint.resources:
            await self.commit(await self.claim("backup"))
        found = await show_checkpoint(self.database, self.project, checkpoint.id)
        rows = await self.execute("SELECT resource_id, id FROM backups WHERE checkpoint_id = %s", checkpoint.id)
        of_resource = {row[0]: str(row[1]) for row in rows}
        return found, [of_resource[resource.id] for resource in found.resources]

    async def deleted(self, backup: str) -> None:
        """Delete a backup, to the end of its job. A prune that waits is left for later."""
        await self.execute(
            "UPDATE operation_logs SET not_before = now() + interval '1 hour' "
            "WHERE operation_type = 'prune' AND status = 'waiting'"
        )
        await deletions.request_delete_backup(
            self.database, self.project, backup, request_id=new_id(), clock=self.clock
        )
        task = await self.claim("delete")
        await deletions.start_delete(self.database, task)
        await deletions.finish_delete(self.database, task, used_bytes=None, outcome={}, clock=self.clock)

    async def restored(self, backup: str, **wanted: object) -> Task:
        """A restore that was asked for and is claimed."""
        await restores.request_restore(
            self.database,
            self.project,
            backup,
            restores.NewRestore(**wanted),  # type: ignore[arg-type]
            request_id=new_id(),
            clock=self.clock,
        )
        return await self.claim("restore")


@asynccontextmanager
async def opened_world(database: Database) -> AsyncIterator[World]:
    """A world with one project, whose te_admin the client is."""
    callers: dict[str, Caller] = {}

    async def authenticate(request: Request, body: bytes, request_id: str) -> Caller:
        caller = callers.get(request.headers.get("X-Auth-Token", ""))
        if caller is None:
            raise Unauthenticated(reason="x-auth-token not found")
        return caller

    clock, browser = StepClock(), FolderBrowser()
    services = Services(
        database=database,
        clock=clock,
        region="test",
        authenticate=authenticate,
        browser=browser,
        inspector=NoInspector(),
    )
    transport = httpx.ASGITransport(app=build_app(OPERATIONS, services))  # type: ignore[arg-type]
    hooks = {"response": [check_ours]}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", event_hooks=hooks) as client:
        world = World(database=database, client=client, clock=clock, browser=browser, project="", callers=callers)
        world.project, header = await world.add_project()
        client.headers.update(header)
        yield world


def reader_of(world: World) -> dict[str, str]:
    """Header of somebody who may only look."""
    return world.add_caller(world.project, ROLE_READER)
