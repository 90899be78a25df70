"""`audit`: who did what from where."""

from typing import Annotated

import typer

from strongroom.cli import names
from strongroom.cli.client import Json
from strongroom.cli.command import Session, group, remote

app = group("The audit log: who did what from where.")

PAGE_LIMIT = 1000
COLUMNS = {
    "At": "at",
    "User": "user_name",
    "From": "address",
    "Operation": "operation",
    "On": "on",
    "Outcome": "outcome",
    "Code": "error_code",
    "Request": "request_id",
}


@remote(app, "list")
def list_audit(
    session: Session,
    everything: Annotated[bool, typer.Option("--all", help="For the operator: of all projects.")] = False,
    project: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="For the operator: of this project, id or name.")
    ] = None,
    operation: Annotated[str | None, typer.Option(metavar="NAME", help="Only this one, such as delete_backup.")] = None,
    user: Annotated[str | None, typer.Option(metavar="USER", help="Only of this user, id or name.")] = None,
    outcome: Annotated[str | None, typer.Option(help="done or refused.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="UTC, such as 2026-02-05T10:38:34Z.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="UTC.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
) -> None:
    """Show what was done and refused, newest first. For administrators of the project."""
    client = session.client
    path, of_project = client.ext("audit"), None
    if everything or project is not None:
        path = "/ext/v1/admin/audit"
        of_project = names.project_id(client, project) if project is not None else None
    rows: list[Json] = []
    marker: str | None = None
    while len(rows) < limit:
        page = client.get(
            path,
            limit=min(PAGE_LIMIT, limit - len(rows)),
            marker=marker,
            project_id=of_project,
            operation=operation,
            user=user,
            outcome=outcome,
            start_time=since,
            end_time=until,
        )
        rows.extend(page["audit"])
        marker = page["next_marker"]
        if marker is None:
            break
    if not session.output.as_json:
        rows = [row | {"on": " ".join(row["objects"].values())} for row in rows]
    session.output.table(rows, COLUMNS)
