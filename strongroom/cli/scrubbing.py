"""`scrub`: a store compared with the digests of what was written, without key, server or database.

The engine is imported inside the command, so that a client's start-up does not pay for it.
"""

from typing import Annotated

import typer

from strongroom.cli.command import JsonOption
from strongroom.cli.errors import EXIT_FAILED, EXIT_OK
from strongroom.cli.output import Output, shown


def scrub(
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="STRONGROOM_STORE_URL", help="The store: a URL, or a folder.")
    ],
    prefix: Annotated[
        str, typer.Option(metavar="PREFIX", help="Only what lies below: vaults/PROJECT/ or vaults/PROJECT/VAULT/.")
    ] = "",
    sample: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0.1, max=100, help="Share of the packs to read; daily runs take them in turn."
        ),
    ] = 100.0,
    as_json: JsonOption = False,
) -> None:
    """Compare every object of a store with what was written. Needs no key; exit code 1 when anything differs."""
    from strongroom.cli.proving import scrub_lines, scrub_summary
    from strongroom.cli.recovery import open_place, progress
    from strongroom.engine.scrub import scrub as run_scrub

    output = Output(as_json=as_json)
    with progress(output, "Comparing") as monitor:
        report = run_scrub(open_place(store), prefix, monitor=monitor, sample=sample / 100)
    code = EXIT_FAILED if report.findings else EXIT_OK
    output.line("summary", **scrub_summary(report), exit_code=code)
    for line in scrub_lines(report):
        output.say(shown(line))
    if code:
        raise typer.Exit(code)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("scrub")(scrub)
