"""Orders and charging modes, against the contract: carried out at once, never half, and nothing is sold."""

from typing import Any

import pytest
from contract_schema import check_answer, check_error
from in_process_api import InProcessApi, Person
from test_api_vaults import UNKNOWN, create, wanted

SPEC = "vault.backup.turbo.normal"
PERIOD = {"charging_mode": "pre_paid", "period_type": "month", "period_num": 1}


def snake(vault_id: str, size: Any = 200, spec: str = SPEC, **more: Any) -> dict[str, Any]:
    product = {"product_id": "p", "resource_size": size, "resource_spec_code": spec, **more}
    return {"resource_id": vault_id, "product_info": product, "is_auto_pay": True}


def camel(vault_id: str, size: Any = 200, spec: str = SPEC, **more: Any) -> dict[str, Any]:
    product = {"productId": "p", "resourceSize": size, "resourceSpecCode": spec, **more}
    return {"resourceId": vault_id, "productInfo": product}


async def charge(person: Person, *vault_ids: str, **members: Any) -> Any:
    body = {"is_auto_renew": False, "is_auto_pay": True, "vault_ids": list(vault_ids), **PERIOD, **members}
    return await person.post("/vaults/change-charge-mode", json=body)


async def shown(person: Person, vault_id: str) -> dict[str, Any]:
    vault: dict[str, Any] = check_answer("show_vault", await person.get(f"/vaults/{vault_id}"))["vault"]
    return vault


async def test_an_ordered_size_is_given_at_once(api: InProcessApi) -> None:
    """Both spellings of an order resize the vault; the same order may be looked at, and answers with a text."""
    vault = await create(api.alice)
    for size, body in ((200, snake(vault["id"])), (300, camel(vault["id"], 300, resourceSizeMeasureId=17))):
        answer = check_answer("change_order", await api.alice.post("/orders/change", json=body))
        assert (answer["orderId"], answer["retCode"]) == (vault["id"], 0)
        assert (await shown(api.alice, vault["id"]))["billing"]["size"] == size
    answer = check_answer("update_order", await api.alice.put(f"/orders/{vault['id']}", json=camel(vault["id"], 400)))
    assert answer["retCode"] == "0"
    assert (await shown(api.alice, vault["id"]))["billing"]["size"] == 300


@pytest.mark.parametrize(
    ("members", "status", "code"),
    [
        ({"size": 0}, 400, "6101"),
        ({"size": 10485761}, 400, "6101"),
        ({"size": "200"}, 400, "9900"),
        ({"size": None}, 400, "9900"),
        ({"spec": "vault.backup.server.normal"}, 400, "9900"),
        ({"spec": "gold"}, 400, "9900"),
        ({"resource_size_measure_id": 5}, 400, "9900"),
        ({"vault_id": "my-vault"}, 400, "9900"),
        ({"vault_id": UNKNOWN}, 404, "6105"),
    ],
)
async def test_a_bad_order_changes_nothing(api: InProcessApi, members: dict[str, Any], status: int, code: str) -> None:
    """An order that no vault can have is refused with the code of a resize."""
    vault = await create(api.alice)
    body = snake(**{"vault_id": vault["id"], **members})
    check_error("change_order", await api.alice.post("/orders/change", json=body), status, code)
    assert await shown(api.alice, vault["id"]) == vault


async def test_an_order_nobody_made_is_not_found(api: InProcessApi) -> None:
    """An order has the id of its vault; another one is 6109, as is one of another tenant."""
    vault, other = await create(api.alice), await create(api.alice)
    for person, order, body in (
        (api.alice, other["id"], camel(vault["id"])),
        (api.alice, UNKNOWN, camel(UNKNOWN)),
        (api.bob, vault["id"], camel(vault["id"])),
    ):
        check_error("update_order", await person.put(f"/orders/{order}", json=body), 400, "6109")
    check_error("update_order", await api.alice.put("/orders/CS2026", json=camel(vault["id"])), 400, "9900")
    check_error("update_order", await api.alice.put(f"/orders/{vault['id']}", json={}), 400, "9900")
    check_error("change_order", await api.bob.post("/orders/change", json=snake(vault["id"])), 404, "6105")
    check_error("change_order", await api.rita.post("/orders/change", json=snake(vault["id"])), 403, "8600")


async def test_the_charging_mode_is_changed_for_all_or_none(api: InProcessApi) -> None:
    """pre_paid is shown from then on; one vault that cannot have it leaves all as they are."""
    first, second = [await create(api.alice, billing_size=10) for _ in range(2)]
    growing = await create(api.alice, auto_expand=True)
    foreign = await create(api.bob)
    for ids, status, code in (
        ([first["id"], foreign["id"]], 404, "6105"),
        ([first["id"], growing["id"]], 400, "6110"),
        ([first["id"], first["id"]], 400, "6104"),
        ([first["id"], "x"], 400, "9900"),
        ([], 400, "9900"),
        ([UNKNOWN] * 61, 400, "9900"),
    ):
        check_error("change_vault_charge_mode", await charge(api.alice, *ids), status, code)
    for members in ({"charging_mode": "post_paid"}, {"period_type": "day"}, {"period_num": 10}, {"period_num": 0}):
        refused = await charge(api.alice, first["id"], **members)
        check_error("change_vault_charge_mode", refused, 400, "9900")
    assert await shown(api.alice, first["id"]) == first
    for _ in range(2):
        answer = check_answer("change_vault_charge_mode", await charge(api.alice, second["id"], first["id"]))
        assert (answer["orderId"], answer["retCode"]) == (second["id"], 0)
        for vault in (first, second):
            assert (await shown(api.alice, vault["id"]))["billing"]["charging_mode"] == "pre_paid"
    grow = await api.alice.put(f"/vaults/{first['id']}", json={"vault": {"auto_expand": True}})
    check_error("update_vault", grow, 400, "9900")
    check_error("change_vault_charge_mode", await charge(api.rita, first["id"]), 403, "8600")


async def test_an_ordered_vault_is_made_and_charged_never(api: InProcessApi) -> None:
    """The order names the vault, which is there at once as post_paid; a bad one makes none."""
    body = wanted(name="ordered", billing_charging_mode="pre_paid", billing_period_type="month", billing_period_num=1)
    answer = check_answer("create_post_paid_vault", await api.alice.post("/vaults/order", json=body))
    assert (answer["error_code"], answer["orders"][0]["subscribeResult"]) == ("0", 1)
    vault = await shown(api.alice, answer["orders"][0]["resourceId"])
    assert (vault["name"], vault["billing"]["charging_mode"]) == ("ordered", "post_paid")
    bad = wanted(name="bad", billing_charging_mode="pre_paid", billing_size=1)
    check_error("create_post_paid_vault", await api.alice.post("/vaults/order", json=bad), 400, "6101")
    check_error("create_post_paid_vault", await api.rita.post("/vaults/order", json=body), 403, "8600")
    assert check_answer("list_vault", await api.alice.get("/vaults"))["count"] == 1
