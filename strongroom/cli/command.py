"""The options that every command of the API has, given to a function in one line.

`@remote(app, "list")` registers `def list_vaults(session, ...)`: the command line gets --state, --endpoint,
--credentials and --json in place of `session`, and the function gets an open Session.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from strongroom.cli.client import Client
from strongroom.cli.credentials import load_credentials
from strongroom.cli.errors import CommandRefused
from strongroom.cli.output import Output

StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="State folder of the server, for its credentials.json. "
        "Default: STRONGROOM_STATE, else ~/.local/share/strongroom.",
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        envvar="STRONGROOM_ENDPOINT",
        help="Server to ask, instead of the one in the credentials.",
    ),
]
CredentialsOption = Annotated[
    Path | None,
    typer.Option(
        "--credentials",
        metavar="FILE",
        envvar="STRONGROOM_CREDENTIALS",
        help="Credentials file to use instead of the state folder's.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Show progress until it has ended.")]

_SHARED = [
    inspect.Parameter("state", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=StateOption),
    inspect.Parameter("endpoint", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=EndpointOption),
    inspect.Parameter("credentials", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=CredentialsOption),
    inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption),
]


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a command works with."""

    client: Client
    output: Output

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask a person at a terminal before something is lost; a script is not asked. Raises CommandRefused on "no"."""
        if yes or not self.output.live or not sys.stdin.isatty():
            return
        if not typer.confirm(question, err=True):
            raise CommandRefused(reason="Nothing was changed.")


def remote(app: typer.Typer, name: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Register a function whose first parameter is `session`. What it returns is the exit code; None is 0."""

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        def command(
            state: Path | None, endpoint: str | None, credentials: Path | None, as_json: bool, **values: Any
        ) -> None:
            found = load_credentials(state=state, endpoint=endpoint, file=credentials)
            with Client(found) as client:
                code = function(Session(client=client, output=Output(as_json=as_json)), **values)
            if code:
                raise typer.Exit(code)

        own = list(inspect.signature(function).parameters.values())[1:]
        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        command.__signature__ = inspect.Signature([*keyword, *_SHARED])  # type: ignore[attr-defined]
        command.__annotations__ = {}
        command.__doc__ = function.__doc__
        app.command(name)(command)
        return function

    return register


def group(help_text: str) -> typer.Typer:
    """A noun with verbs; without a verb it shows its help."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)
