"""Digests of sealed objects, in the clear: what lets a store be proven without any key.

    digests/<kind>.<name>   of the object <kind>/<name>: its size and BLAKE3; that of an index object also has the packs

    object = "SRDIGST1" | msgpack map | BLAKE3 of all before, 32 bytes

A digest is taken of the bytes that were sealed, before they are written, so it also finds what was lost on the way.
It is put after its object and deleted before it: a digest without an object is a loss, an object without a digest is
not proven and needs the key. Putting one is an aid: a full disk does not fail the work that it is for. A list tells in
its digest which packs and index objects may be gone by right, so that a prune is no loss.

They are no authority: who can write to the store can write digests that fit. Against that stand the seals.
"""

import contextlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import msgpack
from blake3 import blake3

from strongroom.base.errors import (
    Corrupt,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreTimeout,
)
from strongroom.base.units import MIB
from strongroom.engine.pack import Pack
from strongroom.engine.seal import OBJECT_ID_BYTES
from strongroom.engine.store.base import Store

FOLDER = "digests/"
DIGESTS_BYTES_MAX = 256 * MIB  # 16 million chunks, the most an index object has, are 4 million segments at the worst
PART_DIGEST_BYTES = 16  # against accidents: of 2^64 parts two are alike by chance
WHOLE_DIGEST_BYTES = 32
PACK_PARTS_MAX = 1 << 17  # an id, a footer, and segments of one chunk each

_MAGIC = b"SRDIGST1"
T = TypeVar("T", int, bytes, str)


@dataclass(frozen=True, kw_only=True)
class PackDigests:
    """The parts of one pack in the order they lie: object id, the box of each segment, the footer with its trailer.

    lengths  bytes of each part; they add up to `size`      digests  16 bytes a part, joined
    """

    id: bytes
    size: int
    lengths: tuple[int, ...]
    digests: bytes


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What should be in the store under `name`, counted from the domain's prefix: `roots/<backup id>.<generation>`.

    packs            of an index object: those it names, as far as their digests are known
    fossils, retired of an index list: ids of packs, and names of index objects, that prune may have deleted
    """

    name: str
    size: int
    digest: bytes
    packs: tuple[PackDigests, ...] = ()
    fossils: tuple[bytes, ...] = field(default=())
    retired: tuple[str, ...] = ()


def part_digest(part: bytes | bytearray | memoryview) -> bytes:
    return blake3(part).digest(PART_DIGEST_BYTES)


def whole_digest(data: bytes) -> bytes:
    return blake3(data).digest(WHOLE_DIGEST_BYTES)


def pack_digests(pack: Pack) -> PackDigests | None:
    """Of a pack whose digests are known; None of one that was read from its footer only."""
    if not pack.digests:
        return None
    stored = [segment.stored for _, segment in sorted((segment.offset, segment) for segment in pack.segments)]
    footer = pack.size - OBJECT_ID_BYTES - sum(stored)
    lengths = (OBJECT_ID_BYTES, *stored, footer)
    assert len(lengths) * PART_DIGEST_BYTES == len(pack.digests)
    return PackDigests(id=pack.id, size=pack.size, lengths=lengths, digests=pack.digests)


def known_digests(packs: Iterable[Pack]) -> dict[bytes, PackDigests]:
    """By pack, of those that have any."""
    return {pack.id: found for pack in packs if (found := pack_digests(pack)) is not None}


def digest_of(
    name: str,
    data: bytes,
    *,
    packs: Iterable[PackDigests] = (),
    fossils: Iterable[bytes] = (),
    retired: Iterable[str] = (),
) -> Digest:
    """For `data`, the whole bytes of the object `name`."""
    return Digest(
        name=name,
        size=len(data),
        digest=whole_digest(data),
        packs=tuple(packs),
        fossils=tuple(fossils),
        retired=tuple(retired),
    )


def digest_name(name: str) -> str:
    """Name, from the domain's prefix, of the digest of the object `<kind>/<name>`."""
    kind, _, last = name.partition("/")
    return f"{FOLDER}{kind}.{last}"


def encode_digest(digest: Digest) -> bytes:
    """The whole object."""
    packs = [
        [pack.id, pack.size, struct.pack(f"<{len(pack.lengths)}I", *pack.lengths), pack.digests]
        for pack in digest.packs
    ]
    body: dict[str, object] = {"name": digest.name, "size": digest.size, "digest": digest.digest}
    if packs:
        body["packs"] = packs
    if digest.fossils:
        body["fossils"] = list(digest.fossils)
    if digest.retired:
        body["retired"] = list(digest.retired)
    data = _MAGIC + bytes(msgpack.packb(body))
    return data + whole_digest(data)


def decode_digest(data: bytes, name: str) -> Digest:
    """Of an object that lies where the digest of `name` should. Raises Corrupt."""
    what = f"the digest of {name}"
    plain, own = data[:-WHOLE_DIGEST_BYTES], data[-WHOLE_DIGEST_BYTES:]
    if not plain.startswith(_MAGIC) or whole_digest(plain) != own:
        raise Corrupt(reason=f"{what} is damaged")
    try:
        body = msgpack.unpackb(plain[len(_MAGIC) :])
        found = Digest(
            name=body["name"],
            size=_of(int, body["size"]),
            digest=_of(bytes, body["digest"]),
            packs=tuple(_decode_pack(*row) for row in body.get("packs", ())),
            fossils=tuple(_of(bytes, pack) for pack in body.get("fossils", ())),
            retired=tuple(_of(str, retired) for retired in body.get("retired", ())),
        )
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as err:
        raise Corrupt(reason=f"{what} is malformed", detail=str(err)) from err
    if found.name != name or len(found.digest) != WHOLE_DIGEST_BYTES:
        raise Corrupt(reason=f"{what} is that of another object", detail=str(found.name)[:200])
    return found


def _of(kind: type[T], value: object) -> T:
    """Never converted: `bytes` of a number would be that many zeros. Raises TypeError."""
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected")
    return value


def _decode_pack(pack: bytes, size: int, lengths: bytes, digests: bytes) -> PackDigests:
    """Raises ValueError for what is no pack's."""
    count = len(lengths) // 4
    parts = struct.unpack(f"<{count}I", lengths)
    if len(pack) != OBJECT_ID_BYTES or not 2 <= count <= PACK_PARTS_MAX:
        raise ValueError("a pack of an impossible form")
    if len(digests) != count * PART_DIGEST_BYTES or sum(parts) != size or 0 in parts:
        raise ValueError("the parts of a pack do not add up")
    return PackDigests(id=_of(bytes, pack), size=size, lengths=parts, digests=_of(bytes, digests))


# A store that is full, closed or slow does not undo the work that a digest is for. What else goes wrong is raised.
_PASSED_OVER = (ObjectExists, StoreFull, StoreDenied, StoreTimeout)


def put_digest(store: Store, prefix: str, digest: Digest) -> None:
    """Durable on return, or not there when the store takes no more. What is there already stays. Raises StoreError."""
    with contextlib.suppress(*_PASSED_OVER):
        store.put(prefix + digest_name(digest.name), [encode_digest(digest)])


def put_checked_digest(store: Store, prefix: str, digest: Digest) -> None:
    """For an object that somebody else may delete at any time: no digest is left without it.

    Its deleter removes the digest first, and may do that just before we put it. Raises StoreError.
    """
    with contextlib.suppress(*_PASSED_OVER):
        store.put(prefix + digest_name(digest.name), [encode_digest(digest)])
        try:
            store.size(prefix + digest.name)
        except ObjectMissing:
            store.delete(prefix + digest_name(digest.name))


def replace_digest(store: Store, prefix: str, digest: Digest) -> None:
    """In the place of one that is damaged or knows less. Raises StoreError."""
    name = prefix + digest_name(digest.name)
    store.delete(name)
    with contextlib.suppress(ObjectExists):
        store.put(name, [encode_digest(digest)])


def load_digest(store: Store, prefix: str, name: str) -> Digest:
    """The digest of the object `name`. Raises ObjectMissing, Corrupt, StoreError."""
    full = prefix + digest_name(name)
    size = store.size(full)
    if size > DIGESTS_BYTES_MAX:
        raise Corrupt(reason=f"the digest of {name} is larger than any", detail=f"{size} bytes")
    return decode_digest(store.read(full, 0, size), name)


def merge_digests(
    store: Store, prefix: str, names: Iterable[str], gone: frozenset[bytes] = frozenset()
) -> dict[bytes, PackDigests]:
    """By pack, what the digests of these index objects (`index/...`) know; those that do not read know nothing."""
    found: dict[bytes, PackDigests] = {}
    for name in names:
        with contextlib.suppress(StoreError, Corrupt):
            found.update((pack.id, pack) for pack in load_digest(store, prefix, name).packs if pack.id not in gone)
    return found


def lost_index_objects(store: Store, prefix: str) -> list[str]:
    """Names (`<n>.<hex>`) of index objects that have a digest and are not there: lost, whatever the lists say.

    Digests are listed first: an object is put before its digest, and its digest is deleted before it.
    """
    head = f"{prefix}{FOLDER}index."
    digests = [info.name[len(head) :] for info in store.list(prefix + FOLDER) if info.name.startswith(head)]
    there = {info.name.rpartition("/")[2] for info in store.list(f"{prefix}index/")}
    return [name for name in digests if "." in name and name not in there]


def delete_object(store: Store, prefix: str, name: str) -> None:
    """Delete an object by right: first its digest, so that nobody takes it for lost. Idempotent. Raises StoreError."""
    store.delete(prefix + digest_name(name))
    store.delete(prefix + name)
