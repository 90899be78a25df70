"""Sealed objects: AES-256-GCM boxes whose key belongs to one object (RULINGS 10).

    object = object id (16 random bytes) | ... | box | box ...        a box is ciphertext and a tag of 16 bytes
    key    = BLAKE3 derive_key("strongroom v1 " + kind, secret | object id)
    nonce  = offset of the box in its object, 96 bits little endian
    AAD    = format version u16 | domain id | kind, zero padded to 16 | object id | more

An object id is never used again: what is written anew gets a new one, so no nonce meets a key twice. `more` binds an
object to its name where that matters (roots). Everything here works on whole buffers outside the GIL.
"""

import os

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom.base.errors import Corrupt

FORMAT_VERSION = 1
OBJECT_ID_BYTES = 16
TAG_BYTES = 16

SEGMENT, FOOTER, INDEX, INDEX_LIST = "segment", "footer", "index", "index list"
ROOT, LABELS, KEYS, CHECKS = "root", "labels", "keys", "checks"
SELF_HEAD, SELF_PART = "self head", "self part"

_CONTEXT = "strongroom v1 "
_KIND_BYTES = 16


def new_object_id() -> bytes:
    """16 random bytes, never derived from a name."""
    return os.urandom(OBJECT_ID_BYTES)


def derive_key(kind: str, material: bytes) -> bytes:
    """32 bytes for one use; `kind` is one of our constants, never data."""
    return blake3(material, derive_key_context=_CONTEXT + kind).digest()


class Box:
    """Seals and opens the boxes of one kind in one object. Safe for several threads."""

    __slots__ = ("_aad", "_cipher", "_kind")

    def __init__(self, secret: bytes, domain_id: bytes, kind: str, object_id: bytes, more: bytes = b"") -> None:
        self._kind = kind
        self._cipher = AESGCM(derive_key(kind, secret + object_id))
        name = kind.encode().ljust(_KIND_BYTES, b"\0")
        self._aad = FORMAT_VERSION.to_bytes(2, "little") + domain_id + name + object_id + more

    def seal_into(self, offset: int, plain: bytes | memoryview, box: memoryview) -> None:
        """Fill `box` (len(plain) + 16 bytes); `offset` is where it will lie in the object."""
        self._cipher.encrypt_into(offset.to_bytes(12, "little"), plain, self._aad, box)

    def open_into(self, offset: int, box: bytes | memoryview, plain: memoryview) -> None:
        """Fill `plain` (len(box) - 16 bytes). Raises Corrupt; `plain` holds nothing of use then."""
        try:
            self._cipher.decrypt_into(offset.to_bytes(12, "little"), box, self._aad, plain)
        except InvalidTag as err:
            raise Corrupt(reason=f"a {self._kind} does not authenticate", detail=f"offset {offset}") from err

    def seal(self, offset: int, plain: bytes) -> bytes:
        """A box that was opened again and compared. Raises Corrupt when it is wrong: then this machine errs."""
        box = bytearray(len(plain) + TAG_BYTES)
        self.seal_into(offset, plain, memoryview(box))
        if self.open(offset, memoryview(box)) != plain:
            raise Corrupt(reason=f"a {self._kind} that was just sealed opens to other bytes: memory or processor err")
        return bytes(box)

    def open(self, offset: int, box: bytes | memoryview) -> bytes:
        if len(box) < TAG_BYTES:
            raise Corrupt(reason=f"a {self._kind} is shorter than its tag", detail=f"{len(box)} bytes")
        plain = bytearray(len(box) - TAG_BYTES)
        self.open_into(offset, box, memoryview(plain))
        return bytes(plain)


def seal_object(secret: bytes, domain_id: bytes, kind: str, payload: bytes, more: bytes = b"") -> bytes:
    """A whole small object with one box: id, box."""
    object_id = new_object_id()
    return object_id + Box(secret, domain_id, kind, object_id, more).seal(OBJECT_ID_BYTES, payload)


def open_object(secret: bytes, domain_id: bytes, kind: str, data: bytes | bytearray, more: bytes = b"") -> bytes:
    """The payload of `seal_object`. Raises Corrupt."""
    if len(data) < OBJECT_ID_BYTES + TAG_BYTES:
        raise Corrupt(reason=f"an object of kind {kind} is too short", detail=f"{len(data)} bytes")
    box = Box(secret, domain_id, kind, bytes(data[:OBJECT_ID_BYTES]), more)
    return box.open(OBJECT_ID_BYTES, memoryview(data)[OBJECT_ID_BYTES:])
