"""Orders and charging on the wire, without a billing service: done at once, for nothing (control/orders.py).

Clients name the members of one order in snake case or in camel case; both are understood.
"""

from dataclasses import replace
from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.api.vault_resources import looker
from strongroom.api.vaults import CreateVaultBody, new_vault
from strongroom.base.errors import InvalidRequest
from strongroom.control import orders, vaults

GIGABYTES = 17  # resource_size_measure_id of the published unit; there is no other
DONE = "Carried out. There is no billing service here: nothing is to be paid."


class ProductPart(msgspec.Struct):
    """Either spelling of each; product_id is of a price list and means nothing here."""

    resource_size: int | None = None
    resource_spec_code: str | None = None
    resource_size_measure_id: int | None = None
    resourceSize: int | None = None
    resourceSpecCode: str | None = None
    resourceSizeMeasureId: int | None = None


class OrderBody(msgspec.Struct):
    resource_id: str | None = None
    product_info: ProductPart | None = None
    resourceId: str | None = None
    productInfo: ProductPart | None = None


class ChargeModeBody(msgspec.Struct):
    vault_ids: list[str]
    charging_mode: str
    period_type: str
    period_num: int


class _Order(msgspec.Struct):
    """An order as both spellings mean it."""

    vault_id: str
    size_gb: int
    spec: str


async def change_order(call: Call) -> dict[str, Any]:
    order = _order_of(call.body)
    vault = await orders.resize(
        call.services.database, call.project_id, order.vault_id, order.size_gb, order.spec, call.services.clock
    )
    return {"orderId": vault.id, "retCode": 0, "retMsg": DONE}


async def update_order(call: Call) -> dict[str, Any]:
    """retCode is a text here, as in the contract."""
    order = _order_of(call.body)
    await orders.show_order(call.services.database, call.project_id, call.path["order_id"], order.vault_id, order.spec)
    return {"orderId": call.path["order_id"], "retCode": "0", "retMsg": DONE}


async def change_vault_charge_mode(call: Call) -> dict[str, Any]:
    asked: ChargeModeBody = call.body
    if asked.charging_mode != "pre_paid":
        raise InvalidRequest(reason="Invalid charging_mode: a vault can be changed to pre_paid only.")
    await orders.charge_in_advance(
        call.services.database,
        call.project_id,
        asked.vault_ids,
        period_type=asked.period_type,
        period_num=asked.period_num,
        clock=call.services.clock,
    )
    return {"orderId": asked.vault_ids[0], "retCode": 0, "retMsg": DONE}


async def create_post_paid_vault(call: Call) -> dict[str, Any]:
    """The vault that was ordered in advance is made, and charged afterwards, which is never."""
    wanted = new_vault(call.body.vault)
    if wanted.charging_mode == "pre_paid":
        wanted = replace(wanted, charging_mode="post_paid")
    made = await vaults.create_vault(call.services.database, call.caller, wanted, looker(call), call.services.clock)
    order = {"cloudServiceId": None, "orderId": made.id, "resourceId": made.id, "subscribeResult": 1}
    return {"orders": [order], "retCode": 0, "errText": "", "error_code": "0"}


def _order_of(body: OrderBody) -> _Order:
    """Raises InvalidRequest for what is missing in either spelling."""
    product = body.product_info or body.productInfo or ProductPart()
    vault_id = body.resource_id or body.resourceId
    size_gb = product.resource_size if product.resource_size is not None else product.resourceSize
    spec = product.resource_spec_code or product.resourceSpecCode
    if vault_id is None or size_gb is None or spec is None:
        raise InvalidRequest(
            reason="Invalid order: give resource_id, product_info.resource_size and product_info.resource_spec_code."
        )
    if (product.resource_size_measure_id or product.resourceSizeMeasureId or GIGABYTES) != GIGABYTES:
        raise InvalidRequest(reason=f"Invalid resource_size_measure_id: give {GIGABYTES}, for GB.")
    return _Order(vault_id=vault_id, size_gb=size_gb, spec=spec)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="change_order",
        method="POST",
        path="/v3/{project_id}/orders/change",
        action="cbr:vaults:update",
        handler=change_order,
        body=OrderBody,
    ),
    Operation(
        name="update_order",
        method="PUT",
        path="/v3/{project_id}/orders/{order_id}",
        action="cbr:vaults:update",
        handler=update_order,
        body=OrderBody,
    ),
    Operation(
        name="change_vault_charge_mode",
        method="POST",
        path="/v3/{project_id}/vaults/change-charge-mode",
        action="cbr:vaults:update",
        handler=change_vault_charge_mode,
        body=ChargeModeBody,
    ),
    Operation(
        name="create_post_paid_vault",
        method="POST",
        path="/v3/{project_id}/vaults/order",
        action="cbr:vaults:create",
        handler=create_post_paid_vault,
        body=CreateVaultBody,
    ),
)
