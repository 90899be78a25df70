"""The table of operations: every row that this version answers, gathered from the nouns."""

from strongroom.api import (
    agents,
    backups,
    checkpoints,
    entries,
    health,
    operation_logs,
    orders,
    policies,
    protectables,
    registrations,
    sharing,
    tasks,
    vault_locks,
    vault_resources,
    vault_tags,
    vault_totals,
    vaults,
    verifying,
)
from strongroom.api.operation import Operation

OPERATIONS: tuple[Operation, ...] = (
    *health.OPERATIONS,
    *vaults.OPERATIONS,
    *vault_resources.OPERATIONS,
    *verifying.OPERATIONS,
    *vault_locks.OPERATIONS,
    *vault_tags.OPERATIONS,
    *vault_totals.OPERATIONS,
    *orders.OPERATIONS,
    *policies.OPERATIONS,
    *protectables.OPERATIONS,
    *registrations.OPERATIONS,
    *checkpoints.OPERATIONS,
    *backups.OPERATIONS,
    *sharing.OPERATIONS,
    *agents.OPERATIONS,
    *operation_logs.OPERATIONS,
    *entries.OPERATIONS,
    *tasks.OPERATIONS,
)
