"""Charging where nothing is sold: what an order would bring about is done at once, and costs nothing.

The number of an order is the id of the vault it was for, of several of the first. Nobody can pay it, and a client that
asks a billing service about it will not find it (contract/behaviour.md section 13).
"""

from collections.abc import Sequence

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, InvalidRequest, VaultNotFound
from strongroom.control.db import Database
from strongroom.control.names import require_id
from strongroom.control.subjects import lock_vault
from strongroom.control.vault_kinds import VAULT_KINDS, spec_code
from strongroom.control.vault_resources import refuse_repeated, require_available
from strongroom.control.vault_rules import Vault, VaultChange
from strongroom.control.vaults import require_vault, update_vault

VAULTS_AT_ONCE_MAX = 60  # contract, of one change of the charging mode
PERIODS_MAX = 9
PERIOD_TYPES = ("month", "year")


async def resize(database: Database, project_id: str, vault_id: str, size_gb: int, spec: str, clock: Clock) -> Vault:
    """Give a vault the size that was ordered. Raises VaultNotFound, InvalidRequest, Conflict 6101 and 6112."""
    require_id(vault_id, "resource_id")
    async with database.transaction() as conn:
        vault = await require_vault(conn, project_id, vault_id)
    _require_spec(vault, spec)
    return await update_vault(database, project_id, vault_id, VaultChange(size_gb=size_gb), clock)


async def show_order(database: Database, project_id: str, order_id: str, vault_id: str, spec: str) -> None:
    """What there is to say of an order: that it has been carried out. Raises InvalidRequest, Conflict 6109."""
    require_id(vault_id, "resourceId")
    try:
        async with database.transaction() as conn:
            vault = await require_vault(conn, project_id, vault_id)
    except VaultNotFound:
        vault = None
    if vault is None or order_id != vault_id:
        raise Conflict(
            reason="The order does not exist. Here an order is carried out at once and has the id of its vault.",
            conflict_code="6109",
        )
    _require_spec(vault, spec)


async def charge_in_advance(
    database: Database,
    project_id: str,
    vault_ids: Sequence[str],
    *,
    period_type: str,
    period_num: int,
    clock: Clock,
) -> None:
    """Mark vaults as pre_paid, all or none; idempotent.

    Raises VaultNotFound, InvalidRequest, Conflict 6104 (twice), 6110 (grows by itself), 6112 (vault deleting).
    """
    if not 0 < len(vault_ids) <= VAULTS_AT_ONCE_MAX:
        raise InvalidRequest(reason=f"Invalid vault_ids: give 1 to {VAULTS_AT_ONCE_MAX} ids.")
    if period_type not in PERIOD_TYPES or not 1 <= period_num <= PERIODS_MAX:
        raise InvalidRequest(reason=f"Invalid period: give 1 to {PERIODS_MAX} of {' or '.join(PERIOD_TYPES)}.")
    for vault_id in vault_ids:
        require_id(vault_id, "vault_ids")
    refuse_repeated(vault_ids)
    async with database.transaction() as conn:
        for vault_id in sorted(vault_ids):
            require_available(await lock_vault(conn, project_id, vault_id), "error", "lock", "frozen")
            vault = await require_vault(conn, project_id, vault_id)
            if vault.auto_expand:
                raise Conflict(
                    reason=f"Vault {vault.name} grows by itself, as only post_paid vaults do. Switch that off.",
                    conflict_code="6110",
                )
            await conn.execute(
                "UPDATE vaults SET charging_mode = 'pre_paid', updated_at = %s WHERE project_id = %s AND id = %s "
                "AND charging_mode <> 'pre_paid'",
                [clock.now(), project_id, vault_id],
            )


def _require_spec(vault: Vault, spec: str) -> None:
    own = spec_code(VAULT_KINDS[vault.object_type], vault.protect_type, vault.cloud_type)
    if spec != own:
        raise InvalidRequest(reason=f"Invalid resource_spec_code: that of the vault is {own}, and it stays.")
