"""`policy`: when vaults are backed up by themselves, and what is kept. `policy simulate` is in simulation.py."""

import re
from typing import Annotated, Any

import typer

from strongroom.cli import names
from strongroom.cli.client import Json
from strongroom.cli.command import Session, YesOption, group, remote
from strongroom.cli.errors import CommandRefused

app = group("Policies: when vaults are backed up by themselves, and which restore points stay.")

PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY", help="Id or name.")]
VaultArgument = Annotated[str, typer.Argument(metavar="VAULT", help="Id or name.")]
RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule", metavar="RULE", help="When, as FREQ=DAILY;INTERVAL=1;BYHOUR=2;BYMINUTE=30; repeatable, at most 24."
    ),
]
RetentionOption = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS",
        help="What stays: max=7,day=7,week=4,month=12,year=2 (the newest 7, and the newest of each of so many days, "
        "weeks, months and years), or days=30, or all.",
    ),
]
ZoneOption = Annotated[
    str | None,
    typer.Option(
        metavar="ZONE",
        help="Europe/Berlin: rules and days are those of its wall clock. UTC+08:00: days are counted there, rules in "
        "UTC. Default: UTC.",
    ),
]
FullOption = Annotated[
    int | None, typer.Option("--full-every", metavar="N", help="A full backup after N incremental ones; -1: never.")
]
ToVaultOption = Annotated[
    str | None,
    typer.Option("--to-vault", metavar="VAULT", help="Of a policy that replicates: id of the vault over there."),
]
WindowOption = Annotated[
    int | None, typer.Option("--start-window", metavar="MINUTES", help="Spread the vaults' runs over so long, 60-480.")
]

MEMBERS = {
    "Id": "id",
    "Name": "name",
    "Enabled": "enabled",
    "Operation": "operation_type",
    "Rules": "rules",
    "Time zone": "zone",
    "Keeps": "keeps",
    "Full every": "operation_definition.full_backup_interval",
    "Start window": "trigger.properties.start_window_minutes",
    "Vaults": "vaults",
}
_WORDS = {
    "max": "max_backups",
    "days": "retention_duration_days",
    "day": "day_backups",
    "week": "week_backups",
    "month": "month_backups",
    "year": "year_backups",
}
_FIXED_ZONE = re.compile(r"UTC[+-]\d\d:\d\d")


@remote(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1-64 letters, digits, _ or -.")],
    rule: RuleOption = None,
    retention: RetentionOption = None,
    time_zone: ZoneOption = None,
    full_every: FullOption = None,
    start_window: WindowOption = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Make it, but do not let it fire.")] = False,
    vault: Annotated[
        list[str] | None, typer.Option(metavar="VAULT", help="Apply it at once, id or name; repeatable.")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option("--replicate-to", metavar="REGION", help="Copy restore points there, instead of making them."),
    ] = None,
    to_vault: ToVaultOption = None,
) -> None:
    """Make a policy."""
    if not rule:
        raise typer.BadParameter("Give at least one --rule.")
    vaults = [names.vault_id(session.client, text) for text in vault or []]
    policy = described(
        {"trigger": {"properties": {}}, "operation_definition": {}},
        rule=rule,
        retention=retention,
        time_zone=time_zone,
        full_every=full_every,
        start_window=start_window,
    )
    if region is not None:
        policy["operation_definition"] |= _destination(session, region)
    kind = "backup" if region is None else "replication"
    body = {"name": name, "operation_type": kind, "enabled": not disabled, **policy}
    made = session.client.post(session.client.v3("policies"), {"policy": body})["policy"]
    for vault_id in vaults:
        session.client.post(session.client.v3(f"vaults/{vault_id}/associatepolicy"), _association(made["id"], to_vault))
    _show(session, load_policy(session, made["id"]) if vaults else made)


@remote(app, "list")
def list_policies(
    session: Session,
    vault: Annotated[str | None, typer.Option(metavar="VAULT", help="Only those applied to it, id or name.")] = None,
) -> None:
    """Show your policies, newest first."""
    client = session.client
    vault_id = names.vault_id(client, vault) if vault is not None else None
    rows = client.get(client.v3("policies"), vault_id=vault_id)["policies"]
    columns = {label: member for label, member in MEMBERS.items() if label not in ("Full every", "Start window")}
    session.output.table(rows if session.output.as_json else [_readable(row) for row in rows], columns)


@remote(app, "show")
def show(session: Session, policy: PolicyArgument) -> None:
    """Show one policy and the vaults it is applied to."""
    _show(session, load_policy(session, policy))


@remote(app, "update")
def update(
    session: Session,
    policy: PolicyArgument,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Let it fire, or not.")] = None,
    rule: RuleOption = None,
    retention: RetentionOption = None,
    time_zone: ZoneOption = None,
    full_every: FullOption = None,
    start_window: WindowOption = None,
) -> None:
    """Change a policy; rules that are given replace all of its rules. A new rule by count waits for the next backup."""
    before = load_policy(session, policy)
    after = described(
        before,
        rule=rule,
        retention=retention,
        time_zone=time_zone,
        full_every=full_every,
        start_window=start_window,
    )
    body: Json = {member: value for member, value in after.items() if value != _given(before)[member]}
    body |= {member: value for member, value in (("name", name), ("enabled", enabled)) if value is not None}
    if not body:
        raise typer.BadParameter("Say what to change.")
    path = session.client.v3(f"policies/{before['id']}")
    _show(session, session.client.put(path, {"policy": body})["policy"])


@remote(app, "delete")
def delete(session: Session, policy: PolicyArgument, yes: YesOption = False) -> None:
    """Delete a policy. Restore points stay; those it kept by count stay until you delete them."""
    chosen = names.policy_id(session.client, policy)
    session.confirm(f"Delete the policy {policy}? Its vaults are not backed up by it any more.", yes=yes)
    session.client.delete(session.client.v3(f"policies/{chosen}"))
    session.output.note("Deleted.")


@remote(app, "associate")
def associate(session: Session, policy: PolicyArgument, vault: VaultArgument, to_vault: ToVaultOption = None) -> None:
    """Apply a policy to a vault; one of its kind that it has takes its leave."""
    _apply(session, policy, vault, "associatepolicy", "Applied.", to_vault)


@remote(app, "dissociate")
def dissociate(session: Session, policy: PolicyArgument, vault: VaultArgument) -> None:
    """Take a policy from a vault. Restore points stay."""
    _apply(session, policy, vault, "dissociatepolicy", "Taken away.")


def _apply(session: Session, policy: str, vault: str, verb: str, done: str, to_vault: str | None = None) -> None:
    client = session.client
    body = _association(names.policy_id(client, policy), to_vault)
    answer = client.post(client.v3(f"vaults/{names.vault_id(client, vault)}/{verb}"), body)
    if session.output.as_json:
        session.output.document(answer)
    else:
        session.output.note(done)


def _association(policy_id: str, to_vault: str | None) -> Json:
    return {"policy_id": policy_id} | ({"destination_vault_id": to_vault} if to_vault is not None else {})


def _destination(session: Session, region: str) -> Json:
    regions = session.client.get(session.client.ext("regions"))["regions"]
    there = next((row["project_id"] for row in regions if row["name"] == region), None)
    if there is None:
        raise CommandRefused(reason=f"Your project has no region {region} to copy to. See `strongroom region list`.")
    return {"destination_region": region, "destination_project_id": there}


def load_policy(session: Session, text: str) -> Json:
    """The policy with this id or name, as GET answers it."""
    client = session.client
    found: Json = client.get(client.v3(f"policies/{names.policy_id(client, text)}"))["policy"]
    return found


# --- words ------------------------------------------------------------------------------------------------------------


def described(
    before: Json,
    *,
    rule: list[str] | None,
    retention: str | None,
    time_zone: str | None,
    full_every: int | None = None,
    start_window: int | None = None,
) -> Json:
    """`trigger` and `operation_definition` as options change them, in the words of the API."""
    given = _given(before)
    properties, definition = dict(given["trigger"]["properties"]), dict(given["operation_definition"])
    if rule:
        properties["pattern"] = rule
    if start_window is not None:
        properties["start_window_minutes"] = start_window
    if retention is not None:
        definition = {name: value for name, value in definition.items() if name not in _WORDS.values()}
        definition |= retention_words(retention)
    if full_every is not None:
        definition["full_backup_interval"] = full_every
    if time_zone is not None and _FIXED_ZONE.fullmatch(time_zone):
        definition["timezone"] = time_zone
        properties.pop("time_zone", None)
    elif time_zone is not None:
        definition.pop("timezone", None)
        properties["time_zone"] = time_zone
    if not properties.get("time_zone") and any(definition.get(name) for name in _WORDS.values() if "_backups" in name):
        definition.setdefault("timezone", "UTC+00:00")
    return {"trigger": {"properties": properties}, "operation_definition": definition}


def retention_words(text: str) -> dict[str, int]:
    """`max=7,day=30` as members of operation_definition; `all` is none. Raises BadParameter."""
    if text == "all":
        return {}
    found: dict[str, int] = {}
    for part in text.split(","):
        word, _, number = part.partition("=")
        if word not in _WORDS or not number.isdigit() or _WORDS[word] in found:
            raise typer.BadParameter("Write --retention as max=7,day=7,week=4,month=12,year=2, as days=30, or as all.")
        found[_WORDS[word]] = int(number)
    return found


def kept_words(definition: Json) -> str:
    """The other way round, for people."""
    words = [f"{word}={definition[name]}" for word, name in _WORDS.items() if definition.get(name, -1) > 0]
    return ",".join(words) or "all"


def _given(policy: Json) -> Json:
    """What a PUT may carry of an answer."""
    properties = policy["trigger"]["properties"]
    return {
        "trigger": {"properties": {name: value for name, value in properties.items() if name != "start_time"}},
        "operation_definition": policy["operation_definition"],
    }


def _readable(policy: Json) -> Json:
    properties, definition = policy["trigger"]["properties"], policy["operation_definition"]
    return policy | {
        "rules": "\n".join(properties["pattern"]),
        "zone": properties.get("time_zone") or "UTC",
        "keeps": kept_words(definition) + (f" ({definition['timezone']})" if definition.get("timezone") else ""),
        "vaults": "\n".join(vault["vault_id"] for vault in policy["associated_vaults"]),
    }


def _show(session: Session, policy: dict[str, Any]) -> None:
    session.output.details(policy if session.output.as_json else _readable(policy), MEMBERS)
