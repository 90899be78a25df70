"""`quota`: what a project may have and has, and the operator's limits."""

import re
from typing import Annotated

import typer

from strongroom.base.units import human_bytes
from strongroom.cli import names
from strongroom.cli.client import Json
from strongroom.cli.command import Session, group, remote
from strongroom.cli.errors import CommandRefused

app = group("Quotas: how many vaults, bytes and restore points a project may have.")

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d{1,18})(|KiB|MiB|GiB|TiB)")
NO_LIMIT = "none"


@remote(app, "show")
def show(
    session: Session,
    project: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="For the operator: of this project, id or name.")
    ] = None,
) -> None:
    """Show the limits of a project and what it has used of them."""
    _tell(session, session.client.get(_path(session, project)))


@remote(app, "set")
def set_limits(
    session: Session,
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Id or name.")],
    vaults: Annotated[str | None, typer.Option(metavar="N", help='Or "none".')] = None,
    size: Annotated[
        str | None,
        typer.Option("--bytes", metavar="SIZE", help='Stored data of all vaults, such as 500GiB; or "none".'),
    ] = None,
    restore_points: Annotated[str | None, typer.Option(metavar="N", help='Or "none".')] = None,
) -> None:
    """Set limits of a project; those that are not named stay. For the operator."""
    given = {"vaults": vaults, "bytes": size, "restore_points": restore_points}
    limits = {name: _limit(name, text) for name, text in given.items() if text is not None}
    if not limits:
        raise CommandRefused(reason="Name a limit: --vaults, --bytes or --restore-points.")
    _tell(session, session.client.put(_path(session, project), {"quotas": limits}))


def _path(session: Session, project: str | None) -> str:
    if project is None:
        return session.client.ext("quotas")
    return f"/ext/v1/admin/projects/{names.project_id(session.client, project)}/quotas"


def _limit(name: str, text: str) -> int | None:
    if text == NO_LIMIT:
        return None
    found = _SIZE.fullmatch(text)
    if found is None or (found[2] and name != "bytes"):
        raise CommandRefused(reason=f"{text} is no limit of {name}: give a number, such as 500GiB for bytes, or none.")
    return int(found[1]) * _UNITS[found[2]]


def _tell(session: Session, answer: Json) -> None:
    if session.output.as_json:
        session.output.document(answer)
        return
    rows = []
    for name, quota in answer["quotas"].items():
        spelled = human_bytes if name == "bytes" else str
        limit = quota["limit"]
        rows.append(
            [name.replace("_", " "), spelled(quota["used"]), spelled(limit) if limit is not None else "no limit"]
        )
    session.output.cells(rows, ["Of", "Used", "Limit"])
