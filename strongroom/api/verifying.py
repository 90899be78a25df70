"""Checks of a vault under /ext: asked for here, watched as tasks."""

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.base.errors import InvalidRequest
from strongroom.control import verifying

PERCENT_MIN = 0.01


class VerifyMembers(msgspec.Struct):
    """deep: read and compare the content too. sample: only so many percent of it, what was read longest ago first."""

    deep: bool = False
    sample: float | None = None


class VerifyBody(msgspec.Struct):
    verify: VerifyMembers


class VerifyAnswer(msgspec.Struct):
    task_id: str


async def verify_vault(call: Call) -> VerifyAnswer:
    """Accepted: the task's outcome has the findings, and it fails when a backup is hit."""
    asked: VerifyMembers = call.body.verify
    if asked.sample is not None and not (asked.deep and PERCENT_MIN <= asked.sample <= 100):
        raise InvalidRequest(reason="Invalid sample: a share of a deep check, above 0 and at most 100 percent.")
    task_id = await verifying.request_verify(
        call.services.database,
        call.project_id,
        call.path["vault_id"],
        deep=asked.deep,
        sample_percent=asked.sample,
        request_id=call.request_id,
        clock=call.services.clock,
    )
    return VerifyAnswer(task_id=task_id)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="verify_vault",
        method="POST",
        path="/ext/v1/{project_id}/vaults/{vault_id}/verify",
        action="strongroom:vaults:verify",
        handler=verify_vault,
        answer=VerifyAnswer,
        body=VerifyBody,
        status=202,
    ),
)
