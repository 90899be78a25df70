"""Vaults that fill up: growth by a quarter, and what stays full."""

import pytest
from points_world import World

from strongroom.base.errors import Conflict
from strongroom.base.units import GIB
from strongroom.control import claiming
from strongroom.control.capacity import expanded_gb


async def size_of(world: World, vault: str) -> object:
    return await world.one("SELECT size_gb FROM vaults WHERE id = %s", vault)


@pytest.mark.parametrize(
    ("size", "used", "grown"),
    [(10, 0, 10), (10, 10 * GIB - 1, 10), (10, 10 * GIB, 13), (10, 13 * GIB, 17), (1, GIB, 2), (100, 400 * GIB, 484),
     (10485760, 10485760 * GIB, 10485760), (10000000, 2**60, 10485760)],
)  # fmt: skip
def test_growth_is_by_quarters_to_the_limit(size: int, used: int, grown: int) -> None:
    """A full size grows by a quarter, rounded up, until it holds what is used; never beyond the largest vault."""
    assert expanded_gb(size, used) == grown


async def test_a_vault_that_fills_up_grows_each_time(world: World) -> None:
    """With auto_expand the backup that fills a vault enlarges it, again and again, and no run is refused."""
    resource = await world.add_resource()
    vault = await world.add_vault([resource], size_gb=10, auto_expand=True)
    for stored, size in ((GIB, 10), (9 * GIB, 13), (1, 13), (20 * GIB, 35)):  # 13, 17, 22, 28 hold no 30
        await world.run(vault)
        await world.commit(await world.claim("backup"), stored_bytes=stored)
        assert await size_of(world, vault) == size


async def test_a_vault_without_growth_stays_full(world: World) -> None:
    """A full vault refuses the next run with 6114 and keeps its size; deletes go through, and then it takes more."""
    resource = await world.add_resource()
    vault = await world.add_vault([resource], size_gb=10)
    await world.run(vault)
    await world.commit(await world.claim("backup"), stored_bytes=10 * GIB)
    with pytest.raises(Conflict, match="full"):
        await world.run(vault)
    # Switched on after it filled up, growth does not help either.
    await world.execute("UPDATE vaults SET auto_expand = true WHERE id = %s", vault)
    with pytest.raises(Conflict, match="full"):
        await world.run(vault)
    assert await size_of(world, vault) == 10
    await world.execute("UPDATE vaults SET size_gb = 11 WHERE id = %s", vault)
    await world.backed_up(vault)
    assert await claiming.claim(world.database, "w", "default") is None


async def test_demand_billing_goes_beyond_the_size(world: World) -> None:
    """A vault with demand_billing is never full and never grows."""
    resource = await world.add_resource()
    vault = await world.add_vault([resource], size_gb=10, demand_billing=True)
    for _ in range(2):
        await world.run(vault)
        await world.commit(await world.claim("backup"), stored_bytes=20 * GIB)
    assert await size_of(world, vault) == 10
