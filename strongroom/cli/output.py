"""What a command prints: tables and bars for people, JSON for programs.

Results go to stdout; progress, notes and errors go to stderr, so that a pipe carries results only. With --json a
command prints one JSON document; long work (watching tasks, the demo, a download) prints JSON Lines whose
`message_type` is status, summary or error. Names come from protected folders and may hold anything, so control
characters never reach a terminal as such.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from strongroom.base.errors import StrongroomError
from strongroom.cli.errors import RequestRefused

PIPE_WIDTH = 240  # a table in a pipe is not cut to the 80 columns that rich assumes there

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def shown(value: object) -> str:
    """Text for a terminal: None is `-`, control characters and stray bytes are written as \\xNN."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", str(value))


def when(timestamp: object) -> str:
    """`2020-02-05 10:38:34` from the API's `2020-02-05T10:38:34.209782`; UTC."""
    return shown(timestamp).partition(".")[0].replace("T", " ")


class Output:
    """Where one command's answers go."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.stdout = _console(stderr=False)
        self.stderr = _console(stderr=True)

    @property
    def live(self) -> bool:
        """True when somebody looks: bars are drawn, questions may be asked."""
        return not self.as_json and self.stderr.is_terminal

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, title: str | None = None) -> None:
        """Rows as a table, or as a JSON array with everything the server said.

        columns: heading -> member, `billing.size` reaching into a member that is an object.
        """
        if self.as_json:
            self.document(list(rows))
            return
        if not rows:
            self.note("Nothing there.")
            return
        self.cells([[_reach(row, member) for member in columns.values()] for row in rows], list(columns), title=title)

    def cells(self, rows: Sequence[Sequence[object]], headings: Sequence[str], *, title: str | None = None) -> None:
        """A table of ready values, for people only. Numbers stand on the right."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for index, heading in enumerate(headings):
            numbers = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(when(v) if _is_time(v) else shown(v)) for v in row))
        self.stdout.print(table)

    def details(self, row: Mapping[str, Any], members: Mapping[str, str]) -> None:
        """One object: as JSON, or label and value line by line."""
        if self.as_json:
            self.document(row)
            return
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for label, member in members.items():
            value = _reach(row, member)
            table.add_row(label, Text(when(value) if _is_time(value) else shown(value)))
        self.stdout.print(table)

    def document(self, value: object) -> None:
        """One JSON document."""
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def line(self, message_type: str, **members: object) -> None:
        """One JSON line of long work; nothing for people."""
        if self.as_json:
            sys.stdout.write(json.dumps({"message_type": message_type, **members}, ensure_ascii=True) + "\n")
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """A sentence of the result, for people only."""
        if not self.as_json:
            self.stdout.print(Text(text))

    def note(self, text: str) -> None:
        """A sentence beside the result, for people only."""
        if not self.as_json:
            self.stderr.print(Text(text, style="dim"))

    def warn(self, text: str) -> None:
        """Something that went wrong and did not end the command; people see it, programs have it in the summary."""
        if not self.as_json:
            self.stderr.print(Text(text, style="yellow"))


def print_error(error: StrongroomError, *, as_json: bool) -> None:
    """The last words of a command that failed, on stderr: a red sentence, or one JSON line."""
    request_id = error.request_id if isinstance(error, RequestRefused) else ""
    if as_json:
        members = {"message_type": "error", "code": error.published_code, "message": error.message}
        if error.detail:
            members["detail"] = error.detail
        if request_id:
            members["request_id"] = request_id
        sys.stderr.write(json.dumps(members) + "\n")
        return
    console = _console(stderr=True)
    console.print(Text("\n".join(shown(line) for line in error.message.splitlines()), style="red"))
    if error.detail:
        # Ours or of a local command; a server's own detail stays in its log.
        console.print(Text("\n".join(shown(line) for line in error.detail.splitlines()), style="dim"))
    if request_id:
        console.print(Text(f"code {error.published_code}, request {request_id}", style="dim"))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _reach(row: Mapping[str, Any], member: str) -> Any:
    value: Any = row
    for part in member.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _is_time(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", value) is not None
