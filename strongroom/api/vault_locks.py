"""The lock of a vault under /ext: what CBR's `locked` cannot say, whether manual backups are kept as well."""

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.control import locking


class LockPart(msgspec.Struct):
    """Absent keep_manual: False, as in CBR."""

    locked: bool
    keep_manual: bool | None = None


class LockBody(msgspec.Struct):
    lock: LockPart


class LockView(msgspec.Struct):
    """kept_by_store: the store keeps the data against everybody who has its keys too (object lock of S3); else only our
    own programs leave it alone."""

    locked: bool
    keep_manual: bool
    kept_by_store: bool


class LockAnswer(msgspec.Struct):
    lock: LockView


async def show_lock(call: Call) -> LockAnswer:
    locked, manual = await locking.show_lock(call.services.database, call.project_id, call.path["vault_id"])
    kept = await call.services.retains()
    return LockAnswer(lock=LockView(locked=locked, keep_manual=manual, kept_by_store=kept))


async def set_lock(call: Call) -> LockAnswer:
    asked: LockPart = call.body.lock
    await locking.set_lock(
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
        answer=LockAnswer,
    ),
    Operation(
        name="set_vault_lock",
        method="PUT",
        path="/ext/v1/{project_id}/vaults/{vault_id}/lock",
        action="cbr:vaults:update",
        handler=set_lock,
        answer=LockAnswer,
        body=LockBody,
    ),
)
