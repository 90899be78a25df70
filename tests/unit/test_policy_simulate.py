"""`policy simulate` without a server: the forecast and what the command prints."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from strongroom.cli.main import run
from strongroom.control.forecast import count_at, forecast, standing_at
from strongroom.control.retention import RetentionRules
from strongroom.control.schedule import schedule_of

DAILY = "FREQ=DAILY;BYHOUR=2;BYMINUTE=30"
START = datetime(2026, 1, 1, tzinfo=UTC)


def simulate(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert run(["policy", "simulate", *argv]) == code
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(simulate(capsys, *argv, "--json"))


def test_a_forecast_lives_day_by_day() -> None:
    """A point goes when a later run makes it one too many; on any day stands what stood then."""
    made = schedule_of([DAILY], anchor_at=START, tz=UTC)
    rules = RetentionRules(max_backups=3)
    lives = forecast(made, rules, START, START + timedelta(days=10), full_interval=2)
    assert [life.full for life in lives] == [True, False, False, True, False, False, True, False, False, True]
    assert [life.gone_at and life.gone_at.day for life in lives] == [4, 5, 6, 7, 8, 9, 10, None, None, None]
    for day in range(1, 10):
        at = START + timedelta(days=day, hours=-1)
        standing = standing_at(lives, rules, at)
        assert [verdict.point.created_at.day for verdict in standing] == list(range(day, max(0, day - 3), -1))
        assert count_at(lives, at) == len(standing)


def test_a_time_rule_ends_each_point_by_itself() -> None:
    """days=2: each stands two days to the minute, also behind the last run."""
    lives = forecast(
        schedule_of([DAILY], anchor_at=START, tz=UTC), RetentionRules(duration_days=2), START, START + timedelta(days=5)
    )
    assert [(life.gone_at or START) - life.point.created_at for life in lives[:3]] == [timedelta(days=2)] * 3
    assert [life.gone_at for life in lives[3:]] == [None, None]


def test_the_command_needs_no_server_and_tells_why(capsys: pytest.CaptureFixture[str]) -> None:
    """With --rule alone nothing is asked; the table has months, the day, and the reasons."""
    out = simulate(
        capsys, "--rule", DAILY, "--retention", "max=2,month=3", "--from", "2026-01-01", "--on", "2026-03-15"
    )
    assert "365 runs from 2026-01-01 to 2026-12-31. Keeps max=2,month=3." in out
    assert "Restore points at the end of 2026-03-15: 4" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("Sun", "Sat", "Wed"))]
    assert [(row[1], row[4:7]) for row in rows] == [
        ("2026-03-15", ["newest", "1", "of"]),
        ("2026-03-14", ["newest", "2", "of"]),
        ("2026-02-28", ["month", "2026-02,", "2"]),
        ("2026-01-31", ["month", "2026-01,", "3"]),
    ]


def test_json_has_the_life_of_every_point(capsys: pytest.CaptureFixture[str]) -> None:
    """Any other day can be read from created_at and gone_at, and agrees with asking for that day."""
    options = ("--rule", DAILY, "--retention", "day=3,week=2", "--time-zone", "Europe/Berlin", "--from", "2026-03-20")
    whole = document(capsys, *options, "--days", "30")
    assert len(whole["points"]) == 30
    assert whole["trigger"]["properties"] == {"pattern": [DAILY], "time_zone": "Europe/Berlin"}
    for day in ("2026-03-20", "2026-03-29", "2026-04-02", "2026-04-18"):
        end = datetime.fromisoformat(f"{day}T22:00:00").isoformat() + ".000000"  # midnight there, in summer
        standing = [
            point["created_at"]
            for point in whole["points"]
            if point["created_at"] < end and (point["gone_at"] is None or point["gone_at"] >= end)
        ]
        asked = document(capsys, *options, "--days", "30", "--on", day)["on"]
        assert asked["date"] == day
        assert sorted(point["created_at"] for point in asked["points"]) == standing
        assert all(point["reasons"] for point in asked["points"])


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ([], 2),
        (["--rule", DAILY, "--retention", "max"], 2),
        (["--rule", DAILY, "--retention", "max=1,max=2"], 2),
        (["--rule", DAILY, "--from", "2026-01-01", "--on", "2027-01-01"], 2),
        (["--rule", DAILY, "--days", "0"], 2),
        (["--rule", "FREQ=HOURLY;BYHOUR=1;BYMINUTE=0"], 1),
        (["--rule", DAILY, "--time-zone", "Mars"], 1),
        (["--rule", DAILY, "--retention", "max=1,days=2"], 1),
        (["--rule", DAILY, "--full-every", "101"], 1),
    ],
)
def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], argv: list[str], code: int) -> None:
    """Usage is 2; what the service would refuse is 1, with the service's own sentence."""
    assert simulate(capsys, *argv, code=code) == ""


def test_a_season_of_hours_ends_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    """2880 runs under rules by count take seconds, not minutes (the timeout of a test is the bound)."""
    hourly = f"FREQ=DAILY;BYHOUR={','.join(map(str, range(24)))};BYMINUTE=0"
    found = document(
        capsys, "--rule", hourly, "--retention", "max=24,day=30,week=52", "--days", "120", "--from", "2026-01-01"
    )
    assert len(found["points"]) == 120 * 24
    assert len(found["on"]["points"]) == 24 + 29 + 13  # hours of the last day, 29 days before it, weeks before those
