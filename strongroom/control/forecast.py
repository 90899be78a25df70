"""What a policy will have made and kept: its runs of a time to come, and when each goes. Pure: no database, no clock.

The same functions decide as in the service (schedule.py, retention.py); here nothing fails, nothing is made by hand,
and a run ends at the moment it begins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from strongroom.control.retention import Point, RetentionRules, Verdict, full_due, verdicts
from strongroom.control.schedule import Schedule, firings


@dataclass(frozen=True, kw_only=True)
class Life:
    """One restore point to come. gone_at None: it stands at the end of the forecast. full: read whole."""

    point: Point
    full: bool
    gone_at: datetime | None = None


def forecast(
    schedule: Schedule, rules: RetentionRules, start: datetime, end: datetime, *, full_interval: int | None = None
) -> tuple[Life, ...]:
    """Every restore point made in start <= t < end, oldest first. The first is full."""
    gone: dict[str, datetime] = {}
    made: list[Life] = []
    standing: list[Point] = []
    incrementals, last_full_at = 0, None
    for at in firings(schedule, start, end):
        full = last_full_at is None or full_due(full_interval, incrementals, last_full_at, at)
        incrementals, last_full_at = (0, at) if full else (incrementals + 1, last_full_at)
        point = Point(id=f"{len(made):06}", created_at=at, expires_at=rules.expires_at(at))
        made.append(Life(point=point, full=full))
        if not rules.counting:
            continue
        judged = verdicts([*standing, point], rules, at)
        gone.update({verdict.point.id: at for verdict in judged if not verdict.keep})
        standing = [verdict.point for verdict in judged if verdict.keep]
    return tuple(replace(life, gone_at=_within(gone.get(life.point.id, life.point.expires_at), end)) for life in made)


def standing_at(lives: Iterable[Life], rules: RetentionRules, at: datetime) -> tuple[Verdict, ...]:
    """The restore points of a moment, newest first, each with the reasons why it is there."""
    points = [
        life.point for life in lives if life.point.created_at <= at and (life.gone_at is None or life.gone_at > at)
    ]
    return tuple(verdict for verdict in verdicts(points, rules, at) if verdict.keep)


def count_at(lives: Sequence[Life], at: datetime) -> int:
    """How many restore points stand at a moment."""
    return sum(life.point.created_at <= at and (life.gone_at is None or life.gone_at > at) for life in lives)


def _within(at: datetime | None, end: datetime) -> datetime | None:
    return at if at is not None and at < end else None
