"""`agent`: hosts with an agent, as their tenant sees them."""

import socket
from typing import Annotated, Any

import typer

from strongroom.base.ids import is_id, new_id
from strongroom.cli import names
from strongroom.cli.client import Client
from strongroom.cli.command import Session, YesOption, remote

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Id or name.")]
PathOption = Annotated[
    list[str] | None, typer.Option("--path", metavar="PATH", help="A folder or file to protect; repeatable.")
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="PATH", help="A path below it to leave out; repeatable.")
]
BareMetalOption = Annotated[
    bool, typer.Option("--bare-metal", help="Protect it as a bare metal server, in vaults of type server.")
]
COLUMNS = {
    "Id": "agent_id",
    "Host": "host_name",
    "Status": "status",
    "Version": "agent_version",
    "Last seen": "last_active_time",
}


def register_host(
    session: Session,
    host: Annotated[str, typer.Argument(metavar="HOST", help="Its name.")],
    path: PathOption = None,
    address: Annotated[str | None, typer.Option(metavar="IP", help="Shown only. Default: looked up.")] = None,
    system: Annotated[str, typer.Option("--os", help="Shown only.")] = "Linux",
    bare_metal: BareMetalOption = False,
) -> None:
    """Register a host, and show the command that enrolls its agent. Again for a registered one: a new command."""
    client = session.client
    known = names.hosts(client, name=host)
    agent_id = known[0]["id"] if known else new_id()
    body = {"agent_id": agent_id, "host_name": host, "host_ip": address or _address(host), "host_os": system}
    client.post(client.v3("agents"), {"agent": body | {"agent_type": "native"}})
    if path:
        client.post(client.v3(f"agents/{agent_id}/add-path"), {"add_path": path})
    _show_token(session, agent_id, bare_metal=bare_metal)


def new_token(session: Session, host: HostArgument, bare_metal: BareMetalOption = False) -> None:
    """Make another one-time token for a registered host. With its use, earlier certificates of the host end."""
    _show_token(session, _id(session.client, host), bare_metal=bare_metal)


def list_hosts(session: Session) -> None:
    """Show registered hosts, and whether their agent is there."""
    rows = session.client.pages(session.client.v3("agents"), "agents")
    session.output.table(rows, COLUMNS)


def show(session: Session, host: HostArgument) -> None:
    """Show one host with its paths."""
    client = session.client
    found = client.get(client.v3(f"agents/{_id(client, host)}"))["agent"]
    session.output.details(found, COLUMNS)
    if not session.output.as_json and found["paths"]:
        session.output.table(found["paths"], {"Path": "dir_path", "Left out": "exclude_paths"})


def add_path(session: Session, host: HostArgument, path: PathOption = None, exclude: ExcludeOption = None) -> None:
    """Protect more paths of a host."""
    if not path:
        raise typer.BadParameter("Name at least one --path.")
    client = session.client
    body: dict[str, Any] = {"add_path": path}
    if exclude:
        body["exclude_path"] = [
            {"path_name": folder, "exclude_path_name": inside}
            for folder in path
            if (inside := [text for text in exclude if text.startswith(folder.rstrip("/") + "/")])
        ]
    answer = client.post(client.v3(f"agents/{_id(client, host)}/add-path"), body)
    session.output.details(answer, {"Added": "added", "Were there": "existed"})


def remove_path(session: Session, host: HostArgument, path: PathOption = None) -> None:
    """Protect paths of a host no more. What was backed up of them stays."""
    if not path:
        raise typer.BadParameter("Name at least one --path.")
    client = session.client
    answer = client.post(client.v3(f"agents/{_id(client, host)}/remove-path"), {"remove_path": path})
    session.output.details(answer, {"Removed": "removed", "Were not there": "not_existed"})


def remove(session: Session, host: HostArgument, yes: YesOption = False) -> None:
    """Forget a host: its certificate ends at once, and its backups are removed from the vaults that have it."""
    session.confirm(f"Forget {host}, and delete its backups?", yes=yes)
    session.client.delete(session.client.v3(f"agents/{_id(session.client, host)}"))
    session.output.note("Removed.")


def register(app: typer.Typer) -> None:
    """Add the commands to the noun."""
    remote(app, "register")(register_host)
    remote(app, "token")(new_token)
    remote(app, "list")(list_hosts)
    remote(app, "show")(show)
    remote(app, "add-path")(add_path)
    remote(app, "remove-path")(remove_path)
    remote(app, "remove")(remove)


def _show_token(session: Session, agent_id: str, *, bare_metal: bool) -> None:
    body = {"resource_type": "OS::Ironic::BareMetalServer"} if bare_metal else {}
    made = session.client.post(session.client.ext(f"agents/{agent_id}/enrolments"), body)["enrolment"]
    if session.output.as_json:
        session.output.document(made | {"agent_id": agent_id})
        return
    session.output.say(f"On the host, as root, before {made['expires_at']}:")
    session.output.say("")
    session.output.say(f"  strongroom agent enroll --server {made['server']} --token {made['token']} --allow PATH")


def _id(client: Client, text: str) -> str:
    if is_id(text):
        return text
    rows = names.hosts(client, name=text)
    if len(rows) != 1:
        what = "No host has" if not rows else f"{len(rows)} hosts have"
        raise typer.BadParameter(f"{what} the name {text}. Name it by its id: strongroom agent list.")
    return str(rows[0]["id"])


def _address(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]).partition("%")[0]
    except OSError:
        return "0.0.0.0"  # noqa: S104 -- shown only: the agent dials, nobody calls it
