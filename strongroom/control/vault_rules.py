"""What a vault may be: the values of a request, checked, and the vault after a change. Pure: no database, no clock.

Rules of contract/behaviour.md section 1. Every function returns values or raises the refusal a client knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from strongroom.base.errors import Conflict, InvalidRequest
from strongroom.base.units import GIB, gigabytes
from strongroom.control.names import (
    Tag,
    require_description,
    require_enterprise_project,
    require_id,
    require_name,
    require_prefix,
    require_tags,
)
from strongroom.control.resource_binding import NewResource, check_new_resources
from strongroom.control.vault_kinds import VAULT_KINDS, VaultKind
from strongroom.control.vault_resources import VaultResource

SIZE_GB_MIN_NEW = 10  # contract section 17: 10 on create, 1 on update
SIZE_GB_MIN = 1
SIZE_GB_MAX = 10485760
DESCRIPTION_LENGTH_MAX = 64
PREFIX_LENGTH_MAX = 32  # leaves room for `autobk_xxxx` within the 64 characters of a backup's name
ZONE_LENGTH_MAX = 32
BIND_TAGS_MAX = 5
BIND_KEY_LENGTH_MAX = 127  # what any tag of the contract may have
BIND_VALUE_LENGTH_MAX = 255

CRASH, APP = "crash_consistent", "app_consistent"
CLOUD_TYPES = ("public", "hybrid")
PROTECT_TYPES = ("backup", "replication", "hybrid")
STATUSES = ("available", "lock", "frozen", "deleting", "error")


@dataclass(frozen=True, kw_only=True)
class NewVault:
    """A vault as a request describes it; None takes the contract's default. size_gb: 10-10485760."""

    name: str
    description: str | None
    object_type: str
    protect_type: str
    consistent_level: str
    size_gb: int
    cloud_type: str
    charging_mode: str
    is_multi_az: bool
    resources: tuple[NewResource, ...]
    backup_policy_id: str | None
    tags: tuple[Tag, ...]
    enterprise_project_id: str | None
    auto_bind: bool
    bind_rules: tuple[Tag, ...]
    auto_expand: bool
    threshold: int
    smn_notify: bool
    backup_name_prefix: str | None
    demand_billing: bool
    locked: bool
    availability_zone: str | None
    sys_lock_source_service: str | None


@dataclass(frozen=True, kw_only=True)
class VaultChange:
    """What a PUT asks for; None leaves a member as it is. bind_rules: () clears them."""

    name: str | None = None
    size_gb: int | None = None
    consistent_level: str | None = None
    auto_bind: bool | None = None
    bind_rules: tuple[Tag, ...] | None = None
    auto_expand: bool | None = None
    threshold: int | None = None
    smn_notify: bool | None = None
    locked: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Vault:
    """A vault with its tags and resources. used_bytes: live sealed bytes (RULINGS 19); times are aware UTC."""

    id: str
    project_id: str
    user_id: str
    name: str
    description: str | None
    provider_id: str
    object_type: str
    protect_type: str
    consistent_level: str
    size_gb: int
    cloud_type: str
    charging_mode: str
    is_multi_az: bool
    status: str
    enterprise_project_id: str
    auto_bind: bool
    bind_rules: tuple[Tag, ...]
    auto_expand: bool
    threshold: int
    smn_notify: bool
    backup_name_prefix: str | None
    demand_billing: bool
    locked: bool
    availability_zone: str | None
    sys_lock_source_service: str | None
    used_bytes: int
    created_at: datetime
    updated_at: datetime | None
    tags: tuple[Tag, ...] = ()
    resources: tuple[VaultResource, ...] = ()

    @property
    def allocated_gb(self) -> int:
        """Sum of the sizes of its resources as they are shown, so that a client's own sum agrees."""
        return sum(gigabytes(resource.size_bytes) for resource in self.resources)


def check_new_vault(new: NewVault) -> VaultKind:
    """The vault's kind. Raises InvalidRequest or Conflict (6101, 6109, 6600, ...)."""
    require_name(new.name, "vault.name")
    require_description(new.description, "vault.description", DESCRIPTION_LENGTH_MAX)
    kind = _require_kind(new)
    if new.charging_mode != "post_paid":
        raise _bad_charging(new.charging_mode)
    if not SIZE_GB_MIN_NEW <= new.size_gb <= SIZE_GB_MAX:
        raise _bad_size(SIZE_GB_MIN_NEW)
    check_threshold(new.threshold)
    _check_bind_rules(new.bind_rules)
    require_tags(new.tags, "vault.tags")
    require_enterprise_project(new.enterprise_project_id, "vault.enterprise_project_id")
    require_prefix(new.backup_name_prefix, "vault.backup_name_prefix", PREFIX_LENGTH_MAX)
    if new.availability_zone is not None:
        require_name(new.availability_zone, "vault.availability_zone", ZONE_LENGTH_MAX)
    if new.sys_lock_source_service not in (None, "", "SMB"):
        raise InvalidRequest(reason='Invalid vault.sys_lock_source_service: give "SMB", or leave it out.')
    check_new_resources(new.resources)
    if new.backup_policy_id is not None:
        require_id(new.backup_policy_id, "backup_policy_id")
    return kind


def changed(vault: Vault, change: VaultChange) -> Vault:
    """The vault as the change wants it. Raises InvalidRequest or Conflict 6101; tags and resources stay."""
    if change.name is not None:
        require_name(change.name, "vault.name")
    if change.size_gb is not None:
        _check_resize(vault, change.size_gb)
    if change.consistent_level is not None:
        _check_level_change(vault, change.consistent_level)
    if change.threshold is not None:
        check_threshold(change.threshold)
    if change.bind_rules is not None:
        _check_bind_rules(change.bind_rules)
    if change.auto_expand and vault.charging_mode != "post_paid":
        raise InvalidRequest(reason="Invalid vault.auto_expand: only post_paid vaults grow by themselves.")
    if vault.locked and change.locked is False:
        # Clients look for the first sentence word by word.
        raise InvalidRequest(
            reason="vault not support to modify locked attribute from true to false. A locked vault stays locked."
        )
    given = {name: value for name in change.__dataclass_fields__ if (value := getattr(change, name)) is not None}
    return replace(vault, **given)


def check_filters(
    *, name: str | None, cloud_type: str | None, protect_type: str | None, object_type: str | None, status: str | None
) -> None:
    """Values of a list's filters that can be wrong. Raises InvalidRequest."""
    if name is not None:
        require_name(name, "name")
    _check_choice(cloud_type, "cloud_type", CLOUD_TYPES)
    _check_choice(protect_type, "protect_type", PROTECT_TYPES)
    _check_choice(object_type, "object_type", tuple(VAULT_KINDS))
    _check_choice(status, "status", STATUSES)


def _require_kind(new: NewVault) -> VaultKind:
    """The kind, and whether its members go together."""
    _check_choice(new.object_type, "vault.billing.object_type", tuple(VAULT_KINDS))
    _check_choice(new.protect_type, "vault.billing.protect_type", PROTECT_TYPES)
    _check_choice(new.cloud_type, "vault.billing.cloud_type", CLOUD_TYPES)
    _check_choice(new.consistent_level, "vault.billing.consistent_level", (CRASH, APP))
    kind = VAULT_KINDS[new.object_type]
    if new.cloud_type != "hybrid" and (kind.hybrid_only or new.protect_type == "hybrid"):
        raise InvalidRequest(
            reason=f"Invalid vault.billing.cloud_type: a {new.object_type} vault with protect_type "
            f"{new.protect_type} needs cloud_type hybrid."
        )
    if new.protect_type == "replication" and not kind.replicable:
        raise InvalidRequest(
            reason="Invalid vault.billing.protect_type: only server and turbo vaults can take replicas. Use backup."
        )
    if new.consistent_level == APP:
        _require_app_consistency(new.object_type, new.protect_type)
    return kind


def _require_app_consistency(object_type: str, protect_type: str) -> None:
    if object_type != "server" or protect_type != "backup":
        raise InvalidRequest(
            reason="Invalid vault.billing.consistent_level: app_consistent is for backup vaults of servers only. "
            "Use crash_consistent."
        )


def _check_level_change(vault: Vault, level: str) -> None:
    _check_choice(level, "vault.billing.consistent_level", (CRASH, APP))
    if level == APP and vault.consistent_level == CRASH:
        _require_app_consistency(vault.object_type, vault.protect_type)
    if level == CRASH and vault.consistent_level == APP:
        raise InvalidRequest(
            reason="Invalid vault.billing.consistent_level: it can be changed from crash_consistent to "
            "app_consistent only."
        )


def _check_resize(vault: Vault, size_gb: int) -> None:
    if not SIZE_GB_MIN <= size_gb <= SIZE_GB_MAX:
        raise _bad_size(SIZE_GB_MIN)
    if size_gb < vault.size_gb and size_gb * GIB < vault.used_bytes:
        raise Conflict(
            reason=f"Backups use {gigabytes(vault.used_bytes)} GB of the vault. Give at least that size, "
            "or delete backups first.",
            conflict_code="6101",
        )


def check_threshold(threshold: int) -> None:
    """Raises InvalidRequest."""
    if not 1 <= threshold <= 100:
        raise InvalidRequest(reason="Invalid vault.threshold: give a percentage from 1 to 100.")


def _check_bind_rules(tags: Sequence[Tag]) -> None:
    if len(tags) > BIND_TAGS_MAX:
        raise InvalidRequest(reason=f"Invalid vault.bind_rules: give at most {BIND_TAGS_MAX} tags.")
    for tag in tags:
        if not 0 < len(tag.key) <= BIND_KEY_LENGTH_MAX or len(tag.value) > BIND_VALUE_LENGTH_MAX:
            raise InvalidRequest(
                reason=f"Invalid vault.bind_rules: a key has 1 to {BIND_KEY_LENGTH_MAX} characters, "
                f"a value at most {BIND_VALUE_LENGTH_MAX}."
            )


def _check_choice(value: str | None, member: str, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise InvalidRequest(reason=f"Invalid {member}: use one of {', '.join(choices)}.")


def _bad_size(minimum: int) -> Conflict:
    return Conflict(reason=f"The size of a vault is {minimum} to {SIZE_GB_MAX} GB.", conflict_code="6101")


def _bad_charging(charging_mode: str) -> Conflict | InvalidRequest:
    if charging_mode == "pre_paid":
        return Conflict(
            reason="Vaults cannot be ordered here, because there is no billing service. Use charging_mode post_paid.",
            conflict_code="6109",
        )
    return InvalidRequest(reason="Invalid vault.billing.charging_mode: use post_paid.")
