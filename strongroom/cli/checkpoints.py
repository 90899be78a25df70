"""`checkpoint`: a restore point of everything in a vault."""

from typing import Annotated, Any

import typer

from strongroom.cli import names
from strongroom.cli.client import Client, Json
from strongroom.cli.command import Session, WaitOption, group, remote
from strongroom.cli.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTLY_DONE
from strongroom.cli.output import Output
from strongroom.cli.vaults import VaultArgument, load_vault
from strongroom.cli.watching import watch

app = group("Restore points: one run over a vault, with one backup of each resource.")

MEMBERS = {"Id": "id", "Status": "status", "Vault": "vault.name", "Created": "created_at"}
RESOURCE_COLUMNS = {
    "Id": "id",
    "Name": "name",
    "Type": "type",
    "Size GB": "resource_size",
    "Stored MB": "backup_size",
    "Status": "protect_status",
}


@remote(app, "create")
def create(
    session: Session,
    vault: VaultArgument,
    name: Annotated[str | None, typer.Option(help="Name of its backups. Default: manualbk_ and four digits.")] = None,
    description: Annotated[str | None, typer.Option(help="At most 255 characters.")] = None,
    resource: Annotated[
        list[str] | None, typer.Option(metavar="RESOURCE", help="Only this one, id or name; repeatable.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Read everything again and trust no earlier backup.")] = False,
    wait: WaitOption = False,
) -> int:
    """Make a restore point now. Only what changed since the last one is read and stored."""
    found = load_vault(session, vault)
    parameters: dict[str, Any] = {"incremental": not full, "auto_trigger": False}
    if name is not None:
        parameters["name"] = name
    if description is not None:
        parameters["description"] = description
    if resource:
        parameters["resources"] = names.resource_ids_of_vault(found, resource)
    body = {"checkpoint": {"vault_id": found["id"], "parameters": parameters}}
    made = session.client.post(session.client.v3("checkpoints"), body)["checkpoint"]
    if not wait:
        _print(session.output, made)
        return EXIT_OK
    watch(session.client, session.output, backup_task_ids(session.client, made))
    settled = session.client.get(session.client.v3(f"checkpoints/{made['id']}"))["checkpoint"]
    code = _exit_code(settled)
    if session.output.as_json:
        session.output.line("summary", checkpoint=settled, exit_code=code)
    else:
        _print(session.output, settled)
    return code


@remote(app, "show")
def show(session: Session, checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Id.")]) -> None:
    """Show one restore point: what is in it, and what was skipped and why."""
    _print(session.output, session.client.get(session.client.v3(f"checkpoints/{checkpoint}"))["checkpoint"])


def backup_task_ids(client: Client, checkpoint: Json) -> list[str]:
    """The tasks of this restore point's backups, oldest first; a skipped resource has none to wait for."""
    rows = client.pages(client.ext("tasks"), "tasks", checkpoint_id=checkpoint["id"], operation_type="backup")
    return [row["id"] for row in reversed(rows) if row["status"] != "skipped"]


def _exit_code(checkpoint: Json) -> int:
    if checkpoint["status"] != "available":
        return EXIT_FAILED
    return EXIT_PARTLY_DONE if checkpoint["vault"]["skipped_resources"] else EXIT_OK


def _print(output: Output, checkpoint: Json) -> None:
    output.details(checkpoint, MEMBERS)
    if output.as_json:
        return
    if checkpoint["vault"]["resources"]:
        output.say("")
        output.table(checkpoint["vault"]["resources"], RESOURCE_COLUMNS)
    for skipped in checkpoint["vault"]["skipped_resources"]:
        output.warn(f"Skipped {skipped['name'] or skipped['id']}: {skipped['reason']} ({skipped['code']})")
