"""Which restore points of one resource a policy keeps, and why. Pure: no database, no clock.

Rules of contract/behaviour.md section 5. Retention touches automatic backups only. A time of expiry is fixed when the
backup is made; rules by count look at what is there. They keep the union of what each of them names: the newest n, and
the newest of each of the last n days, weeks, months and years *that hold a backup*, so that a resource whose backups
stopped keeps its last restore points for ever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

FAILED_MAX = 10  # contract: failed scheduled backups, the newest ten ...
FAILED_DAYS_MAX = 30  # ... for a month
# contract: at least a day between two full backups. Runs are an hour apart or more, so the slack lets none in too
# early, while a daily run that begins a second sooner than the day before still counts as a day later.
FULL_AGAIN_AFTER = timedelta(hours=23, minutes=30)


@dataclass(frozen=True, kw_only=True)
class RetentionRules:
    """Rules by count, and the time rule.

    max_backups    None: no such rule
    day_backups .. year_backups   0: no such rule
    duration_days  None: no such rule
    tz             whose days, weeks, months and years they are
    """

    max_backups: int | None = None
    day_backups: int = 0
    week_backups: int = 0
    month_backups: int = 0
    year_backups: int = 0
    duration_days: int | None = None
    tz: tzinfo = UTC

    @property
    def counting(self) -> bool:
        """Whether any rule by count is set; without one no backup is too many."""
        return self.max_backups is not None or bool(
            self.day_backups or self.week_backups or self.month_backups or self.year_backups
        )

    def expires_at(self, created_at: datetime) -> datetime | None:
        """What a backup made now carries for ever; None: no time rule."""
        return None if self.duration_days is None else created_at + timedelta(days=self.duration_days)


def shortens(before: RetentionRules, after: RetentionRules) -> bool:
    """Whether a restore point that stands under `before` may go sooner under `after`: what a locked vault refuses.

    A time rule touches only what is made from then on, so it shortens nothing that stands.
    """
    if not after.counting:
        return False
    if not before.counting:
        return True
    return any(
        (getattr(after, name) or 0) < (getattr(before, name) or 0)
        for name in ("max_backups", "day_backups", "week_backups", "month_backups", "year_backups")
    ) or (after.tz != before.tz)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One backup of the resource. restorable: False for a failed run, which is no restore point."""

    id: str
    created_at: datetime
    expires_at: datetime | None = None
    automatic: bool = True
    restorable: bool = True


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a point. reasons: why it is kept, or the one why it goes."""

    point: Point
    keep: bool
    reasons: tuple[str, ...]


def verdicts(points: Sequence[Point], rules: RetentionRules, now: datetime) -> tuple[Verdict, ...]:
    """Judge the points of one resource, newest first. The order in which they are given does not matter."""
    points = sorted(points, key=lambda point: (point.created_at, point.id), reverse=True)
    live = [point for point in points if point.expires_at is None or point.expires_at > now]
    counted = [point for point in live if point.automatic and point.restorable]
    failed = {point.id: i for i, point in enumerate(p for p in live if p.automatic and not p.restorable)}
    named = _named(counted, rules)
    found: list[Verdict] = []
    reasons: tuple[str, ...]
    for point in points:
        if point.expires_at is not None and point.expires_at <= now:
            keep, reasons = False, (f"expired {_day(point.expires_at)}",)
        elif not point.automatic:
            keep, reasons = True, ("made by hand",)
        elif point.id in failed:
            keep = failed[point.id] < FAILED_MAX
            reasons = (f"failed run {failed[point.id] + 1}, {FAILED_MAX} are kept",)
        elif not rules.counting:
            keep = True
            reasons = (f"until {_day(point.expires_at)}",) if point.expires_at else ("no rule ends it",)
        else:
            keep = point.id in named
            reasons = tuple(named[point.id]) if keep else ("no rule keeps it",)
        found.append(Verdict(point=point, keep=keep, reasons=reasons))
    return tuple(found)


def full_due(interval: int | None, incrementals: int, last_full_at: datetime | None, now: datetime) -> bool:
    """Whether the next scheduled backup of a resource is to be full.

    interval: incremental ones between two full ones; None or -1: never after the first, which is full by itself.
    incrementals: scheduled ones since the last full one. last_full_at None: none is known, as after a rebuild.
    """
    if interval is None or interval < 0 or incrementals < interval:
        return False
    return last_full_at is None or now - last_full_at >= FULL_AGAIN_AFTER


def _named(points: Sequence[Point], rules: RetentionRules) -> dict[str, list[str]]:
    """Point -> reasons, for those that some rule by count names. Points come newest first."""
    reasons: dict[str, list[str]] = {}
    if rules.max_backups is not None:
        for i, point in enumerate(points[: rules.max_backups]):
            reasons.setdefault(point.id, []).append(f"newest {i + 1} of {rules.max_backups}")
    periods: tuple[tuple[str, int, Callable[[datetime], str]], ...] = (
        ("day", rules.day_backups, lambda at: f"{at:%Y-%m-%d}"),
        ("week", rules.week_backups, lambda at: "{}-W{:02}".format(*at.isocalendar())),
        ("month", rules.month_backups, lambda at: f"{at:%Y-%m}"),
        ("year", rules.year_backups, lambda at: f"{at:%Y}"),
    )
    local = [(point, point.created_at.astimezone(rules.tz)) for point in points]
    for word, count, period_of in periods:
        seen: set[str] = set()
        for point, at in local if count else ():
            period = period_of(at)
            if period in seen:
                continue
            if len(seen) == count:
                break
            seen.add(period)
            reasons.setdefault(point.id, []).append(f"{word} {period}, {len(seen)} of {count}")
    return reasons


def _day(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"
