"""What every process of an installation is made of, whatever it does: rows, objects, the key, memory, other regions."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import structlog

from strongroom.api.services import Probe
from strongroom.base.clock import Clock, SystemClock
from strongroom.base.ending import end_tasks
from strongroom.base.errors import ConfigError, Unavailable
from strongroom.config import Settings
from strongroom.control import installation, programs
from strongroom.control.claiming import RunningLimits
from strongroom.control.db import Database
from strongroom.control.programs import Program
from strongroom.control.tokens import Ring
from strongroom.engine import DomainSettings, MasterKey
from strongroom.engine.pool import Pool
from strongroom.engine.store.base import Store
from strongroom.engine.store.open import open_store
from strongroom.engine.store.retention import keeps_deleted
from strongroom.operations.agents import Stations
from strongroom.operations.job import Tools
from strongroom.operations.peers import Peers
from strongroom.operations.portal import Portal
from strongroom.operations.self_backup import SelfBackups
from strongroom.operations.worker import Worker
from strongroom.state import INDEX_FOLDER, SSH_FOLDER, load_master_key, place_of

log = structlog.get_logger("server")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """url: of the database, for a pool of one's own. place: the id of the state folder."""

    settings: Settings
    url: str
    place: str
    clock: Clock
    database: Database
    store: Store
    master: MasterKey
    pool: Pool
    peers: Peers
    stations: Stations = field(default_factory=Stations)

    def tools(self, database: Database, portal: Portal) -> Tools:
        """What operations work with, on the loop and the pool of who asks."""
        return Tools(
            database=database,
            portal=portal,
            store=self.store,
            master=self.master,
            pool=self.pool,
            clock=self.clock,
            settings=DomainSettings(),
            index_folder=str(self.settings.state_dir / INDEX_FOLDER),
            ssh_folder=self.settings.state_dir / SSH_FOLDER,
            stations=self.stations,
            place=self.place,
            own_places=_own_places(self.settings),
            peers=self.peers,
        )

    def worker(self, *, dead: Literal["none", "place", "all"], drain_s: float) -> Worker:
        """A worker of this process."""
        settings = self.settings
        return Worker(
            database_url=settings.database_direct_url or self.url,
            make_tools=self.tools,
            clock=self.clock,
            group=settings.worker_group,
            concurrency=settings.worker_concurrency,
            place=self.place,
            dead=dead,
            limits=RunningLimits(
                vault=settings.tasks_of_vault, host=settings.tasks_of_host, project=settings.tasks_of_project
            ),
            drain_s=drain_s,
            region=settings.region,
            audit_days=settings.audit_days,
            operation_log_days=settings.operation_log_days,
            outgoing=settings.outgoing,
            ring=Ring([settings.master_key_file.read_bytes()]),
            self_backups=SelfBackups(every=timedelta(hours=settings.self_backup_hours), keep=settings.self_backup_keep),
        )

    def probes(self) -> dict[str, Probe]:
        """Whether database and store answer."""

        async def probe_database() -> None:
            async with self.database.read() as conn:
                await conn.execute("SELECT 1")

        async def probe_store() -> None:
            await asyncio.to_thread(self.store.check)

        return {"database": probe_database, "store": probe_store}


@asynccontextmanager
async def open_parts(
    settings: Settings, url: str, *, connections: int, may_make_key: bool, many: bool
) -> AsyncIterator[Parts]:
    """Connect to everything; closed in order when the block ends. Raises ConfigError, StoreError, Unavailable.

    connections   of the process's first pool, at most; a worker has one of its own
    may_make_key  the very first start makes the master key
    many          there are other processes: the store must be theirs too
    """
    clock = SystemClock()
    async with await Database.open(url, min_size=min(2, connections), max_size=connections) as database:
        store = open_store(settings.store_url, settings.s3)
        await asyncio.to_thread(store.check)
        if many:
            await _require_same_store(settings, database, store)
        if await asyncio.to_thread(keeps_deleted, store):
            log.warning(
                "the bucket keeps every version of what is deleted: no delete and no prune frees room. "
                "Give it a lifecycle rule that removes noncurrent versions after a day"
            )
        master = await load_master_key(settings, database, store, may_make=may_make_key)
        pool = Pool(budget_bytes=settings.worker_memory_bytes)
        peers = Peers(settings.regions, settings.region, clock)
        try:
            yield Parts(
                settings=settings,
                url=url,
                place=place_of(settings),
                clock=clock,
                database=database,
                store=store,
                master=master,
                pool=pool,
                peers=peers,
            )
        finally:
            pool.close()
            peers.close()


@asynccontextmanager
async def known(parts: Parts, kind: str, worker_group: str | None) -> AsyncIterator[None]:
    """Say every few seconds that this process lives (control/programs.py). When the database's schema is no longer one
    for it, it is told to end as by a signal, and the block ends with the ConfigError."""
    program = Program(kind=kind, worker_group=worker_group)
    refused: list[ConfigError] = []

    async def beats() -> None:
        while not refused:
            await asyncio.sleep(programs.BEAT_S)
            try:
                await programs.beat(parts.database, program)
            except ConfigError as error:
                log.error("the schema changed; this program ends", error=str(error))
                refused.append(error)
                os.kill(os.getpid(), signal.SIGTERM)
            except Unavailable as error:
                log.warning("cannot say that this program lives", error=str(error))

    await programs.beat(parts.database, program)
    beating = asyncio.create_task(beats())
    try:
        yield
    finally:
        await end_tasks([beating])
        with suppress(Unavailable):
            await programs.leave(parts.database, program)
    if refused:
        raise refused[0]


async def _require_same_store(settings: Settings, database: Database, store: Store) -> None:
    """Raises ConfigError where the store is empty, and other processes have written restore points into theirs."""
    if not await installation.has_restore_points(database):
        return
    if await asyncio.to_thread(lambda: next(store.list("vaults/"), None)) is None:
        raise ConfigError(
            reason=f"The store {settings.store_url} is empty, and the database knows of restore points: it is not the "
            "one that the other processes use. Mount the same folder at the same path on every machine, or name an "
            "s3:// store."
        )


def _own_places(settings: Settings) -> tuple[bytes, ...]:
    """Folders of the service: never to be protected, never to be restored over."""
    store = urlsplit(settings.store_url)
    paths = [settings.state_dir, *([Path(unquote(store.path))] if store.scheme == "file" else [])]
    return tuple(os.fsencode(os.path.realpath(path)) for path in paths)


def probe_of(worker: Worker) -> Probe:
    """Whether a worker lives and takes tasks."""

    async def probe() -> None:
        if not worker.alive:
            raise Unavailable(reason="The worker ended. Restart the process.")
        if worker.draining:
            raise Unavailable(reason="The worker finishes its tasks and takes no new ones.")

    return probe
