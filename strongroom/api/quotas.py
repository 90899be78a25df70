"""Quotas under /ext: the operator sets them for a project, the project reads them with what it has used."""

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.control import quotas
from strongroom.control.access import ACTION_ADMIN


class QuotaLimits(msgspec.Struct, kw_only=True):
    """What is given replaces; null lifts the limit; what is left out stays. bytes: stored, of all vaults together."""

    vaults: int | msgspec.UnsetType | None = msgspec.UNSET
    bytes: int | msgspec.UnsetType | None = msgspec.UNSET
    restore_points: int | msgspec.UnsetType | None = msgspec.UNSET


class QuotasBody(msgspec.Struct):
    quotas: QuotaLimits


class QuotaView(msgspec.Struct):
    """limit null: none."""

    limit: int | None
    used: int


class QuotasView(msgspec.Struct):
    vaults: QuotaView
    bytes: QuotaView
    restore_points: QuotaView


class QuotasAnswer(msgspec.Struct):
    project_id: str
    quotas: QuotasView


async def show_quotas(call: Call) -> QuotasAnswer:
    return await _shown(call, call.project_id)


async def admin_show_quotas(call: Call) -> QuotasAnswer:
    return await _shown(call, call.path["project"])


async def admin_set_quotas(call: Call) -> QuotasAnswer:
    asked: QuotaLimits = call.body.quotas
    project_id = call.path["project"]
    given = {"vaults": asked.vaults, "bytes": asked.bytes, "restore_points": asked.restore_points}
    change = {name: limit for name, limit in given.items() if not isinstance(limit, msgspec.UnsetType)}
    await quotas.change_quotas(call.services.database, project_id, change, call.services.clock)
    return await _shown(call, project_id)


async def _shown(call: Call, project_id: str) -> QuotasAnswer:
    limits, used = await quotas.show_quotas(call.services.database, project_id)
    return QuotasAnswer(
        project_id=project_id,
        quotas=QuotasView(
            vaults=QuotaView(limits.vaults, used.vaults or 0),
            bytes=QuotaView(limits.bytes, used.bytes or 0),
            restore_points=QuotaView(limits.restore_points, used.restore_points or 0),
        ),
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="show_quotas",
        method="GET",
        path="/ext/v1/{project_id}/quotas",
        action="strongroom:quotas:get",
        handler=show_quotas,
        answer=QuotasAnswer,
    ),
    Operation(
        name="admin_show_quotas",
        method="GET",
        path="/ext/v1/admin/projects/{project}/quotas",
        action=ACTION_ADMIN,
        handler=admin_show_quotas,
        answer=QuotasAnswer,
    ),
    Operation(
        name="admin_set_quotas",
        method="PUT",
        path="/ext/v1/admin/projects/{project}/quotas",
        action=ACTION_ADMIN,
        handler=admin_set_quotas,
        answer=QuotasAnswer,
        body=QuotasBody,
    ),
)
