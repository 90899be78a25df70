"""A year of schedules in twenty time zones, against a count that knows nothing of the schedule's code."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from strongroom.control.schedule import firings, named_zone, next_fire_at, schedule_of

# Forward and back, midnight, half an hour, Ramadan.
SHORT = ("Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Africa/Casablanca")
ZONES = (
    "UTC", "Europe/London", "Europe/Madrid", "Europe/Dublin", "Europe/Istanbul", "America/New_York",
    "America/Los_Angeles", "America/St_Johns", "America/Santiago", "America/Sao_Paulo",
    "Africa/Cairo", "Asia/Kolkata", "Asia/Beirut", "Asia/Tokyo", "Australia/Sydney",
    "Pacific/Auckland", "Pacific/Chatham",
)  # fmt: skip
START, END = datetime(2027, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def clock_of(zone: str) -> dict[str, list[datetime]]:
    """Local `day hour:minute` -> the instants at which a clock on the wall there shows it, minute by minute."""
    shown: dict[str, list[datetime]] = {}
    tz, at = ZoneInfo(zone), START - timedelta(days=2)
    while at < END + timedelta(days=2):
        shown.setdefault(f"{at.astimezone(tz):%Y-%m-%d %H:%M}", []).append(at)
        at += 15 * MINUTE
    return shown


@pytest.mark.parametrize("zone", [*SHORT, *(pytest.param(zone, marks=pytest.mark.long) for zone in ZONES)])
def test_no_run_of_a_year_is_missed_or_doubled(zone: str) -> None:
    """Every wall time of the rules fires at the first instant the wall shows it; one that it never shows fires once,
    within the hours of that night; and walking from run to run finds the same as listing them."""
    times = ("00:00", "01:15", "02:30", "14:00")
    patterns = [f"FREQ=DAILY;BYHOUR={text[:2]};BYMINUTE={text[3:]}" for text in times]
    patterns.append("FREQ=WEEKLY;BYDAY=SU;BYHOUR=22;BYMINUTE=45")
    made = schedule_of(patterns, anchor_at=START, tz=named_zone(zone, "zone"))
    found = list(firings(made, START, END))
    assert found == sorted(set(found))

    shown, expected, skipped = clock_of(zone), set(), []
    day = (START - timedelta(days=2)).date()
    while day < (END + timedelta(days=2)).date():
        for text in (*times, *(["22:45"] if day.weekday() == 6 else [])):
            instants = shown.get(f"{day} {text}")
            if instants:
                expected.add(instants[0])
            else:
                skipped.append(datetime.combine(day, time.fromisoformat(text)))
        day += timedelta(days=1)
    extra = [at for at in found if at not in expected]
    missed = [at for at in expected if START <= at < END and at not in found]
    assert missed == []
    inside = [wall for wall in skipped if START.date() <= wall.date() < END.date()]
    # A skipped wall time is a run of its own, unless it lands on another one.
    assert len(extra) <= len(inside)
    for wall in inside:
        near = [at for at in found if wall < at.astimezone(ZoneInfo(zone)).replace(tzinfo=None) <= wall + 61 * MINUTE]
        assert near, (zone, wall)

    walked, at = [], START - MINUTE
    while (at := next_fire_at(made, at)) < END:
        walked.append(at)
    assert walked == found
