"""Commands that need no server: they are one, or work on its state folder.

The server is imported inside the commands, so that a client's start-up does not pay for it.
"""

import os
import platform
from pathlib import Path
from typing import Annotated

import typer

from strongroom import __version__
from strongroom.cli.command import JsonOption
from strongroom.cli.errors import EXIT_OK
from strongroom.cli.output import Output

LocalStateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", help="State folder. Default: STRONGROOM_STATE, else ~/.local/share/strongroom."
    ),
]


def serve(
    state: LocalStateOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Default: 127.0.0.1:8799. Port 0: any free one.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without TLS.")] = False,
) -> None:
    """Run the server: API, jobs and an embedded PostgreSQL. The first start makes credentials.json."""
    from strongroom.config import load_settings
    from strongroom.server import serve as run_server

    options = {
        "state": _text(state),
        "listen": listen,
        "tls_cert": _text(tls_cert),
        "tls_key": _text(tls_key),
        "insecure": "true" if insecure else None,
    }
    raise typer.Exit(run_server(load_settings(options, os.environ)))


def export_key(
    output: Annotated[
        Path, typer.Argument(metavar="FILE", help="New file, mode 0600. Keep it away from this machine.")
    ],
    state: LocalStateOption = None,
) -> None:
    """Write the key without which nothing can be restored. Do this once, now, and store it elsewhere."""
    from strongroom.config import load_settings
    from strongroom.server import export_key as run_export

    code = run_export(load_settings({"state": _text(state)}, os.environ), output)
    if code == EXIT_OK:
        Output(as_json=False).say(
            f"Wrote {output}. Keep it on another machine: without it no restore point can be read."
        )
    raise typer.Exit(code)


def migrate(state: LocalStateOption = None) -> None:
    """Bring the database to this version's schema; `serve` does it by itself."""
    from strongroom.config import load_settings
    from strongroom.server import migrate as run_migrations

    code = run_migrations(load_settings({"state": _text(state)}, os.environ))
    if code == EXIT_OK:
        Output(as_json=False).say("The database has this version's schema.")
    raise typer.Exit(code)


def version(as_json: JsonOption = False) -> None:
    """Show the version."""
    values = {"version": __version__, "python": platform.python_version()}
    Output(as_json=as_json).details(values, {"Strongroom": "version", "Python": "python"})


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("serve")(serve)
    app.command("export-key")(export_key)
    app.command("migrate")(migrate)
    app.command("version")(version)


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
