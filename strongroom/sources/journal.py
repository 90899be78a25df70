"""The journal of a folder restore: one small file in its staging place that says how far it is.

    staging    nothing live was touched            after a crash: back
    swapping   all content is staged and durable   after a crash: forward
    undoing    a step forward failed for good      after a crash: go on going back
    swapped    all is in its place                 after a crash: carry excluded names over, then as done
    done       the new state stands                after a crash: remove the rest

It is written as a whole: temporary name, fsync, rename, fsync of the folder. It lies in a folder that the tenant may
own, so what is read back is believed only when the file belongs to this user and nobody else may read or write it;
paths in it are names below the root and are opened one by one without following links, like everything else.
"""

import json
import os
import stat
from dataclasses import dataclass
from typing import Any, Literal, get_args

from strongroom.base.errors import SourceError
from strongroom.base.streams import Attributes, Entry, Path
from strongroom.sources.inodes import OPEN_READ
from strongroom.sources.selection import Unit, check_name

State = Literal["staging", "swapping", "undoing", "swapped", "done"]

FORMAT = 1
JOURNAL = b"journal"
JOURNAL_BYTES_MAX = 1 << 30  # a folder with millions of names in its root
_TEMP = b"journal.new"


@dataclass(frozen=True, kw_only=True)
class Move:
    """One unit and what it needs besides two renames.

    number    of its place in `old`
    staged    False: the restore point lacks it, the live one is only put aside
    old_mode, old_flags   to be given back on undo; None, 0: nothing was in the way
    new_mode, new_flags   to be set once it is in its place
    """

    number: int
    unit: Unit
    staged: bool
    old_mode: int | None = None
    old_flags: int = 0
    new_mode: int | None = None
    new_flags: int = 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """Metadata of a folder that is live already (the root) or has to be made (parents of a unit)."""

    path: Path
    entry: Entry
    attributes: Attributes


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What has to be done, so that any process can finish it.

    missing  live folders that have to be made first, outermost first
    parents  metadata of those among them that the restore point knows
    root     metadata of the root, applied last; None: leave it
    trusted  see MetadataWriter
    exclude  patterns of the resource: what they match is carried over
    """

    state: State
    moves: tuple[Move, ...] = ()
    missing: tuple[Path, ...] = ()
    parents: tuple[Record, ...] = ()
    root: Record | None = None
    trusted: bool = False
    exclude: tuple[str, ...] = ()


def write_journal(stage_fd: int, journal: Journal) -> None:
    """Durable on return. Raises OSError; the old one then still stands."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_TEMP, flags, 0o600, dir_fd=stage_fd)
    with os.fdopen(fd, "w", encoding="ascii") as out:
        json.dump(_document(journal), out)
        out.flush()
        os.fsync(out.fileno())
    os.rename(_TEMP, JOURNAL, src_dir_fd=stage_fd, dst_dir_fd=stage_fd)
    os.fsync(stage_fd)


def load_journal(stage_fd: int) -> Journal | None:
    """None when there is none. Raises SourceError when it is not ours or not readable."""
    try:
        fd = os.open(JOURNAL, OPEN_READ, dir_fd=stage_fd)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not is_ours(info) or not stat.S_ISREG(info.st_mode) or info.st_size > JOURNAL_BYTES_MAX:
            raise SourceError(
                reason="A restore's journal in the folder was not written by this service; it is left alone."
            )
        raw = file.read(info.st_size)  # the limit itself would be allocated before the first byte is read
    try:
        return _journal(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise SourceError(reason="A restore's journal in the folder is damaged; look at it.", detail=repr(err)) from err


def is_ours(info: os.stat_result) -> bool:
    """Made by this user and closed to everybody else."""
    return info.st_uid == os.geteuid() and not info.st_mode & 0o077


def _document(journal: Journal) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "state": journal.state,
        "trusted": journal.trusted,
        "exclude": list(journal.exclude),
        "moves": [_move_out(move) for move in journal.moves],
        "parents": [_record_out(record) for record in journal.parents],
        "missing": [_path_out(path) for path in journal.missing],
        "root": _record_out(journal.root) if journal.root else None,
    }


def _journal(raw: dict[str, Any]) -> Journal:
    if raw["format"] != FORMAT or raw["state"] not in get_args(State):
        raise ValueError(f"format {raw['format']!r}, state {raw['state']!r}")
    return Journal(
        state=raw["state"],
        trusted=bool(raw["trusted"]),
        exclude=tuple(str(text) for text in raw["exclude"]),
        moves=tuple(_move_in(item) for item in raw["moves"]),
        parents=tuple(_record_in(item) for item in raw["parents"]),
        missing=tuple(_path_in(item) for item in raw["missing"]),
        root=_record_in(raw["root"]) if raw["root"] else None,
    )


def _path_out(path: Path) -> list[str]:
    return [name.decode("utf-8", "surrogateescape") for name in path]


def _path_in(raw: list[str]) -> Path:
    path = tuple(name.encode("utf-8", "surrogateescape") for name in raw)
    for name in path:
        check_name(name)
    return path


def _move_out(move: Move) -> list[Any]:
    unit = move.unit
    live = _path_out(unit.live)
    staged = None if unit.staged == unit.live else _path_out(unit.staged)  # mostly equal, and there may be a million
    return [move.number, live, staged, move.staged, move.old_mode, move.old_flags, move.new_mode, move.new_flags]


def _move_in(fields: list[Any]) -> Move:
    number, live, staged, is_staged, old_mode, old_flags, new_mode, new_flags = fields
    live_path = _path_in(live)
    unit = Unit(live=live_path, staged=live_path if staged is None else _path_in(staged))
    return Move(
        number=int(number),
        unit=unit,
        staged=bool(is_staged),
        old_mode=None if old_mode is None else int(old_mode),
        old_flags=int(old_flags),
        new_mode=None if new_mode is None else int(new_mode),
        new_flags=int(new_flags),
    )


def _record_out(record: Record) -> dict[str, Any]:
    attributes = record.attributes
    return {
        "path": _path_out(record.path),
        "entry": [record.entry.name.hex(), *record.entry[1:]],
        "xattrs": [(name.hex(), value.hex()) for name, value in attributes.xattrs],
        "flags": attributes.flags,
    }


def _record_in(raw: dict[str, Any]) -> Record:
    name, *numbers = raw["entry"]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"an entry of {numbers!r}")
    xattrs = tuple((bytes.fromhex(key), bytes.fromhex(value)) for key, value in raw["xattrs"])
    return Record(
        path=_path_in(raw["path"]),
        entry=Entry(bytes.fromhex(name), *numbers),
        attributes=Attributes(xattrs, int(raw["flags"])),
    )
