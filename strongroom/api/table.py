"""The table of operations: every row that this version answers, gathered from the nouns."""

from strongroom.api import health, protectables, vault_resources, vaults
from strongroom.api.operation import Operation

OPERATIONS: tuple[Operation, ...] = (
    *health.OPERATIONS,
    *vaults.OPERATIONS,
    *vault_resources.OPERATIONS,
    *protectables.OPERATIONS,
)
