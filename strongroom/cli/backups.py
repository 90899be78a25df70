"""`backup`: the restorable copies of single resources, and what is inside them."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import httpx
import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from strongroom.base.units import human_bytes
from strongroom.cli import names
from strongroom.cli.client import Json
from strongroom.cli.command import Session, YesOption, group, remote
from strongroom.cli.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_PARTLY_DONE,
    AnswerCutOff,
    CommandRefused,
    RequestRefused,
)
from strongroom.cli.output import print_error, shown, when

app = group("Backups: one restorable copy of one resource each.")

BackupArgument = Annotated[str, typer.Argument(metavar="BACKUP", help="Id, or name if only one backup has it.")]

COLUMNS = {
    "Id": "id",
    "Name": "name",
    "Resource": "resource_name",
    "Type": "resource_type",
    "Size GB": "resource_size",
    "Status": "status",
    "Created": "created_at",
}
SHARED_COLUMNS = {"Share": "member_status", "Of project": "project_id"}
ENTRIES_PAGE = 1000
DOWNLOAD_PIECE = 1 << 20


@remote(app, "list")
def list_backups(
    session: Session,
    vault: Annotated[str | None, typer.Option(metavar="VAULT", help="Only of this vault, id or name.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Only of this restore point, id.")
    ] = None,
    resource: Annotated[str | None, typer.Option(metavar="RESOURCE", help="Only of this resource, id or name.")] = None,
    status: Annotated[str | None, typer.Option(help="Only in this status, such as available.")] = None,
    shared: Annotated[bool, typer.Option("--shared", help="Those that other projects share with yours.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, newest first.")] = None,
) -> None:
    """Show backups, newest first."""
    client = session.client
    rows = client.pages(
        client.v3("backups"),
        "backups",
        limit=limit,
        vault_id=names.vault_id(client, vault) if vault is not None else None,
        checkpoint_id=checkpoint,
        resource_id=names.resources(client, [resource])[0]["id"] if resource is not None else None,
        status=status,
        own_type="shared" if shared else None,
    )
    session.output.table(rows, COLUMNS | SHARED_COLUMNS if shared else COLUMNS)


@remote(app, "show")
def show(session: Session, backup: BackupArgument) -> None:
    """Show one backup: what it read, what was new, what it stored."""
    client = session.client
    chosen = names.backup_id(client, backup)
    found = client.get(client.v3(f"backups/{chosen}"))["backup"]
    report = client.get(client.ext(f"backups/{chosen}"))["backup"]
    if session.output.as_json:
        session.output.document(found | {"report": report})
        return
    counts = {
        label: human_bytes(report[member])
        for label, member in (("Read", "bytes_read"), ("New", "bytes_new"), ("Stored", "bytes_stored"))
        if isinstance(report.get(member), int)
    }
    members = COLUMNS | {"Restore point": "checkpoint_id", "Vault": "vault_id", "Expires": "expired_at"}
    members |= {label: label for label in counts} | _REPORT | (_MACHINE if found["children"] else {})
    session.output.details(found | counts | report_lines(report), members)
    if found["children"]:
        session.output.say("")
        session.output.table(found["children"], DISK_COLUMNS)


@remote(app, "update")
def update(
    session: Session, backup: BackupArgument, name: Annotated[str, typer.Option(help="New name, 1-64 characters.")]
) -> None:
    """Rename a backup."""
    path = session.client.v3(f"backups/{names.backup_id(session.client, backup)}")
    session.output.details(session.client.put(path, {"backup": {"name": name}})["backup"], COLUMNS)


@remote(app, "delete")
def delete(
    session: Session,
    backups: Annotated[list[str], typer.Argument(metavar="BACKUP...", help="Ids, or names that only one backup has.")],
    yes: YesOption = False,
) -> int:
    """Delete backups. A restore point goes with its last backup. It ends in the background."""
    ids = [names.backup_id(session.client, text) for text in backups]
    session.confirm(f"Delete {len(ids)} backup(s)?", yes=yes)
    refused = 0
    for chosen in ids:
        try:
            session.client.delete(session.client.v3(f"backups/{chosen}"))
        except RequestRefused as error:
            refused += 1
            print_error(error, as_json=session.output.as_json)
    session.output.note(f"Accepted {len(ids) - refused} of {len(ids)}.")
    if not refused:
        return EXIT_OK
    return EXIT_FAILED if refused == len(ids) else EXIT_PARTLY_DONE


@remote(app, "entries")
def entries(
    session: Session,
    backup: BackupArgument,
    path: Annotated[str, typer.Option(metavar="PATH", help="Folder inside the backup; its top without.")] = "",
) -> None:
    """List what a backup holds, one folder at a time."""
    client = session.client
    where = client.ext(f"backups/{names.backup_id(client, backup)}/entries")
    rows: list[Json] = []
    after: str | None = None
    while True:
        page = client.get(where, **names.path_members(path), after=after, limit=ENTRIES_PAGE)
        rows.extend(page["entries"])
        after = page["next"]
        if after is None:
            break
    if session.output.as_json:
        session.output.document(rows)
        return
    cells = [
        [
            row["kind"],
            f"{row['mode'] & 0o7777:04o}",
            f"{row['uid']}:{row['gid']}",
            row["size"],
            when(row["modified_at"]),
            _named(row),
        ]
        for row in rows
    ]
    session.output.cells(cells, ["Kind", "Mode", "Owner", "Bytes", "Modified", "Name"])


@remote(app, "download")
def download(
    session: Session,
    backup: BackupArgument,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="File inside the backup; nothing for a disk.")] = "",
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout. Default: the file's name."),
    ] = None,
) -> None:
    """Fetch one file, or a disk, out of a backup."""
    client = session.client
    chosen = names.backup_id(client, backup)
    if output == "-":
        with client.stream(client.ext(f"backups/{chosen}/download"), **names.path_members(path)) as response:
            _copy(session, response, sys.stdout.buffer, path or chosen)
        return
    target = Path(output) if output is not None else Path(os.path.basename(path) or f"{chosen}.img")
    if target.exists():
        raise CommandRefused(reason=f"{target} exists. Name another file with --output.")
    partial = target.with_name(target.name + ".part")
    try:
        with (
            client.stream(client.ext(f"backups/{chosen}/download"), **names.path_members(path)) as response,
            partial.open("wb") as stream,
        ):
            size = _copy(session, response, stream, target.name)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(target)
    except OSError as err:
        raise CommandRefused(reason=f"{target} cannot be written: {err.strerror}.") from err
    finally:
        partial.unlink(missing_ok=True)
    if session.output.as_json:
        session.output.line("summary", file=str(target), bytes=size)
    else:
        session.output.note(f"Wrote {target}, {human_bytes(size)}.")


DISK_COLUMNS = {
    "Disk's backup": "id",
    "Disk": "resource_name",
    "Disk's id": "resource_id",
    "Size GB": "resource_size",
    "System disk": "extend_info.system_disk",
    "Status": "status",
}
_MACHINE = {"Consistency": "consistency", "Why no more": "consistency_reason"}
_REPORT = {
    "Entries": "entries",
    "Kind": "kind",
    "Seconds": "seconds",
    "Changed while read": "changed",
    "Left out": "left_out",
    "Why full": "full_reason",
    "Read whole": "read_whole",
    "Snapshot": "snapshot",
    "Damage": "damage",
}


def report_lines(report: Json) -> dict[str, Any]:
    """The report's members as a table shows them: counts instead of long lists."""
    source = report.get("source") or {}
    return {
        "entries": report.get("entries"),
        "kind": report.get("kind"),
        "seconds": report.get("seconds"),
        "changed": len(report.get("changed_while_read") or []),
        "left_out": len(report.get("skipped") or []),
        "full_reason": report.get("full_reason"),
        "read_whole": None if report.get("full_reason") else source.get("read_whole"),
        "snapshot": source.get("snapshot_reason"),
        "damage": _damage(report.get("damage")),
        "consistency": report.get("consistency"),
        "consistency_reason": report.get("consistency_reason"),
    }


def _damage(damage: Json | None) -> str | None:
    """What a check found, in one line."""
    if not damage:
        return None
    return shown(f"{damage['reason']} It hits {damage['files']} files: {', '.join(damage['paths'][:5])}")


def _named(row: Json) -> str:
    """Name with the target of a link, and a mark on what changed while it was read."""
    text = shown(row["name"])
    if row["kind"] == "symlink":
        text += f" -> {shown(row.get('target'))}"
    return text + ("  (changed while read)" if row.get("changed_while_read") else "")


def _copy(session: Session, response: httpx.Response, stream: BinaryIO, label: str) -> int:
    """Body to stream, with a bar. The server verifies what it sends, and cuts the answer off at a damaged piece."""
    expected = int(response.headers.get("Content-Length") or 0)
    done = 0
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=session.output.stderr, disable=not session.output.live) as bars:
        bar = bars.add_task(shown(label), total=expected)
        try:
            for piece in response.iter_bytes(DOWNLOAD_PIECE):
                stream.write(piece)
                done += len(piece)
                bars.update(bar, completed=done)
        except httpx.TransportError as err:
            raise AnswerCutOff(got=done, wanted=expected, detail=str(err)) from err
    return done
