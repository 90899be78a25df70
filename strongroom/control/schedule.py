"""When a policy fires: the contract's subset of iCalendar rules, in a time zone. Pure: no database, no clock.

    FREQ=WEEKLY;BYDAY=MO,WE;BYHOUR=2;BYMINUTE=30       on these days of the week
    FREQ=DAILY;INTERVAL=3;BYHOUR=2,14;BYMINUTE=0       every third day, counted from the schedule's anchor

Rules speak of the wall clock. When the clocks change, a wall time that is skipped fires once, as late as the clock
jumped (02:30 as 03:30), and one that comes twice fires the first time only. A rule that names all 24 hours is not about
the wall clock: it fires every hour that passes. Parts may stand in any order; nothing else of RFC 5545 is taken.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import cache
from math import gcd
from zoneinfo import ZoneInfo, available_timezones

from strongroom.base.errors import InvalidRequest

RULES_MAX = 24  # contract
RULE_LENGTH_MAX = 300  # all 24 hours, all weekdays and every word of the grammar come to less than 200
INTERVAL_DAYS_MAX = 30  # contract
SPACING_MINUTES_MIN = 60  # contract: no two runs are closer
DAY_MINUTES = 24 * 60
WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")

_OFFSET = re.compile(r"UTC([+-])(\d\d):(\d\d)")
_NUMBER = re.compile(r"\d{1,2}")
# No rule is silent for longer than its interval; a day of margin at both ends for what a changing clock moves.
_WINDOWS = (timedelta(days=2), timedelta(days=9), timedelta(days=INTERVAL_DAYS_MAX + 3))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One pattern.

    weekdays       0 (Monday) to 6; empty: every `interval_days` days instead
    minutes        minutes of the day, ascending
    hourly         all 24 hours: elapsed time counts, not the wall clock
    """

    weekdays: frozenset[int] = frozenset()
    interval_days: int = 1
    minutes: tuple[int, ...]
    hourly: bool = False

    def fires_on(self, day: date, anchor: date) -> bool:
        """Whether `day` is one of its days."""
        if self.weekdays:
            return day.weekday() in self.weekdays
        return (day - anchor).days % self.interval_days == 0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Rules in a time zone. anchor: the day from which every n-th day is counted, for ever the same."""

    rules: tuple[Rule, ...]
    anchor: date
    tz: tzinfo


def schedule_of(patterns: Sequence[str], *, anchor_at: datetime, tz: tzinfo, member: str = "pattern") -> Schedule:
    """Parse and check the patterns of one trigger. Raises InvalidRequest that says what would be accepted."""
    if not 1 <= len(patterns) <= RULES_MAX:
        raise InvalidRequest(reason=f"Invalid {member}: give 1 to {RULES_MAX} rules.")
    schedule = Schedule(
        rules=tuple(_parse(pattern, member) for pattern in patterns), anchor=anchor_at.astimezone(tz).date(), tz=tz
    )
    if _too_close(schedule):
        raise InvalidRequest(
            reason=f"Invalid {member}: two runs would be closer than {SPACING_MINUTES_MIN} minutes. Spread them out."
        )
    return schedule


def next_fire_at(schedule: Schedule, after: datetime) -> datetime:
    """The first firing later than `after`, in UTC."""
    for window in _WINDOWS:
        found = next(firings(schedule, after + timedelta(microseconds=1), after + window), None)
        if found is not None:
            return found
    raise AssertionError("a checked rule fires within its interval")


def firings(schedule: Schedule, start: datetime, end: datetime) -> Iterator[datetime]:
    """Every firing in start <= t < end, ascending, each instant once, in UTC."""
    found: set[datetime] = set()
    for rule in schedule.rules:
        of_rule = _hourly(rule, schedule, start, end) if rule.hourly else _on_wall(rule, schedule, start, end)
        found.update(at for at in of_rule if start <= at < end)
    yield from sorted(found)


def fixed_zone(text: str, member: str) -> tzinfo:
    """`UTC+08:00`, the contract's form of a time zone. Raises InvalidRequest."""
    found = _OFFSET.fullmatch(text)
    if found is None or int(found[2]) > 14 or int(found[3]) > 59:
        raise InvalidRequest(reason=f"Invalid {member}: give it as UTC+08:00 or UTC-03:30.")
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-offset if found[1] == "-" else offset)


def named_zone(text: str, member: str) -> tzinfo:
    """`Europe/Berlin`, with its changes of the clock. Raises InvalidRequest."""
    if text == "UTC":
        return UTC
    if text not in _zone_names():
        raise InvalidRequest(reason=f"Invalid {member}: give a name of the time zone database, such as Europe/Berlin.")
    return ZoneInfo(text)


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


# --- the grammar ------------------------------------------------------------------------------------------------------


def _parse(text: str, member: str) -> Rule:
    parts: dict[str, str] = {}
    for part in text.split(";") if len(text) <= RULE_LENGTH_MAX else ("",):
        name, equals, value = part.partition("=")
        if name not in ("FREQ", "BYDAY", "INTERVAL", "BYHOUR", "BYMINUTE") or not equals or name in parts:
            raise _bad_form(member)
        parts[name] = value
    if not {"FREQ", "BYHOUR", "BYMINUTE"} <= set(parts):
        raise _bad_form(member)
    hours, minutes = _numbers(parts["BYHOUR"], 0, 23), _numbers(parts["BYMINUTE"], 0, 59)
    interval = _numbers(parts.get("INTERVAL", "1"), 1, INTERVAL_DAYS_MAX)
    if not hours or not minutes:
        raise _refusal(member, "BYHOUR is 0 to 23 and BYMINUTE is 0 to 59, each number once.")
    if len(interval) != 1:
        raise _refusal(member, f"INTERVAL is a number of days from 1 to {INTERVAL_DAYS_MAX}.")
    return Rule(
        weekdays=_weekdays(parts, interval[0], member),
        interval_days=interval[0],
        minutes=tuple(hour * 60 + minute for hour in hours for minute in minutes),
        hourly=len(hours) == 24,
    )


def _weekdays(parts: dict[str, str], interval: int, member: str) -> frozenset[int]:
    match parts["FREQ"]:
        case "WEEKLY":
            names = parts.get("BYDAY", "").split(",")
            if not set(names) <= set(WEEKDAYS) or len(set(names)) < len(names):
                raise _refusal(member, "a WEEKLY rule names its days, each once: BYDAY=MO,TU,WE,TH,FR,SA,SU.")
            if interval != 1:
                raise _refusal(member, "INTERVAL belongs to DAILY rules.")
            return frozenset(WEEKDAYS.index(name) for name in names)
        case "DAILY":
            if "BYDAY" in parts:
                raise _refusal(member, "BYDAY belongs to WEEKLY rules.")
            return frozenset()
        case _:
            raise _refusal(member, "FREQ is WEEKLY or DAILY.")


def _refusal(member: str, reason: str) -> InvalidRequest:
    return InvalidRequest(reason=f"Invalid {member}: {reason}")


def _bad_form(member: str) -> InvalidRequest:
    return _refusal(
        member,
        "write a rule as FREQ=WEEKLY;BYDAY=MO,TU;BYHOUR=2;BYMINUTE=30, or with FREQ=DAILY;INTERVAL=2 in front.",
    )


def _numbers(text: str, least: int, most: int) -> list[int]:
    """A list such as `0,6,12`, ascending; empty when a part is no number in the range, or stands twice."""
    parts = text.split(",")
    if not all(_NUMBER.fullmatch(part) and part.isascii() for part in parts):
        return []
    numbers = sorted({int(part) for part in parts})
    in_range = least <= numbers[0] and numbers[-1] <= most
    return numbers if in_range and len(numbers) == len(parts) else []


# --- spacing ----------------------------------------------------------------------------------------------------------


def _too_close(schedule: Schedule) -> bool:
    """Whether two different runs can be closer than SPACING_MINUTES_MIN, on any day there will ever be.

    Equal times of two rules on one day are one run. Wall clock only: what a change of the clock brings closer is right.
    """
    times = sorted({(minute, index) for index, rule in enumerate(schedule.rules) for minute in rule.minutes})
    # The first hour of the next day stands behind the last of this one: a run late in the evening meets it there.
    times += [(minute + DAY_MINUTES, index) for minute, index in times if minute < SPACING_MINUTES_MIN]
    for at, (minute, index) in enumerate(times):
        if minute >= DAY_MINUTES:
            break
        for later, other in times[at + 1 :]:
            if later - minute >= SPACING_MINUTES_MIN:
                break
            if later != minute and _meet(schedule, index, other, later // DAY_MINUTES):
                return True
    return False


def _meet(schedule: Schedule, index: int, other: int, days_later: int) -> bool:
    """Whether one rule fires on some day d and the other on d + days_later: two congruences that agree."""
    return any(
        (mine - (theirs - days_later)) % gcd(modulus, other_modulus) == 0
        for mine, modulus in _residues(schedule, index)
        for theirs, other_modulus in _residues(schedule, other)
    )


def _residues(schedule: Schedule, index: int) -> list[tuple[int, int]]:
    """The days of a rule, counted from the anchor, as residues and moduli."""
    rule = schedule.rules[index]
    if rule.weekdays:
        return [((weekday - schedule.anchor.weekday()) % 7, 7) for weekday in rule.weekdays]
    return [(0, rule.interval_days)]


# --- days and instants ------------------------------------------------------------------------------------------------


def _on_wall(rule: Rule, schedule: Schedule, start: datetime, end: datetime) -> Iterator[datetime]:
    """Instants of the rule's wall times on every day that touches the window."""
    day = start.astimezone(schedule.tz).date() - timedelta(days=1)
    last = end.astimezone(schedule.tz).date() + timedelta(days=1)
    while day <= last:
        if rule.fires_on(day, schedule.anchor):
            for minute in rule.minutes:
                # fold=0 is the offset from before a change: the first of two, and beyond a gap by the gap's length.
                wall = datetime.combine(day, time(minute // 60, minute % 60), tzinfo=schedule.tz)
                yield wall.astimezone(UTC)
        day += timedelta(days=1)


def _hourly(rule: Rule, schedule: Schedule, start: datetime, end: datetime) -> Iterator[datetime]:
    """One instant every hour that passes, at the rule's minute of the zone's standard time, on the rule's days."""
    hour = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    while hour < end:
        local = hour.astimezone(schedule.tz)
        standard = (local.utcoffset() or timedelta()) - (local.dst() or timedelta())
        at = hour + timedelta(minutes=(rule.minutes[0] % 60 - standard // timedelta(minutes=1)) % 60)
        if rule.fires_on(at.astimezone(schedule.tz).date(), schedule.anchor):
            yield at
        hour += timedelta(hours=1)
