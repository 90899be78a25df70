"""A vault as every answer shows it: create, show, update, list and protectables alike."""

from typing import Any

import msgspec

from strongroom.api.vault_resources import ResourceView, resource_view
from strongroom.base.clock import api_timestamp
from strongroom.base.units import megabytes
from strongroom.control.vault_kinds import VAULT_KINDS, spec_code
from strongroom.control.vault_rules import Vault


class BillingView(msgspec.Struct):
    allocated: int  # GB
    used: int  # MB
    size: int  # GB
    charging_mode: str
    cloud_type: str
    consistent_level: str
    object_type: str
    protect_type: str
    spec_code: str
    status: str
    is_multi_az: bool
    # Nothing is ordered here: what billing would add is null, as it is for post_paid vaults of the real service.
    order_id: None = None
    product_id: None = None
    storage_unit: None = None
    frozen_scene: None = None


class TagView(msgspec.Struct):
    key: str
    value: str


class VaultView(msgspec.Struct):
    id: str
    name: str
    description: str | None
    project_id: str
    user_id: str
    provider_id: str
    enterprise_project_id: str
    billing: BillingView
    resources: list[ResourceView]
    tags: list[TagView]
    auto_bind: bool
    bind_rules: dict[str, Any]
    auto_expand: bool
    threshold: int
    smn_notify: bool
    backup_name_prefix: str | None
    demand_billing: bool
    locked: bool
    frozen: bool
    availability_zone: str | None
    sys_lock_source_service: str | None
    created_at: str
    updated_at: str | None
    cbc_delete_count: int = 0  # deletions by the billing service
    version: None = None


def vault_view(vault: Vault) -> VaultView:
    """A vault in the units of the API: allocated and size GB, used MB."""
    return VaultView(
        id=vault.id,
        name=vault.name,
        description=vault.description,
        project_id=vault.project_id,
        user_id=vault.user_id,
        provider_id=vault.provider_id,
        enterprise_project_id=vault.enterprise_project_id,
        billing=BillingView(
            allocated=vault.allocated_gb,
            used=megabytes(vault.used_bytes),
            size=vault.size_gb,
            charging_mode=vault.charging_mode,
            cloud_type=vault.cloud_type,
            consistent_level=vault.consistent_level,
            object_type=vault.object_type,
            protect_type=vault.protect_type,
            spec_code=spec_code(VAULT_KINDS[vault.object_type], vault.protect_type, vault.cloud_type),
            status=vault.status,
            is_multi_az=vault.is_multi_az,
        ),
        resources=[resource_view(resource) for resource in vault.resources],
        tags=[TagView(key=tag.key, value=tag.value) for tag in vault.tags],
        auto_bind=vault.auto_bind,
        bind_rules={"tags": [{"key": tag.key, "value": tag.value} for tag in vault.bind_rules]}
        if vault.bind_rules
        else {},
        auto_expand=vault.auto_expand,
        threshold=vault.threshold,
        smn_notify=vault.smn_notify,
        backup_name_prefix=vault.backup_name_prefix,
        demand_billing=vault.demand_billing,
        locked=vault.locked,
        frozen=vault.status == "frozen",
        availability_zone=vault.availability_zone,
        sys_lock_source_service=vault.sys_lock_source_service,
        created_at=api_timestamp(vault.created_at),
        updated_at=api_timestamp(vault.updated_at) if vault.updated_at else None,
    )
