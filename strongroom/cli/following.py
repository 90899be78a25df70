"""The server's event stream, read piece by piece: what `task watch` and others wait for (docs/CLI.md, `task watch`)."""

import contextlib
import json
from collections.abc import Iterable, Iterator

from strongroom.cli.client import Client, Json
from strongroom.cli.errors import AnswerStrange

LINE_CHARS_MAX = 16 << 20  # a task's outcome may name some hundred paths; more is no event of ours


@contextlib.contextmanager
def followed(client: Client) -> Iterator[Iterator[tuple[str, Json]]]:
    """Events as (kind, data), while the block runs; they end when the server ends them. Raises as `Client.stream`."""
    with client.stream(client.ext("events")) as response:
        yield events(_lines(response.iter_text()), client.endpoint)


def events(lines: Iterable[str], endpoint: str) -> Iterator[tuple[str, Json]]:
    """Server-sent events from their lines; comments and members that nobody here needs are passed over."""
    kind, data = "", ""
    for line in lines:
        name, _, value = line.partition(":")
        match name:
            case "event":
                kind = value.strip()
            case "data":
                data += value.strip()
            case "" if not line and data:
                try:
                    decoded = json.loads(data)
                except ValueError as err:
                    raise AnswerStrange(endpoint=endpoint, reason="an event that is not JSON") from err
                yield kind, decoded if isinstance(decoded, dict) else {}
                kind, data = "", ""


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
        if len(rest) > LINE_CHARS_MAX:
            return
