"""A year of policies on a real database: every run happens once, and nothing goes before its time."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from points_world import World
from policies_world import add_policy, expire, tick, wait_for_next

# Every kind of change: north and south, half an hour, at midnight, none, Ramadan, far east and far west.
ZONES = (
    "UTC", "Europe/Berlin", "Europe/London", "Europe/Dublin", "Europe/Istanbul", "America/New_York",
    "America/Los_Angeles", "America/St_Johns", "America/Santiago", "America/Havana", "America/Sao_Paulo",
    "Africa/Casablanca", "Africa/Cairo", "Asia/Kolkata", "Asia/Beirut", "Asia/Tokyo", "Australia/Sydney",
    "Australia/Lord_Howe", "Pacific/Auckland", "Pacific/Chatham",
)  # fmt: skip
DAYS, WEEKS, MONTHS = 3, 2, 3


def wanted_runs(zone: str, start: datetime, days: int) -> dict[str, int]:
    """Local day -> runs: one for 02:30 and one at 14:00 of every whole local day."""
    first = start.astimezone(ZoneInfo(zone)).date() + timedelta(days=1)
    return {str(first + timedelta(days=i)): 2 for i in range(days - 2)}


def wanted_points(made: list[datetime], zone: str) -> set[datetime]:
    """What has to stand, by the definition: the newest of each of the last days, weeks and months that have one."""
    standing: set[datetime] = set()
    for count, form in ((DAYS, "%Y-%m-%d"), (WEEKS, "%G-%V"), (MONTHS, "%Y-%m")):
        newest: dict[str, datetime] = {}
        for at in sorted(made):
            newest[at.astimezone(ZoneInfo(zone)).strftime(form)] = at
        standing.update([newest[period] for period in sorted(newest)][-count:])
    return standing


async def live_a_while(world: World, zone: str, start: datetime, days: int) -> None:
    """The worker's loops on one vault, from run to run; checked after each."""
    world.clock.at = start
    vault = await world.add_vault([await world.add_resource()], name="v")
    await add_policy(
        world, vault, pattern="FREQ=DAILY;BYHOUR=2;BYMINUTE=30", time_zone=zone, day_backups=DAYS, week_backups=WEEKS,
        month_backups=MONTHS,
    )  # fmt: skip
    await world.execute(
        "UPDATE policies SET patterns = patterns || '{FREQ=DAILY;BYHOUR=14;BYMINUTE=0}'::text[] WHERE project_id = %s",
        world.project,
    )
    made: list[datetime] = []
    runs: dict[str, int] = {}
    while world.clock.at < start + timedelta(days=days):
        await wait_for_next(world, vault)
        assert len(await tick(world)) == 1
        assert await tick(world) == []
        await world.commit(await world.claim("backup"))
        rows = await world.execute("SELECT created_at FROM backups WHERE vault_id = %s ORDER BY created_at", vault)
        made.append(rows[-1][0])  # type: ignore[arg-type]
        runs[day] = runs.get(day := str(made[-1].astimezone(ZoneInfo(zone)).date()), 0) + 1
        await expire(world)
        found = await world.execute(
            "SELECT created_at FROM backups WHERE vault_id = %s AND status = 'available'", vault
        )
        assert {row[0] for row in found} == wanted_points(made, zone)
        # What a delete's job does is tested elsewhere; here its rows only make room.
        await world.execute("DELETE FROM backups WHERE status = 'deleting'")
        await world.execute("DELETE FROM operation_logs")
    wanted = wanted_runs(zone, start, days)
    assert {day: runs.get(day, 0) for day in wanted} == wanted


async def test_the_weeks_round_a_change_of_the_clock(world: World) -> None:
    """Three weeks of Berlin's spring: two runs each local day, the points that stand are those that should."""
    await live_a_while(world, "Europe/Berlin", datetime(2027, 3, 15, tzinfo=UTC), 21)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("zone", ZONES)
async def test_a_year_in(world: World, zone: str) -> None:
    """2027 in one zone: 0 runs missed, 0 doubled, 0 restore points deleted early, 0 kept too long."""
    await live_a_while(world, zone, datetime(2027, 1, 1, tzinfo=UTC), 366)
