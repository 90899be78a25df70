"""The world of points_world with a real store: folders are backed up, moved and restored by the worker's own jobs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from points_world import TURBO, World, opened_world

from strongroom.base.ids import new_id
from strongroom.control import claiming, reading
from strongroom.control.db import Database
from strongroom.control.subjects import VaultRef, load_vault
from strongroom.control.tasks import Task
from strongroom.engine import DomainSettings, MasterKey, Pool, Repository
from strongroom.engine.keys import KEY_BYTES
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore
from strongroom.operations.job import Job, Tools, vault_prefix
from strongroom.operations.monitor import JobMonitor
from strongroom.operations.portal import Portal
from strongroom.operations.worker import _perform

MASTER = MasterKey(b"m" * KEY_BYTES)


@dataclass
class StoredWorld:
    """`folder` holds the sources, a folder a resource, and what was restored."""

    world: World
    tools: Tools
    store: MemoryStore
    folder: Path

    async def add_source(self, name: str, files: dict[str, bytes], *, kind: str = TURBO) -> str:
        """The id of a registered folder with these files."""
        resource = await self.world.add_resource(kind, name=name)
        self.fill(resource, files)
        await self.world.execute(
            "UPDATE protectables SET path = %s WHERE id = %s", str(self.folder / resource).encode(), resource
        )
        return resource

    def fill(self, resource: str, files: dict[str, bytes]) -> None:
        (self.folder / resource).mkdir(exist_ok=True)
        for path, content in files.items():
            (self.folder / resource / path).write_bytes(content)

    async def back_up(self, vault: str, **wanted: object) -> list[str]:
        """One run over the vault, to its end: ids of the backups in the order of its resources."""
        checkpoint = await self.world.run(vault, **wanted)
        await self.work("backup")
        rows = await self.world.execute(
            "SELECT resource_id, id, status FROM backups WHERE checkpoint_id = %s", checkpoint.id
        )
        assert all(status == "available" for _, _, status in rows), rows
        return [str(backup) for resource in checkpoint.resources for id_, backup, _ in rows if id_ == resource.id]

    async def claim(self) -> Task | None:
        """The next task; one that is to be tried again later is tried now."""
        await self.world.execute("UPDATE operation_logs SET not_before = NULL WHERE status = 'waiting'")
        return await claiming.claim(self.world.database, self.world.worker, "default")

    def job(self, task: Task) -> Job:
        return Job(task=task, tools=self.tools, monitor=JobMonitor())

    async def work(self, *kinds: str) -> list[Task]:
        """Perform what can be claimed, as a worker does, until nothing is left; it has to be of these kinds, if any."""
        done = []
        while (task := await self.claim()) is not None:
            assert not kinds or task.operation_type in kinds, task.operation_type
            await asyncio.to_thread(_perform, self.job(task))
            done.append(task)
        return done

    async def status(self, task_id: str) -> tuple[object, object]:
        """(status, code) of a task."""
        return (await self.world.execute("SELECT status, error_code FROM operation_logs WHERE id = %s", task_id))[0]  # type: ignore[return-value]

    async def restored(self, backup: str) -> dict[str, bytes]:
        """What a restore of the backup to a new folder brings."""
        target = await self.add_source(f"to-{new_id()[:4]}", {})
        answer = await self.world.client.post(
            self.world.v3(f"backups/{backup}/restore"), json={"restore": {"resource_id": target}}
        )
        assert answer.status_code == 202, answer.text
        await self.work()
        assert await self.status(answer.json()["job_id"]) == ("success", "")
        return {path.name: path.read_bytes() for path in (self.folder / target).iterdir() if path.is_file()}

    async def vault(self, vault_id: str) -> VaultRef:
        async with self.world.database.transaction() as conn:
            return await load_vault(conn, self.world.project, vault_id)

    async def repository_of(self, backup: str) -> Repository:
        """The domain that a backup is in."""
        found = await reading.find_readable(self.world.database, self.world.project, backup)
        return await asyncio.to_thread(
            lambda: self.tools.repository(found.vault, None, domain_id=found.domain_id, cached=False)
        )

    def names(self, vault: str, part: str = "") -> list[str]:
        """Objects of the vault's place in the store."""
        prefix = vault_prefix(self.world.project, vault)
        return [info.name for info in self.store.list(f"{prefix}/") if part in info.name]

    @contextmanager
    def on(self, store: Store) -> Iterator[None]:
        """Jobs use this store meanwhile."""
        before, self.tools = self.tools, replace(self.tools, store=store)
        try:
            yield
        finally:
            self.tools = before


@asynccontextmanager
async def opened_tools(database: Database, folder: Path) -> AsyncIterator[tuple[World, Tools, MemoryStore]]:
    """A world, and what jobs work with on a store in memory. folder: for copies of the index."""
    store, pool = MemoryStore(), Pool(threads=2)
    async with opened_world(database) as world:
        yield (
            world,
            Tools(
                database=database,
                portal=Portal(asyncio.get_running_loop()),
                store=store,
                master=MASTER,
                pool=pool,
                clock=world.clock,
                settings=DomainSettings(),
                index_folder=str(folder),
            ),
            store,
        )
    pool.close()


@asynccontextmanager
async def opened_stored_world(database: Database, folder: Path) -> AsyncIterator[StoredWorld]:
    """A world whose jobs run on a store in memory."""
    async with opened_tools(database, folder / "index") as (world, tools, store):
        (folder / "sources").mkdir()
        yield StoredWorld(world, tools, store, folder / "sources")
