"""When a policy fires: the grammar, the spacing, and the changes of the clock."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from math import lcm
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.base.errors import InvalidRequest
from strongroom.control.schedule import (
    SPACING_MINUTES_MIN,
    WEEKDAYS,
    Schedule,
    firings,
    fixed_zone,
    named_zone,
    next_fire_at,
    schedule_of,
)

MONDAY = datetime(2026, 1, 5, 7, 30, tzinfo=UTC)
HOURLY = f"FREQ=DAILY;BYHOUR={','.join(map(str, range(24)))};BYMINUTE=30"


def schedule(*patterns: str, zone: str = "UTC", anchor_at: datetime = MONDAY) -> Schedule:
    return schedule_of(patterns, anchor_at=anchor_at, tz=named_zone(zone, "zone"))


def local(found: Sequence[datetime], zone: str) -> list[str]:
    return [f"{at.astimezone(ZoneInfo(zone)):%d %H:%M%z}" for at in found]


# --- the grammar ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("FREQ=WEEKLY;BYDAY=TU,SU;BYHOUR=06;BYMINUTE=00", ["06 06:00", "11 06:00", "13 06:00"]),
        ("FREQ=DAILY;INTERVAL=1;BYHOUR=23;BYMINUTE=59", ["05 23:59", "06 23:59", "07 23:59"]),
        ("FREQ=DAILY;INTERVAL=3;BYHOUR=1,13;BYMINUTE=5", ["05 13:05", "08 01:05", "08 13:05"]),
        ("BYMINUTE=0;BYHOUR=8;FREQ=DAILY", ["05 08:00", "06 08:00", "07 08:00"]),
        ("FREQ=WEEKLY;INTERVAL=1;BYDAY=MO;BYHOUR=7;BYMINUTE=30", ["12 07:30", "19 07:30", "26 07:30"]),
    ],
)
def test_a_rule_fires_when_it_says(pattern: str, expected: list[str]) -> None:
    """Days, hours and minutes of the contract's grammar, leading zeros and any order of the parts included."""
    found, at, made = [], MONDAY, schedule(pattern)
    for _ in range(3):
        at = next_fire_at(made, at)
        found.append(f"{at:%d %H:%M}")
    assert found == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "FREQ=DAILY",
        "FREQ=DAILY;BYHOUR=1",
        "FREQ=HOURLY;BYHOUR=1;BYMINUTE=0",
        "FREQ=MONTHLY;BYMONTHDAY=1;BYHOUR=1;BYMINUTE=0",
        "FREQ=DAILY;BYHOUR=24;BYMINUTE=0",
        "FREQ=DAILY;BYHOUR=1;BYMINUTE=60",
        "FREQ=DAILY;BYHOUR=-1;BYMINUTE=0",
        "FREQ=DAILY;BYHOUR=1,1;BYMINUTE=0",
        "FREQ=DAILY;BYHOUR=;BYMINUTE=0",
        "FREQ=DAILY;BYHOUR=١;BYMINUTE=0",
        "FREQ=DAILY;INTERVAL=0;BYHOUR=1;BYMINUTE=0",
        "FREQ=DAILY;INTERVAL=31;BYHOUR=1;BYMINUTE=0",
        "FREQ=DAILY;INTERVAL=1,2;BYHOUR=1;BYMINUTE=0",
        "FREQ=DAILY;BYDAY=MO;BYHOUR=1;BYMINUTE=0",
        "FREQ=WEEKLY;BYHOUR=1;BYMINUTE=0",
        "FREQ=WEEKLY;BYDAY=MO,MO;BYHOUR=1;BYMINUTE=0",
        "FREQ=WEEKLY;BYDAY=1MO;BYHOUR=1;BYMINUTE=0",
        "FREQ=WEEKLY;BYDAY=MO;INTERVAL=2;BYHOUR=1;BYMINUTE=0",
        "FREQ=DAILY;BYHOUR=1;BYMINUTE=0;",
        "FREQ=DAILY;BYHOUR=1;BYMINUTE=0;COUNT=3",
        "FREQ=DAILY;FREQ=DAILY;BYHOUR=1;BYMINUTE=0",
        "RRULE:FREQ=DAILY;BYHOUR=1;BYMINUTE=0",
        "freq=daily;byhour=1;byminute=0",
        "FREQ=DAILY;BYHOUR=1;BYMINUTE=0" + " " * 400,
    ],
)
def test_a_bad_rule_is_refused_with_the_member_and_what_would_do(pattern: str) -> None:
    """Everything outside the contract's subset is InvalidRequest, which is 9900."""
    with pytest.raises(InvalidRequest, match=r"Invalid pattern: .{20}"):
        schedule(pattern)


def test_the_number_of_rules_is_limited() -> None:
    """None, or more than 24, are refused; 24 are taken."""
    rules = [f"FREQ=DAILY;INTERVAL=1;BYHOUR={hour};BYMINUTE=0" for hour in range(24)]
    assert len(schedule(*rules).rules) == 24
    for wrong in ([], [*rules, rules[0]]):
        with pytest.raises(InvalidRequest, match="1 to 24"):
            schedule(*wrong)


@pytest.mark.parametrize(
    "patterns",
    [
        ("FREQ=DAILY;BYHOUR=1;BYMINUTE=0,30",),
        ("FREQ=DAILY;BYHOUR=0,23;BYMINUTE=0,59",),
        ("FREQ=DAILY;BYHOUR=1;BYMINUTE=0", "FREQ=WEEKLY;BYDAY=SU;BYHOUR=1;BYMINUTE=59"),
        ("FREQ=WEEKLY;BYDAY=MO;BYHOUR=23;BYMINUTE=30", "FREQ=WEEKLY;BYDAY=TU;BYHOUR=0;BYMINUTE=0"),
        ("FREQ=WEEKLY;BYDAY=SU;BYHOUR=23;BYMINUTE=30", "FREQ=WEEKLY;BYDAY=MO;BYHOUR=0;BYMINUTE=29"),
        ("FREQ=DAILY;INTERVAL=4;BYHOUR=1;BYMINUTE=0", "FREQ=DAILY;INTERVAL=6;BYHOUR=1;BYMINUTE=30"),
        ("FREQ=DAILY;INTERVAL=2;BYHOUR=23;BYMINUTE=30", "FREQ=DAILY;INTERVAL=3;BYHOUR=0;BYMINUTE=0"),
        ("FREQ=DAILY;INTERVAL=14;BYHOUR=1;BYMINUTE=0", "FREQ=WEEKLY;BYDAY=MO;BYHOUR=1;BYMINUTE=30"),
    ],
)
def test_runs_closer_than_an_hour_are_refused(patterns: tuple[str, ...]) -> None:
    """Within a rule, between rules, over midnight, and on the one day years ahead when two intervals meet."""
    with pytest.raises(InvalidRequest, match="closer than 60 minutes"):
        schedule(*patterns)


@pytest.mark.parametrize(
    "patterns",
    [
        ("FREQ=WEEKLY;BYDAY=MO;BYHOUR=1;BYMINUTE=0", "FREQ=WEEKLY;BYDAY=TU;BYHOUR=1;BYMINUTE=30"),
        ("FREQ=WEEKLY;BYDAY=TU;BYHOUR=23;BYMINUTE=30", "FREQ=WEEKLY;BYDAY=TU;BYHOUR=0;BYMINUTE=0"),
        ("FREQ=DAILY;INTERVAL=4;BYHOUR=23;BYMINUTE=30", "FREQ=DAILY;INTERVAL=6;BYHOUR=0;BYMINUTE=0"),
        ("FREQ=DAILY;INTERVAL=14;BYHOUR=1;BYMINUTE=0", "FREQ=WEEKLY;BYDAY=TU;BYHOUR=1;BYMINUTE=30"),
        ("FREQ=DAILY;BYHOUR=1;BYMINUTE=0", "FREQ=DAILY;BYHOUR=1;BYMINUTE=0"),
        (HOURLY,),
    ],
)
def test_runs_that_never_meet_may_have_close_times(patterns: tuple[str, ...]) -> None:
    """Times an hour apart or more, on days that never coincide, or the very same time: all are taken."""
    schedule(*patterns)


@settings(max_examples=300, deadline=None)
@given(
    rules=st.lists(
        st.tuples(
            st.one_of(st.integers(1, 6), st.sets(st.sampled_from(WEEKDAYS), min_size=1)),
            st.integers(0, 3).map(lambda i: (0, 1, 22, 23)[i]),
            st.sampled_from((0, 20, 59)),
        ),
        min_size=2,
        max_size=3,
    )
)
def test_spacing_agrees_with_a_count_of_every_day(rules: list[tuple[int | set[str], int, int]]) -> None:
    """The congruences say what a walk over a whole period of all the rules finds."""
    patterns = [
        (f"FREQ=DAILY;INTERVAL={days}" if isinstance(days, int) else f"FREQ=WEEKLY;BYDAY={','.join(sorted(days))}")
        + f";BYHOUR={hour};BYMINUTE={minute}"
        for days, hour, minute in rules
    ]
    walked = [schedule(pattern) for pattern in patterns]
    start = datetime(2026, 1, 5, tzinfo=UTC)
    period = timedelta(days=lcm(7, *(days for days, _, _ in rules if isinstance(days, int))) + 1)
    runs = sorted({at for one in walked for at in firings(one, start, start + period)})
    close = any(b - a < timedelta(minutes=SPACING_MINUTES_MIN) for a, b in pairwise(runs))
    try:
        schedule(*patterns)
        assert not close, patterns
    except InvalidRequest:
        assert close, patterns


@settings(max_examples=100, deadline=None)
@given(
    days=st.one_of(st.integers(1, 30), st.sets(st.sampled_from(WEEKDAYS), min_size=1)),
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=6),
    minute=st.integers(0, 59),
)
def test_in_utc_it_agrees_with_dateutil(days: int | set[str], hours: set[int], minute: int) -> None:
    """An independent library computes the same runs for the whole grammar."""
    pattern = (
        f"FREQ=DAILY;INTERVAL={days}" if isinstance(days, int) else f"FREQ=WEEKLY;BYDAY={','.join(days)}"
    ) + f";BYHOUR={','.join(map(str, hours))};BYMINUTE={minute}"
    theirs = rrulestr(f"{pattern};BYSECOND=0", dtstart=MONDAY.replace(hour=0, minute=0))
    expected = [at for at in islice(theirs, 60) if at > MONDAY]
    found, at, made = [], MONDAY, schedule(pattern)
    for _ in expected:
        at = next_fire_at(made, at)
        found.append(at)
    assert found == expected
    assert list(firings(made, MONDAY + timedelta(seconds=1), expected[-1])) == expected[:-1]


# --- changes of the clock ---------------------------------------------------------------------------------------------


def test_a_skipped_time_fires_once_and_a_doubled_one_once() -> None:
    """Berlin, 02:30: on 29 March at 03:30 because there is no 02:30, on 25 October at the first of the two."""
    made = schedule("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", zone="Europe/Berlin")
    spring = firings(made, datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 3, 31, tzinfo=UTC))
    assert local(list(spring), "Europe/Berlin") == ["28 02:30+0100", "29 03:30+0200", "30 02:30+0200"]
    autumn = firings(made, datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 27, tzinfo=UTC))
    assert local(list(autumn), "Europe/Berlin") == ["24 02:30+0200", "25 02:30+0200", "26 02:30+0100"]


def test_a_skipped_time_that_lands_on_another_run_is_one_run() -> None:
    """02:30 moves to 03:30, where the same policy fires anyway: one run, not two."""
    made = schedule("FREQ=DAILY;BYHOUR=2,3;BYMINUTE=30", zone="Europe/Berlin")
    found = firings(made, datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 3, 30, tzinfo=UTC))
    assert local(list(found), "Europe/Berlin") == ["29 03:30+0200"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"])
def test_an_hourly_rule_fires_every_hour_that_passes(zone: str) -> None:
    """All 24 hours: 8760 runs in 2026, each an hour after the one before, whatever the clock on the wall does."""
    made = schedule(HOURLY, zone=zone)
    found = list(firings(made, datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)))
    assert len(found) == 365 * 24
    assert {b - a for a, b in pairwise(found)} == {timedelta(hours=1)}
    assert found[0].astimezone(ZoneInfo(zone)).minute in (30, 0)  # Lord Howe's summer time is half an hour
    assert [at for at in found if at.astimezone(ZoneInfo(zone)).minute == 30]


def test_the_interval_counts_local_days_from_the_anchor_for_ever() -> None:
    """Every third day stays every third day over years, over a change of the clock, and whoever asks when."""
    anchor_at = datetime(2026, 3, 27, 23, 30, tzinfo=UTC)  # the 28th in Berlin
    made = schedule("FREQ=DAILY;INTERVAL=3;BYHOUR=0;BYMINUTE=15", zone="Europe/Berlin", anchor_at=anchor_at)
    found = list(firings(made, anchor_at, datetime(2031, 1, 1, tzinfo=UTC)))
    days = [at.astimezone(ZoneInfo("Europe/Berlin")).date() for at in found]
    assert days[0] == date(2026, 3, 31)  # 00:15 of the 28th has passed
    assert {b - a for a, b in pairwise(days)} == {timedelta(days=3)}
    assert next_fire_at(made, datetime(2030, 6, 1, tzinfo=UTC)) in found


def test_a_day_that_a_zone_skipped_is_not_a_lost_run() -> None:
    """Samoa had no 30 December 2011: the run of that day and that of the next fall on one instant."""
    made = schedule("FREQ=DAILY;BYHOUR=2;BYMINUTE=0", zone="Pacific/Apia")
    found = firings(made, datetime(2011, 12, 28, tzinfo=UTC), datetime(2012, 1, 2, tzinfo=UTC))
    assert local(list(found), "Pacific/Apia") == ["28 02:00-1000", "29 02:00-1000", "31 02:00+1400", "01 02:00+1400",
                                                  "02 02:00+1400"]  # fmt: skip


# --- zones ------------------------------------------------------------------------------------------------------------


def test_zones_are_named_or_fixed() -> None:
    """`UTC+08:00` as the contract writes it, names of the time zone database, and a refusal for anything else."""
    assert fixed_zone("UTC-03:30", "timezone").utcoffset(None) == timedelta(hours=-3, minutes=-30)
    assert named_zone("UTC", "z") is UTC
    for wrong in ("UTC+8", "GMT+08:00", "UTC+15:00", "UTC+08:60", "+08:00", "", "UTC+08:00\n"):
        with pytest.raises(InvalidRequest, match="UTC"):
            fixed_zone(wrong, "timezone")
    for wrong in ("Mars/Base", "", "Europe", "../../etc/passwd", "/etc/localtime", "europe/berlin"):
        with pytest.raises(InvalidRequest, match="Europe/Berlin"):
            named_zone(wrong, "time_zone")
