"""`policy simulate`: which restore points a policy will have on any day of the time to come, and why each is kept.

The functions that decide in the service decide here, so this is no second opinion. A server is asked only for a policy
that it has; with `--rule` alone nothing is asked.
"""

from datetime import UTC, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Any

import typer

from strongroom.base.clock import SystemClock, api_timestamp
from strongroom.cli.client import Client
from strongroom.cli.command import CredentialsOption, EndpointOption, JsonOption, Session, StateOption
from strongroom.cli.credentials import load_credentials
from strongroom.cli.output import Output
from strongroom.cli.policies import (
    FullOption,
    RetentionOption,
    RuleOption,
    ZoneOption,
    described,
    kept_words,
    load_policy,
)
from strongroom.control.forecast import Life, count_at, forecast, standing_at
from strongroom.control.policy_rules import Definition, Trigger, check_definition, check_trigger, retention_rules
from strongroom.control.retention import Verdict
from strongroom.control.schedule import named_zone, schedule_of

DAYS_MAX = 3660  # ten years: an hourly policy without a rule has 87 000 restore points then
POLICY: dict[str, Any] = {"trigger": {"properties": {}}, "operation_definition": {}}


def register(group: typer.Typer) -> None:
    """Put the command into the group of policies, which itself speaks HTTP only."""
    group.command("simulate")(simulate)


def simulate(
    policy: Annotated[str | None, typer.Argument(metavar="[POLICY]", help="Id or name; none with --rule.")] = None,
    rule: RuleOption = None,
    retention: RetentionOption = None,
    time_zone: ZoneOption = None,
    full_every: FullOption = None,
    start: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DATE", help="First day. Default: today.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=DAYS_MAX, help="How many days.")] = 365,
    on: Annotated[
        datetime | None,
        typer.Option("--on", formats=["%Y-%m-%d"], metavar="DATE", help="The day to look at. Default: the last."),
    ] = None,
    state: StateOption = None,
    endpoint: EndpointOption = None,
    credentials: CredentialsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which restore points a policy will have, and why. Options try what the policy does not say yet."""
    output = Output(as_json=as_json)
    found = POLICY
    if policy is not None:
        found = _asked(policy, output, state, endpoint, credentials)
    elif not rule:
        raise typer.BadParameter("Name a policy, or give at least one --rule.")
    words = described(found, rule=rule, retention=retention, time_zone=time_zone, full_every=full_every)
    trigger, definition = _rules(words)
    zone = named_zone(trigger.time_zone, "--time-zone") if trigger.time_zone else UTC
    first = (start or SystemClock().now().astimezone(zone)).date()
    last = first + timedelta(days=days - 1)
    day = on.date() if on else last
    if not first <= day <= last:
        raise typer.BadParameter(f"--on lies outside of {first} to {last}.")
    begins = datetime.combine(first, time(), tzinfo=zone)
    # An interval is counted from the day the policy was made, as in the service.
    anchor = found["trigger"]["properties"].get("start_time")
    check_trigger(trigger, begins)
    check_definition(definition, trigger, operation_type="backup", region="")
    rules = retention_rules(definition, trigger)
    schedule = schedule_of(
        trigger.patterns, anchor_at=datetime.fromisoformat(anchor) if anchor else begins, tz=zone, member="--rule"
    )
    ends = _end_of(last, zone)
    lives = forecast(schedule, rules, begins.astimezone(UTC), ends, full_interval=definition.full_backup_interval)
    at = _end_of(day, zone) - timedelta(microseconds=1)
    standing = standing_at(lives, rules, at)
    if as_json:
        output.document(_document(words, lives, str(day), standing))
        return
    output.say(f"{len(lives)} runs from {first} to {last}. Keeps {kept_words(words['operation_definition'])}.")
    _months(output, lives, begins, last, zone)
    output.say("")
    kinds = {life.point.id: "full" if life.full else "incremental" for life in lives}
    output.cells(
        [[_local(verdict, zone), kinds[verdict.point.id], ("; ".join(verdict.reasons))] for verdict in standing],
        ["Made", "Kind", "Kept as"],
        title=f"Restore points at the end of {day}: {len(standing)}",
    )


def _asked(
    policy: str, output: Output, state: Path | None, endpoint: str | None, credentials: Path | None
) -> dict[str, Any]:
    with Client(load_credentials(state=state, endpoint=endpoint, file=credentials)) as client:
        return load_policy(Session(client=client, output=output), policy)


def _rules(words: dict[str, Any]) -> tuple[Trigger, Definition]:
    properties = words["trigger"]["properties"]
    known = Definition.__dataclass_fields__
    definition = {name: value for name, value in words["operation_definition"].items() if name in known}
    trigger = Trigger(
        patterns=tuple(properties["pattern"]),
        time_zone=properties.get("time_zone"),
        start_window_minutes=properties.get("start_window_minutes"),
    )
    return trigger, Definition(**definition)


def _end_of(day: Any, zone: tzinfo) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), tzinfo=zone).astimezone(UTC)


def _months(output: Output, lives: tuple[Life, ...], begins: datetime, last: Any, zone: tzinfo) -> None:
    """One row a month: how many runs, and how many restore points stand at its end."""
    rows: list[list[object]] = []
    month = begins.date().replace(day=1)
    while month <= last:
        following = (month + timedelta(days=32)).replace(day=1)
        ends = _end_of(min(following - timedelta(days=1), last), zone)
        runs = sum(f"{life.point.created_at.astimezone(zone):%Y-%m}" == f"{month:%Y-%m}" for life in lives)
        rows.append([f"{month:%Y-%m}", runs, count_at(lives, ends - timedelta(microseconds=1))])
        month = following
    output.cells(rows, ["Month", "Runs", "Standing at its end"])


def _local(verdict: Verdict, zone: tzinfo) -> str:
    return f"{verdict.point.created_at.astimezone(zone):%a %Y-%m-%d %H:%M}"


def _document(
    words: dict[str, Any], lives: tuple[Life, ...], day: str, standing: tuple[Verdict, ...]
) -> dict[str, Any]:
    """Every restore point with its life, so that any other day can be read from it, and the day asked for."""
    return {
        **words,
        "points": [
            {
                "created_at": api_timestamp(life.point.created_at),
                "gone_at": api_timestamp(life.gone_at) if life.gone_at else None,
                "full": life.full,
            }
            for life in lives
        ],
        "on": {
            "date": day,
            "points": [
                {"created_at": api_timestamp(verdict.point.created_at), "reasons": list(verdict.reasons)}
                for verdict in standing
            ],
        },
    }
