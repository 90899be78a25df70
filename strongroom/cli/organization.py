"""`organization`: policies that hold for all projects of a domain, for its administrator."""

from typing import Annotated, Any

import typer

from strongroom.cli import names
from strongroom.cli.client import Json
from strongroom.cli.command import Session, YesOption, group, remote
from strongroom.cli.policies import (
    FullOption,
    RetentionOption,
    RuleOption,
    WindowOption,
    ZoneOption,
    described,
    kept_words,
)

app = group("Policies of the organization: one for all projects of the domain, which apply it and cannot change it.")

PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY", help="Id or name.")]
ProjectsOption = Annotated[
    list[str] | None,
    typer.Option("--project", metavar="PROJECT", help="Only for these, id or name; repeatable. Default: for all."),
]

MEMBERS = {
    "Id": "id",
    "Name": "name",
    "Enabled": "policy_enabled",
    "Rules": "rules",
    "Time zone": "zone",
    "Keeps": "keeps",
    "For": "effective_scope",
    "Projects": "projects",
}


@remote(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1-64 letters, digits, _ or -.")],
    rule: RuleOption = None,
    retention: RetentionOption = None,
    time_zone: ZoneOption = None,
    full_every: FullOption = None,
    start_window: WindowOption = None,
    project: ProjectsOption = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Make it, but do not let it fire.")] = False,
) -> None:
    """Make a policy for all projects, or for some. They find it among their policies and apply it to their vaults."""
    if not rule:
        raise typer.BadParameter("Give at least one --rule.")
    words = described(
        {"trigger": {"properties": {}}, "operation_definition": {}},
        rule=rule,
        retention=retention,
        time_zone=time_zone,
        full_every=full_every,
        start_window=start_window,
    )
    body = {
        "name": name,
        "operation_type": "backup",
        "policy_name": name,
        "policy_enabled": not disabled,
        "policy_trigger": words["trigger"],
        "policy_operation_definition": words["operation_definition"],
        "effective_scope": _scope(session, project) or "all",
    }
    made = session.client.post(session.client.v3("organization-policies"), {"policy": body})["policy"]
    _show(session, made)


@remote(app, "list")
def list_policies(session: Session) -> None:
    """Show the organization's policies, newest first."""
    rows = session.client.pages(session.client.v3("organization-policies"), "policies")
    columns = {label: member for label, member in MEMBERS.items() if label != "Projects"}
    session.output.table(rows if session.output.as_json else [_readable(row) for row in rows], columns)


@remote(app, "show")
def show(session: Session, policy: PolicyArgument) -> None:
    """Show one policy and the projects that have a copy of it."""
    client = session.client
    path = client.v3(f"organization-policies/{names.organization_policy_id(client, policy)}")
    found = client.get(path)["policy"]
    copies = client.pages(f"{path}/policy-detail", "policies")
    _show(session, found | {"projects": "\n".join(copy["project_id"] for copy in copies)})


@remote(app, "update")
def update(
    session: Session,
    policy: PolicyArgument,
    name: Annotated[str | None, typer.Option(help="New name, also of the copies.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Let it fire, or not.")] = None,
    rule: RuleOption = None,
    retention: RetentionOption = None,
    time_zone: ZoneOption = None,
    full_every: FullOption = None,
    start_window: WindowOption = None,
    project: ProjectsOption = None,
    every_project: Annotated[bool, typer.Option("--all-projects", help="For all projects from now on.")] = False,
) -> None:
    """Change a policy and all its copies, or none when a locked vault of a project does not let it."""
    client = session.client
    path = client.v3(f"organization-policies/{names.organization_policy_id(client, policy)}")
    before = client.get(path)["policy"]
    given = {"trigger": before["policy_trigger"], "operation_definition": before["policy_operation_definition"]}
    after = described(
        given,
        rule=rule,
        retention=retention,
        time_zone=time_zone,
        full_every=full_every,
        start_window=start_window,
    )
    wanted = {
        "name": name,
        "policy_name": name,
        "policy_enabled": enabled,
        "policy_trigger": after["trigger"] if after["trigger"] != given["trigger"] else None,
        "policy_operation_definition": (
            after["operation_definition"] if after["operation_definition"] != given["operation_definition"] else None
        ),
        "effective_scope": "all" if every_project else _scope(session, project),
    }
    body = {member: value for member, value in wanted.items() if value is not None}
    if not body:
        raise typer.BadParameter("Say what to change.")
    _show(session, client.put(path, {"policy": body})["policy"])


@remote(app, "delete")
def delete(session: Session, policy: PolicyArgument, yes: YesOption = False) -> None:
    """Delete a policy. Copies that vaults use stay with their projects, which may change them from then on."""
    client = session.client
    chosen = names.organization_policy_id(client, policy)
    session.confirm(f"Delete the policy {policy} of the organization?", yes=yes)
    client.delete(client.v3(f"organization-policies/{chosen}"))
    session.output.note("Deleted.")


def _scope(session: Session, projects: list[str] | None) -> str | None:
    return ",".join(names.project_id(session.client, text) for text in projects) if projects else None


def _readable(policy: Json) -> Json:
    properties, definition = policy["policy_trigger"]["properties"], policy["policy_operation_definition"]
    return policy | {
        "rules": "\n".join(properties["pattern"]),
        "zone": properties.get("time_zone") or "UTC",
        "keeps": kept_words(definition) + (f" ({definition['timezone']})" if definition.get("timezone") else ""),
    }


def _show(session: Session, policy: dict[str, Any]) -> None:
    session.output.details(policy if session.output.as_json else _readable(policy), MEMBERS)
