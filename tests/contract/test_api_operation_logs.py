"""Operation logs and /ext tasks through the API, on a real database."""

import pytest
from contract_schema import check_answer, check_error
from points_world import DISK, World, reader_of

from strongroom.base.errors import SourceGone
from strongroom.base.ids import new_id
from strongroom.control import backups, claiming, deletions, restores, tasks
from strongroom.control.tasks import NewTask, Progress


async def listed(world: World, **query: object) -> dict:
    return check_answer("list_op_logs", await world.client.get(world.v3("operation-logs"), params=query))


async def shown(world: World, log_id: str) -> dict:
    answer = await world.client.get(world.v3(f"operation-logs/{log_id}"))
    return check_answer("show_op_log", answer)["operation_log"]


async def ext(world: World, path: str, **query: object) -> dict:
    answer = await world.client.get(world.ext(path), params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def queued(world: World, **members: object) -> str:
    new = NewTask(project_id=world.project, request_id=new_id(), **members)
    async with world.database.transaction() as conn:
        await tasks.insert(conn, [new], world.clock.now())
    return new.id


async def test_backup_log(world: World) -> None:
    """A checkpoint writes one log a resource: waiting, running, success, with its part and the request's id."""
    resource = await world.add_resource(name="files")
    vault = await world.add_vault([resource], name="v1")
    body = {"checkpoint": {"vault_id": vault, "parameters": {"name": "n1", "incremental": False}}}
    created = await world.client.post(world.v3("checkpoints"), json=body)
    point = created.json()["checkpoint"]
    (log,) = (await listed(world))["operation_logs"]
    assert (log["operation_type"], log["status"], log["ended_at"]) == ("backup", "waiting", None)
    assert (log["vault_id"], log["vault_name"], log["checkpoint_id"]) == (vault, "v1", point["id"])
    assert log["error_info"] == {"code": "", "message": ""}
    assert log["started_at"] == log["created_at"]
    info = log["extra_info"]
    assert info["resource"] == {"id": resource, "type": "OS::Sfs::Turbo", "name": "files"}
    assert (info["backup"]["backup_name"], info["backup"]["incremental"]) == ("n1", "false")
    assert info["common"] == {
        "progress": 0,
        "request_id": f"req-{created.headers['X-Request-Id']}",
        "task_id": log["id"],
    }
    task = await world.claim("backup")
    assert (await shown(world, log["id"]))["status"] == "running"
    await world.commit(task)
    done = await shown(world, log["id"])
    assert (done["status"], done["extra_info"]["common"]["progress"]) == ("success", 100)
    assert done["ended_at"] is not None


async def test_failed_and_skipped_logs(world: World) -> None:
    """A failure stands in error_info with code and sentence; one skipped at the start has a log without backup."""
    vault = await world.add_vault([await world.add_resource(name="a"), await world.add_resource(name="b")])
    await world.run(vault)
    task = await world.claim("backup")
    await backups.fail_backup(world.database, task, SourceGone(reason="It is gone.", detail="errno 2"), world.clock)
    log = await shown(world, task.id)
    assert (log["status"], log["error_info"]) == ("failed", {"code": "BackupService.6215", "message": "It is gone."})
    await world.run(vault)
    (skipped,) = (await listed(world, status="skipped"))["operation_logs"]
    assert skipped["error_info"]["code"] == "BackupService.6125"
    assert skipped["extra_info"]["backup"] is None
    assert skipped["ended_at"] is not None


async def test_parts_by_type(world: World) -> None:
    """Restore, delete, remove_resource and vault_delete each carry their own part and no other."""
    a, b = await world.add_resource(name="a"), await world.add_resource(name="b")
    vault = await world.add_vault([a, b], name="v1")
    _, found = await world.backed_up(vault, resource_ids=(a, b), name="n1")
    restore = await world.restored(found[0], resource_id=b)
    await restores.commit_restore(world.database, restore, {}, world.clock)
    await world.deleted(found[0])
    (delete,) = await world.execute("SELECT id FROM operation_logs WHERE operation_type = 'delete'")
    remove = await queued(
        world, operation_type="remove_resource", vault_id=vault, vault_name="v1", parameters={"resources": [a, b]}
    )
    gone = await queued(world, operation_type="vault_delete", vault_id=vault, vault_name="v1")
    logs = {"restore": restore.id, "delete": delete[0], "remove_resources": remove, "vault_delete": gone}
    info = {name: (await shown(world, log_id))["extra_info"] for name, log_id in logs.items()}
    for name, parts in info.items():
        present = {part for part, value in parts.items() if value is not None} - {"common", "resource"}
        assert present == {name}
    assert info["restore"]["restore"] == {
        "backup_id": found[0], "backup_name": "n1", "target_resource_id": b, "target_resource_name": "b"}  # fmt: skip
    assert info["restore"]["resource"]["id"] == a
    assert info["delete"]["delete"] == {"backup_id": found[0], "backup_name": "n1"}
    assert info["remove_resources"]["remove_resources"]["total_count"] == 2
    assert [r["name"] for r in info["remove_resources"]["remove_resources"]["resources"]] == ["a", "b"]
    assert info["remove_resources"]["resource"]["id"] == a
    assert info["vault_delete"]["vault_delete"] == {
        "fail_count": 0, "total_count": 0, "fail_delete_count": 0, "total_delete_count": 0}  # fmt: skip
    assert info["vault_delete"]["resource"]["id"] == vault


async def test_logs_outlive_the_vault(world: World) -> None:
    """After a vault is deleted its logs still name it, and count what went with it."""
    vault = await world.add_vault([await world.add_resource()], name="v1")
    await world.backed_up(vault)
    await world.execute("UPDATE vaults SET status = 'deleting'")
    log_id = await queued(world, operation_type="vault_delete", vault_id=vault, vault_name="v1", provider_id="p")
    task = await world.claim("vault_delete")
    await deletions.start_delete(world.database, task)
    await deletions.finish_delete(world.database, task, used_bytes=None, outcome={}, clock=world.clock)
    log = await shown(world, log_id)
    assert (log["status"], log["vault_id"], log["vault_name"], log["provider_id"]) == ("success", vault, "v1", "p")
    assert log["extra_info"]["vault_delete"]["total_delete_count"] == 1
    assert (await listed(world, vault_id=vault))["count"] == 2


async def test_prune_is_never_listed(world: World) -> None:
    """Housekeeping is no operation of a tenant: no list of v3 shows it, and its id is not found there."""
    vault = await world.add_vault([await world.add_resource()])
    _, found = await world.backed_up(vault)
    await world.deleted(found[0])
    prune = str(await world.one("SELECT id FROM operation_logs WHERE operation_type = 'prune'"))
    assert prune not in [log["id"] for log in (await listed(world))["operation_logs"]]
    assert (await listed(world, vault_id=vault))["count"] == 2
    check_error("show_op_log", await world.client.get(world.v3(f"operation-logs/{prune}")), 404, "6500")
    refused = await world.client.get(world.v3("operation-logs"), params={"operation_type": "prune"})
    check_error("list_op_logs", refused, 400, "9900")
    assert prune not in [task["id"] for task in (await ext(world, "tasks"))["tasks"]]
    assert [task["id"] for task in (await ext(world, "tasks", operation_type="prune"))["tasks"]] == [prune]
    assert (await ext(world, f"tasks/{prune}"))["task"]["operation_type"] == "prune"


async def test_filters(world: World) -> None:
    """Every filter hits what it names; times are of begin and end of the work."""
    folder, disk = await world.add_resource(name="folder"), await world.add_resource(DISK, name="disk")
    first = await world.add_vault([folder], name="alpha")
    second = await world.add_vault([disk], kind=DISK, name="beta", enterprise_project_id="ep-1")
    _, (backup,) = await world.backed_up(first)
    await world.run(second)
    remove = await queued(
        world, operation_type="remove_resource", vault_id=first, vault_name="alpha", parameters={"resources": [folder]}
    )
    await world.execute(
        "UPDATE operation_logs SET started_at = '2026-01-01T00:00:00Z', ended_at = '2026-01-01T01:00:00Z' "
        "WHERE backup_id = %s", backup)  # fmt: skip
    done = str(await world.one("SELECT id FROM operation_logs WHERE backup_id = %s", backup))
    waiting = str(await world.one("SELECT id FROM operation_logs WHERE vault_id = %s", second))
    everything = [remove, waiting, done]
    for query, expected in (
        ({}, everything),
        ({"operation_type": "backup"}, [waiting, done]),
        ({"operation_type": "sync"}, []),
        ({"status": "success"}, [done]),
        ({"status": "waiting"}, [remove, waiting]),
        ({"vault_id": first}, [remove, done]),
        ({"vault_name": "alpha"}, [remove, done]),
        ({"vault_name": "bet"}, [waiting]),
        ({"resource_id": folder}, [remove, done]),
        ({"resource_name": "disk"}, [waiting]),
        ({"provider_id": "d1603440-187d-4516-af25-121250c7cc97"}, [waiting]),
        ({"enterprise_project_id": "ep-1"}, [waiting]),
        ({"enterprise_project_id": "0"}, [remove, done]),
        ({"enterprise_project_id": "all_granted_eps"}, everything),
        ({"start_time": "2026-01-01T00:00:00Z"}, everything),
        ({"start_time": "2026-01-01T00:00:01Z"}, [remove, waiting]),
        ({"end_time": "2026-01-01T01:00:00Z"}, [done]),
        ({"end_time": "2026-01-01T00:59:59Z"}, []),
        ({"limit": 1}, [remove]),
        ({"limit": 1, "offset": 1}, [waiting]),
        ({"limit": 2, "marker": remove}, [waiting, done]),
        ({"offset": 9}, []),
    ):
        answer = await listed(world, **query)
        assert [log["id"] for log in answer["operation_logs"]] == expected, query
        if not {"limit", "offset"} & set(query):
            assert answer["count"] == len(expected), query
        else:
            assert answer["count"] == 3, query


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"offset": -1},
        {"marker": "x"},
        {"marker": "00000000-0000-0000-0000-000000000000"},
        {"operation_type": "x"},
        {"status": "x"},
        {"start_time": "yesterday"},
        {"end_time": "2020-01-01 00:00:00"},
    ],
)
async def test_bad_queries(world: World, query: dict) -> None:
    """A query member out of range or form is 9900."""
    check_error("list_op_logs", await world.client.get(world.v3("operation-logs"), params=query), 400, "9900")


async def test_foreign_logs(world: World) -> None:
    """Another project's logs and tasks answer like missing ones and cannot be canceled."""
    await world.run(await world.add_vault([await world.add_resource()]))
    log_id = str(await world.one("SELECT id FROM operation_logs"))
    other, header = await world.add_project()
    for one in (log_id, new_id()):
        answer = await world.client.get(f"/v3/{other}/operation-logs/{one}", headers=header)
        check_error("show_op_log", answer, 404, "6500")
        task = await world.client.get(f"/ext/v1/{other}/tasks/{one}", headers=header)
        assert (task.status_code, task.json()["error_code"]) == (404, "BackupService.6500")
        cancel = await world.client.post(f"/ext/v1/{other}/tasks/{one}/cancel", headers=header)
        assert (cancel.status_code, cancel.json()["error_code"]) == (404, "BackupService.6500")
    assert await world.one("SELECT cancel_requested FROM operation_logs") is False
    check_error("show_op_log", await world.client.get(world.v3("operation-logs/job-1")), 400, "9900")


async def test_tasks_of_ext(world: World) -> None:
    """/ext shows what v3 cannot: bytes, attempts, outcome; and lists what is open, of a vault, of a point."""
    vault = await world.add_vault([await world.add_resource(name="files")])
    other = await world.add_vault([await world.add_resource()], name="other")
    point, (backup,) = await world.backed_up(vault)
    await world.run(other)
    task = await world.claim("backup")
    await tasks.note_progress(
        world.database,
        task,
        Progress(bytes_done=5, bytes_total=50, total_exact=False, entries_done=2, percent=10, rate_bytes_s=9),
    )
    (running,) = (await ext(world, "tasks", open="true"))["tasks"]
    assert (running["id"], running["status"], running["progress"]) == (task.id, "running", 10)
    assert (running["bytes_done"], running["bytes_total"], running["entries_done"]) == (5, 50, 2)
    assert (running["bytes_total_exact"], running["rate_bytes_s"], running["remaining_s"]) == (False, 9, 5)
    assert (running["attempts"], running["ended_at"], running["cancel_requested"]) == (1, None, False)
    (done,) = (await ext(world, "tasks", open="false"))["tasks"]
    assert (done["bytes_total"], done["rate_bytes_s"], done["remaining_s"]) == (None, None, None), "nobody said"
    assert (done["backup_id"], done["resource_name"], done["status"]) == (backup, "files", "success")
    assert done["outcome"] == {"stored_bytes": 5_000_000}
    assert (done["error_code"], done["error_message"]) == ("", "")
    assert (await ext(world, f"tasks/{done['id']}"))["task"] == done
    for query in ({"vault_id": vault}, {"checkpoint_id": point.id}, {"backup_id": backup}, {"status": "success"}):
        assert [t["id"] for t in (await ext(world, "tasks", **query))["tasks"]] == [done["id"]], query


async def test_cancel(world: World) -> None:
    """Cancel marks an open backup or restore, again and again; what has ended or deletes is refused."""
    vault = await world.add_vault([await world.add_resource()])
    _, found = await world.backed_up(vault)
    await world.run(vault)
    task = await world.claim("backup")
    for _ in range(2):
        answer = await world.client.post(world.ext(f"tasks/{task.id}/cancel"), json={})
        assert answer.status_code == 202, answer.text
        assert answer.json()["task"]["cancel_requested"] is True
    assert await tasks.renew(world.database, world.worker, {task.id: task.generation}) == ({task.id}, {task.id})
    await backups.fail_backup(world.database, task, SourceGone(reason="x"), world.clock)
    await world.client.delete(world.v3(f"backups/{found[0]}"))
    delete = str(await world.one("SELECT id FROM operation_logs WHERE operation_type = 'delete'"))
    for refused in (task.id, delete):
        answer = await world.client.post(world.ext(f"tasks/{refused}/cancel"))
        assert (answer.status_code, answer.json()["error_code"]) == (400, "BackupService.6112")
    reader = await world.client.post(world.ext(f"tasks/{delete}/cancel"), headers=reader_of(world))
    assert reader.status_code == 403


async def test_cancel_of_a_task_that_waits(world: World) -> None:
    """What waits has ended when the answer is there: its backup failed, its resource is free, no worker gets it."""
    resources = [await world.add_resource() for _ in range(2)]
    vault = await world.add_vault(resources)
    point = await world.run(vault)
    task_id = str(await world.one("SELECT id FROM operation_logs WHERE resource_id = %s", resources[0]))
    answer = await world.client.post(world.ext(f"tasks/{task_id}/cancel"))
    task = answer.json()["task"]
    assert (answer.status_code, task["status"], task["error_message"]) == (202, "failed", "Canceled on request.")
    again = await world.client.post(world.ext(f"tasks/{task_id}/cancel"))
    assert (again.status_code, again.json()["error_code"]) == (400, "BackupService.6112")
    assert await world.one("SELECT status FROM backups WHERE resource_id = %s", resources[0]) == "error"
    free = await world.one("SELECT protect_status FROM vault_resources WHERE resource_id = %s", resources[0])
    assert free == "available"
    other = await world.claim("backup")
    assert other.resource_id == resources[1]
    await world.commit(other)
    shown = (await world.client.get(world.v3(f"checkpoints/{point.id}"))).json()["checkpoint"]
    assert shown["status"] == "available"
    assert [skipped["id"] for skipped in shown["vault"]["skipped_resources"]] == [resources[0]]


async def test_cancel_of_a_task_between_two_attempts(world: World) -> None:
    """A first attempt may have left something: a worker ends it, and sees the wish before it begins."""
    await world.run(await world.add_vault([await world.add_resource()]))
    await tasks.put_back(world.database, await world.claim("backup"), 0, count=False)
    task_id = str(await world.one("SELECT id FROM operation_logs"))
    answer = await world.client.post(world.ext(f"tasks/{task_id}/cancel"))
    assert (answer.status_code, answer.json()["task"]["status"]) == (202, "waiting")
    assert (await world.claim("backup")).cancel_requested


async def test_cancel_whose_process_dies_between_its_two_steps(world: World) -> None:
    """The task counts as running under a short lease: the next worker claims it, and sees the wish."""
    await world.run(await world.add_vault([await world.add_resource()]))
    task_id = str(await world.one("SELECT id FROM operation_logs"))
    async with world.database.transaction() as conn:
        assert await tasks.take_waiting(conn, world.project, task_id) is not None
    assert await claiming.claim(world.database, world.worker, "default") is None
    await world.execute("UPDATE operation_logs SET lease_until = now() - interval '1 second'")
    claimed = await world.claim("backup")
    assert (claimed.cancel_requested, claimed.generation) == (True, 2)


async def test_cancel_of_a_check_and_a_prune(world: World) -> None:
    """Both can be made again at any time, so both can be canceled; a restore that waits sets its target free."""
    vault = await world.add_vault([await world.add_resource()])
    _, [backup, *_] = await world.backed_up(vault)
    asked = await world.client.post(world.ext(f"vaults/{vault}/verify"), json={"verify": {}})
    canceled = await world.client.post(world.ext(f"tasks/{asked.json()['task_id']}/cancel"))
    assert canceled.json()["task"]["status"] == "failed"
    restore = await world.client.post(world.v3(f"backups/{backup}/restore"), json={"restore": {}})
    canceled = await world.client.post(world.ext(f"tasks/{restore.json()['job_id']}/cancel"))
    assert canceled.json()["task"]["status"] == "failed"
    assert await world.one("SELECT status FROM backups") == "available"
    assert await world.one("SELECT protect_status FROM vault_resources") == "available"
