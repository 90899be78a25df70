"""`backup share` and what follows: offering a backup to other projects, accepting it, giving it up, taking it back."""

from typing import Annotated

import typer

from strongroom.cli import names
from strongroom.cli.backups import BackupArgument
from strongroom.cli.command import Session, YesOption, remote

ProjectsArgument = Annotated[
    list[str], typer.Argument(metavar="PROJECT...", help="Ids of projects; names too, if you are the operator.")
]

COLUMNS = {"Project": "dest_project_id", "Status": "status", "Vault there": "vault_id", "Since": "created_at"}


def share(session: Session, backup: BackupArgument, projects: ProjectsArgument) -> None:
    """Offer a backup to other projects. They may read it once they have accepted it, until you take it back."""
    client = session.client
    path = client.v3(f"backups/{names.backup_id(client, backup)}/members")
    body = {"members": [names.project_id(client, project) for project in projects]}
    session.output.table(client.post(path, body)["members"], COLUMNS)


def members(session: Session, backup: BackupArgument) -> None:
    """Show with whom a backup is shared; of a received one, your own project."""
    client = session.client
    path = client.v3(f"backups/{names.backup_id(client, backup)}/members")
    session.output.table(client.pages(path, "members"), COLUMNS)


def unshare(session: Session, backup: BackupArgument, projects: ProjectsArgument, yes: YesOption = False) -> None:
    """Take a backup back from projects. They see it no more, and a restore that reads it stops."""
    client = session.client
    path = client.v3(f"backups/{names.backup_id(client, backup)}/members")
    ids = [names.project_id(client, project) for project in projects]
    session.confirm(f"Take the backup back from {len(ids)} project(s)?", yes=yes)
    for project in ids:
        client.delete(f"{path}/{project}")
    session.output.note(f"Not shared with {', '.join(ids)} any more.")


def accept(
    session: Session,
    backup: BackupArgument,
    vault: Annotated[str, typer.Option(metavar="VAULT", help="A vault of the backup's kind, id or name.")],
) -> None:
    """Accept a backup that is shared with you, into a vault. It takes no room there."""
    _decide(session, backup, {"status": "accepted", "vault_id": names.vault_id(session.client, vault)})


def reject(session: Session, backup: BackupArgument) -> None:
    """Give up a backup that is shared with you. Its owner sees that; you may accept it later."""
    _decide(session, backup, {"status": "rejected"})


def _decide(session: Session, backup: str, body: dict[str, str]) -> None:
    client = session.client
    chosen = names.received_id(client, backup)
    member = client.put(client.v3(f"backups/{chosen}/members/{client.project_id}"), body)["member"]
    session.output.details(member, COLUMNS)


def register(app: typer.Typer) -> None:
    """Add the verbs to the noun."""
    for name, function in (
        ("share", share),
        ("members", members),
        ("unshare", unshare),
        ("accept", accept),
        ("reject", reject),
    ):
        remote(app, name)(function)
