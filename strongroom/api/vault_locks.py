"""The lock of a vault under /ext: what CBR's `locked` cannot say, whether manual backups are kept as well."""

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.control import promises


class LockPart(msgspec.Struct):
    """Absent keep_manual: False, as in CBR."""

    locked: bool
    keep_manual: bool | None = None


class LockBody(msgspec.Struct):
    lock: LockPart


async def show_lock(call: Call) -> LockBody:
    locked, manual = await promises.show_lock(call.services.database, call.project_id, call.path["vault_id"])
    return LockBody(lock=LockPart(locked=locked, keep_manual=manual))


async def set_lock(call: Call) -> LockBody:
    asked: LockPart = call.body.lock
    await promises.set_lock(
        call.services.database,
        call.project_id,
        call.path["vault_id"],
        locked=asked.locked,
        keep_manual=asked.keep_manual or False,
        clock=call.services.clock,
    )
    return await show_lock(call)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="show_vault_lock",
        method="GET",
        path="/ext/v1/{project_id}/vaults/{vault_id}/lock",
        action="cbr:vaults:get",
        handler=show_lock,
    ),
    Operation(
        name="set_vault_lock",
        method="PUT",
        path="/ext/v1/{project_id}/vaults/{vault_id}/lock",
        action="cbr:vaults:update",
        handler=set_lock,
        body=LockBody,
    ),
)
