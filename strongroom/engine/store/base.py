"""What the engine asks of a place that keeps named bytes, and the names it may use.

Rules every store keeps (the contract suite runs on each of them):
- an object never changes after it is there; `put` and `ObjectWriter.commit` never replace one;
- what `put`, `commit` and `delete` did survives a crash of machine and process as soon as they return;
- an object is visible whole or not at all;
- every method may be called from several threads at once.

A store knows nothing of packs, keys or vaults. Vendor errors leave it only as the StoreError classes of base/errors.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from strongroom.base.errors import StoreError

Buffer = bytes | bytearray | memoryview

NAME_BYTES_MAX = 512  # S3 allows 1024 for a key; half is left to the bucket prefix of an installation
PART_BYTES_MAX = 128  # a POSIX name has at most 255; the rest is room for the temporary name beside it

# A part never begins with a dot: `.` and `..` are impossible, and dot names are free for temporary objects.
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class ObjectInfo(NamedTuple):
    """One line of a listing: the full name and the size in bytes."""

    name: str
    size: int


def is_part(text: str) -> bool:
    """True when `text` may stand between two slashes of a name."""
    return len(text) <= PART_BYTES_MAX and _PART.fullmatch(text) is not None


def require_name(name: str) -> tuple[str, ...]:
    """The parts of a legal object name such as `packs/3f/3f09`. Raises StoreError for any other text."""
    parts = tuple(name.split("/"))
    if len(name) <= NAME_BYTES_MAX and all(is_part(part) for part in parts):
        return parts
    raise StoreError(name=name[:NAME_BYTES_MAX], detail="not a legal object name")


def require_prefix(prefix: str) -> tuple[str, ...]:
    """The parts of a legal prefix: empty for everything, else names of folders with a slash at the end (`packs/`)."""
    if not prefix:
        return ()
    if not prefix.endswith("/"):
        raise StoreError(name=prefix[:NAME_BYTES_MAX], detail="a prefix ends with a slash")
    return require_name(prefix[:-1])


class ObjectWriter(Protocol):
    """One new object written piece by piece, invisible until `commit`. Nothing of it is visible after `discard`.

    A writer that is dropped without either leaves a temporary object that only `sweep_temporary` sees.
    """

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`. Several threads may write different ranges at once. Raises StoreError."""
        ...

    def commit(self) -> None:
        """Make the object durable, then visible under its name; both hold on return.

        MUST refuse (StoreError) when the ranges written do not cover [0, size) without a gap. Raises ObjectExists
        when the name is taken, and changes nothing then. After an error the writer MUST be discarded.
        """
        ...

    def discard(self) -> None:
        """Forget the object. Idempotent; does nothing after a `commit` that succeeded. MUST not raise."""
        ...


class Store(Protocol):
    """Named bytes. Names are those of `require_name`."""

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Store the concatenation of `data` as a new object; durable and visible on return.

        Put if absent: raises ObjectExists and changes nothing when the name is taken. After any other StoreError the
        object is either there whole or not at all; the caller reads to find out.
        """
        ...

    def writer(self, name: str) -> ObjectWriter:
        """Begin a large object. The name is checked when it is committed."""
        ...

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes [offset, offset + length), or to the end. Raises ObjectMissing; ShortRead when it ends sooner."""
        ...

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` from `offset`. Raises ObjectMissing; ShortRead when the object ends sooner."""
        ...

    def expect(self, name: str, offset: int, length: int) -> None:
        """A hint: `read_into` of exactly this range comes soon. MUST neither block nor raise; may do nothing."""
        ...

    def size(self, name: str) -> int:
        """Size in bytes. Raises ObjectMissing."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below `prefix`, however deep, in ascending order of its name; temporary objects never.

        An object put or deleted meanwhile may or may not be listed, each at most once.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove an object, durably on return. Idempotent: one that is not there is fine."""
        ...

    def sweep_temporary(self, prefix: str, older_than_s: float) -> int:
        """Remove what dropped writers left below `prefix`, at least `older_than_s` seconds after their last write.

        Returns bytes freed. MUST not touch what a writer that lives on this machine still writes.
        """
        ...

    def check(self) -> None:
        """Prove that the store answers and can be written and read. Raises StoreError, and ConfigError for one that
        would replace objects."""
        ...
