"""`strongroom engine cat`: bytes of a restore point on standard output.

    engine cat REPO LABEL [PATH] [--offset N] [--length N]

Parsed by engine.py. What is asked for is written and nothing else, so there is no summary for programs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from strongroom.base.errors import InvalidRequest
from strongroom.cli.errors import EXIT_OK

if TYPE_CHECKING:
    from strongroom.engine import Repository, Root

WRITE_BYTES = 1 << 20  # larger ones are not faster

Summary = Mapping[str, object]


def add_cat(parser: Callable[..., argparse.ArgumentParser], cat: object) -> None:
    """Its options; `parser` makes a command, as engine.py has it."""
    found = parser("cat", cat, "Write a file or a disk of a backup, or a range of it, to standard output.")
    found.add_argument("label", metavar="LABEL")
    found.add_argument("path", metavar="PATH", nargs="?", default="", help="the file, for a backup of a folder")
    found.add_argument("--offset", type=_count, default=0, metavar="N", help="first byte (default 0)")
    found.add_argument("--length", type=_count, metavar="N", help="bytes (default: to the end)")


def cat(options: argparse.Namespace, repository: "Repository", root: "Root") -> tuple[int, Summary]:
    """Every byte is checked before it is written; who reads may stop whenever he has seen enough."""
    from strongroom.engine.reader import AHEAD_BYTES_MAX, open_reader

    path = tuple(os.fsencode(part) for part in options.path.split("/") if part)
    if options.json:
        raise InvalidRequest(reason="The output is the bytes themselves: there is no JSON of it.")
    if root.kind == "tree" and not path:
        raise InvalidRequest(reason="This is a backup of a folder: name a file in it.")
    try:
        with open_reader(repository, root.name, cache_bytes=2 * AHEAD_BYTES_MAX) as reader:
            file = reader.open(path)
            end = file.size if options.length is None else min(options.offset + options.length, file.size)
            buffer = memoryview(bytearray(WRITE_BYTES))
            for at in range(options.offset, end, WRITE_BYTES):
                piece = buffer[: file.read_into(at, buffer[: min(WRITE_BYTES, end - at)])]
                while piece:
                    piece = piece[os.write(sys.stdout.fileno(), piece) :]
    except BrokenPipeError:
        pass
    finally:
        repository.close()
    return EXIT_OK, {}


def _count(text: str) -> int:
    """A number of bytes, for argparse."""
    number = int(text)
    if number < 0:
        raise ValueError("negative")
    return number
