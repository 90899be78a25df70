"""The messages of a session, and of the greeting before it: typed values in msgpack, decoded strictly.

A message is `head length u32 | head | tail`: the head says what it is, the tail holds bytes of content, uncopied.

    backup    S BackupJob       A PointOpened          S Go on: everything from here is asked by the engine
              A Walked ...      S Released             folders in the order of the walk, and which are done with
              S Read            A Offer                what is wanted of a folder; ids of the chunks that are there
              S Want            A Chunks               those that are new; the others stay at the host
              S Commit          A Done
    restore   S RestoreJob      A RestorePlanned       S Begin       A Done       S Pour ...   S Finish   A Finished
    others    S LookJob         A Looked               S RecoverJob  A Recovered

S the server, A the agent. `Failed` may come instead of any answer.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import zstandard

from strongroom.base import errors
from strongroom.base.errors import SourceError, SourceUnreachable
from strongroom.base.streams import Attributes, Entry, Path, Skipped
from strongroom.base.units import KIB, MIB

PROTOCOL = 3
_HEAD = struct.Struct(">I")
WALKED_BYTES_MAX = 16 * MIB  # of one message of folders, unpacked; a part has 4096 names of 255 bytes at most
PIECES_MAX = 4096  # of an offer
BATCH_BYTES = 4 * MIB  # of content in one offer; it may hold one chunk more
CHUNKS_BYTES = 256 * KIB  # of content in one message: a bad connection must carry one whole, or nothing goes on
PATHS_MAX = 64
TEXT_MAX = 4096


class Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Of a session; the class name travels with it."""


# --- server to agent ------------------------------------------------------------------------------------------------


class Root(msgspec.Struct, array_like=True, frozen=True):
    """A path of the host that is protected, absolute. excluded: absolute paths below it."""

    path: bytes
    excluded: tuple[bytes, ...] = ()


class BackupJob(Message, frozen=True):
    """token: of the parent, None without one. full: trust no parent."""

    roots: tuple[Root, ...]
    patterns: tuple[str, ...]
    one_file_system: bool
    read_limit_bytes_s: int | None
    token: bytes | None
    full: bool


class Cut(Message, frozen=True):
    """How chunks are cut and named in this vault. Not kept by the agent."""

    key: bytes
    seed: int


class Released(Message, frozen=True):
    """Folders below this number are done with."""

    number: int


class Read(Message, frozen=True):
    """Read of one folder: (index of the entry, whether its content too), in this order. Ends what was asked before."""

    epoch: int
    number: int
    wanted: tuple[tuple[int, bool], ...]


class Want(Message, frozen=True):
    """Which pieces of an offer are to be sent: a bit each, lowest first."""

    epoch: int
    offer: int
    bits: bytes


class Commit(Message, frozen=True):
    """The backup stands."""


class LookJob(Message, frozen=True):
    """May these paths be read?"""

    roots: tuple[Root, ...]


class RestoreJob(Message, frozen=True):
    """As sources.base.RestoreWanted has it.

    roots     paths that the restore point was made of       aside  a folder to put all into, None: in place
    excluded  paths that are left out of backups of this host: what is there stays
    """

    task_id: str
    roots: tuple[bytes, ...]
    same_resource: bool
    privileged: bool
    size_bytes: int
    entries: int
    selection: tuple[Path, ...]
    aside: bytes | None
    excluded: tuple[bytes, ...]
    force: bool


class Begin(Message, frozen=True):
    """Do what was planned."""


class Pour(Message, frozen=True):
    """Steps of a restore; `Bytes` take their content from the tail, one after the other."""

    steps: "tuple[MakeFolder | MakeNode | MakeLink | BeginFile | Bytes | EndFile, ...]"


class MakeFolder(Message, frozen=True):
    path: Path
    entry: Entry
    attributes: Attributes


class MakeNode(Message, frozen=True):
    path: Path
    entry: Entry
    attributes: Attributes


class MakeLink(Message, frozen=True):
    """Answered by Linked: it comes alone."""

    path: Path
    first: Path
    entry: Entry
    attributes: Attributes


class BeginFile(Message, frozen=True):
    number: int
    path: Path
    entry: Entry
    attributes: Attributes


class Bytes(Message, frozen=True):
    number: int
    offset: int
    length: int


class EndFile(Message, frozen=True):
    number: int


class Finish(Message, frozen=True):
    """All was poured: make it durable and move it into place."""


class RecoverJob(Message, frozen=True):
    """Settle what restores that have ended left behind."""

    tasks: tuple[str, ...]


# --- agent to server ------------------------------------------------------------------------------------------------


class Failed(Message, frozen=True):
    """It could not be done; `kind` is a class of base.errors."""

    kind: str
    reason: str
    detail: str = ""


class PointOpened(Message, frozen=True):
    """As sources.base.Point has it."""

    token: bytes
    taken_at_ns: int
    unchanged_before_ns: int
    full_reason: str | None
    metadata: dict[str, str | int | bool | None]
    root: Entry
    root_attributes: Attributes


class WalkedFolder(msgspec.Struct, array_like=True, frozen=True):
    """listing: msgpack of the entries, a list of tuples: of a folder in which nothing changed nobody decodes them."""

    path: Path
    listing: bytes
    skipped: tuple[Skipped, ...]


class Walked(Message, frozen=True):
    """Folders, numbered from `number`; the tail is zstd of msgpack of [WalkedFolder]. last: the walk is over."""

    number: int
    folders: int
    last: bool


class FileEnd(msgspec.Struct, array_like=True, frozen=True):
    whole: bool
    changed: bool
    attributes: Attributes


class Part(msgspec.Struct, array_like=True, frozen=True):
    """Of what was asked for one entry. entry: with its first part, as fstat saw it; end: with the last one.

    ids and lengths of `pieces` pieces lie in the tail of the offer. failed: instead of all that.
    """

    index: int
    pieces: int
    entry: Entry | None = None
    end: FileEnd | None = None
    failed: tuple[str, str] | None = None


class Offer(Message, frozen=True):
    """The tail is ids of 32 bytes and lengths u64, as rows of engine/content.py."""

    epoch: int
    offer: int
    parts: tuple[Part, ...]


class Chunks(Message, frozen=True):
    """Some of what was wanted of an offer, in its order; the tail holds whole chunks, CHUNKS_BYTES and one at most."""

    epoch: int
    offer: int


class Looked(Message, frozen=True):
    size_bytes: int


class RestorePlanned(Message, frozen=True):
    needed_bytes: int
    free_bytes: int
    warnings: tuple[str, ...]
    conflicts: tuple[str, ...]


class Linked(Message, frozen=True):
    made: bool


class Finished(Message, frozen=True):
    left_out: tuple[Skipped, ...]
    written_bytes: int
    warnings: tuple[str, ...]


class Recovered(Message, frozen=True):
    outcomes: tuple[tuple[str, bool], ...]  # (task, forward)


class Done(Message, frozen=True):
    warnings: tuple[str, ...] = ()


# --- the greeting ---------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """session: the one that goes on, b"" for none. restores: whether the host allows them now."""

    protocol: int
    version: str
    host_name: str
    session: bytes
    received: int
    restores: bool


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """session b"": there is none to go on with. renew: ask for a new certificate now."""

    session: bytes
    received: int
    renew: bool


class Enroll(msgspec.Struct, array_like=True, frozen=True):
    """request: PKCS#10, DER."""

    token: str
    request: bytes
    host_name: str


class Issued(msgspec.Struct, array_like=True, frozen=True):
    """certificate: DER."""

    certificate: bytes
    agent_id: str


class Open(msgspec.Struct, array_like=True, frozen=True):
    session: bytes


class Refused(msgspec.Struct, array_like=True, frozen=True):
    reason: str


ToAgent = (
    BackupJob | Cut | Released | Read | Want | Commit | LookJob | RestoreJob | Begin | Pour | MakeLink | Finish
    | RecoverJob
)  # fmt: skip
ToServer = (
    Failed | PointOpened | Walked | Offer | Chunks | Looked | RestorePlanned | Linked | Finished | Recovered | Done
)
# Text that is no UTF-8 is a ValueError of its own.
_UNDECODABLE = (msgspec.DecodeError, ValueError, RecursionError, OverflowError)
_encoder = msgspec.msgpack.Encoder()
_to_agent = msgspec.msgpack.Decoder(ToAgent)
_to_server = msgspec.msgpack.Decoder(ToServer)
_folders = msgspec.msgpack.Decoder(list[WalkedFolder])
_entries = msgspec.msgpack.Decoder(list[Entry])


class Received(NamedTuple):
    head: Any
    tail: memoryview


def pack(message: Message, *tail: bytes | bytearray | memoryview) -> bytes:
    """A message as it is sent."""
    head = _encoder.encode(message)
    return b"".join((_HEAD.pack(len(head)), head, *tail))


def from_agent(payload: bytes) -> Received:
    """Raises SourceUnreachable for what no agent of ours sends."""
    return _unpack(payload, _to_server)


def from_server(payload: bytes) -> Received:
    return _unpack(payload, _to_agent)


def _unpack(payload: bytes, decoder: "msgspec.msgpack.Decoder[Any]") -> Received:
    view = memoryview(payload)
    if len(view) < _HEAD.size:
        raise _not_ours("it is too short")
    (length,) = _HEAD.unpack_from(view)
    end = _HEAD.size + length
    if end > len(view):
        raise _not_ours("its head is cut off")
    try:
        return Received(decoder.decode(view[_HEAD.size : end]), view[end:])
    except _UNDECODABLE as err:
        raise _not_ours(str(err)) from err


def pack_folders(folders: list[WalkedFolder]) -> bytes:
    """The tail of Walked."""
    return zstandard.ZstdCompressor(level=1).compress(_encoder.encode(folders))


def unpack_folders(tail: memoryview) -> list[WalkedFolder]:
    """Raises SourceUnreachable."""
    try:
        if not 0 <= zstandard.frame_content_size(tail) <= WALKED_BYTES_MAX:
            raise _not_ours("its folders are too long")
        plain = zstandard.ZstdDecompressor().decompress(tail, max_output_size=WALKED_BYTES_MAX)
        return _folders.decode(plain)
    except (zstandard.ZstdError, *_UNDECODABLE) as err:
        raise _not_ours(str(err)) from err


def pack_entries(entries: Sequence[Entry]) -> bytes:
    """The listing of a folder. Equal to what the engine's records begin with, byte for byte."""
    return _encoder.encode(entries)


def unpack_entries(listing: bytes) -> list[Entry]:
    """Raises SourceUnreachable."""
    try:
        return _entries.decode(listing)
    except _UNDECODABLE as err:
        raise _not_ours(str(err)) from err


def greet(value: msgspec.Struct) -> bytes:
    """A value of the greeting as it is sent."""
    return _encoder.encode(value)


def greeting(payload: bytes, kind: Callable[..., Any]) -> Any:
    """Decode one. Raises SourceUnreachable."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except _UNDECODABLE as err:
        raise _not_ours(str(err)) from err


def failure_of(error: SourceError) -> Failed:
    """An error of this side for the other."""
    return Failed(type(error).__name__, error.message[:TEXT_MAX], error.detail[:TEXT_MAX])


def error_of(kind: str, reason: str, detail: str = "") -> errors.StrongroomError:
    """The error that the other side met; what is no error of a source becomes a plain one."""
    found = getattr(errors, kind, None)
    if not (isinstance(found, type) and issubclass(found, SourceError)):
        found = SourceError
    made: errors.StrongroomError = found(reason=reason[:TEXT_MAX])
    made.detail = detail[:TEXT_MAX]
    return made


def _not_ours(why: str) -> SourceUnreachable:
    return SourceUnreachable(reason="The connection is closed: a message was not understood.", detail=why)
