"""`verify`: is everything there that a vault's backups need, and is it what was written."""

from typing import Annotated, Any

import typer

from strongroom.cli import names
from strongroom.cli.command import Session, WaitOption, remote
from strongroom.cli.errors import EXIT_OK
from strongroom.cli.output import shown
from strongroom.cli.watching import outcome_code, watch

FINDINGS_SHOWN_MAX = 20


def verify(
    session: Session,
    vault: Annotated[str, typer.Argument(metavar="VAULT", help="Id or name.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also read and compare the content.")] = False,
    sample: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            min=0.01,
            max=100,
            help="Read only so much, what was read longest ago first.",
        ),
    ] = None,
    wait: WaitOption = False,
) -> int:
    """Check a vault. A backup that is hit is reported as `error` from then on, until a deep check finds it whole."""
    client = session.client
    body: dict[str, Any] = {"deep": deep or sample is not None}
    if sample is not None:
        body["sample"] = sample
    chosen = names.vault_id(client, vault)
    task_id = client.post(client.ext(f"vaults/{chosen}/verify"), {"verify": body})["task_id"]
    if not wait:
        if session.output.as_json:
            session.output.document({"task_id": task_id})
        else:
            session.output.say(f"Task {task_id}")
        return EXIT_OK
    (ended,) = watch(client, session.output, [task_id])
    code = outcome_code([ended])
    session.output.line("summary", task=ended, exit_code=code)
    tell(session, ended)
    return code


def tell(session: Session, task: dict[str, Any]) -> None:
    """What was found, and what to do."""
    outcome = task.get("outcome") or {}
    if "findings" not in outcome:
        session.output.warn(shown(task.get("error_message") or "The check did not run to its end."))
        return
    for finding in outcome["findings"][:FINDINGS_SHOWN_MAX]:
        session.output.warn(shown(f"{finding['kind']} {finding['object']}: {finding['reason']}"))
        for hit in finding["paths"][:FINDINGS_SHOWN_MAX]:
            session.output.warn(shown(f"  {hit['backup']}: {hit['path']}"))
    for backup in outcome["damaged_backups"]:
        session.output.warn(f"Backup {backup} is damaged: `strongroom backup show {backup}` tells what it hits.")
    if outcome["damaged_backups"]:
        session.output.note(
            "Back up the same resources again: what did not change there comes back. Then verify again."
        )
    session.output.note(
        f"{outcome['backups']} backups, {outcome['packs_checked']} packs checked, "
        f"{outcome['findings_count']} findings; "
        f"{outcome['proven_percent_30_days']} % proven in the last 30 days."
    )


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    remote(app, "verify")(verify)
