"""Which restore points a policy keeps, and why: golden files, and laws that hold for any points and rules."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.control.retention import FAILED_MAX, Point, RetentionRules, full_due, shortens, verdicts
from strongroom.control.schedule import firings, fixed_zone, named_zone, schedule_of

GOLDEN = Path(__file__).parent.parent / "golden" / "retention"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def daily(days: int, *, hours: int = 24, until: datetime = NOW, name: str = "p") -> list[Point]:
    return [
        Point(id=f"{name}{i:04}", created_at=until - timedelta(hours=i * hours, minutes=5))
        for i in range(days * 24 // hours)
    ]


# --- golden files -----------------------------------------------------------------------------------------------------

CASES = {
    "count": (daily(10), RetentionRules(max_backups=3)),
    "count_and_days": (daily(10, hours=8), RetentionRules(max_backups=4, day_backups=5)),
    "long_term": (
        daily(500),
        RetentionRules(max_backups=2, day_backups=7, week_backups=4, month_backups=12, year_backups=2),
    ),
    "zone_east": (daily(5, hours=6), RetentionRules(day_backups=3, tz=fixed_zone("UTC+08:00", "z"))),
    "zone_west": (daily(5, hours=6), RetentionRules(day_backups=3, tz=fixed_zone("UTC-11:00", "z"))),
    "named_zone_over_a_change": (
        daily(5, hours=6, until=datetime(2026, 3, 31, 1, tzinfo=UTC)),
        RetentionRules(day_backups=4, tz=named_zone("Europe/Berlin", "z")),
    ),
    "weeks_at_the_end_of_a_year": (
        daily(20, until=datetime(2027, 1, 8, 12, tzinfo=UTC)),
        RetentionRules(week_backups=3, year_backups=2),
    ),
    "after_an_outage": (
        [*daily(3), *daily(3, until=NOW - timedelta(days=90), name="old")],
        RetentionRules(day_backups=5, month_backups=2),
    ),
    "time": (
        [
            Point(id=point.id, created_at=point.created_at, expires_at=point.created_at + timedelta(days=3))
            for point in daily(6)
        ],
        RetentionRules(duration_days=3),
    ),
    "time_became_count": (
        [
            Point(id=point.id, created_at=point.created_at, expires_at=point.created_at + timedelta(days=3))
            for point in daily(6)
        ],
        RetentionRules(max_backups=2),
    ),
    "for_ever": (daily(4), RetentionRules()),
    "by_hand_and_failed": (
        [
            *daily(4),
            Point(id="manual", created_at=NOW - timedelta(days=99), automatic=False),
            *(Point(id=f"f{i:02}", created_at=NOW - timedelta(hours=i), restorable=False) for i in range(12)),
        ],
        RetentionRules(max_backups=2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_and_why_is_as_written_down(name: str) -> None:
    """Keep, expire and every reason equal the golden file; STRONGROOM_GOLDEN=write makes it anew for review."""
    points, rules = CASES[name]
    lines = [
        [verdict.point.id, f"{verdict.point.created_at:%Y-%m-%d %H:%M}", "keep" if verdict.keep else "expire",
         *verdict.reasons]
        for verdict in verdicts(points, rules, NOW if "year" not in name else datetime(2027, 1, 8, 12, tzinfo=UTC))
    ]  # fmt: skip
    text = "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("STRONGROOM_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


# --- laws -------------------------------------------------------------------------------------------------------------

points_of = st.lists(
    st.builds(
        lambda minutes, automatic, life: (minutes, automatic, life),
        st.integers(1, 600 * 24 * 60),
        st.booleans(),
        st.none() | st.integers(1, 400),
    ),
    max_size=60,
).map(
    lambda rows: [
        Point(
            id=f"{i:03}",
            created_at=NOW - timedelta(minutes=minutes),
            automatic=automatic,
            expires_at=None if life is None else NOW - timedelta(minutes=minutes) + timedelta(days=life),
        )
        for i, (minutes, automatic, life) in enumerate(rows)
    ]
)
rules_of = st.builds(
    RetentionRules,
    max_backups=st.none() | st.integers(1, 30),
    day_backups=st.integers(0, 20),
    week_backups=st.integers(0, 10),
    month_backups=st.integers(0, 10),
    year_backups=st.integers(0, 3),
    tz=st.integers(-12, 14).map(lambda hours: fixed_zone(f"UTC{hours:+03}:00", "z")),
)


def kept(points: list[Point], rules: RetentionRules) -> set[str]:
    return {verdict.point.id for verdict in verdicts(points, rules, NOW) if verdict.keep}


@settings(max_examples=300, deadline=None)
@given(points=points_of, rules=rules_of)
def test_laws_of_retention(points: list[Point], rules: RetentionRules) -> None:
    """Whatever the points and rules: one verdict a point with a reason, nothing made by hand goes before its time, the
    newest automatic one stays, judging the kept ones again keeps them all, and the order of the input is nothing."""
    found = verdicts(points, rules, NOW)
    assert sorted(verdict.point.id for verdict in found) == sorted(point.id for point in points)
    assert all(verdict.reasons and all(verdict.reasons) for verdict in found)
    assert found == verdicts(points[::-1], rules, NOW)
    live = [point for point in points if point.expires_at is None or point.expires_at > NOW]
    keep = kept(points, rules)
    assert keep <= {point.id for point in live}
    assert {point.id for point in live if not point.automatic} <= keep
    automatic = sorted((point for point in live if point.automatic), key=lambda p: (p.created_at, p.id))
    if automatic:
        assert automatic[-1].id in keep
    assert kept([point for point in points if point.id in keep], rules) == keep


@settings(max_examples=200, deadline=None)
@given(points=points_of, rules=rules_of)
def test_rules_by_count_keep_the_union_of_what_each_keeps(points: list[Point], rules: RetentionRules) -> None:
    """max_backups, days, weeks, months and years each alone, put together, are all of them at once."""
    alone = [
        RetentionRules(**{name: value, "tz": rules.tz})  # type: ignore[arg-type]
        for name in ("max_backups", "day_backups", "week_backups", "month_backups", "year_backups")
        if (value := getattr(rules, name))
    ]
    together = set().union(*(kept(points, one) for one in alone)) if alone else kept(points, rules)
    assert kept(points, rules) == together


@settings(max_examples=300, deadline=None)
@given(points=points_of, before=rules_of, after=rules_of)
def test_rules_that_do_not_shorten_keep_all_that_stands(
    points: list[Point], before: RetentionRules, after: RetentionRules
) -> None:
    """Where `shortens` says no, nothing that the old rules keep goes under the new ones."""
    if not shortens(before, after):
        assert kept(points, before) <= kept(points, after)
    assert not shortens(before, before) or not before.counting
    assert not shortens(before, RetentionRules(duration_days=1))


def test_nothing_goes_when_no_rule_is_set() -> None:
    """-1 everywhere keeps for ever."""
    assert kept(daily(700), RetentionRules()) == {point.id for point in daily(700)}


def test_failed_runs_take_no_restore_points_place() -> None:
    """A policy whose last hundred runs failed keeps its last seven restore points, and the newest ten failures."""
    failed = [Point(id=f"f{i}", created_at=NOW - timedelta(hours=i), restorable=False) for i in range(100)]
    good = daily(9, until=NOW - timedelta(days=10))
    keep = kept([*failed, *good], RetentionRules(max_backups=7))
    assert keep == {point.id for point in [*failed[:FAILED_MAX], *good[:7]]}


# --- full backups -----------------------------------------------------------------------------------------------------


def test_a_full_backup_comes_after_so_many_incremental_ones() -> None:
    """Interval 3: full, 3 incremental, full. -1 and absent: never again. 0: each, but at most one a day."""

    def run(interval: int | None, hours: int, runs: int) -> str:
        last_full, since, kinds = None, 0, ""
        for i in range(runs):
            now = NOW + timedelta(hours=hours * i, milliseconds=-i)  # a run may begin a little sooner than the last
            if full_due(interval, since, last_full, now) or i == 0:
                kinds, since, last_full = kinds + "F", 0, now
            else:
                kinds, since = kinds + "i", since + 1
        return kinds

    assert run(3, 24, 9) == "FiiiFiiiF"
    assert run(-1, 24, 5) == run(None, 24, 5) == "Fiiii"
    assert run(0, 24, 4) == "FFFF"
    assert run(0, 8, 7) == "FiiFiiF"
    assert run(1, 24, 5) == "FiFiF"
    assert run(2, 1, 30).count("F") == 2


# --- a year -----------------------------------------------------------------------------------------------------------


def test_a_year_by_hand() -> None:
    """A daily policy with 7 days, 4 weeks, 12 months: on 1 January what stands is what a person would count."""
    zone = named_zone("Europe/Berlin", "z")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = schedule_of(["FREQ=DAILY;BYHOUR=2;BYMINUTE=0"], anchor_at=start, tz=zone)
    rules = RetentionRules(day_backups=7, week_backups=4, month_backups=12, tz=zone)
    standing: list[Point] = []
    for at in firings(made, start, start + timedelta(days=365)):
        judged = verdicts([*standing, Point(id=at.isoformat(), created_at=at)], rules, at)
        standing = [verdict.point for verdict in judged if verdict.keep]
    days = sorted(f"{point.created_at.astimezone(zone):%m-%d}" for point in standing)
    # Months 1 to 11 by their last day, the last seven days of December, and the Sundays of the weeks before.
    assert days == [
        *("01-31", "02-28", "03-31", "04-30", "05-31", "06-30", "07-31", "08-31", "09-30", "10-31", "11-30"),
        *("12-13", "12-20", "12-25", "12-26", "12-27", "12-28", "12-29", "12-30", "12-31"),
    ]
