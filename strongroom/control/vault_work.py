"""Which open tasks of a vault stand in each other's way."""

from typing import Any, NamedTuple

from psycopg import AsyncConnection

from strongroom.base.errors import Conflict
from strongroom.control.subjects import VaultRef


class Work(NamedTuple):
    """A kind of task: what it is in a sentence, and the published code of who has to wait for it."""

    words: str
    code: str = "6112"


WORK = {
    "backup": Work("a backup runs", code="6125"),
    "restore": Work("a restore runs", code="2010"),
    "delete": Work("a backup is being deleted"),
    "remove_resource": Work("resources are being removed", code="6134"),
    "vault_delete": Work("the vault is being deleted"),
    "expiration": Work("the time of its backups is being changed"),
    "migrate": Work("resources move from one vault to another"),
    "sync": Work("restore points are being brought in", code="7302"),
    "replication": Work("backups are being copied to another region", code="6130"),
    "copy": Work("backups of another region are being copied to it", code="6130"),
}


async def refuse_open_work(conn: AsyncConnection[Any], vault: VaultRef, *kinds: str) -> None:
    """Raises Conflict when a task of one of these kinds is open in the vault; of `migrate` also one that goes to it.

    The vault's lock MUST be held."""
    found = await conn.execute(
        "SELECT id, operation_type FROM operation_logs WHERE project_id = %(project)s "
        "AND operation_type = ANY(%(kinds)s) AND status IN ('waiting', 'running') AND (vault_id = %(vault)s "
        "OR (operation_type = 'migrate' AND parameters ->> 'destination' = %(vault)s)) ORDER BY created_at, id LIMIT 1",
        {"project": vault.project_id, "vault": vault.id, "kinds": list(kinds)},
    )
    row = await found.fetchone()
    if row is not None:
        raise Conflict(
            conflict_code=WORK[row[1]].code,
            reason=f"Vault {vault.name} is busy: {WORK[row[1]].words} (task {row[0]}). Try again when that has ended.",
        )
