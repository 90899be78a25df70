"""A vault that holds restore points of another vault in their own domain: read, deleted, pruned, shredded by real jobs.

The database, the store and the jobs are real; only the other vault's copy is brought here by the engine's verb alone,
as the service has no operation for it yet.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_store import Crashed, Fault, FaultStore
from points_world import World
from stored_world import MASTER, opened_tools

from strongroom.base.errors import Conflict, KeyWrong, ObjectMissing, StoreError
from strongroom.base.ids import new_id
from strongroom.base.streams import Extent, ExtentKind, SilentMonitor
from strongroom.control import deletions, reading, sessions
from strongroom.control.db import Database
from strongroom.control.subjects import VaultRef
from strongroom.control.tasks import NewTask, Task
from strongroom.control.tasks import insert as insert_tasks
from strongroom.control.vault_keys import find_vault_keys, save_vault_keys
from strongroom.engine import BackupRequest, MasterKey, Repository, backup, open_repository
from strongroom.engine.browse import read_file
from strongroom.engine.copy import copy
from strongroom.engine.keys import KEY_BYTES
from strongroom.engine.open import load_wraps
from strongroom.engine.rotate import rewrap
from strongroom.engine.store.memory import MemoryStore
from strongroom.operations import deletion, prune
from strongroom.operations.job import Job, Tools, vault_prefix
from strongroom.operations.monitor import JobMonitor
from strongroom.operations.rotation import _copies

MONITOR = SilentMonitor()
SIZE = 128 * 1024


class Disk:
    """A block stream of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, ExtentKind.DATA)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self.data[offset : offset + len(buffer)]
        return len(buffer)


@dataclass
class Vaults:
    """Vault `here` with a backup of its own and two that were copied from vault `there`."""

    world: World
    tools: Tools
    store: MemoryStore
    here: VaultRef
    there: VaultRef
    own: str
    foreign: list[str]
    domain: str
    content: dict[str, bytes]

    async def job(self, operation_type: str, **members: object) -> Task:
        """A claimed task of the vault `here`."""
        async with self.world.database.transaction() as conn:
            new = NewTask(
                project_id=self.world.project,
                operation_type=operation_type,
                request_id=new_id(),
                vault_id=self.here.id,
                **members,  # type: ignore[arg-type]
            )
            await insert_tasks(conn, [new], self.world.clock.now())
        return await self.world.claim(operation_type)

    async def deleting(self, backup_id: str) -> Task:
        """A claimed delete. The prune of an earlier one is left for later."""
        await self.world.execute("UPDATE operation_logs SET not_before = now() + interval '1 hour'")
        await deletions.request_delete_backup(
            self.world.database, self.world.project, backup_id, request_id=new_id(), clock=self.world.clock
        )
        return await self.world.claim("delete")

    async def read(self, backup_id: str) -> bytes:
        """A whole backup, as a restore or a download finds it."""
        found = await reading.find_readable(self.world.database, self.world.project, backup_id)

        def pour() -> bytes:
            repository = self.tools.repository(found.vault, None, domain_id=found.domain_id)
            return b"".join(read_file(repository, found.root, ()))

        return await asyncio.to_thread(pour)

    async def foreign_domain(self) -> Repository:
        return await asyncio.to_thread(lambda: self.tools.repository(self.here, None, domain_id=self.domain))

    def job_of(self, task: Task) -> Job:
        return Job(task=task, tools=self.tools, monitor=JobMonitor())


@pytest.fixture
async def vaults(database: Database, tmp_path: Path) -> AsyncIterator[Vaults]:
    async with opened_tools(database, tmp_path) as (world, tools, store):
        found = [await _filled(world, tools, number, count) for number, count in ((1, 1), (2, 2))]
        (here, own, mine), (there, theirs, content) = found
        source = await asyncio.to_thread(lambda: tools.repository(there, None))
        domain, prefix = source.domain.id.hex(), vault_prefix(here.project_id, here.id)
        roots = [f"{backup_id}.1" for backup_id in theirs]
        await asyncio.to_thread(lambda: copy(source, store, prefix, MASTER, roots, MONITOR, lambda: None))
        wrapped = load_wraps(store, f"{prefix}/domains/{domain}/")[0][1]
        await save_vault_keys(database, world.project, here.id, wrapped, domain)
        foreign = []
        for backup_id in theirs:
            foreign.append(new_id())
            await world.execute(
                "INSERT INTO backups SELECT (jsonb_populate_record(b, jsonb_build_object('id', %s::text, 'vault_id', "
                "%s::text, 'domain_id', %s::text, 'checkpoint_id', (SELECT max(checkpoint_id) FROM backups WHERE "
                "vault_id = %s)))).* FROM backups b WHERE id = %s",
                *(foreign[-1], here.id, domain, here.id, backup_id),
            )
            content[foreign[-1]] = content[backup_id]
        yield Vaults(world, tools, store, here, there, own[0], foreign, domain, {**mine, **content})


async def _filled(world: World, tools: Tools, seed: int, count: int) -> tuple[VaultRef, list[str], dict[str, bytes]]:
    """A vault with backups that are rows and roots: (vault, their ids, their contents)."""
    vault_id = await world.add_vault([await world.add_resource()], name=f"v{seed}")
    ids, content = [], {}
    for number in range(count):
        _, (backup_id,) = await world.backed_up(vault_id)
        ids.append(backup_id)
        data = content[backup_id] = random.Random(f"{seed} {number}").randbytes(SIZE * (2 - number))
        vault = (await reading.find_readable(world.database, world.project, backup_id)).vault

        def work(vault: VaultRef = vault, backup_id: str = backup_id, data: bytes = data) -> None:
            request = BackupRequest(backup_id=backup_id, generation=1)
            backup(tools.repository(vault, None), Disk(data), request, MONITOR, lambda: None)

        await asyncio.to_thread(work)
    return vault, ids, content


async def test_what_came_from_another_vault_is_read_in_its_domain(vaults: Vaults) -> None:
    """Own and foreign backups of one vault come back whole; the other vault may be gone."""
    for name in [info.name for info in vaults.store.list(f"vaults/{vaults.there.project_id}/{vaults.there.id}/")]:
        vaults.store.delete(name)
    for backup_id in (vaults.own, *vaults.foreign):
        assert await vaults.read(backup_id) == vaults.content[backup_id]


async def test_a_prune_looks_at_every_domain(vaults: Vaults) -> None:
    """Roots that a row names stay in either domain; a foreign one that none names goes, with its bytes."""
    task = await vaults.job("prune", listed=False)
    await asyncio.to_thread(prune.run, vaults.job_of(task))
    for backup_id in (vaults.own, *vaults.foreign):
        assert await vaults.read(backup_id) == vaults.content[backup_id]
    await vaults.world.execute("DELETE FROM backups WHERE id = %s", vaults.foreign[0])
    task = await vaults.job("prune", listed=False)
    await asyncio.to_thread(prune.run, vaults.job_of(task))
    outcome = await vaults.world.one("SELECT outcome FROM operation_logs WHERE id = %s", task.id)
    assert isinstance(outcome, dict)
    assert (outcome["roots_removed"], outcome["bytes_freed"] > SIZE) == (1, True)
    assert outcome["live_bytes"] > 2 * SIZE, "the sum of both domains"
    for backup_id in (vaults.own, vaults.foreign[1]):
        assert await vaults.read(backup_id) == vaults.content[backup_id]


async def test_a_domain_whose_making_was_killed_stops_no_delete(vaults: Vaults) -> None:
    """Its keys without an index are nobody's: they are passed over, by deletes and by prunes."""
    before = vaults.tools.domains(vaults.here)
    prefix = vault_prefix(vaults.here.project_id, vaults.here.id)
    vaults.tools.store.put(f"{prefix}/domains/{'ab' * 16}/keys/0", [b"wrapped keys"])
    assert vaults.tools.domains(vaults.here) == before


async def test_a_prune_keeps_what_is_promised_without_a_row(vaults: Vaults) -> None:
    """A root whose labels promise a time to come stays although its row is gone; when that is over it goes."""
    repository = await vaults.foreign_domain()
    root = str(await vaults.world.one("DELETE FROM backups WHERE id = %s RETURNING root", vaults.foreign[0]))
    backup_id = root.rpartition(".")[0]
    for until, removed in (("2999-01-01T00:00:00.000000", 0), ("2020-01-01T00:00:00.000000", 1)):
        await asyncio.to_thread(repository.put_labels, backup_id, {"lock_until": until})
        task = await vaults.job("prune", listed=False)
        await asyncio.to_thread(prune.run, vaults.job_of(task))
        outcome = await vaults.world.one("SELECT outcome FROM operation_logs WHERE id = %s", task.id)
        assert isinstance(outcome, dict)
        assert outcome["roots_removed"] == removed
    assert root not in repository.root_names()


async def test_a_prune_lets_an_open_copy_be(vaults: Vaults) -> None:
    """A root that a copy has put and whose row is not written yet is not dead while the copy's session is open."""
    await vaults.world.execute("DELETE FROM backups WHERE id = %s", vaults.foreign[0])
    where = {"project_id": vaults.world.project, "vault_id": vaults.here.id, "domain_id": vaults.domain}
    pin = await sessions.open_session(vaults.world.database, task_id=None, kind="copy", index_number=0, **where)
    for removed in (0, 1):
        task = await vaults.job("prune", listed=False)
        await asyncio.to_thread(prune.run, vaults.job_of(task))
        outcome = await vaults.world.one("SELECT outcome FROM operation_logs WHERE id = %s", task.id)
        assert isinstance(outcome, dict)
        assert outcome["roots_removed"] == removed
        await sessions.close_session(vaults.world.database, vaults.world.project, pin)


async def test_domains_pin_for_themselves(vaults: Vaults) -> None:
    """A reader of the one domain keeps nothing of the other: their index numbers have nothing to do with each other."""
    where = {"project_id": vaults.world.project, "vault_id": vaults.here.id}
    database = vaults.world.database
    await sessions.open_session(database, task_id=None, kind="mount", index_number=4, **where)
    await sessions.open_session(database, task_id=None, kind="mount", index_number=2, domain_id=vaults.domain, **where)
    assert await sessions.oldest_pinned(database, *where.values()) == 4
    assert await sessions.oldest_pinned(database, *where.values(), vaults.domain) == 2


async def test_deleting_a_foreign_backup_takes_its_root_there(vaults: Vaults) -> None:
    """The root goes in its own domain, under the name it has there; usage is the sum of what stays in all domains."""
    task = await vaults.deleting(vaults.foreign[0])
    await asyncio.to_thread(deletion.run, vaults.job_of(task))
    assert len((await vaults.foreign_domain()).root_names()) == 1
    for backup_id in (vaults.own, vaults.foreign[1]):
        assert await vaults.read(backup_id) == vaults.content[backup_id]
    task = await vaults.deleting(vaults.own)
    job = await deletions.start_delete(vaults.world.database, task)
    assert job.keep == frozenset()
    assert {domain: len(roots) for domain, roots in job.keep_foreign.items()} == {vaults.domain: 1}
    await asyncio.to_thread(deletion.run, vaults.job_of(task))
    assert await vaults.read(vaults.foreign[1]) == vaults.content[vaults.foreign[1]]


async def test_a_rotation_keeps_the_copies_of_domains_apart(vaults: Vaults) -> None:
    """The copy of a foreign domain's wrap never takes the place of the vault's own."""
    new = MasterKey(b"n" * KEY_BYTES)
    copies = _copies(vaults.store, rewrap(vaults.store, MASTER, new, MONITOR))
    place = (vaults.world.project, vaults.here.id)
    assert new.unwrap(copies[*place, vaults.domain]).id.hex() == vaults.domain
    own = await asyncio.to_thread(lambda: vaults.tools.repository(vaults.here, None))
    assert new.unwrap(copies[*place, None]).id == own.domain.id


def opens(store: MemoryStore, vault: VaultRef, domain_id: str | None) -> bool:
    try:
        wanted = None if domain_id is None else bytes.fromhex(domain_id)
        open_repository(store, vault_prefix(vault.project_id, vault.id), MASTER, domain_id=wanted)
    except (ObjectMissing, KeyWrong):
        return False
    return True


@pytest.mark.parametrize("at", [2, 4, 6, 9, 14])
async def test_a_vault_whose_deletion_crashed_is_unreadable(vaults: Vaults, at: int) -> None:
    """Once anything but keys is gone nothing opens, the database holds no wrap, and the next attempt removes the rest;
    the vault it was copied from is as it was."""
    vaults.tools = _with_store(vaults.tools, FaultStore(vaults.store, Fault(at=at, crash=True)))
    before = {info.name for info in vaults.store.list("")}
    await vaults.world.execute("UPDATE vaults SET status = 'deleting' WHERE id = %s", vaults.here.id)
    task = await vaults.job("vault_delete")
    with pytest.raises(Crashed):
        await asyncio.to_thread(deletion.run, vaults.job_of(task))
    for domain in (None, vaults.domain):
        assert await find_vault_keys(vaults.world.database, vaults.world.project, vaults.here.id, domain) == b""
    gone = before - {info.name for info in vaults.store.list("")}
    if any("/keys/" not in name and "/digests/keys." not in name for name in gone):
        assert not any(opens(vaults.store, vaults.here, domain) for domain in (None, vaults.domain))
    vaults.tools = _with_store(vaults.tools, vaults.store)
    await deletions.fail_delete(vaults.world.database, task, StoreError(name="x"), vaults.world.clock)
    await vaults.world.execute("UPDATE vaults SET status = 'deleting' WHERE id = %s", vaults.here.id)
    await asyncio.to_thread(deletion.run, vaults.job_of(await vaults.job("vault_delete")))
    assert [*vaults.store.list(f"vaults/{vaults.here.project_id}/{vaults.here.id}/")] == []
    assert await vaults.world.one("SELECT count(*) FROM vaults") == 1
    assert opens(vaults.store, vaults.there, None)
    for row in await vaults.world.execute("SELECT id FROM backups"):
        assert await vaults.read(str(row[0])) == vaults.content[str(row[0])]


async def test_a_shredded_vault_never_gets_new_keys(vaults: Vaults) -> None:
    """A backup that comes after a deletion that failed half-way finds no keys, and makes none."""
    await vaults.world.execute("UPDATE vault_keys SET wrapped = '' WHERE vault_id = %s", vaults.here.id)
    for info in [*vaults.store.list(f"vaults/{vaults.here.project_id}/{vaults.here.id}/")]:
        if "/keys/" in info.name or info.name.endswith("/domain"):
            vaults.store.delete(info.name)
    with pytest.raises(StoreError):
        await asyncio.to_thread(lambda: vaults.tools.repository(vaults.here, None))


async def test_a_locked_vault_is_not_shredded(vaults: Vaults) -> None:
    """Should it be locked after the request, the job refuses too, before it touches a key."""
    await vaults.world.execute("UPDATE vaults SET status = 'deleting', locked = true WHERE id = %s", vaults.here.id)
    task = await vaults.job("vault_delete")
    with pytest.raises(Conflict) as refused:
        await asyncio.to_thread(deletion.run, vaults.job_of(task))
    assert refused.value.conflict_code == "6111"
    assert await find_vault_keys(vaults.world.database, vaults.world.project, vaults.here.id)
    assert opens(vaults.store, vaults.here, None)


def _with_store(tools: Tools, store: object) -> Tools:
    return Tools(**{**tools.__dict__, "store": store})
