"""`notification`: whom a project tells by mail or webhook, and of what."""

from typing import Annotated

import typer

from strongroom.cli.command import Session, group, remote

app = group("Notifications: mail and webhooks of a project.")

IdArgument = Annotated[str, typer.Argument(metavar="ID")]
EventsOption = Annotated[
    list[str] | None,
    typer.Option("--event", help="failed, partly, did_not_run, nearly_full or damage; may be repeated. Default: all."),
]
COLUMNS = {"Id": "id", "Name": "name", "Kind": "kind", "Target": "target", "On": "enabled"}
DELIVERIES = {"Event": "event", "Status": "status", "Attempts": "attempts", "Error": "last_error", "At": "created_at"}


@remote(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    mail: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Send mail there.")] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Call this URL (https).")] = None,
    event: EventsOption = None,
    secret: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What calls are signed with; without it, one is made.")
    ] = None,
) -> None:
    """Tell somebody what happens: by --mail or by --webhook."""
    if (mail is None) == (webhook is None):
        raise typer.BadParameter("give one of --mail and --webhook")
    asked: dict[str, object] = {
        "name": name,
        "kind": "mail" if mail is not None else "webhook",
        "target": mail or webhook,
    }
    asked |= {"events": event} if event else {}
    asked |= {"secret": secret} if secret is not None else {}
    made = session.client.post(session.client.ext("notifications"), {"notification": asked})["notification"]
    members = COLUMNS | ({"Secret, shown once": "secret"} if "secret" in made else {})
    session.output.details(made, members)


@remote(app, "list")
def list_all(session: Session) -> None:
    """Show the notifications of the project."""
    session.output.table(session.client.get(session.client.ext("notifications"))["notifications"], COLUMNS)


@remote(app, "show")
def show(session: Session, notification: IdArgument) -> None:
    """Show one with its last messages, and why they did not arrive."""
    found = session.client.get(session.client.ext(f"notifications/{notification}"))["notification"]
    session.output.details(found, COLUMNS)
    if not session.output.as_json:
        session.output.table(found.get("deliveries", []), DELIVERIES)


@remote(app, "update")
def update(
    session: Session,
    notification: IdArgument,
    name: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    event: EventsOption = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Send, or keep still.")] = None,
) -> None:
    """Change name, events, or whether anything is sent."""
    given = {"name": name, "events": event, "enabled": enabled}
    change = {member: value for member, value in given.items() if value is not None}
    path = session.client.ext(f"notifications/{notification}")
    session.output.details(session.client.put(path, {"notification": change})["notification"], COLUMNS)


@remote(app, "delete")
def delete(session: Session, notification: IdArgument) -> None:
    """Delete one, with what it was still to be told."""
    session.client.delete(session.client.ext(f"notifications/{notification}"))


@remote(app, "test")
def test(session: Session, notification: IdArgument) -> None:
    """Send one message, to see whether it arrives; `notification show` tells."""
    session.client.post(session.client.ext(f"notifications/{notification}/test"), {})
