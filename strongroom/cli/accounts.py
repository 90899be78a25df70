"""`domain`, `project`, `user` and `key`: the operator's accounts."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli import names
from strongroom.cli.command import Session, YesOption, group, remote
from strongroom.cli.credentials import save_credentials
from strongroom.cli.errors import CommandRefused

domains = group("Domains: accounts that own users and projects. For the operator.")
projects = group("Projects: each is one tenant. For the operator.")
users = group("Users of projects. For the operator.")
token_keys = group("The keys that tokens are sealed with. For the operator.")
keys = group("Access keys (AK/SK) of users. For the operator.")

PASSWORD_LINE_MAX = 4096

DOMAIN_MEMBERS = {"Id": "id", "Name": "name"}
PROJECT_MEMBERS = {
    "Id": "id", "Name": "name", "Domain": "domain_id", "Description": "description", "Enabled": "enabled"
}  # fmt: skip
USER_MEMBERS = {"Id": "id", "Name": "name", "Domain": "domain_id", "Enabled": "enabled"}

EnableOption = Annotated[bool | None, typer.Option("--enable/--disable", help="Turn it on or off.")]
ProjectOption = Annotated[str | None, typer.Option(metavar="PROJECT", help="Project of the role, id or name.")]


@remote(domains, "create")
def create_domain(
    session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="1-64 characters.")]
) -> None:
    """Make a domain."""
    made = session.client.post("/ext/v1/admin/domains", {"domain": {"name": name}})["domain"]
    session.output.details(made, DOMAIN_MEMBERS)


@remote(domains, "list")
def list_domains(session: Session) -> None:
    """Show all domains."""
    session.output.table(session.client.get("/ext/v1/admin/domains")["domains"], DOMAIN_MEMBERS)


@remote(projects, "create")
def create_project(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1-64 characters.")],
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    domain: Annotated[
        str | None, typer.Option(metavar="DOMAIN", help="Domain that owns it, id or name. Default: default.")
    ] = None,
) -> None:
    """Make a project."""
    body = {"name": name} | ({"description": description} if description is not None else {})
    if domain is not None:
        body["domain_id"] = names.domain_id(session.client, domain)
    made = session.client.post("/ext/v1/admin/projects", {"project": body})["project"]
    session.output.details(made, PROJECT_MEMBERS)


@remote(projects, "list")
def list_projects(session: Session) -> None:
    """Show all projects."""
    session.output.table(session.client.get("/ext/v1/admin/projects")["projects"], PROJECT_MEMBERS)


@remote(projects, "set")
def set_project(
    session: Session,
    project: Annotated[str, typer.Argument(metavar="PROJECT")],
    enable: Annotated[bool, typer.Option("--enable/--disable", help="Whether anybody may work in it.")],
) -> None:
    """Turn a project off, or on again: what is in it stays, and its policies go on."""
    path = f"/ext/v1/admin/projects/{names.project_id(session.client, project)}"
    session.client.put(path, {"project": {"enabled": enable}})
    session.output.note("Done.")


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


@remote(users, "set")
def set_user(
    session: Session,
    user: Annotated[str, typer.Argument(metavar="USER")],
    enable: EnableOption = None,
    new_password: Annotated[
        bool, typer.Option("--new-password", help="Ask for a new password, or read it from stdin.")
    ] = False,
    log_out: Annotated[bool, typer.Option("--log-out", help="Make every token of the user void.")] = False,
) -> None:
    """Turn a user off or on, give a new password, or end all sessions."""
    body: dict[str, object] = {"log_out": log_out}
    if enable is not None:
        body["enabled"] = enable
    if new_password:
        body["password"] = _ask_password(session)
    session.client.put(f"/ext/v1/admin/users/{names.user_id(session.client, user)}", {"user": body})
    session.output.note("Done.")


@remote(users, "delete")
def delete_user(session: Session, user: Annotated[str, typer.Argument(metavar="USER")], yes: YesOption = False) -> None:
    """Delete a user with the access keys and roles. What the user made in projects stays."""
    user_id = names.user_id(session.client, user)
    session.confirm(f"Delete the user {user} and the access keys of this user?", yes=yes)
    session.client.delete(f"/ext/v1/admin/users/{user_id}")
    session.output.note("Deleted.")


@remote(users, "roles")
def list_roles(session: Session, user: Annotated[str, typer.Argument(metavar="USER")]) -> None:
    """Show the roles of a user."""
    rows = session.client.get(f"/ext/v1/admin/users/{names.user_id(session.client, user)}/roles")["roles"]
    session.output.table(rows, {"Role": "role", "Project": "project_id", "Name": "project_name"})


@remote(users, "grant")
def grant_role(
    session: Session,
    user: Annotated[str, typer.Argument(metavar="USER")],
    role: Annotated[str, typer.Argument(metavar="ROLE", help='Such as "CBR ReadOnlyAccess"; admin: an operator.')],
    project: ProjectOption = None,
) -> None:
    """Give a user a role on a project."""
    _change_role(session, user, role, project, "roles")


@remote(users, "revoke")
def revoke_role(
    session: Session,
    user: Annotated[str, typer.Argument(metavar="USER")],
    role: Annotated[str, typer.Argument(metavar="ROLE", help="As `user roles` shows it.")],
    project: ProjectOption = None,
) -> None:
    """Take a role from a user: it counts no more within seconds."""
    _change_role(session, user, role, project, "roles/take")


def _change_role(session: Session, user: str, role: str, project: str | None, path: str) -> None:
    body = {"role": role}
    if project is not None:
        body["project_id"] = names.project_id(session.client, project)
    elif role != "admin":
        raise CommandRefused(reason="This role is one on a project: name it with --project.")
    session.client.post(f"/ext/v1/admin/users/{names.user_id(session.client, user)}/{path}", {"role": body})
    session.output.note("Done.")


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
    temporary: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="A key that ends, 900 to 86400, used with its security token."),
    ] = None,
) -> None:
    """Make an access key. The secret is shown this once only."""
    client = session.client
    if save is not None and temporary is not None:
        raise CommandRefused(reason="A credentials file has no place for a security token: leave --save out.")
    scope = names.project_id(client, project) if project is not None else client.project_id
    wanted: dict[str, object] = {"user_id": names.user_id(client, user)}
    if temporary is not None:
        wanted["duration_seconds"] = temporary
    made = client.post("/ext/v1/admin/keys", {"key": wanted})["key"]
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
    members = {"Access key": "access_key", "Secret key": "secret_key", "User": "user_id"}
    if temporary is not None:
        members |= {"Security token": "security_token", "Expires": "expires_at"}
    session.output.details(made, members)


@remote(keys, "list")
def list_keys(session: Session) -> None:
    """Show all access keys, without their secrets."""
    rows = session.client.get("/ext/v1/admin/keys")["keys"]
    session.output.table(
        rows, {"Access key": "access_key", "User": "user_id", "Enabled": "enabled", "Expires": "expires_at"}
    )


@remote(keys, "set")
def set_key(
    session: Session,
    access_key: Annotated[str, typer.Argument(metavar="ACCESS_KEY")],
    enable: Annotated[bool, typer.Option("--enable/--disable", help="Whether it signs anything.")],
) -> None:
    """Turn an access key off, or on again."""
    session.client.put(f"/ext/v1/admin/keys/{access_key}", {"key": {"enabled": enable}})
    session.output.note("Done.")


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


@remote(token_keys, "change")
def change_token_key(
    session: Session,
    forget_old: Annotated[
        bool, typer.Option("--forget-old", help="Make every token of before void: everybody logs in again.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Seal new tokens with a new key. Nobody is logged out by it, unless you say so."""
    if forget_old:
        session.confirm("Log everybody out? Access keys go on.", yes=yes)
    made = session.client.post("/ext/v1/admin/token-keys", {"token_key": {"forget_old": forget_old}})["token_key"]
    session.output.details(made, {"Keys in use": "keys"})


def _ask_password(session: Session) -> str:
    if session.output.live and sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    password = sys.stdin.readline(PASSWORD_LINE_MAX).rstrip("\n")
    if not password:
        raise CommandRefused(reason="A user needs a password: give --password, or write it to stdin.")
    return password
