"""A backup that one tenant shares with another, through the real SDK and a real server: whose bytes, and until when."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Server, wait_until
from hostile_world import second_tenant

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DISK_BYTES = 24 << 20
LEGAL = {"success", "BackupService.6705"}  # how a restore may end that meets the end of its share


def fill(path: Path, seed: int) -> bytes:
    data = random.Random(seed).randbytes(DISK_BYTES)
    path.write_bytes(data)
    return data


class World:
    """ada has a disk and a vault; bob has a disk of zeros and a vault for what he receives."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder / "state").start()
        self.ada = self.server.client()
        self.bob = second_tenant(self.server, self.ada)
        self.source, self.target = folder / "ada.raw", folder / "bob.raw"
        self.target.write_bytes(bytes(DISK_BYTES))
        self.data = fill(self.source, 1)
        self.disk = self.ada.register("disk", "ada-disk", self.source)
        self.bobs_disk = self._register_for_bob("bob-disk", self.target)
        self.vault = self.ada.vault("ada", "disk", [self.disk])
        self.bobs_vault = self.bob.vault("received", "disk", [self.bobs_disk])

    def _register_for_bob(self, name: str, path: Path) -> str:
        body = {"protectable": {"project_id": self.bob.project, "type": "disk", "name": name, "path": str(path)}}
        return str(self.ada.ok("POST", "/ext/v1/admin/protectables", body)["protectable"]["id"])

    def backed_up(self) -> str:
        """The id of a new backup of ada's disk."""
        checkpoint = self.ada.checkpoint(self.vault)
        assert self.ada.settled(checkpoint)["status"] == "available", self.server.log()
        return str(self.ada.backups(checkpoint_id=checkpoint)[0]["id"])

    def lend(self, backup: str) -> None:
        self.ada.ok("POST", f"backups/{backup}/members", {"members": [self.bob.project]})
        body = {"status": "accepted", "vault_id": self.bobs_vault}
        self.bob.ok("PUT", f"backups/{backup}/members/{self.bob.project}", body)

    def sdk(self, client: Client, user: str) -> Any:
        """The SDK with an access key of `user`, for the client's project."""
        from huaweicloudsdkcbr.v1 import CbrClient
        from huaweicloudsdkcore.auth.credentials import BasicCredentials

        users = self.ada.ok("GET", "/ext/v1/admin/users")["users"]
        user_id = next(row["id"] for row in users if row["name"] == user)
        key = self.ada.ok("POST", "/ext/v1/admin/keys", {"key": {"user_id": user_id}})["key"]
        credentials = BasicCredentials(key["access_key"], key["secret_key"], client.project)
        return CbrClient.new_builder().with_credentials(credentials).with_endpoint(self.server.endpoint).build()

    def close(self) -> None:
        self.ada.http.close()
        self.bob.http.close()
        assert self.server.stop() == 0, self.server.log()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("sharing"))
    yield made
    made.close()


# Warnings of the SDK itself are not ours to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_sdk_tells_the_story_of_a_share(world: World) -> None:
    """huaweicloudsdkcbr, both sides: share, find, accept, restore byte for byte, revoke; then nothing is there."""
    from huaweicloudsdkcbr.v1 import (
        AddMemberRequest,
        AddMembersReq,
        BackupRestore,
        BackupRestoreReq,
        DeleteBackupRequest,
        DeleteMemberRequest,
        ListBackupsRequest,
        ListOpLogsRequest,
        RestoreBackupRequest,
        ShowBackupRequest,
        ShowMemberDetailRequest,
        ShowMembersDetailRequest,
        UpdateMember,
        UpdateMemberStatusRequest,
    )
    from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

    ada, bob = world.sdk(world.ada, world.server.credentials["username"]), world.sdk(world.bob, "bob")
    me, backup = world.bob.project, world.backed_up()
    added = ada.add_member(AddMemberRequest(backup_id=backup, body=AddMembersReq(members=[me])))
    assert [(m.dest_project_id, m.status, m.vault_id) for m in added.members] == [(me, "pending", None)]
    pending = bob.list_backups(ListBackupsRequest(own_type="shared", member_status="pending"))
    assert [(b.id, b.vault_id) for b in pending.backups] == [(backup, world.vault)]
    assert bob.list_backups(ListBackupsRequest()).count == 0

    accept = UpdateMember(status="accepted", vault_id=world.bobs_vault)
    request = UpdateMemberStatusRequest(backup_id=backup, member_id=me, body=accept)
    assert bob.update_member_status(request).member.status == "accepted"
    shown = bob.show_backup(ShowBackupRequest(backup_id=backup)).backup
    assert (shown.vault_id, shown.status) == (world.bobs_vault, "available")
    assert ada.show_members_detail(ShowMembersDetailRequest(backup_id=backup)).members[0].status == "accepted"

    def restore() -> None:
        body = BackupRestoreReq(restore=BackupRestore(volume_id=world.bobs_disk))
        bob.restore_backup(RestoreBackupRequest(backup_id=backup, body=body))

    restore()
    wait_until(
        lambda: bob.show_backup(ShowBackupRequest(backup_id=backup)).backup.status == "available", "the restore ended"
    )
    (log,) = bob.list_op_logs(ListOpLogsRequest(operation_type="restore")).operation_logs
    assert (log.status, log.vault_id) == ("success", world.bobs_vault), world.server.log()
    assert world.target.read_bytes() == world.data
    assert ada.list_op_logs(ListOpLogsRequest(operation_type="restore")).operation_logs == []
    download = world.bob.http.get(f"/ext/v1/{me}/backups/{backup}/download")
    assert download.content == world.data

    def code(call: Any, *arguments: Any) -> tuple[int, str]:
        with pytest.raises(ClientRequestException) as refused:
            call(*arguments)
        return refused.value.status_code, refused.value.error_code

    assert code(bob.delete_backup, DeleteBackupRequest(backup_id=backup)) == (400, "BackupService.6711")
    ada.delete_member(DeleteMemberRequest(backup_id=backup, member_id=me))
    gone = (404, "BackupService.6200")
    assert code(bob.show_backup, ShowBackupRequest(backup_id=backup)) == gone
    assert code(bob.show_member_detail, ShowMemberDetailRequest(backup_id=backup, member_id=me)) == gone
    assert code(restore) == gone
    assert bob.list_backups(ListBackupsRequest(own_type="all_granted")).count == 0
    assert world.bob.http.get(f"/ext/v1/{me}/backups/{backup}/download").status_code == 404
    assert world.target.read_bytes() == world.data, "what was restored stays the receiver's"
    assert ada.show_backup(ShowBackupRequest(backup_id=backup)).backup.status == "available"


@pytest.mark.parametrize("how", ["revoke", "delete", "vault"])
def test_a_share_that_ends_under_a_restore(world: World, how: str) -> None:
    """Revoked, deleted, or gone with its vault while a restore reads it: the target is the old content or the new one,
    never a mixture, the log says which, nothing is left beside it, and the owner's wish is carried out."""
    if how == "vault":
        world.ada.ok("PUT", f"vaults/{world.vault}", {"vault": {"name": "going"}})
    backup = world.backed_up()
    world.lend(backup)
    before = fill(world.target, 2)
    body = {"restore": {"volume_id": world.bobs_disk}}
    job = world.bob.ok("POST", f"backups/{backup}/restore", body)["job_id"]
    wait_until(lambda: world.bob.ok("GET", f"operation-logs/{job}")["operation_log"]["status"] != "waiting", "it runs")
    path = {
        "revoke": f"backups/{backup}/members/{world.bob.project}",
        "delete": f"backups/{backup}",
        "vault": f"vaults/{world.vault}",
    }[how]
    assert world.ada.call("DELETE", path)[0] == 204, "a receiver holds nobody up"
    assert world.bob.call("GET", f"backups/{backup}")[0] == 404
    log = world.bob.ended(job)
    ended = log["status"] if log["status"] == "success" else log["error_info"]["code"]
    assert ended in LEGAL, (log, world.server.log())
    assert world.target.read_bytes() == (world.data if ended == "success" else before)
    assert not [name for name in os.listdir(world.target.parent) if name.startswith(".strongroom-")]
    (bound,) = world.bob.ok("GET", f"vaults/{world.bobs_vault}")["vault"]["resources"]
    assert bound["protect_status"] == "available"
    if how == "revoke":
        assert world.ada.ok("GET", f"backups/{backup}")["backup"]["status"] == "available"
    else:
        wait_until(lambda: world.ada.call("GET", path)[0] == 404, "it is gone")
        world.ada.quiet()
