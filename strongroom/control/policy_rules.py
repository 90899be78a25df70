"""What a policy may be: the values of a request, checked, and what follows from them. Pure: no database, no clock.

Rules of contract/behaviour.md section 5. Patterns are kept word for word, because clients compare them as text. Ours is
one member more, `trigger.properties.time_zone`: with it the patterns speak of the wall clock there, without it of UTC.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import blake2b
from typing import Any

from strongroom.base.errors import Conflict, InvalidRequest, Unsupported
from strongroom.control.names import require_name
from strongroom.control.retention import RetentionRules
from strongroom.control.schedule import Schedule, fixed_zone, named_zone, next_fire_at, schedule_of

OPERATION_TYPES = ("backup", "replication")
CUSTOM = "custom_policy"
ORGANIZATION = "organization_policy_v1"  # a project's copy; only the domain's administrator changes it
REMOVED = "organization_policy_removed"  # was such a copy, and is the project's own since the organization let it go
POLICIES_MAX = 32  # contract: of each kind
KEEP = -1  # no such rule, in the words of the API
COUNT_MAX = 99999  # contract, of max_backups and retention_duration_days
PERIODS_MAX = 100  # contract, of day_backups and the others, and of full_backup_interval
START_WINDOW_MINUTES = range(60, 480 + 1)  # contract
REGION_LENGTH_MAX = 255

_REGION = re.compile(r"[a-zA-Z0-9._-]+")
_PERIODS = ("day_backups", "week_backups", "month_backups", "year_backups")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """`operation_definition`. None: not given; -1 and 0 say the same where the API has a number for "no such rule"."""

    max_backups: int | None = None
    retention_duration_days: int | None = None
    day_backups: int | None = None
    week_backups: int | None = None
    month_backups: int | None = None
    year_backups: int | None = None
    timezone: str | None = None
    full_backup_interval: int | None = None
    destination_region: str | None = None
    destination_project_id: str | None = None
    enable_acceleration: bool | None = None
    cross_account_urn: str | None = None
    advanced_retention_rules: Mapping[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """The members that were given, as the database and answers have them."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """patterns word for word; time_zone None: UTC; start_window_minutes None: runs begin on time."""

    patterns: tuple[str, ...]
    time_zone: str | None = None
    start_window_minutes: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewPolicy:
    """A policy as a request describes it."""

    name: str
    operation_type: str
    enabled: bool
    trigger: Trigger
    definition: Definition


@dataclass(frozen=True, kw_only=True)
class PolicyChange:
    """What a PUT asks for; None leaves a member as it is. Trigger and definition are replaced whole."""

    name: str | None = None
    enabled: bool | None = None
    trigger: Trigger | None = None
    definition: Definition | None = None


@dataclass(frozen=True, kw_only=True)
class Association:
    """A vault that the policy is applied to."""

    vault_id: str
    destination_vault_id: str | None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy with the vaults it is applied to. start_at: every n-th day is counted from here; times are aware UTC.

    organization_policy_id   whose copy it is; None: the project's own
    """

    id: str
    project_id: str
    name: str
    operation_type: str
    enabled: bool
    trigger_id: str
    trigger: Trigger
    start_at: datetime
    definition: Definition
    retention_changed_at: datetime
    policy_type: str = CUSTOM
    organization_policy_id: str | None = None
    vaults: tuple[Association, ...] = ()


def check_new_policy(new: NewPolicy, *, region: str, now: datetime) -> None:
    """Raises InvalidRequest, Conflict 6117 (kind), or Unsupported for what this version cannot keep its word on."""
    require_name(new.name, "policy.name")
    if new.operation_type not in OPERATION_TYPES:
        raise Conflict(
            conflict_code="6117",
            reason=f"Invalid policy.operation_type: use one of {', '.join(OPERATION_TYPES)}.",
        )
    check_trigger(new.trigger, now)
    check_definition(new.definition, new.trigger, operation_type=new.operation_type, region=region)


def check_operation_type(text: str | None, member: str) -> None:
    """Raises InvalidRequest."""
    if text is not None and text not in OPERATION_TYPES:
        raise InvalidRequest(reason=f"Invalid {member}: use one of {', '.join(OPERATION_TYPES)}.")


def changed(policy: Policy, change: PolicyChange, *, region: str) -> Policy:
    """The policy as the change wants it, with its id, trigger id and start. Raises InvalidRequest, Unsupported."""
    if change.name is not None:
        require_name(change.name, "policy.name")
    if change.trigger is not None:
        check_trigger(change.trigger, policy.start_at)
    given = {field.name: value for field in fields(change) if (value := getattr(change, field.name)) is not None}
    after: Policy = replace(policy, **given)
    # Also when only the trigger changed: its time zone may have stood for the definition's.
    check_definition(after.definition, after.trigger, operation_type=policy.operation_type, region=region)
    return after


def check_trigger(trigger: Trigger, start_at: datetime) -> None:
    """Raises InvalidRequest."""
    _schedule(trigger, start_at)
    if trigger.start_window_minutes is not None and trigger.start_window_minutes not in START_WINDOW_MINUTES:
        raise InvalidRequest(
            reason="Invalid policy.trigger.properties.start_window_minutes: give 60 to 480 minutes, or leave it out."
        )


def check_definition(definition: Definition, trigger: Trigger, *, operation_type: str, region: str) -> None:
    """Raises InvalidRequest, Unsupported."""
    where = "policy.operation_definition"
    for name in ("max_backups", "retention_duration_days"):
        value = getattr(definition, name)
        if value is not None and value != KEEP and not 1 <= value <= COUNT_MAX:
            raise InvalidRequest(reason=f"Invalid {where}.{name}: give 1 to {COUNT_MAX}, or {KEEP} for no such rule.")
    for name in _PERIODS:
        if not 0 <= (getattr(definition, name) or 0) <= PERIODS_MAX:
            raise InvalidRequest(reason=f"Invalid {where}.{name}: give 0 to {PERIODS_MAX}.")
    if not KEEP <= (definition.full_backup_interval or 0) <= PERIODS_MAX:
        raise InvalidRequest(reason=f"Invalid {where}.full_backup_interval: give {KEEP} to {PERIODS_MAX}.")
    if definition.timezone is not None:
        fixed_zone(definition.timezone, f"{where}.timezone")
    elif trigger.time_zone is None and any(getattr(definition, name) for name in _PERIODS):
        raise InvalidRequest(
            reason=f"Invalid {where}.timezone: rules by day, week, month or year need it, such as UTC+08:00."
        )
    rules = retention_rules(definition, trigger)
    if rules.duration_days is not None and rules.counting:
        raise InvalidRequest(
            reason=f"Invalid {where}: retention_duration_days and rules by count exclude each other. Set one to {KEEP}."
        )
    if definition.enable_acceleration or definition.cross_account_urn or definition.advanced_retention_rules:
        raise Unsupported(
            reason=f"{where}.enable_acceleration, cross_account_urn and advanced_retention_rules are not available "
            "here. Leave them out."
        )
    if operation_type == "replication":
        _check_destination(definition, where, region)


def _check_destination(definition: Definition, where: str, region: str) -> None:
    target = definition.destination_region or ""
    if not _REGION.fullmatch(target) or len(target) > REGION_LENGTH_MAX:
        raise InvalidRequest(reason=f"Invalid {where}.destination_region: a replication policy names its region.")
    if target == region:
        raise InvalidRequest(reason=f"Invalid {where}.destination_region: name another region than {region}.")
    if not definition.destination_project_id:
        raise InvalidRequest(reason=f"Invalid {where}.destination_project_id: a replication policy names its project.")


# --- what follows from a policy ---------------------------------------------------------------------------------------


def retention_rules(definition: Definition, trigger: Trigger) -> RetentionRules:
    """The definition's rules; days, weeks, months and years are those of its time zone, else of the trigger's."""
    zone: tzinfo = UTC
    if definition.timezone is not None:
        zone = fixed_zone(definition.timezone, "timezone")
    elif trigger.time_zone is not None:
        zone = named_zone(trigger.time_zone, "time_zone")
    return RetentionRules(
        max_backups=_unless_kept(definition.max_backups),
        duration_days=_unless_kept(definition.retention_duration_days),
        day_backups=definition.day_backups or 0,
        week_backups=definition.week_backups or 0,
        month_backups=definition.month_backups or 0,
        year_backups=definition.year_backups or 0,
        tz=zone,
    )


def rules_of(policy: Policy) -> RetentionRules:
    """What the policy keeps."""
    return retention_rules(policy.definition, policy.trigger)


def sent_rules(policy: Policy) -> dict[str, Any]:
    """What a replication policy keeps over there, in the words of `operation_definition`; the other region judges."""
    given = policy.definition
    rules: dict[str, Any] = {
        name: value
        for name in ("max_backups", "retention_duration_days", *_PERIODS)
        if (value := getattr(given, name)) not in (None, KEEP, 0)
    }
    if rules and given.timezone is not None:
        rules["timezone"] = given.timezone
    elif rules and policy.trigger.time_zone is not None:
        rules["time_zone"] = policy.trigger.time_zone
    return rules


def schedule_for(policy: Policy) -> Schedule:
    """When the policy fires, enabled or not."""
    return _schedule(policy.trigger, policy.start_at)


def next_run_at(policy: Policy, vault_id: str, after: datetime) -> datetime | None:
    """When the policy runs next on a vault; None: it is disabled.

    With a start window the runs of its vaults are spread over it, each vault always at the same place.
    """
    if not policy.enabled:
        return None
    spread = timedelta()
    if policy.trigger.start_window_minutes is not None:
        digest = blake2b(f"{policy.id}/{vault_id}".encode(), digest_size=8).digest()
        spread = timedelta(seconds=int.from_bytes(digest) % (policy.trigger.start_window_minutes * 60))
    return next_fire_at(schedule_for(policy), after - spread) + spread


def _schedule(trigger: Trigger, start_at: datetime) -> Schedule:
    return schedule_of(
        trigger.patterns,
        anchor_at=start_at,
        tz=UTC if trigger.time_zone is None else named_zone(trigger.time_zone, "policy.trigger.properties.time_zone"),
        member="policy.trigger.properties.pattern",
    )


def _unless_kept(number: int | None) -> int | None:
    return None if number in (None, KEEP) else number
