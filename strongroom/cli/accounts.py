"""`project`, `user` and `key`: the operator's accounts."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli import names
from strongroom.cli.command import Session, YesOption, group, remote
from strongroom.cli.credentials import save_credentials
from strongroom.cli.errors import CommandRefused

projects = group("Projects: each is one tenant. For the operator.")
users = group("Users of projects. For the operator.")
keys = group("Access keys (AK/SK) of users. For the operator.")

PASSWORD_LINE_MAX = 4096

PROJECT_MEMBERS = {"Id": "id", "Name": "name", "Description": "description", "Enabled": "enabled"}
USER_MEMBERS = {"Id": "id", "Name": "name", "Enabled": "enabled"}


@remote(projects, "create")
def create_project(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1-64 characters.")],
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
) -> None:
    """Make a project."""
    body = {"name": name} | ({"description": description} if description is not None else {})
    made = session.client.post("/ext/v1/admin/projects", {"project": body})["project"]
    session.output.details(made, PROJECT_MEMBERS)


@remote(projects, "list")
def list_projects(session: Session) -> None:
    """Show all projects."""
    session.output.table(session.client.get("/ext/v1/admin/projects")["projects"], PROJECT_MEMBERS)


@remote(users, "create")
def create_user(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1-64 characters.")],
    project: Annotated[str | None, typer.Option(metavar="PROJECT", help="Project to work in, id or name.")] = None,
    password: Annotated[
        str | None,
        typer.Option(
            help="Password; other users of this machine may see it. Without it you are asked, or stdin is read."
        ),
    ] = None,
    role: Annotated[
        str | None, typer.Option(help='Role on the project, such as "CBR ReadOnlyAccess". Default: te_admin.')
    ] = None,
) -> None:
    """Make a user."""
    body = {"name": name, "password": password if password is not None else _ask_password(session)}
    if project is not None:
        body["project_id"] = names.project_id(session.client, project)
    if role is not None:
        body["role"] = role
    made = session.client.post("/ext/v1/admin/users", {"user": body})["user"]
    session.output.details(made, USER_MEMBERS)


@remote(users, "list")
def list_users(session: Session) -> None:
    """Show all users."""
    session.output.table(session.client.get("/ext/v1/admin/users")["users"], USER_MEMBERS)


@remote(keys, "create")
def create_key(
    session: Session,
    user: Annotated[str, typer.Option(metavar="USER", help="Whose key, id or name.")],
    project: Annotated[
        str | None,
        typer.Option(metavar="PROJECT", help="With --save: project the file is for, id or name. Default: yours."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a new credentials file for --credentials, mode 0600.")
    ] = None,
) -> None:
    """Make an access key. The secret is shown this once only."""
    client = session.client
    scope = names.project_id(client, project) if project is not None else client.project_id
    made = client.post("/ext/v1/admin/keys", {"key": {"user_id": names.user_id(client, user)}})["key"]
    if save is not None:
        save_credentials(
            save,
            {
                "endpoint": client.endpoint,
                "project_id": scope,
                "access_key": made["access_key"],
                "secret_key": made["secret_key"],
            },
        )
    session.output.details(made, {"Access key": "access_key", "Secret key": "secret_key", "User": "user_id"})


@remote(keys, "list")
def list_keys(session: Session) -> None:
    """Show all access keys, without their secrets."""
    rows = session.client.get("/ext/v1/admin/keys")["keys"]
    session.output.table(rows, {"Access key": "access_key", "User": "user_id", "Enabled": "enabled"})


@remote(keys, "delete")
def delete_key(
    session: Session,
    access_key: Annotated[str, typer.Argument(metavar="ACCESS_KEY")],
    yes: YesOption = False,
) -> None:
    """Delete an access key: whoever uses it is locked out within seconds."""
    session.confirm(f"Delete the access key {access_key}?", yes=yes)
    session.client.delete(f"/ext/v1/admin/keys/{access_key}")
    session.output.note("Deleted.")


def _ask_password(session: Session) -> str:
    if session.output.live and sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    password = sys.stdin.readline(PASSWORD_LINE_MAX).rstrip("\n")
    if not password:
        raise CommandRefused(reason="A user needs a password: give --password, or write it to stdin.")
    return password
