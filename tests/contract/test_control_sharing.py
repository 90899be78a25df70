"""A share that ends while somebody reads through it: the job side, step by step, on a real database."""

from dataclasses import dataclass

import pytest
from points_world import DISK, World

from strongroom.base.errors import BackupNotFound, Canceled, Conflict, Fenced, SourceError, StrongroomError
from strongroom.base.ids import new_id
from strongroom.control import claiming, deletions, expiry, restores, sharing, tasks, vaults
from strongroom.control.reading import find_readable
from strongroom.control.restores import NewRestore
from strongroom.control.sessions import oldest_pinned, open_session
from strongroom.control.tasks import Task
from strongroom.control.vault_resources import remove_resources


@dataclass
class Loan:
    """`backup` of the world's project, accepted by `receiver` into `vault`; `disk` is the receiver's."""

    world: World
    backup: str
    lender_vault: str
    lender_disk: str
    receiver: str
    vault: str
    disk: str

    async def asked(self) -> None:
        await restores.request_restore(
            self.world.database, self.receiver, self.backup, NewRestore(volume_id=self.disk), request_id=new_id(),
            clock=self.world.clock,
        )  # fmt: skip

    async def begun(self) -> Task:
        """A restore that runs, and has pinned what it reads."""
        await self.asked()
        task = await self.world.claim("restore")
        job = await restores.start_restore(self.world.database, task)
        assert (job.vault.id, job.vault.project_id) == (self.lender_vault, self.world.project)
        await open_session(
            self.world.database, project_id=job.vault.project_id, vault_id=job.vault.id, task_id=task.id,
            kind="restore", index_number=7,
        )  # fmt: skip
        return task

    async def pinned(self) -> int | None:
        return await oldest_pinned(self.world.database, self.world.project, self.lender_vault)

    async def must_stop(self, task: Task) -> bool:
        ours, stopped = await tasks.renew(self.world.database, self.world.worker, {task.id: task.generation})
        assert ours == {task.id}
        return stopped == {task.id}

    async def failed(self, task: Task, error: StrongroomError, *, half: bool = False) -> tuple[str, str, str]:
        """How the task ended: status and code, and what its target says."""
        await restores.fail_restore(self.world.database, task, error, self.world.clock, half_restored=half)
        ((status, code),) = await self.world.execute(
            "SELECT status, error_code FROM operation_logs WHERE id = %s", task.id
        )
        target = await self.world.execute("SELECT status_reason FROM vault_resources WHERE resource_id = %s", self.disk)
        return str(status), str(code).removeprefix("BackupService."), str(target[0][0]) if target else ""

    async def revoke(self) -> None:
        await sharing.revoke(self.world.database, self.world.project, self.backup, self.receiver)


@pytest.fixture
async def loan(world: World) -> Loan:
    receiver, _ = await world.add_project()
    disk = await world.add_resource(DISK)
    lender_vault = await world.add_vault([disk], kind=DISK)
    _, (backup,) = await world.backed_up(lender_vault)
    target = await world.add_resource(DISK, project=receiver)
    vault = await world.add_vault([target], kind=DISK, project=receiver)
    await sharing.add_members(world.database, world.project, backup, [receiver], world.clock)
    await sharing.decide(
        world.database, receiver, backup, receiver, status="accepted", vault_id=vault, clock=world.clock
    )
    return Loan(world, backup, lender_vault, disk, receiver, vault, target)


async def shares(world: World) -> int:
    return int(str(await world.one("SELECT count(*) FROM backup_members")))


async def test_a_restore_pins_the_owners_vault_until_it_ends(loan: Loan, world: World) -> None:
    """What a receiver's restore reads stays in the owner's vault, and is free again in the transaction that ends it."""
    task = await loan.begun()
    assert (await loan.pinned(), await loan.must_stop(task)) == (7, False)
    rows = await world.execute("SELECT status FROM backups")
    assert rows == [("available",)], "the owner's row says nothing of a receiver's restore"
    await restores.commit_restore(world.database, task, {}, world.clock)
    assert await loan.pinned() is None
    with pytest.raises(Fenced):
        await restores.commit_restore(world.database, task, {}, world.clock)


async def test_revoked_before_it_began(loan: Loan, world: World) -> None:
    """A restore that waits when its share ends reads nothing and says why."""
    await loan.asked()
    await loan.revoke()
    task = await world.claim("restore")
    with pytest.raises(BackupNotFound) as refused:
        await restores.start_restore(world.database, task)
    assert await loan.failed(task, refused.value) == ("failed", "6705", "None")
    rows = await world.execute("SELECT protect_status FROM vault_resources WHERE resource_id = %s", loan.disk)
    assert rows == [("available",)]


async def test_revoked_while_it_runs(loan: Loan) -> None:
    """A running restore is told to stop by its next renewal, says that the share ended, and pins nothing any more."""
    task = await loan.begun()
    await loan.revoke()
    assert await loan.must_stop(task)
    assert await loan.failed(task, Canceled()) == ("failed", "6705", "None")
    assert await loan.pinned() is None


async def test_half_restored_when_revoked(loan: Loan) -> None:
    """A device that was overwritten in part says that another backup must be restored onto it."""
    task = await loan.begun()
    await loan.revoke()
    status, code, reason = await loan.failed(task, Canceled(), half=True)
    assert (status, code) == ("failed", "6705")
    assert "restore another backup" in reason


async def test_revoked_when_it_was_done(loan: Loan, world: World) -> None:
    """A restore that had written everything before it noticed is a success: its bytes are in place."""
    task = await loan.begun()
    await loan.revoke()
    await restores.commit_restore(world.database, task, {}, world.clock)
    assert await world.one("SELECT status FROM operation_logs WHERE id = %s", task.id) == "success"
    assert await loan.pinned() is None


async def test_other_failures_keep_their_reason(loan: Loan) -> None:
    """That a share ended meanwhile does not hide what was wrong with the target, nor a cancel of the receiver's own."""
    task = await loan.begun()
    assert await loan.failed(task, Canceled()) == ("failed", "9910", "None")
    task = await loan.begun()
    await loan.revoke()
    assert await loan.failed(task, SourceError(reason="The target is gone.")) == ("failed", "6215", "None")


@pytest.mark.parametrize("how", ["delete", "expire", "remove", "vault"])
async def test_what_is_on_its_way_out_is_shared_with_nobody(loan: Loan, world: World, how: str) -> None:
    """The owner's delete, an expiry, a removal and the delete of the vault are not held up by a receiver: each ends the
    share at once, stops its restore, and the owner's deletion of the vault waits until that has noticed."""
    task = await loan.begun()
    project, database, clock = world.project, world.database, world.clock
    if how == "delete":
        await deletions.request_delete_backup(database, project, loan.backup, request_id=new_id(), clock=clock)
    elif how == "expire":
        await world.execute("UPDATE backups SET expired_at = '2020-01-01'")
        (found,) = await expiry.overdue(database, clock)
        await expiry.expire(database, found, clock)
    elif how == "remove":
        await remove_resources(database, project, loan.lender_vault, [loan.lender_disk], new_id(), clock)
    else:
        await vaults.delete_vault(database, project, loan.lender_vault, new_id(), clock)
    assert await shares(world) == 0
    with pytest.raises(BackupNotFound):
        await find_readable(database, loan.receiver, loan.backup)
    assert await loan.must_stop(task)
    deleting = await claiming.claim(database, world.worker, "default")
    assert (deleting is None) == (how == "vault"), "objects that somebody reads are not wiped under him"
    assert await loan.pinned() == 7
    assert await loan.failed(task, Canceled()) == ("failed", "6705", "None")
    if how == "vault":
        assert (await world.claim("vault_delete")).vault_id == loan.lender_vault


async def test_a_receiver_whose_worker_died_holds_nobody_up(loan: Loan, world: World) -> None:
    """The delete of the owner's vault waits for a lease, not for ever."""
    task = await loan.begun()
    await vaults.delete_vault(world.database, world.project, loan.lender_vault, new_id(), world.clock)
    await world.execute(
        "UPDATE operation_logs SET lease_until = now() - interval '1 second', attempts = 5 WHERE id = %s", task.id
    )
    assert (await world.claim()).operation_type == "vault_delete"


async def test_the_receivers_vault_goes(loan: Loan, world: World) -> None:
    """Who deletes the vault it accepted into has rejected the share; the backup itself is none of the vault's."""
    database = world.database
    await world.execute("UPDATE vaults SET locked = true WHERE id = %s", loan.vault)  # its own backups: none
    await vaults.delete_vault(database, loan.receiver, loan.vault, new_id(), world.clock)
    member = await sharing.show_member(database, world.project, loan.backup, loan.receiver)
    assert (member.status, member.vault_id) == ("rejected", None)
    with pytest.raises(Conflict) as refused:
        await find_readable(database, loan.receiver, loan.backup)
    assert refused.value.conflict_code == "2005"
    assert (await find_readable(database, world.project, loan.backup)).shared is False


async def test_shares_of_a_promised_backup_end_all_the_same(loan: Loan, world: World) -> None:
    """A locked vault keeps its backups, not the shares of them; a refused delete ends none."""
    await world.execute("UPDATE vaults SET locked = true, keep_manual = true")
    with pytest.raises(Conflict) as refused:
        await deletions.request_delete_backup(
            world.database, world.project, loan.backup, request_id=new_id(), clock=world.clock
        )
    assert refused.value.conflict_code == "6220"
    assert await shares(world) == 1
    await loan.revoke()
    assert await shares(world) == 0


async def test_a_prune_of_the_owners_vault_keeps_what_is_shared(loan: Loan, world: World) -> None:
    """Rows alone decide what a prune keeps: the owner's, whether shared or not."""
    root = await world.one("SELECT root FROM backups")
    other, _ = await world.add_project()
    await sharing.add_members(world.database, world.project, loan.backup, [other], world.clock)
    async with world.database.transaction() as conn:
        vault = await vaults.lock_vault(conn, world.project, loan.lender_vault)
        await deletions.queue_prune(conn, vault, request_id=new_id(), clock=world.clock)
    job = await deletions.start_prune(world.database, await world.claim("prune"))
    assert job.keep == {root}
