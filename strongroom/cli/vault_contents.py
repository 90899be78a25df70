"""`vault keep`, `vault move`, `vault sync`: what happens to all that a vault holds, as tasks."""

from typing import Annotated, Any

import typer

from strongroom.cli import names
from strongroom.cli.command import Session, WaitOption, YesOption, remote
from strongroom.cli.errors import EXIT_OK
from strongroom.cli.output import shown
from strongroom.cli.vaults import ResourcesArgument, VaultArgument, load_vault
from strongroom.cli.watching import outcome_code, tell_failures, watch

PROBLEMS_SHOWN_MAX = 20


def keep(
    session: Session,
    vault: VaultArgument,
    until: Annotated[str, typer.Option(metavar="DAY", help="The last day, as 2027-01-31.")],
    time_zone: Annotated[
        str, typer.Option("--time-zone", metavar="ZONE", help="Where that day ends, as UTC+08:00.")
    ] = "UTC+00:00",
    wait: WaitOption = False,
    yes: YesOption = False,
) -> int:
    """Let every restore point of a vault end with a day: sooner or later than it would. In a locked one only later."""
    client = session.client
    chosen = names.vault_id(client, vault)
    session.confirm(f"Let ALL restore points in {vault} end with {until}, whatever time they have now?", yes=yes)
    body = {"expect_expiration_date": until, "time_zone": time_zone}
    answer = client.put(client.v3(f"vaults/{chosen}/update-backup-expiration-time"), body)
    if not session.output.as_json:
        session.output.note(f"{answer['affected_backups_count']} backups end with {until}.")
    return _ended(session, answer, wait=wait)


def move(
    session: Session,
    vault: VaultArgument,
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="The vault they go to, id or name.")],
    resources: ResourcesArgument,
    wait: WaitOption = False,
) -> int:
    """Move resources with all their backups to another vault of the same kind. Restore points keep their ids."""
    client = session.client
    found = load_vault(session, vault)
    body = {
        "destination_vault_id": names.vault_id(client, destination),
        "resource_ids": names.resource_ids_of_vault(found, resources),
    }
    return _ended(session, client.post(client.v3(f"vaults/{found['id']}/migrateresources"), body), wait=wait)


def sync(session: Session, vault: VaultArgument, wait: WaitOption = False) -> int:
    """Bring restore points into the catalogue that the store holds for a vault and the database does not know."""
    client = session.client
    body = {"sync": {"vault_id": names.vault_id(client, vault), "auto_trigger": False}}
    return _ended(session, client.post(client.v3("checkpoints/sync"), body)["sync"], wait=wait)


def _ended(session: Session, answer: dict[str, Any], *, wait: bool) -> int:
    """The exit code; with `wait` after the task has ended."""
    if not wait:
        if session.output.as_json:
            session.output.document(answer)
        else:
            session.output.say(f"Task {answer['operation_log_id']}")
        return EXIT_OK
    (ended,) = watch(session.client, session.output, [answer["operation_log_id"]])
    code = outcome_code([ended])
    tell_failures(session.output, [ended])
    session.output.line("summary", task=ended, exit_code=code)
    _tell(session, ended)
    return code


def _tell(session: Session, task: dict[str, Any]) -> None:
    outcome = task.get("outcome") or {}
    for problem in outcome.get("problems", [])[:PROBLEMS_SHOWN_MAX]:
        session.output.warn(shown(f"{problem['object']}: {problem['reason']}"))
    if task["operation_type"] == "sync" and "imported" in outcome:
        session.output.note(f"{outcome['imported']} backups brought in, {outcome['failed']} could not be.")
    if task["operation_type"] == "migrate" and "backups" in outcome:
        session.output.note(f"{outcome['backups']} backups moved.")


def register(app: typer.Typer) -> None:
    """Add the commands to the group of vaults."""
    remote(app, "keep")(keep)
    remote(app, "move")(move)
    remote(app, "sync")(sync)
