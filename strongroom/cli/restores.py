"""`restore`: a backup, or a path inside it, back to where it came from or to another resource."""

from typing import Annotated, Any

import typer

from strongroom.cli import names
from strongroom.cli.backups import BackupArgument
from strongroom.cli.command import Session, WaitOption, YesOption, remote
from strongroom.cli.errors import EXIT_OK
from strongroom.cli.watching import outcome_code, tell_failures, watch


def restore(
    session: Session,
    backup: BackupArgument,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="RESOURCE", help="Another resource, id or name. Default: where it came from."),
    ] = None,
    path: Annotated[str | None, typer.Option(metavar="PATH", help="Only this file or folder of the backup.")] = None,
    target_path: Annotated[
        str | None,
        typer.Option("--target-path", metavar="FOLDER", help="With --path: into this folder inside the target."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also when another program has the target open.")] = False,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DISK=TARGET",
            help="Of a server: this disk of the backup onto that disk of the server, by ids or names; repeatable. "
            "Default: every disk to where it was.",
        ),
    ] = None,
    new_name: Annotated[
        str | None, typer.Option("--new-name", metavar="NAME", help="Of a server: make a new one beside it instead.")
    ] = None,
    power_on: Annotated[
        bool, typer.Option("--power-on/--no-power-on", help="Whether a server runs afterwards.")
    ] = True,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="With --to: what is whole of a damaged backup; tells the rest."),
    ] = False,
    wait: WaitOption = False,
    yes: YesOption = False,
) -> int:
    """Restore a backup. What is at the target is replaced when everything has been verified."""
    client = session.client
    chosen = names.backup_id(client, backup)
    body: dict[str, Any] = {"force": force, "skip_damaged": skip_damaged}
    body |= names.path_members(path or "") | names.path_members(target_path or "", "target_path")
    if to is not None:
        body["target_resource_id"] = names.resources(client, [to])[0]["id"]
    if disk:
        body["mappings"] = _mappings(session, chosen, to, disk)
    if new_name is not None:
        body["new_name"] = new_name
    body["power_on"] = power_on
    where = to if to is not None else "where it came from"
    what = f"{path} of {backup}" if path is not None else backup
    session.confirm(
        f"Make server {new_name} of {backup}?"
        if new_name is not None
        else f"Restore {what} to {where}, replacing what is there?",
        yes=yes,
    )
    job_id = client.post(client.ext(f"backups/{chosen}/restore"), {"restore": body})["job_id"]
    if not wait:
        if session.output.as_json:
            session.output.document({"job_id": job_id})
        else:
            session.output.say(f"Task {job_id}")
        return EXIT_OK
    ended = watch(client, session.output, [job_id])
    code = outcome_code(ended)
    tell_failures(session.output, ended)
    session.output.line("summary", task=ended[0], exit_code=code)
    if code == EXIT_OK:
        session.output.note("Restored and verified.")
        tell_left_out(session, ended[0])
    return code


def _mappings(session: Session, backup_id: str, to: str | None, pairs: list[str]) -> list[dict[str, str]]:
    """DISK=TARGET as the API wants it. DISK: a child's id, the disk's id, or its name in the backup."""
    client = session.client
    shown = client.get(client.v3(f"backups/{backup_id}"))["backup"]
    server = names.server(client, to if to is not None else shown["resource_id"])
    mappings = []
    for pair in pairs:
        text, equals, target = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair} is not DISK=TARGET, such as vda=vda.")
        child = names.disk_backup_id(shown, text)
        mappings.append({"backup_id": child, "volume_id": names.disk_ids(server, [target])[0]})
    return mappings


def tell_left_out(session: Session, task: dict[str, Any]) -> None:
    """Attributes that a restore to another resource must not carry over (setuid bits, device nodes) are listed."""
    left_out = (task.get("outcome") or {}).get("left_out") or []
    if left_out:
        count = task["outcome"].get("left_out_count", len(left_out))
        session.output.warn(f"Left out {count}: `strongroom task show {task['id']} --json` lists them.")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    remote(app, "restore")(restore)
