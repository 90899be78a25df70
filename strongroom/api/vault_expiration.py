"""The time of all restore points of a vault, on the wire."""

from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.control import expirations


class ExpirationBody(msgspec.Struct):
    """A day, whose end it is in this zone: `2027-01-31` and `UTC+08:00`."""

    expect_expiration_date: str
    time_zone: str


async def update_expiration_time(call: Call) -> dict[str, Any]:
    """The time holds when this is answered; the operation log ends when the store knows it too."""
    asked: ExpirationBody = call.body
    begun = await expirations.update_expiration(
        call.services.database,
        call.project_id,
        call.path["vault_id"],
        asked.expect_expiration_date,
        asked.time_zone,
        request_id=call.request_id,
        clock=call.services.clock,
    )
    return {
        "affected_backups_count": begun.affected,
        "new_expiration_day": asked.expect_expiration_date,
        "operation_log_id": begun.task_id,
    }


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="update_expiration_time",
        method="PUT",
        path="/v3/{project_id}/vaults/{vault_id}/update-backup-expiration-time",
        action="cbr:vaults:update",
        handler=update_expiration_time,
        body=ExpirationBody,
    ),
)
