"""`task`: what the server does and did for you. A task is the operation log of the API."""

from typing import Annotated

import typer

from strongroom.base.units import human_bytes
from strongroom.cli import names
from strongroom.cli.command import Session, group, remote
from strongroom.cli.errors import EXIT_OK
from strongroom.cli.watching import ENDED, outcome_code, tell_failures, watch

app = group("Tasks: backups, restores and deletions, running and past.")

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Id.")]

COLUMNS = {
    "Id": "id",
    "Operation": "operation_type",
    "Status": "status",
    "%": "extra_info.common.progress",
    "Resource": "extra_info.resource.name",
    "Vault": "vault_name",
    "Created": "created_at",
    "Ended": "ended_at",
    "Error": "error_info.message",
}
MEMBERS = {
    "Id": "id",
    "Operation": "operation_type",
    "Status": "status",
    "Progress %": "progress",
    "Done": "done",
    "Entries": "entries_done",
    "Attempts": "attempts",
    "Resource": "resource_name",
    "Vault": "vault_id",
    "Backup": "backup_id",
    "Created": "created_at",
    "Started": "started_at",
    "Ended": "ended_at",
    "Error": "error_message",
    "Code": "error_code",
}


@remote(app, "list")
def list_tasks(
    session: Session,
    vault: Annotated[str | None, typer.Option(metavar="VAULT", help="Only of this vault, id or name.")] = None,
    operation: Annotated[
        str | None, typer.Option(metavar="TYPE", help="backup, restore, delete, remove_resource or vault_delete.")
    ] = None,
    status: Annotated[str | None, typer.Option(help="waiting, running, success, skipped, failed or timeout.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
) -> None:
    """Show tasks, newest first."""
    client = session.client
    rows = client.pages(
        client.v3("operation-logs"),
        "operation_logs",
        limit=limit,
        vault_id=names.vault_id(client, vault) if vault is not None else None,
        operation_type=operation,
        status=status,
    )
    session.output.table(rows, COLUMNS)


@remote(app, "show")
def show(session: Session, task: TaskArgument) -> None:
    """Show one task with its counters and its outcome."""
    found = session.client.get(session.client.ext(f"tasks/{task}"))["task"]
    total = found.get("bytes_total")
    about = "" if found.get("bytes_total_exact") else "about "
    done = human_bytes(found.get("bytes_done") or 0) + (f" of {about}{human_bytes(total)}" if total else "")
    if found.get("rate_bytes_s"):
        done += f", {human_bytes(found['rate_bytes_s'])}/s"
    session.output.details(found if session.output.as_json else found | {"done": done}, MEMBERS)


@remote(app, "watch")
def watch_tasks(
    session: Session,
    tasks: Annotated[list[str] | None, typer.Argument(metavar="[TASK...]", help="Ids; all open ones without.")] = None,
) -> int:
    """Show progress until the tasks have ended. Ctrl-C stops the watching, not the tasks."""
    client = session.client
    ids = tasks or [row["id"] for row in client.get(client.ext("tasks"), open=True)["tasks"]]
    ended = watch(client, session.output, ids)
    code = outcome_code(ended) if ended else EXIT_OK
    tell_failures(session.output, ended)
    session.output.line("summary", tasks=ended, exit_code=code)
    return code


@remote(app, "cancel")
def cancel(session: Session, task: TaskArgument) -> None:
    """Stop a task. One that waits ends at once, one that runs within seconds, as failed; what it stored is removed."""
    client = session.client
    found = client.get(client.ext(f"tasks/{task}"))["task"]
    if found["status"] in ENDED:
        session.output.note(f"It has ended: {found['status']}.")
        return
    found = client.post(client.ext(f"tasks/{task}/cancel"), {})["task"]
    session.output.note("It will not begin." if found["status"] in ENDED else "Asked to stop.")
