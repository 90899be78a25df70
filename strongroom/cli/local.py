"""Commands that need no server: they are one, or work on its state folder.

The server is imported inside the commands, so that a client's start-up does not pay for it.
"""

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strongroom import __version__
from strongroom.cli.command import JsonOption
from strongroom.cli.errors import EXIT_OK
from strongroom.cli.output import Output

if TYPE_CHECKING:
    from strongroom.config import Settings

LocalStateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", help="State folder. Default: STRONGROOM_STATE, else ~/.local/share/strongroom."
    ),
]


ListenOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Default: 127.0.0.1:8799. Port 0: any free one.")
]
CertificateOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate chain, PEM.")]
KeyOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM.")]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without TLS.")]


def serve(
    state: LocalStateOption = None,
    listen: ListenOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Run the server: API, jobs and an embedded PostgreSQL. The first start makes credentials.json."""
    from strongroom.config import load_settings
    from strongroom.server import serve as run_server

    options = _listening(state, listen, tls_cert, tls_key, insecure)
    raise typer.Exit(run_server(load_settings(options, os.environ)))


def api(
    state: LocalStateOption = None,
    listen: ListenOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Run one of many request sides, on a PostgreSQL and a store that all of them share."""
    from strongroom.config import load_settings
    from strongroom.server import run_api

    options = _listening(state, listen, tls_cert, tls_key, insecure)
    raise typer.Exit(run_api(load_settings(options, os.environ)))


def worker(
    group: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose sources it reaches. Default: `default`.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="Tasks at once. Default: 4.")] = None,
    health: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to answer /readyz and /metrics. Default: nowhere.")
    ] = None,
    state: LocalStateOption = None,
) -> None:
    """Run one of many job sides, on the PostgreSQL and the store of the API, near what it protects."""
    from strongroom.config import load_settings
    from strongroom.server import run_worker

    options = {
        "state": _text(state),
        "worker_group": group,
        "worker_concurrency": str(concurrency) if concurrency is not None else None,
        "health_listen": health,
    }
    raise typer.Exit(run_worker(load_settings(options, os.environ)))


def _listening(
    state: Path | None, listen: str | None, tls_cert: Path | None, tls_key: Path | None, insecure: bool
) -> dict[str, str | None]:
    return {
        "state": _text(state),
        "listen": listen,
        "tls_cert": _text(tls_cert),
        "tls_key": _text(tls_key),
        "insecure": "true" if insecure else None,
    }


def export_key(
    output: Annotated[
        Path, typer.Argument(metavar="FILE", help="New file, mode 0600. Keep it away from this machine.")
    ],
    vault: Annotated[
        str | None, typer.Option(metavar="VAULT", help="Only the keys of the vault with this id, to hand it over.")
    ] = None,
    state: LocalStateOption = None,
) -> None:
    """Write the key without which nothing can be restored. Do this once, now, and store it elsewhere."""
    from strongroom.config import load_settings
    from strongroom.upkeep import export_key as run_export
    from strongroom.upkeep import export_vault_key

    settings = load_settings({"state": _text(state)}, os.environ)
    code = run_export(settings, output) if vault is None else export_vault_key(settings, output, vault)
    if code == EXIT_OK and vault is None:
        Output(as_json=False).say(
            f"Wrote {output}. Keep it on another machine: without it no restore point can be read."
        )
    elif code == EXIT_OK:
        Output(as_json=False).say(f"Wrote {output}. Who has it can read every restore point of this vault, for ever.")
    raise typer.Exit(code)


def rotate_key(
    forget_old: Annotated[
        bool,
        typer.Option("--forget-old", help="Instead: remove what earlier keys open. Export the present key first."),
    ] = False,
    state: LocalStateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the master key by a new one. Stop the server first; after a crash run it again."""
    from strongroom.config import load_settings
    from strongroom.upkeep import forget_old_keys
    from strongroom.upkeep import rotate_key as run_rotation

    settings, output = load_settings({"state": _text(state)}, os.environ), Output(as_json=as_json)
    if forget_old:
        removed = forget_old_keys(settings)
        output.details({"removed": removed}, {"Wrapped keys removed": "removed"})
        return
    done = run_rotation(settings)
    values = {
        "new_key_id": done.new_key_id,
        "old_key_id": done.old_key_id,
        "old_file": str(done.old_file),
        "domains": done.domains,
        "secrets": done.secrets,
    }
    labels = {"New key": "new_key_id", "Old key": "old_key_id", "Kept as": "old_file", "Domains": "domains"}
    output.details(values, labels | {"Secrets sealed again": "secrets"})
    output.note("Now run `strongroom export-key FILE` and keep the new file on another machine.")


def migrate(
    to_database: Annotated[
        str | None, typer.Option("--to-database", metavar="URL", help="Move all rows into this empty PostgreSQL.")
    ] = None,
    to_store: Annotated[
        str | None, typer.Option("--to-store", metavar="URL", help="Move all objects into this empty store.")
    ] = None,
    state: LocalStateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the database to this version's schema; or move the installation to another database, another store."""
    from strongroom.config import load_settings
    from strongroom.upkeep import migrate as run_migrations

    settings = load_settings({"state": _text(state)}, os.environ)
    if to_database is not None or to_store is not None:
        _move(settings, to_database, to_store, Output(as_json=as_json))
        return
    code = run_migrations(settings)
    if code == EXIT_OK:
        Output(as_json=False).say("The database has this version's schema.")
    raise typer.Exit(code)


def _move(settings: "Settings", to_database: str | None, to_store: str | None, output: Output) -> None:
    from strongroom.relocate import relocate

    done = relocate(settings, to_database=to_database, to_store=to_store, tell=output.note)
    values: dict[str, Any] = {"settings": dict(done.settings), "before": done.before}
    labels = {}
    if done.rows is not None:
        values |= {"tables": done.rows.tables, "rows": sum(done.rows.tables.values())}
        labels["Rows, all compared"] = "rows"
    if done.objects is not None:
        values |= asdict(done.objects)
        labels |= {"Objects, all compared": "objects", "Bytes": "bytes", "Copied by this run": "copied"}
    output.details(values, labels)
    output.say("The move had ended before." if done.before else "The old place was left as it was.")
    for name, value in done.settings.items():
        output.say(f"Now set {name} to {value}" + (" (with its password)" if name == "database_url" else ""))


def version(as_json: JsonOption = False) -> None:
    """Show the version."""
    values = {"version": __version__, "python": platform.python_version()}
    Output(as_json=as_json).details(values, {"Strongroom": "version", "Python": "python"})


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("serve")(serve)
    app.command("api")(api)
    app.command("worker")(worker)
    app.command("export-key")(export_key)
    app.command("rotate-key")(rotate_key)
    app.command("migrate")(migrate)
    app.command("version")(version)


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
