"""POST and GET of checkpoints against the contract, on a real database."""

import asyncio
import re

import psycopg
import pytest
from contract_schema import check_answer, check_error
from points_world import DISK, TURBO, World, reader_of

from strongroom.base.errors import SourceGone
from strongroom.base.ids import new_id
from strongroom.control import backups, claiming


async def create(world: World, vault: str, **parameters: object):
    """Whoever makes a restore point is told what a read of it says."""
    body = {"checkpoint": {"vault_id": vault, "parameters": parameters}}
    answer = await world.client.post(world.v3("checkpoints"), json=body)
    if answer.status_code == 200:
        shown = await world.client.get(world.v3(f"checkpoints/{answer.json()['checkpoint']['id']}"))
        assert shown.json() == answer.json()
    return answer


async def test_a_backup_is_of_the_vault_and_the_project_of_its_checkpoint(world: World) -> None:
    """Whatever a program does wrong: the database refuses it."""
    await world.run(await world.add_vault([await world.add_resource()]))
    other_vault = await world.add_vault(name="other")
    other_project, _ = await world.add_project()
    for change, value in (("vault_id", other_vault), ("project_id", other_project), ("checkpoint_id", new_id())):
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="backups_of_checkpoint"):
            await world.execute(f"UPDATE backups SET {change} = %s", value)


async def test_published_page(world: World) -> None:
    """GET of a restore point answers the published members, numbers as strings, times without offset."""
    resource = await world.add_resource(name="ecs-1f0f-0002")
    vault = await world.add_vault([resource])
    created = check_answer("create_checkpoint", await create(world, vault, name="before", description="d"))
    point = created["checkpoint"]
    assert point["status"] == "protecting"
    assert point["vault"]["resources"][0]["protect_status"] == "protecting"
    await world.commit(await world.claim("backup"), stored_bytes=(1 << 20) + 1)
    shown = check_answer("show_checkpoint", await world.client.get(world.v3(f"checkpoints/{point['id']}")))
    assert shown["checkpoint"] == {
        "id": point["id"],
        "project_id": world.project,
        "status": "available",
        "created_at": point["created_at"],
        "vault": {
            "id": vault,
            "name": "vault-be94",
            "provider_id": "3f3c3220-245c-4805-b811-758870015881",
            "resources": [
                {
                    "id": resource,
                    "type": TURBO,
                    "name": "ecs-1f0f-0002",
                    "extra_info": None,
                    "protect_status": "available",
                    "resource_size": "4",
                    "backup_size": "2",
                    "backup_count": "1",
                }
            ],
            "skipped_resources": [],
        },
        "extra_info": {"name": "before", "description": "d", "retention_duration": -1},
    }
    assert re.fullmatch(r"2026-05-10T07:59:\d\d\.036982", point["created_at"])


async def test_defaults(world: World) -> None:
    """Without parameters the whole vault is backed up, incrementally, under a name manualbk_<4 hex>."""
    resources = [await world.add_resource(name=f"r{i}") for i in range(3)]
    vault = await world.add_vault(resources)
    answer = await world.client.post(world.v3("checkpoints"), json={"checkpoint": {"vault_id": vault}})
    point = check_answer("create_checkpoint", answer)["checkpoint"]
    assert {r["id"] for r in point["vault"]["resources"]} == set(resources)
    assert re.fullmatch(r"manualbk_[0-9a-f]{4}", point["extra_info"]["name"])
    rows = await world.execute("SELECT name, incremental, status, expired_at, auto_trigger FROM backups")
    assert rows == [(point["extra_info"]["name"], True, "waiting_protect", None, False)] * 3


async def test_automatic_name_carries_prefix(world: World) -> None:
    """An automatic run is called autobk_<4 hex> behind the vault's prefix."""
    vault = await world.add_vault([await world.add_resource()], backup_name_prefix="night-")
    point = check_answer("create_checkpoint", await create(world, vault, auto_trigger=True))["checkpoint"]
    assert re.fullmatch(r"night-autobk_[0-9a-f]{4}", point["extra_info"]["name"])


async def test_retention_sets_expiry(world: World) -> None:
    """retention_duration_days makes the backups expire that many days after they were asked for."""
    vault = await world.add_vault([await world.add_resource()])
    answer = await create(world, vault, retention_duration_days=30, incremental=False)
    point = check_answer("create_checkpoint", answer)["checkpoint"]
    assert point["extra_info"]["retention_duration"] == 30
    rows = await world.execute("SELECT (expired_at - created_at)::text, incremental FROM backups")
    assert rows == [("30 days", False)]


async def test_chosen_resources_in_order(world: World) -> None:
    """Only the named resources are backed up, in the order of the request, from either list."""
    a, b, c = [await world.add_resource(name=name) for name in "abc"]
    vault = await world.add_vault([a, b, c])
    point = check_answer("create_checkpoint", await create(world, vault, resources=[c, a]))["checkpoint"]
    assert [r["id"] for r in point["vault"]["resources"]] == [c, a]
    details = [{"id": b, "type": TURBO, "extra_info": {"exclude_volumes": [new_id()]}}]
    point = check_answer("create_checkpoint", await create(world, vault, resource_details=details))["checkpoint"]
    assert [r["id"] for r in point["vault"]["resources"]] == [b]
    assert "exclude_volumes" in point["vault"]["resources"][0]["extra_info"]


async def test_full_vault_of_256_resources(world: World) -> None:
    """256 resources are accepted in one request and every one of them has its backup and its log."""
    resources = [await world.add_resource(name=f"r{i}") for i in range(256)]
    vault = await world.add_vault(resources)
    point = check_answer("create_checkpoint", await create(world, vault))["checkpoint"]
    assert len(point["vault"]["resources"]) == 256
    assert await world.one("SELECT count(*) FROM backups") == 256
    assert await world.one("SELECT count(DISTINCT resource_id) FROM operation_logs WHERE status = 'waiting'") == 256


async def test_busy_resources_are_skipped(world: World) -> None:
    """What is being backed up, restored or removed stands in skipped_resources, with a skipped log each."""
    names = ["free", "backing-up", "restoring", "removing", "half"]
    ids = {name: await world.add_resource(name=name) for name in names}
    vault = await world.add_vault(list(ids.values()))
    _, found = await world.backed_up(vault, resource_ids=(ids["restoring"],))
    await world.restored(found[0])
    await world.run(vault, resource_ids=(ids["backing-up"],))
    await world.execute(
        "UPDATE vault_resources SET protect_status = 'removing' WHERE resource_id = %s", ids["removing"]
    )
    await world.execute(
        "UPDATE vault_resources SET protect_status = 'error', status_reason = 'Half restored: run the restore again.' "
        "WHERE resource_id = %s",
        ids["half"],
    )
    point = check_answer("create_checkpoint", await create(world, vault))["checkpoint"]
    assert [r["name"] for r in point["vault"]["resources"]] == ["free"]
    skipped = {r["name"]: (r["code"], r["reason"]) for r in point["vault"]["skipped_resources"]}
    assert {name: code for name, (code, _) in skipped.items()} == {
        "backing-up": "BackupService.6125",
        "restoring": "BackupService.2010",
        "removing": "BackupService.6134",
        "half": "BackupService.6215",
    }
    assert skipped["half"][1] == "Half restored: run the restore again."
    logs = await world.execute(
        "SELECT resource_name, error_code FROM operation_logs WHERE checkpoint_id = %s AND status = 'skipped'",
        point["id"],
    )
    assert dict(logs) == {name: code for name, (code, _) in skipped.items()}


async def test_two_at_once(world: World) -> None:
    """Of two runs at the same moment one backs up and the other finds everything busy: 0001, and no rows of it."""
    vault = await world.add_vault([await world.add_resource(), await world.add_resource(name="other")])
    answers = await asyncio.gather(*(create(world, vault) for _ in range(4)))
    assert sorted(a.status_code for a in answers) == [200, 400, 400, 400]
    for answer in answers:
        if answer.status_code == 400:
            body = check_error("create_checkpoint", answer, 400, "0001")
            assert "being backed up" in body["error_msg"]
    assert await world.one("SELECT count(*) FROM checkpoints") == 1
    assert await world.one("SELECT count(*) FROM backups") == 2


async def test_failed_resource_is_skipped(world: World) -> None:
    """A resource that fails in the run moves to skipped_resources with its code; the point is available."""
    vault = await world.add_vault([await world.add_resource(name="a"), await world.add_resource(name="b")])
    checkpoint = await world.run(vault)
    first = await world.claim("backup")
    await backups.start_backup(world.database, first)
    await backups.fail_backup(world.database, first, SourceGone(reason="The folder is not there."), world.clock)
    path = world.v3(f"checkpoints/{checkpoint.id}")
    shown = check_answer("show_checkpoint", await world.client.get(path))["checkpoint"]
    assert shown["status"] == "protecting"
    await world.commit(await world.claim("backup"))
    shown = check_answer("show_checkpoint", await world.client.get(path))["checkpoint"]
    assert shown["status"] == "available"
    assert [r["protect_status"] for r in shown["vault"]["resources"]] == ["available"]
    assert [(r["code"], r["reason"]) for r in shown["vault"]["skipped_resources"]] == [
        ("BackupService.6215", "The folder is not there.")
    ]


async def test_nothing_available_is_error(world: World) -> None:
    """A run whose every resource failed is a point in error without resources."""
    vault = await world.add_vault([await world.add_resource()])
    checkpoint = await world.run(vault)
    task = await world.claim("backup")
    await backups.fail_backup(world.database, task, SourceGone(reason="Gone."), world.clock)
    answer = await world.client.get(world.v3(f"checkpoints/{checkpoint.id}"))
    shown = check_answer("show_checkpoint", answer)["checkpoint"]
    assert (shown["status"], shown["vault"]["resources"]) == ("error", [])


async def test_protect_status_follows_restore(world: World) -> None:
    """While the backup is being restored its resource shows restoring in this point, and in no other."""
    vault = await world.add_vault([await world.add_resource()])
    older, _ = await world.backed_up(vault)
    newer, found = await world.backed_up(vault)
    await world.restored(found[0])
    for point, expected in ((newer, "restoring"), (older, "available")):
        answer = await world.client.get(world.v3(f"checkpoints/{point.id}"))
        shown = check_answer("show_checkpoint", answer)["checkpoint"]
        assert shown["status"] == "available"
        assert [r["protect_status"] for r in shown["vault"]["resources"]] == [expected]
        assert [r["backup_count"] for r in shown["vault"]["resources"]] == ["2"]


async def test_gone_with_its_last_backup(world: World) -> None:
    """A point loses the resource of a deleted backup and answers 404 6217 after its last one."""
    vault = await world.add_vault([await world.add_resource(name="a"), await world.add_resource(name="b")])
    point, found = await world.backed_up(vault)
    await world.deleted(found[0])
    path = world.v3(f"checkpoints/{point.id}")
    shown = check_answer("show_checkpoint", await world.client.get(path))["checkpoint"]
    assert [r["name"] for r in shown["vault"]["resources"]] == [point.resources[1].name]
    await world.deleted(found[1])
    check_error("show_checkpoint", await world.client.get(path), 404, "6217")


async def test_unknown_and_foreign_points(world: World) -> None:
    """A point of another project answers like a missing one; a malformed id is 9900."""
    other, header = await world.add_project()
    vault = await world.add_vault([await world.add_resource()])
    point = await world.run(vault)
    foreign = await world.client.get(f"/v3/{other}/checkpoints/{point.id}", headers=header)
    missing = await world.client.get(f"/v3/{other}/checkpoints/{new_id()}", headers=header)
    check_error("show_checkpoint", foreign, 404, "6217")
    check_error("show_checkpoint", missing, 404, "6217")
    check_error("show_checkpoint", await world.client.get(world.v3("checkpoints/not-an-id")), 400, "9900")
    check_error("show_checkpoint", await world.client.get(f"/v3/{other}/checkpoints/{point.id}"), 403, "8600")


async def test_refused_vaults(world: World) -> None:
    """Unknown, foreign, empty, full, replication and unavailable vaults are refused with their codes, without rows."""
    resource = await world.add_resource()
    other, _ = await world.add_project()
    cases = {
        "6105": [new_id(), await world.add_vault([await world.add_resource(project=other)], project=other)],
        "0001": [await world.add_vault()],
        "6114": [await world.add_vault([resource], size_gb=1, used_bytes=1 << 30)],
        "6124": [await world.add_vault([await world.add_resource()], protect_type="replication")],
        "6113": [
            await world.add_vault([await world.add_resource()], status=s) for s in ("deleting", "error", "frozen")
        ],
    }
    for code, vaults in cases.items():
        for vault in vaults:
            check_error("create_checkpoint", await create(world, vault), 404 if code == "6105" else 400, code)
    assert await world.one("SELECT count(*) FROM checkpoints") == 0
    assert await world.one("SELECT count(*) FROM operation_logs") == 0


async def test_vaults_billed_on_demand_are_never_full(world: World) -> None:
    """demand_billing lifts the limit; auto_expand does only for a vault that it kept from filling up."""
    vault = await world.add_vault([await world.add_resource()], size_gb=1, used_bytes=2 << 30, demand_billing=True)
    check_answer("create_checkpoint", await create(world, vault))
    vault = await world.add_vault([await world.add_resource()], size_gb=1, used_bytes=2 << 30, auto_expand=True)
    check_error("create_checkpoint", await create(world, vault), 400, "6114")


async def test_refused_resources(world: World) -> None:
    """Unknown, foreign, unbound, twice named and malformed resources are refused with their codes, without rows."""
    other, _ = await world.add_project()
    mine, unbound = await world.add_resource(), await world.add_resource()
    elsewhere = await world.add_resource(DISK)
    await world.add_vault([elsewhere], kind=DISK)
    foreign = await world.add_resource(project=other)
    vault = await world.add_vault([mine])
    for resources, status, code in (
        ([new_id()], 404, "6302"),
        ([foreign], 404, "6302"),
        ([mine, unbound], 400, "6135"),
        ([elsewhere], 400, "6135"),
        ([mine, mine], 400, "6104"),
        (["x"], 400, "9900"),
        ([mine.upper()], 400, "9900"),
        ([new_id() for _ in range(257)], 400, "9900"),
    ):
        check_error("create_checkpoint", await create(world, vault, resources=resources), status, code)
    details = [{"id": unbound, "type": TURBO}]
    answer = await create(world, vault, resources=[mine], resource_details=details)
    check_error("create_checkpoint", answer, 400, "9900")
    assert await world.one("SELECT count(*) FROM checkpoints") == 0


async def test_bad_parameters(world: World) -> None:
    """Every member of a wrong type or range is 9900 with a sentence that names it."""
    vault = await world.add_vault([await world.add_resource()])
    for member, values in {
        "name": ["", "a b", "x" * 65, 7, [], "ü", "a\n"],
        "description": ["x" * 256, "<b>", 7],
        "incremental": ["true", 1, []],
        "auto_trigger": ["no", 0],
        "resources": ["all", 7, [7], {}],
        "resource_details": [[{}], [{"id": 7, "type": TURBO}], "x"],
        "retention_duration_days": [0, -2, 36501, "7", 1.5],
        "policy_id": ["x", 7],
    }.items():
        for value in values:
            body = check_error("create_checkpoint", await create(world, vault, **{member: value}), 400, "9900")
            assert member.split("_")[0] in body["error_msg"], (member, value, body)
    answer = await create(world, vault, auto_trigger=True, retention_duration_days=7)
    check_error("create_checkpoint", answer, 400, "9900")
    for raw in (b"", b"{", b"[]", b"{}", b'{"checkpoint":{}}', b'{"checkpoint":{"vault_id":7}}', b"null", b"\xff"):
        answer = await world.client.post(world.v3("checkpoints"), content=raw)
        check_error("create_checkpoint", answer, 400, "9900")
    answer = await world.client.post(world.v3("checkpoints"), json={"checkpoint": {"vault_id": "x"}})
    check_error("create_checkpoint", answer, 400, "9900")
    assert await world.one("SELECT count(*) FROM checkpoints") == 0


async def test_nulls_are_absent(world: World) -> None:
    """null members and members nobody knows are as good as absent."""
    vault = await world.add_vault([await world.add_resource()])
    members = ("name", "description", "incremental", "auto_trigger", "resources", "resource_details", "policy_id")
    answer = await create(world, vault, **dict.fromkeys(members), is_auto_renew=True, retention_duration_days=None)
    point = check_answer("create_checkpoint", answer)["checkpoint"]
    assert point["extra_info"]["name"].startswith("manualbk_")


async def test_reader_may_look_only(world: World) -> None:
    """A read-only role gets points but makes none."""
    vault = await world.add_vault([await world.add_resource()])
    point = await world.run(vault)
    reader = reader_of(world)
    check_answer("show_checkpoint", await world.client.get(world.v3(f"checkpoints/{point.id}"), headers=reader))
    body = {"checkpoint": {"vault_id": vault}}
    refused = await world.client.post(world.v3("checkpoints"), json=body, headers=reader)
    check_error("create_checkpoint", refused, 403, "8600")


async def test_tasks_go_to_the_group_of_their_resource(world: World) -> None:
    """A backup is offered only to workers that can reach its source."""
    resource = await world.add_resource()
    await world.execute("UPDATE protectables SET worker_group = 'rack-7' WHERE id = %s", resource)
    await world.run(await world.add_vault([resource]))
    assert await claiming.claim(world.database, "w", "default") is None
    assert await claiming.claim(world.database, "w", "rack-7") is not None
