"""Policies on a real server, with the clients people have: made, applied, fired by the clock, expired, taken away."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from command_line import run as command
from harness import Server, contents, make_tree, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # of the SDK
]

NIGHTLY = "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR,SA,SU;BYHOUR=06;BYMINUTE=00"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("policies") / "state").start()
    yield running
    assert running.stop() == 0, running.log()


def soon() -> tuple[datetime, str]:
    """A minute that begins in 5 to 65 seconds, and the rule that fires in it."""
    at = (datetime.now(UTC) + timedelta(seconds=65)).replace(second=0, microsecond=0)
    return at, f"FREQ=DAILY;INTERVAL=1;BYHOUR={at.hour};BYMINUTE={at.minute:02}"


def cli(server: Server, *argv: str, code: int = 0) -> Any:
    done = command(server, *argv, "--json", code=code)
    return json.loads(done.stdout) if done.stdout else None


@dataclass(frozen=True, kw_only=True)
class MadeBySdk:
    sdk: Any
    source: Path
    share: str
    policy: str
    vault: str
    due: datetime


@pytest.fixture(scope="module", autouse=True)
def made(server: Server, tmp_path_factory: pytest.TempPathFactory) -> MadeBySdk:
    """Made before the other tests, which fill the time until it is due."""
    return made_by_sdk(server, tmp_path_factory.mktemp("sdk"))


def made_by_sdk(server: Server, base: Path) -> MadeBySdk:
    """huaweicloudsdkcbr: create, list, show, update, apply."""
    from huaweicloudsdkcbr.v1 import (
        BillingCreate,
        CbrClient,
        CreatePolicyRequest,
        CreateVaultRequest,
        ListPoliciesRequest,
        PolicyCreate,
        PolicyCreateReq,
        PolicyoODCreate,
        PolicyTriggerPropertiesReq,
        PolicyTriggerReq,
        PolicyUpdate,
        PolicyUpdateReq,
        ResourceCreate,
        ShowPolicyRequest,
        UpdatePolicyRequest,
        VaultCreate,
        VaultCreateReq,
    )
    from huaweicloudsdkcore.auth.credentials import BasicCredentials

    given = server.credentials
    source = base / "share"
    make_tree(source, 5)
    with server.client() as operator:
        share_id = operator.register("turbo", "share-of-sdk", source)
    credentials = BasicCredentials(given["access_key"], given["secret_key"], given["project_id"])
    sdk = CbrClient.new_builder().with_credentials(credentials).with_endpoint(given["endpoint"]).build()

    due, rule = soon()
    trigger = PolicyTriggerReq(properties=PolicyTriggerPropertiesReq(pattern=[rule]))
    definition = PolicyoODCreate(max_backups=5, day_backups=2, timezone="UTC+08:00")
    body = PolicyCreate(name="by-sdk", operation_type="backup", operation_definition=definition, trigger=trigger)
    made = sdk.create_policy(CreatePolicyRequest(body=PolicyCreateReq(policy=body))).policy
    assert (made.trigger.properties.pattern, made.trigger.type, made.enabled) == ([rule], "time", True)
    assert (made.operation_definition.max_backups, made.operation_definition.timezone) == (5, "UTC+08:00")
    assert made.associated_vaults == []
    billing = BillingCreate(consistent_level="crash_consistent", object_type="turbo", protect_type="backup", size=100)
    vault = VaultCreate(
        name="by-policy",
        billing=billing,
        resources=[ResourceCreate(id=share_id, type="OS::Sfs::Turbo")],
        backup_policy_id=made.id,
        backup_name_prefix="acme-",
    )
    vault_id = sdk.create_vault(CreateVaultRequest(body=VaultCreateReq(vault=vault))).vault.id
    shown = sdk.show_policy(ShowPolicyRequest(policy_id=made.id)).policy
    assert [row.vault_id for row in shown.associated_vaults] == [vault_id]
    assert [p.id for p in sdk.list_policies(ListPoliciesRequest(vault_id=vault_id)).policies] == [made.id]
    change = PolicyUpdate(name="renamed", operation_definition=PolicyoODCreate(retention_duration_days=30))
    after = sdk.update_policy(UpdatePolicyRequest(policy_id=made.id, body=PolicyUpdateReq(policy=change))).policy
    assert (after.name, after.trigger.properties.pattern) == ("renamed", [rule])
    assert after.operation_definition.retention_duration_days == 30
    assert after.operation_definition.max_backups is None
    return MadeBySdk(sdk=sdk, source=source, share=share_id, policy=made.id, vault=vault_id, due=due)


def test_openstack_cbr_policies(server: Server) -> None:
    """`openstack cbr policy create, list` and `vault bind, unbind`, as a user types them."""
    run = server.openstack
    made = run(
        *("policy", "create", "by-openstack", "--operation-type", "backup", "--pattern", NIGHTLY, "--max-backups", "5"),
        *("--day-backups", "2", "--timezone", "UTC+08:00", "--disable"),
    )
    policy_id = next(value for name, value in made.items() if name.lower() == "id")
    assert policy_id in {row.get("ID") or row.get("id") for row in run("policy", "list")}
    run("vault", "create", "bound", "--consistent-level", "crash_consistent", "--object-type", "turbo", "--size", "40")
    run("vault", "bind", "bound", policy_id, as_json=False)
    with server.client() as tenant:
        shown = tenant.ok("GET", f"policies/{policy_id}")["policy"]
        assert shown["enabled"] is False
        assert shown["operation_definition"]["max_backups"] == 5
        assert len(shown["associated_vaults"]) == 1
        run("vault", "unbind", "bound", policy_id, as_json=False)
        assert tenant.ok("GET", f"policies/{policy_id}")["policy"]["associated_vaults"] == []
        tenant.ok("DELETE", f"policies/{policy_id}")


def test_the_command_line_from_making_to_simulating(server: Server, tmp_path: Path) -> None:
    """strongroom policy: create, list, show, update, associate, dissociate, simulate, delete; names stand for ids."""
    cli(server, "vault", "create", "of-cli", "--type", "turbo")
    made = cli(
        server,
        *("policy", "create", "nightly", "--rule", "FREQ=DAILY;BYHOUR=2;BYMINUTE=30", "--time-zone", "Europe/Berlin"),
        *("--retention", "max=3,day=7", "--full-every", "6", "--vault", "of-cli"),
    )
    assert made["trigger"]["properties"]["time_zone"] == "Europe/Berlin"
    assert made["operation_definition"] == {"max_backups": 3, "day_backups": 7, "full_backup_interval": 6}
    assert len(made["associated_vaults"]) == 1
    assert [row["id"] for row in cli(server, "policy", "list", "--vault", "of-cli")] == [made["id"]]
    assert cli(server, "policy", "show", "nightly") == made
    changed = cli(server, "policy", "update", "nightly", "--retention", "days=30", "--disable")
    assert changed["operation_definition"] == {"retention_duration_days": 30, "full_backup_interval": 6}
    assert (changed["enabled"], changed["trigger"]) == (False, made["trigger"])
    cli(server, "policy", "update", "nightly", code=2)
    cli(server, "policy", "update", "nightly", "--rule", "FREQ=DAILY", code=1)
    assert cli(server, "policy", "dissociate", "nightly", "of-cli")["dissociate_policy"]["policy_id"] == made["id"]
    cli(server, "policy", "dissociate", "nightly", "of-cli", code=1)
    cli(server, "policy", "associate", "nightly", "of-cli")
    asked = cli(server, "policy", "simulate", "nightly", "--from", "2027-01-01", "--days", "100", "--on", "2027-03-31")
    assert len(asked["points"]) == 100
    assert len(asked["on"]["points"]) == 30
    tried = cli(server, "policy", "simulate", "nightly", "--from", "2027-01-01", "--retention", "max=2")
    assert len(tried["on"]["points"]) == 2
    cli(server, "policy", "create", "x", code=2)
    cli(server, "policy", "delete", "nightly", "--yes")
    cli(server, "policy", "show", "nightly", code=1)


def test_the_clock_fires_what_the_sdk_made(server: Server, made: MadeBySdk) -> None:
    """The run comes at its minute, and what it made restores; applied, taken away and deleted by the SDK."""
    from huaweicloudsdkcbr.v1 import (
        AssociateVaultPolicyRequest,
        DeletePolicyRequest,
        DisassociateVaultPolicyRequest,
        ListBackupsRequest,
        ListOpLogsRequest,
        ShowPolicyRequest,
        VaultAssociate,
        VaultDissociate,
    )
    from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

    def available() -> Any:
        found = made.sdk.list_backups(ListBackupsRequest(vault_id=made.vault, status="available")).backups
        return found or None

    (backup,) = wait_until(available, "the scheduled backup is available", 120)
    assert backup.name.startswith("acme-autobk_")
    assert backup.extend_info.auto_trigger is True
    created_at, expired_at = (t.replace(tzinfo=UTC) for t in (backup.created_at, backup.expired_at))
    assert timedelta(0) <= created_at - made.due < timedelta(seconds=30)
    assert expired_at - created_at == timedelta(days=30)
    logs = made.sdk.list_op_logs(ListOpLogsRequest(vault_id=made.vault)).operation_logs
    assert [(log.operation_type, log.status, log.policy_id) for log in logs] == [("backup", "success", made.policy)]
    wanted = contents(made.source)
    (made.source / "big").unlink()
    with server.client() as tenant:
        assert tenant.restore(backup.id, resource_id=made.share)["status"] == "success"
    assert contents(made.source) == wanted

    away = DisassociateVaultPolicyRequest(vault_id=made.vault, body=VaultDissociate(policy_id=made.policy))
    assert made.sdk.disassociate_vault_policy(away).dissociate_policy.policy_id == made.policy
    with pytest.raises(ClientRequestException) as refused:
        made.sdk.disassociate_vault_policy(away)
    assert (refused.value.status_code, refused.value.error_code) == (404, "BackupService.6002")
    again = AssociateVaultPolicyRequest(vault_id=made.vault, body=VaultAssociate(policy_id=made.policy))
    assert made.sdk.associate_vault_policy(again).associate_policy.vault_id == made.vault
    made.sdk.delete_policy(DeletePolicyRequest(policy_id=made.policy))
    with pytest.raises(ClientRequestException) as refused:
        made.sdk.show_policy(ShowPolicyRequest(policy_id=made.policy))
    assert (refused.value.status_code, refused.value.error_code) == (404, "BackupService.6000")
    assert len(available()) == 1
