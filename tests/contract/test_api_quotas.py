"""Quotas of a project: set by the operator, read by the tenant, and passed by nobody, also not by two at once."""

import asyncio

import pytest
from contract_schema import check_error
from points_world import World, reader_of
from policies_world import add_policy, run_once

from strongroom.base.errors import Conflict, QuotaExceeded
from strongroom.base.units import MIB
from strongroom.control import backups, quotas
from strongroom.control.access import ROLE_OPERATOR, ROLE_TENANT_ADMIN
from strongroom.operations.watched_store import Room

UNKNOWN = "0" * 32


async def limit(world: World, **limits: int | None) -> None:
    wanted = {"vaults": None, "bytes": None, "restore_points": None, **limits}
    await quotas.change_quotas(world.database, world.project, wanted, world.clock)


async def test_two_limits_set_at_once_both_stay(world: World) -> None:
    """Who sets one limit takes nothing back that somebody else sets in the same moment."""
    for number in range(8):
        changes = [{"vaults": number}, {"bytes": number}, {"restore_points": number}]
        await asyncio.gather(
            *(quotas.change_quotas(world.database, world.project, change, world.clock) for change in changes)
        )
        limits, _ = await quotas.show_quotas(world.database, world.project)
        assert (limits.vaults, limits.bytes, limits.restore_points) == (number, number, number)


def wanted(name: str = "v") -> dict[str, object]:
    billing = {"consistent_level": "crash_consistent", "object_type": "turbo", "protect_type": "backup", "size": 10}
    return {"vault": {"name": name, "billing": billing, "resources": []}}


async def test_the_operator_sets_and_the_tenant_reads(world: World) -> None:
    """A limit that is left out stays, null lifts it; usage is told beside it; nobody else may set or look."""
    operator = world.add_caller("", ROLE_OPERATOR)
    path = f"/ext/v1/admin/projects/{world.project}/quotas"
    vault = await world.add_vault([await world.add_resource()])
    await world.backed_up(vault)
    answer = await world.client.put(path, json={"quotas": {"vaults": 3, "bytes": 9}}, headers=operator)
    assert answer.status_code == 200, answer.text
    expected = {
        "vaults": {"limit": 3, "used": 1},
        "bytes": {"limit": 9, "used": 5_000_000},
        "restore_points": {"limit": None, "used": 1},
    }
    assert answer.json() == {"project_id": world.project, "quotas": expected}
    assert (await world.client.get(world.ext("quotas"))).json()["quotas"] == expected
    assert (await world.client.get(world.ext("quotas"), headers=reader_of(world))).json()["quotas"] == expected
    answer = await world.client.put(path, json={"quotas": {"bytes": None, "restore_points": 0}}, headers=operator)
    limits = {name: quota["limit"] for name, quota in answer.json()["quotas"].items()}
    assert limits == {"vaults": 3, "bytes": None, "restore_points": 0}
    for refused in (world.add_caller(world.project, ROLE_TENANT_ADMIN), reader_of(world)):
        assert (await world.client.put(path, json={"quotas": {"vaults": 9}}, headers=refused)).status_code == 403
        assert (await world.client.get(path, headers=refused)).status_code == 403
    for project in (UNKNOWN, "x", "X" * 32):
        answer = await world.client.get(f"/ext/v1/admin/projects/{project}/quotas", headers=operator)
        assert (answer.status_code, answer.json()["error_code"]) == (404, "BackupService.9900")


@pytest.mark.parametrize("limits", [{"vaults": -1}, {"vaults": 10_001}, {"bytes": 2**63}, {"vaults": "x"}])
async def test_numbers_that_cannot_be_are_refused(world: World, limits: dict[str, object]) -> None:
    """9900, and nothing is set."""
    operator = world.add_caller("", ROLE_OPERATOR)
    path = f"/ext/v1/admin/projects/{world.project}/quotas"
    answer = await world.client.put(path, json={"quotas": {"restore_points": 1, **limits}}, headers=operator)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BackupService.9900")
    assert await world.execute("SELECT 1 FROM project_quotas") == []


async def test_vaults_created_at_once_stay_within_the_quota(world: World) -> None:
    """Of eight at once three are made; the rest is 6133; a deleted one makes room; another project has its own."""
    await limit(world, vaults=3)
    answers = await asyncio.gather(*(world.client.post(world.v3("vaults"), json=wanted()) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [400] * 5
    refused = next(answer for answer in answers if answer.status_code == 400)
    assert "3 vaults" in check_error("create_vault", refused, 400, "6133")["error_msg"]
    made = next(answer.json()["vault"]["id"] for answer in answers if answer.status_code == 200)
    assert (await world.client.delete(world.v3(f"vaults/{made}"))).status_code == 204
    assert (await world.client.post(world.v3("vaults"), json=wanted())).status_code == 200
    other, header = await world.add_project()
    assert (await world.client.post(f"/v3/{other}/vaults", json=wanted(), headers=header)).status_code == 200


async def test_restore_points_made_at_once_stay_within_the_quota(world: World) -> None:
    """Six vaults are backed up at the same moment, two of them find room; what failed takes none."""
    vaults = [await world.add_vault([await world.add_resource()]) for _ in range(6)]
    await limit(world, restore_points=2)
    bodies = [{"checkpoint": {"vault_id": vault, "parameters": {}}} for vault in vaults]
    answers = await asyncio.gather(*(world.client.post(world.v3("checkpoints"), json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 400, 400, 400, 400]
    check_error("create_checkpoint", next(a for a in answers if a.status_code == 400), 400, "8300")
    assert await world.one("SELECT count(*) FROM operation_logs") == 2, "a refused one leaves no task"
    task = await world.claim("backup")
    await backups.fail_backup(world.database, task, Conflict(conflict_code="6215", reason="x"), world.clock)
    body = next(b for b, a in zip(bodies, answers, strict=True) if a.status_code == 400)
    assert (await world.client.post(world.v3("checkpoints"), json=body)).status_code == 200


async def test_a_schedule_meets_the_quota(world: World) -> None:
    """The run is told as failed with the code, the policy goes on, and no restore point was made."""
    vault = await world.add_vault([await world.add_resource()])
    await add_policy(world, vault)
    await limit(world, restore_points=0)
    await run_once(world, vault)
    assert await world.execute("SELECT status, error_code FROM operation_logs") == [("failed", "BackupService.8300")]
    assert await world.one("SELECT count(*) FROM checkpoints") == 0
    assert await world.one("SELECT next_fire_at > %s FROM policy_vaults", world.clock.now())


async def test_bytes_are_bounded_before_during_and_at_the_end_of_a_backup(world: World) -> None:
    """Two that begin with room for one: the second to end is refused and its packs go; then nothing begins any more."""
    vaults = [await world.add_vault([await world.add_resource()]) for _ in range(2)]
    await limit(world, bytes=8 * MIB)
    for vault in vaults:
        await world.run(vault)
    first, second = await world.claim("backup"), await world.claim("backup")
    plan = await backups.start_backup(world.database, first)
    assert plan.project_left_bytes == 8 * MIB
    await world.commit(first, stored_bytes=5 * MIB)
    assert (await backups.start_backup(world.database, second)).project_left_bytes == 3 * MIB
    with pytest.raises(QuotaExceeded) as caught:
        await world.commit(second, stored_bytes=5 * MIB)
    assert caught.value.published_code == "BackupService.6142"
    await backups.fail_backup(world.database, second, caught.value, world.clock)
    assert await world.one("SELECT sum(used_bytes)::bigint FROM vaults") == 5 * MIB
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'prune'") == 1
    await limit(world, bytes=5 * MIB)
    body = {"checkpoint": {"vault_id": vaults[0], "parameters": {}}}
    refused = await world.client.post(world.v3("checkpoints"), json=body)
    assert "5.0 MiB" in check_error("create_checkpoint", refused, 400, "6142")["error_msg"]


def test_a_running_backup_stops_at_the_projects_limit() -> None:
    """Sealed bytes count against what the project has left, though the vault would take them."""
    room = Room(used_bytes=0, size_bytes=0, project_left_bytes=10)
    room.spend(10)
    with pytest.raises(QuotaExceeded):
        room.spend(1)
    endless = Room(used_bytes=9, size_bytes=0, project_left_bytes=None)
    endless.spend(10**15)
    with pytest.raises(Conflict, match="full"):
        Room(used_bytes=9, size_bytes=10, project_left_bytes=None).spend(2)
