"""Rows of replications on both sides: offers, fences, refusals, retention, and who may read what. No bytes move."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from points_world import TURBO, World

from strongroom.base.errors import Canceled, Conflict, Fenced, InvalidRequest, StrongroomError
from strongroom.base.ids import new_hex_id, new_id
from strongroom.base.units import GIB
from strongroom.control import deletions, firing, replica_offers, replicas, replications
from strongroom.control.replica_offers import Offer
from strongroom.control.replicas import CommittedReplica
from strongroom.control.replication_records import find_of_region
from strongroom.control.replication_sources import find_offered
from strongroom.control.replications import Destination, NewReplication
from strongroom.control.tasks import Task
from strongroom.control.vault_resources import remove_resources
from strongroom.control.vaults import delete_vault

DOMAIN = "d" * 32
FAR = Destination(region="west", project_id="b" * 32, vault_id=new_id())
ANSWER = {"status": "replicating", "progress": 40, "backup_id": "r", "backup_name": "n", "checkpoint_id": "c",
          "stored_bytes": 7, "fail_code": "", "fail_reason": ""}  # fmt: skip


# --- the destination --------------------------------------------------------------------------------------------------


async def offered(world: World, vault: str, **change: object) -> Offer:
    offer = Offer(
        record_id=new_id(),
        region="east",
        own_region="west",
        project_id=world.project,
        vault_id=vault,
        name=None,
        description=None,
        auto_trigger=False,
        policy_id=None,
        retention={},
        source_project_id="a" * 32,
        source_vault_id=new_id(),
        source_checkpoint_id=new_id(),
        source_backup_id=new_id(),
        source_backup_name="autobk_1",
        source_created_at=world.clock.now(),
        object_type="turbo",
        resource_id="11111111-1111-4111-8111-111111111111",
        resource_type=TURBO,
        resource_name="share",
        resource_size_bytes=5,
        incremental=True,
        root="x.1",
        domain_id=DOMAIN,
        wrapped=b"keys",
    )
    offer = replace(offer, **change)
    await replica_offers.offer_replica(world.database, offer, request_id=new_id(), clock=world.clock)
    return offer


async def target_of(world: World, **columns: object) -> str:
    return await world.add_vault(protect_type="replication", **columns)


async def fetched(world: World) -> Task:
    """Start and commit the replica that was offered last."""
    task = await world.claim("copy")
    await replicas.start_replica(world.database, task)
    committed = CommittedReplica(
        root=f"{task.backup_id}.{task.generation}",
        domain_id=DOMAIN,
        size_bytes=5,
        stored_bytes=1000,
        used_bytes=None,
        point_token=None,
        report={"kind": "tree"},
    )
    await replicas.commit_replica(world.database, task, committed, world.clock)
    return task


async def refused(work: object, code: str) -> str:
    with pytest.raises(Conflict) as found:
        await work  # type: ignore[misc]
    assert found.value.conflict_code == code, found.value.reason
    return found.value.reason


async def test_an_offer_that_comes_again_is_the_same_offer(world: World) -> None:
    """One replica, one task, whatever is repeated and when; another record of the same backup is refused."""
    offer = await offered(world, await target_of(world))
    await replica_offers.offer_replica(world.database, offer, request_id=new_id(), clock=world.clock)
    await fetched(world)
    await replica_offers.offer_replica(world.database, offer, request_id=new_id(), clock=world.clock)
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'copy'") == 1
    rows = await world.execute("SELECT status, image_type, domain_id, stored_bytes FROM backups")
    assert rows == [("available", "replication", DOMAIN, 1000)]
    assert await world.one("SELECT status FROM checkpoints") == "available"
    assert await world.one("SELECT used_bytes FROM vaults") == 1000
    second = replace(offer, record_id=new_id())
    await refused(replica_offers.offer_replica(world.database, second, request_id="r", clock=world.clock), "6118")
    assert await world.one("SELECT count(*) FROM backups") == 1


async def test_backups_of_one_restore_point_are_one_restore_point_there(world: World) -> None:
    """Two resources of one checkpoint share it over there too, and it is available when one of them is."""
    vault, point = await target_of(world), new_id()
    await offered(world, vault, source_checkpoint_id=point)
    await offered(world, vault, source_checkpoint_id=point, resource_id=new_id())
    assert await world.one("SELECT count(*) FROM checkpoints") == 1
    assert await world.one("SELECT count(*) FROM checkpoint_resources") == 2
    await fetched(world)
    await fetched(world)
    assert await world.one("SELECT status FROM checkpoints") == "available"


async def test_vaults_that_take_no_replica_say_why(world: World) -> None:
    """6120 none, or somebody else's; 6119 wrong kind; 6118 wrong status; 6129 full. Nothing is written."""
    other, _ = await world.add_project()
    await refused(offered(world, new_id()), "6120")
    await refused(offered(world, await target_of(world, project=other)), "6120")
    await refused(offered(world, await world.add_vault()), "6119")
    await refused(offered(world, await target_of(world), object_type="server"), "6119")
    await refused(offered(world, await target_of(world, status="error")), "6118")
    await refused(offered(world, await target_of(world, used_bytes=10 * GIB)), "6129")
    with pytest.raises(InvalidRequest):
        await offered(world, await target_of(world), retention={"max_backups": 1, "timezone": "Mars"})
    assert await world.execute("SELECT 1 FROM backups") == []
    assert await world.execute("SELECT 1 FROM operation_logs") == []


async def test_a_replica_that_failed_begins_anew_when_it_is_offered_again(world: World) -> None:
    """Error with its reason and a prune; the next offer of the record begins again, and old attempts are fenced."""
    offer = await offered(world, await target_of(world))
    task = await world.claim("copy")
    await replicas.start_replica(world.database, task)
    await replicas.fail_replica(world.database, task, Conflict(conflict_code="6114", reason="Full."), world.clock)
    assert await world.execute("SELECT status, fail_code, fail_reason FROM replication_records") == [
        ("fail", "BackupService.6114", "Full.")
    ]
    assert await world.one("SELECT status FROM backups") == "error"
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'prune'") == 1
    await replica_offers.offer_replica(world.database, offer, request_id=new_id(), clock=world.clock)
    with pytest.raises(Fenced):
        await replicas.start_replica(world.database, task)
    await world.execute("UPDATE operation_logs SET not_before = now() + interval '1 h' WHERE operation_type = 'prune'")
    await fetched(world)
    assert await world.one("SELECT status FROM backups") == "available"
    assert await world.execute("SELECT status, wrapped FROM replication_records") == [("success", None)]


async def test_a_source_that_gives_up_stops_the_replica(world: World) -> None:
    """Cancel ends what is under way, not what is done; only the region's own record is found."""
    offer = await offered(world, await target_of(world))

    async def record(region: str, *projects: str) -> object:
        return await find_of_region(
            world.database, side="destination", source_region=region, destination_region="west",
            record_id=offer.record_id, project_ids=projects,
        )  # fmt: skip

    assert await record("north", world.project) is None
    assert await record("east", new_hex_id()) is None
    found = await record("east", world.project)
    await replica_offers.cancel_replica(world.database, found)  # type: ignore[arg-type]
    task = await world.claim("copy")
    with pytest.raises(Canceled):
        await replicas.start_replica(world.database, task)
    await replicas.fail_replica(world.database, task, Canceled(), world.clock)
    assert await world.one("SELECT status FROM replication_records") == "fail"


@pytest.mark.parametrize("locked", [False, True])
async def test_rules_by_count_end_what_policies_sent_unless_the_vault_is_locked(world: World, locked: bool) -> None:
    """Of three automatic replicas of a resource the two older are over; manual and other ones stay. A locked vault
    keeps all."""
    vault = await target_of(world, locked=locked)
    by_hand = await offered(world, vault)
    await fetched(world)
    other = await offered(world, vault, auto_trigger=True, resource_id=new_id(), retention={"max_backups": 1})
    await fetched(world)
    for _ in range(3):
        newest = await offered(world, vault, auto_trigger=True, retention={"max_backups": 1})
        await fetched(world)
    kept = {by_hand.source_backup_id, other.source_backup_id, newest.source_backup_id}
    rows = await world.execute(
        "SELECT r.source_backup_id, b.expired_at IS NULL FROM backups b JOIN replication_records r "
        "ON r.backup_id = b.id"
    )
    assert len(rows) == 5
    assert {row[0] for row in rows if row[1]} == ({row[0] for row in rows} if locked else kept)


async def test_a_locked_vault_promises_replicas_their_time(world: World) -> None:
    """The time rule is fixed when the replica is made, and promised by a locked vault."""
    vault = await target_of(world, locked=True)
    await offered(world, vault, auto_trigger=True, retention={"retention_duration_days": 10})
    await fetched(world)
    until, promised = (await world.execute("SELECT expired_at - created_at, promised_until FROM backups"))[0]
    assert until == timedelta(days=10)
    assert promised is not None


# --- the source -------------------------------------------------------------------------------------------------------


async def sent(world: World, backup: str, **change: object) -> str:
    new = NewReplication(**{"destination": FAR, "source_region": "east", **change})  # type: ignore[arg-type]
    begun, _ = await replications.replicate_backup(
        world.database, world.project, backup, new, request_id=new_id(), clock=world.clock
    )
    return begun.record_id


async def one_backup(world: World) -> tuple[str, str, str]:
    """(vault, resource, backup)."""
    resource = await world.add_resource()
    vault = await world.add_vault([resource])
    _, backups = await world.backed_up(vault)
    return vault, resource, backups[0]


async def test_a_backup_goes_to_a_region_once(world: World) -> None:
    """Of requests at the same moment one begins; the others are refused, as after the end. A failure frees it."""
    _, _, backup = await one_backup(world)
    results = await asyncio.gather(*(sent(world, backup) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 1
    assert {r.conflict_code for r in results if isinstance(r, Conflict)} == {"6130"}
    await sent(world, backup, destination=replace(FAR, region="north"))
    task = await world.claim("replication")
    await replications.start_replication(world.database, task)
    await replications.note_replica(world.database, task, ANSWER)
    await replications.commit_replication(world.database, task, ANSWER, world.clock)
    await refused(sent(world, backup), "6118")
    other = await world.claim("replication")
    await replications.fail_replication(world.database, other, StrongroomError(), world.clock)
    await sent(world, backup, destination=replace(FAR, region="north"))
    with pytest.raises(Fenced):
        await replications.commit_replication(world.database, other, ANSWER, world.clock)


async def test_what_is_copied_is_not_deleted_meanwhile(world: World) -> None:
    """Its delete and the removal of its resource are refused until the end; a delete of the vault stops the copy."""
    vault, resource, backup = await one_backup(world)
    await sent(world, backup)
    delete = deletions.request_delete_backup(world.database, world.project, backup, request_id="r", clock=world.clock)
    assert "copied to another region" in await refused(delete, "6216")
    remove = remove_resources(world.database, world.project, vault, [resource], request_id="r", clock=world.clock)
    await refused(remove, "6130")
    await delete_vault(world.database, world.project, vault, request_id=new_id(), clock=world.clock)
    task = await world.claim("replication")
    with pytest.raises(Canceled):
        await replications.start_replication(world.database, task)
    await replications.fail_replication(world.database, task, Canceled(), world.clock)
    assert (await world.claim()).operation_type == "vault_delete"


async def test_what_leaves_the_vault_is_not_copied(world: World) -> None:
    """A resource that is being removed or moved: 6134, and a copy of the whole vault passes over it."""
    vault, resource, backup = await one_backup(world)
    await world.execute("UPDATE vault_resources SET protect_status = 'removing' WHERE resource_id = %s", resource)
    await refused(sent(world, backup), "6134")
    new = NewReplication(destination=FAR, source_region="east")
    whole = replications.replicate_vault(
        world.database, world.project, vault, new, request_id=new_id(), clock=world.clock
    )
    await refused(whole, "0001")


async def test_only_the_region_it_is_for_reads_an_open_record(world: World) -> None:
    """Not another region, not for a project that is not mapped any more, not after the end."""
    vault, _, backup = await one_backup(world)
    record = await sent(world, backup)

    async def found(region: str = "west", project: str | None = None) -> object:
        return await find_offered(
            world.database, own_region="east", region=region, record_id=record, project_ids=[project or world.project]
        )

    offered_source = await found()
    assert offered_source is not None
    assert offered_source.vault_id == vault  # type: ignore[attr-defined]
    assert await found(region="north") is None
    assert await found(project=new_hex_id()) is None
    task = await world.claim("replication")
    await replications.commit_replication(world.database, task, ANSWER, world.clock)
    assert await found() is None


async def test_a_policy_sends_what_the_region_lacks(world: World) -> None:
    """Fired: one task for each available backup without a record there; again: what failed, and what is new, once."""
    vault, resource, first = await one_backup(world)
    _, (second,) = await world.backed_up(vault)
    policy = new_id()
    await world.execute(
        "INSERT INTO policies (id, project_id, name, operation_type, enabled, trigger_id, patterns, start_at, "
        "definition, retention_changed_at, created_at) VALUES (%s, %s, 'p', 'replication', true, %s, %s, now(), "
        "%s::jsonb, now(), now())",
        policy, world.project, new_id(), ["FREQ=DAILY;BYHOUR=1;BYMINUTE=0"],
        f'{{"destination_region": "west", "destination_project_id": "{FAR.project_id}", "max_backups": 3}}',
    )  # fmt: skip
    await world.execute(
        "INSERT INTO policy_vaults (project_id, vault_id, operation_type, policy_id, destination_vault_id, "
        "next_fire_at, created_at) VALUES (%s, %s, 'replication', %s, %s, %s, now())",
        world.project, vault, policy, FAR.vault_id, world.clock.now(),
    )  # fmt: skip

    async def fire() -> int:
        await world.execute("UPDATE policy_vaults SET next_fire_at = %s", world.clock.now())
        due = await firing.due_runs(world.database, world.clock)
        assert [(one.vault_id, one.operation_type) for one in due] == [(vault, "replication")]
        fired = await firing.fire(world.database, due[0], world.clock, region="east")
        assert fired is not None
        return fired.replicas

    assert await fire() == 2
    assert await fire() == 0
    rows = await world.execute(
        "SELECT backup_id, auto_trigger, details -> 'retention' ->> 'max_backups' FROM replication_records ORDER BY "
        "source_created_at"
    )
    assert rows == [(first, True, "3"), (second, True, "3")]
    task = await world.claim("replication")
    await replications.fail_replication(world.database, task, StrongroomError(), world.clock)
    await world.execute("UPDATE operation_logs SET not_before = now() + interval '1 h' WHERE status = 'waiting'")
    await world.backed_up(vault, resource_ids=(resource,))
    assert await fire() == 2
