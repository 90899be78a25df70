"""The clients people have, unmodified, against a real server process: the whole story of the main job."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server, contents, make_tree, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "state").start()
    yield running
    assert running.stop() == 0, running.log()


def _image(path: Path, seed: int) -> bytes:
    import random

    data = bytearray(8 << 20)
    data[1 << 20 : 2 << 20] = random.Random(seed).randbytes(1 << 20)
    path.write_bytes(data)
    return bytes(data)


# Warnings of the SDK itself are not ours to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_sdk_tells_the_whole_story_with_ak_sk(server: Server, tmp_path: Path) -> None:
    """huaweicloudsdkcbr with AK/SK: vault, resources, checkpoints, lists, restore, update, delete, errors."""
    from huaweicloudsdkcbr.v1 import (
        AddVaultResourceRequest,
        BackupRestore,
        BackupRestoreReq,
        BackupUpdate,
        BackupUpdateReq,
        BillingCreate,
        BillingUpdate,
        CbrClient,
        CheckpointParam,
        CreateCheckpointRequest,
        CreateVaultRequest,
        DeleteBackupRequest,
        DeleteVaultRequest,
        ListBackupsRequest,
        ListOpLogsRequest,
        ListProtectableRequest,
        ListVaultRequest,
        RemoveVaultResourceRequest,
        ResourceCreate,
        RestoreBackupRequest,
        ShowBackupRequest,
        ShowCheckpointRequest,
        ShowOpLogRequest,
        ShowProtectableRequest,
        ShowVaultRequest,
        UpdateBackupRequest,
        UpdateVaultRequest,
        VaultAddResourceReq,
        VaultBackup,
        VaultBackupReq,
        VaultCreate,
        VaultCreateReq,
        VaultRemoveResourceReq,
        VaultUpdate,
        VaultUpdateReq,
    )
    from huaweicloudsdkcore.auth.credentials import BasicCredentials
    from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

    given = server.credentials
    source, disk = tmp_path / "share", tmp_path / "disk.raw"
    make_tree(source, 1)
    image = _image(disk, 1)
    with server.client() as operator:
        share_id = operator.register("turbo", "share", source)
        disk_id = operator.register("disk", "disk", disk)
    credentials = BasicCredentials(given["access_key"], given["secret_key"], given["project_id"])
    sdk = CbrClient.new_builder().with_credentials(credentials).with_endpoint(given["endpoint"]).build()

    found = sdk.list_protectable(ListProtectableRequest(protectable_type="turbo")).instances
    assert [(p.id, p.name, p.protectable.result) for p in found] == [(share_id, "share", True)]
    shown = sdk.show_protectable(ShowProtectableRequest(protectable_type="disk", instance_id=disk_id)).instance
    assert shown.name == "disk"

    def create(name: str, object_type: str, resources: list[Any]) -> str:
        billing = BillingCreate(
            consistent_level="crash_consistent", object_type=object_type, protect_type="backup", size=100
        )
        vault = VaultCreate(billing=billing, name=name, resources=resources)
        return sdk.create_vault(CreateVaultRequest(body=VaultCreateReq(vault=vault))).vault.id

    shares = create("shares", "turbo", [ResourceCreate(id=share_id, type="OS::Sfs::Turbo")])
    disks = create("disks", "disk", [])
    added = sdk.add_vault_resource(
        AddVaultResourceRequest(
            vault_id=disks,
            body=VaultAddResourceReq(resources=[ResourceCreate(id=disk_id, type="OS::Cinder::Volume")]),
        )
    )
    assert added.add_resource_ids == [disk_id]
    assert {v.name for v in sdk.list_vault(ListVaultRequest()).vaults} == {"shares", "disks"}

    def protect(vault_id: str) -> Any:
        body = VaultBackupReq(checkpoint=VaultBackup(vault_id=vault_id, parameters=CheckpointParam(name="by-sdk")))
        made = sdk.create_checkpoint(CreateCheckpointRequest(body=body)).checkpoint
        assert made.status in ("protecting", "available")

        def settled() -> Any:
            point = sdk.show_checkpoint(ShowCheckpointRequest(checkpoint_id=made.id)).checkpoint
            return point.status != "protecting" and point

        point = wait_until(settled, "the checkpoint is settled")
        assert point.status == "available", server.log()
        assert point.vault.resources[0].protect_status == "available"
        assert isinstance(point.vault.resources[0].resource_size, str)
        return point

    first, of_disk = protect(shares), protect(disks)
    wanted = contents(source)
    (source / "big").write_bytes(b"changed")
    protect(shares)
    assert {b.name for b in sdk.list_backups(ListBackupsRequest(vault_id=shares)).backups} == {"by-sdk"}
    assert sdk.list_backups(ListBackupsRequest(vault_id=shares)).count == 2

    def restore(checkpoint_id: str, **what: Any) -> None:
        backup = sdk.list_backups(ListBackupsRequest(checkpoint_id=checkpoint_id)).backups[0]
        body = BackupRestoreReq(restore=BackupRestore(**what))
        sdk.restore_backup(RestoreBackupRequest(backup_id=backup.id, body=body))
        wait_until(
            lambda: sdk.show_backup(ShowBackupRequest(backup_id=backup.id)).backup.status == "available",
            "the backup is available again",
        )

    (source / "link").unlink()
    restore(first.id, resource_id=share_id)
    assert contents(source) == wanted
    disk.write_bytes(bytes(8 << 20))
    restore(of_disk.id, volume_id=disk_id)
    assert disk.read_bytes() == image
    logs = sdk.list_op_logs(ListOpLogsRequest(operation_type="restore")).operation_logs
    assert [log.status for log in logs] == ["success", "success"]
    assert (
        sdk.show_op_log(ShowOpLogRequest(operation_log_id=logs[0].id)).operation_log.extra_info.common.progress == 100
    )

    backup = sdk.list_backups(ListBackupsRequest(checkpoint_id=first.id)).backups[0]
    renamed = BackupUpdateReq(backup=BackupUpdate(name="renamed"))
    assert sdk.update_backup(UpdateBackupRequest(backup_id=backup.id, body=renamed)).backup.name == "renamed"
    changed = VaultUpdateReq(vault=VaultUpdate(name="shares-2", billing=BillingUpdate(size=200)))
    assert sdk.update_vault(UpdateVaultRequest(vault_id=shares, body=changed)).vault.billing.size == 200

    def gone(call: Any, code: str) -> bool:
        try:
            call()
        except ClientRequestException as error:
            assert (error.status_code, error.error_code) == (404, code)
            assert error.request_id
            return True
        return False

    sdk.delete_backup(DeleteBackupRequest(backup_id=backup.id))
    wait_until(
        lambda: gone(lambda: sdk.show_backup(ShowBackupRequest(backup_id=backup.id)), "BackupService.6200"), "deleted"
    )
    assert gone(lambda: sdk.show_checkpoint(ShowCheckpointRequest(checkpoint_id=first.id)), "BackupService.6217")
    body = VaultRemoveResourceReq(resource_ids=[disk_id])
    sdk.remove_vault_resource(RemoveVaultResourceRequest(vault_id=disks, body=body))
    wait_until(lambda: not sdk.show_vault(ShowVaultRequest(vault_id=disks)).vault.resources, "the resource is removed")
    for vault_id in (shares, disks):
        copy_of_index = server.state / "cache" / "index" / vault_id / "domain"
        copy_of_index.mkdir(parents=True)
        sdk.delete_vault(DeleteVaultRequest(vault_id=vault_id))
        wait_until(
            lambda v=vault_id: gone(lambda: sdk.show_vault(ShowVaultRequest(vault_id=v)), "BackupService.6105"),
            "the vault is gone",
        )
        assert not copy_of_index.parent.exists(), "what is kept of a vault beside the store goes with it"
    assert gone(lambda: sdk.show_vault(ShowVaultRequest(vault_id=str(uuid.uuid4()))), "BackupService.6105")


def test_openstack_cbr_tells_the_whole_story(server: Server, tmp_path: Path) -> None:
    """`openstack cbr` of otcextensions, as a user types it: create, associate, checkpoint, restore, delete."""
    source = tmp_path / "share"
    make_tree(source, 2)
    with server.client() as operator:
        share_id = operator.register("turbo", "share", source)
    run = server.openstack
    vault = run(
        "vault", "create", "shares", "--consistent-level", "crash_consistent", "--object-type", "turbo", "--size", "40"
    )
    run("vault", "associate", "shares", "--resource", f"name=share,id={share_id},type=OS::Sfs::Turbo", as_json=False)
    assert [v["name"] for v in run("vault", "list")] == ["shares"]
    assert run("vault", "show", "shares")["ID"] == vault["ID"]
    point = run("checkpoint", "create", "--vault-id", vault["ID"], "--backup-name", "by-cli", "--resources", share_id)
    wanted = contents(source)
    wait_until(lambda: run("checkpoint", "show", point["id"])["status"] == "available", "the checkpoint is available")
    backups = run("backup", "list")
    assert [b["name"] for b in backups] == ["by-cli"]
    (source / "big").unlink()
    with server.client() as tenant:
        log = tenant.restore(backups[0]["id"], resource_id=share_id)
        assert log["status"] == "success"
    assert contents(source) == wanted
    assert {t["operation_type"] for t in run("task", "list")} == {"backup", "restore"}
    run("backup", "delete", "by-cli", as_json=False)
    wait_until(lambda: run("backup", "list") == [], "the backup is gone")
    run("vault", "delete", "shares", as_json=False)
    wait_until(lambda: run("vault", "list") == [], "the vault is gone")
