"""The command line against a real server: an operator, a tenant, and their whole story."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import PROCESS, run, strongroom
from harness import Server, contents, make_tree, wait_until

pytestmark = pytest.mark.e2e

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("cli") / "state").start()
    yield running
    running.stop()


@pytest.fixture
def operator(server: Server) -> Command:
    """Runs a command as the first user and returns its JSON."""

    def command(*argv: str, code: int = 0, **more: Any) -> Any:
        done = run(server, *argv, "--json", code=code, **more)
        return json.loads(done.stdout) if done.stdout else None

    return command


@pytest.fixture
def tenant(server: Server, operator: Command, tmp_path: Path) -> Command:
    """A project and a user of the test's own; runs a command with their key and returns its JSON, or JSON Lines."""
    name = f"team-{tmp_path.name}"[:60]
    project = operator("project", "create", name)["id"]
    operator("user", "create", f"user-{tmp_path.name}"[:60], "--project", name, given=b"a long enough password\n")
    file = tmp_path / "credentials.json"
    operator("key", "create", "--user", f"user-{tmp_path.name}"[:60], "--project", name, "--save", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["project_id"] == project

    def command(*argv: str | bytes, code: int = 0, lines: bool = False, **more: Any) -> Any:
        done = run(server, *argv, "--credentials", str(file), "--json", code=code, **more)
        if lines:
            return [json.loads(line) for line in done.stdout.splitlines()]
        return json.loads(done.stdout) if done.stdout else json.loads(done.stderr) if done.stderr else None

    command.project = project  # type: ignore[attr-defined]
    return command


def register(operator: Command, tenant: Any, kind: str, path: Path, *more: str) -> None:
    operator(
        "protectable",
        "add",
        "--project",
        tenant.project,
        "--type",
        kind,
        "--name",
        path.name,
        "--path",
        str(path),
        *more,
    )


def test_story_of_a_folder(operator: Command, tenant: Any, tmp_path: Path) -> None:
    """Register, protect, lose, restore in place and elsewhere, look inside, download, delete: all by name."""
    work, other = tmp_path / "work", tmp_path / "other"
    make_tree(work, seed=7)
    with open(os.path.join(os.fsencode(work), b"lat\xe9"), "wb") as stream:
        stream.write(b"not UTF-8")
    (work / "left out.tmp").write_bytes(b"x")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(work / "sock"))
    sock.close()
    other.mkdir()
    register(operator, tenant, "turbo", work, "--exclude", "*.tmp", "--read-limit", "500M")
    register(operator, tenant, "turbo", other)
    assert {row["name"] for row in tenant("protectable", "available", "--type", "turbo")} == {"work", "other"}
    vault = tenant("vault", "create", "homes", "--type", "turbo", "--size", "50", "--resource", "work")
    assert tenant("vault", "add", "homes", "other") == {"add_resource_ids": [vault_resource(tenant, "other")]}
    lines = tenant(
        "checkpoint", "create", "homes", "--resource", "work", "--name", "one", "--wait", lines=True, **PROCESS
    )
    assert {line["message_type"] for line in lines[:-1]} == {"status"}
    summary = lines[-1]
    assert (summary["message_type"], summary["exit_code"]) == ("summary", 0)
    assert summary["checkpoint"]["status"] == "available"
    assert tenant("checkpoint", "show", summary["checkpoint"]["id"]) == summary["checkpoint"]
    shown = tenant("backup", "show", "one")
    assert shown["report"]["skipped"][0]["path"] == "sock"

    (work / "sock").unlink()
    (work / "left out.tmp").unlink()
    before = contents(work)
    (work / "big").write_bytes(b"ransom")
    (work / "link").unlink()
    assert tenant("restore", "one", "--wait", lines=True)[-1]["task"]["status"] == "success"
    assert contents(work) == before
    assert tenant("restore", "one", "--to", "other", "--wait", lines=True, **PROCESS)[-1]["exit_code"] == 0
    assert contents(other) == before
    tenant("restore", "one", "--path", "big", "--target-path", "again/here", "--wait", lines=True)
    assert (work / "again" / "here" / "big").read_bytes() == before["big"][1]

    names = [row["name"] for row in tenant("backup", "entries", "one", **PROCESS)]
    assert names == sorted(names)
    assert {"big", "lat%E9", "link"} <= set(names)
    assert "sock" not in names
    tenant("backup", "download", "one", b"lat\xe9", "-o", str(tmp_path / "got"), lines=True, **PROCESS)
    assert (tmp_path / "got").read_bytes() == b"not UTF-8"
    assert "exists" in tenant("backup", "download", "one", "big", "-o", str(tmp_path / "got"), code=1)["message"]
    assert "no regular file" in tenant("backup", "download", "one", "d0", code=1)["message"]
    tenant("backup", "delete", "one")
    wait_until(lambda: tenant("backup", "list", "--vault", "homes") == [], "the backup is gone")
    tenant("vault", "delete", vault["id"])
    wait_until(lambda: tenant("vault", "list") == [], "the vault is gone")
    assert {row["status"] for row in tenant("task", "list")} == {"success"}


def vault_resource(tenant: Command, name: str) -> str:
    return next(row["id"] for row in tenant("protectable", "available") if row["name"] == name)


def test_story_of_a_disk(operator: Command, tenant: Any, tmp_path: Path) -> None:
    """A sparse image comes back by restore and by download, byte for byte."""
    disk = tmp_path / "disk"
    with disk.open("wb") as stream:
        stream.truncate(20 << 20)
        stream.seek(5 << 20)
        stream.write(os.urandom(300_000))
    data = disk.read_bytes()
    register(operator, tenant, "disk", disk)
    tenant("vault", "create", "disks", "--type", "disk", "--resource", "disk")
    tenant("checkpoint", "create", "disks", "--name", "one", "--wait", lines=True)
    disk.write_bytes(b"gone")
    assert tenant("backup", "download", "one", "-o", str(tmp_path / "copy"), lines=True)[-1]["bytes"] == len(data)
    assert (tmp_path / "copy").read_bytes() == data
    tenant("restore", "one", "--wait", lines=True)
    assert disk.read_bytes() == data


def test_partly_done_is_3_and_failed_is_1(operator: Command, tenant: Any, tmp_path: Path) -> None:
    """One of two folders vanished: the other is protected, and the exit code says so; both gone: failed."""
    for name in ("here", "gone"):
        (tmp_path / name).mkdir()
        register(operator, tenant, "turbo", tmp_path / name)
    tenant("vault", "create", "both", "--type", "turbo", "--resource", "here", "--resource", "gone")
    (tmp_path / "gone").rmdir()
    last = tenant("checkpoint", "create", "both", "--wait", lines=True, code=3, **PROCESS)[-1]
    assert [r["name"] for r in last["checkpoint"]["vault"]["resources"]] == ["here"]
    assert last["checkpoint"]["vault"]["skipped_resources"][0]["name"] == "gone"
    (tmp_path / "here").rmdir()
    tenant("checkpoint", "create", "both", "--wait", lines=True, code=1)


def test_watch_and_cancel(operator: Command, tenant: Any, tmp_path: Path) -> None:
    """A slow task is canceled; watching it ends with its reason and exit code 1."""
    disk = tmp_path / "slow"
    disk.write_bytes(os.urandom(32 << 20))
    register(operator, tenant, "disk", disk, "--read-limit", "2M")  # 16 s, and a look every two
    tenant("vault", "create", "slow", "--type", "disk", "--resource", "slow")
    tenant("checkpoint", "create", "slow")
    task = wait_until(lambda: tenant("task", "list", "--status", "running"), "it runs")[0]["id"]
    tenant("task", "cancel", task)
    ended = tenant("task", "watch", task, lines=True, code=1)[-1]["tasks"][0]
    assert (ended["status"], ended["cancel_requested"]) == ("failed", True)
    assert tenant("task", "watch", lines=True)[-1] == {"message_type": "summary", "tasks": [], "exit_code": 0}
    assert tenant("task", "show", task)["id"] == task


def test_operators_accounts(server: Server, operator: Command, tenant: Any, tmp_path: Path) -> None:
    """Accounts are listed without secrets; a deleted key is locked out; a tenant may not do what operators do."""
    assert tenant.project in {row["id"] for row in operator("project", "list")}
    assert all("password" not in json.dumps(row) for row in operator("user", "list"))
    assert all("secret" not in json.dumps(row) for row in operator("key", "list"))
    refused = tenant("project", "list", code=1)
    assert refused["code"] == "BackupService.8600"
    assert refused["request_id"]
    key = json.loads((tmp_path / "credentials.json").read_text())["access_key"]
    operator("key", "delete", key)
    locked_out = ["vault", "list", "--credentials", str(tmp_path / "credentials.json")]

    wait_until(lambda: strongroom(*locked_out, code=None).code == 1, "the key is locked out")


# Warnings of the SDK itself are not ours to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_accounts_are_turned_off_and_sessions_end(server: Server, operator: Command, tmp_path: Path) -> None:
    """Domains, roles given and taken, a user and a key turned off, temporary keys, a new token key; and what a login
    over HTTP sees of it."""
    from huaweicloudsdkcbr.v1 import CbrClient, ListVaultRequest
    from huaweicloudsdkcore.auth.credentials import BasicCredentials
    from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

    domain = operator("domain", "create", "elsewhere")["id"]
    assert {row["name"] for row in operator("domain", "list")} == {"default", "elsewhere"}
    one, two = (operator("project", "create", name, "--domain", "elsewhere")["id"] for name in ("one", "two"))
    password = b"a long enough password\n"
    eve = operator("user", "create", "eve", "--project", one, "--role", "CBR ReadOnlyAccess", given=password, **PROCESS)
    assert eve["domain_id"] == domain

    def log_in(text: bytes = password) -> tuple[int, dict[str, str]]:
        who = {"id": eve["id"], "password": text.decode().strip()}
        auth = {"identity": {"methods": ["password"], "password": {"user": who}}, "scope": {"project": {"id": one}}}
        answer = httpx.post(f"{server.endpoint}/v3/auth/tokens", json={"auth": auth})
        return answer.status_code, {"X-Auth-Token": answer.headers.get("X-Subject-Token", "")}

    def sees(headers: dict[str, str]) -> int:
        return httpx.get(f"{server.endpoint}/v3/{one}/vaults", headers=headers).status_code

    status, headers = log_in()
    assert (status, sees(headers)) == (201, 200)
    operator("user", "grant", "eve", "CBR FullAccess", "--project", "two")
    assert [(r["role"], r["project_id"]) for r in operator("user", "roles", "eve")] == [
        ("CBR ReadOnlyAccess", one),
        ("CBR FullAccess", two),
    ]
    operator("user", "revoke", "eve", "CBR FullAccess", "--project", "two")
    operator("user", "revoke", "eve", "CBR FullAccess", "--project", "two", code=1)
    operator("user", "grant", "eve", "CBR FullAccess", code=1)  # on which project?
    operator("token-key", "change")
    assert sees(headers) == 200
    operator("user", "set", "eve", "--log-out")
    assert (sees(headers), log_in()[0]) == (401, 201)
    _, headers = log_in()
    path = f"{server.endpoint}/v3/users/{eve['id']}/password"
    new = {"user": {"original_password": password.decode().strip(), "password": "another long password"}}
    assert httpx.post(path, json=new, headers=headers).status_code == 204
    assert (sees(headers), log_in()[0], log_in(b"another long password")[0]) == (401, 401, 201)
    operator("user", "set", "eve", "--new-password", given=password)
    _, headers = log_in()
    gone = httpx.delete(
        f"{server.endpoint}/v3/auth/tokens", headers=headers | {"X-Subject-Token": headers["X-Auth-Token"]}
    )
    assert (gone.status_code, gone.content, sees(headers)) == (204, b"", 401)
    _, headers = log_in()
    operator("token-key", "change", "--forget-old")
    assert (sees(headers), log_in()[0]) == (401, 201)
    key = operator("key", "create", "--user", "eve", "--temporary", "900")
    assert key["expires_at"]
    credentials = BasicCredentials(key["access_key"], key["secret_key"], one)
    sdk = CbrClient.new_builder().with_credentials(credentials).with_endpoint(server.endpoint).build()
    with pytest.raises(ClientRequestException) as refused:
        sdk.list_vault(ListVaultRequest())
    assert refused.value.status_code == 401
    credentials.with_security_token(key["security_token"])
    assert sdk.list_vault(ListVaultRequest()).vaults == []
    operator("key", "set", key["access_key"], "--disable")
    assert [k["enabled"] for k in operator("key", "list") if k["access_key"] == key["access_key"]] == [False]
    operator("project", "set", "one", "--disable")
    assert [p["enabled"] for p in operator("project", "list") if p["id"] == one] == [False]
    operator("user", "set", "eve", "--disable")
    assert log_in()[0] == 401
    operator("user", "delete", "eve", "--yes")
    assert "eve" not in {row["name"] for row in operator("user", "list")}
    operator("user", "set", "admin", "--disable", code=1)


def test_registrations_come_and_go(operator: Command, tenant: Any, tmp_path: Path) -> None:
    """What is not there, and the server's own folder, are refused; a registration that is in use stays."""
    (tmp_path / "folder").mkdir()
    register(operator, tenant, "turbo", tmp_path / "folder")
    assert operator("protectable", "list", "--project", tenant.project)[0]["path"] == str(tmp_path / "folder")
    add = ["protectable", "add", "--project", tenant.project, "--type", "turbo", "--name", "x", "--path"]
    operator(*add, str(tmp_path / "nothing"), code=1)
    tenant("vault", "create", "v", "--type", "turbo", "--resource", "folder")
    operator("protectable", "remove", "folder", "--project", tenant.project, code=1)
    tenant("vault", "delete", "v")
    wait_until(lambda: tenant("vault", "list") == [], "the vault is gone")
    operator("protectable", "remove", "folder", "--project", tenant.project)
    assert tenant("protectable", "available") == []


def test_vault_changes_and_mistakes(tenant: Any) -> None:
    """Update by name; mistakes are told apart: usage 2, refused 1."""
    made = tenant("vault", "create", "v", "--type", "disk", "--description", "d")
    changed = tenant("vault", "update", "v", "--name", "w", "--size", "200", "--auto-expand", "--threshold", "50")
    assert (changed["id"], changed["name"], changed["billing"]["size"]) == (made["id"], "w", 200)
    assert (changed["auto_expand"], changed["threshold"]) == (True, 50)
    tenant("vault", "create", "bad name", "--type", "disk", code=1)
    tenant("vault", "show", "v", code=1)
    tenant("checkpoint", "create", "w", code=1)


def test_tags_suspension_and_the_lock(operator: Command, tenant: Any, tmp_path: Path) -> None:
    """A vault gets and loses tags, its resources are passed over and taken back, and a lock keeps manual backups."""
    (tmp_path / "kept").mkdir()
    register(operator, tenant, "turbo", tmp_path / "kept")
    name = "kept"
    tenant("vault", "create", "kept", "--type", "turbo", "--resource", name)
    assert tenant("vault", "tag", "kept", "env=prod", "plain") == [
        {"key": "env", "value": "prod"},
        {"key": "plain", "value": ""},
    ]
    assert tenant("vault", "tag", "kept", "--delete", "env") == [{"key": "plain", "value": ""}]
    for command, protected in (("suspend", False), ("resume", True)):
        tenant("vault", command, "kept", name)
        assert tenant("vault", "show", "kept")["resources"][0]["auto_protect"] is protected
    assert tenant("vault", "lock", "kept", "--manual", "--yes") == {
        "locked": True,
        "keep_manual": True,
        "kept_by_store": False,
    }
    assert tenant("vault", "lock", "kept", "--yes") == {"locked": True, "keep_manual": True, "kept_by_store": False}


def test_a_vault_is_emptied_into_another(operator: Command, tenant: Any, tmp_path: Path) -> None:
    """Keep until a day, move with all backups, sync: each waits for its task, and what moved is restored."""
    work = tmp_path / "work"
    make_tree(work, seed=3)
    register(operator, tenant, "turbo", work)
    for name in ("here", "there"):
        tenant("vault", "create", name, "--type", "turbo", *(("--resource", "work") if name == "here" else ()))
    tenant("checkpoint", "create", "here", "--name", "one", "--wait", lines=True)
    kept = tenant("vault", "keep", "here", "--until", "2099-12-31", "--time-zone", "UTC+01:00", "--wait", lines=True)
    assert kept[-1]["task"]["status"] == "success"
    assert tenant("backup", "show", "one")["expired_at"] == "2099-12-31T23:00:00.000000"
    moved = tenant("vault", "move", "here", "there", "work", "--wait", lines=True)
    assert (moved[-1]["exit_code"], moved[-1]["task"]["outcome"]["backups"]) == (0, 1)
    assert [row["name"] for row in tenant("backup", "list", "--vault", "there")] == ["one"]
    assert tenant("vault", "sync", "there", "--wait", lines=True)[-1]["task"]["outcome"]["imported"] == 0
    before = contents(work)
    (work / "big").write_bytes(b"ransom")
    assert tenant("restore", "one", "--wait", lines=True)[-1]["exit_code"] == 0
    assert contents(work) == before


def test_policies_of_the_organization(operator: Command, tenant: Any) -> None:
    """The operator makes one for all, or for some; a tenant finds it, cannot change it, and is not asked."""
    rule = "FREQ=DAILY;BYHOUR=2;BYMINUTE=30"
    made = operator("organization", "create", "for-all", "--rule", rule, "--retention", "max=3")
    assert [row["name"] for row in operator("organization", "list")] == ["for-all"]
    assert tenant.project in operator("organization", "show", "for-all")["projects"].split()
    (found,) = tenant("policy", "list")
    assert (found["name"], found["policy_type"]) == ("for-all", "organization_policy_v1")
    assert "administrator" in tenant("policy", "delete", "for-all", code=1)["message"]
    assert "administrator" in tenant("organization", "list", code=1)["message"]
    after = operator("organization", "update", "for-all", "--retention", "max=5", "--name", "kept", "--disable")
    assert (after["id"], after["policy_enabled"]) == (made["id"], False)
    assert tenant("policy", "show", "kept")["operation_definition"]["max_backups"] == 5
    operator("organization", "delete", "kept")
    assert tenant("policy", "list") == []


def test_export_key_and_version(server: Server, tmp_path: Path) -> None:
    """The master key is copied once, closed to others, and never over another file."""
    run(server, "export-key", str(tmp_path / "key"))
    assert (tmp_path / "key").read_bytes() == (server.state / "master.key").read_bytes()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    run(server, "export-key", str(tmp_path / "key"), code=1)


def test_story_of_a_share(server: Server, operator: Command, tenant: Any, tmp_path: Path) -> None:
    """A tenant offers a backup, another project accepts it, restores it to a disk of its own, and loses it: by name."""
    theirs, ours = tmp_path / "theirs.raw", tmp_path / "ours.raw"
    theirs.write_bytes(os.urandom(1 << 20))
    ours.write_bytes(bytes(1 << 20))
    me = operator("project", "list")[0]["id"]
    assert me != tenant.project
    register(operator, tenant, "disk", theirs)
    operator("protectable", "add", "--project", me, "--type", "disk", "--name", "ours.raw", "--path", str(ours))
    tenant("vault", "create", "lent", "--type", "disk", "--size", "50", "--resource", "theirs.raw")
    tenant("checkpoint", "create", "lent", "--name", "friday", "--wait", lines=True)
    operator("vault", "create", "borrowed", "--type", "disk", "--size", "50", "--resource", "ours.raw")

    (member,) = tenant("backup", "share", "friday", me)
    assert (member["dest_project_id"], member["status"]) == (me, "pending")
    (found,) = operator("backup", "list", "--shared")
    assert (found["name"], found["member_status"], found["project_id"]) == ("friday", "pending", tenant.project)
    assert operator("backup", "list") == []
    assert operator("backup", "accept", "friday", "--vault", "borrowed")["status"] == "accepted"
    assert [row["status"] for row in tenant("backup", "members", "friday")] == ["accepted"]
    assert b"of your own" in run(server, "restore", "friday", code=1).stderr
    run(server, "restore", "friday", "--to", "ours.raw", "--wait")
    assert ours.read_bytes() == theirs.read_bytes()
    assert operator("backup", "reject", "friday")["status"] == "rejected"
    operator("backup", "accept", "friday", "--vault", "borrowed")
    tenant("backup", "unshare", "friday", me)
    assert operator("backup", "list", "--shared") == []
