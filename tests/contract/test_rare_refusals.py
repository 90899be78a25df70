"""Refusals whose codes no other suite reaches (docs/ERROR-CODES.md)."""

from contract_schema import check_answer, check_error
from in_process_api import PROJECT_A, InProcessApi
from points_world import World

from strongroom.base.errors import StoreFull
from strongroom.base.ids import new_id
from strongroom.control import backups

TRIGGER = {"properties": {"pattern": ["FREQ=DAILY;INTERVAL=1;BYHOUR=3;BYMINUTE=0"]}}


async def test_a_full_store_ends_a_backup(world: World) -> None:
    """A backup that found the store full says so in its log with 6107, and a prune makes what room there is."""
    vault = await world.add_vault([await world.add_resource()])
    await world.run(vault)
    task = await world.claim("backup")
    await backups.start_backup(world.database, task)
    await backups.fail_backup(world.database, task, StoreFull(name="packs/x"), world.clock)
    log = check_answer("show_op_log", await world.client.get(world.v3(f"operation-logs/{task.id}")))["operation_log"]
    assert (log["status"], log["error_info"]["code"]) == ("failed", "BackupService.6107")
    assert (await world.claim()).operation_type == "prune"


async def test_an_unknown_kind_of_policy(api: InProcessApi) -> None:
    """A policy is for backup or replication; another kind is 6117, and nothing is made."""
    policy = {"name": "p", "trigger": TRIGGER, "operation_definition": {"max_backups": 3}}
    for kind in ("restore", "", "Backup"):
        made = await api.alice.post("/policies", json={"policy": policy | {"operation_type": kind}})
        check_error("create_policy", made, 400, "6117")
    assert (await api.alice.get("/policies")).json()["count"] == 0


async def test_the_region_of_an_applied_policy_stays(api: InProcessApi) -> None:
    """While a vault replicates by it, the destination of a policy is fixed: 6003."""
    definition = {"max_backups": 3, "destination_region": "eu-nl", "destination_project_id": "e" * 32}
    policy = {"name": "p", "operation_type": "replication", "trigger": TRIGGER, "operation_definition": definition}
    made = check_answer("create_policy", await api.alice.post("/policies", json={"policy": policy}))["policy"]
    billing = {"object_type": "turbo", "protect_type": "backup", "consistent_level": "crash_consistent", "size": 100}
    vault = {"name": "v", "billing": billing, "resources": []}
    vault_id = check_answer("create_vault", await api.alice.post("/vaults", json={"vault": vault}))["vault"]["id"]
    await api.execute(
        "INSERT INTO policy_vaults (project_id, vault_id, operation_type, policy_id, destination_vault_id, created_at) "
        "VALUES (%s, %s, 'replication', %s, %s, now())",
        *(PROJECT_A, vault_id, made["id"], new_id()),
    )
    moved = {"policy": {"operation_definition": definition | {"destination_region": "eu-ch2"}}}
    check_error("update_policy", await api.alice.put(f"/policies/{made['id']}", json=moved), 400, "6003")


async def test_a_server_that_cannot_be_protected(api: InProcessApi) -> None:
    """A server whose last look failed is listed with 7101 and the reason."""
    server = new_id()
    await api.execute(
        "INSERT INTO protectables (id, project_id, type, resource_type, name, path, status, created_at) "
        "VALUES (%s, %s, 'server', 'OS::Nova::Server', 'web', '/', 'error', now())",
        *(server, PROJECT_A),
    )
    shown = check_answer("show_protectable", await api.alice.get(f"/protectables/server/instances/{server}"))
    assert shown["instance"]["protectable"]["code"] == "BackupService.7101"
    assert shown["instance"]["protectable"]["result"] is False
