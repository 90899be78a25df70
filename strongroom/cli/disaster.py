"""Commands for the day on which the database is lost, and for the days before it.

The server is imported inside the commands, so that a client's start-up does not pay for it.
"""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strongroom.cli.command import JsonOption
from strongroom.cli.errors import EXIT_PARTLY_DONE
from strongroom.cli.local import LocalStateOption
from strongroom.cli.output import Output, shown

if TYPE_CHECKING:
    from strongroom.engine.self_copies import SelfCopy
    from strongroom.operations.rebuild import Rebuilt
    from strongroom.operations.self_backup import Restored

RegistrationsOption = Annotated[
    bool,
    typer.Option(
        "--registrations", help="Let vaults protect their resources again, at the paths of this machine they had."
    ),
]

_COPY_LABELS = {"Copy": "copy", "Of": "copied_at", "Tables": "tables", "Rows": "rows", "Sealed bytes": "bytes"}
_MADE_LABELS = {
    "Projects": "projects",
    "Vaults": "vaults",
    "Restore points": "checkpoints",
    "Backups": "backups",
    "Registrations": "registrations",
    "Indexes rebuilt": "indexes",
}


def backup_self(
    show: Annotated[
        bool, typer.Option("--list", help="Instead: show the copies that the store has, newest first.")
    ] = False,
    state: LocalStateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the database into the store, sealed by the master key. The server may run; it does this by itself daily."""
    from strongroom.config import load_settings
    from strongroom.upkeep import backup_self as run_copy
    from strongroom.upkeep import self_copies

    settings, output = load_settings({"state": str(state) if state else None}, os.environ), Output(as_json=as_json)
    if not show:
        output.details(_copy_values(run_copy(settings)), _COPY_LABELS)
        return
    rows = [
        {"copy": each.number, "reason": each.reason} | (_copy_values(each.copy) if each.copy else {})
        for each in self_copies(settings)
    ]
    output.table(rows, _COPY_LABELS | {"Of no use because": "reason"})


def restore_self(
    copy: Annotated[
        int | None, typer.Option("--copy", metavar="NUMBER", help="Not the newest copy, but this one.")
    ] = None,
    registrations: RegistrationsOption = False,
    state: LocalStateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a lost database again: from its copy in the store, and from what the store has beyond that."""
    from strongroom.config import load_settings
    from strongroom.upkeep import restore_self as run_restore

    settings = load_settings({"state": str(state) if state else None}, os.environ)
    restored, done = run_restore(settings, number=copy, registrations=registrations)
    _tell(Output(as_json=as_json), restored, done)


def rebuild(
    registrations: RegistrationsOption = False,
    without_copy: Annotated[
        bool, typer.Option("--without-copy", help="Do not look for a copy of the database in the store.")
    ] = False,
    state: LocalStateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the rows of a lost database again from the store: what its copy says, projects, vaults, restore points."""
    from strongroom.config import load_settings
    from strongroom.upkeep import rebuild as run_rebuild

    settings = load_settings({"state": str(state) if state else None}, os.environ)
    restored, done = run_rebuild(settings, registrations=registrations, with_copy=not without_copy)
    _tell(Output(as_json=as_json), restored, done)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("backup-self")(backup_self)
    app.command("restore-self")(restore_self)
    app.command("rebuild")(rebuild)


def _tell(output: Output, restored: "Restored | None", done: "Rebuilt") -> None:
    skipped = list(restored.skipped) if restored else []
    values: dict[str, Any] = {
        **(_copy_values(restored.copy) if restored else {}),
        **asdict(done.made),
        "gone": done.gone,
        "indexes": done.indexes,
        "problems": [list(problem) for problem in done.problems],
        "copies_skipped": [list(each) for each in skipped],
    }
    labels = {**(_COPY_LABELS if restored else {}), **_MADE_LABELS}
    if done.gone:
        labels["Gone from the store"] = "gone"
    output.details(values, labels)
    for number, reason in skipped:
        output.warn(f"copy {number} of the database was passed over: {shown(reason)}")
    for place, reason in done.problems:
        output.warn(f"{place}: {shown(reason)}")
    if done.problems or skipped:
        raise typer.Exit(EXIT_PARTLY_DONE)


def _copy_values(copy: "SelfCopy") -> dict[str, Any]:
    return {
        "copy": copy.number,
        "copied_at": copy.created_at.isoformat(),
        "program": copy.program,
        "revision": copy.revision,
        "tables": len(copy.tables),
        "rows": sum(table.rows for table in copy.tables),
        "bytes": copy.bytes,
    }
