"""A restore of another project's backup by real jobs, whose share ends at the n-th look of the reader.

Database, store, engine, source driver and jobs are real; only the worker's clockwork is played by the test: what its
renewal would tell the job is told at a chosen moment.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from engine_streams import MemoryDisk
from points_world import DISK, World, opened_world

from strongroom.base.errors import Canceled, StrongroomError
from strongroom.base.ids import new_id
from strongroom.base.streams import SilentMonitor
from strongroom.control import claiming, deletions, reading, restores, sharing, tasks, vaults
from strongroom.control.db import Database
from strongroom.control.tasks import Task
from strongroom.engine import BackupRequest, DomainSettings, MasterKey, Pool, backup
from strongroom.engine.keys import KEY_BYTES
from strongroom.engine.store.memory import MemoryStore
from strongroom.operations import deletion, prune, restore
from strongroom.operations.job import Job, Tools, vault_prefix
from strongroom.operations.monitor import JobMonitor
from strongroom.operations.portal import Portal

SIZE = 12 << 20  # some segments more than a reader with one thread asks for at once
NEVER, AT_SWAP = -1, 0
LOOKS = (1, 2, AT_SWAP)  # how many there are between depends on which thread is done first


@dataclass(kw_only=True)
class Interrupted(JobMonitor):
    """At the `at`-th look, or at that before the swap, `then` runs, once."""

    at: int
    then: Callable[[], None]
    looks: int = 0
    swaps: bool = False
    ran: bool = False

    def check(self) -> None:
        self.looks += 1
        if not self.ran and (self.swaps if self.at == AT_SWAP else self.looks == self.at):
            self.ran = True
            self.then()
        super().check()


@dataclass(frozen=True, kw_only=True)
class Watched(Job):
    monitor: Interrupted

    def fence(self) -> None:
        self.monitor.swaps = True
        super().fence()


@dataclass
class Lent:
    """`backup` of the world's project, with `data`, lent to `receiver`, whose image file is `target`."""

    world: World
    tools: Tools
    store: MemoryStore
    backup: str
    data: bytes
    vault: str
    receiver: str
    target: Path
    disk: str
    before: bytes = field(default_factory=lambda: random.Random(2).randbytes(SIZE))

    async def begun(self) -> Task:
        self.target.write_bytes(self.before)
        await restores.request_restore(
            self.world.database, self.receiver, self.backup, restores.NewRestore(volume_id=self.disk),
            request_id=new_id(), clock=self.world.clock,
        )  # fmt: skip
        return await self.world.claim("restore")

    async def run(self, task: Task, at: int, then: Callable[[JobMonitor], None]) -> int:
        """The job to its end, as the worker runs it. How often it looked."""
        monitor = Interrupted(at=at, then=lambda: then(monitor))
        job = Watched(task=task, tools=self.tools, monitor=monitor)

        def work() -> None:
            try:
                restore.run(job)
            except StrongroomError as error:
                restore.fail(job, error)

        await asyncio.to_thread(work)
        assert monitor.ran == (at != NEVER)
        return monitor.looks

    async def ended(self, task: Task) -> str:
        """How it ended, after a look that nothing is left beside the target, and nothing pinned."""
        assert [path.name for path in self.target.parent.iterdir()] == [self.target.name]
        assert await self.world.execute("SELECT 1 FROM sessions") == []
        ((status, code, bound),) = await self.world.execute(
            "SELECT o.status, o.error_code, r.protect_status FROM operation_logs o JOIN vault_resources r "
            "ON r.resource_id = o.target_resource_id WHERE o.id = %s", task.id
        )  # fmt: skip
        assert bound == "available"
        return str(status if status == "success" else code)

    def renew(self, task: Task, monitor: JobMonitor) -> None:
        """What the worker does every two seconds."""
        _, stopped = self.tools.portal.call(
            tasks.renew(self.world.database, self.world.worker, {task.id: task.generation})
        )
        if stopped:
            monitor.stop = Canceled()

    def revoke(self) -> None:
        self.tools.portal.call(sharing.revoke(self.world.database, self.world.project, self.backup, self.receiver))

    def delete_and_prune(self) -> None:
        """The owner's delete and the prune behind it, to their ends, by real jobs."""
        call, database = self.tools.portal.call, self.world.database
        asked = deletions.request_delete_backup(
            database, self.world.project, self.backup, request_id=new_id(), clock=self.world.clock
        )
        call(asked)
        for kind, run in (("delete", deletion.run), ("prune", prune.run)):
            run(Job(task=call(self.world.claim(kind)), tools=self.tools, monitor=JobMonitor()))

    def packs(self) -> int:
        prefix = vault_prefix(self.world.project, self.vault)
        return sum("/packs/" in info.name for info in self.store.list(prefix + "/"))


@pytest.fixture
async def lent(database: Database, tmp_path: Path) -> AsyncIterator[Lent]:
    pool = Pool(threads=1)
    async with opened_world(database) as world:
        store = MemoryStore()
        tools = Tools(
            database=database,
            portal=Portal(asyncio.get_running_loop()),
            store=store,
            master=MasterKey(b"m" * KEY_BYTES),
            pool=pool,
            clock=world.clock,
            settings=DomainSettings(),
            index_folder=str(tmp_path / "cache"),
        )
        vault = await world.add_vault([await world.add_resource(DISK)], kind=DISK)
        _, (backup_id,) = await world.backed_up(vault)
        data = random.Random(1).randbytes(SIZE)
        found = await reading.find_readable(database, world.project, backup_id)

        def work() -> None:
            request = BackupRequest(backup_id=backup_id, generation=1)
            backup(tools.repository(found.vault, None), MemoryDisk(data), request, SilentMonitor(), lambda: None)

        await asyncio.to_thread(work)
        receiver, _ = await world.add_project()
        target = tmp_path / "there" / "disk.raw"
        target.parent.mkdir()
        disk = await world.add_resource(DISK, project=receiver)
        await world.execute("UPDATE protectables SET path = %s WHERE id = %s", str(target).encode(), disk)
        theirs = await world.add_vault([disk], kind=DISK, project=receiver)
        await sharing.add_members(database, world.project, backup_id, [receiver], world.clock)
        await sharing.decide(
            database, receiver, backup_id, receiver, status="accepted", vault_id=theirs, clock=world.clock
        )
        yield Lent(world, tools, store, backup_id, data, vault, receiver, target, disk)
    pool.close()


async def test_a_restore_reads_the_owners_vault(lent: Lent) -> None:
    """Undisturbed, the receiver's target holds the owner's bytes; nothing was copied to the receiver's vault."""
    task = await lent.begun()
    looks = await lent.run(task, NEVER, lambda _: None)
    assert await lent.ended(task) == "success"
    assert lent.target.read_bytes() == lent.data
    assert looks > max(LOOKS), "the tests below end the share at each of them"
    assert list(lent.store.list(f"vaults/{lent.receiver}/")) == []


@pytest.mark.parametrize("at", LOOKS)
async def test_revoked_at_any_look(lent: Lent, at: int) -> None:
    """The restore stops at the renewal after the share's end: the target is as it was, and the log says why."""
    task = await lent.begun()

    def end(monitor: JobMonitor) -> None:
        lent.revoke()
        lent.renew(task, monitor)

    await lent.run(task, at, end)
    assert await lent.ended(task) == "BackupService.6705"
    assert lent.target.read_bytes() == lent.before


@pytest.mark.parametrize("at", LOOKS)
async def test_deleted_and_pruned_at_any_look(lent: Lent, at: int) -> None:
    """The owner deletes the backup and prunes at once, and the restore does not notice: its session keeps what it
    reads, so it ends with the right bytes; the next prune frees them."""
    packs = lent.packs()
    task = await lent.begun()
    await lent.run(task, at, lambda _: lent.delete_and_prune())
    assert await lent.ended(task) == "success"
    assert lent.target.read_bytes() == lent.data
    async with lent.world.database.transaction() as conn:
        vault = await vaults.lock_vault(conn, lent.world.project, lent.vault)
        await deletions.queue_prune(conn, vault, request_id=new_id(), clock=lent.world.clock)
    pruning = Job(task=await lent.world.claim("prune"), tools=lent.tools, monitor=JobMonitor())
    await asyncio.to_thread(prune.run, pruning)
    assert (packs > 0, lent.packs()) == (True, 0)


async def test_the_vault_waits_for_who_reads_it(lent: Lent) -> None:
    """The owner deletes the vault under a restore: it is wiped when the restore has noticed, to the last object."""
    task = await lent.begun()
    claimed: list[Task | None] = []

    def end(monitor: JobMonitor) -> None:
        call, database, world = lent.tools.portal.call, lent.world.database, lent.world
        call(vaults.delete_vault(database, world.project, lent.vault, new_id(), world.clock))
        claimed.append(call(claiming.claim(database, world.worker, "default")))
        lent.renew(task, monitor)

    await lent.run(task, 2, end)
    assert claimed == [None]
    assert await lent.ended(task) == "BackupService.6705"
    assert lent.target.read_bytes() == lent.before
    job = Job(task=await lent.world.claim("vault_delete"), tools=lent.tools, monitor=JobMonitor())
    await asyncio.to_thread(deletion.run, job)
    assert list(lent.store.list("vaults/")) == []


async def test_a_smaller_target_is_not_touched(lent: Lent) -> None:
    """A backup that does not fit its target is refused by the job with 2001; the target is as it was."""
    task = await lent.begun()
    lent.target.write_bytes(lent.before[: SIZE // 2])
    await lent.run(task, NEVER, lambda _: None)
    assert await lent.ended(task) == "BackupService.2001"
    assert lent.target.read_bytes() == lent.before[: SIZE // 2]
