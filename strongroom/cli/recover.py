"""`recover`: restore points from a store and a key file, without server and database.

The engine is imported inside the commands, so that a client's start-up does not pay for it.
"""

from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.command import JsonOption, group
from strongroom.cli.errors import EXIT_OK, EXIT_PARTLY_DONE
from strongroom.cli.output import Output, shown

LEFT_OUT_SHOWN_MAX = 20

app = group("Restore from a store and its key file alone, without server and database.")

VaultOption = Annotated[str | None, typer.Option(metavar="VAULT", help="Only this vault: its id or its name.")]
BackupArgument = Annotated[str, typer.Argument(metavar="BACKUP", help="Id or name, as `recover list` shows them.")]

COLUMNS = {
    "Backup": "backup",
    "Name": "name",
    "Vault": "vault_name",
    "Resource": "resource_name",
    "Made at": "created_at",
    "Size": "size",
    "State": "state",
    "Reason": "reason",
}
LINES = {
    "Backup": "backup",
    "Name": "name",
    "Project": "project",
    "Vault": "vault",
    "Vault's name": "vault_name",
    "Resource": "resource_name",
    "Type": "resource_type",
    "Path": "path",
    "Restore point": "checkpoint",
    "Made at": "created_at",
    "Size in bytes": "size",
    "Entries": "entries",
    "State": "state",
    "Reason": "reason",
    "Changed while read": "changed_while_read",
    "Left out": "skipped",
    "Root": "root",
    "Domain": "domain",
}


@app.callback()
def recover(
    context: typer.Context,
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="STRONGROOM_STORE_URL", help="The store: a URL, or a folder.")
    ],
    key: Annotated[
        Path,
        typer.Option(
            metavar="FILE", envvar="STRONGROOM_MASTER_KEY_FILE", help="What `export-key` wrote: master or vault's key."
        ),
    ],
) -> None:
    """Restore from a store and its key file alone, without server and database."""
    context.obj = (store, key)


@app.command("list")
def list_points(
    context: typer.Context,
    vault: VaultOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look whether every chunk is there; reads all metadata.")
    ] = False,
    superseded: Annotated[
        bool, typer.Option("--all", help="Also generations in whose place another one stands.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Every restore point the key opens, oldest first, as it was labelled when it was made."""
    from strongroom.cli.recovery import Recovery, row

    output = Output(as_json=as_json)
    store, key = context.obj
    recovery = Recovery(store, key, output)
    try:
        points = recovery.points(vault, check=check)
        rows = [row(d, p) for d, p in points if superseded or p.counts or p.state in ("incomplete", "unreadable")]
    finally:
        recovery.close()
    output.table(rows, COLUMNS)


@app.command("show")
def show_point(
    context: typer.Context, backup: BackupArgument, vault: VaultOption = None, as_json: JsonOption = False
) -> None:
    """One restore point: where it comes from, and whether all of it is there."""
    from strongroom.cli.recovery import Recovery, details

    output = Output(as_json=as_json)
    store, key = context.obj
    recovery = Recovery(store, key, output)
    try:
        values = details(*recovery.find(backup, vault))
    finally:
        recovery.close()
    output.details(values, LINES)


@app.command("restore")
def restore_point(
    context: typer.Context,
    backup: BackupArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="New or empty folder; for a disk, a new file.")],
    path: Annotated[str | None, typer.Option(metavar="PATH", help="Only this file or folder of the backup.")] = None,
    vault: VaultOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore into a new place. Every byte is checked before it is written; nothing is overwritten."""
    from strongroom.cli.recovery import Recovery
    from strongroom.cli.recovery import restore_point as restore

    output = Output(as_json=as_json)
    store, key = context.obj
    recovery = Recovery(store, key, output)
    try:
        domain, point = recovery.find(backup, vault)
        if point.reason:
            output.warn(f"{point.name} is {point.state}: {point.reason}")
        done, report = restore(domain.repository, point, dest, path, output)
    finally:
        recovery.close()
    for item in report.left_out[:LEFT_OUT_SHOWN_MAX]:
        output.warn(f"Left out: {shown(b'/'.join(item.path).decode(errors='backslashreplace'))}: {item.reason}")
    code = EXIT_PARTLY_DONE if report.left_out else EXIT_OK
    output.line("summary", root=point.name, **done, exit_code=code)
    output.say(f"Restored {point.backup_id} to {dest}: {done['entries']} entries, {done['bytes']} bytes, verified.")
    if code:
        raise typer.Exit(code)


@app.command("reindex")
def reindex(context: typer.Context, vault: VaultOption = None, as_json: JsonOption = False) -> None:
    """Rebuild what was lost of the index, in the store itself. The other commands do it in memory."""
    from strongroom.cli.recovery import Recovery

    output = Output(as_json=as_json)
    store, key = context.obj
    recovery = Recovery(store, key, output)
    try:
        rows = [
            {
                "place": place.prefix,
                "domain": place.id.hex(),
                "was_sound": report.was_sound,
                "packs_kept": report.packs_kept,
                "packs_read": report.packs_read,
                "packs_damaged": [list(pack) for pack in report.packs_damaged],
                "objects_damaged": [list(found) for found in report.objects_damaged],
                "objects_lost": list(report.objects_lost),
            }
            for place, report in recovery.mend_in_place(vault)
        ]
    finally:
        recovery.close()
    output.table(
        rows, {"Place": "place", "Was sound": "was_sound", "Packs known": "packs_kept", "Packs read": "packs_read"}
    )
    if any(row["packs_damaged"] for row in rows):
        output.warn("Some packs cannot be used; `strongroom recover list --check` tells what that hits.")
        raise typer.Exit(EXIT_PARTLY_DONE)
