"""Copies of the service's own tables, in the store that they describe: sealed, numbered, whole or not there.

    self/parts/<copy id>/<i>   one piece of one table: zstd, sealed by the master key
    self/copies/<n>.<copy id>  the head, put last: what the copy holds; without it the parts are nothing

A copy is bound together by its id, which stands in the AAD of head and parts, so no part of one passes for another's.
The engine knows no SQL: a table is a name and its bytes. docs/FORMAT.md has the bytes of both objects.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import msgpack
import zstandard

from strongroom.base.errors import Corrupt, FormatUnknown, KeyWrong, ObjectMissing
from strongroom.base.units import MIB
from strongroom.engine.keys import MasterKey
from strongroom.engine.seal import SELF_HEAD, SELF_PART
from strongroom.engine.store.base import Buffer, Store

HEADS, PARTS = "self/copies/", "self/parts/"
PART_BYTES = 4 * MIB  # of the table, before compression
_HEAD_BYTES_MAX = 4 * MIB  # some thirty tables have 10 KiB
_ID_BYTES = 16
_LEVEL = 3
_DIGITS = 10
_NAME = re.compile(r"self/copies/([0-9]{10})\.([0-9a-f]{32})")


@dataclass(frozen=True, kw_only=True)
class TableCopy:
    """One table. rows, checksum: as the database counted them (control/table_copies.py); parts: how many objects."""

    name: str
    columns: tuple[str, ...]
    rows: int
    checksum: str
    parts: int = 0


@dataclass(frozen=True, kw_only=True)
class SelfCopy:
    """One copy. number: its place in the row of copies; revision: of the schema; bytes: sealed, of all its parts."""

    number: int
    id: bytes
    created_at: datetime
    program: str
    revision: str
    tables: tuple[TableCopy, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One number of the store: the copy, or the sentence why it is of no use."""

    number: int
    id: bytes
    copy: SelfCopy | None = None
    reason: str = ""


class TableSource(Protocol):
    """What is copied. Iterating gives the tables in the order in which they can be loaded."""

    def __iter__(self) -> Iterator[tuple[TableCopy, Iterable[Buffer]]]: ...


@dataclass(kw_only=True)
class _Parts:
    store: Store
    master: MasterKey
    copy_id: bytes
    count: int = 0
    size: int = 0
    _packer: zstandard.ZstdCompressor = field(default_factory=lambda: zstandard.ZstdCompressor(level=_LEVEL))

    def put(self, plain: bytes) -> None:
        sealed = self.master.seal(SELF_PART, self._packer.compress(plain), _more(self.copy_id, self.count))
        self.store.put(_part_name(self.copy_id, self.count), [sealed])
        self.count += 1
        self.size += len(sealed)


def write_copy(
    store: Store, master: MasterKey, source: TableSource, *, created_at: datetime, program: str, revision: str
) -> SelfCopy:
    """Copy every table of `source`; the copy is durable and counts on return. Raises StoreError, Corrupt.

    After an error or a crash there are parts without a head, which `drop_copies` removes.
    """
    parts = _Parts(store=store, master=master, copy_id=os.urandom(_ID_BYTES))
    tables = []
    for table, pieces in source:
        before = parts.count
        for plain in _of_size(pieces):
            parts.put(plain)
        tables.append({"name": table.name, "columns": list(table.columns), "rows": table.rows,
                       "checksum": table.checksum, "parts": parts.count - before})  # fmt: skip
    head = {
        "id": parts.copy_id,
        "created_at": created_at.astimezone(UTC).isoformat(),
        "program": program,
        "revision": revision,
        "tables": tables,
        "bytes": parts.size,
    }
    number = max((number for number, _ in _heads(store)), default=0) + 1
    payload, name = msgpack.packb(head), _head_name(number, parts.copy_id)
    store.put(name, [master.seal(SELF_HEAD, payload, _more(parts.copy_id, number))])
    copy = _parse_head(number, payload)
    missing = missing_parts(store, copy)
    if missing:  # somebody swept them: a copy that is not whole must not be found when it is needed
        store.delete(name)
        raise Corrupt(reason=f"{missing} parts of the copy are gone from the store before it was ready")
    return copy


def list_copies(store: Store, master: MasterKey) -> list[Listed]:
    """Every number, newest first. One that another master key sealed, or that is damaged, has the reason."""
    found = []
    for number, copy_id in sorted(_heads(store), reverse=True):
        try:
            data = store.read(_head_name(number, copy_id))
            if len(data) > _HEAD_BYTES_MAX:
                raise Corrupt(reason="it is longer than a head can be", detail=f"{len(data)} bytes")
            copy = _parse_head(number, master.open(SELF_HEAD, data, _more(copy_id, number)))
            missing = missing_parts(store, copy)
            reason = f"{missing} of its parts are not in the store" if missing else ""
            found.append(Listed(number=number, id=copy_id, copy=None if missing else copy, reason=reason))
        except (Corrupt, FormatUnknown, KeyWrong, ObjectMissing) as err:
            found.append(Listed(number=number, id=copy_id, reason=str(err)))
    return found


def missing_parts(store: Store, copy: SelfCopy) -> int:
    """How many objects of the copy are not there."""
    there = {info.name for info in store.list(f"{PARTS}{copy.id.hex()}/")}
    return sum(_part_name(copy.id, i) not in there for i in range(sum(table.parts for table in copy.tables)))


def read_table(store: Store, master: MasterKey, copy: SelfCopy, name: str) -> Iterator[bytes]:
    """The bytes of one table, in pieces. Raises Corrupt, ObjectMissing."""
    first = 0
    for table in copy.tables:
        if table.name == name:
            for number in range(first, first + table.parts):
                sealed = store.read(_part_name(copy.id, number))
                packed = master.open(SELF_PART, sealed, _more(copy.id, number))
                try:
                    yield zstandard.ZstdDecompressor().decompress(packed, max_output_size=PART_BYTES)
                except zstandard.ZstdError as err:
                    raise Corrupt(reason=f"part {number} of copy {copy.number} does not decompress") from err
            return
        first += table.parts


def drop_copies(store: Store, master: MasterKey, keep: int) -> int:
    """Remove all but the newest `keep` that are whole, and parts without a head; gives how many copies went.

    What another master key sealed, or what does not read, stays until `drop_unreadable`. Nobody else copies meanwhile.
    """
    whole = [each for each in list_copies(store, master) if each.copy is not None]
    return _drop(store, whole[keep:])


def drop_unreadable(store: Store, master: MasterKey) -> int:
    """Remove what `master` does not open; gives how many copies went."""
    return _drop(store, [each for each in list_copies(store, master) if each.copy is None])


def _drop(store: Store, copies: Sequence[Listed]) -> int:
    """Heads first: what is found is whole. Then every part that no head names."""
    for each in copies:
        store.delete(_head_name(each.number, each.id))
    ids = {copy_id.hex() for _, copy_id in _heads(store)}
    for info in list(store.list(PARTS)):
        if info.name.removeprefix(PARTS).partition("/")[0] not in ids:
            store.delete(info.name)
    return len(copies)


def _heads(store: Store) -> list[tuple[int, bytes]]:
    found = [_NAME.fullmatch(info.name) for info in store.list(HEADS)]
    return [(int(match[1]), bytes.fromhex(match[2])) for match in found if match]


def _parse_head(number: int, payload: bytes) -> SelfCopy:
    try:
        head: Mapping[str, Any] = msgpack.unpackb(payload)
        tables = tuple(
            TableCopy(
                name=str(t["name"]),
                columns=tuple(map(str, t["columns"])),
                rows=int(t["rows"]),
                checksum=str(t["checksum"]),
                parts=int(t["parts"]),
            )
            for t in head["tables"]
        )
        return SelfCopy(
            number=number,
            id=bytes(head["id"]),
            created_at=datetime.fromisoformat(head["created_at"]),
            program=str(head["program"]),
            revision=str(head["revision"]),
            tables=tables,
            bytes=int(head["bytes"]),
        )
    except (ValueError, TypeError, KeyError) as err:
        raise FormatUnknown(reason="the head of a copy has fields this program does not know", detail=str(err)) from err


def _of_size(pieces: Iterable[Buffer]) -> Iterator[bytes]:
    """The same bytes in pieces of PART_BYTES; the last one shorter, none empty."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= PART_BYTES:
            yield bytes(buffer[:PART_BYTES])
            del buffer[:PART_BYTES]
    if buffer:
        yield bytes(buffer)


def _head_name(number: int, copy_id: bytes) -> str:
    return f"{HEADS}{number:0{_DIGITS}}.{copy_id.hex()}"


def _part_name(copy_id: bytes, number: int) -> str:
    return f"{PARTS}{copy_id.hex()}/{number:0{_DIGITS}}"


def _more(copy_id: bytes, number: int) -> bytes:
    return copy_id + number.to_bytes(8, "little")
